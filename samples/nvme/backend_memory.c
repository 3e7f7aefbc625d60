/* SPDX-License-Identifier: BSD-3-Clause */
#include "backend_internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    PAGE_SHIFT = 12,
    PAGE_BYTES = 1 << PAGE_SHIFT,
    /* Neighbouring pages have different locks; more locks than threads that will ever be at it. */
    NR_LOCKS = 256,
    /* Larger discards give the memory back; smaller ones would cost more than they are worth. */
    DISCARD_MIN = 64 << 10,
};

struct memory_backend {
    struct backend base;
    uint8_t *bytes;
    /* A page is read and written under its lock, so that no block is seen half written. */
    pthread_mutex_t locks[NR_LOCKS];
};

/* Where the caller's bytes are. */
struct cursor {
    const struct iovec *iov;
    size_t nr_iov;
    size_t at; /* within the first */
};

static void copy_memory(struct cursor *cursor, uint8_t *bytes, size_t len, bool write)
{
    while (len > 0 && cursor->nr_iov > 0) {
        uint8_t *part = (uint8_t *)cursor->iov->iov_base + cursor->at;
        size_t n = cursor->iov->iov_len - cursor->at;

        if (n > len) {
            n = len;
        }
        if (write) {
            memcpy(bytes, part, n);
        } else {
            memcpy(part, bytes, n);
        }
        bytes += n;
        len -= n;
        cursor->at += n;
        if (cursor->at == cursor->iov->iov_len) {
            cursor->iov++;
            cursor->nr_iov--;
            cursor->at = 0;
        }
    }
}

static void do_page(const struct backend_io *io, struct cursor *cursor, uint8_t *bytes, size_t len)
{
    switch (io->op) {
    case BACKEND_READ:
    case BACKEND_WRITE:
        copy_memory(cursor, bytes, len, io->op == BACKEND_WRITE);
        break;
    case BACKEND_WRITE_ZEROES:
        memset(bytes, 0, len);
        break;
    case BACKEND_DISCARD:
    case BACKEND_FLUSH:
        break;
    }
}

static void do_pages(struct memory_backend *memory, const struct backend_io *io)
{
    struct cursor cursor = { .iov = io->iov, .nr_iov = io->nr_iov };
    uint64_t offset = io->offset;
    uint64_t end = io->offset + io->len;

    while (offset < end) {
        pthread_mutex_t *lock = &memory->locks[(offset >> PAGE_SHIFT) % NR_LOCKS];
        uint64_t len = PAGE_BYTES - offset % PAGE_BYTES;

        if (len > end - offset) {
            len = end - offset;
        }
        pthread_mutex_lock(lock);
        do_page(io, &cursor, memory->bytes + offset, len);
        pthread_mutex_unlock(lock);
        offset += len;
    }
}

static void discard(struct memory_backend *memory, const struct backend_io *io)
{
    uint64_t first = (io->offset + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
    uint64_t end = (io->offset + io->len) & ~(uint64_t)(PAGE_BYTES - 1);

    if (io->len >= DISCARD_MIN && first < end) {
        /* Failing is allowed: it is a hint. */
        (void)madvise(memory->bytes + first, end - first, MADV_DONTNEED);
    }
}

static void memory_submit(struct backend_queue *queue, struct backend *backend,
                          struct backend_io *io)
{
    struct memory_backend *memory = (struct memory_backend *)backend;

    (void)queue;
    if (io->op == BACKEND_DISCARD) {
        discard(memory, io);
    } else if (io->op != BACKEND_FLUSH) {
        do_pages(memory, io);
    }
    io->done(io, 0);
}

static void memory_close(struct backend *backend)
{
    struct memory_backend *memory = (struct memory_backend *)backend;

    for (size_t i = 0; i < NR_LOCKS; i++) {
        pthread_mutex_destroy(&memory->locks[i]);
    }
    munmap(memory->bytes, backend->size);
    free(memory);
}

static const struct backend_ops memory_ops = {
    .submit = memory_submit,
    .close = memory_close,
};

struct backend *backend_open_memory(uint64_t size, char *why, size_t why_len)
{
    struct memory_backend *memory = calloc(1, sizeof(*memory));

    if (memory == NULL) {
        snprintf(why, why_len, "no memory for a namespace");
        return NULL;
    }
    memory->bytes = mmap(NULL, size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory->bytes == MAP_FAILED) {
        snprintf(why, why_len, "cannot allocate %llu bytes of memory: %s", (unsigned long long)size,
                 strerror(errno));
        free(memory);
        return NULL;
    }
    memory->base = (struct backend){ .ops = &memory_ops, .size = size };
    for (size_t i = 0; i < NR_LOCKS; i++) {
        pthread_mutex_init(&memory->locks[i], NULL);
    }
    return &memory->base;
}
