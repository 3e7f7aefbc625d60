/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Headers that every PCI capability begins with, and the two vendor-specific capabilities.
 */

#ifndef LIB_VFIO_USER_PCI_CAPS_COMMON_H
#define LIB_VFIO_USER_PCI_CAPS_COMMON_H

#include <linux/pci_regs.h>
#include <stddef.h>
#include <stdint.h>

#include "../vfu_layout.h"

#ifdef __cplusplus
extern "C" {
#endif

/* PCI Local Bus 6.7: capability list entry. */
struct cap_hdr {
    uint8_t id;
    uint8_t next;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct cap_hdr, 2);

/* Vendor-specific capability, ID 0x09. `size` counts the whole capability in bytes. */
struct vsc {
    struct cap_hdr hdr;
    uint8_t size;
    uint8_t data[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vsc, 3);

/* PCIe 7.6.3: extended capability header. */
struct pcie_ext_cap_hdr {
    uint32_t id : 16;
    uint32_t version : 4;
    uint32_t next : 12;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pcie_ext_cap_hdr, 4);

/* PCIe 7.9.5: vendor-specific extended capability, ID 0x000B. `len` counts the whole of it. */
struct pcie_ext_cap_vsc_hdr {
    struct pcie_ext_cap_hdr hdr;
    uint32_t id : 16;
    uint32_t rev : 4;
    uint32_t len : 12;
    uint8_t data[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pcie_ext_cap_vsc_hdr, 8);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_PCI_CAPS_COMMON_H */
