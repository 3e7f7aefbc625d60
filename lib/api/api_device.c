/* SPDX-License-Identifier: BSD-3-Clause */
#include "api/api.h"
#include "device/migration.h"

int vfu_setup_region(vfu_ctx_t *vfu_ctx, int region_idx, size_t size,
                     vfu_region_access_cb_t *region_access, int flags, struct iovec *mmap_areas,
                     uint32_t nr_mmap_areas, int fd, uint64_t offset)
{
    const struct region_setup setup = {
        .size = size,
        .access = region_access,
        .flags = (uint32_t)flags,
        .areas = mmap_areas,
        .nr_areas = nr_mmap_areas,
        .fd = fd,
        .fd_offset = offset,
    };

    return api_result(region_setup(vfu_ctx, region_idx, &setup));
}

int vfu_create_ioeventfd(vfu_ctx_t *vfu_ctx, uint32_t region_idx, int fd, size_t gpa_offset,
                         uint32_t size, uint32_t flags, uint64_t datamatch, int shadow_fd,
                         size_t shadow_offset)
{
    const struct ioeventfd io = {
        .offset = gpa_offset,
        .size = size,
        .flags = flags,
        .datamatch = datamatch,
        .fd = fd,
        .shadow_fd = shadow_fd,
        .shadow_offset = shadow_offset,
    };

    return api_result(region_add_ioeventfd(vfu_ctx, region_idx, &io));
}

int vfu_setup_device_reset_cb(vfu_ctx_t *vfu_ctx, vfu_reset_cb_t *reset)
{
    vfu_ctx->reset = reset;
    return 0;
}

void vfu_setup_device_keep_state(vfu_ctx_t *vfu_ctx, bool keep)
{
    vfu_ctx->keep_state = keep;
}

void vfu_setup_device_quiesce_cb(vfu_ctx_t *vfu_ctx, vfu_device_quiesce_cb_t *quiesce_cb)
{
    vfu_ctx->quiesce.cb = quiesce_cb;
}

int vfu_setup_device_migration_callbacks(vfu_ctx_t *vfu_ctx,
                                         const vfu_migration_callbacks_t *callbacks)
{
    return api_result(migration_setup(vfu_ctx, callbacks));
}

void vfu_setup_device_migrate_state(vfu_ctx_t *vfu_ctx, bool migrate)
{
    vfu_ctx->migrate_state = migrate;
}

int vfu_setup_device_nr_irqs(vfu_ctx_t *vfu_ctx, enum vfu_dev_irq_type type, uint32_t count)
{
    return api_result(irqs_set_count(&vfu_ctx->irqs, type, count));
}

int vfu_setup_irq_state_callback(vfu_ctx_t *vfu_ctx, enum vfu_dev_irq_type type,
                                 vfu_dev_irq_state_cb_t *cb)
{
    if ((unsigned)type >= VFU_DEV_NUM_IRQS) {
        return api_result(-EINVAL);
    }
    vfu_ctx->irq_state[type] = cb;
    return 0;
}

int vfu_irq_trigger(vfu_ctx_t *vfu_ctx, uint32_t subindex)
{
    return api_result(irq_trigger(&vfu_ctx->irqs, subindex));
}

int vfu_irq_trigger_type(vfu_ctx_t *vfu_ctx, enum vfu_dev_irq_type type, uint32_t subindex)
{
    return api_result(irq_trigger_type(&vfu_ctx->irqs, type, subindex));
}
