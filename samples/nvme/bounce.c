/* SPDX-License-Identifier: BSD-3-Clause */
/* What the backend gets: the guest's memory, or a buffer where it cannot have that. */
#include "nvme.h"

#include <stdlib.h>

#define PAGE 4096u
#define SECTOR 512u

bool buffer_get(struct command *cmd, struct buffer *buffer, size_t len)
{
    struct worker *worker = cmd->worker;
    void *bytes = NULL;

    buffer_put(cmd, buffer);
    if (len > WORKER_BUFFERS - worker->buffered || posix_memalign(&bytes, PAGE, len) != 0) {
        cmd->why = "there is no memory left for its data";
        command_complete(cmd, NVME_SC_INTERNAL_ERROR);
        return false;
    }
    *buffer = (struct buffer){ .bytes = bytes, .len = len };
    worker->buffered += len;
    return true;
}

void buffer_put(struct command *cmd, struct buffer *buffer)
{
    cmd->worker->buffered -= buffer->len;
    free(buffer->bytes);
    *buffer = (struct buffer){ 0 };
}

void buffer_io(struct command *cmd, const struct buffer *buffer)
{
    /* The list has been read. */
    struct iovec *iov = &cmd->data.list_iov[0];

    *iov = (struct iovec){ .iov_base = buffer->bytes, .iov_len = buffer->len };
    cmd->io.iov = iov;
    cmd->io.nr_iov = 1;
}

static bool is_aligned(const struct iovec *iov)
{
    return ((uintptr_t)iov->iov_base | iov->iov_len) % SECTOR == 0;
}

/* False: there is a piece that the backend cannot use where it is. */
static bool usable(const struct data *data, bool aligned)
{
    for (size_t i = 0; i < data->nr_segments; i++) {
        const vfu_dma_request_t *req = &data->segments[i].request;

        if (data->segments[i].bucket) {
            return false;
        }
        for (size_t j = 0; j < req->nr_sgs; j++) {
            if (req->iov[j].iov_base == NULL || (aligned && !is_aligned(&req->iov[j]))) {
                return false;
            }
        }
    }
    return true;
}

/* The pieces close up, and those that touch become one. */
static void compact(struct command *cmd)
{
    struct data *data = &cmd->data;
    size_t n = 0;

    for (size_t i = 0; i < data->nr_segments; i++) {
        const vfu_dma_request_t *req = &data->segments[i].request;

        for (size_t j = 0; j < req->nr_sgs; j++) {
            struct iovec piece = req->iov[j];

            if (n > 0 && (char *)data->iov[n - 1].iov_base + data->iov[n - 1].iov_len ==
                             (char *)piece.iov_base) {
                data->iov[n - 1].iov_len += piece.iov_len;
            } else {
                data->iov[n++] = piece;
            }
        }
    }
    cmd->io.iov = data->iov;
    cmd->io.nr_iov = n;
}

static bool use_bounce(struct command *cmd)
{
    struct data *data = &cmd->data;

    if (!buffer_get(cmd, &data->bounce, data->len) ||
        (!(data->prot & PROT_WRITE) &&
         !data_copy(cmd, 0, data->bounce.bytes, data->bounce.len, false))) {
        return false;
    }
    buffer_io(cmd, &data->bounce);
    return true;
}

bool data_iov(struct command *cmd, bool aligned)
{
    if (!usable(&cmd->data, aligned)) {
        return use_bounce(cmd);
    }
    compact(cmd);
    return true;
}

bool data_iov_done(struct command *cmd)
{
    struct data *data = &cmd->data;

    return data->bounce.bytes == NULL ||
           data_copy(cmd, 0, data->bounce.bytes, data->bounce.len, true);
}
