/* SPDX-License-Identifier: BSD-3-Clause */
/* Migration: the states that the device is taken through, and its state's way out and in. */
#include "nvme.h"
#include "state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct migration {
    bool resuming;
    uint8_t *data;
    size_t size, position;
};

static void drop_data(struct migration *m)
{
    free(m->data);
    m->data = NULL;
    m->size = 0;
    m->position = 0;
    m->resuming = false;
}

static int begin_saving(struct nvme *nvme, struct migration *m)
{
    drop_data(m);
    controller_pause(nvme);
    m->data = controller_save(nvme, &m->size);
    return m->data != NULL ? 0 : -ENOMEM;
}

static int begin_loading(struct nvme *nvme, struct migration *m)
{
    drop_data(m);
    controller_reset(nvme);
    controller_pause(nvme);
    m->data = malloc(STATE_MAX_SIZE);
    m->resuming = true;
    return m->data != NULL ? 0 : -ENOMEM;
}

static int stop(struct nvme *nvme, struct migration *m)
{
    const char *fault;

    if (!m->resuming) {
        controller_pause(nvme);
        return 0;
    }
    /* The client may have enabled it meanwhile. */
    controller_reset(nvme);
    controller_pause(nvme);
    fault = controller_load(nvme, m->data, m->size);
    if (fault == NULL) {
        drop_data(m);
        return 0;
    }
    /* Still resuming: another one may follow. */
    m->size = 0;
    vfu_log(nvme->ctx, LOG_ERR, "the state from the other side cannot be taken: %s", fault);
    return -EINVAL;
}

static int go_on(struct nvme *nvme, struct migration *m)
{
    drop_data(m);
    /* Configuration space has come with the state: how to interrupt, and bus mastering. */
    pci_sync(nvme);
    controller_resume(nvme);
    return 0;
}

static int transition(vfu_ctx_t *ctx, vfu_migr_state_t state)
{
    struct nvme *nvme = vfu_get_private(ctx);
    struct migration *m = nvme->migration;
    int err = 0;

    switch (state) {
    case VFU_MIGR_STATE_STOP:
        err = stop(nvme, m);
        break;
    case VFU_MIGR_STATE_RUNNING:
        err = go_on(nvme, m);
        break;
    case VFU_MIGR_STATE_STOP_AND_COPY:
        err = begin_saving(nvme, m);
        break;
    case VFU_MIGR_STATE_RESUME:
        err = begin_loading(nvme, m);
        break;
    case VFU_MIGR_STATE_PRE_COPY: /* there is nothing to send ahead */
        drop_data(m);
        break;
    }
    errno = -err;
    return err == 0 ? 0 : -1;
}

static ssize_t read_data(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    struct migration *m = ((struct nvme *)vfu_get_private(ctx))->migration;
    size_t n = m->size - m->position < count ? m->size - m->position : (size_t)count;

    if (n > 0) {
        memcpy(buf, m->data + m->position, n);
    }
    m->position += n;
    return (ssize_t)n;
}

static ssize_t write_data(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    struct migration *m = ((struct nvme *)vfu_get_private(ctx))->migration;

    if (!m->resuming || count > STATE_MAX_SIZE - m->size) {
        vfu_log(ctx, LOG_ERR, "the state from the other side is larger than any can be");
        errno = EINVAL;
        return -1;
    }
    memcpy(m->data + m->size, buf, count);
    m->size += count;
    return (ssize_t)count;
}

void migration_reset(struct nvme *nvme)
{
    if (nvme->migration != NULL) {
        drop_data(nvme->migration);
    }
}

int migration_setup(struct nvme *nvme)
{
    static const vfu_migration_callbacks_t callbacks = {
        .version = VFU_MIGR_CALLBACKS_VERS,
        .transition = transition,
        .read_data = read_data,
        .write_data = write_data,
    };

    nvme->migration = calloc(1, sizeof(*nvme->migration));
    if (nvme->migration == NULL) {
        errno = ENOMEM;
        return -1;
    }
    vfu_setup_device_migrate_state(nvme->ctx, true);
    return vfu_setup_device_migration_callbacks(nvme->ctx, &callbacks);
}

void migration_destroy(struct nvme *nvme)
{
    migration_reset(nvme);
    free(nvme->migration);
    nvme->migration = NULL;
}
