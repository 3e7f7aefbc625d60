/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Submission and completion queues (NVMe 4). A completion queue and the submission queues that use
 * it are owned by one worker.
 */

#ifndef NVME_QUEUE_H
#define NVME_QUEUE_H

#include "ring.h"
#include "spec.h"

#define NVME_MAX_IO_QUEUES 64u
#define NVME_MAX_QUEUES (NVME_MAX_IO_QUEUES + 1)
#define NVME_MAX_ENTRIES 4096u
#define NVME_MIN_ENTRIES 2u

/* Commands of one submission queue in flight at most. */
#define SQ_COMMANDS 256u

/* The doorbell page: submission queue y's tail at 2y, completion queue y's head at 2y + 1. */
#define DOORBELL_PAGE 4096u
#define NR_DOORBELLS (DOORBELL_PAGE / sizeof(uint32_t))

struct doorbells {
    _Atomic uint32_t reg[NR_DOORBELLS];
};

#define SQ_DOORBELL(id) (2u * (id))
#define CQ_DOORBELL(id) (2u * (id) + 1)

#define NO_VALUE UINT32_MAX

struct queue_config {
    uint16_t id;
    uint32_t entries;
    uint64_t addr;
    uint32_t vector; /* of a completion queue; NO_VALUE: it does not interrupt */
};

/* The value of a doorbell that cannot be right: a worker reports each of them once. */
struct doorbell {
    bool is_bad;
    uint32_t bad_value;
    atomic_bool rung; /* a message has written it since, perhaps with the same value */
};

struct cq {
    struct event attach, detach;
    struct worker *worker;
    struct ring ring;
    uint16_t id;
    _Atomic uint32_t vector; /* NO_VALUE: no interrupts. The control thread looks at it for INTx */
    uint32_t entries;
    _Atomic uint32_t head; /* as the host has told: the control thread looks at it for INTx */
    _Atomic uint32_t tail; /* and at this */
    bool phase;
    bool detaching;
    bool signal;                 /* entries were posted since the last interrupt */
    uint32_t promised;           /* entries that commands in flight will need */
    struct doorbell doorbell;
    STAILQ_HEAD(, command) done; /* to be posted */
    TAILQ_ENTRY(cq) link;
};

struct sq {
    struct event attach, detach;
    struct worker *worker;
    struct ring ring;
    struct cq *cq;
    uint16_t id;
    bool detaching;
    uint32_t entries;
    uint32_t head;
    uint32_t in_flight;
    struct doorbell doorbell;
    uint8_t cids[UINT16_MAX / 8 + 1]; /* in flight */
    TAILQ_ENTRY(sq) link;
};

/* Room for the rings. 0 or -ENOMEM. */
int queues_init(struct nvme *nvme);
void queues_destroy(struct nvme *nvme);

/*
 * Makes a queue, to be served by the worker of its completion queue from now on. Thread of the
 * admin queue.
 */
void cq_create(struct nvme *nvme, const struct queue_config *config);
void sq_create(struct nvme *nvme, const struct queue_config *config, struct cq *cq);
/* The worker that serves a completion queue with this number. */
struct worker *queue_worker(struct nvme *nvme, uint16_t id);

/* The same for queues, and commands in them, that were somewhere else before. */
void cq_restore(struct nvme *nvme, const struct queue_config *config, uint32_t head, uint32_t tail,
                bool phase);
void sq_restore(struct nvme *nvme, const struct queue_config *config, struct cq *cq, uint32_t head);
void sq_restore_cid(struct sq *sq, uint16_t cid);
void sq_restore_command(struct sq *sq, const struct nvme_command *sqe, bool ended, uint16_t status,
                        uint32_t result);

/* Ends one. admin_sq_deleted() or admin_cq_deleted() is called when nothing is left of it. */
void cq_delete(struct cq *cq);
void sq_delete(struct sq *sq);

/*
 * The rest is for the worker's thread.
 */

/* Fetches and begins commands. Returns how many. */
unsigned sq_poll(struct sq *sq);

/* A command has come to its end: an entry will be posted for it, and it is free. */
void cq_complete(struct cq *cq, struct command *cmd);
/* An entry without command, for asynchronous events. False when there is no room. */
bool cq_post_event(struct cq *cq, struct sq *sq, uint16_t cid, uint32_t result, uint16_t status);
/* Looks at the head, posts what could not be posted, and interrupts. Returns what was done. */
unsigned cq_poll(struct cq *cq);

/* One more completion can be posted, whatever comes of the commands in flight. */
bool cq_has_room(struct cq *cq);
bool cq_has_work(struct cq *cq);

/* A command leaves its queue without a completion. */
void sq_forget(struct command *cmd);
/* The same, but its identifier stays in use; then that alone. */
void sq_release(struct sq *sq, struct command *cmd);
void sq_release_cid(struct sq *sq, uint16_t cid);

/* Goes on with deletions; asks to be told of doorbells before a sleep; whether there is more. */
void queues_finish_detach(struct worker *worker);
void queues_arm_shadows(struct worker *worker);
bool queues_have_work(struct worker *worker);
/* Looks up again what was not there. */
void queues_retry_rings(struct worker *worker);
/* Gives up what is being resolved. */
void queues_cancel(struct worker *worker);
/* Gives everything up: nothing is in flight. */
void queues_close(struct worker *worker);
void queues_release_rings(struct worker *worker, bool revoked_only);

/* doorbell.c: what the host has written last, or now while that cannot be read. Worker's thread. */
uint32_t doorbell_read(struct worker *worker, unsigned index, uint32_t now);
/* Returns true if the host has not been told yet that this value makes no sense. */
static inline bool doorbell_is_news(struct doorbell *doorbell, uint32_t value)
{
    return !doorbell->is_bad || doorbell->bad_value != value || atomic_load(&doorbell->rung);
}

static inline void doorbell_is_bad(struct doorbell *doorbell, uint32_t value)
{
    doorbell->is_bad = true;
    doorbell->bad_value = value;
    atomic_store(&doorbell->rung, false);
}
/* Before shadows that the client wants back are released: has the host ring at the next change. */
void shadows_before_release(struct worker *worker);

/* All to 0. Control thread, or the lead while the controller is disabled. */
void doorbells_reset(struct nvme *nvme);

/* Control thread: the guest wrote a doorbell. */
void doorbell_written(struct nvme *nvme, unsigned index, uint32_t value);

/* Control thread: whether what was posted and not read keeps a level up. */
bool queues_interrupting(struct nvme *nvme);
/* Control thread: interrupts are let through again that were held back. */
void queues_interrupt_again(struct nvme *nvme);

#endif /* NVME_QUEUE_H */
