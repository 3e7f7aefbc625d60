/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_API_API_H
#define VFU_API_API_H

#include "device/ctx.h"
#include "libvfio-user.h"

#include <errno.h>
#include <stddef.h>

/* Inside, errors are negative errno values; outside, -1 or NULL and errno. */
static inline int api_result(int r)
{
    if (r < 0) {
        errno = -r;
        return -1;
    }
    return r;
}

static inline void *api_null(int err)
{
    errno = -err;
    return NULL;
}

#endif /* VFU_API_API_H */
