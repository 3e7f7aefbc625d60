/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_UTIL_LOG_H
#define VFU_UTIL_LOG_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <syslog.h>

struct vfu_ctx;
struct log_limit;

/* Where the lines of one context go. A zeroed logger is silent. */
struct logger {
    void (*fn)(struct vfu_ctx *ctx, int level, const char *msg);
    struct vfu_ctx *ctx;
    int level;
    struct log_limit *limit; /* NULL: every line is printed */
};

/*
 * The rate limit: of each kind of line, LOG_BURST lines are printed in LOG_WINDOW_MS, as the
 * kernel's printk_ratelimit() does. The others are counted, and one line says how many were left
 * out when the window is over. A client that floods the log thus costs two lines a second and kind.
 * Lines of LOG_DEBUG are not limited: who asks for them wants every request.
 */
#define LOG_BURST 10u
#define LOG_WINDOW_MS 5000u

/* Returns NULL when there is no memory. */
struct log_limit *log_limit_create(void);
void log_limit_destroy(struct log_limit *limit);

/* When the next count of lines that were left out is to be printed, or DEADLINE_NEVER. Any thread. */
uint64_t log_limit_deadline(const struct logger *log);

/* Prints the counts whose window is over, or all of them. Any thread; no lock held. */
void log_limit_report(const struct logger *log, bool all);

/*
 * Formats and emits one line, without a newline; keeps errno. Any thread. Lines are of one kind if
 * they have the same format, or in log_vline() the same kind.
 */
void log_line(const struct logger *log, int level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void log_vline(const struct logger *log, const void *kind, int level, const char *fmt, va_list ap)
    __attribute__((format(printf, 4, 0)));

static inline bool log_prints(const struct logger *log, int level)
{
    return log->fn != NULL && level <= log->level;
}

/* The test stands here so that a line nobody reads costs one compare, not its arguments. */
#define log_at(log, lvl, ...)                                                                      \
    do {                                                                                           \
        const struct logger *log_ = (log);                                                         \
        if (log_prints(log_, (lvl))) {                                                             \
            log_line(log_, (lvl), __VA_ARGS__);                                                    \
        }                                                                                          \
    } while (0)

#define log_err(log, ...) log_at(log, LOG_ERR, __VA_ARGS__)
#define log_warn(log, ...) log_at(log, LOG_WARNING, __VA_ARGS__)
#define log_info(log, ...) log_at(log, LOG_INFO, __VA_ARGS__)
#define log_debug(log, ...) log_at(log, LOG_DEBUG, __VA_ARGS__)

/*
 * A call of the device that is refused: a mistake in its code (EINVAL) is an error; what the guest
 * or the client did not allow, or a client that has gone, is information.
 */
#define log_refused(log, err, ...)                                                                 \
    log_at(log, (err) == -EINVAL ? LOG_ERR : LOG_INFO, __VA_ARGS__)

#endif /* VFU_UTIL_LOG_H */
