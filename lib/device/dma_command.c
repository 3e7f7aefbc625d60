/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/dma_command.h"

#include "device/ctx.h"
#include "iommu/iommu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/param.h>

#define UNMAP_FLAGS (VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP | VFIO_DMA_UNMAP_FLAG_ALL)

/* The address space that a request names; made when create is set. 0 or -errno. */
static int find_space(struct vfu_ctx *ctx, const struct request *req, bool create,
                      struct dma_space **space)
{
    bool privileged = (req->pasid_attrs & VFIO_USER_PASID_ATTR_PRIV) != 0;
    int err;

    if (request_translated(req)) {
        *space = dma_translated_space(ctx->dma);
        return 0;
    }
    if (!req->tagged) {
        *space = dma_requester_space(ctx->dma);
        return 0;
    }
    *space = dma_pasid_space(ctx->dma, req->pasid, privileged);
    if (*space != NULL || !create) {
        return *space != NULL ? 0 : -ENOENT;
    }
    err = limits_check(&ctx->limits, VFU_LIMIT_PASID_SPACES,
                       dma_nr_pasid_spaces(ctx->dma), 1, &ctx->log, command_name(req->hdr.cmd));
    if (err < 0) {
        return err;
    }
    return dma_pasid_space_create(ctx->dma, req->pasid, privileged, space);
}

/* How the memory is to be reached: vfio-user protocol, VFIO_USER_DMA_MAP, flags. */
static int map_mode(const struct vfio_user_dma_map *map, int fd, enum dma_mode *mode)
{
    const uint32_t access = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE;
    uint32_t flags = map->flags & ~access;

    if (flags == VFIO_USER_F_DMA_REGION_MMAP && fd != -1) {
        *mode = DMA_MODE_MMAP;
    } else if (flags == VFIO_USER_F_DMA_REGION_FILE_IO && fd != -1) {
        *mode = DMA_MODE_FILE_IO;
    } else if (flags == 0) {
        *mode = fd != -1 ? DMA_MODE_MMAP : DMA_MODE_MESSAGE;
    } else {
        return -EINVAL;
    }
    return 0;
}

static void log_map(struct vfu_ctx *ctx, const struct vfio_user_dma_map *map)
{
    log_debug(&ctx->log, "adding DMA region [%#llx, %#llx) offset=%#llx flags=%#x",
              (unsigned long long)map->addr, (unsigned long long)(map->addr + map->size),
              (unsigned long long)map->offset, map->flags);
}

int dma_command_map(struct vfu_ctx *ctx, struct request *req)
{
    struct vfio_user_dma_map map;
    struct dma_mapping mapping;
    struct dma_space *space;
    struct dma_entry *entry;
    int err;

    memcpy(&map, req->payload, sizeof(map));
    if (ctx->dma == NULL) {
        log_map(ctx, &map);
        return 0;
    }
    mapping.fd = req->nr_fds > 0 ? req->fds[0] : -1;
    mapping.offset = map.offset;
    mapping.prot = (map.flags & VFIO_USER_F_DMA_REGION_READ ? PROT_READ : 0) |
                   (map.flags & VFIO_USER_F_DMA_REGION_WRITE ? PROT_WRITE : 0);
    if (map_mode(&map, mapping.fd, &mapping.mode) < 0) {
        log_err(&ctx->log, "DMA_MAP id %u: flags 0x%x are unknown or contradictory%s: refused",
                req->hdr.msg_id, map.flags,
                mapping.fd == -1 ? " without a file descriptor" : "");
        return -EINVAL;
    }
    if (map.size > DMA_MAX_REGION_SIZE) {
        log_err(&ctx->log, "DMA_MAP id %u: size 0x%llx is above 0x%llx", req->hdr.msg_id,
                (unsigned long long)map.size, DMA_MAX_REGION_SIZE);
        return -ENOSPC;
    }
    if (!range_make(map.addr, map.size, &mapping.iova)) {
        log_err(&ctx->log, "DMA_MAP id %u: address 0x%llx, size 0x%llx is empty or wraps",
                req->hdr.msg_id, (unsigned long long)map.addr, (unsigned long long)map.size);
        return -EINVAL;
    }
    err = find_space(ctx, req, true, &space);
    if (err == 0) {
        err = dma_map(space, &mapping, &entry);
    }
    if (err < 0) {
        return err;
    }
    log_map(ctx, &map);
    if (ctx->dma_register != NULL) {
        ctx->dma_register(ctx, dma_region_info(entry));
    }
    return 0;
}

static void tell_device(struct dma_entry *region, void *arg)
{
    struct vfu_ctx *ctx = arg;

    if (ctx->dma_unregister != NULL) {
        ctx->dma_unregister(ctx, dma_region_info(region));
    }
}

struct dirty_unmap {
    struct vfu_ctx *ctx;
    struct dma_dirty_report report;
};

/* The device may mark pages as it lets go of the region: they are in the report. */
static void tell_device_and_report(struct dma_entry *region, void *arg)
{
    struct dirty_unmap *dirty = arg;

    tell_device(region, dirty->ctx);
    dma_dirty_report_region(&dirty->report, region);
}

/* An unmap whose reply waits until nobody uses the memory any more. */
struct unmap {
    struct dma_drain drain; /* first: done() gets it */
    struct request *req;
    uint8_t reply[];
};

static void unmap_drained(struct dma_drain *drain)
{
    struct unmap *unmap = (struct unmap *)drain;

    request_finish(unmap->req, 0);
    free(unmap);
}

/* The bitmap is zeros when the request has none. */
static void read_unmap(const struct request *req, struct vfio_user_dma_unmap *unmap,
                       struct vfio_user_bitmap *bitmap)
{
    *bitmap = (struct vfio_user_bitmap){ 0 };
    memcpy(unmap, req->payload, sizeof(*unmap));
    if (req->len >= sizeof(*unmap) + sizeof(*bitmap)) {
        memcpy(bitmap, req->payload + sizeof(*unmap), sizeof(*bitmap));
    }
}

static const char *unmap_fault(const struct request *req, const struct vfio_user_dma_unmap *unmap,
                               const struct vfio_user_bitmap *bitmap)
{
    bool all = unmap->flags == VFIO_DMA_UNMAP_FLAG_ALL;
    bool dirty = unmap->flags == VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;

    if (unmap->flags != 0 && !all && !dirty) {
        return "unknown or contradictory flags";
    }
    if (all && (unmap->addr != 0 || unmap->size != 0)) {
        return "with ALL, address and size must be 0";
    }
    if (unmap->argsz > WIRE_MAX_DATA_XFER) {
        return "argsz is beyond the largest transfer";
    }
    if (dirty && (req->len < sizeof(*unmap) + sizeof(*bitmap) ||
                  bitmap->size > WIRE_MAX_DATA_XFER ||
                  unmap->argsz < sizeof(*unmap) + sizeof(*bitmap) + bitmap->size)) {
        return "no room for the dirty bitmap";
    }
    return NULL;
}

bool dma_command_unmap_range(struct vfu_ctx *ctx, const struct request *req, struct range *range)
{
    struct vfio_user_dma_unmap in;
    struct vfio_user_bitmap bitmap;
    struct dma_space *space;

    read_unmap(req, &in, &bitmap);
    if (unmap_fault(req, &in, &bitmap) != NULL || find_space(ctx, req, false, &space) < 0) {
        return false;
    }
    *range = RANGE_ALL;
    if (in.flags == VFIO_DMA_UNMAP_FLAG_ALL) {
        return true;
    }
    return range_make(in.addr, in.size, range) && dma_unmaps(space, *range) &&
           (in.flags != VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP ||
            dma_dirty_report_fault(ctx->dma, *range, bitmap.pgsize, bitmap.size) == NULL);
}

static int check_unmap(struct vfu_ctx *ctx, const struct request *req,
                       const struct vfio_user_dma_unmap *unmap,
                       const struct vfio_user_bitmap *bitmap)
{
    const char *fault = unmap_fault(req, unmap, bitmap);

    if (fault == NULL) {
        return 0;
    }
    log_err(&ctx->log, "DMA_UNMAP id %u: flags 0x%x, argsz %u, address 0x%llx, size 0x%llx: %s",
            req->hdr.msg_id, unmap->flags, unmap->argsz, (unsigned long long)unmap->addr,
            (unsigned long long)unmap->size, fault);
    return -EINVAL;
}

static int unmap_dirty(struct vfu_ctx *ctx, struct dma_space *space, struct range range,
                       const struct vfio_user_bitmap *bitmap, uint8_t *bits,
                       struct dma_drain *drain)
{
    struct dirty_unmap dirty = { .ctx = ctx };
    int err = dma_dirty_report_begin(ctx->dma, &dirty.report, range, bitmap->pgsize, bits,
                                     bitmap->size);

    if (err < 0) {
        return err;
    }
    err = dma_unmap(space, range, tell_device_and_report, &dirty, drain);
    /* Who still has references may write until the reply goes out, and nobody would be told. */
    if (err >= 0 && drain != NULL && !dma_drain_idle(drain)) {
        dma_dirty_report_all(&dirty.report);
    }
    return err;
}

static int unmap_range(struct vfu_ctx *ctx, struct request *req, struct dma_space *space,
                       const struct vfio_user_dma_unmap *in, const struct vfio_user_bitmap *bitmap,
                       uint8_t *bits, struct dma_drain *drain)
{
    struct range range = RANGE_ALL;
    int err;

    if (in->flags == VFIO_DMA_UNMAP_FLAG_ALL) {
        err = dma_unmap_all(space, tell_device, ctx, drain);
    } else if (!range_make(in->addr, in->size, &range)) {
        log_err(&ctx->log, "DMA_UNMAP id %u: address 0x%llx, size 0x%llx is empty or wraps",
                req->hdr.msg_id, (unsigned long long)in->addr, (unsigned long long)in->size);
        return -ENOENT;
    } else if (in->flags == VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP) {
        err = unmap_dirty(ctx, space, range, bitmap, bits, drain);
    } else {
        err = dma_unmap(space, range, tell_device, ctx, drain);
    }
    if (err >= 0) {
        dma_cancel_awaited(ctx);
        iommu_unmapped(ctx, space, range);
    }
    return err;
}

/* The reply echoes the request, with the bitmap behind it when that was asked for. */
static struct unmap *new_unmap(struct request *req, const struct vfio_user_dma_unmap *in,
                               const struct vfio_user_bitmap *bitmap)
{
    bool dirty = in->flags == VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
    size_t len = sizeof(*in) + (dirty ? sizeof(*bitmap) + bitmap->size : 0);
    struct unmap *unmap = calloc(1, sizeof(*unmap) + len);

    if (unmap == NULL) {
        return NULL;
    }
    unmap->req = request_detach(req);
    if (unmap->req == NULL) {
        free(unmap);
        return NULL;
    }
    dma_drain_init(&unmap->drain, unmap_drained);
    memcpy(unmap->reply, in, sizeof(*in));
    if (dirty) {
        memcpy(unmap->reply + sizeof(*in), bitmap, sizeof(*bitmap));
    }
    request_reply_with(unmap->req, unmap->reply, len);
    return unmap;
}

static void log_unmap(struct vfu_ctx *ctx, const struct vfio_user_dma_unmap *unmap, int count)
{
    log_debug(&ctx->log, "removing DMA region [%#llx, %#llx) flags=%#x: %d removed",
              (unsigned long long)unmap->addr, (unsigned long long)(unmap->addr + unmap->size),
              unmap->flags, count);
}

int dma_command_unmap(struct vfu_ctx *ctx, struct request *req)
{
    struct vfio_user_dma_unmap in;
    struct vfio_user_bitmap bitmap;
    struct dma_space *space;
    struct unmap *unmap;
    int err;

    read_unmap(req, &in, &bitmap);
    err = check_unmap(ctx, req, &in, &bitmap);
    if (err < 0) {
        return err;
    }
    if (ctx->dma == NULL) {
        log_unmap(ctx, &in, 0);
        return 0;
    }
    err = find_space(ctx, req, false, &space);
    if (err < 0 && in.flags != VFIO_DMA_UNMAP_FLAG_ALL) {
        log_err(&ctx->log, "DMA_UNMAP id %u: PASID 0x%x has no mappings: refused", req->hdr.msg_id,
                req->pasid);
        return err;
    }
    unmap = new_unmap(req, &in, &bitmap);
    if (unmap == NULL) {
        return -ENOMEM;
    }
    if (err == 0) {
        err = unmap_range(ctx, unmap->req, space, &in, &bitmap,
                          unmap->reply + sizeof(in) + sizeof(bitmap),
                          ctx->dma_unmap_waits ? &unmap->drain : NULL);
        if (err < 0) {
            request_finish(unmap->req, err);
            free(unmap);
            return REQUEST_DEFERRED;
        }
    }
    log_unmap(ctx, &in, err > 0 ? err : 0);
    /* Not after dma_drain_arm(), when another thread may finish it. */
    if (!dma_drain_idle(&unmap->drain)) {
        request_hold(unmap->req, "references to the memory (vfu_sgl_put(), vfu_dma_release())");
    }
    if (dma_drain_arm(&unmap->drain)) {
        unmap_drained(&unmap->drain);
    }
    return REQUEST_DEFERRED;
}

static void forget_space(struct dma_space *space, void *arg)
{
    dma_unmap_all(space, tell_device, arg, NULL);
}

void dma_command_forget_all(struct vfu_ctx *ctx)
{
    if (ctx->dma != NULL) {
        dma_for_each_space(ctx->dma, forget_space, ctx);
        dma_dirty_stop(ctx->dma);
        dma_pasid_spaces_retire(ctx->dma);
        dma_cancel_end(ctx);
    }
}
