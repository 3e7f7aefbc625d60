/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the files of the IOMMU share.
 *
 * Locking. iommu->lock guards everything below: tables, attachments, memory, invalidations, page
 * requests. The receiver thread takes it to translate and to copy, so that what was taken out of
 * the tables under it is not reached by any message any more. It is never held across a send, a
 * callback, or a wait for the server.
 *
 * iommu->turn is for what takes several commands to the server to get right: shadow mappings and
 * the registration of memory. Who has the turn may wait for the server; the receiver never wants
 * it. The list of shadow mappings belongs to whoever has the turn. Attachments are freed with both.
 * A domain is put in the place of another with the turn too, until the device knows.
 *
 * A translation that was answered by the tables as they were, and is sent after the invalidation
 * that was to drop it, is harmless: the server discards what it asked for before the invalidation
 * arrived (vfio-user IOMMU extension, INV-3 c). So tables change first, and invalidations follow.
 */
#ifndef VFUC_IOMMU_IOMMU_H
#define VFUC_IOMMU_IOMMU_H

#include "client.h"
#include "iommu/pagetable.h"
#include "vfio-user-client-iommu.h"

#define PERM_RW (VFUC_IOMMU_READ | VFUC_IOMMU_WRITE)
#define PERM_RWX (PERM_RW | VFUC_IOMMU_EXEC)

_Static_assert(VFUC_IOMMU_READ == VFIO_USER_ATS_PERM_READ &&
                   VFUC_IOMMU_WRITE == VFIO_USER_ATS_PERM_WRITE &&
                   VFUC_IOMMU_EXEC == VFIO_USER_ATS_PERM_EXEC &&
                   VFUC_IOMMU_PRIV == VFIO_USER_ATS_PERM_PRIV &&
                   VFUC_IOMMU_GLOBAL == VFIO_USER_ATS_PERM_GLOBAL &&
                   VFUC_IOMMU_UNCACHED == VFIO_USER_ATS_PERM_UNTRANSLATED &&
                   VFUC_IOMMU_NO_SNOOP == VFIO_USER_ATS_PERM_NO_SNOOP &&
                   VFIO_USER_ATS_PERM_MASK == PT_PERM_MASK,
               "permissions go onto the wire as they are kept");

/* Memory of the machine. */
struct memory {
    vfuc_iommu_memory_t given; /* fd: ours; vaddr: set */
    bool mapped_here;          /* vaddr is ours to unmap */
    struct guard *guard;       /* the server has the file, and may truncate it */
    bool there;                /* the server knows it, where that is needed */
};

struct vfuc_iommu_domain {
    struct vfuc_iommu *iommu;
    struct pagetable table;
    struct vfuc_iommu_domain *stage2;
    unsigned refs; /* attachments, domains above, gathers */
    unsigned nr_above; /* domains that have this as their second stage; counted in refs too */
    bool had_global;
    /* Of a process; size 0: no. */
    uint64_t arena_start, arena_size;
    uint32_t arena_perm;
    LIST_ENTRY(vfuc_iommu_domain) link;
};

/* A range that was mapped in the server. */
struct shadow {
    uint64_t first, last;
    uint64_t address; /* of memory, where first leads */
    uint32_t perm;
};

/* Requests with a PASID, or without one, and what translates them. */
struct attachment {
    uint32_t pasid;
    struct vfuc_iommu_domain *domain; /* NULL: was detached */
    struct shadow *shadows; /* sorted */
    size_t nr_shadows, max_shadows;
};

/* Somebody who waits for invalidations. */
struct batch {
    uint64_t sent, completed;
    int error; /* the first, an errno */
};

#define MAX_INVALIDATIONS 32

struct invalidation {
    struct vfuc_iommu *iommu;
    bool used;
    struct batch *batch; /* NULL: nobody waits any more */
};

/* What was taken out of a domain and has not been told to the device yet. */
struct change {
    struct vfuc_iommu_domain *domain;
    uint64_t first, last;
    bool global; /* part of it was in every PASID */
};

struct vfuc_iommu_gather {
    struct vfuc_iommu *iommu;
    struct change *changes;
    size_t nr, max;
};

/* A page request group, while messages of it come in or answers are due. */
struct page_group {
    bool used, whole; /* whole: the last message has come, and is answered */
    bool bad;         /* malformed: EINVAL */
    uint16_t msg_id;
    uint32_t pasid, attrs;
    unsigned unanswered;
    uint32_t code; /* the worst so far */
};

/* One entry of a page request. */
struct page_request {
    uint32_t generation; /* part of the id: a late answer does not fit */
    bool used;
    uint32_t nr_pages;
    vfuc_iommu_fault_t fault;
};

struct vfuc_iommu {
    struct vfuc_unit unit; /* first: what the client knows of us */
    vfuc_iommu_options_t options;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* completions, the turn */
    bool turn_taken;
    bool exchanging; /* who has the turn has put one domain in the place of another */
    uint64_t exchanges;

    struct vfuc *client; /* NULL: no device */
    unsigned nr_senders; /* threads that use it */
    bool connecting;
    vfuc_agreed_t agreed;
    enum vfuc_iommu_mode mode;
    unsigned unit_shift; /* what the guest has set */
    bool isolated;
    uint64_t epoch; /* of the connection */

    struct memory *memory; /* sorted by address */
    size_t nr_memory, max_memory;
    LIST_HEAD(, vfuc_iommu_domain) domains;
    struct attachment **attached; /* sorted by attachment_key() */
    size_t nr_attached, max_attached;

    struct invalidation invalidations[MAX_INVALIDATIONS];
    unsigned nr_invalidations;
    uint64_t completions; /* progress, for the timeout */

    struct page_group groups[VFIO_USER_PAGE_GROUPS];
    struct page_request *requests;
    uint32_t max_requests, next_request;
    uint32_t pages_out;

    vfuc_iommu_stats_t stats;
};

/* iommu.c */

/* -1 and errno, or 0. */
int iommu_result(int err);
/* May this thread wait for the server? -EDEADLK, or 0. Lock not held. */
int iommu_may_wait(struct vfuc_iommu *iommu);
/*
 * Lock held: the client is used without the lock and the turn, which keeps it from being freed until
 * that has ended. The receiver thread has no need of it.
 */
static inline void iommu_begin_sending(struct vfuc_iommu *iommu)
{
    iommu->nr_senders++;
}
void iommu_end_sending(struct vfuc_iommu *iommu);
void iommu_take_turn(struct vfuc_iommu *iommu);
void iommu_end_turn(struct vfuc_iommu *iommu);
/* Lock and turn held: from now on, and until the turn ends, the device lets go of a domain. */
void iommu_begin_exchange(struct vfuc_iommu *iommu);
/* The receiver thread has something of this client, whose connection is in the state returned. */
enum client_state iommu_meet(struct vfuc_iommu *iommu, struct vfuc *client);
/* Lock held: the mode that the device is in, NONE for no device too. */
enum vfuc_iommu_mode iommu_active_mode(const struct vfuc_iommu *iommu);
uint64_t iommu_unit_size(const struct vfuc_iommu *iommu);
/* Lock held. */
void iommu_isolate(struct vfuc_iommu *iommu, const char *why);
/* Lock not held: -EIO when the device kept something, of which no more can be said; or 0. */
int iommu_check_isolated(struct vfuc_iommu *iommu);
/* Lock not held: the device did not let go. What is to be reported: isolates it unless it left. */
int iommu_kept(struct vfuc_iommu *iommu, int err);
/* Room for one more element. 0 or -ENOMEM. */
int iommu_grow(void **array, size_t *max, size_t nr, size_t size);

/* memory.c: lock held in these. */

/*
 * The memory that holds an address and is there for the device; NULL: none, and *until is the last
 * address of which that is known.
 */
struct memory *memory_find(const struct vfuc_iommu *iommu, uint64_t address, uint64_t *until);
/* Is [start, start + size) here memory that is shared? The address of start in *address. */
bool memory_shared_at(const struct vfuc_iommu *iommu, uint64_t start, uint64_t size, int prot,
                      uint64_t *address);
/* Where memory at an address is here. */
uint8_t *memory_pointer(const struct memory *memory, uint64_t address);
/* What a device may do there: VFUC_IOMMU_READ, _WRITE, _EXEC. */
uint32_t memory_perm(const struct memory *memory);
/* Turn, no lock: the server gets what it does not know. 0 or -errno. */
int memory_announce(struct vfuc_iommu *iommu);
void memory_destroy(struct vfuc_iommu *iommu);

/* walk.c: lock held. */

/* One piece: a leaf of both stages in memory, or a hole. */
void domain_walk(const struct vfuc_iommu_domain *domain, uint64_t iova, struct pt_span *span);
/* The same for what is attached; nothing attached is one hole. */
void space_walk(const struct vfuc_iommu *iommu, uint32_t pasid, uint64_t iova,
                struct pt_span *span);
/* As large a naturally aligned block as leads on from it, up to max bytes or the leaf's size. */
void space_walk_merged(const struct vfuc_iommu *iommu, uint32_t pasid, uint64_t iova, uint64_t max,
                       struct pt_span *span);

/* attach.c: lock held. */
struct attachment *attachment_find(const struct vfuc_iommu *iommu, uint32_t pasid);
/*
 * The next that shows the domain, by itself or as its second stage; NULL for domain: any, also one
 * that was detached, whose shadow mappings the device may not have let go of. *cursor
 * is 0 at first; attachments that come and go meanwhile do no harm.
 */
struct attachment *attachment_next(const struct vfuc_iommu *iommu,
                                   const struct vfuc_iommu_domain *domain, uint64_t *cursor);
/* Lock not held, turn held: vfuc_iommu_attach(). 0 or -errno. */
int attach_domain(struct vfuc_iommu *iommu, uint32_t pasid, struct vfuc_iommu_domain *domain);
void attachments_destroy(struct vfuc_iommu *iommu);

/* domain.c */
int domain_check_range(const struct vfuc_iommu_domain *domain, uint64_t iova, uint64_t size);
/* -EINVAL, or 0. */
int domain_check_perm(uint32_t perm);
void domain_free(struct vfuc_iommu_domain *domain);

/* invalidate.c: lock not held. 0 or -errno. */

/* The device lets go of what the tables do not say any more, or a shadow mapping is changed. */
int changes_tell(struct vfuc_iommu *iommu, const struct change *changes, size_t nr);
/* The same with the turn held. */
int changes_tell_in_turn(struct vfuc_iommu *iommu, const struct change *changes, size_t nr);
/* Everything of one space. */
int space_invalidate(struct vfuc_iommu *iommu, uint32_t pasid, bool global);

/* shadow.c: turn held, lock not. Makes the shadow of [first, last] what the tables say. */
int shadow_refresh(struct vfuc_iommu *iommu, struct attachment *attachment, uint64_t first,
                   uint64_t last);
/* Of all that is attached; for a domain, of what it shows. */
int shadow_refresh_domain(struct vfuc_iommu *iommu, const struct vfuc_iommu_domain *domain,
                          uint64_t first, uint64_t last);
int shadow_refresh_all(struct vfuc_iommu *iommu);

/* What came before the payload. */
struct space_of {
    uint32_t pasid; /* or VFUC_NO_PASID */
    uint32_t attrs; /* VFIO_USER_PASID_ATTR_* */
};

/* A command of the server on its way through. */
struct message {
    struct vfuc_iommu *iommu;
    struct vfuc *client;
    const struct vfio_user_header *hdr;
    bool restoring; /* the server does not know all memory yet */
    struct space_of space;
    uint8_t *payload; /* behind the prefix; with room behind a DMA_READ for its data */
    size_t len;
};

/* messages.c */
bool iommu_command(struct vfuc_unit *unit, struct vfuc *client, const struct vfio_user_header *hdr,
                   uint8_t *payload, size_t len);
/* Unless it wants no answer. error: an errno. */
void message_reply(const struct message *msg, int error, const void *payload, size_t len);
/* Counts and logs what is wrong with it, and returns the errno. */
int message_refuse(const struct message *msg, int error, const char *why);

/* Each returns 0 when it has replied or will, or an errno that is to be replied. */
int serve_translate(struct message *msg);
int serve_dma(struct message *msg);
int serve_page_request(struct message *msg);

/* page_request.c: lock held. The device is gone: nobody is to be answered. */
void page_requests_forget(struct vfuc_iommu *iommu);

/* sva.c: lock not held. Brings pages of a bound process in. False: the PASID is not bound. */
bool process_fault(struct vfuc_iommu *iommu, const vfuc_iommu_fault_t *fault, uint32_t *code);

#endif /* VFUC_IOMMU_IOMMU_H */
