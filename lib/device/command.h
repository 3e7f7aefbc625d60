/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_COMMAND_H
#define VFU_DEVICE_COMMAND_H

#include "session/session.h"

/* What a context gives its session: every command of the client and who serves it. */
extern const struct session_ops device_session_ops;

#endif /* VFU_DEVICE_COMMAND_H */
