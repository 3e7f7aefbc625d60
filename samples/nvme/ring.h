/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Guest memory that is kept: the ring of a queue, a page of shadow doorbells. It is resolved when
 * it is needed, and let go of when the client takes it away or an invalidation meets it.
 */

#ifndef NVME_RING_H
#define NVME_RING_H

#include "libvfio-user-iommu.h"
#include "worker.h"

#include <stddef.h>

#define RING_PAGE 4096u

enum ring_state {
    RING_CLOSED,
    RING_RELEASED, /* to be resolved when needed */
    RING_RESOLVING,
    RING_READY,
};

struct ring {
    struct event event; /* a resolve that had to wait has ended */
    struct worker *worker;
    enum ring_state state;
    uint64_t addr;
    size_t len;
    int prot;
    int error;  /* of the last resolve: 0 or an errno */
    uint64_t missing_since; /* ms, of the first resolve that failed; 0: none, or it is patient */
    bool patient; /* no work is known: it is looked up again after a DMA_MAP, and never lost */
    int answer; /* the same, handed over by the handshake */
    atomic_int handshake;
    atomic_bool revoked;
    size_t max_pages;
    void **pages; /* the host address of each, or NULL: by messages */
    vfu_dma_request_t request;
};

/* Room for max_len bytes. 0 or -ENOMEM. */
int ring_init(struct ring *ring, size_t max_len);
void ring_destroy(struct ring *ring);

/* Page aligned, at most max_len bytes. The rest is for the worker's thread alone. */
void ring_open(struct ring *ring, struct worker *worker, uint64_t addr, size_t len, int prot);
/* A resolve under way is cancelled; its event follows. */
void ring_cancel(struct ring *ring);
/* The same; true: it is closed. */
bool ring_close(struct ring *ring);

/*
 * Returns true if the memory can be used now. If not, it is being resolved and the worker will be
 * woken, or it is not there, and the worker looks it up again later.
 */
bool ring_ready(struct ring *ring);

/* Returns true if the memory was not there for the whole grace period; ring->error says why. */
bool ring_is_lost(const struct ring *ring);

/* The next ring_ready() looks the memory up, even if that has failed before. */
static inline void ring_retry(struct ring *ring)
{
    ring->error = 0;
}

/* Whether it is worth trying: it is there, or has not been asked for. */
static inline bool ring_may_come(const struct ring *ring)
{
    return ring->state != RING_RESOLVING && ring->error == 0;
}

/* Lets go of the memory, if the client has asked for that. */
void ring_check_revoked(struct ring *ring);
void ring_release(struct ring *ring);

/* The host address of len bytes that lie within a page, or NULL: then ring_copy(). */
static inline void *ring_at(const struct ring *ring, size_t offset)
{
    char *page = ring->pages[offset / RING_PAGE];

    return page != NULL ? page + offset % RING_PAGE : NULL;
}

/*
 * Returns 0 or -errno. -ECANCELED: the message was cancelled because the memory is about to be
 * unmapped, or by a reset; the ring was released, and the copy is to be repeated when it is ready.
 */
int ring_copy(struct ring *ring, size_t offset, void *data, size_t len, bool to_guest);

#endif /* NVME_RING_H */
