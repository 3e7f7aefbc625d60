/* SPDX-License-Identifier: BSD-3-Clause */
/* statx(2), which musl has from 1.2.5 on only. */
#ifndef VFU_UTIL_STATX_H
#define VFU_UTIL_STATX_H

#include <sys/stat.h>

#ifndef STATX_TYPE
#include <linux/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline int statx(int dir, const char *path, int flags, unsigned mask, struct statx *out)
{
    return (int)syscall(SYS_statx, dir, path, flags, mask, out);
}

#ifndef AT_STATX_DONT_SYNC
#define AT_STATX_DONT_SYNC 0x4000
#endif
#endif

#endif /* VFU_UTIL_STATX_H */
