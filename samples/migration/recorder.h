/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The recorder: a device that writes record after record into a ring in guest memory, as fast as
 * the guest reads them, and remembers the checksums of the last of them. This is the device itself,
 * and how its state is saved and loaded; it knows nothing of vfio-user and of threads.
 */

#ifndef RECORDER_H
#define RECORDER_H

#include "record.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define RECORDER_VENDOR_ID 0x1234
#define RECORDER_DEVICE_ID 0x7ec0
#define RECORDER_BAR_SIZE 4096
#define RECORDER_MAX_RING 65536

/* Registers of BAR 0; 8 bytes each, to be accessed whole. */
enum recorder_register {
    RECORDER_RING = 0x00,     /* RW: guest address of the ring */
    RECORDER_LENGTH = 0x08,   /* RW: records in the ring, 1 to RECORDER_MAX_RING */
    RECORDER_CONTROL = 0x10,  /* RW: 1: run */
    RECORDER_ERROR = 0x18,    /* R: errno of the DMA that ended the run */
    RECORDER_WRITTEN = 0x20,  /* R: records written */
    RECORDER_CONSUMED = 0x28, /* RW: records that the guest has done with */
    RECORDER_MIX = 0x30,      /* W: goes into all records that follow. R: how many have come */
    RECORDER_DIGEST = 0x38,   /* R: checksum of the whole state */
};

/* State is saved in pages, so that what does not change is saved while the device runs. */
#define STATE_PAGE_SIZE 4096
#define NR_HISTORY 131072 /* checksums of records, the place is the record's number */
#define NR_STATE_PAGES (NR_HISTORY * sizeof(uint64_t) / STATE_PAGE_SIZE)

struct recorder_registers {
    uint64_t ring;
    uint64_t length;
    uint64_t control;
    uint64_t error;
    uint64_t consumed;
    struct generator generator;
};

enum chunk_kind {
    CHUNK_PAGE = 1,      /* of the history */
    CHUNK_REGISTERS = 2, /* the last of a saved state */
};

/* A piece of saved state: the head, and as much of the union as its kind has. */
struct chunk {
    uint32_t kind;
    uint32_t page; /* of CHUNK_PAGE */
    union {
        uint8_t history[STATE_PAGE_SIZE];
        struct recorder_registers registers;
    };
};

struct recorder {
    struct recorder_registers regs;
    uint64_t history[NR_HISTORY];

    bool unsaved[NR_STATE_PAGES];
    bool registers_unsaved;
    struct chunk chunk; /* that is being saved or loaded */
    size_t chunk_size;  /* 0: none. While loading: not known before the head is there */
    size_t chunk_done;
};

void recorder_init(struct recorder *r);

/* Returns 0 or a negative errno. */
int recorder_read(const struct recorder *r, uint64_t offset, uint64_t *value);
int recorder_write(struct recorder *r, uint64_t offset, uint64_t value);

/* Is there something to write, and room for it? */
bool recorder_ready(const struct recorder *r);
/* The next record, and where it goes. Nothing changes before recorder_written(). */
uint64_t recorder_next(const struct recorder *r, struct record *record);
void recorder_written(struct recorder *r, const struct record *record);
void recorder_failed(struct recorder *r, int err);

/* Everything is to be saved, from here on. */
void recorder_save_begin(struct recorder *r);
/*
 * Puts up to size bytes of state into data and returns their number. 0: there is nothing that has
 * not been saved, as of now. The registers come when the device has stopped, at the very end.
 */
size_t recorder_save(struct recorder *r, bool stopped, void *data, size_t size);

void recorder_load_begin(struct recorder *r);
/* Returns 0, or -EINVAL for what is no saved state. */
int recorder_load(struct recorder *r, const void *data, size_t size);
/* Has all of it come? */
bool recorder_loaded(const struct recorder *r);

#endif /* RECORDER_H */
