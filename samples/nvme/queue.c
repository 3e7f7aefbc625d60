/* SPDX-License-Identifier: BSD-3-Clause */
/* Queues: how they come and go. */
#include "queue.h"

#include "nvme.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/*
 * Beginning and end
 */

int queues_init(struct nvme *nvme)
{
    for (uint16_t i = 0; i < NVME_MAX_QUEUES; i++) {
        int err = ring_init(&nvme->sqs[i].ring, NVME_MAX_ENTRIES * sizeof(struct nvme_command));

        if (err == 0) {
            err = ring_init(&nvme->cqs[i].ring, NVME_MAX_ENTRIES * sizeof(struct nvme_completion));
        }
        if (err != 0) {
            return err;
        }
        nvme->sqs[i].id = i;
        nvme->cqs[i].id = i;
    }
    return 0;
}

void queues_destroy(struct nvme *nvme)
{
    for (unsigned i = 0; i < NVME_MAX_QUEUES; i++) {
        ring_destroy(&nvme->sqs[i].ring);
        ring_destroy(&nvme->cqs[i].ring);
    }
}

static void attach_cq(struct worker *worker, struct event *event)
{
    struct cq *cq = (struct cq *)((char *)event - offsetof(struct cq, attach));

    TAILQ_INSERT_TAIL(&worker->cqs, cq, link);
    bells_hear(worker, cq->id);
}

static void attach_sq(struct worker *worker, struct event *event)
{
    struct sq *sq = (struct sq *)((char *)event - offsetof(struct sq, attach));

    TAILQ_INSERT_TAIL(&worker->sqs, sq, link);
    bells_hear(worker, sq->id);
}

static void detach_cq(struct worker *worker, struct event *event)
{
    (void)worker;
    ((struct cq *)((char *)event - offsetof(struct cq, detach)))->detaching = true;
}

static void detach_sq(struct worker *worker, struct event *event)
{
    (void)worker;
    ((struct sq *)((char *)event - offsetof(struct sq, detach)))->detaching = true;
}

struct worker *queue_worker(struct nvme *nvme, uint16_t id)
{
    return &nvme->workers[queue_worker_index(nvme, id)];
}

static void reset_doorbell(struct nvme *nvme, unsigned index)
{
    atomic_store(&nvme->doorbells->reg[index], 0);
}

void cq_restore(struct nvme *nvme, const struct queue_config *config, uint32_t head, uint32_t tail,
                bool phase)
{
    struct cq *cq = &nvme->cqs[config->id];

    cq->worker = queue_worker(nvme, config->id);
    atomic_store(&cq->vector, config->vector);
    cq->entries = config->entries;
    atomic_store(&cq->head, head);
    atomic_store(&cq->tail, tail);
    cq->phase = phase;
    cq->detaching = false;
    cq->signal = false;
    cq->promised = 0;
    cq->doorbell.is_bad = false;
    atomic_store(&cq->doorbell.rung, false);
    STAILQ_INIT(&cq->done);
    ring_open(&cq->ring, cq->worker, config->addr, config->entries * sizeof(struct nvme_completion),
              PROT_READ | PROT_WRITE);
    reset_doorbell(nvme, CQ_DOORBELL(cq->id));
    cq->attach.run = attach_cq;
    worker_post(cq->worker, &cq->attach);
    atomic_store(&nvme->cq_owner[cq->id], cq->worker);
}

void cq_create(struct nvme *nvme, const struct queue_config *config)
{
    cq_restore(nvme, config, 0, 0, true);
}

void sq_restore(struct nvme *nvme, const struct queue_config *config, struct cq *cq, uint32_t head)
{
    struct sq *sq = &nvme->sqs[config->id];

    sq->worker = cq->worker;
    sq->cq = cq;
    sq->detaching = false;
    sq->entries = config->entries;
    sq->head = head;
    sq->in_flight = 0;
    sq->doorbell.is_bad = false;
    atomic_store(&sq->doorbell.rung, false);
    memset(sq->cids, 0, sizeof(sq->cids));
    ring_open(&sq->ring, sq->worker, config->addr, config->entries * sizeof(struct nvme_command),
              PROT_READ);
    reset_doorbell(nvme, SQ_DOORBELL(sq->id));
    sq->attach.run = attach_sq;
    worker_post(sq->worker, &sq->attach);
    atomic_store(&nvme->sq_owner[sq->id], sq->worker);
}

void sq_create(struct nvme *nvme, const struct queue_config *config, struct cq *cq)
{
    sq_restore(nvme, config, cq, 0);
}

void sq_restore_cid(struct sq *sq, uint16_t cid)
{
    sq->cids[cid / 8] |= (uint8_t)(1u << cid % 8);
}

void sq_restore_command(struct sq *sq, const struct nvme_command *sqe, bool ended, uint16_t status,
                        uint32_t result)
{
    struct worker *worker = sq->worker;
    struct command *cmd = command_alloc(worker);

    cmd->sq = sq;
    cmd->sqe = *sqe;
    cmd->status = status;
    cmd->result = result;
    cmd->missing_since = 0;
    sq->in_flight++;
    sq->cq->promised++;
    sq_restore_cid(sq, sqe->cid);
    if (ended) {
        cmd->stage = STAGE_DONE;
        STAILQ_INSERT_TAIL(&sq->cq->done, cmd, done_link);
    } else {
        cmd->stage = STAGE_PARKED;
        worker->nr_parked++;
        TAILQ_INSERT_TAIL(&worker->parked, cmd, parked_link);
    }
}

void cq_delete(struct cq *cq)
{
    atomic_store(&cq->worker->nvme->cq_owner[cq->id], NULL);
    cq->detach.run = detach_cq;
    worker_post(cq->worker, &cq->detach);
}

void sq_delete(struct sq *sq)
{
    atomic_store(&sq->worker->nvme->sq_owner[sq->id], NULL);
    sq->detach.run = detach_sq;
    worker_post(sq->worker, &sq->detach);
}

static void sq_deleted(struct worker *lead, struct event *event)
{
    (void)lead;
    admin_sq_deleted((struct sq *)((char *)event - offsetof(struct sq, detach)));
}

static void cq_deleted(struct worker *lead, struct event *event)
{
    (void)lead;
    admin_cq_deleted((struct cq *)((char *)event - offsetof(struct cq, detach)));
}

/* Commands that wait for memory might do so for ever. */
static void cancel_commands(struct sq *sq)
{
    bool held = controller_held(&sq->worker->nvme->controller);

    for (unsigned i = 0; i < WORKER_COMMANDS; i++) {
        struct command *cmd = &sq->worker->commands[i];

        if (cmd->sq != sq) {
            continue;
        }
        if (cmd->stage == STAGE_MEMORY) {
            command_cancel(cmd);
        } else if (cmd->stage == STAGE_PARKED && !held) {
            command_unpark(cmd);
            command_complete(cmd, NVME_SC_ABORTED_SQ_DELETED);
        }
    }
}

/*
 * While everything comes to a stop, what cannot be posted now would keep the queue, and whoever
 * wants it deleted. Without an entry the host takes a command as aborted (NVMe 5.6).
 */
static void forget_commands(struct sq *sq)
{
    struct worker *worker = sq->worker;

    for (unsigned i = 0; i < WORKER_COMMANDS; i++) {
        struct command *cmd = &worker->commands[i];

        if (cmd->sq != sq) {
            continue;
        }
        if (cmd->stage == STAGE_DONE) {
            STAILQ_REMOVE(&sq->cq->done, cmd, command, done_link);
            sq_forget(cmd);
        } else if (cmd->stage == STAGE_PARKED) {
            TAILQ_REMOVE(&worker->parked, cmd, parked_link);
            worker->nr_parked--;
            sq_forget(cmd);
        }
    }
}

/* The ring is closed. Who wants the queue deleted is told. */
static void drop_sq(struct worker *worker, struct sq *sq)
{
    TAILQ_REMOVE(&worker->sqs, sq, link);
    atomic_store(&worker->nvme->sq_owner[sq->id], NULL);
    if (sq->detaching) {
        sq->detach.run = sq_deleted;
        worker_post(nvme_lead(worker->nvme), &sq->detach);
    }
}

static void drop_cq(struct worker *worker, struct cq *cq)
{
    TAILQ_REMOVE(&worker->cqs, cq, link);
    atomic_store(&worker->nvme->cq_owner[cq->id], NULL);
    if (cq->detaching) {
        cq->detach.run = cq_deleted;
        worker_post(nvme_lead(worker->nvme), &cq->detach);
    }
}

static void finish_sq(struct worker *worker, struct sq *sq)
{
    if (sq->in_flight > 0) {
        cancel_commands(sq);
        if (worker->drain >= DRAIN_PARK) {
            forget_commands(sq);
        }
    }
    if (sq->in_flight == 0 && ring_close(&sq->ring)) {
        drop_sq(worker, sq);
    }
}

static void finish_cq(struct worker *worker, struct cq *cq)
{
    if (ring_close(&cq->ring)) {
        drop_cq(worker, cq);
    }
}

void queues_finish_detach(struct worker *worker)
{
    struct sq *sq, *next_sq;
    struct cq *cq, *next_cq;

    for (sq = TAILQ_FIRST(&worker->sqs); sq != NULL; sq = next_sq) {
        next_sq = TAILQ_NEXT(sq, link);
        if (sq->detaching) {
            finish_sq(worker, sq);
        }
    }
    for (cq = TAILQ_FIRST(&worker->cqs); cq != NULL; cq = next_cq) {
        next_cq = TAILQ_NEXT(cq, link);
        if (cq->detaching) {
            finish_cq(worker, cq);
        }
    }
}

/*
 * All queues of a worker
 */

void queues_close(struct worker *worker)
{
    struct shadow_doorbells *shadow = &worker->nvme->admin.shadows[worker->index];
    struct command *cmd;
    struct sq *sq;
    struct cq *cq;

    TAILQ_FOREACH(cq, &worker->cqs, link)
    {
        while ((cmd = STAILQ_FIRST(&cq->done)) != NULL) {
            STAILQ_REMOVE_HEAD(&cq->done, done_link);
            sq_forget(cmd);
        }
    }
    while ((sq = TAILQ_FIRST(&worker->sqs)) != NULL) {
        ring_close(&sq->ring);
        drop_sq(worker, sq);
    }
    while ((cq = TAILQ_FIRST(&worker->cqs)) != NULL) {
        ring_close(&cq->ring);
        drop_cq(worker, cq);
    }
    ring_close(&shadow->values);
    ring_close(&shadow->wanted);
    shadow->on = false;
    worker->missing = false;
    bells_hear_none(worker);
}

static void for_all_rings(struct worker *worker, void (*run)(struct ring *ring))
{
    struct shadow_doorbells *shadow = &worker->nvme->admin.shadows[worker->index];
    struct sq *sq;
    struct cq *cq;

    TAILQ_FOREACH(sq, &worker->sqs, link)
    {
        run(&sq->ring);
    }
    TAILQ_FOREACH(cq, &worker->cqs, link)
    {
        run(&cq->ring);
    }
    run(&shadow->values);
    run(&shadow->wanted);
}

void queues_retry_rings(struct worker *worker)
{
    for_all_rings(worker, ring_retry);
}

void queues_cancel(struct worker *worker)
{
    for_all_rings(worker, ring_cancel);
}

void queues_release_rings(struct worker *worker, bool revoked_only)
{
    if (revoked_only) {
        shadows_before_release(worker);
    }
    for_all_rings(worker, revoked_only ? ring_check_revoked : ring_release);
}
