/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Configuration space on its way to another process.
 *
 * The saved image has the present value of the bits that a guest can change, and of all others the
 * value that the device was set up with. So a device that shows something of its own in read-only
 * bits (a status, a level) does not look like another device.
 */
#include "pci/pci.h"

#include "pci/pci_internal.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

/* In front of the image; little-endian. The sizes of BARs are no registers. */
struct saved_header {
    uint64_t bar_sizes[PCI_BARS_NR];
    uint64_t rom_size;
};

static struct saved_header header_of(const struct pci_config *pci)
{
    struct saved_header header = { .rom_size = htole64(pci->rom_size) };

    for (int i = 0; i < PCI_BARS_NR; i++) {
        header.bar_sizes[i] = htole64(pci->bars[i].size);
    }
    return header;
}

static const uint8_t *image_in(const void *buf)
{
    return (const uint8_t *)buf + sizeof(struct saved_header);
}

/* Returns the bits of a byte that a guest can change. */
static uint8_t guest_bits(const struct pci_config *pci, size_t at)
{
    return pci->masks.writable[at] | pci->masks.clearable[at];
}

/* Returns other's bits where bits has ones, and the byte's own where it has none. */
static uint8_t mix(uint8_t own, uint8_t other, uint8_t bits)
{
    return (uint8_t)((own & ~bits) | (other & bits));
}

size_t pci_config_state_size(const struct pci_config *pci)
{
    return sizeof(struct saved_header) + pci->size;
}

void pci_config_save(const struct pci_config *pci, void *buf)
{
    const struct saved_header header = header_of(pci);
    const uint8_t *space = (const uint8_t *)pci->space;
    uint8_t *image = (uint8_t *)buf + sizeof(header);

    memcpy(buf, &header, sizeof(header));
    for (size_t at = 0; at < pci->size; at++) {
        image[at] = mix(pci->initial[at], space[at], guest_bits(pci, at));
    }
}

static int check_sizes(const struct pci_config *pci, const void *buf)
{
    const struct saved_header here = header_of(pci);
    struct saved_header there;

    memcpy(&there, buf, sizeof(there));
    for (int i = 0; i < PCI_BARS_NR; i++) {
        if (there.bar_sizes[i] != here.bar_sizes[i]) {
            log_err(pci->log, "migration: BAR %d has 0x%llx bytes there and 0x%llx here: refused with "
                    "EINVAL", i, (unsigned long long)le64toh(there.bar_sizes[i]),
                    (unsigned long long)le64toh(here.bar_sizes[i]));
            return -EINVAL;
        }
    }
    if (there.rom_size != here.rom_size) {
        log_err(pci->log, "migration: the ROM has 0x%llx bytes there and 0x%llx here: refused with "
                "EINVAL", (unsigned long long)le64toh(there.rom_size),
                (unsigned long long)le64toh(here.rom_size));
        return -EINVAL;
    }
    return 0;
}

/* Returns the name of what the byte at this offset belongs to. */
static const char *place(const struct pci_config *pci, size_t at)
{
    uint64_t next = UINT64_MAX;
    const struct pci_cap *cap = pci_cap_in(&pci->standard, at, &next);

    if (at < PCI_STD_HEADER_SIZEOF) {
        return "the header";
    }
    if (cap == NULL) {
        cap = pci_cap_in(&pci->extended, at, &next);
    }
    return cap != NULL ? cap->type->name : "no capability";
}

static int check_read_only(const struct pci_config *pci, const uint8_t *image)
{
    for (size_t at = 0; at < pci->size; at++) {
        uint8_t differs = (uint8_t)(image[at] ^ pci->initial[at]) & (uint8_t)~guest_bits(pci, at);

        if (differs != 0) {
            log_err(pci->log, "migration: configuration space: the read-only bits 0x%02x at 0x%zx "
                    "(%s) are 0x%02x there and 0x%02x here: refused with EINVAL", differs, at,
                    place(pci, at), image[at] & differs, pci->initial[at] & differs);
            return -EINVAL;
        }
    }
    return 0;
}

static int check_caps(const struct pci_config *pci, const struct pci_cap_list *list,
                      const uint8_t *image)
{
    for (unsigned i = 0; i < list->nr; i++) {
        const struct pci_cap *cap = &list->caps[i];

        if (pci_cap_is_ours(cap) && cap->type->allows != NULL &&
            !cap->type->allows(image + cap->offset)) {
            log_err(pci->log, "migration: configuration space: %s at 0x%x has a value that a guest "
                    "cannot write: refused with EINVAL", cap->type->name, cap->offset);
            return -EINVAL;
        }
    }
    return 0;
}

int pci_config_check_state(const struct pci_config *pci, const void *buf)
{
    const uint8_t *image = image_in(buf);
    int err = check_sizes(pci, buf);

    if (err == 0) {
        err = check_read_only(pci, image);
    }
    if (err == 0) {
        err = check_caps(pci, &pci->standard, image);
    }
    return err != 0 ? err : check_caps(pci, &pci->extended, image);
}

void pci_config_restore(struct pci_config *pci, const void *buf)
{
    const uint8_t *image = image_in(buf);
    uint8_t *space = (uint8_t *)pci->space;

    for (size_t at = 0; at < pci->size; at++) {
        space[at] = mix(space[at], image[at], guest_bits(pci, at));
    }
    pci_caps_apply(pci);
}
