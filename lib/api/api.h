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

/* vfu_sgl_read() and vfu_sgl_write(): 0 or a negative errno. */
int api_sgl_copy(vfu_ctx_t *vfu_ctx, const dma_sg_t *sgl, size_t cnt, uint8_t *data, int flags,
                 bool to_guest);

#endif /* VFU_API_API_H */
