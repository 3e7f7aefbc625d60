/* SPDX-License-Identifier: BSD-3-Clause */
#include "util/log.h"

#include "util/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

/* More kinds of lines than the library has; a device's further ones share the last. */
#define LOG_KINDS 256u
#define EXAMPLE_SIZE 160

/* How many lines of one kind came since the window began. */
struct log_kind {
    const void *kind; /* NULL: not in use */
    uint64_t since;
    uint64_t lines;
    int level;
    char example[EXAMPLE_SIZE]; /* the first line that was left out */
};

struct log_limit {
    pthread_mutex_t lock;
    _Atomic uint64_t deadline; /* no window with a count ends before */
    struct log_kind kinds[LOG_KINDS];
};

struct log_limit *log_limit_create(void)
{
    struct log_limit *limit = calloc(1, sizeof(*limit));

    if (limit != NULL) {
        pthread_mutex_init(&limit->lock, NULL);
        atomic_init(&limit->deadline, DEADLINE_NEVER);
    }
    return limit;
}

void log_limit_destroy(struct log_limit *limit)
{
    if (limit != NULL) {
        pthread_mutex_destroy(&limit->lock);
        free(limit);
    }
}

uint64_t log_limit_deadline(const struct logger *log)
{
    return log->limit == NULL ? DEADLINE_NEVER
                              : atomic_load_explicit(&log->limit->deadline, memory_order_relaxed);
}

static uint64_t window_end(const struct log_kind *k)
{
    return k->since + LOG_WINDOW_MS * UINT64_C(1000000);
}

/* Finds the entry of a kind, or the one to use for it. Caller holds limit->lock. */
static struct log_kind *find_kind(struct log_limit *limit, const void *kind)
{
    size_t first = (size_t)(((uintptr_t)kind * UINT64_C(0x9e3779b97f4a7c15)) >> 32);

    for (size_t i = 0; i < LOG_KINDS; i++) {
        struct log_kind *k = &limit->kinds[(first + i) % LOG_KINDS];

        if (k->kind == kind || k->kind == NULL) {
            return k;
        }
    }
    return &limit->kinds[LOG_KINDS - 1];
}

/* Begins a new window. ended is the old one, for print_count(). Caller holds limit->lock. */
static void restart(struct log_kind *k, uint64_t now, struct log_kind *ended)
{
    *ended = *k;
    k->since = now;
    k->lines = 0;
}

static void print_count(const struct logger *log, const struct log_kind *ended, uint64_t now)
{
    char line[EXAMPLE_SIZE + 80];

    if (ended->lines <= LOG_BURST) {
        return;
    }
    snprintf(line, sizeof(line), "%" PRIu64 " more lines left out in %" PRIu64 " s, the first: %s",
             ended->lines - LOG_BURST, (now - ended->since) / 1000000000u, ended->example);
    log->fn(log->ctx, ended->level, line);
}

/* Whether a line may be printed; ended is a window that is over, whose count goes before it. */
static bool admit(struct log_limit *limit, const void *kind, uint64_t now, int level,
                  const char *fmt, va_list ap, struct log_kind *ended)
{
    struct log_kind *k;
    bool admitted;

    pthread_mutex_lock(&limit->lock);
    k = find_kind(limit, kind);
    if (k->kind == NULL || now >= window_end(k)) {
        restart(k, now, ended);
        k->kind = kind;
    }
    k->lines++;
    admitted = k->lines <= LOG_BURST;
    if (k->lines == LOG_BURST + 1) {
        k->level = level;
        vsnprintf(k->example, sizeof(k->example), fmt, ap);
        if (window_end(k) < atomic_load_explicit(&limit->deadline, memory_order_relaxed)) {
            atomic_store_explicit(&limit->deadline, window_end(k), memory_order_relaxed);
        }
    }
    pthread_mutex_unlock(&limit->lock);
    return admitted;
}

void log_vline(const struct logger *log, const void *kind, int level, const char *fmt, va_list ap)
{
    char line[BUFSIZ];
    int saved = errno;

    if (fmt == NULL || !log_prints(log, level)) {
        return;
    }
    if (log->limit != NULL && level < LOG_DEBUG) {
        struct log_kind ended = { .lines = 0 };
        uint64_t now = clock_now_ns();
        bool admitted = admit(log->limit, kind, now, level, fmt, ap, &ended);

        print_count(log, &ended, now);
        if (!admitted) {
            errno = saved;
            return;
        }
    }
    vsnprintf(line, sizeof(line), fmt, ap);
    log->fn(log->ctx, level, line);
    errno = saved;
}

void log_line(const struct logger *log, int level, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_vline(log, fmt, level, fmt, ap);
    va_end(ap);
}

void log_limit_report(const struct logger *log, bool all)
{
    struct log_limit *limit = log->limit;
    uint64_t deadline = log_limit_deadline(log), now;

    if (deadline == DEADLINE_NEVER || log->fn == NULL) {
        return;
    }
    now = clock_now_ns();
    if (!all && now < deadline) {
        return;
    }
    deadline = DEADLINE_NEVER;
    pthread_mutex_lock(&limit->lock);
    atomic_store_explicit(&limit->deadline, DEADLINE_NEVER, memory_order_relaxed);
    for (size_t i = 0; i < LOG_KINDS; i++) {
        struct log_kind *k = &limit->kinds[i], ended;

        if (k->lines <= LOG_BURST) {
            continue;
        }
        if (!all && now < window_end(k)) {
            deadline = window_end(k) < deadline ? window_end(k) : deadline;
            continue;
        }
        restart(k, now, &ended);
        pthread_mutex_unlock(&limit->lock);
        print_count(log, &ended, now);
        pthread_mutex_lock(&limit->lock);
    }
    if (deadline < atomic_load_explicit(&limit->deadline, memory_order_relaxed)) {
        atomic_store_explicit(&limit->deadline, deadline, memory_order_relaxed);
    }
    pthread_mutex_unlock(&limit->lock);
}
