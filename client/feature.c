/* SPDX-License-Identifier: BSD-3-Clause */
/* DEVICE_FEATURE: the frame around the features of a device. */
#include "client.h"

#include <errno.h>
#include <string.h>

#define OPERATIONS (VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET)

/*
 * One message; up to room bytes of what follows the head of the reply are stored. Not where data
 * lies: a server may answer before the whole command has been read.
 */
static ssize_t feature(struct vfuc *client, uint32_t flags, const void *data, size_t size,
                       void *answer, size_t room)
{
    const size_t largest = CLIENT_MAX_MESSAGE - sizeof(struct vfio_user_header);
    struct vfio_user_device_feature head = { .flags = flags };
    struct vfio_user_device_feature reply;
    const struct iovec out[] = { { &head, sizeof(head) }, { (void *)data, size } };
    const struct iovec in[] = { { &reply, sizeof(reply) }, { answer, room } };
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

ssize_t client_feature_get(struct vfuc *client, uint32_t number, const void *data, size_t size,
                           void *answer, size_t room)
{
    return feature(client, (number & VFIO_DEVICE_FEATURE_MASK) | VFIO_DEVICE_FEATURE_GET, data,
                   size, answer, room);
}

int client_feature_set(struct vfuc *client, uint32_t number, const void *data, size_t size)
{
    ssize_t r = feature(client, (number & VFIO_DEVICE_FEATURE_MASK) | VFIO_DEVICE_FEATURE_SET, data,
                        size, NULL, 0);

    return r < 0 ? (int)r : 0;
}

int vfuc_feature_probe(vfuc_t *client, uint32_t number, uint32_t operations)
{
    ssize_t r = -EINVAL;

    if (number <= VFIO_DEVICE_FEATURE_MASK && (operations & ~(uint32_t)OPERATIONS) == 0) {
        r = feature(client, number | operations | VFIO_DEVICE_FEATURE_PROBE, NULL, 0, NULL, 0);
    }
    return r < 0 ? (int)client_result(r) : 0;
}

ssize_t vfuc_feature_get(vfuc_t *client, uint32_t number, const void *data, size_t size,
                         void *answer, size_t room)
{
    if (number > VFIO_DEVICE_FEATURE_MASK) {
        return client_result(-EINVAL);
    }
    return client_result(client_feature_get(client, number, data, size, answer, room));
}

int vfuc_feature_set(vfuc_t *client, uint32_t number, const void *data, size_t size)
{
    if (number > VFIO_DEVICE_FEATURE_MASK) {
        return (int)client_result(-EINVAL);
    }
    return (int)client_result(client_feature_set(client, number, data, size));
}
