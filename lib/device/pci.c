/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/pci.h"

#include "device/ctx.h"
#include "device/reset.h"
#include "iommu/iommu.h"

#include <string.h>

static const struct region *config_region(const struct vfu_ctx *ctx)
{
    return &ctx->regions[VFU_PCI_DEV_CFG_REGION_IDX];
}

static ssize_t device_access(void *owner, char *buf, size_t count, uint64_t offset, bool is_write)
{
    struct vfu_ctx *ctx = owner;

    return region_call_device(ctx, config_region(ctx), buf, count, offset, is_write);
}

static bool has_device_access(void *owner)
{
    return config_region(owner)->access != NULL;
}

static int reset(void *owner)
{
    return reset_function(owner);
}

static void msix_changed(void *owner, bool enabled, bool masked)
{
    struct vfu_ctx *ctx = owner;

    irq_mask_function(&ctx->irqs, enabled && masked);
}

static void iommu_changed(void *owner)
{
    iommu_registers_changed(owner);
}

static void pri_reset(void *owner)
{
    iommu_pri_reset(owner);
}

const struct pci_config_ops device_pci_ops = {
    .device_access = device_access,
    .has_device_access = has_device_access,
    .reset_function = reset,
    .msix_changed = msix_changed,
    .iommu_changed = iommu_changed,
    .pri_reset = pri_reset,
};

/*
 * A guest looks for PASID, ATS and PRI only in a function with an Express capability (PCIe 7.5.3).
 * One that the device has left out is that of an integrated endpoint, which has no link.
 */
static int complete_express(struct vfu_ctx *ctx)
{
    const struct pxcap express = {
        .hdr.id = PCI_CAP_ID_EXP,
        .pxcaps = { .ver = 2, .dpt = PCI_EXP_TYPE_RC_END },
        .pxdcap = { .rer = 1, .flrc = ctx->reset != NULL },
    };
    ssize_t pos;

    if (ctx->iommu == NULL || ctx->pci.extended.nr == 0 ||
        pci_config_find_capability(&ctx->pci, false, 0, PCI_CAP_ID_EXP) >= 0) {
        return 0;
    }
    pos = pci_config_add_capability(&ctx->pci, 0, 0, &express);
    if (pos < 0) {
        log_err(&ctx->log, "vfu_realize_ctx: IOMMU capabilities without a PCI Express capability, "
                "and no room for one: %s", strerror((int)-pos));
        return (int)pos;
    }
    log_warn(&ctx->log, "vfu_realize_ctx: IOMMU capabilities without a PCI Express capability: "
             "added one at 0x%zx", (size_t)pos);
    return 0;
}

int device_pci_realize(struct vfu_ctx *ctx)
{
    struct region *config = &ctx->regions[VFU_PCI_DEV_CFG_REGION_IDX];
    int err = complete_express(ctx);

    if (err < 0) {
        return err;
    }

    if (config->size == 0) {
        config->size = PCI_CFG_SPACE_SIZE;
        config->flags = VFU_REGION_FLAG_RW;
    }
    for (int i = 0; i < PCI_BARS_NR; i++) {
        ctx->pci.bars[i] = (struct pci_bar){
            .size = ctx->regions[i].size,
            .flags = ctx->regions[i].flags,
        };
    }
    ctx->pci.rom_size = ctx->regions[VFU_PCI_DEV_ROM_REGION_IDX].size;
    return pci_config_realize(&ctx->pci, config->size, ctx->irqs.counts[VFU_DEV_INTX_IRQ] > 0);
}

bool device_pci_is_ours(const struct vfu_ctx *ctx)
{
    return !(config_region(ctx)->flags & VFU_REGION_FLAG_ALWAYS_CB);
}

void device_pci_reset(struct vfu_ctx *ctx, enum pci_reset kind)
{
    if (device_pci_is_ours(ctx)) {
        pci_config_reset(&ctx->pci, kind);
    }
}
