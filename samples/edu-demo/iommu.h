/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The machine's IOMMU, as small as one can be: a page table per PASID, pages that come when they
 * are asked for, and invalidations. It answers the device on the client library's receiver thread.
 */

#ifndef IOMMU_H
#define IOMMU_H

#include "driver.h"

#include <pthread.h>

#define IOMMU_PASIDS 4
#define IOMMU_PAGES 8
#define IOMMU_PAGE_SIZE 0x1000u
#define IOMMU_BASE 0x10000u /* where the pages of every PASID begin */

struct held_reply {
    bool used;
    uint16_t id;
    uint16_t cmd;
    uint8_t payload[64];
    size_t len;
};

struct machine_iommu {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    vfuc_t *client;
    const struct ram *rams;
    uint64_t map[IOMMU_PASIDS][IOMMU_PAGES];     /* the address of the page in RAM; 0: not there */
    uint64_t on_fault[IOMMU_PASIDS][IOMMU_PAGES]; /* what a page request brings in; 0: nothing */
    bool hold_dma; /* the next DMA message of the device is answered when told to */
    struct held_reply held;
    struct iommu_counts {
        unsigned translations, page_requests, completions;
    } counts;
};

/* What has happened so far. */
struct iommu_counts iommu_counts(struct machine_iommu *iommu);

void iommu_init(struct machine_iommu *iommu);
void iommu_destroy(struct machine_iommu *iommu);

/* For the attachment of a device. */
void iommu_propose(struct machine_iommu *iommu, vfuc_options_t *options);
void iommu_attach(struct machine_iommu *iommu, vfuc_t *client, const struct ram *rams);

void iommu_map(struct machine_iommu *iommu, unsigned pasid, unsigned page, uint64_t addr);
/* What a page request for it will bring in. */
void iommu_provide(struct machine_iommu *iommu, unsigned pasid, unsigned page, uint64_t addr);

/* Starts an invalidation; completions counts those that are done. 0 or -1 and errno. */
int iommu_invalidate(struct machine_iommu *iommu, unsigned pasid, unsigned page);

/* Holds the next DMA message back; waits until it is there; answers it. */
void iommu_hold_dma(struct machine_iommu *iommu);
bool iommu_wait_held(struct machine_iommu *iommu, int timeout_ms);
void iommu_answer_held(struct machine_iommu *iommu);

/* Waits until so many invalidations are completed. */
bool iommu_wait_completions(struct machine_iommu *iommu, unsigned count, int timeout_ms);

#endif /* IOMMU_H */
