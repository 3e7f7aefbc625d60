/* SPDX-License-Identifier: BSD-3-Clause */
/* The VFIO migration protocol, version 2: <linux/vfio.h>, enum vfio_device_mig_state. */
#include "device/migration.h"

#include "device/ctx.h"
#include "device/migration_stream.h"
#include "iommu/iommu.h"
#include "util/range.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>

struct migration {
    vfu_migration_callbacks_t callbacks;
    uint32_t state;
    struct stream_save save;
    struct stream_load load;
};

/* What the device calls the states; -1 for those that are not supported. */
static const int device_state[VFIO_USER_DEVICE_NUM_STATES] = {
    [VFIO_USER_DEVICE_STATE_ERROR] = -1,
    [VFIO_USER_DEVICE_STATE_STOP] = VFU_MIGR_STATE_STOP,
    [VFIO_USER_DEVICE_STATE_RUNNING] = VFU_MIGR_STATE_RUNNING,
    [VFIO_USER_DEVICE_STATE_STOP_COPY] = VFU_MIGR_STATE_STOP_AND_COPY,
    [VFIO_USER_DEVICE_STATE_RESUMING] = VFU_MIGR_STATE_RESUME,
    [VFIO_USER_DEVICE_STATE_RUNNING_P2P] = -1,
    [VFIO_USER_DEVICE_STATE_PRE_COPY] = VFU_MIGR_STATE_PRE_COPY,
    [VFIO_USER_DEVICE_STATE_PRE_COPY_P2P] = -1,
};

#define S(name) VFIO_USER_DEVICE_STATE_##name

/* The next state on the way from one to another; 0 (ERROR) where there is no way. */
static const uint8_t next_hop[VFIO_USER_DEVICE_NUM_STATES][VFIO_USER_DEVICE_NUM_STATES] = {
    [S(STOP)] = {
        [S(STOP)] = S(STOP),
        [S(RUNNING)] = S(RUNNING),
        [S(STOP_COPY)] = S(STOP_COPY),
        [S(RESUMING)] = S(RESUMING),
        [S(PRE_COPY)] = S(RUNNING),
    },
    [S(RUNNING)] = {
        [S(STOP)] = S(STOP),
        [S(RUNNING)] = S(RUNNING),
        [S(STOP_COPY)] = S(STOP),
        [S(RESUMING)] = S(STOP),
        [S(PRE_COPY)] = S(PRE_COPY),
    },
    [S(STOP_COPY)] = {
        [S(STOP)] = S(STOP),
        [S(RUNNING)] = S(STOP),
        [S(STOP_COPY)] = S(STOP_COPY),
        [S(RESUMING)] = S(STOP),
    },
    [S(RESUMING)] = {
        [S(STOP)] = S(STOP),
        [S(RUNNING)] = S(STOP),
        [S(STOP_COPY)] = S(STOP),
        [S(RESUMING)] = S(RESUMING),
        [S(PRE_COPY)] = S(STOP),
    },
    [S(PRE_COPY)] = {
        [S(STOP)] = S(RUNNING),
        [S(RUNNING)] = S(RUNNING),
        [S(STOP_COPY)] = S(STOP_COPY),
        [S(RESUMING)] = S(RUNNING),
        [S(PRE_COPY)] = S(PRE_COPY),
    },
};

int migration_setup(struct vfu_ctx *ctx, const vfu_migration_callbacks_t *callbacks)
{
    if (callbacks->version != VFU_MIGR_CALLBACKS_VERS) {
        log_err(&ctx->log, "migration callbacks have version %d, must be %d", callbacks->version,
                VFU_MIGR_CALLBACKS_VERS);
        return -EINVAL;
    }
    if (callbacks->transition == NULL || callbacks->read_data == NULL ||
        callbacks->write_data == NULL) {
        log_err(&ctx->log, "migration needs all of transition, read_data and write_data");
        return -EINVAL;
    }
    if (ctx->migration == NULL) {
        ctx->migration = calloc(1, sizeof(*ctx->migration));
        if (ctx->migration == NULL) {
            return -ENOMEM;
        }
        ctx->migration->state = VFIO_USER_DEVICE_STATE_RUNNING;
    }
    ctx->migration->callbacks = *callbacks;
    return 0;
}

void migration_destroy(struct vfu_ctx *ctx)
{
    if (ctx->migration != NULL) {
        stream_save_end(&ctx->migration->save);
        stream_load_end(&ctx->migration->load);
    }
    free(ctx->migration);
    ctx->migration = NULL;
}

static bool in_state(const struct vfu_ctx *ctx, uint32_t state)
{
    return ctx->migration != NULL && ctx->migration->state == state;
}

/* The device must not do DMA or raise interrupts. */
static bool is_stopped(uint32_t state)
{
    return state == VFIO_USER_DEVICE_STATE_STOP || state == VFIO_USER_DEVICE_STATE_STOP_COPY ||
           state == VFIO_USER_DEVICE_STATE_RESUMING;
}

static bool is_saved(uint32_t state)
{
    return state == VFIO_USER_DEVICE_STATE_PRE_COPY || state == VFIO_USER_DEVICE_STATE_STOP_COPY;
}

bool migration_stop_and_copy(const struct vfu_ctx *ctx)
{
    return in_state(ctx, VFIO_USER_DEVICE_STATE_STOP_COPY);
}

bool migration_would_stop(const struct vfu_ctx *ctx, uint32_t target)
{
    return ctx->migration != NULL && !is_stopped(ctx->migration->state) && is_stopped(target);
}

uint32_t migration_state(const struct vfu_ctx *ctx)
{
    return ctx->migration->state;
}

/* The device is in a new state. What a stop has kept pending is delivered when it runs. */
static void enter(struct vfu_ctx *ctx, uint32_t next)
{
    struct migration *migration = ctx->migration;
    bool was_stopped = is_stopped(migration->state);

    migration->state = next;
    if (next == VFIO_USER_DEVICE_STATE_STOP_COPY) {
        stream_save_stopped(&migration->save, ctx);
    } else if (!is_saved(next)) {
        stream_save_end(&migration->save);
    }
    if (next == VFIO_USER_DEVICE_STATE_RESUMING) {
        stream_load_begin(&migration->load, ctx->migrate_state);
    } else {
        stream_load_end(&migration->load);
    }
    if (was_stopped && !is_stopped(next)) {
        irqs_deliver_pending(&ctx->irqs);
    }
}

/* Asks the device: 0 or its -errno. */
static int call_transition(struct vfu_ctx *ctx, uint32_t next)
{
    struct migration *migration = ctx->migration;
    int err;

    errno = 0;
    if (migration->callbacks.transition(ctx, (vfu_migr_state_t)device_state[next]) == 0) {
        return 0;
    }
    err = errno != 0 ? errno : EIO;
    log_err(&ctx->log, "migration: the device failed to go from state %u to %u: %s",
            migration->state, next, strerror(err));
    if (migration->state == VFIO_USER_DEVICE_STATE_RESUMING) {
        /* It refuses what was loaded: another stream may follow. */
        stream_load_begin(&migration->load, ctx->migrate_state);
    }
    return -err;
}

/*
 * Has the device take one step. The translation cache is emptied on either side of a stop (rule
 * RST-3 of the IOMMU extension): nothing is pending while the device is stopped, and a device that
 * resumes asks for every translation again.
 */
static int hop(struct vfu_ctx *ctx, uint32_t next)
{
    struct migration *migration = ctx->migration;
    int err = 0;

    if (is_stopped(migration->state) != is_stopped(next)) {
        iommu_forget(ctx);
    }
    if (is_saved(next) && ctx->migrate_state) {
        err = stream_save_begin(&migration->save, ctx);
    }
    if (err == 0) {
        err = call_transition(ctx, next);
    }
    if (err == 0) {
        log_debug(&ctx->log, "migration: state %u -> %u", migration->state, next);
        enter(ctx, next);
    }
    return err;
}

/* A failing hop ends the walk in the state that was reached. */
int migration_set_state(struct vfu_ctx *ctx, uint32_t target)
{
    struct migration *migration = ctx->migration;
    int err = 0;

    if (target >= VFIO_USER_DEVICE_NUM_STATES || device_state[target] < 0 ||
        next_hop[migration->state][target] == VFIO_USER_DEVICE_STATE_ERROR) {
        log_err(&ctx->log, "migration: no way from state %u to state %u", migration->state,
                target);
        return -EINVAL;
    }
    if (migration->state != target) {
        err = stream_load_check(&migration->load, ctx);
    }
    while (err == 0 && migration->state != target) {
        err = hop(ctx, next_hop[migration->state][target]);
    }
    return err;
}

int migration_reset(struct vfu_ctx *ctx)
{
    if (ctx->migration == NULL || !is_stopped(ctx->migration->state)) {
        return 0;
    }
    return hop(ctx, VFIO_USER_DEVICE_STATE_RUNNING);
}

void migration_disconnected(struct vfu_ctx *ctx)
{
    if (ctx->migration == NULL || in_state(ctx, VFIO_USER_DEVICE_STATE_RUNNING)) {
        return;
    }
    if (hop(ctx, VFIO_USER_DEVICE_STATE_RUNNING) < 0) {
        enter(ctx, VFIO_USER_DEVICE_STATE_RUNNING);
    }
}

/* Both data commands: enabled, in a state that has data to move, sizes within what was agreed. */
static int check_data(struct vfu_ctx *ctx, const struct request *req, bool right_state,
                      struct vfio_user_mig_data *data)
{
    memcpy(data, req->payload, sizeof(*data));
    if (!right_state) {
        log_err(&ctx->log, "%s id %u: %s: refused", command_name(req->hdr.cmd), req->hdr.msg_id,
                ctx->migration == NULL ? "the device has no migration"
                                       : "not in this migration state");
        return -EINVAL;
    }
    if (data->size > ctx->agreed.max_data_xfer_size || data->size > WIRE_MAX_DATA_XFER ||
        data->argsz < sizeof(*data) + (uint64_t)data->size) {
        log_err(&ctx->log, "%s id %u: size %u is above %u or does not fit argsz %u: refused",
                command_name(req->hdr.cmd), req->hdr.msg_id, data->size,
                MIN(ctx->agreed.max_data_xfer_size, WIRE_MAX_DATA_XFER), data->argsz);
        return -EINVAL;
    }
    return 0;
}

/* A callback has failed, with errno, or has returned n though it was given size. */
static int data_fault(struct vfu_ctx *ctx, const struct request *req, ssize_t n, size_t size)
{
    const char *name = command_name(req->hdr.cmd);
    int err = errno != 0 ? errno : EIO;

    if (n < 0) {
        log_err(&ctx->log, "%s id %u: the device's callback failed: %s", name, req->hdr.msg_id,
                strerror(err));
        return -err;
    }
    log_err(&ctx->log, "%s id %u: the device's callback returned %zd for %zu bytes: refused", name,
            req->hdr.msg_id, n, size);
    return -EINVAL;
}

ssize_t migration_device_read(struct vfu_ctx *ctx, const struct request *req, void *buf,
                              size_t size)
{
    ssize_t n;

    errno = 0;
    n = ctx->migration->callbacks.read_data(ctx, buf, size);
    return n < 0 || (size_t)n > size ? data_fault(ctx, req, n, size) : n;
}

int migration_device_write(struct vfu_ctx *ctx, const struct request *req, void *buf, size_t size)
{
    ssize_t n;

    errno = 0;
    n = ctx->migration->callbacks.write_data(ctx, buf, size);
    return n < 0 || (size_t)n != size ? data_fault(ctx, req, n, size) : 0;
}

int migration_command_read(struct vfu_ctx *ctx, struct request *req)
{
    struct vfio_user_mig_data *reply = ctx->scratch, in;
    bool stopped = migration_stop_and_copy(ctx);
    bool copying = in_state(ctx, VFIO_USER_DEVICE_STATE_PRE_COPY) || stopped;
    int err = check_data(ctx, req, copying, &in);
    struct stream_save *save;
    ssize_t n;

    if (err < 0) {
        return err;
    }
    save = &ctx->migration->save;
    memset(reply, 0, sizeof(*reply) + in.size);
    n = save->block != NULL ? stream_save_read(save, ctx, req, reply->data, in.size, stopped)
                            : migration_device_read(ctx, req, reply->data, in.size);
    if (n < 0) {
        return (int)n;
    }
    reply->size = (uint32_t)n;
    reply->argsz = (uint32_t)(sizeof(*reply) + (size_t)n);
    log_debug(&ctx->log, "migration data: read %zd of %u bytes", n, in.size);
    request_reply_with(req, reply, sizeof(*reply) + in.size);
    return 0;
}

int migration_command_write(struct vfu_ctx *ctx, struct request *req)
{
    struct vfio_user_mig_data in;
    int err = check_data(ctx, req, in_state(ctx, VFIO_USER_DEVICE_STATE_RESUMING), &in);

    if (err < 0) {
        return err;
    }
    if (req->len < sizeof(in) + (uint64_t)in.size) {
        log_err(&ctx->log, "MIG_DATA_WRITE id %u: payload of %zu bytes for size %u",
                req->hdr.msg_id, req->len, in.size);
        return -EINVAL;
    }
    err = stream_load_write(&ctx->migration->load, ctx, req, req->payload + sizeof(in), in.size);
    if (err == 0) {
        log_debug(&ctx->log, "migration data: wrote %u bytes", in.size);
    }
    return err;
}
