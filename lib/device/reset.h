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
 * The client is gone and the device is quiet: tells the device, takes the client's memory and
 * interrupts away, closes the connection. What the device knows stays for the next client.
 */
void device_connection_lost(struct vfu_ctx *ctx);

#endif /* VFU_DEVICE_RESET_H */
