/* SPDX-License-Identifier: BSD-3-Clause */
/* Where there is no io_uring: the calls are made one after the other, and block. */
#include "backend_file.h"
#include "backend_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int64_t call(const struct file_step *step)
{
    int64_t result = -1;

    switch (step->call) {
    case FILE_READV:
        result = preadv2(step->fd, step->iov, (int)step->nr_iov, (off_t)step->offset, step->flags);
        break;
    case FILE_WRITEV:
        result = pwritev2(step->fd, step->iov, (int)step->nr_iov, (off_t)step->offset, step->flags);
        break;
    case FILE_FDATASYNC:
        result = fdatasync(step->fd);
        break;
    case FILE_FALLOCATE:
        result = fallocate(step->fd, step->flags, (off_t)step->offset, (off_t)step->len);
        break;
    }
    return result < 0 ? -errno : result;
}

void backend_call(struct backend_io *io)
{
    struct file_step step;
    int error;

    do {
        file_step(io, &step);
    } while (!file_result(io, call(&step), &error));
    file_end(io, error);
}

static void calls_start(struct backend_queue *queue, struct backend_io *io)
{
    (void)queue;
    backend_call(io);
}

static int calls_poll(struct backend_queue *queue)
{
    (void)queue;
    return 0;
}

static int calls_fd(const struct backend_queue *queue)
{
    (void)queue;
    return -1;
}

static void calls_destroy(struct backend_queue *queue)
{
    free(queue);
}

static const struct backend_engine calls_engine = {
    .start = calls_start,
    .poll = calls_poll,
    .fd = calls_fd,
    .destroy = calls_destroy,
};

struct backend_queue *backend_queue_calls(char *why, size_t why_len)
{
    struct backend_queue *queue = malloc(sizeof(*queue));

    if (queue == NULL) {
        snprintf(why, why_len, "no memory for a queue");
        return NULL;
    }
    queue->engine = &calls_engine;
    return queue;
}
