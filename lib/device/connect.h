/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_CONNECT_H
#define VFU_DEVICE_CONNECT_H

#include <stdint.h>

struct vfu_ctx;

/*
 * Accepts a client and agrees with it on the version, or goes on with one that has connected. 0,
 * -EAGAIN when nobody is there or its VERSION has not arrived yet, -EINVAL when a client is attached already, another negative errno
 * when this one was turned away.
 */
int device_attach(struct vfu_ctx *ctx);

/* Serves the client; see vfu_run_ctx(). */
int device_run(struct vfu_ctx *ctx);

/* The descriptor to poll for the next thing to do. */
int device_poll_fd(const struct vfu_ctx *ctx);

/* What to poll it for: POLLIN, POLLOUT, or 0 when nothing can be done now. */
short device_awaits(struct vfu_ctx *ctx);

/* The next deadline beside those of the session, or DEADLINE_NEVER; and of all, for poll(). */
uint64_t device_deadline(struct vfu_ctx *ctx);
int device_next_timeout(struct vfu_ctx *ctx);

/* Turns a client away that has connected and not been attached. */
void device_drop_newcomer(struct vfu_ctx *ctx);

#endif /* VFU_DEVICE_CONNECT_H */
