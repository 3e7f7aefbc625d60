/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_SESSION_WAIT_H
#define VFU_SESSION_WAIT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

struct session;

/*
 * A request that is held back, or a thread that waits for the client. When it lasts for more than
 * a second, the log says so and what is waited for; again when that time has doubled, and at the
 * end. The control thread prints the lines, or a thread that waits itself.
 */
struct wait {
    const char *name; /* of a command or a function; NULL: not in the list */
    uint64_t number; /* the command's id, or with by_address an address */
    bool by_address;
    bool reported;
    const char *reason; /* what is waited for */
    uint64_t since;
    uint64_t report; /* when the next line is due */
    TAILQ_ENTRY(wait) link;
};

TAILQ_HEAD(wait_list, wait);

/* The caller has set name, number, by_address and reason. Session's lock held. */
void wait_begin(struct session *s, struct wait *w);

/* May be called for one that has not begun. Session's lock held, dropped to log. */
void wait_end(struct session *s, struct wait *w);

/* Prints the lines that are due. Session's lock held, dropped to log. */
void wait_report(struct session *s);

/* Forgets all of them: the client has gone. Session's lock held. */
void wait_forget_all(struct session *s);

#endif /* VFU_SESSION_WAIT_H */
