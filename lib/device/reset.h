/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_RESET_H
#define VFU_DEVICE_RESET_H

#include "libvfio-user.h"

struct request;
struct vfu_ctx;

int reset_command(struct vfu_ctx *ctx, struct request *req);

/* The guest's function level reset: 0 or the device's -errno. */
int reset_function(struct vfu_ctx *ctx);

/*
 * The client is gone and the device is quiet: resets what the library keeps for the device (unless
 * the device keeps its state), takes the client's memory away, calls the reset callback, takes the
 * interrupts away and closes the connection. The next client meets the state after a reset.
 */
void device_connection_lost(struct vfu_ctx *ctx);

#endif /* VFU_DEVICE_RESET_H */
