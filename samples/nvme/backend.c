/* SPDX-License-Identifier: BSD-3-Clause */
#include "backend_internal.h"

void backend_close(struct backend *backend)
{
    if (backend != NULL) {
        backend->ops->close(backend);
    }
}

uint64_t backend_size(const struct backend *backend)
{
    return backend->size;
}

struct backend_queue *backend_queue_create(unsigned depth, char *why, size_t why_len)
{
    struct backend_queue *queue = backend_queue_uring(depth, why, why_len);

    if (queue != NULL) {
        if (why_len > 0) {
            why[0] = '\0';
        }
        return queue;
    }
    /* The reason stays, unless there is a worse one. */
    return backend_queue_calls(why, why_len);
}

void backend_queue_destroy(struct backend_queue *queue)
{
    if (queue != NULL) {
        queue->engine->destroy(queue);
    }
}

void backend_submit(struct backend_queue *queue, struct backend *backend, struct backend_io *io)
{
    backend->ops->submit(queue, backend, io);
}

int backend_queue_poll(struct backend_queue *queue)
{
    return queue->engine->poll(queue);
}

int backend_queue_fd(const struct backend_queue *queue)
{
    return queue->engine->fd(queue);
}
