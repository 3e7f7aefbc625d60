/* SPDX-License-Identifier: BSD-3-Clause */
#include "api/api.h"
#include "api/api_log.h"
#include "device/check.h"
#include "device/command.h"
#include "device/connect.h"
#include "device/dma_command.h"
#include "device/migration.h"
#include "device/pci.h"
#include "device/shared_file.h"
#include "iommu/iommu.h"
#include "libvfio-user-events.h"
#include "util/sigbus.h"

#include <stdlib.h>
#include <string.h>

/* For one DMA_READ or DMA_WRITE: a virtual machine may be paused, a dead one must not hold us. */
#define DMA_TIMEOUT_MS 30000

static const struct transport_ops *const transports[VFU_TRANS_MAX] = {
    [VFU_TRANS_SOCK] = &transport_sock,
    [VFU_TRANS_PIPE] = &transport_pipe,
};

static int check_create(vfu_trans_t trans, int flags, vfu_dev_type_t dev_type)
{
    if (flags & ~LIBVFIO_USER_FLAG_ATTACH_NB) {
        return -EINVAL;
    }
    if ((unsigned)trans >= VFU_TRANS_MAX || dev_type != VFU_DEV_TYPE_PCI) {
        return -ENOTSUP;
    }
    return 0;
}

static int set_up(struct vfu_ctx *ctx, const char *path)
{
    int err;

    ctx->scratch = malloc(WIRE_MAX_MESSAGE);
    if (ctx->scratch == NULL) {
        return -ENOMEM;
    }
    err = session_init(&ctx->session, &device_session_ops, ctx, &ctx->log);
    if (err < 0) {
        goto free_scratch;
    }
    err = ctx->tran.ops->listen(&ctx->tran, path, ctx->nonblocking, &ctx->log);
    if (err < 0) {
        goto destroy_session;
    }
    events_init(&ctx->events);
    regions_init(ctx);
    irqs_init(&ctx->irqs, &ctx->log);
    dma_transfers_init(&ctx->transfers);
    ctx->pci.log = &ctx->log;
    ctx->pci.ops = &device_pci_ops;
    ctx->pci.owner = ctx;
    return 0;

destroy_session:
    session_destroy(&ctx->session);
free_scratch:
    free(ctx->scratch);
    return err;
}

vfu_ctx_t *vfu_create_ctx(vfu_trans_t trans, const char *path, int flags, void *pvt,
                          vfu_dev_type_t dev_type)
{
    struct vfu_ctx *ctx;
    int err = check_create(trans, flags, dev_type);

    if (err < 0) {
        return api_null(err);
    }
    ctx = calloc(1, sizeof(*ctx));
    if (ctx == NULL) {
        return api_null(-ENOMEM);
    }
    ctx->pvt = pvt;
    ctx->nonblocking = (flags & LIBVFIO_USER_FLAG_ATTACH_NB) != 0;
    limits_init(&ctx->limits);
    ctx->tran.ops = transports[trans];
    ctx->dma_timeout_ms = DMA_TIMEOUT_MS;
    err = api_log_init(ctx);
    if (err == 0) {
        err = set_up(ctx, path);
    }
    if (err < 0) {
        api_log_destroy(ctx);
        free(ctx);
        return api_null(err);
    }
    return ctx;
}

/* 0, or -EDEADLK inside a callback: what the callback is part of has not ended. */
static int enter(struct vfu_ctx *ctx, const char *function)
{
    if (ctx->entered > 0) {
        log_err(&ctx->log, "%s was called from inside a callback", function);
        return -EDEADLK;
    }
    ctx->entered++;
    return 0;
}

static int leave(struct vfu_ctx *ctx, int result)
{
    ctx->entered--;
    events_update(ctx);
    return api_result(result);
}

void vfu_destroy_ctx(vfu_ctx_t *vfu_ctx)
{
    if (vfu_ctx == NULL || enter(vfu_ctx, __func__) < 0) {
        return;
    }
    if (vfu_ctx->quiesce.request != NULL) {
        request_drop(vfu_ctx->quiesce.request);
    }
    if (session_is_open(&vfu_ctx->session)) {
        session_break(&vfu_ctx->session, -ENOTCONN);
    }
    dma_command_forget_all(vfu_ctx);
    if (vfu_ctx->reset != NULL) {
        vfu_ctx->reset(vfu_ctx, VFU_RESET_LOST_CONN);
    }
    /* What is pending ends here, by callbacks; then what waits for references that nobody puts. */
    session_close(&vfu_ctx->session);
    events_close(vfu_ctx);
    dma_destroy(vfu_ctx->dma);
    dma_transfers_destroy(&vfu_ctx->transfers);
    iommu_destroy(vfu_ctx);
    msix_destroy(vfu_ctx);
    irqs_destroy(&vfu_ctx->irqs);
    session_destroy(&vfu_ctx->session);
    device_drop_newcomer(vfu_ctx);
    pci_config_destroy(&vfu_ctx->pci);
    migration_destroy(vfu_ctx);
    regions_destroy(vfu_ctx);
    limits_destroy(&vfu_ctx->limits);
    free(vfu_ctx->scratch);
    /* The last lines of the log name the socket, so the transport goes after the log. */
    api_log_destroy(vfu_ctx);
    vfu_ctx->tran.ops->close(&vfu_ctx->tran);
    free(vfu_ctx);
}

/* Limits of the environment, and what truncated files could do to this thread and to the device. */
static int realize_memory(struct vfu_ctx *ctx)
{
    const char *list = getenv("VFU_LIMITS");

    if (ctx->dma != NULL && guard_this_thread()) {
        log_warn(&ctx->log, "realize: SIGBUS was blocked in this thread: unblocked, because the "
                            "client can truncate its memory");
    }
    shared_files_check(ctx);
    return list == NULL ? 0 : limits_parse(&ctx->limits, list, &ctx->log);
}

int vfu_realize_ctx(vfu_ctx_t *vfu_ctx)
{
    int err;

    if (vfu_ctx->realized) {
        return 0;
    }
    err = realize_memory(vfu_ctx);
    if (err == 0) {
        err = device_pci_realize(vfu_ctx);
    }
    if (err == 0) {
        err = msix_realize(vfu_ctx);
    }
    if (err == 0) {
        err = device_check(vfu_ctx);
    }
    if (err == 0) {
        err = irqs_realize(&vfu_ctx->irqs);
    }
    if (err < 0) {
        msix_destroy(vfu_ctx);
    }
    vfu_ctx->realized = err == 0;
    return api_result(err);
}

int vfu_attach_ctx(vfu_ctx_t *vfu_ctx)
{
    int err = enter(vfu_ctx, __func__);

    return err < 0 ? api_result(err) : leave(vfu_ctx, device_attach(vfu_ctx));
}

int vfu_get_poll_fd(vfu_ctx_t *vfu_ctx)
{
    int fd = device_poll_fd(vfu_ctx);

    return fd != -1 ? fd : api_result(-EINVAL);
}

int vfu_get_event_fd(vfu_ctx_t *vfu_ctx)
{
    return api_result(events_get_fd(vfu_ctx));
}

int vfu_next_timeout(vfu_ctx_t *vfu_ctx)
{
    return device_next_timeout(vfu_ctx);
}

int vfu_run_ctx(vfu_ctx_t *vfu_ctx)
{
    int err = enter(vfu_ctx, __func__);

    return err < 0 ? api_result(err) : leave(vfu_ctx, device_run(vfu_ctx));
}

int vfu_device_quiesced(vfu_ctx_t *vfu_ctx, int quiesce_errno)
{
    int err = quiesce_awaited(vfu_ctx) ? enter(vfu_ctx, __func__) : -EINVAL;

    return err < 0 ? api_result(err) : leave(vfu_ctx, quiesce_done(vfu_ctx, quiesce_errno));
}

void *vfu_get_private(vfu_ctx_t *vfu_ctx)
{
    return vfu_ctx->pvt;
}
