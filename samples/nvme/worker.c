/* SPDX-License-Identifier: BSD-3-Clause */
#include "worker.h"

#include "nvme.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>

/* Rounds without work after which a worker that polls lets others run. */
#define IDLE_ROUNDS 1000
/*
 * For so long a worker looks for more before it sleeps. A host that reacts at once is seen, which is
 * cheaper for both than to be woken, and shadow doorbells stay silent.
 */
#define SPIN_NS 30000
/*
 * It does so with no more commands than this under way. A host that does one thing at a time waits
 * for each wakeup. With many, one wakeup is for several of them, what ends them wakes us anyway, and
 * the processor is better left to the kernel, which has the work to do.
 */
#define SPIN_COMMANDS 1

/*
 * Events
 */

void worker_wake(struct worker *worker)
{
    if (atomic_load(&worker->sleeping) && atomic_exchange(&worker->sleeping, false)) {
        (void)eventfd_write(worker->wake_fd, 1);
    }
}

void worker_post(struct worker *worker, struct event *event)
{
    event->next = atomic_load_explicit(&worker->mailbox, memory_order_relaxed);
    while (!atomic_compare_exchange_weak(&worker->mailbox, &event->next, event)) {
        continue;
    }
    worker_wake(worker);
}

/* The oldest first. */
static unsigned run_events(struct worker *worker)
{
    struct event *newest, *oldest = NULL, *next;
    unsigned n = 0;

    if (atomic_load_explicit(&worker->mailbox, memory_order_relaxed) == NULL) {
        return 0;
    }
    for (newest = atomic_exchange(&worker->mailbox, NULL); newest != NULL; newest = next) {
        next = newest->next;
        newest->next = oldest;
        oldest = newest;
    }
    for (; oldest != NULL; oldest = next, n++) {
        next = oldest->next;
        oldest->run(worker, oldest);
    }
    return n;
}

/*
 * Memory that is away
 */

void worker_await_memory(struct worker *worker, bool by_clock)
{
    uint64_t soon = nvme_now_ms() + MEMORY_RETRY_MS;

    if (!worker->missing) {
        worker->missing = true;
        worker->retry_at = UINT64_MAX;
    }
    if (by_clock && worker->retry_at > soon) {
        worker->retry_at = soon;
    }
}

/* Nothing is looked up while the controller must not access memory. */
static bool retry_due(const struct worker *worker)
{
    return worker->missing && !controller_held(&worker->nvme->controller) &&
           (atomic_load(&worker->nvme->memory.maps) != worker->maps_seen ||
            nvme_now_ms() >= worker->retry_at);
}

static void retry_missing(struct worker *worker)
{
    if (retry_due(worker)) {
        worker->maps_seen = atomic_load(&worker->nvme->memory.maps);
        worker->missing = false;
        queues_retry_rings(worker);
    }
}

/* For epoll_wait(): ms, or -1. */
static int retry_timeout(const struct worker *worker)
{
    uint64_t now = nvme_now_ms();

    if (!worker->missing || worker->retry_at == UINT64_MAX ||
        controller_held(&worker->nvme->controller)) {
        return -1;
    }
    return worker->retry_at > now ? (int)(worker->retry_at - now) : 0;
}

/*
 * Coming to an end
 */

static void cancel_waiting(struct worker *worker)
{
    for (unsigned i = 0; i < WORKER_COMMANDS; i++) {
        if (worker->commands[i].stage == STAGE_MEMORY) {
            command_cancel(&worker->commands[i]);
        }
    }
}

static void begin_drain(struct worker *worker, struct event *event)
{
    enum drain drain = (enum drain)(event - worker->drain_event);

    worker->drain_acks++;
    if (drain > worker->drain) {
        worker->drain = drain;
    }
    if (worker->drain >= DRAIN_PARK) {
        queues_cancel(worker);
        cancel_waiting(worker);
    }
}

static void forget_parked(struct worker *worker)
{
    struct command *cmd;

    while ((cmd = TAILQ_FIRST(&worker->parked)) != NULL) {
        TAILQ_REMOVE(&worker->parked, cmd, parked_link);
        worker->nr_parked--;
        sq_forget(cmd);
    }
}

static void finish_drain(struct worker *worker)
{
    unsigned acks = worker->drain_acks;

    if (worker->drain == DRAIN_STOP) {
        forget_parked(worker);
        queues_close(worker);
    } else {
        /* What was written to the guest counts as dirty from here on. */
        queues_release_rings(worker, false);
    }
    worker->drain = DRAIN_NONE;
    worker->drain_acks = 0;
    controller_drained(worker->nvme, acks);
}

/*
 * Work
 */

static void unpark(struct worker *worker)
{
    unsigned n = worker->missing ? 0 : worker->nr_parked;

    for (; n > 0; n--) {
        struct command *cmd = TAILQ_FIRST(&worker->parked);

        command_unpark(cmd);
        command_begin(cmd);
    }
}

/* Nothing is touched that would have to be migrated. */
static bool paused(struct worker *worker)
{
    return worker->drain == DRAIN_NONE &&
           (atomic_load_explicit(&worker->nvme->controller.hold, memory_order_acquire) &
            HOLD_MIGRATION) != 0;
}

static unsigned serve_queues(struct worker *worker)
{
    unsigned n = 0;
    struct sq *sq;
    struct cq *cq;

    if (!controller_held(&worker->nvme->controller)) {
        unpark(worker);
        TAILQ_FOREACH(sq, &worker->sqs, link)
        {
            n += sq_poll(sq);
        }
    }
    n += (unsigned)backend_queue_poll(worker->backend);
    if (paused(worker)) {
        return n;
    }
    if (worker->index == 0) {
        events_poll(worker->nvme);
    }
    TAILQ_FOREACH(cq, &worker->cqs, link)
    {
        n += cq_poll(cq);
    }
    return n;
}

static unsigned run_once(struct worker *worker)
{
    unsigned n = run_events(worker);

    if (atomic_load_explicit(&worker->revoked, memory_order_relaxed) &&
        atomic_exchange(&worker->revoked, false)) {
        queues_release_rings(worker, true);
    }
    retry_missing(worker);
    n += serve_queues(worker);
    queues_finish_detach(worker);
    if (worker->drain_acks > 0 && worker->busy == 0) {
        finish_drain(worker);
        n++;
    }
    /* What it begins, a flush perhaps, is not under way before the next round. */
    if (worker->index == 0 && controller_poll(worker->nvme)) {
        n++;
    }
    return n;
}

/*
 * Sleep
 */

/* Whatever is found here came before the others could see that they have to wake us. */
static bool may_sleep(struct worker *worker)
{
    queues_arm_shadows(worker);
    return atomic_load(&worker->mailbox) == NULL && !atomic_load(&worker->revoked) &&
           !queues_have_work(worker) && !retry_due(worker) &&
           (worker->index != 0 || !controller_has_drained(worker->nvme));
}

static void wait_for_work(struct worker *worker)
{
    struct epoll_event events[4];

    atomic_store(&worker->sleeping, true);
    if (may_sleep(worker)) {
        (void)epoll_wait(worker->epoll_fd, events, 4, retry_timeout(worker));
    }
    atomic_store(&worker->sleeping, false);
}

/* Doorbells that nobody tells about have to be looked at all the time. */
static bool has_to_poll(struct worker *worker)
{
    return worker->nvme->config.poll && !controller_held(&worker->nvme->controller) &&
           !TAILQ_EMPTY(&worker->sqs);
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* A wakeup for nothing, by a bell that was rung while we were awake, is no reason to look again. */
static bool has_to_sleep(struct worker *worker, uint64_t idle_since)
{
    return worker->busy > SPIN_COMMANDS || now_ns() - idle_since > SPIN_NS;
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    uint64_t idle_since = 0;
    unsigned idle = 0;

    while (!worker->ending) {
        if (run_once(worker) > 0) {
            idle = 0;
            continue;
        }
        if (idle++ == 0) {
            idle_since = now_ns();
        }
        if (has_to_poll(worker)) {
            if (idle % IDLE_ROUNDS == 0) {
                sched_yield();
            }
        } else if (has_to_sleep(worker, idle_since)) {
            wait_for_work(worker);
        }
    }
    return NULL;
}

/*
 * Beginning and end
 */

static void end(struct worker *worker, struct event *event)
{
    (void)event;
    worker->ending = true;
}

static int open_backend(struct worker *worker)
{
    char why[256] = "";

    worker->backend = backend_queue_create(WORKER_COMMANDS, why, sizeof(why));
    if (worker->backend == NULL) {
        fprintf(stderr, "nvme: worker %u cannot do I/O: %s\n", worker->index, why);
        return -EIO;
    }
    if (why[0] != '\0' && worker->index == 0) {
        vfu_log(worker->nvme->ctx, LOG_WARNING, "files are served by blocking calls: %s", why);
    }
    return 0;
}

/* What wakes the worker is not read: each time that it is written ends a sleep. */
static int open_epoll(struct worker *worker)
{
    struct epoll_event wake = { .events = EPOLLIN | EPOLLET };
    struct epoll_event ended = { .events = EPOLLIN };
    int backend_fd = backend_queue_fd(worker->backend);

    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (worker->epoll_fd < 0 ||
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, worker->wake_fd, &wake) != 0 ||
        (backend_fd >= 0 &&
         epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, backend_fd, &ended) != 0)) {
        return -errno;
    }
    return 0;
}

static int open_commands(struct worker *worker)
{
    worker->commands = calloc(WORKER_COMMANDS, sizeof(*worker->commands));
    if (worker->commands == NULL) {
        return -ENOMEM;
    }
    SLIST_INIT(&worker->free_commands);
    for (unsigned i = WORKER_COMMANDS; i-- > 0;) {
        worker->commands[i].worker = worker;
        SLIST_INSERT_HEAD(&worker->free_commands, &worker->commands[i], free_link);
    }
    worker->nr_free = WORKER_COMMANDS;
    return 0;
}

static void close_worker(struct worker *worker)
{
    for (unsigned i = 0; worker->commands != NULL && i < WORKER_COMMANDS; i++) {
        data_destroy(&worker->commands[i]);
    }
    free(worker->commands);
    backend_queue_destroy(worker->backend);
    if (worker->epoll_fd >= 0) {
        close(worker->epoll_fd);
    }
    if (worker->wake_fd >= 0) {
        close(worker->wake_fd);
    }
    worker->started = false;
}

int worker_start(struct worker *worker, struct nvme *nvme, unsigned index)
{
    int err;

    *worker = (struct worker){ .nvme = nvme, .index = index, .epoll_fd = -1, .end_event.run = end };
    TAILQ_INIT(&worker->cqs);
    TAILQ_INIT(&worker->sqs);
    TAILQ_INIT(&worker->parked);
    for (int i = DRAIN_IDLE; i <= DRAIN_STOP; i++) {
        worker->drain_event[i].run = begin_drain;
    }
    worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    err = worker->wake_fd < 0 ? -errno : open_backend(worker);
    if (err == 0) {
        err = open_epoll(worker);
    }
    if (err == 0) {
        err = open_commands(worker);
    }
    if (err == 0) {
        err = -pthread_create(&worker->thread, NULL, worker_main, worker);
    }
    if (err != 0) {
        close_worker(worker);
        return err;
    }
    worker->started = true;
    return 0;
}

void worker_end(struct worker *worker)
{
    if (worker->started) {
        worker_post(worker, &worker->end_event);
        pthread_join(worker->thread, NULL);
    }
}

void worker_close(struct worker *worker)
{
    if (worker->started) {
        close_worker(worker);
    }
}
