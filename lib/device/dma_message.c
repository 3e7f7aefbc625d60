/* SPDX-License-Identifier: BSD-3-Clause */
/* vfio-user protocol, VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE. */
#include "device/dma_message.h"

#include "device/ctx.h"
#include "util/clock.h"

#include <errno.h>
#include <string.h>
#include <sys/param.h>

/* Enough to hide a round trip; more would only fill the socket. */
#define WINDOW 8

/* One message of a transfer. */
struct piece {
    struct txn txn;
    struct vfio_user_pasid_prefix prefix;
    struct vfio_user_dma_region_access request;
    struct vfio_user_dma_region_access reply;
    struct iovec out[3];
};

static void prepare(struct piece *piece, const struct dma_message_target *target,
                    uint64_t offset, size_t count, uint8_t *data, bool to_guest,
                    uint32_t timeout_ms)
{
    size_t nr = 0;

    *piece = (struct piece){
        .txn = {
            .cmd = to_guest ? VFIO_USER_DMA_WRITE : VFIO_USER_DMA_READ,
            .out = piece->out,
            .reply = &piece->reply,
            .reply_cap = sizeof(piece->reply),
            .data = to_guest ? NULL : data,
            .data_cap = to_guest ? 0 : count,
            .deadline = deadline_after_ms(timeout_ms),
        },
        .request = { .addr = target->address + offset, .count = count },
    };
    if (target->space.translated) {
        piece->txn.flags = VFIO_USER_F_TRANSLATED;
    } else if (target->space.has_pasid) {
        piece->txn.flags = VFIO_USER_F_PASID;
        piece->prefix.pasid = target->space.pasid;
        piece->prefix.attrs = target->space.privileged ? VFIO_USER_PASID_ATTR_PRIV : 0;
        piece->out[nr++] = (struct iovec){ &piece->prefix, sizeof(piece->prefix) };
    }
    piece->out[nr++] = (struct iovec){ &piece->request, sizeof(piece->request) };
    if (to_guest) {
        piece->out[nr++] = (struct iovec){ data, count };
    }
    piece->txn.nr_out = nr;
}

/* QEMU (10.1 and later) answers DMA_WRITE with a bare header: success, and nothing to compare. */
static bool bare_write_reply(const struct txn *txn)
{
    return txn->cmd == VFIO_USER_DMA_WRITE && txn->reply_len == 0;
}

static int finish(struct vfu_ctx *ctx, struct piece *piece)
{
    const struct txn *txn = &piece->txn;
    int err = txn_wait(&ctx->session, &piece->txn);

    if (err < 0) {
        log_err(&ctx->log, "%s of %llu bytes at 0x%llx failed: %s", command_name(txn->cmd),
                (unsigned long long)piece->request.count,
                (unsigned long long)piece->request.addr, strerror(-err));
        return err;
    }
    if (bare_write_reply(txn)) {
        return 0;
    }
    if (txn->reply_len != sizeof(piece->reply) + txn->data_cap ||
        piece->reply.addr != piece->request.addr || piece->reply.count != piece->request.count) {
        log_err(&ctx->log, "reply to %s of %llu bytes at 0x%llx has %zu bytes, address 0x%llx, "
                "count %llu", command_name(txn->cmd), (unsigned long long)piece->request.count,
                (unsigned long long)piece->request.addr, txn->reply_len,
                (unsigned long long)piece->reply.addr, (unsigned long long)piece->reply.count);
        return -EINVAL;
    }
    return 0;
}

int dma_message_copy(struct vfu_ctx *ctx, const struct dma_message_target *target, size_t len,
                     void *data, bool to_guest)
{
    const size_t most = session_max_transfer(&ctx->session);
    struct piece pieces[WINDOW];
    size_t offset = 0, started = 0, finished = 0;
    int err = 0;

    while (finished < started || (err == 0 && offset < len)) {
        if (err == 0 && offset < len && started - finished < WINDOW) {
            struct piece *piece = &pieces[started % WINDOW];
            size_t count = MIN(most, len - offset);

            prepare(piece, target, offset, count, (uint8_t *)data + offset, to_guest,
                    ctx->dma_timeout_ms);
            err = txn_start(&ctx->session, &piece->txn);
            started += err == 0;
            offset += count;
            continue;
        }
        int r = finish(ctx, &pieces[finished++ % WINDOW]);

        err = err < 0 ? err : r;
    }
    return err;
}
