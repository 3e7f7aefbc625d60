/* SPDX-License-Identifier: BSD-3-Clause */
#include "util/peer_eventfd_thread.h"

#include "util/peer_eventfd.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

struct attempt {
    int fd;
    int result;
    atomic_bool late;
};

static pthread_once_t interrupt_once = PTHREAD_ONCE_INIT;
static int interrupt_signal;

static void ignore(int number)
{
    (void)number;
}

/* Without SA_RESTART, so that the write ends. */
static void choose_signal(void)
{
    const struct sigaction interrupt = { .sa_handler = ignore };
    struct sigaction now;

    for (int number = SIGRTMAX; number >= SIGRTMIN; number--) {
        if (sigaction(number, NULL, &now) == 0 && now.sa_handler == SIG_DFL &&
            sigaction(number, &interrupt, NULL) == 0) {
            interrupt_signal = number;
            return;
        }
    }
}

static void *run_attempt(void *arg)
{
    const uint64_t one = 1;
    struct attempt *attempt = arg;
    struct pollfd pfd = { .fd = attempt->fd, .events = POLLOUT };

    do {
        if (poll(&pfd, 1, 0) == 0) {
            attempt->result = -EAGAIN;
        } else {
            attempt->result = write(attempt->fd, &one, sizeof(one)) < 0 ? -errno : 0;
        }
    } while (attempt->result == -EINTR && !atomic_load(&attempt->late));
    return NULL;
}

/* Starts the thread with all signals blocked but the one that interrupts it. */
static int start(pthread_t *thread, struct attempt *attempt)
{
    sigset_t blocked, old;
    int err;

    sigfillset(&blocked);
    sigdelset(&blocked, interrupt_signal);
    pthread_sigmask(SIG_SETMASK, &blocked, &old);
    err = pthread_create(thread, NULL, run_attempt, attempt);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return err;
}

/* Waits for the thread's end at most PEER_EVENTFD_PATIENCE_MS. */
static bool ended(pthread_t thread)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += PEER_EVENTFD_PATIENCE_MS * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    return pthread_timedjoin_np(thread, NULL, &until) == 0;
}

int peer_eventfd_signal_on_thread(int fd)
{
    struct attempt attempt = { .fd = fd };
    pthread_t thread;

    pthread_once(&interrupt_once, choose_signal);
    if (interrupt_signal == 0 || start(&thread, &attempt) != 0) {
        return -EAGAIN;
    }
    /* A signal that arrives before the write interrupts nothing, hence the loop. */
    while (!ended(thread)) {
        atomic_store(&attempt.late, true);
        pthread_kill(thread, interrupt_signal);
    }
    return attempt.result == -EINTR ? -EAGAIN : attempt.result;
}
