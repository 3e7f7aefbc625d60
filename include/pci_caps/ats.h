/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Address Translation Services extended capability, ID 0x000F (PCIe 10.5.1).
 */

#ifndef LIB_VFIO_USER_PCI_CAPS_ATS_H
#define LIB_VFIO_USER_PCI_CAPS_ATS_H

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VFIO_USER_PCI_EXT_CAP_ATS_SIZEOF 0x8

/* ATS Capability */
struct atsc {
    uint16_t iqd : 5;  /* invalidate queue depth; 0 means 32 */
    uint16_t par : 1;  /* page aligned request */
    uint16_t gis : 1;  /* global invalidate supported */
    uint16_t ros : 1;  /* relaxed ordering supported */
    uint16_t amas : 1; /* ATS memory attributes supported */
    uint16_t res1 : 7;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct atsc, 2);

/* ATS Control */
union atsctl {
    uint16_t raw;
    struct {
        uint16_t stu : 5; /* smallest translation unit: 4096 << stu bytes */
        uint16_t res1 : 6;
        uint16_t amad : 3; /* ATS memory attributes default */
        uint16_t amae : 1; /* ATS memory attributes enable */
        uint16_t en : 1;   /* ATS enable */
    } __attribute__((packed));
} __attribute__((packed));
VFU_ASSERT_SIZE(union atsctl, 2);

struct atscap {
    struct pcie_ext_cap_hdr hdr;
    struct atsc atsc;
    union atsctl atsctl;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct atscap, VFIO_USER_PCI_EXT_CAP_ATS_SIZEOF);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_PCI_CAPS_ATS_H */
