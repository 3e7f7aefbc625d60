/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Configuration space: who serves which byte, and what writes and resets do to the bits.
 *
 * Masks say of every bit what may happen to it (header.c, cap_types.c). One loop writes and
 * one loop resets, for all registers there are.
 */
#include "pci/pci.h"

#include "pci/pci_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>

#define HEADER_SIZE PCI_STD_HEADER_SIZEOF

/* Set-up */

/* The space, and one array of the same size for each of the others: all of whole words. */
static int allocate(struct pci_config *pci, size_t size)
{
    const size_t room = roundup(size, sizeof(uint64_t));
    uint8_t *arrays = calloc(5, room);

    pci->space = calloc(1, room);
    if (pci->space == NULL || arrays == NULL) {
        free(arrays);
        free(pci->space);
        pci->space = NULL;
        return -ENOMEM;
    }
    pci->size = size;
    pci->masks = (struct pci_masks){
        .writable = arrays,
        .clearable = arrays + room,
        .sticky = arrays + 2 * room,
    };
    pci->initial = arrays + 3 * room;
    pci->before = arrays + 4 * room;
    pci_header_init_masks(pci);
    return 0;
}

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
    pci->type = type;
    return allocate(pci, express ? PCI_CFG_SPACE_EXP_SIZE : PCI_CFG_SPACE_SIZE);
}

void pci_config_destroy(struct pci_config *pci)
{
    free(pci->space);
    free(pci->masks.writable);
    pci->space = NULL;
}

int pci_config_realize(struct pci_config *pci, size_t region_size, bool has_intx)
{
    vfu_pci_hdr_t *hdr;

    if (pci->space == NULL && allocate(pci, MAX(region_size, PCI_CFG_SPACE_SIZE)) < 0) {
        return -ENOMEM;
    }
    hdr = &pci->space->hdr;
    for (int i = 0; i < PCI_BARS_NR; i++) {
        pci_header_init_bar(pci, i);
    }
    if (has_intx) {
        hdr->intr.ipin = 1;
    }
    if (pci->standard.nr > 0) {
        hdr->sts.cl = 1;
    }
    pci_header_init_masks(pci);
    memcpy(pci->initial, pci->space, pci->size);
    return 0;
}

/* Who serves what */

const struct pci_cap *pci_cap_in(const struct pci_cap_list *list, uint64_t offset, uint64_t *next)
{
    for (unsigned i = 0; i < list->nr; i++) {
        const struct pci_cap *cap = &list->caps[i];

        if (offset >= cap->offset && offset < (uint64_t)cap->offset + cap->size) {
            *next = (uint64_t)cap->offset + cap->size;
            return cap;
        }
        if (cap->offset > offset) {
            *next = MIN(*next, cap->offset);
        }
    }
    return NULL;
}

/* A piece of an access that one party serves. */
struct part {
    size_t count;
    bool by_device; /* by its callback */
    bool read_only;
};

static struct part part_at(const struct pci_config *pci, uint64_t offset, size_t count)
{
    uint64_t next = UINT64_MAX;
    const struct pci_cap *cap;

    if (offset < HEADER_SIZE) {
        return (struct part){ .count = MIN(count, HEADER_SIZE - offset) };
    }
    cap = pci_cap_in(&pci->standard, offset, &next);
    if (cap == NULL) {
        cap = pci_cap_in(&pci->extended, offset, &next);
    }
    return (struct part){
        .count = MIN(count, next - offset),
        .by_device = cap != NULL ? cap->flags & VFU_CAP_FLAG_CALLBACK
                                 : pci->ops->has_device_access(pci->owner),
        .read_only = cap != NULL && (cap->flags & VFU_CAP_FLAG_READONLY),
    };
}

/* Bytes beyond the buffer read as 0, because a region may be set up larger than its space. */
static void read_buffer(const struct pci_config *pci, char *buf, size_t count, uint64_t offset)
{
    memset(buf, 0, count);
    if (offset < pci->size) {
        memcpy(buf, (const char *)pci->space + offset, MIN(count, pci->size - offset));
    }
}

/* All of a read, or those parts of a write that the device serves. 0 or a negative errno. */
static int access_parts(struct pci_config *pci, char *buf, size_t count, uint64_t offset,
                        bool is_write)
{
    while (count > 0) {
        const struct part part = part_at(pci, offset, count);

        if (part.by_device && !(is_write && part.read_only)) {
            ssize_t n = pci->ops->device_access(pci->owner, buf, part.count, offset, is_write);

            if (n != (ssize_t)part.count) {
                return n < 0 ? (int)n : -EINVAL;
            }
        } else if (!is_write) {
            read_buffer(pci, buf, part.count, offset);
        }
        buf += part.count;
        offset += part.count;
        count -= part.count;
    }
    return 0;
}

/* Writes */

static void store(struct pci_config *pci, const struct pci_write *write)
{
    uint8_t *space = (uint8_t *)pci->space;

    memcpy(pci->before, space, pci->size);
    for (size_t i = 0; i < write->count && write->offset + i < pci->size; i++) {
        uint64_t at = write->offset + i;
        uint8_t writable = pci->masks.writable[at], data = write->data[i];
        uint8_t cleared = data & pci->masks.clearable[at];

        space[at] = (uint8_t)((space[at] & ~writable & ~cleared) | (data & writable));
    }
}

static int run_written(struct pci_config *pci, const struct pci_cap_list *list,
                       const struct pci_write *write)
{
    int result = 0;

    for (unsigned i = 0; i < list->nr; i++) {
        const struct pci_cap *cap = &list->caps[i];
        int err;

        if (cap->type->written == NULL || !pci_cap_is_ours(cap) ||
            write->offset >= (uint64_t)cap->offset + cap->size ||
            cap->offset >= write->offset + write->count) {
            continue;
        }
        err = cap->type->written(pci, cap, write);
        result = result == 0 ? err : result;
    }
    return result;
}

/* The extended ones first: a function level reset, of a standard one, comes last. */
static int write_space(struct pci_config *pci, const char *data, size_t count, uint64_t offset)
{
    const struct pci_write write = {
        .data = (const uint8_t *)data, .offset = offset, .count = count
    };
    int extended, standard;

    store(pci, &write);
    pci_header_written(pci, &write);
    extended = run_written(pci, &pci->extended, &write);
    standard = run_written(pci, &pci->standard, &write);
    return standard != 0 ? standard : extended;
}

ssize_t pci_config_access(struct pci_config *pci, char *buf, size_t count, uint64_t offset,
                          bool is_write)
{
    int err = access_parts(pci, buf, count, offset, is_write);

    if (err == 0 && is_write) {
        err = write_space(pci, buf, count, offset);
    }
    return err < 0 ? err : (ssize_t)count;
}

/* Reset */

static uint64_t word_at(const uint8_t *bytes, size_t at)
{
    uint64_t word;

    memcpy(&word, bytes + at, sizeof(word));
    return word;
}

/* A word at a time: this loop is most of what a reset takes. */
static void restore(struct pci_config *pci, enum pci_reset kind)
{
    uint8_t *space = (uint8_t *)pci->space;
    uint64_t bits, word;

    for (size_t at = 0; at < pci->size; at += sizeof(word)) {
        bits = word_at(pci->masks.writable, at) | word_at(pci->masks.clearable, at);
        if (kind == PCI_RESET_FUNCTION) {
            bits &= ~word_at(pci->masks.sticky, at);
        }
        word = (word_at(space, at) & ~bits) | (word_at(pci->initial, at) & bits);
        memcpy(space + at, &word, sizeof(word));
    }
}

static void reset_list(struct pci_config *pci, const struct pci_cap_list *list)
{
    for (unsigned i = 0; i < list->nr; i++) {
        const struct pci_cap *cap = &list->caps[i];

        if (pci_cap_is_ours(cap) && cap->type->reset != NULL) {
            cap->type->reset(pci_cap_bytes(pci, cap));
        }
    }
}

void pci_config_reset(struct pci_config *pci, enum pci_reset kind)
{
    restore(pci, kind);
    reset_list(pci, &pci->standard);
    reset_list(pci, &pci->extended);
    pci_caps_apply(pci);
}
