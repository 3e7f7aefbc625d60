/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_FEATURE_H
#define VFU_DEVICE_FEATURE_H

#include <stdbool.h>

struct request;
struct vfu_ctx;

/* VFIO_USER_DEVICE_FEATURE: migration state and dirty page logging. */
int feature_command(struct vfu_ctx *ctx, struct request *req);

/* Whether the device must be quiet for it. */
bool feature_needs_quiesce(const struct request *req);

/* Whether it stops a device that runs, for migration. */
bool feature_stops_device(const struct vfu_ctx *ctx, const struct request *req);

#endif /* VFU_DEVICE_FEATURE_H */
