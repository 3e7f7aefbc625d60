/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One descriptor for the program's event loop that never changes: an epoll instance with the
 * descriptor to read from, whichever that is now, and a timer for the deadlines. Made when the
 * program first asks for it. Control thread.
 */
#ifndef VFU_DEVICE_EVENTS_H
#define VFU_DEVICE_EVENTS_H

#include <stdint.h>

struct vfu_ctx;

struct events {
    int epoll_fd; /* -1: the program has not asked for it */
    int timer_fd; /* the session's to set: see session_set_alarm() */
    int watched; /* -1: none */
    uint32_t awaited; /* of it: EPOLLIN or EPOLLOUT */
};

void events_init(struct events *ev);
void events_close(struct vfu_ctx *ctx);

/* Returns the descriptor, or a negative errno: -EINVAL in blocking mode. */
int events_get_fd(struct vfu_ctx *ctx);

/* Called when a call of the program ends: watches what the next one is for. */
void events_update(struct vfu_ctx *ctx);

/* Called before the watched descriptor is closed. */
void events_unwatch(struct vfu_ctx *ctx);

#endif /* VFU_DEVICE_EVENTS_H */
