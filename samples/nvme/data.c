/* SPDX-License-Identifier: BSD-3-Clause */
#include "data.h"

#include "nvme.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Host memory is thought of in pages of this size: a piece may end at each of them. */
#define UNIT 4096u
/* Arrays that had more segments than this are given back at the end of the command. */
#define KEPT_SEGMENTS (NVME_MAX_TRANSFER / UNIT + 1)

/*
 * Room
 */

static int grow(void **array, size_t size, size_t wanted, size_t *max)
{
    size_t now = *max > 0 ? *max : 4;
    void *grown;

    while (now < wanted) {
        now *= 2;
    }
    grown = reallocarray(*array, now, size);
    if (grown == NULL) {
        return -ENOMEM;
    }
    *array = grown;
    *max = now;
    return 0;
}

static int grow_segments(struct command *cmd)
{
    struct data *data = &cmd->data;
    size_t old = data->max_segments;

    if (data->nr_segments < data->max_segments) {
        return 0;
    }
    if (data->nr_segments >= KEPT_SEGMENTS && !data->large) {
        if (cmd->worker->nr_large == WORKER_LARGE_COMMANDS) {
            return -ENOMEM;
        }
        data->large = true;
        cmd->worker->nr_large++;
    }
    if (grow((void **)&data->segments, sizeof(*data->segments), data->nr_segments + 1,
             &data->max_segments) != 0) {
        return -ENOMEM;
    }
    memset(data->segments + old, 0, (data->max_segments - old) * sizeof(*data->segments));
    return 0;
}

/* The buckets need entries as well. */
static int grow_slots(struct data *data, size_t wanted)
{
    size_t max = data->max_slots;

    if (wanted <= data->max_slots) {
        return 0;
    }
    if (grow((void **)&data->sgs, dma_sg_size(), wanted, &max) != 0) {
        return -ENOMEM;
    }
    max = data->max_slots;
    return grow((void **)&data->iov, sizeof(*data->iov), wanted, &max) == 0
               ? (data->max_slots = max, 0)
               : -ENOMEM;
}

uint16_t data_add(struct command *cmd, uint64_t addr, uint64_t len, bool is_bucket)
{
    struct data *data = &cmd->data;
    struct segment *last = data->nr_segments > 0 ? &data->segments[data->nr_segments - 1] : NULL;

    data->found += len;
    if (last != NULL && last->bucket == is_bucket &&
        (is_bucket || last->request.addr + last->request.len == addr)) {
        last->request.len += len;
        return NVME_SC_SUCCESS;
    }
    if (grow_segments(cmd) != 0) {
        cmd->why = "there is no memory left for its segments";
        return NVME_SC_INTERNAL_ERROR;
    }
    last = &data->segments[data->nr_segments++];
    last->bucket = is_bucket;
    last->held = false;
    last->request.addr = addr;
    last->request.len = len;
    return NVME_SC_SUCCESS;
}

/*
 * Resolving
 */

static void resolved(vfu_ctx_t *ctx, vfu_dma_request_t *req, int error)
{
    struct command *cmd = req->pvt;

    (void)ctx;
    if (error != 0) {
        atomic_store(&cmd->data.error, error);
    }
    if (atomic_fetch_sub(&cmd->data.pending, 1) == 1) {
        worker_post(cmd->worker, &cmd->event);
    }
}

static void resolve_begin(struct command *cmd, void (*resume)(struct command *cmd))
{
    cmd->resume = resume;
    cmd->stage = STAGE_MEMORY;
    atomic_store_explicit(&cmd->data.error, 0, memory_order_relaxed);
    atomic_store_explicit(&cmd->data.pending, 1, memory_order_relaxed);
}

static void resolve_one(struct command *cmd, vfu_dma_request_t *req, int prot)
{
    struct data *data = &cmd->data;

    req->pasid = VFU_NO_PASID;
    req->prot = prot;
    req->pvt = cmd;
    req->done = resolved;
    atomic_fetch_add_explicit(&data->pending, 1, memory_order_relaxed);
    if (vfu_dma_resolve(cmd->worker->nvme->ctx, req) != 0) {
        req->nr_sgs = 0;
        atomic_store(&data->error, errno);
        atomic_fetch_sub(&data->pending, 1);
    }
}

/* True: all is there. False: the command's event will come. */
static bool resolve_end(struct command *cmd)
{
    if (atomic_fetch_sub(&cmd->data.pending, 1) == 1) {
        cmd->stage = STAGE_RUNNING;
        return true;
    }
    /* It came too late to be cancelled with the others. */
    if (cmd->worker->drain >= DRAIN_PARK) {
        data_cancel(cmd);
    }
    return false;
}

/* True when the memory is there; otherwise the command has come to an end, of some kind. */
static bool resolve_succeeded(struct command *cmd)
{
    int error = atomic_load(&cmd->data.error);

    if (error == 0) {
        return true;
    }
    command_memory_failed(cmd, error);
    return false;
}

void data_cancel(struct command *cmd)
{
    struct data *data = &cmd->data;
    vfu_ctx_t *ctx = cmd->worker->nvme->ctx;

    if (data->list_len > 0) {
        (void)vfu_dma_cancel(ctx, &data->list_request);
        return;
    }
    for (size_t i = 0; i < data->nr_segments; i++) {
        if (!data->segments[i].bucket) {
            (void)vfu_dma_cancel(ctx, &data->segments[i].request);
        }
    }
}

static void free_arrays(struct data *data)
{
    free(data->segments);
    free(data->sgs);
    free(data->iov);
    data->segments = NULL;
    data->sgs = NULL;
    data->iov = NULL;
    data->max_segments = 0;
    data->max_slots = 0;
}

void data_release(struct command *cmd)
{
    struct data *data = &cmd->data;

    for (size_t i = 0; i < data->nr_segments; i++) {
        struct segment *segment = &data->segments[i];

        if (!segment->bucket && segment->request.nr_sgs > 0) {
            vfu_dma_release(cmd->worker->nvme->ctx, &segment->request);
            segment->request.nr_sgs = 0;
        }
    }
    data->nr_segments = 0;
    data->list_len = 0;
    buffer_put(cmd, &data->bounce);
    if (data->large) {
        data->large = false;
        cmd->worker->nr_large--;
        free_arrays(data);
    }
}

void data_destroy(struct command *cmd)
{
    free_arrays(&cmd->data);
    free(cmd->data.list_request.sgl);
}

/*
 * Segments
 */

static size_t slots_of(const vfu_dma_request_t *req)
{
    return (size_t)((req->addr % UNIT + req->len - 1) / UNIT + 2);
}

static void segments_resolved(struct command *cmd)
{
    if (resolve_succeeded(cmd)) {
        cmd->data.mapped(cmd);
    }
}

/* The entries of each segment lie behind those of the one before. */
static void resolve_segments(struct command *cmd)
{
    struct data *data = &cmd->data;
    size_t nr_slots = 0;

    for (size_t i = 0; i < data->nr_segments; i++) {
        data->segments[i].request.nr_sgs = 0;
        nr_slots += data->segments[i].bucket ? 0 : slots_of(&data->segments[i].request);
    }
    if (grow_slots(data, nr_slots) != 0) {
        command_complete(cmd, NVME_SC_INTERNAL_ERROR);
        return;
    }
    resolve_begin(cmd, segments_resolved);
    nr_slots = 0;
    for (size_t i = 0; i < data->nr_segments; i++) {
        vfu_dma_request_t *req = &data->segments[i].request;

        if (data->segments[i].bucket) {
            continue;
        }
        req->sgl = (dma_sg_t *)(data->sgs + nr_slots * dma_sg_size());
        req->iov = data->iov + nr_slots;
        req->max_nr_sgs = slots_of(req);
        nr_slots += req->max_nr_sgs;
        resolve_one(cmd, req, data->prot);
    }
    if (resolve_end(cmd)) {
        segments_resolved(cmd);
    }
}

/*
 * Lists
 */

/* Up to the end of a page, in whole entries: one may lie across it. */
static uint64_t list_chunk(const struct data *data)
{
    uint64_t in_page = UNIT - data->list_addr % UNIT;
    uint64_t len = data->list_len < in_page ? data->list_len : in_page;

    return len < data->list_entry ? data->list_entry : len - len % data->list_entry;
}

/* Parses a chunk that was resolved. False: the command has come to an end, of some kind. */
static bool take_list(struct command *cmd)
{
    struct data *data = &cmd->data;
    uint64_t len = list_chunk(data);
    uint8_t list[DATA_LIST_CHUNK];
    uint16_t status;
    int error = 0;

    if (!resolve_succeeded(cmd)) {
        return false;
    }
    if (vfu_dma_move(cmd->worker->nvme->ctx, &data->list_request, 0, list, len, false) != 0) {
        error = errno;
    }
    vfu_dma_release(cmd->worker->nvme->ctx, &data->list_request);
    if (error != 0) {
        command_memory_failed(cmd, error);
        return false;
    }
    data->list_addr += len;
    data->list_len -= len;
    status = data->parse(cmd, list, len);
    if (status != NVME_SC_SUCCESS) {
        command_complete(cmd, status);
    }
    return status == NVME_SC_SUCCESS;
}

static void read_lists(struct command *cmd);

static void list_resolved(struct command *cmd)
{
    if (take_list(cmd)) {
        read_lists(cmd);
    }
}

static int prepare_list_request(struct data *data)
{
    vfu_dma_request_t *req = &data->list_request;

    if (req->sgl == NULL) {
        req->max_nr_sgs = sizeof(data->list_iov) / sizeof(data->list_iov[0]);
        req->sgl = calloc(req->max_nr_sgs, dma_sg_size());
        req->iov = data->list_iov;
    }
    return req->sgl != NULL ? 0 : -ENOMEM;
}

/*
 * One chunk after the other; the last one leads to the segments. A chain of lists cannot go on
 * for ever, as each list describes data, or counts as descriptors.
 */
static void read_lists(struct command *cmd)
{
    struct data *data = &cmd->data;

    if (data->list_len > 0 && prepare_list_request(data) != 0) {
        command_complete(cmd, NVME_SC_INTERNAL_ERROR);
        return;
    }
    while (data->list_len > 0) {
        data->list_request.addr = data->list_addr;
        data->list_request.len = list_chunk(data);
        resolve_begin(cmd, list_resolved);
        resolve_one(cmd, &data->list_request, PROT_READ);
        if (!resolve_end(cmd) || !take_list(cmd)) {
            return;
        }
    }
    resolve_segments(cmd);
}

void data_map(struct command *cmd, uint64_t len, int prot, void (*mapped)(struct command *cmd))
{
    struct data *data = &cmd->data;
    unsigned psdt = NVME_PSDT(cmd->sqe.flags);
    uint16_t status;

    data->len = len;
    data->prot = prot;
    data->mapped = mapped;
    data->found = 0;
    data->list_len = 0;
    data->last_segment = false;
    data->nr_descriptors = 0;
    data->nr_segments = 0;
    if (psdt == 3 || (psdt != 0 && cmd->sq->id == 0)) {
        command_fail(cmd, NVME_SC_INVALID_FIELD, "PSDT is reserved, or this takes PRPs");
        return;
    }
    status = psdt == 0 ? prp_begin(cmd) : sgl_begin(cmd);
    if (status != NVME_SC_SUCCESS) {
        command_complete(cmd, status);
    } else {
        read_lists(cmd);
    }
}

/*
 * Moving
 */

bool data_copy(struct command *cmd, uint64_t offset, void *buf, size_t len, bool to_guest)
{
    struct data *data = &cmd->data;
    uint8_t *bytes = buf;

    for (size_t i = 0; i < data->nr_segments && len > 0; i++) {
        struct segment *segment = &data->segments[i];
        uint64_t there = segment->request.len;
        size_t n;

        if (offset >= there) {
            offset -= there;
            continue;
        }
        n = there - offset < len ? (size_t)(there - offset) : len;
        if (!segment->bucket && vfu_dma_move(cmd->worker->nvme->ctx, &segment->request, offset,
                                             bytes, n, to_guest) != 0) {
            command_memory_failed(cmd, errno);
            return false;
        }
        bytes += n;
        len -= n;
        offset = 0;
    }
    return true;
}

static void reply_mapped(struct command *cmd)
{
    if (data_copy(cmd, 0, cmd->buffer.bytes, cmd->buffer.len, true)) {
        command_complete(cmd, NVME_SC_SUCCESS);
    }
}

void data_reply(struct command *cmd, const void *data, size_t len)
{
    if (buffer_get(cmd, &cmd->buffer, len)) {
        memcpy(cmd->buffer.bytes, data, len);
        data_map(cmd, len, PROT_WRITE, reply_mapped);
    }
}
