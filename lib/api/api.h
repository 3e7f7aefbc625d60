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

/*
 * Moves the bytes of one scatter entry to which a reference is held: by mapping if direct is set
 * and there is one, else by messages. 0 or a negative errno.
 */
int api_held_copy(vfu_ctx_t *vfu_ctx, const dma_sg_t *sg, void *data, bool direct, bool to_guest);

#endif /* VFU_API_API_H */
