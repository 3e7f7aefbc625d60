/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_DMA_COMMAND_H
#define VFU_DEVICE_DMA_COMMAND_H

#include <stdbool.h>

struct range;
struct request;
struct vfu_ctx;

/* The commands by which the client gives memory and takes it back. */
int dma_command_map(struct vfu_ctx *ctx, struct request *req);
int dma_command_unmap(struct vfu_ctx *ctx, struct request *req);

/* What a DMA_UNMAP unmaps, in the space that it names; false when it will be refused. */
bool dma_command_unmap_range(struct vfu_ctx *ctx, const struct request *req, struct range *range);

/*
 * What a client leaves behind goes: every region of every address space, of which the device is
 * told, and dirty page logging, whose page size could stand in the next client's way.
 */
void dma_command_forget_all(struct vfu_ctx *ctx);

#endif /* VFU_DEVICE_DMA_COMMAND_H */
