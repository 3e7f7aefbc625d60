/* SPDX-License-Identifier: BSD-3-Clause */
#include "peer.h"

#include "fuzz.h"
#include "wire/commands.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER (2u * WIRE_MAX_MESSAGE)
#define MAX_FDS 253

/* What has been received and not yet looked at: a frame may come in pieces. */
struct inbox {
    uint8_t *bytes;
    size_t len;
};

static struct inbox inboxes[2]; /* of the first and the second connection */
static uint8_t reply_buffer[64 + WIRE_MAX_DATA_XFER];

void peer_init(struct peer *peer)
{
    memset(peer, 0, sizeof(*peer));
    peer->fd = peer->twin = -1;
    for (int i = 0; i < 2; i++) {
        if (inboxes[i].bytes == NULL) {
            inboxes[i].bytes = malloc(BUFFER);
            REQUIRE(inboxes[i].bytes != NULL);
        }
        inboxes[i].len = 0;
    }
}

int peer_connect(struct peer *peer)
{
    int pair[2];

    peer_close(peer);
    peer_init(peer);
    peer->honest = true;
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    peer->fd = pair[0];
    return pair[1];
}

void peer_close(struct peer *peer)
{
    if (peer->fd != -1) {
        close(peer->fd);
    }
    if (peer->twin != -1) {
        close(peer->twin);
    }
    peer->fd = peer->twin = -1;
}

/* Sending */

/* False when the socket is full: then nothing was sent. */
static bool put(struct peer *peer, int fd, const uint8_t *bytes, size_t len, const int *fds,
                size_t nr_fds)
{
    union {
        char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = { .iov_base = (void *)bytes, .iov_len = len };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    ssize_t n;

    if (nr_fds > 0) {
        struct cmsghdr *c;

        memset(&control, 0, CMSG_SPACE(nr_fds * sizeof(int)));
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
        c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, nr_fds * sizeof(int));
    }
    n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0 && (size_t)n < len) {
        /* No one can read the rest as a frame. */
        peer->honest = false;
    }
    return n > 0;
}

void peer_send_raw(struct peer *peer, const uint8_t *bytes, size_t len)
{
    if (peer->fd != -1 && len > 0) {
        peer->honest = false;
        put(peer, peer->fd, bytes, len, NULL, 0);
    }
}

void peer_send(struct peer *peer, const uint8_t *message, size_t len, const int *fds,
               size_t nr_fds)
{
    struct vfio_user_header hdr;
    bool first;

    if (peer->fd == -1 || len < sizeof(hdr)) {
        return;
    }
    memcpy(&hdr, message, sizeof(hdr));
    if (!put(peer, peer->fd, message, len, fds, nr_fds)) {
        return;
    }
    peer->honest &= hdr.msg_size == len;
    /* VERSION is always answered. */
    first = !peer->greeted;
    peer->greeted = true;
    peer->replies += wire_is_reply(&hdr);
    if (first || (!wire_is_reply(&hdr) && !(hdr.flags & VFIO_USER_F_NO_REPLY))) {
        REQUIRE(peer->nr_awaited < PEER_AWAITED);
        peer->awaited[peer->nr_awaited].id = hdr.msg_id;
        peer->awaited[peer->nr_awaited++].cmd = hdr.cmd;
    }
}

/* Receiving */

static void check_reply(struct peer *peer, const struct vfio_user_header *hdr)
{
    size_t i;

    REQUIRE((hdr->flags & ~(uint32_t)VFIO_USER_F_ERROR) == VFIO_USER_F_TYPE_REPLY);
    REQUIRE(((hdr->flags & VFIO_USER_F_ERROR) != 0) == (hdr->error_no != 0));
    REQUIRE(hdr->error_no < 4096);
    if (!peer->honest) {
        return;
    }
    for (i = 0; i < peer->nr_awaited; i++) {
        if (peer->awaited[i].id == hdr->msg_id && peer->awaited[i].cmd == hdr->cmd) {
            break;
        }
    }
    if (i == peer->nr_awaited) {
        /* One of our replies was refused. */
        REQUIRE(hdr->error_no == EINVAL && peer->replies > 0);
        peer->replies--;
        return;
    }
    peer->awaited[i] = peer->awaited[--peer->nr_awaited];
}

static void keep_command(struct peer *peer, int fd, const struct vfio_user_header *hdr,
                         const uint8_t *payload, size_t len)
{
    const struct command_rule *rule = command_rule(hdr->cmd);
    struct peer_command *command;

    REQUIRE(rule != NULL && rule->from == FROM_SERVER);
    REQUIRE((hdr->flags & VFIO_USER_F_TYPE_MASK) == VFIO_USER_F_TYPE_COMMAND);
    if (hdr->flags & VFIO_USER_F_NO_REPLY) {
        return;
    }
    if (peer->nr_asked == PEER_ASKED) {
        memmove(peer->asked, peer->asked + 1, (PEER_ASKED - 1) * sizeof(peer->asked[0]));
        peer->nr_asked--;
    }
    command = &peer->asked[peer->nr_asked++];
    command->hdr = *hdr;
    command->fd = fd;
    memset(command->payload, 0, PEER_KEPT);
    memcpy(command->payload, payload, len < PEER_KEPT ? len : PEER_KEPT);
}

/* The twin socket is the only descriptor that comes with VERSION; the others are not used. */
static void take_descriptors(struct peer *peer, struct msghdr *msg)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
        size_t nr = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        for (size_t i = 0; i < nr; i++) {
            struct sockaddr_storage addr;
            socklen_t len = sizeof(addr);
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (peer->twin == -1 && getsockname(fd, (struct sockaddr *)&addr, &len) == 0) {
                peer->twin = fd;
            } else {
                close(fd);
            }
        }
    }
}

static void parse(struct peer *peer, int fd, struct inbox *in)
{
    size_t at = 0;

    while (in->len - at >= sizeof(struct vfio_user_header)) {
        struct vfio_user_header hdr;
        const uint8_t *payload = in->bytes + at + sizeof(hdr);

        memcpy(&hdr, in->bytes + at, sizeof(hdr));
        REQUIRE(wire_size_ok(&hdr));
        if (in->len - at < hdr.msg_size) {
            break;
        }
        if (wire_is_reply(&hdr)) {
            check_reply(peer, &hdr);
        } else {
            keep_command(peer, fd, &hdr, payload, hdr.msg_size - sizeof(hdr));
        }
        at += hdr.msg_size;
    }
    memmove(in->bytes, in->bytes + at, in->len - at);
    in->len -= at;
}

static bool drain_one(struct peer *peer, int fd, struct inbox *in)
{
    bool any = false;

    while (fd != -1) {
        union {
            char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
            struct cmsghdr align;
        } control;
        struct iovec iov = { .iov_base = in->bytes + in->len, .iov_len = BUFFER - in->len };
        struct msghdr msg = {
            .msg_iov = &iov,
            .msg_iovlen = 1,
            .msg_control = control.bytes,
            .msg_controllen = sizeof(control.bytes),
        };
        ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

        if (n <= 0) {
            break;
        }
        any = true;
        take_descriptors(peer, &msg);
        in->len += (size_t)n;
        parse(peer, fd, in);
    }
    return any;
}

bool peer_drain(struct peer *peer)
{
    bool any = drain_one(peer, peer->fd, &inboxes[0]);

    return drain_one(peer, peer->twin, &inboxes[1]) || any;
}

/* Answers */

static size_t good_translation(const uint8_t *request, uint8_t *out, bool large)
{
    const uint64_t length = large ? 2u << 20 : 4096;
    struct vfio_user_ats_translate in;
    struct vfio_user_ats_translate_reply reply = {
        .argsz = sizeof(reply) + sizeof(struct vfio_user_ats_entry),
        .nr_entries = 1,
    };
    struct vfio_user_ats_entry entry = {
        .length = length,
        .perm = VFIO_USER_ATS_PERM_READ | VFIO_USER_ATS_PERM_WRITE,
    };

    memcpy(&in, request, sizeof(in));
    entry.address = in.address & ~(length - 1);
    entry.translated = large ? 0 : entry.address & 0xfffff;
    memcpy(out, &reply, sizeof(reply));
    memcpy(out + sizeof(reply), &entry, sizeof(entry));
    return sizeof(reply) + sizeof(entry);
}

static size_t good_page_response(const uint8_t *request, uint8_t *out)
{
    struct vfio_user_page_request in;
    struct vfio_user_page_response reply = { .argsz = sizeof(reply) };

    memcpy(&in, request, sizeof(in));
    reply.group = in.group;
    memcpy(out, &reply, sizeof(reply));
    return sizeof(reply);
}

/* What an honest client answers; its length. */
static size_t good_reply(const struct peer_command *command, uint8_t *out, bool large)
{
    const bool tagged = command->hdr.flags & VFIO_USER_F_PASID;
    const uint8_t *request =
        command->payload + (tagged ? sizeof(struct vfio_user_pasid_prefix) : 0);
    struct vfio_user_dma_region_access access;

    switch (command->hdr.cmd) {
    case VFIO_USER_ATS_TRANSLATE:
        return good_translation(request, out, large);
    case VFIO_USER_PAGE_REQUEST:
        return good_page_response(request, out);
    case VFIO_USER_DMA_WRITE:
        memcpy(out, request, sizeof(access));
        return large ? 0 : sizeof(access);
    default:
        memcpy(&access, request, sizeof(access));
        REQUIRE(access.count <= WIRE_MAX_DATA_XFER);
        memcpy(out, &access, sizeof(access));
        memset(out + sizeof(access), 0x42, access.count);
        return sizeof(access) + access.count;
    }
}

static size_t make_reply(const struct peer_command *command, uint8_t how, const uint8_t *data,
                         size_t len, uint8_t *out)
{
    size_t size;

    if (!(how & ANSWER_GOOD)) {
        memcpy(out, data, len);
        return len;
    }
    size = good_reply(command, out, how & ANSWER_LARGE);
    for (size_t i = 0; i + 1 < len; i += 2) {
        if (data[i] < size) {
            out[data[i]] ^= data[i + 1];
        }
    }
    return size;
}

void peer_answer(struct peer *peer, uint8_t how, const uint8_t *data, size_t len)
{
    size_t at = how & ANSWER_NEWEST ? peer->nr_asked - 1 : 0;
    struct vfio_user_header hdr;
    size_t size;

    if (peer->nr_asked == 0 || len > sizeof(reply_buffer) - sizeof(hdr)) {
        return;
    }
    size = make_reply(&peer->asked[at], how, data, len, reply_buffer + sizeof(hdr));
    hdr = (struct vfio_user_header){
        .msg_id = peer->asked[at].hdr.msg_id,
        .cmd = (uint16_t)(peer->asked[at].hdr.cmd ^ (how & ANSWER_OTHER ? 1 : 0)),
        .msg_size = (uint32_t)(sizeof(hdr) + size),
        .flags = VFIO_USER_F_TYPE_REPLY | (how & ANSWER_ERROR ? VFIO_USER_F_ERROR : 0),
        .error_no = how & ANSWER_ERROR && len > 0 ? data[0] : 0,
    };
    memcpy(reply_buffer, &hdr, sizeof(hdr));
    peer->replies++;
    put(peer, peer->asked[at].fd, reply_buffer, hdr.msg_size, NULL, 0);
    if (!(how & ANSWER_AGAIN)) {
        peer->nr_asked--;
        memmove(&peer->asked[at], &peer->asked[at + 1],
                (peer->nr_asked - at) * sizeof(peer->asked[0]));
    }
}
