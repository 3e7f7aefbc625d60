/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/connect.h"

#include "device/ctx.h"
#include "device/reset.h"
#include "iommu/iommu.h"
#include "util/clock.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * A client sends VERSION as soon as it has connected. Programs written for libvfio-user 0.x try to
 * attach it once and take EAGAIN for nobody there, so the call that accepts it waits for as long as
 * the message may be on its way. A client that is silent for longer keeps its place until the limit
 * version-time, and costs nothing meanwhile.
 */
#define VERSION_GRACE_MS 1

/* After accept(2) has found no descriptor or memory: the next try will not do better at once. */
#define ACCEPT_BACKOFF_MS 100

static struct server_offer make_offer(const struct vfu_ctx *ctx)
{
    struct server_offer offer = {
        .migration = ctx->migration != NULL,
        .pgsize = (uint32_t)sysconf(_SC_PAGESIZE),
    };

    iommu_offer(ctx, &offer.iommu);
    return offer;
}

static bool out_of_resources(int err)
{
    return err == -EMFILE || err == -ENFILE || err == -ENOMEM || err == -ENOBUFS;
}

/*
 * Keeps a program from spinning that tries again at once, as the client still waits: the timer of
 * the event descriptor says when to try again; a program that blocks is held back; a loop that polls
 * the listening socket is rid of the client that makes it readable.
 */
static void back_off(struct vfu_ctx *ctx, int err)
{
    bool again = clock_now_ns() < ctx->accept_again;

    ctx->accept_again = deadline_after_ms(ACCEPT_BACKOFF_MS);
    if (!ctx->nonblocking) {
        poll(NULL, 0, ACCEPT_BACKOFF_MS);
    } else if (ctx->events.epoll_fd == -1 && again) {
        log_err(&ctx->log, "cannot accept a client: %s: turned away", strerror(-err));
        ctx->tran.ops->turn_away(&ctx->tran);
    }
}

/* Whether no client is accepted until ctx->accept_again. */
static bool backing_off(const struct vfu_ctx *ctx)
{
    return ctx->events.epoll_fd != -1 && clock_now_ns() < ctx->accept_again;
}

void device_drop_newcomer(struct vfu_ctx *ctx)
{
    if (ctx->has_newcomer) {
        events_unwatch(ctx);
        stream_close(&ctx->newcomer);
        ctx->has_newcomer = false;
    }
}

/* Asks the device about the process that has connected. Returns 0, or the -errno of the refusal. */
static int check_newcomer(struct vfu_ctx *ctx)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);
    vfu_client_t client;
    int err;

    if (ctx->client_cb == NULL) {
        return 0;
    }
    if (getsockopt(ctx->newcomer.rx_fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == -1) {
        err = -errno;
        log_err(&ctx->log, "client: the kernel does not tell its credentials: %s: turned away",
                strerror(-err));
        return err;
    }
    client = (vfu_client_t){ .pid = peer.pid, .uid = peer.uid, .gid = peer.gid };
    errno = 0;
    if (ctx->client_cb(ctx, &client, ctx->client_arg) >= 0) {
        return 0;
    }
    /* EAGAIN would say that nobody is there. */
    err = errno == 0 || errno == EAGAIN ? -EACCES : -errno;
    log_err(&ctx->log, "client: process %d of user %u, group %u: the device refuses it: %s: turned "
            "away", (int)client.pid, client.uid, client.gid, strerror(-err));
    return err;
}

static int accept_newcomer(struct vfu_ctx *ctx)
{
    int err;

    if (backing_off(ctx)) {
        return -EAGAIN;
    }
    err = ctx->tran.ops->accept(&ctx->tran, &ctx->newcomer, WIRE_MAX_MESSAGE);
    if (err == 0) {
        ctx->has_newcomer = true;
        err = check_newcomer(ctx);
        if (err < 0) {
            device_drop_newcomer(ctx);
            return err;
        }
        ctx->newcomer_deadline = deadline_after_ms(ctx->limits.value[VFU_LIMIT_VERSION_TIME]);
    } else if (out_of_resources(err)) {
        back_off(ctx, err);
    }
    return err;
}

static void open_session(struct vfu_ctx *ctx, struct stream *twin)
{
    const struct wire_features features = {
        .pasid = ctx->agreed.iommu.pasid.present,
        .ats = ctx->agreed.iommu.ats.present,
        .pri = ctx->agreed.iommu.pri.present,
        .pasid_bits = ctx->agreed.iommu.pasid.bits,
    };

    ctx->has_newcomer = false;
    ctx->session.output_limits = (struct output_limits){
        .bytes = ctx->limits.value[VFU_LIMIT_QUEUED_OUTPUT],
        .time_ms = ctx->limits.value[VFU_LIMIT_OUTPUT_TIME],
    };
    session_open(&ctx->session, &ctx->newcomer, ctx->agreed.twin_socket ? twin : NULL, &features,
                 ctx->agreed.max_data_xfer_size);
    iommu_connected(ctx);
    log_info(&ctx->log, "client attached: version 0.%u, transfers of up to %u bytes",
             ctx->agreed.minor, ctx->agreed.max_data_xfer_size);
}

/* Goes on with the newcomer's negotiation: 0, -EAGAIN when it has to speak first, -errno. */
static int negotiate_newcomer(struct vfu_ctx *ctx, uint64_t deadline)
{
    const struct server_offer offer = make_offer(ctx);
    struct stream twin;
    int err = negotiate(&ctx->newcomer, deadline, &offer, &ctx->agreed, &twin, &ctx->log);

    if (err == 0) {
        open_session(ctx, &twin);
    } else if (err != -EAGAIN && err != -EINTR) {
        device_drop_newcomer(ctx);
    }
    return err;
}

int device_attach(struct vfu_ctx *ctx)
{
    uint64_t deadline = 0;
    int err;

    if (session_is_open(&ctx->session)) {
        return -EINVAL;
    }
    log_limit_report(&ctx->log, false);
    for (;;) {
        if (!ctx->has_newcomer) {
            err = accept_newcomer(ctx);
            if (err < 0) {
                return err;
            }
            deadline = deadline_after_ms(VERSION_GRACE_MS);
        }
        err = negotiate_newcomer(ctx, ctx->nonblocking ? deadline : ctx->newcomer_deadline);
        if (err != -EAGAIN || clock_now_ns() < ctx->newcomer_deadline) {
            return err;
        }
        log_err(&ctx->log, "client has connected and sent no VERSION for %llu ms: turned away",
                (unsigned long long)ctx->limits.value[VFU_LIMIT_VERSION_TIME]);
        device_drop_newcomer(ctx);
    }
}

int device_poll_fd(const struct vfu_ctx *ctx)
{
    if (session_is_open(&ctx->session)) {
        return ctx->session.main.stream.rx_fd;
    }
    return ctx->has_newcomer ? ctx->newcomer.rx_fd : ctx->tran.ops->poll_fd(&ctx->tran);
}

short device_awaits(struct vfu_ctx *ctx)
{
    if (!session_is_open(&ctx->session)) {
        return ctx->has_newcomer || !backing_off(ctx) ? POLLIN : 0;
    }
    /* Until the device is quiet, the end of the client, or more requests, cannot be dealt with. */
    if (ctx->quiesce.pending != QUIESCE_NOTHING && !session_takes_input(&ctx->session)) {
        return 0;
    }
    return output_is_full(&ctx->session.main.output) ? POLLOUT : POLLIN;
}

uint64_t device_deadline(struct vfu_ctx *ctx)
{
    if (session_is_open(&ctx->session)) {
        return DEADLINE_NEVER;
    }
    if (ctx->has_newcomer) {
        return ctx->newcomer_deadline;
    }
    return backing_off(ctx) ? ctx->accept_again : DEADLINE_NEVER;
}

int device_next_timeout(struct vfu_ctx *ctx)
{
    uint64_t session = session_next_deadline(&ctx->session), device = device_deadline(ctx);

    return deadline_poll_ms(session < device ? session : device);
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
