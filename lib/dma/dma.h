/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Guest memory as a device reaches it: address spaces, the regions mapped into them, scatter
 * lists, references and dirty pages.
 *
 * A struct dma holds all address spaces of one context: the requester space (no PASID), the
 * translated space, and one space per (PASID, privileged) made on demand. A space is an index
 * from ranges of I/O virtual addresses (IOVA) to entries. An entry is either a region that the
 * client pushed with DMA_MAP, or a cached translation (ATC) that points into a region of the
 * translated space. A cached translation carries its host address itself, so that a hit costs
 * the same whichever kind of entry it finds.
 *
 * Handles and references. A struct dma_sg is a handle: it names an entry and its generation and
 * may go stale at any time. dma_sgl_get and dma_sgl_hold turn it into a reference, or say
 * -ESTALE. A removed entry leaves the index at once, and keeps its memory until its last
 * reference is put; a struct dma_drain waits for exactly that.
 *
 * Threads and locking
 *  - Any thread, no lock, no store to a line that another thread uses: dma_lookup,
 *    dma_addr_to_sgl, dma_pasid_space, dma_spaces_enter, dma_spaces_leave.
 *  - Any thread: dma_sgl_get, _hold, _put, _mark_dirty, _copy, dma_sg_is_mappable,
 *    dma_sg_target, dma_cache_insert, dma_drop, dma_cache_evict. A get or put of a live entry
 *    is lock-free; on entries of 2 MiB and more it stays on a cache line of the calling thread.
 *  - The control thread alone: create, destroy, dma_map, dma_unmap, dma_unmap_all, walking the
 *    regions, switching dirty logging, dma_dirty_report.
 *  - Writers share one mutex (struct dma.lock). It is never held across a wait, an I/O call or
 *    a callback, so everything here may be called from inside a callback.
 *  - Readers of an index run under its sequence counter (see btree.h), retry when a writer was
 *    in the way, and take the mutex after a bounded number of retries.
 *
 * Every function that can fail returns a negative errno, and logs what the peer did wrong.
 */

#ifndef VFU_DMA_DMA_H
#define VFU_DMA_DMA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "libvfio-user.h"
#include "util/range.h"

struct limits;
struct logger;

/* The largest region that DMA_MAP takes. */
#define DMA_MAX_REGION_SIZE (8ull << 40)

struct dma;
struct dma_space;
struct dma_entry;

/*
 * dma_sg_t. The first five fields are known to device authors; the generation stands in what
 * used to be padding. A zeroed entry is invalid.
 */
struct dma_sg {
    void *dma_addr; /* IOVA of the start of the entry, not of the access */
    struct dma_entry *entry;
    uint64_t length;
    uint64_t offset; /* of the access within the entry */
    bool writeable;  /* PROT_WRITE was asked for */
    uint32_t generation;
};

#if UINTPTR_MAX == UINT64_MAX
VFU_ASSERT_SIZE(struct dma_sg, 40);
#endif

/* How the bytes behind an entry are reached. */
enum dma_mode {
    DMA_MODE_MESSAGE, /* DMA_READ and DMA_WRITE messages */
    DMA_MODE_MMAP,    /* a host address */
    DMA_MODE_FILE_IO, /* pread and pwrite */
};

/* --- a context's memory --------------------------------------------------------------------- */

struct dma_config {
    const struct logger *log; /* must outlive the struct dma */
    const struct limits *limits; /* likewise */
    size_t max_regions;
};

/* -ENOMEM. The requester space and the translated space exist from here on. */
int dma_create(const struct dma_config *config, struct dma **out);

/*
 * Frees everything, whatever is still referenced: no thread may be inside this room, and no
 * drain may be pending. Calls nothing back; use dma_unmap_all first where the device must know.
 * NULL is allowed.
 */
void dma_destroy(struct dma *dma);

struct dma_space *dma_requester_space(struct dma *dma);
struct dma_space *dma_translated_space(struct dma *dma);

/*
 * PASID spaces end with the client (dma_pasid_spaces_retire). A thread other than the control
 * thread uses the pointer to one between dma_spaces_enter() and dma_spaces_leave() alone, and does
 * there nothing that waits for the control thread or the client. Scatter entries and references
 * outlive that: an entry of a space that has ended is stale, and a reference keeps the space's name
 * until it is put. Both calls write to a cache line of the calling thread only.
 */
unsigned int dma_spaces_enter(struct dma *dma); /* returns the ticket for leave */
void dma_spaces_leave(struct dma *dma, unsigned int ticket);

/* Ends all PASID spaces, with what is left in them. Waits for threads inside. Control thread. */
void dma_pasid_spaces_retire(struct dma *dma);

/* The space of a PASID (below 2^20), or NULL when nobody made it. Lock-free. */
struct dma_space *dma_pasid_space(struct dma *dma, uint32_t pasid, bool privileged);

/*
 * The same, made when it is missing; the caller bounds the number of spaces. -EINVAL (PASID out of
 * range), -ENOMEM.
 */
int dma_pasid_space_create(struct dma *dma, uint32_t pasid, bool privileged,
                           struct dma_space **out);

/* The number of PASID spaces. */
size_t dma_nr_pasid_spaces(struct dma *dma);

/* Calls fn for every space: requester, translated, then each PASID space. Control thread. */
void dma_for_each_space(struct dma *dma, void (*fn)(struct dma_space *space, void *arg), void *arg);

struct dma *dma_space_owner(struct dma_space *space);

/* What names a space: whether it has a PASID, and which. */
struct dma_space_name {
    bool translated;
    bool has_pasid;
    bool privileged;
    uint32_t pasid;
};

struct dma_space_name dma_space_name(const struct dma_space *space);

/* --- waiting for references ----------------------------------------------------------------- */

/*
 * Waits until references to a set of removed entries are gone. Use: dma_drain_init; any number
 * of dma_unmap, dma_unmap_all and dma_drop with it; dma_drain_arm. The struct must stay until
 * arm said "nothing outstanding", or done has been called.
 */
struct dma_drain {
    atomic_size_t count;
    void (*done)(struct dma_drain *drain);
    struct dma_drain *next; /* while completed, before done is called */
};

void dma_drain_init(struct dma_drain *drain, void (*done)(struct dma_drain *drain));

/*
 * True: nothing outstanding, done is not and will not be called. False: done is called exactly
 * once, by the thread that puts the last reference (perhaps before this returns), with no lock
 * held; it may free the drain.
 */
bool dma_drain_arm(struct dma_drain *drain);

/* Whether nothing is outstanding so far, before dma_drain_arm. */
bool dma_drain_idle(struct dma_drain *drain);

/* --- regions -------------------------------------------------------------------------------- */

struct dma_mapping {
    struct range iova;
    int prot; /* PROT_READ, PROT_WRITE; may be 0 */
    enum dma_mode mode;
    int fd; /* -1 in message mode; the caller keeps it and closes it, always */
    uint64_t offset;
};

/*
 * Maps a region. Returns 0, or 1 when exactly this region is there already (same range, file,
 * offset and protection; the mode is not compared, and the old region is untouched). *region is
 * set in both cases, and stays valid until the region is unmapped.
 *
 * -EEXIST  overlaps a region that is another one, or has other properties
 * -EINVAL  max_regions reached, beyond the end of the file, smaller than the logging page, fstat
 *          failed
 * -ENOSPC  larger than DMA_MAX_REGION_SIZE, or beyond one of the context's limits
 * -EPERM   the file is of a kind that may not be memory here
 * -ENODEV  the descriptor is of a pipe, a socket, an eventfd or the like
 * -EACCES  the descriptor does not allow the protection
 * -ENOMEM  or whatever mmap gave
 *
 * Cached translations in the range are dropped: a region wins over them.
 */
int dma_map(struct dma_space *space, const struct dma_mapping *mapping, struct dma_entry **region);

/* Told of a region before it is removed; its memory is still there. No lock is held. */
typedef void dma_removing_fn(struct dma_entry *region, void *arg);

/*
 * Removes every region that lies wholly in the range, as VFIO's type 1 does, and the cached
 * translations that point into them. Returns how many. -ENOENT, with nothing removed, when the
 * range cuts a region or holds none. -ENOMEM (only when a drain must join older waiters).
 * removing and drain may be NULL. The drain gets what was removed and is still referenced, and
 * regions removed earlier in this range that are still referenced.
 */
int dma_unmap(struct dma_space *space, struct range range, dma_removing_fn *removing, void *arg,
              struct dma_drain *drain);

/* The same for all regions of a space. Returns how many, which may be 0. */
int dma_unmap_all(struct dma_space *space, dma_removing_fn *removing, void *arg,
                  struct dma_drain *drain);

/* Whether dma_unmap() would remove something, rather than fail with -ENOENT. */
bool dma_unmaps(struct dma_space *space, struct range range);

/* Regions in ascending order: the first whose last address is >= from, or NULL. */
struct dma_entry *dma_region_at_or_after(struct dma_space *space, uint64_t from);

/* What the device's register and unregister callbacks get. Valid while the region is mapped. */
vfu_dma_info_t *dma_region_info(struct dma_entry *region);
struct range dma_region_range(const struct dma_entry *region);
enum dma_mode dma_region_mode(const struct dma_entry *region);
size_t dma_nr_regions(struct dma *dma); /* of all spaces */

/* --- lookup --------------------------------------------------------------------------------- */

struct dma_hit {
    struct range iova; /* of the whole entry */
    struct dma_entry *entry;
    uint32_t generation;
    int prot;
    bool cached; /* a cached translation, not a region */
};

/* The entry that holds addr. -ENOENT. Takes no reference. Any thread, lock-free. */
int dma_lookup(struct dma_space *space, uint64_t addr, struct dma_hit *hit);

/* --- scatter lists -------------------------------------------------------------------------- */

/*
 * Splits [addr, addr + len) at entry boundaries. Returns how many scatter entries that takes: at
 * most max of them are filled, so a result above max says how many are needed. 0 when len is 0.
 * -ENOENT when a byte is not mapped (or the range wraps), -EACCES when prot has PROT_WRITE and a
 * touched entry is not writable. Takes no reference. PROT_READ is checked for cached translations
 * only: a write-only region stays readable to devices, which is what stock vfio-user does.
 */
int dma_addr_to_sgl(struct dma_space *space, uint64_t addr, uint64_t len, struct dma_sg *sgl,
                    size_t max, int prot);

/*
 * Takes a reference to each entry and says where its bytes are. All or nothing.
 * -EINVAL  a zeroed entry
 * -EFAULT  not reachable by a host address, or the client truncated the file beneath it
 * -ESTALE  the entry was removed after the lookup
 */
int dma_sgl_get(struct dma *dma, const struct dma_sg *sgl, struct iovec *iov, size_t cnt);

/*
 * Takes a reference whatever the mode: what keeps an unmap or an invalidation waiting while a
 * message transfer runs. All or nothing. -EINVAL, -ESTALE.
 */
int dma_sgl_hold(struct dma *dma, const struct dma_sg *sgl, size_t cnt);

/*
 * Puts the references of dma_sgl_get, marking pages dirty where the entry was looked up for
 * writing; dma_sgl_release puts those of dma_sgl_hold, and marks nothing. A put too many is
 * logged and ignored. May complete drains.
 */
void dma_sgl_put(struct dma *dma, const struct dma_sg *sgl, size_t cnt);
void dma_sgl_release(struct dma *dma, const struct dma_sg *sgl, size_t cnt);

/* The marking of dma_sgl_put without the put. Stale and zeroed entries are skipped. */
void dma_sgl_mark_dirty(struct dma *dma, const struct dma_sg *sgl, size_t cnt);

/* True when dma_sgl_get can give a host address. */
bool dma_sg_is_mappable(struct dma *dma, const struct dma_sg *sg);

/*
 * Copies sg->length bytes between buf and guest memory without messages, marking dirty what it
 * writes. -EINVAL zeroed, -ESTALE gone, -EFAULT truncated beneath us, -EIO file error or its end,
 * -EFBIG beyond the process's RLIMIT_FSIZE, -ENOTSUP a message-mode entry, -EPERM to_guest but not looked up for writing.
 */
int dma_sg_copy(struct dma *dma, const struct dma_sg *sg, void *buf, bool to_guest);

/* Where a scatter entry leads, for those who send messages. */
struct dma_target {
    enum dma_mode mode;
    struct dma_space_name space; /* which the address is in; of message mode only */
    uint64_t address;
};

/* -EINVAL, -ESTALE. */
int dma_sg_target(struct dma *dma, const struct dma_sg *sg, struct dma_target *target);

/*
 * The same two for a caller who holds a reference to the entry already: it may have been removed
 * since, which is then waiting for us.
 */
int dma_held_copy(struct dma *dma, const struct dma_sg *sg, void *buf, bool to_guest);
void dma_held_target(struct dma *dma, const struct dma_sg *sg, struct dma_target *target);

/*
 * Whether a drain waits for one of the references that the caller holds. False for entries that
 * were removed without one. Any thread.
 */
bool dma_sgl_awaited(struct dma *dma, const struct dma_sg *sgl, size_t cnt);

/*
 * A scatter entry for any range of a space by messages, whatever is mapped there: what becomes of
 * an access whose translation is the client's business.
 */
void dma_untranslated_sg(struct dma_space *space, uint64_t addr, uint64_t len, bool writeable,
                         struct dma_sg *sg);

/* --- cached translations: what an ATC is made of -------------------------------------------- */

struct dma_translation {
    struct range iova;
    uint64_t translated; /* of iova.first */
    int prot;            /* PROT_READ, PROT_WRITE, PROT_EXEC */
    uint8_t tags;        /* the caller's own; dma_drop can select by it */
};

/*
 * Caches a translation, as one entry per region of the translated space that it covers, all or
 * nothing. An entry that overlaps an older cached translation replaces it. The number of entries
 * made is returned.
 * -EINVAL  the space is the translated space
 * -EFAULT  not wholly inside regions of the translated space
 * -EACCES  more protection than those regions have
 * -EEXIST  overlaps a region of this space
 * -ENOMEM
 */
int dma_cache_insert(struct dma_space *space, const struct dma_translation *translation);

/* Selects entries to drop; called with the room's lock held: compare, and nothing else. */
typedef bool dma_select_fn(uint8_t tags, void *arg);

/*
 * Drops the cached translations that overlap the range and are selected (NULL: all). Those still
 * referenced join the drain (may be NULL), as do selected ones that overlap, were dropped earlier
 * and are still referenced. Returns how many left the index, or -ENOMEM with nothing dropped
 * (only when a drain must join older waiters).
 */
int dma_drop(struct dma_space *space, struct range range, dma_select_fn *select, void *arg,
             struct dma_drain *drain);

/*
 * Drops up to count cached translations of all spaces, those longest unused first (second
 * chance). Returns how many.
 */
size_t dma_cache_evict(struct dma *dma, size_t count);

/* Cached translations in all spaces, not counting dropped ones. */
size_t dma_nr_cached(struct dma *dma);

/* --- dirty pages ---------------------------------------------------------------------------- */

/*
 * Starts logging with a page size that is a power of two. 0 also when it is on with this size.
 * -EINVAL page size, on with another size, or larger than some region that is not in message
 * mode; -ENOSPC when the record could grow beyond the limit. Logging stays off on failure. The cost
 * does not depend on what is mapped: memory for the record is made when pages are marked.
 */
int dma_dirty_start(struct dma *dma, uint64_t page_size);

/* Any number of times. What was logged is forgotten. */
void dma_dirty_stop(struct dma *dma);

/* The page size, or 0 when logging is off. */
uint64_t dma_dirty_page_size(struct dma *dma);

/* Bytes of the bitmap for a range: ceil(length / page_size) bits, in whole 64-bit words. */
uint64_t dma_dirty_bitmap_size(uint64_t length, uint64_t page_size);

/*
 * Writes the bitmap of a range (bit n is page n from range.first, least significant first) and
 * clears what it reports. Holes and message-mode regions read as clean. The range may span or
 * begin inside regions. -EINVAL when logging is off, page_size is no power of two or larger than
 * the range, or size is not dma_dirty_bitmap_size.
 */
int dma_dirty_report(struct dma_space *space, struct range range, uint64_t page_size,
                     uint8_t *bitmap, uint64_t size);

/* The same, region by region: for those that are being removed. */
struct dma_dirty_report {
    struct dma *dma;
    struct range range;
    unsigned int shift; /* of the client's page size */
    uint8_t *bitmap;
};

/* Why it will fail, or NULL. */
const char *dma_dirty_report_fault(struct dma *dma, struct range range, uint64_t page_size,
                                   uint64_t size);
int dma_dirty_report_begin(struct dma *dma, struct dma_dirty_report *report, struct range range,
                           uint64_t page_size, uint8_t *bitmap, uint64_t size);
void dma_dirty_report_region(const struct dma_dirty_report *report, const struct dma_entry *region);
/* The whole range is dirty, holes and all. */
void dma_dirty_report_all(const struct dma_dirty_report *report);

#endif /* VFU_DMA_DMA_H */
