/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_SESSION_TXN_H
#define VFU_SESSION_TXN_H

#include "vfio-user.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>

struct session;

enum txn_state {
    TXN_IDLE,
    TXN_PENDING, /* in the table, its request sent or being sent */
    TXN_RECEIVING, /* its reply is being copied */
    TXN_ANSWERED, /* its reply came before the request had left whole */
    TXN_DONE,
};

/*
 * A command of the server and its reply. It lives in the caller's memory until it is done, so
 * that nothing is allocated per command.
 */
struct txn {
    /* The caller's. */
    uint16_t cmd;
    uint32_t flags; /* VFIO_USER_F_PASID, VFIO_USER_F_TRANSLATED */
    const struct iovec *out; /* the request's payload: not needed once it was started */
    size_t nr_out;
    void *reply; /* where the first reply_cap bytes of the reply's payload go */
    size_t reply_cap;
    void *data; /* where the bytes behind them go */
    size_t data_cap;
    uint64_t deadline; /* DEADLINE_NEVER for none */
    void (*done)(struct txn *txn); /* NULL: somebody calls txn_wait() */

    /* The result. */
    int error; /* 0 or a negative errno */
    size_t reply_len; /* the payload's length; what was not sent is not written */

    /* The engine's. */
    uint16_t id;
    enum txn_state state;
    bool sending; /* its memory is in use by a send: whoever sends ends it */
    int end_early; /* asked for meanwhile: a negative errno */
    LIST_ENTRY(txn) bucket;
    TAILQ_ENTRY(txn) link;
};

#define TXN_BUCKETS 256
/* A reset may end every message that many threads have under way, and more than once. */
#define TXN_MAX_ABANDONED 4096
#define TXN_MAX_PENDING 32768

LIST_HEAD(txn_bucket, txn);
TAILQ_HEAD(txn_list, txn);

#define TXN_HURRY_MS 1000

struct txn_table {
    bool hurry; /* see txn_hurry() */
    struct txn_bucket buckets[TXN_BUCKETS];
    struct txn_list pending; /* oldest first */
    struct txn_list completed; /* asynchronous, their callback not yet run */
    unsigned nr_pending;
    unsigned nr_async; /* of them, those with a callback */
    uint64_t next_deadline; /* none of the pending expires before */
    uint16_t last_id;
    /* Ids given up whose reply may still come: not used again until then. */
    uint64_t abandoned[(UINT16_MAX + 1) / 64]; /* a bit for each */
    unsigned nr_abandoned;
    uint64_t late_replies;
};

void txn_table_init(struct txn_table *t);

/*
 * Sends the request. Any thread. On success the transaction is done exactly once: its callback
 * runs, or txn_wait() returns. Returns 0 or a negative errno, after which it was never started.
 */
int txn_start(struct session *s, struct txn *txn);

/* Waits for a transaction without a callback; serves nothing meanwhile. Returns txn->error. */
int txn_wait(struct session *s, struct txn *txn);

/*
 * Ends a pending transaction with err. True when this call ended it (its callback, if any, has
 * run on return); false when it was done or is about to be, on another thread. The caller sees
 * to it that the memory is there.
 */
bool txn_cancel(struct session *s, struct txn *txn, int err);

/*
 * While on, a DMA_READ or DMA_WRITE gets TXN_HURRY_MS for its reply at the most: those that are
 * pending from now on, those that start meanwhile from their start. For a request of the client
 * that waits until the device has quiesced: a client that waits for the reply itself, as QEMU does,
 * answers no DMA message before, and the device may wait for that. Any thread.
 */
void txn_hurry(struct session *s, bool on);

/* Sends a command that has no reply (VFIO_USER_F_NO_REPLY). Any thread. */
int txn_post(struct session *s, uint16_t cmd, uint32_t flags, const struct iovec *out,
             size_t nr_out);

/* For the other files of this room; the session's lock is held unless they say otherwise. */
struct txn *txn_find(struct txn_table *t, uint16_t id);
/* Whether a reply with this id may come. */
bool txn_expects(struct txn_table *t, uint16_t id);
bool txn_forget_abandoned(struct txn_table *t, uint16_t id);
/* For a new connection. */
void txn_forget_all_abandoned(struct txn_table *t);
void txn_end(struct session *s, struct txn *txn, int err);
void txn_end_all(struct session *s, int err);
void txn_expire(struct session *s);
/* Runs the callbacks of completed transactions. Lock not held. */
void txn_deliver(struct session *s);

#endif /* VFU_SESSION_TXN_H */
