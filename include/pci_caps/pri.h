/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Page Request extended capability, ID 0x0013 (PCIe 10.5.2).
 */

#ifndef LIB_VFIO_USER_PCI_CAPS_PRI_H
#define LIB_VFIO_USER_PCI_CAPS_PRI_H

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VFIO_USER_PCI_EXT_CAP_PRI_SIZEOF 0x10

/* Page Request Control */
union prictl {
    uint16_t raw;
    struct {
        uint16_t en : 1;  /* page request enable */
        uint16_t rst : 1; /* reset: an action, reads 0 */
        uint16_t res1 : 14;
    } __attribute__((packed));
} __attribute__((packed));
VFU_ASSERT_SIZE(union prictl, 2);

/* Page Request Status */
union prists {
    uint16_t raw;
    struct {
        uint16_t rf : 1;    /* response failure, cleared by writing 1 */
        uint16_t uprgi : 1; /* unexpected page request group index, cleared by writing 1 */
        uint16_t res1 : 6;
        uint16_t stopped : 1; /* nothing outstanding while disabled */
        uint16_t res2 : 6;
        uint16_t prpr : 1; /* page request group response needs the PASID */
    } __attribute__((packed));
} __attribute__((packed));
VFU_ASSERT_SIZE(union prists, 2);

struct pricap {
    struct pcie_ext_cap_hdr hdr;
    union prictl prictl;
    union prists prists;
    uint32_t capacity;   /* outstanding page request capacity, in requests */
    uint32_t allocation; /* outstanding page request allocation, in requests */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pricap, VFIO_USER_PCI_EXT_CAP_PRI_SIZEOF);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_PCI_CAPS_PRI_H */
