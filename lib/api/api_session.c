/* SPDX-License-Identifier: BSD-3-Clause */
#include "api/api.h"

int vfu_set_region_file(vfu_ctx_t *vfu_ctx, int region_idx, int fd, uint64_t offset)
{
    return api_result(region_set_file(vfu_ctx, region_idx, fd, offset));
}

int vfu_remove_ioeventfds(vfu_ctx_t *vfu_ctx, uint32_t region_idx)
{
    return api_result(region_remove_ioeventfds(vfu_ctx, region_idx));
}

int vfu_setup_client_cb(vfu_ctx_t *vfu_ctx, vfu_client_cb_t *cb, void *arg)
{
    if (vfu_ctx->tran.ops != &transport_sock) {
        return api_result(-ENOTSUP);
    }
    vfu_ctx->client_cb = cb;
    vfu_ctx->client_arg = arg;
    return 0;
}
