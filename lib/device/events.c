/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/events.h"

#include "device/connect.h"
#include "device/ctx.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

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

static int add(struct events *ev, int fd)
{
    struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

    return epoll_ctl(ev->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
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
    err = add(ev, ev->timer_fd);
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

void events_update(struct vfu_ctx *ctx)
{
    struct events *ev = &ctx->events;
    int fd, err;

    if (ev->epoll_fd == -1) {
        return;
    }
    fd = device_wants_input(ctx) ? device_poll_fd(ctx) : -1;
    if (fd != ev->watched) {
        events_unwatch(ctx);
        err = fd != -1 ? add(ev, fd) : 0;
        if (err < 0) {
            log_err(&ctx->log, "cannot watch descriptor %d: %s: the client is not heard", fd,
                    strerror(-err));
        } else {
            ev->watched = fd;
        }
    }
    session_set_alarm(&ctx->session, device_deadline(ctx));
}
