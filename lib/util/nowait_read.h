/* SPDX-License-Identifier: BSD-3-Clause */
/* A read that never waits, whatever O_NONBLOCK is: preadv2(2), which musl lacks. */
#ifndef VFU_UTIL_NOWAIT_READ_H
#define VFU_UTIL_NOWAIT_READ_H

#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifndef RWF_NOWAIT
#include <sys/syscall.h>
#include <unistd.h>
#define RWF_NOWAIT 8
#endif

/* Returns as read(2) does; errno EAGAIN if it would have to wait. */
static inline ssize_t nowait_read(int fd, void *buf, size_t size)
{
    const struct iovec iov = { buf, size };

#ifdef __GLIBC__
    return preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
#else
    return syscall(SYS_preadv2, fd, &iov, 1L, -1L, -1L, RWF_NOWAIT);
#endif
}

#endif /* VFU_UTIL_NOWAIT_READ_H */
