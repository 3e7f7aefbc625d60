/* SPDX-License-Identifier: BSD-3-Clause */
#include "session/channel.h"
#include "util/clock.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

/* How often a waiter looks again whose reply is behind a command that is not its to take. */
#define BLOCKED_RETRY_NS 1000000u

static struct txn_bucket *bucket_of(struct txn_table *t, uint16_t id)
{
    return &t->buckets[id % TXN_BUCKETS];
}

void txn_table_init(struct txn_table *t)
{
    memset(t, 0, sizeof(*t));
    for (size_t i = 0; i < TXN_BUCKETS; i++) {
        LIST_INIT(&t->buckets[i]);
    }
    TAILQ_INIT(&t->pending);
    TAILQ_INIT(&t->completed);
    t->next_deadline = DEADLINE_NEVER;
}

struct txn *txn_find(struct txn_table *t, uint16_t id)
{
    struct txn *txn;

    LIST_FOREACH (txn, bucket_of(t, id), bucket) {
        if (txn->id == id) {
            return txn;
        }
    }
    return NULL;
}

static bool is_abandoned(const struct txn_table *t, uint16_t id)
{
    return (t->abandoned[id / 64] >> id % 64 & 1) != 0;
}

bool txn_expects(struct txn_table *t, uint16_t id)
{
    return txn_find(t, id) != NULL || is_abandoned(t, id);
}

bool txn_forget_abandoned(struct txn_table *t, uint16_t id)
{
    if (!is_abandoned(t, id)) {
        return false;
    }
    t->abandoned[id / 64] &= ~(UINT64_C(1) << id % 64);
    t->nr_abandoned--;
    t->late_replies++;
    return true;
}

void txn_forget_all_abandoned(struct txn_table *t)
{
    memset(t->abandoned, 0, sizeof(t->abandoned));
    t->nr_abandoned = 0;
}

static uint16_t next_id(struct txn_table *t)
{
    do {
        t->last_id++;
    } while (txn_find(t, t->last_id) != NULL || is_abandoned(t, t->last_id));
    return t->last_id;
}

/* Whoever waits for a reply: asleep on the condition, or in poll(). */
static void wake_waiters(struct session *s)
{
    if (s->waiters > 0) {
        pthread_cond_broadcast(&s->cond);
    }
    channel_wake(s, &s->main);
    channel_wake(s, &s->twin);
}

void txn_end(struct session *s, struct txn *txn, int err)
{
    LIST_REMOVE(txn, bucket);
    TAILQ_REMOVE(&s->txns.pending, txn, link);
    s->txns.nr_pending--;
    txn->error = err;
    txn->state = TXN_DONE;
    if (txn->done != NULL) {
        TAILQ_INSERT_TAIL(&s->txns.completed, txn, link);
        if (--s->txns.nr_async == 0) {
            s->txns.next_deadline = DEADLINE_NEVER;
        }
        session_wake_control(s);
    }
    wake_waiters(s);
}

/* Ends one whose reply may still come. Too many of them, and the client is not one to talk to. */
static bool abandon(struct session *s, struct txn *txn, int err)
{
    struct txn_table *t = &s->txns;
    bool room = t->nr_abandoned < TXN_MAX_ABANDONED;

    if (room) {
        t->abandoned[txn->id / 64] |= UINT64_C(1) << txn->id % 64;
        t->nr_abandoned++;
    }
    txn_end(s, txn, err);
    return room;
}

void txn_end_all(struct session *s, int err)
{
    struct txn *txn, *next;

    for (txn = TAILQ_FIRST(&s->txns.pending); txn != NULL; txn = next) {
        next = TAILQ_NEXT(txn, link);
        /* Whoever sends it, or copies its reply, ends that one itself. */
        if (txn->state == TXN_PENDING && !txn->sending) {
            txn_end(s, txn, err);
        }
    }
}

void txn_expire(struct session *s)
{
    struct txn_table *t = &s->txns;
    struct txn *txn, *next;
    uint64_t now, earliest = DEADLINE_NEVER;

    if (t->next_deadline == DEADLINE_NEVER || (now = clock_now_ns()) < t->next_deadline) {
        return;
    }
    for (txn = TAILQ_FIRST(&t->pending); txn != NULL; txn = next) {
        next = TAILQ_NEXT(txn, link);
        /* One with a waiter is ended by it, at the same deadline. */
        if (txn->done == NULL || txn->state != TXN_PENDING || txn->sending) {
            continue;
        }
        if (txn->deadline <= now) {
            log_err(s->log, "%s id %u: no reply before its deadline", command_name(txn->cmd),
                    txn->id);
            if (!abandon(s, txn, -ETIMEDOUT)) {
                s->broken = s->broken != 0 ? s->broken : -ETIMEDOUT;
            }
        } else if (txn->deadline < earliest) {
            earliest = txn->deadline;
        }
    }
    t->next_deadline = earliest;
}

void txn_deliver(struct session *s)
{
    struct txn *txn;

    pthread_mutex_lock(&s->lock);
    while ((txn = TAILQ_FIRST(&s->txns.completed)) != NULL) {
        TAILQ_REMOVE(&s->txns.completed, txn, link);
        pthread_mutex_unlock(&s->lock);
        txn->done(txn);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
}

/* Lock held, or among the users: then none is opened or closed. */
static struct channel *txn_channel(struct session *s)
{
    return s->twin.open ? &s->twin : &s->main;
}

/* A user keeps session_close() from pulling the descriptors away. Lock held. */
static void leave(struct session *s)
{
    if (--s->users == 0 && s->waiters > 0) {
        pthread_cond_broadcast(&s->cond);
    }
}

/*
 * What this thread read for others goes on its way here, unless the control thread is inside
 * session_run() to see to it.
 */
static void leave_and_deliver(struct session *s)
{
    bool deliver, serve;

    pthread_mutex_lock(&s->lock);
    deliver = !s->running && !TAILQ_EMPTY(&s->txns.completed);
    serve = !s->running && !s->held && session_on_control(s) && !STAILQ_EMPTY(&s->parked);
    pthread_mutex_unlock(&s->lock);
    if (deliver) {
        txn_deliver(s);
    }
    pthread_mutex_lock(&s->lock);
    leave(s);
    pthread_mutex_unlock(&s->lock);
    if (serve) {
        session_run(s, RUN_BUFFERED);
    }
}

static int send_command(struct session *s, uint16_t id, uint16_t cmd, uint32_t flags,
                        const struct iovec *out, size_t nr_out)
{
    struct vfio_user_header hdr = {
        .msg_id = id,
        .cmd = cmd,
        .msg_size = sizeof(hdr),
        .flags = flags,
    };
    struct channel *ch = txn_channel(s);
    struct iovec iov[8] = { { .iov_base = &hdr, .iov_len = sizeof(hdr) } };

    if (nr_out > 7) {
        return -EINVAL;
    }
    for (size_t i = 0; i < nr_out; i++) {
        iov[1 + i] = out[i];
        hdr.msg_size += (uint32_t)out[i].iov_len;
    }
    return channel_send(s, ch, ch->epoch, iov, 1 + nr_out, NULL, 0);
}

/* Sees to it that an asynchronous transaction ends at its deadline. Lock held. */
static void expires(struct session *s, const struct txn *txn)
{
    if (txn->deadline < s->txns.next_deadline) {
        s->txns.next_deadline = txn->deadline;
        session_wake_control(s);
        if (txn->deadline < s->alarm) {
            session_arm(s, txn->deadline);
        }
    }
}

/*
 * The request has left, or failed to, which has broken the session. What happened meanwhile takes
 * effect now; after this the transaction may end, and its memory be gone, at any time. Only from
 * here on can it expire.
 */
static void sent(struct session *s, struct txn *txn)
{
    txn->sending = false;
    if (txn->done != NULL) {
        expires(s, txn);
    }
    if (txn->state == TXN_ANSWERED) {
        txn_end(s, txn, txn->error);
    } else if (txn->state == TXN_PENDING && s->broken != 0) {
        txn_end(s, txn, -ENOTCONN);
    } else if (txn->state == TXN_PENDING && txn->end_early != 0) {
        abandon(s, txn, txn->end_early);
    }
}

/* Cuts the deadline of a DMA message short. Lock held. */
static void hurry(struct txn *txn)
{
    uint64_t deadline = deadline_after_ms(TXN_HURRY_MS);

    if ((txn->cmd == VFIO_USER_DMA_READ || txn->cmd == VFIO_USER_DMA_WRITE) &&
        deadline < txn->deadline) {
        txn->deadline = deadline;
    }
}

void txn_hurry(struct session *s, bool on)
{
    struct txn_table *t = &s->txns;
    struct txn *txn;

    pthread_mutex_lock(&s->lock);
    t->hurry = on;
    if (on && t->nr_pending > 0) {
        TAILQ_FOREACH(txn, &t->pending, link) {
            hurry(txn);
            if (txn->done != NULL && !txn->sending) {
                expires(s, txn);
            }
        }
        wake_waiters(s);
    }
    pthread_mutex_unlock(&s->lock);
}

int txn_start(struct session *s, struct txn *txn)
{
    struct txn_table *t = &s->txns;
    int err = 0;

    pthread_mutex_lock(&s->lock);
    if (!s->main.open || s->broken != 0) {
        err = -ENOTCONN;
    } else if (t->nr_pending >= TXN_MAX_PENDING) {
        err = -EAGAIN;
    }
    if (err < 0) {
        pthread_mutex_unlock(&s->lock);
        return err;
    }
    s->users++;
    txn->id = next_id(t);
    txn->state = TXN_PENDING;
    txn->sending = true;
    txn->end_early = 0;
    txn->error = 0;
    txn->reply_len = 0;
    if (t->hurry) {
        hurry(txn);
    }
    LIST_INSERT_HEAD(bucket_of(t, txn->id), txn, bucket);
    TAILQ_INSERT_TAIL(&t->pending, txn, link);
    t->nr_pending++;
    t->nr_async += txn->done != NULL;
    pthread_mutex_unlock(&s->lock);

    send_command(s, txn->id, txn->cmd, txn->flags, txn->out, txn->nr_out);
    pthread_mutex_lock(&s->lock);
    sent(s, txn);
    pthread_mutex_unlock(&s->lock);
    leave_and_deliver(s);
    return 0;
}

int txn_post(struct session *s, uint16_t cmd, uint32_t flags, const struct iovec *out,
             size_t nr_out)
{
    uint16_t id;
    int err;

    pthread_mutex_lock(&s->lock);
    if (!s->main.open || s->broken != 0) {
        pthread_mutex_unlock(&s->lock);
        return -ENOTCONN;
    }
    s->users++;
    id = next_id(&s->txns);
    pthread_mutex_unlock(&s->lock);
    err = send_command(s, id, cmd, flags | VFIO_USER_F_NO_REPLY, out, nr_out);
    leave_and_deliver(s);
    return err;
}

static void cond_wait_until(struct session *s, uint64_t deadline)
{
    struct timespec ts = {
        .tv_sec = (time_t)(deadline / 1000000000u),
        .tv_nsec = (long)(deadline % 1000000000u),
    };

    s->waiters++;
    if (deadline == DEADLINE_NEVER) {
        pthread_cond_wait(&s->cond, &s->lock);
    } else {
        pthread_cond_timedwait(&s->cond, &s->lock, &ts);
    }
    s->waiters--;
}

/*
 * With a twin socket replies come there; the control thread looks for commands on the main one
 * as well, behind which the client may wait. No other thread reads that one.
 */
static struct channel *command_channel(struct session *s, const struct channel *ch)
{
    return ch == &s->twin && session_on_control(s) ? &s->main : NULL;
}

/*
 * Sleeps until the channel, or the one for commands (may be NULL), is readable or somebody wakes
 * us: events are those of the two. Lock held, dropped meanwhile.
 */
static void poll_channels(struct session *s, struct channel *ch, const struct channel *commands,
                          uint64_t deadline, short events[2])
{
    struct pollfd pfds[] = {
        { .fd = ch->stream.rx_fd, .events = POLLIN },
        { .fd = ch->wake_fd, .events = POLLIN },
        { .fd = commands != NULL ? commands->stream.rx_fd : -1, .events = POLLIN },
    };
    uint64_t count;

    ch->polling = true;
    pthread_mutex_unlock(&s->lock);
    if (poll(pfds, 3, deadline_poll_ms(deadline)) < 0 && errno != EINTR) {
        /* No memory: the caller looks at the sockets at intervals instead. */
        pfds[0].revents = pfds[2].revents = POLLIN;
    }
    pthread_mutex_lock(&s->lock);
    ch->polling = false;
    if ((pfds[1].revents & POLLIN) && read(ch->wake_fd, &count, sizeof(count)) < 0) {
        log_debug(s->log, "wake descriptor was drained already");
    }
    if (s->waiters > 0) {
        pthread_cond_broadcast(&s->cond);
    }
    events[0] = pfds[0].revents;
    events[1] = pfds[2].revents;
}

/* Reads what is there, unless another thread does. True when something has been routed. */
static bool pump(struct session *s, struct channel *ch, bool readable)
{
    return readable && !ch->reading && channel_pump(s, ch) != 0;
}

/* One step towards the reply: reads, or waits until somebody else has. Lock held. */
static void wait_step(struct session *s, struct channel *ch, uint64_t deadline)
{
    struct channel *commands = command_channel(s, ch);
    uint64_t retry;
    short events[2];

    if (ch->reading || ch->polling) {
        if (commands == NULL) {
            cond_wait_until(s, deadline);
            return;
        }
        ch = commands;
        commands = NULL;
    }
    /* Behind a command that is being served there may be more than the socket shows. */
    if (pump(s, ch, channel_holds_message(ch)) ||
        (commands != NULL && pump(s, commands, channel_holds_message(commands)))) {
        return;
    }
    poll_channels(s, ch, commands, deadline, events);
    if ((events[0] | events[1]) == 0 || ch->reading || pump(s, ch, events[0] != 0) ||
        (commands != NULL && pump(s, commands, events[1] != 0))) {
        return;
    }
    if (events[0] & (POLLHUP | POLLERR)) {
        /* What the client left behind is for the control thread; a reply will not come any more. */
        txn_end_all(s, -ENOTCONN);
        return;
    }
    /* Readable, and yet nothing we may take: a command is first, and the control thread's. */
    retry = clock_now_ns() + BLOCKED_RETRY_NS;
    cond_wait_until(s, retry < deadline ? retry : deadline);
}

/* Somebody must run what this thread has read for others: we, if the control thread is away. */
static bool deliver_for_others(struct session *s)
{
    if (s->running || TAILQ_EMPTY(&s->txns.completed)) {
        return false;
    }
    pthread_mutex_unlock(&s->lock);
    txn_deliver(s);
    pthread_mutex_lock(&s->lock);
    return true;
}

/*
 * The client may have sent a command meanwhile whose reply it waits for, and answer nothing until
 * then: the owner hears of it once. The session's lock is held, dropped meanwhile.
 */
static bool tell_of_parked(struct session *s, uint64_t *told)
{
    if (STAILQ_EMPTY(&s->parked) || *told == s->parkings || !session_on_control(s) ||
        s->ops->blocked == NULL) {
        return false;
    }
    *told = s->parkings;
    pthread_mutex_unlock(&s->lock);
    s->ops->blocked(s->owner);
    pthread_mutex_lock(&s->lock);
    return true;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

int txn_wait(struct session *s, struct txn *txn)
{
    struct wait wait = {
        .name = command_name(txn->cmd),
        .number = txn->id,
        .reason = "the client's reply",
    };
    struct channel *ch;
    uint64_t told = 0;
    bool overrun = false;

    pthread_mutex_lock(&s->lock);
    s->users++;
    ch = txn_channel(s);
    wait_begin(s, &wait);
    while (txn->state != TXN_DONE) {
        wait_report(s);
        if (deliver_for_others(s) || tell_of_parked(s, &told)) {
            continue;
        }
        if (txn->state == TXN_RECEIVING) {
            cond_wait_until(s, DEADLINE_NEVER);
        } else if (txn->deadline != DEADLINE_NEVER && clock_now_ns() >= txn->deadline) {
            log_err(s->log, "%s id %u: no reply before its deadline", command_name(txn->cmd),
                    txn->id);
            overrun = !abandon(s, txn, -ETIMEDOUT);
        } else {
            wait_step(s, ch, earlier(txn->deadline, s->next_report));
        }
    }
    wait_end(s, &wait);
    pthread_mutex_unlock(&s->lock);
    if (overrun) {
        session_break(s, -ETIMEDOUT);
    }
    leave_and_deliver(s);
    return txn->error;
}

bool txn_cancel(struct session *s, struct txn *txn, int err)
{
    bool ours, overrun = false;

    pthread_mutex_lock(&s->lock);
    ours = txn->state == TXN_PENDING && !txn->sending;
    txn->end_early = err;
    if (ours) {
        overrun = !abandon(s, txn, err);
        if (txn->done != NULL) {
            TAILQ_REMOVE(&s->txns.completed, txn, link);
        }
    }
    pthread_mutex_unlock(&s->lock);
    if (overrun) {
        session_break(s, -ETIMEDOUT);
    }
    if (ours && txn->done != NULL) {
        txn->done(txn);
    }
    return ours;
}

/* Completions lead to what is waited for, so they run here, whoever else could run them. */
void session_wait(struct session *s, bool (*finished)(void *arg), void *arg, struct wait *wait)
{
    struct channel *ch;
    uint64_t told = 0;

    pthread_mutex_lock(&s->lock);
    s->users++;
    ch = txn_channel(s);
    wait_begin(s, wait);
    while (!finished(arg)) {
        wait_report(s);
        if (tell_of_parked(s, &told)) {
            continue;
        }
        if (!TAILQ_EMPTY(&s->txns.completed)) {
            pthread_mutex_unlock(&s->lock);
            txn_deliver(s);
            pthread_mutex_lock(&s->lock);
        } else if (s->main.open && s->broken == 0) {
            wait_step(s, ch, earlier(s->txns.next_deadline, s->next_report));
            txn_expire(s);
        } else {
            cond_wait_until(s, s->next_report);
        }
    }
    wait_end(s, wait);
    pthread_mutex_unlock(&s->lock);
    leave_and_deliver(s);
}

void session_wake(struct session *s)
{
    pthread_mutex_lock(&s->lock);
    wake_waiters(s);
    pthread_mutex_unlock(&s->lock);
}

uint64_t session_deadline(const struct session *s)
{
    return earlier(s->txns.next_deadline, earlier(s->next_report, log_limit_deadline(s->log)));
}

uint64_t session_next_deadline(struct session *s)
{
    uint64_t deadline;

    log_limit_report(s->log, false);
    pthread_mutex_lock(&s->lock);
    wait_report(s);
    deadline = session_deadline(s);
    pthread_mutex_unlock(&s->lock);
    return deadline;
}
