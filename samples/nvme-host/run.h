/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RUN_H
#define RUN_H

#include <stdbool.h>
#include <stdint.h>

struct run_options {
    const char *path;
    unsigned seconds, queues, depth;
    bool resets;
    bool spin; /* look for completions all the time instead of waiting for interrupts */
    bool ioeventfd; /* ring by eventfds instead of messages */
    bool writes; /* of the benchmark */
    bool remap; /* each command's page is mapped before it and unmapped after it */
    uint64_t seed;
};

/* Both return the exit status of the program. */
int run_verify(const struct run_options *options);
int run_bench(const struct run_options *options);

/* Xorshift (Marsaglia 2003); *state is never zero. */
static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static inline uint64_t random_below(uint64_t *state, uint64_t limit)
{
    return (next_random(state) >> 16) % limit;
}

#endif /* RUN_H */
