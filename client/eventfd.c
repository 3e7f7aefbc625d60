/* SPDX-License-Identifier: BSD-3-Clause */
/* Eventfds whose file description the server holds as well. */
#include "client.h"
#include "util/nowait_read.h"
#include "util/peer_eventfd.h"

#include <errno.h>

int vfuc_eventfd_signal(int fd)
{
    return (int)client_result(peer_eventfd_signal(fd));
}

int vfuc_eventfd_take(int fd, uint64_t *count)
{
    return (int)client_result(nowait_read(fd, count, sizeof(*count)) < 0 ? -errno : 0);
}
