/* SPDX-License-Identifier: BSD-3-Clause */
/* Eventfds whose file description the server holds as well. */
#include "client.h"
#include "util/peer_eventfd.h"

#include <errno.h>
#include <sys/uio.h>

int vfuc_eventfd_signal(int fd)
{
    return (int)client_result(peer_eventfd_signal(fd));
}

int vfuc_eventfd_take(int fd, uint64_t *count)
{
    const struct iovec iov = { count, sizeof(*count) };

    /* RWF_NOWAIT: whatever O_NONBLOCK is. Offset -1: as read(2). */
    return (int)client_result(preadv2(fd, &iov, 1, -1, RWF_NOWAIT) < 0 ? -errno : 0);
}
