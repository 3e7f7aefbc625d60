/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * MSI capability, ID 0x05, in its 64-bit form with per-vector masking (PCIe 7.7.1).
 */

#ifndef LIB_VFIO_USER_PCI_CAPS_MSI_H
#define LIB_VFIO_USER_PCI_CAPS_MSI_H

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VFIO_USER_PCI_CAP_MSI_SIZEOF 0x18

/* Message Control */
struct mc {
    unsigned int msie : 1;
    unsigned int mmc : 3;
    unsigned int mme : 3;
    unsigned int c64 : 1;
    unsigned int pvm : 1;
    unsigned int res1 : 7;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct mc, 2);

/* Message Address, low half */
struct ma {
    unsigned int res1 : 2;
    unsigned int addr : 30;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct ma, 4);

struct msicap {
    struct cap_hdr hdr;
    struct mc mc;
    struct ma ma;
    uint32_t mua;
    uint16_t md;
    uint16_t padding;
    uint32_t mmask;
    uint32_t mpend;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct msicap, VFIO_USER_PCI_CAP_MSI_SIZEOF);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_PCI_CAPS_MSI_H */
