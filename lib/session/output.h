/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What leaves by a channel. No thread waits for a client that does not read: what the socket does
 * not take within a moment is queued, and a thread of the channel's own, which exists only then,
 * sends it as the socket takes it. The program's event loop needs to know nothing of it, be it one
 * that polls for input only, as those of libvfio-user 0.x do.
 *
 * A client that takes nothing for too long, or for which too much would be queued, is given up: the
 * session's output_limits.
 */
#ifndef VFU_SESSION_OUTPUT_H
#define VFU_SESSION_OUTPUT_H

#include "wire/commands.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>

struct channel;
struct output_message;
struct session;

/* The owner of the session sets them before it opens it. */
struct output_limits {
    size_t bytes; /* that may be queued on a channel */
    uint64_t time_ms; /* without a byte that the socket takes */
};

#define OUTPUT_TIME_MS 10000

struct output {
    STAILQ_HEAD(, output_message) queue;
    _Atomic size_t bytes; /* queued; read without a lock */
    pthread_t writer;
    bool has_writer; /* to be joined; it ends when the queue is empty */
    bool writing; /* and has not ended yet */
};

void output_init(struct output *out);

/*
 * Sends a message or queues what is left of it; iov is changed. Returns 0 or a negative errno:
 * -ENOBUFS beyond the limit, -ECONNRESET and others of stream_send(). Caller holds ch->tx_lock.
 */
int output_send(struct session *s, struct channel *ch, struct iovec *iov, size_t nr_iov,
                const int *fds, size_t nr_fds);

/* Whether so much is queued that commands, whose replies would be queued too, have to wait. */
static inline bool output_is_full(const struct output *out)
{
    return out->bytes >= WIRE_MAX_MESSAGE;
}

/* Waits a moment for the socket. */
void output_pause(struct channel *ch);

/* Ends the writer and drops what is queued. The socket was shut down. Caller holds no lock. */
void output_stop(struct channel *ch);

#endif /* VFU_SESSION_OUTPUT_H */
