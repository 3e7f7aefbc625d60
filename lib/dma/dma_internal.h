/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of this room share: entries, spaces, and how an entry lives and dies. */

#ifndef VFU_DMA_DMA_INTERNAL_H
#define VFU_DMA_DMA_INTERNAL_H

#include <pthread.h>
#include <sys/mman.h>
#include <sys/queue.h>

#include "dma/btree.h"
#include "dma/dma.h"
#include "dma/memfile.h"
#include "dma/slab.h"

/*
 * References are the difference of two counters that only grow. Reading the puts before the gets
 * never yields less than what is outstanding, however many cells there are.
 */
struct ref_cell {
    _Atomic uint32_t gets;
    _Atomic uint32_t puts;
};

/* The counters of an entry that many threads use at once, each on a cache line of its own. */
#define REF_SHARDS 16

struct ref_shards {
    struct {
        _Alignas(64) struct ref_cell cell;
    } shard[REF_SHARDS];
    void *link; /* the slab's */
};

/* Entries of this size and more are sharded, as long as there are not too many. */
#define REF_SHARDED_SIZE (2ull << 20)
#define REF_SHARDED_MAX 1024

struct dirty_map;
struct dma_waiter;

enum entry_state {
    ENTRY_FREE,
    ENTRY_LIVE,
    ENTRY_LINGERING, /* out of the index, still referenced */
};

/* The low bits of a value in the index, and of dma_entry.flags. PROT_x are 1, 2 and 4. */
#define ENTRY_PROT 0x07u
#define ENTRY_CACHED 0x08u
#define ENTRY_MODE_SHIFT 4

/*
 * The first cache line is what an access touches. It is written when the entry is made, before
 * anyone can find it, and then only where it says atomic or lock.
 */
struct dma_entry {
    _Alignas(128) _Atomic uint32_t generation; /* odd: live */
    uint8_t flags;
    uint8_t tags;
    uint8_t state;        /* enum entry_state, under the lock */
    _Atomic uint8_t used; /* since dma_cache_evict last looked */
    struct ref_cell refs;
    _Atomic(struct ref_shards *) shards; /* once set, the slot keeps them */
    uint8_t *vaddr;                      /* of the first byte, in mmap mode */
    uint64_t first;
    _Atomic uint64_t last; /* read without a reference */
    struct memfile *file;  /* NULL in message mode */
    union {
        _Atomic(struct dirty_map *) dirty; /* of a region */
        struct dma_entry *backing;         /* of a cached translation: it holds a reference */
    };
    union {
        uint64_t target;         /* of the first byte: offset in the file, or translated address */
        struct dma_space *space; /* of a region in message mode, which has no file */
    };
    union {
        vfu_dma_info_t info; /* live region */
        struct {
            struct dma_space *space;
            TAILQ_ENTRY(dma_entry) clock;
        } cache; /* live cached translation */
        struct {
            LIST_ENTRY(dma_entry) link;
            struct dma_drain *drain;
            struct dma_waiter *more;
        } dying;
        void *link; /* the slab's */
    };
};

VFU_ASSERT_SIZE(struct dma_entry, 128);

/* One more drain on a lingering entry that has one already. */
struct dma_waiter {
    _Alignas(64) struct dma_drain *drain;
    struct dma_waiter *next;
};

struct dma_space {
    struct btree index;
    uint64_t id; /* unique in the process: what a thread's hint is checked against */
    struct dma *dma;
    LIST_HEAD(, dma_entry) lingering;
    struct dma_space_name name;
    struct dma_entry *untranslated; /* all of it, by message; not in the index */
    struct dma_space *next;         /* PASID spaces, newest first */
};

/* PASID spaces by (pasid << 1 | privileged), in two steps. */
#define SPACE_LEAF_BITS 10
#define SPACE_ROOT_BITS 11

struct space_leaf {
    _Atomic(struct dma_space *) space[1u << SPACE_LEAF_BITS];
};

struct space_root {
    _Atomic(struct space_leaf *) leaf[1u << SPACE_ROOT_BITS];
};

/* What is known about dirty pages of all spaces. Under the lock, but for what is atomic. */
struct dirty_log {
    _Atomic uint64_t page_size; /* 0: not logging */
    _Atomic uint64_t epoch;     /* how often logging started */
    _Atomic uint64_t lost;      /* the epoch in which a mark found no memory: all is dirty */
    uint64_t bytes;             /* that the maps of all regions need when every page is dirty */
    size_t nr_of_size[64];      /* mapped regions with a file, by log2 of the size, rounded down */
    size_t nr_maps;
    LIST_HEAD(, dirty_map) maps;
};

/* Threads that are inside dma_spaces_enter(), by the phase in which they came: see retire.c. */
struct space_readers {
    _Alignas(64) _Atomic uint32_t inside[2];
};

struct dma {
    pthread_mutex_t lock; /* of all that is not atomic; see dma.h */
    const struct logger *log;
    size_t max_regions;
    _Atomic size_t nr_regions;
    _Atomic size_t nr_cached;
    _Atomic size_t nr_pasid_spaces;
    size_t nr_lingering; /* regions */
    size_t nr_sharded;
    struct slab nodes;
    struct slab entries;
    struct slab shards;
    struct slab waiters;
    struct memfile_set files;
    TAILQ_HEAD(clock_list, dma_entry) clock; /* cached translations, next to be evicted first */
    struct dirty_log dirty;
    _Atomic(struct space_root *) pasid_root;
    _Atomic(struct dma_space *) pasid_spaces;
    struct dma_space *retired; /* no longer found, and still referenced */
    _Atomic unsigned int readers_phase;
    struct space_readers readers[REF_SHARDS];
    struct dma_space requester;
    struct dma_space translated;
};

static inline enum dma_mode entry_mode(const struct dma_entry *entry)
{
    return entry->flags >> ENTRY_MODE_SHIFT;
}

static inline bool entry_cached(const struct dma_entry *entry)
{
    return (entry->flags & ENTRY_CACHED) != 0;
}

static inline struct range entry_range(const struct dma_entry *entry)
{
    return (struct range){ entry->first, atomic_load_explicit(&entry->last, memory_order_relaxed) };
}

/* The entry behind an item of an index. */
static inline struct dma_entry *item_entry(const struct btree_item *item)
{
    return (struct dma_entry *)(uintptr_t)(item->value & 0x0000ffffffffff80u);
}

/* --- under the lock ------------------------------------------------------------------------- */

/* What is finished under the lock, and carried out after it. */
struct aftermath {
    struct memfile *files;
    struct dma_drain *drains;
};

void dma_lock(struct dma *dma);
void dma_unlock(struct dma *dma, struct aftermath *after);

/* The first entry in ascending order that overlaps the range, or NULL. Needs the lock. */
struct dma_entry *space_first(struct dma_space *space, struct range range);

/* The next one that overlaps the range, beyond the last address of one that is or was there. */
struct dma_entry *space_next(struct dma_space *space, uint64_t after_last, struct range range);

/* The same, passing over cached translations. */
struct dma_entry *space_first_region(struct dma_space *space, struct range range);
struct dma_entry *space_next_region(struct dma_space *space, uint64_t after_last,
                                    struct range range);

/* What entry_make copies into a new entry. */
struct entry_template {
    struct range iova;
    uint8_t flags;
    uint8_t tags;
    uint8_t *vaddr;
    struct memfile *file;
    uint64_t target;
};

/* A new entry, which no one can find yet; NULL when out of memory. */
struct dma_entry *entry_make(struct dma *dma, const struct entry_template *from);

/* One that is alive without being in an index, and stays so. */
struct dma_entry *entry_make_unlisted(struct dma *dma, const struct entry_template *from);

/* Puts it into the index. -ENOMEM, and then the entry is still the caller's. */
int entry_publish(struct dma_space *space, struct dma_entry *entry);

/* Gives back an entry that was not published. */
void entry_discard(struct dma *dma, struct dma_entry *entry);

/*
 * Takes an entry out of the index. If it is still referenced it lingers, and the drain (may be
 * NULL) waits for it; else it is finished at once.
 */
void entry_kill(struct dma_space *space, struct dma_entry *entry, struct dma_drain *drain,
                struct aftermath *after);

/* The same for one of entry_make_unlisted(). */
void entry_kill_unlisted(struct dma_space *space, struct dma_entry *entry, struct aftermath *after);

/* Finishes a lingering entry, referenced or not: for those who free everything. */
void entry_abandon(struct dma *dma, struct dma_entry *entry, struct aftermath *after);

/* Which lingering entries a drain is to join. */
struct linger_filter {
    struct range range;
    bool cached;
    dma_select_fn *select; /* may be NULL */
    void *arg;
};

/* Lets a drain (may be NULL) wait for lingering entries. -ENOMEM, with nothing done. */
int entry_join(struct dma_space *space, const struct linger_filter *filter,
               struct dma_drain *drain);

/* Kills the cached translations that overlap the range. */
void cache_drop_range(struct dma_space *space, struct range range, struct aftermath *after);

/* Kills the cached translations whose region was killed. */
void cache_drop_orphans(struct dma *dma, struct aftermath *after);

/*
 * Protects a thread that has not been here before from truncated files: SIGBUS must not be blocked
 * in it. Called where a thread comes by once.
 */
void thread_arrives(struct dma *dma);

/* Kills every entry of a space, its untranslated one included. Needs the lock. */
void space_empty(struct dma_space *space, struct aftermath *after);

/* Frees the two steps that lead to PASID spaces, not the spaces. NULL is allowed. */
void space_root_free(struct space_root *root);

/* Which of REF_SHARDS cache lines is this thread's. */
unsigned int dma_thread_shard(struct dma *dma);

/* --- references, without the lock ----------------------------------------------------------- */

/* False when the entry is not live in this generation any more. */
bool entry_get(struct dma *dma, struct dma_entry *entry, uint32_t generation);
void entry_put(struct dma *dma, struct dma_entry *entry, uint32_t generation);

/* --- dirty pages ---------------------------------------------------------------------------- */

/*
 * Checks whether a region with a file may be mapped, as far as dirty pages are concerned: 0,
 * -EINVAL when it is smaller than the logging page, -ENOSPC beyond the limit. Needs the lock.
 */
int dirty_check_region(struct dma *dma, uint64_t size);

/* Called when a region with a file was mapped, was unmapped, is finished. Needs the lock. */
void dirty_region_added(struct dma *dma, const struct dma_entry *region);
void dirty_region_removed(struct dma *dma, const struct dma_entry *region);
void dirty_region_finished(struct dma *dma, struct dma_entry *region);

/* Marks bytes of a referenced entry. The caller has seen that logging is on. */
void dirty_mark(struct dma *dma, const struct dma_entry *entry, uint64_t offset, uint64_t length);

#endif /* VFU_DMA_DMA_INTERNAL_H */
