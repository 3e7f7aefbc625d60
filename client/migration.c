/* SPDX-License-Identifier: BSD-3-Clause */
/* The VFIO migration protocol, version 2: <linux/vfio.h>, enum vfio_device_mig_state. */
#include "client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>

int vfuc_migration_flags(vfuc_t *client, uint64_t *flags)
{
    struct vfio_user_device_feature_migration data;
    ssize_t r = client_feature_get(client, VFIO_DEVICE_FEATURE_MIGRATION, NULL, 0, &data,
                                   sizeof(data));

    if (r >= 0 && (size_t)r < sizeof(data)) {
        r = -EPROTO;
    }
    if (r >= 0) {
        *flags = data.flags;
    }
    return r < 0 ? (int)client_result(r) : 0;
}

static int get_state(struct vfuc *client, uint32_t *state)
{
    struct vfio_user_device_feature_mig_state data;
    ssize_t r = client_feature_get(client, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, NULL, 0,
                                   &data, sizeof(data));

    if (r < 0) {
        return (int)r;
    }
    if ((size_t)r < sizeof(data) || data.device_state >= VFIO_USER_DEVICE_NUM_STATES) {
        return -EPROTO;
    }
    *state = data.device_state;
    return 0;
}

static int set_state(struct vfuc *client, uint32_t state)
{
    const struct vfio_user_device_feature_mig_state data = { .device_state = state };

    return client_feature_set(client, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &data, sizeof(data));
}

int vfuc_migration_state(vfuc_t *client, uint32_t *state)
{
    return (int)client_result(get_state(client, state));
}

int vfuc_migration_set_state(vfuc_t *client, uint32_t state)
{
    return (int)client_result(set_state(client, state));
}

/* What one message may carry: neither side's limit is exceeded. */
static size_t chunk_size(struct vfuc *client)
{
    return MIN(atomic_load(&client->max_data), client->options.max_data_xfer_size);
}

/* The reply may be as long as what was asked for, whatever size says. */
static ssize_t read_data(struct vfuc *client, void *data, size_t size)
{
    const struct vfio_user_mig_data request = {
        .argsz = (uint32_t)(sizeof(request) + size),
        .size = (uint32_t)size,
    };
    struct vfio_user_mig_data reply;
    const struct iovec out = { (void *)&request, sizeof(request) };
    const struct iovec in[] = { { &reply, sizeof(reply) }, { data, size } };
    const struct client_command command = {
        .cmd = VFIO_USER_MIG_DATA_READ,
        .out = &out,
        .nr_out = 1,
        .in = in,
        .nr_in = 2,
    };
    ssize_t r;

    if (size == 0 || size > chunk_size(client)) {
        return -EINVAL;
    }
    r = client_call(client, &command);
    if (r < 0) {
        return r;
    }
    if ((size_t)r < sizeof(reply) || reply.size > size ||
        (size_t)r < sizeof(reply) + reply.size || (size_t)r > sizeof(reply) + size) {
        client_log(client, "reply of %zd bytes to MIG_DATA_READ of %zu is malformed", r, size);
        return -EPROTO;
    }
    return (ssize_t)reply.size;
}

static int write_data(struct vfuc *client, const void *data, size_t size)
{
    struct vfio_user_mig_data request = {
        .argsz = (uint32_t)(sizeof(request) + size),
        .size = (uint32_t)size,
    };
    const struct iovec out[] = { { &request, sizeof(request) }, { (void *)data, size } };
    const struct client_command command = {
        .cmd = VFIO_USER_MIG_DATA_WRITE,
        .out = out,
        .nr_out = 2,
    };
    ssize_t r;

    if (size == 0 || size > chunk_size(client)) {
        return -EINVAL;
    }
    r = client_call(client, &command);
    return r < 0 ? (int)r : 0;
}

ssize_t vfuc_migration_read(vfuc_t *client, void *data, size_t size)
{
    return client_result(read_data(client, data, size));
}

int vfuc_migration_write(vfuc_t *client, const void *data, size_t size)
{
    return (int)client_result(write_data(client, data, size));
}

/* Whole state */

struct transfer {
    struct vfuc *client;
    vfuc_save_t *save;
    vfuc_load_t *load;
    void *pvt;
    uint8_t *buf;
    size_t size; /* of buf */
};

static int begin(struct transfer *transfer)
{
    transfer->size = chunk_size(transfer->client);
    transfer->buf = malloc(transfer->size);
    return transfer->buf == NULL ? -ENOMEM : 0;
}

static int callback_error(void)
{
    return errno != 0 ? -errno : -EIO;
}

/* Until the device has no more for now, or gave limit bytes or more. */
static int drain(struct transfer *transfer, uint64_t limit)
{
    uint64_t moved = 0;

    while (moved < limit) {
        ssize_t n = read_data(transfer->client, transfer->buf, transfer->size);

        if (n <= 0) {
            return (int)n;
        }
        errno = 0;
        if (transfer->save(transfer->pvt, transfer->buf, (size_t)n) < 0) {
            return callback_error();
        }
        moved += (uint64_t)n;
    }
    return 0;
}

static int copy_running(struct transfer *transfer, uint64_t limit)
{
    int err = set_state(transfer->client, VFIO_USER_DEVICE_STATE_PRE_COPY);

    return err < 0 ? err : drain(transfer, limit);
}

static int copy_stopped(struct transfer *transfer)
{
    int err = set_state(transfer->client, VFIO_USER_DEVICE_STATE_STOP_COPY);

    err = err < 0 ? err : drain(transfer, UINT64_MAX);
    return err < 0 ? err : set_state(transfer->client, VFIO_USER_DEVICE_STATE_STOP);
}

int vfuc_migration_save(vfuc_t *client, uint64_t running_bytes, vfuc_save_t *save, void *pvt)
{
    struct transfer transfer = { .client = client, .save = save, .pvt = pvt };
    uint32_t before = VFIO_USER_DEVICE_STATE_ERROR;
    int err = get_state(client, &before);

    err = err < 0 ? err : begin(&transfer);
    if (err < 0) {
        return (int)client_result(err);
    }
    if (running_bytes > 0 && before == VFIO_USER_DEVICE_STATE_RUNNING) {
        err = copy_running(&transfer, running_bytes);
    }
    err = err < 0 ? err : copy_stopped(&transfer);
    if (err < 0 && set_state(client, before) < 0) {
        client_log(client, "after a failed save the device does not go back to state %u", before);
    }
    free(transfer.buf);
    return (int)client_result(err);
}

static int fill(struct transfer *transfer)
{
    for (;;) {
        ssize_t n;
        int err;

        errno = 0;
        n = transfer->load(transfer->pvt, transfer->buf, transfer->size);
        if (n < 0) {
            return callback_error();
        }
        if (n == 0) {
            return 0;
        }
        err = (size_t)n > transfer->size ? -EINVAL
                                         : write_data(transfer->client, transfer->buf, (size_t)n);
        if (err < 0) {
            return err;
        }
    }
}

/*
 * From the beginning: a device that is still resuming after a load that failed has a part of that
 * state. It is to try it and to drop it, and may well say that it is none.
 */
static int begin_resuming(struct vfuc *client)
{
    uint32_t now = VFIO_USER_DEVICE_STATE_ERROR;
    int err = get_state(client, &now);

    if (err == 0 && now == VFIO_USER_DEVICE_STATE_RESUMING &&
        set_state(client, VFIO_USER_DEVICE_STATE_STOP) < 0) {
        client_log(client, "the device drops the state that was not loaded as a whole");
    }
    return err < 0 ? err : set_state(client, VFIO_USER_DEVICE_STATE_RESUMING);
}

int vfuc_migration_load(vfuc_t *client, vfuc_load_t *load, void *pvt)
{
    struct transfer transfer = { .client = client, .load = load, .pvt = pvt };
    int err = begin(&transfer);

    err = err < 0 ? err : begin_resuming(client);
    err = err < 0 ? err : fill(&transfer);
    err = err < 0 ? err : set_state(client, VFIO_USER_DEVICE_STATE_STOP);
    free(transfer.buf);
    return (int)client_result(err);
}
