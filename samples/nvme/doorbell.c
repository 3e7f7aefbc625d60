/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Doorbells: the page of BAR 0, or their shadows in guest memory (NVMe 5.7, 7.13), where the host
 * writes the register only when the value passes the one that the controller asked to be told of.
 */
#include "nvme.h"

#include <string.h>

/* Drivers keep the admin queues on registers. */
static bool has_shadow(const struct worker *worker, unsigned index)
{
    return worker->nvme->admin.shadows[worker->index].on && index > CQ_DOORBELL(0);
}

/* The doorbells of queues that come later are in the shadows from the beginning. */
static void mark_queues(struct worker *worker)
{
    struct sq *sq;
    struct cq *cq;

    TAILQ_FOREACH(sq, &worker->sqs, link)
    {
        sq->in_register = sq->id != 0;
    }
    TAILQ_FOREACH(cq, &worker->cqs, link)
    {
        cq->in_register = cq->id != 0;
    }
}

void shadows_open(struct worker *worker, uint64_t values, uint64_t wanted, bool fresh)
{
    struct shadow_doorbells *shadow = &worker->nvme->admin.shadows[worker->index];

    ring_open(&shadow->values, worker, values, DOORBELL_PAGE, PROT_READ | PROT_WRITE);
    ring_open(&shadow->wanted, worker, wanted, DOORBELL_PAGE, PROT_READ | PROT_WRITE);
    shadow->on = true;
    shadow->fresh = fresh;
    if (fresh) {
        mark_queues(worker);
    }
}

static _Atomic uint32_t *entry_of(struct ring *ring, unsigned index)
{
    return ring_at(ring, index * sizeof(uint32_t));
}

/* Until now the host has written the registers. */
static void copy_registers(struct worker *worker, struct ring *values)
{
    struct doorbells *doorbells = worker->nvme->doorbells;
    unsigned index;
    struct sq *sq;
    struct cq *cq;

    TAILQ_FOREACH(sq, &worker->sqs, link)
    {
        index = SQ_DOORBELL(sq->id);
        if (sq->in_register) {
            sq->in_register = false;
            atomic_store(entry_of(values, index), atomic_load(&doorbells->reg[index]));
        }
    }
    TAILQ_FOREACH(cq, &worker->cqs, link)
    {
        index = CQ_DOORBELL(cq->id);
        if (cq->in_register) {
            cq->in_register = false;
            atomic_store(entry_of(values, index), atomic_load(&doorbells->reg[index]));
        }
    }
}

static bool ring_usable(struct nvme *nvme, struct ring *ring)
{
    if (!ring_ready(ring)) {
        if (ring->error != 0) {
            controller_fatal(nvme, "shadow doorbells at 0x%llx are not there: %s",
                             (unsigned long long)ring->addr, strerror(ring->error));
        }
        return false;
    }
    if (ring_at(ring, 0) == NULL) {
        controller_fatal(nvme, "shadow doorbells at 0x%llx are in memory that is not shared",
                         (unsigned long long)ring->addr);
        return false;
    }
    return true;
}

/* The guest's memory may have to be resolved first. */
static bool shadows_usable(struct worker *worker, struct shadow_doorbells *shadow)
{
    if (!ring_usable(worker->nvme, &shadow->values) ||
        !ring_usable(worker->nvme, &shadow->wanted)) {
        return false;
    }
    if (shadow->fresh) {
        shadow->fresh = false;
        copy_registers(worker, &shadow->values);
    }
    return true;
}

/* A register may be older than what was fetched long ago: it is no substitute for its shadow. */
uint32_t doorbell_read(struct worker *worker, unsigned index, uint32_t now)
{
    struct nvme *nvme = worker->nvme;
    struct shadow_doorbells *shadow = &nvme->admin.shadows[worker->index];

    if (!has_shadow(worker, index)) {
        return atomic_load(&nvme->doorbells->reg[index]);
    }
    return shadows_usable(worker, shadow) ? atomic_load(entry_of(&shadow->values, index)) : now;
}

/*
 * A head matters to commands that wait for a place in the completion queue, and to the level of an
 * interrupt line.
 */
static bool head_matters(struct nvme *nvme, struct cq *cq)
{
    return !cq_has_room(cq) || atomic_load(&nvme->interrupts.mode) == INTERRUPT_INTX;
}

/* The host is to ring when a value that matters moves on from where it is. */
void queues_arm_shadows(struct worker *worker)
{
    struct shadow_doorbells *shadow = &worker->nvme->admin.shadows[worker->index];
    struct sq *sq;

    /* Held first: a state that is taken in opens the shadows of all workers. */
    if (controller_held(&worker->nvme->controller) || !shadow->on ||
        !shadows_usable(worker, shadow)) {
        return;
    }
    TAILQ_FOREACH(sq, &worker->sqs, link)
    {
        atomic_store(entry_of(&shadow->wanted, SQ_DOORBELL(sq->id)), sq->head);
        if (head_matters(worker->nvme, sq->cq)) {
            atomic_store(entry_of(&shadow->wanted, CQ_DOORBELL(sq->cq->id)), sq->cq->head);
        }
    }
}

void doorbell_written(struct nvme *nvme, unsigned index, uint32_t value)
{
    unsigned id = index / 2;
    _Atomic(struct worker *) *owners = index % 2 == 0 ? nvme->sq_owner : nvme->cq_owner;
    struct worker *owner = id < NVME_MAX_QUEUES ? atomic_load(&owners[id]) : NULL;

    if (owner == NULL) {
        vfu_log(nvme->ctx, LOG_INFO, "doorbell of %s queue %u, which is not there: %u",
                index % 2 == 0 ? "submission" : "completion", id, value);
        events_bad_doorbell(nvme, NVME_EVENT_BAD_DOORBELL);
        return;
    }
    if ((atomic_load(&nvme->controller.hold) & HOLD_BUS_MASTER) && !nvme->told_bus_master) {
        nvme->told_bus_master = true;
        vfu_log(nvme->ctx, LOG_WARNING,
                "doorbell of queue %u: nothing is fetched, the driver has not set Bus Master "
                "Enable",
                id);
    }
    atomic_store(&nvme->doorbells->reg[index], value);
    worker_wake(owner);
}

/* Entries that the host has not read. */
static bool interrupting(struct nvme *nvme, unsigned id)
{
    struct cq *cq = &nvme->cqs[id];

    return atomic_load(&nvme->cq_owner[id]) != NULL && atomic_load(&cq->vector) != NO_VALUE &&
           atomic_load(&cq->tail) != atomic_load(&nvme->doorbells->reg[CQ_DOORBELL(id)]);
}

bool queues_interrupting(struct nvme *nvme)
{
    for (unsigned i = 0; i < NVME_MAX_QUEUES; i++) {
        if (interrupting(nvme, i)) {
            return true;
        }
    }
    return false;
}

void queues_interrupt_again(struct nvme *nvme)
{
    for (unsigned i = 0; i < NVME_MAX_QUEUES; i++) {
        if (interrupting(nvme, i)) {
            interrupt_raise(nvme, atomic_load(&nvme->cqs[i].vector));
        }
    }
}
