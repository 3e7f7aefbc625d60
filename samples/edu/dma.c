/* SPDX-License-Identifier: BSD-3-Clause */
#include "dma.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int dma_space_init(struct dma_space *space, vfu_ctx_t *ctx, bool iommu)
{
    space->ctx = ctx;
    space->iommu = iommu;
    space->sg = malloc(dma_sg_size());
    return space->sg == NULL ? -ENOMEM : 0;
}

void dma_space_destroy(struct dma_space *space)
{
    free(space->sg);
}

static int move_by_memory(const struct dma_space *space, uint8_t *buf, size_t len, bool to_ram)
{
    struct iovec iov;

    if (vfu_sgl_get(space->ctx, space->sg, &iov, 1, 0) != 0) {
        return -errno;
    }
    if (to_ram) {
        memcpy(iov.iov_base, buf, len);
    } else {
        memcpy(buf, iov.iov_base, len);
    }
    vfu_sgl_put(space->ctx, space->sg, &iov, 1);
    return 0;
}

static int move_by_message(const struct dma_space *space, uint8_t *buf, bool to_ram)
{
    int rc;

    if (to_ram) {
        rc = vfu_sgl_write(space->ctx, space->sg, 1, buf, VFU_SGL_DIRECT_ACCESS);
    } else {
        rc = vfu_sgl_read(space->ctx, space->sg, 1, buf, VFU_SGL_DIRECT_ACCESS);
    }
    return rc == 0 ? 0 : -errno;
}

/*
 * Finds the entry for the longest start of [addr, addr + *len) that one entry can describe: halves
 * what touches several regions of the client.
 */
static int find_entry(const struct dma_space *space, uint64_t addr, size_t *len, int prot)
{
    int rc;

    for (;; *len /= 2) {
        rc = vfu_addr_to_sgl(space->ctx, (vfu_dma_addr_t)(uintptr_t)addr, *len, space->sg, 1, prot);
        if (rc == 1) {
            return 0;
        }
        if (rc >= -1 || *len < 2) {
            return rc == -1 ? -errno : -EFAULT;
        }
    }
}

static int move(const struct dma_space *space, const struct edu_transfer *transfer, size_t moved,
                size_t *len)
{
    int prot = transfer->to_ram ? PROT_WRITE : PROT_READ;
    uint8_t *buf = transfer->buf + moved;
    int err;

    *len = transfer->len - moved;
    err = find_entry(space, transfer->addr + moved, len, prot);
    if (err != 0) {
        return err;
    }
    if (vfu_sg_is_mappable(space->ctx, space->sg)) {
        return move_by_memory(space, buf, *len, transfer->to_ram);
    }
    return move_by_message(space, buf, transfer->to_ram);
}

static void transfer_plain(const struct dma_space *space, const struct edu_transfer *transfer,
                           struct edu_dma_result *result)
{
    size_t len;

    for (size_t moved = 0; moved < transfer->len && result->err == 0; moved += len) {
        result->err = move(space, transfer, moved, &len);
        result->fault_addr = transfer->addr + moved;
    }
}

/* One call: translations, page requests and messages are the library's business. */
static void transfer_iommu(const struct dma_space *space, const struct edu_transfer *transfer,
                           struct edu_dma_result *result)
{
    vfu_dma_request_t request = {
        .addr = transfer->addr,
        .len = transfer->len,
        .pasid = transfer->has_pasid ? transfer->pasid : VFU_NO_PASID,
    };
    int rc = transfer->to_ram ? vfu_dma_write(space->ctx, &request, transfer->buf)
                              : vfu_dma_read(space->ctx, &request, transfer->buf);

    result->err = rc == 0 ? 0 : -errno;
    result->fault_addr = request.fault_addr;
}

void dma_transfer(const struct dma_space *space, const struct edu_transfer *transfer,
                  struct edu_dma_result *result)
{
    *result = (struct edu_dma_result){ 0 };
    if (transfer->len == 0) {
        return;
    }
    if (space->iommu) {
        transfer_iommu(space, transfer, result);
    } else {
        transfer_plain(space, transfer, result);
    }
}
