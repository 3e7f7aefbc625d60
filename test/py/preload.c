/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Preloaded by tests of the C interface: one allocation of the library fails, the n-th that is made
 * from within an address range, while others of the process are left alone; and time passes at
 * once.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t nr, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static uintptr_t first, end;
static atomic_int countdown; /* 0: none is to fail */
static atomic_int seconds;   /* that have passed in no time */

void preload_watch(uintptr_t from, uintptr_t to)
{
    first = from;
    end = to;
}

void preload_fail(int n)
{
    atomic_store(&countdown, n);
}

/* How many are left until one fails; 0 when it has. */
int preload_left(void)
{
    return atomic_exchange(&countdown, 0);
}

static int fails(void *caller)
{
    int left = atomic_load(&countdown);

    if (left == 0 || (uintptr_t)caller < first || (uintptr_t)caller >= end) {
        return 0;
    }
    if (atomic_fetch_sub(&countdown, 1) != 1) {
        return 0;
    }
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t nr, size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(nr, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_memalign(alignment, size);
}

char *strdup(const char *s)
{
    size_t size = strlen(s) + 1;
    char *copy = fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size);

    return copy != NULL ? memcpy(copy, s, size) : NULL;
}

void preload_pass(int n)
{
    atomic_fetch_add(&seconds, n);
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    int result = (int)syscall(SYS_clock_gettime, id, now);

    now->tv_sec += atomic_load(&seconds);
    return result;
}
