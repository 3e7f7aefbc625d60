/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/command.h"

#include "device/ctx.h"
#include "device/dma_command.h"
#include "device/feature.h"
#include "device/irq_command.h"
#include "device/migration.h"
#include "device/reset.h"
#include "iommu/iommu.h"
#include "util/range.h"

#include <errno.h>
#include <string.h>

typedef int (command_fn)(struct vfu_ctx *ctx, struct request *req);

static int get_info(struct vfu_ctx *ctx, struct request *req)
{
    struct vfio_user_device_info *info = ctx->scratch;

    *info = (struct vfio_user_device_info){
        .argsz = sizeof(*info),
        .flags = VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI,
        .num_regions = VFU_PCI_DEV_NUM_REGIONS,
        .num_irqs = VFU_DEV_NUM_IRQS,
    };
    log_debug(&ctx->log, "devinfo flags 0x%x, num_regions %u, num_irqs %u", info->flags,
              info->num_regions, info->num_irqs);
    request_reply_with(req, info, sizeof(*info));
    return 0;
}

static command_fn *const handlers[] = {
    [VFIO_USER_DMA_MAP] = dma_command_map,
    [VFIO_USER_DMA_UNMAP] = dma_command_unmap,
    [VFIO_USER_DEVICE_GET_INFO] = get_info,
    [VFIO_USER_DEVICE_GET_REGION_INFO] = region_command_info,
    [VFIO_USER_DEVICE_GET_REGION_IO_FDS] = region_command_io_fds,
    [VFIO_USER_DEVICE_GET_IRQ_INFO] = irq_command_info,
    [VFIO_USER_DEVICE_SET_IRQS] = irq_command_set,
    [VFIO_USER_REGION_READ] = region_command_read,
    [VFIO_USER_REGION_WRITE] = region_command_write,
    [VFIO_USER_DEVICE_RESET] = reset_command,
    [VFIO_USER_REGION_WRITE_MULTI] = region_command_write_multi,
    [VFIO_USER_DEVICE_FEATURE] = feature_command,
    [VFIO_USER_MIG_DATA_READ] = migration_command_read,
    [VFIO_USER_MIG_DATA_WRITE] = migration_command_write,
    [VFIO_USER_ATS_INVALIDATE] = iommu_command_invalidate,
};

static bool needs_quiesce(struct vfu_ctx *ctx, const struct request *req)
{
    switch (req->hdr.cmd) {
    case VFIO_USER_DEVICE_FEATURE:
        return feature_needs_quiesce(req);
    case VFIO_USER_DMA_MAP:
    case VFIO_USER_DMA_UNMAP:
        return ctx->dma != NULL;
    default:
        return (command_traits(req->hdr.cmd) & CMD_QUIESCE) != 0;
    }
}

static int dispatch_allowed(struct vfu_ctx *ctx, struct request *req)
{
    int r;

    if (req->hdr.cmd >= sizeof(handlers) / sizeof(handlers[0]) ||
        handlers[req->hdr.cmd] == NULL) {
        log_err(&ctx->log, "%s id %u is not possible now", command_name(req->hdr.cmd),
                req->hdr.msg_id);
        return -EINVAL;
    }
    if (needs_quiesce(ctx, req)) {
        r = quiesce_for_request(ctx, req);
        if (r != 0) {
            return r;
        }
    }
    return handlers[req->hdr.cmd](ctx, req);
}

static int dispatch(void *owner, struct request *req)
{
    struct vfu_ctx *ctx = owner;
    bool cancels = dma_cancel_begin(ctx, req);
    int r;

    ctx->entered++;
    r = dispatch_allowed(ctx, req);
    ctx->entered--;
    /* A request that waits for the device to quiesce comes here again. */
    if (cancels && ctx->quiesce.pending != QUIESCE_REQUEST) {
        dma_cancel_end(ctx);
    }
    return r;
}

const struct session_ops device_session_ops = {
    .dispatch = dispatch,
    .blocked = dma_cancel_blocked,
};
