/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_CHECK_H
#define VFU_DEVICE_CHECK_H

struct vfu_ctx;

/*
 * Looks at the whole device once it is set up, and logs a line for each thing that does not fit
 * together. Returns 0, or -EINVAL when something cannot work at all.
 */
int device_check(const struct vfu_ctx *ctx);

#endif /* VFU_DEVICE_CHECK_H */
