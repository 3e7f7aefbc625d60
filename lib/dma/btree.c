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
    _Atomic uint32_t stamp[SLOTS]; /* of the items, in a leaf */
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

    pos = LINE_WORDS *
          ((load(&node->key[1 * LINE_WORDS]) <= key) + (load(&node->key[2 * LINE_WORDS]) <= key) +
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

/* Which line of the values and stamps is only known after the search: fetch all meanwhile. */
static inline void prefetch_values(const struct btree_node *node)
{
    const uint8_t *line = (const uint8_t *)node->value;
    unsigned int i;

#pragma GCC unroll 6
    for (i = 0; i < (sizeof(node->value) + sizeof(node->stamp)) / 64; i++) {
        __builtin_prefetch(line + 64 * (size_t)i);
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
    item->stamp = atomic_load_explicit(&node->stamp[pos & MAX_KEYS], memory_order_acquire);
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

static struct btree_item item_at(const struct btree_node *node, unsigned int pos)
{
    return (struct btree_item){
        .key = peek(&node->key[pos]),
        .value = peek(&node->value[pos]),
        .stamp = atomic_load_explicit(&node->stamp[pos], memory_order_relaxed),
    };
}

static void set_item(struct btree_node *node, unsigned int pos, const struct btree_item *item)
{
    store(&node->key[pos], item->key);
    store(&node->value[pos], item->value);
    atomic_store_explicit(&node->stamp[pos], item->stamp, memory_order_release);
}

static void move_item(struct btree_node *to, unsigned int at, const struct btree_node *from,
                      unsigned int pos)
{
    struct btree_item item = item_at(from, pos);

    set_item(to, at, &item);
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
        *item = item_at(path.node[d], path.pos[d]);
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
        *item = item_at(node, path.pos[d] + 1);
        return true;
    }
    node = child_of(node, path.pos[d] + 1);
    while (level_of(node) > 0) {
        node = child_of(node, 0);
    }
    *item = item_at(node, 1);
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

static void node_insert(struct btree_node *node, unsigned int at, const struct btree_item *item)
{
    unsigned int i, count = count_of(node);

    for (i = count; i >= at; i--) {
        move_item(node, i + 1, node, i);
    }
    set_item(node, at, item);
    set_count(node, count + 1);
}

static void node_remove(struct btree_node *node, unsigned int at)
{
    unsigned int i, count = count_of(node);

    for (i = at; i < count; i++) {
        move_item(node, i, node, i + 1);
    }
    store(&node->key[count], NO_KEY);
    set_count(node, count - 1);
}

/* Moves the keys above from, with their values, to the end of another node. */
static void move_tail(struct btree_node *to, struct btree_node *node, unsigned int from)
{
    unsigned int i, n = count_of(to), count = count_of(node);

    for (i = from + 1; i <= count; i++) {
        move_item(to, ++n, node, i);
        store(&node->key[i], NO_KEY);
    }
    set_count(to, n);
    set_count(node, from);
}

/*
 * Splits a full node, and inserts an item at the given slot. Returns what the parent needs: the new
 * right node under its smallest key. A node that grows at its end is left full, so that ascending
 * keys pack.
 */
static struct btree_item split_insert(struct btree *tree, struct btree_node *node, unsigned int at,
                                      const struct btree_item *item)
{
    unsigned int middle = at == SLOTS ? MAX_KEYS : SLOTS / 2;
    struct btree_node *right = new_node(tree, level_of(node));
    struct btree_item up = { .key = peek(&node->key[middle]), .value = (uintptr_t)right };
    bool inner = level_of(node) > 0;

    move_tail(right, node, middle);
    if (inner) {
        store(&right->value[0], peek(&node->value[middle]));
        node_remove(node, middle);
    }
    if (at <= middle) {
        node_insert(node, at, item);
    } else {
        node_insert(right, at - middle, item);
    }
    if (!inner) {
        up.key = peek(&right->key[1]);
    }
    return up;
}

static void new_root(struct btree *tree, struct btree_node *left, const struct btree_item *right)
{
    struct btree_node *root = new_node(tree, level_of(left) + 1);

    store(&root->value[0], (uintptr_t)left);
    node_insert(root, 1, right);
    set_root(tree, root);
}

void btree_insert(struct btree *tree, const struct btree_item *item)
{
    struct btree_node *node = root_of(tree);
    struct btree_item rising = *item;
    struct path path;
    unsigned int d;

    if (node == NULL) {
        node = new_node(tree, 0);
        node_insert(node, 1, item);
        set_root(tree, node);
        return;
    }
    descend(node, item->key, &path);
    for (d = path.depth + 1; d-- > 0;) {
        node = path.node[d];
        if (count_of(node) < MAX_KEYS) {
            node_insert(node, path.pos[d] + 1, &rising);
            return;
        }
        rising = split_insert(tree, node, path.pos[d] + 1, &rising);
    }
    new_root(tree, node, &rising);
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
    struct btree_item pulled;
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
        pulled = (struct btree_item){ peek(&parent->key[at]), peek(&right->value[0]), 0 };
        node_insert(left, count_of(left) + 1, &pulled);
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
