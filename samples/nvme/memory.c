/* SPDX-License-Identifier: BSD-3-Clause */
#include "memory.h"

#include "nvme.h"

static void mapped(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    struct nvme *nvme = vfu_get_private(ctx);

    (void)info;
    atomic_fetch_add(&nvme->memory.maps, 1);
    controller_wake(nvme);
}

/* The library calls this before the first lookup can fail because of it. */
static void unmapped(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    struct nvme *nvme = vfu_get_private(ctx);

    (void)info;
    atomic_store(&nvme->memory.unmapped_at, nvme_now_ms());
}

int memory_setup(struct nvme *nvme)
{
    return (vfu_setup_device_dma)(nvme->ctx, LIBVFIO_USER_MAX_DMA_REGIONS, mapped, unmapped);
}

bool memory_is_lost(const struct nvme *nvme, uint64_t since)
{
    return nvme_now_ms() - since >= nvme->config.memory_grace_ms;
}

bool memory_may_return(const struct nvme *nvme, uint64_t since)
{
    uint64_t unmapped_at = atomic_load(&nvme->memory.unmapped_at);

    return unmapped_at != 0 && !memory_is_lost(nvme, unmapped_at) && !memory_is_lost(nvme, since);
}
