/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A B+-tree from 64-bit keys to 64-bit values, each with a 32-bit stamp, with one writer at a time
 * and any number of readers that take no lock and store nothing.
 *
 * Reading. The tree has a sequence counter, odd while a writer is at work. A reader takes an even
 * value, descends, and believes what it found only if the counter still has that value. It checks
 * on every level before it follows a pointer, so it never follows one that was not a child; and
 * nodes come from a slab, so a node that is freed under it stays a node. Every word of a node is
 * atomic: loads acquire and stores release, which orders them against the counter without fences.
 *
 * Writing happens between btree_write_begin and btree_write_end, under the caller's lock, in
 * place. Memory is reserved before, so that no change can fail half way.
 */

#ifndef VFU_DMA_BTREE_H
#define VFU_DMA_BTREE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "dma/slab.h"

struct btree_node;

struct btree {
    _Alignas(64) _Atomic uint64_t seq;
    _Atomic(struct btree_node *) root; /* NULL when empty */
    struct slab *nodes;                /* of btree_node_size, may be shared by trees */
};

struct btree_item {
    uint64_t key;
    uint64_t value;
    uint32_t stamp;
};

enum btree_found {
    BTREE_NONE,
    BTREE_FOUND,
    BTREE_TORN, /* a writer was in the way: try again */
};

/* Prepares a slab for nodes. */
void btree_slab_init(struct slab *slab);

void btree_init(struct btree *tree, struct slab *nodes);

/* The counter as a reader starts. Odd: a writer is at work. */
static inline uint64_t btree_seq(const struct btree *tree)
{
    return atomic_load_explicit(&tree->seq, memory_order_acquire);
}

/* Whether all that was loaded since seq was taken belongs together. */
static inline bool btree_valid(const struct btree *tree, uint64_t seq)
{
    return atomic_load_explicit(&tree->seq, memory_order_relaxed) == seq;
}

/*
 * The item with the greatest key not above key. seq is an even value of btree_seq; a result other
 * than BTREE_TORN holds if btree_valid(tree, seq) is true afterwards. The writer, who is alone,
 * may leave that out.
 */
enum btree_found btree_floor(const struct btree *tree, uint64_t seq, uint64_t key,
                             struct btree_item *item);

/* --- the writer only ------------------------------------------------------------------------ */

/* The item with the smallest key not below key. */
bool btree_ceil(const struct btree *tree, uint64_t key, struct btree_item *item);

/* Reserves what the next btree_insert needs. -ENOMEM. */
int btree_reserve(struct btree *tree);

void btree_write_begin(struct btree *tree);
void btree_write_end(struct btree *tree);

/* Adds a key that is not there. Needs btree_reserve since the last insert. */
void btree_insert(struct btree *tree, const struct btree_item *item);

/* Removes a key; false when it is not there. */
bool btree_remove(struct btree *tree, uint64_t key);

#endif /* VFU_DMA_BTREE_H */
