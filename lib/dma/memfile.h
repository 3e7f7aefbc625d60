/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The files behind the regions of a context. However many DMA_MAPs point into a file, it is mapped
 * once (once more for another writability): the whole of it when it has a size and is not beyond
 * the caps below, else just the range asked for. A file that grew gets a further mapping for the
 * regions that need it; the older ones keep theirs.
 *
 * memfile_find, _add and _put need the caller's lock; the rest does not, and may do I/O.
 */

#ifndef VFU_DMA_MEMFILE_H
#define VFU_DMA_MEMFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "util/sigbus.h"

struct limits;
struct logger;

#define MEMFILE_WHOLE_MAX (1ull << 40) /* larger files are not mapped as a whole */

/* A mapping of a file, or, when base is NULL, a descriptor for pread and pwrite. */
struct memfile {
    LIST_ENTRY(memfile) link;
    dev_t device;
    ino_t inode;
    bool writable;
    int fd; /* -1 for a mapping: it needs none */
    uint8_t *base;
    size_t length;
    uint64_t offset; /* of base in the file */
    size_t page_size;
    size_t refs;
    struct guard *guard; /* of a mapping */
    struct memfile *next_dead;
};

#define MEMFILE_BUCKETS 256

struct memfile_set {
    LIST_HEAD(, memfile) buckets[MEMFILE_BUCKETS];
    uint64_t mapped; /* bytes of address space */
    uint64_t nr_mapped, nr_io;
    const struct limits *limits;
    const struct logger *log;
};

/* What one DMA_MAP wants of its file. */
struct memfile_want {
    int fd;
    bool io; /* pread and pwrite instead of a mapping */
    bool writable;
    uint64_t offset;
    uint64_t size;
    /* the rest is filled in by memfile_probe */
    dev_t device;
    ino_t inode;
    bool has_size;
    uint64_t file_size;
    size_t page_size;
};

/*
 * Looks at the descriptor, and checks its kind and that the file has what is wanted. Returns 0,
 * -EINVAL (no file, or the range is beyond its end), -EACCES, or -EPERM or -ENODEV (memory may not be
 * a file of this kind).
 */
int memfile_probe(const struct memfile_set *set, struct memfile_want *want);

/* A reference to what serves already, or NULL. */
struct memfile *memfile_find(struct memfile_set *set, const struct memfile_want *want);

/*
 * Makes what memfile_find did not find, with one reference. Returns 0, the negative errno of mmap or
 * dup, or -ENOSPC beyond a limit. Only the control thread adds files to the set.
 */
int memfile_open(const struct memfile_set *set, const struct memfile_want *want,
                 struct memfile **out);
void memfile_add(struct memfile_set *set, struct memfile *file);

/* Drops a reference. Returns the file when it was the last one, for memfile_close. */
struct memfile *memfile_put(struct memfile_set *set, struct memfile *file);
void memfile_close(struct memfile *file);

/* Whether the client took bytes away from beneath the mapping. */
static inline bool memfile_poisoned(const struct memfile *file)
{
    return file->guard != NULL && guard_tripped(file->guard);
}

size_t system_page_size(void);

static inline uint64_t align_down(uint64_t value, uint64_t power_of_two)
{
    return value & ~(power_of_two - 1);
}

/* The caller knows that it does not wrap. */
static inline uint64_t align_up(uint64_t value, uint64_t power_of_two)
{
    return align_down(value + power_of_two - 1, power_of_two);
}

#endif /* VFU_DMA_MEMFILE_H */
