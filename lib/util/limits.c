/* SPDX-License-Identifier: BSD-3-Clause */
#include "util/limits.h"

#include "util/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define GIB (1ull << 30)
#define TIB (1ull << 40)

static const struct rule {
    const char *name, *unit;
    uint64_t value; /* default */
    int error;      /* the errno of a refusal */
} rules[VFU_NR_LIMITS] = {
    [VFU_LIMIT_MAPPED_FILES] = { "mapped-files", "mappings", 4096, ENOSPC },
    [VFU_LIMIT_ADDRESS_SPACE] = { "address-space", "bytes", 16 * TIB, ENOSPC },
    [VFU_LIMIT_IO_FILES] = { "io-files", "descriptors", 64, ENOSPC },
    [VFU_LIMIT_DIRTY_BITMAPS] = { "dirty-bitmaps", "bytes", GIB, ENOSPC },
    [VFU_LIMIT_PASID_SPACES] = { "pasid-spaces", "address spaces", 65536, ENOSPC },
    [VFU_LIMIT_QUEUED_OUTPUT] = { "queued-output", "bytes", 16u << 20, ENOBUFS },
    [VFU_LIMIT_OUTPUT_TIME] = { "output-time", "milliseconds", 10000, ETIMEDOUT },
    [VFU_LIMIT_VERSION_TIME] = { "version-time", "milliseconds", 10000, ETIMEDOUT },
};

void limits_init(struct limits *limits)
{
    *limits = (struct limits){ .memory_files = NULL };
    for (unsigned int i = 0; i < VFU_NR_LIMITS; i++) {
        limits->value[i] = rules[i].value;
    }
}

void limits_destroy(struct limits *limits)
{
    free(limits->memory_files);
    limits->memory_files = NULL;
}

int limits_set(struct limits *limits, unsigned int limit, uint64_t value)
{
    if (limit >= VFU_NR_LIMITS) {
        return -EINVAL;
    }
    limits->value[limit] = value;
    return 0;
}

/* Reads digits and an optional unit up to end. False when there is anything else. */
static bool parse_value(const char *text, const char *end, uint64_t *value)
{
    static const char units[] = "KMGT";
    const char *unit;
    char *rest;
    unsigned int shift = 0;

    if (text == end || *text < '0' || *text > '9') {
        return false;
    }
    errno = 0;
    *value = strtoull(text, &rest, 10);
    if (rest < end && (unit = strchr(units, *rest)) != NULL) {
        shift = 10 * (unsigned int)(unit - units + 1);
        rest++;
    }
    if (errno != 0 || rest != end || *value > UINT64_MAX >> shift) {
        return false;
    }
    *value <<= shift;
    return true;
}

static unsigned int find_rule(const char *name, size_t len)
{
    unsigned int i = 0;

    while (i < VFU_NR_LIMITS &&
           (strlen(rules[i].name) != len || memcmp(rules[i].name, name, len) != 0)) {
        i++;
    }
    return i;
}

int limits_parse(struct limits *limits, const char *list, const struct logger *log)
{
    struct limits parsed = *limits;
    const char *end, *equals;
    uint64_t value;

    for (; *list != '\0'; list = *end == ',' ? end + 1 : end) {
        end = strchrnul(list, ',');
        equals = memchr(list, '=', (size_t)(end - list));
        if (equals == NULL || !parse_value(equals + 1, end, &value) ||
            limits_set(&parsed, find_rule(list, (size_t)(equals - list)), value) < 0) {
            log_err(log, "VFU_LIMITS: '%.*s' is not NAME=NUMBER with a name of docs/limits.md: refused",
                    (int)(end - list), list);
            return -EINVAL;
        }
    }
    *limits = parsed;
    return 0;
}

int limits_check(const struct limits *limits, enum vfu_limit limit, uint64_t used, uint64_t more,
                 const struct logger *log, const char *what)
{
    const struct rule *rule = &rules[limit];
    uint64_t value = limits->value[limit];

    if (used <= value && more <= value - used) {
        return 0;
    }
    log_err(log,
            "%s: %" PRIu64 " %s in use, %" PRIu64 " more: refused by the limit %s=%" PRIu64
            " (vfu_set_limit() or VFU_LIMITS changes it)",
            what, used, rule->unit, more, rule->name, value);
    return -rule->error;
}
