/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_UTIL_RANGE_H
#define VFU_UTIL_RANGE_H

#include <stdbool.h>
#include <stdint.h>

/* A non-empty range of addresses. Both ends are inclusive, so that all 2^64 addresses fit. */
struct range {
    uint64_t first;
    uint64_t last;
};

#define RANGE_ALL ((struct range){ .first = 0, .last = UINT64_MAX })

/* False, with *out untouched, when size is 0 or the range would pass 2^64. */
static inline bool range_make(uint64_t addr, uint64_t size, struct range *out)
{
    if (size == 0 || size - 1 > UINT64_MAX - addr) {
        return false;
    }
    out->first = addr;
    out->last = addr + (size - 1);
    return true;
}

static inline bool range_overlaps(struct range a, struct range b)
{
    return a.first <= b.last && b.first <= a.last;
}

static inline bool range_contains(struct range outer, struct range inner)
{
    return outer.first <= inner.first && inner.last <= outer.last;
}

/* The number of addresses; 0 stands for all 2^64. */
static inline uint64_t range_size(struct range r)
{
    return r.last - r.first + 1;
}

/* True when [offset, offset + count) lies in [0, size), with no wrap. */
static inline bool extent_within(uint64_t offset, uint64_t count, uint64_t size)
{
    return count <= size && offset <= size - count;
}

#endif /* VFU_UTIL_RANGE_H */
