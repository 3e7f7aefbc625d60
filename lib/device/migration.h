/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_MIGRATION_H
#define VFU_DEVICE_MIGRATION_H

#include "libvfio-user.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct request;
struct vfu_ctx;

/* Enables migration, or replaces the callbacks: 0, -EINVAL or -ENOMEM. */
int migration_setup(struct vfu_ctx *ctx, const vfu_migration_callbacks_t *callbacks);
void migration_destroy(struct vfu_ctx *ctx);

/* In STOP_COPY: regions are out of reach. False without migration. */
bool migration_stop_and_copy(const struct vfu_ctx *ctx);

/* The current state (enum vfio_user_device_mig_state), and the walk to another: 0 or -errno. */
uint32_t migration_state(const struct vfu_ctx *ctx);
int migration_set_state(struct vfu_ctx *ctx, uint32_t target);

/* Whether that walk leads from a state in which the device runs to one in which it is stopped. */
bool migration_would_stop(const struct vfu_ctx *ctx, uint32_t target);

/*
 * After a reset of the device: a stopped one is RUNNING again (<linux/vfio.h>, enum
 * vfio_device_mig_state), without the steps between. PRE_COPY, in which the device runs, stays.
 * Returns 0 or the device's errno.
 */
int migration_reset(struct vfu_ctx *ctx);

/* After the loss of the client: the next one finds the device RUNNING. */
void migration_disconnected(struct vfu_ctx *ctx);

/*
 * Has the device's callbacks produce or take data for a request: the bytes produced, or 0 when all
 * were taken; a negative errno after a log line.
 */
ssize_t migration_device_read(struct vfu_ctx *ctx, const struct request *req, void *buf,
                              size_t size);
int migration_device_write(struct vfu_ctx *ctx, const struct request *req, void *buf, size_t size);

int migration_command_read(struct vfu_ctx *ctx, struct request *req);
int migration_command_write(struct vfu_ctx *ctx, struct request *req);

#endif /* VFU_DEVICE_MIGRATION_H */
