/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device with doorbells: registers that are written to tell it something, like the tail of a
 * queue. What is written last counts.
 */

#ifndef DOORBELL_H
#define DOORBELL_H

#include <stdbool.h>

#define DOORBELL_VENDOR_ID 0x1234
#define DOORBELL_DEVICE_ID 0xd00b
#define DOORBELL_BAR_SIZE 4096
#define NR_DOORBELLS 4

/* BAR 0. Registers of 4 bytes, one for each doorbell. An interrupt follows what a doorbell does. */
enum doorbell_register {
    DOORBELL_RING = 0x000,     /* W: the doorbell */
    DOORBELL_VALUE = 0x100,    /* R: what it was rung with, last */
    DOORBELL_RINGS = 0x200,    /* R: how often */
    DOORBELL_MESSAGES = 0x300, /* R: how often by a message */
    DOORBELL_END = 0x400,
};

/* Serves clients until SIGTERM or SIGINT. Returns the exit status. */
int device_run(const char *socket_path, bool shadow);

#endif /* DOORBELL_H */
