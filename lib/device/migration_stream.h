/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_MIGRATION_STREAM_H
#define VFU_DEVICE_MIGRATION_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct request;
struct vfu_ctx;

/*
 * The migration data of a device whose library state migrates (vfu_setup_device_migrate_state()).
 *
 * The stream is a sequence of blocks, each a header and so many bytes. What the device gives out in
 * PRE_COPY comes first, in blocks of its own. The library's block is sampled when the device has gone
 * to STOP_COPY, after which nothing in it changes, and comes before what the device gives out there.
 * A block without bytes ends the stream, so that one that was cut anywhere is found out. Messages
 * may divide the stream between any two bytes.
 */
struct block_header {
    char magic[8];
    uint16_t version, type; /* little-endian, as is length */
    uint32_t length;
};

struct stream_save {
    uint8_t *block; /* of the device, with its header; NULL: the stream has no blocks */
    uint8_t *library; /* the library's, likewise */
    bool library_due, ended;
    const uint8_t *out; /* bytes that were taken and not yet given out */
    size_t left;
};

/* Begins to save unless that has begun: 0 or -ENOMEM. */
int stream_save_begin(struct stream_save *save, const struct vfu_ctx *ctx);
/* The device has stopped: samples the library's state. */
void stream_save_stopped(struct stream_save *save, struct vfu_ctx *ctx);
void stream_save_end(struct stream_save *save);

/*
 * Fills buf with the next bytes, taken from the device as needed. stopped: in STOP_COPY. Returns how
 * many there were, or a negative errno.
 */
ssize_t stream_save_read(struct stream_save *save, struct vfu_ctx *ctx, const struct request *req,
                         void *buf, size_t count, bool stopped);

struct stream_load {
    enum {
        LOAD_RAW, /* all is the device's */
        LOAD_FIRST, /* it may turn out to be LOAD_RAW */
        LOAD_BLOCKS,
        LOAD_COMPLETE,
        LOAD_REFUSED, /* until the device is reset */
    } state;
    struct block_header header;
    size_t have; /* bytes of the header */
    size_t left; /* bytes of the block that are to come */
    uint8_t *library; /* the library's block, as far as it has come; NULL: it is not coming */
    bool restored; /* it has come */
};

/* Begins to load; blocks: the library's state may be in the stream. */
void stream_load_begin(struct stream_load *load, bool blocks);
void stream_load_end(struct stream_load *load);

/*
 * Takes the next bytes: the device's go to the device, the library's are restored once they are
 * whole. Returns 0, or a negative errno after a log line.
 */
int stream_load_write(struct stream_load *load, struct vfu_ctx *ctx, const struct request *req,
                      uint8_t *data, size_t len);

/* 0, or -EINVAL after a log line if the stream has not ended where it may. */
int stream_load_check(const struct stream_load *load, const struct vfu_ctx *ctx);

#endif /* VFU_DEVICE_MIGRATION_STREAM_H */
