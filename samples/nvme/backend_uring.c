/* SPDX-License-Identifier: BSD-3-Clause */
#include "backend_file.h"
#include "backend_internal.h"

#include <stdio.h>

#ifdef HAVE_LIBURING

#include <errno.h>
#include <limits.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>

enum {
    MIN_DEPTH = 8,
    MAX_DEPTH = 4096,
    REAP = 32, /* completions at a time */
    SUBMIT = 4, /* calls at a time: a disk would wait for the last of many, and end them together */
};

struct uring_queue {
    struct backend_queue base;
    struct io_uring ring;
    unsigned in_flight;     /* in the ring: submitted or not yet */
    unsigned max_in_flight; /* what the completion ring holds: it cannot overflow */
    bool calling; /* the kernel takes nothing: those that wait are done by calls */
    /* Waiting for room in the ring, linked by FILE_NEXT. */
    struct backend_io *first_waiting;
    struct backend_io *last_waiting;
};

/* One piece of memory costs the kernel less when it is no vector. */
static void prepare_transfer(struct io_uring_sqe *sqe, const struct file_step *step)
{
    bool is_read = step->call == FILE_READV;

    if (step->nr_iov == 1 && step->iov->iov_len <= INT_MAX) {
        io_uring_prep_rw(is_read ? IORING_OP_READ : IORING_OP_WRITE, sqe, step->fd,
                         step->iov->iov_base, (unsigned)step->iov->iov_len, step->offset);
    } else {
        io_uring_prep_rw(is_read ? IORING_OP_READV : IORING_OP_WRITEV, sqe, step->fd, step->iov,
                         step->nr_iov, step->offset);
    }
    sqe->rw_flags = step->flags;
}

static void prepare(struct io_uring_sqe *sqe, struct backend_io *io)
{
    struct file_step step;

    file_step(io, &step);
    switch (step.call) {
    case FILE_READV:
    case FILE_WRITEV:
        prepare_transfer(sqe, &step);
        break;
    case FILE_FDATASYNC:
        io_uring_prep_fsync(sqe, step.fd, IORING_FSYNC_DATASYNC);
        break;
    case FILE_FALLOCATE:
        io_uring_prep_fallocate(sqe, step.fd, step.flags, (off_t)step.offset, (off_t)step.len);
        break;
    }
    io_uring_sqe_set_data(sqe, io);
}

static void add_waiting(struct uring_queue *queue, struct backend_io *io)
{
    io->priv[FILE_NEXT] = 0;
    if (queue->first_waiting == NULL) {
        queue->first_waiting = io;
    } else {
        queue->last_waiting->priv[FILE_NEXT] = (uintptr_t)io;
    }
    queue->last_waiting = io;
}

static struct backend_io *take_waiting(struct uring_queue *queue)
{
    struct backend_io *io = queue->first_waiting;

    queue->first_waiting = (struct backend_io *)(uintptr_t)io->priv[FILE_NEXT];
    return io;
}

/*
 * Takes back what the kernel has not taken, to be done by calls that block. Without SQPOLL the
 * kernel reads the ring in io_uring_enter() only.
 */
static void withdraw(struct uring_queue *queue)
{
    struct io_uring_sq *sq = &queue->ring.sq;
    unsigned head = *sq->khead;

    for (unsigned at = head; at != sq->sqe_tail; at++) {
        const struct io_uring_sqe *sqe = &sq->sqes[at & *sq->kring_mask];

        add_waiting(queue, (struct backend_io *)(uintptr_t)sqe->user_data);
        queue->in_flight--;
    }
    sq->sqe_head = sq->sqe_tail = head;
    io_uring_smp_store_release(sq->ktail, head);
    queue->calling = true;
}

/* Everything that is in the submission ring to the kernel. */
static void flush(struct uring_queue *queue)
{
    unsigned ready;

    while ((ready = io_uring_sq_ready(&queue->ring)) > 0) {
        int ret = io_uring_submit(&queue->ring);

        if (ret > 0 || ret == -EINTR) {
            continue;
        }
        /* Short of memory: what is under way gives some back, and brings the caller here again. */
        if (queue->in_flight == ready) {
            withdraw(queue);
        }
        return;
    }
}

/* NULL: there is no room in the ring. */
static struct io_uring_sqe *get_sqe(struct uring_queue *queue)
{
    struct io_uring_sqe *sqe;

    if (queue->calling || queue->in_flight == queue->max_in_flight) {
        return NULL;
    }
    sqe = io_uring_get_sqe(&queue->ring);
    if (sqe == NULL) {
        flush(queue);
        sqe = queue->calling ? NULL : io_uring_get_sqe(&queue->ring);
    }
    return sqe;
}

static void put(struct uring_queue *queue, struct io_uring_sqe *sqe, struct backend_io *io)
{
    prepare(sqe, io);
    queue->in_flight++;
    if (io_uring_sq_ready(&queue->ring) >= SUBMIT) {
        flush(queue);
    }
}

static void uring_start(struct backend_queue *base, struct backend_io *io)
{
    struct uring_queue *queue = (struct uring_queue *)base;
    struct io_uring_sqe *sqe = queue->first_waiting == NULL ? get_sqe(queue) : NULL;

    if (sqe != NULL) {
        put(queue, sqe, io);
    } else {
        add_waiting(queue, io);
    }
}

static void start_waiting(struct uring_queue *queue)
{
    struct io_uring_sqe *sqe;

    while (queue->first_waiting != NULL && (sqe = get_sqe(queue)) != NULL) {
        put(queue, sqe, take_waiting(queue));
    }
}

/* Does those that wait, and what their callbacks start, by calls. Returns how many there were. */
static int call_waiting(struct uring_queue *queue)
{
    int count = 0;

    while (queue->first_waiting != NULL) {
        backend_call(take_waiting(queue));
        count++;
    }
    queue->calling = false;
    return count;
}

/* Takes one completion. Returns whether its I/O has ended. */
static bool complete(struct uring_queue *queue, struct backend_io *io, int result)
{
    int error;

    queue->in_flight--;
    if (!file_result(io, result, &error)) {
        uring_start(&queue->base, io);
        return false;
    }
    file_end(io, error);
    return true;
}

static int uring_poll(struct backend_queue *base)
{
    struct uring_queue *queue = (struct uring_queue *)base;
    struct io_uring_cqe *cqes[REAP];
    int ended = 0;
    unsigned count;

    flush(queue);
    do {
        struct {
            struct backend_io *io;
            int result;
        } done[REAP];

        count = io_uring_peek_batch_cqe(&queue->ring, cqes, REAP);
        for (unsigned i = 0; i < count; i++) {
            done[i].io = io_uring_cqe_get_data(cqes[i]);
            done[i].result = cqes[i]->res;
        }
        /* Before anything is submitted again: a completion needs room. */
        io_uring_cq_advance(&queue->ring, count);
        for (unsigned i = 0; i < count; i++) {
            ended += complete(queue, done[i].io, done[i].result);
        }
        start_waiting(queue);
    } while (count == REAP);
    /* What the callbacks submitted: the caller may go to sleep now. */
    flush(queue);
    return queue->calling ? ended + call_waiting(queue) : ended;
}

static int uring_fd(const struct backend_queue *base)
{
    return ((const struct uring_queue *)base)->ring.ring_fd;
}

static void uring_destroy(struct backend_queue *base)
{
    struct uring_queue *queue = (struct uring_queue *)base;

    io_uring_queue_exit(&queue->ring);
    free(queue);
}

static const struct backend_engine uring_engine = {
    .start = uring_start,
    .poll = uring_poll,
    .fd = uring_fd,
    .destroy = uring_destroy,
};

static int init_ring(struct io_uring *ring, unsigned depth)
{
    struct io_uring_params params = { .flags = IORING_SETUP_CLAMP | IORING_SETUP_COOP_TASKRUN |
                                               IORING_SETUP_TASKRUN_FLAG };
    int ret = io_uring_queue_init_params(depth, ring, &params);

    if (ret == -EINVAL) { /* before Linux 5.19 */
        params = (struct io_uring_params){ .flags = IORING_SETUP_CLAMP };
        ret = io_uring_queue_init_params(depth, ring, &params);
    }
    return ret;
}

struct backend_queue *backend_queue_uring(unsigned depth, char *why, size_t why_len)
{
    struct uring_queue *queue = calloc(1, sizeof(*queue));
    int ret;

    if (queue == NULL) {
        snprintf(why, why_len, "no memory for a queue");
        return NULL;
    }
    depth = depth < MIN_DEPTH ? MIN_DEPTH : depth > MAX_DEPTH ? MAX_DEPTH : depth;
    ret = init_ring(&queue->ring, depth);
    if (ret < 0) {
        /* EPERM: containers, seccomp, kernel.io_uring_disabled. ENOSYS: not in this kernel. */
        snprintf(why, why_len, "io_uring is refused: %s", strerror(-ret));
        free(queue);
        return NULL;
    }
    queue->base.engine = &uring_engine;
    queue->max_in_flight = *queue->ring.cq.kring_entries;
    return &queue->base;
}

#else

struct backend_queue *backend_queue_uring(unsigned depth, char *why, size_t why_len)
{
    (void)depth;
    snprintf(why, why_len, "built without liburing");
    return NULL;
}

#endif
