/* SPDX-License-Identifier: BSD-3-Clause */
/* The memory that the device may reach, and the messages by which it does so. */
#include "client.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static uint32_t space_flags(const vfuc_memory_t *memory)
{
    return (memory->has_pasid ? VFIO_USER_F_PASID : 0u) |
           (memory->translated ? VFIO_USER_F_TRANSLATED : 0u);
}

/* The parts of a command about a space: its prefix, if it has one, and what follows. */
static size_t space_parts(const vfuc_memory_t *memory, struct vfio_user_pasid_prefix *prefix,
                          void *data, size_t len, struct iovec *out)
{
    size_t nr = 0;

    *prefix = (struct vfio_user_pasid_prefix){ .pasid = memory->pasid };
    if (memory->has_pasid) {
        out[nr++] = (struct iovec){ prefix, sizeof(*prefix) };
    }
    out[nr++] = (struct iovec){ data, len };
    return nr;
}

int client_send_map(struct vfuc *client, const vfuc_memory_t *memory)
{
    struct vfio_user_dma_map map = {
        .argsz = sizeof(map),
        .flags = (memory->prot & PROT_READ ? VFIO_USER_F_DMA_REGION_READ : 0u) |
                 (memory->prot & PROT_WRITE ? VFIO_USER_F_DMA_REGION_WRITE : 0u),
        .offset = memory->fd_offset,
        .addr = memory->iova,
        .size = memory->size,
    };
    struct vfio_user_pasid_prefix prefix;
    struct iovec out[2];
    const struct client_command command = {
        .cmd = VFIO_USER_DMA_MAP,
        .flags = space_flags(memory),
        .out = out,
        .nr_out = space_parts(memory, &prefix, &map, sizeof(map), out),
        .fds = &memory->fd,
        .nr_fds = memory->fd != -1,
    };
    ssize_t r = client_call(client, &command);

    return r < 0 ? (int)r : 0;
}

static bool wraps(const vfuc_memory_t *memory)
{
    return memory->size == 0 || memory->size - 1 > UINT64_MAX - memory->iova;
}

/* It is known here before the server knows it: the device may ask for it at once. */
static int map(struct vfuc *client, const vfuc_memory_t *memory)
{
    int known = client_remember(client, memory), err;

    if (known < 0) {
        return known;
    }
    err = client_send_map(client, memory);
    if (err < 0 && known == 0) {
        client_forget(client, memory, false);
    }
    return err;
}

int vfuc_dma_map(vfuc_t *client, const vfuc_memory_t *memory)
{
    int err = -EINVAL;

    if (!wraps(memory) && (memory->fd != -1 || memory->vaddr != NULL)) {
        err = client_begin_setup(client);
    }
    return err < 0 ? (int)client_result(err) : client_end_setup(client, map(client, memory));
}

/* What comes with an unmap when the dirty pages are asked for. */
struct dirty_out {
    struct vfio_user_bitmap head;
    void *bits;
};

static int unmap(struct vfuc *client, const vfuc_memory_t *range, bool all,
                 struct dirty_out *dirty)
{
    struct vfio_user_dma_unmap unmap = {
        .argsz = sizeof(unmap),
        .flags = all ? VFIO_DMA_UNMAP_FLAG_ALL : 0u,
        .addr = all ? 0 : range->iova,
        .size = all ? 0 : range->size,
    };
    struct vfio_user_dma_unmap echo;
    struct vfio_user_bitmap head;
    struct vfio_user_pasid_prefix prefix;
    struct iovec out[3], in[3] = { { &echo, sizeof(echo) }, { &head, sizeof(head) } };
    struct client_command command = {
        .cmd = VFIO_USER_DMA_UNMAP,
        .flags = space_flags(range),
        .out = out,
        .nr_out = space_parts(range, &prefix, &unmap, sizeof(unmap), out),
    };
    size_t full = sizeof(unmap);
    ssize_t r;

    if (dirty != NULL) {
        full += sizeof(dirty->head) + dirty->head.size;
        unmap.flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
        unmap.argsz = (uint32_t)full;
        out[command.nr_out++] = (struct iovec){ &dirty->head, sizeof(dirty->head) };
        in[2] = (struct iovec){ dirty->bits, dirty->head.size };
        command.in = in;
        command.nr_in = 3;
    }
    r = client_call(client, &command);
    if (r >= 0 || r == -ENOTCONN || r == -ETIMEDOUT) {
        /* A connection that has ended took the mapping along: the next one does not get it. */
        client_forget(client, range, all);
    }
    if (r < 0) {
        return (int)r;
    }
    if (dirty != NULL && ((size_t)r != full || head.size != dirty->head.size)) {
        client_log(client, "reply of %zd bytes to DMA_UNMAP, %zu were expected", r, full);
        return -EPROTO;
    }
    return 0;
}

static int unmap_recorded(struct vfuc *client, const vfuc_memory_t *range, bool all,
                          struct dirty_out *dirty)
{
    int err = wraps(range) ? -EINVAL : client_begin_setup(client);

    return err < 0 ? (int)client_result(err)
                   : client_end_setup(client, unmap(client, range, all, dirty));
}

int vfuc_dma_unmap(vfuc_t *client, const vfuc_memory_t *memory)
{
    return unmap_recorded(client, memory, false, NULL);
}

int vfuc_dma_unmap_dirty(vfuc_t *client, const vfuc_memory_t *memory, uint64_t page_size,
                         void *bitmap, uint64_t bitmap_size)
{
    struct dirty_out dirty = {
        .head = { .pgsize = page_size, .size = vfuc_dirty_bitmap_size(memory->size, page_size) },
        .bits = bitmap,
    };

    if (dirty.head.size == 0 || bitmap_size < dirty.head.size) {
        return (int)client_result(-EINVAL);
    }
    if (dirty.head.size > CLIENT_MAX_DATA - sizeof(dirty.head)) {
        return (int)client_result(-EMSGSIZE);
    }
    return unmap_recorded(client, memory, false, &dirty);
}

int vfuc_dma_unmap_all(vfuc_t *client)
{
    const vfuc_memory_t plain = { .size = 1 };

    return unmap_recorded(client, &plain, true, NULL);
}

uint64_t vfuc_dma_messages(vfuc_t *client)
{
    return atomic_load(&client->dma_messages);
}

/* Answering the server */

static bool malformed(struct vfuc *client, const struct vfio_user_dma_region_access *access,
                      bool write, size_t len)
{
    return len < sizeof(*access) || access->count == 0 ||
           access->count > client->options.max_data_xfer_size ||
           len != sizeof(*access) + (write ? access->count : 0);
}

void client_serve_dma(struct vfuc *client, const struct vfio_user_header *hdr, uint8_t *payload,
                      size_t len)
{
    bool write = hdr->cmd == VFIO_USER_DMA_WRITE;
    uint8_t *data = payload + sizeof(struct vfio_user_dma_region_access);
    struct vfio_user_dma_region_access access = { .count = 0 };
    struct iovec iov[2] = { { &access, sizeof(access) }, { data, 0 } };

    if (len >= sizeof(access)) {
        memcpy(&access, payload, sizeof(access));
    }
    if (malformed(client, &access, write, len)) {
        client_log(client, "server's DMA of %llu bytes in a message of %zu is malformed",
                   (unsigned long long)access.count, len);
        client_answer(client, hdr, EINVAL, NULL, 0);
        return;
    }
    if (client_copy(client, access.addr, access.count, data, write) < 0) {
        client_log(client, "server's DMA of %llu bytes at 0x%llx is not allowed",
                   (unsigned long long)access.count, (unsigned long long)access.addr);
        client_answer(client, hdr, EFAULT, NULL, 0);
        return;
    }
    atomic_fetch_add(&client->dma_messages, 1);
    if (write && client->options.written != NULL) {
        client->options.written(client->options.pvt, access.addr, access.count);
    }
    iov[1].iov_len = write ? 0 : access.count;
    client_answer(client, hdr, 0, iov, write ? 1 : 2);
}
