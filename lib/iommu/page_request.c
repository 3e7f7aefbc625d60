/* SPDX-License-Identifier: BSD-3-Clause */
/* PAGE_REQUEST: vfio-user IOMMU extension; PCIe 10.4. */
#include "iommu/iommu_internal.h"

#include "util/clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/param.h>

/* Pages of one access that are asked for together. */
#define ACCESS_PAGES 64

static uint32_t page_perm(const vfu_dma_request_t *req)
{
    return (req->prot & PROT_READ ? VFIO_USER_ATS_PERM_READ : 0u) |
           (req->prot & PROT_WRITE ? VFIO_USER_ATS_PERM_WRITE : 0u) |
           (req->attrs & VFU_PASID_EXEC ? VFIO_USER_ATS_PERM_READ | VFIO_USER_ATS_PERM_EXEC : 0u) |
           (req->attrs & VFU_PASID_PRIV ? VFIO_USER_ATS_PERM_PRIV : 0u);
}

static uint32_t credits(const struct vfu_ctx *ctx)
{
    return atomic_load_explicit(&ctx->iommu->credits, memory_order_relaxed);
}

/* Group indices. Lock held. */

static int take_index(struct iommu *iommu)
{
    for (int i = 0; i < VFIO_USER_PAGE_GROUPS; i++) {
        uint64_t bit = UINT64_C(1) << (i % 64);

        if (!(iommu->group_bits[i / 64] & bit)) {
            iommu->group_bits[i / 64] |= bit;
            return i;
        }
    }
    return -1;
}

static void put_index(struct iommu *iommu, uint16_t index)
{
    iommu->group_bits[index / 64] &= ~(UINT64_C(1) << (index % 64));
}

/* The end of a group */

static void put_group(struct page_group *group)
{
    if (atomic_fetch_sub(&group->refs, 1) == 1) {
        free(group);
    }
}

static void end_group(struct page_group *group, int err, uint32_t code)
{
    struct access *a;

    while ((a = TAILQ_FIRST(&group->waiters)) != NULL) {
        TAILQ_REMOVE(&group->waiters, a, link);
        access_resume(a, err < 0 ? err : code == VFIO_USER_PAGE_RESP_SUCCESS ? 0 : -EFAULT);
    }
    if (group->cb != NULL) {
        group->cb(group->ctx, group->pvt, -err, code);
    }
    put_group(group);
}

static void end_groups(struct page_group_list *list, int err)
{
    struct page_group *group;

    while ((group = TAILQ_FIRST(list)) != NULL) {
        TAILQ_REMOVE(list, group, link);
        end_group(group, err, 0);
    }
}

/* Nobody but the list knows these: their waiters cannot be cancelled any more. Lock held. */
static void detach_waiters(struct page_group *group)
{
    struct access *a;

    TAILQ_FOREACH (a, &group->waiters, link) {
        access_set_state(a, ACCESS_RUNNING);
    }
}

static void report(struct iommu *iommu, enum pci_pri_event event)
{
    atomic_fetch_or(&iommu->pri_events, 1u << event);
}

/* What a response means: 0 with *code, or a negative errno. */
static int read_response(struct page_group *group, uint32_t *code)
{
    struct iommu *iommu = group->ctx->iommu;
    const struct vfio_user_page_response *response = &group->response;

    *code = 0;
    if (group->txn.error != 0) {
        return group->txn.error;
    }
    if (group->txn.reply_len != sizeof(*response) || response->argsz != sizeof(*response)) {
        count(&iommu->counters.protocol_errors, 1);
        log_err(&group->ctx->log, "PAGE_REQUEST id %u: response of %zu bytes, argsz %u",
                group->txn.id, group->txn.reply_len, response->argsz);
        return -EIO;
    }
    if (response->group != group->index) {
        report(iommu, PCI_PRI_UNEXPECTED_GROUP);
        count(&iommu->counters.protocol_errors, 1);
        log_err(&group->ctx->log, "PAGE_REQUEST id %u: response for group %u, asked was group %u",
                group->txn.id, response->group, group->index);
        return -EIO;
    }
    *code = response->code;
    if (*code != VFIO_USER_PAGE_RESP_SUCCESS) {
        count(&iommu->counters.page_failures, 1);
    }
    if (*code != VFIO_USER_PAGE_RESP_SUCCESS && *code != VFIO_USER_PAGE_RESP_INVALID) {
        return -EIO;
    }
    return 0;
}

/* Response failure: the interface is stopped, until the guest has enabled it anew. */
static void fail_interface(struct vfu_ctx *ctx)
{
    struct iommu *iommu = ctx->iommu;

    log_warn(&ctx->log, "page request response failure: no more pages are requested until PRI is "
             "reset");
    pthread_mutex_lock(&iommu->lock);
    iommu->pri_failed = true;
    atomic_store_explicit(&iommu->pri_on, false, memory_order_release);
    pthread_mutex_unlock(&iommu->lock);
    report(iommu, PCI_PRI_RESPONSE_FAILURE);
    page_request_cancel(ctx, SCOPE_ALL, true, -EIO);
}

/* The transaction of a group has ended, or could not begin. */
static void conclude(struct page_group *group)
{
    struct vfu_ctx *ctx = group->ctx;
    struct iommu *iommu = ctx->iommu;
    uint32_t code;
    int err = read_response(group, &code);
    bool failure = err == -EIO && code != 0;

    pthread_mutex_lock(&iommu->lock);
    TAILQ_REMOVE(&iommu->groups, group, link);
    iommu->pages_out -= group->pages;
    iommu->nr_groups--;
    put_index(iommu, group->index);
    detach_waiters(group);
    if (iommu->nr_groups == 0) {
        report(iommu, PCI_PRI_STOPPED);
    }
    pthread_mutex_unlock(&iommu->lock);

    if (failure) {
        fail_interface(ctx);
    }
    end_group(group, err, code);
}

static void send_queued(struct vfu_ctx *ctx);

static void responded(struct txn *txn)
{
    struct page_group *group = (struct page_group *)txn;
    struct vfu_ctx *ctx = group->ctx;

    conclude(group);
    send_queued(ctx);
}

/* Requests */

static struct page_group *new_group(struct vfu_ctx *ctx, uint32_t pasid, uint32_t attrs,
                                    size_t nr_entries)
{
    struct page_group *group =
        calloc(1, sizeof(*group) + nr_entries * sizeof(group->request.entries[0]));

    if (group == NULL) {
        return NULL;
    }
    group->ctx = ctx;
    group->pasid = pasid;
    group->attrs = attrs;
    group->request.nr_entries = (uint32_t)nr_entries;
    atomic_init(&group->refs, 1);
    TAILQ_INIT(&group->waiters);
    return group;
}

/* Everything but the index is known. */
static void prepare(struct page_group *group, uint16_t index)
{
    uint32_t timeout = group->ctx->iommu->config.pri_timeout_ms;
    size_t nr = 0;

    group->index = index;
    group->request.argsz = (uint32_t)(sizeof(group->request) + group->request.nr_entries *
                                                        sizeof(group->request.entries[0]));
    group->request.flags = VFIO_USER_PAGE_REQ_F_LAST;
    group->request.group = index;
    if (group->pasid != VFU_NO_PASID) {
        group->txn.flags = VFIO_USER_F_PASID;
        group->prefix.pasid = group->pasid;
        group->prefix.attrs = group->attrs;
        group->out[nr++] = (struct iovec){ &group->prefix, sizeof(group->prefix) };
    }
    group->out[nr++] = (struct iovec){ &group->request, group->request.argsz };
    group->txn.cmd = VFIO_USER_PAGE_REQUEST;
    group->txn.out = group->out;
    group->txn.nr_out = nr;
    group->txn.reply = &group->response;
    group->txn.reply_cap = sizeof(group->response);
    group->txn.deadline = timeout != 0 ? deadline_after_ms(timeout) : DEADLINE_NEVER;
    group->txn.done = responded;
}

/* The next that credits and indices allow, in order; NULL when there is none. Lock held. */
static struct page_group *next_to_send(struct vfu_ctx *ctx)
{
    struct iommu *iommu = ctx->iommu;
    struct page_group *group = TAILQ_FIRST(&iommu->queued);
    int index;

    if (group == NULL || !is_on(&iommu->pri_on) ||
        group->pages > credits(ctx) - MIN(credits(ctx), iommu->pages_out)) {
        return NULL;
    }
    index = take_index(iommu);
    if (index < 0) {
        return NULL;
    }
    TAILQ_REMOVE(&iommu->queued, group, link);
    TAILQ_INSERT_TAIL(&iommu->groups, group, link);
    iommu->pages_out += group->pages;
    iommu->nr_groups++;
    group->sent = true;
    prepare(group, (uint16_t)index);
    return group;
}

static void send_queued(struct vfu_ctx *ctx)
{
    struct iommu *iommu = ctx->iommu;
    struct page_group *group;
    uint32_t pages;
    int err;

    for (;;) {
        pthread_mutex_lock(&iommu->lock);
        group = next_to_send(ctx);
        pages = group != NULL ? group->pages : 0;
        pthread_mutex_unlock(&iommu->lock);
        if (group == NULL) {
            return;
        }
        count(&iommu->counters.groups, 1);
        count(&iommu->counters.pages, pages);
        err = txn_start(&ctx->session, &group->txn);
        if (err < 0) {
            group->txn.error = err;
            conclude(group);
        }
    }
}

static bool covers(const struct page_group *group, uint64_t addr, uint32_t perm, unsigned shift)
{
    for (uint32_t i = 0; i < group->request.nr_entries; i++) {
        const struct vfio_user_page_request_entry *e = &group->request.entries[i];

        if ((perm & ~e->perm) == 0 && addr >= e->address &&
            (addr - e->address) >> shift < e->nr_pages) {
            return true;
        }
    }
    return false;
}

/* A group under way that asks for this page already. Lock held. */
static struct page_group *find_pending(struct iommu *iommu, const struct access *a)
{
    unsigned shift = atomic_load_explicit(&iommu->page_shift, memory_order_relaxed);
    struct page_group_list *lists[] = { &iommu->groups, &iommu->queued };
    struct page_group *group;

    for (size_t i = 0; i < 2; i++) {
        TAILQ_FOREACH (group, lists[i], link) {
            if (group->pasid == a->req->pasid && group->attrs == a->req->attrs &&
                covers(group, a->missing, page_perm(a->req), shift)) {
                return group;
            }
        }
    }
    return NULL;
}

static void wait_for(struct access *a, struct page_group *group)
{
    access_set_state(a, ACCESS_FAULTING);
    a->waits_for = group;
    TAILQ_INSERT_TAIL(&group->waiters, a, link);
}

static struct page_group *group_for(struct access *a)
{
    struct iommu *iommu = a->ctx->iommu;
    unsigned shift = atomic_load_explicit(&iommu->page_shift, memory_order_relaxed);
    uint64_t first = a->missing & ~access_page_mask(iommu);
    uint64_t last = a->req->addr + (a->req->len - 1);
    uint64_t pages = ((last - first) >> shift) + 1;
    struct page_group *group = new_group(a->ctx, a->req->pasid, a->req->attrs, 1);

    if (group == NULL) {
        return NULL;
    }
    group->pages = (uint32_t)MIN(pages, MIN(ACCESS_PAGES, credits(a->ctx)));
    group->request.entries[0] = (struct vfio_user_page_request_entry){
        .address = first,
        .nr_pages = group->pages,
        .perm = page_perm(a->req),
    };
    return group;
}

int page_request_for(struct access *a)
{
    struct vfu_ctx *ctx = a->ctx;
    struct iommu *iommu = ctx->iommu;
    struct page_group *fresh = group_for(a), *group;
    int err = 0;

    if (fresh == NULL) {
        return -ENOMEM;
    }
    pthread_mutex_lock(&iommu->lock);
    group = find_pending(iommu, a);
    if (!is_on(&iommu->pri_on) || fresh->pages == 0) {
        err = iommu->pri_failed ? -EIO : -EFAULT;
    } else if (group != NULL) {
        wait_for(a, group);
        count(&iommu->counters.pages_joined, 1);
    } else {
        TAILQ_INSERT_TAIL(&iommu->queued, fresh, link);
        wait_for(a, fresh);
        group = fresh;
    }
    pthread_mutex_unlock(&iommu->lock);
    if (group != fresh || err < 0) {
        free(fresh);
    } else {
        send_queued(ctx);
    }
    return err;
}

int page_request_group(struct vfu_ctx *ctx, uint32_t pasid, uint32_t attrs,
                       const vfu_page_range_t *ranges, size_t nr_ranges,
                       vfu_page_request_cb_t *cb, void *pvt)
{
    struct iommu *iommu = ctx->iommu;
    struct page_group *group;
    uint64_t pages = 0;
    int err = 0;

    for (size_t i = 0; i < nr_ranges; i++) {
        pages += ranges[i].nr_pages;
    }
    if (nr_ranges == 0 || nr_ranges > VFIO_USER_PAGE_GROUPS || pages == 0) {
        log_refused(&ctx->log, -EINVAL, "vfu_page_request: %zu ranges with %llu pages, must be 1 to "
                    "%u ranges", nr_ranges, (unsigned long long)pages, VFIO_USER_PAGE_GROUPS);
        return -EINVAL;
    }
    group = new_group(ctx, pasid, attrs, nr_ranges);
    if (group == NULL) {
        return -ENOMEM;
    }
    group->cb = cb;
    group->pvt = pvt;
    for (size_t i = 0; i < nr_ranges; i++) {
        group->request.entries[i] = (struct vfio_user_page_request_entry){
            .address = ranges[i].addr & ~access_page_mask(iommu),
            .nr_pages = ranges[i].nr_pages,
            .perm = ranges[i].perm,
        };
    }
    pthread_mutex_lock(&iommu->lock);
    if (!is_on(&iommu->pri_on)) {
        err = -EPERM;
    } else if (pages > credits(ctx)) {
        err = -E2BIG;
    } else {
        group->pages = (uint32_t)pages;
        TAILQ_INSERT_TAIL(&iommu->queued, group, link);
    }
    pthread_mutex_unlock(&iommu->lock);
    if (err < 0) {
        log_refused(&ctx->log, err, "vfu_page_request: %llu pages: %s (the allocation is %u)",
                    (unsigned long long)pages,
                    err == -EPERM ? "PRI is off" : "more than the allocation", credits(ctx));
        free(group);
        return err;
    }
    send_queued(ctx);
    return 0;
}

/* What ends them early */

/* Sent ones are cancelled one by one: each ends by its callback, which takes the lock. */
static void forget_sent(struct vfu_ctx *ctx, uint32_t scope, int err)
{
    struct iommu *iommu = ctx->iommu;
    struct page_group *group;

    do {
        pthread_mutex_lock(&iommu->lock);
        TAILQ_FOREACH (group, &iommu->groups, link) {
            if (group->sent && in_scope(group->pasid, scope)) {
                group->sent = false;
                atomic_fetch_add(&group->refs, 1);
                break;
            }
        }
        pthread_mutex_unlock(&iommu->lock);
        if (group != NULL) {
            txn_cancel(&ctx->session, &group->txn, err);
            put_group(group);
        }
    } while (group != NULL);
}

unsigned page_request_cancel(struct vfu_ctx *ctx, uint32_t scope, bool forget, int err)
{
    struct iommu *iommu = ctx->iommu;
    struct page_group_list ended = TAILQ_HEAD_INITIALIZER(ended);
    struct access_list waiters = TAILQ_HEAD_INITIALIZER(waiters);
    struct page_group *group, *next;
    unsigned left = 0;

    pthread_mutex_lock(&iommu->lock);
    for (group = TAILQ_FIRST(&iommu->queued); group != NULL; group = next) {
        next = TAILQ_NEXT(group, link);
        if (in_scope(group->pasid, scope)) {
            TAILQ_REMOVE(&iommu->queued, group, link);
            detach_waiters(group);
            TAILQ_INSERT_TAIL(&ended, group, link);
        }
    }
    TAILQ_FOREACH (group, &iommu->groups, link) {
        if (in_scope(group->pasid, scope)) {
            detach_waiters(group);
            TAILQ_CONCAT(&waiters, &group->waiters, link);
            left++;
        }
    }
    pthread_mutex_unlock(&iommu->lock);
    end_groups(&ended, err);
    access_end_all(&waiters, err);
    if (forget) {
        forget_sent(ctx, scope, err);
        left = 0;
    }
    return left;
}

int page_request_stop_marker(struct vfu_ctx *ctx, uint32_t pasid)
{
    const struct vfio_user_pasid_prefix prefix = { .pasid = pasid };
    const struct vfio_user_page_request marker = {
        .argsz = sizeof(marker),
        .flags = VFIO_USER_PAGE_REQ_F_STOP,
    };
    const struct iovec out[] = {
        { (void *)&prefix, sizeof(prefix) },
        { (void *)&marker, sizeof(marker) },
    };

    return txn_post(&ctx->session, VFIO_USER_PAGE_REQUEST, VFIO_USER_F_PASID, out, 2);
}
