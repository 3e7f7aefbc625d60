/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_API_API_H
#define VFU_API_API_H

#include "device/ctx.h"
#include "device/dma_message.h"
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
 * Adds a scatter entry to a transfer, to which a reference is held until the transfer's end: moved
 * at once, by mapping, if direct is set and there is one, else by messages.
 */
void api_transfer_held(struct dma_transfer *transfer, const dma_sg_t *sg, void *data, bool direct);

#endif /* VFU_API_API_H */
