/* SPDX-License-Identifier: BSD-3-Clause */
#include "controller.h"

#include "nvme.h"
#include "state.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/*
 * Holding and draining
 */

void controller_wake(struct nvme *nvme)
{
    for (unsigned i = 0; i < nvme->nr_workers; i++) {
        worker_wake(&nvme->workers[i]);
    }
}

void controller_hold(struct nvme *nvme, uint32_t why)
{
    atomic_fetch_or(&nvme->controller.hold, why);
}

void controller_unhold(struct nvme *nvme, uint32_t why)
{
    atomic_fetch_and(&nvme->controller.hold, ~why);
    controller_wake(nvme);
}

void controller_fatal(struct nvme *nvme, const char *fmt, ...)
{
    char line[256];
    va_list ap;

    if (atomic_fetch_or(&nvme->controller.hold, HOLD_FATAL) & HOLD_FATAL) {
        return;
    }
    atomic_fetch_or(&nvme->controller.csts, NVME_CSTS_CFS);
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    vfu_log(nvme->ctx, LOG_ERR, "fatal, until the driver resets the controller: %s", line);
}

/* The lead has every worker come to an end of some kind. */
static void drain(struct nvme *nvme, enum drain kind)
{
    struct controller *c = &nvme->controller;

    c->draining = true;
    atomic_fetch_add(&c->acks, nvme->nr_workers);
    for (unsigned i = 0; i < nvme->nr_workers; i++) {
        worker_post(&nvme->workers[i], &nvme->workers[i].drain_event[kind]);
    }
}

void controller_drained(struct nvme *nvme, unsigned acks)
{
    if (atomic_fetch_sub(&nvme->controller.acks, acks) == acks) {
        worker_wake(nvme_lead(nvme));
    }
}

/*
 * Enabling: the admin queues (NVMe 7.6.1)
 */

static const char *enable_fault(struct nvme *nvme)
{
    struct controller *c = &nvme->controller;
    uint32_t cc = atomic_load(&c->cc), aqa = atomic_load(&c->aqa);
    uint64_t page = (uint64_t)1 << (NVME_PAGE_SHIFT + NVME_CC_MPS(cc));

    if (NVME_CC_CSS(cc) != 0) {
        return "CC.CSS asks for a command set that is not there";
    }
    if (NVME_CC_AMS(cc) != 0) {
        return "CC.AMS asks for an arbitration other than round robin";
    }
    if (page > (uint64_t)1 << NVME_MAX_PAGE_SHIFT) {
        return "CC.MPS is larger than CAP.MPSMAX";
    }
    if ((aqa & 0xfff) < 1 || (aqa >> 16) < 1) {
        return "AQA has a queue of less than two entries";
    }
    if (atomic_load(&c->asq) % page != 0 || atomic_load(&c->acq) % page != 0) {
        return "ASQ or ACQ is not aligned to a page";
    }
    return NULL;
}

/* Unless it is to be disabled again meanwhile. */
static void started(struct controller *c)
{
    pthread_mutex_lock(&c->lock);
    if (c->state == CONTROLLER_STARTING) {
        c->state = CONTROLLER_ON;
    }
    pthread_mutex_unlock(&c->lock);
}

static void create_admin_queues(struct nvme *nvme)
{
    struct controller *c = &nvme->controller;
    uint32_t aqa = atomic_load(&c->aqa);
    struct queue_config cq = {
        .entries = (aqa >> 16) + 1,
        .addr = atomic_load(&c->acq),
    };
    struct queue_config sq = { .entries = (aqa & 0xfff) + 1, .addr = atomic_load(&c->asq) };

    cq_create(nvme, &cq);
    sq_create(nvme, &sq, &nvme->cqs[0]);
}

static void enable_on_lead(struct worker *worker, struct event *event)
{
    struct nvme *nvme = worker->nvme;
    struct controller *c = &nvme->controller;
    const char *fault = enable_fault(nvme);

    (void)event;
    if (fault != NULL) {
        controller_fatal(nvme, "it cannot be enabled: %s", fault);
        started(c);
        return;
    }
    admin_reset(nvme);
    c->page_shift = NVME_PAGE_SHIFT + NVME_CC_MPS(atomic_load(&c->cc));
    create_admin_queues(nvme);
    atomic_fetch_or(&c->csts, NVME_CSTS_RDY);
    started(c);
    atomic_fetch_and(&c->hold, ~(uint32_t)HOLD_OFF);
    vfu_log(nvme->ctx, LOG_INFO, "controller enabled");
}

/* Lock held. */
static void start(struct nvme *nvme)
{
    /* A shutdown while it was off is over. */
    atomic_fetch_and(&nvme->controller.csts, ~NVME_CSTS_SHST_MASK);
    nvme->controller.state = CONTROLLER_STARTING;
    worker_post(nvme_lead(nvme), &nvme->controller.enable_event);
}

void controller_enable(struct nvme *nvme)
{
    struct controller *c = &nvme->controller;

    pthread_mutex_lock(&c->lock);
    if (c->state == CONTROLLER_OFF) {
        start(nvme);
    }
    /* Else it is being disabled still: finish_stop() sees what CC asks for. */
    pthread_mutex_unlock(&c->lock);
}

/*
 * Disabling (NVMe 7.3.2)
 */

static void disable_on_lead(struct worker *worker, struct event *event)
{
    struct nvme *nvme = worker->nvme;

    (void)event;
    controller_hold(nvme, HOLD_OFF);
    nvme->controller.stop_wanted = true;
    drain(nvme, DRAIN_STOP);
}

static void finish_stop(struct nvme *nvme)
{
    struct controller *c = &nvme->controller;

    c->stop_wanted = false;
    c->shutdown_wanted = false;
    admin_reset(nvme);
    doorbells_reset(nvme);
    pthread_mutex_lock(&c->lock);
    c->state = CONTROLLER_OFF;
    atomic_store(&c->csts, 0);
    atomic_store(&c->intms, 0);
    atomic_fetch_and(&c->hold, ~(uint32_t)(HOLD_FATAL | HOLD_SHUTDOWN));
    pthread_cond_broadcast(&c->changed);
    if (atomic_load(&c->cc) & NVME_CC_EN) {
        start(nvme);
    }
    pthread_mutex_unlock(&c->lock);
    vfu_log(nvme->ctx, LOG_INFO, "controller disabled");
}

void controller_disable(struct nvme *nvme)
{
    struct controller *c = &nvme->controller;

    pthread_mutex_lock(&c->lock);
    if (c->state == CONTROLLER_ON || c->state == CONTROLLER_STARTING) {
        c->state = CONTROLLER_STOPPING;
        worker_post(nvme_lead(nvme), &c->disable_event);
    } else if (c->state == CONTROLLER_OFF) {
        atomic_store(&c->csts, 0);
    }
    pthread_mutex_unlock(&c->lock);
}

/*
 * Shutdown (NVMe 7.6.2)
 */

static void finish_shutdown(struct nvme *nvme)
{
    atomic_fetch_and(&nvme->controller.csts, ~NVME_CSTS_SHST_MASK);
    atomic_fetch_or(&nvme->controller.csts, NVME_CSTS_SHST_COMPLETE);
    vfu_log(nvme->ctx, LOG_INFO, "controller shut down");
}

static void flushed(struct backend_io *io, int error)
{
    struct namespace *ns = (struct namespace *)((char *)io - offsetof(struct namespace, flush));
    struct nvme *nvme = ns->nvme;

    if (error != 0) {
        vfu_log(nvme->ctx, LOG_ERR, "namespace %u cannot be flushed at the shutdown: %s", ns->id,
                strerror(error));
    }
    nvme_lead(nvme)->busy--;
    if (--nvme->controller.flushes == 0) {
        finish_shutdown(nvme);
    }
}

static void flush_all(struct nvme *nvme)
{
    struct worker *lead = nvme_lead(nvme);

    nvme->controller.shutdown_wanted = false;
    /* One for ourselves: it does not reach zero before all are under way. */
    nvme->controller.flushes = nvme->nr_namespaces + 1;
    for (unsigned i = 0; i < nvme->nr_namespaces; i++) {
        struct namespace *ns = &nvme->namespaces[i];

        ns->flush = (struct backend_io){ .op = BACKEND_FLUSH, .done = flushed };
        lead->busy++;
        backend_submit(lead->backend, ns->backend, &ns->flush);
    }
    if (--nvme->controller.flushes == 0) {
        finish_shutdown(nvme);
    }
}

static void shutdown_on_lead(struct worker *worker, struct event *event)
{
    struct controller *c = &worker->nvme->controller;

    (void)event;
    if (!c->stop_wanted) {
        c->shutdown_wanted = true;
        drain(worker->nvme, DRAIN_IDLE);
    }
}

void controller_shutdown(struct nvme *nvme)
{
    struct controller *c = &nvme->controller;
    bool on;

    pthread_mutex_lock(&c->lock);
    on = c->state == CONTROLLER_ON || c->state == CONTROLLER_STARTING;
    if (!on) {
        atomic_fetch_or(&c->csts, NVME_CSTS_SHST_COMPLETE);
    }
    pthread_mutex_unlock(&c->lock);
    if (!on) {
        return;
    }
    /* Once: what comes after it is a reset. */
    if (atomic_load(&c->csts) & NVME_CSTS_SHST_MASK) {
        return;
    }
    atomic_fetch_or(&c->csts, NVME_CSTS_SHST_OCCURRING);
    controller_hold(nvme, HOLD_SHUTDOWN);
    worker_post(nvme_lead(nvme), &c->shutdown_event);
}

/*
 * Pausing, for migration
 */

static void pause_on_lead(struct worker *worker, struct event *event)
{
    (void)event;
    worker->nvme->controller.pause_wanted = true;
    drain(worker->nvme, DRAIN_PARK);
}

void controller_pause(struct nvme *nvme)
{
    struct controller *c = &nvme->controller;

    pthread_mutex_lock(&c->lock);
    if (!c->paused) {
        controller_hold(nvme, HOLD_MIGRATION);
        worker_post(nvme_lead(nvme), &c->pause_event);
    }
    while (!c->paused) {
        pthread_cond_wait(&c->changed, &c->lock);
    }
    pthread_mutex_unlock(&c->lock);
}

void controller_resume(struct nvme *nvme)
{
    pthread_mutex_lock(&nvme->controller.lock);
    nvme->controller.paused = false;
    pthread_mutex_unlock(&nvme->controller.lock);
    controller_unhold(nvme, HOLD_MIGRATION);
}

/* On the lead: the control thread goes on. */
static void saved(struct controller *c)
{
    pthread_mutex_lock(&c->lock);
    c->saved.done = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static void save_on_lead(struct worker *worker, struct event *event)
{
    struct controller *c = &worker->nvme->controller;

    (void)event;
    c->saved.data = state_save(worker->nvme, &c->saved.size);
    saved(c);
}

static void load_on_lead(struct worker *worker, struct event *event)
{
    struct nvme *nvme = worker->nvme;
    struct controller *c = &nvme->controller;
    uint32_t csts;

    (void)event;
    c->saved.fault = state_load(nvme, c->saved.data, c->saved.size);
    csts = atomic_load(&c->csts);
    if (c->saved.fault == NULL && (atomic_load(&c->cc) & NVME_CC_EN)) {
        controller_hold(nvme, (csts & NVME_CSTS_CFS ? HOLD_FATAL : 0) |
                                  (csts & NVME_CSTS_SHST_MASK ? HOLD_SHUTDOWN : 0));
        atomic_fetch_and(&c->hold, ~(uint32_t)HOLD_OFF);
        pthread_mutex_lock(&c->lock);
        c->state = CONTROLLER_ON;
        pthread_mutex_unlock(&c->lock);
    }
    saved(c);
}

static void run_on_lead(struct nvme *nvme, struct event *event)
{
    struct controller *c = &nvme->controller;

    c->saved.done = false;
    worker_post(nvme_lead(nvme), event);
    pthread_mutex_lock(&c->lock);
    while (!c->saved.done) {
        pthread_cond_wait(&c->changed, &c->lock);
    }
    pthread_mutex_unlock(&c->lock);
}

void *controller_save(struct nvme *nvme, size_t *size)
{
    struct controller *c = &nvme->controller;

    run_on_lead(nvme, &c->save_event);
    *size = c->saved.size;
    return c->saved.data;
}

const char *controller_load(struct nvme *nvme, void *data, size_t size)
{
    struct controller *c = &nvme->controller;

    c->saved.data = data;
    c->saved.size = size;
    run_on_lead(nvme, &c->load_event);
    return c->saved.fault;
}

/*
 * What was waited for
 */

bool controller_has_drained(struct nvme *nvme)
{
    return nvme->controller.draining && atomic_load(&nvme->controller.acks) == 0;
}

/* A shutdown's flushes come first. */
static void finish_pause(struct controller *c)
{
    if (!c->pause_wanted || c->draining || c->flushes > 0) {
        return;
    }
    c->pause_wanted = false;
    pthread_mutex_lock(&c->lock);
    c->paused = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

bool controller_poll(struct nvme *nvme)
{
    struct controller *c = &nvme->controller;
    bool drained = controller_has_drained(nvme);

    if (drained) {
        c->draining = false;
        if (c->stop_wanted) {
            finish_stop(nvme);
        } else if (c->shutdown_wanted) {
            flush_all(nvme);
        }
    }
    finish_pause(c);
    return drained;
}

/*
 * Beginning and end
 */

bool controller_in_use(struct nvme *nvme)
{
    struct controller *c = &nvme->controller;

    return (atomic_load(&c->cc) & NVME_CC_EN) != 0 &&
           (atomic_load(&c->csts) & NVME_CSTS_SHST_MASK) != NVME_CSTS_SHST_COMPLETE;
}

void controller_reset(struct nvme *nvme)
{
    struct controller *c = &nvme->controller;

    if (nvme->nr_workers == 0) {
        return;
    }
    atomic_store(&c->cc, 0);
    controller_disable(nvme);
    pthread_mutex_lock(&c->lock);
    while (c->state != CONTROLLER_OFF) {
        pthread_cond_wait(&c->changed, &c->lock);
    }
    c->paused = false;
    pthread_mutex_unlock(&c->lock);
    atomic_store(&c->csts, 0);
    atomic_store(&c->intms, 0);
    atomic_store(&c->aqa, 0);
    atomic_store(&c->asq, 0);
    atomic_store(&c->acq, 0);
    doorbells_reset(nvme);
    atomic_fetch_and(&c->hold, ~(uint32_t)HOLD_MIGRATION);
}

void controller_init(struct nvme *nvme)
{
    struct controller *c = &nvme->controller;

    atomic_store(&c->hold, HOLD_OFF | HOLD_BUS_MASTER);
    c->enable_event.run = enable_on_lead;
    c->disable_event.run = disable_on_lead;
    c->shutdown_event.run = shutdown_on_lead;
    c->pause_event.run = pause_on_lead;
    c->save_event.run = save_on_lead;
    c->load_event.run = load_on_lead;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
}

void controller_destroy(struct nvme *nvme)
{
    pthread_mutex_destroy(&nvme->controller.lock);
    pthread_cond_destroy(&nvme->controller.changed);
}
