/* SPDX-License-Identifier: BSD-3-Clause */
/* From (address, PASID, length, access) to a scatter list: vfio-user IOMMU extension, Model. */
#include "iommu/iommu_internal.h"

#include "util/clock.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/param.h>

uint64_t access_page_mask(const struct iommu *iommu)
{
    return (UINT64_C(1) << atomic_load_explicit(&iommu->page_shift, memory_order_relaxed)) - 1;
}

struct dma_space *iommu_space(struct vfu_ctx *ctx, uint32_t pasid, uint32_t attrs, bool create)
{
    bool privileged = (attrs & VFU_PASID_PRIV) != 0;
    struct dma_space *space;

    if (pasid == VFU_NO_PASID) {
        return dma_requester_space(ctx->dma);
    }
    space = dma_pasid_space(ctx->dma, pasid, privileged);
    if (space == NULL && create) {
        dma_pasid_space_create(ctx->dma, pasid, privileged, &space);
    }
    return space;
}

static int wanted_prot(const vfu_dma_request_t *req)
{
    return (req->prot & (PROT_READ | PROT_WRITE)) | (req->attrs & VFU_PASID_EXEC ? PROT_EXEC : 0);
}

/* Counting hits */

static atomic_uint next_counter;
static _Thread_local unsigned my_counter;

static void count_hit(struct iommu *iommu)
{
    if (my_counter == 0) {
        my_counter = 1 + atomic_fetch_add(&next_counter, 1) % HIT_COUNTERS;
    }
    count(&iommu->hits[my_counter - 1].hits, 1);
}

uint64_t access_hits(struct iommu *iommu)
{
    uint64_t hits = 0;

    for (int i = 0; i < HIT_COUNTERS; i++) {
        hits += atomic_load_explicit(&iommu->hits[i].hits, memory_order_relaxed);
    }
    return hits;
}

/* Building the scatter list */

enum build {
    BUILT = 0,
    BUILD_MISSING = 1, /* a->missing is not there, or not with this permission */
};

static int append(struct access *a, const struct dma_sg *sg)
{
    vfu_dma_request_t *req = a->req;

    if (req->nr_sgs == req->max_nr_sgs) {
        return -ENOSPC;
    }
    req->sgl[req->nr_sgs++] = *sg;
    return 0;
}

/* How far an untranslated request serves the access from addr on; false when it may not. */
static bool untranslated_until(struct access *a, uint64_t addr, uint64_t last, uint64_t *until)
{
    const struct iommu *iommu = a->ctx->iommu;

    if (a->has_untranslated && addr >= a->untranslated.first && addr <= a->untranslated.last) {
        *until = MIN(last, a->untranslated.last);
        return true;
    }
    *until = last;
    return is_on((_Atomic bool *)&iommu->remapping) && !is_on((_Atomic bool *)&iommu->ats_on);
}

static struct dma_sg sg_of(const struct dma_hit *hit, uint64_t addr, uint64_t len, int prot)
{
    return (struct dma_sg){
        .dma_addr = (void *)(uintptr_t)hit->iova.first,
        .entry = hit->entry,
        .length = len,
        .offset = addr - hit->iova.first,
        .writeable = (prot & PROT_WRITE) != 0,
        .generation = hit->generation,
    };
}

/* The piece of the access that begins at addr. */
static int build_piece(struct access *a, struct dma_space *space, uint64_t addr, uint64_t last,
                       uint64_t *next)
{
    int prot = wanted_prot(a->req);
    struct dma_hit hit;
    struct dma_sg sg;

    if (dma_lookup(space, addr, &hit) == 0) {
        uint64_t until = MIN(last, hit.iova.last);
        int checked = hit.cached ? prot : prot & PROT_WRITE;

        if ((checked & ~hit.prot) == 0) {
            sg = sg_of(&hit, addr, until - addr + 1, prot);
            *next = until + 1;
            return append(a, &sg);
        }
        if (!hit.cached) {
            a->missing = addr;
            return -EFAULT;
        }
    }
    if (untranslated_until(a, addr, last, next)) {
        dma_untranslated_sg(space, addr, *next - addr + 1, (prot & PROT_WRITE) != 0, &sg);
        *next += 1;
        return append(a, &sg);
    }
    a->missing = addr;
    return BUILD_MISSING;
}

static int build_sgl(struct access *a)
{
    vfu_dma_request_t *req = a->req;
    uint64_t addr = req->addr, last = req->addr + (req->len - 1);
    unsigned int ticket = dma_spaces_enter(a->ctx->dma);
    struct dma_space *space = iommu_space(a->ctx, req->pasid, req->attrs, true);
    int r = space == NULL ? -ENOMEM : BUILT;

    req->nr_sgs = 0;
    while (r == BUILT && (req->nr_sgs == 0 || addr - 1 != last)) {
        r = build_piece(a, space, addr, last, &addr);
    }
    dma_spaces_leave(a->ctx->dma, ticket);
    return r;
}

static void put_sgl(struct access *a, size_t n)
{
    dma_sgl_put(a->ctx->dma, a->req->sgl, n);
}

/* References every piece. -ESTALE when one has gone since it was looked up. */
static int hold_sgl(struct access *a)
{
    vfu_dma_request_t *req = a->req;

    for (size_t i = 0; i < req->nr_sgs; i++) {
        struct iovec iov = { 0 };
        int err = dma_sgl_get(a->ctx->dma, &req->sgl[i], &iov, 1);

        if (err == -EFAULT) {
            iov = (struct iovec){ .iov_base = NULL, .iov_len = req->sgl[i].length };
            err = dma_sgl_hold(a->ctx->dma, &req->sgl[i], 1);
        }
        if (err < 0) {
            put_sgl(a, i);
            return err;
        }
        if (req->iov != NULL) {
            req->iov[i] = iov;
        }
    }
    return 0;
}

/*
 * A mapping that is kept goes on the list that invalidations look through. One that came before
 * has dropped the entries already and will not see us: then this resolve has failed.
 */
static int keep(struct access *a)
{
    struct iommu *iommu = a->ctx->iommu;
    vfu_dma_request_t *req = a->req;
    int err = 0;

    if (req->revoked == NULL) {
        return 0;
    }
    pthread_mutex_lock(&iommu->lock);
    err = dma_sgl_hold(a->ctx->dma, req->sgl, req->nr_sgs);
    if (err == 0) {
        dma_sgl_release(a->ctx->dma, req->sgl, req->nr_sgs);
        TAILQ_INSERT_TAIL(&iommu->kept, a, link);
        a->kept = true;
    }
    pthread_mutex_unlock(&iommu->lock);
    if (err < 0) {
        put_sgl(a, req->nr_sgs);
    }
    return err;
}

/* Ends */

static const char *fault_of(struct access *a, int err);

/* Whoever cancels an access knows why. */
static void log_fault(struct access *a, int err)
{
    if (err != -ECANCELED) {
        log_refused(&a->ctx->log, err, "vfu_dma_resolve: address 0x%llx, 0x%llx bytes, PASID 0x%x, "
                    "fails at 0x%llx: %s", (unsigned long long)a->req->addr,
                    (unsigned long long)a->req->len, a->req->pasid, (unsigned long long)a->missing,
                    fault_of(a, err));
    }
}

static void finish(struct access *a, int err)
{
    vfu_dma_request_t *req = a->req;

    if (err == 0) {
        access_set_state(a, ACCESS_HELD);
    } else {
        access_set_state(a, ACCESS_IDLE);
        req->nr_sgs = 0;
        req->fault_addr = a->missing;
        if (err == -EFAULT) {
            count(&a->ctx->iommu->counters.faults, 1);
        }
        log_fault(a, err);
    }
    req->done(a->ctx, req, -err);
}

int access_allowed(struct vfu_ctx *ctx, uint32_t pasid, uint32_t attrs)
{
    struct iommu *iommu = ctx->iommu;
    uint32_t bits = atomic_load_explicit(&iommu->pasid_bits, memory_order_relaxed);

    if (pasid == VFU_NO_PASID) {
        return attrs == 0 ? 0 : -EINVAL;
    }
    if (bits == 0 || pasid >> bits != 0 ||
        (attrs & ~(VFU_PASID_EXEC | VFU_PASID_PRIV)) != 0) {
        return -EINVAL;
    }
    if (!is_on(&iommu->pasid_on) || ((attrs & VFU_PASID_EXEC) && !is_on(&iommu->exec_on)) ||
        ((attrs & VFU_PASID_PRIV) && !is_on(&iommu->priv_on))) {
        return -EPERM;
    }
    return 0;
}

const char *access_fault_of(struct vfu_ctx *ctx, uint32_t pasid, uint32_t attrs)
{
    struct iommu *iommu = ctx->iommu;
    uint32_t bits = atomic_load_explicit(&iommu->pasid_bits, memory_order_relaxed);

    if (pasid == VFU_NO_PASID) {
        return "attributes, and no PASID that they belong to";
    }
    if (bits == 0) {
        return "neither device nor client has PASIDs: VFU_NO_PASID is needed, 0 is one";
    }
    if (pasid >> bits != 0) {
        return "the PASID is out of range";
    }
    if ((attrs & ~(VFU_PASID_EXEC | VFU_PASID_PRIV)) != 0) {
        return "unknown attributes";
    }
    if (!is_on(&iommu->pasid_on)) {
        return "the guest has not enabled PASIDs";
    }
    return "the guest has not allowed execute or privileged accesses";
}

/* Why an access is over, for the log. */
static const char *fault_of(struct access *a, int err)
{
    struct iommu *iommu = a->ctx->iommu;

    if (err == -EPERM && access_allowed(a->ctx, a->req->pasid, a->req->attrs) < 0) {
        return access_fault_of(a->ctx, a->req->pasid, a->req->attrs);
    }
    if (err != -EFAULT) {
        return strerror(-err);
    }
    if (!is_on(&iommu->ats_on) || (a->req->flags & VFU_DMA_NO_TRANSLATE)) {
        return "not mapped for this access";
    }
    if (!is_on(&iommu->pri_on) || (a->req->flags & VFU_DMA_NO_FAULT)) {
        return "not translated for this access, and no page is requested";
    }
    if (atomic_load_explicit(&iommu->credits, memory_order_relaxed) == 0) {
        return "not translated for this access, and PRI has an allocation of 0";
    }
    return "the client does not give the page";
}

static bool give_up(struct access *a)
{
    return a->tries++ >= a->ctx->iommu->config.retries;
}

/* What is not there is asked for. 0: the access waits. */
static int ask(struct access *a)
{
    struct iommu *iommu = a->ctx->iommu;

    if (!is_on(&iommu->ats_on)) {
        return -EFAULT;
    }
    if (a->req->flags & VFU_DMA_NO_TRANSLATE) {
        return -EFAULT;
    }
    if (a->tries == 0) {
        count(&iommu->counters.misses, 1);
    }
    if (give_up(a)) {
        return -EAGAIN;
    }
    return translate_for(a);
}

/* Runs an access until it is done, or waits for the client. */
static void step(struct access *a)
{
    struct vfu_ctx *ctx = a->ctx;
    int r = 0;

    access_set_state(a, ACCESS_RUNNING);
    while (r >= 0) {
        r = access_allowed(ctx, a->req->pasid, a->req->attrs);
        r = r < 0 ? r : build_sgl(a);
        if (r == BUILD_MISSING) {
            r = ask(a);
            if (r == 0) {
                return;
            }
        } else if (r == BUILT) {
            r = hold_sgl(a);
            r = r < 0 ? r : keep(a);
            if (r == 0) {
                break;
            }
            r = r == -ESTALE && !give_up(a) ? 1 : r;
        }
    }
    if (r == 0 && a->tries == 0) {
        count_hit(ctx->iommu);
    }
    finish(a, r == -ESTALE ? -EAGAIN : r);
}

void access_resume(struct access *a, int err)
{
    if (err < 0) {
        finish(a, err);
    } else {
        step(a);
    }
}

void access_fault(struct access *a)
{
    struct iommu *iommu = a->ctx->iommu;
    int err = -EFAULT;

    if (is_on(&iommu->pri_on) && !(a->req->flags & VFU_DMA_NO_FAULT)) {
        err = give_up(a) ? -EAGAIN : page_request_for(a);
    }
    if (err < 0) {
        finish(a, err);
    }
}

void access_end_all(struct access_list *list, int err)
{
    struct access *a;

    while ((a = TAILQ_FIRST(list)) != NULL) {
        TAILQ_REMOVE(list, a, link);
        access_resume(a, err);
    }
}

/* Kept mappings */

void access_revoke(struct vfu_ctx *ctx, uint32_t pasid, bool global, struct range range)
{
    struct iommu *iommu = ctx->iommu;
    void (*revoked)(vfu_ctx_t *, vfu_dma_request_t *) = NULL;
    vfu_dma_request_t *req = NULL;
    struct access *a;

    do {
        pthread_mutex_lock(&iommu->lock);
        TAILQ_FOREACH (a, &iommu->kept, link) {
            struct range used = { a->req->addr, a->req->addr + (a->req->len - 1) };

            if (!a->revoked && (global || a->req->pasid == pasid) && range_overlaps(used, range)) {
                a->revoked = true;
                /* Outside the lock its owner may release it, and begin another access with it. */
                req = a->req;
                revoked = req->revoked;
                break;
            }
        }
        pthread_mutex_unlock(&iommu->lock);
        if (a != NULL) {
            revoked(ctx, req);
        }
    } while (a != NULL);
}

void iommu_unmapped(struct vfu_ctx *ctx, struct dma_space *space, struct range range)
{
    struct dma_space_name name = dma_space_name(space);

    if (ctx->iommu == NULL) {
        return;
    }
    if (name.translated) {
        /* Which translations led there is not known. */
        access_revoke(ctx, VFU_NO_PASID, true, RANGE_ALL);
    } else {
        access_revoke(ctx, name.has_pasid ? name.pasid : VFU_NO_PASID, false, range);
    }
}

/* The public calls */

/* What the device has filled in wrongly, or NULL. */
static const char *request_fault(struct vfu_ctx *ctx, const vfu_dma_request_t *req)
{
    struct range range;

    if (ctx->iommu == NULL) {
        return "vfu_setup_device_iommu() was not called";
    }
    if (!range_make(req->addr, req->len, &range)) {
        return "the range is empty or wraps";
    }
    if (req->prot == 0 || (req->prot & ~(PROT_READ | PROT_WRITE)) != 0) {
        return "prot is neither PROT_READ nor PROT_WRITE";
    }
    if (req->sgl == NULL || req->max_nr_sgs == 0) {
        return "no room for a scatter list";
    }
    if (req->done == NULL) {
        return "no function done()";
    }
    return access_allowed(ctx, req->pasid, req->attrs) == -EINVAL
               ? access_fault_of(ctx, req->pasid, req->attrs)
               : NULL;
}

static int begin(struct vfu_ctx *ctx, vfu_dma_request_t *req)
{
    struct access *a = access_of(req);
    const char *fault = request_fault(ctx, req);

    if (fault != NULL) {
        log_refused(&ctx->log, -EINVAL, "vfu_dma_resolve: address 0x%llx, 0x%llx bytes, PASID 0x%x: "
                    "%s", (unsigned long long)req->addr, (unsigned long long)req->len, req->pasid,
                    fault);
        return -EINVAL;
    }
    *a = (struct access){ .ctx = ctx, .req = req, .missing = req->addr };
    req->nr_sgs = 0;
    req->fault_addr = 0;
    return 0;
}

/* Finds the entry that holds the whole access. */
static bool find_at_once(struct access *a, struct dma_hit *hit)
{
    const vfu_dma_request_t *req = a->req;
    struct dma *dma = a->ctx->dma;
    unsigned int ticket = dma_spaces_enter(dma);
    struct dma_space *space = iommu_space(a->ctx, req->pasid, req->attrs, false);
    bool found = space != NULL && dma_lookup(space, req->addr, hit) == 0 &&
                 hit->iova.last - req->addr >= req->len - 1;

    dma_spaces_leave(dma, ticket);
    return found;
}

/*
 * What most accesses are: within one entry that is there and allows it. No lock, and nothing
 * written that another thread writes.
 */
static bool resolve_at_once(struct access *a)
{
    struct vfu_ctx *ctx = a->ctx;
    vfu_dma_request_t *req = a->req;
    int prot = wanted_prot(req);
    struct iovec iov;
    struct dma_hit hit;

    if (req->revoked != NULL || access_allowed(ctx, req->pasid, req->attrs) < 0 ||
        !find_at_once(a, &hit) ||
        ((hit.cached ? prot : prot & PROT_WRITE) & ~hit.prot) != 0) {
        return false;
    }
    *req->sgl = sg_of(&hit, req->addr, req->len, prot);
    if (dma_sgl_get(ctx->dma, req->sgl, &iov, 1) < 0) {
        return false;
    }
    if (req->iov != NULL) {
        *req->iov = iov;
    }
    req->nr_sgs = 1;
    count_hit(ctx->iommu);
    finish(a, 0);
    return true;
}

int access_resolve(struct vfu_ctx *ctx, vfu_dma_request_t *req)
{
    int err = begin(ctx, req);

    if (err == 0 && !resolve_at_once(access_of(req))) {
        step(access_of(req));
    }
    return err;
}

struct sync_access {
    atomic_bool done;
    int error;
};

static void sync_done(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req, int error)
{
    struct sync_access *sync = req->pvt;

    sync->error = -error;
    atomic_store_explicit(&sync->done, true, memory_order_release);
    session_wake(&vfu_ctx->session);
}

static bool sync_finished(void *arg)
{
    return atomic_load_explicit(&((struct sync_access *)arg)->done, memory_order_acquire);
}

/* The caller's fields are lent for the time of the wait. */
int access_resolve_wait(struct vfu_ctx *ctx, vfu_dma_request_t *req)
{
    struct sync_access sync = { .error = 0 };
    struct wait wait = {
        .name = "vfu_dma_resolve_wait",
        .number = req->addr,
        .by_address = true,
        .reason = "a translation or a page of the client",
    };
    void *pvt = req->pvt;
    int err;

    req->pvt = &sync;
    req->done = sync_done;
    err = access_resolve(ctx, req);
    if (err == 0) {
        session_wait(&ctx->session, sync_finished, &sync, &wait);
        err = sync.error;
    }
    req->pvt = pvt;
    req->done = NULL;
    return err;
}

void access_release(struct vfu_ctx *ctx, vfu_dma_request_t *req)
{
    struct access *a = access_of(req);

    if (access_state(a) != ACCESS_HELD) {
        log_err(&ctx->log, "release of an access that holds nothing: ignored");
        return;
    }
    if (a->kept) {
        pthread_mutex_lock(&ctx->iommu->lock);
        TAILQ_REMOVE(&ctx->iommu->kept, a, link);
        a->kept = false;
        pthread_mutex_unlock(&ctx->iommu->lock);
    }
    access_set_state(a, ACCESS_IDLE);
    put_sgl(a, req->nr_sgs);
}

/* Only one that waits can be taken from what it waits for; one that runs is about to be done. */
int access_cancel(struct vfu_ctx *ctx, vfu_dma_request_t *req)
{
    struct access *a = access_of(req);
    bool ours = false;

    if (ctx->iommu == NULL) {
        return -ENOENT;
    }
    pthread_mutex_lock(&ctx->iommu->lock);
    if (access_state(a) == ACCESS_TRANSLATING) {
        TAILQ_REMOVE(&((struct translation *)a->waits_for)->waiters, a, link);
        ours = true;
    } else if (access_state(a) == ACCESS_FAULTING) {
        TAILQ_REMOVE(&((struct page_group *)a->waits_for)->waiters, a, link);
        ours = true;
    }
    if (ours) {
        access_set_state(a, ACCESS_RUNNING);
    }
    pthread_mutex_unlock(&ctx->iommu->lock);
    if (!ours) {
        return -ENOENT;
    }
    finish(a, -ECANCELED);
    return 0;
}
