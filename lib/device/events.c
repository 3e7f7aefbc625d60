/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/events.h"

#include "device/connect.h"
#include "device/ctx.h"
#include "util/clock.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define WATCH_RETRY_MS 10

void events_init(struct events *ev)
{
    *ev = (struct events){ .epoll_fd = -1, .timer_fd = -1, .watched = -1 };
}

void events_close(struct vfu_ctx *ctx)
{
    struct events *ev = &ctx->events;

    if (ev->epoll_fd != -1) {
        session_set_timer(&ctx->session, -1);
        close(ev->timer_fd);
        close(ev->epoll_fd);
        events_init(ev);
    }
}

/* op: EPOLL_CTL_ADD or EPOLL_CTL_MOD. */
static int control(struct events *ev, int op, int fd, uint32_t awaited)
{
    struct epoll_event event = { .events = awaited, .data.fd = fd };

    return epoll_ctl(ev->epoll_fd, op, fd, &event) == 0 ? 0 : -errno;
}

static int open_descriptors(struct vfu_ctx *ctx)
{
    struct events *ev = &ctx->events;
    int err;

    ev->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (ev->epoll_fd == -1) {
        return -errno;
    }
    ev->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (ev->timer_fd == -1) {
        err = -errno;
        goto close_epoll;
    }
    err = control(ev, EPOLL_CTL_ADD, ev->timer_fd, EPOLLIN);
    if (err < 0) {
        goto close_timer;
    }
    session_set_timer(&ctx->session, ev->timer_fd);
    return 0;

close_timer:
    close(ev->timer_fd);
close_epoll:
    close(ev->epoll_fd);
    events_init(ev);
    return err;
}

int events_get_fd(struct vfu_ctx *ctx)
{
    struct events *ev = &ctx->events;
    int err;

    if (!ctx->nonblocking) {
        return -EINVAL;
    }
    if (ev->epoll_fd == -1) {
        err = open_descriptors(ctx);
        if (err < 0) {
            return err;
        }
        events_update(ctx);
    }
    return ev->epoll_fd;
}

void events_unwatch(struct vfu_ctx *ctx)
{
    struct events *ev = &ctx->events;

    if (ev->watched != -1) {
        epoll_ctl(ev->epoll_fd, EPOLL_CTL_DEL, ev->watched, NULL);
        ev->watched = -1;
    }
}

/* Returns whether the descriptor is watched as asked for. */
static bool watch(struct vfu_ctx *ctx, int fd, uint32_t awaited)
{
    struct events *ev = &ctx->events;
    int err;

    if (fd == ev->watched && (fd == -1 || awaited == ev->awaited)) {
        return true;
    }
    if (fd != ev->watched) {
        events_unwatch(ctx);
    }
    if (fd == -1) {
        return true;
    }
    err = control(ev, ev->watched == -1 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, awaited);
    if (err < 0) {
        log_err(&ctx->log, "cannot watch descriptor %d: %s: looked at every %d ms", fd,
                strerror(-err), WATCH_RETRY_MS);
        return false;
    }
    ev->watched = fd;
    ev->awaited = awaited;
    return true;
}

void events_update(struct vfu_ctx *ctx)
{
    uint64_t deadline, retry;
    short awaited;

    if (ctx->events.epoll_fd == -1) {
        return;
    }
    awaited = device_awaits(ctx);
    deadline = device_deadline(ctx);
    if (!watch(ctx, awaited != 0 ? device_poll_fd(ctx) : -1,
               awaited == POLLOUT ? EPOLLOUT : EPOLLIN)) {
        /* The timer has the program look at it instead. */
        retry = deadline_after_ms(WATCH_RETRY_MS);
        deadline = retry < deadline ? retry : deadline;
    }
    session_set_alarm(&ctx->session, deadline);
}
