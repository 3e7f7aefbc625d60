/* SPDX-License-Identifier: BSD-3-Clause */
#include "util/peer_eventfd.h"

#include "util/peer_eventfd_thread.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NR_EVENTS 64
/* No kernel knows this flag, so that io_submit() ends after its look at the eventfd. */
#define UNKNOWN_RWF (1 << 30)
#define MAX_TRIES 1000

/* The process's AIO context; 0: none yet. */
static _Atomic(aio_context_t) context;
/* Set if this kernel has AIO and no read of 0 bytes from an eventfd (before Linux 5.8). */
static atomic_bool unusable;

static void destroy(aio_context_t ctx)
{
    syscall(SYS_io_destroy, ctx);
}

/* Leaves nothing behind when the library is unloaded. */
__attribute__((destructor)) static void destroy_context(void)
{
    aio_context_t ctx = atomic_exchange(&context, 0);

    if (ctx != 0) {
        destroy(ctx);
    }
}

/* Takes what has completed out of the ring. Returns a negative errno if ctx is not this process's. */
static int reap(aio_context_t ctx)
{
    struct io_event events[NR_EVENTS];
    struct timespec now = { .tv_sec = 0 };

    return syscall(SYS_io_getevents, ctx, 0, NR_EVENTS, events, &now) < 0 ? -errno : 0;
}

/* Makes the context unless another thread does. Returns it, or 0. */
static aio_context_t make_context(void)
{
    aio_context_t ctx = 0, theirs = 0;

    if (syscall(SYS_io_setup, NR_EVENTS, &ctx) < 0) {
        return 0;
    }
    if (atomic_compare_exchange_strong(&context, &theirs, ctx)) {
        return ctx;
    }
    destroy(ctx);
    return theirs;
}

/* Returns the context of this process, or 0. After a fork(), the parent's is not the child's. */
static aio_context_t own_context(void)
{
    aio_context_t ctx = atomic_load(&context);

    if (ctx != 0 && reap(ctx) == -EINVAL) {
        atomic_compare_exchange_strong(&context, &ctx, 0);
        ctx = 0;
    }
    return ctx != 0 ? ctx : make_context();
}

/*
 * Reads 0 bytes from fd and signals it, which is complete when io_submit() returns: the read fails
 * with EINVAL, and a failed request signals as another does. Returns 0, or a negative errno without
 * a signal.
 */
static int submit(aio_context_t ctx, int fd, int rwf)
{
    struct iocb request = {
        .aio_fildes = (uint32_t)fd,
        .aio_lio_opcode = IOCB_CMD_PREAD,
        .aio_flags = IOCB_FLAG_RESFD,
        .aio_resfd = (uint32_t)fd,
        .aio_rw_flags = rwf,
    };
    struct iocb *list = &request;

    for (unsigned tries = 0; tries < MAX_TRIES; tries++) {
        if (syscall(SYS_io_submit, ctx, 1, &list) == 1) {
            return 0;
        }
        if (errno != EAGAIN) {
            return -errno;
        }
        /* The ring is full of completions, or of requests that other threads are submitting. */
        if (tries > 0) {
            sched_yield();
        }
        reap(ctx);
    }
    return -EAGAIN;
}

/*
 * Compares the link of fd in /proc with that of an eventfd, which is no path, so that no file can
 * have it. Returns 0, -EINVAL if it differs, or another negative errno without /proc.
 */
static int check_link(int fd)
{
    static const char eventfd[] = "anon_inode:[eventfd]";
    char link[32], target[sizeof(eventfd)];
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, target, sizeof(target));
    if (n < 0) {
        return errno == EINVAL ? -ENOENT : -errno;
    }
    return (size_t)n == strlen(eventfd) && memcmp(target, eventfd, (size_t)n) == 0 ? 0 : -EINVAL;
}

/* The kernel looks at aio_resfd before it looks at the flags. */
static int check_by_aio(int fd)
{
    aio_context_t ctx = own_context();

    return ctx != 0 && submit(ctx, fd, UNKNOWN_RWF) == -EOPNOTSUPP ? 0 : -EINVAL;
}

int peer_eventfd_check(int fd)
{
    int err = check_link(fd);

    return err == 0 || err == -EINVAL ? err : check_by_aio(fd);
}

int peer_eventfd_signal(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLOUT };
    int err = -ENOSYS;

    if (poll(&pfd, 1, 0) == 0) {
        return -EAGAIN;
    }
    for (int tries = 0; tries < 2 && err != 0 && !atomic_load(&unusable); tries++) {
        aio_context_t ctx = tries == 0 ? atomic_load(&context) : own_context();

        err = ctx != 0 ? submit(ctx, fd, 0) : -ENOSYS;
    }
    if (err == -EINVAL) {
        if (peer_eventfd_check(fd) < 0) {
            return -EINVAL;
        }
        atomic_store(&unusable, true);
    }
    return err == 0 ? 0 : peer_eventfd_signal_on_thread(fd);
}
