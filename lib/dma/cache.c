/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Cached translations: entries that point into a region of the translated space and hold a
 * reference to it. When that region goes, they go too.
 */

#include <errno.h>

#include "dma/dma_internal.h"

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The region of the translated space at an address, if it allows the protection. */
static int find_backing(struct dma *dma, uint64_t address, int prot, struct dma_entry **region)
{
    struct dma_entry *found = space_first(&dma->translated, (struct range){ address, address });

    if (found == NULL) {
        return -EFAULT;
    }
    if ((prot & (PROT_READ | PROT_WRITE) & ~found->flags) != 0) {
        return -EACCES;
    }
    *region = found;
    return 0;
}

/* How many regions the translated addresses cross. */
static int count_pieces(struct dma *dma, struct range translated, int prot)
{
    struct dma_entry *region;
    uint64_t at = translated.first;
    int ret, count = 1;

    for (;; count++) {
        ret = find_backing(dma, at, prot, &region);
        if (ret < 0) {
            return ret;
        }
        if (entry_range(region).last >= translated.last) {
            return count;
        }
        at = entry_range(region).last + 1;
    }
}

/* One entry for the part of the translation that lies in the region of its first address. */
static int add_piece(struct dma_space *space, const struct dma_translation *part,
                     struct range *piece)
{
    struct dma *dma = space->dma;
    struct dma_entry *region, *entry;
    struct entry_template from;
    uint64_t left;
    int ret;

    ret = find_backing(dma, part->translated, part->prot, &region);
    if (ret < 0) {
        return ret;
    }
    left = entry_range(region).last - part->translated;
    *piece = (struct range){ part->iova.first,
                             min_u64(part->iova.last - part->iova.first, left) + part->iova.first };
    from = (struct entry_template){
        .iova = *piece,
        .flags = (uint8_t)((unsigned int)part->prot & ENTRY_PROT) | ENTRY_CACHED |
                 (uint8_t)(entry_mode(region) << ENTRY_MODE_SHIFT),
        .tags = part->tags,
        .file = region->file,
        .target = part->translated,
    };
    if (region->vaddr != NULL) {
        from.vaddr = region->vaddr + (part->translated - region->first);
    }
    entry = entry_make(dma, &from);
    if (entry == NULL) {
        return -ENOMEM;
    }
    entry->backing = region;
    entry->cache.space = space;
    ret = entry_publish(space, entry);
    if (ret < 0) {
        entry_discard(dma, entry);
        return ret;
    }
    entry_get(dma, region, atomic_load(&region->generation));
    TAILQ_INSERT_TAIL(&dma->clock, entry, cache.clock);
    return 0;
}

static int add_pieces(struct dma_space *space, const struct dma_translation *translation, int count,
                      struct aftermath *after)
{
    struct dma_translation part = *translation;
    struct range piece;
    uint64_t size;
    int i, ret;

    for (i = 0; i < count; i++) {
        ret = add_piece(space, &part, &piece);
        if (ret < 0) {
            cache_drop_range(space, translation->iova, after);
            return ret;
        }
        size = range_size(piece);
        part.iova.first += size;
        part.translated += size;
    }
    return count;
}

int dma_cache_insert(struct dma_space *space, const struct dma_translation *translation)
{
    struct dma *dma = space->dma;
    struct aftermath after = { 0 };
    struct range translated;
    int ret;

    if (space->name.translated) {
        return -EINVAL;
    }
    if (!range_make(translation->translated, range_size(translation->iova), &translated)) {
        return -EFAULT;
    }
    dma_lock(dma);
    if (space_first_region(space, translation->iova) != NULL) {
        ret = -EEXIST;
    } else {
        ret = count_pieces(dma, translated, translation->prot);
    }
    if (ret > 0) {
        cache_drop_range(space, translation->iova, &after);
        ret = add_pieces(space, translation, ret, &after);
    }
    dma_unlock(dma, &after);
    return ret;
}

/* --- dropping ------------------------------------------------------------------------------- */

static int drop_selected(struct dma_space *space, struct range range, dma_select_fn *select,
                         void *arg, struct dma_drain *drain, struct aftermath *after)
{
    struct dma_entry *entry = space_first(space, range);
    uint64_t last;
    int count = 0;

    while (entry != NULL) {
        last = entry_range(entry).last;
        if (entry_cached(entry) && (select == NULL || select(entry->tags, arg))) {
            entry_kill(space, entry, drain, after);
            count++;
        }
        entry = space_next(space, last, range);
    }
    return count;
}

void cache_drop_range(struct dma_space *space, struct range range, struct aftermath *after)
{
    if (dma_nr_cached(space->dma) > 0) {
        drop_selected(space, range, NULL, NULL, NULL, after);
    }
}

void cache_drop_orphans(struct dma *dma, struct aftermath *after)
{
    struct dma_entry *entry = TAILQ_FIRST(&dma->clock), *next;

    for (; entry != NULL; entry = next) {
        next = TAILQ_NEXT(entry, cache.clock);
        if (entry->backing->state == ENTRY_LINGERING) {
            entry_kill(entry->cache.space, entry, NULL, after);
        }
    }
}

int dma_drop(struct dma_space *space, struct range range, dma_select_fn *select, void *arg,
             struct dma_drain *drain)
{
    struct linger_filter filter = { range, true, select, arg };
    struct aftermath after = { 0 };
    int ret;

    dma_lock(space->dma);
    ret = entry_join(space, &filter, drain);
    if (ret == 0) {
        ret = drop_selected(space, range, select, arg, drain, &after);
    }
    dma_unlock(space->dma, &after);
    return ret;
}

size_t dma_cache_evict(struct dma *dma, size_t count)
{
    struct aftermath after = { 0 };
    struct dma_entry *entry;
    size_t evicted = 0, chances;

    dma_lock(dma);
    chances = dma_nr_cached(dma);
    while (evicted < count && (entry = TAILQ_FIRST(&dma->clock)) != NULL) {
        if (chances > 0 && atomic_load_explicit(&entry->used, memory_order_relaxed) != 0) {
            atomic_store_explicit(&entry->used, 0, memory_order_relaxed);
            chances--;
            TAILQ_REMOVE(&dma->clock, entry, cache.clock);
            TAILQ_INSERT_TAIL(&dma->clock, entry, cache.clock);
            continue;
        }
        entry_kill(entry->cache.space, entry, NULL, &after);
        evicted++;
    }
    dma_unlock(dma, &after);
    return evicted;
}

size_t dma_nr_cached(struct dma *dma)
{
    return atomic_load(&dma->nr_cached);
}
