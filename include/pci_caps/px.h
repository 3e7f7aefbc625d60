/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * PCI Express capability, ID 0x10, version 2 (PCIe 7.5.3). Registers that the library treats as
 * opaque consist of one `stuff` field.
 */

#ifndef LIB_VFIO_USER_PCI_CAPS_PX_H
#define LIB_VFIO_USER_PCI_CAPS_PX_H

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VFIO_USER_PCI_CAP_EXP_SIZEOF 0x3c

/* PCI Express Capabilities */
struct pxcaps {
    uint16_t ver : 4;
    uint16_t dpt : 4;
    uint16_t si : 1;
    uint16_t imn : 5;
    uint16_t res1 : 2;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxcaps, 2);

/* Device Capabilities */
struct pxdcap {
    uint32_t mps : 3;
    uint32_t pfs : 2;
    uint32_t etfs : 1;
    uint32_t l0sl : 3;
    uint32_t l1l : 3;
    uint32_t res1 : 3;
    uint32_t rer : 1;
    uint32_t res2 : 2;
    uint32_t csplv : 8;
    uint32_t cspls : 2;
    uint32_t flrc : 1;
    uint32_t res3 : 3;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxdcap, 4);

/* Device Control */
union pxdc {
    uint16_t raw;
    struct {
        uint16_t cere : 1;
        uint16_t nfere : 1;
        uint16_t fere : 1;
        uint16_t urre : 1;
        uint16_t ero : 1;
        uint16_t mps : 3;
        uint16_t ete : 1;
        uint16_t pfe : 1;
        uint16_t appme : 1;
        uint16_t ens : 1;
        uint16_t mrrs : 3;
        uint16_t iflr : 1;
    } __attribute__((packed));
} __attribute__((packed));
VFU_ASSERT_SIZE(union pxdc, 2);

/* Device Status */
struct pxds {
    uint16_t stuff : 16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxds, 2);

/* Link Capabilities */
struct pxlcap {
    uint32_t stuff : 32;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxlcap, 4);

/* Link Control */
union pxlc {
    uint16_t raw;
    struct {
        uint16_t aspmc : 2;
        uint16_t rsvdp1 : 1;
        uint16_t rcb : 1;
        uint16_t ld : 1;
        uint16_t rl : 1;
        uint16_t ccc : 1;
        uint16_t es : 1;
        uint16_t clkreq_en : 1;
        uint16_t hawd : 1;
        uint16_t lbmie : 1;
        uint16_t labie : 1;
        uint16_t rsvdp2 : 4;
    } __attribute__((packed));
} __attribute__((packed));
VFU_ASSERT_SIZE(union pxlc, 2);

/* Link Status */
struct pxls {
    uint16_t stuff : 16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxls, 2);

/* Slot Capabilities */
struct pxscap {
    uint32_t stuff : 32;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxscap, 4);

/* Slot Control */
struct pxsc {
    uint16_t stuff : 16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxsc, 2);

/* Slot Status */
struct pxss {
    uint16_t stuff : 16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxss, 2);

/* Root Control */
struct pxrc {
    uint16_t stuff : 16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxrc, 2);

/* Root Capabilities */
struct pxrcap {
    uint16_t stuff : 16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxrcap, 2);

/* Root Status */
struct pxrs {
    uint32_t stuff : 32;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxrs, 4);

/* Device Capabilities 2 */
struct pxdcap2 {
    uint32_t ctrs : 4;
    uint32_t ctds : 1;
    uint32_t arifs : 1;
    uint32_t aors : 1;
    uint32_t aocs32 : 1;
    uint32_t aocs64 : 1;
    uint32_t ccs128 : 1;
    uint32_t nprpr : 1;
    uint32_t ltrs : 1;
    uint32_t tphcs : 2;
    uint32_t ln : 2;
    uint32_t tcs : 1;
    uint32_t trs : 1;
    uint32_t obffs : 2;
    uint32_t effs : 1;
    uint32_t eetps : 1;
    uint32_t meetp : 2;
    uint32_t eprs : 2;
    uint32_t eprir : 1;
    uint32_t res1 : 1;
    uint32_t dmwcs : 1;
    uint32_t dmwls : 2;
    uint32_t frss : 1;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxdcap2, 4);

/* Device Control 2. `comp_timout_dis` is spelled so for source compatibility. */
union pxdc2 {
    uint16_t raw;
    struct {
        uint32_t comp_timeout : 4;
        uint32_t comp_timout_dis : 1;
        uint32_t ari : 1;
        uint32_t atomic_req : 1;
        uint32_t atomic_egress_block : 1;
        uint32_t ido_req_en : 1;
        uint32_t ido_cmp_en : 1;
        uint32_t ltr_en : 1;
        uint32_t obff_en : 2;
        uint32_t end_end_tlp_prefix_block : 1;
    } __attribute__((packed));
} __attribute__((packed));
VFU_ASSERT_SIZE(union pxdc2, 2);

/* Device Status 2 */
struct pxds2 {
    uint16_t stuff : 16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxds2, 2);

/* Link Capabilities 2 */
struct pxlcap2 {
    uint32_t stuff : 32;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxlcap2, 4);

/* Link Control 2 */
struct pxlc2 {
    uint16_t stuff : 16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxlc2, 2);

/* Link Status 2 */
struct pxls2 {
    uint16_t stuff : 16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxls2, 2);

/* Slot Capabilities 2 */
struct pxscap2 {
    uint32_t stuff : 32;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxscap2, 4);

/* Slot Control 2 */
struct pxsc2 {
    uint16_t stuff : 16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxsc2, 2);

/* Slot Status 2 */
struct pxss2 {
    uint16_t stuff : 16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxss2, 2);

struct pxcap {
    struct cap_hdr hdr;
    struct pxcaps pxcaps;
    struct pxdcap pxdcap;
    union pxdc pxdc;
    struct pxds pxds;
    struct pxlcap pxlcap;
    union pxlc pxlc;
    struct pxls pxls;
    struct pxscap pxscap;
    struct pxsc pxsc;
    struct pxss pxss;
    struct pxrc pxrc;
    struct pxrcap pxrcap;
    struct pxrs pxrs;
    struct pxdcap2 pxdcap2;
    union pxdc2 pxdc2;
    struct pxds2 pxds2;
    struct pxlcap2 pxlcap2;
    struct pxlc2 pxlc2;
    struct pxls2 pxls2;
    struct pxscap2 pxscap2;
    struct pxsc2 pxsc2;
    struct pxss2 pxss2;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxcap, VFIO_USER_PCI_CAP_EXP_SIZEOF);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_PCI_CAPS_PX_H */
