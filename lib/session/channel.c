/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages in and out of one socket; see session.h for who may do what when. */
#include "session/channel.h"

#include "util/clock.h"
#include "util/peer_file.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* A client that takes not one byte for so long is taken for dead. */
#define SEND_STALL_MS 10000

/* What may wait for the control thread before nothing more is read; memory counts, not messages. */
#define MAX_PARKED_BYTES (4u * WIRE_MAX_DATA_XFER)
#define MAX_PARKED_FDS (2 * STREAM_MAX_FDS)

#define MAX_IOV 8

int channel_init(struct channel *ch, bool commands)
{
    memset(ch, 0, sizeof(*ch));
    ch->commands = commands;
    ch->stream.rx_fd = ch->stream.tx_fd = -1;
    ch->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ch->wake_fd == -1) {
        return -errno;
    }
    pthread_mutex_init(&ch->tx_lock, NULL);
    return 0;
}

void channel_destroy(struct channel *ch)
{
    pthread_mutex_destroy(&ch->tx_lock);
    close(ch->wake_fd);
}

void channel_open(struct session *s, struct channel *ch, struct stream *stream)
{
    pthread_mutex_lock(&ch->tx_lock);
    pthread_mutex_lock(&s->lock);
    ch->stream = *stream;
    ch->open = true;
    ch->epoch++;
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&ch->tx_lock);
}

void channel_acquire(struct session *s, struct channel *ch)
{
    while (ch->reading) {
        s->waiters++;
        pthread_cond_wait(&s->cond, &s->lock);
        s->waiters--;
    }
    ch->reading = true;
}

bool channel_holds_message(const struct channel *ch)
{
    struct vfio_user_header hdr;
    size_t held = stream_buffered(&ch->stream);

    if (held < sizeof(hdr)) {
        return false;
    }
    memcpy(&hdr, stream_data(&ch->stream), sizeof(hdr));
    return held >= hdr.msg_size;
}

void channel_wake(struct session *s, struct channel *ch)
{
    const uint64_t one = 1;

    if (ch->polling && write(ch->wake_fd, &one, sizeof(one)) < 0) {
        log_warn(s->log, "cannot wake a waiting thread: %s", strerror(errno));
    }
}

void channel_release(struct session *s, struct channel *ch)
{
    ch->reading = false;
    if (s->waiters > 0) {
        pthread_cond_broadcast(&s->cond);
    }
    /* What was received with the message that is served now, nobody sees on the socket. */
    if (channel_holds_message(ch)) {
        channel_wake(s, ch);
    }
}

/* Sending */

/* Reads while it waits, because the client may itself be stuck in a send until we do. */
static int wait_writable(struct session *s, struct channel *ch)
{
    uint64_t deadline = deadline_after_ms(SEND_STALL_MS);
    struct pollfd pfd = { .fd = ch->stream.tx_fd, .events = POLLOUT };

    if (ch->stream.is_socket) {
        pfd.events |= POLLIN;
    }
    for (;;) {
        int n = poll(&pfd, 1, deadline_poll_ms(deadline));

        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        if (n == 0) {
            log_err(s->log, "client has not read its socket for %u ms: giving it up",
                    SEND_STALL_MS);
            return -ETIMEDOUT;
        }
        if (n > 0 && (pfd.revents & (POLLERR | POLLHUP | POLLNVAL))) {
            return -ECONNRESET;
        }
        if (n > 0 && (pfd.revents & POLLOUT)) {
            return 0;
        }
        if (n > 0) {
            int read = 0;

            pthread_mutex_lock(&s->lock);
            if (!ch->reading) {
                read = channel_pump(s, ch);
            }
            pthread_mutex_unlock(&s->lock);
            if (read < 0) {
                return read;
            }
            if (read == 0) {
                pfd.events = POLLOUT;
            }
        }
    }
}

static size_t skip_sent(struct iovec *iov, size_t *nr_iov, size_t sent)
{
    size_t skip = 0;

    while (skip < *nr_iov && sent >= iov[skip].iov_len) {
        sent -= iov[skip++].iov_len;
    }
    if (skip < *nr_iov) {
        iov[skip].iov_base = (char *)iov[skip].iov_base + sent;
        iov[skip].iov_len -= sent;
    }
    *nr_iov -= skip;
    return skip;
}

static int send_whole(struct session *s, struct channel *ch, struct iovec *iov, size_t nr_iov,
                      const int *fds, size_t nr_fds)
{
    while (nr_iov > 0) {
        ssize_t n = stream_send(&ch->stream, iov, nr_iov, fds, nr_fds);

        if (n == -EINTR) {
            continue;
        }
        if (n == -EAGAIN) {
            int err = wait_writable(s, ch);

            if (err < 0) {
                return err;
            }
            continue;
        }
        if (n < 0) {
            return (int)n;
        }
        iov += skip_sent(iov, &nr_iov, (size_t)n);
        nr_fds = 0;
    }
    return 0;
}

int channel_send(struct session *s, struct channel *ch, uint64_t epoch, const struct iovec *iov,
                 size_t nr_iov, const int *fds, size_t nr_fds)
{
    struct iovec left[MAX_IOV];
    int err = 0;

    if (nr_iov > MAX_IOV) {
        return -EINVAL;
    }
    memcpy(left, iov, nr_iov * sizeof(*iov));
    pthread_mutex_lock(&ch->tx_lock);
    if (!ch->open || ch->epoch != epoch) {
        pthread_mutex_unlock(&ch->tx_lock);
        return -ENOTCONN;
    }
    err = send_whole(s, ch, left, nr_iov, fds, nr_fds);
    pthread_mutex_unlock(&ch->tx_lock);
    if (err < 0) {
        log_info(s->log, "cannot send to the client: %s", strerror(-err));
        session_break(s, err);
    }
    return err;
}

/* Receiving */

static void reject_frame(struct session *s, struct channel *ch,
                         const struct vfio_user_header *hdr)
{
    struct vfio_user_header reply = {
        .msg_id = hdr->msg_id,
        .cmd = hdr->cmd,
        .msg_size = sizeof(reply),
        .flags = VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR,
        .error_no = EINVAL,
    };
    struct iovec iov = { .iov_base = &reply, .iov_len = sizeof(reply) };

    log_err(s->log, "%s id %u: message size %u is not between %zu and %zu: closing the connection",
            command_name(hdr->cmd), hdr->msg_id, hdr->msg_size, sizeof(*hdr),
            (size_t)WIRE_MAX_MESSAGE);
    /* Without waiting: this very thread may be in the middle of a send, and reads meanwhile. */
    if (!wire_is_reply(hdr) && !(hdr->flags & VFIO_USER_F_NO_REPLY) &&
        pthread_mutex_trylock(&ch->tx_lock) == 0) {
        stream_send(&ch->stream, &iov, 1, NULL, 0);
        pthread_mutex_unlock(&ch->tx_lock);
    }
}

int channel_next(struct session *s, struct channel *ch, struct vfio_user_header *hdr)
{
    size_t held = stream_buffered(&ch->stream);

    if (held < sizeof(*hdr)) {
        return 0;
    }
    memcpy(hdr, stream_data(&ch->stream), sizeof(*hdr));
    if (!wire_size_ok(hdr)) {
        reject_frame(s, ch, hdr);
        return -EPROTO;
    }
    return held >= hdr->msg_size;
}

void channel_take(struct session *s, struct channel *ch, const struct vfio_user_header *hdr,
                  struct request *req, int fds[STREAM_MAX_FDS])
{
    memset(req, 0, sizeof(*req));
    req->session = s;
    req->epoch = ch->epoch;
    req->hdr = *hdr;
    req->payload = (uint8_t *)stream_data(&ch->stream) + sizeof(*hdr);
    req->len = hdr->msg_size - sizeof(*hdr);
    req->fds = fds;
    stream_consume(&ch->stream, hdr->msg_size, fds, &req->nr_fds, &req->fds_lost);
}

static int reply_error(const struct vfio_user_header *hdr)
{
    if (!(hdr->flags & VFIO_USER_F_ERROR)) {
        return 0;
    }
    if (hdr->error_no == 0 || hdr->error_no > WIRE_MAX_ERRNO) {
        return -EPROTO;
    }
    return -(int)hdr->error_no;
}

/* What a good reply carries goes where the transaction wants it; returns 0 or -EPROTO. */
static int copy_reply(struct session *s, struct txn *txn, const struct vfio_user_header *hdr,
                      const uint8_t *payload, size_t len)
{
    size_t fixed = len < txn->reply_cap ? len : txn->reply_cap;

    if (len < command_rule(txn->cmd)->min_reply || len > txn->reply_cap + txn->data_cap) {
        log_err(s->log, "reply to %s id %u has %zu bytes, not between %u and %zu",
                command_name(txn->cmd), hdr->msg_id, len, command_rule(txn->cmd)->min_reply,
                txn->reply_cap + txn->data_cap);
        return -EPROTO;
    }
    if (fixed > 0) {
        memcpy(txn->reply, payload, fixed);
    }
    if (len > fixed) {
        memcpy(txn->data, payload + fixed, len - fixed);
    }
    txn->reply_len = len;
    return 0;
}

/*
 * A reply to nothing: late for one that was given up, made up by the client, or the second to the
 * same command, on the other channel or before the command had left.
 */
static void stray_reply(struct session *s, const struct vfio_user_header *hdr, bool late)
{
    if (late) {
        log_info(s->log, "late reply to %s id %u dropped", command_name(hdr->cmd), hdr->msg_id);
        return;
    }
    log_err(s->log, "reply to %s id %u, which waits for none: dropped", command_name(hdr->cmd),
            hdr->msg_id);
}

void channel_route_reply(struct session *s, struct channel *ch,
                         const struct vfio_user_header *hdr)
{
    const uint8_t *payload = stream_data(&ch->stream) + sizeof(*hdr);
    size_t len = hdr->msg_size - sizeof(*hdr);
    int fds[STREAM_MAX_FDS];
    size_t nr_fds;
    struct txn *txn;
    bool late = false, lost;
    int err;

    pthread_mutex_lock(&s->lock);
    txn = txn_find(&s->txns, hdr->msg_id);
    if (txn == NULL) {
        late = txn_forget_abandoned(&s->txns, hdr->msg_id);
    } else if (txn->state != TXN_PENDING) {
        txn = NULL;
    } else {
        txn->state = TXN_RECEIVING;
    }
    pthread_mutex_unlock(&s->lock);

    if (txn == NULL) {
        stray_reply(s, hdr, late);
    } else {
        err = reply_error(hdr);
        if (hdr->cmd != txn->cmd) {
            log_err(s->log, "reply id %u is for %s, the command was %s", hdr->msg_id,
                    command_name(hdr->cmd), command_name(txn->cmd));
            err = -EPROTO;
        }
        if (err == 0) {
            err = copy_reply(s, txn, hdr, payload, len);
        }
        pthread_mutex_lock(&s->lock);
        if (txn->sending) {
            txn->error = err;
            txn->state = TXN_ANSWERED;
        } else {
            txn_end(s, txn, err);
        }
        pthread_mutex_unlock(&s->lock);
    }
    stream_consume(&ch->stream, hdr->msg_size, fds, &nr_fds, &lost);
    while (nr_fds > 0) {
        peer_file_close(fds[--nr_fds]);
    }
}

/* Whether no more commands may be taken off this channel. Lock not held. */
static bool parking_full(struct session *s, const struct channel *ch)
{
    bool full;

    if (!ch->commands) {
        return false;
    }
    pthread_mutex_lock(&s->lock);
    full = s->parked_bytes >= MAX_PARKED_BYTES || s->parked_fds >= MAX_PARKED_FDS;
    pthread_mutex_unlock(&s->lock);
    return full;
}

/* Returns 0, or -ENOMEM: a reply cannot be sent from here, where somebody may be sending. */
static int park(struct session *s, struct channel *ch, const struct vfio_user_header *hdr)
{
    int fds[STREAM_MAX_FDS];
    struct request onstack, *req;

    channel_take(s, ch, hdr, &onstack, fds);
    req = request_detach(&onstack);
    if (req == NULL) {
        request_drop(&onstack);
        return -ENOMEM;
    }
    pthread_mutex_lock(&s->lock);
    STAILQ_INSERT_TAIL(&s->parked, req, link);
    session_count_parked(s, req, 1);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

/* Routes every complete message that is buffered. Role held, lock not. */
static int route_buffered(struct session *s, struct channel *ch)
{
    struct vfio_user_header hdr;
    int routed = 0, r;

    while (!parking_full(s, ch) && (r = channel_next(s, ch, &hdr)) != 0) {
        if (r < 0) {
            return r;
        }
        if (wire_is_reply(&hdr)) {
            channel_route_reply(s, ch, &hdr);
        } else if ((r = park(s, ch, &hdr)) < 0) {
            return r;
        }
        routed = 1;
    }
    return routed;
}

/*
 * How many bytes may be taken off a socket that an event loop polls for commands: those of one
 * reply, none of a command. Role held.
 */
static ssize_t careful_limit(struct channel *ch)
{
    struct vfio_user_header hdr;
    size_t held = stream_buffered(&ch->stream);

    if (held == 0) {
        ssize_t n = stream_peek(&ch->stream, &hdr, sizeof(hdr));

        if (n < 0) {
            return n == -EAGAIN ? 0 : n;
        }
        if ((size_t)n < sizeof(hdr)) {
            return 0;
        }
    } else if (held < sizeof(hdr)) {
        return 0;
    } else {
        memcpy(&hdr, stream_data(&ch->stream), sizeof(hdr));
    }
    return wire_is_reply(&hdr) && wire_size_ok(&hdr) ? (ssize_t)(hdr.msg_size - held) : 0;
}

int channel_pump(struct session *s, struct channel *ch)
{
    /* Commands that park are served before the control thread leaves, or when the hold ends. */
    bool serving = s->running || s->held || session_on_control(s);
    bool greedy = !ch->commands || !ch->stream.is_socket || serving;
    ssize_t n;
    int r;

    ch->reading = true;
    r = stream_make_room(&ch->stream, WIRE_MAX_MESSAGE);
    pthread_mutex_unlock(&s->lock);

    if (r == 0) {
        r = route_buffered(s, ch);
    }
    if (r == 0 && !parking_full(s, ch)) {
        n = greedy ? (ssize_t)WIRE_MAX_MESSAGE : careful_limit(ch);
        if (n > 0) {
            n = stream_receive(&ch->stream, (size_t)n, false);
        }
        if (n > 0) {
            r = route_buffered(s, ch);
            r = r == 0 ? 1 : r;
        } else if (n != -EAGAIN && n != -EINTR) {
            r = (int)n;
        }
    }

    pthread_mutex_lock(&s->lock);
    channel_release(s, ch);
    if (r < 0) {
        pthread_mutex_unlock(&s->lock);
        session_break(s, r);
        pthread_mutex_lock(&s->lock);
    }
    return r;
}
