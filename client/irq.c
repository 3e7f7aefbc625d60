/* SPDX-License-Identifier: BSD-3-Clause */
/* Interrupts, and the record of how they were set. */
#include "client.h"

#include <errno.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>

/* What cloud-hypervisor sends at a time; servers say less than they take. */
#define FDS_PER_MESSAGE 16
/* MSI-X has no more (PCIe 7.7.2). */
#define MAX_RECORDED 2048

int vfuc_irq_count(vfuc_t *client, uint32_t type)
{
    const struct vfio_irq_info request = { .argsz = sizeof(request), .index = type };
    struct vfio_irq_info info;
    ssize_t r = vfuc_command(client, VFIO_USER_DEVICE_GET_IRQ_INFO, 0, &request, sizeof(request),
                             &info, sizeof(info));

    if (r < 0) {
        return -1;
    }
    if ((size_t)r < sizeof(info) || info.index != type || info.count > INT32_MAX) {
        return (int)client_result(-EPROTO);
    }
    return (int)info.count;
}

static int set_irqs(struct vfuc *client, uint32_t type, uint32_t flags, uint32_t start,
                    uint32_t count, const int *fds)
{
    struct vfio_irq_set set = {
        .argsz = sizeof(set),
        .flags = flags,
        .index = type,
        .start = start,
        .count = count,
    };
    const struct iovec out = { &set, sizeof(set) };
    const struct client_command command = {
        .cmd = VFIO_USER_DEVICE_SET_IRQS,
        .out = &out,
        .nr_out = 1,
        .fds = fds,
        .nr_fds = fds != NULL ? count : 0,
    };
    ssize_t r = client_call(client, &command);

    return r < 0 ? (int)r : 0;
}

/* A message carries a descriptor for each of its interrupts or for none, which takes them away. */
static uint32_t message_length(const int *eventfds, uint32_t count)
{
    uint32_t n = 1;

    while (n < MIN(count, FDS_PER_MESSAGE) &&
           (eventfds == NULL || (eventfds[n] == -1) == (eventfds[0] == -1))) {
        n++;
    }
    return n;
}

static int set_eventfds(struct vfuc *client, uint32_t type, uint32_t start, uint32_t count,
                        const int *eventfds)
{
    const uint32_t flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    int err = 0;

    for (uint32_t done = 0, n; done < count && err == 0; done += n) {
        const int *fds = eventfds != NULL ? eventfds + done : NULL;

        n = message_length(fds, count - done);
        err = set_irqs(client, type, flags, start + done, n,
                       fds != NULL && fds[0] != -1 ? fds : NULL);
    }
    return err;
}

static int set_mask(struct vfuc *client, uint32_t type, uint32_t start, uint32_t count, bool mask)
{
    uint32_t action = mask ? VFIO_IRQ_SET_ACTION_MASK : VFIO_IRQ_SET_ACTION_UNMASK;

    return set_irqs(client, type, VFIO_IRQ_SET_DATA_NONE | action, start, count, NULL);
}

/* The record */

static void free_record(struct irq_record *record)
{
    free(record->fds);
    free(record->masked);
    *record = (struct irq_record){ .fds = NULL };
}

static bool grow(struct irq_record *record, uint32_t count)
{
    int *fds;
    bool *masked;

    if (count <= record->count) {
        return true;
    }
    fds = realloc(record->fds, count * sizeof(*fds));
    if (fds == NULL) {
        return false;
    }
    record->fds = fds;
    masked = realloc(record->masked, count * sizeof(*masked));
    if (masked == NULL) {
        return false;
    }
    record->masked = masked;
    for (uint32_t i = record->count; i < count; i++) {
        fds[i] = -1;
        masked[i] = false;
    }
    record->count = count;
    return true;
}

/* taken: only those that are taken away. */
static void record_fds(struct vfuc *client, uint32_t type, uint32_t start, uint32_t count,
                       const int *fds, bool taken)
{
    pthread_mutex_lock(&client->irq_lock);
    for (uint32_t i = 0; i < count && start + i < client->irqs[type].count; i++) {
        int fd = fds != NULL ? fds[i] : -1;

        if (!taken || fd == -1) {
            client->irqs[type].fds[start + i] = fd;
        }
    }
    pthread_mutex_unlock(&client->irq_lock);
}

/* Room for what is about to be set. */
static int prepare(struct vfuc *client, uint32_t type, uint32_t start, uint32_t count)
{
    bool grown;

    if (type >= CLIENT_IRQ_TYPES || start > MAX_RECORDED || count > MAX_RECORDED - start) {
        return -EINVAL;
    }
    pthread_mutex_lock(&client->irq_lock);
    grown = grow(&client->irqs[type], start + count);
    pthread_mutex_unlock(&client->irq_lock);
    return grown ? 0 : -ENOMEM;
}

/* What was to be taken away does not come back with the next connection. */
static bool gone(int err)
{
    return err == 0 || err == -ENOTCONN || err == -ETIMEDOUT;
}

static int set_and_record(struct vfuc *client, uint32_t type, uint32_t start, uint32_t count,
                          const int *eventfds)
{
    int err = set_eventfds(client, type, start, count, eventfds);

    if (gone(err)) {
        record_fds(client, type, start, count, eventfds, err < 0);
    }
    return err;
}

int vfuc_irq_set_eventfds(vfuc_t *client, uint32_t type, uint32_t start, uint32_t count,
                          const int *eventfds)
{
    int err = prepare(client, type, start, count);

    err = err < 0 ? err : client_begin_setup(client);
    return err < 0 ? (int)client_result(err)
                   : client_end_setup(client, set_and_record(client, type, start, count, eventfds));
}

static int mask_and_record(struct vfuc *client, uint32_t type, uint32_t start, uint32_t count,
                           bool mask)
{
    int err = set_mask(client, type, start, count, mask);

    if (err == 0) {
        pthread_mutex_lock(&client->irq_lock);
        for (uint32_t i = 0; i < count && start + i < client->irqs[type].count; i++) {
            client->irqs[type].masked[start + i] = mask;
        }
        pthread_mutex_unlock(&client->irq_lock);
    }
    return err;
}

int vfuc_irq_mask(vfuc_t *client, uint32_t type, uint32_t start, uint32_t count, bool mask)
{
    int err = prepare(client, type, start, count);

    err = err < 0 ? err : client_begin_setup(client);
    return err < 0 ? (int)client_result(err)
                   : client_end_setup(client, mask_and_record(client, type, start, count, mask));
}

static int disable_and_record(struct vfuc *client, uint32_t type)
{
    int err = set_irqs(client, type, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0,
                       NULL);

    if (type < CLIENT_IRQ_TYPES && gone(err)) {
        pthread_mutex_lock(&client->irq_lock);
        free_record(&client->irqs[type]);
        pthread_mutex_unlock(&client->irq_lock);
    }
    return err;
}

int vfuc_irq_disable(vfuc_t *client, uint32_t type)
{
    int err = client_begin_setup(client);

    return err < 0 ? (int)client_result(err)
                   : client_end_setup(client, disable_and_record(client, type));
}

/* The length of the run of interrupts from i on that are alike. */
static uint32_t run_length(const struct irq_record *record, uint32_t i)
{
    uint32_t n = 1;

    while (i + n < record->count && (record->fds[i + n] == -1) == (record->fds[i] == -1) &&
           record->masked[i + n] == record->masked[i]) {
        n++;
    }
    return n;
}

static int restore_type(struct vfuc *client, uint32_t type, const struct irq_record *record)
{
    uint32_t n;
    int err = 0;

    for (uint32_t i = 0; i < record->count && err == 0; i += n) {
        n = run_length(record, i);
        if (record->masked[i]) {
            err = set_mask(client, type, i, n, true);
        }
        if (record->fds[i] != -1 && err == 0) {
            err = set_eventfds(client, type, i, n, record->fds + i);
        }
    }
    return err;
}

static int copy_record(struct vfuc *client, uint32_t type, struct irq_record *copy)
{
    const struct irq_record *from = &client->irqs[type];
    int err = 0;

    *copy = (struct irq_record){ .fds = NULL };
    pthread_mutex_lock(&client->irq_lock);
    if (!grow(copy, from->count)) {
        err = -ENOMEM;
    } else if (from->count > 0) {
        memcpy(copy->fds, from->fds, from->count * sizeof(*from->fds));
        memcpy(copy->masked, from->masked, from->count * sizeof(*from->masked));
    }
    pthread_mutex_unlock(&client->irq_lock);
    return err;
}

int client_restore_irqs(struct vfuc *client)
{
    int err = 0;

    for (uint32_t type = 0; type < CLIENT_IRQ_TYPES && err == 0; type++) {
        struct irq_record copy;

        err = copy_record(client, type, &copy);
        err = err < 0 ? err : restore_type(client, type, &copy);
        free_record(&copy);
    }
    return err;
}

void client_clear_irqs(struct vfuc *client)
{
    for (int type = 0; type < CLIENT_IRQ_TYPES; type++) {
        free_record(&client->irqs[type]);
    }
}
