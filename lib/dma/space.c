/* SPDX-License-Identifier: BSD-3-Clause */
/* The spaces of a context, and finding entries in them. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dma/dma_internal.h"

#define PASID_BITS 20

/* A reader that meets a writer this often waits for it on the lock instead of spinning on. */
#define READ_RETRIES 100

/* Never reused, so a thread's hint cannot mistake a new space for one that is gone. */
static _Atomic uint64_t last_space_id;

/* --- making and freeing --------------------------------------------------------------------- */

static int space_init(struct dma *dma, struct dma_space *space, struct dma_space_name name)
{
    const struct entry_template all = {
        .flags = (PROT_READ | PROT_WRITE) | DMA_MODE_MESSAGE << ENTRY_MODE_SHIFT,
        .target = (uintptr_t)space,
    };

    memset(space, 0, sizeof(*space));
    btree_init(&space->index, &dma->nodes);
    space->id = atomic_fetch_add(&last_space_id, 1) + 1;
    space->dma = dma;
    space->name = name;
    LIST_INIT(&space->lingering);
    space->untranslated = entry_make_unlisted(dma, &all);
    return space->untranslated == NULL ? -ENOMEM : 0;
}

int dma_create(const struct dma_config *config, struct dma **out)
{
    struct dma *dma = aligned_alloc(_Alignof(struct dma), sizeof(*dma));
    int ret;

    if (dma == NULL) {
        return -ENOMEM;
    }
    memset(dma, 0, sizeof(*dma));
    pthread_mutex_init(&dma->lock, NULL);
    dma->log = config->log;
    dma->max_regions = config->max_regions;
    dma->files.limits = config->limits;
    dma->files.log = config->log;
    btree_slab_init(&dma->nodes);
    slab_init(&dma->entries, sizeof(struct dma_entry), offsetof(struct dma_entry, link));
    slab_init(&dma->shards, sizeof(struct ref_shards), offsetof(struct ref_shards, link));
    slab_init(&dma->waiters, sizeof(struct dma_waiter), offsetof(struct dma_waiter, next));
    TAILQ_INIT(&dma->clock);
    LIST_INIT(&dma->dirty.maps);
    ret = space_init(dma, &dma->translated, (struct dma_space_name){ .translated = true });
    ret |= space_init(dma, &dma->requester, (struct dma_space_name){ 0 });
    if (ret < 0) {
        dma_destroy(dma);
        return -ENOMEM;
    }
    *out = dma;
    return 0;
}

void space_empty(struct dma_space *space, struct aftermath *after)
{
    struct dma_entry *entry;

    while ((entry = space_first(space, RANGE_ALL)) != NULL) {
        entry_kill(space, entry, NULL, after);
    }
    if (space->untranslated != NULL) {
        entry_kill_unlisted(space, space->untranslated, after);
        space->untranslated = NULL;
    }
}

/* Finishes what is left of a space as if nobody referred to it. */
static void space_fini(struct dma_space *space, struct aftermath *after)
{
    struct dma_entry *entry;

    dma_lock(space->dma);
    space_empty(space, after);
    while ((entry = LIST_FIRST(&space->lingering)) != NULL) {
        entry_abandon(space->dma, entry, after);
    }
    dma_unlock(space->dma, after);
}

static void free_spaces(struct dma_space *space, struct aftermath *after)
{
    struct dma_space *next;

    for (; space != NULL; space = next) {
        next = space->next;
        space_fini(space, after);
        free(space);
    }
}

void space_root_free(struct space_root *root)
{
    for (size_t i = 0; root != NULL && i < 1u << SPACE_ROOT_BITS; i++) {
        free(atomic_load(&root->leaf[i]));
    }
    free(root);
}

void dma_destroy(struct dma *dma)
{
    struct aftermath after = { 0 };

    if (dma == NULL) {
        return;
    }
    /* The translated space last: cached translations of the others refer to its regions. */
    free_spaces(atomic_load(&dma->pasid_spaces), &after);
    free_spaces(dma->retired, &after);
    space_fini(&dma->requester, &after);
    space_fini(&dma->translated, &after);
    space_root_free(atomic_load(&dma->pasid_root));
    slab_fini(&dma->waiters);
    slab_fini(&dma->shards);
    slab_fini(&dma->entries);
    slab_fini(&dma->nodes);
    pthread_mutex_destroy(&dma->lock);
    free(dma);
}

struct dma_space *dma_requester_space(struct dma *dma)
{
    return &dma->requester;
}

struct dma_space *dma_translated_space(struct dma *dma)
{
    return &dma->translated;
}

struct dma *dma_space_owner(struct dma_space *space)
{
    return space->dma;
}

struct dma_space_name dma_space_name(const struct dma_space *space)
{
    return space->name;
}

/* --- PASID spaces --------------------------------------------------------------------------- */

static uint32_t space_key(uint32_t pasid, bool privileged)
{
    return pasid << 1 | privileged;
}

struct dma_space *dma_pasid_space(struct dma *dma, uint32_t pasid, bool privileged)
{
    uint32_t key = space_key(pasid, privileged);
    struct space_root *root;
    struct space_leaf *leaf;

    if (pasid >> PASID_BITS != 0) {
        return NULL;
    }
    /* Sequentially consistent: after the store of dma_spaces_enter(). */
    root = atomic_load(&dma->pasid_root);
    if (root == NULL) {
        return NULL;
    }
    leaf = atomic_load_explicit(&root->leaf[key >> SPACE_LEAF_BITS], memory_order_acquire);
    if (leaf == NULL) {
        return NULL;
    }
    return atomic_load_explicit(&leaf->space[key % (1u << SPACE_LEAF_BITS)], memory_order_acquire);
}

/* The slot of a key, with the steps to it made; NULL when out of memory. Needs the lock. */
static _Atomic(struct dma_space *) *space_slot(struct dma *dma, uint32_t key)
{
    struct space_root *root = atomic_load(&dma->pasid_root);
    _Atomic(struct space_leaf *) *at;

    if (root == NULL) {
        root = calloc(1, sizeof(*root));
        if (root == NULL) {
            return NULL;
        }
        atomic_store(&dma->pasid_root, root);
    }
    at = &root->leaf[key >> SPACE_LEAF_BITS];
    if (atomic_load(at) == NULL) {
        atomic_store(at, (struct space_leaf *)calloc(1, sizeof(struct space_leaf)));
    }
    return atomic_load(at) == NULL ? NULL : &atomic_load(at)->space[key % (1u << SPACE_LEAF_BITS)];
}

static struct dma_space *make_space(struct dma *dma, uint32_t pasid, bool privileged)
{
    _Atomic(struct dma_space *) *slot = space_slot(dma, space_key(pasid, privileged));
    struct dma_space *space;

    if (slot == NULL || atomic_load(slot) != NULL) {
        return slot == NULL ? NULL : atomic_load(slot);
    }
    space = aligned_alloc(_Alignof(struct dma_space), sizeof(*space));
    if (space == NULL) {
        return NULL;
    }
    if (space_init(dma, space,
                   (struct dma_space_name){
                       .has_pasid = true, .pasid = pasid, .privileged = privileged }) < 0) {
        free(space);
        return NULL;
    }
    space->next = atomic_load(&dma->pasid_spaces);
    atomic_store(&dma->pasid_spaces, space);
    atomic_store(slot, space);
    atomic_fetch_add(&dma->nr_pasid_spaces, 1);
    return space;
}

int dma_pasid_space_create(struct dma *dma, uint32_t pasid, bool privileged, struct dma_space **out)
{
    struct aftermath after = { 0 };

    if (pasid >> PASID_BITS != 0) {
        return -EINVAL;
    }
    *out = dma_pasid_space(dma, pasid, privileged);
    if (*out == NULL) {
        dma_lock(dma);
        *out = make_space(dma, pasid, privileged);
        dma_unlock(dma, &after);
    }
    return *out == NULL ? -ENOMEM : 0;
}

size_t dma_nr_pasid_spaces(struct dma *dma)
{
    return atomic_load(&dma->nr_pasid_spaces);
}

void dma_for_each_space(struct dma *dma, void (*fn)(struct dma_space *space, void *arg), void *arg)
{
    struct dma_space *space;

    fn(&dma->requester, arg);
    fn(&dma->translated, arg);
    for (space = atomic_load(&dma->pasid_spaces); space != NULL; space = space->next) {
        fn(space, arg);
    }
}

/* --- walking, under the lock ---------------------------------------------------------------- */

struct dma_entry *space_next(struct dma_space *space, uint64_t after_last, struct range range)
{
    struct btree_item item;

    if (after_last >= range.last || !btree_ceil(&space->index, after_last + 1, &item) ||
        item.key > range.last) {
        return NULL;
    }
    return item_entry(&item);
}

struct dma_entry *space_first(struct dma_space *space, struct range range)
{
    struct btree_item item;
    struct dma_entry *entry;

    if (btree_floor(&space->index, btree_seq(&space->index), range.first, &item) == BTREE_FOUND) {
        entry = item_entry(&item);
        if (entry_range(entry).last >= range.first) {
            return entry;
        }
    }
    if (!btree_ceil(&space->index, range.first, &item) || item.key > range.last) {
        return NULL;
    }
    return item_entry(&item);
}

static struct dma_entry *skip_cached(struct dma_space *space, struct dma_entry *entry,
                                     struct range range)
{
    while (entry != NULL && entry_cached(entry)) {
        entry = space_next(space, entry_range(entry).last, range);
    }
    return entry;
}

struct dma_entry *space_first_region(struct dma_space *space, struct range range)
{
    return skip_cached(space, space_first(space, range), range);
}

struct dma_entry *space_next_region(struct dma_space *space, uint64_t after_last,
                                    struct range range)
{
    return skip_cached(space, space_next(space, after_last, range), range);
}

/* --- lookup --------------------------------------------------------------------------------- */

/* The last entry that a thread found. It is believed while its space has not changed since. */
struct hint {
    uint64_t space_id;
    uint64_t seq;
    struct dma_hit hit;
};

static __thread struct hint hint __attribute__((tls_model("initial-exec")));

static uint64_t item_last(const struct btree_item *item, const struct dma_entry *entry)
{
    uint64_t code = item->value >> 48;

    if (code == 0) {
        return atomic_load_explicit(&entry->last, memory_order_acquire);
    }
    return item->key + ((code & 1023) << (code >> 10)) - 1;
}

/* One attempt. What it finds holds if the sequence counter still has the value afterwards. */
static enum btree_found try_lookup(struct dma_space *space, uint64_t seq, uint64_t addr,
                                   struct dma_hit *hit)
{
    enum btree_found found;
    struct btree_item item;

    found = btree_floor(&space->index, seq, addr, &item);
    if (found != BTREE_FOUND) {
        return found;
    }
    hit->entry = item_entry(&item);
    hit->iova.first = item.key;
    hit->iova.last = item_last(&item, hit->entry);
    hit->prot = item.value & ENTRY_PROT;
    hit->cached = (item.value & ENTRY_CACHED) != 0;
    hit->generation = item.stamp;
    return hit->iova.last < addr ? BTREE_NONE : BTREE_FOUND;
}

static enum btree_found locked_lookup(struct dma_space *space, uint64_t addr, struct dma_hit *hit)
{
    struct aftermath after = { 0 };
    enum btree_found found;

    dma_lock(space->dma);
    found = try_lookup(space, btree_seq(&space->index), addr, hit);
    dma_unlock(space->dma, &after);
    return found;
}

static int slow_lookup(struct dma_space *space, uint64_t addr, struct dma_hit *hit)
{
    enum btree_found found = BTREE_TORN;
    unsigned int tries;
    uint64_t seq;

    for (tries = 0; found == BTREE_TORN && tries < READ_RETRIES; tries++) {
        seq = btree_seq(&space->index);
        if ((seq & 1) != 0) {
            continue;
        }
        found = try_lookup(space, seq, addr, hit);
        if (!btree_valid(&space->index, seq)) {
            found = BTREE_TORN;
        } else if (found == BTREE_FOUND) {
            if (hint.space_id == 0) {
                thread_arrives(space->dma);
            }
            hint = (struct hint){ space->id, seq, *hit };
        }
    }
    if (found == BTREE_TORN) {
        found = locked_lookup(space, addr, hit);
    }
    return found == BTREE_FOUND ? 0 : -ENOENT;
}

int dma_lookup(struct dma_space *space, uint64_t addr, struct dma_hit *hit)
{
    if (hint.space_id == space->id && hint.seq == btree_seq(&space->index) &&
        addr >= hint.hit.iova.first && addr <= hint.hit.iova.last) {
        *hit = hint.hit;
        return 0;
    }
    return slow_lookup(space, addr, hit);
}
