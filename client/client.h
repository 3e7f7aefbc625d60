/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the files of the client share.
 *
 * Locking. client.lock guards the commands in flight and the state of the connection, send_lock
 * keeps messages whole on their way out, memory_lock guards the table of memory. None is held
 * across a wait for the server, and send_lock alone across a send.
 */
#ifndef VFUC_CLIENT_H
#define VFUC_CLIENT_H

#include "vfio-user-client.h"
#include "vfio-user.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>

#define CLIENT_MAX_DATA (1024u * 1024u)
#define CLIENT_MAX_MESSAGE (CLIENT_MAX_DATA + 64)
#define CLIENT_MAX_FDS 64
#define CLIENT_BUCKETS 256

/* A command whose reply is awaited. */
struct call {
    uint16_t id;
    uint16_t cmd;
    bool finished;
    int error; /* an errno */
    const struct iovec *in; /* where the reply goes */
    size_t nr_in;
    size_t reply_len;
    int fd; /* the first descriptor of the reply, if wanted */
    bool wants_fd;
    vfuc_done_t *done; /* NULL: somebody waits, and owns this */
    void *pvt;
    LIST_ENTRY(call) link;
};

LIST_HEAD(call_list, call);

#define CLIENT_MAX_MEMORY 4096

struct vfuc {
    int fd;
    vfuc_options_t options;
    vfuc_agreed_t agreed;
    pthread_t receiver;
    bool receiving; /* the receiver was started */

    pthread_mutex_t send_lock;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    struct call_list calls[CLIENT_BUCKETS];
    uint16_t last_id;
    bool broken;

    pthread_mutex_t memory_lock;
    vfuc_memory_t *memory;
    size_t nr_memory;
    _Atomic uint64_t dma_messages;

    uint8_t *buf; /* the receiver's, for one message */
};

/*
 * A part of the machine that answers commands of the server instead of the client. On the receiver
 * thread. Returns false for one that is not its business.
 */
struct vfuc_unit {
    bool (*command)(struct vfuc_unit *unit, struct vfuc *client, const struct vfio_user_header *hdr,
                    uint8_t *payload, size_t len);
};

void client_log(struct vfuc *client, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Marks the connection unusable, and ends every command. */
void client_break(struct vfuc *client);

/* Sends a message whole: 0 or -errno. */
int client_send(struct vfuc *client, const struct vfio_user_header *hdr, const struct iovec *iov,
                size_t nr_iov, const int *fds, size_t nr_fds);

/* A command with parts, descriptors and a reply: the payload's length, or -errno. */
struct client_command {
    uint16_t cmd;
    uint32_t flags;
    const struct iovec *out;
    size_t nr_out;
    const int *fds;
    size_t nr_fds;
    const struct iovec *in; /* where the reply goes; what does not fit is dropped */
    size_t nr_in;
    int *reply_fd; /* NULL: none is expected */
};

ssize_t client_call(struct vfuc *client, const struct client_command *command);

/* -1 and errno, or the value. */
ssize_t client_result(ssize_t r);

/* feature.c: size bytes go out, up to room come in. The length of the feature's data, or -errno. */
ssize_t client_feature_get(struct vfuc *client, uint32_t number, void *data, size_t size,
                           size_t room);
int client_feature_set(struct vfuc *client, uint32_t number, const void *data, size_t size);

/* The receiver thread. */
void *client_receive(void *arg);

/* A DMA_READ or DMA_WRITE in the plain address space. */
void client_serve_dma(struct vfuc *client, const struct vfio_user_header *hdr, uint8_t *payload,
                      size_t len);

/* negotiate.c: over a socket that nobody else uses yet. 0 or -errno. */
int client_negotiate(struct vfuc *client);

/* Receives exactly len bytes, closing descriptors that do not fit. 0 or -errno. */
int client_receive_exact(struct vfuc *client, void *data, size_t len, int *fds, size_t *nr_fds);

#endif /* VFUC_CLIENT_H */
