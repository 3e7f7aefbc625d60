/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * DMA_READ and DMA_WRITE: untranslated ones go through the tables, translated ones to memory
 * itself (vfio-user IOMMU extension, DMA-6).
 */
#include "iommu/iommu.h"

#include "util/sigbus.h"

#include <errno.h>
#include <string.h>

/* Contiguous memory here; a page each in the worst case, and one that is cut. */
struct piece {
    uint8_t *here;
    uint64_t address;
    uint64_t len;
};

#define MAX_PIECES (CLIENT_MAX_DATA / PT_PAGE_SIZE + 1)

/* A transfer, and what it comes to. */
struct transfer {
    const struct message *msg;
    struct vfio_user_dma_region_access access;
    bool write;
    uint8_t *data;
    size_t nr;
    struct piece pieces[MAX_PIECES];
};

/* Lock held. The memory of an address, where in it, and what follows in the same manner. */
static const struct memory *reach(const struct transfer *t, uint64_t addr, uint64_t *address,
                                  uint64_t *last)
{
    uint32_t perm = t->write ? VFUC_IOMMU_WRITE : VFUC_IOMMU_READ;
    const struct message *msg = t->msg;
    const struct memory *memory;
    struct pt_span span;

    if (msg->hdr->flags & VFIO_USER_F_TRANSLATED) {
        *address = addr;
        memory = memory_find(msg->iommu, addr, last);
        return memory != NULL && (perm & ~memory_perm(memory)) == 0 ? memory : NULL;
    }
    if (msg->space.attrs & VFIO_USER_PASID_ATTR_EXEC) {
        perm |= VFUC_IOMMU_EXEC;
    }
    space_walk(msg->iommu, msg->space.pasid, addr, &span);
    if ((perm & ~span.perm) != 0 ||
        ((span.perm & VFUC_IOMMU_PRIV) && !(msg->space.attrs & VFIO_USER_PASID_ATTR_PRIV))) {
        return NULL;
    }
    *address = span.target + (addr - span.first);
    *last = span.last;
    return memory_find(msg->iommu, *address, &span.last);
}

/* Lock held. */
static bool resolve(struct transfer *t)
{
    uint64_t addr = t->access.addr, left = t->access.count, last;

    while (left > 0) {
        struct piece *piece = &t->pieces[t->nr];
        const struct memory *memory = reach(t, addr, &piece->address, &last);

        if (memory == NULL || t->nr == MAX_PIECES) {
            return false;
        }
        piece->here = memory_pointer(memory, piece->address);
        piece->len = last - addr < left ? last - addr + 1 : left;
        addr += piece->len;
        left -= piece->len;
        t->nr++;
    }
    return true;
}

/* Lock held, until the bytes have been moved: after an unmap none are. */
static void copy(const struct transfer *t)
{
    uint8_t *data = t->data;

    for (size_t i = 0; i < t->nr; i++) {
        const struct piece *piece = &t->pieces[i];

        if (t->write) {
            memcpy(piece->here, data, piece->len);
        } else {
            memcpy(data, piece->here, piece->len);
        }
        data += piece->len;
    }
}

static int run(struct transfer *t)
{
    struct vfuc_iommu *iommu = t->msg->iommu;
    bool allowed;

    guard_this_thread();
    pthread_mutex_lock(&iommu->lock);
    allowed = !iommu->isolated && resolve(t);
    if (allowed) {
        copy(t);
        iommu->stats.reads += !t->write;
        iommu->stats.writes += t->write;
    }
    pthread_mutex_unlock(&iommu->lock);
    if (!allowed) {
        return message_refuse(t->msg, EFAULT, "the tables do not allow this DMA");
    }
    for (size_t i = 0; t->write && iommu->options.written != NULL && i < t->nr; i++) {
        iommu->options.written(iommu->options.pvt, iommu, t->pieces[i].address, t->pieces[i].len);
    }
    return 0;
}

int serve_dma(struct message *msg)
{
    struct transfer t = { .msg = msg, .write = msg->hdr->cmd == VFIO_USER_DMA_WRITE };
    size_t head = sizeof(t.access);
    int error;

    if (msg->len >= head) {
        memcpy(&t.access, msg->payload, head);
    }
    /* What is read takes the place of what came; the receiver's buffer is larger than both. */
    if (msg->len < head || t.access.count == 0 ||
        t.access.count > msg->client->options.max_data_xfer_size ||
        msg->len != head + (t.write ? t.access.count : 0) ||
        t.access.count - 1 > UINT64_MAX - t.access.addr) {
        return message_refuse(msg, EINVAL, "is malformed");
    }
    t.data = msg->payload + head;
    error = run(&t);
    if (error == 0) {
        message_reply(msg, 0, msg->payload, head + (t.write ? 0 : t.access.count));
    }
    return error;
}
