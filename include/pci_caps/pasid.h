/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * PASID extended capability, ID 0x001B (PCIe 7.8.9).
 */

#ifndef LIB_VFIO_USER_PCI_CAPS_PASID_H
#define LIB_VFIO_USER_PCI_CAPS_PASID_H

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VFIO_USER_PCI_EXT_CAP_PASID_SIZEOF 0x8

/* PASID Capability */
struct pasidc {
    uint16_t res1 : 1;
    uint16_t eps : 1;  /* execute permission supported */
    uint16_t pms : 1;  /* privileged mode supported */
    uint16_t trps : 1; /* translated requests with PASID supported */
    uint16_t res2 : 4;
    uint16_t width : 5; /* PASIDs are below 1 << width; at most 20 */
    uint16_t res3 : 3;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pasidc, 2);

/* PASID Control */
union pasidctl {
    uint16_t raw;
    struct {
        uint16_t en : 1;   /* PASID enable */
        uint16_t epe : 1;  /* execute permission enable */
        uint16_t pme : 1;  /* privileged mode enable */
        uint16_t trpe : 1; /* translated requests with PASID enable */
        uint16_t res1 : 12;
    } __attribute__((packed));
} __attribute__((packed));
VFU_ASSERT_SIZE(union pasidctl, 2);

struct pasidcap {
    struct pcie_ext_cap_hdr hdr;
    struct pasidc pasidc;
    union pasidctl pasidctl;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pasidcap, VFIO_USER_PCI_EXT_CAP_PASID_SIZEOF);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_PCI_CAPS_PASID_H */
