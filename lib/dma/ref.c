/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The life of an entry: made, published, referenced, killed, finished, and its slot used again.
 *
 * The race between a get and a kill is settled as Dekker did: a get counts itself and then looks
 * at the generation; a kill changes the generation and then reads the counters. All of these are
 * sequentially consistent, so at least one of the two sees the other: either the get finds the
 * entry dead and takes its count back, or the kill finds it referenced and lets it linger. Every
 * put that finds its entry dead looks, under the lock, whether it was the last.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "dma/dma_internal.h"
#include "util/log.h"

/* Spreads threads over shards; it only ever grows. */
static _Atomic uint32_t nr_threads_seen;
static __thread uint32_t thread_number __attribute__((tls_model("initial-exec")));

void thread_arrives(struct dma *dma)
{
    if (guard_this_thread()) {
        log_warn(dma->log, "DMA: SIGBUS was blocked in a thread that accesses guest memory: "
                           "unblocked, because the client can truncate its memory");
    }
}

static __attribute__((noinline, cold)) void number_thread(struct dma *dma)
{
    thread_number = 1 + atomic_fetch_add_explicit(&nr_threads_seen, 1, memory_order_relaxed);
    thread_arrives(dma);
}

unsigned int dma_thread_shard(struct dma *dma)
{
    if (__builtin_expect(thread_number == 0, 0)) {
        number_thread(dma);
    }
    return thread_number % REF_SHARDS;
}

static struct ref_cell *my_cell(struct dma *dma, struct dma_entry *entry)
{
    struct ref_shards *shards = atomic_load_explicit(&entry->shards, memory_order_acquire);

    return shards == NULL ? &entry->refs : &shards->shard[dma_thread_shard(dma)].cell;
}

/* References outstanding; may be too high while others come and go, never too low. */
static int32_t outstanding(struct dma_entry *entry)
{
    struct ref_shards *shards = atomic_load_explicit(&entry->shards, memory_order_acquire);
    uint32_t gets, puts = atomic_load(&entry->refs.puts);
    unsigned int i;

    for (i = 0; shards != NULL && i < REF_SHARDS; i++) {
        puts += atomic_load(&shards->shard[i].cell.puts);
    }
    gets = atomic_load(&entry->refs.gets);
    for (i = 0; shards != NULL && i < REF_SHARDS; i++) {
        gets += atomic_load(&shards->shard[i].cell.gets);
    }
    return (int32_t)(gets - puts);
}

/* --- drains --------------------------------------------------------------------------------- */

void dma_drain_init(struct dma_drain *drain, void (*done)(struct dma_drain *drain))
{
    atomic_init(&drain->count, 1); /* arm's own */
    drain->done = done;
    drain->next = NULL;
}

bool dma_drain_arm(struct dma_drain *drain)
{
    return atomic_fetch_sub(&drain->count, 1) == 1;
}

bool dma_drain_idle(struct dma_drain *drain)
{
    return atomic_load(&drain->count) == 1;
}

static void drain_join(struct dma_drain *drain)
{
    atomic_fetch_add(&drain->count, 1);
}

static void drain_leave(struct dma_drain *drain, struct aftermath *after)
{
    if (atomic_fetch_sub(&drain->count, 1) == 1) {
        drain->next = after->drains;
        after->drains = drain;
    }
}

/* --- the lock ------------------------------------------------------------------------------- */

void dma_lock(struct dma *dma)
{
    pthread_mutex_lock(&dma->lock);
}

void dma_unlock(struct dma *dma, struct aftermath *after)
{
    struct memfile *file = after->files, *next_file;
    struct dma_drain *drain = after->drains, *next_drain;

    pthread_mutex_unlock(&dma->lock);
    *after = (struct aftermath){ 0 };
    for (; file != NULL; file = next_file) {
        next_file = file->next_dead;
        memfile_close(file);
    }
    for (; drain != NULL; drain = next_drain) {
        next_drain = drain->next; /* done may free it */
        drain->done(drain);
    }
}

/* --- making --------------------------------------------------------------------------------- */

/* Sizes of up to 1023 units of a power of two fit into the upper 16 bits of a value; 0: no fit. */
static uint64_t size_code(struct range range)
{
    uint64_t size = range_size(range);
    unsigned int shift;

    if (size == 0) {
        return 0;
    }
    shift = (unsigned int)__builtin_ctzll(size);
    size >>= shift;
    return size < 1024 ? (uint64_t)shift << 10 | size : 0;
}

static struct btree_item index_item(const struct dma_entry *entry)
{
    return (struct btree_item){
        .key = entry->first,
        .value = (uintptr_t)entry | entry->flags | size_code(entry_range(entry)) << 48,
        .stamp = atomic_load_explicit(&entry->generation, memory_order_relaxed),
    };
}

static void shard_if_large(struct dma *dma, struct dma_entry *entry)
{
    struct range range = entry_range(entry);
    struct ref_shards *shards;

    if (range.last - range.first < REF_SHARDED_SIZE - 1 || dma->nr_sharded >= REF_SHARDED_MAX ||
        atomic_load_explicit(&entry->shards, memory_order_relaxed) != NULL) {
        return;
    }
    shards = slab_alloc(&dma->shards);
    if (shards != NULL) {
        dma->nr_sharded++;
        atomic_store_explicit(&entry->shards, shards, memory_order_release);
    }
}

struct dma_entry *entry_make(struct dma *dma, const struct entry_template *from)
{
    struct dma_entry *entry = slab_alloc(&dma->entries);

    if (entry == NULL) {
        return NULL;
    }
    entry->flags = from->flags;
    entry->tags = from->tags;
    entry->state = ENTRY_LIVE;
    entry->vaddr = from->vaddr;
    entry->first = from->iova.first;
    entry->file = from->file;
    entry->target = from->target;
    atomic_store_explicit(&entry->dirty, NULL, memory_order_relaxed);
    atomic_store_explicit(&entry->used, 1, memory_order_relaxed);
    atomic_store_explicit(&entry->last, from->iova.last, memory_order_release);
    shard_if_large(dma, entry);
    return entry;
}

static void next_generation(struct dma_entry *entry)
{
    atomic_store(&entry->generation,
                 atomic_load_explicit(&entry->generation, memory_order_relaxed) + 1);
}

struct dma_entry *entry_make_unlisted(struct dma *dma, const struct entry_template *from)
{
    struct dma_entry *entry = entry_make(dma, from);

    if (entry != NULL) {
        next_generation(entry);
    }
    return entry;
}

void entry_discard(struct dma *dma, struct dma_entry *entry)
{
    entry->state = ENTRY_FREE;
    slab_free(&dma->entries, entry);
}

int entry_publish(struct dma_space *space, struct dma_entry *entry)
{
    int ret = btree_reserve(&space->index);
    struct btree_item item;

    if (ret < 0) {
        return ret;
    }
    next_generation(entry);
    item = index_item(entry);
    btree_write_begin(&space->index);
    btree_insert(&space->index, &item);
    btree_write_end(&space->index);
    atomic_fetch_add(entry_cached(entry) ? &space->dma->nr_cached : &space->dma->nr_regions, 1);
    return 0;
}

/* --- dying ---------------------------------------------------------------------------------- */

static void leave_all(struct dma *dma, struct dma_entry *entry, struct aftermath *after)
{
    struct dma_waiter *waiter = entry->dying.more, *next;

    if (entry->dying.drain != NULL) {
        drain_leave(entry->dying.drain, after);
    }
    for (; waiter != NULL; waiter = next) {
        next = waiter->next;
        drain_leave(waiter->drain, after);
        slab_free(&dma->waiters, waiter);
    }
}

static void release_region(struct dma *dma, struct dma_entry *entry, struct aftermath *after)
{
    struct memfile *file = entry->file;

    if (file == NULL) {
        return;
    }
    dirty_region_finished(dma, entry);
    if (memfile_put(&dma->files, file) != NULL) {
        file->next_dead = after->files;
        after->files = file;
    }
}

/* Nobody can find the entry, and nobody refers to it. Returns the region it lets go of, or NULL. */
static struct dma_entry *finish(struct dma *dma, struct dma_entry *entry, struct aftermath *after)
{
    struct dma_entry *backing = entry_cached(entry) ? entry->backing : NULL;

    LIST_REMOVE(entry, dying.link);
    leave_all(dma, entry, after);
    if (backing == NULL) {
        dma->nr_lingering--;
        release_region(dma, entry, after);
    }
    entry->state = ENTRY_FREE;
    slab_free(&dma->entries, entry);
    return backing;
}

static void finish_if_idle(struct dma *dma, struct dma_entry *entry, struct aftermath *after);

void entry_abandon(struct dma *dma, struct dma_entry *entry, struct aftermath *after)
{
    struct dma_entry *backing = finish(dma, entry, after);

    if (backing != NULL) {
        atomic_fetch_add(&my_cell(dma, backing)->puts, 1);
        finish_if_idle(dma, backing, after);
    }
}

/* A cached translation takes its region with it, when it was the last reference to that. */
static void finish_if_idle(struct dma *dma, struct dma_entry *entry, struct aftermath *after)
{
    if (entry->state == ENTRY_LINGERING && outstanding(entry) <= 0) {
        entry_abandon(dma, entry, after);
    }
}

/* The entry is dead and out of the index: it is finished with its last reference. */
static void linger(struct dma_space *space, struct dma_entry *entry, struct dma_drain *drain,
                   struct aftermath *after)
{
    entry->state = ENTRY_LINGERING;
    entry->dying.drain = drain;
    entry->dying.more = NULL;
    LIST_INSERT_HEAD(&space->lingering, entry, dying.link);
    if (drain != NULL) {
        drain_join(drain);
    }
    finish_if_idle(space->dma, entry, after);
}

void entry_kill(struct dma_space *space, struct dma_entry *entry, struct dma_drain *drain,
                struct aftermath *after)
{
    struct dma *dma = space->dma;

    btree_write_begin(&space->index);
    btree_remove(&space->index, entry->first);
    next_generation(entry);
    btree_write_end(&space->index);
    if (entry_cached(entry)) {
        TAILQ_REMOVE(&dma->clock, entry, cache.clock);
        atomic_fetch_sub(&dma->nr_cached, 1);
    } else {
        atomic_fetch_sub(&dma->nr_regions, 1);
        dma->nr_lingering++;
        if (entry->file != NULL) {
            dirty_region_removed(dma, entry);
        }
    }
    linger(space, entry, drain, after);
}

void entry_kill_unlisted(struct dma_space *space, struct dma_entry *entry, struct aftermath *after)
{
    next_generation(entry);
    space->dma->nr_lingering++;
    linger(space, entry, NULL, after);
}

static bool filter_takes(const struct linger_filter *filter, const struct dma_entry *entry)
{
    return entry_cached(entry) == filter->cached &&
           range_overlaps(entry_range(entry), filter->range) &&
           (filter->select == NULL || filter->select(entry->tags, filter->arg));
}

int entry_join(struct dma_space *space, const struct linger_filter *filter, struct dma_drain *drain)
{
    struct dma *dma = space->dma;
    struct dma_entry *entry;
    struct dma_waiter *waiter;
    size_t needed = 0;
    int ret;

    if (drain == NULL) {
        return 0;
    }
    LIST_FOREACH(entry, &space->lingering, dying.link) {
        needed += filter_takes(filter, entry) && entry->dying.drain != NULL;
    }
    ret = slab_reserve(&dma->waiters, needed);
    if (ret < 0) {
        return ret;
    }
    LIST_FOREACH(entry, &space->lingering, dying.link) {
        if (!filter_takes(filter, entry)) {
            continue;
        }
        drain_join(drain);
        if (entry->dying.drain == NULL) {
            entry->dying.drain = drain;
            continue;
        }
        waiter = slab_alloc(&dma->waiters);
        waiter->drain = drain;
        waiter->next = entry->dying.more;
        entry->dying.more = waiter;
    }
    return 0;
}

/* --- get and put ---------------------------------------------------------------------------- */

static bool live(uint32_t generation)
{
    return (generation & 1) != 0;
}

/* A count came off an entry that may be dying: see whether that was the last. */
static void settle(struct dma *dma, struct dma_entry *entry)
{
    struct aftermath after = { 0 };

    if (live(atomic_load(&entry->generation))) {
        return;
    }
    dma_lock(dma);
    finish_if_idle(dma, entry, &after);
    dma_unlock(dma, &after);
}

bool entry_get(struct dma *dma, struct dma_entry *entry, uint32_t generation)
{
    struct ref_cell *cell = my_cell(dma, entry);

    atomic_fetch_add(&cell->gets, 1);
    if (__builtin_expect(atomic_load(&entry->generation) == generation && live(generation), 1)) {
        return true;
    }
    atomic_fetch_add(&cell->puts, 1);
    settle(dma, entry);
    return false;
}

static void log_excess(struct dma *dma, uint32_t generation)
{
    log_err(dma->log,
            "DMA: put of a region or translation (generation %" PRIu32 ") that nobody holds",
            generation);
}

/*
 * Another thread's get was put here. Half the surplus of the cell that has it moves here, so that a
 * thread which always puts what another gets seldom comes to look. The sum is never too low
 * meanwhile, and whoever calls settles afterwards. Needs the lock.
 */
static void even_out(struct dma_entry *entry, struct ref_cell *cell)
{
    struct ref_shards *shards = atomic_load_explicit(&entry->shards, memory_order_acquire);

    for (unsigned int i = 0; shards != NULL && i < REF_SHARDS; i++) {
        struct ref_cell *other = &shards->shard[i].cell;
        int32_t surplus = (int32_t)(atomic_load(&other->gets) - atomic_load(&other->puts));

        if (surplus > 0) {
            uint32_t moved = ((uint32_t)surplus + 1) / 2;

            atomic_fetch_add(&cell->gets, moved);
            atomic_fetch_add(&other->puts, moved);
            return;
        }
    }
}

/*
 * This cell has seen more puts than gets: the get was another thread's, or there was none. The
 * latter is a defect of the device, and must not make the entry look unused to others.
 */
static bool undo_excess(struct dma *dma, struct dma_entry *entry, struct ref_cell *cell)
{
    bool excess;

    pthread_mutex_lock(&dma->lock);
    excess = outstanding(entry) < 0;
    if (excess) {
        atomic_fetch_add(&cell->gets, 1);
    } else {
        even_out(entry, cell);
    }
    pthread_mutex_unlock(&dma->lock);
    return excess;
}

void entry_put(struct dma *dma, struct dma_entry *entry, uint32_t generation)
{
    struct ref_cell *cell = my_cell(dma, entry);
    uint32_t puts;

    if (__builtin_expect(atomic_load(&entry->generation) - generation > 1, 0)) {
        log_excess(dma, generation); /* its slot has been used again since */
        return;
    }
    puts = atomic_fetch_add(&cell->puts, 1) + 1;
    if (__builtin_expect((int32_t)(atomic_load(&cell->gets) - puts) < 0, 0) &&
        undo_excess(dma, entry, cell)) {
        log_excess(dma, generation);
        return;
    }
    settle(dma, entry);
}
