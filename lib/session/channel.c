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

/* What may wait for the control thread before nothing more is read; memory counts, not messages. */
#define MAX_PARKED_BYTES (4u * WIRE_MAX_DATA_XFER)
#define MAX_PARKED_FDS (2 * STREAM_MAX_FDS)

#define MAX_IOV 8

/*
 * The kernel hands descriptors out with the first byte of the send that they came with. A receive
 * call may begin before that byte and does not tell where it is, so no call for commands goes
 * beyond the message at the head: what the call brings belongs to this message, whatever the
 * client has put together in one send. The first call takes as much as no message that carries
 * descriptors falls short of, and a read of a region has. Only behind a shorter message (a reset, a
 * device feature) in the same send may the next one get what was the shorter one's to drop.
 */
#define FIRST_RECEIVE (sizeof(struct vfio_user_header) + sizeof(struct vfio_user_region_access))

/* A message that comes in more pieces than this goes on in the next turn of the event loop. */
#define MAX_RECEIVES 4

int channel_init(struct channel *ch, struct session *s, bool commands)
{
    memset(ch, 0, sizeof(*ch));
    ch->session = s;
    output_init(&ch->output);
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
    ch->refused = false;
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
    err = output_send(s, ch, left, nr_iov, fds, nr_fds);
    pthread_mutex_unlock(&ch->tx_lock);
    if (err < 0) {
        log_info(s->log, "cannot send to the client: %s", strerror(-err));
        session_break(s, err);
    }
    return err;
}

/* Receiving */

/* The number of bytes to receive next: 0 if the message at the head is whole, or malformed. */
static size_t missing_bytes(const struct channel *ch)
{
    size_t held = stream_buffered(&ch->stream);
    struct vfio_user_header hdr = { 0 };

    if (held >= sizeof(hdr)) {
        memcpy(&hdr, stream_data(&ch->stream), sizeof(hdr));
        if (!wire_size_ok(&hdr) || held >= hdr.msg_size) {
            return 0;
        }
    }
    if (!ch->commands || !ch->stream.is_socket) {
        return WIRE_MAX_MESSAGE; /* no descriptors that anybody wants */
    }
    return held < sizeof(hdr) ? FIRST_RECEIVE - held : hdr.msg_size - held;
}

ssize_t channel_receive(struct channel *ch, bool wait)
{
    ssize_t got = 0;
    size_t want;

    for (int i = 0; i < MAX_RECEIVES && (want = missing_bytes(ch)) > 0; i++) {
        ssize_t n = stream_receive(&ch->stream, want, wait && got == 0);

        if (n < 0) {
            return got > 0 ? got : n;
        }
        got += n;
    }
    return got;
}

/* Answers a message that is none with EINVAL. */
static void refuse(struct session *s, struct channel *ch, const struct vfio_user_header *hdr)
{
    struct vfio_user_header reply = {
        .msg_id = hdr->msg_id,
        .cmd = hdr->cmd,
        .msg_size = sizeof(reply),
        .flags = VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR,
        .error_no = EINVAL,
    };
    struct iovec iov = { .iov_base = &reply, .iov_len = sizeof(reply) };

    if (!(hdr->flags & VFIO_USER_F_NO_REPLY)) {
        channel_send(s, ch, ch->epoch, &iov, 1, NULL, 0);
    }
}

/*
 * Whether a reply answers a command of ours, also one that was given up. One that does not is
 * made up by the client, or the second to the same command.
 */
static bool is_expected(struct session *s, const struct vfio_user_header *hdr)
{
    bool expected;

    pthread_mutex_lock(&s->lock);
    expected = txn_expects(&s->txns, hdr->msg_id);
    pthread_mutex_unlock(&s->lock);
    return expected;
}

static void refuse_reply(struct session *s, struct channel *ch, const struct vfio_user_header *hdr)
{
    if (!ch->refused) {
        log_err(s->log, "reply to %s id %u: no command waits for it: refused with EINVAL",
                command_name(hdr->cmd), hdr->msg_id);
        refuse(s, ch, hdr);
        ch->refused = true;
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
        log_err(s->log, "%s id %u: message size %u is not between %zu and %zu: refused with "
                "EINVAL, connection closed", command_name(hdr->cmd), hdr->msg_id, hdr->msg_size,
                sizeof(*hdr), (size_t)WIRE_MAX_MESSAGE);
        refuse(s, ch, hdr);
        return -EPROTO;
    }
    /* As soon as the header is there: what it announces may never come. */
    if (wire_is_reply(hdr) && !is_expected(s, hdr)) {
        refuse_reply(s, ch, hdr);
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

static int reply_error(struct session *s, const struct vfio_user_header *hdr)
{
    if (!(hdr->flags & VFIO_USER_F_ERROR)) {
        return 0;
    }
    if (hdr->error_no == 0 || hdr->error_no > WIRE_MAX_ERRNO) {
        log_err(s->log, "reply to %s id %u: an error whose number is %u: dropped",
                command_name(hdr->cmd), hdr->msg_id, hdr->error_no);
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

    if (late) {
        log_info(s->log, "late reply to %s id %u dropped", command_name(hdr->cmd), hdr->msg_id);
    } else if (txn == NULL) {
        refuse_reply(s, ch, hdr);
    } else {
        if (hdr->cmd == txn->cmd) {
            err = reply_error(s, hdr);
        } else {
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
    ch->refused = false;
    while (nr_fds > 0) {
        peer_file_close(fds[--nr_fds]);
    }
}

bool channel_parking_full(const struct session *s)
{
    return s->parked_bytes >= MAX_PARKED_BYTES || s->parked_fds >= MAX_PARKED_FDS;
}

/* Whether no more commands may be taken off this channel. Lock not held. */
static bool parking_full(struct session *s, const struct channel *ch)
{
    bool full;

    if (!ch->commands) {
        return false;
    }
    pthread_mutex_lock(&s->lock);
    full = channel_parking_full(s);
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
 * Receives from a socket that an event loop polls for commands: a part of one reply, and nothing of
 * a command. Role held. Returns the number of bytes, or what stream_receive() returned.
 */
static ssize_t receive_carefully(struct channel *ch)
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
    if (!wire_is_reply(&hdr) || !wire_size_ok(&hdr)) {
        return 0;
    }
    return stream_receive(&ch->stream, hdr.msg_size - held, false);
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
        n = greedy ? channel_receive(ch, false) : receive_carefully(ch);
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
