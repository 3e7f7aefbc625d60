/* SPDX-License-Identifier: BSD-3-Clause */
#include "device.h"

#include "../common/service.h"
#include "engine.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define CLASS_OTHER 0xff

struct device {
    struct engine engine;
    vfu_migr_state_t migration;
    bool saving;    /* PRE_COPY or STOP_AND_COPY */
    bool quiesced;  /* the engine was paused for what the library does now */
    bool attached;
    int signal_fd;
};

/*
 * Registers
 */

static ssize_t access_registers(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset,
                                bool is_write)
{
    struct device *device = vfu_get_private(ctx);
    uint64_t value = 0;
    int err = -EINVAL;

    if (count == sizeof(value)) {
        memcpy(&value, buf, is_write ? sizeof(value) : 0);
        value = le64toh(value);
        engine_pause(&device->engine);
        err = is_write ? recorder_write(&device->engine.recorder, (uint64_t)offset, value)
                       : recorder_read(&device->engine.recorder, (uint64_t)offset, &value);
        engine_resume(&device->engine);
        value = htole64(value);
        memcpy(buf, &value, is_write ? 0 : sizeof(value));
    }
    if (err != 0) {
        vfu_log(ctx, LOG_ERR, "cannot %s %zu bytes at register 0x%jx", is_write ? "write" : "read",
                count, (intmax_t)offset);
        errno = -err;
        return -1;
    }
    return (ssize_t)count;
}

/*
 * Migration
 */

/* What each state means for the engine, and for what is saved. */
static const struct {
    bool stopped;
    bool saving;
} states[] = {
    [VFU_MIGR_STATE_STOP] = { .stopped = true },
    [VFU_MIGR_STATE_RUNNING] = { .stopped = false },
    [VFU_MIGR_STATE_STOP_AND_COPY] = { .stopped = true, .saving = true },
    [VFU_MIGR_STATE_PRE_COPY] = { .stopped = false, .saving = true },
    [VFU_MIGR_STATE_RESUME] = { .stopped = true },
};

/* The library has had the engine paused before, by quiesce(). */
static int transition(vfu_ctx_t *ctx, vfu_migr_state_t state)
{
    struct device *device = vfu_get_private(ctx);
    struct engine *engine = &device->engine;

    if (device->migration == VFU_MIGR_STATE_RESUME && !recorder_loaded(&engine->recorder)) {
        vfu_log(ctx, LOG_ERR, "the saved state ends too early");
        errno = EINVAL;
        return -1;
    }
    if (states[state].saving && !device->saving) {
        recorder_save_begin(&engine->recorder);
    }
    if (state == VFU_MIGR_STATE_RESUME) {
        recorder_load_begin(&engine->recorder);
    }
    device->saving = states[state].saving;
    engine->stopped = states[state].stopped;
    device->migration = state;
    return 0;
}

static ssize_t read_state(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    struct device *device = vfu_get_private(ctx);
    size_t n;

    /* In PRE_COPY the engine goes on, and what it changes is saved again later. */
    engine_pause(&device->engine);
    n = recorder_save(&device->engine.recorder, device->engine.stopped, buf, (size_t)count);
    engine_resume(&device->engine);
    return (ssize_t)n;
}

static ssize_t write_state(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    struct device *device = vfu_get_private(ctx);
    int err;

    engine_pause(&device->engine);
    err = recorder_load(&device->engine.recorder, buf, (size_t)count);
    engine_resume(&device->engine);
    if (err != 0) {
        vfu_log(ctx, LOG_ERR, "this is no state of a recorder");
        errno = -err;
        return -1;
    }
    return (ssize_t)count;
}

/*
 * Quiescing and reset
 */

/* A burst is short, so it is waited for. The engine goes on when vfu_run_ctx() returns. */
static int quiesce(vfu_ctx_t *ctx)
{
    struct device *device = vfu_get_private(ctx);

    if (!device->quiesced) {
        device->quiesced = true;
        engine_pause(&device->engine);
    }
    return 0;
}

static void end_quiesce(struct device *device)
{
    if (device->quiesced) {
        device->quiesced = false;
        engine_resume(&device->engine);
    }
}

/* With the client its memory has gone, and what it wanted: a new one finds a new device. */
static int reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    struct device *device = vfu_get_private(ctx);

    (void)type;
    engine_pause(&device->engine);
    recorder_init(&device->engine.recorder);
    device->engine.stopped = false;
    device->saving = false;
    device->migration = VFU_MIGR_STATE_RUNNING;
    engine_resume(&device->engine);
    return 0;
}

/*
 * Set-up
 */

static void print_log(vfu_ctx_t *ctx, int level, const char *msg)
{
    (void)ctx;
    service_print_log("migration", level, msg);
}

static int set_up(vfu_ctx_t *ctx)
{
    const vfu_migration_callbacks_t migration = {
        .version = VFU_MIGR_CALLBACKS_VERS,
        .transition = transition,
        .read_data = read_state,
        .write_data = write_state,
    };

    if (vfu_setup_log(ctx, print_log, LOG_WARNING) != 0 ||
        vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) != 0) {
        return -1;
    }
    vfu_pci_set_id(ctx, RECORDER_VENDOR_ID, RECORDER_DEVICE_ID, 0, 0);
    vfu_pci_set_class(ctx, CLASS_OTHER, 0, 0);
    vfu_setup_device_quiesce_cb(ctx, quiesce);
    /* Configuration space and interrupts go with the records: a client restores none of them. */
    vfu_setup_device_migrate_state(ctx, true);
    if (vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, RECORDER_BAR_SIZE, access_registers,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0) != 0 ||
        vfu_setup_device_dma(ctx, LIBVFIO_USER_MAX_DMA_REGIONS, NULL, NULL) != 0 ||
        vfu_setup_device_reset_cb(ctx, reset) != 0 ||
        vfu_setup_device_migration_callbacks(ctx, &migration) != 0) {
        return -1;
    }
    return vfu_realize_ctx(ctx);
}

/*
 * Event loop
 */

static void attach_client(struct device *device)
{
    device->attached = vfu_attach_ctx(device->engine.ctx) == 0;
    if (!device->attached && errno != EAGAIN && errno != EINTR) {
        vfu_log(device->engine.ctx, LOG_WARNING, "a client could not attach: %s", strerror(errno));
    }
}

static int serve_client(struct device *device)
{
    int n = vfu_run_ctx(device->engine.ctx), err = n < 0 ? errno : 0;

    end_quiesce(device);
    if (err == ENOTCONN) {
        device->attached = false;
        return 0;
    }
    return err == EAGAIN || err == EINTR ? 0 : -err;
}

static int serve(struct device *device)
{
    int err = 0;

    while (err == 0) {
        struct pollfd fds[] = {
            { .fd = device->signal_fd, .events = POLLIN },
            { .fd = vfu_get_event_fd(device->engine.ctx), .events = POLLIN },
        };

        err = service_poll(fds, 2);
        if (err != 0 || fds[0].revents != 0) {
            break;
        }
        if (device->attached) {
            err = serve_client(device);
        } else {
            attach_client(device);
        }
    }
    /* The engine may wait for an answer of the client, which this ends. */
    shutdown(vfu_get_poll_fd(device->engine.ctx), SHUT_RDWR);
    return err;
}

static int run(struct device *device, const char *socket_path)
{
    int err = set_up(device->engine.ctx) == 0 ? engine_start(&device->engine) : -errno;

    if (err != 0) {
        fprintf(stderr, "migration: cannot set the device up: %s\n", strerror(-err));
        return err;
    }
    printf("migration: listening on %s\n", socket_path);
    fflush(stdout);
    err = serve(device);
    if (err != 0) {
        fprintf(stderr, "migration: the device ends: %s\n", strerror(-err));
    }
    engine_stop(&device->engine);
    return err;
}

int device_run(const char *socket_path)
{
    static struct device device;
    vfu_ctx_t *ctx;
    int err = -1;

    device.migration = VFU_MIGR_STATE_RUNNING;
    device.signal_fd = service_open_signals();
    if (device.signal_fd < 0) {
        fprintf(stderr, "migration: cannot wait for signals: %s\n", strerror(errno));
        return EXIT_FAILURE;
    }
    ctx = service_listen("migration", socket_path, NULL, LIBVFIO_USER_FLAG_ATTACH_NB, &device);
    if (ctx != NULL) {
        err = engine_init(&device.engine, ctx);
        err = err != 0 ? err : run(&device, socket_path);
        vfu_destroy_ctx(ctx);
        engine_destroy(&device.engine);
    }
    close(device.signal_fd);
    return err == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
