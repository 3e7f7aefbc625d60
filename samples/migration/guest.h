/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A guest: a thread that reads the recorder's ring, checks each record, and mixes values in. It is
 * the load that goes on during the migration, and the witness that nothing was lost or repeated.
 */

#ifndef GUEST_H
#define GUEST_H

#include "record.h"
#include "vfio-user-client.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* Where the ring lies in RAM, and how long it is. */
#define RING_ADDR 0x100000
#define RING_LENGTH 65536

/* Where the guest runs: what changes for it when it is migrated, and it does not notice. */
struct host {
    vfuc_t *device;
    const uint8_t *ram;
};

struct guest {
    struct host host; /* the thread's, unless it is paused */
    struct generator expected;
    uint64_t *mixed; /* values that no record has shown yet, a ring of RING_LENGTH */
    uint64_t nr_mixed;
    uint64_t register_accesses;

    pthread_t thread;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    uint64_t checked; /* records */
    bool pause, paused, ending;
    char error[160]; /* "" as long as all is well */
};

/* Starts the device and the thread. Returns 0 or a negative errno. */
int guest_start(struct guest *guest, const struct host *host);
void guest_end(struct guest *guest);

/* Waits until so many records in all have been checked. Returns false when something is wrong. */
bool guest_wait(struct guest *guest, uint64_t checked);

uint64_t guest_checked(struct guest *guest);

/* The virtual machine stops, and goes on elsewhere. */
void guest_pause(struct guest *guest);
void guest_resume(struct guest *guest, const struct host *host);

#endif /* GUEST_H */
