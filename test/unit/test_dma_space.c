/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>

#include "dma_fixture.h"

static int set_up(void **state)
{
    *state = new_dma(1000);
    return 0;
}

static int tear_down(void **state)
{
    dma_destroy(*state);
    return 0;
}

static struct dma_space *space_of(void **state)
{
    return dma_requester_space(*state);
}

static int lookup(struct dma_space *space, uint64_t addr, struct range *range)
{
    struct dma_hit hit;
    int ret = dma_lookup(space, addr, &hit);

    if (ret == 0) {
        *range = hit.iova;
        assert_ptr_equal(dma_region_info(hit.entry)->iova.iov_base,
                         (void *)(uintptr_t)hit.iova.first);
    }
    return ret;
}

static void test_lookup_edges(void **state)
{
    struct dma_space *space = space_of(state);
    struct range range = { 0 };

    assert_int_equal(lookup(space, 0, &range), -ENOENT);
    assert_int_equal(map_message(space, 0x1000, 0x2345, RW), 0);
    assert_int_equal(map_message(space, UINT64_MAX - 9, 10, RW), 0);
    assert_int_equal(map_message(space, 0, 1, RW), 0);

    assert_int_equal(lookup(space, 0xfff, &range), -ENOENT);
    assert_int_equal(lookup(space, 0x1000, &range), 0);
    assert_int_equal(range.last, 0x3344);
    assert_int_equal(lookup(space, 0x3344, &range), 0);
    assert_int_equal(lookup(space, 0x3345, &range), -ENOENT);
    assert_int_equal(lookup(space, 0, &range), 0);
    assert_int_equal(lookup(space, 1, &range), -ENOENT);
    assert_int_equal(lookup(space, UINT64_MAX - 10, &range), -ENOENT);
    assert_int_equal(lookup(space, UINT64_MAX, &range), 0);
    assert_int_equal(range.first, UINT64_MAX - 9);
}

/* The same address again and again comes from the thread's hint: it must not outlive the region. */
static void test_no_stale_hint(void **state)
{
    struct dma_space *space = space_of(state);
    struct range range;

    assert_int_equal(map_message(space, 0x1000, 0x1000, RW), 0);
    assert_int_equal(lookup(space, 0x1800, &range), 0);
    assert_int_equal(lookup(space, 0x1800, &range), 0);
    assert_int_equal(unmap(space, 0x1000, 0x1000), 1);
    assert_int_equal(lookup(space, 0x1800, &range), -ENOENT);
    assert_int_equal(map_message(space, 0x1800, 0x10, RW), 0);
    assert_int_equal(lookup(space, 0x1800, &range), 0);
    assert_int_equal(range.last, 0x180f);
    assert_int_equal(lookup(space, 0x1810, &range), -ENOENT);
}

/* Nor pass from one context to the next, which may well get the same memory. */
static void test_no_hint_across_contexts(void **state)
{
    struct dma *dma;
    struct range range;
    unsigned int i;

    (void)state;
    for (i = 0; i < 20; i++) {
        dma = new_dma(10);
        assert_int_equal(lookup(dma_requester_space(dma), 0x1000, &range), -ENOENT);
        assert_int_equal(map_message(dma_requester_space(dma), 0x1000, 0x1000, RW), 0);
        assert_int_equal(lookup(dma_requester_space(dma), 0x1000, &range), 0);
        assert_int_equal(lookup(dma_translated_space(dma), 0x1000, &range), -ENOENT);
        dma_destroy(dma);
    }
}

static void test_sizes(void **state)
{
    struct dma_space *space = space_of(state);
    struct dma_mapping all = { .iova = RANGE_ALL, .prot = RW, .fd = -1 };
    struct dma_entry *region;

    assert_int_equal(map_message(space, 0x1000, DMA_MAX_REGION_SIZE, RW), 0);
    assert_int_equal(unmap(space, 0x1000, DMA_MAX_REGION_SIZE), 1);
    assert_int_equal(map_message(space, 0x1000, DMA_MAX_REGION_SIZE + 1, RW), -ENOSPC);
    assert_int_equal(dma_map(space, &all, &region), -ENOSPC);
    assert_int_equal(dma_nr_regions(*state), 0);
}

static void test_overlaps(void **state)
{
    static const struct {
        uint64_t addr, size;
        int ret;
    } cases[] = {
        { 0x10000, 0x1000, 1 },       { 0x10000, 0xfff, -EEXIST }, { 0x10000, 0x1001, -EEXIST },
        { 0xffff, 2, -EEXIST },       { 0x10fff, 2, -EEXIST },     { 0x10800, 0x10, -EEXIST },
        { 0x8000, 0x20000, -EEXIST }, { 0xf000, 0x1000, 0 },       { 0x11000, 0x1000, 0 },
    };
    struct dma_space *space = space_of(state);
    size_t i;

    assert_int_equal(map_message(space, 0x10000, 0x1000, RW), 0);
    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(map_message(space, cases[i].addr, cases[i].size, RW), cases[i].ret);
    }
}

static void test_identical_regions(void **state)
{
    struct dma_space *space = space_of(state);
    int fd = memory_file(4 * PAGE), other = memory_file(4 * PAGE), again = dup(fd);

    assert_int_equal(map_file(space, 0x10000, PAGE, fd, PAGE), 0);
    assert_int_equal(map_file(space, 0x10000, PAGE, again, PAGE), 1);
    /* The mode is not compared. */
    assert_int_equal(map_mode(space, 0x10000, PAGE, fd, PAGE, RW, DMA_MODE_FILE_IO), 1);
    assert_int_equal(map_file(space, 0x10000, PAGE, fd, 0), -EEXIST);
    assert_int_equal(map_file(space, 0x10000, PAGE, other, PAGE), -EEXIST);
    assert_int_equal(map_message(space, 0x10000, PAGE, RW), -EEXIST);
    assert_int_equal(map_mode(space, 0x10000, PAGE, fd, PAGE, PROT_READ, DMA_MODE_MMAP), -EEXIST);
    assert_int_equal(dma_nr_regions(*state), 1);
    close(fd);
    close(other);
    close(again);
}

static void test_region_limit(void **state)
{
    struct dma *dma = new_dma(3);
    struct dma_space *space = dma_requester_space(dma);
    uint64_t i;

    (void)state;
    for (i = 0; i < 3; i++) {
        assert_int_equal(map_message(space, i * PAGE, PAGE, RW), 0);
    }
    assert_int_equal(map_message(space, 3 * PAGE, PAGE, RW), -EINVAL);
    assert_int_equal(map_message(dma_translated_space(dma), 0, PAGE, RW), -EINVAL);
    assert_int_equal(map_message(space, 0, PAGE, RW), 1);
    assert_int_equal(unmap(space, PAGE, PAGE), 1);
    assert_int_equal(map_message(space, 3 * PAGE, PAGE, RW), 0);
    dma_destroy(dma);
}

/* --- unmap ---------------------------------------------------------------------------------- */

struct seen {
    size_t count;
    uint64_t first[16];
    struct dma_space *space;
};

/* While it is told, the region is still in place. */
static void note_removing(struct dma_entry *region, void *arg)
{
    struct seen *seen = arg;
    struct range range = dma_region_range(region);
    struct dma_hit hit;

    assert_int_equal(dma_lookup(seen->space, range.last, &hit), 0);
    assert_ptr_equal(hit.entry, region);
    seen->first[seen->count++] = range.first;
}

static void test_unmap_several(void **state)
{
    struct dma_space *space = space_of(state);
    struct seen seen = { .space = space };
    uint64_t i;

    for (i = 0; i < 6; i++) {
        assert_int_equal(map_message(space, 0x10000 + i * 0x2000, 0x1000, RW), 0);
    }
    /* Holes at the ends are no harm; cut regions are. */
    assert_int_equal(dma_unmap(space, span(0x11000, 0x5000), note_removing, &seen, NULL), 2);
    assert_int_equal(seen.count, 2);
    assert_int_equal(seen.first[0], 0x12000);
    assert_int_equal(seen.first[1], 0x14000);
    assert_int_equal(unmap(space, 0x10001, 0x20000), -ENOENT);
    assert_int_equal(unmap(space, 0x10000, 0xaffe), -ENOENT);
    assert_int_equal(unmap(space, 0x11000, 0x5000), -ENOENT);
    assert_int_equal(dma_nr_regions(*state), 4);
    assert_int_equal(dma_unmap_all(space, note_removing, &seen, NULL), 4);
    assert_int_equal(seen.count, 6);
    assert_int_equal(dma_unmap_all(space, note_removing, &seen, NULL), 0);
    assert_int_equal(dma_nr_regions(*state), 0);
}

static void test_walk(void **state)
{
    struct dma_space *space = space_of(state);
    struct dma_entry *region;

    assert_null(dma_region_at_or_after(space, 0));
    assert_int_equal(map_message(space, 0x1000, 0x1000, RW), 0);
    assert_int_equal(map_message(space, UINT64_MAX, 1, RW), 0);
    region = dma_region_at_or_after(space, 0x1fff);
    assert_int_equal(dma_region_range(region).first, 0x1000);
    assert_int_equal(dma_region_mode(region), DMA_MODE_MESSAGE);
    assert_int_equal(dma_region_range(dma_region_at_or_after(space, 0x2000)).first, UINT64_MAX);
}

/* --- random maps and unmaps against a plain model ------------------------------------------- */

#define CELLS 256

struct model {
    uint16_t id[CELLS]; /* 0: hole, else the region that covers the cell */
    uint16_t next_id;
};

static bool model_free(const struct model *model, size_t at, size_t n)
{
    size_t i;

    for (i = at; i < at + n; i++) {
        if (model->id[i] != 0) {
            return false;
        }
    }
    return true;
}

static int model_map(struct model *model, size_t at, size_t n)
{
    size_t i;

    if (!model_free(model, at, n)) {
        /* Identical when one region begins and ends exactly here. */
        bool same = model->id[at] != 0 && (at == 0 || model->id[at - 1] != model->id[at]) &&
                    (at + n == CELLS || model->id[at + n] != model->id[at]);

        for (i = at; i < at + n; i++) {
            same = same && model->id[i] == model->id[at];
        }
        return same ? 1 : -EEXIST;
    }
    model->next_id++;
    for (i = at; i < at + n; i++) {
        model->id[i] = model->next_id;
    }
    return 0;
}

static int model_unmap(struct model *model, size_t at, size_t n)
{
    size_t i;
    int count = 0;

    if ((at > 0 && model->id[at] != 0 && model->id[at - 1] == model->id[at]) ||
        (at + n < CELLS && model->id[at + n] != 0 && model->id[at + n - 1] == model->id[at + n])) {
        return -ENOENT;
    }
    for (i = at; i < at + n; i++) {
        if (model->id[i] != 0 && (i == at || model->id[i] != model->id[i - 1])) {
            count++;
        }
    }
    memset(&model->id[at], 0, n * sizeof(model->id[0]));
    return count > 0 ? count : -ENOENT;
}

static void compare(const struct model *model, struct dma_space *space)
{
    struct range range = { 0 };
    size_t i;

    for (i = 0; i < CELLS; i++) {
        if (model->id[i] == 0) {
            assert_int_equal(lookup(space, i * PAGE, &range), -ENOENT);
            continue;
        }
        assert_int_equal(lookup(space, i * PAGE + 77, &range), 0);
        assert_int_equal(model->id[range.first / PAGE], model->id[i]);
        assert_int_equal(model->id[range.last / PAGE], model->id[i]);
        assert_true(range.first == 0 || model->id[range.first / PAGE - 1] != model->id[i]);
        assert_true(range.last / PAGE + 1 == CELLS ||
                    model->id[range.last / PAGE + 1] != model->id[i]);
    }
}

static void test_random_against_model(void **state)
{
    struct dma_space *space = space_of(state);
    static struct model model;
    uint64_t random = 88172645463325252ull;
    size_t step, at, n;

    memset(&model, 0, sizeof(model));
    for (step = 0; step < 20000; step++) {
        at = next_random(&random) % CELLS;
        n = 1 + next_random(&random) % (step % 3 == 0 ? 40 : 4);
        if (at + n > CELLS) {
            n = CELLS - at;
        }
        if (step % 2 == 0) {
            assert_int_equal(map_message(space, at * PAGE, n * PAGE, RW), model_map(&model, at, n));
        } else {
            assert_int_equal(unmap(space, at * PAGE, n * PAGE), model_unmap(&model, at, n));
        }
        if (step % 50 == 0) {
            compare(&model, space);
        }
    }
}

/* --- PASID spaces --------------------------------------------------------------------------- */

static void count_space(struct dma_space *space, void *arg)
{
    size_t *count = arg;

    (void)space;
    (*count)++;
}

static void test_pasid_spaces(void **state)
{
    struct dma_space *a, *b, *c;
    struct range range;
    size_t count = 0;

    assert_null(dma_pasid_space(*state, 0, false));
    assert_null(dma_pasid_space(*state, 1u << 20, false));
    assert_int_equal(dma_pasid_space_create(*state, 1u << 20, false, &a), -EINVAL);
    assert_int_equal(dma_pasid_space_create(*state, 0, false, &a), 0);
    assert_int_equal(dma_pasid_space_create(*state, 0, true, &b), 0);
    assert_int_equal(dma_pasid_space_create(*state, (1u << 20) - 1, true, &c), 0);
    assert_ptr_equal(dma_pasid_space(*state, 0, false), a);
    assert_ptr_equal(dma_pasid_space(*state, 0, true), b);
    assert_ptr_equal(dma_pasid_space(*state, (1u << 20) - 1, true), c);
    assert_null(dma_pasid_space(*state, (1u << 20) - 1, false));
    assert_int_equal(dma_pasid_space_create(*state, 0, true, &c), 0);
    assert_ptr_equal(c, b);
    assert_int_equal(dma_nr_pasid_spaces(*state), 3);
    dma_for_each_space(*state, count_space, &count);
    assert_int_equal(count, 5);
    assert_true(dma_space_name(b).has_pasid && dma_space_name(b).privileged);
    assert_false(dma_space_name(space_of(state)).has_pasid);
    assert_true(dma_space_name(dma_translated_space(*state)).translated);

    assert_int_equal(map_message(a, 0x1000, 0x1000, RW), 0);
    assert_int_equal(lookup(a, 0x1000, &range), 0);
    assert_int_equal(lookup(b, 0x1000, &range), -ENOENT);
    assert_int_equal(lookup(space_of(state), 0x1000, &range), -ENOENT);
}

/* What goes with a client; references and handles outlive it. */
static void test_pasid_spaces_end(void **state)
{
    struct dma_target target;
    struct dma_space *space;
    struct dma_sg held, all;

    for (int i = 0; i < 3; i++) {
        assert_int_equal(dma_pasid_space_create(*state, 7, true, &space), 0);
        assert_int_equal(map_message(space, 0x1000, 0x1000, RW), 0);
        assert_int_equal(dma_addr_to_sgl(space, 0x1000, 8, &held, 1, RW), 1);
        dma_untranslated_sg(space, 0x5000, 8, true, &all);
        assert_int_equal(dma_sgl_hold(*state, &held, 1), 0);
        assert_int_equal(dma_sgl_hold(*state, &all, 1), 0);
        dma_pasid_spaces_retire(*state);
        assert_null(dma_pasid_space(*state, 7, true));
        assert_int_equal(dma_nr_pasid_spaces(*state), 0);
        dma_held_target(*state, &held, &target);
        assert_int_equal(target.space.pasid, 7);
        dma_held_target(*state, &all, &target);
        assert_true(target.space.has_pasid && target.space.privileged);
        if (i != 1) {
            dma_sgl_release(*state, &held, 1);
            dma_sgl_release(*state, &all, 1);
            assert_int_equal(dma_sgl_hold(*state, &held, 1), -ESTALE);
            assert_int_equal(dma_sgl_hold(*state, &all, 1), -ESTALE);
        }
    }
    assert_int_equal(dma_nr_regions(*state), 0);
}

static atomic_bool keep_looking;

/* A device's thread, which knows nothing of the clients that come and go. */
static void *use_spaces(void *arg)
{
    struct dma *dma = arg;
    uint64_t random = (uintptr_t)&random;
    struct dma_sg sg;

    while (atomic_load(&keep_looking)) {
        unsigned int ticket = dma_spaces_enter(dma);
        struct dma_space *space = dma_pasid_space(dma, (uint32_t)(next_random(&random) % 64), false);
        bool found = space != NULL && dma_addr_to_sgl(space, 0x1000, 8, &sg, 1, PROT_READ) == 1;

        dma_spaces_leave(dma, ticket);
        if (found && dma_sgl_hold(dma, &sg, 1) == 0) {
            dma_sgl_release(dma, &sg, 1);
        }
    }
    return NULL;
}

static void test_pasid_spaces_end_beside_threads(void **state)
{
    struct dma_space *space;
    pthread_t threads[3];

    atomic_store(&keep_looking, true);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, use_spaces, *state), 0);
    }
    for (int client = 0; client < 30; client++) {
        for (uint32_t pasid = 0; pasid < 64; pasid++) {
            assert_int_equal(dma_pasid_space_create(*state, pasid, false, &space), 0);
            assert_int_equal(map_message(space, 0x1000, 0x1000, RW), 0);
        }
        dma_pasid_spaces_retire(*state);
    }
    atomic_store(&keep_looking, false);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    assert_int_equal(dma_nr_regions(*state), 0);
}

/* --- many ----------------------------------------------------------------------------------- */

#define MANY 1000000ull

static void test_million_maps_of_one_file(void **state)
{
    struct dma *dma = new_dma(MANY);
    struct dma_space *space = dma_requester_space(dma);
    int fd = memory_file(MANY * PAGE), next;
    struct dma_hit hit;
    uint8_t *base = NULL;
    uint64_t i;

    (void)state;
    for (i = 0; i < MANY; i++) {
        if (map_file(space, i * PAGE, PAGE, fd, (MANY - 1 - i) * PAGE) != 0) {
            fail_msg("map %lu", (unsigned long)i);
        }
    }
    for (i = 0; i < MANY; i += 997) {
        assert_int_equal(dma_lookup(space, i * PAGE + 5, &hit), 0);
        if (base == NULL) {
            base = (uint8_t *)dma_region_info(hit.entry)->vaddr - (MANY - 1) * PAGE;
        }
        assert_ptr_equal(dma_region_info(hit.entry)->vaddr, base + (MANY - 1 - i) * PAGE);
    }
    assert_int_equal(dma_nr_regions(dma), MANY);
    assert_int_equal(dma_unmap(space, span(0, MANY * PAGE), NULL, NULL, NULL), MANY);
    /* No descriptor was kept for any of them. */
    next = dup(fd);
    assert_true(next < fd + 16);
    close(next);
    close(fd);
    dma_destroy(dma);
}

/* --- readers beside a writer ---------------------------------------------------------------- */

struct reader {
    struct dma_space *space;
    atomic_bool *stop;
    bool wrong;
};

/* Even pages are always mapped, odd ones come and go; a hit is always the page asked for. */
static void *look_up(void *arg)
{
    struct reader *reader = arg;
    uint64_t random = 362436069, page;
    struct dma_hit hit;
    int ret;

    while (!atomic_load(reader->stop)) {
        page = next_random(&random) % 512;
        ret = dma_lookup(reader->space, page * PAGE + 9, &hit);
        if (ret == 0 ? hit.iova.first != page * PAGE || hit.iova.last != page * PAGE + PAGE - 1
                     : page % 2 == 0) {
            reader->wrong = true;
        }
    }
    return NULL;
}

static void test_readers_beside_writer(void **state)
{
    struct dma_space *space = space_of(state);
    atomic_bool stop = false;
    struct reader readers[2];
    pthread_t threads[2];
    uint64_t random = 521288629, page;
    size_t i;

    for (page = 0; page < 512; page += 2) {
        assert_int_equal(map_message(space, page * PAGE, PAGE, RW), 0);
    }
    for (i = 0; i < 2; i++) {
        readers[i] = (struct reader){ .space = space, .stop = &stop };
        assert_int_equal(pthread_create(&threads[i], NULL, look_up, &readers[i]), 0);
    }
    for (i = 0; i < 20000; i++) {
        page = next_random(&random) % 256 * 2 + 1;
        if (map_message(space, page * PAGE, PAGE, RW) == 1) {
            assert_int_equal(unmap(space, page * PAGE, PAGE), 1);
        }
    }
    atomic_store(&stop, true);
    for (i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_false(readers[i].wrong);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_lookup_edges),
        TEST(test_no_stale_hint),
        TEST(test_no_hint_across_contexts),
        TEST(test_sizes),
        TEST(test_overlaps),
        TEST(test_identical_regions),
        TEST(test_region_limit),
        TEST(test_unmap_several),
        TEST(test_walk),
        TEST(test_random_against_model),
        TEST(test_pasid_spaces),
        TEST(test_pasid_spaces_end),
        TEST(test_pasid_spaces_end_beside_threads),
        TEST(test_million_maps_of_one_file),
        TEST(test_readers_beside_writer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
