/* SPDX-License-Identifier: BSD-3-Clause */
#include "dma/btree.h"

#include <errno.h>
#include <stddef.h>

#define SLOTS 32
#define MAX_KEYS (SLOTS - 1)
#define LINE_WORDS 8
#define NO_KEY UINT64_MAX

/* A node with no more keys than this looks for a neighbour to merge with ... */
#define MERGE_AT 8
/* ... and finds one if both together leave room for what comes next. */
#define MERGED_MAX 24

/* Nodes keep an average of more than MERGE_AT keys, so 2^32 items are far below this. */
#define MAX_HEIGHT 16

/*
 * key[0] is the header. key[1..count] ascend, the rest are NO_KEY. In a leaf, value[i] belongs to
 * key[i]; in an inner node, value[i] is the child with the keys in [key[i], key[i + 1]), and key[i]
 * is exactly its smallest key. So a search never has to look into a neighbour.
 */
struct btree_node {
    _Alignas(64) _Atomic uint64_t key[SLOTS];
    _Atomic uint64_t value[SLOTS];
};

static uint64_t header(unsigned int level, unsigned int count)
{
    return (uint64_t)level << 8 | count;
}

static unsigned int header_level(uint64_t word)
{
    return (unsigned int)(word >> 8);
}

static unsigned int header_count(uint64_t word)
{
    return word & 0xff;
}

static uint64_t load(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_acquire);
}

static void store(_Atomic uint64_t *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}

static struct btree_node *as_node(uint64_t value)
{
    return (struct btree_node *)(uintptr_t)value;
}

/*
 * How many keys are not above key (up to MAX_KEYS: unused slots count for the key 2^64 - 1). The
 * first word of each cache line picks the line, then the other seven are counted: two dependent
 * steps, no branches.
 */
static inline unsigned int search(const struct btree_node *node, uint64_t key)
{
    const _Atomic uint64_t *line;
    unsigned int i, pos;

    pos = LINE_WORDS * ((load(&node->key[1 * LINE_WORDS]) <= key) +
                        (load(&node->key[2 * LINE_WORDS]) <= key) +
                        (load(&node->key[3 * LINE_WORDS]) <= key));
    line = &node->key[pos];
#pragma GCC unroll 7
    for (i = 1; i < LINE_WORDS; i++) {
        pos += load(&line[i]) <= key;
    }
    return pos;
}

static unsigned int search_within(const struct btree_node *node, uint64_t key, unsigned int count)
{
    unsigned int pos = search(node, key);

    return pos < count ? pos : count;
}

void btree_slab_init(struct slab *slab)
{
    slab_init(slab, sizeof(struct btree_node), offsetof(struct btree_node, value[MAX_KEYS]));
}

void btree_init(struct btree *tree, struct slab *nodes)
{
    atomic_init(&tree->seq, 0);
    atomic_init(&tree->root, NULL);
    tree->nodes = nodes;
}

/* The values' line is only known after the search: fetch all four meanwhile. */
static inline void prefetch_values(const struct btree_node *node)
{
    unsigned int i;

#pragma GCC unroll 4
    for (i = 0; i < SLOTS; i += LINE_WORDS) {
        __builtin_prefetch((const void *)&node->value[i]);
    }
}

enum btree_found btree_floor(const struct btree *tree, uint64_t seq, uint64_t key,
                             struct btree_item *item)
{
    const struct btree_node *node = atomic_load_explicit(&tree->root, memory_order_acquire);
    unsigned int pos;
    uint64_t head;

    for (;;) {
        if (!btree_valid(tree, seq)) {
            return BTREE_TORN;
        }
        if (node == NULL) {
            return BTREE_NONE;
        }
        prefetch_values(node);
        head = load(&node->key[0]);
        pos = search_within(node, key, header_count(head));
        if (header_level(head) == 0) {
            break;
        }
        node = as_node(load(&node->value[pos & MAX_KEYS]));
    }
    if (pos == 0) {
        return BTREE_NONE;
    }
    item->key = load(&node->key[pos & MAX_KEYS]);
    item->value = load(&node->value[pos & MAX_KEYS]);
    return BTREE_FOUND;
}

/* --- the writer's side ---------------------------------------------------------------------- */

static uint64_t peek(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static struct btree_node *root_of(const struct btree *tree)
{
    return atomic_load_explicit(&tree->root, memory_order_relaxed);
}

static void set_root(struct btree *tree, struct btree_node *node)
{
    atomic_store_explicit(&tree->root, node, memory_order_release);
}

static unsigned int level_of(const struct btree_node *node)
{
    return header_level(peek(&node->key[0]));
}

static unsigned int count_of(const struct btree_node *node)
{
    return header_count(peek(&node->key[0]));
}

static void set_count(struct btree_node *node, unsigned int count)
{
    store(&node->key[0], header(level_of(node), count));
}

static struct btree_node *child_of(const struct btree_node *node, unsigned int pos)
{
    return as_node(peek(&node->value[pos]));
}

/* From the root (0) to a leaf (depth): the nodes passed and the slot taken in each. */
struct path {
    struct btree_node *node[MAX_HEIGHT];
    unsigned int pos[MAX_HEIGHT];
    unsigned int depth;
};

static void descend(struct btree_node *root, uint64_t key, struct path *path)
{
    struct btree_node *node = root;
    unsigned int d = 0;

    for (;; d++) {
        path->node[d] = node;
        path->pos[d] = search_within(node, key, count_of(node));
        if (level_of(node) == 0) {
            break;
        }
        node = child_of(node, path->pos[d]);
    }
    path->depth = d;
}

static void item_at(const struct btree_node *leaf, unsigned int pos, struct btree_item *item)
{
    item->key = peek(&leaf->key[pos]);
    item->value = peek(&leaf->value[pos]);
}

bool btree_ceil(const struct btree *tree, uint64_t key, struct btree_item *item)
{
    struct btree_node *node = root_of(tree);
    struct path path;
    unsigned int d;

    if (node == NULL) {
        return false;
    }
    descend(node, key, &path);
    d = path.depth;
    if (path.pos[d] > 0 && peek(&path.node[d]->key[path.pos[d]]) == key) {
        item_at(path.node[d], path.pos[d], item);
        return true;
    }
    while (path.pos[d] == count_of(path.node[d])) {
        if (d == 0) {
            return false;
        }
        d--;
    }
    node = path.node[d];
    if (level_of(node) == 0) {
        item_at(node, path.pos[d] + 1, item);
        return true;
    }
    node = child_of(node, path.pos[d] + 1);
    while (level_of(node) > 0) {
        node = child_of(node, 0);
    }
    item_at(node, 1, item);
    return true;
}

int btree_reserve(struct btree *tree)
{
    const struct btree_node *root = root_of(tree);
    unsigned int height = root == NULL ? 0 : level_of(root) + 1;

    if (height >= MAX_HEIGHT) {
        return -ENOMEM;
    }
    return slab_reserve(tree->nodes, height + 1);
}

void btree_write_begin(struct btree *tree)
{
    uint64_t seq = peek(&tree->seq);

    /* The stores that follow release, and so carry this one with them. */
    atomic_store_explicit(&tree->seq, seq + 1, memory_order_relaxed);
}

void btree_write_end(struct btree *tree)
{
    store(&tree->seq, peek(&tree->seq) + 1);
}

static struct btree_node *new_node(struct btree *tree, unsigned int level)
{
    struct btree_node *node = slab_alloc(tree->nodes);
    unsigned int i;

    store(&node->key[0], header(level, 0));
    for (i = 1; i < SLOTS; i++) {
        store(&node->key[i], NO_KEY);
    }
    return node;
}

static void node_insert(struct btree_node *node, unsigned int at, uint64_t key, uint64_t value)
{
    unsigned int i, count = count_of(node);

    for (i = count; i >= at; i--) {
        store(&node->key[i + 1], peek(&node->key[i]));
        store(&node->value[i + 1], peek(&node->value[i]));
    }
    store(&node->key[at], key);
    store(&node->value[at], value);
    set_count(node, count + 1);
}

static void node_remove(struct btree_node *node, unsigned int at)
{
    unsigned int i, count = count_of(node);

    for (i = at; i < count; i++) {
        store(&node->key[i], peek(&node->key[i + 1]));
        store(&node->value[i], peek(&node->value[i + 1]));
    }
    store(&node->key[count], NO_KEY);
    set_count(node, count - 1);
}

/* Moves the keys above from, with their values, to the end of another node. */
static void move_tail(struct btree_node *to, struct btree_node *node, unsigned int from)
{
    unsigned int i, n = count_of(to), count = count_of(node);

    for (i = from + 1; i <= count; i++) {
        n++;
        store(&to->key[n], peek(&node->key[i]));
        store(&to->value[n], peek(&node->value[i]));
        store(&node->key[i], NO_KEY);
    }
    set_count(to, n);
    set_count(node, from);
}

/*
 * Splits a full node, and inserts at the given slot. Returns the new right node and, in *up, its
 * smallest key. A node that grows at its end is left full, so that ascending keys pack.
 */
static struct btree_node *split_insert(struct btree *tree, struct btree_node *node, unsigned int at,
                                       uint64_t key, uint64_t value, uint64_t *up)
{
    unsigned int middle = at == SLOTS ? MAX_KEYS : SLOTS / 2;
    struct btree_node *right = new_node(tree, level_of(node));
    bool inner = level_of(node) > 0;
    uint64_t separator = peek(&node->key[middle]);

    move_tail(right, node, middle);
    if (inner) {
        store(&right->value[0], peek(&node->value[middle]));
        node_remove(node, middle);
    }
    if (at <= middle) {
        node_insert(node, at, key, value);
    } else {
        node_insert(right, at - middle, key, value);
    }
    *up = inner ? separator : peek(&right->key[1]);
    return right;
}

void btree_insert(struct btree *tree, uint64_t key, uint64_t value)
{
    struct btree_node *node = root_of(tree), *root;
    struct path path;
    unsigned int d;
    uint64_t up;

    if (node == NULL) {
        node = new_node(tree, 0);
        node_insert(node, 1, key, value);
        set_root(tree, node);
        return;
    }
    descend(node, key, &path);
    for (d = path.depth;; d--) {
        node = path.node[d];
        if (count_of(node) < MAX_KEYS) {
            node_insert(node, path.pos[d] + 1, key, value);
            return;
        }
        value = (uintptr_t)split_insert(tree, node, path.pos[d] + 1, key, value, &up);
        key = up;
        if (d == 0) {
            break;
        }
    }
    root = new_node(tree, level_of(node) + 1);
    store(&root->value[0], (uintptr_t)node);
    node_insert(root, 1, key, value);
    set_root(tree, root);
}

/* The node at depth d of the path has a new smallest key: write it where it is kept. */
static void set_smallest(struct path *path, unsigned int d, uint64_t key)
{
    while (d-- > 0) {
        if (path->pos[d] > 0) {
            store(&path->node[d]->key[path->pos[d]], key);
            return;
        }
    }
}

/*
 * Takes the child out that the path goes through at depth d. False when it was the only one, and
 * nothing is left of the node.
 */
static bool remove_child(struct path *path, unsigned int d)
{
    struct btree_node *node = path->node[d];

    if (path->pos[d] > 0) {
        node_remove(node, path->pos[d]);
        return true;
    }
    if (count_of(node) == 0) {
        return false;
    }
    set_smallest(path, d, peek(&node->key[1]));
    store(&node->value[0], peek(&node->value[1]));
    node_remove(node, 1);
    return true;
}

/* Merges the child that the path goes through at depth d with a neighbour, if both fit in one. */
static bool merge_child(struct btree *tree, struct path *path, unsigned int d)
{
    struct btree_node *parent = path->node[d], *left, *right;
    unsigned int at = path->pos[d] > 0 ? path->pos[d] : 1;
    bool inner;

    if (count_of(parent) == 0) {
        return false;
    }
    left = child_of(parent, at - 1);
    right = child_of(parent, at);
    inner = level_of(left) > 0;
    if (count_of(left) + count_of(right) + inner > MERGED_MAX) {
        return false;
    }
    if (inner) {
        node_insert(left, count_of(left) + 1, peek(&parent->key[at]), peek(&right->value[0]));
    }
    move_tail(left, right, 0);
    node_remove(parent, at);
    slab_free(tree->nodes, right);
    return true;
}

/* Restores the shape after a key left the leaf at the end of the path. */
static void rebalance(struct btree *tree, struct path *path, bool left_over)
{
    struct btree_node *node;
    unsigned int d;

    for (d = path->depth; d > 0; d--) {
        node = path->node[d];
        if (!left_over) {
            slab_free(tree->nodes, node);
            left_over = remove_child(path, d - 1);
        } else if (count_of(node) > MERGE_AT || !merge_child(tree, path, d - 1)) {
            return;
        }
    }
    node = path->node[0];
    while (left_over && level_of(node) > 0 && count_of(node) == 0) {
        set_root(tree, child_of(node, 0));
        slab_free(tree->nodes, node);
        node = root_of(tree);
    }
    if (!left_over) {
        set_root(tree, NULL);
        slab_free(tree->nodes, node);
    }
}

bool btree_remove(struct btree *tree, uint64_t key)
{
    struct btree_node *leaf;
    struct path path;
    unsigned int at;

    if (root_of(tree) == NULL) {
        return false;
    }
    descend(root_of(tree), key, &path);
    leaf = path.node[path.depth];
    at = path.pos[path.depth];
    if (at == 0 || peek(&leaf->key[at]) != key) {
        return false;
    }
    node_remove(leaf, at);
    if (at == 1 && count_of(leaf) > 0) {
        set_smallest(&path, path.depth, peek(&leaf->key[1]));
    }
    rebalance(tree, &path, count_of(leaf) > 0);
    return true;
}
