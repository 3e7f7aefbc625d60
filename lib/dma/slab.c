/* SPDX-License-Identifier: BSD-3-Clause */
#include "dma/slab.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>

/* The first arena is small, for the context with a handful of regions; then they double. */
#define ARENA_MIN_SIZE (64ul << 10)
#define ARENA_MAX_SIZE (32ul << 20)
#define HUGE_PAGE_SIZE (2ul << 20)

/* At the start of each arena. Its size keeps the objects behind it aligned. */
struct slab_arena {
    _Alignas(128) struct slab_arena *next;
    size_t size;
};

void slab_init(struct slab *slab, size_t object_size, size_t link_offset)
{
    *slab = (struct slab){
        .object_size = object_size,
        .link_offset = link_offset,
        .next_arena_size = ARENA_MIN_SIZE,
    };
}

void slab_fini(struct slab *slab)
{
    struct slab_arena *arena = slab->arenas, *next;

    for (; arena != NULL; arena = next) {
        next = arena->next;
        munmap(arena, arena->size);
    }
    slab->arenas = NULL;
}

/* Stale readers may be loading this very word, hence the atomic accesses. */
static _Atomic(void *) *link_of(const struct slab *slab, void *object)
{
    return (_Atomic(void *) *)((uint8_t *)object + slab->link_offset);
}

/* Maps size bytes aligned to a huge page, by mapping more and giving back both ends. */
static void *map_aligned(size_t size)
{
    size_t span = size + HUGE_PAGE_SIZE, before;
    uint8_t *base;

    base = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        return MAP_FAILED;
    }
    before = -(uintptr_t)base & (HUGE_PAGE_SIZE - 1);
    if (before > 0) {
        munmap(base, before);
    }
    munmap(base + before + size, span - before - size);
    madvise(base + before, size, MADV_HUGEPAGE);
    return base + before;
}

static int add_arena(struct slab *slab)
{
    size_t size = slab->next_arena_size;
    struct slab_arena *arena;

    if (size < HUGE_PAGE_SIZE) {
        arena = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    } else {
        arena = map_aligned(size);
    }
    if (arena == MAP_FAILED) {
        return -ENOMEM;
    }
    while (slab->fresh < slab->fresh_end) {
        slab_free(slab, slab->fresh);
        slab->fresh += slab->object_size;
    }
    arena->size = size;
    arena->next = slab->arenas;
    slab->arenas = arena;
    slab->fresh = (uint8_t *)(arena + 1);
    slab->fresh_end = slab->fresh + (size - sizeof(*arena)) / slab->object_size * slab->object_size;
    if (size < ARENA_MAX_SIZE) {
        slab->next_arena_size = 2 * size;
    }
    return 0;
}

int slab_reserve(struct slab *slab, size_t count)
{
    int ret;

    while (slab->nr_free + (size_t)(slab->fresh_end - slab->fresh) / slab->object_size < count) {
        ret = add_arena(slab);
        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

void *slab_alloc(struct slab *slab)
{
    void *object;

    if (slab_reserve(slab, 1) < 0) {
        return NULL;
    }
    if (slab->nr_free > 0) {
        object = slab->free;
        slab->free = atomic_load_explicit(link_of(slab, object), memory_order_relaxed);
        slab->nr_free--;
    } else {
        object = slab->fresh;
        slab->fresh += slab->object_size;
    }
    return object;
}

void slab_free(struct slab *slab, void *object)
{
    atomic_store_explicit(link_of(slab, object), slab->free, memory_order_release);
    slab->free = object;
    slab->nr_free++;
}
