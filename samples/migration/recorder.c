/* SPDX-License-Identifier: BSD-3-Clause */
#include "recorder.h"

#include <errno.h>
#include <string.h>

void recorder_init(struct recorder *r)
{
    memset(r, 0, sizeof(*r));
    r->regs.length = 1;
    r->regs.generator.state = RECORD_SEED;
}

static uint64_t digest(const struct recorder *r)
{
    const struct recorder_registers *regs = &r->regs;
    const uint64_t words[] = { regs->ring,     regs->length,          regs->control,
                               regs->error,    regs->consumed,        regs->generator.state,
                               regs->generator.number, regs->generator.mixes };
    uint64_t sum = 0;

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        sum = scramble(sum ^ words[i]) + 1;
    }
    for (size_t i = 0; i < NR_HISTORY; i++) {
        sum = scramble(sum ^ r->history[i]) + 1;
    }
    return sum;
}

int recorder_read(const struct recorder *r, uint64_t offset, uint64_t *value)
{
    switch (offset) {
    case RECORDER_RING:
        *value = r->regs.ring;
        return 0;
    case RECORDER_LENGTH:
        *value = r->regs.length;
        return 0;
    case RECORDER_CONTROL:
        *value = r->regs.control;
        return 0;
    case RECORDER_ERROR:
        *value = r->regs.error;
        return 0;
    case RECORDER_WRITTEN:
        *value = r->regs.generator.number;
        return 0;
    case RECORDER_CONSUMED:
        *value = r->regs.consumed;
        return 0;
    case RECORDER_MIX:
        *value = r->regs.generator.mixes;
        return 0;
    case RECORDER_DIGEST:
        *value = digest(r);
        return 0;
    default:
        return -EINVAL;
    }
}

static bool consumed_is_possible(const struct recorder_registers *regs, uint64_t consumed)
{
    return consumed <= regs->generator.number && consumed >= regs->consumed;
}

int recorder_write(struct recorder *r, uint64_t offset, uint64_t value)
{
    switch (offset) {
    case RECORDER_RING:
        r->regs.ring = value;
        return 0;
    case RECORDER_LENGTH:
        if (value == 0 || value > RECORDER_MAX_RING) {
            return -EINVAL;
        }
        r->regs.length = value;
        return 0;
    case RECORDER_CONTROL:
        r->regs.control = value & 1;
        return 0;
    case RECORDER_CONSUMED:
        if (!consumed_is_possible(&r->regs, value)) {
            return -EINVAL;
        }
        r->regs.consumed = value;
        return 0;
    case RECORDER_MIX:
        generator_mix(&r->regs.generator, value);
        return 0;
    default:
        return -EINVAL;
    }
}

bool recorder_ready(const struct recorder *r)
{
    return r->regs.control != 0 && r->regs.generator.number - r->regs.consumed < r->regs.length;
}

uint64_t recorder_next(const struct recorder *r, struct record *record)
{
    struct generator generator = r->regs.generator;

    generator_next(&generator, record);
    return r->regs.ring + record->number % r->regs.length * sizeof(*record);
}

void recorder_written(struct recorder *r, const struct record *record)
{
    struct record same;
    size_t place = record->number % NR_HISTORY;

    generator_next(&r->regs.generator, &same);
    r->history[place] = record->checksum;
    r->unsaved[place * sizeof(r->history[0]) / STATE_PAGE_SIZE] = true;
}

void recorder_failed(struct recorder *r, int err)
{
    r->regs.error = (uint64_t)err;
    r->regs.control = 0;
}

/*
 * Saving
 */

#define CHUNK_HEAD offsetof(struct chunk, history)

static size_t chunk_size(uint32_t kind)
{
    switch (kind) {
    case CHUNK_PAGE:
        return CHUNK_HEAD + STATE_PAGE_SIZE;
    case CHUNK_REGISTERS:
        return CHUNK_HEAD + sizeof(struct recorder_registers);
    default:
        return 0;
    }
}

static uint8_t *state_page(struct recorder *r, size_t page)
{
    return (uint8_t *)r->history + page * STATE_PAGE_SIZE;
}

void recorder_save_begin(struct recorder *r)
{
    memset(r->unsaved, true, sizeof(r->unsaved));
    r->registers_unsaved = true;
    r->chunk_size = 0;
}

/* What is put aside here is as of now; what changes later is saved again. */
static bool next_chunk(struct recorder *r, bool stopped)
{
    r->chunk_done = 0;
    for (uint32_t page = 0; page < NR_STATE_PAGES; page++) {
        if (r->unsaved[page]) {
            r->unsaved[page] = false;
            r->chunk.kind = CHUNK_PAGE;
            r->chunk.page = page;
            memcpy(r->chunk.history, state_page(r, page), STATE_PAGE_SIZE);
            r->chunk_size = chunk_size(CHUNK_PAGE);
            return true;
        }
    }
    if (stopped && r->registers_unsaved) {
        r->registers_unsaved = false;
        r->chunk.kind = CHUNK_REGISTERS;
        r->chunk.page = 0;
        r->chunk.registers = r->regs;
        r->chunk_size = chunk_size(CHUNK_REGISTERS);
        return true;
    }
    r->chunk_size = 0;
    return false;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

size_t recorder_save(struct recorder *r, bool stopped, void *data, size_t size)
{
    size_t done = 0;

    while (done < size && (r->chunk_size != 0 || next_chunk(r, stopped))) {
        size_t n = smaller(size - done, r->chunk_size - r->chunk_done);

        memcpy((uint8_t *)data + done, (uint8_t *)&r->chunk + r->chunk_done, n);
        done += n;
        r->chunk_done += n;
        if (r->chunk_done == r->chunk_size) {
            r->chunk_size = 0;
        }
    }
    return done;
}

/*
 * Loading
 */

static void expect_chunk(struct recorder *r)
{
    r->chunk_size = CHUNK_HEAD;
    r->chunk_done = 0;
}

void recorder_load_begin(struct recorder *r)
{
    r->registers_unsaved = true;
    expect_chunk(r);
}

bool recorder_loaded(const struct recorder *r)
{
    return !r->registers_unsaved;
}

/* Who has sent it is not trusted more than who writes registers. */
static int load_registers(struct recorder *r)
{
    const struct recorder_registers *regs = &r->chunk.registers;

    if (regs->length == 0 || regs->length > RECORDER_MAX_RING || regs->control > 1 ||
        regs->consumed > regs->generator.number) {
        return -EINVAL;
    }
    r->regs = *regs;
    r->registers_unsaved = false;
    return 0;
}

static int load_head(struct recorder *r)
{
    size_t size = chunk_size(r->chunk.kind);

    if (size == 0 || (r->chunk.kind == CHUNK_PAGE && r->chunk.page >= NR_STATE_PAGES)) {
        return -EINVAL;
    }
    r->chunk_size = size;
    return 0;
}

static int load_chunk(struct recorder *r)
{
    int err = 0;

    if (r->chunk.kind == CHUNK_REGISTERS) {
        err = load_registers(r);
    } else {
        memcpy(state_page(r, r->chunk.page), r->chunk.history, STATE_PAGE_SIZE);
    }
    expect_chunk(r);
    return err;
}

int recorder_load(struct recorder *r, const void *data, size_t size)
{
    size_t done = 0;
    int err = 0;

    while (done < size && err == 0) {
        size_t n = smaller(size - done, r->chunk_size - r->chunk_done);

        if (recorder_loaded(r)) {
            return -EINVAL; /* the registers are the end */
        }
        memcpy((uint8_t *)&r->chunk + r->chunk_done, (const uint8_t *)data + done, n);
        done += n;
        r->chunk_done += n;
        if (r->chunk_done == r->chunk_size) {
            err = r->chunk_size == CHUNK_HEAD ? load_head(r) : load_chunk(r);
        }
    }
    if (err != 0) {
        expect_chunk(r);
    }
    return err;
}
