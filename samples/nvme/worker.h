/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threads that do the I/O. A worker owns queues and the commands fetched from them: nobody else
 * touches those, and none of it needs a lock. Whoever wants something of a worker posts an event.
 */

#ifndef NVME_WORKER_H
#define NVME_WORKER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

struct backend_queue;
struct command;
struct cq;
struct nvme;
struct sq;
struct worker;

/* Something to be run by a worker. It belongs to the worker from the post to the run. */
struct event {
    struct event *next;
    void (*run)(struct worker *worker, struct event *event);
};

/* What a worker is asked to come to. */
enum drain {
    DRAIN_NONE,
    DRAIN_IDLE, /* every command fetched is completed; queues stay */
    DRAIN_PARK, /* the same, but those that wait for memory are put off */
    DRAIN_STOP, /* every command is given up, and the queues go */
};

/* Commands that one worker has in flight, and how many of them the admin queue can count on. */
#define WORKER_COMMANDS 1024
#define WORKER_ADMIN_COMMANDS 32
/* Bytes that they may have in buffers of the device, all together. */
#define WORKER_BUFFERS ((size_t)128 << 20)
/* Those that may have more segments than PRPs can make. */
#define WORKER_LARGE_COMMANDS 64u

struct worker {
    struct nvme *nvme;
    unsigned index;
    pthread_t thread;
    bool started;
    bool ending;

    _Atomic(struct event *) mailbox; /* the newest first */
    atomic_bool sleeping;
    int wake_fd;
    int epoll_fd; /* what ends its sleep */
    struct event end_event;

    /* The thread's own from here on. */
    TAILQ_HEAD(, cq) cqs;
    TAILQ_HEAD(, sq) sqs;
    struct backend_queue *backend;
    struct command *commands; /* WORKER_COMMANDS */
    SLIST_HEAD(, command) free_commands;
    unsigned nr_free;
    TAILQ_HEAD(, command) parked; /* put off: begin again when the worker goes on */
    unsigned nr_parked;
    size_t buffered; /* bytes in buffers */
    unsigned nr_large;
    unsigned busy;       /* commands fetched and not completed, rings being resolved */
    atomic_bool revoked; /* one of the rings was */
    atomic_bool rung;    /* a doorbell of an I/O queue was, since its shadow was looked at */
    bool missing;        /* memory was looked up that is not there */
    unsigned maps_seen;  /* DMA_MAPs before it was looked up */
    uint64_t retry_at;   /* ms, when it is looked up again; UINT64_MAX: only after a DMA_MAP */

    enum drain drain;
    unsigned drain_acks; /* how often to say that it has come to an end */
    struct event drain_event[DRAIN_STOP + 1];

    /* Counted here, read by the log page. */
    struct {
        _Atomic uint64_t reads, writes, blocks_read, blocks_written; /* blocks of 512 bytes */
    } counters;
};

/* -errno, after a line on standard error. */
int worker_start(struct worker *worker, struct nvme *nvme, unsigned index);
/* The thread ends; nothing may be in flight. */
void worker_end(struct worker *worker);
/* When all have ended: until then one may be about to wake another. */
void worker_close(struct worker *worker);

/* Any thread. */
void worker_post(struct worker *worker, struct event *event);
/* Has the worker look at its queues. Any thread. */
void worker_wake(struct worker *worker);
/* Looks up memory again that is not there, after the next DMA_MAP. Worker's thread. */
void worker_await_memory(struct worker *worker, bool by_clock);

#endif /* NVME_WORKER_H */
