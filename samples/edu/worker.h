/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A thread that does one job at a time for the thread of the event loop.
 */

#ifndef WORKER_H
#define WORKER_H

#include <pthread.h>
#include <stdbool.h>

struct worker {
    void (*job)(void *arg);
    void *arg;
    int done_fd; /* eventfd: readable when a job has ended */

    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum {
        WORKER_IDLE,
        WORKER_TOLD,
        WORKER_STOPPING
    } state;
};

/*
 * job runs in the thread each time worker_run() was called; what it reads was written before that
 * call, and what it writes may be read when worker_done() says true.
 *
 * Returns 0 or a negative errno.
 */
int worker_start(struct worker *worker, void (*job)(void *arg), void *arg);

/* Waits for the job that runs, if any, and ends the thread. */
void worker_stop(struct worker *worker);

/* One job; the last one must have been reported by worker_done(). */
void worker_run(struct worker *worker);

/* Has a job ended? Says so once for each. */
bool worker_done(struct worker *worker);

/* Waits until no job runs, and forgets that one has ended. */
void worker_drain(struct worker *worker);

#endif /* WORKER_H */
