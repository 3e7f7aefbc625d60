/* SPDX-License-Identifier: BSD-3-Clause */
/* By the way that the driver has chosen in configuration space: INTx, MSI or MSI-X (NVMe 7.5). */
#include "nvme.h"

#include <errno.h>
#include <string.h>

/* The vector that an entry's interrupt goes out by: fewer than were asked for may be enabled. */
static uint32_t effective_vector(struct nvme *nvme, uint32_t vector)
{
    struct interrupts *irq = &nvme->interrupts;

    switch (atomic_load_explicit(&irq->mode, memory_order_acquire)) {
    case INTERRUPT_INTX:
        return 0;
    case INTERRUPT_MSI:
        return vector & atomic_load_explicit(&irq->msi_mask, memory_order_relaxed);
    default:
        return vector;
    }
}

static bool masked(struct nvme *nvme, uint32_t vector)
{
    struct interrupts *irq = &nvme->interrupts;
    uint32_t mode = atomic_load_explicit(&irq->mode, memory_order_acquire);
    uint32_t intms = atomic_load(&nvme->controller.intms);

    return mode != INTERRUPT_MSIX && (intms >> (effective_vector(nvme, vector) & 31) & 1) != 0;
}

void interrupt_raise(struct nvme *nvme, uint32_t vector)
{
    struct interrupts *irq = &nvme->interrupts;

    if (vector == NO_VALUE || masked(nvme, vector) ||
        (atomic_load_explicit(&irq->mode, memory_order_acquire) == INTERRUPT_INTX &&
         atomic_load_explicit(&irq->intx_disabled, memory_order_relaxed))) {
        return;
    }
    /* ENOENT: nobody listens; the driver polls. */
    if (vfu_irq_trigger(nvme->ctx, effective_vector(nvme, vector)) != 0 && errno != ENOENT) {
        vfu_log(nvme->ctx, LOG_WARNING, "interrupt %u is lost: %s", vector, strerror(errno));
    }
}
