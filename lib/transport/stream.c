/* SPDX-License-Identifier: BSD-3-Clause */
#include "transport/stream.h"

#include "util/peer_file.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* What is kept beyond one message of the largest size, so that small ones arrive in batches. */
#define STREAM_SLACK (64u * 1024u)

static void close_fd(int fd)
{
    if (fd != -1) {
        peer_file_close(fd);
    }
}

int stream_open(struct stream *s, int rx_fd, int tx_fd, bool is_socket, size_t max_message)
{
    memset(s, 0, sizeof(*s));
    s->rx_fd = rx_fd;
    s->tx_fd = tx_fd;
    s->is_socket = is_socket;
    s->cap = max_message + STREAM_SLACK;
    s->buf = malloc(s->cap);
    if (s->buf == NULL) {
        stream_close(s);
        return -ENOMEM;
    }
    return 0;
}

void stream_close(struct stream *s)
{
    for (size_t i = 0; i < s->nr_fds; i++) {
        close_fd(s->fds[i].fd);
    }
    s->nr_fds = 0;
    if (s->tx_fd != -1 && s->tx_fd != s->rx_fd) {
        close(s->tx_fd);
    }
    if (s->rx_fd != -1) {
        close(s->rx_fd);
    }
    s->rx_fd = s->tx_fd = -1;
    free(s->pinned);
    free(s->buf);
    s->pinned = s->buf = NULL;
    s->head = s->tail = 0;
    s->pin = false;
}

int stream_make_room(struct stream *s, size_t want)
{
    size_t held = stream_buffered(s);
    uint8_t *fresh;

    if (held == 0 && !s->pin) {
        s->head = s->tail = 0;
    }
    if (want <= s->cap - s->head && s->tail < s->cap) {
        return 0;
    }
    if (!s->pin) {
        memmove(s->buf, s->buf + s->head, held);
        s->head = 0;
        s->tail = held;
        return 0;
    }
    fresh = malloc(s->cap);
    if (fresh == NULL) {
        return -ENOMEM;
    }
    memcpy(fresh, s->buf + s->head, held);
    if (s->pinned == NULL) {
        s->pinned = s->buf;
    } else {
        free(s->buf);
    }
    s->buf = fresh;
    s->head = 0;
    s->tail = held;
    return 0;
}

void stream_pin(struct stream *s)
{
    s->pin = true;
}

void stream_unpin(struct stream *s)
{
    s->pin = false;
    free(s->pinned);
    s->pinned = NULL;
}

/* fd is -1 for what was lost. */
static void keep_fd(struct stream *s, int fd)
{
    bool full = s->nr_fds == sizeof(s->fds) / sizeof(s->fds[0]);
    struct stream_fd *slot = &s->fds[full ? s->nr_fds - 1 : s->nr_fds++];

    if (full) {
        /* More than any message may have, and it is not complete yet. */
        close_fd(slot->fd);
        close_fd(fd);
        fd = -1;
    }
    *slot = (struct stream_fd){ .pos = s->pos + stream_buffered(s) - 1, .fd = fd };
}

static void keep_fds(struct stream *s, struct msghdr *msg)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
        size_t n;

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            keep_fd(s, fd);
        }
    }
    if (msg->msg_flags & MSG_CTRUNC) {
        keep_fd(s, -1);
    }
}

static ssize_t receive_socket(struct stream *s, size_t len, bool wait)
{
    union {
        char bytes[CMSG_SPACE(STREAM_MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = { .iov_base = s->buf + s->tail, .iov_len = len };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    ssize_t n = recvmsg(s->rx_fd, &msg, MSG_CMSG_CLOEXEC | (wait ? 0 : MSG_DONTWAIT));

    if (n > 0) {
        s->tail += (size_t)n;
        if (msg.msg_controllen != 0 || (msg.msg_flags & MSG_CTRUNC)) {
            keep_fds(s, &msg);
        }
    }
    return n;
}

static ssize_t receive_pipe(struct stream *s, size_t len, bool wait)
{
    struct pollfd pfd = { .fd = s->rx_fd, .events = POLLIN };
    ssize_t n;

    if (!wait && poll(&pfd, 1, 0) == 0) {
        errno = EAGAIN;
        return -1;
    }
    n = read(s->rx_fd, s->buf + s->tail, len);
    if (n > 0) {
        s->tail += (size_t)n;
    }
    return n;
}

ssize_t stream_receive(struct stream *s, size_t limit, bool wait)
{
    size_t room = s->cap - s->tail;
    size_t len = limit < room ? limit : room;
    ssize_t n = s->is_socket ? receive_socket(s, len, wait) : receive_pipe(s, len, wait);

    if (n < 0) {
        return -errno;
    }
    return n == 0 ? -ENOMSG : n;
}

ssize_t stream_peek(struct stream *s, void *buf, size_t len)
{
    ssize_t n = recv(s->rx_fd, buf, len, MSG_PEEK | MSG_DONTWAIT);

    if (n < 0) {
        return -errno;
    }
    return n == 0 ? -ENOMSG : n;
}

void stream_consume(struct stream *s, size_t n, int *fds, size_t *nr_fds, bool *lost)
{
    uint64_t end = s->pos + n;
    size_t taken = 0, i;

    *lost = false;
    for (i = 0; i < s->nr_fds && s->fds[i].pos < end; i++) {
        if (s->fds[i].fd == -1) {
            *lost = true;
        } else if (taken < STREAM_MAX_FDS) {
            fds[taken++] = s->fds[i].fd;
        } else {
            peer_file_close(s->fds[i].fd);
        }
    }
    if (i > 0) {
        s->nr_fds -= i;
        memmove(s->fds, s->fds + i, s->nr_fds * sizeof(s->fds[0]));
    }
    *nr_fds = taken;
    s->head += n;
    s->pos = end;
}

/* Up to this size, copying the parts together is cheaper than having the kernel gather them. */
#define GATHER_BY_COPY 512

/* The parts as one piece in buf: its length, or 0 when they are too large for that. */
static size_t gather(const struct iovec *iov, size_t nr_iov, char buf[GATHER_BY_COPY])
{
    size_t len = 0;

    for (size_t i = 0; i < nr_iov; i++) {
        if (iov[i].iov_len > GATHER_BY_COPY - len) {
            return 0;
        }
        memcpy(buf + len, iov[i].iov_base, iov[i].iov_len);
        len += iov[i].iov_len;
    }
    return len;
}

static ssize_t send_plain(struct stream *s, const struct iovec *iov, size_t nr_iov)
{
    struct msghdr msg = { .msg_iov = (struct iovec *)iov, .msg_iovlen = nr_iov };
    char buf[GATHER_BY_COPY];
    size_t len = gather(iov, nr_iov, buf);

    return len > 0 ? send(s->tx_fd, buf, len, MSG_NOSIGNAL | MSG_DONTWAIT)
                   : sendmsg(s->tx_fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static ssize_t send_with_fds(struct stream *s, const struct iovec *iov, size_t nr_iov,
                             const int *fds, size_t nr_fds)
{
    union {
        char bytes[CMSG_SPACE(STREAM_MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr msg = {
        .msg_iov = (struct iovec *)iov,
        .msg_iovlen = nr_iov,
        .msg_control = control.bytes,
        .msg_controllen = CMSG_SPACE(nr_fds * sizeof(int)),
    };
    struct cmsghdr *c;

    memset(&control, 0, CMSG_SPACE(nr_fds * sizeof(int)));
    c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
    memcpy(CMSG_DATA(c), fds, nr_fds * sizeof(int));
    return sendmsg(s->tx_fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* write() as MSG_NOSIGNAL would have it: a pipe that nobody reads any more is no reason to die. */
static ssize_t write_unsignalled(int fd, const void *buf, size_t len)
{
    const struct timespec now = { 0 };
    sigset_t sigpipe, old, pending;
    ssize_t n;
    int err;

    sigemptyset(&sigpipe);
    sigaddset(&sigpipe, SIGPIPE);
    sigpending(&pending);
    pthread_sigmask(SIG_BLOCK, &sigpipe, &old);
    n = write(fd, buf, len);
    err = errno;
    if (n < 0 && err == EPIPE && !sigismember(&pending, SIGPIPE)) {
        sigtimedwait(&sigpipe, NULL, &now);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    errno = err;
    return n;
}

/* A pipe that is writable takes PIPE_BUF bytes without waiting, but not more. */
static ssize_t send_pipe(struct stream *s, const struct iovec *iov, size_t nr_iov)
{
    struct pollfd pfd = { .fd = s->tx_fd, .events = POLLOUT };
    char buf[PIPE_BUF];
    size_t len = 0;

    for (size_t i = 0; i < nr_iov && len < sizeof(buf); i++) {
        size_t room = sizeof(buf) - len;
        size_t part = iov[i].iov_len < room ? iov[i].iov_len : room;

        memcpy(buf + len, iov[i].iov_base, part);
        len += part;
    }
    if (poll(&pfd, 1, 0) == 0) {
        errno = EAGAIN;
        return -1;
    }
    return write_unsignalled(s->tx_fd, buf, len);
}

ssize_t stream_send(struct stream *s, const struct iovec *iov, size_t nr_iov, const int *fds,
                    size_t nr_fds)
{
    ssize_t n;

    if (nr_fds > STREAM_MAX_FDS) {
        return -EINVAL;
    }
    if (!s->is_socket) {
        n = send_pipe(s, iov, nr_iov);
    } else if (nr_fds > 0) {
        n = send_with_fds(s, iov, nr_iov, fds, nr_fds);
    } else {
        n = send_plain(s, iov, nr_iov);
    }
    if (n < 0) {
        return errno == EPIPE ? -ECONNRESET : -errno;
    }
    return n;
}
