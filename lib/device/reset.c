/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/reset.h"

#include "device/ctx.h"
#include "device/dma_command.h"
#include "device/migration.h"
#include "device/pci.h"
#include "iommu/iommu.h"

#include <errno.h>
#include <string.h>

static int call_device(struct vfu_ctx *ctx, vfu_reset_type_t type, const char *what)
{
    int err;

    if (ctx->reset == NULL) {
        return 0;
    }
    errno = 0;
    if (ctx->reset(ctx, type) >= 0) {
        return 0;
    }
    err = errno != 0 ? errno : EIO;
    log_err(&ctx->log, "%s: the device's reset callback failed: %s", what, strerror(err));
    return -err;
}

/*
 * What the library keeps for the device is reset before the callback runs, so that what the callback
 * writes into configuration space stays. The device is reset before it resumes from migration, so
 * that it never runs on with its old state.
 */
static int reset_device(struct vfu_ctx *ctx, enum pci_reset kind, vfu_reset_type_t type,
                        const char *what)
{
    int err;

    msix_reset(ctx);
    device_pci_reset(ctx, kind);
    iommu_reset(ctx);
    err = call_device(ctx, type, what);
    return err < 0 ? err : migration_reset(ctx);
}

int reset_command(struct vfu_ctx *ctx, struct request *req)
{
    int err = reset_device(ctx, PCI_RESET_CONVENTIONAL, VFU_RESET_DEVICE, "DEVICE_RESET");

    if (err == 0) {
        log_debug(&ctx->log, "DEVICE_RESET id %u: the device was reset", req->hdr.msg_id);
    }
    return err;
}

int reset_function(struct vfu_ctx *ctx)
{
    static const char what[] = "function level reset";

    if (ctx->reset == NULL) {
        log_err(&ctx->log, "%s: the device offers it and has no reset callback: refused with EINVAL",
                what);
        return -EINVAL;
    }
    return reset_device(ctx, PCI_RESET_FUNCTION, VFU_RESET_PCI_FLR, what);
}

void device_connection_lost(struct vfu_ctx *ctx)
{
    msix_reset(ctx);
    if (!ctx->keep_state) {
        device_pci_reset(ctx, PCI_RESET_CONVENTIONAL);
    }
    iommu_disconnected(ctx);
    dma_command_forget_all(ctx);
    call_device(ctx, VFU_RESET_LOST_CONN, "lost connection");
    migration_disconnected(ctx);
    irqs_close_all(&ctx->irqs);
    events_unwatch(ctx);
    session_close(&ctx->session);
}
