/* SPDX-License-Identifier: BSD-3-Clause */
#include "client.h"

#include <errno.h>
#include <linux/vfio.h>
#include <sys/param.h>

/* What cloud-hypervisor sends at a time; servers say less than they take. */
#define FDS_PER_MESSAGE 16

int vfuc_irq_count(vfuc_t *client, uint32_t type)
{
    struct vfio_irq_info info = { .argsz = sizeof(info), .index = type };
    ssize_t r = vfuc_command(client, VFIO_USER_DEVICE_GET_IRQ_INFO, 0, &info, sizeof(info), &info,
                             sizeof(info));

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

    return r < 0 ? (int)client_result(r) : 0;
}

int vfuc_irq_set_eventfds(vfuc_t *client, uint32_t type, uint32_t start, uint32_t count,
                          const int *eventfds)
{
    const uint32_t flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;

    for (uint32_t done = 0; done < count; done += FDS_PER_MESSAGE) {
        uint32_t n = MIN(count - done, FDS_PER_MESSAGE);

        if (set_irqs(client, type, flags, start + done, n,
                     eventfds != NULL ? eventfds + done : NULL) < 0) {
            return -1;
        }
    }
    return 0;
}

int vfuc_irq_mask(vfuc_t *client, uint32_t type, uint32_t start, uint32_t count, bool mask)
{
    uint32_t action = mask ? VFIO_IRQ_SET_ACTION_MASK : VFIO_IRQ_SET_ACTION_UNMASK;

    return set_irqs(client, type, VFIO_IRQ_SET_DATA_NONE | action, start, count, NULL);
}

int vfuc_irq_disable(vfuc_t *client, uint32_t type)
{
    return set_irqs(client, type, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0,
                    NULL);
}
