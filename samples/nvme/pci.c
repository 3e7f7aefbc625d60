/* SPDX-License-Identifier: BSD-3-Clause */
/* The PCI function: identity, capabilities, BARs, and what the driver has switched on. */
#include "nvme.h"

#include <string.h>

/*
 * Nobody's identity: drivers go by the class. That of QEMU's own controller would have Linux work
 * around defects which this one has not (no Write Zeroes, namespace identifiers ignored).
 */
#define VENDOR_ID 0x1234
#define DEVICE_ID 0x11e9
#define SUBSYSTEM_VENDOR_ID 0x1af4
#define SUBSYSTEM_ID 0x1100
#define CLASS_STORAGE 0x01
#define CLASS_NVM 0x08
#define CLASS_NVME 0x02

#define REGISTER_BAR_SIZE 0x4000
#define MSIX_BAR VFU_PCI_DEV_BAR4_REGION_IDX
#define MSIX_BAR_SIZE 0x2000
#define MSIX_PBA 0x1000

#define LINK_2_5GT_X1 0x11

/* Power states and a function level reset, and two ways to interrupt. */
static int add_capabilities(struct nvme *nvme)
{
    struct pmcap pm = { .hdr.id = PCI_CAP_ID_PM, .pc.vs = 3, .pmcs.nsfrst = 1 };
    struct pxcap express = {
        .hdr.id = PCI_CAP_ID_EXP,
        .pxcaps.ver = 2,
        .pxdcap = { .rer = 1, .flrc = 1 },
        .pxlcap.stuff = LINK_2_5GT_X1,
        .pxls.stuff = LINK_2_5GT_X1,
    };
    struct msixcap msix = {
        .hdr.id = PCI_CAP_ID_MSIX,
        .mxc.ts = (uint16_t)(nvme_vectors(nvme) - 1),
        .mtab.tbir = MSIX_BAR,
        .mpba = { .pbir = MSIX_BAR, .pbao = MSIX_PBA >> 3 },
    };
    struct msicap msi = { .hdr.id = PCI_CAP_ID_MSI, .mc = { .mmc = 5, .c64 = 1 } };
    ssize_t msi_pos, msix_pos;

    if (vfu_pci_add_capability(nvme->ctx, 0, 0, &pm) < 0 ||
        vfu_pci_add_capability(nvme->ctx, 0, 0, &express) < 0) {
        return -1;
    }
    msix_pos = vfu_pci_add_capability(nvme->ctx, 0, 0, &msix);
    msi_pos = vfu_pci_add_capability(nvme->ctx, 0, 0, &msi);
    if (msix_pos < 0 || msi_pos < 0) {
        return -1;
    }
    nvme->interrupts.msix_pos = (size_t)msix_pos;
    nvme->interrupts.msi_pos = (size_t)msi_pos;
    return 0;
}

static ssize_t access_registers(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset,
                                bool is_write)
{
    struct nvme *nvme = vfu_get_private(ctx);

    if (is_write) {
        pci_sync(nvme);
    }
    return controller_access(nvme, buf, count, (uint64_t)offset, is_write);
}

static int setup_regions(struct nvme *nvme)
{
    struct iovec doorbells = { .iov_base = (void *)NVME_REG_END, .iov_len = DOORBELL_PAGE };
    bool poll = nvme->config.poll;

    if (share_open(nvme) != 0 ||
        vfu_setup_region(nvme->ctx, REGISTER_BAR, REGISTER_BAR_SIZE, access_registers,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM | VFU_REGION_FLAG_64_BITS,
                         poll ? &doorbells : NULL, poll, poll ? nvme->doorbell_fd : -1, 0) != 0) {
        return -1;
    }
    /* Without a callback: the library keeps the MSI-X table. */
    return vfu_setup_region(nvme->ctx, MSIX_BAR, MSIX_BAR_SIZE, NULL,
                            VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0);
}

static void intx_mask_changed(vfu_ctx_t *ctx, uint32_t start, uint32_t count, bool mask)
{
    (void)start;
    (void)count;
    if (!mask) {
        queues_interrupt_again(vfu_get_private(ctx));
    }
}

static int setup_interrupts(struct nvme *nvme)
{
    if (vfu_setup_device_nr_irqs(nvme->ctx, VFU_DEV_INTX_IRQ, 1) != 0 ||
        vfu_setup_device_nr_irqs(nvme->ctx, VFU_DEV_MSI_IRQ, NVME_MSI_VECTORS) != 0 ||
        vfu_setup_device_nr_irqs(nvme->ctx, VFU_DEV_MSIX_IRQ, nvme_vectors(nvme)) != 0) {
        return -1;
    }
    return vfu_setup_irq_state_callback(nvme->ctx, VFU_DEV_INTX_IRQ, intx_mask_changed);
}

int pci_setup(struct nvme *nvme)
{
    vfu_ctx_t *ctx = nvme->ctx;

    if (vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) != 0) {
        return -1;
    }
    vfu_pci_set_id(ctx, VENDOR_ID, DEVICE_ID, SUBSYSTEM_VENDOR_ID, SUBSYSTEM_ID);
    vfu_pci_set_class(ctx, CLASS_STORAGE, CLASS_NVM, CLASS_NVME);
    vfu_pci_get_config_space(ctx)->hdr.rid = 1;
    if (add_capabilities(nvme) != 0 || setup_regions(nvme) != 0 || bells_setup(nvme) != 0) {
        return -1;
    }
    return setup_interrupts(nvme);
}

static uint16_t config_word(const struct nvme *nvme, size_t pos)
{
    uint16_t word;

    memcpy(&word, (const uint8_t *)vfu_pci_get_config_space(nvme->ctx) + pos, sizeof(word));
    return word;
}

static void set_config_word(struct nvme *nvme, size_t pos, uint16_t word)
{
    memcpy((uint8_t *)vfu_pci_get_config_space(nvme->ctx) + pos, &word, sizeof(word));
}

/* Interrupt Status shows the level, whether or not it may go out (PCI 6.2.3). */
static void sync_status(struct nvme *nvme, uint32_t mode)
{
    uint16_t status = config_word(nvme, PCI_STATUS) & (uint16_t)~PCI_STATUS_INTERRUPT;

    if (mode == INTERRUPT_INTX && queues_interrupting(nvme)) {
        status |= PCI_STATUS_INTERRUPT;
    }
    set_config_word(nvme, PCI_STATUS, status);
}

static void sync_interrupts(struct nvme *nvme)
{
    struct interrupts *irq = &nvme->interrupts;
    bool disabled = (config_word(nvme, PCI_COMMAND) & PCI_COMMAND_INTX_DISABLE) != 0;
    bool was_disabled = atomic_exchange(&irq->intx_disabled, disabled);
    uint16_t msi = config_word(nvme, irq->msi_pos + PCI_MSI_FLAGS);
    uint16_t msix = config_word(nvme, irq->msix_pos + PCI_MSIX_FLAGS);
    uint32_t mode = INTERRUPT_INTX;

    if (msix & PCI_MSIX_FLAGS_ENABLE) {
        mode = INTERRUPT_MSIX;
    } else if (msi & PCI_MSI_FLAGS_ENABLE) {
        mode = INTERRUPT_MSI;
        atomic_store_explicit(&irq->msi_mask, (1u << ((msi & PCI_MSI_FLAGS_QSIZE) >> 4)) - 1,
                              memory_order_relaxed);
    }
    atomic_store_explicit(&irq->mode, mode, memory_order_release);
    sync_status(nvme, mode);
    if (was_disabled && !disabled) {
        queues_interrupt_again(nvme);
    }
}

void pci_sync(struct nvme *nvme)
{
    uint16_t command = config_word(nvme, PCI_COMMAND);
    uint32_t hold = atomic_load(&nvme->controller.hold);

    sync_interrupts(nvme);
    if (!(command & PCI_COMMAND_MASTER)) {
        controller_hold(nvme, HOLD_BUS_MASTER);
    } else if (hold & HOLD_BUS_MASTER) {
        nvme->told_bus_master = false;
        controller_unhold(nvme, HOLD_BUS_MASTER);
    }
}

static void clear_config_bits(struct nvme *nvme, size_t pos, uint16_t bits)
{
    set_config_word(nvme, pos, config_word(nvme, pos) & (uint16_t)~bits);
}

void pci_reset(struct nvme *nvme)
{
    clear_config_bits(nvme, PCI_COMMAND, UINT16_MAX);
    clear_config_bits(nvme, nvme->interrupts.msi_pos + PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE);
    clear_config_bits(nvme, nvme->interrupts.msix_pos + PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE);
    pci_sync(nvme);
}
