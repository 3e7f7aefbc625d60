/* SPDX-License-Identifier: BSD-3-Clause */
/* Configuration space: the header (PCI 6.1, 6.2), and who serves which byte. */
#include "device/pci_config.h"

#include "device/pci_caps.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>

#define HEADER_SIZE PCI_STD_HEADER_SIZEOF

int pci_config_init(struct pci_config *pci, vfu_pci_type_t type, int hdr_type)
{
    bool express = type == VFU_PCI_TYPE_PCI_X_2 || type == VFU_PCI_TYPE_EXPRESS;

    if ((unsigned)type > VFU_PCI_TYPE_EXPRESS || hdr_type != PCI_HEADER_TYPE_NORMAL) {
        log_err(pci->log, "pci: type %d, header type %d is not supported", type, hdr_type);
        return -EINVAL;
    }
    if (pci->space != NULL) {
        log_err(pci->log, "pci: configuration space exists already");
        return -EEXIST;
    }
    pci->size = express ? PCI_CFG_SPACE_EXP_SIZE : PCI_CFG_SPACE_SIZE;
    pci->type = type;
    pci->space = calloc(1, pci->size);
    return pci->space != NULL ? 0 : -ENOMEM;
}

void pci_config_destroy(struct pci_config *pci)
{
    free(pci->space);
    pci->space = NULL;
}

static bool is_upper_half(const struct pci_config *pci, int index)
{
    return index > 0 && (pci->bars[index - 1].flags & VFU_REGION_FLAG_64_BITS);
}

/* The type bits. An upper half has none: they would be part of an address. */
static void init_bar(struct pci_config *pci, int index)
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

int pci_config_realize(struct pci_config *pci, size_t region_size, bool has_intx)
{
    vfu_pci_hdr_t *hdr;

    if (pci->space == NULL) {
        pci->size = MAX(region_size, PCI_CFG_SPACE_SIZE);
        pci->space = calloc(1, pci->size);
        if (pci->space == NULL) {
            return -ENOMEM;
        }
    }
    hdr = &pci->space->hdr;
    for (int i = 0; i < PCI_BARS_NR; i++) {
        init_bar(pci, i);
    }
    if (has_intx) {
        hdr->intr.ipin = 1;
    }
    if (pci->standard.nr > 0) {
        hdr->sts.cl = 1;
    }
    return 0;
}

/* Header registers */

enum header_rule {
    RULE_STORE,
    RULE_IGNORE,
    RULE_REFUSE,
    RULE_COMMAND,
    RULE_BAR,
    RULE_ROM,
};

/* Every register that a write may begin at. */
static const struct header_register {
    uint8_t offset;
    uint8_t size;
    uint8_t rule;
} header_registers[] = {
    { PCI_VENDOR_ID, 4, RULE_REFUSE },
    { PCI_COMMAND, 2, RULE_COMMAND },
    { PCI_STATUS, 2, RULE_IGNORE },
    { PCI_REVISION_ID, 1, RULE_IGNORE },
    { PCI_CLASS_PROG, 3, RULE_IGNORE },
    { PCI_CACHE_LINE_SIZE, 1, RULE_STORE },
    { PCI_LATENCY_TIMER, 1, RULE_STORE },
    { PCI_HEADER_TYPE, 1, RULE_REFUSE },
    { PCI_BIST, 1, RULE_REFUSE },
    { PCI_BASE_ADDRESS_0, 4, RULE_BAR },
    { PCI_BASE_ADDRESS_1, 4, RULE_BAR },
    { PCI_BASE_ADDRESS_2, 4, RULE_BAR },
    { PCI_BASE_ADDRESS_3, 4, RULE_BAR },
    { PCI_BASE_ADDRESS_4, 4, RULE_BAR },
    { PCI_BASE_ADDRESS_5, 4, RULE_BAR },
    { PCI_CARDBUS_CIS, 4, RULE_REFUSE },
    { PCI_SUBSYSTEM_VENDOR_ID, 4, RULE_REFUSE },
    { PCI_ROM_ADDRESS, 4, RULE_ROM },
    { PCI_CAPABILITY_LIST, 1, RULE_REFUSE },
    { PCI_INTERRUPT_LINE, 1, RULE_STORE },
    { PCI_INTERRUPT_PIN, 1, RULE_IGNORE },
    { PCI_MIN_GNT, 1, RULE_IGNORE },
    { PCI_MAX_LAT, 1, RULE_IGNORE },
};

static const struct header_register *header_register(size_t offset)
{
    for (size_t i = 0; i < sizeof(header_registers) / sizeof(header_registers[0]); i++) {
        if (header_registers[i].offset == offset) {
            return &header_registers[i];
        }
    }
    return NULL;
}

#define COMMAND_STORED                                                                             \
    (PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INVALIDATE |           \
     PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE)

static void log_command(const struct pci_config *pci, uint32_t old, uint32_t now)
{
    static const struct {
        uint32_t bit;
        const char *name, *set, *clear;
    } bits[] = {
        { PCI_COMMAND_IO, "I/O space", "enabled", "disabled" },
        { PCI_COMMAND_MEMORY, "memory space", "enabled", "disabled" },
        { PCI_COMMAND_MASTER, "bus mastering", "enabled", "disabled" },
        { PCI_COMMAND_INVALIDATE, "memory write and invalidate", "enabled", "disabled" },
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

/* value is the whole register as it would be, written the bits that the guest wrote. */
static int write_command(struct pci_config *pci, uint32_t value, uint32_t written)
{
    uint32_t unknown = written & ~(uint32_t)(COMMAND_STORED | PCI_COMMAND_VGA_PALETTE);

    log_command(pci, pci->space->hdr.cmd.raw, value & COMMAND_STORED);
    pci->space->hdr.cmd.raw = (uint16_t)(value & COMMAND_STORED);
    if (unknown != 0) {
        log_err(pci->log, "pci: command register 0x%x has bits that cannot be set (0x%x)", written,
                unknown);
        return -EINVAL;
    }
    return 0;
}

/* A BAR keeps its type bits and decodes as many address bits as its size leaves. */
static int write_bar(struct pci_config *pci, int index, uint32_t value)
{
    vfu_bar_t *reg = &pci->space->hdr.bars[index];
    const struct pci_bar *bar = &pci->bars[index];
    bool upper = is_upper_half(pci, index);
    uint64_t size = upper ? pci->bars[index - 1].size : bar->size;
    uint64_t mask = size > 0 ? ~(size - 1) : 0;
    uint32_t type_bits = bar->flags & VFU_REGION_FLAG_MEM ? 0xf : 0x3;

    if (upper) {
        mask >>= 32;
        type_bits = 0;
    }
    reg->raw = (value & (uint32_t)mask & ~type_bits) | (reg->raw & type_bits);
    return 0;
}

static int write_rom(struct pci_config *pci, uint32_t value)
{
    switch (value) {
    case 0:
        pci->space->hdr.erom = 0;
        log_debug(pci->log, "cleared EROM");
        return 0;
    case (uint32_t)PCI_ROM_ADDRESS_MASK:
    case ~(uint32_t)PCI_ROM_ADDRESS_ENABLE:
    case UINT32_MAX:
        return 0; /* the guest probes for a size, and there is none */
    default:
        log_err(pci->log, "pci: expansion ROM register cannot be 0x%x", value);
        return -EINVAL;
    }
}

/* Bytes that a short write leaves out keep their value. */
static int write_register(struct pci_config *pci, const struct header_register *reg,
                          const char *data, size_t count)
{
    uint8_t *bytes = pci->space->raw + reg->offset;
    uint32_t value = 0, written = 0;

    memcpy(&value, bytes, reg->size);
    memcpy(&value, data, count);
    memcpy(&written, data, count);
    switch (reg->rule) {
    case RULE_STORE:
        memcpy(bytes, data, count);
        return 0;
    case RULE_IGNORE:
        return 0;
    case RULE_COMMAND:
        return write_command(pci, value, written);
    case RULE_BAR:
        return write_bar(pci, (reg->offset - PCI_BASE_ADDRESS_0) / 4, value);
    case RULE_ROM:
        return write_rom(pci, value);
    default:
        log_err(pci->log, "pci: register 0x%x is read-only", reg->offset);
        return -EINVAL;
    }
}

static int write_header(struct pci_config *pci, const char *data, size_t count, size_t offset)
{
    while (count > 0) {
        const struct header_register *reg = header_register(offset);
        size_t n;
        int err;

        if (reg == NULL) {
            log_err(pci->log, "pci: no register begins at 0x%zx", offset);
            return -EINVAL;
        }
        n = MIN(count, reg->size);
        err = write_register(pci, reg, data, n);
        if (err < 0) {
            return err;
        }
        data += n;
        offset += n;
        count -= n;
    }
    return 0;
}

/* Who serves what */

static const struct pci_cap *cap_in(const struct pci_cap_list *list, uint64_t offset,
                                    uint64_t *next)
{
    for (unsigned i = 0; i < list->nr; i++) {
        const struct pci_cap *cap = &list->caps[i];

        if (offset >= cap->offset && offset < (uint64_t)cap->offset + cap->size) {
            return cap;
        }
        if (cap->offset > offset) {
            *next = MIN(*next, cap->offset);
        }
    }
    return NULL;
}

static ssize_t call_device(struct pci_config *pci, char *buf, size_t count, uint64_t offset,
                           bool is_write)
{
    ssize_t n = pci->ops->device_access(pci->owner, buf, count, offset, is_write);

    return n < 0 ? n : (size_t)n == count ? 0 : -EINVAL;
}

/* What is behind the buffer reads 0: a region may be set up larger than its space. */
static void read_buffer(const struct pci_config *pci, char *buf, size_t count, uint64_t offset)
{
    memset(buf, 0, count);
    if (offset < pci->size) {
        memcpy(buf, (const char *)pci->space + offset, MIN(count, pci->size - offset));
    }
}

static int cap_access(struct pci_config *pci, const struct pci_cap *cap, char *buf, size_t count,
                      uint64_t offset, bool is_write)
{
    size_t within = offset - cap->offset;

    if (is_write && (cap->flags & VFU_CAP_FLAG_READONLY)) {
        log_err(pci->log, "pci: capability %s at 0x%x is read-only", cap->type->name, cap->offset);
        return -EPERM;
    }
    if (cap->flags & VFU_CAP_FLAG_CALLBACK) {
        return (int)call_device(pci, buf, count, offset, is_write);
    }
    if (!is_write) {
        read_buffer(pci, buf, count, offset);
        return 0;
    }
    if (within < cap->header || cap->type->write == NULL) {
        log_err(pci->log, "pci: capability %s at 0x%x: offset %zu cannot be written",
                cap->type->name, cap->offset, within);
        return -EPERM;
    }
    return cap->type->write(pci, cap, within, (const uint8_t *)buf, count);
}

static int gap_access(struct pci_config *pci, char *buf, size_t count, uint64_t offset,
                      bool is_write)
{
    if (pci->ops->has_device_access(pci->owner)) {
        return (int)call_device(pci, buf, count, offset, is_write);
    }
    if (is_write) {
        log_err(pci->log, "pci: write of %zu bytes at 0x%llx meets no register", count,
                (unsigned long long)offset);
        return -EINVAL;
    }
    read_buffer(pci, buf, count, offset);
    return 0;
}

/* The part of an access that one party serves. Returns its length, or a negative errno. */
static ssize_t access_part(struct pci_config *pci, char *buf, size_t count, uint64_t offset,
                           bool is_write)
{
    uint64_t next = UINT64_MAX;
    const struct pci_cap *cap;
    size_t n;
    int err;

    if (offset < HEADER_SIZE) {
        n = MIN(count, HEADER_SIZE - offset);
        if (is_write) {
            err = write_header(pci, buf, n, offset);
        } else {
            read_buffer(pci, buf, n, offset);
            err = 0;
        }
        return err < 0 ? err : (ssize_t)n;
    }
    cap = cap_in(&pci->standard, offset, &next);
    if (cap == NULL) {
        cap = cap_in(&pci->extended, offset, &next);
    }
    if (cap != NULL) {
        n = MIN(count, cap->offset + (size_t)cap->size - offset);
        err = cap_access(pci, cap, buf, n, offset, is_write);
    } else {
        n = MIN(count, next - offset);
        err = gap_access(pci, buf, n, offset, is_write);
    }
    return err < 0 ? err : (ssize_t)n;
}

ssize_t pci_config_access(struct pci_config *pci, char *buf, size_t count, uint64_t offset,
                          bool is_write)
{
    size_t done = 0;

    while (done < count) {
        ssize_t n = access_part(pci, buf + done, count - done, offset + done, is_write);

        if (n < 0) {
            return n;
        }
        done += (size_t)n;
    }
    return (ssize_t)count;
}
