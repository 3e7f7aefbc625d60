/* SPDX-License-Identifier: BSD-3-Clause */
#include "resources.h"

#include "fuzz.h"
#include "sanitizer.h"

#include <poll.h>
#include <stdbool.h>
#include <sys/mman.h>

#define MAX_OPEN 256 /* a descriptor that leaks has one of the lowest numbers */
#define LARGE (128u << 10)
#define MAX_BLOCKS 64
#define REDZONE 4096u

void *__real_malloc(size_t size);
void __real_free(void *memory);
void *__wrap_malloc(size_t size);
void __wrap_free(void *memory);

/* A small quarantine stays in the processor's cache. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "quarantine_size_mb=8:malloc_context_size=8:max_malloc_fill_size=0:"
           "detect_stack_use_after_return=1:detect_leaks=1";
}

struct block {
    uint8_t *memory; /* NULL: no block yet */
    size_t size;
    bool used;
};

static struct block blocks[MAX_BLOCKS];

static bool pools(void)
{
    ASAN(return true;)
    return false;
}

static void map_block(struct block *block, size_t size)
{
    size_t whole = size + 2 * REDZONE;
    uint8_t *start = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    REQUIRE(start != MAP_FAILED);
    ASAN(__asan_poison_memory_region(start, whole));
    ASAN(__lsan_register_root_region(start, whole));
    block->memory = start + REDZONE;
    block->size = size;
}

void *__wrap_malloc(size_t size)
{
    struct block *block = blocks;

    if (!pools() || size < LARGE) {
        return __real_malloc(size);
    }
    while (block->memory != NULL && (block->used || block->size != size)) {
        if (++block == blocks + MAX_BLOCKS) {
            return __real_malloc(size);
        }
    }
    if (block->memory == NULL) {
        map_block(block, size);
    }
    ASAN(__asan_unpoison_memory_region(block->memory, size));
    block->used = true;
    return block->memory;
}

void __wrap_free(void *memory)
{
    for (struct block *block = blocks; block < blocks + MAX_BLOCKS && block->memory != NULL;
         block++) {
        if (block->memory == memory) {
            REQUIRE(block->used);
            ASAN(__asan_poison_memory_region(memory, block->size));
            block->used = false;
            return;
        }
    }
    __real_free(memory);
}

unsigned resources_held(void)
{
    static struct pollfd fds[MAX_OPEN];
    unsigned held = 0;

    for (int i = 0; i < MAX_OPEN; i++) {
        fds[i] = (struct pollfd){ .fd = i };
    }
    poll(fds, MAX_OPEN, 0);
    for (int i = 0; i < MAX_OPEN; i++) {
        held += !(fds[i].revents & POLLNVAL);
    }
    for (int i = 0; i < MAX_BLOCKS; i++) {
        held += blocks[i].used;
    }
    return held;
}
