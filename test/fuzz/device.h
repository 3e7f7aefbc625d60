/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device with everything: regions of all kinds, all capabilities, interrupts, migration, DMA and
 * the IOMMU extension. A write to the first bytes of BAR 0 is a struct device_order, so that
 * whoever sends it decides which functions of the library the device calls, from inside a callback.
 */
#ifndef VFU_FUZZ_DEVICE_H
#define VFU_FUZZ_DEVICE_H

#include "libvfio-user-iommu.h"
#include "libvfio-user.h"

#include <stdbool.h>
#include <stdint.h>

#define DEVICE_SLOTS 8
#define DEVICE_SGS 8
#define DEVICE_DATA 8192u

enum device_option {
    DEVICE_HAS_DMA = 1 << 0,
    DEVICE_HAS_IOMMU = 1 << 1,
    DEVICE_HAS_MIGRATION = 1 << 2,
    DEVICE_QUIESCES = 1 << 3, /* has a quiesce callback */
    DEVICE_QUIESCES_LATER = 1 << 4, /* which answers EBUSY */
    DEVICE_INVALIDATES_LATER = 1 << 5,
    DEVICE_RELEASES_LATER = 1 << 6, /* keeps what is revoked until it is told to release it */
    DEVICE_CONFIG_CALLBACK = 1 << 7, /* the configuration region has a callback */
};

enum device_order_number {
    ORDER_NOTHING,
    ORDER_SGL_READ,
    ORDER_SGL_WRITE,
    ORDER_SGL_GET, /* keeps what it got in the slot */
    ORDER_SGL_PUT,
    ORDER_MARK_DIRTY,
    ORDER_TRIGGER,
    ORDER_TRIGGER_TYPE,
    ORDER_RESOLVE,
    ORDER_KEEP, /* resolve with a revoked callback */
    ORDER_RELEASE,
    ORDER_MOVE,
    ORDER_CANCEL,
    ORDER_DMA_READ, /* resolve and copy, waiting */
    ORDER_DMA_WRITE,
    ORDER_TRANSLATE,
    ORDER_PAGE_REQUEST,
    ORDER_PASID_STOP,
    ORDER_INVALIDATE_DONE,
    ORDER_QUIESCED,
    ORDER_FAIL, /* the access that carries it fails */
    ORDER_COUNT,
};

struct device_order {
    uint8_t number; /* enum device_order_number, modulo ORDER_COUNT */
    uint8_t slot;
    uint8_t prot;
    uint8_t flags; /* bit 7: with a PASID; the others are those of the call */
    uint32_t pasid;
    uint64_t addr;
    uint32_t len;
    uint32_t attrs;
} __attribute__((packed));

enum slot_state {
    SLOT_FREE,
    SLOT_SGL, /* from vfu_sgl_get() */
    SLOT_BUSY, /* a request that is under way */
    SLOT_HELD,
};

struct device_slot {
    enum slot_state state;
    vfu_dma_request_t req;
    dma_sg_t *sgl;
    struct iovec iov[DEVICE_SGS];
    int nr;
};

struct device {
    vfu_ctx_t *ctx;
    uint8_t options;
    bool quiescing;
    unsigned depth; /* callbacks on the stack */
    struct device_slot slots[DEVICE_SLOTS];
    vfu_invalidation_t *later[64];
    unsigned nr_later;
    unsigned callbacks; /* of translations and page requests: not ended yet */
    unsigned migration_left; /* bytes of state */
    bool fail;
    uint8_t io[256];
    uint8_t data[DEVICE_DATA];
};

/* The files that the device backs its regions with are made once. */
/* log_level: up to which lines are formatted, for nobody to read. */
void device_start(struct device *device, uint8_t options, int log_level);
/* When nothing is under way any more: the client is gone. */
void device_stop(struct device *device);

void device_obey(struct device *device, const struct device_order *order);
/* Lets go of everything that it holds. */
void device_release_all(struct device *device);

#endif /* VFU_FUZZ_DEVICE_H */
