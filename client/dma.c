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

static bool same_space(const vfuc_memory_t *a, const vfuc_memory_t *b)
{
    return a->translated == b->translated && a->has_pasid == b->has_pasid &&
           (!a->has_pasid || a->pasid == b->pasid);
}

static int remember(struct vfuc *client, const vfuc_memory_t *memory)
{
    int err = 0;

    if (memory->vaddr == NULL) {
        return 0;
    }
    pthread_mutex_lock(&client->memory_lock);
    if (client->nr_memory == CLIENT_MAX_MEMORY) {
        err = -ENOSPC;
    } else {
        client->memory[client->nr_memory++] = *memory;
    }
    pthread_mutex_unlock(&client->memory_lock);
    return err;
}

/* What lies wholly in a range of a space; all of the space when whole is set. */
static void forget(struct vfuc *client, const vfuc_memory_t *range, bool whole)
{
    pthread_mutex_lock(&client->memory_lock);
    for (size_t i = 0; i < client->nr_memory;) {
        const vfuc_memory_t *m = &client->memory[i];

        if (same_space(m, range) &&
            (whole || (m->iova >= range->iova &&
                       m->iova + (m->size - 1) <= range->iova + (range->size - 1)))) {
            client->memory[i] = client->memory[--client->nr_memory];
        } else {
            i++;
        }
    }
    pthread_mutex_unlock(&client->memory_lock);
}

int vfuc_dma_map(vfuc_t *client, const vfuc_memory_t *memory)
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
    struct client_command command = {
        .cmd = VFIO_USER_DMA_MAP,
        .flags = space_flags(memory),
        .out = out,
        .nr_out = space_parts(memory, &prefix, &map, sizeof(map), out),
        .fds = &memory->fd,
        .nr_fds = memory->fd != -1,
    };
    ssize_t r;

    if (memory->size == 0 || memory->size - 1 > UINT64_MAX - memory->iova ||
        (memory->fd == -1 && memory->vaddr == NULL)) {
        return (int)client_result(-EINVAL);
    }
    /* Before the server knows it: the device may ask for it at once. */
    r = remember(client, memory);
    if (r == 0) {
        r = client_call(client, &command);
        if (r < 0) {
            forget(client, memory, false);
        }
    }
    return r < 0 ? (int)client_result(r) : 0;
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
    if (r < 0) {
        return (int)r;
    }
    forget(client, range, all);
    if (dirty != NULL && ((size_t)r != full || head.size != dirty->head.size)) {
        client_log(client, "reply of %zd bytes to DMA_UNMAP, %zu were expected", r, full);
        return -EPROTO;
    }
    return 0;
}

int vfuc_dma_unmap(vfuc_t *client, const vfuc_memory_t *memory)
{
    if (memory->size == 0) {
        return (int)client_result(-EINVAL);
    }
    return (int)client_result(unmap(client, memory, false, NULL));
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
    return (int)client_result(unmap(client, memory, false, &dirty));
}

int vfuc_dma_unmap_all(vfuc_t *client)
{
    const vfuc_memory_t plain = { .size = 1 };

    return (int)client_result(unmap(client, &plain, true, NULL));
}

uint64_t vfuc_dma_messages(vfuc_t *client)
{
    return atomic_load(&client->dma_messages);
}

/* Answering the server */

/* Where len bytes at an address are here; NULL when not all of them may be reached so. */
static uint8_t *reach(struct vfuc *client, uint64_t addr, uint64_t len, int prot)
{
    for (size_t i = 0; i < client->nr_memory; i++) {
        const vfuc_memory_t *m = &client->memory[i];

        if (!m->translated && !m->has_pasid && addr >= m->iova && addr - m->iova < m->size &&
            len <= m->size - (addr - m->iova) && (m->prot & prot) == prot) {
            return (uint8_t *)m->vaddr + (addr - m->iova);
        }
    }
    return NULL;
}

void client_serve_dma(struct vfuc *client, const struct vfio_user_header *hdr, uint8_t *payload,
                      size_t len)
{
    bool write = hdr->cmd == VFIO_USER_DMA_WRITE;
    struct vfio_user_dma_region_access access;
    struct vfio_user_header out = {
        .msg_id = hdr->msg_id,
        .cmd = hdr->cmd,
        .flags = VFIO_USER_F_TYPE_REPLY,
    };
    struct iovec iov[2] = { { &access, sizeof(access) } };
    uint8_t *memory;

    memset(&access, 0, sizeof(access));
    if (len >= sizeof(access)) {
        memcpy(&access, payload, sizeof(access));
    }
    if (len < sizeof(access) || access.count > client->options.max_data_xfer_size ||
        len != sizeof(access) + (write ? access.count : 0)) {
        client_log(client, "server's DMA of %llu bytes in a message of %zu is malformed",
                   (unsigned long long)access.count, len);
        vfuc_reply(client, hdr->msg_id, hdr->cmd, EINVAL, NULL, 0);
        return;
    }
    /* The lock is held until the bytes have been moved: an unmap means that they are not. */
    pthread_mutex_lock(&client->memory_lock);
    memory = reach(client, access.addr, access.count, write ? PROT_WRITE : PROT_READ);
    if (memory != NULL && write) {
        memcpy(memory, payload + sizeof(access), access.count);
    } else if (memory != NULL) {
        memcpy(payload, memory, access.count);
        iov[1] = (struct iovec){ payload, access.count };
    }
    pthread_mutex_unlock(&client->memory_lock);
    if (memory == NULL) {
        client_log(client, "server's DMA of %llu bytes at 0x%llx is not allowed",
                   (unsigned long long)access.count, (unsigned long long)access.addr);
        vfuc_reply(client, hdr->msg_id, hdr->cmd, EFAULT, NULL, 0);
        return;
    }
    atomic_fetch_add(&client->dma_messages, 1);
    if (write && client->options.written != NULL) {
        client->options.written(client->options.pvt, access.addr, access.count);
    }
    client_send(client, &out, iov, write ? 1 : 2, NULL, 0);
}
