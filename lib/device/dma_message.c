/* SPDX-License-Identifier: BSD-3-Clause */
/* vfio-user protocol, VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE. */
#include "device/dma_message.h"

#include "device/ctx.h"
#include "device/dma_cancel.h"
#include "util/clock.h"
#include "wire/quirks.h"

#include <errno.h>
#include <string.h>
#include <sys/param.h>

static void prepare(struct dma_message *message, const struct dma_target *target,
                    uint64_t offset, size_t count, uint8_t *data, bool to_guest,
                    uint32_t timeout_ms)
{
    size_t nr = 0;

    *message = (struct dma_message){
        .txn = {
            .cmd = to_guest ? VFIO_USER_DMA_WRITE : VFIO_USER_DMA_READ,
            .out = message->out,
            .reply = &message->reply,
            .reply_cap = sizeof(message->reply),
            .data = to_guest ? NULL : data,
            .data_cap = to_guest ? 0 : count,
            .deadline = deadline_after_ms(timeout_ms),
        },
        .request = { .addr = target->address + offset, .count = count },
        .data = data,
    };
    if (target->space.translated) {
        message->txn.flags = VFIO_USER_F_TRANSLATED;
    } else if (target->space.has_pasid) {
        message->txn.flags = VFIO_USER_F_PASID;
        message->prefix.pasid = target->space.pasid;
        message->prefix.attrs = target->space.privileged ? VFIO_USER_PASID_ATTR_PRIV : 0;
        message->out[nr++] = (struct iovec){ &message->prefix, sizeof(message->prefix) };
    }
    message->out[nr++] = (struct iovec){ &message->request, sizeof(message->request) };
    if (to_guest) {
        message->out[nr++] = (struct iovec){ data, count };
    }
    message->txn.nr_out = nr;
}

static int finish(struct vfu_ctx *ctx, struct dma_message *message)
{
    const struct txn *txn = &message->txn;
    int err = txn_wait(&ctx->session, &message->txn);

    /* A reply that is wrong or does not come has its line already, and so has a cancellation. */
    if (err == -EPROTO || err == -ETIMEDOUT || err == -ECANCELED) {
        return err;
    }
    if (err < 0) {
        log_err(&ctx->log, "%s of %llu bytes at 0x%llx failed: %s", command_name(txn->cmd),
                (unsigned long long)message->request.count,
                (unsigned long long)message->request.addr, strerror(-err));
        return err;
    }
    if (txn->reply_len == 0 && quirk_bare_reply(txn->cmd)) {
        return 0;
    }
    if (txn->reply_len != sizeof(message->reply) + txn->data_cap ||
        message->reply.addr != message->request.addr ||
        message->reply.count != message->request.count) {
        log_err(&ctx->log, "reply to %s of %llu bytes at 0x%llx has %zu bytes, address 0x%llx, "
                "count %llu", command_name(txn->cmd), (unsigned long long)message->request.count,
                (unsigned long long)message->request.addr, txn->reply_len,
                (unsigned long long)message->reply.addr, (unsigned long long)message->reply.count);
        return -EINVAL;
    }
    return 0;
}

void dma_transfers_init(struct dma_transfers *transfers)
{
    pthread_mutex_init(&transfers->lock, NULL);
    TAILQ_INIT(&transfers->list);
}

void dma_transfers_destroy(struct dma_transfers *transfers)
{
    pthread_mutex_destroy(&transfers->lock);
}

/* Caller holds the list's lock, so that the messages are still there. */
static void cancel(struct dma_transfer *transfer)
{
    transfer->cancelled = true;
    for (size_t i = transfer->finished; i < transfer->started; i++) {
        txn_cancel(&transfer->ctx->session, &transfer->messages[i % DMA_MESSAGE_WINDOW].txn,
                   -ECANCELED);
    }
}

unsigned dma_transfers_cancel(struct vfu_ctx *ctx, dma_transfer_select_fn *select, const void *arg)
{
    struct dma_transfer *transfer;
    unsigned ended = 0;

    pthread_mutex_lock(&ctx->transfers.lock);
    TAILQ_FOREACH (transfer, &ctx->transfers.list, link) {
        if (!transfer->cancelled && select(transfer, arg)) {
            cancel(transfer);
            ended++;
        }
    }
    pthread_mutex_unlock(&ctx->transfers.lock);
    return ended;
}

void dma_transfer_init(struct dma_transfer *transfer, struct vfu_ctx *ctx,
                       const struct dma_sg *sgl, size_t nr_sgs, uint32_t pasid, bool to_guest)
{
    transfer->ctx = ctx;
    transfer->sgl = sgl;
    transfer->nr_sgs = nr_sgs;
    transfer->pasid = pasid;
    transfer->to_guest = to_guest;
    transfer->listed = transfer->cancelled = false;
    transfer->error = 0;
    transfer->failed_at = NULL;
    transfer->started = transfer->finished = 0;
}

void dma_transfer_fail(struct dma_transfer *transfer, int error, const void *data)
{
    if (error < 0 && transfer->error == 0) {
        transfer->error = error;
        transfer->failed_at = data;
    }
}

static void finish_oldest(struct dma_transfer *transfer)
{
    struct dma_message *message = &transfer->messages[transfer->finished % DMA_MESSAGE_WINDOW];
    struct dma_transfers *transfers = &transfer->ctx->transfers;

    dma_transfer_fail(transfer, finish(transfer->ctx, message), message->data);
    pthread_mutex_lock(&transfers->lock);
    transfer->finished++;
    pthread_mutex_unlock(&transfers->lock);
}

/*
 * Puts the next message where a cancel finds it. A request that came earlier has looked through
 * the list already: what it ends does not begin.
 */
static int enlist(struct dma_transfer *transfer)
{
    struct dma_transfers *transfers = &transfer->ctx->transfers;
    int err = 0;

    pthread_mutex_lock(&transfers->lock);
    if (!transfer->listed) {
        transfer->listed = true;
        transfer->by_control = session_is_control(&transfer->ctx->session);
        transfer->cancelled = dma_cancel_due(transfer->ctx, transfer);
        TAILQ_INSERT_TAIL(&transfers->list, transfer, link);
    }
    if (transfer->cancelled) {
        err = -ECANCELED;
    } else {
        transfer->started++;
    }
    pthread_mutex_unlock(&transfers->lock);
    return err;
}

/* Starts the message that was enlisted last. A cancel before the start has not found it pending. */
static int start(struct dma_transfer *transfer, struct dma_message *message)
{
    struct session *session = &transfer->ctx->session;
    struct dma_transfers *transfers = &transfer->ctx->transfers;
    int err = txn_start(session, &message->txn);

    if (err < 0) {
        log_refused(&transfer->ctx->log, err, "%s of %llu bytes at 0x%llx cannot be sent: %s",
                    command_name(message->txn.cmd), (unsigned long long)message->request.count,
                    (unsigned long long)message->request.addr,
                    err == -ENOTCONN ? "there is no client" : strerror(-err));
    }
    pthread_mutex_lock(&transfers->lock);
    if (err < 0) {
        transfer->started--;
    } else if (transfer->cancelled) {
        txn_cancel(session, &message->txn, -ECANCELED);
    }
    pthread_mutex_unlock(&transfers->lock);
    return err;
}

void dma_transfer_add(struct dma_transfer *transfer, const struct dma_target *target, size_t len,
                      void *data)
{
    struct vfu_ctx *ctx = transfer->ctx;
    size_t count;
    int err;

    for (size_t offset = 0; offset < len && transfer->error == 0; offset += count) {
        struct dma_message *message = &transfer->messages[transfer->started % DMA_MESSAGE_WINDOW];

        count = MIN(session_max_transfer(&ctx->session), len - offset);
        if (transfer->started - transfer->finished == DMA_MESSAGE_WINDOW) {
            finish_oldest(transfer);
        }
        if (transfer->error == 0) {
            prepare(message, target, offset, count, (uint8_t *)data + offset, transfer->to_guest,
                    ctx->dma_timeout_ms);
            err = enlist(transfer);
            dma_transfer_fail(transfer, err < 0 ? err : start(transfer, message), message->data);
        }
    }
}

int dma_transfer_end(struct dma_transfer *transfer)
{
    while (transfer->finished < transfer->started) {
        finish_oldest(transfer);
    }
    if (transfer->listed) {
        pthread_mutex_lock(&transfer->ctx->transfers.lock);
        TAILQ_REMOVE(&transfer->ctx->transfers.list, transfer, link);
        pthread_mutex_unlock(&transfer->ctx->transfers.lock);
        transfer->listed = false;
    }
    return transfer->error;
}
