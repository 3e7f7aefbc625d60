/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Devices behind a guest IOMMU that really remaps: PASID, ATS and PRI. See
 * docs/vfio-user-iommu.rst for the protocol, and samples/edu for a device that uses it.
 *
 * What most devices want is one call: vfu_dma_resolve() turns (address, PASID, length, access)
 * into a scatter list that stays valid until vfu_dma_release(), whatever that takes: a region
 * the client mapped, a cached translation, a translation asked for, a page faulted in. The rest
 * are the parts of it.
 *
 * Threads. All functions that take a vfu_dma_request_t, and vfu_addr_to_sgl_pasid(), may be called
 * by any thread at any time between vfu_realize_ctx() and vfu_destroy_ctx(). Callbacks run on the
 * control thread inside vfu_run_ctx(), with two exceptions: a completion that needs no answer of
 * the client runs before the call returns that started it, and when a thread waits for a reply
 * outside vfu_run_ctx() it may run completions of others. No callback runs with a lock held.
 */
#ifndef LIB_VFIO_USER_IOMMU_H
#define LIB_VFIO_USER_IOMMU_H

#include "libvfio-user-events.h"
#include "libvfio-user.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Not a PASID: the address space of requests without one. PASID 0 is a PASID. */
#define VFU_NO_PASID UINT32_MAX

/* Attributes of an access with a PASID (PCIe 6.20.2). */
#define VFU_PASID_EXEC 1u /* instruction fetch: the page must allow execution */
#define VFU_PASID_PRIV 2u /* in privileged mode: its translations are separate */

typedef struct vfu_dma_request vfu_dma_request_t;
typedef struct vfu_invalidation vfu_invalidation_t;

/* Which switches of the guest and limits of the client are in force. */
typedef struct vfu_iommu_state {
    bool pasid;    /* requests may carry a PASID */
    bool exec;     /* and ask for execution */
    bool priv;     /* and for privileged mode */
    bool ats;      /* translations are asked for and cached */
    bool pri;      /* pages are requested */
    uint32_t page_shift; /* smallest translation unit, log2 of bytes */
} vfu_iommu_state_t;

/*
 * A range is about to be invalidated: nothing translates it any more, and requests that were
 * resolved before have been revoked. The device lets go of what it derived itself.
 *
 * @pasid: VFU_NO_PASID for the space without one.
 * @global: in all spaces; @pasid is meaningless.
 * @first, @last: addresses, both inclusive.
 * @inv: for vfu_invalidate_done().
 *
 * Returns 0 when that is done, or -1 with errno EBUSY when vfu_invalidate_done() will be called.
 */
typedef int (vfu_invalidate_cb_t)(vfu_ctx_t *vfu_ctx, uint32_t pasid, bool global, uint64_t first,
                                  uint64_t last, vfu_invalidation_t *inv);

/* The guest or the client switched something, or a client has attached or left. */
typedef void (vfu_iommu_state_cb_t)(vfu_ctx_t *vfu_ctx, const vfu_iommu_state_t *state);

/* What the device offers. Zero means the default, or off where it says so. */
typedef struct vfu_iommu_config {
    size_t size;             /* sizeof(vfu_iommu_config_t) */
    uint32_t pasid_bits;     /* 1..20; 0: no PASID capability */
    bool pasid_exec;
    bool pasid_priv;
    bool ats;                /* false: no ATS capability */
    uint32_t ats_queue_depth; /* 1..32 invalidations outstanding; 0: 32 */
    uint32_t ats_page_shift; /* log2 of bytes, at least 12; 0: 12 */
    uint32_t ats_max_entries; /* per translation reply, 1..512; 0: 64 */
    size_t atc_entries;      /* cached translations at most; 0: 65536 */
    bool pri;                /* false: no PRI capability; needs ats */
    uint32_t pri_max_requests; /* pages asked and not answered, at most; 0: 512 */
    uint32_t pri_timeout_ms; /* for a page request; 0: none */
    uint32_t retries;        /* translations and page requests per access; 0: 64 */
    vfu_invalidate_cb_t *invalidate; /* may be NULL */
    vfu_iommu_state_cb_t *state;     /* may be NULL */
} vfu_iommu_config_t;

/*
 * Gives the device an IOMMU interface: adds the PASID, ATS and PRI extended capabilities that the
 * configuration asks for, and offers the extension to clients. A client that does not know it
 * sees the capabilities and a stock server. A guest finds them only beside an Express capability:
 * vfu_realize_ctx() adds one that the device has left out. From here on the replies to DMA_UNMAP wait until
 * references to what was unmapped are put.
 *
 * @config: copied.
 *
 * Returns 0, or -1 with errno:
 * EINVAL: a value out of range, pri without ats, size too small, or a configuration space without
 *   extended capabilities (VFU_PCI_TYPE_PCI_X_2 or _EXPRESS are needed when one is asked for).
 * EEXIST: called twice. ENOSPC: no room for the capabilities. ENOMEM.
 * ENOTCONN: vfu_setup_device_dma() was not called before.
 *
 * Control thread, before vfu_realize_ctx().
 */
int vfu_setup_device_iommu(vfu_ctx_t *vfu_ctx, const vfu_iommu_config_t *config);

/* What is in force now. Any thread. */
void vfu_iommu_get_state(vfu_ctx_t *vfu_ctx, vfu_iommu_state_t *state);

/*
 * vfu_addr_to_sgl() for the address space of a PASID: what is reachable now, by regions and by
 * cached translations. Asks nobody and does not wait.
 *
 * Returns as vfu_addr_to_sgl() does; ENOENT also when a translation is not cached. EPERM: PASIDs
 * are switched off. EINVAL: the PASID is out of range.
 */
int vfu_addr_to_sgl_pasid(vfu_ctx_t *vfu_ctx, vfu_dma_addr_t dma_addr, uint32_t pasid, size_t len,
                          dma_sg_t *sgl, size_t max_nr_sgs, int prot);

enum vfu_dma_request_flags {
    VFU_DMA_NO_FAULT = 1 << 0,   /* do not request pages that are not present */
    VFU_DMA_NO_TRANSLATE = 1 << 1, /* nor ask for translations: only what is cached */
};

/*
 * An access to guest memory. Zero it, fill the first part, and keep it until it was released, or
 * has failed.
 */
struct vfu_dma_request {
    uint64_t addr;  /* IOVA */
    uint64_t len;   /* bytes, not 0 */
    uint32_t pasid; /* VFU_NO_PASID for none */
    uint32_t attrs; /* VFU_PASID_EXEC, VFU_PASID_PRIV */
    int prot;       /* PROT_READ, PROT_WRITE */
    uint32_t flags; /* enum vfu_dma_request_flags */
    dma_sg_t *sgl;  /* room for max_nr_sgs entries */
    struct iovec *iov; /* as many, or NULL */
    size_t max_nr_sgs;
    void *pvt;      /* the caller's */
    /*
     * The end of vfu_dma_resolve(): error is 0, and nr_sgs entries of sgl are filled, referenced,
     * and have their host address in iov (iov_base NULL: use vfu_dma_move()). Or it is an errno,
     * see vfu_dma_resolve().
     */
    void (*done)(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req, int error);
    /*
     * For mappings that are kept: part of the memory is being taken away. The device stops using
     * it and calls vfu_dma_release(), from here or later; the client waits for that. Afterwards
     * it may resolve again. NULL for accesses that end by themselves.
     *
     * Runs on the control thread. To another thread that resolves or releases the request, it may
     * come before done does, or just after the release: that thread looks for it when done has
     * come, and does not free the request while the context serves clients.
     */
    void (*revoked)(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req);

    /* The result. */
    size_t nr_sgs;
    uint64_t fault_addr; /* the first address that failed, or that of the message which did */

    /* The library's. */
    uint64_t priv[24];
};

/*
 * Resolves an access, by whatever it takes, and calls req->done. The memory may be used until
 * vfu_dma_release().
 *
 * Returns 0 when done has been or will be called, exactly once; or -1 with errno EINVAL (length 0
 * or wrapping, PASID or attributes out of range, prot or max_nr_sgs 0, done NULL).
 *
 * Errors that done gets:
 * EFAULT: not mapped, or not for this access, or the guest said so of a page request.
 * EPERM: PASIDs, execution or privileged mode are switched off.
 * ENOSPC: needs more than max_nr_sgs entries. EIO: the client failed to translate, or lied.
 * ENOTCONN: no client. ECANCELED: reset, or PASID, ATS or PRI switched off meanwhile, or
 *   vfu_dma_cancel(). EAGAIN: given up after too many attempts. ETIMEDOUT: no answer.
 *
 * Any thread.
 */
int vfu_dma_resolve(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req);

/* The same, waiting; req->done is not used. Returns 0, or -1 with one of the errno above. */
int vfu_dma_resolve_wait(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req);

/*
 * Copies within what was resolved, by mapping or by messages: len bytes between data and guest
 * memory, from offset bytes behind req->addr on. Returns 0, or -1 with errno: EINVAL (outside of
 * the request, or not resolved for writing), EFAULT, EIO, ETIMEDOUT, ENOTCONN, or ECANCELED as for
 * vfu_sgl_read() and when PASIDs are switched off or vfu_pasid_stop() is called. Any thread.
 */
int vfu_dma_move(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req, uint64_t offset, void *data,
                 size_t len, bool to_guest);

/*
 * Ends the use of what was resolved: puts the references, and marks pages dirty where prot had
 * PROT_WRITE. Once per successful resolve. Any thread.
 */
void vfu_dma_release(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req);

/*
 * Gives an access up that is not done yet: done is called with ECANCELED before this returns.
 * Returns 0, or -1 with errno ENOENT when it is done already or about to be. Any thread.
 */
int vfu_dma_cancel(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req);

/*
 * Resolves and copies: req->len bytes between data and guest memory, by mapping or by messages.
 * Waits. sgl and done of the request are not used. Returns 0, or -1 with errno as above; nothing
 * was transferred when resolving failed.
 */
int vfu_dma_read(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req, void *data);
int vfu_dma_write(vfu_ctx_t *vfu_ctx, vfu_dma_request_t *req, const void *data);

/* One translation, as the client gave it. */
typedef struct vfu_translation {
    uint64_t first, last; /* IOVA, inclusive */
    uint64_t translated;  /* of first; 0 when not present */
    uint32_t perm;        /* VFIO_USER_ATS_PERM_*; neither read nor write: not present */
} vfu_translation_t;

/*
 * Asks for the translation of one address, caching it, and calls back with the entry that holds
 * it: error is 0 also for one that is not present. For devices that manage faults themselves.
 *
 * Returns 0, or -1 with errno EINVAL, EPERM (ATS or the PASID is off), ENOMEM, ENOTCONN.
 */
typedef void (vfu_translate_cb_t)(vfu_ctx_t *vfu_ctx, void *pvt, int error,
                                  const vfu_translation_t *translation);
int vfu_ats_translate(vfu_ctx_t *vfu_ctx, uint32_t pasid, uint32_t attrs, uint64_t addr,
                      bool write, vfu_translate_cb_t *cb, void *pvt);

/* Pages of one request: count pages from addr on. */
typedef struct vfu_page_range {
    uint64_t addr;
    uint32_t nr_pages;
    uint32_t perm; /* VFIO_USER_ATS_PERM_READ, _WRITE, _EXEC, _PRIV */
} vfu_page_range_t;

/*
 * Requests pages as one group and calls back when the client has dealt with it. Waits for nothing:
 * what exceeds the credits is queued.
 *
 * @code of the callback, when error is 0: VFIO_USER_PAGE_RESP_SUCCESS (ask for the translation
 * again) or _INVALID. error is EIO after a response failure, ECANCELED after a reset or when PRI
 * was switched off, ETIMEDOUT, ENOTCONN.
 *
 * Returns 0, or -1 with errno EINVAL, EPERM (PRI is off), E2BIG (more pages than the allocation
 * allows at all), ENOMEM, ENOTCONN.
 */
typedef void (vfu_page_request_cb_t)(vfu_ctx_t *vfu_ctx, void *pvt, int error, uint32_t code);
int vfu_page_request(vfu_ctx_t *vfu_ctx, uint32_t pasid, uint32_t attrs,
                     const vfu_page_range_t *ranges, size_t nr_ranges, vfu_page_request_cb_t *cb,
                     void *pvt);

/*
 * Stops the use of a PASID: what is cached for it goes, accesses that wait end with ECANCELED, and
 * a stop marker follows its last page request. Returns 0, or -1 with errno EINVAL.
 */
int vfu_pasid_stop(vfu_ctx_t *vfu_ctx, uint32_t pasid);

/* The device has let go of an invalidated range; see vfu_invalidate_cb_t. Any thread. */
void vfu_invalidate_done(vfu_ctx_t *vfu_ctx, vfu_invalidation_t *inv);

/* Counters, since the context was created. */
typedef struct vfu_iommu_stats {
    uint64_t atc_hits;        /* accesses resolved at once */
    uint64_t atc_misses;      /* accesses that had to ask */
    uint64_t atc_entries;     /* cached now */
    uint64_t atc_evictions;
    uint64_t translations;    /* requests sent */
    uint64_t translations_joined; /* misses that joined one already sent */
    uint64_t translations_discarded; /* results that an invalidation overtook */
    uint64_t invalidations;
    uint64_t invalidations_pending;
    uint64_t page_requests;   /* pages */
    uint64_t page_groups;
    uint64_t page_groups_pending;
    uint64_t page_requests_joined;
    uint64_t page_failures;   /* responses other than success */
    uint64_t faults;          /* accesses that ended in EFAULT */
    uint64_t protocol_errors; /* replies that were dropped whole */
    uint64_t late_replies;
} vfu_iommu_stats_t;

void vfu_iommu_get_stats(vfu_ctx_t *vfu_ctx, vfu_iommu_stats_t *stats);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_IOMMU_H */
