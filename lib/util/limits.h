/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The limits of one context: what its client may take, and which files it may pass as memory.
 * A new limit is one line in the table of limits.c, one in enum vfu_limit and one in
 * docs/limits.md.
 */
#ifndef VFU_UTIL_LIMITS_H
#define VFU_UTIL_LIMITS_H

#include "libvfio-user-limits.h"

#include <stdint.h>

struct logger;

struct limits {
    uint64_t value[VFU_NR_LIMITS];
    char *memory_files; /* kinds that the device allows, or NULL */
};

void limits_init(struct limits *limits);
void limits_destroy(struct limits *limits);

/* Sets one limit: 0, or -EINVAL if there is no such limit. */
int limits_set(struct limits *limits, unsigned int limit, uint64_t value);

/*
 * Sets limits from a list as in VFU_LIMITS: name=value, with K, M, G or T for powers of 1024,
 * separated by commas. Returns 0, or -EINVAL after a log line when the list makes no sense.
 */
int limits_parse(struct limits *limits, const char *list, const struct logger *log);

/*
 * Checks that more units may be taken when used units are taken already. Returns 0, or the negative
 * errno of the limit after a log line that names it. what: the request, for the log line.
 */
int limits_check(const struct limits *limits, enum vfu_limit limit, uint64_t used, uint64_t more,
                 const struct logger *log, const char *what);

#endif /* VFU_UTIL_LIMITS_H */
