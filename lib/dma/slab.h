/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Objects of one size in memory that never changes its type: what is freed is reused for objects
 * of the same slab only, and goes back to the system with the whole slab. So a reader without a
 * lock may load from an object that was freed behind its back: it finds old or new values of the
 * same fields, and learns from a sequence counter or a generation that they are not what it wanted.
 *
 * The caller serializes all calls.
 */

#ifndef VFU_DMA_SLAB_H
#define VFU_DMA_SLAB_H

#include <stddef.h>
#include <stdint.h>

struct slab_arena;

struct slab {
    size_t object_size; /* a multiple of 64 */
    size_t link_offset; /* of a word that is the free list's while an object is free */
    struct slab_arena *arenas;
    uint8_t *fresh; /* never used objects: zeroed */
    uint8_t *fresh_end;
    void *free;
    size_t nr_free;
    size_t next_arena_size;
};

void slab_init(struct slab *slab, size_t object_size, size_t link_offset);
void slab_fini(struct slab *slab);

/* Makes sure that the next count allocations succeed. -ENOMEM. */
int slab_reserve(struct slab *slab, size_t count);

/* An object with the contents of its last use, or zeroes; NULL when out of memory. */
void *slab_alloc(struct slab *slab);
void slab_free(struct slab *slab, void *object);

#endif /* VFU_DMA_SLAB_H */
