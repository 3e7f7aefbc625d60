/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What each block of the namespace holds: the generation of the last write to it. A write that was
 * under way when the device was reset may have happened or not, until the block is read.
 */

#ifndef SHADOW_H
#define SHADOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    GEN_NONE, /* as maybe: there is no other possibility */
    GEN_UNKNOWN, /* as it was before */
    GEN_ZEROS,
    GEN_FIRST, /* of those that are written */
};

struct shadow_block {
    uint32_t gen;
    uint32_t maybe;
    int16_t users; /* I/Os under way: -1: one that writes */
};

struct shadow {
    struct shadow_block *blocks;
    uint64_t first; /* block of the namespace */
    uint64_t count;
    uint32_t block_size;
    uint32_t next_gen;
};

/* The last blocks of a namespace, as many as are kept book of. False: no memory. */
bool shadow_init(struct shadow *shadow, uint64_t blocks, uint32_t block_size);
void shadow_destroy(struct shadow *shadow);

/* May blocks from first on (counted from shadow->first) be read, or written, now? */
bool shadow_may_read(const struct shadow *shadow, uint64_t first, uint32_t count);
bool shadow_may_write(const struct shadow *shadow, uint64_t first, uint32_t count);
/* Is it known what they hold? */
bool shadow_known(const struct shadow *shadow, uint64_t first, uint32_t count);

void shadow_begin(struct shadow *shadow, uint64_t first, uint32_t count, bool write);
/* gen: GEN_NONE after a read. */
void shadow_end(struct shadow *shadow, uint64_t first, uint32_t count, uint32_t gen);
/* It was under way when the device was reset. */
void shadow_abandon(struct shadow *shadow, uint64_t first, uint32_t count, uint32_t gen);

/* The bytes of blocks of a generation. */
void shadow_fill(const struct shadow *shadow, uint64_t first, uint32_t count, uint32_t gen,
                 uint8_t *data);
/* The bytes that they hold; they are known. */
void shadow_expected(const struct shadow *shadow, uint64_t first, uint32_t count, uint8_t *data);
/*
 * Were these the bytes that they hold? Settles what was not certain. Returns count, or the first
 * block that is wrong.
 */
uint32_t shadow_check(struct shadow *shadow, uint64_t first, uint32_t count, const uint8_t *data);

#endif /* SHADOW_H */
