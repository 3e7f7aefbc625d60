/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_SESSION_CHANNEL_H
#define VFU_SESSION_CHANNEL_H

#include "session/session.h"

int channel_init(struct channel *ch, struct session *s, bool commands);
void channel_destroy(struct channel *ch);
void channel_open(struct session *s, struct channel *ch, struct stream *stream);

/*
 * Sends one message, if the channel is still that of epoch; what the socket does not take is queued,
 * so the call does not wait for the client. Any thread, no lock held. Breaks the session when it
 * cannot.
 */
int channel_send(struct session *s, struct channel *ch, uint64_t epoch, const struct iovec *iov,
                 size_t nr_iov, const int *fds, size_t nr_fds);

/*
 * Takes the reader's role, waiting for it. Lock held; may be dropped meanwhile. The role goes
 * back by channel_release().
 */
void channel_acquire(struct session *s, struct channel *ch);
void channel_release(struct session *s, struct channel *ch);

/* Ends the sleep of whoever polls the channel. Lock held. */
void channel_wake(struct session *s, struct channel *ch);

/*
 * Receives until the message at the head of the stream is whole or nothing more is there, without
 * waiting unless wait is set. The stream must have room. Role held, lock not held. Returns the
 * number of bytes, or what stream_receive() returned.
 */
ssize_t channel_receive(struct channel *ch, bool wait);

/*
 * Is there a whole message at the head of the stream? Role held, lock not held. Returns 1, 0, or
 * -EPROTO if the size in its header is impossible: the client has been told.
 */
int channel_next(struct session *s, struct channel *ch, struct vfio_user_header *hdr);

/* Whether no more commands may park. Lock held. */
bool channel_parking_full(const struct session *s);

/* Is a whole message received and not yet taken? Lock held, and nobody has the role. */
bool channel_holds_message(const struct channel *ch);

/* Moves the message at the head into req, which points into the stream's buffer. Role held. */
void channel_take(struct session *s, struct channel *ch, const struct vfio_user_header *hdr,
                  struct request *req, int fds[STREAM_MAX_FDS]);

/* Hands a reply at the head of the stream to its transaction. Role held, lock not held. */
void channel_route_reply(struct session *s, struct channel *ch,
                         const struct vfio_user_header *hdr);

/*
 * For a thread that waits for something other than a command: one receive call without waiting,
 * replies are routed, commands park. Lock held, nobody has the role. Returns 1 when something
 * was read, 0 when nothing can be now, or a negative errno that broke the session.
 */
int channel_pump(struct session *s, struct channel *ch);

#endif /* VFU_SESSION_CHANNEL_H */
