/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/migration_stream.h"

#include "device/ctx.h"
#include "device/library_state.h"
#include "device/migration.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>

#define BLOCK_SIZE 65536 /* of the device, at most, when saving */
#define BLOCK_VERSION 1

enum block_type {
    BLOCK_DEVICE = 1,
    BLOCK_LIBRARY,
    BLOCK_END,
};

static const char block_magic[8] = { 'v', 'f', 'u', '-', 'm', 'i', 'g', '\n' };

/* Saving */

static void write_header(void *block, enum block_type type, size_t length)
{
    struct block_header header = { .version = htole16(BLOCK_VERSION), .type = htole16(type),
                                   .length = htole32((uint32_t)length) };

    memcpy(header.magic, block_magic, sizeof(block_magic));
    memcpy(block, &header, sizeof(header));
}

int stream_save_begin(struct stream_save *save, const struct vfu_ctx *ctx)
{
    if (save->block != NULL) {
        return 0;
    }
    save->block = malloc(sizeof(struct block_header) + BLOCK_SIZE);
    save->library = malloc(sizeof(struct block_header) + library_state_size(ctx));
    if (save->block == NULL || save->library == NULL) {
        stream_save_end(save);
        return -ENOMEM;
    }
    return 0;
}

void stream_save_stopped(struct stream_save *save, struct vfu_ctx *ctx)
{
    if (save->block != NULL) {
        write_header(save->library, BLOCK_LIBRARY, library_state_size(ctx));
        library_state_save(ctx, save->library + sizeof(struct block_header));
        save->library_due = true;
    }
}

void stream_save_end(struct stream_save *save)
{
    free(save->block);
    free(save->library);
    *save = (struct stream_save){ 0 };
}

/* Takes the next block, if there is one: 0 or a negative errno. */
static int take_block(struct stream_save *save, struct vfu_ctx *ctx, const struct request *req,
                      bool stopped)
{
    ssize_t n;

    if (save->library_due) {
        save->library_due = false;
        save->out = save->library;
        save->left = sizeof(struct block_header) + library_state_size(ctx);
        return 0;
    }
    if (save->ended) {
        return 0;
    }
    n = migration_device_read(ctx, req, save->block + sizeof(struct block_header), BLOCK_SIZE);
    if (n < 0 || (n == 0 && !stopped)) {
        return (int)n;
    }
    save->ended = n == 0;
    write_header(save->block, n > 0 ? BLOCK_DEVICE : BLOCK_END, (size_t)n);
    save->out = save->block;
    save->left = sizeof(struct block_header) + (size_t)n;
    return 0;
}

ssize_t stream_save_read(struct stream_save *save, struct vfu_ctx *ctx, const struct request *req,
                         void *buf, size_t count, bool stopped)
{
    size_t done = 0;

    while (done < count) {
        int err = save->left == 0 ? take_block(save, ctx, req, stopped) : 0;
        size_t n = MIN(count - done, save->left);

        if (err < 0) {
            return err;
        }
        if (n == 0) {
            break;
        }
        memcpy((uint8_t *)buf + done, save->out, n);
        save->out += n;
        save->left -= n;
        done += n;
    }
    return (ssize_t)done;
}

/* Loading */

void stream_load_begin(struct stream_load *load, bool blocks)
{
    stream_load_end(load);
    load->state = blocks ? LOAD_FIRST : LOAD_RAW;
}

void stream_load_end(struct stream_load *load)
{
    free(load->library);
    *load = (struct stream_load){ 0 };
}

/* Returns what is wrong with a header, or NULL. */
static const char *header_fault(const struct stream_load *load, const struct vfu_ctx *ctx)
{
    uint32_t length = le32toh(load->header.length);

    if (le16toh(load->header.version) != BLOCK_VERSION) {
        return "this version is not known here";
    }
    switch (le16toh(load->header.type)) {
    case BLOCK_DEVICE:
        return length > 0 ? NULL : "a block of the device without bytes";
    case BLOCK_LIBRARY:
        if (load->restored) {
            return "a second state of the library";
        }
        return length == library_state_size(ctx) ? NULL : "the library's state has another size here";
    case BLOCK_END:
        if (!load->restored) {
            return "the end without a state of the library";
        }
        return length == 0 ? NULL : "the end has bytes";
    default:
        return "this type is not known here";
    }
}

static int begin_block(struct stream_load *load, const struct vfu_ctx *ctx,
                       const struct request *req)
{
    const char *fault = header_fault(load, ctx);

    load->state = LOAD_BLOCKS;
    if (fault != NULL) {
        log_err(&ctx->log, "MIG_DATA_WRITE id %u: a block of version %u, type %u and %u bytes: %s: "
                "refused with EINVAL", req->hdr.msg_id, le16toh(load->header.version),
                le16toh(load->header.type), le32toh(load->header.length), fault);
        return -EINVAL;
    }
    load->left = le32toh(load->header.length);
    if (le16toh(load->header.type) == BLOCK_LIBRARY) {
        load->library = malloc(load->left);
        return load->library != NULL ? 0 : -ENOMEM;
    }
    return 0;
}

/* The block is whole: another one follows, or none. */
static int end_block(struct stream_load *load, struct vfu_ctx *ctx)
{
    int err = 0;

    load->have = 0;
    if (load->library != NULL) {
        err = library_state_restore(ctx, load->library);
        free(load->library);
        load->library = NULL;
        load->restored = true;
    } else if (le16toh(load->header.type) == BLOCK_END) {
        load->state = LOAD_COMPLETE;
    }
    return err;
}

/* Takes bytes of a header. Returns how many, or a negative errno. */
static ssize_t take_header(struct stream_load *load, struct vfu_ctx *ctx, const struct request *req,
                           const uint8_t *data, size_t len)
{
    size_t n = MIN(len, sizeof(load->header) - load->have);
    int err = 0;

    memcpy((uint8_t *)&load->header + load->have, data, n);
    load->have += n;
    if (memcmp(&load->header, block_magic, MIN(load->have, sizeof(block_magic))) != 0) {
        if (load->state == LOAD_FIRST) {
            log_warn(&ctx->log, "migration: the stream has no state of the library: configuration "
                     "space, MSI-X table and masks are left to the client");
            load->state = LOAD_RAW;
            err = migration_device_write(ctx, req, (uint8_t *)&load->header, load->have);
        } else {
            log_err(&ctx->log, "MIG_DATA_WRITE id %u: no header where a block must begin: refused "
                    "with EINVAL", req->hdr.msg_id);
            err = -EINVAL;
        }
    } else if (load->have == sizeof(load->header)) {
        err = begin_block(load, ctx, req);
    }
    return err < 0 ? err : (ssize_t)n;
}

/* Takes bytes of a block. Returns how many, or a negative errno. */
static ssize_t take_body(struct stream_load *load, struct vfu_ctx *ctx, const struct request *req,
                         uint8_t *data, size_t len)
{
    size_t n = MIN(len, load->left);
    int err = 0;

    if (load->library != NULL) {
        memcpy(load->library + library_state_size(ctx) - load->left, data, n);
    } else {
        err = migration_device_write(ctx, req, data, n);
    }
    load->left -= n;
    return err < 0 ? err : (ssize_t)n;
}

static ssize_t take(struct stream_load *load, struct vfu_ctx *ctx, const struct request *req,
                    uint8_t *data, size_t len)
{
    ssize_t n;
    int err;

    if (load->state == LOAD_RAW) {
        err = migration_device_write(ctx, req, data, len);
        return err < 0 ? err : (ssize_t)len;
    }
    if (len > 0 && (load->state == LOAD_COMPLETE || load->state == LOAD_REFUSED)) {
        log_err(&ctx->log, "MIG_DATA_WRITE id %u: %zu bytes %s: refused with EINVAL",
                req->hdr.msg_id, len, load->state == LOAD_COMPLETE ? "after the end of the stream"
                                      : "of a stream that was refused: reset the device first");
        return -EINVAL;
    }
    n = load->left > 0 ? take_body(load, ctx, req, data, len)
                       : take_header(load, ctx, req, data, len);
    if (n >= 0 && load->state == LOAD_BLOCKS && load->left == 0 &&
        load->have == sizeof(load->header)) {
        err = end_block(load, ctx);
        n = err < 0 ? err : n;
    }
    return n;
}

int stream_load_write(struct stream_load *load, struct vfu_ctx *ctx, const struct request *req,
                      uint8_t *data, size_t len)
{
    do {
        ssize_t n = take(load, ctx, req, data, len);

        if (n < 0) {
            load->state = load->state == LOAD_RAW ? LOAD_RAW : LOAD_REFUSED;
            return (int)n;
        }
        data += n;
        len -= (size_t)n;
    } while (len > 0);
    return 0;
}

int stream_load_check(const struct stream_load *load, const struct vfu_ctx *ctx)
{
    if (load->state == LOAD_RAW || load->state == LOAD_COMPLETE ||
        (load->state == LOAD_FIRST && load->have == 0)) {
        return 0;
    }
    log_err(&ctx->log, "migration: the stream %s: RESUMING cannot end but by a reset: refused with "
            "EINVAL", load->state == LOAD_REFUSED ? "was refused" : "is not at its end");
    return -EINVAL;
}
