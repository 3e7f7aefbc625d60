/* SPDX-License-Identifier: BSD-3-Clause */
/* The version message: vfio-user protocol, VFIO_USER_VERSION. */
#include "session/negotiate.h"

#include "libvfio-user.h"
#include "util/clock.h"
#include "util/peer_file.h"
#include "wire/commands.h"
#include "wire/quirks.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* What we advertise; more descriptors are taken, as many as the kernel passes. */
#define SERVER_MAX_MSG_FDS 8

/* The largest VERSION taken: a client that sends more is not about to make sense. */
#define MAX_JSON (64u * 1024u)

#define SEND_MS 1000

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* What both have. Without ATS there are no page requests; with nothing left, no extension. */
static void meet_iommu(struct iommu_caps *theirs, const struct iommu_caps *ours)
{
    theirs->pasid.present &= ours->pasid.present;
    theirs->pasid.bits = smaller(theirs->pasid.bits, ours->pasid.bits);
    theirs->pasid.exec &= ours->pasid.exec;
    theirs->pasid.priv &= ours->pasid.priv;
    theirs->ats.present &= ours->ats.present;
    theirs->ats.queue_depth = smaller(theirs->ats.queue_depth, ours->ats.queue_depth);
    theirs->ats.max_entries = smaller(theirs->ats.max_entries, ours->ats.max_entries);
    if (theirs->ats.page_shift < ours->ats.page_shift) {
        theirs->ats.page_shift = ours->ats.page_shift;
    }
    theirs->pri.present &= ours->pri.present && theirs->ats.present;
    theirs->pri.max_requests = smaller(theirs->pri.max_requests, ours->pri.max_requests);
    theirs->present &= ours->present && (theirs->pasid.present || theirs->ats.present);
    if (!theirs->present) {
        memset(theirs, 0, sizeof(*theirs));
    }
}

int negotiate_parse(const char *text, const struct server_offer *offer,
                    struct capabilities *agreed, const struct logger *log)
{
    char why[CAPABILITIES_MAX_WHY];
    int err;

    capabilities_default(agreed);
    err = capabilities_read(text, agreed, offer->migration, why);
    if (err < 0) {
        log_err(log, "VERSION: refused: %s", why);
    } else if (agreed->migration.pgsize != 0 && agreed->migration.pgsize != offer->pgsize) {
        log_err(log, "VERSION: refused: the client's migration.pgsize is %u, the server's is %u",
                agreed->migration.pgsize, offer->pgsize);
        err = -EINVAL;
    }
    meet_iommu(&agreed->iommu, &offer->iommu);
    agreed->twin_socket &= agreed->max_msg_fds > 0 && !agreed->iommu.present;
    return err;
}

/*
 * Clients of the plain protocol have always been sent the first members. A client of the IOMMU
 * extension is sent only members that it named itself (NEG-6).
 */
static size_t write_answer(const struct server_offer *offer, const struct capabilities *agreed,
                           char text[CAPABILITIES_MAX_TEXT])
{
    bool all = !agreed->iommu.present;
    const struct capabilities answer = {
        .max_msg_fds = SERVER_MAX_MSG_FDS,
        .max_data_xfer_size = WIRE_MAX_DATA_XFER,
        .twin_socket = agreed->twin_socket,
        .write_multiple = agreed->write_multiple,
        .migration = { .pgsize = offer->pgsize },
        .iommu = agreed->iommu,
        .named = {
            .max_msg_fds = all || agreed->named.max_msg_fds,
            .max_data_xfer_size = all || agreed->named.max_data_xfer_size,
            .migration = offer->migration && (all || agreed->named.migration),
        },
    };

    return capabilities_write(&answer, text);
}

size_t negotiate_answer(size_t proposal, const struct server_offer *offer,
                        struct capabilities *agreed, char text[CAPABILITIES_MAX_TEXT])
{
    size_t len = write_answer(offer, agreed, text);

    if (quirk_version_reply_fits(proposal, len)) {
        return len;
    }
    agreed->write_multiple = false;
    memset(&agreed->iommu, 0, sizeof(agreed->iommu));
    return write_answer(offer, agreed, text);
}

static int send_all(struct stream *stream, struct iovec *iov, size_t nr, const int *fds,
                    size_t nr_fds)
{
    uint64_t deadline = deadline_after_ms(SEND_MS);

    while (nr > 0) {
        ssize_t n = stream_send(stream, iov, nr, fds, nr_fds);

        if (n == -EAGAIN) {
            struct pollfd pfd = { .fd = stream->tx_fd, .events = POLLOUT };

            n = poll(&pfd, 1, deadline_poll_ms(deadline));
            if (n == 0) {
                return -ETIMEDOUT;
            }
            if (n > 0 || errno == EINTR) {
                continue;
            }
            return -errno;
        }
        if (n == -EINTR) {
            continue;
        }
        if (n < 0) {
            return (int)n;
        }
        nr_fds = 0;
        while (nr > 0 && (size_t)n >= iov->iov_len) {
            n -= (ssize_t)iov->iov_len;
            iov++;
            nr--;
        }
        if (nr > 0) {
            iov->iov_base = (char *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
        }
    }
    return 0;
}

static int refuse(struct stream *stream, const struct vfio_user_header *req, int err)
{
    struct vfio_user_header hdr = {
        .msg_id = req->msg_id,
        .cmd = req->cmd,
        .msg_size = sizeof(hdr),
        .flags = VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR,
        .error_no = (uint32_t)-err,
    };
    struct iovec iov = { .iov_base = &hdr, .iov_len = sizeof(hdr) };

    send_all(stream, &iov, 1, NULL, 0);
    return err;
}

/*
 * Receives the first message, and not a byte more: what follows must stay in the socket, where
 * whoever polls it sees it.
 */
static int receive_version(struct stream *stream, uint64_t deadline,
                           struct vfio_user_header *hdr, const struct logger *log)
{
    for (;;) {
        size_t held = stream_buffered(stream), want = sizeof(*hdr);
        ssize_t n;

        if (held >= sizeof(*hdr)) {
            memcpy(hdr, stream_data(stream), sizeof(*hdr));
            if (wire_is_reply(hdr) || !wire_size_ok(hdr) ||
                hdr->msg_size > sizeof(*hdr) + sizeof(struct vfio_user_version) + MAX_JSON) {
                log_err(log, "first message: command %u, size %u, flags 0x%x is no VERSION",
                        hdr->cmd, hdr->msg_size, hdr->flags);
                return wire_is_reply(hdr) ? -EINVAL : refuse(stream, hdr, -EINVAL);
            }
            want = hdr->msg_size;
            if (held == want) {
                return 0;
            }
        }
        n = stream_receive(stream, want - held, false);
        if (n == -EAGAIN) {
            struct pollfd pfd = { .fd = stream->rx_fd, .events = POLLIN };

            n = poll(&pfd, 1, deadline_poll_ms(deadline));
            if (n <= 0) {
                return n == 0 ? -EAGAIN : -errno;
            }
            continue;
        }
        if (n < 0) {
            return n == -ENOMSG && held > 0 ? -ECONNRESET : (int)n;
        }
    }
}

/* The client's JSON, or NULL when it sent none; *err tells what is wrong with the rest. */
static const char *check_version(const struct vfio_user_header *hdr, const uint8_t *payload,
                                 uint16_t *minor, int *err, const struct logger *log)
{
    size_t len = hdr->msg_size - sizeof(*hdr);
    struct vfio_user_version version;

    *err = -EINVAL;
    if (hdr->cmd != VFIO_USER_VERSION) {
        log_err(log, "first message is %s, not VERSION", command_name(hdr->cmd));
        return NULL;
    }
    if (len < sizeof(version)) {
        log_err(log, "VERSION: payload of %zu bytes, need at least %zu", len, sizeof(version));
        return NULL;
    }
    memcpy(&version, payload, sizeof(version));
    if (version.major != LIB_VFIO_USER_MAJOR) {
        log_err(log, "VERSION: client speaks major version %u, we speak %u", version.major,
                LIB_VFIO_USER_MAJOR);
        return NULL;
    }
    *minor = version.minor < LIB_VFIO_USER_MINOR ? version.minor : LIB_VFIO_USER_MINOR;
    if (len > sizeof(version) && payload[len - 1] != '\0') {
        log_err(log, "VERSION: the capabilities do not end in NUL");
        return NULL;
    }
    *err = 0;
    return len > sizeof(version) ? (const char *)payload + sizeof(version) : NULL;
}

static int make_twin(struct stream *twin, int *passed)
{
    int pair[2], err;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == -1) {
        return -errno;
    }
    err = stream_open(twin, pair[0], pair[0], true, WIRE_MAX_MESSAGE);
    if (err < 0) {
        close(pair[1]);
        return err;
    }
    *passed = pair[1];
    return 0;
}

static int answer(struct stream *stream, const struct vfio_user_header *req, const char *text,
                  const struct server_offer *offer, struct capabilities *agreed,
                  struct stream *twin)
{
    char json[CAPABILITIES_MAX_TEXT];
    struct vfio_user_version version = {
        .major = LIB_VFIO_USER_MAJOR,
        .minor = agreed->minor,
    };
    struct vfio_user_header hdr = {
        .msg_id = req->msg_id,
        .cmd = VFIO_USER_VERSION,
        .flags = VFIO_USER_F_TYPE_REPLY,
    };
    struct iovec iov[3] = {
        { .iov_base = &hdr, .iov_len = sizeof(hdr) },
        { .iov_base = &version, .iov_len = sizeof(version) },
        { .iov_base = json },
    };
    int passed = -1, err = 0;

    iov[2].iov_len = negotiate_answer(text != NULL ? strlen(text) : 0, offer, agreed, json) + 1;
    if (agreed->twin_socket) {
        err = make_twin(twin, &passed);
    }
    if (err < 0) {
        return refuse(stream, req, err);
    }
    hdr.msg_size = (uint32_t)(sizeof(hdr) + sizeof(version) + iov[2].iov_len);
    err = send_all(stream, iov, 3, &passed, passed == -1 ? 0 : 1);
    if (passed != -1) {
        close(passed);
        if (err < 0) {
            stream_close(twin);
        }
    }
    return err;
}

int negotiate(struct stream *stream, uint64_t deadline, const struct server_offer *offer,
              struct capabilities *agreed, struct stream *twin, const struct logger *log)
{
    struct vfio_user_header hdr = { 0 };
    const char *text;
    int fds[STREAM_MAX_FDS], err;
    size_t nr_fds;
    uint16_t minor = 0;
    bool lost;

    err = receive_version(stream, deadline, &hdr, log);
    if (err < 0) {
        return err;
    }
    text = check_version(&hdr, stream_data(stream) + sizeof(hdr), &minor, &err, log);
    stream_consume(stream, hdr.msg_size, fds, &nr_fds, &lost);
    if (nr_fds > 0) {
        log_err(log, "VERSION: came with %zu file descriptors, must have none", nr_fds);
        while (nr_fds > 0) {
            peer_file_close(fds[--nr_fds]);
        }
        return -EFAULT;
    }
    if (err == 0) {
        err = negotiate_parse(text, offer, agreed, log);
        agreed->twin_socket &= stream->is_socket;
    }
    if (err < 0) {
        return refuse(stream, &hdr, err);
    }
    agreed->minor = minor;
    return answer(stream, &hdr, text, offer, agreed, twin);
}
