/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where the bytes of a namespace lie: memory, or a file (regular or block device). It knows nothing
 * of NVMe and nothing of vfio-user.
 *
 * A backend may be used by any number of threads at the same time, each with a queue of its own. A
 * queue belongs to one thread at a time and serves any number of backends.
 *
 * A read or a write within one 4096-byte page of a memory backend is atomic. What reads and writes
 * of a file that overlap leave is what the kernel makes of them.
 */

#ifndef NVME_BACKEND_H
#define NVME_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct backend;
struct backend_queue;

enum backend_op {
    BACKEND_READ,
    BACKEND_WRITE,
    BACKEND_FLUSH, /* what was done before this was submitted becomes durable */
    BACKEND_WRITE_ZEROES,
    BACKEND_DISCARD, /* a hint: the range may read as zeros afterwards, or be as it was */
};

/* Caller-owned until done is called. */
struct backend_io {
    enum backend_op op;
    bool fua; /* WRITE, WRITE_ZEROES: durable when done */
    uint64_t offset, len; /* bytes, within the size; checked by the caller */
    const struct iovec *iov; /* READ, WRITE: sums up to len; valid until done */
    size_t nr_iov;
    /* 0 or an errno. On the thread, and from within, backend_submit() or backend_queue_poll(). */
    void (*done)(struct backend_io *io, int error);
    uint64_t priv[8]; /* the backend's */
};

/*
 * A regular file or a block device; its size is what it has now, and it must keep that.
 *
 * The file is locked as long as it is open (an open file description lock on the whole file), so
 * that nobody else opens it by accident: neither a backend of this or another process, nor QEMU.
 *
 * @direct: past the page cache (O_DIRECT).
 * @shared: backends that say so may open the same file.
 * @why: set when NULL is returned.
 */
struct backend *backend_open_file(const char *path, bool direct, bool shared, char *why,
                                  size_t why_len);

/* Zeros. */
struct backend *backend_open_memory(uint64_t size, char *why, size_t why_len);

/* Nothing may be in flight on any queue. NULL is ignored. */
void backend_close(struct backend *backend);

/* Bytes. */
uint64_t backend_size(const struct backend *backend);

/*
 * One per thread. Not thread-safe, but the thread that uses it need not be the one that created it.
 *
 * @depth: the I/Os in flight at most expected. More are queued.
 * @why: set when NULL is returned; when files are served the slow way, because there is no
 *       io_uring, the reason is put there as well, and it is empty otherwise.
 */
struct backend_queue *backend_queue_create(unsigned depth, char *why, size_t why_len);

/* Nothing may be in flight. NULL is ignored. */
void backend_queue_destroy(struct backend_queue *queue);

/* May call done. What is submitted reaches the kernel with the next poll at the latest. */
void backend_submit(struct backend_queue *queue, struct backend *backend, struct backend_io *io);

/* Hands what was submitted to the kernel and calls done for what has ended. Returns how many. */
int backend_queue_poll(struct backend_queue *queue);

/*
 * Readable when something has ended since the last poll: to sleep on, after a poll. -1: there is
 * nothing to wait for, as every I/O ends within backend_submit().
 */
int backend_queue_fd(const struct backend_queue *queue);

#endif /* NVME_BACKEND_H */
