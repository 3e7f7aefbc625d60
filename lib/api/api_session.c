/* SPDX-License-Identifier: BSD-3-Clause */
#include "api/api.h"
#include "libvfio-user-session.h"

int vfu_set_region_file(vfu_ctx_t *vfu_ctx, int region_idx, int fd, uint64_t offset)
{
    return api_result(region_set_file(vfu_ctx, region_idx, fd, offset));
}

int vfu_remove_ioeventfds(vfu_ctx_t *vfu_ctx, uint32_t region_idx)
{
    return api_result(region_remove_ioeventfds(vfu_ctx, region_idx));
}
