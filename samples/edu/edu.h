/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The EDU device (QEMU, docs/specs/edu.rst): registers and behaviour. It knows nothing of
 * vfio-user: what it needs from the world is in struct edu_ops. One thread calls it.
 */

#ifndef EDU_H
#define EDU_H

#include "edu_regs.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EDU_DMA_MASK_BITS 28 /* unless the command line says otherwise */

/* A transfer between RAM and the device's buffer. */
struct edu_transfer {
    uint64_t addr; /* in RAM, as the driver gave it, masked */
    uint8_t *buf;
    size_t len;
    bool to_ram;
    bool has_pasid;
    uint32_t pasid;
};

/* How a transfer ended. */
struct edu_dma_result {
    int err; /* 0 or a negative errno */
    uint64_t fault_addr;
};

struct edu_ops {
    /* Start the work and return; edu_factorial_done(), edu_dma_done() report its end. */
    void (*start_factorial)(void *owner, uint32_t n);
    void (*start_dma)(void *owner, const struct edu_transfer *transfer);
    /* The interrupt is asserted, perhaps once more; or no longer, as its status is zero. */
    void (*interrupt)(void *owner, bool asserted);
    void (*vlog)(void *owner, int level, const char *fmt, va_list ap);
};

struct edu {
    const struct edu_ops *ops;
    void *owner;
    uint64_t dma_mask;
    bool has_iommu; /* the registers for one are there */

    /* What reset clears. */
    struct {
        uint32_t liveness;
        uint32_t factorial;
        uint32_t status;
        uint32_t irq_status;
        uint64_t dma_src;
        uint64_t dma_dst;
        uint64_t dma_count;
        uint64_t dma_cmd;
        uint64_t dma_pasid;
        struct edu_dma_result dma_result;
    } regs;
    uint8_t buffer[EDU_BUFFER_SIZE];
};

/* dma_mask_bits: 1 to 64. */
void edu_init(struct edu *edu, const struct edu_ops *ops, void *owner, unsigned dma_mask_bits,
              bool has_iommu);

/* To the state after power-on. No factorial and no DMA may be under way. */
void edu_reset(struct edu *edu);

uint64_t edu_read(const struct edu *edu, uint64_t offset, size_t size);
void edu_write(struct edu *edu, uint64_t offset, size_t size, uint64_t value);

/* n! modulo 2^32. Any thread. */
uint32_t edu_factorial(uint32_t n);
void edu_factorial_done(struct edu *edu, uint32_t result);

static inline bool edu_dma_running(const struct edu *edu)
{
    return (edu->regs.dma_cmd & EDU_DMA_RUN) != 0;
}

void edu_dma_done(struct edu *edu, const struct edu_dma_result *result);

#endif /* EDU_H */
