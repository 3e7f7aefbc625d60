/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/library_state.h"

#include "device/ctx.h"
#include "device/pci.h"
#include "iommu/iommu.h"

#include <endian.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

/* In front of the two parts; little-endian. */
struct saved_header {
    uint32_t config_size, interrupts_size;
};

static size_t config_size(const struct vfu_ctx *ctx)
{
    return device_pci_is_ours(ctx) ? pci_config_state_size(&ctx->pci) : 0;
}

static struct saved_header header_of(const struct vfu_ctx *ctx)
{
    return (struct saved_header){ .config_size = htole32((uint32_t)config_size(ctx)),
                                  .interrupts_size = htole32((uint32_t)msix_state_size(ctx)) };
}

size_t library_state_size(const struct vfu_ctx *ctx)
{
    return sizeof(struct saved_header) + config_size(ctx) + msix_state_size(ctx);
}

void library_state_save(struct vfu_ctx *ctx, void *buf)
{
    const struct saved_header header = header_of(ctx);
    uint8_t *config = (uint8_t *)buf + sizeof(header);

    memcpy(buf, &header, sizeof(header));
    if (device_pci_is_ours(ctx)) {
        iommu_sync_registers(ctx);
        pci_config_save(&ctx->pci, config);
    }
    msix_save(ctx, config + config_size(ctx));
}

static int check(const struct vfu_ctx *ctx, const uint8_t *buf)
{
    const struct saved_header here = header_of(ctx);
    const uint8_t *config = buf + sizeof(here);
    struct saved_header there;

    memcpy(&there, buf, sizeof(there));
    if (memcmp(&there, &here, sizeof(here)) != 0) {
        log_err(&ctx->log, "migration: configuration space and interrupts have %u and %u bytes of "
                "state there, %u and %u here: refused with EINVAL", le32toh(there.config_size),
                le32toh(there.interrupts_size), le32toh(here.config_size),
                le32toh(here.interrupts_size));
        return -EINVAL;
    }
    if (device_pci_is_ours(ctx) && pci_config_check_state(&ctx->pci, config) < 0) {
        return -EINVAL;
    }
    return msix_check_state(ctx, config + config_size(ctx), msix_state_size(ctx));
}

/*
 * The interrupts come last: what configuration space unmasks would deliver those that are pending.
 */
int library_state_restore(struct vfu_ctx *ctx, const void *buf)
{
    const uint8_t *config = (const uint8_t *)buf + sizeof(struct saved_header);
    int err = check(ctx, buf);

    if (err < 0) {
        return err;
    }
    msix_reset(ctx);
    if (device_pci_is_ours(ctx)) {
        iommu_reset(ctx);
        pci_config_restore(&ctx->pci, config);
        iommu_registers_changed(ctx);
    }
    msix_restore(ctx, config + config_size(ctx));
    return 0;
}
