/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Power Management capability, ID 0x01 (PCIe 7.5.2).
 */

#ifndef LIB_VFIO_USER_PCI_CAPS_PM_H
#define LIB_VFIO_USER_PCI_CAPS_PM_H

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Power Management Capabilities */
struct pc {
    uint16_t vs : 3;
    uint16_t pmec : 1;
    uint16_t res : 1;
    uint16_t dsi : 1;
    uint16_t auxc : 3;
    uint16_t d1s : 1;
    uint16_t d2s : 1;
    uint16_t psup : 5;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pc, 2);

/* Power Management Control and Status */
struct pmcs {
    union {
        uint16_t raw;
        struct {
            uint16_t ps : 2;
            uint16_t res1 : 1;
            uint16_t nsfrst : 1;
            uint16_t res2 : 4;
            uint16_t pmee : 1;
            uint16_t dse : 4;
            uint16_t dsc : 2;
            uint16_t pmes : 1;
        };
    };
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pmcs, 2);

struct pmcap {
    struct cap_hdr hdr;
    struct pc pc;
    struct pmcs pmcs;
    uint8_t pmcsr_bse;
    uint8_t data;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pmcap, PCI_PM_SIZEOF);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_PCI_CAPS_PM_H */
