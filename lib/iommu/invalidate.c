/* SPDX-License-Identifier: BSD-3-Clause */
/* ATS_INVALIDATE and its completion: vfio-user IOMMU extension; PCIe 10.3. */
#include "iommu/iommu_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* One of the two that a completion waits for is done: references to what was cached, the device. */
void invalidation_put(struct vfu_invalidation *inv)
{
    struct iommu *iommu = inv->ctx->iommu;

    if (atomic_fetch_sub(&inv->pending, 1) != 1) {
        return;
    }
    pthread_mutex_lock(&iommu->lock);
    TAILQ_REMOVE(&iommu->invalidations, inv, link);
    if (inv->epoch == iommu->epoch) {
        iommu->nr_invalidations--;
    }
    pthread_mutex_unlock(&iommu->lock);
    log_debug(&inv->ctx->log, "ATS_INVALIDATE id %u: completed", inv->req->hdr.msg_id);
    request_finish(inv->req, 0);
    free(inv);
}

static void drained(struct dma_drain *drain)
{
    invalidation_put((struct vfu_invalidation *)drain);
}

bool iommu_invalidated_range(const struct vfu_ctx *ctx, const struct request *req,
                             struct range *range)
{
    uint64_t mask = access_page_mask(ctx->iommu);
    struct vfio_user_ats_invalidate in;

    memcpy(&in, req->payload, sizeof(in));
    if (in.flags & ~(uint32_t)(VFIO_USER_ATS_INV_F_GLOBAL | VFIO_USER_ATS_INV_F_ALL)) {
        return false;
    }
    if (in.flags & VFIO_USER_ATS_INV_F_ALL) {
        *range = RANGE_ALL;
        return in.address == 0 && in.length == 0;
    }
    if (!range_make(in.address, in.length, range)) {
        return false;
    }
    range->first &= ~mask;
    range->last |= mask;
    return true;
}

static int parse(struct vfu_ctx *ctx, const struct request *req, struct range *range,
                 bool *global)
{
    struct vfio_user_ats_invalidate in;

    memcpy(&in, req->payload, sizeof(in));
    *global = (in.flags & VFIO_USER_ATS_INV_F_GLOBAL) != 0;
    if (iommu_invalidated_range(ctx, req, range)) {
        return 0;
    }
    log_err(&ctx->log, "ATS_INVALIDATE id %u: flags 0x%x, address 0x%llx, length 0x%llx make no "
            "range", req->hdr.msg_id, in.flags, (unsigned long long)in.address,
            (unsigned long long)in.length);
    return -EINVAL;
}

/* Under one lock: what is cached goes, and what is being asked for will not be cached. */
static int drop(struct vfu_ctx *ctx, struct vfu_invalidation *inv, uint32_t pasid, bool global,
                struct range range)
{
    struct iommu *iommu = ctx->iommu;

    pthread_mutex_lock(&iommu->lock);
    if (iommu->nr_invalidations >= ctx->agreed.iommu.ats.queue_depth) {
        pthread_mutex_unlock(&iommu->lock);
        log_err(&ctx->log, "ATS_INVALIDATE id %u: more than %u are outstanding",
                inv->req->hdr.msg_id, ctx->agreed.iommu.ats.queue_depth);
        return -EBUSY;
    }
    iommu->nr_invalidations++;
    inv->epoch = iommu->epoch;
    TAILQ_INSERT_TAIL(&iommu->invalidations, inv, link);
    translate_overtake(iommu, pasid, global, range);
    atc_drop(ctx, pasid, global, range, false, &inv->drain);
    pthread_mutex_unlock(&iommu->lock);
    return 0;
}

static bool device_busy(struct vfu_ctx *ctx, struct vfu_invalidation *inv, uint32_t pasid,
                        bool global, struct range range)
{
    vfu_invalidate_cb_t *cb = ctx->iommu->config.invalidate;

    if (cb == NULL) {
        return false;
    }
    errno = 0;
    return cb(ctx, pasid, global, range.first, range.last, inv) != 0 && errno == EBUSY;
}

int iommu_command_invalidate(struct vfu_ctx *ctx, struct request *req)
{
    uint32_t pasid = req->tagged ? req->pasid : VFU_NO_PASID;
    struct vfu_invalidation *inv;
    struct range range;
    bool global;
    int err = parse(ctx, req, &range, &global);

    if (err < 0) {
        return err;
    }
    inv = calloc(1, sizeof(*inv));
    if (inv == NULL) {
        return -ENOMEM;
    }
    inv->ctx = ctx;
    inv->req = request_detach(req);
    if (inv->req == NULL) {
        free(inv);
        return -ENOMEM;
    }
    atomic_init(&inv->pending, 2);
    dma_drain_init(&inv->drain, drained);
    err = drop(ctx, inv, pasid, global, range);
    if (err < 0) {
        request_finish(inv->req, err);
        free(inv);
        return REQUEST_DEFERRED;
    }
    count(&ctx->iommu->counters.invalidations, 1);
    dma_cancel_awaited(ctx);
    access_revoke(ctx, pasid, global, range);
    if (!dma_drain_idle(&inv->drain)) {
        request_hold(inv->req, "references to what was translated (vfu_dma_release(), "
                     "vfu_sgl_put()), and the device if it was busy");
    } else if (ctx->iommu->config.invalidate != NULL) {
        request_hold(inv->req, "the device (vfu_invalidate_done())");
    }
    if (!device_busy(ctx, inv, pasid, global, range)) {
        invalidation_put(inv);
    }
    if (dma_drain_arm(&inv->drain)) {
        invalidation_put(inv);
    }
    return REQUEST_DEFERRED;
}
