/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/dma_cancel.h"

#include "device/ctx.h"
#include "device/dma_command.h"
#include "device/feature.h"
#include "iommu/iommu.h"

#include <linux/pci_regs.h>
#include <string.h>

/* --- what a request ends -------------------------------------------------------------------- */

/* Whether a write of configuration space sets, or clears, a bit. */
static bool writes_bit(const struct vfio_user_region_access *access, const uint8_t *data,
                       uint64_t at, uint8_t bit, bool value)
{
    return access->region == VFU_PCI_DEV_CFG_REGION_IDX && at >= access->offset &&
           at - access->offset < access->count && ((data[at - access->offset] & bit) != 0) == value;
}

/* Whether the write asks for a function level reset that the device has. */
static bool access_resets(const struct vfu_ctx *ctx, const struct vfio_user_region_access *access,
                          const uint8_t *data)
{
    ssize_t express = pci_config_find_capability(&ctx->pci, false, 0, PCI_CAP_ID_EXP);
    const uint8_t *config = (const uint8_t *)ctx->pci.space;

    return express > 0 && ctx->reset != NULL &&
           (config[express + PCI_EXP_DEVCAP + 3] & PCI_EXP_DEVCAP_FLR >> 24) != 0 &&
           writes_bit(access, data, (uint64_t)express + PCI_EXP_DEVCTL + 1,
                      PCI_EXP_DEVCTL_BCR_FLR >> 8, true);
}

/* Resets the function, or takes away its right to do DMA. */
static bool access_ends_dma(const struct vfu_ctx *ctx, const struct vfio_user_region_access *access,
                            const uint8_t *data)
{
    const uint8_t *config = (const uint8_t *)ctx->pci.space;

    return access_resets(ctx, access, data) ||
           ((config[PCI_COMMAND] & PCI_COMMAND_MASTER) != 0 &&
            writes_bit(access, data, PCI_COMMAND, PCI_COMMAND_MASTER, false));
}

static bool write_ends_dma(const struct vfu_ctx *ctx, const struct request *req)
{
    struct vfio_user_region_access access;

    memcpy(&access, req->payload, sizeof(access));
    return access.count == req->len - sizeof(access) &&
           region_access_fault(ctx, &access, VFU_REGION_FLAG_WRITE) == NULL &&
           access_ends_dma(ctx, &access, req->payload + sizeof(access));
}

static bool multi_ends_dma(const struct vfu_ctx *ctx, const struct request *req)
{
    struct vfio_user_write_multi multi;
    struct vfio_user_write_multi_entry entry;
    bool ends = false;

    memcpy(&multi, req->payload, sizeof(multi));
    if (region_multi_fault(ctx, req) != NULL) {
        return false;
    }
    for (uint64_t i = 0; i < multi.wr_cnt; i++) {
        memcpy(&entry, req->payload + sizeof(multi) + i * sizeof(entry), sizeof(entry));
        const struct vfio_user_region_access access = {
            .offset = entry.offset, .region = entry.region, .count = entry.count
        };

        if (entry.count > sizeof(entry.data) ||
            region_access_fault(ctx, &access, VFU_REGION_FLAG_WRITE) != NULL) {
            return false;
        }
        ends = ends || access_ends_dma(ctx, &access, entry.data);
    }
    return ends;
}

static bool unmap_ending(struct vfu_ctx *ctx, const struct request *req, struct dma_ending *ending)
{
    ending->kind = ENDS_UNMAPPED;
    ending->space = (struct dma_space_name){
        .translated = request_translated(req),
        .has_pasid = req->tagged,
        .privileged = (req->pasid_attrs & VFIO_USER_PASID_ATTR_PRIV) != 0,
        .pasid = req->pasid,
    };
    return dma_command_unmap_range(ctx, req, &ending->range);
}

/*
 * False when the request ends nothing, as one that will be refused: that changes nothing. It has
 * passed the checks of the wire. Control thread.
 */
static bool ending_of(struct vfu_ctx *ctx, const struct request *req,
                      struct dma_ending *ending)
{
    *ending = (struct dma_ending){ .kind = ENDS_ALL };
    switch (req->hdr.cmd) {
    case VFIO_USER_DEVICE_RESET:
        return true;
    case VFIO_USER_DEVICE_FEATURE:
        return feature_stops_device(ctx, req);
    case VFIO_USER_REGION_WRITE:
        return write_ends_dma(ctx, req);
    case VFIO_USER_REGION_WRITE_MULTI:
        return multi_ends_dma(ctx, req);
    case VFIO_USER_DMA_UNMAP:
        return unmap_ending(ctx, req, ending);
    case VFIO_USER_ATS_INVALIDATE:
        ending->kind = ENDS_INVALIDATED;
        return iommu_invalidated_range(ctx, req, &ending->range);
    default:
        return false;
    }
}

/* --- which transfers ------------------------------------------------------------------------ */

static bool same_space(const struct dma_space_name *a, const struct dma_space_name *b)
{
    if (a->has_pasid && b->has_pasid) {
        return a->pasid == b->pasid && a->privileged == b->privileged;
    }
    return a->has_pasid == b->has_pasid && a->translated == b->translated;
}

/* The addresses that an entry of a scatter list stands for, as the device knows them. */
static struct range sg_range(const struct dma_sg *sg)
{
    uint64_t first = (uintptr_t)sg->dma_addr + sg->offset;

    return (struct range){ first, first + (sg->length - 1) };
}

static bool ends_sg(const struct dma_ending *ending, struct dma *dma, const struct dma_sg *sg)
{
    struct dma_target target;

    dma_held_target(dma, sg, &target);
    if (target.mode != DMA_MODE_MESSAGE || sg->length == 0) {
        return false;
    }
    if (ending->kind == ENDS_INVALIDATED) {
        return target.space.translated && range_overlaps(ending->range, sg_range(sg));
    }
    return same_space(&ending->space, &target.space) &&
           range_overlaps(ending->range, (struct range){ target.address,
                                                         target.address + (sg->length - 1) });
}

static bool ends(const struct dma_transfer *transfer, const void *arg)
{
    const struct dma_ending *ending = arg;
    bool found = ending->kind == ENDS_ALL;

    for (size_t i = 0; i < transfer->nr_sgs && !found; i++) {
        found = ends_sg(ending, transfer->ctx->dma, &transfer->sgl[i]);
    }
    return found;
}

static bool ends_own(const struct dma_transfer *transfer, const void *arg)
{
    return transfer->by_control && ends(transfer, arg);
}

static bool awaited(const struct dma_transfer *transfer, const void *arg)
{
    (void)arg;
    return dma_sgl_awaited(transfer->ctx->dma, transfer->sgl, transfer->nr_sgs);
}

static bool of_pasid(const struct dma_transfer *transfer, const void *arg)
{
    const uint32_t *pasid = arg;

    return transfer->pasid != VFU_NO_PASID &&
           (*pasid == VFU_NO_PASID || transfer->pasid == *pasid);
}

static void cancel(struct vfu_ctx *ctx, const char *what, dma_transfer_select_fn *select,
                   const void *arg)
{
    unsigned ended = dma_transfers_cancel(ctx, select, arg);

    if (ended > 0) {
        log_info(&ctx->log, "%s: %u DMA transfers by messages have no reply yet: ended with "
                 "ECANCELED", what, ended);
    }
}

/* --- when ----------------------------------------------------------------------------------- */

bool dma_cancel_begin(struct vfu_ctx *ctx, const struct request *req)
{
    struct dma_ending ending;

    /* An invalidation has found what waits for it when its references are awaited. */
    if (ctx->dma == NULL || !ending_of(ctx, req, &ending) || ending.kind == ENDS_INVALIDATED) {
        return false;
    }
    pthread_mutex_lock(&ctx->transfers.lock);
    ctx->ending = ending;
    pthread_mutex_unlock(&ctx->transfers.lock);
    cancel(ctx, command_name(req->hdr.cmd), ends, &ending);
    return true;
}

void dma_cancel_end(struct vfu_ctx *ctx)
{
    pthread_mutex_lock(&ctx->transfers.lock);
    ctx->ending.kind = ENDS_NOTHING;
    pthread_mutex_unlock(&ctx->transfers.lock);
}

void dma_cancel_blocked(void *owner)
{
    struct vfu_ctx *ctx = owner;
    struct dma_ending ending;
    struct request *req = NULL;

    while (ctx->dma != NULL && (req = session_next_parked(&ctx->session, req)) != NULL) {
        if (req->checked && ending_of(ctx, req, &ending)) {
            cancel(ctx, command_name(req->hdr.cmd),
                   ending.kind == ENDS_INVALIDATED ? ends_own : ends, &ending);
            if (ending.kind == ENDS_ALL) {
                iommu_forget(ctx);
            }
        }
    }
}

void dma_cancel_awaited(struct vfu_ctx *ctx)
{
    cancel(ctx, "memory that the client takes away", awaited, NULL);
}

void dma_cancel_pasid(struct vfu_ctx *ctx, uint32_t pasid)
{
    cancel(ctx, "PASID switched off", of_pasid, &pasid);
}

bool dma_cancel_due(const struct vfu_ctx *ctx, const struct dma_transfer *transfer)
{
    if (ctx->ending.kind != ENDS_NOTHING && !transfer->by_control &&
        ends(transfer, &ctx->ending)) {
        return true;
    }
    return awaited(transfer, NULL);
}
