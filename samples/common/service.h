/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What every sample that is a service does in the same way: a context on a socket, log lines, and
 * the end by a signal.
 */

#ifndef SERVICE_H
#define SERVICE_H

#include "access.h"
#include "libvfio-user-events.h"
#include "libvfio-user.h"

#include <poll.h>

/*
 * vfu_create_ctx() on a socket, for clients that the rules allow; NULL: for all. The rules must live
 * as long as the context. To be called before threads start: it sets the umask for a moment. With LIBVFIO_USER_FLAG_ATTACH_NB, vfu_get_event_fd() does not fail
 * afterwards. Returns the context, or NULL with errno after having said on standard error what is
 * wrong and what to do about it.
 */
vfu_ctx_t *service_listen(const char *program, const char *path, struct access_rules *rules,
                          int flags, void *pvt);

/* Prints a log line on standard error. */
void service_print_log(const char *program, int level, const char *msg);

/*
 * A descriptor that is readable when SIGTERM or SIGINT has come. Both are blocked from now on, in
 * this thread and those that it starts. Returns -1 with errno.
 */
int service_open_signals(void);

/*
 * poll() without a timeout, which a signal does not interrupt. Waits for up to a second while the
 * kernel has no memory for it. Returns 0, or a negative errno.
 */
int service_poll(struct pollfd *fds, nfds_t nr_fds);

#endif /* SERVICE_H */
