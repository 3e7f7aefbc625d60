/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_SESSION_SESSION_H
#define VFU_SESSION_SESSION_H

#include "session/output.h"
#include "session/request.h"
#include "session/txn.h"
#include "session/wait.h"
#include "transport/stream.h"
#include "util/log.h"
#include "wire/commands.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * One client's connection: commands in, transactions out, on one socket or on two.
 *
 * Threads. The control thread calls session_run(); any thread may start, wait for and cancel
 * transactions and finish requests. Three locks, in the order in which they may be nested:
 *
 *   channel.tx_lock   one message at a time leaves; held across the send system call, which does
 *                     not wait for the client; and what is queued for it (output.h)
 *   session.lock      transactions, parked requests, who reads; never held across a system call
 *                     that may wait, never while a callback runs
 *
 * Reading a channel is a role (channel.reading), not a lock: whoever holds it owns the receive
 * side of the stream. A thread that waits for its reply takes the role when nobody has it, so no
 * thread depends on another to read. What it finds that is not its own it routes: replies to
 * their transactions, commands to the parked queue, which the control thread serves before it
 * leaves session_run(). When the control thread is not inside session_run(), an event loop is
 * polling the socket for it, so a command must stay in the socket: the reader then only peeks.
 *
 * Callbacks run on the control thread: a command that arrives while one is on the stack is
 * parked. When the control thread itself waits for a reply outside session_run(), what it had to
 * park is served before the wait returns. Completions of asynchronous transactions run on the
 * thread that reads them when the control thread is outside, with no lock held.
 */

struct channel {
    struct session *session;
    struct stream stream;
    pthread_mutex_t tx_lock;
    struct output output;
    bool open;
    uint64_t epoch; /* which connection it is; a reply goes to its own or nowhere */
    bool reading; /* somebody owns the receive side */
    bool polling; /* somebody sleeps in poll() for it; wake_fd ends that */
    bool commands; /* commands arrive here, not only replies */
    bool refused; /* the message at the head is a reply that was answered with an error */
    int wake_fd;
};

struct session_ops {
    /*
     * Serves a request that passed the checks of the wire. Control thread. Returns 0 to have the
     * reply sent, a negative errno for an error reply, or REQUEST_DEFERRED when it has called
     * request_detach() and will finish the detached request later.
     */
    int (*dispatch)(void *owner, struct request *req);

    /*
     * The control thread waits for a reply while commands are parked behind it: the owner ends what
     * the client cannot answer before these are served; see session_next_parked(). Control thread.
     */
    void (*blocked)(void *owner);
};

struct session {
    const struct session_ops *ops;
    void *owner;
    const struct logger *log;
    struct wire_features features;
    struct output_limits output_limits;
    uint32_t max_transfer; /* of data in one message, as the client takes it */

    struct channel main;
    struct channel twin; /* the server's commands, when the client took a twin socket */

    pthread_mutex_t lock;
    pthread_cond_t cond;
    unsigned waiters; /* threads in a wait on cond */
    unsigned users; /* threads inside the session other than the control thread */
    bool running; /* the control thread is inside session_run() */
    pthread_t control; /* who called it last */
    bool sleeping; /* the control thread waits in poll(); control_wake ends that */
    int control_wake;
    int timer_fd; /* of the program's event loop, which then knows about output too, or -1 */
    uint64_t alarm; /* what it is set to, or DEADLINE_NEVER */
    bool held; /* the device quiesces: commands park, replies go on */
    int broken; /* negative errno once the connection is unusable */

    struct request_queue parked;
    uint64_t parkings; /* counts every command that was parked */
    size_t parked_bytes;
    unsigned parked_fds;

    struct txn_table txns;

    struct wait_list waits;
    uint64_t next_report; /* no wait has a line to print before */
};

int session_init(struct session *s, const struct session_ops *ops, void *owner,
                 const struct logger *log);
void session_destroy(struct session *s);

/* Takes the stream of a new client over, after its negotiation; twin may be NULL. */
void session_open(struct session *s, struct stream *stream, struct stream *twin,
                  const struct wire_features *features, uint32_t max_transfer);

/*
 * Ends the connection: transactions fail with -ENOTCONN, parked requests are dropped, other
 * threads are waited for, descriptors close. Control thread.
 */
void session_close(struct session *s);

static inline bool session_is_open(const struct session *s)
{
    return s->main.open;
}

enum session_run_mode {
    RUN_BUFFERED, /* what was received already */
    RUN_ONCE, /* and what one more receive call brings */
    RUN_WAIT, /* until an error */
};

/*
 * Serves commands. Returns the number of those that reached dispatch, or a negative errno: -EBUSY
 * while held, -ENOTCONN when the client is gone, -EINTR. Control thread.
 */
int session_run(struct session *s, enum session_run_mode mode);

/* From now on commands wait, but for those of CMD_ANYTIME; replies go on. Control thread. */
void session_hold(struct session *s);

/* Ends that. first, unless NULL, is a detached request to dispatch again before all others. */
void session_release(struct session *s, struct request *first);

/*
 * Waits until finished(arg), reading and running completions meanwhile. Whoever makes that true
 * calls session_wake(). finished() is called with the session's lock held. wait says who waits for
 * what. Any thread.
 */
void session_wait(struct session *s, bool (*finished)(void *arg), void *arg, struct wait *wait);
void session_wake(struct session *s);

/*
 * The parked request behind req, or the first for NULL; NULL at the end. It has its checked flag
 * set unless the wire's rules forbid it. Control thread.
 */
struct request *session_next_parked(struct session *s, struct request *req);

/* Is the caller the control thread? Any thread. */
bool session_is_control(struct session *s);

/*
 * The first deadline of an asynchronous transaction, or the time at which the log has something to
 * say; what it has to say by now is said here. DEADLINE_NEVER: none. Control thread.
 */
uint64_t session_next_deadline(struct session *s);

/*
 * The timer of the program's event loop, or -1: a timerfd that a deadline makes readable. Each
 * thread that brings a deadline forward sets it; the control thread sets it anew with its own
 * deadline when it leaves.
 */
void session_set_timer(struct session *s, int fd);
void session_set_alarm(struct session *s, uint64_t deadline);

/* While held: whether what the client sends can still be received. */
bool session_takes_input(struct session *s);

/* Any thread. */
uint32_t session_max_transfer(struct session *s);
uint64_t session_late_replies(struct session *s);

/* Any thread: 0, or the negative errno that ended the connection. */
int session_error(struct session *s);

/* For the other files of this room. */

/* When session_run() has something to do though nothing arrives. Lock held. */
uint64_t session_deadline(const struct session *s);
/* Marks the connection unusable. Any thread, lock not held. */
void session_break(struct session *s, int err);
/* Accounts for a request that parks (n is 1) or no longer does (-1). Lock held. */
void session_count_parked(struct session *s, const struct request *req, int n);
/* Sets the timer, if there is one. Lock held. */
void session_arm(struct session *s, uint64_t deadline);
/* Ends the control thread's sleep. Lock held. */
void session_wake_control(struct session *s);
/* Is this the control thread? Lock held. */
static inline bool session_on_control(const struct session *s)
{
    return pthread_equal(s->control, pthread_self());
}

#endif /* VFU_SESSION_SESSION_H */
