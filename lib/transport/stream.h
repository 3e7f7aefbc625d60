/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_TRANSPORT_STREAM_H
#define VFU_TRANSPORT_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* The kernel's SCM_MAX_FD: what one sendmsg() can carry. */
#define STREAM_MAX_FDS 253

/*
 * A connected byte stream that may carry file descriptors. It buffers what it receives, so that
 * a small message costs one receive call. It knows no message.
 *
 * A descriptor is tagged with the position in the stream of the last byte that was received with
 * it: the kernel ends a receive behind the data that carries descriptors, so that byte lies in
 * the message that the sender attached them to. Where some were lost, fd is -1.
 *
 * Receiving: one thread at a time (the caller sees to it). Sending: one thread at a time.
 */
struct stream_fd {
    uint64_t pos;
    int fd;
};

struct stream {
    int rx_fd; /* -1 when closed */
    int tx_fd; /* the same one for a socket */
    bool is_socket;
    uint8_t *buf;
    size_t cap;
    size_t head; /* the first byte not consumed */
    size_t tail; /* behind the last byte received */
    uint64_t pos; /* the position in the stream of head */
    struct stream_fd fds[2 * STREAM_MAX_FDS];
    size_t nr_fds;
    uint8_t *pinned; /* an older buffer that somebody still reads; see stream_make_room() */
    bool pin;
};

/* Takes both descriptors over, on failure too. max_message bounds what is buffered at once. */
int stream_open(struct stream *s, int rx_fd, int tx_fd, bool is_socket, size_t max_message);
void stream_close(struct stream *s);

static inline const uint8_t *stream_data(const struct stream *s)
{
    return s->buf + s->head;
}

static inline size_t stream_buffered(const struct stream *s)
{
    return s->tail - s->head;
}

/*
 * Makes room for a message of want bytes from head on. While pinned, the bytes that were consumed
 * stay where they are: a fresh buffer takes over and the old one lives until stream_unpin().
 */
int stream_make_room(struct stream *s, size_t want);
void stream_pin(struct stream *s);
void stream_unpin(struct stream *s);

/*
 * One receive call for at most limit bytes into the room there is. Returns the number of bytes,
 * -EAGAIN (only without wait), -EINTR, -ENOMSG at the end of the stream, -ECONNRESET or another
 * negative errno.
 */
ssize_t stream_receive(struct stream *s, size_t limit, bool wait);

/* Looks at the next bytes of a socket without taking them or their descriptors. Never waits. */
ssize_t stream_peek(struct stream *s, void *buf, size_t len);

/*
 * Moves past n buffered bytes and hands out the descriptors that came with them, at most
 * STREAM_MAX_FDS; any more are closed. *lost tells that some of theirs could not be received.
 */
void stream_consume(struct stream *s, size_t n, int *fds, size_t *nr_fds, bool *lost);

/*
 * One send call. The descriptors go with the first byte. Never waits. Returns the number of bytes
 * sent, -EAGAIN when nothing could be, or another negative errno (-ECONNRESET when the peer is
 * gone).
 */
ssize_t stream_send(struct stream *s, const struct iovec *iov, size_t nr_iov, const int *fds,
                    size_t nr_fds);

#endif /* VFU_TRANSPORT_STREAM_H */
