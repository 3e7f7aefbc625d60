/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_DMA_CANCEL_H
#define VFU_DEVICE_DMA_CANCEL_H

#include "device/dma_message.h"
#include "util/range.h"

struct request;

/*
 * Nothing that the client waits for waits for the client. A client that serves the device's
 * commands in the loop that waits for its own reply, as QEMU does, answers no DMA_READ or DMA_WRITE
 * meanwhile. So a request ends, with ECANCELED, the transfers by messages that its reply would wait
 * for; late replies are dropped:
 *
 *   DEVICE_RESET, function level reset, bus mastering off, a stop for migration: all
 *   DMA_UNMAP: those into the memory that is unmapped; others go on
 *   ATS_INVALIDATE: those that hold a translation which the request waits for
 *   PASIDs switched off, vfu_pasid_stop(): those of the PASIDs
 *
 * A transfer that another thread begins while such a request is served ends at once. One that the
 * device begins on the control thread inside a callback of the request is sent: that is the
 * device's decision. What a request does not end, but the device may wait for before it has quiesced,
 * has to be answered soon: txn_hurry().
 */

enum dma_ending_kind {
    ENDS_NOTHING,
    ENDS_ALL,
    ENDS_UNMAPPED, /* whose messages go into the range of the space */
    ENDS_INVALIDATED, /* that use translations of the range */
};

/* What a request of the client ends. */
struct dma_ending {
    enum dma_ending_kind kind;
    struct dma_space_name space;
    struct range range;
};

/*
 * Before a request is served, the device asked to quiesce included: ends what the request ends.
 * Returns true when dma_cancel_end() must follow once it has been served. Control thread.
 */
bool dma_cancel_begin(struct vfu_ctx *ctx, const struct request *req);
void dma_cancel_end(struct vfu_ctx *ctx);

/* The control thread waits for the client: ends what parked requests end. */
void dma_cancel_blocked(void *owner);

/* Memory or translations were removed: ends the transfers whose references a drain waits for. */
void dma_cancel_awaited(struct vfu_ctx *ctx);

/* Ends the transfers of one PASID, or of all with VFU_NO_PASID. Any thread. */
void dma_cancel_pasid(struct vfu_ctx *ctx, uint32_t pasid);

/* Whether a transfer that is about to begin must not. Caller holds the list's lock. */
bool dma_cancel_due(const struct vfu_ctx *ctx, const struct dma_transfer *transfer);

#endif /* VFU_DEVICE_DMA_CANCEL_H */
