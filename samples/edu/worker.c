/* SPDX-License-Identifier: BSD-3-Clause */
#include "worker.h"

#include <errno.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

static void *worker_main(void *arg)
{
    struct worker *worker = arg;

    pthread_mutex_lock(&worker->lock);
    for (;;) {
        while (worker->state == WORKER_IDLE) {
            pthread_cond_wait(&worker->changed, &worker->lock);
        }
        if (worker->state == WORKER_STOPPING) {
            break;
        }
        pthread_mutex_unlock(&worker->lock);
        worker->job(worker->arg);
        pthread_mutex_lock(&worker->lock);
        if (worker->state == WORKER_TOLD) {
            worker->state = WORKER_IDLE;
        }
        eventfd_write(worker->done_fd, 1);
        pthread_cond_broadcast(&worker->changed);
    }
    pthread_mutex_unlock(&worker->lock);
    return NULL;
}

int worker_start(struct worker *worker, void (*job)(void *arg), void *arg)
{
    int err;

    *worker = (struct worker){ .job = job, .arg = arg, .state = WORKER_IDLE };
    worker->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (worker->done_fd < 0) {
        return -errno;
    }
    pthread_mutex_init(&worker->lock, NULL);
    pthread_cond_init(&worker->changed, NULL);
    err = pthread_create(&worker->thread, NULL, worker_main, worker);
    if (err != 0) {
        pthread_cond_destroy(&worker->changed);
        pthread_mutex_destroy(&worker->lock);
        close(worker->done_fd);
    }
    return -err;
}

static void set_state(struct worker *worker, int state)
{
    pthread_mutex_lock(&worker->lock);
    worker->state = state;
    pthread_cond_broadcast(&worker->changed);
    pthread_mutex_unlock(&worker->lock);
}

void worker_stop(struct worker *worker)
{
    set_state(worker, WORKER_STOPPING);
    pthread_join(worker->thread, NULL);
    pthread_cond_destroy(&worker->changed);
    pthread_mutex_destroy(&worker->lock);
    close(worker->done_fd);
}

void worker_run(struct worker *worker)
{
    set_state(worker, WORKER_TOLD);
}

bool worker_done(struct worker *worker)
{
    eventfd_t count;
    bool done;

    if (eventfd_read(worker->done_fd, &count) != 0) {
        return false;
    }
    /* Whoever saw the eventfd has not seen the thread's memory yet: the lock orders it. */
    pthread_mutex_lock(&worker->lock);
    done = worker->state == WORKER_IDLE;
    pthread_mutex_unlock(&worker->lock);
    return done;
}

void worker_drain(struct worker *worker)
{
    eventfd_t count;

    pthread_mutex_lock(&worker->lock);
    while (worker->state == WORKER_TOLD) {
        pthread_cond_wait(&worker->changed, &worker->lock);
    }
    pthread_mutex_unlock(&worker->lock);
    (void)eventfd_read(worker->done_fd, &count);
}
