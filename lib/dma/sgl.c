/* SPDX-License-Identifier: BSD-3-Clause */
/* Scatter lists: from addresses to handles, from handles to host memory. */

#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "dma/dma_internal.h"
#include "util/log.h"

static bool allowed(const struct dma_hit *hit, int prot)
{
    if ((prot & PROT_WRITE) != 0 && (hit->prot & PROT_WRITE) == 0) {
        return false;
    }
    return !hit->cached || (prot & PROT_READ) == 0 || (hit->prot & PROT_READ) != 0;
}

static void log_not_mapped(struct dma_space *space, uint64_t addr, uint64_t len, const char *fault)
{
    struct dma_space_name name = dma_space_name(space);

    if (name.has_pasid) {
        log_info(space->dma->log, "DMA: address 0x%llx, 0x%llx bytes, of PASID 0x%x %s",
                 (unsigned long long)addr, (unsigned long long)len, name.pasid, fault);
    } else {
        log_info(space->dma->log, "DMA: address 0x%llx, 0x%llx bytes, %s", (unsigned long long)addr,
                 (unsigned long long)len, fault);
    }
}

int dma_addr_to_sgl(struct dma_space *space, uint64_t addr, uint64_t len, struct dma_sg *sgl,
                    size_t max, int prot)
{
    struct dma_hit hit;
    uint64_t part;
    size_t count = 0;
    int ret;

    if (len > 0 && len - 1 > UINT64_MAX - addr) {
        log_not_mapped(space, addr, len, "wraps");
        return -ENOENT;
    }
    while (len > 0) {
        ret = dma_lookup(space, addr, &hit);
        if (ret < 0) {
            log_not_mapped(space, addr, len, "is not mapped");
            return ret;
        }
        if (!allowed(&hit, prot)) {
            log_not_mapped(space, addr, len, "is not mapped for this access");
            return -EACCES;
        }
        part = hit.iova.last - addr;
        part = part < len - 1 ? part + 1 : len;
        if (count < max) {
            sgl[count] = (struct dma_sg){
                .dma_addr = (void *)(uintptr_t)hit.iova.first,
                .entry = hit.entry,
                .length = part,
                .offset = addr - hit.iova.first,
                .writeable = (prot & PROT_WRITE) != 0,
                .generation = hit.generation,
            };
        }
        count++;
        addr += part;
        len -= part;
    }
    return (int)count;
}

/* --- references ----------------------------------------------------------------------------- */

static int hold(struct dma *dma, const struct dma_sg *sg)
{
    if (sg->entry == NULL) {
        return -EINVAL;
    }
    return entry_get(dma, sg->entry, sg->generation) ? 0 : -ESTALE;
}

void dma_sgl_release(struct dma *dma, const struct dma_sg *sgl, size_t cnt)
{
    size_t i;

    for (i = 0; i < cnt; i++) {
        if (sgl[i].entry != NULL) {
            entry_put(dma, sgl[i].entry, sgl[i].generation);
        }
    }
}

int dma_sgl_hold(struct dma *dma, const struct dma_sg *sgl, size_t cnt)
{
    size_t i;
    int ret;

    for (i = 0; i < cnt; i++) {
        ret = hold(dma, &sgl[i]);
        if (ret < 0) {
            dma_sgl_release(dma, sgl, i);
            return ret;
        }
    }
    return 0;
}

/* Second chances are for cached translations; storing only once keeps their line shared. */
static void note_use(struct dma_entry *entry)
{
    if (atomic_load_explicit(&entry->used, memory_order_relaxed) == 0) {
        atomic_store_explicit(&entry->used, 1, memory_order_relaxed);
    }
}

static int get_one(struct dma *dma, const struct dma_sg *sg, struct iovec *iov)
{
    struct dma_entry *entry = sg->entry;
    int ret = hold(dma, sg);

    if (ret < 0) {
        return ret;
    }
    if (entry->vaddr == NULL || memfile_poisoned(entry->file)) {
        entry_put(dma, entry, sg->generation);
        return -EFAULT;
    }
    note_use(entry);
    iov->iov_base = entry->vaddr + sg->offset;
    iov->iov_len = sg->length;
    return 0;
}

int dma_sgl_get(struct dma *dma, const struct dma_sg *sgl, struct iovec *iov, size_t cnt)
{
    size_t i;
    int ret;

    for (i = 0; i < cnt; i++) {
        ret = get_one(dma, &sgl[i], &iov[i]);
        if (ret < 0) {
            dma_sgl_release(dma, sgl, i);
            return ret;
        }
    }
    return 0;
}

/* Of a referenced entry. */
static void mark(struct dma *dma, const struct dma_sg *sg)
{
    if (sg->writeable && atomic_load_explicit(&dma->dirty.page_size, memory_order_acquire) != 0) {
        dirty_mark(dma, sg->entry, sg->offset, sg->length);
    }
}

void dma_sgl_put(struct dma *dma, const struct dma_sg *sgl, size_t cnt)
{
    size_t i;

    for (i = 0; i < cnt; i++) {
        if (sgl[i].entry != NULL) {
            mark(dma, &sgl[i]);
            entry_put(dma, sgl[i].entry, sgl[i].generation);
        }
    }
}

void dma_sgl_mark_dirty(struct dma *dma, const struct dma_sg *sgl, size_t cnt)
{
    size_t i;

    if (dma_dirty_page_size(dma) == 0) {
        return;
    }
    for (i = 0; i < cnt; i++) {
        if (sgl[i].writeable && hold(dma, &sgl[i]) == 0) {
            mark(dma, &sgl[i]);
            entry_put(dma, sgl[i].entry, sgl[i].generation);
        }
    }
}

/* --- looking through a handle --------------------------------------------------------------- */

bool dma_sg_is_mappable(struct dma *dma, const struct dma_sg *sg)
{
    bool mappable;

    if (hold(dma, sg) < 0) {
        return false;
    }
    mappable = sg->entry->vaddr != NULL;
    entry_put(dma, sg->entry, sg->generation);
    return mappable;
}

void dma_held_target(struct dma *dma, const struct dma_sg *sg, struct dma_target *target)
{
    const struct dma_entry *entry = sg->entry;

    target->mode = entry_mode(entry);
    if (entry_cached(entry)) {
        target->space = dma->translated.name;
        target->address = entry->target + sg->offset;
    } else {
        target->space = target->mode == DMA_MODE_MESSAGE ? entry->space->name : dma->requester.name;
        target->address = entry->first + sg->offset;
    }
}

bool dma_sgl_awaited(struct dma *dma, const struct dma_sg *sgl, size_t cnt)
{
    struct aftermath after = { 0 };
    bool found = false;

    dma_lock(dma);
    for (size_t i = 0; i < cnt && !found; i++) {
        const struct dma_entry *entry = sgl[i].entry;

        found = entry->state == ENTRY_LINGERING && entry->dying.drain != NULL;
    }
    dma_unlock(dma, &after);
    return found;
}

int dma_sg_target(struct dma *dma, const struct dma_sg *sg, struct dma_target *target)
{
    int ret = hold(dma, sg);

    if (ret < 0) {
        return ret;
    }
    dma_held_target(dma, sg, target);
    entry_put(dma, sg->entry, sg->generation);
    return 0;
}

void dma_untranslated_sg(struct dma_space *space, uint64_t addr, uint64_t len, bool writeable,
                         struct dma_sg *sg)
{
    struct dma_entry *entry = space->untranslated;

    *sg = (struct dma_sg){
        .entry = entry,
        .length = len,
        .offset = addr,
        .writeable = writeable,
        .generation = atomic_load_explicit(&entry->generation, memory_order_relaxed),
    };
}

/* --- copying -------------------------------------------------------------------------------- */

static int copy_memory(const struct dma_entry *entry, const struct dma_sg *sg, void *buf,
                       bool to_guest)
{
    uint8_t *guest = entry->vaddr + sg->offset;

    if (memfile_poisoned(entry->file)) {
        return -EFAULT;
    }
    memcpy(to_guest ? guest : buf, to_guest ? buf : guest, sg->length);
    return memfile_poisoned(entry->file) ? -EFAULT : 0;
}

static uint64_t file_offset(const struct dma_entry *entry)
{
    if (!entry_cached(entry)) {
        return entry->target;
    }
    return entry->backing->target + (entry->target - entry->backing->first);
}

/*
 * A write beyond RLIMIT_FSIZE would end the process by SIGXFSZ, even inside a file that is larger.
 * The limit can change at any time, so it is asked for each time.
 */
static bool within_file_size_limit(off_t at, uint64_t length)
{
    struct rlimit limit;

    return getrlimit(RLIMIT_FSIZE, &limit) == 0 &&
           (limit.rlim_cur == RLIM_INFINITY ||
            ((uint64_t)at <= limit.rlim_cur && length <= limit.rlim_cur - (uint64_t)at));
}

static int copy_file(const struct dma_entry *entry, const struct dma_sg *sg, uint8_t *buf,
                     bool to_guest)
{
    off_t at = (off_t)(file_offset(entry) + sg->offset);
    uint64_t left = sg->length;
    int fd = entry->file->fd;
    ssize_t n;

    if (to_guest && !within_file_size_limit(at, left)) {
        return -EFBIG;
    }
    while (left > 0) {
        n = to_guest ? pwrite(fd, buf, left, at) : pread(fd, buf, left, at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return -EIO;
        }
        buf += n;
        at += n;
        left -= (uint64_t)n;
    }
    return 0;
}

static int copy(const struct dma_entry *entry, const struct dma_sg *sg, void *buf, bool to_guest)
{
    if (to_guest && !sg->writeable) {
        return -EPERM;
    }
    switch (entry_mode(entry)) {
    case DMA_MODE_MMAP:
        return copy_memory(entry, sg, buf, to_guest);
    case DMA_MODE_FILE_IO:
        return copy_file(entry, sg, buf, to_guest);
    default:
        return -ENOTSUP;
    }
}

int dma_held_copy(struct dma *dma, const struct dma_sg *sg, void *buf, bool to_guest)
{
    int ret;

    note_use(sg->entry);
    ret = copy(sg->entry, sg, buf, to_guest);
    if (ret == 0 && to_guest) {
        mark(dma, sg);
    }
    return ret;
}

int dma_sg_copy(struct dma *dma, const struct dma_sg *sg, void *buf, bool to_guest)
{
    int ret = hold(dma, sg);

    if (ret < 0) {
        return ret;
    }
    ret = dma_held_copy(dma, sg, buf, to_guest);
    entry_put(dma, sg->entry, sg->generation);
    return ret;
}
