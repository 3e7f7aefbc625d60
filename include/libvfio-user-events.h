/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a program needs that serves contexts with LIBVFIO_USER_FLAG_ATTACH_NB from an event loop of
 * its own: epoll, GLib, libuv, or poll(2). docs/event-loops.md shows each.
 */
#ifndef LIB_VFIO_USER_EVENTS_H
#define LIB_VFIO_USER_EVENTS_H

#include "libvfio-user.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Returns one descriptor that is the same for the life of the context. It is readable when the
 * context has something to do: a client connects, speaks or goes away, or a deadline has passed.
 * Then call vfu_attach_ctx() if no client is attached, else vfu_run_ctx(), and ignore EAGAIN, EINTR
 * and EBUSY. Nothing else is to be done with it; the library closes it in vfu_destroy_ctx().
 *
 * Unlike that of vfu_get_poll_fd(), this descriptor
 * - never changes, so that it is given to the loop once;
 * - has the deadlines in it, so that vfu_next_timeout() is not needed;
 * - is not readable while the device quiesces and nothing can be done, or for 0.1 s after accept(2)
 *   has found no descriptor or memory, so that the loop does not spin.
 *
 * Returns -1 with errno:
 * EINVAL: the context was created without LIBVFIO_USER_FLAG_ATTACH_NB.
 * EMFILE, ENFILE, ENOMEM: of epoll_create1(2) and timerfd_create(2), which the first call makes.
 *
 * Control thread.
 */
int vfu_get_event_fd(vfu_ctx_t *vfu_ctx);

/*
 * Returns the milliseconds until the library has something to do on its own (a deadline), for the
 * timeout of a poll(2) on vfu_get_poll_fd(): -1 for nothing. When they have passed, call
 * vfu_attach_ctx() or vfu_run_ctx() as if the descriptor were readable.
 *
 * Control thread.
 */
int vfu_next_timeout(vfu_ctx_t *vfu_ctx);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_EVENTS_H */
