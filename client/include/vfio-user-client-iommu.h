/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A software IOMMU for the client: page tables that the caller edits, and everything that a server
 * needs to be told of them.
 *
 * A *domain* is an address space, a page table. It is attached to the requests of the device
 * without a PASID, or to those of a PASID; a domain may have a second stage under it, so that what
 * it maps to are addresses that are translated once more (a guest that has tables of its own).
 * What comes out at the end is an address of the machine's memory, given by
 * vfuc_iommu_add_memory(). Where no domain is attached, and where nothing is mapped, the device
 * reaches nothing.
 *
 *     vfuc_iommu_t *iommu = vfuc_iommu_create(NULL);
 *     vfuc_iommu_domain_t *domain = vfuc_iommu_domain_create(iommu);
 *
 *     vfuc_iommu_add_memory(iommu, &ram);
 *     vfuc_iommu_map(domain, iova, address, size, VFUC_IOMMU_READ | VFUC_IOMMU_WRITE);
 *     vfuc_iommu_attach(iommu, VFUC_NO_PASID, domain);
 *     vfuc_t *client = vfuc_iommu_connect(iommu, path, NULL);
 *
 * The same calls serve two kinds of servers (vfuc_iommu_mode()). One that has agreed on ATS asks,
 * keeps what it was told, and is told when that is no longer so. Any other gets *shadow mappings*:
 * what the tables say, both stages put together, is mapped and unmapped in it (DMA_MAP,
 * DMA_UNMAP). In both, messages of the device (DMA_READ, DMA_WRITE) are translated by the tables.
 *
 * With ATS the driver of the device has to enable it in configuration space; until then the device
 * reaches memory by messages only. And ATS trusts the device: a server that holds the descriptors
 * of memory can reach all of it. One that is not trusted is given none, or gets shadow mappings of
 * memory files that hold nothing else.
 *
 * When a call that takes something away has returned 0 (unmap, protect with less, attach and
 * detach, another second stage, removal of memory), the device has let go of it: what it
 * does from then on cannot reach what was taken away.
 *
 * Threads. Every function may be called by any thread. Callbacks, and all answers to the server,
 * are made on the client's receiver thread; no callback runs with a lock held. What has to wait
 * for the server cannot be called from a callback: EDEADLK.
 *
 * Functions return 0, or -1 with errno. Common to all that tell the server of a change:
 * ETIMEDOUT: it did not let go in time, EPROTO: it refused to. The device is *isolated* from then
 *   on: nothing is translated for it any more, and these calls fail with EIO. The tables have
 *   changed nevertheless. Memory that a server holds the descriptor of it can still reach: end it,
 *   or the connection.
 * ENOTCONN: there is no connection, or it ended meanwhile. What was taken away is out of the
 *   tables; what was to come (memory, an attachment, a shadow mapping) is not in them.
 *
 * The protocol is docs/vfio-user-iommu.rst; PCIe 10 has what it stands for.
 */
#ifndef VFIO_USER_CLIENT_IOMMU_H
#define VFIO_USER_CLIENT_IOMMU_H

#include "vfio-user-client.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vfuc_iommu vfuc_iommu_t;
typedef struct vfuc_iommu_domain vfuc_iommu_domain_t;
typedef struct vfuc_iommu_gather vfuc_iommu_gather_t;

/* Not a PASID: the requests without one. PASID 0 is a PASID. */
#define VFUC_NO_PASID UINT32_MAX

/* What a mapping allows. At least one of the first two. */
#define VFUC_IOMMU_READ (1u << 0)
#define VFUC_IOMMU_WRITE (1u << 1)
#define VFUC_IOMMU_EXEC (1u << 2)    /* needs READ; given to requests that ask for it */
#define VFUC_IOMMU_PRIV (1u << 3)    /* for requests in privileged mode only */
#define VFUC_IOMMU_GLOBAL (1u << 4)  /* the caller maps the same in every PASID */
#define VFUC_IOMMU_UNCACHED (1u << 5) /* not cached by the device: each access is a message */
#define VFUC_IOMMU_NO_SNOOP (1u << 6) /* told to the device, no other effect */

/*
 * Life
 */

enum vfuc_iommu_mode {
    VFUC_IOMMU_AUTO,   /* ATS with a server that has it, else SHADOW */
    VFUC_IOMMU_ATS,
    VFUC_IOMMU_SHADOW,
    /* No IOMMU: memory is mapped at its own addresses, nothing is translated, attach refused. */
    VFUC_IOMMU_NONE,
};

/* A page that the device asks for: pages of one request, and how it wants to use them. */
typedef struct vfuc_iommu_fault {
    uint64_t id;      /* for vfuc_iommu_page_response() */
    uint64_t address; /* IOVA */
    uint64_t size;    /* bytes, whole pages */
    uint32_t pasid;   /* or VFUC_NO_PASID */
    uint32_t perm;    /* VFUC_IOMMU_READ, _WRITE, _EXEC, _PRIV */
    uint16_t group;   /* page request group index */
} vfuc_iommu_fault_t;

typedef struct vfuc_iommu_options {
    enum vfuc_iommu_mode mode;
    unsigned address_bits;         /* of an IOVA, 30 to 57; 0: 48 */
    /*
     * Without any completion; 0: 5000. When the client's own timeout is shorter, the connection
     * ends instead, which isolates the device too.
     */
    uint32_t invalidate_timeout_ms;
    /* Neighbouring leaves are handed out as one up to this many bytes, a power of 2; 0: 2 MiB. */
    uint64_t max_merge;
    /* Of vfuc_iommu_connect() when its options propose nothing; 0: all there is. */
    vfuc_iommu_proposal_t proposal;
    /*
     * The device needs pages that are not there (PAGE_REQUEST). vfuc_iommu_page_response() answers,
     * from here or later. NULL: VFIO_USER_PAGE_RESP_INVALID.
     */
    void (*fault)(void *pvt, vfuc_iommu_t *iommu, const vfuc_iommu_fault_t *fault);
    /* A stop marker: no page request of this PASID from before it is under way. NULL: not told. */
    void (*pasid_stopped)(void *pvt, vfuc_iommu_t *iommu, uint32_t pasid);
    /* The device wrote by a message; address is the memory's. For who logs dirty pages. */
    void (*written)(void *pvt, vfuc_iommu_t *iommu, uint64_t address, uint64_t size);
    void *pvt;
} vfuc_iommu_options_t;

/* @options: NULL for the defaults; copied. NULL and errno: EINVAL (out of range), ENOMEM. */
vfuc_iommu_t *vfuc_iommu_create(const vfuc_iommu_options_t *options);

/* With all that is left in it. Not while a device is connected. NULL is ignored. */
void vfuc_iommu_destroy(vfuc_iommu_t *iommu);

/*
 * vfuc_connect() to a device that is to be behind this IOMMU: proposes the extension, and makes
 * the device see memory, domains and mappings as they are. One device at a time.
 *
 * The client is owned by the IOMMU: vfuc_iommu_disconnect() frees it, not vfuc_disconnect(), and
 * vfuc_iommu_reconnect() takes the place of vfuc_reconnect().
 *
 * NULL and errno: as vfuc_connect(). EBUSY: there is a device. ENOTSUP: the server does not have
 * ATS, and the mode is that, or not the PASIDs that something is attached to, or it has translation
 * units of more than 1 GiB. Any other: what the server answered to the first mappings.
 */
vfuc_t *vfuc_iommu_connect(vfuc_iommu_t *iommu, const char *path, const vfuc_options_t *options);

/*
 * vfuc_disconnect(), but calls of this interface may be under way: those that wait for the server
 * get ENOTCONN. Memory, domains and mappings stay, for the next device. Not from a callback.
 */
void vfuc_iommu_disconnect(vfuc_iommu_t *iommu);

/*
 * vfuc_reconnect(), and the server finds everything as the tables say. Isolation ends with the old
 * connection. ENOTCONN: there was no device. Others as vfuc_reconnect().
 */
int vfuc_iommu_reconnect(vfuc_iommu_t *iommu);

/* What it is with the device that is there; what was asked for as long as there is none. */
enum vfuc_iommu_mode vfuc_iommu_mode(vfuc_iommu_t *iommu);

/* Did the device fail to let go of something? */
bool vfuc_iommu_isolated(vfuc_iommu_t *iommu);

/*
 * The smallest unit of translations is the larger of what was agreed on and of what the guest has
 * written into the ATS control register (STU; 4096 << STU): the caller, who lets the guest write
 * there, says so. shift: log2 of bytes. EINVAL: not within 12..30.
 */
int vfuc_iommu_set_unit(vfuc_iommu_t *iommu, unsigned shift);

/* Counted since creation. */
typedef struct vfuc_iommu_stats {
    uint64_t translations;  /* ATS_TRANSLATE answered, with entries */
    uint64_t entries;       /* in these, present */
    uint64_t invalidations; /* completed */
    uint64_t faults;        /* pages asked for */
    uint64_t responses;     /* page request groups answered */
    uint64_t reads, writes; /* DMA messages served */
    uint64_t shadow_maps, shadow_unmaps;
    uint64_t refused;       /* messages that were malformed or not allowed */
} vfuc_iommu_stats_t;

void vfuc_iommu_stats(vfuc_iommu_t *iommu, vfuc_iommu_stats_t *stats);

/*
 * Memory of the machine
 */

typedef struct vfuc_iommu_memory {
    uint64_t address; /* in the space that translations lead to */
    uint64_t size;    /* bytes */
    int prot;         /* PROT_READ, PROT_WRITE: what a device may do */
    int fd;           /* a memory file, shared with the server; -1: none, by messages only */
    uint64_t fd_offset;
    void *vaddr;      /* the same memory here; NULL: mapped by the library, which needs an fd */
} vfuc_iommu_memory_t;

/*
 * address, size, and fd_offset are multiples of 4096. The descriptor is duplicated.
 *
 * EINVAL: not so, or neither fd nor vaddr. EEXIST: overlaps other memory. EDEADLK. ENOMEM. Any
 * other: mmap(2)'s, or what the server said.
 */
int vfuc_iommu_add_memory(vfuc_iommu_t *iommu, const vfuc_iommu_memory_t *memory);

/* Takes the memory at this address away. ENOENT: none begins there. EDEADLK. */
int vfuc_iommu_remove_memory(vfuc_iommu_t *iommu, uint64_t address);

/*
 * Domains
 */

/* An empty one. NULL and errno ENOMEM. */
vfuc_iommu_domain_t *vfuc_iommu_domain_create(vfuc_iommu_t *iommu);

/* EBUSY: it is attached, the second stage of another, or part of a gather. NULL is ignored. */
int vfuc_iommu_domain_destroy(vfuc_iommu_domain_t *domain);

/*
 * What the domain maps to is from now on an address in stage2; NULL: of memory. A page is as large
 * as the smaller of both stages', and allows what both allow.
 *
 * EINVAL: of another IOMMU, itself, or one that has a second stage or is one. EDEADLK.
 */
int vfuc_iommu_domain_set_stage2(vfuc_iommu_domain_t *domain, vfuc_iommu_domain_t *stage2);

/*
 * Requests with this PASID, or VFUC_NO_PASID, are translated by the domain, instead of any other;
 * NULL: by none.
 *
 * EINVAL: no such PASID, or a domain of another IOMMU. ENOTSUP: the server has no PASIDs, or there
 * is no IOMMU (VFUC_IOMMU_NONE). EDEADLK. ENOMEM. Any other: the server refused a shadow mapping,
 * and nothing is attached.
 */
int vfuc_iommu_attach(vfuc_iommu_t *iommu, uint32_t pasid, vfuc_iommu_domain_t *domain);

/*
 * Maps size bytes from iova on to address and on, with the largest pages that alignment and size
 * allow (4 KiB, 2 MiB, 1 GiB). With ATS this waits for nothing.
 *
 * EINVAL: not multiples of 4096, size 0, permissions without a meaning. ERANGE: beyond the address
 * bits. EEXIST: part of it is mapped. ENOMEM. EDEADLK (SHADOW). Any other: the server refused the
 * shadow mapping (ENOSPC: it has too many). Nothing is mapped by a call that fails.
 */
int vfuc_iommu_map(vfuc_iommu_domain_t *domain, uint64_t iova, uint64_t address, uint64_t size,
                   uint32_t perm);

/*
 * Takes out what is mapped in the range, holes or not, and waits until the device has let go.
 * A larger page that is cut is split. With SHADOW, what was mapped by one call and is cut is
 * mapped anew: the device may fail meanwhile to reach the rest of it.
 *
 * EINVAL, ERANGE: as above. ENOENT: nothing was mapped. EDEADLK. ENOMEM: nothing was changed.
 */
int vfuc_iommu_unmap(vfuc_iommu_domain_t *domain, uint64_t iova, uint64_t size);

/*
 * Other permissions for what is mapped in the range. Less: waits until the device has let go.
 * More: the device finds out when it asks again. Errors: as vfuc_iommu_unmap().
 */
int vfuc_iommu_protect(vfuc_iommu_domain_t *domain, uint64_t iova, uint64_t size, uint32_t perm);

/*
 * Many ranges, one wait: neighbours are put together, and as many invalidations are under way as
 * the server takes. Used by one thread at a time.
 */
vfuc_iommu_gather_t *vfuc_iommu_gather_create(vfuc_iommu_t *iommu);

/*
 * vfuc_iommu_unmap() that does not wait: until vfuc_iommu_sync() the device may go on. Errors: as
 * vfuc_iommu_unmap(); EINVAL: a domain of another IOMMU.
 */
int vfuc_iommu_unmap_start(vfuc_iommu_domain_t *domain, uint64_t iova, uint64_t size,
                           vfuc_iommu_gather_t *gather);

/* Waits until the device has let go of all of it. The gather is empty afterwards. EDEADLK. */
int vfuc_iommu_sync(vfuc_iommu_gather_t *gather);

/* Without the wait for what is in it. NULL is ignored. */
void vfuc_iommu_gather_destroy(vfuc_iommu_gather_t *gather);

/* Where the device gets to with an access, as it would be told now. */
typedef struct vfuc_iommu_translation {
    uint64_t iova, size; /* a page, or neighbours that lead on, naturally aligned */
    uint64_t address;    /* of memory, where iova leads */
    uint32_t perm;       /* VFUC_IOMMU_*; 0: not mapped */
} vfuc_iommu_translation_t;

void vfuc_iommu_translate(vfuc_iommu_t *iommu, uint32_t pasid, uint64_t iova,
                          vfuc_iommu_translation_t *translation);

/*
 * Page requests
 */

/*
 * Answers a request of the fault callback: code is VFIO_USER_PAGE_RESP_SUCCESS (the device is to
 * ask again), _INVALID (there is no such page), or _FAILURE (no more requests until the guest has
 * enabled PRI anew). The device is answered when all requests of the group are, with the worst.
 *
 * EINVAL: no such code. ENOENT: answered already, or the device is gone or was reset.
 */
int vfuc_iommu_page_response(vfuc_iommu_t *iommu, uint64_t id, uint32_t code);

/*
 * A PASID that stands for this very process: its pointers are the addresses, and pages come when
 * the device asks for them. A process can share with another what lies in memory files and nothing
 * else: neither its stack nor malloc()'s memory, and no copy-on-write. So [start, start + size)
 * must be memory given by vfuc_iommu_add_memory() with fd and vaddr, and the pages that the device
 * gets are those of the file. Without PRI all of it is mapped at once.
 *
 * prot: PROT_READ, PROT_WRITE, at most what that memory allows.
 *
 * EINVAL: empty, or not on page boundaries. EFAULT: not all of it is such memory. EEXIST: something
 * is attached to the PASID. Others: as vfuc_iommu_attach(), vfuc_iommu_map().
 */
int vfuc_iommu_bind_process(vfuc_iommu_t *iommu, uint32_t pasid, void *start, size_t size,
                            int prot);

/*
 * Takes pages from the device, which may ask for them again; waits until it has let go. Before the
 * process unmaps or discards them (madvise(2)). ENOENT: the PASID is not bound. A page that the
 * device does not have is no error.
 */
int vfuc_iommu_evict(vfuc_iommu_t *iommu, uint32_t pasid, void *start, size_t size);

/* The end of it. ENOENT: not bound. Others: as vfuc_iommu_attach(). */
int vfuc_iommu_unbind_process(vfuc_iommu_t *iommu, uint32_t pasid);

#ifdef __cplusplus
}
#endif

#endif /* VFIO_USER_CLIENT_IOMMU_H */
