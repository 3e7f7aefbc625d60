/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Doorbells: the page of BAR 0, or their shadows in guest memory (NVMe 5.7, 7.13), where the host
 * writes the register only when the value passes the one that the controller asked to be told of.
 */
#include "nvme.h"

#include <string.h>
#include <sys/mman.h>

/* Drivers keep the admin queues on registers. */
static bool has_shadow(const struct worker *worker, unsigned index)
{
    return worker->nvme->admin.shadows[worker->index].on && index > CQ_DOORBELL(0);
}

void shadows_open(struct worker *worker, uint64_t values, uint64_t wanted)
{
    struct shadow_doorbells *shadow = &worker->nvme->admin.shadows[worker->index];

    ring_open(&shadow->values, worker, values, DOORBELL_PAGE, PROT_READ | PROT_WRITE);
    ring_open(&shadow->wanted, worker, wanted, DOORBELL_PAGE, PROT_READ | PROT_WRITE);
    shadow->on = true;
}

static _Atomic uint32_t *entry_of(struct ring *ring, unsigned index)
{
    return ring_at(ring, index * sizeof(uint32_t));
}

/* As long as no doorbell is rung, a shadow that is away is no loss: the host may have no work. */
static bool ring_usable(struct worker *worker, struct ring *ring)
{
    struct nvme *nvme = worker->nvme;
    bool rung = atomic_load(&worker->rung);

    if (rung && ring->patient) {
        ring_retry(ring);
    }
    ring->patient = !rung;
    if (!ring_ready(ring)) {
        if (ring_is_lost(ring)) {
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

/* The guest's memory may have to be resolved first. Nothing is, while it must not be accessed. */
static bool shadows_usable(struct worker *worker)
{
    struct shadow_doorbells *shadow = &worker->nvme->admin.shadows[worker->index];

    if (controller_held(&worker->nvme->controller) || !ring_usable(worker, &shadow->values) ||
        !ring_usable(worker, &shadow->wanted)) {
        return false;
    }
    if (atomic_load_explicit(&worker->rung, memory_order_relaxed)) {
        atomic_store(&worker->rung, false);
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
    return shadows_usable(worker) ? atomic_load(entry_of(&shadow->values, index)) : now;
}

/* Only where the host has not written: what it writes meanwhile is newer than what was read. */
static void init_shadow(struct worker *worker, _Atomic uint32_t *page, unsigned index, uint32_t now)
{
    uint32_t nothing = 0;

    (void)atomic_compare_exchange_strong(&page[index], &nothing, doorbell_read(worker, index, now));
}

bool shadows_move(struct worker *worker, uint64_t values, uint64_t wanted, void *page)
{
    struct shadow_doorbells *shadow = &worker->nvme->admin.shadows[worker->index];
    struct sq *sq;
    struct cq *cq;

    if (shadow->on) {
        (void)shadows_usable(worker);
    }
    /* Those from before may be on their way still. */
    if (shadow->values.state == RING_RESOLVING || shadow->wanted.state == RING_RESOLVING) {
        return false;
    }
    TAILQ_FOREACH(sq, &worker->sqs, link)
    {
        if (sq->id != 0) {
            init_shadow(worker, page, SQ_DOORBELL(sq->id), sq->head);
        }
    }
    TAILQ_FOREACH(cq, &worker->cqs, link)
    {
        if (cq->id != 0) {
            init_shadow(worker, page, CQ_DOORBELL(cq->id), cq->head);
        }
    }
    ring_close(&shadow->values);
    ring_close(&shadow->wanted);
    shadows_open(worker, values, wanted);
    return true;
}

/*
 * A head matters to commands that wait for a place in the completion queue, and to the level of an
 * interrupt line.
 */
static bool head_matters(struct nvme *nvme, struct cq *cq)
{
    return !cq_has_room(cq) || atomic_load(&nvme->interrupts.mode) == INTERRUPT_INTX;
}

/*
 * Asks the host to ring when a value that matters moves on from where it is. The shadows must be
 * there.
 */
static void arm(struct worker *worker)
{
    struct shadow_doorbells *shadow = &worker->nvme->admin.shadows[worker->index];
    struct sq *sq;

    TAILQ_FOREACH(sq, &worker->sqs, link)
    {
        atomic_store(entry_of(&shadow->wanted, SQ_DOORBELL(sq->id)), sq->head);
        if (head_matters(worker->nvme, sq->cq)) {
            atomic_store(entry_of(&shadow->wanted, CQ_DOORBELL(sq->cq->id)), sq->cq->head);
        }
    }
}

void queues_arm_shadows(struct worker *worker)
{
    /* Held first: a state that is taken in opens the shadows of all workers. */
    if (!controller_held(&worker->nvme->controller) &&
        worker->nvme->admin.shadows[worker->index].on && shadows_usable(worker)) {
        arm(worker);
    }
}

void shadows_before_release(struct worker *worker)
{
    struct shadow_doorbells *shadow = &worker->nvme->admin.shadows[worker->index];
    struct sq *sq;

    if (controller_held(&worker->nvme->controller) || shadow->values.state != RING_READY ||
        shadow->wanted.state != RING_READY) {
        return;
    }
    arm(worker);
    TAILQ_FOREACH(sq, &worker->sqs, link)
    {
        if (sq->id != 0 &&
            atomic_load(entry_of(&shadow->values, SQ_DOORBELL(sq->id))) != sq->head) {
            atomic_store(&worker->rung, true);
        }
    }
}

void doorbells_reset(struct nvme *nvme)
{
    for (unsigned i = 0; i < NR_DOORBELLS; i++) {
        atomic_store(&nvme->doorbells->reg[i], 0);
    }
}

static void mark_rung(struct nvme *nvme, struct worker *owner, unsigned index)
{
    unsigned id = index / 2;

    atomic_store(index % 2 == 0 ? &nvme->sqs[id].doorbell.rung : &nvme->cqs[id].doorbell.rung,
                 true);
    if (id != 0) {
        atomic_store(&owner->rung, true);
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
    /* Before the value is there: the worker then knows that it was written again. */
    mark_rung(nvme, owner, index);
    atomic_store(&nvme->doorbells->reg[index], value);
    worker_wake(owner);
}

/* Reads guest memory that can be reached without asking the client. */
static bool peek(struct nvme *nvme, uint64_t addr, uint32_t *value)
{
    char space[128] __attribute__((aligned(16)));
    dma_sg_t *sg = (dma_sg_t *)space;
    struct iovec iov;

    if (addr > UINTPTR_MAX || dma_sg_size() > sizeof(space) ||
        vfu_addr_to_sgl_pasid(nvme->ctx, (vfu_dma_addr_t)(uintptr_t)addr, VFU_NO_PASID,
                              sizeof(*value), sg, 1, PROT_READ) != 1 ||
        vfu_sgl_get(nvme->ctx, sg, &iov, 1, 0) != 0) {
        return false;
    }
    *value = atomic_load((_Atomic uint32_t *)iov.iov_base);
    vfu_sgl_put(nvme->ctx, sg, &iov, 1);
    return true;
}

/* How far the host has read. Its worker may sleep, and not have seen the shadow's value yet. */
static uint32_t head_now(struct nvme *nvme, unsigned id)
{
    uint64_t page = atomic_load(&nvme->admin.shadow_page);
    uint32_t head;

    if (page == 0 || id == 0) {
        return atomic_load(&nvme->doorbells->reg[CQ_DOORBELL(id)]);
    }
    if (controller_held(&nvme->controller) ||
        !peek(nvme, (page & ~UINT64_C(1)) + CQ_DOORBELL(id) * sizeof(head), &head)) {
        head = atomic_load(&nvme->cqs[id].head);
    }
    return head;
}

/* Entries that the host has not read. */
static bool interrupting(struct nvme *nvme, unsigned id)
{
    struct cq *cq = &nvme->cqs[id];

    return atomic_load(&nvme->cq_owner[id]) != NULL && atomic_load(&cq->vector) != NO_VALUE &&
           atomic_load(&cq->tail) != head_now(nvme, id);
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
