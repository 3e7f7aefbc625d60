/* SPDX-License-Identifier: BSD-3-Clause */
#include "shadow.h"

#include <stdlib.h>
#include <string.h>

#define MAX_BLOCKS (UINT64_C(1) << 20)

bool shadow_init(struct shadow *shadow, uint64_t blocks, uint32_t block_size)
{
    uint64_t count = blocks < MAX_BLOCKS ? blocks : MAX_BLOCKS;

    *shadow = (struct shadow){
        .blocks = calloc(count, sizeof(*shadow->blocks)),
        .first = blocks - count,
        .count = count,
        .block_size = block_size,
        .next_gen = GEN_FIRST,
    };
    for (uint64_t i = 0; shadow->blocks != NULL && i < count; i++) {
        shadow->blocks[i].gen = GEN_UNKNOWN;
    }
    return shadow->blocks != NULL;
}

void shadow_destroy(struct shadow *shadow)
{
    free(shadow->blocks);
}

bool shadow_may_read(const struct shadow *shadow, uint64_t first, uint32_t count)
{
    for (uint64_t i = first; i < first + count; i++) {
        if (shadow->blocks[i].users < 0 || shadow->blocks[i].users == INT16_MAX) {
            return false;
        }
    }
    return true;
}

bool shadow_may_write(const struct shadow *shadow, uint64_t first, uint32_t count)
{
    for (uint64_t i = first; i < first + count; i++) {
        /* Two possibilities are all that is kept book of. */
        if (shadow->blocks[i].users != 0 || shadow->blocks[i].maybe != GEN_NONE) {
            return false;
        }
    }
    return true;
}

bool shadow_known(const struct shadow *shadow, uint64_t first, uint32_t count)
{
    for (uint64_t i = first; i < first + count; i++) {
        if (shadow->blocks[i].gen == GEN_UNKNOWN || shadow->blocks[i].maybe != GEN_NONE) {
            return false;
        }
    }
    return true;
}

void shadow_begin(struct shadow *shadow, uint64_t first, uint32_t count, bool write)
{
    for (uint64_t i = first; i < first + count; i++) {
        shadow->blocks[i].users = write ? -1 : (int16_t)(shadow->blocks[i].users + 1);
    }
}

static void release(struct shadow_block *block)
{
    block->users = block->users < 0 ? 0 : (int16_t)(block->users - 1);
}

void shadow_end(struct shadow *shadow, uint64_t first, uint32_t count, uint32_t gen)
{
    for (uint64_t i = first; i < first + count; i++) {
        release(&shadow->blocks[i]);
        if (gen != GEN_NONE) {
            shadow->blocks[i].gen = gen;
        }
    }
}

void shadow_abandon(struct shadow *shadow, uint64_t first, uint32_t count, uint32_t gen)
{
    for (uint64_t i = first; i < first + count; i++) {
        release(&shadow->blocks[i]);
        if (gen != GEN_NONE) {
            shadow->blocks[i].maybe = gen;
        }
    }
}

/* The word at an index of a block: different for each block, generation and place (splitmix64). */
static uint64_t word_of(uint64_t block, uint32_t gen, size_t index)
{
    uint64_t x = (block << 32 ^ gen) + (index + 1) * UINT64_C(0x9e3779b97f4a7c15);

    if (gen == GEN_ZEROS) {
        return 0;
    }
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static void fill_block(const struct shadow *shadow, uint64_t block, uint32_t gen, uint8_t *data)
{
    for (size_t i = 0; i < shadow->block_size / sizeof(uint64_t); i++) {
        uint64_t word = word_of(block, gen, i);

        memcpy(data + i * sizeof(word), &word, sizeof(word));
    }
}

static bool holds(const struct shadow *shadow, uint64_t block, uint32_t gen, const uint8_t *data)
{
    for (size_t i = 0; i < shadow->block_size / sizeof(uint64_t); i++) {
        uint64_t word = word_of(block, gen, i);

        if (memcmp(data + i * sizeof(word), &word, sizeof(word)) != 0) {
            return false;
        }
    }
    return true;
}

void shadow_fill(const struct shadow *shadow, uint64_t first, uint32_t count, uint32_t gen,
                 uint8_t *data)
{
    for (uint64_t i = 0; i < count; i++) {
        fill_block(shadow, first + i, gen, data + i * shadow->block_size);
    }
}

void shadow_expected(const struct shadow *shadow, uint64_t first, uint32_t count, uint8_t *data)
{
    for (uint64_t i = 0; i < count; i++) {
        fill_block(shadow, first + i, shadow->blocks[first + i].gen,
                   data + i * shadow->block_size);
    }
}

static bool check_block(struct shadow *shadow, uint64_t index, const uint8_t *data)
{
    struct shadow_block *block = &shadow->blocks[index];

    if (block->maybe != GEN_NONE && holds(shadow, index, block->maybe, data)) {
        block->gen = block->maybe;
    } else if (block->gen != GEN_UNKNOWN && !holds(shadow, index, block->gen, data)) {
        return false;
    }
    block->maybe = GEN_NONE;
    return true;
}

uint32_t shadow_check(struct shadow *shadow, uint64_t first, uint32_t count, const uint8_t *data)
{
    uint32_t i = 0;

    while (i < count && check_block(shadow, first + i, data + (size_t)i * shadow->block_size)) {
        i++;
    }
    return i;
}
