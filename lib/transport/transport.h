/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_TRANSPORT_TRANSPORT_H
#define VFU_TRANSPORT_TRANSPORT_H

#include "transport/stream.h"

#include <stdbool.h>

struct logger;
struct transport;

/* How a context waits for clients. All return 0 or a negative errno unless they say otherwise. */
struct transport_ops {
    /* Listens at path; an empty one has no client ever come. */
    int (*listen)(struct transport *t, const char *path, bool nonblocking,
                  const struct logger *log);
    /* The descriptor that becomes readable when a client connects, or -1. */
    int (*poll_fd)(const struct transport *t);
    /* Accepts one client and opens its stream. -EAGAIN when nobody is there, -EINVAL when no client
     * can come. */
    int (*accept)(struct transport *t, struct stream *s, size_t max_message);
    /* Accepts a client and closes the connection at once: for want of a descriptor to serve it. */
    void (*turn_away)(struct transport *t);
    /* Stops listening and removes what listen() made. */
    void (*close)(struct transport *t);
};

struct transport {
    const struct transport_ops *ops;
    int listen_fd; /* -1: none */
    int spare_fd; /* a duplicate, whose place turn_away() takes; -1: none */
    char *path;
    dev_t device; /* with inode: the socket file that listen() made */
    ino_t inode;
};

extern const struct transport_ops transport_sock;
extern const struct transport_ops transport_pipe;

#endif /* VFU_TRANSPORT_TRANSPORT_H */
