/* SPDX-License-Identifier: BSD-3-Clause */
#include "dma/memfile.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/limits.h"
#include "util/log.h"
#include "util/peer_file.h"

size_t system_page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static int check_access(const struct memfile_want *want, const struct logger *log)
{
    int flags = fcntl(want->fd, F_GETFL);
    int mode = flags & O_ACCMODE;

    if (flags < 0) {
        log_err(log, "DMA_MAP: fd %d is not usable: %s: refused", want->fd, strerror(errno));
        return -EINVAL;
    }
    if ((want->writable && mode == O_RDONLY) || (!want->io && mode == O_WRONLY) ||
        (flags & O_PATH) != 0) {
        log_err(log, "DMA_MAP: fd %d with open flags %#x does not allow a %s %s: refused", want->fd,
                (unsigned int)flags, want->writable ? "writable" : "readable",
                want->io ? "region" : "mapping");
        return -EACCES;
    }
    return 0;
}

/* A mapping's last page may reach beyond the end of the file, no more. */
static int check_end(const struct memfile_want *want, const struct logger *log)
{
    uint64_t end = want->offset + want->size;

    if (end < want->offset || end > (uint64_t)INT64_MAX - PEER_FILE_PAGE_MAX) {
        log_err(log,
                "DMA_MAP: file range at offset %#" PRIx64 ", size %#" PRIx64
                " is too far out: refused",
                want->offset, want->size);
        return -EINVAL;
    }
    if (!want->io && want->has_size && end > align_up(want->file_size, system_page_size())) {
        log_err(log,
                "DMA_MAP: file range at offset %#" PRIx64 ", size %#" PRIx64
                " is beyond the end of the file, %#" PRIx64 ": refused",
                want->offset, want->size, want->file_size);
        return -EINVAL;
    }
    return 0;
}

/* Asks nothing of the file's file system, which may be the client's own. */
static int check_kind(const struct memfile_set *set, const struct memfile_want *want)
{
    char kind[PEER_FILE_KIND_MAX];
    int ret = peer_file_check_memory(want->fd, set->limits->memory_files, kind);

    if (ret == -EPERM) {
        log_err(set->log,
                "DMA_MAP: fd %d is a file of kind '%s', not of memfd, tmpfs or hugetlbfs: refused "
                "with EPERM (VFU_MEMORY_FILES=%s in the environment allows it)",
                want->fd, kind, kind);
    } else if (ret < 0) {
        log_err(set->log,
                "DMA_MAP: fd %d is a pipe, a socket, an eventfd or the like: refused with ENODEV",
                want->fd);
    }
    return ret;
}

int memfile_probe(const struct memfile_set *set, struct memfile_want *want)
{
    struct stat st;
    int ret = check_access(want, set->log);

    if (ret == 0) {
        ret = check_kind(set, want);
    }
    if (ret < 0) {
        return ret;
    }
    if (fstat(want->fd, &st) < 0) {
        log_err(set->log, "DMA_MAP: fstat of fd %d: %s: refused", want->fd, strerror(errno));
        return -EINVAL;
    }
    want->device = st.st_dev;
    want->inode = st.st_ino;
    want->has_size = S_ISREG(st.st_mode);
    want->file_size = (uint64_t)st.st_size;
    want->page_size = peer_file_page_size(&st);
    return check_end(want, set->log);
}

static size_t bucket_of(dev_t device, ino_t inode)
{
    uint64_t mixed = ((uint64_t)inode ^ (uint64_t)device << 32) * 0x9e3779b97f4a7c15u;

    return mixed >> 56;
}

static bool serves(const struct memfile *file, const struct memfile_want *want)
{
    if (file->device != want->device || file->inode != want->inode ||
        file->writable != want->writable || (file->base == NULL) != want->io) {
        return false;
    }
    return want->io || (!memfile_poisoned(file) && want->offset >= file->offset &&
                        want->offset + want->size <= file->offset + file->length);
}

struct memfile *memfile_find(struct memfile_set *set, const struct memfile_want *want)
{
    struct memfile *file;

    LIST_FOREACH(file, &set->buckets[bucket_of(want->device, want->inode)], link) {
        if (serves(file, want)) {
            file->refs++;
            return file;
        }
    }
    return NULL;
}

static int map_span(struct memfile *file, int fd, uint64_t start, uint64_t end)
{
    size_t length = end - start;
    void *base;

    base = mmap(NULL, length, PROT_READ | (file->writable ? PROT_WRITE : 0),
                MAP_SHARED | MAP_NORESERVE, fd, (off_t)start);
    if (base == MAP_FAILED) {
        return -errno;
    }
    madvise(base, length, MADV_DONTDUMP);
    file->guard = guard_add(base, length, file->page_size);
    if (file->guard == NULL) {
        munmap(base, length);
        return -ENOMEM;
    }
    file->base = base;
    file->length = length;
    file->offset = start;
    return 0;
}

/* The whole file, if that fits as well. */
static int map_file(const struct memfile_set *set, struct memfile *file,
                    const struct memfile_want *want)
{
    uint64_t page = want->page_size;
    uint64_t start = align_down(want->offset, page);
    uint64_t end = align_up(want->offset + want->size, page);
    uint64_t whole = want->has_size ? align_up(want->file_size, page) : 0;
    uint64_t free_space = set->limits->value[VFU_LIMIT_ADDRESS_SPACE] - set->mapped;
    int ret = limits_check(set->limits, VFU_LIMIT_MAPPED_FILES, set->nr_mapped, 1, set->log,
                           "DMA_MAP");

    if (ret == 0) {
        ret = limits_check(set->limits, VFU_LIMIT_ADDRESS_SPACE, set->mapped, end - start, set->log,
                           "DMA_MAP");
    }
    if (ret < 0) {
        return ret;
    }
    if (whole > 0 && whole <= MEMFILE_WHOLE_MAX && whole <= free_space &&
        map_span(file, want->fd, 0, whole) == 0) {
        return 0;
    }
    ret = map_span(file, want->fd, start, end);
    if (ret < 0 && ret != -ENOMEM) {
        log_err(set->log,
                "DMA_MAP: cannot map %#" PRIx64 " bytes at offset %#" PRIx64
                " of the file: %s: refused",
                end - start, start, strerror(-ret));
    }
    return ret;
}

static int dup_fd(const struct memfile_set *set, struct memfile *file,
                  const struct memfile_want *want)
{
    int ret = limits_check(set->limits, VFU_LIMIT_IO_FILES, set->nr_io, 1, set->log, "DMA_MAP");

    if (ret < 0) {
        return ret;
    }
    file->fd = fcntl(want->fd, F_DUPFD_CLOEXEC, 0);
    if (file->fd < 0) {
        ret = -errno;
        log_err(set->log, "DMA_MAP: cannot keep fd %d: %s: refused", want->fd, strerror(-ret));
    }
    return ret;
}

int memfile_open(const struct memfile_set *set, const struct memfile_want *want,
                 struct memfile **out)
{
    struct memfile *file = calloc(1, sizeof(*file));
    int ret;

    if (file == NULL) {
        return -ENOMEM;
    }
    file->device = want->device;
    file->inode = want->inode;
    file->writable = want->writable;
    file->page_size = want->page_size;
    file->fd = -1;
    file->refs = 1;
    ret = want->io ? dup_fd(set, file, want) : map_file(set, file, want);
    if (ret < 0) {
        free(file);
        return ret;
    }
    *out = file;
    return 0;
}

/* Counts a file that the set gains (n is 1) or loses (-1). */
static void count_file(struct memfile_set *set, const struct memfile *file, int n)
{
    *(file->base != NULL ? &set->nr_mapped : &set->nr_io) += (uint64_t)(int64_t)n;
    set->mapped += (uint64_t)(int64_t)n * file->length;
}

void memfile_add(struct memfile_set *set, struct memfile *file)
{
    LIST_INSERT_HEAD(&set->buckets[bucket_of(file->device, file->inode)], file, link);
    count_file(set, file, 1);
}

struct memfile *memfile_put(struct memfile_set *set, struct memfile *file)
{
    if (--file->refs > 0) {
        return NULL;
    }
    LIST_REMOVE(file, link);
    count_file(set, file, -1);
    return file;
}

void memfile_close(struct memfile *file)
{
    if (file->base != NULL) {
        guard_remove(file->guard);
        munmap(file->base, file->length);
    }
    if (file->fd >= 0) {
        peer_file_close(file->fd);
    }
    free(file);
}
