/* SPDX-License-Identifier: BSD-3-Clause */
/* DEVICE_FEATURE: the frame around the features of a device. */
#include "client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define OPERATIONS (VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET)

/* One message; up to room bytes of what follows the head of the reply are stored in data. */
static ssize_t exchange(struct vfuc *client, uint32_t flags, const void *sent, size_t size,
                        void *data, size_t room)
{
    const size_t largest = CLIENT_MAX_MESSAGE - sizeof(struct vfio_user_header);
    struct vfio_user_device_feature head = { .flags = flags };
    struct vfio_user_device_feature reply;
    const struct iovec out[] = { { &head, sizeof(head) }, { (void *)sent, size } };
    const struct iovec in[] = { { &reply, sizeof(reply) }, { data, room } };
    const struct client_command command = {
        .cmd = VFIO_USER_DEVICE_FEATURE,
        .out = out,
        .nr_out = size > 0 ? 2 : 1,
        .in = in,
        .nr_in = room > 0 ? 2 : 1,
    };
    ssize_t r;

    if (size > largest - sizeof(head) || room > largest - sizeof(head)) {
        return -EMSGSIZE;
    }
    head.argsz = (uint32_t)(sizeof(head) + (room > size ? room : size));
    r = client_call(client, &command);
    if (r < 0) {
        return r;
    }
    if ((size_t)r < sizeof(reply) || (size_t)r > head.argsz || reply.flags != flags) {
        client_log(client, "reply of %zd bytes to DEVICE_FEATURE 0x%x is malformed", r, flags);
        return -EPROTO;
    }
    return r - (ssize_t)sizeof(reply);
}

/* Data that is sent and replaced is sent from a copy: a reply may come before all has been sent. */
static ssize_t feature(struct vfuc *client, uint32_t flags, void *data, size_t size, size_t room)
{
    void *copy;
    ssize_t r;

    if (size == 0 || room == 0) {
        return exchange(client, flags, data, size, data, room);
    }
    copy = malloc(size);
    if (copy == NULL) {
        return -ENOMEM;
    }
    memcpy(copy, data, size);
    r = exchange(client, flags, copy, size, data, room);
    free(copy);
    return r;
}

ssize_t client_feature_get(struct vfuc *client, uint32_t number, void *data, size_t size,
                           size_t room)
{
    return feature(client, (number & VFIO_DEVICE_FEATURE_MASK) | VFIO_DEVICE_FEATURE_GET, data,
                   size, room);
}

int client_feature_set(struct vfuc *client, uint32_t number, const void *data, size_t size)
{
    ssize_t r = feature(client, (number & VFIO_DEVICE_FEATURE_MASK) | VFIO_DEVICE_FEATURE_SET,
                        (void *)data, size, 0);

    return r < 0 ? (int)r : 0;
}

int vfuc_feature_probe(vfuc_t *client, uint32_t number, uint32_t operations)
{
    ssize_t r = -EINVAL;

    if (number <= VFIO_DEVICE_FEATURE_MASK && (operations & ~(uint32_t)OPERATIONS) == 0) {
        r = feature(client, number | operations | VFIO_DEVICE_FEATURE_PROBE, NULL, 0, 0);
    }
    return r < 0 ? (int)client_result(r) : 0;
}

ssize_t vfuc_feature_get(vfuc_t *client, uint32_t number, void *data, size_t size, size_t room)
{
    if (number > VFIO_DEVICE_FEATURE_MASK || size > room) {
        return client_result(-EINVAL);
    }
    return client_result(client_feature_get(client, number, data, size, room));
}

int vfuc_feature_set(vfuc_t *client, uint32_t number, const void *data, size_t size)
{
    if (number > VFIO_DEVICE_FEATURE_MASK) {
        return (int)client_result(-EINVAL);
    }
    return (int)client_result(client_feature_set(client, number, data, size));
}
