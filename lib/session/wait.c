/* SPDX-License-Identifier: BSD-3-Clause */
#include "session/wait.h"

#include "session/session.h"
#include "util/clock.h"

#define FIRST_REPORT_NS UINT64_C(1000000000)

void wait_begin(struct session *s, struct wait *w)
{
    if (!log_prints(s->log, LOG_WARNING)) {
        w->name = NULL;
        return;
    }
    w->reported = false;
    w->since = clock_now_ns();
    w->report = w->since + FIRST_REPORT_NS;
    TAILQ_INSERT_TAIL(&s->waits, w, link);
    if (w->report < s->next_report) {
        s->next_report = w->report;
    }
}

/* w is a copy: the wait may end while the lock is dropped. */
static void print(struct session *s, struct wait w, const char *verb, uint64_t now)
{
    uint64_t ms = (now - w.since) / 1000000;

    pthread_mutex_unlock(&s->lock);
    if (w.by_address) {
        log_warn(s->log, "%s at 0x%llx: %s for %llu.%llu s: %s", w.name,
                 (unsigned long long)w.number, verb, (unsigned long long)(ms / 1000),
                 (unsigned long long)(ms % 1000 / 100), w.reason);
    } else {
        log_warn(s->log, "%s id %u: %s for %llu.%llu s: %s", w.name, (unsigned)w.number, verb,
                 (unsigned long long)(ms / 1000), (unsigned long long)(ms % 1000 / 100), w.reason);
    }
    pthread_mutex_lock(&s->lock);
}

void wait_end(struct session *s, struct wait *w)
{
    struct wait ended = *w;
    uint64_t now;

    if (w->name == NULL) {
        return;
    }
    now = clock_now_ns();
    TAILQ_REMOVE(&s->waits, w, link);
    w->name = NULL;
    if (TAILQ_EMPTY(&s->waits)) {
        s->next_report = DEADLINE_NEVER;
    }
    /* Due, and yet not reported: what it waited for came together with the look at the clock. */
    if (ended.reported || now >= ended.report) {
        print(s, ended, "goes on, after it waited", now);
    }
}

/* One that is due, or NULL; then next_report is when the next will be. */
static struct wait *due(struct session *s, uint64_t now)
{
    struct wait *w;

    s->next_report = DEADLINE_NEVER;
    TAILQ_FOREACH (w, &s->waits, link) {
        if (w->report <= now) {
            return w;
        }
        if (w->report < s->next_report) {
            s->next_report = w->report;
        }
    }
    return NULL;
}

void wait_report(struct session *s)
{
    struct wait *w;
    uint64_t now;

    if (s->next_report == DEADLINE_NEVER || (now = clock_now_ns()) < s->next_report) {
        return;
    }
    while ((w = due(s, now)) != NULL) {
        w->reported = true;
        while (w->report <= now) {
            w->report += w->report - w->since;
        }
        s->next_report = w->report;
        print(s, *w, "waits", now);
    }
}

void wait_forget_all(struct session *s)
{
    struct wait *w;

    while ((w = TAILQ_FIRST(&s->waits)) != NULL) {
        TAILQ_REMOVE(&s->waits, w, link);
        w->name = NULL;
    }
    s->next_report = DEADLINE_NEVER;
}
