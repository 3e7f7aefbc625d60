/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/ctx.h"
#include "util/range.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NO_FD_INDEX UINT32_MAX

int region_add_ioeventfd(struct vfu_ctx *ctx, uint32_t index, const struct ioeventfd *io)
{
    struct ioeventfd *copy;

    if (index >= VFU_PCI_DEV_NUM_REGIONS ||
        !extent_within(io->offset, io->size, ctx->regions[index].size)) {
        log_err(&ctx->log, "ioeventfd: region %u, offset 0x%llx, size %u is out of bounds", index,
                (unsigned long long)io->offset, io->size);
        return -EINVAL;
    }
    copy = malloc(sizeof(*copy));
    if (copy == NULL) {
        return -ENOMEM;
    }
    *copy = *io;
    LIST_INSERT_HEAD(&ctx->regions[index].ioeventfds, copy, link);
    return 0;
}

/* The place of a descriptor in what is sent; each is sent once. */
static uint32_t fd_index(int fd, int *fds, size_t *nr_fds)
{
    size_t i;

    if (fd == -1) {
        return NO_FD_INDEX;
    }
    for (i = 0; i < *nr_fds && fds[i] != fd; i++) {
        continue;
    }
    if (i == *nr_fds) {
        fds[(*nr_fds)++] = fd;
    }
    return (uint32_t)i;
}

static void fill_record(const struct ioeventfd *io, vfio_user_sub_region_ioeventfd_t *out,
                        int *fds, size_t *nr_fds)
{
    memset(out, 0, sizeof(*out));
    out->gpa_offset = io->offset;
    out->size = io->size;
    out->flags = io->flags;
    out->datamatch = io->datamatch;
    out->type = VFIO_USER_IO_FD_TYPE_IOEVENTFD;
    out->fd_index = fd_index(io->fd, fds, nr_fds);
    if (io->shadow_fd != -1) {
        out->type = VFIO_USER_IO_FD_TYPE_IOEVENTFD_SHADOW;
        out->shadow_mem_fd_index = fd_index(io->shadow_fd, fds, nr_fds);
        out->shadow_offset = io->shadow_offset;
    }
}

static int check_io_fds(struct vfu_ctx *ctx, const vfio_user_region_io_fds_request_t *in,
                        uint16_t id)
{
    if (in->flags != 0 || in->count != 0 || in->index >= VFU_PCI_DEV_NUM_REGIONS ||
        in->argsz > WIRE_MAX_DATA_XFER) {
        log_err(&ctx->log, "GET_REGION_IO_FDS id %u: argsz %u, flags 0x%x, index %u, count %u", id,
                in->argsz, in->flags, in->index, in->count);
        return -EINVAL;
    }
    if (ctx->regions[in->index].flags == 0) {
        log_err(&ctx->log, "GET_REGION_IO_FDS id %u: region %u was never set up", id, in->index);
        return -EINVAL;
    }
    return 0;
}

int region_command_io_fds(struct vfu_ctx *ctx, struct request *req)
{
    vfio_user_region_io_fds_request_t in;
    vfio_user_region_io_fds_reply_t *out = ctx->scratch;
    const struct ioeventfd *io;
    uint32_t count = 0, i = 0;
    size_t full, nr_fds = 0;
    int err;

    memcpy(&in, req->payload, sizeof(in));
    err = check_io_fds(ctx, &in, req->hdr.msg_id);
    if (err < 0) {
        return err;
    }
    LIST_FOREACH (io, &ctx->regions[in.index].ioeventfds, link) {
        count++;
    }
    full = sizeof(*out) + (size_t)count * sizeof(out->sub_regions[0]);
    *out = (vfio_user_region_io_fds_reply_t){
        .argsz = (uint32_t)full,
        .index = in.index,
        .count = count,
    };
    log_debug(&ctx->log, "region_io_fds[%u] count %u argsz %u", out->index, out->count,
              out->argsz);
    if (in.argsz < full || full > WIRE_MAX_DATA_XFER) {
        request_reply_with(req, out, sizeof(*out));
        return 0;
    }
    LIST_FOREACH (io, &ctx->regions[in.index].ioeventfds, link) {
        if (nr_fds + 2 > STREAM_MAX_FDS) {
            log_err(&ctx->log, "GET_REGION_IO_FDS id %u: more descriptors than a message carries",
                    req->hdr.msg_id);
            return -EINVAL;
        }
        fill_record(io, &out->sub_regions[i++].ioeventfd, ctx->scratch_fds, &nr_fds);
    }
    request_reply_with(req, out, full);
    req->reply_fds = ctx->scratch_fds;
    req->nr_reply_fds = nr_fds;
    return 0;
}
