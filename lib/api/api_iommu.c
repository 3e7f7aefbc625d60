/* SPDX-License-Identifier: BSD-3-Clause */
#include "api/api.h"
#include "iommu/iommu_internal.h"

#include <sys/mman.h>
#include <sys/param.h>

#define NO_IOMMU "vfu_setup_device_iommu() was not called"

static int refuse(struct vfu_ctx *ctx, int err, const char *function, const char *why)
{
    log_refused(&ctx->log, err, "%s: %s", function, why);
    return err;
}

/* Checks what every call needs. Returns 0 or a negative errno, after a line that says why. */
static int check_pasid(struct vfu_ctx *ctx, uint32_t pasid, uint32_t attrs, const char *function)
{
    int err = ctx->iommu == NULL ? -EINVAL : access_allowed(ctx, pasid, attrs);

    if (err < 0) {
        log_refused(&ctx->log, err, "%s: PASID 0x%x: %s", function, pasid,
                    ctx->iommu == NULL ? NO_IOMMU : access_fault_of(ctx, pasid, attrs));
    }
    return err;
}

int vfu_setup_device_iommu(vfu_ctx_t *vfu_ctx, const vfu_iommu_config_t *config)
{
    return api_result(iommu_setup(vfu_ctx, config));
}

void vfu_iommu_get_state(vfu_ctx_t *vfu_ctx, vfu_iommu_state_t *state)
{
    struct iommu *iommu = vfu_ctx->iommu;

    *state = (vfu_iommu_state_t){ 0 };
    if (iommu == NULL) {
        return;
    }
    state->pasid = is_on(&iommu->pasid_on);
    state->exec = is_on(&iommu->exec_on);
    state->priv = is_on(&iommu->priv_on);
    state->ats = is_on(&iommu->ats_on);
    state->pri = is_on(&iommu->pri_on);
    state->page_shift = atomic_load_explicit(&iommu->page_shift, memory_order_relaxed);
}

int vfu_addr_to_sgl_pasid(vfu_ctx_t *vfu_ctx, vfu_dma_addr_t dma_addr, uint32_t pasid, size_t len,
                          dma_sg_t *sgl, size_t max_nr_sgs, int prot)
{
    struct dma_space *space;
    unsigned int ticket;
    int n = 0;

    if (vfu_ctx->iommu == NULL) {
        return api_result(refuse(vfu_ctx, -EINVAL, __func__, NO_IOMMU));
    }
    if (pasid >= atomic_load_explicit(&vfu_ctx->iommu->pasid_limit, memory_order_acquire)) {
        n = check_pasid(vfu_ctx, pasid, 0, __func__);
    }
    if (n < 0) {
        return api_result(n);
    }
    ticket = dma_spaces_enter(vfu_ctx->dma);
    space = iommu_space(vfu_ctx, pasid, 0, false);
    if (space != NULL) {
        n = dma_addr_to_sgl(space, (uintptr_t)dma_addr, len, sgl, max_nr_sgs, prot);
    }
    dma_spaces_leave(vfu_ctx->dma, ticket);
    if (space == NULL) {
        return api_result(refuse(vfu_ctx, -ENOENT, __func__, "nothing is mapped with this PASID"));
    }
    if (n > 0 && (size_t)n > max_nr_sgs) {
        errno = 0;
        return -n - 1;
    }
    return api_result(n);
}

int vfu_dma_resolve(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req)
{
    return api_result(access_resolve(vfu_ctx, req));
}

int vfu_dma_resolve_wait(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req)
{
    return api_result(access_resolve_wait(vfu_ctx, req));
}

void vfu_dma_release(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req)
{
    access_release(vfu_ctx, req);
}

int vfu_dma_cancel(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req)
{
    return api_result(vfu_ctx->iommu == NULL ? -ENOENT : access_cancel(vfu_ctx, req));
}

/*
 * Within what was resolved: len bytes from offset on, entry by entry. Says what failed in
 * req->fault_addr.
 */
static int move(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req, uint64_t offset, uint64_t len,
                uint8_t *data, bool to_guest)
{
    const uint64_t addr = req->addr + offset;
    const uint8_t *const start = data;
    struct dma_transfer transfer;
    int err;

    dma_transfer_init(&transfer, vfu_ctx, req->sgl, req->nr_sgs, req->pasid, to_guest);
    for (size_t i = 0; i < req->nr_sgs && len > 0 && transfer.error == 0; i++) {
        dma_sg_t sg = req->sgl[i];

        if (offset >= sg.length) {
            offset -= sg.length;
            continue;
        }
        sg.offset += offset;
        sg.length = MIN(sg.length - offset, len);
        api_transfer_held(&transfer, &sg, data, true);
        data += sg.length;
        len -= sg.length;
        offset = 0;
    }
    err = dma_transfer_end(&transfer);
    if (err < 0) {
        req->fault_addr = addr + (uint64_t)((const uint8_t *)transfer.failed_at - start);
    }
    return err;
}

int vfu_dma_move(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req, uint64_t offset, void *data,
                 size_t len, bool to_guest)
{
    if (!extent_within(offset, len, req->len) || req->nr_sgs == 0 ||
        (to_guest && !(req->prot & PROT_WRITE))) {
        return api_result(refuse(vfu_ctx, -EINVAL, __func__,
                                 "beyond what was resolved, or not resolved for writing"));
    }
    return api_result(move(vfu_ctx, req, offset, len, data, to_guest));
}

/* Entries that a copy resolves at a time: enough for 64 separate pages. */
#define COPY_SGS 64

/* As much of an access as fits, from offset on: 0 with *done bytes moved, or a negative errno. */
static int copy_part(vfu_ctx_t *vfu_ctx, const vfu_dma_request_t *whole, uint64_t offset,
                     uint8_t *data, bool to_guest, vfu_dma_request_t *part)
{
    dma_sg_t sgl[COPY_SGS];
    uint64_t unit = access_page_mask(vfu_ctx->iommu) + 1;
    uint64_t addr = whole->addr + offset;
    int err;

    *part = (vfu_dma_request_t){
        .addr = addr,
        .len = MIN(whole->len - offset, (COPY_SGS - 1) * unit - (addr & (unit - 1))),
        .pasid = whole->pasid,
        .attrs = whole->attrs,
        .prot = to_guest ? PROT_WRITE : PROT_READ,
        .flags = whole->flags,
        .sgl = sgl,
        .max_nr_sgs = COPY_SGS,
    };
    err = access_resolve_wait(vfu_ctx, part);
    if (err < 0) {
        return err;
    }
    err = move(vfu_ctx, part, 0, part->len, data, to_guest);
    access_release(vfu_ctx, part);
    part->sgl = NULL;
    return err;
}

static int copy(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req, uint8_t *data, bool to_guest)
{
    vfu_dma_request_t part;
    const char *name = to_guest ? "vfu_dma_write" : "vfu_dma_read";
    int err = 0;

    if (vfu_ctx->iommu == NULL) {
        return refuse(vfu_ctx, -EINVAL, name, NO_IOMMU);
    }
    if (req->len == 0 || req->len - 1 > UINT64_MAX - req->addr) {
        return refuse(vfu_ctx, -EINVAL, name, "the range is empty or wraps");
    }
    for (uint64_t offset = 0; err == 0 && offset < req->len; offset += part.len) {
        err = copy_part(vfu_ctx, req, offset, data + offset, to_guest, &part);
        if (err < 0) {
            req->fault_addr = part.fault_addr;
        }
    }
    return err;
}

int vfu_dma_read(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req, void *data)
{
    return api_result(copy(vfu_ctx, req, data, false));
}

int vfu_dma_write(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req, const void *data)
{
    return api_result(copy(vfu_ctx, req, (uint8_t *)data, true));
}

int vfu_ats_translate(vfu_ctx_t *vfu_ctx, uint32_t pasid, uint32_t attrs, uint64_t addr,
                      bool write, vfu_translate_cb_t *cb, void *pvt)
{
    int err = cb == NULL ? refuse(vfu_ctx, -EINVAL, __func__, "no callback")
                         : check_pasid(vfu_ctx, pasid, attrs, __func__);

    if (err == 0 && !is_on(&vfu_ctx->iommu->ats_on)) {
        err = refuse(vfu_ctx, -EPERM, __func__, "ATS is off");
    }
    return api_result(err < 0 ? err : translate_one(vfu_ctx, pasid, attrs, addr, write, cb, pvt));
}

int vfu_page_request(vfu_ctx_t *vfu_ctx, uint32_t pasid, uint32_t attrs,
                     const vfu_page_range_t *ranges, size_t nr_ranges, vfu_page_request_cb_t *cb,
                     void *pvt)
{
    int err = cb == NULL ? refuse(vfu_ctx, -EINVAL, __func__, "no callback")
                         : check_pasid(vfu_ctx, pasid, attrs, __func__);

    return api_result(err < 0 ? err
                              : page_request_group(vfu_ctx, pasid, attrs, ranges, nr_ranges, cb,
                                                   pvt));
}

int vfu_pasid_stop(vfu_ctx_t *vfu_ctx, uint32_t pasid)
{
    struct iommu *iommu = vfu_ctx->iommu;
    int err;

    if (pasid == VFU_NO_PASID) {
        return api_result(refuse(vfu_ctx, -EINVAL, __func__, "VFU_NO_PASID is no PASID"));
    }
    err = iommu != NULL ? access_allowed(vfu_ctx, pasid, 0) : -EINVAL;
    if (err == -EINVAL) {
        return api_result(check_pasid(vfu_ctx, pasid, 0, __func__));
    }
    pthread_mutex_lock(&iommu->lock);
    translate_overtake(iommu, pasid, false, RANGE_ALL);
    atc_drop(vfu_ctx, pasid, false, RANGE_ALL, true, NULL);
    pthread_mutex_unlock(&iommu->lock);
    translate_cancel(vfu_ctx, pasid, -ECANCELED);
    page_request_cancel(vfu_ctx, pasid, false, -ECANCELED);
    dma_cancel_pasid(vfu_ctx, pasid);
    if (err == 0 && is_on(&iommu->pri_on)) {
        page_request_stop_marker(vfu_ctx, pasid);
    }
    return 0;
}

void vfu_invalidate_done(vfu_ctx_t *vfu_ctx, vfu_invalidation_t *inv)
{
    (void)vfu_ctx;
    invalidation_put(inv);
}

static uint64_t value(_Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

void vfu_iommu_get_stats(vfu_ctx_t *vfu_ctx, vfu_iommu_stats_t *stats)
{
    struct iommu *iommu = vfu_ctx->iommu;
    struct iommu_counters *c;

    *stats = (vfu_iommu_stats_t){ 0 };
    if (iommu == NULL) {
        return;
    }
    c = &iommu->counters;
    *stats = (vfu_iommu_stats_t){
        .atc_hits = access_hits(iommu),
        .atc_misses = value(&c->misses),
        .atc_entries = dma_nr_cached(vfu_ctx->dma),
        .atc_evictions = value(&c->evictions),
        .translations = value(&c->translations),
        .translations_joined = value(&c->joined),
        .translations_discarded = value(&c->discarded),
        .invalidations = value(&c->invalidations),
        .page_requests = value(&c->pages),
        .page_groups = value(&c->groups),
        .page_requests_joined = value(&c->pages_joined),
        .page_failures = value(&c->page_failures),
        .faults = value(&c->faults),
        .protocol_errors = value(&c->protocol_errors),
        .late_replies = session_late_replies(&vfu_ctx->session),
    };
    pthread_mutex_lock(&iommu->lock);
    stats->invalidations_pending = iommu->nr_invalidations;
    stats->page_groups_pending = iommu->nr_groups;
    pthread_mutex_unlock(&iommu->lock);
}
