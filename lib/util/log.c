/* SPDX-License-Identifier: BSD-3-Clause */
#include "util/log.h"

#include <errno.h>
#include <stdio.h>

void log_vline(const struct logger *log, int level, const char *fmt, va_list ap)
{
    char line[BUFSIZ];
    int saved = errno;

    if (log->fn != NULL && fmt != NULL && level <= log->level) {
        vsnprintf(line, sizeof(line), fmt, ap);
        log->fn(log->ctx, level, line);
    }
    errno = saved;
}

void log_line(const struct logger *log, int level, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_vline(log, level, fmt, ap);
    va_end(ap);
}
