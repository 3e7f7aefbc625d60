/* SPDX-License-Identifier: BSD-3-Clause */
#include "transport/transport.h"

#include "util/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* One client is served at a time; the others wait here rather than being refused. */
#define LISTEN_BACKLOG SOMAXCONN

static int sock_listen(struct transport *t, const char *path, bool nonblocking,
                       const struct logger *log)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    struct stat made;
    int type = SOCK_STREAM | SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0);
    int err;

    t->listen_fd = t->spare_fd = -1;
    t->path = NULL;
    if (path[0] == '\0') {
        return 0;
    }
    if (strlen(path) >= sizeof(addr.sun_path)) {
        return -ENAMETOOLONG;
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    t->listen_fd = socket(AF_UNIX, type, 0);
    if (t->listen_fd == -1) {
        return -errno;
    }
    if (bind(t->listen_fd, (struct sockaddr *)&addr, sizeof(addr)) == -1) {
        err = errno;
        log_err(log, "cannot bind %s: %s", path, strerror(err));
        goto close_socket;
    }
    t->path = strdup(path);
    if (t->path == NULL) {
        err = ENOMEM;
        goto unlink_path;
    }
    if (lstat(path, &made) == -1) {
        err = errno;
        goto unlink_path;
    }
    t->device = made.st_dev;
    t->inode = made.st_ino;
    if (listen(t->listen_fd, LISTEN_BACKLOG) == -1) {
        err = errno;
        log_err(log, "cannot listen at %s: %s", path, strerror(err));
        goto unlink_path;
    }
    t->spare_fd = fcntl(t->listen_fd, F_DUPFD_CLOEXEC, 0);
    return 0;

unlink_path:
    unlink(path);
    free(t->path);
    t->path = NULL;
close_socket:
    close(t->listen_fd);
    t->listen_fd = -1;
    return -err;
}

static int sock_poll_fd(const struct transport *t)
{
    return t->listen_fd;
}

static int sock_accept(struct transport *t, struct stream *s, size_t max_message)
{
    int fd;

    if (t->listen_fd == -1) {
        return -EINVAL; /* as accept(2) says of a socket that does not listen */
    }
    fd = accept4(t->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd == -1) {
        return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    }
    return stream_open(s, fd, fd, true, max_message);
}

static void sock_turn_away(struct transport *t)
{
    struct pollfd pfd = { .fd = t->listen_fd, .events = POLLIN };
    int fd;

    if (t->spare_fd == -1 || poll(&pfd, 1, 0) <= 0) {
        return;
    }
    close(t->spare_fd);
    fd = accept4(t->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd != -1) {
        close(fd);
    }
    t->spare_fd = fcntl(t->listen_fd, F_DUPFD_CLOEXEC, 0);
}

/*
 * Whether the file at the path is still the socket that listen() made. Another server may have
 * removed it and put its own there.
 */
static bool path_is_ours(const struct transport *t)
{
    struct stat found;

    return lstat(t->path, &found) == 0 && found.st_dev == t->device && found.st_ino == t->inode;
}

static void sock_close(struct transport *t)
{
    if (t->path != NULL) {
        if (path_is_ours(t)) {
            unlink(t->path);
        }
        free(t->path);
        t->path = NULL;
    }
    if (t->listen_fd != -1) {
        close(t->listen_fd);
        t->listen_fd = -1;
    }
    if (t->spare_fd != -1) {
        close(t->spare_fd);
        t->spare_fd = -1;
    }
}

const struct transport_ops transport_sock = {
    .listen = sock_listen,
    .poll_fd = sock_poll_fd,
    .accept = sock_accept,
    .turn_away = sock_turn_away,
    .close = sock_close,
};
