/* SPDX-License-Identifier: BSD-3-Clause */
/* Set-up, and what the switches of guest and client do: vfio-user IOMMU extension, Configuration
 * space; PCIe 7.8.9, 10.5. */
#include "iommu/iommu_internal.h"

#include "pci_caps/ats.h"
#include "pci_caps/pasid.h"
#include "pci_caps/pri.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>

#define MAX_ENTRIES 512

/* Set-up */

static uint32_t or_default(uint32_t value, uint32_t fallback)
{
    return value != 0 ? value : fallback;
}

static int read_config(vfu_iommu_config_t *out, const vfu_iommu_config_t *in,
                       const struct logger *log)
{
    if (in->size < sizeof(*in)) {
        log_err(log, "vfu_setup_device_iommu: size is %zu, must be %zu: refused", in->size,
                sizeof(*in));
        return -EINVAL;
    }
    *out = *in;
    out->ats_queue_depth = or_default(in->ats_queue_depth, 32);
    out->ats_page_shift = or_default(in->ats_page_shift, 12);
    out->ats_max_entries = or_default(in->ats_max_entries, 64);
    out->atc_entries = in->atc_entries != 0 ? in->atc_entries : 65536;
    out->pri_max_requests = or_default(in->pri_max_requests, 512);
    out->retries = or_default(in->retries, 64);
    if (in->pasid_bits > VFIO_USER_PASID_BITS || out->ats_queue_depth > 32 ||
        out->ats_page_shift < 12 || out->ats_page_shift > 43 ||
        out->ats_max_entries > MAX_ENTRIES || (in->pri && !in->ats)) {
        log_err(log, "vfu_setup_device_iommu: pasid_bits %u, ats_queue_depth %u, ats_page_shift %u, "
                "ats_max_entries %u%s: out of range: refused", in->pasid_bits, out->ats_queue_depth,
                out->ats_page_shift, out->ats_max_entries,
                in->pri && !in->ats ? ", PRI without ATS" : "");
        return -EINVAL;
    }
    return 0;
}

static ssize_t add_extended(struct vfu_ctx *ctx, const void *cap)
{
    return pci_config_add_capability(&ctx->pci, 0, VFU_CAP_FLAG_EXTENDED, cap);
}

static int add_capabilities(struct vfu_ctx *ctx, const vfu_iommu_config_t *config)
{
    struct atscap ats = {
        .hdr = { .id = PCI_EXT_CAP_ID_ATS, .version = 1 },
        /* 0 means 32; addresses are always page aligned; global invalidation is honoured. */
        .atsc = { .iqd = config->ats_queue_depth & 31, .par = 1, .gis = config->pasid_bits > 0 },
    };
    struct pricap pri = {
        .hdr = { .id = PCI_EXT_CAP_ID_PRI, .version = 1 },
        .prists = { .stopped = 1, .prpr = config->pasid_bits > 0 },
        .capacity = config->pri_max_requests,
    };
    struct pasidcap pasid = {
        .hdr = { .id = PCI_EXT_CAP_ID_PASID, .version = 1 },
        .pasidc = { .eps = config->pasid_exec, .pms = config->pasid_priv,
                    .width = config->pasid_bits & 31 },
    };
    const unsigned before = ctx->pci.extended.nr;
    ssize_t r = 0;

    if (config->ats) {
        r = add_extended(ctx, &ats);
    }
    if (r >= 0 && config->pri) {
        r = add_extended(ctx, &pri);
    }
    if (r >= 0 && config->pasid_bits > 0) {
        r = add_extended(ctx, &pasid);
    }
    if (r < 0) {
        pci_config_keep_extended(&ctx->pci, before);
        return (int)r;
    }
    return 0;
}

int iommu_setup(struct vfu_ctx *ctx, const vfu_iommu_config_t *config)
{
    struct iommu *iommu;
    int err;

    if (ctx->iommu != NULL) {
        log_err(&ctx->log, "vfu_setup_device_iommu: called before: refused");
        return -EEXIST;
    }
    if (ctx->dma == NULL) {
        log_err(&ctx->log, "vfu_setup_device_iommu: call vfu_setup_device_dma() first: refused");
        return -ENOTCONN;
    }
    iommu = aligned_alloc(_Alignof(struct iommu), sizeof(*iommu));
    if (iommu == NULL) {
        return -ENOMEM;
    }
    memset(iommu, 0, sizeof(*iommu));
    err = read_config(&iommu->config, config, &ctx->log);
    if (err == 0) {
        err = add_capabilities(ctx, &iommu->config);
    }
    if (err < 0) {
        free(iommu);
        return err;
    }
    pthread_mutex_init(&iommu->lock, NULL);
    TAILQ_INIT(&iommu->translations);
    TAILQ_INIT(&iommu->groups);
    TAILQ_INIT(&iommu->queued);
    TAILQ_INIT(&iommu->invalidations);
    TAILQ_INIT(&iommu->kept);
    atomic_init(&iommu->pasid_bits, config->pasid_bits);
    atomic_init(&iommu->page_shift, iommu->config.ats_page_shift);
    ctx->iommu = iommu;
    ctx->dma_unmap_waits = true;
    return 0;
}

void iommu_destroy(struct vfu_ctx *ctx)
{
    struct iommu *iommu = ctx->iommu;
    struct vfu_invalidation *inv;

    if (iommu == NULL) {
        return;
    }
    while ((inv = TAILQ_FIRST(&iommu->invalidations)) != NULL) {
        TAILQ_REMOVE(&iommu->invalidations, inv, link);
        request_drop(inv->req);
        free(inv);
    }
    pthread_mutex_destroy(&iommu->lock);
    free(iommu);
    ctx->iommu = NULL;
}

void iommu_offer(const struct vfu_ctx *ctx, struct iommu_caps *offer)
{
    const vfu_iommu_config_t *config;

    if (ctx->iommu == NULL) {
        return;
    }
    config = &ctx->iommu->config;
    offer->present = true;
    offer->pasid.present = config->pasid_bits > 0;
    offer->pasid.bits = config->pasid_bits;
    offer->pasid.exec = config->pasid_exec;
    offer->pasid.priv = config->pasid_priv;
    offer->ats.present = config->ats;
    offer->ats.queue_depth = config->ats_queue_depth;
    offer->ats.page_shift = config->ats_page_shift;
    offer->ats.max_entries = config->ats_max_entries;
    offer->pri.present = config->pri;
    offer->pri.max_requests = config->pri_max_requests;
}

/* Switches */

static void set(_Atomic bool *flag, bool on)
{
    atomic_store_explicit(flag, on, memory_order_release);
}

/* Every cached translation, or those of all PASIDs. */
static void empty_space(struct dma_space *space, void *arg)
{
    const bool *pasids_only = arg;

    if (!*pasids_only || dma_space_name(space).has_pasid) {
        dma_drop(space, RANGE_ALL, NULL, NULL, NULL);
    }
}

static void empty_atc(struct vfu_ctx *ctx, bool pasids_only)
{
    struct iommu *iommu = ctx->iommu;

    pthread_mutex_lock(&iommu->lock);
    translate_overtake(iommu, VFU_NO_PASID, true, RANGE_ALL);
    iommu->nr_globals = 0;
    dma_for_each_space(ctx->dma, empty_space, &pasids_only);
    pthread_mutex_unlock(&iommu->lock);
}

static void tell_device(struct vfu_ctx *ctx)
{
    vfu_iommu_state_t state;

    if (ctx->iommu->config.state != NULL) {
        vfu_iommu_get_state(ctx, &state);
        ctx->iommu->config.state(ctx, &state);
    }
}

static void switch_ats(struct vfu_ctx *ctx, const struct pci_iommu_registers *now)
{
    struct iommu *iommu = ctx->iommu;
    const struct capabilities *agreed = &ctx->agreed;
    bool enabling = now->ats_enabled && !iommu->registers.ats_enabled;
    bool on;

    if (enabling) {
        set(&iommu->refused, false);
        atomic_store_explicit(&iommu->page_shift,
                              now->stu > agreed->iommu.ats.page_shift
                                  ? now->stu : agreed->iommu.ats.page_shift,
                              memory_order_relaxed);
    }
    on = agreed->iommu.ats.present && now->ats_enabled && !is_on(&iommu->refused);
    if (enabling || !on) {
        bool was_on = is_on(&iommu->ats_on);

        set(&iommu->ats_on, false);
        empty_atc(ctx, false);
        translate_cancel(ctx, SCOPE_ALL, -ECANCELED);
        if (was_on) {
            access_revoke(ctx, VFU_NO_PASID, true, RANGE_ALL);
        }
    }
    set(&iommu->ats_on, on);
}

static void switch_pasid(struct vfu_ctx *ctx, const struct pci_iommu_registers *now)
{
    struct iommu *iommu = ctx->iommu;
    bool on = ctx->agreed.iommu.pasid.present && now->pasid_enabled;

    set(&iommu->exec_on, on && ctx->agreed.iommu.pasid.exec && now->exec_enabled);
    set(&iommu->priv_on, on && ctx->agreed.iommu.pasid.priv && now->priv_enabled);
    if (is_on(&iommu->pasid_on) && !on) {
        set(&iommu->pasid_on, false);
        atomic_store_explicit(&iommu->pasid_limit, 0, memory_order_release);
        empty_atc(ctx, true);
        translate_cancel(ctx, SCOPE_PASIDS, -ECANCELED);
        page_request_cancel(ctx, SCOPE_PASIDS, false, -ECANCELED);
        dma_cancel_pasid(ctx, VFU_NO_PASID);
    }
    set(&iommu->pasid_on, on);
    atomic_store_explicit(&iommu->pasid_limit, on ? 1u << ctx->agreed.iommu.pasid.bits : 0,
                          memory_order_release);
}

static void switch_pri(struct vfu_ctx *ctx, const struct pci_iommu_registers *now)
{
    struct iommu *iommu = ctx->iommu;
    bool was = iommu->registers.pri_enabled;
    bool on = ctx->agreed.iommu.pri.present && now->pri_enabled;

    pthread_mutex_lock(&iommu->lock);
    atomic_store_explicit(&iommu->credits,
                          MIN(ctx->agreed.iommu.pri.max_requests, now->pri_allocation),
                          memory_order_relaxed);
    if (now->pri_enabled && !was) {
        iommu->pri_failed = now->pri_failed; /* by a migration: a guest that enables PRI clears it */
        atomic_store(&iommu->pri_events, 0);
    }
    set(&iommu->pri_on, on && !iommu->pri_failed);
    pthread_mutex_unlock(&iommu->lock);
    if (was && !now->pri_enabled &&
        page_request_cancel(ctx, SCOPE_ALL, false, -ECANCELED) > 0) {
        pci_pri_stopping(&ctx->pci);
    }
}

void iommu_registers_changed(struct vfu_ctx *ctx)
{
    struct pci_iommu_registers now;

    if (ctx->iommu == NULL) {
        return;
    }
    pci_iommu_read(&ctx->pci, &now);
    switch_pasid(ctx, &now);
    switch_ats(ctx, &now);
    switch_pri(ctx, &now);
    ctx->iommu->registers = now;
    tell_device(ctx);
}

void iommu_pri_reset(struct vfu_ctx *ctx)
{
    if (ctx->iommu != NULL) {
        page_request_cancel(ctx, SCOPE_ALL, true, -ECANCELED);
        atomic_store(&ctx->iommu->pri_events, 0);
    }
}

void iommu_sync_registers(struct vfu_ctx *ctx)
{
    unsigned events;

    if (ctx->iommu == NULL) {
        return;
    }
    events = atomic_exchange(&ctx->iommu->pri_events, 0);
    for (unsigned event = 0; events >> event != 0; event++) {
        if (events & (1u << event)) {
            pci_pri_event(&ctx->pci, (enum pci_pri_event)event);
        }
    }
}

/* Connection and reset */

/* To a client that has not negotiated the extension, the device shows what it has (CFG-7). */
static void show_agreed(struct vfu_ctx *ctx)
{
    struct iommu_caps shown = ctx->agreed.iommu;
    bool pasid;

    if (!shown.present) {
        iommu_offer(ctx, &shown);
    }
    pasid = shown.pasid.present;
    pci_iommu_show(&ctx->pci, &(struct pci_iommu_limits){
        .ats_queue_depth = shown.ats.present ? shown.ats.queue_depth : 1,
        .pasid_bits = pasid ? shown.pasid.bits : 0,
        .pasid_exec = pasid && shown.pasid.exec,
        .pasid_priv = pasid && shown.pasid.priv,
        .pri_capacity = shown.pri.present ? shown.pri.max_requests : 0,
    });
}

void iommu_connected(struct vfu_ctx *ctx)
{
    if (ctx->iommu == NULL) {
        return;
    }
    show_agreed(ctx);
    atomic_store_explicit(&ctx->iommu->pasid_bits,
                          ctx->agreed.iommu.pasid.present ? ctx->agreed.iommu.pasid.bits
                                                          : ctx->iommu->config.pasid_bits,
                          memory_order_relaxed);
    atomic_store_explicit(&ctx->iommu->max_entries, ctx->agreed.iommu.ats.max_entries,
                          memory_order_relaxed);
    set(&ctx->iommu->remapping, ctx->agreed.iommu.present);
    iommu_registers_changed(ctx);
}

static void forget_pending(struct vfu_ctx *ctx, int err)
{
    translate_cancel(ctx, SCOPE_ALL, err);
    page_request_cancel(ctx, SCOPE_ALL, true, err);
}

void iommu_disconnected(struct vfu_ctx *ctx)
{
    struct iommu *iommu = ctx->iommu;

    if (iommu == NULL) {
        return;
    }
    memset(&ctx->agreed.iommu, 0, sizeof(ctx->agreed.iommu));
    set(&iommu->remapping, false);
    forget_pending(ctx, -ENOTCONN);
    iommu_registers_changed(ctx);
    pthread_mutex_lock(&iommu->lock);
    iommu->epoch++;
    iommu->nr_invalidations = 0;
    pthread_mutex_unlock(&iommu->lock);
    atomic_fetch_or(&iommu->pri_events, 1u << PCI_PRI_STOPPED);
}

void iommu_forget(struct vfu_ctx *ctx)
{
    if (ctx->iommu == NULL) {
        return;
    }
    empty_atc(ctx, false);
    translate_cancel(ctx, SCOPE_ALL, -ECANCELED);
    page_request_cancel(ctx, SCOPE_ALL, false, -ECANCELED);
}

void iommu_reset(struct vfu_ctx *ctx)
{
    if (ctx->iommu == NULL) {
        return;
    }
    pci_iommu_reset(&ctx->pci);
    iommu_registers_changed(ctx);
    forget_pending(ctx, -ECANCELED);
    atomic_store(&ctx->iommu->pri_events, 0);
    pci_iommu_reset(&ctx->pci);
}
