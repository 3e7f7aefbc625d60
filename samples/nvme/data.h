/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The guest memory of a command: from PRPs (NVMe 4.3) or an SGL (4.4) to host addresses.
 */

#ifndef NVME_DATA_H
#define NVME_DATA_H

#include "libvfio-user-iommu.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h> /* PROT_ */
#include <sys/uio.h>

struct command;

/* Memory for the time of a command. */
struct buffer {
    uint8_t *bytes;
    size_t len;
};

/* A part of the guest's address space, or of nothing: a bit bucket. */
struct segment {
    vfu_dma_request_t request;
    bool bucket;
    bool held; /* resolved, and not released */
};

/* Most bytes of a list of PRPs or SGL descriptors that are looked at in one go. */
#define DATA_LIST_CHUNK 4096u
/* An SGL has this many descriptors at most. */
#define DATA_MAX_DESCRIPTORS 1024u

struct data {
    uint64_t len; /* of the transfer */
    int prot;
    void (*mapped)(struct command *cmd);

    /* Reading the lists. */
    uint64_t found; /* bytes described so far */
    uint64_t list_addr;
    uint64_t list_len;   /* bytes of the list from there on; 0: all was read */
    unsigned list_entry; /* size of an entry; list_len is a multiple of it */
    bool last_segment;
    unsigned nr_descriptors;
    uint16_t (*parse)(struct command *cmd, const void *list, size_t len);
    vfu_dma_request_t list_request;
    struct iovec list_iov[2];

    /* What they say. */
    struct segment *segments;
    size_t nr_segments, max_segments;

    /* Where that is in this process. */
    char *sgs; /* max_slots entries, dma_sg_size() bytes each */
    struct iovec *iov;
    size_t max_slots;
    bool large;           /* one of the worker's few with many segments */
    struct buffer bounce; /* for what only messages reach, and for bit buckets */

    /* Of the requests under way, and one more while they are being made. */
    atomic_uint pending;
    atomic_int error;
};

/*
 * Finds len bytes that the command's data pointer describes, for reading or writing them
 * (PROT_READ, PROT_WRITE), and calls mapped(). Completes the command when there is an error.
 */
void data_map(struct command *cmd, uint64_t len, int prot, void (*mapped)(struct command *cmd));

/*
 * Data that the device produces: copies it to the command's memory, and completes the command with
 * success.
 */
void data_reply(struct command *cmd, const void *data, size_t len);

/* Copies between a buffer and mapped data. False: the command was completed with an error. */
bool data_copy(struct command *cmd, uint64_t offset, void *buf, size_t len, bool to_guest);

/*
 * bounce.c: gives mapped data to the command's backend I/O, directly or by a buffer that was
 * filled. aligned: only addresses and lengths in units of 512 bytes will do. False as above.
 */
bool data_iov(struct command *cmd, bool aligned);
/* Writes such a buffer back, if one was used. False as above. */
bool data_iov_done(struct command *cmd);

/* Gives up waiting; the command's event follows if there was something to wait for. */
void data_cancel(struct command *cmd);
void data_release(struct command *cmd);
void data_destroy(struct command *cmd);

/*
 * Of a worker's share, aligned to a page; one that is there already is given back first. False: the
 * command was completed with an error.
 */
bool buffer_get(struct command *cmd, struct buffer *buffer, size_t len);
void buffer_put(struct command *cmd, struct buffer *buffer);
/* It is what the command's backend I/O is about. */
void buffer_io(struct command *cmd, const struct buffer *buffer);

/* For prp.c and sgl.c, and what those offer. Status codes. */
uint16_t data_add(struct command *cmd, uint64_t addr, uint64_t len, bool bucket);
uint16_t prp_begin(struct command *cmd);
uint16_t sgl_begin(struct command *cmd);

#endif /* NVME_DATA_H */
