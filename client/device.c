/* SPDX-License-Identifier: BSD-3-Clause */
/* What the device is, and access to its regions. */
#include "client.h"

#include <errno.h>
#include <linux/vfio.h>
#include <string.h>
#include <sys/param.h>
#include <unistd.h>

int vfuc_device_info(vfuc_t *client, vfuc_device_info_t *info)
{
    struct vfio_user_device_info wire = { .argsz = sizeof(wire) };
    ssize_t r = vfuc_command(client, VFIO_USER_DEVICE_GET_INFO, 0, &wire, sizeof(wire), &wire,
                             sizeof(wire));

    if (r < 0) {
        return -1;
    }
    if ((size_t)r < sizeof(wire)) {
        return (int)client_result(-EPROTO);
    }
    *info = (vfuc_device_info_t){ wire.flags, wire.num_regions, wire.num_irqs };
    return 0;
}

#define MAX_INFO 4096

/* The sparse mmap capability: every offset and count is the server's word. */
static int read_areas(const uint8_t *reply, size_t len, const struct vfio_region_info *wire,
                      vfuc_region_info_t *info)
{
    struct vfio_region_info_cap_sparse_mmap cap;
    struct vfio_region_sparse_mmap_area area;
    uint32_t offset = wire->cap_offset;

    while (offset != 0) {
        if (offset < sizeof(*wire) || offset > len || len - offset < sizeof(cap.header)) {
            return -EPROTO;
        }
        memcpy(&cap.header, reply + offset, sizeof(cap.header));
        if (cap.header.id == VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
            break;
        }
        if (cap.header.next != 0 && cap.header.next <= offset) {
            return -EPROTO;
        }
        offset = cap.header.next;
    }
    if (offset == 0) {
        return 0;
    }
    if (len - offset < sizeof(cap)) {
        return -EPROTO;
    }
    memcpy(&cap, reply + offset, sizeof(cap));
    offset += (uint32_t)sizeof(cap);
    if (cap.nr_areas > VFUC_MAX_AREAS || len - offset < cap.nr_areas * sizeof(area)) {
        return -EPROTO;
    }
    for (uint32_t i = 0; i < cap.nr_areas; i++) {
        memcpy(&area, reply + offset + i * sizeof(area), sizeof(area));
        if (area.size > wire->size || area.offset > wire->size - area.size) {
            return -EPROTO;
        }
        info->areas[i] = (vfuc_mmap_area_t){ area.offset, area.size };
    }
    info->nr_areas = cap.nr_areas;
    return 0;
}

int vfuc_region_info(vfuc_t *client, uint32_t region, vfuc_region_info_t *info)
{
    struct vfio_region_info wire = { .argsz = MAX_INFO, .index = region };
    const struct iovec out = { &wire, sizeof(wire) };
    uint8_t reply[MAX_INFO];
    const struct iovec in = { reply, sizeof(reply) };
    int fd = -1;
    const struct client_command command = {
        .cmd = VFIO_USER_DEVICE_GET_REGION_INFO,
        .out = &out,
        .nr_out = 1,
        .in = &in,
        .nr_in = 1,
        .reply_fd = &fd,
    };
    ssize_t r = client_call(client, &command);
    int err = 0;

    memset(info, 0, sizeof(*info));
    info->fd = -1;
    if (r < 0) {
        return (int)client_result(r);
    }
    if ((size_t)r < sizeof(wire) || (size_t)r > sizeof(reply)) {
        err = -EPROTO;
    } else {
        memcpy(&wire, reply, sizeof(wire));
        if (wire.index != region) {
            err = -EPROTO;
        } else if (wire.flags & VFIO_REGION_INFO_FLAG_CAPS) {
            err = read_areas(reply, (size_t)r, &wire, info);
        }
    }
    if (err < 0) {
        client_log(client, "information about region %u is malformed", region);
        if (fd != -1) {
            close(fd);
        }
        return (int)client_result(err);
    }
    info->size = wire.size;
    info->flags = wire.flags;
    info->fd_offset = wire.offset;
    info->fd = fd;
    return 0;
}

int vfuc_region_read(vfuc_t *client, uint32_t region, uint64_t offset, void *data, size_t count)
{
    struct vfio_user_region_access access = {
        .offset = offset,
        .region = region,
        .count = (uint32_t)count,
    };
    struct vfio_user_region_access echo;
    const struct iovec out = { &access, sizeof(access) };
    const struct iovec in[] = { { &echo, sizeof(echo) }, { data, count } };
    const struct client_command command = {
        .cmd = VFIO_USER_REGION_READ,
        .out = &out,
        .nr_out = 1,
        .in = in,
        .nr_in = 2,
    };
    ssize_t r = -EINVAL;

    if (count <= client->agreed.max_data_xfer_size) {
        r = client_call(client, &command);
    }
    if (r >= 0 && count > 0 && (size_t)r != sizeof(access) + count) {
        r = -EPROTO;
    }
    return r < 0 ? (int)client_result(r) : 0;
}

/* The parts of a REGION_WRITE. */
static void write_parts(struct vfio_user_region_access *access, uint32_t region, uint64_t offset,
                        const void *data, size_t count, struct iovec out[2])
{
    access->offset = offset;
    access->region = region;
    access->count = (uint32_t)count;
    out[0] = (struct iovec){ access, sizeof(*access) };
    out[1] = (struct iovec){ (void *)data, count };
}

int vfuc_region_write(vfuc_t *client, uint32_t region, uint64_t offset, const void *data,
                      size_t count)
{
    struct vfio_user_region_access access;
    struct iovec out[2];
    const struct client_command command = {
        .cmd = VFIO_USER_REGION_WRITE,
        .out = out,
        .nr_out = 2,
    };
    ssize_t r = -EINVAL;

    write_parts(&access, region, offset, data, count, out);
    if (count <= client->agreed.max_data_xfer_size) {
        r = client_call(client, &command);
    }
    return r < 0 ? (int)client_result(r) : 0;
}

int vfuc_region_post(vfuc_t *client, uint32_t region, uint64_t offset, const void *data,
                     size_t count)
{
    const struct vfio_user_header hdr = {
        .cmd = VFIO_USER_REGION_WRITE,
        .flags = VFIO_USER_F_NO_REPLY,
    };
    struct vfio_user_region_access access;
    struct iovec out[2];

    write_parts(&access, region, offset, data, count, out);
    if (count > client->agreed.max_data_xfer_size) {
        return (int)client_result(-EINVAL);
    }
    return (int)client_result(client_send(client, &hdr, out, 2, NULL, 0));
}

int vfuc_reset(vfuc_t *client)
{
    return vfuc_command(client, VFIO_USER_DEVICE_RESET, 0, NULL, 0, NULL, 0) < 0 ? -1 : 0;
}
