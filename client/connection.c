/* SPDX-License-Identifier: BSD-3-Clause */
/* The socket: connecting, whole messages in and out, and the end of it. */
#include "client.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define DEFAULT_TIMEOUT_MS 10000
#define MAX_IOV 8

void client_log(struct vfuc *client, const char *fmt, ...)
{
    char line[512];
    va_list ap;

    if (client->options.log == NULL) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    client->options.log(client->options.pvt, line);
}

ssize_t client_result(ssize_t r)
{
    if (r < 0) {
        errno = (int)-r;
        return -1;
    }
    return r;
}

/* Sending */

static ssize_t send_some(struct vfuc *client, struct iovec *iov, size_t nr_iov, const int *fds,
                         size_t nr_fds)
{
    union {
        char bytes[CMSG_SPACE(CLIENT_MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = nr_iov };

    if (nr_fds > 0) {
        memset(&control, 0, sizeof(control));
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
        CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), fds, nr_fds * sizeof(int));
    }
    return sendmsg(client->fd, &msg, MSG_NOSIGNAL);
}

static int send_all(struct vfuc *client, struct iovec *iov, size_t nr_iov, const int *fds,
                    size_t nr_fds)
{
    while (nr_iov > 0) {
        ssize_t n = send_some(client, iov, nr_iov, fds, nr_fds);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno == EPIPE || errno == ECONNRESET ? -ENOTCONN
                   : errno == EAGAIN ? -ETIMEDOUT : -errno;
        }
        nr_fds = 0;
        while (nr_iov > 0 && (size_t)n >= iov->iov_len) {
            n -= (ssize_t)iov->iov_len;
            iov++;
            nr_iov--;
        }
        if (nr_iov > 0) {
            iov->iov_base = (char *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
        }
    }
    return 0;
}

int client_send(struct vfuc *client, const struct vfio_user_header *hdr, const struct iovec *iov,
                size_t nr_iov, const int *fds, size_t nr_fds)
{
    struct vfio_user_header out = *hdr;
    struct iovec parts[MAX_IOV];
    int err;

    if (nr_iov >= MAX_IOV || nr_fds > CLIENT_MAX_FDS) {
        return -EINVAL;
    }
    out.msg_size = sizeof(out);
    for (size_t i = 0; i < nr_iov; i++) {
        if (iov[i].iov_len > CLIENT_MAX_MESSAGE - out.msg_size) {
            return -EMSGSIZE;
        }
        parts[1 + i] = iov[i];
        out.msg_size += (uint32_t)iov[i].iov_len;
    }
    parts[0] = (struct iovec){ &out, sizeof(out) };
    pthread_mutex_lock(&client->send_lock);
    err = send_all(client, parts, 1 + nr_iov, fds, nr_fds);
    pthread_mutex_unlock(&client->send_lock);
    return err;
}

/* Receiving */

static void take_fds(struct msghdr *msg, int *fds, size_t *nr_fds)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (*nr_fds < CLIENT_MAX_FDS) {
                fds[(*nr_fds)++] = fd;
            } else {
                close(fd);
            }
        }
    }
}

int client_receive_exact(struct vfuc *client, void *data, size_t len, int *fds, size_t *nr_fds)
{
    size_t done = 0;

    while (done < len) {
        union {
            char bytes[CMSG_SPACE(CLIENT_MAX_FDS * sizeof(int))];
            struct cmsghdr align;
        } control;
        struct iovec iov = { (char *)data + done, len - done };
        struct msghdr msg = {
            .msg_iov = &iov,
            .msg_iovlen = 1,
            .msg_control = control.bytes,
            .msg_controllen = sizeof(control.bytes),
        };
        ssize_t n = recvmsg(client->fd, &msg, MSG_CMSG_CLOEXEC);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n == 0 || errno == ECONNRESET ? -ENOTCONN : -errno;
        }
        take_fds(&msg, fds, nr_fds);
        done += (size_t)n;
    }
    return 0;
}

/* Life */

static int connect_socket(const char *path)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd, err;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return -ENAMETOOLONG;
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd == -1) {
        return -errno;
    }
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == -1) {
        err = errno;
        close(fd);
        return -err;
    }
    return fd;
}

/* A server that does not read, or does not answer the first message, must not hold us. */
static void set_timeouts(int fd, uint32_t ms)
{
    const struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
}

static void receive_without_timeout(int fd)
{
    const struct timeval never = { 0 };

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &never, sizeof(never));
}

static struct vfuc *new_client(const vfuc_options_t *options)
{
    struct vfuc *client = calloc(1, sizeof(*client));
    pthread_condattr_t attr;

    if (client == NULL) {
        return NULL;
    }
    client->buf = malloc(CLIENT_MAX_MESSAGE);
    client->memory = calloc(CLIENT_MAX_MEMORY, sizeof(*client->memory));
    if (client->buf == NULL || client->memory == NULL) {
        free(client->memory);
        free(client->buf);
        free(client);
        return NULL;
    }
    if (options != NULL) {
        client->options = *options;
    }
    if (client->options.timeout_ms == 0) {
        client->options.timeout_ms = DEFAULT_TIMEOUT_MS;
    }
    if (client->options.max_data_xfer_size == 0 ||
        client->options.max_data_xfer_size > CLIENT_MAX_DATA) {
        client->options.max_data_xfer_size = CLIENT_MAX_DATA;
    }
    pthread_mutex_init(&client->send_lock, NULL);
    pthread_mutex_init(&client->lock, NULL);
    pthread_mutex_init(&client->memory_lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&client->cond, &attr);
    pthread_condattr_destroy(&attr);
    for (int i = 0; i < CLIENT_BUCKETS; i++) {
        LIST_INIT(&client->calls[i]);
    }
    client->fd = -1;
    return client;
}

void vfuc_disconnect(vfuc_t *client)
{
    if (client == NULL) {
        return;
    }
    client_break(client);
    if (client->receiving) {
        pthread_join(client->receiver, NULL);
    }
    if (client->fd != -1) {
        close(client->fd);
    }
    pthread_cond_destroy(&client->cond);
    pthread_mutex_destroy(&client->memory_lock);
    pthread_mutex_destroy(&client->lock);
    pthread_mutex_destroy(&client->send_lock);
    free(client->memory);
    free(client->buf);
    free(client);
}

vfuc_t *vfuc_connect(const char *path, const vfuc_options_t *options)
{
    struct vfuc *client = new_client(options);
    int err;

    if (client == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    err = connect_socket(path);
    if (err >= 0) {
        client->fd = err;
        set_timeouts(client->fd, client->options.timeout_ms);
        err = client_negotiate(client);
    }
    if (err >= 0) {
        receive_without_timeout(client->fd);
        err = -pthread_create(&client->receiver, NULL, client_receive, client);
        client->receiving = err == 0;
    }
    if (err < 0) {
        vfuc_disconnect(client);
        errno = err == -EAGAIN ? ETIMEDOUT : -err;
        return NULL;
    }
    return client;
}

void vfuc_agreed(vfuc_t *client, vfuc_agreed_t *agreed)
{
    *agreed = client->agreed;
}
