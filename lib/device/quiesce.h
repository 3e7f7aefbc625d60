/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_QUIESCE_H
#define VFU_DEVICE_QUIESCE_H

#include "libvfio-user.h"

#include <stdbool.h>

struct request;
struct vfu_ctx;

/*
 * Some operations need the device to let go of guest memory first. The device says so at once,
 * or later by vfu_device_quiesced(); meanwhile one operation is put off, and commands wait.
 */
enum quiesce_for {
    QUIESCE_NOTHING,
    QUIESCE_REQUEST, /* a command of the client */
    QUIESCE_LOSS, /* the end of the connection */
};

struct quiesce {
    vfu_device_quiesce_cb_t *cb;
    enum quiesce_for pending;
    struct request *request; /* put off, or let through by the device when nothing is pending */
};

/* 0: go on. REQUEST_DEFERRED: put off, req was detached. Otherwise the device's -errno. */
int quiesce_for_request(struct vfu_ctx *ctx, struct request *req);

/* 0: go on. -EBUSY: put off. Otherwise the device's -errno. */
int quiesce_for_loss(struct vfu_ctx *ctx);

/* Whether something is put off until the device's late answer. */
bool quiesce_awaited(const struct vfu_ctx *ctx);

/* That answer: err is 0 or a positive errno. Returns 0. */
int quiesce_done(struct vfu_ctx *ctx, int err);

#endif /* VFU_DEVICE_QUIESCE_H */
