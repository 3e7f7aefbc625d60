/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A sample that shows both ends: it starts itself again, as the process that serves the device, and
 * is the client. What is common to these: a directory for the sockets, the processes, and the end
 * by a signal.
 */

#ifndef DEMO_H
#define DEMO_H

#include "process.h"

#include <limits.h>
#include <stdbool.h>

/* Far more than any step takes: what is late by this much does not come. */
#define DEMO_TIMEOUT_MS 30000

struct demo {
    const char *name; /* of the program, in front of each complaint */
    char program[PATH_MAX];
    char directory[PATH_MAX];
};

/* A device in a process of its own. */
struct demo_device {
    char socket[PATH_MAX + 32];
    struct process process; /* pid 0: none */
};

/* One demonstration in a process. Says on standard error what goes wrong, as all of these do. */
bool demo_begin(struct demo *demo, const char *name);

/* Says how it went, and returns the exit status. */
int demo_end(struct demo *demo, bool ok);

/* Prints what, and the error, on standard error. Returns false. */
bool demo_failed(const struct demo *demo, const char *what, int err);

/*
 * Starts this program with --device, --socket and option (NULL: none), and waits until it listens.
 * demo_stop_device() is due in any case.
 */
bool demo_start_device(struct demo *demo, struct demo_device *device, const char *name,
                       const char *option);

/* Returns whether it ended as it should; one that was not started did. */
bool demo_stop_device(struct demo *demo, struct demo_device *device);

#endif /* DEMO_H */
