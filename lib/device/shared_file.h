/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_SHARED_FILE_H
#define VFU_DEVICE_SHARED_FILE_H

struct vfu_ctx;

/* Warns about files that the client will be given and could shorten beneath the device. */
void shared_files_check(const struct vfu_ctx *ctx);

#endif /* VFU_DEVICE_SHARED_FILE_H */
