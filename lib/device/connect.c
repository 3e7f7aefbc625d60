/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/connect.h"

#include "device/ctx.h"
#include "device/reset.h"
#include "iommu/iommu.h"
#include "util/clock.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/*
 * A client sends VERSION as soon as it has connected, so a caller that does not want to block
 * still waits a moment for it. A client that is silent for longer keeps its place until the
 * deadline, while the caller polls its socket.
 */
#define VERSION_GRACE_MS 200
#define VERSION_DEADLINE_MS 10000

static struct server_offer make_offer(const struct vfu_ctx *ctx)
{
    struct server_offer offer = {
        .migration = ctx->migration != NULL,
        .pgsize = (uint32_t)sysconf(_SC_PAGESIZE),
    };

    iommu_offer(ctx, &offer.iommu);
    return offer;
}

static int accept_newcomer(struct vfu_ctx *ctx)
{
    int err = ctx->tran.ops->accept(&ctx->tran, &ctx->newcomer, WIRE_MAX_MESSAGE);

    if (err == 0) {
        ctx->has_newcomer = true;
        ctx->newcomer_deadline = deadline_after_ms(VERSION_DEADLINE_MS);
    }
    return err;
}

void device_drop_newcomer(struct vfu_ctx *ctx)
{
    if (ctx->has_newcomer) {
        stream_close(&ctx->newcomer);
        ctx->has_newcomer = false;
    }
}

int device_attach(struct vfu_ctx *ctx)
{
    const struct server_offer offer = make_offer(ctx);
    struct wire_features features;
    struct stream twin;
    uint64_t deadline;
    int err;

    if (session_is_open(&ctx->session)) {
        return -EINVAL;
    }
    if (!ctx->has_newcomer) {
        err = accept_newcomer(ctx);
        if (err < 0) {
            return err;
        }
    }
    deadline = ctx->newcomer_deadline;
    if (ctx->nonblocking && deadline_after_ms(VERSION_GRACE_MS) < deadline) {
        deadline = deadline_after_ms(VERSION_GRACE_MS);
    }
    err = negotiate(&ctx->newcomer, deadline, &offer, &ctx->agreed, &twin, &ctx->log);
    if (err == -EAGAIN && clock_now_ns() >= ctx->newcomer_deadline) {
        log_err(&ctx->log, "client has connected and sent no VERSION for %u ms: turned away",
                VERSION_DEADLINE_MS);
        device_drop_newcomer(ctx);
        /* To an event loop it is as if nobody had come. */
        return ctx->nonblocking ? -EAGAIN : -ETIMEDOUT;
    }
    if (err < 0) {
        if (err != -EAGAIN) {
            device_drop_newcomer(ctx);
        }
        return err;
    }
    ctx->has_newcomer = false;
    features = (struct wire_features){
        .pasid = ctx->agreed.iommu.pasid.present,
        .ats = ctx->agreed.iommu.ats.present,
        .pri = ctx->agreed.iommu.pri.present,
        .pasid_bits = ctx->agreed.iommu.pasid.bits,
    };
    session_open(&ctx->session, &ctx->newcomer, ctx->agreed.twin_socket ? &twin : NULL, &features,
                 ctx->agreed.max_data_xfer_size);
    iommu_connected(ctx);
    log_info(&ctx->log, "client attached: version 0.%u, transfers of up to %u bytes",
             ctx->agreed.minor, ctx->agreed.max_data_xfer_size);
    return 0;
}

int device_poll_fd(const struct vfu_ctx *ctx)
{
    if (session_is_open(&ctx->session)) {
        return ctx->session.main.stream.rx_fd;
    }
    return ctx->has_newcomer ? ctx->newcomer.rx_fd : ctx->tran.ops->poll_fd(&ctx->tran);
}

/* The session has ended under us: makes that known to the device, which may need time. */
static int handle_loss(struct vfu_ctx *ctx)
{
    int err = quiesce_for_loss(ctx);

    if (err == 0) {
        device_connection_lost(ctx);
    }
    return err;
}

int device_run(struct vfu_ctx *ctx)
{
    int r;

    if (!ctx->realized) {
        return -EINVAL;
    }
    if (!session_is_open(&ctx->session)) {
        return -ENOTCONN;
    }
    r = session_run(&ctx->session, ctx->nonblocking ? RUN_ONCE : RUN_WAIT);
    if (ctx->quiesce.pending != QUIESCE_NOTHING) {
        return -EBUSY;
    }
    /* A client that was refused is there until the next call, which its socket asks for. */
    if (session_error(&ctx->session) != 0 && r != 0) {
        int err = handle_loss(ctx);

        if (err < 0) {
            return err;
        }
    }
    return r;
}
