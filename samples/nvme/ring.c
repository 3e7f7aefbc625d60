/* SPDX-License-Identifier: BSD-3-Clause */
#include "ring.h"

#include "nvme.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Between the thread that resolves and the one that finds the answer: who is second goes on. */
enum handshake {
    HANDSHAKE_OPEN,
    HANDSHAKE_ASKED, /* the resolve call has returned */
    HANDSHAKE_ANSWERED,
};

int ring_init(struct ring *ring, size_t max_len)
{
    /* A page may be cut by the edge of a region: one entry more. */
    size_t max_sgs = max_len / RING_PAGE + 1;

    *ring = (struct ring){ .max_pages = max_len / RING_PAGE };
    ring->pages = calloc(ring->max_pages, sizeof(*ring->pages));
    ring->request.sgl = calloc(max_sgs, dma_sg_size());
    ring->request.iov = calloc(max_sgs, sizeof(*ring->request.iov));
    ring->request.max_nr_sgs = max_sgs;
    if (ring->pages == NULL || ring->request.sgl == NULL || ring->request.iov == NULL) {
        ring_destroy(ring);
        return -ENOMEM;
    }
    return 0;
}

void ring_destroy(struct ring *ring)
{
    free(ring->pages);
    free(ring->request.sgl);
    free(ring->request.iov);
    *ring = (struct ring){ 0 };
}

void ring_open(struct ring *ring, struct worker *worker, uint64_t addr, size_t len, int prot)
{
    ring->worker = worker;
    ring->addr = addr;
    ring->len = len;
    ring->prot = prot;
    ring->error = 0;
    ring->missing_since = 0;
    ring->patient = false;
    ring->state = RING_RELEASED;
}

/* Where each page lies in this process. One that is in two pieces is reached by copying. */
static void fill_pages(struct ring *ring)
{
    const vfu_dma_request_t *req = &ring->request;
    size_t start = 0, nr_pages = (ring->len + RING_PAGE - 1) / RING_PAGE;

    memset(ring->pages, 0, nr_pages * sizeof(*ring->pages));
    for (size_t i = 0; i < req->nr_sgs; i++) {
        size_t end = start + req->iov[i].iov_len;
        size_t page = (start + RING_PAGE - 1) / RING_PAGE;

        for (; req->iov[i].iov_base != NULL && page < nr_pages; page++) {
            size_t from = page * RING_PAGE;
            size_t until = from + RING_PAGE < ring->len ? from + RING_PAGE : ring->len;

            if (until > end) {
                break;
            }
            ring->pages[page] = (char *)req->iov[i].iov_base + (from - start);
        }
        start = end;
    }
}

/* A host that does not ring by messages cannot say that it has work. */
static bool doorbells_are_silent(const struct worker *worker)
{
    return worker->nvme->config.poll || worker->nvme->config.ioeventfd;
}

static void take_answer(struct ring *ring, int error)
{
    ring->error = error;
    /* Given up on both sides' wish, and not because the memory is not there. */
    if (ring->error == ECANCELED || ring->error == EAGAIN) {
        ring->error = 0;
        ring->state = RING_RELEASED;
        return;
    }
    if (ring->error != 0) {
        ring->state = RING_RELEASED;
        if (!ring->patient && ring->missing_since == 0) {
            ring->missing_since = nvme_now_ms();
        }
        worker_await_memory(ring->worker, !ring->patient || doorbells_are_silent(ring->worker));
        return;
    }
    ring->missing_since = 0;
    fill_pages(ring);
    ring->state = RING_READY;
    if (atomic_load(&ring->revoked)) {
        atomic_store(&ring->worker->revoked, true);
    }
}

static void answered(struct worker *worker, struct event *event)
{
    struct ring *ring = (struct ring *)event;

    worker->busy--;
    take_answer(ring, ring->answer);
}

static void resolved(vfu_ctx_t *ctx, vfu_dma_request_t *req, int error)
{
    struct ring *ring = req->pvt;

    (void)ctx;
    ring->answer = error;
    if (atomic_exchange(&ring->handshake, HANDSHAKE_ANSWERED) == HANDSHAKE_ASKED) {
        worker_post(ring->worker, &ring->event);
    }
}

/* The control thread. A call too many does no harm. */
static void revoked(vfu_ctx_t *ctx, vfu_dma_request_t *req)
{
    struct ring *ring = req->pvt;

    (void)ctx;
    atomic_store(&ring->revoked, true);
    atomic_store(&ring->worker->revoked, true);
    worker_wake(ring->worker);
}

static void resolve(struct ring *ring)
{
    vfu_dma_request_t *req = &ring->request;

    req->addr = ring->addr;
    req->len = ring->len;
    req->pasid = VFU_NO_PASID;
    req->prot = ring->prot;
    req->pvt = ring;
    req->done = resolved;
    req->revoked = revoked;
    ring->event.run = answered;
    ring->state = RING_RESOLVING;
    atomic_store(&ring->revoked, false);
    atomic_store(&ring->handshake, HANDSHAKE_OPEN);
    if (vfu_dma_resolve(ring->worker->nvme->ctx, req) != 0) {
        take_answer(ring, errno);
        return;
    }
    if (atomic_exchange(&ring->handshake, HANDSHAKE_ASKED) == HANDSHAKE_ANSWERED) {
        take_answer(ring, ring->answer);
    } else {
        ring->worker->busy++;
    }
}

bool ring_ready(struct ring *ring)
{
    /* What comes to a stop does not begin to wait again. */
    if (ring->state == RING_RELEASED && ring->error == 0 && ring->worker->drain < DRAIN_PARK) {
        resolve(ring);
    }
    return ring->state == RING_READY;
}

bool ring_is_lost(const struct ring *ring)
{
    return ring->error != 0 && ring->missing_since != 0 &&
           memory_is_lost(ring->worker->nvme, ring->missing_since);
}

void ring_release(struct ring *ring)
{
    ring->missing_since = 0;
    if (ring->state == RING_READY) {
        vfu_dma_release(ring->worker->nvme->ctx, &ring->request);
        ring->state = RING_RELEASED;
    }
}

void ring_check_revoked(struct ring *ring)
{
    if (ring->state == RING_READY && atomic_exchange(&ring->revoked, false)) {
        ring_release(ring);
    }
}

void ring_cancel(struct ring *ring)
{
    if (ring->state == RING_RESOLVING) {
        (void)vfu_dma_cancel(ring->worker->nvme->ctx, &ring->request);
    }
}

bool ring_close(struct ring *ring)
{
    if (ring->state == RING_RESOLVING) {
        ring_cancel(ring);
        return false;
    }
    ring_release(ring);
    ring->state = RING_CLOSED;
    return true;
}

int ring_copy(struct ring *ring, size_t offset, void *data, size_t len, bool to_guest)
{
    if (vfu_dma_move(ring->worker->nvme->ctx, &ring->request, offset, data, len, to_guest) == 0) {
        return 0;
    }
    if (errno == ECANCELED) {
        ring_release(ring);
        worker_await_memory(ring->worker, true);
        return -ECANCELED;
    }
    return -errno;
}
