/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/msix.h"

#include "device/ctx.h"
#include "util/range.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CONTROL_BYTE PCI_MSIX_ENTRY_VECTOR_CTRL
#define CONTROL_MASKED PCI_MSIX_ENTRY_CTRL_MASKBIT

static size_t table_size(const struct msix *msix)
{
    return msix->table != NULL ? (size_t)msix->vectors * PCI_MSIX_ENTRY_SIZE : 0;
}

/* Every vector masked. It holds nothing back until the client writes it. */
static void mask_all(struct msix *msix)
{
    memset(msix->table, 0, table_size(msix));
    for (uint32_t i = 0; i < msix->vectors; i++) {
        msix->table[(size_t)i * PCI_MSIX_ENTRY_SIZE + CONTROL_BYTE] = CONTROL_MASKED;
    }
}

void msix_reset(struct vfu_ctx *ctx)
{
    struct msix *msix = &ctx->msix;

    irqs_reset(&ctx->irqs);
    if (msix->table != NULL) {
        mask_all(msix);
    }
}

int msix_realize(struct vfu_ctx *ctx)
{
    struct msix *msix = &ctx->msix;
    ssize_t pos = pci_config_find_capability(&ctx->pci, false, 0, PCI_CAP_ID_MSIX);
    struct msixcap cap;

    /* The device may have linked what it likes. */
    if (pos < 0 || (size_t)pos + sizeof(cap) > PCI_CFG_SPACE_SIZE) {
        return 0;
    }
    memcpy(&cap, (const uint8_t *)ctx->pci.space + pos, sizeof(cap));
    msix->vectors = cap.mxc.ts + 1u;
    msix->table_bar = cap.mtab.tbir;
    msix->table_offset = (uint64_t)cap.mtab.to << 3;
    msix->pba_bar = cap.mpba.pbir;
    msix->pba_offset = (uint64_t)cap.mpba.pbao << 3;
    if (msix->table_bar >= PCI_BARS_NR || ctx->regions[msix->table_bar].access != NULL ||
        ctx->regions[msix->table_bar].size == 0) {
        return 0;
    }
    msix->table = malloc((size_t)msix->vectors * PCI_MSIX_ENTRY_SIZE);
    if (msix->table == NULL) {
        return -ENOMEM;
    }
    mask_all(msix);
    return 0;
}

void msix_destroy(struct vfu_ctx *ctx)
{
    free(ctx->msix.table);
    ctx->msix.table = NULL;
}

/* Migration */

/* Behind it: a struct irq_vector_state for each vector, and the table. */
struct saved_header {
    uint32_t vectors; /* little-endian, as is table_size */
    uint32_t table_size;
};

static struct saved_header header_of(const struct vfu_ctx *ctx)
{
    return (struct saved_header){ .vectors = htole32(ctx->irqs.nr_shared),
                                  .table_size = htole32((uint32_t)table_size(&ctx->msix)) };
}

static size_t vectors_size(const struct vfu_ctx *ctx)
{
    return ctx->irqs.nr_shared * sizeof(struct irq_vector_state);
}

size_t msix_state_size(const struct vfu_ctx *ctx)
{
    return sizeof(struct saved_header) + vectors_size(ctx) + table_size(&ctx->msix);
}

void msix_save(struct vfu_ctx *ctx, void *buf)
{
    const struct saved_header header = header_of(ctx);
    uint8_t *vectors = (uint8_t *)buf + sizeof(header);

    memcpy(buf, &header, sizeof(header));
    irqs_save(&ctx->irqs, (struct irq_vector_state *)vectors);
    if (ctx->msix.table != NULL) {
        memcpy(vectors + vectors_size(ctx), ctx->msix.table, table_size(&ctx->msix));
    }
}

/* A vector is masked by the table only if its entry says so. */
static bool table_agrees(const struct vfu_ctx *ctx, const struct irq_vector_state *vectors,
                         const uint8_t *table)
{
    for (uint32_t i = 0; i < ctx->irqs.nr_shared; i++) {
        size_t control = (size_t)i * PCI_MSIX_ENTRY_SIZE + CONTROL_BYTE;

        if ((vectors[i].masks & 1u << IRQ_MASK_TABLE) != 0 &&
            (control >= table_size(&ctx->msix) || (table[control] & CONTROL_MASKED) == 0)) {
            return false;
        }
    }
    return true;
}

static const struct irq_vector_state *vectors_in(const void *buf)
{
    return (const struct irq_vector_state *)((const uint8_t *)buf + sizeof(struct saved_header));
}

static const uint8_t *table_in(const struct vfu_ctx *ctx, const void *buf)
{
    return (const uint8_t *)vectors_in(buf) + vectors_size(ctx);
}

int msix_check_state(const struct vfu_ctx *ctx, const void *buf, size_t len)
{
    const struct saved_header header = header_of(ctx);

    if (len != msix_state_size(ctx) || memcmp(buf, &header, sizeof(header)) != 0) {
        log_err(&ctx->log, "migration: interrupts: %zu bytes are not the state of %u vectors and %zu "
                "bytes of MSI-X table: refused with EINVAL", len, ctx->irqs.nr_shared,
                table_size(&ctx->msix));
        return -EINVAL;
    }
    if (!irqs_restorable(&ctx->irqs, vectors_in(buf)) ||
        !table_agrees(ctx, vectors_in(buf), table_in(ctx, buf))) {
        log_err(&ctx->log, "migration: interrupts: a mask or pending bit is of no vector that the "
                "device has, or differs from the MSI-X table: refused with EINVAL");
        return -EINVAL;
    }
    return 0;
}

void msix_restore(struct vfu_ctx *ctx, const void *buf)
{
    irqs_restore(&ctx->irqs, vectors_in(buf));
    if (ctx->msix.table != NULL) {
        memcpy(ctx->msix.table, table_in(ctx, buf), table_size(&ctx->msix));
    }
}

/* Accesses */

static void write_table(struct vfu_ctx *ctx, const char *buf, size_t count, uint64_t offset)
{
    struct msix *msix = &ctx->msix;
    uint64_t last = (offset + count - 1) / PCI_MSIX_ENTRY_SIZE;

    memcpy(msix->table + offset, buf, count);
    for (uint64_t i = offset / PCI_MSIX_ENTRY_SIZE; i <= last; i++) {
        uint8_t control = msix->table[i * PCI_MSIX_ENTRY_SIZE + CONTROL_BYTE];

        irq_mask_vector(&ctx->irqs, (uint32_t)i, control & CONTROL_MASKED);
    }
}

static void read_pba(struct vfu_ctx *ctx, char *buf, size_t count, uint64_t offset)
{
    for (size_t i = 0; i < count; i++) {
        buf[i] = 0;
        for (uint32_t bit = 0; bit < 8; bit++) {
            if (irq_pending(&ctx->irqs, VFU_DEV_MSIX_IRQ, (uint32_t)((offset + i) * 8 + bit))) {
                buf[i] = (char)(buf[i] | (1 << bit));
            }
        }
    }
}

ssize_t msix_access(struct vfu_ctx *ctx, uint32_t bar, char *buf, size_t count, uint64_t offset,
                    bool is_write)
{
    const struct msix *msix = &ctx->msix;
    uint64_t pba_size = ((uint64_t)msix->vectors + 63) / 64 * 8;

    if (msix->table == NULL) {
        return -EINVAL;
    }
    if (bar == msix->table_bar && offset >= msix->table_offset &&
        extent_within(offset - msix->table_offset, count, table_size(msix))) {
        if (is_write) {
            write_table(ctx, buf, count, offset - msix->table_offset);
        } else {
            memcpy(buf, msix->table + (offset - msix->table_offset), count);
        }
        return (ssize_t)count;
    }
    if (bar == msix->pba_bar && offset >= msix->pba_offset &&
        extent_within(offset - msix->pba_offset, count, pba_size)) {
        if (!is_write) {
            read_pba(ctx, buf, count, offset - msix->pba_offset);
        }
        return (ssize_t)count;
    }
    return -EINVAL;
}
