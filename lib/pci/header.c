/* SPDX-License-Identifier: BSD-3-Clause */
/* The header of configuration space (PCI 6.1, 6.2): what a guest may write there. */
#include "pci/pci_internal.h"

#include <string.h>

#define COMMAND_LOW                                                                                \
    (PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INVALIDATE |           \
     PCI_COMMAND_PARITY)
#define COMMAND_HIGH ((PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE) >> 8)
#define STATUS_ERRORS_HIGH 0xf9 /* errors and aborts */

static const uint8_t header_writable[PCI_STD_HEADER_SIZEOF] = {
    [PCI_COMMAND] = COMMAND_LOW, COMMAND_HIGH,
    [PCI_CACHE_LINE_SIZE] = 0xff,
    [PCI_LATENCY_TIMER] = 0xff,
    [PCI_INTERRUPT_LINE] = 0xff,
};

static bool is_upper_half(const struct pci_config *pci, int index)
{
    return index > 0 && (pci->bars[index - 1].flags & VFU_REGION_FLAG_64_BITS);
}

/* A BAR keeps its type bits, and decodes as many address bits as its size leaves. */
static uint32_t bar_mask(const struct pci_config *pci, int index)
{
    bool upper = is_upper_half(pci, index);
    const struct pci_bar *bar = &pci->bars[upper ? index - 1 : index];
    uint64_t mask = bar->size > 0 ? ~(bar->size - 1) : 0;

    if (upper) {
        return (uint32_t)(mask >> 32);
    }
    return (uint32_t)mask & ~(bar->flags & VFU_REGION_FLAG_MEM ? 0xfu : 0x3u);
}

/* As a BAR, of at least 2 KiB, with a bit that enables it (PCI 6.2.5.2). */
static uint32_t rom_mask(uint64_t size)
{
    uint64_t decoded = 1u << 11;

    if (size == 0) {
        return 0;
    }
    while (decoded < size && decoded < 1u << 31) {
        decoded <<= 1;
    }
    return (uint32_t)~(decoded - 1) | PCI_ROM_ADDRESS_ENABLE;
}

void pci_header_init_masks(struct pci_config *pci)
{
    uint8_t *writable = pci->masks.writable;
    uint32_t mask = rom_mask(pci->rom_size);

    memcpy(writable, header_writable, sizeof(header_writable));
    memcpy(writable + PCI_ROM_ADDRESS, &mask, sizeof(mask));
    for (int i = 0; i < PCI_BARS_NR; i++) {
        mask = bar_mask(pci, i);
        memcpy(writable + PCI_BASE_ADDRESS_0 + 4 * i, &mask, sizeof(mask));
    }
    pci->masks.clearable[PCI_STATUS + 1] = STATUS_ERRORS_HIGH;
}

/* The type bits. An upper half has none: they would be part of an address. */
void pci_header_init_bar(struct pci_config *pci, int index)
{
    vfu_bar_t *reg = &pci->space->hdr.bars[index];
    uint32_t flags = pci->bars[index].flags;

    if (is_upper_half(pci, index)) {
        return;
    }
    if (!(flags & VFU_REGION_FLAG_MEM)) {
        reg->io.region_type |= 1;
    }
    if (flags & VFU_REGION_FLAG_64_BITS) {
        reg->mem.locatable = PCI_BASE_ADDRESS_MEM_TYPE_LOCATABLE_64;
    }
    if (flags & VFU_REGION_FLAG_PREFETCH) {
        reg->mem.prefetchable = 1;
        if (!(flags & VFU_REGION_FLAG_64_BITS)) {
            log_warn(pci->log, "pci: BAR %d is prefetchable without 64 bits", index);
        }
    }
}

static void log_command(const struct pci_config *pci, uint16_t old, uint16_t now)
{
    static const struct {
        uint16_t bit;
        const char *name, *set, *clear;
    } bits[] = {
        { PCI_COMMAND_IO, "I/O space", "enabled", "disabled" },
        { PCI_COMMAND_MEMORY, "memory space", "enabled", "disabled" },
        { PCI_COMMAND_MASTER, "bus mastering", "enabled", "disabled" },
        { PCI_COMMAND_INVALIDATE, "memory write and invalidate", "enabled", "disabled" },
        { PCI_COMMAND_PARITY, "parity error response", "enabled", "disabled" },
        { PCI_COMMAND_SERR, "SERR#", "enabled", "disabled" },
        { PCI_COMMAND_INTX_DISABLE, "INTx", "disabled", "enabled" },
    };

    for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++) {
        if ((old ^ now) & bits[i].bit) {
            log_debug(pci->log, "%s %s", bits[i].name, now & bits[i].bit ? bits[i].set
                                                                         : bits[i].clear);
        }
    }
}

void pci_header_written(const struct pci_config *pci, const struct pci_write *write)
{
    const uint64_t rom = PCI_ROM_ADDRESS;
    uint16_t old;

    memcpy(&old, pci->before + PCI_COMMAND, sizeof(old));
    log_command(pci, old, pci->space->hdr.cmd.raw);
    if (write->offset <= rom && write->offset + write->count >= rom + sizeof(uint32_t) &&
        (pci_write_ones(write, rom) | pci_write_ones(write, rom + 2)) == 0) {
        log_debug(pci->log, "cleared EROM");
    }
}
