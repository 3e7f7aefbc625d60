/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * PCI configuration space, type 0 header (PCIe 7.5.1). Every register is a packed union: `raw` is
 * the register, the anonymous structure its fields, lowest bit first.
 */

#ifndef LIBVFIO_USER_PCI_DEFS_H
#define LIBVFIO_USER_PCI_DEFS_H

#include <linux/pci_regs.h>
#include <stdbool.h>
#include <stdint.h>

#include "vfu_layout.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Values of the `locatable` field of a memory BAR. */
#define PCI_BASE_ADDRESS_MEM_TYPE_LOCATABLE_32 (PCI_BASE_ADDRESS_MEM_TYPE_32 >> 1)
#define PCI_BASE_ADDRESS_MEM_TYPE_LOCATABLE_1M (PCI_BASE_ADDRESS_MEM_TYPE_1M >> 1)
#define PCI_BASE_ADDRESS_MEM_TYPE_LOCATABLE_64 (PCI_BASE_ADDRESS_MEM_TYPE_64 >> 1)

#define PCI_BARS_NR 6

/* Vendor and device ID */
typedef union {
    uint32_t raw;
    struct {
        uint16_t vid;
        uint16_t did;
    } __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_id_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_id_t, 4);

/* Subsystem vendor and subsystem ID */
typedef union {
    uint32_t raw;
    struct {
        uint16_t vid;
        uint16_t sid;
    } __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_ss_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_ss_t, 4);

/* Built-in self test */
typedef union {
    uint8_t raw;
} __attribute__((packed)) vfu_pci_hdr_bist_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_bist_t, 1);

/* Header type */
typedef union {
    uint8_t raw;
} __attribute__((packed)) vfu_pci_hdr_htype_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_htype_t, 1);

/* Class code: programming interface, sub class, base class */
typedef union {
    uint8_t raw[3];
    struct {
        uint8_t pi;
        uint8_t scc;
        uint8_t bcc;
    } __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_cc_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_cc_t, 3);

/* Interrupt line and pin */
typedef union {
    uint16_t raw;
    struct {
        uint8_t iline;
        uint8_t ipin;
    } __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_intr_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_intr_t, 2);

/* Base address register */
typedef union {
    uint32_t raw;
    union {
        struct {
            unsigned int region_type : 1;
            unsigned int locatable : 2;
            unsigned int prefetchable : 1;
            unsigned int base_address : 28;
        } __attribute__((packed)) mem;
        struct {
            unsigned int region_type : 1;
            unsigned int reserved : 1;
            unsigned int base_address : 30;
        } __attribute__((packed)) io;
    } __attribute__((packed));
} __attribute__((packed)) vfu_bar_t;
VFU_ASSERT_SIZE(vfu_bar_t, 4);

/* Command */
typedef union {
    uint16_t raw;
    struct {
        uint8_t iose : 1; /* I/O space enable */
        uint8_t mse : 1;  /* memory space enable */
        uint8_t bme : 1;  /* bus master enable */
        uint8_t sce : 1;  /* special cycle enable */
        uint8_t mwie : 1; /* memory write and invalidate enable */
        uint8_t vga : 1;  /* VGA palette snoop */
        uint8_t pee : 1;  /* parity error response */
        uint8_t zero : 1;
        uint8_t see : 1; /* SERR# enable */
        uint8_t fbe : 1; /* fast back-to-back enable */
        uint8_t id : 1;  /* interrupt disable */
        uint8_t res1 : 5;
    } __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_cmd_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_cmd_t, 2);

/* Status */
typedef union {
    uint16_t raw;
    struct {
        unsigned int res1 : 3;
        unsigned int is : 1;  /* interrupt status */
        unsigned int cl : 1;  /* capabilities list */
        unsigned int c66 : 1; /* 66 MHz capable */
        unsigned int res2 : 1;
        unsigned int fbc : 1;  /* fast back-to-back capable */
        unsigned int dpd : 1;  /* master data parity error */
        unsigned int devt : 2; /* DEVSEL timing */
        unsigned int sta : 1;  /* signaled target abort */
        unsigned int rta : 1;  /* received target abort */
        unsigned int rma : 1;  /* received master abort */
        unsigned int sse : 1;  /* signaled system error */
        unsigned int dpe : 1;  /* detected parity error */
    } __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_sts_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_sts_t, 2);

/* The type 0 header */
typedef union {
    uint8_t raw[PCI_STD_HEADER_SIZEOF];
    struct {
        vfu_pci_hdr_id_t id;
        vfu_pci_hdr_cmd_t cmd;
        vfu_pci_hdr_sts_t sts;
        uint8_t rid;
        vfu_pci_hdr_cc_t cc;
        uint8_t cls;
        uint8_t mlt;
        vfu_pci_hdr_htype_t htype;
        vfu_pci_hdr_bist_t bist;
        vfu_bar_t bars[PCI_BARS_NR];
        uint32_t ccptr;
        vfu_pci_hdr_ss_t ss;
        uint32_t erom;
        uint8_t cap;
        uint8_t res1[7];
        vfu_pci_hdr_intr_t intr;
        uint8_t mgnt;
        uint8_t mlat;
    } __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_t, PCI_STD_HEADER_SIZEOF);

/* Configuration space; `extended` exists for PCI-X 2.0 and PCI Express only. */
typedef struct {
    union {
        uint8_t raw[PCI_CFG_SPACE_SIZE];
        vfu_pci_hdr_t hdr;
    } __attribute__((packed));
    uint8_t extended[];
} __attribute__((packed)) vfu_pci_config_space_t;
VFU_ASSERT_SIZE(vfu_pci_config_space_t, PCI_CFG_SPACE_SIZE);

#ifdef __cplusplus
}
#endif

#endif /* LIBVFIO_USER_PCI_DEFS_H */
