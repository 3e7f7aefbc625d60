/* SPDX-License-Identifier: BSD-3-Clause */
#include "idle.h"

#include "fuzz.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <time.h>

#define SECOND 1000000000u

/* The linker leads every call to the first of each pair, and the second is the function itself. */
int __wrap_poll(struct pollfd *fds, nfds_t nr, int timeout);
int __real_poll(struct pollfd *fds, nfds_t nr, int timeout);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);
int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex);
int __real_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex);
int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                                  const struct timespec *until);
int __real_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                                  const struct timespec *until);

bool (*idle_hook)(int ms);
static uint64_t passed; /* ns */

void idle_pass(uint64_t ns)
{
    passed += ns;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    int ret = __real_clock_gettime(clock, now);

    if (ret == 0 && clock == CLOCK_MONOTONIC && passed > 0) {
        uint64_t ns = (uint64_t)now->tv_nsec + passed % SECOND;

        now->tv_sec += (time_t)(passed / SECOND + ns / SECOND);
        now->tv_nsec = (long)(ns % SECOND);
    }
    return ret;
}

int __wrap_poll(struct pollfd *fds, nfds_t nr, int timeout)
{
    int n;

    if (idle_hook == NULL || timeout == 0) {
        return __real_poll(fds, nr, timeout);
    }
    while ((n = __real_poll(fds, nr, 0)) == 0 && idle_hook(timeout)) {
    }
    if (n == 0) {
        REQUIRE(timeout > 0); /* or it would never wake */
        idle_pass((uint64_t)timeout * 1000000u);
    }
    return n;
}

int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
    if (idle_hook == NULL) {
        return __real_pthread_cond_wait(cond, mutex);
    }
    fprintf(stderr, "the only thread waits for another\n");
    abort();
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                                  const struct timespec *until)
{
    struct timespec now;
    int64_t ns;

    if (idle_hook == NULL) {
        return __real_pthread_cond_timedwait(cond, mutex, until);
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    ns = (int64_t)(until->tv_sec - now.tv_sec) * SECOND + until->tv_nsec - now.tv_nsec;
    if (ns > 0) {
        idle_pass((uint64_t)ns);
    }
    return ETIMEDOUT;
}
