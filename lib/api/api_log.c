/* SPDX-License-Identifier: BSD-3-Clause */
#include "api/api_log.h"

#include "api/api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const level_names[] = {
    [LOG_EMERG] = "emerg",  [LOG_ALERT] = "alert",   [LOG_CRIT] = "crit", [LOG_ERR] = "err",
    [LOG_WARNING] = "warn", [LOG_NOTICE] = "notice", [LOG_INFO] = "info", [LOG_DEBUG] = "debug",
};

/* The socket tells the contexts of a program apart. */
static void print_line(vfu_ctx_t *ctx, int level, const char *msg)
{
    const char *path = ctx->tran.path != NULL ? ctx->tran.path : "-";

    fprintf(stderr, "%s[%s]: %s: %s\n", program_invocation_short_name, path, level_names[level],
            msg);
}

/* Returns the level with this name, or -1. */
static int level_named(const char *name)
{
    for (int level = LOG_ERR; level <= LOG_DEBUG; level++) {
        if (strcmp(name, level_names[level]) == 0) {
            return level;
        }
    }
    return -1;
}

int api_log_init(struct vfu_ctx *ctx)
{
    const char *name = secure_getenv("VFU_LOG");
    int level = LOG_ERR;

    ctx->log = (struct logger){ .ctx = ctx, .level = level, .limit = log_limit_create() };
    if (ctx->log.limit == NULL) {
        return -ENOMEM;
    }
    if (name == NULL || *name == '\0') {
        return 0;
    }
    level = level_named(name);
    if (level < 0) {
        fprintf(stderr, "%s: VFU_LOG=%s: not debug, info, notice, warn or err: ignored\n",
                program_invocation_short_name, name);
        return 0;
    }
    ctx->log.fn = print_line;
    ctx->log.level = level;
    return 0;
}

void api_log_destroy(struct vfu_ctx *ctx)
{
    log_limit_report(&ctx->log, true);
    log_limit_destroy(ctx->log.limit);
}

void vfu_log(vfu_ctx_t *vfu_ctx, int level, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_vline(&vfu_ctx->log, __builtin_return_address(0), level, fmt, ap);
    va_end(ap);
}

int vfu_setup_log(vfu_ctx_t *vfu_ctx, vfu_log_fn_t *log, int level)
{
    if (level < LOG_EMERG || level > LOG_DEBUG) {
        return api_result(-EINVAL);
    }
    vfu_ctx->log.fn = log;
    vfu_ctx->log.level = level;
    return 0;
}
