/* SPDX-License-Identifier: BSD-3-Clause */
/* What the tests of configuration space share: a device that records what it is asked. */

#ifndef VFU_TEST_PCI_FIXTURE_H
#define VFU_TEST_PCI_FIXTURE_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pci/pci.h"
#include "pci_caps/ats.h"
#include "pci_caps/pasid.h"
#include "pci_caps/pri.h"

struct pci_device {
    struct pci_config pci;
    bool has_callback;
    ssize_t answer; /* of the callback; 0: the count it was called with */
    int reset_answer;
    unsigned calls; /* of the callback */
    uint64_t last_offset;
    size_t last_count;
    bool last_write;
    unsigned resets, msix_changes, iommu_changes, pri_resets;
    bool msix_enabled, msix_masked;
};

static inline ssize_t pci_device_access(void *owner, char *buf, size_t count, uint64_t offset,
                                        bool is_write)
{
    struct pci_device *dev = owner;

    dev->calls++;
    dev->last_offset = offset;
    dev->last_count = count;
    dev->last_write = is_write;
    if (!is_write) {
        memset(buf, 0xda, count);
    }
    return dev->answer != 0 ? dev->answer : (ssize_t)count;
}

static inline bool pci_device_has_access(void *owner)
{
    return ((struct pci_device *)owner)->has_callback;
}

static inline int pci_device_reset(void *owner)
{
    struct pci_device *dev = owner;

    dev->resets++;
    return dev->reset_answer;
}

static inline void pci_device_msix(void *owner, bool enabled, bool masked)
{
    struct pci_device *dev = owner;

    dev->msix_changes++;
    dev->msix_enabled = enabled;
    dev->msix_masked = masked;
}

static inline void pci_device_iommu(void *owner)
{
    ((struct pci_device *)owner)->iommu_changes++;
}

static inline void pci_device_pri_reset(void *owner)
{
    ((struct pci_device *)owner)->pri_resets++;
}

static inline struct pci_device *new_device(vfu_pci_type_t type)
{
    static const struct logger silent;
    static const struct pci_config_ops ops = {
        .device_access = pci_device_access,
        .has_device_access = pci_device_has_access,
        .reset_function = pci_device_reset,
        .msix_changed = pci_device_msix,
        .iommu_changed = pci_device_iommu,
        .pri_reset = pci_device_pri_reset,
    };
    struct pci_device *dev = calloc(1, sizeof(*dev));

    assert_non_null(dev);
    dev->pci = (struct pci_config){ .log = &silent, .ops = &ops, .owner = dev };
    assert_int_equal(pci_config_init(&dev->pci, type, PCI_HEADER_TYPE_NORMAL), 0);
    return dev;
}

static inline void free_device(struct pci_device *dev)
{
    pci_config_destroy(&dev->pci);
    free(dev);
}

/* 0 or a negative errno. */
static inline int put(struct pci_device *dev, uint64_t offset, uint64_t value, size_t count)
{
    char buf[sizeof(value)];
    ssize_t n;

    memcpy(buf, &value, sizeof(buf));
    n = pci_config_access(&dev->pci, buf, count, offset, true);
    assert_true(n < 0 || n == (ssize_t)count);
    return n < 0 ? (int)n : 0;
}

static inline uint32_t get(struct pci_device *dev, uint64_t offset, size_t count)
{
    uint32_t value = 0;

    assert_int_equal(pci_config_access(&dev->pci, (char *)&value, count, offset, false), count);
    return value;
}

static inline ssize_t add(struct pci_device *dev, size_t pos, int flags, const void *cap)
{
    return pci_config_add_capability(&dev->pci, pos, flags, cap);
}

/* A capability of nothing but its ID; what carries more has its own structure. */
static inline const void *bare(uint8_t id)
{
    static uint8_t cap[64];

    memset(cap, 0, sizeof(cap));
    cap[0] = id;
    return cap;
}

#endif /* VFU_TEST_PCI_FIXTURE_H */
