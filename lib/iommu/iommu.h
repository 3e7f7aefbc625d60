/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_IOMMU_IOMMU_H
#define VFU_IOMMU_IOMMU_H

#include "libvfio-user-iommu.h"
#include "session/negotiate.h"
#include "util/range.h"

#include <stdbool.h>
#include <stdint.h>

struct dma_space;
struct request;
struct vfu_ctx;

/*
 * The endpoint's side of an IOMMU: address translation cache, page requests, and accesses that
 * are resolved through both. docs/vfio-user-iommu.rst is the specification.
 */

int iommu_setup(struct vfu_ctx *ctx, const vfu_iommu_config_t *config);
void iommu_destroy(struct vfu_ctx *ctx);

/* What the negotiation may offer for this device. */
void iommu_offer(const struct vfu_ctx *ctx, struct iommu_caps *offer);

/* A client has attached, or is gone (the session is about to close). Control thread. */
void iommu_connected(struct vfu_ctx *ctx);
void iommu_disconnected(struct vfu_ctx *ctx);

/* A function reset: the registers are back at their defaults, and nothing is pending. */
void iommu_reset(struct vfu_ctx *ctx);

/*
 * The device stops for migration, or resumes: the cache is emptied, and pending requests end with
 * ECANCELED. Pages that were requested stay outstanding until their response. Control thread.
 */
void iommu_forget(struct vfu_ctx *ctx);

/* The guest has written one of the three capabilities. Control thread. */
void iommu_registers_changed(struct vfu_ctx *ctx);

/* Regions were unmapped: mappings that are kept and may use them are revoked. Control thread. */
void iommu_unmapped(struct vfu_ctx *ctx, struct dma_space *space, struct range range);

int iommu_command_invalidate(struct vfu_ctx *ctx, struct request *req);
/* The addresses that it concerns, in whole translation units; false when the request is bad. */
bool iommu_invalidated_range(const struct vfu_ctx *ctx, const struct request *req,
                             struct range *range);

/* Before the guest reads or writes configuration space: the registers show what has happened. */
void iommu_sync_registers(struct vfu_ctx *ctx);
/* The guest has reset the page request interface. */
void iommu_pri_reset(struct vfu_ctx *ctx);

#endif /* VFU_IOMMU_IOMMU_H */
