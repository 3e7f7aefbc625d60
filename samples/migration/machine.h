/* SPDX-License-Identifier: BSD-3-Clause */
/* One of the two machines: guest RAM, and the recorder in a process of its own. */

#ifndef MACHINE_H
#define MACHINE_H

#include "../common/demo.h"
#include "vfio-user-client.h"

#include <stdbool.h>
#include <stdint.h>

#define PAGE_SIZE 4096

struct machine {
    struct demo *demo;
    const char *name;
    size_t ram_size;
    uint8_t *ram;
    int ram_fd;
    /* Pages that were written to by messages; by us, so the device does not report them. */
    _Atomic uint64_t *written;

    struct demo_device process;
    vfuc_t *device;
};

/*
 * Starts the device's process, attaches to it and gives it the RAM; by messages: not shared. Says
 * on standard error what went wrong, and returns whether nothing did. machine_stop() is due in any
 * case.
 */
bool machine_start(struct machine *machine, struct demo *demo, const char *name, size_t ram_size,
                   bool messages);

/* Prints what went wrong on this machine, on standard error. Returns false. */
bool machine_failed(const struct machine *machine, const char *what, int err);

/* Returns whether the process has ended as it should. */
bool machine_stop(struct machine *machine);

/* Words in a bitmap of pages. */
size_t machine_bitmap_words(const struct machine *machine);

#endif /* MACHINE_H */
