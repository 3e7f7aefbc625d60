/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_DMA_MESSAGE_H
#define VFU_DEVICE_DMA_MESSAGE_H

#include "dma/dma.h"
#include "session/txn.h"

#include <pthread.h>
#include <sys/queue.h>

struct vfu_ctx;

/* Enough to hide a round trip; more would only fill the socket. */
#define DMA_MESSAGE_WINDOW 8

/* One message of a transfer. */
struct dma_message {
    struct txn txn;
    struct vfio_user_pasid_prefix prefix;
    struct vfio_user_dma_region_access request;
    struct vfio_user_dma_region_access reply;
    struct iovec out[3];
    const void *data;
};

/*
 * A transfer between the device's memory and any number of ranges of the client's, by DMA_READ or
 * DMA_WRITE messages of which several are in flight. Any thread; it lives on the stack of one.
 * From its first message on it is on the context's list, so that a request of the client can end
 * it: see dma_cancel.h.
 */
struct dma_transfer {
    struct vfu_ctx *ctx;
    const struct dma_sg *sgl; /* what the caller holds references to until the end */
    size_t nr_sgs;
    uint32_t pasid; /* VFU_NO_PASID for none */
    bool to_guest;
    bool by_control; /* runs on the control thread */
    bool listed;
    bool cancelled; /* under the list's lock, as are started and finished */
    int error; /* the first; nothing is sent after it */
    const void *failed_at; /* where the data of that begins */
    size_t started, finished;
    struct dma_message messages[DMA_MESSAGE_WINDOW];
    TAILQ_ENTRY(dma_transfer) link;
};

/* The transfers of a context that use messages. */
struct dma_transfers {
    pthread_mutex_t lock; /* taken before the locks of the session and of the DMA room */
    TAILQ_HEAD(, dma_transfer) list;
};

void dma_transfers_init(struct dma_transfers *transfers);
void dma_transfers_destroy(struct dma_transfers *transfers);

/*
 * Ends the transfers that are selected: their messages without a reply end with -ECANCELED, and no
 * more are sent. select is called with the list's lock held. Returns how many transfers were ended.
 */
typedef bool dma_transfer_select_fn(const struct dma_transfer *transfer, const void *arg);
unsigned dma_transfers_cancel(struct vfu_ctx *ctx, dma_transfer_select_fn *select, const void *arg);

void dma_transfer_init(struct dma_transfer *transfer, struct vfu_ctx *ctx,
                       const struct dma_sg *sgl, size_t nr_sgs, uint32_t pasid, bool to_guest);

/* Adds len bytes of a message-mode target. data stays in use until dma_transfer_end(). */
void dma_transfer_add(struct dma_transfer *transfer, const struct dma_target *target, size_t len,
                      void *data);

/* Ends the transfer with the error of what the caller has moved in another way, unless it is 0. */
void dma_transfer_fail(struct dma_transfer *transfer, int error, const void *data);

/*
 * Waits for all of it. 0 or a negative errno: the client's, -ETIMEDOUT, -ENOTCONN, -ECANCELED, or
 * -EINVAL for a reply that does not fit. What a failed transfer moved is undefined.
 */
int dma_transfer_end(struct dma_transfer *transfer);

#endif /* VFU_DEVICE_DMA_MESSAGE_H */
