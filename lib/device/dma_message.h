/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_DMA_MESSAGE_H
#define VFU_DEVICE_DMA_MESSAGE_H

#include "dma/dma.h"

struct vfu_ctx;

/* Which memory a transfer is about. */
struct dma_message_target {
    struct dma_space_name space;
    uint64_t address;
};

/*
 * Moves len bytes between data and the client's memory by DMA_READ or DMA_WRITE messages, many in
 * flight. Any thread. 0 or a negative errno: the client's, -ETIMEDOUT, -ENOTCONN, -EINVAL for a
 * reply that does not fit. What a failed transfer moved is undefined.
 */
int dma_message_copy(struct vfu_ctx *ctx, const struct dma_message_target *target, size_t len,
                     void *data, bool to_guest);

#endif /* VFU_DEVICE_DMA_MESSAGE_H */
