/* SPDX-License-Identifier: BSD-3-Clause */
#include <pthread.h>

#include "dma/btree.h"
#include "dma_fixture.h"

/* The model: a sorted array over a small universe of keys. */
#define UNIVERSE 4096

static uint64_t model[UNIVERSE]; /* 0: the key is absent */

struct fixture {
    struct slab slab;
    struct btree tree;
};

static int set_up(void **state)
{
    struct fixture *f = aligned_alloc(_Alignof(struct fixture), sizeof(*f));

    assert_non_null(f);
    memset(model, 0, sizeof(model));
    btree_slab_init(&f->slab);
    btree_init(&f->tree, &f->slab);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    slab_fini(&f->slab);
    free(f);
    return 0;
}

static void insert(struct btree *tree, uint64_t key, uint64_t value)
{
    struct btree_item item = { key, value, (uint32_t)(key * 7) };

    assert_int_equal(btree_reserve(tree), 0);
    btree_write_begin(tree);
    btree_insert(tree, &item);
    btree_write_end(tree);
}

static bool remove_key(struct btree *tree, uint64_t key)
{
    bool removed;

    btree_write_begin(tree);
    removed = btree_remove(tree, key);
    btree_write_end(tree);
    return removed;
}

static enum btree_found floor_of(struct btree *tree, uint64_t key, struct btree_item *item)
{
    return btree_floor(tree, btree_seq(tree), key, item);
}

/* Model keys are spread so that neighbours, and the ends of the number space, are in it. */
static uint64_t key_at(size_t i)
{
    return i < UNIVERSE / 2 ? i * 3 : UINT64_MAX - (UNIVERSE - 1 - i) * 5;
}

static void check_floor(struct btree *tree, size_t i)
{
    struct btree_item item = { 0 };
    size_t at = i + 1;

    while (at > 0 && model[at - 1] == 0) {
        at--;
    }
    if (at == 0) {
        assert_int_equal(floor_of(tree, key_at(i), &item), BTREE_NONE);
    } else {
        assert_int_equal(floor_of(tree, key_at(i), &item), BTREE_FOUND);
        assert_int_equal(item.key, key_at(at - 1));
        assert_int_equal(item.value, model[at - 1]);
        assert_int_equal(item.stamp, (uint32_t)(item.key * 7));
    }
}

static void check_ceil(struct btree *tree, size_t i)
{
    struct btree_item item = { 0 };
    size_t at = i;

    while (at < UNIVERSE && model[at] == 0) {
        at++;
    }
    assert_int_equal(btree_ceil(tree, key_at(i), &item), at < UNIVERSE);
    if (at < UNIVERSE) {
        assert_int_equal(item.key, key_at(at));
        assert_int_equal(item.value, model[at]);
    }
}

static void check_all(struct btree *tree)
{
    size_t i;

    for (i = 0; i < UNIVERSE; i++) {
        check_floor(tree, i);
        check_ceil(tree, i);
    }
}

static void toggle(struct btree *tree, size_t i, uint64_t value)
{
    if (model[i] == 0) {
        insert(tree, key_at(i), value);
        model[i] = value;
    } else {
        assert_true(remove_key(tree, key_at(i)));
        model[i] = 0;
    }
}

static void test_empty(void **state)
{
    struct fixture *f = *state;
    struct btree_item item;

    assert_int_equal(floor_of(&f->tree, UINT64_MAX, &item), BTREE_NONE);
    assert_false(btree_ceil(&f->tree, 0, &item));
    assert_false(remove_key(&f->tree, 7));
}

static void test_random_against_model(void **state)
{
    struct fixture *f = *state;
    uint64_t random = 88172645463325252ull;
    size_t step, i;

    for (step = 0; step < 60000; step++) {
        i = next_random(&random) % UNIVERSE;
        /* Phases of growing and of shrinking, so that nodes split and merge. */
        if ((model[i] == 0) == ((step / 10000) % 2 == 0) || step % 7 == 0) {
            toggle(&f->tree, i, step + 1);
        }
        check_floor(&f->tree, next_random(&random) % UNIVERSE);
        check_ceil(&f->tree, next_random(&random) % UNIVERSE);
        if (step % 10000 == 9999) {
            check_all(&f->tree);
        }
    }
}

static void test_ascending_and_descending(void **state)
{
    struct fixture *f = *state;
    size_t i;

    for (i = 0; i < UNIVERSE; i++) {
        toggle(&f->tree, i, i + 1);
    }
    check_all(&f->tree);
    for (i = 0; i < UNIVERSE; i++) {
        toggle(&f->tree, i, 0);
        check_ceil(&f->tree, 0);
    }
    for (i = UNIVERSE; i-- > 0;) {
        toggle(&f->tree, i, i + 1);
    }
    check_all(&f->tree);
    for (i = UNIVERSE; i-- > 0;) {
        toggle(&f->tree, i, 0);
        check_floor(&f->tree, UNIVERSE - 1);
    }
    assert_null(atomic_load(&f->tree.root));
}

/* A region freed in the middle must not hide the one before it: separators follow the keys. */
static void test_floor_crosses_removed_separator(void **state)
{
    struct fixture *f = *state;
    struct btree_item item;
    uint64_t key;

    for (key = 0; key < 40000; key += 10) {
        insert(&f->tree, key, key + 1);
    }
    for (key = 10; key < 40000; key += 10) {
        assert_true(remove_key(&f->tree, key));
        assert_int_equal(floor_of(&f->tree, key + 5, &item), BTREE_FOUND);
        assert_int_equal(item.key, 0);
    }
}

/* What is left after most keys went must not keep a node for each key. */
static void test_sparse_tree_gives_nodes_back(void **state)
{
    struct fixture *f = *state;
    uint64_t key;

    for (key = 0; key < 31000; key++) {
        insert(&f->tree, key, key + 1);
    }
    for (key = 0; key < 31000; key++) {
        if (key % 31 != 0) {
            assert_true(remove_key(&f->tree, key));
        }
    }
    /* 1000 keys are left of 1000 full leaves; merged, they need no more than a quarter. */
    assert_true(f->slab.nr_free >= 750);
}

/* --- readers beside a writer ---------------------------------------------------------------- */

#define READER_KEYS 2048
#define READER_ROUNDS 40000

struct reader {
    struct btree *tree;
    atomic_bool *stop;
    size_t found;
    bool wrong;
};

/* Even keys stay for ever, and value is key + 1: so much a reader can check at any time. */
static void *read_on(void *arg)
{
    struct reader *reader = arg;
    uint64_t random = 362436069, key, seq;
    struct btree_item item;
    enum btree_found found;

    while (!atomic_load(reader->stop)) {
        key = next_random(&random) % (2 * READER_KEYS);
        seq = btree_seq(reader->tree);
        if ((seq & 1) != 0) {
            continue;
        }
        found = btree_floor(reader->tree, seq, key, &item);
        if (found == BTREE_TORN || !btree_valid(reader->tree, seq)) {
            continue;
        }
        reader->found++;
        if (found != BTREE_FOUND || item.value != item.key + 1 || item.stamp != item.key * 7 ||
            (item.key != key && (item.key != key - 1 || key % 2 == 0))) {
            reader->wrong = true;
        }
    }
    return NULL;
}

static void test_readers_beside_writer(void **state)
{
    struct fixture *f = *state;
    atomic_bool stop = false;
    struct reader readers[2];
    pthread_t threads[2];
    uint64_t random = 521288629, key;
    static bool present[2 * READER_KEYS];
    size_t i;

    for (key = 0; key < 2 * READER_KEYS; key += 2) {
        insert(&f->tree, key, key + 1);
    }
    for (i = 0; i < 2; i++) {
        readers[i] = (struct reader){ .tree = &f->tree, .stop = &stop };
        assert_int_equal(pthread_create(&threads[i], NULL, read_on, &readers[i]), 0);
    }
    for (i = 0; i < READER_ROUNDS; i++) {
        key = next_random(&random) % READER_KEYS * 2 + 1;
        if (present[key]) {
            assert_true(remove_key(&f->tree, key));
        } else {
            insert(&f->tree, key, key + 1);
        }
        present[key] = !present[key];
    }
    atomic_store(&stop, true);
    for (i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_false(readers[i].wrong);
    }
}

#define CYCLES 150
#define CYCLE_KEYS 3000

/* Finds key 0, which stays; what else it meets is being torn down or built up. */
static void *find_zero(void *arg)
{
    struct reader *reader = arg;
    uint64_t random = 88675123, seq, key;
    struct btree_item item;
    enum btree_found found;

    while (!atomic_load(reader->stop)) {
        key = next_random(&random) % CYCLE_KEYS;
        seq = btree_seq(reader->tree);
        if ((seq & 1) != 0) {
            continue;
        }
        found = btree_floor(reader->tree, seq, key, &item);
        if (found != BTREE_TORN && btree_valid(reader->tree, seq) &&
            (found != BTREE_FOUND || item.key > key || item.value != item.key + 1)) {
            reader->wrong = true;
        }
    }
    return NULL;
}

/*
 * Nodes are freed and come back on other levels while readers are in them: a value of a leaf, which
 * here is no address, must never be followed as a child.
 */
static void test_readers_in_recycled_nodes(void **state)
{
    struct fixture *f = *state;
    atomic_bool stop = false;
    struct reader reader = { .tree = &f->tree, .stop = &stop };
    pthread_t thread;
    uint64_t key;
    size_t cycle;

    insert(&f->tree, 0, 1);
    assert_int_equal(pthread_create(&thread, NULL, find_zero, &reader), 0);
    for (cycle = 0; cycle < CYCLES; cycle++) {
        for (key = 1; key < CYCLE_KEYS; key++) {
            insert(&f->tree, key, key + 1);
        }
        for (key = 1; key < CYCLE_KEYS; key++) {
            assert_true(remove_key(&f->tree, key));
        }
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    assert_false(reader.wrong);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_empty, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_random_against_model, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_ascending_and_descending, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_floor_crosses_removed_separator, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_sparse_tree_gives_nodes_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_readers_beside_writer, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_readers_in_recycled_nodes, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
