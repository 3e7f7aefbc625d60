/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which pages of guest memory the device has written.
 *
 * A region's map has one bit for each 4 KiB, whatever page size the client logs or reports with:
 * larger pages collect several bits, smaller ones repeat one. The bits are in leaves of
 * LEAF_BITS. The map and its leaves are made by the first mark that needs them, so that the start of
 * logging and a report cost nothing for memory that the device does not write, however much of it a
 * client maps.
 *
 * Both stay as long as the region: a thread that marks never meets one that is being exchanged. A
 * leaf has the number of the start of logging that its bits are of. The first mark after another
 * start clears it, under the lock.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "dma/dma_internal.h"
#include "util/limits.h"
#include "util/log.h"

#define PAGE_SHIFT 12
#define WORD_BITS 64

#define LEAF_WORDS 512
#define LEAF_BITS ((uint64_t)LEAF_WORDS * WORD_BITS) /* pages of 128 MiB */

struct dirty_leaf {
    _Atomic uint64_t epoch;
    _Atomic uint64_t words[]; /* LEAF_WORDS; in a map's last leaf, as many as are needed */
};

struct dirty_map {
    uint64_t nr_bits;
    struct dma_entry *region;
    LIST_ENTRY(dirty_map) link;
    _Atomic(struct dirty_leaf *) leaves[];
};

/* --- sizes ---------------------------------------------------------------------------------- */

static uint64_t nr_bits_of(uint64_t size)
{
    return ((size - 1) >> PAGE_SHIFT) + 1;
}

static uint64_t nr_leaves(uint64_t nr_bits)
{
    return (nr_bits - 1) / LEAF_BITS + 1;
}

static uint64_t words_in_leaf(uint64_t nr_bits, uint64_t leaf)
{
    uint64_t words = (nr_bits - leaf * LEAF_BITS - 1) / WORD_BITS + 1;

    return words < LEAF_WORDS ? words : LEAF_WORDS;
}

static uint64_t leaf_bytes(uint64_t words)
{
    return sizeof(struct dirty_leaf) + words * sizeof(uint64_t);
}

static uint64_t map_bytes(uint64_t nr_bits)
{
    return sizeof(struct dirty_map) + nr_leaves(nr_bits) * sizeof(struct dirty_leaf *);
}

/* What a region needs when every page is dirty. */
static uint64_t bytes_needed(uint64_t size)
{
    uint64_t bits = nr_bits_of(size);

    return map_bytes(bits) + nr_leaves(bits) * sizeof(struct dirty_leaf) +
           ((bits - 1) / WORD_BITS + 1) * sizeof(uint64_t);
}

/* --- regions come and go -------------------------------------------------------------------- */

static unsigned int log2_of(uint64_t size)
{
    return 63 - (unsigned int)__builtin_clzll(size);
}

static int check_limit(struct dma *dma, uint64_t more, const char *what)
{
    return limits_check(dma->files.limits, VFU_LIMIT_DIRTY_BITMAPS, dma->dirty.bytes, more,
                        dma->log, what);
}

int dirty_check_region(struct dma *dma, uint64_t size)
{
    uint64_t page = dma_dirty_page_size(dma);

    if (page == 0) {
        return 0;
    }
    if (size < page) {
        log_err(dma->log,
                "DMA_MAP: size %#" PRIx64 " is below the page of dirty logging, %#" PRIx64
                ": refused",
                size, page);
        return -EINVAL;
    }
    return check_limit(dma, bytes_needed(size), "DMA_MAP while dirty pages are logged");
}

void dirty_region_added(struct dma *dma, const struct dma_entry *region)
{
    uint64_t size = range_size(entry_range(region));

    dma->dirty.bytes += bytes_needed(size);
    dma->dirty.nr_of_size[log2_of(size)]++;
}

void dirty_region_removed(struct dma *dma, const struct dma_entry *region)
{
    dma->dirty.nr_of_size[log2_of(range_size(entry_range(region)))]--;
}

void dirty_region_finished(struct dma *dma, struct dma_entry *region)
{
    struct dirty_map *map = atomic_load_explicit(&region->dirty, memory_order_relaxed);
    uint64_t i;

    dma->dirty.bytes -= bytes_needed(range_size(entry_range(region)));
    if (map == NULL) {
        return;
    }
    for (i = 0; i < nr_leaves(map->nr_bits); i++) {
        free(atomic_load_explicit(&map->leaves[i], memory_order_relaxed));
    }
    LIST_REMOVE(map, link);
    dma->dirty.nr_maps--;
    free(map);
}

static struct dirty_map *map_of(const struct dma_entry *region)
{
    return atomic_load_explicit(&region->dirty, memory_order_acquire);
}

uint64_t dma_dirty_page_size(struct dma *dma)
{
    return atomic_load_explicit(&dma->dirty.page_size, memory_order_acquire);
}

static bool is_power_of_two(uint64_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

/* The bits of one word from first to last. */
static uint64_t word_mask(unsigned int first, unsigned int last)
{
    return (UINT64_MAX << first) & (UINT64_MAX >> (WORD_BITS - 1 - last));
}

/* The part of bits first..last that lies in a word. */
static uint64_t mask_in_word(uint64_t word, uint64_t first, uint64_t last)
{
    uint64_t start = word * WORD_BITS;

    return word_mask(first > start ? (unsigned int)(first - start) : 0,
                     last < start + WORD_BITS - 1 ? (unsigned int)(last - start) : WORD_BITS - 1);
}

/* --- marking -------------------------------------------------------------------------------- */

/* Needs the lock. */
static struct dirty_map *make_map(struct dma *dma, struct dma_entry *region)
{
    uint64_t nr_bits = nr_bits_of(range_size(entry_range(region)));
    struct dirty_map *map = calloc(1, map_bytes(nr_bits));

    if (map == NULL) {
        return NULL;
    }
    map->nr_bits = nr_bits;
    map->region = region;
    LIST_INSERT_HEAD(&dma->dirty.maps, map, link);
    dma->dirty.nr_maps++;
    atomic_store_explicit(&region->dirty, map, memory_order_release);
    return map;
}

/* Needs the lock. Leaves nothing but this epoch's bits in the leaf. */
static void renew_leaf(struct dirty_leaf *leaf, uint64_t words, uint64_t epoch)
{
    uint64_t i;

    if (atomic_load_explicit(&leaf->epoch, memory_order_relaxed) == epoch) {
        return;
    }
    for (i = 0; i < words; i++) {
        atomic_store_explicit(&leaf->words[i], 0, memory_order_relaxed);
    }
    atomic_store_explicit(&leaf->epoch, epoch, memory_order_release);
}

/* The leaf with this number, made if need be; NULL when out of memory. Needs the lock. */
static struct dirty_leaf *make_leaf(struct dma *dma, struct dma_entry *region, uint64_t number)
{
    struct dirty_map *map = map_of(region);
    struct dirty_leaf *leaf;
    uint64_t words;

    if (map == NULL) {
        map = make_map(dma, region);
    }
    if (map == NULL) {
        return NULL;
    }
    words = words_in_leaf(map->nr_bits, number);
    leaf = atomic_load_explicit(&map->leaves[number], memory_order_relaxed);
    if (leaf == NULL) {
        leaf = calloc(1, leaf_bytes(words));
    }
    if (leaf != NULL) {
        renew_leaf(leaf, words, atomic_load(&dma->dirty.epoch));
        atomic_store_explicit(&map->leaves[number], leaf, memory_order_release);
    }
    return leaf;
}

/* Without memory for the marks, every page counts as dirty until logging starts again. */
static void lose_marks(struct dma *dma)
{
    uint64_t epoch = atomic_load(&dma->dirty.epoch);

    if (atomic_exchange(&dma->dirty.lost, epoch) != epoch) {
        log_err(dma->log, "dirty logging: no memory to mark pages: all are reported as dirty");
    }
}

/* A leaf of this epoch, or NULL. */
static struct dirty_leaf *current_leaf(struct dma *dma, const struct dma_entry *region,
                                       uint64_t number)
{
    struct dirty_map *map = map_of(region);
    struct dirty_leaf *leaf;

    if (map == NULL) {
        return NULL;
    }
    leaf = atomic_load_explicit(&map->leaves[number], memory_order_acquire);
    if (leaf == NULL || atomic_load_explicit(&leaf->epoch, memory_order_acquire) !=
                            atomic_load_explicit(&dma->dirty.epoch, memory_order_acquire)) {
        return NULL;
    }
    return leaf;
}

/* A leaf to mark pages in, or NULL when out of memory. */
static struct dirty_leaf *find_leaf(struct dma *dma, struct dma_entry *region, uint64_t number)
{
    struct dirty_leaf *leaf = current_leaf(dma, region, number);
    struct aftermath after = { 0 };

    if (leaf == NULL) {
        dma_lock(dma);
        leaf = make_leaf(dma, region, number);
        dma_unlock(dma, &after);
    }
    if (leaf == NULL) {
        lose_marks(dma);
    }
    return leaf;
}

void dirty_mark(struct dma *dma, const struct dma_entry *entry, uint64_t offset, uint64_t length)
{
    struct dma_entry *region = (struct dma_entry *)(uintptr_t)entry;
    uint64_t first, last, word, nr_bits;
    struct dirty_leaf *leaf = NULL;

    if (length == 0) {
        return;
    }
    if (entry_cached(entry)) {
        region = entry->backing;
        offset += entry->target - region->first;
    }
    if (region->file == NULL) {
        return;
    }
    first = offset >> PAGE_SHIFT;
    last = (offset + length - 1) >> PAGE_SHIFT;
    nr_bits = nr_bits_of(range_size(entry_range(region)));
    if (last >= nr_bits) {
        last = nr_bits - 1;
    }
    for (word = first / WORD_BITS; word <= last / WORD_BITS; word++) {
        if (leaf == NULL || word % LEAF_WORDS == 0) {
            leaf = find_leaf(dma, region, word / LEAF_WORDS);
        }
        if (leaf == NULL) {
            return;
        }
        atomic_fetch_or_explicit(&leaf->words[word % LEAF_WORDS], mask_in_word(word, first, last),
                                 memory_order_release);
    }
}

/* --- switching ------------------------------------------------------------------------------ */

/* Whether some region with a file is smaller than a page. Needs the lock. */
static bool has_smaller_region(const struct dma *dma, uint64_t page_size)
{
    unsigned int i;

    for (i = 0; i < log2_of(page_size); i++) {
        if (dma->dirty.nr_of_size[i] > 0) {
            return true;
        }
    }
    return false;
}

static int start_locked(struct dma *dma, uint64_t page_size)
{
    if (has_smaller_region(dma, page_size)) {
        log_err(dma->log,
                "dirty logging: page size %#" PRIx64 " is larger than some region: refused",
                page_size);
        return -EINVAL;
    }
    return check_limit(dma, 0, "start of dirty logging");
}

int dma_dirty_start(struct dma *dma, uint64_t page_size)
{
    uint64_t on = dma_dirty_page_size(dma);
    struct aftermath after = { 0 };
    int ret;

    if (!is_power_of_two(page_size)) {
        log_err(dma->log, "dirty logging: page size %#" PRIx64 " is no power of two: refused",
                page_size);
        return -EINVAL;
    }
    if (on != 0 && on != page_size) {
        log_err(dma->log, "dirty logging: page size %#" PRIx64 " while logging with %#" PRIx64
                ": refused", page_size, on);
        return -EINVAL;
    }
    if (on != 0) {
        return 0;
    }
    dma_lock(dma);
    ret = start_locked(dma, page_size);
    dma_unlock(dma, &after);
    if (ret == 0) {
        atomic_fetch_add(&dma->dirty.epoch, 1);
        atomic_store_explicit(&dma->dirty.page_size, page_size, memory_order_release);
    }
    return ret;
}

void dma_dirty_stop(struct dma *dma)
{
    atomic_store_explicit(&dma->dirty.page_size, 0, memory_order_release);
}

/* --- reporting ------------------------------------------------------------------------------ */

uint64_t dma_dirty_bitmap_size(uint64_t length, uint64_t page_size)
{
    uint64_t pages;

    if (length == 0 || page_size == 0) {
        return 0;
    }
    pages = (length - 1) / page_size + 1;
    return (pages / WORD_BITS + (pages % WORD_BITS != 0)) * sizeof(uint64_t);
}

/* Sets the client's bits for dirty addresses, which lie in the range of the report. */
static void report_bytes(const struct dma_dirty_report *report, struct range dirty)
{
    uint64_t bit = (dirty.first - report->range.first) >> report->shift;
    uint64_t last = (dirty.last - report->range.first) >> report->shift;

    while (bit <= last) {
        if (bit % 8 == 0 && last - bit >= 7) {
            report->bitmap[bit / 8] = 0xff;
            bit += 8;
        } else {
            report->bitmap[bit / 8] |= (uint8_t)(1u << bit % 8);
            bit++;
        }
    }
}

/* Reports runs of set bits of one word of a region's map. */
static void report_word(const struct dma_dirty_report *report, struct range region, uint64_t word,
                        uint64_t bits)
{
    unsigned int first, end;
    struct range dirty;
    uint64_t base = region.first + (word * WORD_BITS << PAGE_SHIFT);

    while (bits != 0) {
        first = (unsigned int)__builtin_ctzll(bits);
        end = ~bits >> first == 0 ? WORD_BITS
                                  : first + (unsigned int)__builtin_ctzll(~(bits >> first));
        bits &= ~word_mask(first, end - 1);
        dirty.first = base + ((uint64_t)first << PAGE_SHIFT);
        dirty.last = base + ((uint64_t)end << PAGE_SHIFT) - 1;
        if (dirty.last < dirty.first || dirty.last > region.last) {
            dirty.last = region.last;
        }
        if (dirty.first < report->range.first) {
            dirty.first = report->range.first;
        }
        if (dirty.last > report->range.last) {
            dirty.last = report->range.last;
        }
        report_bytes(report, dirty);
    }
}

/* The pages of a region that a report looks at, and those of them that it clears. */
struct pages {
    uint64_t first, last;
    uint64_t clear_first, clear_end;
};

/*
 * A bit is cleared only if the report covers its whole page (or what of it is in the region): the
 * rest of a page that straddles the border must still be found by the next.
 */
static struct pages pages_of(const struct dma_dirty_report *report, struct range region,
                             uint64_t nr_bits)
{
    uint64_t from = report->range.first > region.first ? report->range.first - region.first : 0;
    uint64_t to = report->range.last < region.last ? report->range.last : region.last;

    to -= region.first;
    return (struct pages){
        .first = from >> PAGE_SHIFT,
        .last = to >> PAGE_SHIFT,
        .clear_first = (from + (1u << PAGE_SHIFT) - 1) >> PAGE_SHIFT,
        .clear_end = report->range.last >= region.last ? nr_bits : (to + 1) >> PAGE_SHIFT,
    };
}

static void report_leaf(const struct dma_dirty_report *report, struct range region,
                        struct dirty_leaf *leaf, uint64_t number, const struct pages *pages)
{
    uint64_t start = number * LEAF_WORDS, word = pages->first / WORD_BITS;
    uint64_t last = pages->last / WORD_BITS, mask, clear, bits;

    word = word > start ? word : start;
    last = last < start + LEAF_WORDS - 1 ? last : start + LEAF_WORDS - 1;
    for (; word <= last; word++) {
        _Atomic uint64_t *at = &leaf->words[word - start];

        if (atomic_load_explicit(at, memory_order_relaxed) == 0) {
            continue;
        }
        mask = mask_in_word(word, pages->first, pages->last);
        clear = 0;
        if (pages->clear_first < pages->clear_end && pages->clear_first < (word + 1) * WORD_BITS &&
            pages->clear_end > word * WORD_BITS) {
            clear = mask_in_word(word, pages->clear_first, pages->clear_end - 1);
        }
        bits = atomic_fetch_and_explicit(at, ~clear, memory_order_acq_rel);
        report_word(report, region, word, bits & mask);
    }
}

static void report_lost(const struct dma_dirty_report *report, struct range region)
{
    struct range both = report->range;

    both.first = both.first > region.first ? both.first : region.first;
    both.last = both.last < region.last ? both.last : region.last;
    report_bytes(report, both);
}

void dma_dirty_report_region(const struct dma_dirty_report *report, const struct dma_entry *entry)
{
    struct range region = entry_range(entry);
    struct dma *dma = report->dma;
    struct dirty_map *map;
    struct dirty_leaf *leaf;
    struct pages pages;
    uint64_t number;

    if (entry->file == NULL) {
        return;
    }
    if (atomic_load(&dma->dirty.lost) == atomic_load(&dma->dirty.epoch)) {
        report_lost(report, region);
    }
    map = map_of(entry);
    if (map == NULL) {
        return;
    }
    pages = pages_of(report, region, map->nr_bits);
    for (number = pages.first / LEAF_BITS; number <= pages.last / LEAF_BITS; number++) {
        leaf = current_leaf(dma, entry, number);
        if (leaf != NULL) {
            report_leaf(report, region, leaf, number, &pages);
        }
    }
}

void dma_dirty_report_all(const struct dma_dirty_report *report)
{
    report_bytes(report, report->range);
}

const char *dma_dirty_report_fault(struct dma *dma, struct range range, uint64_t page_size,
                                   uint64_t size)
{
    uint64_t length = range_size(range);

    if (dma_dirty_page_size(dma) == 0) {
        return "dirty pages are not logged";
    }
    if (!is_power_of_two(page_size) || length < page_size) {
        return "the page size is no power of two, or above the range";
    }
    return size != dma_dirty_bitmap_size(length, page_size)
               ? "the bitmap does not have the size of the range" : NULL;
}

int dma_dirty_report_begin(struct dma *dma, struct dma_dirty_report *report, struct range range,
                           uint64_t page_size, uint8_t *bitmap, uint64_t size)
{
    const char *fault = dma_dirty_report_fault(dma, range, page_size, size);

    if (fault != NULL) {
        log_err(dma->log,
                "dirty report [%#" PRIx64 ", %#" PRIx64 "] in pages of %#" PRIx64
                ", bitmap of %" PRIu64 " bytes: %s: refused",
                range.first, range.last, page_size, size, fault);
        return -EINVAL;
    }
    *report = (struct dma_dirty_report){
        .dma = dma,
        .range = range,
        .shift = (unsigned int)__builtin_ctzll(page_size),
        .bitmap = bitmap,
    };
    memset(bitmap, 0, size);
    return 0;
}

/*
 * Reports the regions of a range in their order, at most as many as there are maps. Returns whether
 * that was all of them. Needs the lock.
 */
static bool report_in_order(struct dma_space *space, const struct dma_dirty_report *report)
{
    struct dma_entry *region = space_first_region(space, report->range);
    size_t left = space->dma->dirty.nr_maps;

    for (; region != NULL && left > 0; left--) {
        dma_dirty_report_region(report, region);
        region = space_next_region(space, entry_range(region).last, report->range);
    }
    return region == NULL;
}

/* Reports what has a map, and is mapped in this space and range. Needs the lock. */
static void report_by_map(struct dma_space *space, const struct dma_dirty_report *report)
{
    struct dirty_map *map;
    struct range region;

    LIST_FOREACH(map, &space->dma->dirty.maps, link) {
        region = entry_range(map->region);
        if (range_overlaps(region, report->range) &&
            space_first(space, (struct range){ region.first, region.first }) == map->region) {
            dma_dirty_report_region(report, map->region);
        }
    }
}

/* Many regions without a map, or many maps beside the range: neither makes a report long. */
int dma_dirty_report(struct dma_space *space, struct range range, uint64_t page_size,
                     uint8_t *bitmap, uint64_t size)
{
    struct dma *dma = space->dma;
    struct aftermath after = { 0 };
    struct dma_dirty_report report;
    int err = dma_dirty_report_begin(dma, &report, range, page_size, bitmap, size);

    if (err < 0) {
        return err;
    }
    dma_lock(dma);
    if (atomic_load(&dma->dirty.lost) == atomic_load(&dma->dirty.epoch)) {
        dma_dirty_report_all(&report);
    } else if (!report_in_order(space, &report)) {
        report_by_map(space, &report);
    }
    dma_unlock(dma, &after);
    return 0;
}
