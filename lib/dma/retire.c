/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The end of PASID spaces, beside threads that look them up without a lock.
 *
 * A thread that uses a PASID space counts itself in, on a cache line of its own, before it looks
 * for the space. The control thread first takes away what leads to the spaces, then waits until
 * every thread that may have found one has counted itself out. The counters are of two phases, as
 * in the kernel's SRCU: threads come in under the current phase, and the control thread waits for
 * the other one to drain, twice, so that threads which keep coming cannot hold it.
 *
 * A space whose entries are still referenced stays on a list until they are put: those who hold
 * references look through them at the name of the space.
 */

#include <sched.h>
#include <stdlib.h>

#include "dma/dma_internal.h"

unsigned int dma_spaces_enter(struct dma *dma)
{
    unsigned int shard = dma_thread_shard(dma);
    unsigned int phase = atomic_load_explicit(&dma->readers_phase, memory_order_relaxed) & 1;

    atomic_fetch_add(&dma->readers[shard].inside[phase], 1);
    return shard << 1 | phase;
}

void dma_spaces_leave(struct dma *dma, unsigned int ticket)
{
    atomic_fetch_sub_explicit(&dma->readers[ticket >> 1].inside[ticket & 1], 1,
                              memory_order_release);
}

/* Waits for the threads that came in before. They wait for nothing but locks of this process. */
static void wait_for_readers(struct dma *dma)
{
    for (int round = 0; round < 2; round++) {
        unsigned int old = atomic_fetch_xor(&dma->readers_phase, 1) & 1;

        for (size_t i = 0; i < REF_SHARDS; i++) {
            while (atomic_load(&dma->readers[i].inside[old]) != 0) {
                sched_yield();
            }
        }
    }
}

/* Frees the retired spaces that nobody refers to any more. Needs the lock. */
static void sweep(struct dma *dma)
{
    struct dma_space **link = &dma->retired, *space;

    while ((space = *link) != NULL) {
        if (LIST_EMPTY(&space->lingering)) {
            *link = space->next;
            free(space);
        } else {
            link = &space->next;
        }
    }
}

void dma_pasid_spaces_retire(struct dma *dma)
{
    struct aftermath after = { 0 };
    struct space_root *root;
    struct dma_space *space, *next;

    dma_lock(dma);
    root = atomic_exchange(&dma->pasid_root, NULL);
    space = atomic_exchange(&dma->pasid_spaces, NULL);
    atomic_store(&dma->nr_pasid_spaces, 0);
    dma_unlock(dma, &after);
    wait_for_readers(dma);
    space_root_free(root);

    dma_lock(dma);
    for (; space != NULL; space = next) {
        next = space->next;
        space_empty(space, &after);
        space->next = dma->retired;
        dma->retired = space;
    }
    sweep(dma);
    dma_unlock(dma, &after);
}
