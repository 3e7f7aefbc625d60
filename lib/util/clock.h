/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_UTIL_CLOCK_H
#define VFU_UTIL_CLOCK_H

#include <limits.h>
#include <stdint.h>
#include <time.h>

/* Absolute deadlines in nanoseconds of CLOCK_MONOTONIC. */
#define DEADLINE_NEVER UINT64_MAX

static inline uint64_t clock_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline uint64_t deadline_after_ms(uint64_t ms)
{
    return clock_now_ns() + ms * 1000000u;
}

/* The poll(2) timeout until a deadline: -1 for never, 0 when it has passed, else rounded up. */
static inline int deadline_poll_ms(uint64_t deadline)
{
    uint64_t now, ms;

    if (deadline == DEADLINE_NEVER) {
        return -1;
    }
    now = clock_now_ns();
    if (now >= deadline) {
        return 0;
    }
    ms = (deadline - now + 999999u) / 1000000u;
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

#endif /* VFU_UTIL_CLOCK_H */
