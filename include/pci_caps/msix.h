/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * MSI-X capability, ID 0x11 (PCIe 7.7.2).
 */

#ifndef LIB_VFIO_USER_PCI_CAPS_MSIX_H
#define LIB_VFIO_USER_PCI_CAPS_MSIX_H

#include <linux/pci_regs.h>
#include <stdint.h>

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Message Control; `ts` is the table size minus one. */
struct mxc {
    uint16_t ts : 11;
    uint16_t reserved : 3;
    uint16_t fm : 1;
    uint16_t mxe : 1;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct mxc, 2);

/* Table: BAR indicator and offset in units of 8 bytes. */
struct mtab {
    uint32_t tbir : 3;
    uint32_t to : 29;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct mtab, 4);

/* Pending bit array: BAR indicator and offset in units of 8 bytes. */
struct mpba {
    uint32_t pbir : 3;
    uint32_t pbao : 29;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct mpba, 4);

struct msixcap {
    struct cap_hdr hdr;
    struct mxc mxc;
    struct mtab mtab;
    struct mpba mpba;
} __attribute__((packed)) __attribute__((aligned(4)));
VFU_ASSERT_SIZE(struct msixcap, PCI_CAP_MSIX_SIZEOF);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_PCI_CAPS_MSIX_H */
