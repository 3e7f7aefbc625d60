/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/shared_file.h"

#include "device/ctx.h"

#include <fcntl.h>

/* A memory file without the seal. Of other files only the device's author knows. */
static bool can_shrink(int fd)
{
    int seals = fd == -1 ? -1 : fcntl(fd, F_GET_SEALS);

    return seals >= 0 && (seals & F_SEAL_SHRINK) == 0;
}

static void check(const struct vfu_ctx *ctx, int region, const char *what, int fd)
{
    if (can_shrink(fd)) {
        log_warn(&ctx->log,
                 "region %d: %s (fd %d) is not sealed: a client can truncate it, and the device dies "
                 "of SIGBUS at its next access (F_ADD_SEALS, F_SEAL_SHRINK prevents that)",
                 region, what, fd);
    }
}

void shared_files_check(const struct vfu_ctx *ctx)
{
    const struct ioeventfd *io;

    for (int i = 0; i < VFU_PCI_DEV_NUM_REGIONS; i++) {
        check(ctx, i, "its file", ctx->regions[i].fd);
        LIST_FOREACH(io, &ctx->regions[i].ioeventfds, link) {
            check(ctx, i, "the shadow of an ioeventfd", io->shadow_fd);
        }
    }
}
