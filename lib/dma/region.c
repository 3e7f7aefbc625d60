/* SPDX-License-Identifier: BSD-3-Clause */
/* DMA_MAP and DMA_UNMAP: regions come and go. */

#include <errno.h>
#include <inttypes.h>

#include "dma/dma_internal.h"
#include "util/log.h"

/*
 * Regions that were unmapped while a device held them are few, unless the device forgets its puts:
 * then the client must not be able to make it pile them up without end.
 */
#define LINGERING_MARGIN 1024

/* --- map ------------------------------------------------------------------------------------ */

/* A DMA_MAP on its way. */
struct map_request {
    struct dma_space *space;
    const struct dma_mapping *mapping;
    struct memfile_want want; /* of no meaning in message mode */
    struct memfile *file;
};

static bool has_file(const struct map_request *req)
{
    return req->mapping->mode != DMA_MODE_MESSAGE;
}

/* What dma_entry.target holds. Without a file, an offset means nothing. */
static uint64_t region_target(const struct map_request *req)
{
    return has_file(req) ? req->mapping->offset : (uintptr_t)req->space;
}

static bool is_identical(const struct map_request *req, struct dma_entry *region)
{
    const struct dma_mapping *mapping = req->mapping;
    struct range range = entry_range(region);

    if (range.first != mapping->iova.first || range.last != mapping->iova.last ||
        region->target != region_target(req) || (int)region->info.prot != mapping->prot ||
        has_file(req) != (region->file != NULL)) {
        return false;
    }
    return region->file == NULL ||
           (region->file->device == req->want.device && region->file->inode == req->want.inode);
}

/* 0: can be mapped, 1: there already, -EEXIST or -EINVAL. Needs the lock. */
static int check_place(const struct map_request *req, struct dma_entry **region)
{
    struct dma *dma = req->space->dma;
    struct range iova = req->mapping->iova, old;

    *region = space_first_region(req->space, iova);
    if (*region != NULL) {
        if (is_identical(req, *region)) {
            return 1;
        }
        old = entry_range(*region);
        log_err(dma->log,
                "DMA_MAP [%#" PRIx64 ", %#" PRIx64 "]: overlaps the mapping [%#" PRIx64
                ", %#" PRIx64 "]: refused with EEXIST",
                iova.first, iova.last, old.first, old.last);
        return -EEXIST;
    }
    if (atomic_load(&dma->nr_regions) >= dma->max_regions ||
        dma->nr_lingering >= dma->max_regions + LINGERING_MARGIN) {
        log_err(dma->log,
                "DMA_MAP [%#" PRIx64 ", %#" PRIx64 "]: %zu regions are mapped and %zu unmapped ones "
                "still in use, at most %zu: refused",
                iova.first, iova.last, atomic_load(&dma->nr_regions), dma->nr_lingering,
                dma->max_regions);
        return -EINVAL;
    }
    return 0;
}

static void fill_info(struct dma_entry *region, const struct map_request *req)
{
    const struct dma_mapping *mapping = req->mapping;
    uint64_t size = range_size(mapping->iova), start, end;
    size_t page = has_file(req) ? req->want.page_size : system_page_size();

    region->info = (vfu_dma_info_t){
        .iova = { (void *)(uintptr_t)mapping->iova.first, size },
        .vaddr = region->vaddr,
        .page_size = page,
        .prot = (uint32_t)mapping->prot,
    };
    if (region->vaddr != NULL) {
        start = mapping->offset - req->file->offset;
        end = align_up(start + size, page);
        start = align_down(start, page);
        region->info.mapping = (struct iovec){ req->file->base + start, end - start };
    }
}

/* Needs the lock. Takes over the file, if it succeeds. */
static int add_region(const struct map_request *req, struct dma_entry **region,
                      struct aftermath *after)
{
    const struct dma_mapping *mapping = req->mapping;
    struct entry_template from = {
        .iova = mapping->iova,
        .flags =
            (uint8_t)((mapping->prot & (int)ENTRY_PROT) | (int)mapping->mode << ENTRY_MODE_SHIFT),
        .file = req->file,
        .target = region_target(req),
    };
    struct dma_entry *entry;
    int ret;

    if (mapping->mode == DMA_MODE_MMAP) {
        from.vaddr = req->file->base + (mapping->offset - req->file->offset);
    }
    entry = entry_make(req->space->dma, &from);
    if (entry == NULL) {
        return -ENOMEM;
    }
    fill_info(entry, req);
    /* What is cached here gives way; what is in flight through it ends in its own time. */
    cache_drop_range(req->space, mapping->iova, after);
    ret = entry_publish(req->space, entry);
    if (ret < 0) {
        entry_discard(req->space->dma, entry);
        return ret;
    }
    if (has_file(req)) {
        dirty_region_added(req->space->dma, entry);
    }
    *region = entry;
    return 0;
}

/* The file, from those we have or opened; opening is done without the lock. */
static int find_file(struct map_request *req, struct aftermath *after)
{
    struct dma *dma = req->space->dma;
    struct memfile *file;
    int ret;

    req->file = memfile_find(&dma->files, &req->want);
    if (req->file != NULL) {
        return 0;
    }
    dma_unlock(dma, after);
    ret = memfile_open(&dma->files, &req->want, &file);
    dma_lock(dma);
    if (ret == 0) {
        memfile_add(&dma->files, file);
        req->file = file;
    }
    return ret;
}

static int probe(struct map_request *req)
{
    const struct dma_mapping *mapping = req->mapping;
    uint64_t size = range_size(mapping->iova);

    if (size == 0 || size > DMA_MAX_REGION_SIZE) {
        log_err(req->space->dma->log,
                "DMA_MAP: size %#" PRIx64 " at %#" PRIx64 " is too large: refused", size,
                mapping->iova.first);
        return -ENOSPC;
    }
    if (!has_file(req)) {
        return 0;
    }
    req->want = (struct memfile_want){
        .fd = mapping->fd,
        .io = mapping->mode == DMA_MODE_FILE_IO,
        .writable = (mapping->prot & PROT_WRITE) != 0,
        .offset = mapping->offset,
        .size = size,
    };
    return memfile_probe(&req->space->dma->files, &req->want);
}

/* Needs the lock, but lets go of it to open a file. */
static int map_locked(struct map_request *req, struct dma_entry **region, struct aftermath *after)
{
    int ret = check_place(req, region);

    if (ret != 0) {
        return ret;
    }
    if (has_file(req)) {
        ret = dirty_check_region(req->space->dma, range_size(req->mapping->iova));
        if (ret == 0) {
            ret = find_file(req, after);
        }
    }
    return ret < 0 ? ret : add_region(req, region, after);
}

int dma_map(struct dma_space *space, const struct dma_mapping *mapping, struct dma_entry **region)
{
    struct map_request req = { .space = space, .mapping = mapping };
    struct aftermath after = { 0 };
    struct memfile *dead;
    int ret;

    ret = probe(&req);
    if (ret < 0) {
        return ret;
    }
    dma_lock(space->dma);
    ret = map_locked(&req, region, &after);
    if (ret != 0 && req.file != NULL) {
        dead = memfile_put(&space->dma->files, req.file);
        if (dead != NULL) {
            dead->next_dead = after.files;
            after.files = dead;
        }
    }
    dma_unlock(space->dma, &after);
    return ret;
}

/* --- unmap ---------------------------------------------------------------------------------- */

/* How many regions lie in the range; -ENOENT when it cuts one, which log is told. Needs the lock. */
static int count_whole(struct dma_space *space, struct range range, const struct logger *log)
{
    struct dma_entry *entry = space_first_region(space, range);
    struct range found;
    int count = 0;

    for (; entry != NULL; entry = space_next_region(space, found.last, range)) {
        found = entry_range(entry);
        if (!range_contains(range, found)) {
            log_err(log,
                    "DMA_UNMAP [%#" PRIx64 ", %#" PRIx64 "]: cuts the mapping [%#" PRIx64
                    ", %#" PRIx64 "]: refused",
                    range.first, range.last, found.first, found.last);
            return -ENOENT;
        }
        count++;
    }
    return count;
}

bool dma_unmaps(struct dma_space *space, struct range range)
{
    const struct logger silent = { .level = -1 };
    struct aftermath after = { 0 };
    int count;

    dma_lock(space->dma);
    count = count_whole(space, range, &silent);
    dma_unlock(space->dma, &after);
    return count > 0;
}

/* What is to be removed, and older regions that the drain is to wait for. */
static int prepare_unmap(struct dma_space *space, struct range range, bool all,
                         struct dma_drain *drain)
{
    struct linger_filter filter = { .range = range };
    struct aftermath after = { 0 };
    int count, ret = 0;

    dma_lock(space->dma);
    count = count_whole(space, range, space->dma->log);
    if (count == 0 && !all) {
        log_err(space->dma->log,
                "DMA_UNMAP [%#" PRIx64 ", %#" PRIx64 "]: nothing is mapped there: refused",
                range.first, range.last);
        count = -ENOENT;
    }
    if (count >= 0) {
        ret = entry_join(space, &filter, drain);
    }
    dma_unlock(space->dma, &after);
    return ret < 0 ? ret : count;
}

static int unmap_range(struct dma_space *space, struct range range, bool all,
                       dma_removing_fn *removing, void *arg, struct dma_drain *drain)
{
    int count = prepare_unmap(space, range, all, drain);
    struct aftermath after = { 0 };
    struct dma_entry *region;
    int i;

    for (i = 0; i < count; i++) {
        region = dma_region_at_or_after(space, range.first);
        if (removing != NULL) {
            removing(region, arg);
        }
        dma_lock(space->dma);
        entry_kill(space, region, drain, &after);
        dma_unlock(space->dma, &after);
    }
    if (count > 0 && space->name.translated) {
        dma_lock(space->dma);
        cache_drop_orphans(space->dma, &after);
        dma_unlock(space->dma, &after);
    }
    return count;
}

int dma_unmap(struct dma_space *space, struct range range, dma_removing_fn *removing, void *arg,
              struct dma_drain *drain)
{
    return unmap_range(space, range, false, removing, arg, drain);
}

int dma_unmap_all(struct dma_space *space, dma_removing_fn *removing, void *arg,
                  struct dma_drain *drain)
{
    return unmap_range(space, RANGE_ALL, true, removing, arg, drain);
}

/* --- looking at regions --------------------------------------------------------------------- */

struct dma_entry *dma_region_at_or_after(struct dma_space *space, uint64_t from)
{
    struct range range = { from, UINT64_MAX };
    struct aftermath after = { 0 };
    struct dma_entry *entry;

    dma_lock(space->dma);
    entry = space_first_region(space, range);
    dma_unlock(space->dma, &after);
    return entry;
}

vfu_dma_info_t *dma_region_info(struct dma_entry *region)
{
    return &region->info;
}

struct range dma_region_range(const struct dma_entry *region)
{
    return entry_range(region);
}

enum dma_mode dma_region_mode(const struct dma_entry *region)
{
    return entry_mode(region);
}

size_t dma_nr_regions(struct dma *dma)
{
    return atomic_load(&dma->nr_regions);
}
