/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_FUZZ_H
#define VFU_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* libFuzzer's entry; under other compilers replay.c calls it with the files it is given. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What must hold whatever the input is. */
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);         \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* The input as a tape: what lies behind its end reads as 0. */
struct tape {
    const uint8_t *data;
    size_t left;
};

static inline void tape_read(struct tape *tape, void *out, size_t len)
{
    size_t there = len < tape->left ? len : tape->left;

    memset(out, 0, len);
    if (there > 0) {
        memcpy(out, tape->data, there);
        tape->data += there;
        tape->left -= there;
    }
}

static inline uint8_t tape_u8(struct tape *tape)
{
    uint8_t value;

    tape_read(tape, &value, sizeof(value));
    return value;
}

static inline uint16_t tape_u16(struct tape *tape)
{
    uint16_t value;

    tape_read(tape, &value, sizeof(value));
    return value;
}

/* The next len bytes where they lie; *len becomes less at the end of the tape. */
static inline const uint8_t *tape_bytes(struct tape *tape, size_t *len)
{
    const uint8_t *data = tape->data;

    *len = *len < tape->left ? *len : tape->left;
    tape->data += *len;
    tape->left -= *len;
    return data;
}

#endif /* VFU_FUZZ_H */
