/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The DMA engine: moves bytes between the device and the memory of the client.
 */

#ifndef DMA_H
#define DMA_H

#include "edu.h"
#include "libvfio-user-iommu.h"

/* Where an address of a transfer means something: every DMA access of the device goes through one. */
struct dma_space {
    vfu_ctx_t *ctx;
    dma_sg_t *sg; /* one entry */
    bool iommu; /* the library resolves addresses, whatever that takes */
};

/* Returns 0 or a negative errno. */
int dma_space_init(struct dma_space *space, vfu_ctx_t *ctx, bool iommu);
void dma_space_destroy(struct dma_space *space);

/*
 * Carries a transfer out: by memory where the client shares it, else by messages, for whose
 * replies it waits. One thread at a time for a space; any thread while the device is not quiesced.
 *
 * @result: receives how it ended.
 */
void dma_transfer(const struct dma_space *space, const struct edu_transfer *transfer,
                  struct edu_dma_result *result);

#endif /* DMA_H */
