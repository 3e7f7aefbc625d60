/* SPDX-License-Identifier: BSD-3-Clause */
#include "client_fake.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#define MAX_FDS 253 /* the kernel's limit for a message */

static const struct fake_message fake_success = { .len = 0 };

static const struct {
    struct vfio_user_version version;
    char text[64];
} plain_version = {
    { 0, 0 },
    "{\"capabilities\":{\"max_msg_fds\":8,\"write_multiple\":true}}",
};

static void send_bytes(struct fake *fake, const void *data, size_t len, const int *fds,
                       unsigned nr_fds)
{
    union {
        char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = { (void *)data, len };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    if (nr_fds > 0) {
        memset(&control, 0, sizeof(control));
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
        CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), fds, nr_fds * sizeof(int));
    }
    while (iov.iov_len > 0) {
        ssize_t n = sendmsg(fake->fd, &msg, MSG_NOSIGNAL);

        if (n <= 0) {
            return; /* the client has gone */
        }
        iov.iov_base = (char *)iov.iov_base + n;
        iov.iov_len -= (size_t)n;
        msg.msg_control = NULL;
        msg.msg_controllen = 0;
    }
}

void fake_send(struct fake *fake, const struct vfio_user_header *to,
               const struct fake_message *message)
{
    size_t size = sizeof(*to) + message->len;
    uint8_t *bytes = malloc(size);
    struct vfio_user_header hdr = {
        .msg_id = (uint16_t)(to->msg_id + message->id_delta),
        .cmd = message->cmd != 0 ? message->cmd : to->cmd,
        .msg_size = message->msg_size != 0 ? message->msg_size : (uint32_t)size,
        .flags = message->flags != 0 ? message->flags : VFIO_USER_F_TYPE_REPLY,
        .error_no = message->error,
    };
    int fds[MAX_FDS];

    if (bytes == NULL || message->silent) {
        free(bytes);
        return;
    }
    for (unsigned i = 0; i < message->nr_fds; i++) {
        fds[i] = message->fd;
    }
    memcpy(bytes, &hdr, sizeof(hdr));
    if (message->len > 0) {
        memcpy(bytes + sizeof(hdr), message->payload, message->len);
    }
    send_bytes(fake, bytes, size - message->cut, fds, message->nr_fds);
    free(bytes);
}

void fake_command(struct fake *fake, uint16_t id, uint16_t cmd, uint32_t flags,
                  const void *payload, size_t len)
{
    const struct vfio_user_header hdr = {
        .msg_id = id,
        .cmd = cmd,
        .msg_size = (uint32_t)(sizeof(hdr) + len),
        .flags = flags,
    };

    send_bytes(fake, &hdr, sizeof(hdr), NULL, 0);
    send_bytes(fake, payload, len, NULL, 0);
}

static bool receive_bytes(struct fake *fake, void *data, size_t len)
{
    while (len > 0) {
        ssize_t n = recv(fake->fd, data, len, 0);

        if (n <= 0) {
            return false;
        }
        data = (char *)data + n;
        len -= (size_t)n;
    }
    return true;
}

bool fake_receive(struct fake *fake, struct vfio_user_header *hdr)
{
    return receive_bytes(fake, hdr, sizeof(*hdr)) &&
           hdr->msg_size - sizeof(*hdr) <= sizeof(fake->payload) &&
           receive_bytes(fake, fake->payload, hdr->msg_size - sizeof(*hdr));
}

static void answer_version(struct fake *fake, const struct vfio_user_header *hdr)
{
    const struct fake_message usual = {
        .payload = fake->version_len > 0 ? fake->version : &plain_version,
        .len = fake->version_len > 0
                   ? fake->version_len
                   : sizeof(plain_version.version) + strlen(plain_version.text) + 1,
    };

    fake_send(fake, hdr, fake->version_message != NULL ? fake->version_message : &usual);
}

static void *serve(void *arg)
{
    struct fake *fake = arg;
    struct vfio_user_header hdr;

    fake->fd = accept(fake->listener, NULL, NULL);
    while (fake_receive(fake, &hdr)) {
        if (hdr.cmd == VFIO_USER_VERSION) {
            answer_version(fake, &hdr);
        } else if (!(hdr.flags & VFIO_USER_F_NO_REPLY) &&
                   (fake->respond == NULL || !fake->respond(fake, &hdr))) {
            fake_send(fake, &hdr,
                      hdr.cmd == VFIO_USER_DEVICE_RESET ? &fake_success : fake->answer);
        }
    }
    close(fake->fd);
    return NULL;
}

void fake_start(struct fake *fake)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    strcpy(fake->dir, "/tmp/vfuc-fake-XXXXXX");
    assert_non_null(mkdtemp(fake->dir));
    snprintf(fake->path, sizeof(fake->path), "%s/socket", fake->dir);
    strcpy(addr.sun_path, fake->path);
    fake->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fake->listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(listen(fake->listener, 1), 0);
    if (fake->answer == NULL) {
        fake->answer = &fake_success;
    }
    assert_int_equal(pthread_create(&fake->thread, NULL, serve, fake), 0);
}

void fake_stop(struct fake *fake)
{
    pthread_join(fake->thread, NULL);
    close(fake->listener);
    unlink(fake->path);
    rmdir(fake->dir);
}
