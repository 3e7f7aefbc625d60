/* SPDX-License-Identifier: BSD-3-Clause */
/* Submission queues: fetching (NVMe 4.2). */
#include "nvme.h"

#include <errno.h>
#include <string.h>

void sq_release_cid(struct sq *sq, uint16_t cid)
{
    sq->cids[cid / 8] &= (uint8_t) ~(1u << cid % 8);
}

void sq_release(struct sq *sq, struct command *cmd)
{
    sq->in_flight--;
    sq->cq->promised--;
    command_free(cmd);
}

void sq_forget(struct command *cmd)
{
    sq_release_cid(cmd->sq, cmd->sqe.cid);
    sq_release(cmd->sq, cmd);
}

/* The tail, or the head when the host wrote what cannot be one. */
static uint32_t read_tail(struct sq *sq)
{
    struct nvme *nvme = sq->worker->nvme;
    uint32_t tail = doorbell_read(sq->worker, SQ_DOORBELL(sq->id), sq->head);

    if (tail < sq->entries) {
        sq->doorbell.is_bad = false;
        return tail;
    }
    if (doorbell_is_news(&sq->doorbell, tail)) {
        doorbell_is_bad(&sq->doorbell, tail);
        vfu_log(nvme->ctx, LOG_INFO, "submission queue %u: tail doorbell %u, with %u entries",
                sq->id, tail, sq->entries);
        events_bad_doorbell(nvme, NVME_EVENT_BAD_DOORBELL_VALUE);
    }
    return sq->head;
}

static bool can_fetch(struct sq *sq)
{
    unsigned kept = sq->id == 0 ? 0 : WORKER_ADMIN_COMMANDS;

    return !sq->detaching && sq->in_flight < SQ_COMMANDS && sq->worker->nr_free > kept &&
           cq_has_room(sq->cq);
}

static bool sq_readable(struct sq *sq)
{
    if (!ring_ready(&sq->ring)) {
        if (ring_is_lost(&sq->ring)) {
            controller_fatal(sq->worker->nvme, "submission queue %u at 0x%llx is not there: %s",
                             sq->id, (unsigned long long)sq->ring.addr, strerror(sq->ring.error));
        }
        return false;
    }
    return true;
}

static bool fetch(struct sq *sq, struct nvme_command *sqe)
{
    size_t offset = sq->head * sizeof(*sqe);
    const void *place = ring_at(&sq->ring, offset);
    int err = 0;

    if (place != NULL) {
        memcpy(sqe, place, sizeof(*sqe));
    } else {
        err = ring_copy(&sq->ring, offset, sqe, sizeof(*sqe), false);
    }
    if (err != 0) {
        if (err != -ECANCELED) {
            controller_fatal(sq->worker->nvme, "submission queue %u cannot be read: %s", sq->id,
                             strerror(-err));
        }
        return false;
    }
    sq->head = sq->head + 1 == sq->entries ? 0 : sq->head + 1;
    return true;
}

static void begin(struct sq *sq, struct command *cmd)
{
    uint8_t *cids = &sq->cids[cmd->sqe.cid / 8];
    uint8_t bit = (uint8_t)(1u << cmd->sqe.cid % 8);
    bool conflict = (*cids & bit) != 0;

    cmd->sq = sq;
    cmd->missing_since = 0;
    sq->in_flight++;
    sq->cq->promised++;
    sq->worker->busy++;
    *cids |= bit;
    if (conflict) {
        command_fail(cmd, NVME_SC_CID_CONFLICT, "a command with this identifier is in flight");
    } else {
        command_begin(cmd);
    }
}

unsigned sq_poll(struct sq *sq)
{
    uint32_t tail = read_tail(sq);
    unsigned n = 0;

    while (sq->head != tail && can_fetch(sq) && sq_readable(sq) &&
           !controller_held(&sq->worker->nvme->controller)) {
        struct command *cmd = command_alloc(sq->worker);

        if (!fetch(sq, &cmd->sqe)) {
            command_free(cmd);
            break;
        }
        n++;
        begin(sq, cmd);
    }
    return n;
}

bool queues_have_work(struct worker *worker)
{
    struct sq *sq;
    struct cq *cq;

    if (controller_held(&worker->nvme->controller)) {
        return false;
    }
    if (worker->nr_parked > 0 && !worker->missing) {
        return true;
    }
    TAILQ_FOREACH(sq, &worker->sqs, link)
    {
        if (read_tail(sq) != sq->head && can_fetch(sq) && ring_may_come(&sq->ring)) {
            return true;
        }
    }
    TAILQ_FOREACH(cq, &worker->cqs, link)
    {
        if (cq_has_work(cq)) {
            return true;
        }
    }
    return false;
}
