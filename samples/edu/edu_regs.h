/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The EDU device as its driver sees it (QEMU, docs/specs/edu.rst).
 */

#ifndef EDU_REGS_H
#define EDU_REGS_H

#define EDU_VENDOR_ID 0x1234
#define EDU_DEVICE_ID 0x11e8
#define EDU_REVISION 0x10

#define EDU_BAR_SIZE 0x100000
#define EDU_BUFFER_ADDR 0x40000 /* where DMA sees the buffer; the BAR does not show it */
#define EDU_BUFFER_SIZE 4096

enum edu_offset {
    EDU_REG_ID = 0x00,
    EDU_REG_LIVENESS = 0x04,
    EDU_REG_FACTORIAL = 0x08,
    EDU_REG_STATUS = 0x20,
    EDU_REG_IRQ_STATUS = 0x24,
    EDU_REG_IRQ_RAISE = 0x60,
    EDU_REG_IRQ_ACK = 0x64,
    EDU_REG_WIDE = 0x80, /* from here on, 8 byte accesses are allowed too */
    EDU_REG_DMA_SRC = 0x80,
    EDU_REG_DMA_DST = 0x88,
    EDU_REG_DMA_COUNT = 0x90,
    EDU_REG_DMA_CMD = 0x98,
    /* Ours, not QEMU's, and only with an IOMMU interface. */
    EDU_REG_DMA_PASID = 0xa0,
    EDU_REG_DMA_ERROR = 0xa8, /* errno of the last DMA; 0: it went well */
    EDU_REG_DMA_FAULT = 0xb0, /* the first address that failed */
};

#define EDU_ID 0x010000EDu

/* EDU_REG_STATUS */
#define EDU_STATUS_COMPUTING 0x01
#define EDU_STATUS_IRQ 0x80 /* interrupt when the factorial is there */

/* EDU_REG_IRQ_STATUS; a driver may raise any other bit itself */
#define EDU_IRQ_FACTORIAL 0x001
#define EDU_IRQ_DMA 0x100

/* EDU_REG_DMA_CMD */
#define EDU_DMA_RUN 0x1
#define EDU_DMA_TO_RAM 0x2 /* from the buffer to RAM; else from RAM to the buffer */
#define EDU_DMA_IRQ 0x4    /* interrupt at the end */

/* EDU_REG_DMA_PASID: the address space of the next DMA */
#define EDU_PASID_VALID 0x80000000u /* the one of the PASID in bits 0 to 19 */
#define EDU_PASID_MASK 0xfffffu

#endif /* EDU_REGS_H */
