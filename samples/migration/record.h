/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the recorder writes into guest memory. Each record follows from the one before and from what
 * the guest has mixed in, so a reader that keeps a generator of its own notices anything that was
 * lost, repeated or changed.
 */

#ifndef RECORD_H
#define RECORD_H

#include <stddef.h>
#include <stdint.h>

#define RECORD_WORDS 5
#define RECORD_SEED 0x5eed /* where generators begin */

struct record {
    uint64_t number; /* from 0 on, without a gap */
    uint64_t mixes;  /* how many values had been mixed in */
    uint64_t words[RECORD_WORDS];
    uint64_t checksum; /* of all before */
};

struct generator {
    uint64_t state;
    uint64_t number; /* of the next record */
    uint64_t mixes;
};

static inline uint64_t scramble(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline void generator_mix(struct generator *g, uint64_t value)
{
    g->state = scramble(g->state ^ value);
    g->mixes++;
}

static inline uint64_t record_checksum(const struct record *record)
{
    uint64_t sum = scramble(record->number + 1) ^ scramble(record->mixes + 2);

    for (size_t i = 0; i < RECORD_WORDS; i++) {
        sum = scramble(sum ^ record->words[i]);
    }
    return sum;
}

static inline void generator_next(struct generator *g, struct record *record)
{
    record->number = g->number++;
    record->mixes = g->mixes;
    for (size_t i = 0; i < RECORD_WORDS; i++) {
        g->state += 0x9e3779b97f4a7c15u;
        record->words[i] = scramble(g->state);
    }
    record->checksum = record_checksum(record);
}

#endif /* RECORD_H */
