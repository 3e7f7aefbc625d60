/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/dma_cancel.h"

#include "device/ctx.h"
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

/* Resets the function, or takes away its right to do DMA. */
static bool access_ends_dma(const struct vfu_ctx *ctx, const struct vfio_user_region_access *access,
                            const uint8_t *data)
{
    ssize_t express = pci_config_find_capability(&ctx->pci, false, 0, PCI_CAP_ID_EXP);
    const uint8_t *config = (const uint8_t *)ctx->pci.space;

    return (express > 0 && writes_bit(access, data, (uint64_t)express + PCI_EXP_DEVCTL + 1,
                                      PCI_EXP_DEVCTL_BCR_FLR >> 8, true)) ||
           ((config[PCI_COMMAND] & PCI_COMMAND_MASTER) != 0 &&
            writes_bit(access, data, PCI_COMMAND, PCI_COMMAND_MASTER, false));
}

static bool write_ends_dma(const struct vfu_ctx *ctx, const struct request *req)
{
    struct vfio_user_region_access access;

    memcpy(&access, req->payload, sizeof(access));
    return access.count == req->len - sizeof(access) &&
           access_ends_dma(ctx, &access, req->payload + sizeof(access));
}

static bool multi_ends_dma(const struct vfu_ctx *ctx, const struct request *req)
{
    size_t at = sizeof(struct vfio_user_write_multi);
    struct vfio_user_write_multi_entry entry;
    bool ends = false;

    for (; !ends && req->len - at >= sizeof(entry); at += sizeof(entry)) {
        memcpy(&entry, req->payload + at, sizeof(entry));
        const struct vfio_user_region_access access = {
            .offset = entry.offset, .region = entry.region, .count = entry.count
        };

        ends = entry.count <= sizeof(entry.data) && access_ends_dma(ctx, &access, entry.data);
    }
    return ends;
}

static bool unmap_ending(const struct request *req, struct dma_ending *ending)
{
    struct vfio_user_dma_unmap in;

    memcpy(&in, req->payload, sizeof(in));
    ending->kind = ENDS_UNMAPPED;
    ending->space = (struct dma_space_name){
        .translated = request_translated(req),
        .has_pasid = req->tagged,
        .privileged = (req->pasid_attrs & VFIO_USER_PASID_ATTR_PRIV) != 0,
        .pasid = req->pasid,
    };
    ending->range = RANGE_ALL;
    return in.flags == VFIO_DMA_UNMAP_FLAG_ALL || range_make(in.addr, in.size, &ending->range);
}

/* False when the request ends nothing. It has passed the checks of the wire. Control thread. */
static bool ending_of(const struct vfu_ctx *ctx, const struct request *req,
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
        return unmap_ending(req, ending);
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
