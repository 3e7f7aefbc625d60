/* SPDX-License-Identifier: BSD-3-Clause */
/* What the admin queue governs. All of it belongs to the thread of the first worker. */

#ifndef NVME_ADMIN_H
#define NVME_ADMIN_H

#include "command.h"
#include "queue.h"

#include <time.h>

#define ADMIN_ABORT_LIMIT 4u
#define ADMIN_EVENT_LIMIT 4u
#define ADMIN_ERROR_ENTRIES 64u
#define ADMIN_TEMPERATURE 313u /* kelvin: what a device of no substance has */
#define ADMIN_WARNING_TEMPERATURE 343u
#define ADMIN_CRITICAL_TEMPERATURE 353u

/* Doorbells by memory of the guest (Doorbell Buffer Config): where each worker finds it. */
struct shadow_doorbells {
    struct event event;
    struct command *cmd; /* that sets them up */
    struct ring values;  /* written by the host */
    struct ring wanted; /* read by it: which value of a doorbell is to be written to the register */
    bool on;
};

/*
 * doorbell.c. Worker's thread.
 *
 * shadows_open(): from now on its doorbells are in the shadows. shadows_move() does the same for
 * queues that are in use: page is the host address of the new values. Where the host has not
 * written one yet the position of the queue goes there. Returns false if it must be called again.
 */
void shadows_open(struct worker *worker, uint64_t values, uint64_t wanted);
bool shadows_move(struct worker *worker, uint64_t values, uint64_t wanted, void *page);

enum queue_state {
    QUEUE_NONE,
    QUEUE_LIVE,
    QUEUE_DELETING,
};

struct features {
    uint32_t arbitration;
    uint32_t power;
    uint16_t over_temperature, under_temperature;
    uint32_t error_recovery;
    uint32_t coalescing;
    uint16_t vector_coalescing[NVME_MAX_QUEUES]; /* bit 0: disabled */
    uint32_t atomicity;
    uint32_t async_events;
    uint64_t timestamp;    /* ms; what was set */
    uint64_t timestamp_at; /* ms of the monotonic clock, when it was */
    uint8_t timestamp_set;
    uint8_t host_id[16];
};

struct async_events {
    uint16_t cids[ADMIN_EVENT_LIMIT]; /* requests held */
    unsigned nr_held;
    uint32_t pending[NVME_EVENT_TYPES]; /* a result each; NO_VALUE: none */
    uint8_t masked[NVME_EVENT_TYPES];   /* reported, and the log page not read since */
};

struct error_log {
    pthread_mutex_t lock; /* all workers write it */
    uint64_t count;
    struct nvme_error_entry entries[ADMIN_ERROR_ENTRIES];
};

struct admin {
    struct features features;
    struct async_events events;
    atomic_bool write_cache; /* all workers look at it */
    enum queue_state cq_state[NVME_MAX_QUEUES], sq_state[NVME_MAX_QUEUES];
    struct command *deleting_cq[NVME_MAX_QUEUES], *deleting_sq[NVME_MAX_QUEUES];
    unsigned nr_aborts;               /* under way */
    atomic_uint shadow_setups;        /* workers that have not taken them yet */
    struct shadow_doorbells *shadows; /* one per worker */
    /* For the control thread: the address of the values, and bit 0 set; 0: there are none. */
    _Atomic uint64_t shadow_page;
    struct event bad_doorbell_event;
    atomic_bool bad_doorbell_posted;
    atomic_uint bad_doorbells; /* bit n: of this information */
    struct error_log errors;
    atomic_uint power_cycles, unsafe_shutdowns; /* for the SMART log */
};

int admin_init(struct nvme *nvme);
void admin_destroy(struct nvme *nvme);
/* To the state after a controller reset. */
void admin_reset(struct nvme *nvme);
/*
 * A client was lost, which is a loss of power for the controller (5.14.1): the error log is empty,
 * and goes on counting. unsafe: the host had not shut the controller down. Control thread.
 */
void admin_power_cycle(struct nvme *nvme, bool unsafe);

/* Begins an admin command. */
void admin_begin(struct command *cmd);
uint32_t admin_effects(unsigned opcode);

/* A queue that was to be deleted is gone. */
void admin_cq_deleted(struct cq *cq);
void admin_sq_deleted(struct sq *sq);

/* identify.c, features.c, log_page.c */
void admin_identify(struct command *cmd);
void admin_get_features(struct command *cmd);
void admin_set_features(struct command *cmd);
void admin_get_log_page(struct command *cmd);

/* features.c */
void features_reset(struct nvme *nvme);
/* For migration: a timestamp that does not move, and one that goes on from there. */
void features_freeze_timestamp(struct features *f);
void features_thaw_timestamp(struct features *f);

/* events.c */
void events_reset(struct nvme *nvme);
/* Holds a request. */
void events_request(struct command *cmd);
/* Gives a request back as aborted. False: there is no such one. */
bool events_abort(struct nvme *nvme, uint16_t cid);
void events_raise(struct nvme *nvme, enum nvme_event_type type, uint8_t info, uint8_t log_page);
/* The log page was read: events of its type are reported again. */
void events_unmask(struct nvme *nvme, enum nvme_event_type type);
/* Reports what can be. */
void events_poll(struct nvme *nvme);
/* A doorbell was rung that is none, or with a value that is none. Any thread. */
void events_bad_doorbell(struct nvme *nvme, uint8_t info);
/* The temperature is compared with the thresholds. */
uint8_t events_critical_warning(const struct nvme *nvme);

/* Remembers a command that failed. Any worker. */
void error_log_add(struct nvme *nvme, const struct command *cmd, uint16_t status);

#endif /* NVME_ADMIN_H */
