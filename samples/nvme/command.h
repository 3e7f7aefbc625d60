/* SPDX-License-Identifier: BSD-3-Clause */
/* One command, from its queue entry to its completion. */

#ifndef NVME_COMMAND_H
#define NVME_COMMAND_H

#include "backend.h"
#include "data.h"
#include "spec.h"
#include "worker.h"

struct namespace;

enum command_stage {
    STAGE_FREE,
    STAGE_RUNNING, /* the worker is at it */
    STAGE_MEMORY,  /* waits for guest memory */
    STAGE_BACKEND, /* waits for the backend, or for another worker */
    STAGE_DONE,    /* waits for its completion to be posted */
    STAGE_PARKED,  /* put off */
};

struct command {
    struct event event; /* brings it back to its worker */
    struct worker *worker;
    struct sq *sq;
    enum command_stage stage;
    bool aborted; /* on the host's wish */
    uint64_t missing_since;  /* ms, when its memory was not there first; 0: it was */
    uint16_t status;
    uint32_t result;
    uint64_t lba;            /* for the error log */
    const char *why;         /* for the log */
    struct nvme_command sqe; /* a copy: the guest's may change */
    struct data data;
    void (*resume)(struct command *cmd); /* what its event goes on with */

    struct backend_io io;
    struct namespace *ns;
    unsigned step; /* of commands that take several */
    struct buffer buffer;

    union {
        SLIST_ENTRY(command) free_link;
        STAILQ_ENTRY(command) done_link;
        TAILQ_ENTRY(command) parked_link;
    };
};

/* The worker's. NULL: none is left. */
struct command *command_alloc(struct worker *worker);
void command_free(struct command *cmd);

/* Begins with what the entry says. */
void command_begin(struct command *cmd);

/* Ends it, with a status of enum nvme_status and NVME_STATUS_DNR. */
void command_complete(struct command *cmd, uint16_t status);
/* Ends it with an error that the same command would meet again, and says why. */
void command_fail(struct command *cmd, uint16_t status, const char *why);

/* Puts it off: it begins again when the worker goes on. It must not have had any effect. */
void command_park(struct command *cmd);
/* Takes it from the list of those that were put off. */
void command_unpark(struct command *cmd);

/*
 * An access to its memory has failed with an errno: puts it off if the memory may come back, and
 * completes it with an error otherwise.
 */
void command_memory_failed(struct command *cmd, int error);

/* Another thread has done what the command waits for. */
void command_resume(struct worker *worker, struct event *event);

/* Ends the waiting of what waits for memory, at the host's or the controller's wish. */
void command_cancel(struct command *cmd);

/* io.c */
void io_begin(struct command *cmd);
uint32_t io_effects(unsigned opcode);

#endif /* NVME_COMMAND_H */
