/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_UTIL_LOG_H
#define VFU_UTIL_LOG_H

#include <stdarg.h>
#include <syslog.h>

struct vfu_ctx;

/* Where the lines of one context go. A zeroed logger is silent. */
struct logger {
    void (*fn)(struct vfu_ctx *ctx, int level, const char *msg);
    struct vfu_ctx *ctx;
    int level;
};

/* Formats and emits one line, without a newline; keeps errno. Any thread. */
void log_line(const struct logger *log, int level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void log_vline(const struct logger *log, int level, const char *fmt, va_list ap)
    __attribute__((format(printf, 3, 0)));

/* The test stands here so that a line nobody reads costs one compare, not its arguments. */
#define log_at(log, lvl, ...)                                                                      \
    do {                                                                                           \
        const struct logger *log_ = (log);                                                         \
        if (log_->fn != NULL && (lvl) <= log_->level) {                                            \
            log_line(log_, (lvl), __VA_ARGS__);                                                    \
        }                                                                                          \
    } while (0)

#define log_err(log, ...) log_at(log, LOG_ERR, __VA_ARGS__)
#define log_warn(log, ...) log_at(log, LOG_WARNING, __VA_ARGS__)
#define log_info(log, ...) log_at(log, LOG_INFO, __VA_ARGS__)
#define log_debug(log, ...) log_at(log, LOG_DEBUG, __VA_ARGS__)

#endif /* VFU_UTIL_LOG_H */
