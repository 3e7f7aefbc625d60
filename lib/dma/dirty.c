/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which pages of guest memory the device has written.
 *
 * A map has one bit for each 4 KiB of its region, whatever page size the client logs or reports
 * with: larger pages collect several bits, smaller ones repeat one. So a map is made once in the
 * life of a region, and a thread that marks never meets one that is being exchanged. It stays
 * with the region, and is cleared when logging starts again.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "dma/dma_internal.h"
#include "util/log.h"

#define PAGE_SHIFT 12
#define WORD_BITS 64

struct dirty_map {
    uint64_t nr_bits;
    _Atomic uint64_t words[];
};

struct dirty_map *dirty_map_new(uint64_t size)
{
    uint64_t nr_bits = ((size - 1) >> PAGE_SHIFT) + 1;
    uint64_t nr_words = (nr_bits - 1) / WORD_BITS + 1;
    struct dirty_map *map = calloc(1, sizeof(*map) + nr_words * sizeof(map->words[0]));

    if (map != NULL) {
        map->nr_bits = nr_bits;
    }
    return map;
}

static struct dirty_map *map_of(const struct dma_entry *region)
{
    return atomic_load_explicit(&region->dirty, memory_order_acquire);
}

uint64_t dma_dirty_page_size(struct dma *dma)
{
    return atomic_load_explicit(&dma->dirty_page, memory_order_acquire);
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

void dirty_mark(struct dma *dma, const struct dma_entry *entry, uint64_t offset, uint64_t length)
{
    const struct dma_entry *region = entry;
    uint64_t first, last, word;
    struct dirty_map *map;

    if (dma_dirty_page_size(dma) == 0 || length == 0) {
        return;
    }
    if (entry_cached(entry)) {
        region = entry->backing;
        offset += entry->target - region->first;
    }
    map = map_of(region);
    if (map == NULL) {
        return;
    }
    first = offset >> PAGE_SHIFT;
    last = (offset + length - 1) >> PAGE_SHIFT;
    if (last >= map->nr_bits) {
        last = map->nr_bits - 1;
    }
    for (word = first / WORD_BITS; word <= last / WORD_BITS; word++) {
        atomic_fetch_or_explicit(&map->words[word], mask_in_word(word, first, last),
                                 memory_order_release);
    }
}

/* --- switching ------------------------------------------------------------------------------ */

struct start {
    uint64_t page_size;
    int ret;
};

static void clear_map(struct dirty_map *map)
{
    uint64_t word;

    for (word = 0; word <= (map->nr_bits - 1) / WORD_BITS; word++) {
        /* Untouched pages of a large map stay untouched. */
        if (atomic_load_explicit(&map->words[word], memory_order_relaxed) != 0) {
            atomic_store_explicit(&map->words[word], 0, memory_order_relaxed);
        }
    }
}

static int start_region(struct dma *dma, struct dma_entry *region, uint64_t page_size)
{
    uint64_t size = range_size(entry_range(region));
    struct dirty_map *map = map_of(region);

    if (region->file == NULL) {
        return 0;
    }
    if (size < page_size) {
        log_err(dma->log,
                "dirty logging: page size %#" PRIx64 " is larger than the region at %#" PRIx64,
                page_size, region->first);
        return -EINVAL;
    }
    if (map != NULL) {
        clear_map(map);
        return 0;
    }
    map = dirty_map_new(size);
    atomic_store_explicit(&region->dirty, map, memory_order_release);
    return map == NULL ? -ENOMEM : 0;
}

static void start_space(struct dma_space *space, void *arg)
{
    struct start *start = arg;
    struct dma_entry *region = dma_region_at_or_after(space, 0);

    for (; region != NULL && start->ret == 0; region = dma_region_next(space, region)) {
        start->ret = start_region(space->dma, region, start->page_size);
    }
}

int dma_dirty_start(struct dma *dma, uint64_t page_size)
{
    struct start start = { .page_size = page_size };
    uint64_t on = dma_dirty_page_size(dma);

    if (!is_power_of_two(page_size) || (on != 0 && on != page_size)) {
        log_err(dma->log, "dirty logging: page size %#" PRIx64 " while logging with %#" PRIx64,
                page_size, on);
        return -EINVAL;
    }
    if (on != 0) {
        return 0;
    }
    dma_for_each_space(dma, start_space, &start);
    if (start.ret == 0) {
        atomic_store_explicit(&dma->dirty_page, page_size, memory_order_release);
    }
    return start.ret;
}

void dma_dirty_stop(struct dma *dma)
{
    atomic_store_explicit(&dma->dirty_page, 0, memory_order_release);
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

/*
 * Reports one region. A bit is cleared only if the report covers its whole page (or what of it is
 * in the region): the rest of a page that straddles the border must still be found by the next.
 */
void dma_dirty_report_region(const struct dma_dirty_report *report, const struct dma_entry *entry)
{
    struct range region = entry_range(entry), range = report->range;
    struct dirty_map *map = map_of(entry);
    uint64_t first, last, clear_first, clear_end, word, mask, clear, bits;

    if (map == NULL) {
        return;
    }
    range.first = range.first > region.first ? range.first - region.first : 0;
    range.last = (range.last < region.last ? range.last : region.last) - region.first;
    first = range.first >> PAGE_SHIFT;
    last = range.last >> PAGE_SHIFT;
    clear_first = (range.first + (1u << PAGE_SHIFT) - 1) >> PAGE_SHIFT;
    clear_end = report->range.last >= region.last ? map->nr_bits : (range.last + 1) >> PAGE_SHIFT;
    for (word = first / WORD_BITS; word <= last / WORD_BITS; word++) {
        if (atomic_load_explicit(&map->words[word], memory_order_relaxed) == 0) {
            continue;
        }
        mask = mask_in_word(word, first, last);
        clear = 0;
        if (clear_first < clear_end && clear_first < (word + 1) * WORD_BITS &&
            clear_end > word * WORD_BITS) {
            clear = mask_in_word(word, clear_first, clear_end - 1);
        }
        bits = atomic_fetch_and_explicit(&map->words[word], ~clear, memory_order_acq_rel);
        report_word(report, region, word, bits & mask);
    }
}

void dma_dirty_report_all(const struct dma_dirty_report *report)
{
    report_bytes(report, report->range);
}

int dma_dirty_report_begin(struct dma *dma, struct dma_dirty_report *report, struct range range,
                           uint64_t page_size, uint8_t *bitmap, uint64_t size)
{
    uint64_t length = range_size(range);

    if (dma_dirty_page_size(dma) == 0 || !is_power_of_two(page_size) || length < page_size ||
        size != dma_dirty_bitmap_size(length, page_size)) {
        log_err(dma->log,
                "dirty report: %#" PRIx64 "-%#" PRIx64 " in pages of %#" PRIx64
                ", bitmap of %" PRIu64 " bytes, logging with %#" PRIx64,
                range.first, range.last, page_size, size, dma_dirty_page_size(dma));
        return -EINVAL;
    }
    *report = (struct dma_dirty_report){
        .range = range,
        .shift = (unsigned int)__builtin_ctzll(page_size),
        .bitmap = bitmap,
    };
    memset(bitmap, 0, size);
    return 0;
}

int dma_dirty_report(struct dma_space *space, struct range range, uint64_t page_size,
                     uint8_t *bitmap, uint64_t size)
{
    struct dma_dirty_report report;
    struct dma_entry *region;
    int err = dma_dirty_report_begin(space->dma, &report, range, page_size, bitmap, size);

    if (err < 0) {
        return err;
    }
    region = dma_region_at_or_after(space, range.first);
    for (; region != NULL && entry_range(region).first <= range.last;
         region = dma_region_next(space, region)) {
        dma_dirty_report_region(&report, region);
    }
    return 0;
}
