/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What does not fit together in a device that is set up. Most of it is a warning, because 0.x has
 * accepted it and a part of the device may work.
 */
#include "device/check.h"

#include "device/ctx.h"
#include "util/range.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MSI_MAX_VECTORS 32
#define MSIX_MAX_VECTORS 2048

#define MAX_TEXT 160

/* Writes down a finding. Returns true, for the checks to return. */
static bool __attribute__((format(printf, 2, 3))) found(char *text, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, MAX_TEXT, fmt, ap);
    va_end(ap);
    return true;
}

/* Regions */

static bool pair_overlaps(const struct vfu_ctx *ctx, int index, char *text)
{
    const struct region *bar = &ctx->regions[index];

    if (index >= PCI_BARS_NR || !(bar->flags & VFU_REGION_FLAG_64_BITS)) {
        return false;
    }
    if (index == PCI_BARS_NR - 1) {
        return found(text, "BAR %d has 64 bits, and there is no BAR for the upper half", index);
    }
    return (bar + 1)->size > 0 &&
           found(text, "BAR %d has 64 bits and takes BAR %d, which is set up as well", index,
                 index + 1);
}

static bool holds_msix(const struct msix *msix, uint32_t bar)
{
    return msix->table != NULL && (bar == msix->table_bar || bar == msix->pba_bar);
}

static bool bar_is_unserved(const struct vfu_ctx *ctx, int index, char *text)
{
    const struct region *bar = &ctx->regions[index];

    return index < PCI_BARS_NR && bar->size > 0 && bar->access == NULL && bar->fd == -1 &&
           !holds_msix(&ctx->msix, (uint32_t)index) &&
           found(text, "BAR %d has neither a callback nor a file", index);
}

static bool file_is_short(const struct vfu_ctx *ctx, int index, char *text)
{
    const struct region *region = &ctx->regions[index];
    struct stat st;

    if (region->fd == -1) {
        return false;
    }
    if (fstat(region->fd, &st) < 0) {
        return found(text, "region %d: file descriptor %d: %s", index, region->fd,
                     strerror(errno));
    }
    for (uint32_t i = 0; S_ISREG(st.st_mode) && i < region->nr_areas; i++) {
        uint64_t offset = (uintptr_t)region->areas[i].iov_base, file = (uint64_t)st.st_size;

        if (region->fd_offset > file ||
            !extent_within(offset, region->areas[i].iov_len, file - region->fd_offset)) {
            return found(text, "region %d: the mmap area at 0x%" PRIx64 ", 0x%zx bytes, at offset "
                         "0x%" PRIx64 " of its file ends beyond the file's 0x%" PRIx64 " bytes",
                         index, offset, region->areas[i].iov_len, region->fd_offset, file);
        }
    }
    return false;
}

static bool area_is_unaligned(const struct vfu_ctx *ctx, int index, char *text)
{
    const struct region *region = &ctx->regions[index];
    const uint64_t within_page = (uint64_t)sysconf(_SC_PAGESIZE) - 1;

    for (uint32_t i = 0; i < region->nr_areas; i++) {
        uint64_t offset = (uintptr_t)region->areas[i].iov_base;
        size_t len = region->areas[i].iov_len;

        if (((offset | len | (region->fd_offset + offset)) & within_page) != 0) {
            return found(text, "region %d: the mmap area at 0x%" PRIx64 ", 0x%zx bytes, at offset "
                         "0x%" PRIx64 " of its file is not of whole pages", index, offset, len,
                         region->fd_offset);
        }
    }
    return false;
}

/* Interrupts */

static bool outside_bar(const struct vfu_ctx *ctx, const char *what, uint32_t bar, uint64_t offset,
                        uint64_t size, char *text)
{
    if (bar >= PCI_BARS_NR || ctx->regions[bar].size == 0) {
        return found(text, "MSI-X: its %s is in BAR %u, which is not set up", what, bar);
    }
    return !extent_within(offset, size, ctx->regions[bar].size) &&
           found(text, "MSI-X: its %s at 0x%" PRIx64 ", 0x%" PRIx64 " bytes, ends beyond BAR %u, "
                 "0x%" PRIx64 " bytes", what, offset, size, bar, ctx->regions[bar].size);
}

static bool msix_table_is_outside(const struct vfu_ctx *ctx, int index, char *text)
{
    const struct msix *msix = &ctx->msix;

    (void)index;
    return msix->vectors > 0 && outside_bar(ctx, "table", msix->table_bar, msix->table_offset,
                                            (uint64_t)msix->vectors * PCI_MSIX_ENTRY_SIZE, text);
}

static bool msix_pba_is_outside(const struct vfu_ctx *ctx, int index, char *text)
{
    const struct msix *msix = &ctx->msix;

    (void)index;
    return msix->vectors > 0 &&
           outside_bar(ctx, "pending bit array", msix->pba_bar, msix->pba_offset,
                       ((uint64_t)msix->vectors + 63) / 64 * 8, text);
}

static bool msix_is_short_of_interrupts(const struct vfu_ctx *ctx, int index, char *text)
{
    uint32_t count = ctx->irqs.counts[VFU_DEV_MSIX_IRQ];

    (void)index;
    return ctx->msix.vectors > count &&
           found(text, "MSI-X: the capability has %u vectors, and %u interrupts are set up",
                 ctx->msix.vectors, count);
}

static bool msi_is_short_of_interrupts(const struct vfu_ctx *ctx, int index, char *text)
{
    ssize_t pos = pci_config_find_capability(&ctx->pci, false, 0, PCI_CAP_ID_MSI);
    uint32_t count = ctx->irqs.counts[VFU_DEV_MSI_IRQ], messages;
    struct mc control;

    (void)index;
    if (pos < 0 || (size_t)pos + sizeof(struct msicap) > PCI_CFG_SPACE_SIZE) {
        return false;
    }
    memcpy(&control, ctx->pci.space->raw + pos + offsetof(struct msicap, mc), sizeof(control));
    messages = 1u << control.mmc;
    return messages > count &&
           found(text, "MSI: the capability has %u messages, and %u interrupts are set up",
                 messages, count);
}

static bool too_many_interrupts(const struct vfu_ctx *ctx, int index, char *text)
{
    const uint32_t *counts = ctx->irqs.counts;

    (void)index;
    return (counts[VFU_DEV_MSI_IRQ] > MSI_MAX_VECTORS ||
            counts[VFU_DEV_MSIX_IRQ] > MSIX_MAX_VECTORS) &&
           found(text, "%u MSI and %u MSI-X interrupts are set up, a function has at most %u and %u",
                 counts[VFU_DEV_MSI_IRQ], counts[VFU_DEV_MSIX_IRQ], MSI_MAX_VECTORS,
                 MSIX_MAX_VECTORS);
}

/* Capabilities */

static bool extended_without_express(const struct vfu_ctx *ctx, int index, char *text)
{
    (void)index;
    return ctx->pci.extended.nr > 0 &&
           pci_config_find_capability(&ctx->pci, false, 0, PCI_CAP_ID_EXP) < 0 &&
           found(text, "%u extended capabilities, and no PCI Express capability",
                 ctx->pci.extended.nr);
}

static const struct check {
    /* True if it finds something, which is in text then. */
    bool (*find)(const struct vfu_ctx *ctx, int index, char *text);
    bool each_region;
    bool fatal;
    const char *consequence;
} checks[] = {
    { pair_overlaps, true, true, "refused with EINVAL" },
    { bar_is_unserved, true, false, "accesses to it fail" },
    { file_is_short, true, false, "a client that maps it cannot use all of it" },
    { area_is_unaligned, true, false, "a client cannot map it" },
    { msix_table_is_outside, false, false, "a guest cannot use MSI-X" },
    { msix_pba_is_outside, false, false, "a guest cannot use MSI-X" },
    { msix_is_short_of_interrupts, false, false, "a guest cannot use all of them" },
    { msi_is_short_of_interrupts, false, false, "a guest cannot use all of them" },
    { too_many_interrupts, false, false, "a guest cannot use all of them" },
    { extended_without_express, false, false, "guests do not look for them" },
};

int device_check(const struct vfu_ctx *ctx)
{
    int err = 0;

    for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
        const struct check *check = &checks[i];
        int nr = check->each_region ? VFU_PCI_DEV_NUM_REGIONS : 1;

        for (int index = 0; index < nr; index++) {
            char text[MAX_TEXT];

            if (check->find(ctx, index, text)) {
                log_at(&ctx->log, check->fatal ? LOG_ERR : LOG_WARNING, "vfu_realize_ctx: %s: %s",
                       text, check->consequence);
                err = check->fatal ? -EINVAL : err;
            }
        }
    }
    return err;
}
