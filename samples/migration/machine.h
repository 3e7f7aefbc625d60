/* SPDX-License-Identifier: BSD-3-Clause */
/* One of the two machines: guest RAM, and the recorder in a process of its own. */

#ifndef MACHINE_H
#define MACHINE_H

#include "../common/process.h"
#include "vfio-user-client.h"

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#define PAGE_SIZE 4096
/* Far more than any step takes: what is late by this much does not come. */
#define TIMEOUT_MS 30000

struct machine {
    const char *name;
    size_t ram_size;
    uint8_t *ram;
    int ram_fd;
    /* Pages that were written to by messages; by us, so the device does not report them. */
    _Atomic uint64_t *written;

    char socket[PATH_MAX];
    struct process process; /* pid 0: none */
    vfuc_t *device;
};

/*
 * Starts program as the device's process, at a socket in directory, attaches to it and gives it the
 * RAM; by messages: not shared. Says on standard error what went wrong, and returns whether nothing
 * did. machine_stop() is due in both cases.
 */
bool machine_start(struct machine *machine, const char *name, char *program, const char *directory,
                   size_t ram_size, bool messages);

/* Returns whether the process has ended as it should. */
bool machine_stop(struct machine *machine);

/* Words in a bitmap of pages. */
size_t machine_bitmap_words(const struct machine *machine);

#endif /* MACHINE_H */
