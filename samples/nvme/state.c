/* SPDX-License-Identifier: BSD-3-Clause */
#include "state.h"

#include "nvme.h"

#include <stdlib.h>
#include <string.h>

#define MAGIC "vfunvme"
#define VERSION 2

struct saved_queue {
    uint64_t addr;
    uint32_t entries; /* 0: there is no such queue */
    uint32_t vector;
    uint32_t head, tail;
    uint16_t cq;    /* of a submission queue */
    uint16_t phase; /* of a completion queue */
    uint32_t doorbell;
};

/* A command in flight: not begun, or with a completion that could not be posted. */
struct saved_command {
    struct nvme_command sqe;
    uint16_t sq, ended, status, reserved;
    uint32_t result, reserved2;
};

struct saved_namespace {
    uint64_t blocks;
    uint32_t block_shift, reserved;
};

struct saved_state {
    char magic[8];
    uint32_t version, nr_commands;
    uint32_t nr_queues, nr_namespaces;
    struct saved_namespace namespaces[NVME_MAX_NAMESPACES];
    uint32_t cc, csts, intms, aqa;
    uint64_t asq, acq;
    uint64_t shadow_values, shadow_wanted;
    uint8_t shadow_on, write_cache, reserved[6];
    struct identity identity;
    struct features features; /* its timestamp is the one of now */
    struct async_events events;
    struct saved_queue cqs[NVME_MAX_QUEUES], sqs[NVME_MAX_QUEUES];
    struct saved_command commands[];
};

/*
 * Saving
 */

static void save_registers(struct nvme *nvme, struct saved_state *s)
{
    struct controller *c = &nvme->controller;

    s->cc = atomic_load(&c->cc);
    s->csts = atomic_load(&c->csts);
    s->intms = atomic_load(&c->intms);
    s->aqa = atomic_load(&c->aqa);
    s->asq = atomic_load(&c->asq);
    s->acq = atomic_load(&c->acq);
}

static void save_admin(struct nvme *nvme, struct saved_state *s)
{
    const struct shadow_doorbells *shadow = &nvme->admin.shadows[0];

    s->identity = nvme->identity;
    s->features = nvme->admin.features;
    features_freeze_timestamp(&s->features);
    s->events = nvme->admin.events;
    s->write_cache = atomic_load(&nvme->admin.write_cache);
    s->shadow_on = shadow->on;
    s->shadow_values = shadow->on ? shadow->values.addr : 0;
    s->shadow_wanted = shadow->on ? shadow->wanted.addr : 0;
}

static void save_queues(struct nvme *nvme, struct saved_state *s)
{
    for (unsigned i = 0; i < NVME_MAX_QUEUES; i++) {
        const struct cq *cq = &nvme->cqs[i];
        const struct sq *sq = &nvme->sqs[i];

        if (atomic_load(&nvme->cq_owner[i]) != NULL) {
            s->cqs[i] = (struct saved_queue){
                .addr = cq->ring.addr,
                .entries = cq->entries,
                .vector = atomic_load(&cq->vector),
                .head = atomic_load(&cq->head),
                .tail = atomic_load(&cq->tail),
                .phase = cq->phase,
                .doorbell = atomic_load(&nvme->doorbells->reg[CQ_DOORBELL(i)]),
            };
        }
        if (atomic_load(&nvme->sq_owner[i]) != NULL) {
            s->sqs[i] = (struct saved_queue){
                .addr = sq->ring.addr,
                .entries = sq->entries,
                .head = sq->head,
                .cq = sq->cq->id,
                .doorbell = atomic_load(&nvme->doorbells->reg[SQ_DOORBELL(i)]),
            };
        }
    }
}

static void save_command(struct saved_state *s, const struct command *cmd)
{
    s->commands[s->nr_commands++] = (struct saved_command){
        .sqe = cmd->sqe,
        .sq = cmd->sq->id,
        .ended = cmd->stage == STAGE_DONE,
        .status = cmd->status,
        .result = cmd->result,
    };
}

static void save_commands(struct nvme *nvme, struct saved_state *s)
{
    const struct command *cmd;

    for (unsigned i = 0; i < nvme->nr_workers; i++) {
        TAILQ_FOREACH(cmd, &nvme->workers[i].parked, parked_link)
        {
            save_command(s, cmd);
        }
    }
    for (unsigned i = 0; i < NVME_MAX_QUEUES; i++) {
        if (atomic_load(&nvme->cq_owner[i]) == NULL) {
            continue;
        }
        STAILQ_FOREACH(cmd, &nvme->cqs[i].done, done_link)
        {
            save_command(s, cmd);
        }
    }
}

void *state_save(struct nvme *nvme, size_t *size)
{
    size_t max = nvme->nr_workers * WORKER_COMMANDS * sizeof(struct saved_command);
    struct saved_state *s = calloc(1, sizeof(*s) + max);

    if (s == NULL) {
        return NULL;
    }
    memcpy(s->magic, MAGIC, sizeof(s->magic));
    s->version = VERSION;
    s->nr_queues = nvme->config.nr_queues;
    s->nr_namespaces = nvme->nr_namespaces;
    for (unsigned i = 0; i < nvme->nr_namespaces; i++) {
        s->namespaces[i].blocks = nvme->namespaces[i].blocks;
        s->namespaces[i].block_shift = nvme->namespaces[i].block_shift;
    }
    save_registers(nvme, s);
    save_admin(nvme, s);
    save_queues(nvme, s);
    save_commands(nvme, s);
    *size = sizeof(*s) + s->nr_commands * sizeof(s->commands[0]);
    return s;
}

/*
 * Checking
 */

static const char *header_fault(struct nvme *nvme, const struct saved_state *s, size_t size)
{
    if (size < sizeof(*s) || memcmp(s->magic, MAGIC, sizeof(s->magic)) != 0) {
        return "it is no state of this device";
    }
    if (s->version != VERSION) {
        return "its version is another";
    }
    if (s->nr_commands > NVME_MAX_QUEUES * SQ_COMMANDS ||
        size != sizeof(*s) + s->nr_commands * sizeof(s->commands[0])) {
        return "its size is not what it says";
    }
    if (s->nr_queues != nvme->config.nr_queues || s->nr_namespaces != nvme->nr_namespaces) {
        return "it has another number of queues or namespaces";
    }
    for (unsigned i = 0; i < nvme->nr_namespaces; i++) {
        if (s->namespaces[i].blocks != nvme->namespaces[i].blocks ||
            s->namespaces[i].block_shift != nvme->namespaces[i].block_shift) {
            return "a namespace has another size";
        }
    }
    return NULL;
}

static bool valid_queue(const struct saved_queue *q)
{
    return q->entries >= NVME_MIN_ENTRIES && q->entries <= NVME_MAX_ENTRIES &&
           q->addr % RING_PAGE == 0 && q->head < q->entries && q->tail < q->entries &&
           q->phase <= 1;
}

static const char *queues_fault(struct nvme *nvme, const struct saved_state *s)
{
    for (unsigned i = 0; i < NVME_MAX_QUEUES; i++) {
        const struct saved_queue *cq = &s->cqs[i], *sq = &s->sqs[i];

        if ((i > nvme->config.nr_queues || s->cqs[0].entries == 0) &&
            (cq->entries != 0 || sq->entries != 0)) {
            return "it has a queue that cannot be";
        }
        if ((cq->entries != 0 && !valid_queue(cq)) || (sq->entries != 0 && !valid_queue(sq))) {
            return "a queue makes no sense";
        }
        if (cq->entries != 0 && cq->vector != NO_VALUE && cq->vector >= nvme_vectors(nvme)) {
            return "a queue has an interrupt vector that is not there";
        }
        if (sq->entries != 0 && (sq->cq >= NVME_MAX_QUEUES || s->cqs[sq->cq].entries == 0 ||
                                 (i == 0) != (sq->cq == 0))) {
            return "a submission queue has no completion queue";
        }
    }
    if ((s->cqs[0].entries == 0) != (s->sqs[0].entries == 0)) {
        return "half of the admin queue is missing";
    }
    return NULL;
}

static const char *commands_fault(struct nvme *nvme, const struct saved_state *s)
{
    uint32_t of_sq[NVME_MAX_QUEUES] = { 0 }, of_cq[NVME_MAX_QUEUES] = { 0 };
    uint32_t of_worker[NVME_MAX_WORKERS] = { 0 };

    for (uint32_t i = 0; i < s->nr_commands; i++) {
        uint16_t sq = s->commands[i].sq, cq;

        if (sq >= NVME_MAX_QUEUES || s->sqs[sq].entries == 0) {
            return "a command has no queue";
        }
        cq = s->sqs[sq].cq;
        if (++of_sq[sq] > SQ_COMMANDS || ++of_cq[cq] >= s->cqs[cq].entries) {
            return "a queue has more commands than it can";
        }
        if (++of_worker[queue_worker(nvme, cq)->index] > WORKER_COMMANDS) {
            return "there are more commands than this device can take: give it more threads";
        }
    }
    return NULL;
}

static const char *admin_fault(const struct saved_state *s)
{
    bool queues = s->cqs[0].entries != 0;

    if (queues && (!(s->cc & NVME_CC_EN) || !(s->csts & NVME_CSTS_RDY))) {
        return "there are queues, and the controller is not enabled";
    }
    if (!queues && s->shadow_on) {
        return "there are shadow doorbells, and no admin queue";
    }
    if (s->events.nr_held > ADMIN_EVENT_LIMIT || (s->events.nr_held > 0 && !queues)) {
        return "it has more requests for events than it can";
    }
    if (s->shadow_on && (s->shadow_values % RING_PAGE != 0 || s->shadow_wanted % RING_PAGE != 0)) {
        return "shadow doorbells are not aligned";
    }
    if (!identity_valid(&s->identity)) {
        return "its serial number or NQN has no end";
    }
    if (NVME_CC_MPS(s->cc) > NVME_MAX_PAGE_SHIFT - NVME_PAGE_SHIFT) {
        return "its pages are too large";
    }
    return NULL;
}

static const char *fault_in(struct nvme *nvme, const struct saved_state *s, size_t size)
{
    const char *fault = header_fault(nvme, s, size);

    if (fault == NULL) {
        fault = queues_fault(nvme, s);
    }
    if (fault == NULL) {
        fault = commands_fault(nvme, s);
    }
    return fault != NULL ? fault : admin_fault(s);
}

/*
 * Loading
 */

static void load_registers(struct nvme *nvme, const struct saved_state *s)
{
    struct controller *c = &nvme->controller;

    atomic_store(&c->cc, s->cc & NVME_CC_WRITABLE);
    atomic_store(&c->csts, s->csts & (NVME_CSTS_RDY | NVME_CSTS_CFS | NVME_CSTS_SHST_MASK));
    atomic_store(&c->intms, s->intms);
    atomic_store(&c->aqa, s->aqa & NVME_AQA_WRITABLE);
    atomic_store(&c->asq, s->asq);
    atomic_store(&c->acq, s->acq);
    c->page_shift = NVME_PAGE_SHIFT + NVME_CC_MPS(s->cc);
}

static void load_admin(struct nvme *nvme, const struct saved_state *s)
{
    nvme->identity = s->identity;
    nvme->admin.features = s->features;
    features_thaw_timestamp(&nvme->admin.features);
    nvme->admin.events = s->events;
    atomic_store(&nvme->admin.write_cache, s->write_cache != 0);
}

static void load_queues(struct nvme *nvme, const struct saved_state *s)
{
    for (uint16_t i = 0; i < NVME_MAX_QUEUES; i++) {
        const struct saved_queue *q = &s->cqs[i];
        struct queue_config config = {
            .id = i, .entries = q->entries, .addr = q->addr, .vector = q->vector
        };

        if (q->entries != 0) {
            cq_restore(nvme, &config, q->head, q->tail, q->phase != 0);
            atomic_store(&nvme->doorbells->reg[CQ_DOORBELL(i)], q->doorbell);
            nvme->admin.cq_state[i] = i == 0 ? QUEUE_NONE : QUEUE_LIVE;
        }
    }
    for (uint16_t i = 0; i < NVME_MAX_QUEUES; i++) {
        const struct saved_queue *q = &s->sqs[i];
        struct queue_config config = { .id = i, .entries = q->entries, .addr = q->addr };

        if (q->entries != 0) {
            sq_restore(nvme, &config, &nvme->cqs[q->cq], q->head);
            atomic_store(&nvme->doorbells->reg[SQ_DOORBELL(i)], q->doorbell);
            nvme->admin.sq_state[i] = i == 0 ? QUEUE_NONE : QUEUE_LIVE;
        }
    }
}

static void load_commands(struct nvme *nvme, const struct saved_state *s)
{
    for (uint32_t i = 0; i < s->nr_commands; i++) {
        const struct saved_command *saved = &s->commands[i];

        sq_restore_command(&nvme->sqs[saved->sq], &saved->sqe, saved->ended != 0, saved->status,
                           saved->result);
    }
    for (unsigned i = 0; i < s->events.nr_held; i++) {
        sq_restore_cid(&nvme->sqs[0], s->events.cids[i]);
    }
}

static void load_shadows(struct nvme *nvme, const struct saved_state *s)
{
    atomic_store(&nvme->admin.shadow_page, s->shadow_on ? s->shadow_values | 1 : 0);
    for (unsigned i = 0; s->shadow_on && i < nvme->nr_workers; i++) {
        shadows_open(&nvme->workers[i], s->shadow_values, s->shadow_wanted);
    }
}

const char *state_load(struct nvme *nvme, const void *state, size_t size)
{
    const struct saved_state *s = state;
    const char *fault = fault_in(nvme, s, size);

    if (fault != NULL) {
        return fault;
    }
    load_registers(nvme, s);
    load_admin(nvme, s);
    load_queues(nvme, s);
    load_commands(nvme, s);
    load_shadows(nvme, s);
    return NULL;
}
