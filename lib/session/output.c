/* SPDX-License-Identifier: BSD-3-Clause */
#include "session/output.h"

#include "session/session.h"
#include "util/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * A client that reads takes a large message in pieces with little time between: to wait for it
 * costs less than a copy. One that does not read delays the thread by this much, once, until it has
 * read all that is queued.
 */
#define GRACE_MS 1

struct output_message {
    STAILQ_ENTRY(output_message) link;
    size_t len, sent;
    uint8_t *data; /* behind fds */
    size_t nr_fds; /* duplicates, which leave with the first byte */
    int fds[];
};

void output_init(struct output *out)
{
    memset(out, 0, sizeof(*out));
    STAILQ_INIT(&out->queue);
}

static void free_message(struct output_message *message)
{
    for (size_t i = 0; i < message->nr_fds; i++) {
        close(message->fds[i]);
    }
    free(message);
}

static void drop_queue(struct output *out)
{
    struct output_message *message;

    while ((message = STAILQ_FIRST(&out->queue)) != NULL) {
        STAILQ_REMOVE_HEAD(&out->queue, link);
        free_message(message);
    }
    out->bytes = 0;
}

/* Returns 0 when the socket takes more, -EAGAIN when the deadline passes, -errno. */
static int wait_writable(int fd, uint64_t deadline)
{
    struct pollfd pfd = { .fd = fd, .events = POLLOUT };
    int n;

    do {
        n = poll(&pfd, 1, deadline_poll_ms(deadline));
    } while (n < 0 && errno == EINTR);
    return n > 0 ? 0 : n == 0 ? -EAGAIN : -errno;
}

/* Returns how many of the parts were sent whole; the next one is cut. */
static size_t skip_sent(struct iovec *iov, size_t nr_iov, size_t sent)
{
    size_t skip = 0;

    while (skip < nr_iov && sent >= iov[skip].iov_len) {
        sent -= iov[skip++].iov_len;
    }
    if (skip < nr_iov) {
        iov[skip].iov_base = (char *)iov[skip].iov_base + sent;
        iov[skip].iov_len -= sent;
    }
    return skip;
}

struct parts {
    struct iovec *iov;
    size_t nr_iov;
    const int *fds;
    size_t nr_fds;
};

/* Returns 0 when all has left, -EAGAIN when the socket takes no more for a moment, -errno. */
static int send_now(struct stream *stream, struct parts *parts)
{
    /* A pipe has no writer: only tests have pipes, with nobody beside them to be held up. */
    const unsigned grace_ms = stream->is_socket ? GRACE_MS : OUTPUT_TIME_MS;
    uint64_t deadline = DEADLINE_NEVER;

    while (parts->nr_iov > 0) {
        ssize_t n = stream_send(stream, parts->iov, parts->nr_iov, parts->fds, parts->nr_fds);
        size_t skip;

        if (n == -EAGAIN) {
            deadline = deadline == DEADLINE_NEVER ? deadline_after_ms(grace_ms) : deadline;
            n = wait_writable(stream->tx_fd, deadline);
        } else if (n > 0) {
            skip = skip_sent(parts->iov, parts->nr_iov, (size_t)n);
            parts->iov += skip;
            parts->nr_iov -= skip;
            parts->nr_fds = 0;
        }
        if (n < 0 && n != -EINTR) {
            return (int)n;
        }
    }
    return 0;
}

static struct output_message *copy_message(const struct parts *parts, size_t len)
{
    struct output_message *message =
        malloc(sizeof(*message) + parts->nr_fds * sizeof(int) + len);
    uint8_t *to;

    if (message == NULL) {
        return NULL;
    }
    *message = (struct output_message){ .len = len };
    for (size_t i = 0; i < parts->nr_fds; i++) {
        message->fds[i] = fcntl(parts->fds[i], F_DUPFD_CLOEXEC, 0);
        if (message->fds[i] == -1) {
            free_message(message);
            return NULL;
        }
        message->nr_fds++;
    }
    to = message->data = (uint8_t *)(message->fds + parts->nr_fds);
    for (size_t i = 0; i < parts->nr_iov; i++) {
        if (parts->iov[i].iov_len > 0) {
            memcpy(to, parts->iov[i].iov_base, parts->iov[i].iov_len);
            to += parts->iov[i].iov_len;
        }
    }
    return message;
}

/* Sends what the socket takes of the queue: 0, or -errno. Caller holds ch->tx_lock. */
static int flush(struct channel *ch)
{
    struct output *out = &ch->output;
    struct output_message *message;

    while ((message = STAILQ_FIRST(&out->queue)) != NULL) {
        struct iovec iov = { message->data + message->sent, message->len - message->sent };
        ssize_t n = stream_send(&ch->stream, &iov, 1, message->fds,
                                message->sent == 0 ? message->nr_fds : 0);

        if (n < 0) {
            return n == -EAGAIN || n == -EINTR ? 0 : (int)n;
        }
        message->sent += (size_t)n;
        out->bytes -= (size_t)n;
        if (message->sent == message->len) {
            STAILQ_REMOVE_HEAD(&out->queue, link);
            free_message(message);
        }
    }
    return 0;
}

/* The writer: sends the queue as the socket takes it, and ends when the queue is empty. */
static void *write_queue(void *arg)
{
    struct channel *ch = arg;
    struct output *out = &ch->output;
    const uint64_t time_ms = ch->session->output_limits.time_ms;
    int err = 0;

    pthread_mutex_lock(&ch->tx_lock);
    while (err == 0 && !STAILQ_EMPTY(&out->queue)) {
        pthread_mutex_unlock(&ch->tx_lock);
        err = wait_writable(ch->stream.tx_fd, deadline_after_ms(time_ms));
        pthread_mutex_lock(&ch->tx_lock);
        err = err == 0 ? flush(ch) : err == -EAGAIN ? -ETIMEDOUT : err;
    }
    drop_queue(out);
    out->writing = false;
    pthread_mutex_unlock(&ch->tx_lock);
    if (err == -ETIMEDOUT) {
        log_err(ch->session->log, "client has not read its socket for %llu ms: beyond the limit "
                "output-time: connection closed", (unsigned long long)time_ms);
    }
    if (err < 0) {
        session_break(ch->session, err);
    }
    return NULL;
}

/* The program's signals are none of the writer's business. */
static int start_writer(struct channel *ch)
{
    struct output *out = &ch->output;
    sigset_t all, old;
    int err;

    if (out->has_writer) {
        pthread_join(out->writer, NULL);
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&out->writer, NULL, write_queue, ch);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    out->has_writer = out->writing = err == 0;
    return -err;
}

static int enqueue(struct session *s, struct channel *ch, const struct parts *parts)
{
    struct output *out = &ch->output;
    const size_t max = s->output_limits.bytes;
    struct output_message *message;
    size_t len = 0;
    int err;

    for (size_t i = 0; i < parts->nr_iov; i++) {
        len += parts->iov[i].iov_len;
    }
    if (len > max || out->bytes > max - len) {
        log_err(s->log, "client does not read its socket: %zu bytes queued and %zu more would be "
                "beyond the limit queued-output of %zu: connection closed", (size_t)out->bytes,
                len, max);
        return -ENOBUFS;
    }
    message = copy_message(parts, len);
    if (message == NULL) {
        return -ENOMEM;
    }
    STAILQ_INSERT_TAIL(&out->queue, message, link);
    out->bytes += len;
    err = out->writing ? 0 : start_writer(ch);
    if (err < 0) {
        drop_queue(out);
    }
    return err;
}

int output_send(struct session *s, struct channel *ch, struct iovec *iov, size_t nr_iov,
                const int *fds, size_t nr_fds)
{
    struct parts parts = { iov, nr_iov, fds, nr_fds };
    int err = -EAGAIN;

    if (!ch->output.writing) {
        err = send_now(&ch->stream, &parts);
    }
    if (err == -EAGAIN && ch->stream.is_socket) {
        err = enqueue(s, ch, &parts);
    }
    return err == -EAGAIN ? -ETIMEDOUT : err;
}

void output_pause(struct channel *ch)
{
    wait_writable(ch->stream.tx_fd, deadline_after_ms(GRACE_MS));
}

void output_stop(struct channel *ch)
{
    struct output *out = &ch->output;
    bool has_writer;

    pthread_mutex_lock(&ch->tx_lock);
    has_writer = out->has_writer;
    out->has_writer = false;
    pthread_mutex_unlock(&ch->tx_lock);
    if (has_writer) {
        pthread_join(out->writer, NULL);
    }
}
