/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_API_API_LOG_H
#define VFU_API_API_LOG_H

struct vfu_ctx;

/*
 * Sets up the log of a new context: silent, or as the environment's VFU_LOG asks for. Returns 0 or
 * -ENOMEM.
 */
int api_log_init(struct vfu_ctx *ctx);

/* Prints what the rate limit still has to say, and frees it. */
void api_log_destroy(struct vfu_ctx *ctx);

#endif /* VFU_API_API_LOG_H */
