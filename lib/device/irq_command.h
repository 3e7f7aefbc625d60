/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_IRQ_COMMAND_H
#define VFU_DEVICE_IRQ_COMMAND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct request;
struct vfu_ctx;

int irq_command_info(struct vfu_ctx *ctx, struct request *req);
int irq_command_set(struct vfu_ctx *ctx, struct request *req);

#endif /* VFU_DEVICE_IRQ_COMMAND_H */
