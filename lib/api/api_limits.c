/* SPDX-License-Identifier: BSD-3-Clause */
#include "api/api.h"

#include <stdlib.h>
#include <string.h>

int vfu_set_limit(vfu_ctx_t *vfu_ctx, enum vfu_limit limit, uint64_t value)
{
    return api_result(limits_set(&vfu_ctx->limits, limit, value));
}

uint64_t vfu_get_limit(vfu_ctx_t *vfu_ctx, enum vfu_limit limit)
{
    if ((unsigned int)limit >= VFU_NR_LIMITS) {
        errno = EINVAL;
        return 0;
    }
    return vfu_ctx->limits.value[limit];
}

int vfu_set_memory_files(vfu_ctx_t *vfu_ctx, const char *kinds)
{
    char *copy = strdup(kinds == NULL ? "" : kinds);

    if (copy == NULL) {
        return api_result(-ENOMEM);
    }
    free(vfu_ctx->limits.memory_files);
    vfu_ctx->limits.memory_files = copy;
    return 0;
}
