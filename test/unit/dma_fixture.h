/* SPDX-License-Identifier: BSD-3-Clause */
/* What the tests of the DMA room share: memory files, and maps in one line. */

#ifndef VFU_TEST_DMA_FIXTURE_H
#define VFU_TEST_DMA_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "dma/dma.h"
#include "util/limits.h"
#include "util/log.h"

#define PAGE 4096ull
#define RW (PROT_READ | PROT_WRITE)

static const struct logger silent;

static inline int memory_file(uint64_t size)
{
    int fd = memfd_create("dma-test", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_return_code(ftruncate(fd, (off_t)size), 0);
    return fd;
}

/* Of the spaces that new_dma() makes; a test may change them. */
static struct limits test_limits;

static inline struct dma *new_dma(size_t max_regions)
{
    struct dma_config config = {
        .log = &silent, .limits = &test_limits, .max_regions = max_regions
    };
    struct dma *dma = NULL;

    limits_init(&test_limits);
    assert_int_equal(dma_create(&config, &dma), 0);
    return dma;
}

static inline struct range span(uint64_t addr, uint64_t size)
{
    struct range range = { 0, 0 };

    assert_true(range_make(addr, size, &range));
    return range;
}

static inline int map_mode(struct dma_space *space, uint64_t addr, uint64_t size, int fd,
                           uint64_t offset, int prot, enum dma_mode mode)
{
    struct dma_mapping mapping = {
        .iova = span(addr, size), .prot = prot, .mode = mode, .fd = fd, .offset = offset
    };
    struct dma_entry *region;

    return dma_map(space, &mapping, &region);
}

static inline int map_file(struct dma_space *space, uint64_t addr, uint64_t size, int fd,
                           uint64_t offset)
{
    return map_mode(space, addr, size, fd, offset, RW, DMA_MODE_MMAP);
}

static inline int map_message(struct dma_space *space, uint64_t addr, uint64_t size, int prot)
{
    return map_mode(space, addr, size, -1, 0, prot, DMA_MODE_MESSAGE);
}

static inline int unmap(struct dma_space *space, uint64_t addr, uint64_t size)
{
    return dma_unmap(space, span(addr, size), NULL, NULL, NULL);
}

/* xorshift64: the same numbers in every run. */
static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

#endif /* VFU_TEST_DMA_FIXTURE_H */
