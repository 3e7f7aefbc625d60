/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A backend starts its I/Os by itself (memory), or hands them to the engine of the queue (files):
 * one by io_uring, and one by plain system calls.
 */

#ifndef NVME_BACKEND_INTERNAL_H
#define NVME_BACKEND_INTERNAL_H

#include "backend.h"

struct backend_ops {
    void (*submit)(struct backend_queue *queue, struct backend *backend, struct backend_io *io);
    void (*close)(struct backend *backend);
};

struct backend {
    const struct backend_ops *ops;
    uint64_t size;
};

struct backend_engine {
    /* An I/O of a file, begun by file_begin(). */
    void (*start)(struct backend_queue *queue, struct backend_io *io);
    int (*poll)(struct backend_queue *queue);
    int (*fd)(const struct backend_queue *queue);
    void (*destroy)(struct backend_queue *queue);
};

struct backend_queue {
    const struct backend_engine *engine;
};

/* Either returns NULL and says why. */
struct backend_queue *backend_queue_uring(unsigned depth, char *why, size_t why_len);
struct backend_queue *backend_queue_calls(char *why, size_t why_len);

/* Does an I/O of a file to its end by calls that block. */
void backend_call(struct backend_io *io);

#endif /* NVME_BACKEND_INTERNAL_H */
