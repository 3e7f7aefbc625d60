/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the files of the client share.
 *
 * Locking, in the order in which locks may be nested:
 *
 *   life_lock     one thread connects again or maps regions; held across waits
 *   setup_lock    what is to be remembered is done and recorded (read), or done again (write);
 *                 held across waits
 *   send_lock     keeps messages whole on their way out; held across a send
 *   lock          commands in flight, commands of the server, the state of the connection
 *   memory_lock   the table of memory; irq_lock the record of eventfds: nothing is taken inside
 *
 * No callback runs with a lock held, and only the first two are held across a wait for the server:
 * the receiver thread takes all the others.
 *
 * Each connection has a number of its own (epoch). What was begun on one is not sent on the next.
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

struct guard;

#define CLIENT_MAX_DATA (1024u * 1024u)
#define CLIENT_MAX_MESSAGE (CLIENT_MAX_DATA + 64)
#define CLIENT_MAX_FDS 64
#define CLIENT_BUCKETS 256
#define CLIENT_MAX_CALLS 32768
#define CLIENT_IRQ_TYPES 8

/* A command whose reply is awaited. */
struct call {
    uint16_t id;
    uint16_t cmd;
    bool finished;
    int error; /* an errno */
    const struct iovec *in; /* where the reply goes */
    size_t nr_in;
    size_t reply_len;
    int *fds; /* where its descriptors go */
    size_t max_fds, nr_fds;
    vfuc_done_t *done; /* NULL: somebody waits, and owns this */
    void *pvt;
    size_t skip; /* bytes of the reply that done() does not see */
    size_t expect; /* the length of the reply, if it has to have one */
    uint64_t deadline; /* of those that nobody waits for; ms */
    LIST_ENTRY(call) link;
    TAILQ_ENTRY(call) order; /* likewise: the first is due first */
};

LIST_HEAD(call_list, call);
TAILQ_HEAD(call_queue, call);

enum client_state {
    CLIENT_LOST, /* or never connected */
    CLIENT_RESTORING, /* connected: what was set up before is being set up again */
    CLIENT_CONNECTED,
};

/* The eventfds of one type of interrupt, as they were set. */
struct irq_record {
    int *fds; /* -1: none */
    bool *masked;
    uint32_t count;
};

LIST_HEAD(mapping_list, vfuc_mapping);

struct vfuc {
    char *path;
    vfuc_options_t options;
    vfuc_agreed_t agreed; /* lock */
    _Atomic uint32_t max_data; /* of it, for every transfer */
    _Atomic bool write_multiple;
    pthread_t receiver;
    bool receiving; /* the receiver was started and not joined; life_lock */
    _Atomic pthread_t receiver_self; /* 0 while there is none */

    pthread_mutex_t life_lock;
    struct mapping_list mappings; /* life_lock */
    pthread_rwlock_t setup_lock;

    pthread_mutex_t send_lock;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    int fd; /* changes with both locks held */
    uint64_t epoch;
    enum client_state state;
    bool ending; /* by our own will: nobody is told that it was lost */
    pthread_t restorer; /* while restoring: the thread that may send commands */
    struct call_list calls[CLIENT_BUCKETS];
    struct call_queue unattended; /* that nobody waits for */
    unsigned nr_calls;
    uint16_t last_id;
    uint64_t asked[65536 / 64]; /* ids of the server's commands that are not answered yet */

    pthread_mutex_t memory_lock;
    void *memory; /* memory.c */
    _Atomic uint64_t dma_messages;

    pthread_mutex_t irq_lock;
    struct irq_record irqs[CLIENT_IRQ_TYPES];

    uint8_t *buf; /* the receiver's, for one message */
};

/*
 * A part of the machine that answers commands of the server instead of the client, by
 * vfuc_reply(). On the receiver thread. Returns false for one that is not its business.
 */
struct vfuc_unit {
    bool (*command)(struct vfuc_unit *unit, struct vfuc *client, const struct vfio_user_header *hdr,
                    uint8_t *payload, size_t len);
};

void client_log(struct vfuc *client, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

uint64_t client_now_ms(void);

/* Is this the receiver thread, which must not wait? */
bool client_on_receiver(struct vfuc *client);

/* Around what a connection that is made again has to know: 0 or -EDEADLK. */
int client_begin_setup(struct vfuc *client);
/* r, as the public functions return it. */
int client_end_setup(struct vfuc *client, int r);

/*
 * Ends a connection, and every command that somebody waits for: with ETIMEDOUT if that is why, or
 * with ENOTCONN. err: a negative errno.
 */
void client_break(struct vfuc *client, uint64_t epoch, int err);

/* The same as vfuc_reconnect() does it, before it connects: what runs on it has ended then. */
void client_hang_up(struct vfuc *client);

/* The connection that this thread may send a command on: 0 or -ENOTCONN. */
int client_epoch(struct vfuc *client, uint64_t *epoch);

/* Sends a message whole, or ends the connection, or has sent nothing of it: 0 or -errno. */
int client_send(struct vfuc *client, uint64_t epoch, const struct vfio_user_header *hdr,
                const struct iovec *iov, size_t nr_iov, const int *fds, size_t nr_fds);

/* Sends a command that has no reply. */
int client_post(struct vfuc *client, uint16_t cmd, const struct iovec *iov, size_t nr_iov);

/* A command with parts, descriptors and a reply: the payload's length, or -errno. */
struct client_command {
    uint16_t cmd;
    uint32_t flags;
    const struct iovec *out;
    size_t nr_out;
    const int *fds;
    size_t nr_fds;
    const struct iovec *in; /* where the reply goes, not to out; what does not fit is dropped */
    size_t nr_in;
    int *reply_fds; /* room for max_reply_fds; the rest is closed */
    size_t max_reply_fds;
    size_t *nr_reply_fds;
};

ssize_t client_call(struct vfuc *client, const struct client_command *command);

/* One that nobody waits for. done gets what follows skip bytes; expect: how long it has to be. */
struct client_start {
    uint16_t cmd;
    uint32_t flags;
    const struct iovec *out;
    size_t nr_out;
    size_t skip, expect;
    vfuc_done_t *done;
    void *pvt;
};

int client_start(struct vfuc *client, const struct client_start *start);

/* -1 and errno, or the value. */
ssize_t client_result(ssize_t r);

/* feature.c: the length of what came in, or -errno. */
ssize_t client_feature_get(struct vfuc *client, uint32_t number, const void *data, size_t size,
                           void *answer, size_t room);
int client_feature_set(struct vfuc *client, uint32_t number, const void *data, size_t size);

/* The receiver thread. */
void *client_receive(void *arg);

/* A DMA_READ or DMA_WRITE in the plain address space. */
void client_serve_dma(struct vfuc *client, const struct vfio_user_header *hdr, uint8_t *payload,
                      size_t len);

/* Answers a command of the server, if it is to be answered: error is 0 or an errno. */
int client_answer(struct vfuc *client, const struct vfio_user_header *hdr, int error,
                  const struct iovec *iov, size_t nr_iov);

/* memory.c: the table of what was mapped. */

/* Space for it: 0, -EEXIST (something else lies there), 1 (the same is known), -ENOMEM. */
int client_remember(struct vfuc *client, const vfuc_memory_t *memory);
/* Forgets what lies wholly in the range; all of the space when whole is set. */
void client_forget(struct vfuc *client, const vfuc_memory_t *range, bool whole);
/* Copies between data and plain memory: 0, or -EFAULT when not all of it may be reached so. */
int client_copy(struct vfuc *client, uint64_t iova, uint64_t len, void *data, bool to_memory);
/* All of it; freed by the caller. -errno. */
ssize_t client_list_memory(struct vfuc *client, vfuc_memory_t **list);
void client_forget_all(struct vfuc *client);

/* What a connection that was made again needs. 0 or -errno. */
int client_send_map(struct vfuc *client, const vfuc_memory_t *memory);
int client_restore_irqs(struct vfuc *client);
void client_clear_irqs(struct vfuc *client);

/*
 * guarded.c: keeps us alive when the server truncates a file that is mapped here. fd: of the file,
 * which belongs to no file system of the server's. 0 or -errno.
 */
int client_guard(int fd, void *vaddr, uint64_t size, struct guard **guard);
/* Before the mapping is unmapped; NULL is allowed. */
void client_unguard(struct guard *guard);

/* mapping.c: life_lock held. */
int client_restore_mappings(struct vfuc *client);
void client_unmap_all(struct vfuc *client);

/* negotiate.c: over a socket that nobody else uses yet. 0 or -errno. */
int client_negotiate(struct vfuc *client, vfuc_agreed_t *agreed);

/* What is being received: its descriptors, and when it has to be complete. */
struct inbox {
    int fds[CLIENT_MAX_FDS];
    size_t nr_fds;
    uint64_t deadline; /* ms; 0: nothing has come yet */
};

/* Receives exactly len bytes. 0 or -errno: -EAGAIN when nothing has come for a while. */
int client_receive_exact(struct vfuc *client, struct inbox *inbox, void *data, size_t len);
void client_close_inbox(struct inbox *inbox);

#endif /* VFUC_CLIENT_H */
