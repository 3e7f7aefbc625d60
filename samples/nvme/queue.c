/* SPDX-License-Identifier: BSD-3-Clause */
/* Queues: creation and deletion, fetching, posting. */
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
            err = ring_init(&nvme->cqs[i].ring,
                            NVME_MAX_ENTRIES * sizeof(struct nvme_completion));
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
}

static void attach_sq(struct worker *worker, struct event *event)
{
    struct sq *sq = (struct sq *)((char *)event - offsetof(struct sq, attach));

    TAILQ_INSERT_TAIL(&worker->sqs, sq, link);
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

/* The admin queues are the lead's; the others are dealt out. */
static struct worker *worker_of(struct nvme *nvme, uint16_t id)
{
    return id == 0 ? nvme_lead(nvme) : &nvme->workers[(id - 1u) % nvme->nr_workers];
}

static void reset_doorbell(struct nvme *nvme, unsigned index)
{
    atomic_store(&nvme->doorbells->reg[index], 0);
}

void cq_create(struct nvme *nvme, const struct queue_config *config)
{
    struct cq *cq = &nvme->cqs[config->id];

    cq->worker = worker_of(nvme, config->id);
    atomic_store(&cq->vector, config->vector);
    cq->entries = config->entries;
    cq->head = 0;
    atomic_store(&cq->tail, 0);
    cq->phase = true;
    cq->detaching = false;
    cq->signal = false;
    cq->promised = 0;
    cq->bad_head = NO_VALUE;
    STAILQ_INIT(&cq->done);
    ring_open(&cq->ring, cq->worker, config->addr,
              config->entries * sizeof(struct nvme_completion), PROT_READ | PROT_WRITE);
    reset_doorbell(nvme, CQ_DOORBELL(cq->id));
    cq->attach.run = attach_cq;
    worker_post(cq->worker, &cq->attach);
    atomic_store(&nvme->cq_owner[cq->id], cq->worker);
}

void sq_create(struct nvme *nvme, const struct queue_config *config, struct cq *cq)
{
    struct sq *sq = &nvme->sqs[config->id];

    sq->worker = cq->worker;
    sq->cq = cq;
    sq->detaching = false;
    sq->entries = config->entries;
    sq->head = 0;
    sq->in_flight = 0;
    sq->bad_tail = NO_VALUE;
    memset(sq->cids, 0, sizeof(sq->cids));
    ring_open(&sq->ring, sq->worker, config->addr, config->entries * sizeof(struct nvme_command),
              PROT_READ);
    reset_doorbell(nvme, SQ_DOORBELL(sq->id));
    sq->attach.run = attach_sq;
    worker_post(sq->worker, &sq->attach);
    atomic_store(&nvme->sq_owner[sq->id], sq->worker);
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
    for (unsigned i = 0; i < WORKER_COMMANDS; i++) {
        struct command *cmd = &sq->worker->commands[i];

        if (cmd->stage == STAGE_MEMORY && cmd->sq == sq) {
            command_cancel(cmd);
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
    } else if (ring_close(&sq->ring)) {
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

void queues_cancel(struct worker *worker)
{
    struct shadow_doorbells *shadow = &worker->nvme->admin.shadows[worker->index];
    struct sq *sq;
    struct cq *cq;

    TAILQ_FOREACH (sq, &worker->sqs, link) {
        ring_cancel(&sq->ring);
    }
    TAILQ_FOREACH (cq, &worker->cqs, link) {
        ring_cancel(&cq->ring);
    }
    ring_cancel(&shadow->values);
    ring_cancel(&shadow->wanted);
}

void queues_close(struct worker *worker)
{
    struct shadow_doorbells *shadow = &worker->nvme->admin.shadows[worker->index];
    struct command *cmd;
    struct sq *sq;
    struct cq *cq;

    TAILQ_FOREACH (cq, &worker->cqs, link) {
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
}

void queues_release_rings(struct worker *worker, bool revoked_only)
{
    void (*release)(struct ring *) = revoked_only ? ring_check_revoked : ring_release;
    struct shadow_doorbells *shadow = &worker->nvme->admin.shadows[worker->index];
    struct sq *sq;
    struct cq *cq;

    TAILQ_FOREACH (sq, &worker->sqs, link) {
        release(&sq->ring);
    }
    TAILQ_FOREACH (cq, &worker->cqs, link) {
        release(&cq->ring);
    }
    release(&shadow->values);
    release(&shadow->wanted);
}

/*
 * Completions
 */

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
        controller_fatal(cq->worker->nvme, "completion queue %u cannot be written: %s", cq->id,
                         strerror(-err));
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
        ((hold & HOLD_MIGRATION) && drain == DRAIN_NONE) ||
        (drain == DRAIN_PARK && cq->ring.state != RING_READY)) {
        return false;
    }
    if (!ring_ready(&cq->ring)) {
        if (cq->ring.error != 0) {
            controller_fatal(nvme, "completion queue %u at 0x%llx is not there: %s", cq->id,
                             (unsigned long long)cq->ring.addr, strerror(cq->ring.error));
        }
        return false;
    }
    return true;
}

static void clear_cid(struct sq *sq, uint16_t cid)
{
    sq->cids[cid / 8] &= (uint8_t)~(1u << cid % 8);
}

void sq_release(struct sq *sq, struct command *cmd)
{
    sq->in_flight--;
    sq->cq->promised--;
    command_free(cmd);
}

void sq_forget(struct command *cmd)
{
    clear_cid(cmd->sq, cmd->sqe.cid);
    sq_release(cmd->sq, cmd);
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
    return *head != cq->head && *head != cq->bad_head;
}

/* How far the host has read (NVMe 4.1): it cannot have read what was not posted. */
static bool update_head(struct cq *cq)
{
    struct nvme *nvme = cq->worker->nvme;
    uint32_t head;

    if (!head_moved(cq, &head)) {
        return false;
    }
    if (head >= cq->entries ||
        (head + cq->entries - cq->head) % cq->entries > occupied(cq)) {
        cq->bad_head = head;
        vfu_log(nvme->ctx, LOG_INFO, "completion queue %u: head doorbell %u, with %u entries",
                cq->id, head, cq->entries);
        events_bad_doorbell(nvme, NVME_EVENT_BAD_DOORBELL_VALUE);
        return false;
    }
    cq->bad_head = NO_VALUE;
    cq->head = head;
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
        interrupt_raise(cq->worker->nvme,
                        atomic_load_explicit(&cq->vector, memory_order_relaxed));
    }
    return n;
}

/* One entry stays free, or full would look like empty. */
static bool cq_has_room(struct cq *cq)
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
    clear_cid(sq, cid);
    return true;
}

/*
 * Submissions
 */

/* The tail, or the head when the host wrote what cannot be one. */
static uint32_t read_tail(struct sq *sq)
{
    struct nvme *nvme = sq->worker->nvme;
    uint32_t tail = doorbell_read(sq->worker, SQ_DOORBELL(sq->id), sq->head);

    if (tail < sq->entries) {
        return tail;
    }
    if (tail != sq->bad_tail) {
        sq->bad_tail = tail;
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
        if (sq->ring.error != 0) {
            controller_fatal(sq->worker->nvme, "submission queue %u at 0x%llx is not there: %s",
                             sq->id, (unsigned long long)sq->ring.addr,
                             strerror(sq->ring.error));
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
        controller_fatal(sq->worker->nvme, "submission queue %u cannot be read: %s", sq->id,
                         strerror(-err));
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

/* Its memory is there, or has to be asked for. */
static bool ring_may_come(const struct ring *ring)
{
    return ring->state != RING_RESOLVING && ring->error == 0;
}

bool queues_have_work(struct worker *worker)
{
    uint32_t head;
    struct sq *sq;
    struct cq *cq;

    if (controller_held(&worker->nvme->controller)) {
        return false;
    }
    if (worker->nr_parked > 0) {
        return true;
    }
    TAILQ_FOREACH (sq, &worker->sqs, link) {
        if (read_tail(sq) != sq->head && can_fetch(sq) && ring_may_come(&sq->ring)) {
            return true;
        }
    }
    TAILQ_FOREACH (cq, &worker->cqs, link) {
        if (head_moved(cq, &head) || (!STAILQ_EMPTY(&cq->done) && ring_may_come(&cq->ring))) {
            return true;
        }
    }
    return false;
}
