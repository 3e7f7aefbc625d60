/* SPDX-License-Identifier: BSD-3-Clause */
/* What the device is, and access to its regions. */
#include "client.h"

#include "util/peer_file.h"

#include <errno.h>
#include <linux/vfio.h>
#include <string.h>
#include <sys/param.h>
#include <unistd.h>

int vfuc_device_info(vfuc_t *client, vfuc_device_info_t *info)
{
    const struct vfio_user_device_info request = { .argsz = sizeof(request) };
    struct vfio_user_device_info wire;
    ssize_t r = vfuc_command(client, VFIO_USER_DEVICE_GET_INFO, 0, &request, sizeof(request), &wire,
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

/* Where the sparse mmap capability lies: 0 if there is none. The links are the server's word. */
static int find_sparse(const uint8_t *reply, size_t len, uint32_t offset)
{
    struct vfio_info_cap_header header;
    uint32_t last = 0;

    while (offset != 0) {
        if (offset < sizeof(struct vfio_region_info) || offset <= last || offset > len ||
            len - offset < sizeof(header)) {
            return -EPROTO;
        }
        memcpy(&header, reply + offset, sizeof(header));
        if (header.id == VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
            return (int)offset;
        }
        last = offset;
        offset = header.next;
    }
    return 0;
}

static bool overlaps(const vfuc_region_info_t *info, const vfuc_mmap_area_t *area)
{
    for (uint32_t i = 0; i < info->nr_areas; i++) {
        if (area->offset < info->areas[i].offset + info->areas[i].size &&
            info->areas[i].offset < area->offset + area->size) {
            return true;
        }
    }
    return false;
}

static int read_areas(const uint8_t *reply, size_t len, const struct vfio_region_info *wire,
                      vfuc_region_info_t *info)
{
    struct vfio_region_info_cap_sparse_mmap cap;
    struct vfio_region_sparse_mmap_area area;
    int offset = find_sparse(reply, len, wire->cap_offset);

    if (offset <= 0) {
        return offset;
    }
    if (len - (size_t)offset < sizeof(cap)) {
        return -EPROTO;
    }
    memcpy(&cap, reply + offset, sizeof(cap));
    info->sparse = true;
    if ((len - (size_t)offset - sizeof(cap)) / sizeof(area) < cap.nr_areas) {
        return -EPROTO;
    }
    if (cap.nr_areas > VFUC_MAX_AREAS) {
        return -E2BIG;
    }
    for (uint32_t i = 0; i < cap.nr_areas; i++) {
        memcpy(&area, reply + (size_t)offset + sizeof(cap) + i * sizeof(area), sizeof(area));
        info->areas[i] = (vfuc_mmap_area_t){ area.offset, area.size };
        if (area.size == 0 || area.size > wire->size || area.offset > wire->size - area.size ||
            overlaps(info, &info->areas[i])) {
            return -EPROTO;
        }
        info->nr_areas++;
    }
    return 0;
}

/* argsz is what a whole answer needs: one that was cut off would seem to have no areas. */
static int read_info(const uint8_t *reply, size_t len, uint32_t region, vfuc_region_info_t *info)
{
    struct vfio_region_info wire;

    if (len < sizeof(wire) || len > MAX_INFO) {
        return -EPROTO;
    }
    memcpy(&wire, reply, sizeof(wire));
    info->size = wire.size;
    info->flags = wire.flags;
    info->fd_offset = wire.offset;
    if (wire.index != region || wire.size > UINT64_MAX - wire.offset) {
        return -EPROTO;
    }
    if (wire.argsz > MAX_INFO) {
        return -E2BIG;
    }
    return wire.flags & VFIO_REGION_INFO_FLAG_CAPS ? read_areas(reply, len, &wire, info) : 0;
}

int vfuc_region_info(vfuc_t *client, uint32_t region, vfuc_region_info_t *info)
{
    struct vfio_region_info wire = { .argsz = MAX_INFO, .index = region };
    const struct iovec out = { &wire, sizeof(wire) };
    uint8_t reply[MAX_INFO];
    const struct iovec in = { reply, sizeof(reply) };
    int fd = -1;
    size_t nr_fds = 0;
    const struct client_command command = {
        .cmd = VFIO_USER_DEVICE_GET_REGION_INFO,
        .out = &out,
        .nr_out = 1,
        .in = &in,
        .nr_in = 1,
        .reply_fds = &fd,
        .max_reply_fds = 1,
        .nr_reply_fds = &nr_fds,
    };
    ssize_t r = client_call(client, &command);
    int err;

    memset(info, 0, sizeof(*info));
    info->fd = -1;
    if (r < 0) {
        return (int)client_result(r);
    }
    err = read_info(reply, (size_t)r, region, info);
    if (err < 0) {
        client_log(client, "information about region %u is %s", region,
                   err == -E2BIG ? "more than this client takes" : "malformed");
        if (fd != -1) {
            peer_file_close(fd);
        }
        return (int)client_result(err);
    }
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

    if (count <= atomic_load(&client->max_data)) {
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
    if (count <= atomic_load(&client->max_data)) {
        r = client_call(client, &command);
    }
    return r < 0 ? (int)client_result(r) : 0;
}

int vfuc_region_post(vfuc_t *client, uint32_t region, uint64_t offset, const void *data,
                     size_t count)
{
    struct vfio_user_region_access access;
    struct iovec out[2];
    int err = -EINVAL;

    write_parts(&access, region, offset, data, count, out);
    if (count <= atomic_load(&client->max_data)) {
        err = client_post(client, VFIO_USER_REGION_WRITE, out, 2);
    }
    return (int)client_result(err);
}

int vfuc_region_read_start(vfuc_t *client, uint32_t region, uint64_t offset, size_t count,
                           vfuc_done_t *done, void *pvt)
{
    struct vfio_user_region_access access = {
        .offset = offset,
        .region = region,
        .count = (uint32_t)count,
    };
    const struct iovec out = { &access, sizeof(access) };
    const struct client_start start = {
        .cmd = VFIO_USER_REGION_READ,
        .out = &out,
        .nr_out = 1,
        .skip = sizeof(access),
        .expect = sizeof(access) + count,
        .done = done,
        .pvt = pvt,
    };
    bool fits = count > 0 && count <= atomic_load(&client->max_data);

    return (int)client_result(fits ? client_start(client, &start) : -EINVAL);
}

int vfuc_region_write_start(vfuc_t *client, uint32_t region, uint64_t offset, const void *data,
                            size_t count, vfuc_done_t *done, void *pvt)
{
    struct vfio_user_region_access access;
    struct iovec out[2];
    const struct client_start start = {
        .cmd = VFIO_USER_REGION_WRITE,
        .out = out,
        .nr_out = 2,
        .done = done,
        .pvt = pvt,
    };
    bool fits = count <= atomic_load(&client->max_data);

    write_parts(&access, region, offset, data, count, out);
    return (int)client_result(fits ? client_start(client, &start) : -EINVAL);
}

/* Several small writes in one message, where the server takes that. */

static int post_batch(struct vfuc *client, const vfuc_write_t *writes, size_t n)
{
    struct vfio_user_write_multi head = { .wr_cnt = n };
    struct vfio_user_write_multi_entry entries[VFIO_USER_WRITE_MULTI_MAX];
    const struct iovec out[] = { { &head, sizeof(head) }, { entries, n * sizeof(entries[0]) } };

    for (size_t i = 0; i < n; i++) {
        entries[i].offset = writes[i].offset;
        entries[i].region = writes[i].region;
        entries[i].count = writes[i].count;
        memcpy(entries[i].data, writes[i].data, sizeof(entries[i].data));
    }
    return client_post(client, VFIO_USER_REGION_WRITE_MULTI, out, 2);
}

static int post_one(struct vfuc *client, const vfuc_write_t *write)
{
    struct vfio_user_region_access access;
    struct iovec out[2];

    write_parts(&access, write->region, write->offset, write->data, write->count, out);
    return client_post(client, VFIO_USER_REGION_WRITE, out, 2);
}

int vfuc_region_post_many(vfuc_t *client, const vfuc_write_t *writes, size_t nr_writes)
{
    size_t batch = atomic_load(&client->write_multiple) ? VFIO_USER_WRITE_MULTI_MAX : 1;
    int err = 0;

    for (size_t i = 0; i < nr_writes; i++) {
        if (writes[i].count == 0 || writes[i].count > sizeof(writes[i].data)) {
            return (int)client_result(-EINVAL);
        }
    }
    for (size_t i = 0, n; i < nr_writes && err == 0; i += n) {
        n = MIN(batch, nr_writes - i);
        err = n > 1 ? post_batch(client, writes + i, n) : post_one(client, writes + i);
    }
    return (int)client_result(err);
}

int vfuc_reset(vfuc_t *client)
{
    return vfuc_command(client, VFIO_USER_DEVICE_RESET, 0, NULL, 0, NULL, 0) < 0 ? -1 : 0;
}
