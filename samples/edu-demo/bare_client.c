/* SPDX-License-Identifier: BSD-3-Clause */
#include "bare_client.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define STRING_OF(x) STRING(x)
#define STRING(x) #x

struct version_request {
    uint16_t major;
    uint16_t minor;
    char json[64];
};

static int send_message(struct bare_client *client, const struct vfio_user_header *hdr,
                        const void *payload, int fd)
{
    struct iovec iov[] = {
        { (void *)hdr, sizeof(*hdr) },
        { (void *)payload, hdr->msg_size - sizeof(*hdr) },
    };
    union {
        struct cmsghdr hdr;
        char space[CMSG_SPACE(sizeof(int))];
    } control = { .hdr = { .cmsg_len = CMSG_LEN(sizeof(int)),
                           .cmsg_level = SOL_SOCKET,
                           .cmsg_type = SCM_RIGHTS } };
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };
    ssize_t n;

    if (fd >= 0) {
        memcpy(CMSG_DATA(&control.hdr), &fd, sizeof(fd));
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
    }
    n = sendmsg(client->fd, &msg, MSG_NOSIGNAL);
    if (n < 0) {
        return -errno;
    }
    return (size_t)n == hdr->msg_size ? 0 : -EPIPE;
}

static int receive_all(struct bare_client *client, void *buf, size_t len)
{
    size_t have = 0;

    while (have < len) {
        ssize_t n = recv(client->fd, (uint8_t *)buf + have, len - have, MSG_WAITALL);

        if (n > 0) {
            have += (size_t)n;
        } else if (n == 0) {
            return -ECONNRESET;
        } else if (errno == EAGAIN) {
            return -ETIMEDOUT;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

/* One message into client->in. */
static int receive_message(struct bare_client *client)
{
    struct vfio_user_header *hdr = &client->in.hdr;
    int err = receive_all(client, hdr, sizeof(*hdr));

    if (err != 0) {
        return err;
    }
    if (hdr->msg_size < sizeof(*hdr) || hdr->msg_size > sizeof(client->in)) {
        return -EPROTO;
    }
    return receive_all(client, hdr + 1, hdr->msg_size - sizeof(*hdr));
}

static bool is_reply(const struct vfio_user_header *hdr)
{
    return (hdr->flags & VFIO_USER_F_TYPE_MASK) == VFIO_USER_F_TYPE_REPLY;
}

/* The command in client->in. */
static int serve_received(struct bare_client *client)
{
    struct vfio_user_header hdr = client->in.hdr;
    struct vfio_user_dma_region_access *access = (void *)(&client->in.hdr + 1);
    size_t payload = hdr.msg_size - sizeof(hdr);
    bool to_device = hdr.cmd == VFIO_USER_DMA_READ;
    int err;

    if ((!to_device && hdr.cmd != VFIO_USER_DMA_WRITE) || payload < sizeof(*access) ||
        access->count > BARE_CLIENT_MAX_XFER ||
        payload - sizeof(*access) != (to_device ? 0 : access->count)) {
        return -EPROTO;
    }
    err = client->serve(client->owner, access, to_device);
    hdr.flags = VFIO_USER_F_TYPE_REPLY | (err != 0 ? VFIO_USER_F_ERROR : 0);
    hdr.error_no = (uint32_t)-err;
    hdr.msg_size = sizeof(hdr) + sizeof(*access);
    if (to_device && err == 0) {
        hdr.msg_size += (uint32_t)access->count;
    }
    return send_message(client, &hdr, access, -1);
}

int bare_client_serve(struct bare_client *client)
{
    int err = receive_message(client);

    if (err != 0) {
        return err;
    }
    return is_reply(&client->in.hdr) ? -EPROTO : serve_received(client);
}

static int receive_reply(struct bare_client *client, uint16_t cmd, void *reply, size_t reply_len)
{
    const struct vfio_user_header *hdr = &client->in.hdr;
    int err;

    while ((err = receive_message(client)) == 0 && !is_reply(hdr)) {
        err = serve_received(client);
        if (err != 0) {
            return err;
        }
    }
    if (err != 0) {
        return err;
    }
    if (hdr->msg_id != client->last_id || hdr->cmd != cmd) {
        return -EPROTO;
    }
    if ((hdr->flags & VFIO_USER_F_ERROR) != 0) {
        return hdr->error_no != 0 ? -(int)hdr->error_no : -EPROTO;
    }
    if (hdr->msg_size - sizeof(*hdr) < reply_len) {
        return -EPROTO;
    }
    if (reply_len != 0) {
        memcpy(reply, hdr + 1, reply_len);
    }
    return 0;
}

int bare_client_request(struct bare_client *client, uint16_t cmd, const void *payload, size_t len,
                        int fd, void *reply, size_t reply_len)
{
    struct vfio_user_header hdr = {
        .msg_id = ++client->last_id,
        .cmd = cmd,
        .msg_size = (uint32_t)(sizeof(hdr) + len),
        .flags = VFIO_USER_F_TYPE_COMMAND,
    };
    int err = send_message(client, &hdr, payload, fd);

    return err != 0 ? err : receive_reply(client, cmd, reply, reply_len);
}

static int negotiate(struct bare_client *client)
{
    struct version_request request = {
        .json = "{\"capabilities\":{\"max_data_xfer_size\":" STRING_OF(BARE_CLIENT_MAX_XFER) "}}",
    };
    struct vfio_user_version reply;

    return bare_client_request(client, VFIO_USER_VERSION, &request,
                               offsetof(struct version_request, json) + strlen(request.json) + 1,
                               -1, &reply, sizeof(reply));
}

int bare_client_open(struct bare_client *client, const char *path, int timeout_ms)
{
    struct timeval timeout = { .tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000 };
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int err = 0;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return -ENAMETOOLONG;
    }
    strcpy(addr.sun_path, path);
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0) {
        return -errno;
    }
    if (setsockopt(client->fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) != 0 ||
        connect(client->fd, (const struct sockaddr *)&addr, sizeof(addr)) != 0) {
        err = -errno;
    }
    if (err == 0) {
        err = negotiate(client);
    }
    if (err != 0) {
        close(client->fd);
    }
    return err;
}

void bare_client_close(struct bare_client *client)
{
    close(client->fd);
}
