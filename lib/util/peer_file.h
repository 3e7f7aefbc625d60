/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Descriptors that the peer passed. Its file may belong to a file system that the peer serves itself
 * (FUSE), where fstat(), fstatfs(), mmap() and close() wait for an answer that never comes. What is
 * declared here never asks the file system.
 */
#ifndef VFU_UTIL_PEER_FILE_H
#define VFU_UTIL_PEER_FILE_H

#include <stdbool.h>
#include <stddef.h>

struct stat;

/* Whether the file is memory: of memfd_create(2), tmpfs or hugetlbfs. */
bool peer_file_is_memory(int fd);

#define PEER_FILE_KIND_MAX 64

/*
 * Writes the name of the kind of a file: "memory", "dma-buf", "device" for a device file, "special"
 * for what is no regular file either, the type of the file system as in /proc/filesystems, or
 * "unknown".
 */
void peer_file_kind(int fd, char kind[PEER_FILE_KIND_MAX]);

/*
 * Checks that a file may be used as memory: memory is allowed, other kinds when they are in the list
 * (names separated by commas, or "any"; NULL: none) or in the environment's VFU_MEMORY_FILES.
 * Returns 0, -EPERM, or -ENODEV for what can never be memory (an eventfd, say). Writes the kind of
 * the file in any case, for the log.
 */
int peer_file_check_memory(int fd, const char *allowed, char kind[PEER_FILE_KIND_MAX]);

/* Page sizes that a file may claim; anything else is a file system's I/O hint gone wild. */
#define PEER_FILE_PAGE_MAX (1ull << 34)

/*
 * The size of the pages that a mapping of a file is made of, in bytes: hugetlbfs reports it as the
 * preferred block size.
 */
size_t peer_file_page_size(const struct stat *st);

/*
 * Closes a descriptor that the peer passed. Where close(2) could wait for the peer (its file system
 * is asked to flush, a TCP socket lingers), a thread apart does that, and the call returns at once.
 * At most 16 threads can be held so; then further descriptors stay open.
 */
void peer_file_close(int fd);

#endif /* VFU_UTIL_PEER_FILE_H */
