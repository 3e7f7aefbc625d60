/* SPDX-License-Identifier: BSD-3-Clause */
#include "threads.h"

#include "fiber.h"
#include "fuzz.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#define SECOND UINT64_C(1000000000)
#define NEVER UINT64_MAX
#define UNKNOWN (UINT64_MAX - 1) /* until it matters: see struct thread's limit */
#define LOOK 1000u /* ns that a look at the clock takes */
#define MAX_THREADS 64

/* The linker leads every call to __wrap_<name>; __real_<name> is the function itself. */
#define WRAP(type, name, ...)                                                                      \
    type __real_##name(__VA_ARGS__);                                                               \
    type __wrap_##name(__VA_ARGS__);                                                               \
    type __wrap_##name(__VA_ARGS__)

struct thread {
    struct fiber fiber;
    void *(*main)(void *arg);
    void *arg, *result;
    bool live, ended, detached;

    /* While it waits: what for, and what came of it. */
    bool (*ready)(void *arg);
    void *what;
    uint64_t deadline;
    uint64_t (*limit)(void *what); /* of an unknown deadline */
    bool met;
    pthread_cond_t *cond;
    bool signalled;
};

static struct thread threads[MAX_THREADS]; /* the first is the OS thread's own */
static struct thread *current = threads;
static uint64_t now = 1000 * SECOND;
static bool (*idle_hook)(int ms);
static __thread bool inside; /* libFuzzer has threads of its own */

/* Scheduling */

static int ms_until(uint64_t deadline)
{
    uint64_t left = deadline > now ? deadline - now : 0;

    if (deadline == NEVER) {
        return -1;
    }
    return (int)((left + 999999) / 1000000);
}

/* Every thread waits. The hook may wait as well, in the name of the current one. */
static void idle(uint64_t deadline)
{
    const struct thread before = *current;
    bool happened = idle_hook != NULL && idle_hook(ms_until(deadline));

    current->ready = before.ready;
    current->what = before.what;
    current->deadline = before.deadline;
    current->limit = before.limit;
    if (happened) {
        return;
    }
    if (deadline == NEVER) {
        fprintf(stderr, "every thread waits, and nothing will end that\n");
        abort();
    }
    now = deadline > now ? deadline : now;
}

/* In turns, beginning behind the one that runs. */
static struct thread *next_thread(void)
{
    for (;;) {
        uint64_t earliest = NEVER;

        for (unsigned i = 1; i <= MAX_THREADS; i++) {
            struct thread *t = &threads[(current - threads + i) % MAX_THREADS];

            if (!t->live) {
                continue;
            }
            t->met = t->ready == NULL || t->ready(t->what);
            if (t->met || now >= t->deadline) {
                return t;
            }
        }
        for (struct thread *t = threads; t < threads + MAX_THREADS; t++) {
            if (t->live && t->deadline == UNKNOWN) {
                t->deadline = t->limit(t->what);
            }
            earliest = t->live && t->deadline < earliest ? t->deadline : earliest;
        }
        idle(earliest);
    }
}

static void run_next(void)
{
    struct thread *before = current, *next = next_thread();

    if (next != before) {
        current = next;
        fiber_switch(&before->fiber, &next->fiber);
    }
}

/* Others run until ready(what), or until the deadline. Returns whether it is ready. */
static bool wait_until(bool (*ready)(void *what), void *what, uint64_t deadline)
{
    struct thread *self = current;

    self->ready = ready;
    self->what = what;
    self->deadline = deadline;
    run_next();
    return self->met;
}

/* A stack outlives its thread, for the next one. */
static void thread_entry(void)
{
    fiber_entered();
    for (;;) {
        current->result = current->main(current->arg);
        current->ended = true;
        current->live = false;
        run_next();
    }
}

void threads_begin(bool (*hook)(int ms))
{
    if (!threads[0].live) {
        fiber_init_main(&threads[0].fiber);
        threads[0].live = true;
    }
    idle_hook = hook;
    inside = true;
}

void threads_end(void)
{
    inside = false;
}

static bool others_wait(void *what)
{
    (void)what;
    for (unsigned i = 1; i < MAX_THREADS; i++) {
        struct thread *t = &threads[i];

        if (t->live && (t->ready == NULL || t->ready(t->what))) {
            return false;
        }
    }
    return true;
}

void threads_settle(void)
{
    wait_until(others_wait, NULL, NEVER);
}

/* Threads */

static struct thread *thread_of(pthread_t id)
{
    struct thread *t = (struct thread *)id;

    return t > threads && t < threads + MAX_THREADS ? t : NULL;
}

WRAP(int, pthread_create, pthread_t *id, const pthread_attr_t *attr, void *(*start)(void *),
     void *arg)
{
    int detach = PTHREAD_CREATE_JOINABLE;
    struct thread *t = threads + 1;

    if (!inside) {
        return __real_pthread_create(id, attr, start, arg);
    }
    while (t->live || (t->ended && !t->detached)) {
        t++;
        REQUIRE(t < threads + MAX_THREADS);
    }
    if (t->fiber.stack == NULL) {
        fiber_init(&t->fiber, thread_entry);
    }
    if (attr != NULL) {
        pthread_attr_getdetachstate(attr, &detach);
    }
    t->main = start;
    t->arg = arg;
    t->ready = NULL;
    t->live = true;
    t->ended = false;
    t->detached = detach == PTHREAD_CREATE_DETACHED;
    *id = (pthread_t)t;
    return 0;
}

static bool has_ended(void *what)
{
    return ((struct thread *)what)->ended;
}

WRAP(int, pthread_join, pthread_t id, void **result)
{
    struct thread *t = thread_of(id);

    if (t == NULL) {
        return __real_pthread_join(id, result);
    }
    wait_until(has_ended, t, NEVER);
    t->ended = false;
    if (result != NULL) {
        *result = t->result;
    }
    return 0;
}

WRAP(pthread_t, pthread_self, void)
{
    return inside && current != threads ? (pthread_t)current : __real_pthread_self();
}

static bool at_once(void *what)
{
    (void)what;
    return true;
}

WRAP(int, sched_yield, void)
{
    if (!inside) {
        return __real_sched_yield();
    }
    wait_until(at_once, NULL, NEVER);
    return 0;
}

/* Locks */

static bool mutex_is_free(void *what)
{
    return pthread_mutex_trylock(what) == 0 && pthread_mutex_unlock(what) == 0;
}

WRAP(int, pthread_mutex_lock, pthread_mutex_t *mutex)
{
    int err;

    if (!inside) {
        return __real_pthread_mutex_lock(mutex);
    }
    while ((err = pthread_mutex_trylock(mutex)) == EBUSY) {
        wait_until(mutex_is_free, mutex, NEVER);
    }
    return err;
}

static bool rwlock_is_free(void *what)
{
    return pthread_rwlock_trywrlock(what) == 0 && pthread_rwlock_unlock(what) == 0;
}

static bool rwlock_has_no_writer(void *what)
{
    return pthread_rwlock_tryrdlock(what) == 0 && pthread_rwlock_unlock(what) == 0;
}

WRAP(int, pthread_rwlock_wrlock, pthread_rwlock_t *lock)
{
    if (!inside) {
        return __real_pthread_rwlock_wrlock(lock);
    }
    while (pthread_rwlock_trywrlock(lock) != 0) {
        wait_until(rwlock_is_free, lock, NEVER);
    }
    return 0;
}

WRAP(int, pthread_rwlock_rdlock, pthread_rwlock_t *lock)
{
    if (!inside) {
        return __real_pthread_rwlock_rdlock(lock);
    }
    while (pthread_rwlock_tryrdlock(lock) != 0) {
        wait_until(rwlock_has_no_writer, lock, NEVER);
    }
    return 0;
}

static bool is_signalled(void *what)
{
    return ((struct thread *)what)->signalled;
}

static int cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t deadline)
{
    struct thread *self = current;
    bool signalled;

    self->cond = cond;
    self->signalled = false;
    pthread_mutex_unlock(mutex);
    signalled = wait_until(is_signalled, self, deadline);
    self->cond = NULL;
    pthread_mutex_lock(mutex);
    return signalled ? 0 : ETIMEDOUT;
}

static void cond_signal(const pthread_cond_t *cond, unsigned most)
{
    for (unsigned i = 0; i < MAX_THREADS && most > 0; i++) {
        struct thread *t = &threads[i];

        if (t->cond == cond && !t->signalled) {
            t->signalled = true;
            most--;
        }
    }
}

WRAP(int, pthread_cond_wait, pthread_cond_t *cond, pthread_mutex_t *mutex)
{
    return inside ? cond_wait(cond, mutex, NEVER) : __real_pthread_cond_wait(cond, mutex);
}

WRAP(int, pthread_cond_timedwait, pthread_cond_t *cond, pthread_mutex_t *mutex,
     const struct timespec *until)
{
    if (!inside) {
        return __real_pthread_cond_timedwait(cond, mutex, until);
    }
    return cond_wait(cond, mutex, (uint64_t)until->tv_sec * SECOND + (uint64_t)until->tv_nsec);
}

WRAP(int, pthread_cond_broadcast, pthread_cond_t *cond)
{
    if (!inside) {
        return __real_pthread_cond_broadcast(cond);
    }
    cond_signal(cond, MAX_THREADS);
    return 0;
}

WRAP(int, pthread_cond_signal, pthread_cond_t *cond)
{
    if (!inside) {
        return __real_pthread_cond_signal(cond);
    }
    cond_signal(cond, 1);
    return 0;
}

/* Descriptors */

static uint64_t deadline_of(int ms)
{
    return ms < 0 ? NEVER : now + (uint64_t)ms * 1000000;
}

struct polling {
    struct pollfd *fds;
    nfds_t nr;
    int n;
};

int __real_poll(struct pollfd *fds, nfds_t nr, int timeout);
int __real_epoll_wait(int fd, struct epoll_event *events, int max, int timeout);
ssize_t __real_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t __real_sendmsg(int fd, const struct msghdr *msg, int flags);

static bool poll_ready(void *what)
{
    struct polling *p = what;

    p->n = __real_poll(p->fds, p->nr, 0);
    return p->n != 0;
}

WRAP(int, poll, struct pollfd *fds, nfds_t nr, int timeout)
{
    struct polling p = { fds, nr, 0 };

    if (!inside || timeout == 0) {
        return __real_poll(fds, nr, timeout);
    }
    wait_until(poll_ready, &p, deadline_of(timeout));
    return p.n;
}

struct epolling {
    int fd;
    struct epoll_event *events;
    int max, n;
};

static bool epoll_ready(void *what)
{
    struct epolling *p = what;

    p->n = p->n != 0 ? p->n : __real_epoll_wait(p->fd, p->events, p->max, 0);
    return p->n != 0;
}

WRAP(int, epoll_wait, int fd, struct epoll_event *events, int max, int timeout)
{
    struct epolling p = { fd, events, max, 0 };

    if (!inside || timeout == 0) {
        return __real_epoll_wait(fd, events, max, timeout);
    }
    wait_until(epoll_ready, &p, deadline_of(timeout));
    return p.n;
}

/* A socket call that would block, tried again as often as the others have run. */
struct transfer {
    int fd, flags;
    int option; /* with its timeout */
    struct msghdr *msg;
    struct msghdr fresh;
    ssize_t n;
};

/* The socket's own timeout. */
static uint64_t socket_limit(void *what)
{
    const struct transfer *t = what;
    struct timeval limit = { 0 };
    socklen_t len = sizeof(limit);

    getsockopt(t->fd, SOL_SOCKET, t->option, &limit, &len);
    if (limit.tv_sec == 0 && limit.tv_usec == 0) {
        return NEVER;
    }
    return now + (uint64_t)limit.tv_sec * SECOND + (uint64_t)limit.tv_usec * 1000;
}

static ssize_t transfer(bool (*attempt)(void *what), struct transfer *t)
{
    current->limit = socket_limit;
    if (!attempt(t) && !wait_until(attempt, t, UNKNOWN)) {
        t->n = -EAGAIN;
    }
    errno = t->n < 0 ? (int)-t->n : errno;
    return t->n < 0 ? -1 : t->n;
}

static bool try_receive(void *what)
{
    struct transfer *t = what;

    *t->msg = t->fresh;
    t->n = __real_recvmsg(t->fd, t->msg, t->flags | MSG_DONTWAIT);
    t->n = t->n < 0 ? -errno : t->n;
    return t->n != -EAGAIN;
}

WRAP(ssize_t, recvmsg, int fd, struct msghdr *msg, int flags)
{
    struct transfer t = { fd, flags, SO_RCVTIMEO, msg, *msg, 0 };

    if (!inside || flags & MSG_DONTWAIT) {
        return __real_recvmsg(fd, msg, flags);
    }
    return transfer(try_receive, &t);
}

static bool try_send(void *what)
{
    struct transfer *t = what;

    t->n = __real_sendmsg(t->fd, &t->fresh, t->flags | MSG_DONTWAIT);
    t->n = t->n < 0 ? -errno : t->n;
    return t->n != -EAGAIN;
}

WRAP(ssize_t, sendmsg, int fd, const struct msghdr *msg, int flags)
{
    struct transfer t = { fd, flags, SO_SNDTIMEO, NULL, *msg, 0 };

    if (!inside || flags & MSG_DONTWAIT) {
        return __real_sendmsg(fd, msg, flags);
    }
    return transfer(try_send, &t);
}

/* Time */

void threads_pass(uint64_t ns)
{
    now += ns;
}

WRAP(int, clock_gettime, clockid_t clock, struct timespec *ts)
{
    if (!inside || clock != CLOCK_MONOTONIC) {
        return __real_clock_gettime(clock, ts);
    }
    now += LOOK;
    ts->tv_sec = (time_t)(now / SECOND);
    ts->tv_nsec = (long)(now % SECOND);
    return 0;
}
