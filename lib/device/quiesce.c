/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/quiesce.h"

#include "device/ctx.h"
#include "device/reset.h"

#include <errno.h>
#include <string.h>

static int ask_device(struct vfu_ctx *ctx)
{
    errno = 0;
    if (ctx->quiesce.cb(ctx) >= 0) {
        return 0;
    }
    return errno != 0 ? -errno : -EIO;
}

static void log_outcome(struct vfu_ctx *ctx, const struct request *req, int err)
{
    const char *name = command_name(req->hdr.cmd);

    if (err != 0) {
        log_err(&ctx->log, "%s id %u: the device did not quiesce: %s: refused", name,
                req->hdr.msg_id, strerror(-err));
    } else {
        log_debug(&ctx->log, "%s id %u: the device has quiesced", name, req->hdr.msg_id);
    }
}

int quiesce_for_request(struct vfu_ctx *ctx, struct request *req)
{
    struct quiesce *q = &ctx->quiesce;
    struct request *detached;
    int err;

    if (q->cb == NULL) {
        return 0;
    }
    if (q->request == req) {
        q->request = NULL;
        return 0;
    }
    txn_hurry(&ctx->session, true);
    err = ask_device(ctx);
    if (err != -EBUSY) {
        txn_hurry(&ctx->session, false);
        log_outcome(ctx, req, err);
        return err;
    }
    detached = request_detach(req);
    if (detached == NULL) {
        txn_hurry(&ctx->session, false);
        return -ENOMEM;
    }
    log_debug(&ctx->log, "%s id %u: the device begins to quiesce, other requests wait",
              command_name(req->hdr.cmd), detached->hdr.msg_id);
    q->pending = QUIESCE_REQUEST;
    q->request = detached;
    request_hold(detached, "the device to quiesce (vfu_device_quiesced())");
    session_hold(&ctx->session);
    return REQUEST_DEFERRED;
}

int quiesce_for_loss(struct vfu_ctx *ctx)
{
    int err;

    if (ctx->quiesce.cb == NULL) {
        return 0;
    }
    err = ask_device(ctx);
    if (err == -EBUSY) {
        ctx->quiesce.pending = QUIESCE_LOSS;
    }
    return err;
}

/* The request goes through dispatch again, unless the device refused. */
static void resume_request(struct vfu_ctx *ctx, int err)
{
    struct request *req = ctx->quiesce.request;

    txn_hurry(&ctx->session, false);
    request_go_on(req);
    log_outcome(ctx, req, -err);
    if (err != 0) {
        ctx->quiesce.request = NULL;
        dma_cancel_end(ctx);
        request_finish(req, -err);
        req = NULL;
    }
    session_release(&ctx->session, req);
    session_run(&ctx->session, RUN_BUFFERED);
    if (session_error(&ctx->session) == 0) {
        return;
    }
    /* The device is quiet still, unless a later request has asked it again already. */
    if (ctx->quiesce.pending == QUIESCE_NOTHING) {
        device_connection_lost(ctx);
    }
}

bool quiesce_awaited(const struct vfu_ctx *ctx)
{
    return ctx->quiesce.cb != NULL && ctx->quiesce.pending != QUIESCE_NOTHING;
}

int quiesce_done(struct vfu_ctx *ctx, int err)
{
    enum quiesce_for pending = ctx->quiesce.pending;

    ctx->quiesce.pending = QUIESCE_NOTHING;
    if (pending == QUIESCE_REQUEST) {
        resume_request(ctx, err);
    } else {
        device_connection_lost(ctx);
    }
    return 0;
}
