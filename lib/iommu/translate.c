/* SPDX-License-Identifier: BSD-3-Clause */
/* ATS_TRANSLATE and the address translation cache: vfio-user IOMMU extension; PCIe 10.2, 10.3. */
#include "iommu/iommu_internal.h"

#include "util/clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/param.h>

/* The ordinary completion timeout of a read. */
#define TRANSLATE_TIMEOUT_MS 30000
#define MAX_TRANSLATIONS 4096

#define KNOWN_PERM                                                                                 \
    (VFIO_USER_ATS_PERM_READ | VFIO_USER_ATS_PERM_WRITE | VFIO_USER_ATS_PERM_EXEC |                \
     VFIO_USER_ATS_PERM_PRIV | VFIO_USER_ATS_PERM_GLOBAL | VFIO_USER_ATS_PERM_UNTRANSLATED |       \
     VFIO_USER_ATS_PERM_NO_SNOOP)

#define TAG_GLOBAL 1

static bool entry_present(const struct vfio_user_ats_entry *e)
{
    return (e->perm & (VFIO_USER_ATS_PERM_READ | VFIO_USER_ATS_PERM_WRITE)) != 0;
}

static struct range entry_range(const struct vfio_user_ats_entry *e)
{
    return (struct range){ e->address, e->address + (e->length - 1) };
}

static int entry_prot(const struct vfio_user_ats_entry *e)
{
    return (e->perm & VFIO_USER_ATS_PERM_READ ? PROT_READ : 0) |
           (e->perm & VFIO_USER_ATS_PERM_WRITE ? PROT_WRITE : 0) |
           (e->perm & VFIO_USER_ATS_PERM_EXEC ? PROT_EXEC : 0);
}

/* The cache. Lock held in all of this. */

static bool not_global(uint8_t tags, void *arg)
{
    (void)arg;
    return (tags & TAG_GLOBAL) == 0;
}

struct drop_args {
    struct range range;
    struct dma_drain *drain;
};

static void drop_space(struct dma_space *space, void *arg)
{
    struct drop_args *args = arg;

    dma_drop(space, args->range, NULL, NULL, args->drain);
}

static void forget_globals(struct iommu *iommu, struct range range)
{
    for (unsigned i = 0; i < iommu->nr_globals;) {
        if (range_overlaps(iommu->globals[i].iova, range)) {
            iommu->globals[i] = iommu->globals[--iommu->nr_globals];
        } else {
            i++;
        }
    }
}

void atc_drop(struct vfu_ctx *ctx, uint32_t pasid, bool all, struct range range, bool globals,
              struct dma_drain *drain)
{
    struct drop_args args = { .range = range, .drain = drain };
    struct dma_space *space;
    unsigned int ticket;

    if (all) {
        forget_globals(ctx->iommu, range);
        dma_for_each_space(ctx->dma, drop_space, &args);
        return;
    }
    ticket = dma_spaces_enter(ctx->dma);
    for (int privileged = 0; privileged < 2; privileged++) {
        space = iommu_space(ctx, pasid, privileged ? VFU_PASID_PRIV : 0, false);
        if (space != NULL) {
            dma_drop(space, range, globals ? NULL : not_global, NULL, drain);
        }
        if (pasid == VFU_NO_PASID) {
            break;
        }
    }
    dma_spaces_leave(ctx->dma, ticket);
}

static void remember_global(struct iommu *iommu, const struct vfio_user_ats_entry *e,
                            bool privileged)
{
    unsigned slot = iommu->nr_globals < MAX_GLOBALS ? iommu->nr_globals++
                                                    : iommu->next_global++ % MAX_GLOBALS;

    iommu->globals[slot] = (struct global_translation){
        .iova = entry_range(e),
        .translated = e->translated,
        .prot = entry_prot(e),
        .privileged = privileged,
    };
}

static int insert(struct vfu_ctx *ctx, struct dma_space *space,
                  const struct dma_translation *translation)
{
    struct iommu *iommu = ctx->iommu;
    size_t cached = dma_nr_cached(ctx->dma), most = iommu->config.atc_entries;

    if (cached >= most) {
        /* A few more than needed, so that it is not done for each entry. */
        count(&iommu->counters.evictions,
              dma_cache_evict(ctx->dma, cached - most + 1 + most / 32));
    }
    return dma_cache_insert(space, translation);
}

/* A translation that was given for another PASID and holds here too. 1 when one was found. */
static int insert_global(struct access *a, struct dma_space *space)
{
    struct iommu *iommu = a->ctx->iommu;
    bool privileged = (a->req->attrs & VFU_PASID_PRIV) != 0;
    int prot = a->req->prot;

    if (a->req->pasid == VFU_NO_PASID) {
        return 0;
    }
    for (unsigned i = 0; i < iommu->nr_globals; i++) {
        const struct global_translation *g = &iommu->globals[i];
        const struct dma_translation translation = {
            .iova = g->iova,
            .translated = g->translated,
            .prot = g->prot,
            .tags = TAG_GLOBAL,
        };

        if (g->privileged == privileged && g->iova.first <= a->missing &&
            a->missing <= g->iova.last && (prot & ~g->prot) == 0) {
            return insert(a->ctx, space, &translation) >= 0;
        }
    }
    return 0;
}

/* Checking a reply: PCIe 10.2.3; nothing of a bad one is used. */

/* The translated space holds all of it, with this permission. */
static bool backed(struct vfu_ctx *ctx, const struct vfio_user_ats_entry *e)
{
    struct dma_space *space = dma_translated_space(ctx->dma);
    int prot = entry_prot(e) & (PROT_READ | PROT_WRITE);
    uint64_t addr = e->translated, last = e->translated + (e->length - 1);
    struct dma_hit hit;

    for (;;) {
        if (dma_lookup(space, addr, &hit) < 0 || (prot & ~hit.prot) != 0) {
            return false;
        }
        if (hit.iova.last >= last) {
            return true;
        }
        addr = hit.iova.last + 1;
    }
}

static const char *entry_fault(const struct translation *t, const struct vfio_user_ats_entry *e,
                               uint64_t expected)
{
    uint64_t mask = access_page_mask(t->ctx->iommu);
    struct range range;

    if (((e->address | e->length | e->translated) & mask) != 0) {
        return "is not aligned to the smallest translation unit";
    }
    if (!range_make(e->address, e->length, &range) ||
        (entry_present(e) && !range_make(e->translated, e->length, &range))) {
        return "is empty or wraps";
    }
    if (e->address != expected) {
        return "overlaps the one before, or leaves a hole";
    }
    if ((e->perm & ~(uint32_t)KNOWN_PERM) != 0 || e->reserved != 0) {
        return "has reserved bits set";
    }
    if (!entry_present(e) && e->translated != 0) {
        return "is not present and has a translated address";
    }
    if ((e->perm & VFIO_USER_ATS_PERM_EXEC) &&
        (!(t->attrs & VFU_PASID_EXEC) || !(e->perm & VFIO_USER_ATS_PERM_READ))) {
        return "grants execution that was not asked for, or without read";
    }
    if ((e->perm & VFIO_USER_ATS_PERM_PRIV) && !(t->attrs & VFU_PASID_PRIV)) {
        return "is privileged, which was not asked for";
    }
    if ((e->perm & VFIO_USER_ATS_PERM_GLOBAL) && t->pasid == VFU_NO_PASID) {
        return "is global, and the request had no PASID";
    }
    if (entry_present(e) && !(e->perm & VFIO_USER_ATS_PERM_UNTRANSLATED) && !backed(t->ctx, e)) {
        return "leads outside the translated space, or beyond its protection";
    }
    return NULL;
}

static const char *reply_fault(const struct translation *t, uint32_t *nr, unsigned *which)
{
    uint32_t n = t->reply.nr_entries;
    size_t len = sizeof(t->reply) + (size_t)n * sizeof(t->reply.entries[0]);
    uint64_t expected;

    *which = 0;
    if (n == 0 || n > t->max_entries || t->txn.reply_len != len ||
        t->reply.argsz != len || t->reply.flags != 0 || t->reply.reserved != 0) {
        return "header is wrong";
    }
    expected = t->reply.entries[0].address;
    if (expected > t->asked.first || t->reply.entries[0].length == 0 ||
        expected + (t->reply.entries[0].length - 1) < t->asked.first) {
        return "does not hold the address that was asked for";
    }
    for (; *which < n; (*which)++) {
        const struct vfio_user_ats_entry *e = &t->reply.entries[*which];
        const char *fault = NULL;

        if (*which > 0 && e->address > t->asked.last) {
            fault = "begins behind what was asked for";
        }
        fault = fault != NULL ? fault : entry_fault(t, e, expected);
        if (fault != NULL) {
            return fault;
        }
        expected = e->address + e->length;
        if (expected == 0 && *which + 1 < n) {
            return "is behind the last address";
        }
    }
    *nr = n;
    return NULL;
}

/* Completion */

static bool overtaken(const struct translation *t, struct range range)
{
    for (unsigned i = 0; i < t->nr_overtaken; i++) {
        if (range_overlaps(t->overtaken[i], range)) {
            return true;
        }
    }
    return false;
}

/* A region of the space in the way: what is cached is the smallest unit that somebody wants. */
static void insert_units(struct translation *t, struct dma_space *space,
                         const struct dma_translation *whole)
{
    uint64_t mask = access_page_mask(t->ctx->iommu);
    struct access *a;

    TAILQ_FOREACH (a, &t->waiters, link) {
        struct dma_translation unit = *whole;

        unit.iova.first = a->missing & ~mask;
        unit.iova.last = a->missing | mask;
        if (range_contains(whole->iova, unit.iova)) {
            unit.translated = whole->translated + (unit.iova.first - whole->iova.first);
            insert(t->ctx, space, &unit);
        }
    }
}

/* iommu.lock is held. */
static void fill_space(struct translation *t, struct dma_space *space, uint32_t nr)
{
    struct iommu *iommu = t->ctx->iommu;

    for (uint32_t i = 0; i < nr; i++) {
        const struct vfio_user_ats_entry *e = &t->reply.entries[i];
        const struct dma_translation translation = {
            .iova = entry_range(e),
            .translated = e->translated,
            .prot = entry_prot(e),
            .tags = e->perm & VFIO_USER_ATS_PERM_GLOBAL ? TAG_GLOBAL : 0,
        };

        if (!entry_present(e) || (e->perm & VFIO_USER_ATS_PERM_UNTRANSLATED)) {
            continue;
        }
        if (overtaken(t, translation.iova)) {
            count(&iommu->counters.discarded, 1);
            continue;
        }
        if (insert(t->ctx, space, &translation) == -EEXIST) {
            insert_units(t, space, &translation);
        }
        if (translation.tags & TAG_GLOBAL) {
            remember_global(iommu, e, (t->attrs & VFU_PASID_PRIV) != 0);
        }
    }
}

/* iommu.lock is held. */
static void fill_cache(struct translation *t, uint32_t nr)
{
    struct dma *dma = t->ctx->dma;
    unsigned int ticket = dma_spaces_enter(dma);
    struct dma_space *space = nr > 0 ? iommu_space(t->ctx, t->pasid, t->attrs, true) : NULL;

    if (space != NULL) {
        fill_space(t, space, nr);
    }
    dma_spaces_leave(dma, ticket);
}

static const struct vfio_user_ats_entry *find_entry(const struct translation *t, uint32_t nr,
                                                    uint64_t addr)
{
    for (uint32_t i = 0; i < nr; i++) {
        struct range range = entry_range(&t->reply.entries[i]);

        if (range.first <= addr && addr <= range.last) {
            return &t->reply.entries[i];
        }
    }
    return NULL;
}

/* What the reply means for one that waited for it. */
static void tell_waiter(struct translation *t, struct access *a, uint32_t nr)
{
    const struct vfio_user_ats_entry *e = find_entry(t, nr, a->missing);
    int prot = a->req->prot | (a->req->attrs & VFU_PASID_EXEC ? PROT_EXEC : 0);

    if (e == NULL || overtaken(t, entry_range(e))) {
        access_resume(a, 0);
        return;
    }
    if (!entry_present(e) || (prot & ~entry_prot(e)) != 0) {
        /* One that asked for reading only says nothing about writing. */
        if ((prot & PROT_WRITE) && !t->write && entry_present(e)) {
            access_resume(a, 0);
        } else {
            access_fault(a);
        }
        return;
    }
    if (e->perm & VFIO_USER_ATS_PERM_UNTRANSLATED) {
        a->untranslated = entry_range(e);
        a->has_untranslated = true;
    }
    access_resume(a, 0);
}

static void tell_caller(struct translation *t, int err, uint32_t nr)
{
    const struct vfio_user_ats_entry *e = err == 0 ? find_entry(t, nr, t->addr) : NULL;
    vfu_translation_t result = { 0 };

    if (e == NULL) {
        t->cb(t->ctx, t->pvt, err != 0 ? -err : EIO, NULL);
        return;
    }
    result.first = e->address;
    result.last = entry_range(e).last;
    result.translated = e->translated;
    result.perm = e->perm;
    t->cb(t->ctx, t->pvt, 0, &result);
}

/* PCIe's unsupported request: no more asking until ATS is enabled again. */
static void refuse_ats(struct vfu_ctx *ctx, const struct translation *t)
{
    log_warn(&ctx->log, "client does not translate (PASID 0x%x): ATS is off until it is enabled "
             "again", t->pasid);
    atomic_store_explicit(&ctx->iommu->refused, true, memory_order_release);
    atomic_store_explicit(&ctx->iommu->ats_on, false, memory_order_release);
}

static void log_bad_reply(const struct translation *t, const char *fault, unsigned which)
{
    count(&t->ctx->iommu->counters.protocol_errors, 1);
    log_err(&t->ctx->log, "ATS_TRANSLATE id %u for [0x%llx, 0x%llx]: entry %u of the reply %s: "
            "reply dropped", t->txn.id, (unsigned long long)t->asked.first,
            (unsigned long long)t->asked.last, which, fault);
}

/* What a transaction that failed means for those who wait. */
static int failure(const struct translation *t)
{
    int err = t->txn.error;

    return err == 0 || err == -EPERM || err == -ENOTCONN || err == -ETIMEDOUT ? err : -EIO;
}

static void translated(struct txn *txn)
{
    struct translation *t = (struct translation *)txn;
    struct iommu *iommu = t->ctx->iommu;
    struct access_list waiters = TAILQ_HEAD_INITIALIZER(waiters);
    const char *fault = NULL;
    struct access *a;
    uint32_t nr = 0;
    unsigned which = 0;
    int err = failure(t);

    if (err == 0) {
        fault = reply_fault(t, &nr, &which);
    }
    pthread_mutex_lock(&iommu->lock);
    TAILQ_REMOVE(&iommu->translations, t, link);
    iommu->nr_translations--;
    /* One that was cancelled may look wrong only because its memory has been unmapped since. */
    if (t->cancelled) {
        err = -ECANCELED;
        fault = NULL;
        nr = 0;
    } else if (fault != NULL) {
        err = -EIO;
        nr = 0;
    }
    fill_cache(t, nr);
    TAILQ_FOREACH (a, &t->waiters, link) {
        access_set_state(a, ACCESS_RUNNING);
    }
    TAILQ_CONCAT(&waiters, &t->waiters, link);
    pthread_mutex_unlock(&iommu->lock);

    if (fault != NULL) {
        log_bad_reply(t, fault, which);
    }
    if (err == -EPERM) {
        refuse_ats(t->ctx, t);
        err = 0;
    }
    while ((a = TAILQ_FIRST(&waiters)) != NULL) {
        TAILQ_REMOVE(&waiters, a, link);
        if (err < 0 || nr == 0) {
            access_resume(a, err);
        } else {
            tell_waiter(t, a, nr);
        }
    }
    if (t->cb != NULL) {
        tell_caller(t, err, nr);
    }
    free(t);
}

/* Requests */

static uint32_t max_entries(const struct vfu_ctx *ctx)
{
    return atomic_load_explicit(&ctx->iommu->max_entries, memory_order_relaxed);
}

/* From the smallest unit of addr on, as far as last, in what one reply can hold. */
static struct range asked_range(const struct vfu_ctx *ctx, uint64_t addr, uint64_t last)
{
    uint64_t mask = access_page_mask(ctx->iommu);
    struct range range = { .first = addr & ~mask, .last = last | mask };
    uint64_t most;

    /* Units may be so large that a length has no room for more of them. */
    if (__builtin_mul_overflow((uint64_t)max_entries(ctx), mask + 1, &most)) {
        most = UINT64_C(1) << 63;
    }
    if (range.last - range.first >= most) {
        range.last = range.first + (most - 1);
    }
    return range;
}

static struct translation *new_translation(struct vfu_ctx *ctx, uint32_t pasid, uint32_t attrs,
                                           struct range asked, bool write)
{
    uint32_t most = max_entries(ctx);
    struct translation *t = calloc(1, sizeof(*t) + most * sizeof(t->reply.entries[0]));
    size_t nr = 0;

    if (t == NULL) {
        return NULL;
    }
    t->ctx = ctx;
    t->max_entries = most;
    t->pasid = pasid;
    t->attrs = attrs;
    t->asked = asked;
    t->write = write;
    TAILQ_INIT(&t->waiters);
    t->request = (struct vfio_user_ats_translate){
        .argsz = (uint32_t)(sizeof(t->reply) + most * sizeof(t->reply.entries[0])),
        .flags = write ? 0 : VFIO_USER_ATS_F_NO_WRITE,
        .address = asked.first,
        .length = range_size(asked),
    };
    if (pasid != VFU_NO_PASID) {
        t->txn.flags = VFIO_USER_F_PASID;
        t->prefix = (struct vfio_user_pasid_prefix){ .pasid = pasid, .attrs = attrs };
        t->out[nr++] = (struct iovec){ &t->prefix, sizeof(t->prefix) };
    }
    t->out[nr++] = (struct iovec){ &t->request, sizeof(t->request) };
    t->txn.cmd = VFIO_USER_ATS_TRANSLATE;
    t->txn.out = t->out;
    t->txn.nr_out = nr;
    t->txn.reply = &t->reply;
    t->txn.reply_cap = t->request.argsz;
    t->txn.deadline = deadline_after_ms(TRANSLATE_TIMEOUT_MS);
    t->txn.done = translated;
    return t;
}

/* One under way that will answer this too. Lock held. */
static struct translation *find_pending(struct iommu *iommu, const struct access *a)
{
    bool write = (a->req->prot & PROT_WRITE) != 0;
    struct translation *t;

    TAILQ_FOREACH (t, &iommu->translations, link) {
        if (t->pasid == a->req->pasid && !t->cancelled && t->attrs == a->req->attrs &&
            (t->write || !write) && t->asked.first <= a->missing && a->missing <= t->asked.last &&
            !overtaken(t, (struct range){ a->missing, a->missing })) {
            return t;
        }
    }
    return NULL;
}

static void wait_for(struct access *a, struct translation *t)
{
    access_set_state(a, ACCESS_TRANSLATING);
    a->waits_for = t;
    TAILQ_INSERT_TAIL(&t->waiters, a, link);
}

/* It has come meanwhile, or holds in every PASID. iommu.lock is held. */
static bool present_now(struct access *a)
{
    const vfu_dma_request_t *req = a->req;
    struct dma *dma = a->ctx->dma;
    unsigned int ticket = dma_spaces_enter(dma);
    struct dma_space *space = iommu_space(a->ctx, req->pasid, req->attrs, true);
    struct dma_hit hit;
    bool present = false;

    if (space != NULL) {
        present = (dma_lookup(space, a->missing, &hit) == 0 && (req->prot & ~hit.prot) == 0) ||
                  insert_global(a, space) == 1;
    }
    dma_spaces_leave(dma, ticket);
    return present;
}

static void start(struct translation *t)
{
    int err;

    count(&t->ctx->iommu->counters.translations, 1);
    err = txn_start(&t->ctx->session, &t->txn);
    if (err < 0) {
        t->txn.error = err;
        translated(&t->txn);
    }
}

int translate_for(struct access *a)
{
    struct iommu *iommu = a->ctx->iommu;
    const vfu_dma_request_t *req = a->req;
    struct range asked = asked_range(a->ctx, a->missing, req->addr + (req->len - 1));
    struct translation *fresh = new_translation(a->ctx, req->pasid, req->attrs, asked,
                                                (req->prot & PROT_WRITE) != 0);
    struct translation *t;
    int r = 0;

    if (fresh == NULL) {
        return -ENOMEM;
    }
    pthread_mutex_lock(&iommu->lock);
    t = find_pending(iommu, a);
    if (t != NULL) {
        wait_for(a, t);
        count(&iommu->counters.joined, 1);
    } else if (present_now(a)) {
        r = 1;
    } else if (iommu->nr_translations >= MAX_TRANSLATIONS) {
        r = -EAGAIN;
    } else {
        TAILQ_INSERT_TAIL(&iommu->translations, fresh, link);
        iommu->nr_translations++;
        wait_for(a, fresh);
        t = fresh;
    }
    pthread_mutex_unlock(&iommu->lock);
    if (t == fresh) {
        start(fresh);
    } else {
        free(fresh);
    }
    return r;
}

int translate_one(struct vfu_ctx *ctx, uint32_t pasid, uint32_t attrs, uint64_t addr, bool write,
                  vfu_translate_cb_t *cb, void *pvt)
{
    struct iommu *iommu = ctx->iommu;
    struct translation *t = new_translation(ctx, pasid, attrs, asked_range(ctx, addr, addr), write);

    if (t == NULL) {
        return -ENOMEM;
    }
    t->cb = cb;
    t->pvt = pvt;
    t->addr = addr;
    pthread_mutex_lock(&iommu->lock);
    TAILQ_INSERT_TAIL(&iommu->translations, t, link);
    iommu->nr_translations++;
    pthread_mutex_unlock(&iommu->lock);
    start(t);
    return 0;
}

/* What ends them */

void translate_overtake(struct iommu *iommu, uint32_t pasid, bool global, struct range range)
{
    struct translation *t;

    TAILQ_FOREACH (t, &iommu->translations, link) {
        if (!global && t->pasid != pasid) {
            continue;
        }
        if (t->nr_overtaken == MAX_OVERTAKEN) {
            t->overtaken[0] = RANGE_ALL;
        } else {
            t->overtaken[t->nr_overtaken++] = range;
        }
    }
}

/* Waiters are told now; the reply, when it comes, finds nobody and is not used. */
void translate_cancel(struct vfu_ctx *ctx, uint32_t scope, int err)
{
    struct iommu *iommu = ctx->iommu;
    struct access_list waiters = TAILQ_HEAD_INITIALIZER(waiters);
    struct translation *t;
    struct access *a;

    pthread_mutex_lock(&iommu->lock);
    TAILQ_FOREACH (t, &iommu->translations, link) {
        if (in_scope(t->pasid, scope)) {
            t->cancelled = true;
            TAILQ_CONCAT(&waiters, &t->waiters, link);
        }
    }
    TAILQ_FOREACH (a, &waiters, link) {
        access_set_state(a, ACCESS_RUNNING);
    }
    pthread_mutex_unlock(&iommu->lock);
    access_end_all(&waiters, err);
}
