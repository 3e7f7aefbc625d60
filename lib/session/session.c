/* SPDX-License-Identifier: BSD-3-Clause */
#include "session/session.h"

#include "session/channel.h"
#include "util/clock.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

int session_init(struct session *s, const struct session_ops *ops, void *owner,
                 const struct logger *log)
{
    pthread_condattr_t attr;
    int err;

    memset(s, 0, sizeof(*s));
    s->ops = ops;
    s->owner = owner;
    s->log = log;
    STAILQ_INIT(&s->parked);
    TAILQ_INIT(&s->waits);
    s->next_report = DEADLINE_NEVER;
    txn_table_init(&s->txns);
    s->output_limits = (struct output_limits){ .bytes = SIZE_MAX, .time_ms = OUTPUT_TIME_MS };
    s->timer_fd = -1;
    s->alarm = DEADLINE_NEVER;
    s->control = pthread_self();
    s->control_wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->control_wake == -1) {
        return -errno;
    }
    err = channel_init(&s->main, s, true);
    if (err < 0) {
        goto close_wake;
    }
    err = channel_init(&s->twin, s, false);
    if (err < 0) {
        goto destroy_main;
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->cond, &attr);
    pthread_condattr_destroy(&attr);
    return 0;

destroy_main:
    channel_destroy(&s->main);
close_wake:
    close(s->control_wake);
    return err;
}

void session_destroy(struct session *s)
{
    session_close(s);
    channel_destroy(&s->main);
    channel_destroy(&s->twin);
    close(s->control_wake);
    pthread_cond_destroy(&s->cond);
    pthread_mutex_destroy(&s->lock);
}

void session_open(struct session *s, struct stream *stream, struct stream *twin,
                  const struct wire_features *features, uint32_t max_transfer)
{
    pthread_mutex_lock(&s->lock);
    s->features = *features;
    s->max_transfer = max_transfer < WIRE_MAX_DATA_XFER ? max_transfer : WIRE_MAX_DATA_XFER;
    s->broken = 0;
    s->held = false;
    s->txns.hurry = false;
    s->control = pthread_self();
    txn_forget_all_abandoned(&s->txns);
    pthread_mutex_unlock(&s->lock);
    /* The twin first: once the main channel is open, transactions start on whichever there is. */
    if (twin != NULL) {
        channel_open(s, &s->twin, twin);
    }
    channel_open(s, &s->main, stream);
}

static void close_channel(struct session *s, struct channel *ch)
{
    output_stop(ch);
    pthread_mutex_lock(&ch->tx_lock);
    pthread_mutex_lock(&s->lock);
    if (ch->open) {
        ch->open = false;
        stream_close(&ch->stream);
    }
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&ch->tx_lock);
}

void session_close(struct session *s)
{
    struct request *req;

    session_break(s, -ENOTCONN);
    pthread_mutex_lock(&s->lock);
    while (s->users > 0) {
        s->waiters++;
        pthread_cond_wait(&s->cond, &s->lock);
        s->waiters--;
    }
    s->held = false;
    wait_forget_all(s);
    pthread_mutex_unlock(&s->lock);
    txn_deliver(s);
    while ((req = STAILQ_FIRST(&s->parked)) != NULL) {
        STAILQ_REMOVE_HEAD(&s->parked, link);
        request_drop(req);
    }
    s->parked_fds = 0;
    s->parked_bytes = 0;
    close_channel(s, &s->twin);
    close_channel(s, &s->main);
}

uint32_t session_max_transfer(struct session *s)
{
    uint32_t max;

    pthread_mutex_lock(&s->lock);
    max = s->max_transfer;
    pthread_mutex_unlock(&s->lock);
    return max;
}

uint64_t session_late_replies(struct session *s)
{
    uint64_t late;

    pthread_mutex_lock(&s->lock);
    late = s->txns.late_replies;
    pthread_mutex_unlock(&s->lock);
    return late;
}

int session_error(struct session *s)
{
    int err;

    pthread_mutex_lock(&s->lock);
    err = s->main.open ? s->broken : -ENOTCONN;
    pthread_mutex_unlock(&s->lock);
    return err;
}

void session_count_parked(struct session *s, const struct request *req, int n)
{
    s->parkings += n > 0;
    s->parked_bytes += (size_t)n * (sizeof(*req) + req->len);
    s->parked_fds += (unsigned)n * (unsigned)req->nr_fds;
}

void session_hold(struct session *s)
{
    pthread_mutex_lock(&s->lock);
    s->held = true;
    pthread_mutex_unlock(&s->lock);
}

void session_release(struct session *s, struct request *first)
{
    pthread_mutex_lock(&s->lock);
    s->held = false;
    if (first != NULL) {
        STAILQ_INSERT_HEAD(&s->parked, first, link);
        session_count_parked(s, first, 1);
    }
    pthread_mutex_unlock(&s->lock);
}

void session_wake_control(struct session *s)
{
    const uint64_t one = 1;

    if (s->sleeping && write(s->control_wake, &one, sizeof(one)) < 0) {
        log_warn(s->log, "cannot wake the control thread: %s", strerror(errno));
    }
}

void session_arm(struct session *s, uint64_t deadline)
{
    struct itimerspec when = { .it_value = { 0 } };

    if (deadline != DEADLINE_NEVER) {
        when.it_value.tv_sec = (time_t)(deadline / 1000000000u);
        when.it_value.tv_nsec = (long)(deadline % 1000000000u);
    }
    s->alarm = deadline;
    if (s->timer_fd != -1 && timerfd_settime(s->timer_fd, TFD_TIMER_ABSTIME, &when, NULL) != 0) {
        log_warn(s->log, "cannot set the timer of the event loop: %s", strerror(errno));
    }
}

void session_set_timer(struct session *s, int fd)
{
    pthread_mutex_lock(&s->lock);
    s->timer_fd = fd;
    s->alarm = DEADLINE_NEVER;
    pthread_mutex_unlock(&s->lock);
}

void session_set_alarm(struct session *s, uint64_t deadline)
{
    uint64_t own;

    pthread_mutex_lock(&s->lock);
    own = session_deadline(s);
    deadline = own < deadline ? own : deadline;
    if (deadline != s->alarm) {
        session_arm(s, deadline);
    }
    pthread_mutex_unlock(&s->lock);
}

bool session_takes_input(struct session *s)
{
    bool takes;

    pthread_mutex_lock(&s->lock);
    takes = s->broken == 0 && !channel_parking_full(s);
    pthread_mutex_unlock(&s->lock);
    return takes;
}

/*
 * Whoever finds the connection unusable says so here; the control thread acts on it. The shutdown
 * ends every sleep on the socket, and makes it readable for an event loop.
 */
void session_break(struct session *s, int err)
{
    pthread_mutex_lock(&s->lock);
    if (s->broken == 0) {
        s->broken = err;
    }
    if (s->main.open && s->main.stream.is_socket) {
        shutdown(s->main.stream.rx_fd, SHUT_RDWR);
    }
    if (s->twin.open) {
        shutdown(s->twin.stream.rx_fd, SHUT_RDWR);
    }
    txn_end_all(s, -ENOTCONN);
    pthread_mutex_unlock(&s->lock);
}

static void mark_checked(struct request *req)
{
    struct vfio_user_pasid_prefix prefix;

    req->checked = true;
    if (!(req->hdr.flags & VFIO_USER_F_PASID)) {
        return;
    }
    memcpy(&prefix, req->payload, sizeof(prefix));
    req->tagged = true;
    req->pasid = prefix.pasid;
    req->pasid_attrs = prefix.attrs;
    req->payload += sizeof(prefix);
    req->len -= sizeof(prefix);
}

/* Once: a request that dispatch has put off comes here again. */
static int check(struct session *s, struct request *req)
{
    int err;

    if (req->checked) {
        return 0;
    }
    err = wire_check_request(&req->hdr, req->payload, req->len, &s->features, s->log);
    if (err == 0 && req->fds_lost && command_rule(req->hdr.cmd)->max_fds > 0) {
        log_err(s->log, "%s id %u: only %zu of its descriptors could be received: out of them?",
                command_name(req->hdr.cmd), req->hdr.msg_id, req->nr_fds);
        err = -EMFILE;
    }
    if (err == 0) {
        mark_checked(req);
    }
    return err;
}

/* True when the request came as far as dispatch. */
static bool serve(struct session *s, struct request *req)
{
    int err;

    log_limit_report(s->log, false);
    err = check(s, req);
    if (err < 0) {
        request_finish(req, err);
        return false;
    }
    err = s->ops->dispatch(s->owner, req);
    if (err != REQUEST_DEFERRED) {
        request_finish(req, err);
    }
    return true;
}

struct request *session_next_parked(struct session *s, struct request *req)
{
    const struct logger silent = { .level = -1 };

    pthread_mutex_lock(&s->lock);
    req = req == NULL ? STAILQ_FIRST(&s->parked) : STAILQ_NEXT(req, link);
    pthread_mutex_unlock(&s->lock);
    /* What is refused is refused, and logged, in its turn. */
    if (req != NULL && !req->checked &&
        wire_check_request(&req->hdr, req->payload, req->len, &s->features, &silent) == 0 &&
        !req->fds_lost) {
        mark_checked(req);
    }
    return req;
}

bool session_is_control(struct session *s)
{
    bool control;

    pthread_mutex_lock(&s->lock);
    control = session_on_control(s);
    pthread_mutex_unlock(&s->lock);
    return control;
}

/* Takes one off the parked queue: the first, or while held the first that need not wait. */
static struct request *next_parked(struct session *s)
{
    struct request *req;

    STAILQ_FOREACH (req, &s->parked, link) {
        if (!s->held || (command_traits(req->hdr.cmd) & CMD_ANYTIME)) {
            STAILQ_REMOVE(&s->parked, req, request, link);
            session_count_parked(s, req, -1);
            return req;
        }
    }
    return NULL;
}

static bool serve_unlocked(struct session *s, struct request *req)
{
    bool served;

    pthread_mutex_unlock(&s->lock);
    served = serve(s, req);
    pthread_mutex_lock(&s->lock);
    return served;
}

/* Serves the command at the head of the stream where it lies. Lock and role held; ends the role. */
static bool serve_buffered(struct session *s, const struct vfio_user_header *hdr)
{
    int fds[STREAM_MAX_FDS];
    struct request req;
    bool served;

    channel_take(s, &s->main, hdr, &req, fds);
    stream_pin(&s->main.stream);
    channel_release(s, &s->main);
    served = serve_unlocked(s, &req);
    stream_unpin(&s->main.stream);
    return served;
}

/*
 * With transactions that nobody waits for, or requests that are held back, a plain receive that
 * waits is not enough; without them it saves a system call per message. Only the IOMMU extension
 * has such transactions, and goes without a twin socket: what arrives there is read by those who
 * wait for it.
 */
static bool must_poll(const struct session *s)
{
    return s->features.ats || s->features.pri || !TAILQ_EMPTY(&s->waits);
}

/* Sleeps until something can be read, a deadline passes or somebody wakes us. Role held. */
static int sleep_readable(struct session *s)
{
    struct pollfd pfds[2] = {
        { .fd = s->main.stream.rx_fd, .events = POLLIN },
        { .fd = s->control_wake, .events = POLLIN },
    };
    uint64_t deadline = session_deadline(s), count;
    int n, err;

    s->sleeping = true;
    pthread_mutex_unlock(&s->lock);
    n = poll(pfds, 2, deadline_poll_ms(deadline));
    err = n < 0 ? -errno : 0;
    if (pfds[1].revents != 0 && read(s->control_wake, &count, sizeof(count)) < 0) {
        err = -errno;
    }
    pthread_mutex_lock(&s->lock);
    s->sleeping = false;
    return err;
}

/*
 * Receives what there is of one message. Role and lock held, the lock dropped meanwhile. Returns
 * 1, 0 when there is nothing, or a negative errno.
 */
static int receive(struct session *s, bool wait)
{
    struct stream *stream = &s->main.stream;
    ssize_t n = stream_make_room(stream, WIRE_MAX_MESSAGE);

    if (n == 0 && wait && must_poll(s)) {
        n = sleep_readable(s);
        wait = false;
    }
    if (n == 0) {
        pthread_mutex_unlock(&s->lock);
        n = channel_receive(&s->main, wait);
        pthread_mutex_lock(&s->lock);
    }
    return n > 0 ? 1 : n == -EAGAIN ? 0 : (int)n;
}

/*
 * The same, but nothing as long as the client does not read what is queued for it. A loop that polls
 * for input only would come again at once: it is held back.
 */
static int receive_unless_full(struct session *s, bool wait)
{
    if (!output_is_full(&s->main.output)) {
        return receive(s, wait);
    }
    if (s->timer_fd == -1) {
        pthread_mutex_unlock(&s->lock);
        output_pause(&s->main);
        pthread_mutex_lock(&s->lock);
    }
    return 0;
}

enum step {
    STEP_NOTHING, /* nothing is there */
    STEP_ROUTED, /* something was, but no command that came as far as dispatch */
    STEP_SERVED,
};

/* Handles the message at the head of the stream. Role and lock held; the role ends if > 0. */
static int handle_buffered(struct session *s)
{
    struct vfio_user_header hdr;
    int r;

    pthread_mutex_unlock(&s->lock);
    r = channel_next(s, &s->main, &hdr);
    if (r > 0 && wire_is_reply(&hdr)) {
        channel_route_reply(s, &s->main, &hdr);
        pthread_mutex_lock(&s->lock);
        channel_release(s, &s->main);
        return STEP_ROUTED;
    }
    pthread_mutex_lock(&s->lock);
    if (r <= 0) {
        return r;
    }
    return serve_buffered(s, &hdr) ? STEP_SERVED : STEP_ROUTED;
}

/* What is here already: completions, and commands that wait for this thread. Lock held. */
static enum step run_waiting(struct session *s)
{
    struct request *req;

    wait_report(s);
    txn_expire(s);
    if (!TAILQ_EMPTY(&s->txns.completed)) {
        pthread_mutex_unlock(&s->lock);
        txn_deliver(s);
        pthread_mutex_lock(&s->lock);
        return STEP_ROUTED;
    }
    req = next_parked(s);
    if (req != NULL) {
        return serve_unlocked(s, req) ? STEP_SERVED : STEP_ROUTED;
    }
    return STEP_NOTHING;
}

/* While held, commands park and replies go on: those of one receive call. Lock held. */
static int run_held(struct session *s, bool worked)
{
    int r = 0;

    channel_acquire(s, &s->main);
    channel_release(s, &s->main);
    if (!worked) {
        r = channel_pump(s, &s->main);
    }
    return r > 0 ? STEP_ROUTED : r < 0 ? r : -EBUSY;
}

/* One message from the socket, received if need be. Lock held. */
static int run_socket(struct session *s, enum session_run_mode mode, bool worked)
{
    int r;

    channel_acquire(s, &s->main);
    /* The previous reader may have left something for us that must come first. */
    if (!STAILQ_EMPTY(&s->parked) || !TAILQ_EMPTY(&s->txns.completed)) {
        channel_release(s, &s->main);
        return STEP_ROUTED;
    }
    r = handle_buffered(s);
    if (r > 0) {
        return r;
    }
    if (r == 0 && mode != RUN_BUFFERED && !(mode == RUN_ONCE && worked)) {
        r = receive_unless_full(s, mode == RUN_WAIT);
        if (r == 0 && mode == RUN_WAIT) {
            r = STEP_ROUTED;
        }
    }
    channel_release(s, &s->main);
    return r;
}

int session_run(struct session *s, enum session_run_mode mode)
{
    int served = 0, r;
    bool handled = false, held_read = false, refused;

    log_limit_report(s->log, false);
    pthread_mutex_lock(&s->lock);
    s->running = true;
    s->control = pthread_self();
    do {
        r = run_waiting(s);
        if (r == STEP_NOTHING) {
            if (!s->main.open || s->broken != 0) {
                r = -ENOTCONN;
            } else if (s->held) {
                r = run_held(s, held_read);
                held_read = true;
            } else {
                r = run_socket(s, mode, handled);
                handled = true;
            }
        }
        served += r == STEP_SERVED;
    } while (r > 0);
    s->running = false;
    pthread_mutex_unlock(&s->lock);

    /* Answered, which is what this call has done. Only a socket makes the loop come again. */
    refused = r == -EPROTO && s->main.stream.is_socket;
    if (r < 0 && r != -EBUSY && r != -EINTR && r != -ENOTCONN) {
        /* EPROTO: the line about the message says so. */
        if (r != -EPROTO) {
            log_info(s->log, "connection ended: %s",
                     r == -ENOMSG ? "closed by the client" : strerror(-r));
        }
        session_break(s, r);
        r = -ENOTCONN;
    }
    /* What was served counts, even if the client is gone: the next call tells that. */
    if (r == 0 || (r == -ENOTCONN && (served > 0 || refused) && mode != RUN_WAIT)) {
        return served;
    }
    return r;
}
