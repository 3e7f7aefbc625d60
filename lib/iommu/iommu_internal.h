/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the files of this room share.
 *
 * Locking. iommu.lock guards the lists below. Under it the ATC is filled and emptied, so that an
 * invalidation either finds a result in the cache, or its request on the list of those pending.
 * It is never held across a send, a callback, or a wait. A hit takes no lock.
 */
#ifndef VFU_IOMMU_IOMMU_INTERNAL_H
#define VFU_IOMMU_IOMMU_INTERNAL_H

#include "device/ctx.h"
#include "iommu/iommu.h"
#include "util/range.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

/* What a request waits for. */
enum access_state {
    ACCESS_IDLE, /* not begun, failed, or released */
    ACCESS_RUNNING, /* a thread works on it */
    ACCESS_TRANSLATING,
    ACCESS_FAULTING,
    ACCESS_HELD, /* resolved, its references held */
};

/* The library's part of a vfu_dma_request_t. */
struct access {
    struct vfu_ctx *ctx;
    vfu_dma_request_t *req;
    /* Begins and ends to wait under the lock; a cancel on another thread looks at any time. */
    _Atomic uint32_t state; /* enum access_state */
    uint32_t tries;
    uint64_t missing; /* the address that a translation is wanted for */
    struct range untranslated; /* what the client wants reached by untranslated requests only */
    bool has_untranslated;
    bool kept; /* on the list of mappings that can be revoked */
    bool revoked; /* the device was told */
    void *waits_for; /* struct translation or struct page_group */
    TAILQ_ENTRY(access) link; /* among the waiters of that, or the kept */
};

_Static_assert(sizeof(struct access) <= sizeof(((vfu_dma_request_t *)0)->priv),
               "the public structure must have room");

TAILQ_HEAD(access_list, access);

static inline void access_set_state(struct access *a, enum access_state state)
{
    atomic_store_explicit(&a->state, state, memory_order_relaxed);
}

static inline enum access_state access_state(const struct access *a)
{
    return (enum access_state)atomic_load_explicit(&a->state, memory_order_relaxed);
}

static inline struct access *access_of(vfu_dma_request_t *req)
{
    return (struct access *)req->priv;
}

#define MAX_OVERTAKEN 8

/* One ATS_TRANSLATE in flight. */
struct translation {
    struct txn txn;
    struct vfu_ctx *ctx;
    uint32_t pasid;
    uint32_t attrs;
    bool write;
    bool cancelled;
    struct range asked;
    uint32_t max_entries; /* room for so many */
    /* What was invalidated since the request: nothing of it may be cached. */
    struct range overtaken[MAX_OVERTAKEN];
    unsigned nr_overtaken;
    struct access_list waiters;
    /* Of vfu_ats_translate(). */
    vfu_translate_cb_t *cb;
    void *pvt;
    uint64_t addr;
    TAILQ_ENTRY(translation) link;

    struct vfio_user_pasid_prefix prefix;
    struct vfio_user_ats_translate request;
    struct iovec out[2];
    struct vfio_user_ats_translate_reply reply; /* and its entries */
};

TAILQ_HEAD(translation_list, translation);

/* One page request group. */
struct page_group {
    struct txn txn;
    struct vfu_ctx *ctx;
    uint32_t pasid;
    uint32_t attrs;
    uint32_t pages;
    uint16_t index;
    bool sent; /* and not being forgotten */
    atomic_uint refs; /* the transaction's, and of whoever cancels that */
    struct access_list waiters;
    vfu_page_request_cb_t *cb;
    void *pvt;
    TAILQ_ENTRY(page_group) link;

    struct vfio_user_pasid_prefix prefix;
    struct vfio_user_page_response response;
    struct iovec out[2];
    struct vfio_user_page_request request; /* and its entries */
};

TAILQ_HEAD(page_group_list, page_group);

struct vfu_invalidation {
    struct dma_drain drain; /* first: its done() gets it */
    struct vfu_ctx *ctx;
    struct request *req;
    atomic_uint pending; /* references, device: the last one replies */
    uint64_t epoch;
    TAILQ_ENTRY(vfu_invalidation) link;
};

TAILQ_HEAD(invalidation_list, vfu_invalidation);

/* A translation that holds in every PASID. */
struct global_translation {
    struct range iova;
    uint64_t translated;
    int prot;
    bool privileged;
};

#define MAX_GLOBALS 256

/* Hits are counted by every access: each thread has a line of its own, as far as they go. */
#define HIT_COUNTERS 16

struct hit_counter {
    _Alignas(64) _Atomic uint64_t hits;
};

struct iommu_counters {
    _Atomic uint64_t misses, evictions, translations, joined, discarded, invalidations,
        pages, groups, pages_joined, page_failures, faults, protocol_errors;
};

struct iommu {
    vfu_iommu_config_t config;

    /* What guest and client have switched on: written by the control thread, read by all. */
    _Atomic bool pasid_on, exec_on, priv_on, ats_on, pri_on;
    _Atomic bool remapping; /* the client has an IOMMU for us at all */
    _Atomic uint32_t pasid_limit; /* PASIDs below are in use; 0: none is */
    _Atomic uint32_t page_shift;
    _Atomic uint32_t max_entries; /* of one translation reply */
    _Atomic uint32_t credits; /* pages that may be outstanding */
    _Atomic uint32_t pasid_bits; /* of the negotiation, or of the configuration */

    pthread_mutex_t lock;
    struct translation_list translations;
    unsigned nr_translations;
    struct page_group_list groups; /* sent */
    struct page_group_list queued; /* waiting for credits */
    uint32_t pages_out; /* asked and not answered */
    unsigned nr_groups;
    uint64_t group_bits[VFIO_USER_PAGE_GROUPS / 64];
    bool pri_failed; /* a response failure: nothing is sent until PRI is enabled again */
    struct invalidation_list invalidations;
    unsigned nr_invalidations;
    struct access_list kept;
    struct global_translation globals[MAX_GLOBALS];
    unsigned nr_globals, next_global;
    uint64_t epoch; /* of the connection, for invalidations that outlive it */
    atomic_uint pri_events; /* bits of enum pci_pri_event that the registers do not show yet */
    struct pci_iommu_registers registers; /* as last acted upon; the control thread's */
    _Atomic bool refused; /* the client said that it does not translate */
    struct iommu_counters counters;
    struct hit_counter hits[HIT_COUNTERS];
};

static inline void count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline bool is_on(_Atomic bool *flag)
{
    return atomic_load_explicit(flag, memory_order_acquire);
}

/* access.c */

uint64_t access_hits(struct iommu *iommu);

/* Goes on with an access after what it waited for: err is 0 to try again, or ends it. */
void access_resume(struct access *a, int err);
/* A page that is not there: asks for it, or ends the access. */
void access_fault(struct access *a);
/* Ends every access of a list. No lock held. */
void access_end_all(struct access_list *list, int err);
/* Tells the owners of kept mappings that overlap. No lock held; control thread. */
void access_revoke(struct vfu_ctx *ctx, uint32_t pasid, bool global, struct range range);
uint64_t access_page_mask(const struct iommu *iommu);
/* Between dma_spaces_enter() and dma_spaces_leave(), as is every use of the result. */
struct dma_space *iommu_space(struct vfu_ctx *ctx, uint32_t pasid, uint32_t attrs, bool create);

/* translate.c */

/*
 * Asks for the translation of a->missing, or joins one that will tell. 0: a waits; 1: it has
 * arrived meanwhile, look again; or a negative errno.
 */
int translate_for(struct access *a);
/*
 * Whose requests: those of a PASID, of VFU_NO_PASID, of all PASIDs, or everybody's. PASIDs have 20
 * bits.
 */
#define SCOPE_ALL (VFU_NO_PASID - 1)
#define SCOPE_PASIDS (VFU_NO_PASID - 2)

static inline bool in_scope(uint32_t pasid, uint32_t scope)
{
    return scope == SCOPE_ALL || pasid == scope ||
           (scope == SCOPE_PASIDS && pasid != VFU_NO_PASID);
}

/* Forgets what is asked: results are dropped, waiters end with err. Lock not held. */
void translate_cancel(struct vfu_ctx *ctx, uint32_t scope, int err);
/* Marks pending requests whose result may overlap. Lock held. */
void translate_overtake(struct iommu *iommu, uint32_t pasid, bool global, struct range range);
/* Empties the cache of a PASID, or of all spaces. Lock held. */
void atc_drop(struct vfu_ctx *ctx, uint32_t pasid, bool all, struct range range, bool globals,
              struct dma_drain *drain);

/* Asks for one address, for a caller who wants to see the answer. 0 or a negative errno. */
int translate_one(struct vfu_ctx *ctx, uint32_t pasid, uint32_t attrs, uint64_t addr, bool write,
                  vfu_translate_cb_t *cb, void *pvt);

/* page_request.c */

/* Requests the pages of an access from a->missing on. 0: a waits. Or a negative errno. */
int page_request_for(struct access *a);
int page_request_group(struct vfu_ctx *ctx, uint32_t pasid, uint32_t attrs,
                       const vfu_page_range_t *ranges, size_t nr_ranges,
                       vfu_page_request_cb_t *cb, void *pvt);
/*
 * Ends what waits with err. Requests that were sent stay outstanding until their response, unless
 * forget is set. Returns how many stay.
 */
unsigned page_request_cancel(struct vfu_ctx *ctx, uint32_t scope, bool forget, int err);
int page_request_stop_marker(struct vfu_ctx *ctx, uint32_t pasid);

/* What check_allowed() in access.c says of a PASID and its attributes: 0, -EINVAL or -EPERM. */
int access_allowed(struct vfu_ctx *ctx, uint32_t pasid, uint32_t attrs);
/* Why access_allowed() has failed, for the log. */
const char *access_fault_of(struct vfu_ctx *ctx, uint32_t pasid, uint32_t attrs);
int access_resolve(struct vfu_ctx *ctx, vfu_dma_request_t *req);
int access_resolve_wait(struct vfu_ctx *ctx, vfu_dma_request_t *req);
void access_release(struct vfu_ctx *ctx, vfu_dma_request_t *req);
int access_cancel(struct vfu_ctx *ctx, vfu_dma_request_t *req);

/* invalidate.c */
void invalidation_put(struct vfu_invalidation *inv);

#endif /* VFU_IOMMU_IOMMU_INTERNAL_H */
