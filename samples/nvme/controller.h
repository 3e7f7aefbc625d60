/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The controller's registers and its life: enabled, disabled, shut down, reset (NVMe 3.1, 7.3,
 * 7.6). Registers belong to the control thread. The rest of a change happens on the workers: the
 * first of them leads, and the others follow its events.
 */

#ifndef NVME_CONTROLLER_H
#define NVME_CONTROLLER_H

#include "worker.h"

#include <stddef.h>
#include <sys/types.h>

enum controller_state {
    CONTROLLER_OFF,
    CONTROLLER_STARTING,
    CONTROLLER_ON,
    CONTROLLER_STOPPING,
};

/* Why no command is fetched. */
enum hold {
    HOLD_OFF = 1 << 0,
    HOLD_FATAL = 1 << 1,
    HOLD_SHUTDOWN = 1 << 2,
    HOLD_BUS_MASTER = 1 << 3, /* the driver has not set Bus Master Enable */
    HOLD_MIGRATION = 1 << 4,
};

struct controller {
    _Atomic uint32_t cc, csts, aqa, intms;
    _Atomic uint64_t asq, acq;
    unsigned page_shift; /* of the host's pages, while it is enabled */

    pthread_mutex_t lock; /* the state */
    pthread_cond_t changed;
    enum controller_state state;
    bool paused;

    _Atomic uint32_t hold; /* enum hold */
    struct event enable_event, disable_event, shutdown_event, pause_event;
    struct event save_event, load_event;
    /* What these two take and give. */
    struct {
        bool done;
        void *data;
        size_t size;
        const char *fault;
    } saved;

    atomic_uint acks; /* drains that workers have not come to */
    /* The lead's. */
    bool draining, stop_wanted, shutdown_wanted, pause_wanted;
    unsigned flushes; /* of namespaces, at a shutdown, that are under way */
};

void controller_init(struct nvme *nvme);
void controller_destroy(struct nvme *nvme);

/*
 * Control thread
 */

/* registers.c */
ssize_t controller_access(struct nvme *nvme, char *buf, size_t count, uint64_t offset,
                          bool is_write);
/* What CC asks for. It takes its time, and CSTS says when it is done. */
void controller_enable(struct nvme *nvme);
void controller_disable(struct nvme *nvme);
void controller_shutdown(struct nvme *nvme);
/* Returns true if the host uses it: it is enabled, and was not shut down (7.6.2). */
bool controller_in_use(struct nvme *nvme);
/* Waits until everything has stopped, and puts the registers to what they are after power-on. */
void controller_reset(struct nvme *nvme);
/* For migration: nothing moves any more when this returns; and on again. */
void controller_pause(struct nvme *nvme);
void controller_resume(struct nvme *nvme);
/* While paused: as state_save() and state_load(). */
void *controller_save(struct nvme *nvme, size_t *size);
const char *controller_load(struct nvme *nvme, void *data, size_t size);

/*
 * Any thread
 */

void controller_hold(struct nvme *nvme, uint32_t why);
/* Has all workers look at their queues. */
void controller_wake(struct nvme *nvme);
void controller_unhold(struct nvme *nvme, uint32_t why);

static inline bool controller_held(struct controller *controller)
{
    return atomic_load_explicit(&controller->hold, memory_order_acquire) != 0;
}

/* Nothing but a reset helps: CSTS.CFS. */
void controller_fatal(struct nvme *nvme, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/*
 * The workers
 */

/* One of them has come to as many drains. */
void controller_drained(struct nvme *nvme, unsigned acks);
/* The lead looks whether all have, and goes on with what they were to stop for. */
bool controller_has_drained(struct nvme *nvme);
bool controller_poll(struct nvme *nvme);

#endif /* NVME_CONTROLLER_H */
