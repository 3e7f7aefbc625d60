/* SPDX-License-Identifier: BSD-3-Clause */
#include "iommu/pagetable.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#define ENTRIES 512u
#define INDEX_BITS 9
#define MAX_LEAF_LEVEL 2

/*
 * An entry is 0, or the address of a node, whose low bits are 0, or a leaf: bit 0, the permissions
 * above it, and the target from bit 12 on.
 */
#define LEAF 1u
#define PERM_SHIFT 1

struct pt_node {
    uint64_t entries[ENTRIES];
    unsigned used;
};

_Static_assert((PT_PERM_MASK << PERM_SHIFT) < PT_PAGE_SIZE, "permissions lie below the target");

static uint64_t level_size(unsigned level)
{
    return PT_PAGE_SIZE << (level * INDEX_BITS);
}

static bool is_leaf(uint64_t entry)
{
    return (entry & LEAF) != 0;
}

static uint64_t make_leaf(uint64_t target, uint32_t perm)
{
    return target | (uint64_t)perm << PERM_SHIFT | LEAF;
}

static uint64_t leaf_target(uint64_t entry)
{
    return entry & ~PT_PAGE_MASK;
}

static uint32_t leaf_perm(uint64_t entry)
{
    return (uint32_t)(entry >> PERM_SHIFT) & PT_PERM_MASK;
}

static struct pt_node *node_of(uint64_t entry)
{
    return (struct pt_node *)(uintptr_t)entry;
}

static unsigned index_of(uint64_t addr, unsigned level)
{
    return (unsigned)(addr >> (PT_PAGE_SHIFT + level * INDEX_BITS)) % ENTRIES;
}

static void set_entry(struct pt_node *node, unsigned index, uint64_t value)
{
    node->used += (value != 0) - (node->entries[index] != 0);
    node->entries[index] = value;
}

int pagetable_init(struct pagetable *pt, unsigned bits)
{
    if (bits < PT_MIN_BITS || bits > PT_MAX_BITS) {
        return -EINVAL;
    }
    pt->bits = bits;
    pt->level = (bits - PT_PAGE_SHIFT - 1) / INDEX_BITS;
    pt->root = calloc(1, sizeof(*pt->root));
    return pt->root != NULL ? 0 : -ENOMEM;
}

static void free_node(struct pt_node *node, unsigned level)
{
    for (unsigned i = 0; level > 0 && i < ENTRIES; i++) {
        if (node->entries[i] != 0 && !is_leaf(node->entries[i])) {
            free_node(node_of(node->entries[i]), level - 1);
        }
    }
    free(node);
}

void pagetable_destroy(struct pagetable *pt)
{
    if (pt->root != NULL) {
        free_node(pt->root, pt->level);
        pt->root = NULL;
    }
}

uint64_t pagetable_last(const struct pagetable *pt)
{
    return (UINT64_C(1) << pt->bits) - 1;
}

/* Looking */

void pagetable_walk(const struct pagetable *pt, uint64_t addr, struct pt_span *span)
{
    const struct pt_node *node = pt->root;
    unsigned level = pt->level;
    uint64_t entry;

    *span = (struct pt_span){ .first = pagetable_last(pt) + 1, .last = UINT64_MAX };
    if (addr >= span->first) {
        return;
    }
    while ((entry = node->entries[index_of(addr, level)]) != 0 && !is_leaf(entry)) {
        node = node_of(entry);
        level--;
    }
    span->first = addr & ~(level_size(level) - 1);
    span->last = span->first + (level_size(level) - 1);
    if (span->last > pagetable_last(pt)) {
        span->last = pagetable_last(pt);
    }
    if (entry != 0) {
        span->target = leaf_target(entry);
        span->perm = leaf_perm(entry);
    }
}

static bool anything_in(const struct pagetable *pt, uint64_t first, uint64_t last)
{
    struct pt_span span;

    for (uint64_t addr = first;; addr = span.last + 1) {
        pagetable_walk(pt, addr, &span);
        if (span.perm != 0 || span.last >= last) {
            return span.perm != 0;
        }
    }
}

/* Changing */

/* Nothing but leaves that are not cut, and holes, are in the range: each leaf becomes another. */
struct change {
    uint64_t first, last;
    uint32_t perm; /* 0: nothing */
    struct pt_found *found;
};

static uint64_t changed_leaf(const struct change *change, uint64_t leaf, unsigned level)
{
    change->found->bytes += level_size(level);
    change->found->perm |= leaf_perm(leaf);
    change->found->lost |= leaf_perm(leaf) & ~change->perm;
    change->found->gained |= change->perm & ~leaf_perm(leaf);
    return change->perm != 0 ? make_leaf(leaf_target(leaf), change->perm) : 0;
}

static void change_node(struct pt_node *node, unsigned level, uint64_t base,
                        const struct change *change)
{
    uint64_t size = level_size(level);
    unsigned from = change->first > base ? index_of(change->first, level) : 0;

    for (unsigned i = from; i < ENTRIES && base + i * size <= change->last; i++) {
        uint64_t entry = node->entries[i];

        if (is_leaf(entry)) {
            set_entry(node, i, changed_leaf(change, entry, level));
        } else if (entry != 0) {
            change_node(node_of(entry), level - 1, base + i * size, change);
            if (node_of(entry)->used == 0) {
                free(node_of(entry));
                set_entry(node, i, 0);
            }
        }
    }
}

/* The leaf becomes a node of smaller ones that say the same. NULL: no memory. */
static struct pt_node *split_leaf(struct pt_node *node, unsigned index, unsigned level)
{
    struct pt_node *child = malloc(sizeof(*child));
    uint64_t leaf = node->entries[index];

    if (child == NULL) {
        return NULL;
    }
    for (unsigned i = 0; i < ENTRIES; i++) {
        child->entries[i] = leaf + i * level_size(level - 1);
    }
    child->used = ENTRIES;
    node->entries[index] = (uintptr_t)child;
    return child;
}

/* No leaf begins before addr and ends behind it, from here on. */
static int split_at(struct pagetable *pt, uint64_t addr)
{
    struct pt_node *node = pt->root;

    for (unsigned level = pt->level; (addr & (level_size(level) - 1)) != 0; level--) {
        unsigned index = index_of(addr, level);
        uint64_t entry = node->entries[index];

        if (entry == 0) {
            break;
        }
        node = is_leaf(entry) ? split_leaf(node, index, level) : node_of(entry);
        if (node == NULL) {
            return -ENOMEM;
        }
    }
    return 0;
}

static int change_range(struct pagetable *pt, const struct change *change)
{
    int err = split_at(pt, change->first);

    *change->found = (struct pt_found){ 0 };
    if (err == 0 && change->last < pagetable_last(pt)) {
        err = split_at(pt, change->last + 1);
    }
    if (err == 0) {
        change_node(pt->root, pt->level, 0, change);
    }
    return err;
}

int pagetable_unmap(struct pagetable *pt, uint64_t first, uint64_t last, struct pt_found *found)
{
    const struct change change = { first, last, 0, found };

    return change_range(pt, &change);
}

int pagetable_protect(struct pagetable *pt, uint64_t first, uint64_t last, uint32_t perm,
                      struct pt_found *found)
{
    const struct change change = { first, last, perm, found };

    return change_range(pt, &change);
}

/* Mapping */

static unsigned leaf_level(uint64_t first, uint64_t last, uint64_t target, unsigned top)
{
    unsigned level = top < MAX_LEAF_LEVEL ? top : MAX_LEAF_LEVEL;

    while (level > 0 && (((first | target) & (level_size(level) - 1)) != 0 ||
                         last - first < level_size(level) - 1)) {
        level--;
    }
    return level;
}

static int set_leaf(struct pagetable *pt, uint64_t addr, unsigned leaf, uint64_t value)
{
    struct pt_node *node = pt->root;

    for (unsigned level = pt->level; level > leaf; level--) {
        unsigned index = index_of(addr, level);
        struct pt_node *child = node_of(node->entries[index]);

        if (child == NULL) {
            child = calloc(1, sizeof(*child));
            if (child == NULL) {
                return -ENOMEM;
            }
            set_entry(node, index, (uintptr_t)child);
        }
        node = child;
    }
    set_entry(node, index_of(addr, leaf), value);
    return 0;
}

int pagetable_map(struct pagetable *pt, uint64_t first, uint64_t last, uint64_t target,
                  uint32_t perm)
{
    struct pt_found found;

    if (anything_in(pt, first, last)) {
        return -EEXIST;
    }
    for (uint64_t addr = first;;) {
        uint64_t to = target + (addr - first);
        unsigned level = leaf_level(addr, last, to, pt->level);
        int err = set_leaf(pt, addr, level, make_leaf(to, perm));

        if (err < 0) {
            /* Also frees the nodes that were made for this leaf. There is nothing to split. */
            pagetable_unmap(pt, first, last, &found);
            return err;
        }
        if (last - addr < level_size(level)) {
            return 0;
        }
        addr += level_size(level);
    }
}
