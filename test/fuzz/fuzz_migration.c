/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Migration: the states, the data out of a device and into it, whole or changed on the way. The
 * input is a byte of device options and then records: a kind, and what follows from the kind. What
 * was read is kept, to be written again with changes.
 */
#include "device.h"
#include "fuzz.h"
#include "resources.h"
#include "threads.h"

#include "device/ctx.h"
#include "device/migration.h"
#include "session/request.h"

#include <sys/syslog.h>

#define KEPT (64u << 10)
#define LARGEST_PIECE 4096u

enum record {
    RECORD_STATE, /* enum vfio_user_device_mig_state */
    RECORD_READ, /* length (16 bits) */
    RECORD_WRITE, /* length (16 bits), data */
    RECORD_HEADER, /* struct vfio_user_mig_data, length, data */
    RECORD_LOAD, /* length of a piece (16 bits), length, pairs of a position (16 bits) and XOR */
    RECORD_RESET,
    RECORD_DISCONNECT,
    RECORD_MOVE, /* length of a piece (16 bits): saved and loaded, which must succeed */
    RECORD_KINDS,
};

/* A device option without another use here: the library's state migrates as well. */
#define WITH_LIBRARY DEVICE_QUIESCES

static struct device device;
static struct tape tape;
static struct {
    uint8_t data[KEPT];
    size_t len;
} kept;

/* One message, at the end of its memory; its reply, valid until the next. */
static int transfer(int (*command)(struct vfu_ctx *ctx, struct request *req), uint16_t cmd,
                    struct vfio_user_mig_data header, const void *data, size_t len,
                    struct request *req)
{
    uint8_t *payload = malloc(sizeof(header) + len);
    int err;

    REQUIRE(payload != NULL);
    memcpy(payload, &header, sizeof(header));
    if (len > 0) {
        memcpy(payload + sizeof(header), data, len);
    }
    *req = (struct request){ .hdr.cmd = cmd, .payload = payload, .len = sizeof(header) + len };
    err = command(device.ctx, req);
    REQUIRE(err == REQUEST_DEFERRED || (err <= 0 && err > -4096));
    free(payload);
    return err;
}

static int write_data(struct vfio_user_mig_data header, const void *data, size_t len)
{
    struct request req;

    return transfer(migration_command_write, VFIO_USER_MIG_DATA_WRITE, header, data, len, &req);
}

static int write_piece(const void *data, size_t len)
{
    const struct vfio_user_mig_data header = {
        .argsz = (uint32_t)(sizeof(header) + len), .size = (uint32_t)len
    };

    return write_data(header, data, len);
}

/* Returns the number of bytes, or -1. */
static int read_piece(uint16_t size)
{
    const struct vfio_user_mig_data header = {
        .argsz = (uint32_t)sizeof(header) + size, .size = size
    };
    struct vfio_user_mig_data reply;
    struct request req;

    if (transfer(migration_command_read, VFIO_USER_MIG_DATA_READ, header, NULL, 0, &req) != 0) {
        return -1;
    }
    REQUIRE(req.nr_reply > 0 && req.reply[0].iov_len >= sizeof(reply));
    memcpy(&reply, req.reply[0].iov_base, sizeof(reply));
    REQUIRE(reply.size <= size && req.reply[0].iov_len >= sizeof(reply) + reply.size);
    if (reply.size <= KEPT - kept.len) {
        memcpy(kept.data + kept.len, (uint8_t *)req.reply[0].iov_base + sizeof(reply), reply.size);
        kept.len += reply.size;
    }
    return (int)reply.size;
}

static void do_write(void)
{
    size_t len = tape_u16(&tape);
    const uint8_t *data = tape_bytes(&tape, &len);

    write_piece(data, len);
}

static void do_header(void)
{
    struct vfio_user_mig_data header;
    const uint8_t *data;
    size_t len;

    tape_read(&tape, &header, sizeof(header));
    len = tape_u8(&tape);
    data = tape_bytes(&tape, &len);
    write_data(header, data, len);
}

static int write_kept(size_t piece)
{
    int err = 0;

    for (size_t at = 0; at < kept.len && err == 0; at += piece) {
        err = write_piece(kept.data + at, piece < kept.len - at ? piece : kept.len - at);
    }
    return err;
}

static void do_load(void)
{
    size_t piece = 1 + tape_u16(&tape) % LARGEST_PIECE, len = tape_u8(&tape) / 3 * 3;
    const uint8_t *patches = tape_bytes(&tape, &len);

    for (size_t i = 0; i + 3 <= len && kept.len > 0; i += 3) {
        kept.data[(patches[i] | patches[i + 1] << 8) % kept.len] ^= patches[i + 2];
    }
    migration_set_state(device.ctx, VFIO_USER_DEVICE_STATE_RESUMING);
    write_kept(piece);
    migration_set_state(device.ctx, VFIO_USER_DEVICE_STATE_RUNNING);
}

static void do_move(void)
{
    const uint16_t piece = 1 + tape_u16(&tape) % LARGEST_PIECE;
    int n;

    migration_disconnected(device.ctx);
    kept.len = 0;
    REQUIRE(migration_set_state(device.ctx, VFIO_USER_DEVICE_STATE_STOP_COPY) == 0);
    while ((n = read_piece(piece)) > 0) {
    }
    REQUIRE(n == 0);
    REQUIRE(migration_set_state(device.ctx, VFIO_USER_DEVICE_STATE_RESUMING) == 0);
    REQUIRE(write_kept(piece) == 0);
    REQUIRE(migration_set_state(device.ctx, VFIO_USER_DEVICE_STATE_RUNNING) == 0);
}

static void play(void)
{
    switch (tape_u8(&tape) % RECORD_KINDS) {
    case RECORD_STATE:
        migration_set_state(device.ctx, tape_u8(&tape));
        break;
    case RECORD_READ:
        read_piece(tape_u16(&tape));
        break;
    case RECORD_WRITE:
        do_write();
        break;
    case RECORD_HEADER:
        do_header();
        break;
    case RECORD_LOAD:
        do_load();
        break;
    case RECORD_RESET:
        migration_reset(device.ctx);
        break;
    case RECORD_MOVE:
        do_move();
        break;
    default:
        migration_disconnected(device.ctx);
        REQUIRE(migration_state(device.ctx) == VFIO_USER_DEVICE_STATE_RUNNING);
        break;
    }
}

static void run(const uint8_t *data, size_t size)
{
    uint8_t options;

    tape = (struct tape){ data, size };
    kept.len = 0;
    options = tape_u8(&tape) | DEVICE_HAS_MIGRATION;
    device_start(&device, options, LOG_INFO);
    vfu_setup_device_migrate_state(device.ctx, options & WITH_LIBRARY);
    device.ctx->agreed.max_data_xfer_size = WIRE_MAX_DATA_XFER;
    while (tape.left > 0) {
        play();
    }
    migration_disconnected(device.ctx);
    device_stop(&device);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool warm;
    unsigned before;

    threads_begin(NULL);
    if (!warm) {
        run(NULL, 0);
        warm = true;
    }
    before = resources_held();
    run(data, size);
    REQUIRE(resources_held() == before);
    threads_end();
    return 0;
}
