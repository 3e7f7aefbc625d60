/* SPDX-License-Identifier: BSD-3-Clause */
/* Completion queues: posting (NVMe 4.6). */
#include "nvme.h"

#include <errno.h>
#include <string.h>

/* 0, or why it cannot be written. */
static int write_entry(struct cq *cq, const struct nvme_completion *entry, uint32_t index)
{
    size_t offset = index * sizeof(*entry);
    uint64_t *place = ring_at(&cq->ring, offset);
    struct nvme_completion copy = *entry;
    uint64_t halves[2];

    if (place == NULL) {
        return ring_copy(&cq->ring, offset, &copy, sizeof(copy), true);
    }
    memcpy(halves, &copy, sizeof(halves));
    /* The half with the phase tag makes the other one valid. */
    __atomic_store_n(&place[0], halves[0], __ATOMIC_RELAXED);
    __atomic_store_n(&place[1], halves[1], __ATOMIC_RELEASE);
    return 0;
}

static bool post(struct cq *cq, struct nvme_completion *entry)
{
    uint32_t tail = atomic_load_explicit(&cq->tail, memory_order_relaxed);
    int err;

    entry->status = (uint16_t)(entry->status | cq->phase);
    err = write_entry(cq, entry, tail);
    if (err != 0) {
        if (err != -ECANCELED) {
            controller_fatal(cq->worker->nvme, "completion queue %u cannot be written: %s", cq->id,
                             strerror(-err));
        }
        return false;
    }
    tail++;
    if (tail == cq->entries) {
        tail = 0;
        cq->phase = !cq->phase;
    }
    atomic_store(&cq->tail, tail);
    cq->signal = true;
    return true;
}

static bool cq_writable(struct cq *cq)
{
    struct nvme *nvme = cq->worker->nvme;
    uint32_t hold = atomic_load_explicit(&nvme->controller.hold, memory_order_relaxed);

    enum drain drain = cq->worker->drain;

    /* While everything comes to a stop, what can be delivered at once is; then nothing any more. */
    if ((hold & (HOLD_BUS_MASTER | HOLD_FATAL)) || drain == DRAIN_STOP ||
        ((hold & (HOLD_MIGRATION | HOLD_SHUTDOWN)) && drain == DRAIN_NONE)) {
        return false;
    }
    if (!ring_ready(&cq->ring)) {
        if (ring_is_lost(&cq->ring)) {
            controller_fatal(nvme, "completion queue %u at 0x%llx is not there: %s", cq->id,
                             (unsigned long long)cq->ring.addr, strerror(cq->ring.error));
        }
        return false;
    }
    return true;
}

static bool post_command(struct cq *cq, struct command *cmd)
{
    struct nvme_completion entry = {
        .result = cmd->result,
        .sq_head = (uint16_t)cmd->sq->head,
        .sq_id = cmd->sq->id,
        .cid = cmd->sqe.cid,
        .status = (uint16_t)(cmd->status << 1),
    };

    if (!post(cq, &entry)) {
        return false;
    }
    sq_forget(cmd);
    return true;
}

void cq_complete(struct cq *cq, struct command *cmd)
{
    if (!STAILQ_EMPTY(&cq->done) || !cq_writable(cq) || !post_command(cq, cmd)) {
        cmd->stage = STAGE_DONE;
        STAILQ_INSERT_TAIL(&cq->done, cmd, done_link);
    }
}

static uint32_t occupied(const struct cq *cq)
{
    uint32_t tail = atomic_load_explicit(&cq->tail, memory_order_relaxed);

    return (tail + cq->entries - cq->head) % cq->entries;
}

static bool head_moved(struct cq *cq, uint32_t *head)
{
    *head = doorbell_read(cq->worker, CQ_DOORBELL(cq->id), cq->head);
    if (*head == cq->head) {
        cq->doorbell.is_bad = false;
        return false;
    }
    return doorbell_is_news(&cq->doorbell, *head);
}

/* How far the host has read (NVMe 4.1): it cannot have read what was not posted. */
static bool update_head(struct cq *cq)
{
    struct nvme *nvme = cq->worker->nvme;
    uint32_t head;

    if (!head_moved(cq, &head)) {
        return false;
    }
    if (head >= cq->entries || (head + cq->entries - cq->head) % cq->entries > occupied(cq)) {
        doorbell_is_bad(&cq->doorbell, head);
        vfu_log(nvme->ctx, LOG_INFO, "completion queue %u: head doorbell %u, with %u entries",
                cq->id, head, cq->entries);
        events_bad_doorbell(nvme, NVME_EVENT_BAD_DOORBELL_VALUE);
        return false;
    }
    cq->doorbell.is_bad = false;
    atomic_store(&cq->head, head);
    return true;
}

unsigned cq_poll(struct cq *cq)
{
    unsigned n = update_head(cq);
    struct command *cmd;

    while ((cmd = STAILQ_FIRST(&cq->done)) != NULL && cq_writable(cq)) {
        STAILQ_REMOVE_HEAD(&cq->done, done_link);
        if (!post_command(cq, cmd)) {
            STAILQ_INSERT_HEAD(&cq->done, cmd, done_link);
            break;
        }
        n++;
    }
    if (cq->signal) {
        cq->signal = false;
        interrupt_raise(cq->worker->nvme, atomic_load_explicit(&cq->vector, memory_order_relaxed));
    }
    return n;
}

/* One entry stays free, or full would look like empty. */
bool cq_has_room(struct cq *cq)
{
    if (occupied(cq) + cq->promised + 1 < cq->entries) {
        return true;
    }
    update_head(cq);
    return occupied(cq) + cq->promised + 1 < cq->entries;
}

bool cq_post_event(struct cq *cq, struct sq *sq, uint16_t cid, uint32_t result, uint16_t status)
{
    struct nvme_completion entry = {
        .result = result,
        .sq_head = (uint16_t)sq->head,
        .sq_id = sq->id,
        .cid = cid,
        .status = (uint16_t)(status << 1),
    };

    if (!cq_has_room(cq) || !STAILQ_EMPTY(&cq->done) || !cq_writable(cq) || !post(cq, &entry)) {
        return false;
    }
    sq_release_cid(sq, cid);
    return true;
}

bool cq_has_work(struct cq *cq)
{
    uint32_t head;

    return head_moved(cq, &head) || (!STAILQ_EMPTY(&cq->done) && ring_may_come(&cq->ring));
}
