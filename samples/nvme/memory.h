/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Guest memory that goes away and comes back. A hypervisor that changes its memory layout, because
 * firmware or a chipset register moves a window, sends a DMA_UNMAP and then a DMA_MAP for the same
 * memory while the guest runs. A lookup in between fails and is no error: it is repeated after the
 * next DMA_MAP and every MEMORY_RETRY_MS, until the grace period (--memory-grace) is over.
 */

#ifndef NVME_MEMORY_H
#define NVME_MEMORY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct nvme;

#define MEMORY_GRACE_MS 5000u
#define MEMORY_GRACE_MAX_MS 600000u
/* With ATS nobody tells the device that a page is present again. */
#define MEMORY_RETRY_MS 20u

struct memory {
    atomic_uint maps;             /* number of DMA_MAP requests so far */
    _Atomic uint64_t unmapped_at; /* ms, of the last DMA_UNMAP; 0: there was none */
};

/* Control thread. Returns 0, or -1 with errno. */
int memory_setup(struct nvme *nvme);

/* Any thread. since: ms, when the first lookup failed. */

/* Returns true if the grace period is over. */
bool memory_is_lost(const struct nvme *nvme, uint64_t since);
/* Returns true if there was a DMA_UNMAP within the grace period, which is not over. */
bool memory_may_return(const struct nvme *nvme, uint64_t since);

#endif /* NVME_MEMORY_H */
