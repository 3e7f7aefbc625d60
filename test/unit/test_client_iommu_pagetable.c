/* SPDX-License-Identifier: BSD-3-Clause */
/* The page table of the client's IOMMU, beside an array that says what it should hold. */
#include "iommu/pagetable.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MIB2 (UINT64_C(2) << 20)
#define GIB (UINT64_C(1) << 30)
#define R 1u
#define RW 3u
#define RWX 7u

static int setup(void **state)
{
    static struct pagetable pt;

    assert_int_equal(pagetable_init(&pt, 48), 0);
    *state = &pt;
    return 0;
}

static int teardown(void **state)
{
    pagetable_destroy(*state);
    return 0;
}

static void assert_span(const struct pagetable *pt, uint64_t addr, uint64_t first, uint64_t size,
                        uint64_t target, uint32_t perm)
{
    struct pt_span span;

    pagetable_walk(pt, addr, &span);
    assert_int_equal(span.first, first);
    assert_int_equal(span.last, first + (size - 1));
    assert_int_equal(span.target, target);
    assert_int_equal(span.perm, perm);
}

static void test_widths(void **state)
{
    struct pagetable pt;

    (void)state;
    assert_int_equal(pagetable_init(&pt, PT_MIN_BITS - 1), -EINVAL);
    assert_int_equal(pagetable_init(&pt, PT_MAX_BITS + 1), -EINVAL);
    for (unsigned bits = PT_MIN_BITS; bits <= PT_MAX_BITS; bits++) {
        uint64_t last;

        assert_int_equal(pagetable_init(&pt, bits), 0);
        last = pagetable_last(&pt);
        assert_int_equal(last, (UINT64_C(1) << bits) - 1);
        assert_int_equal(pagetable_map(&pt, last - 4095, last, 0x7000, R), 0);
        assert_span(&pt, last, last - 4095, 4096, 0x7000, R);
        assert_span(&pt, last + 1, last + 1, -(last + 1), 0, 0);
        assert_span(&pt, UINT64_MAX, last + 1, -(last + 1), 0, 0);
        pagetable_destroy(&pt);
    }
}

static void test_largest_leaves(void **state)
{
    struct pagetable *pt = *state;
    uint64_t first = GIB - MIB2 - 4096;

    /* A page, 2 MiB, 1 GiB, 2 MiB, a page: all that the alignment allows. */
    assert_int_equal(pagetable_map(pt, first, first + 2 * (MIB2 + 4096) + GIB - 1,
                                   0x100 * GIB - MIB2 - 4096, RW), 0);
    assert_span(pt, first, first, 4096, 0x100 * GIB - MIB2 - 4096, RW);
    assert_span(pt, GIB - 1, GIB - MIB2, MIB2, 0x100 * GIB - MIB2, RW);
    assert_span(pt, GIB + 0x12345678, GIB, GIB, 0x100 * GIB, RW);
    assert_span(pt, 2 * GIB + 4096, 2 * GIB, MIB2, 0x101 * GIB, RW);
    assert_span(pt, 2 * GIB + MIB2, 2 * GIB + MIB2, 4096, 0x101 * GIB + MIB2, RW);
    assert_span(pt, 2 * GIB + MIB2 + 4096, 2 * GIB + MIB2 + 4096, 4096, 0, 0);
}

static void test_target_not_aligned(void **state)
{
    struct pagetable *pt = *state;

    assert_int_equal(pagetable_map(pt, 4 * GIB, 4 * GIB + MIB2 - 1, 4096, R), 0);
    assert_span(pt, 4 * GIB, 4 * GIB, 4096, 4096, R);
    assert_span(pt, 4 * GIB + MIB2 - 1, 4 * GIB + MIB2 - 4096, 4096, MIB2, R);
}

static void test_split(void **state)
{
    struct pagetable *pt = *state;
    struct pt_found found;

    assert_int_equal(pagetable_map(pt, GIB, 2 * GIB - 1, 8 * GIB, RWX), 0);
    assert_int_equal(pagetable_unmap(pt, GIB + 3 * MIB2 + 4096, GIB + 3 * MIB2 + 8191, &found), 0);
    assert_int_equal(found.bytes, 4096);
    assert_int_equal(found.perm, RWX);
    assert_int_equal(found.lost, RWX);
    assert_span(pt, GIB + 3 * MIB2 + 4096, GIB + 3 * MIB2 + 4096, 4096, 0, 0);
    assert_span(pt, GIB + 3 * MIB2, GIB + 3 * MIB2, 4096, 8 * GIB + 3 * MIB2, RWX);
    assert_span(pt, GIB + 4 * MIB2 - 1, GIB + 4 * MIB2 - 4096, 4096, 8 * GIB + 4 * MIB2 - 4096,
                RWX);
    assert_span(pt, GIB + 4 * MIB2, GIB + 4 * MIB2, MIB2, 8 * GIB + 4 * MIB2, RWX);
    assert_span(pt, GIB, GIB, MIB2, 8 * GIB, RWX);
}

static void test_protect(void **state)
{
    struct pagetable *pt = *state;
    struct pt_found found;

    assert_int_equal(pagetable_map(pt, 0, MIB2 - 1, GIB, R), 0);
    assert_int_equal(pagetable_protect(pt, 4096, 8191, RW, &found), 0);
    assert_int_equal(found.bytes, 4096);
    assert_int_equal(found.perm, R);
    assert_int_equal(found.lost, 0);
    assert_span(pt, 0, 0, 4096, GIB, R);
    assert_span(pt, 4096, 4096, 4096, GIB + 4096, RW);
    assert_int_equal(pagetable_protect(pt, 0, MIB2 - 1, R, &found), 0);
    assert_int_equal(found.bytes, MIB2);
    assert_int_equal(found.perm, RW);
    assert_int_equal(found.lost, RW & ~R);
    assert_span(pt, 4096, 4096, 4096, GIB + 4096, R);
}

static void test_overlap(void **state)
{
    struct pagetable *pt = *state;
    struct pt_found found;

    assert_int_equal(pagetable_map(pt, GIB + MIB2, GIB + MIB2 + 4095, 0, R), 0);
    assert_int_equal(pagetable_map(pt, 0, 4 * GIB - 1, 0, R), -EEXIST);
    assert_int_equal(pagetable_map(pt, GIB + MIB2, GIB + MIB2 + 4095, 0, R), -EEXIST);
    assert_span(pt, 0, 0, GIB, 0, 0);
    /* What is taken out leaves no small nodes behind: a large leaf fits again. */
    assert_int_equal(pagetable_unmap(pt, 0, 4 * GIB - 1, &found), 0);
    assert_int_equal(found.bytes, 4096);
    assert_int_equal(pagetable_map(pt, 0, 4 * GIB - 1, 0, R), 0);
    assert_span(pt, GIB + MIB2, GIB, GIB, GIB, R);
}

static void test_whole_space(void **state)
{
    struct pagetable *pt = *state;
    struct pt_found found;

    assert_int_equal(pagetable_map(pt, 0, 4095, GIB, R), 0);
    assert_int_equal(pagetable_map(pt, pagetable_last(pt) - 4095, pagetable_last(pt), 0, R), 0);
    assert_int_equal(pagetable_unmap(pt, 0, pagetable_last(pt), &found), 0);
    assert_int_equal(found.bytes, 8192);
    assert_int_equal(pagetable_unmap(pt, 0, pagetable_last(pt), &found), 0);
    assert_int_equal(found.bytes, 0);
}

/* 8 MiB around a 1 GiB boundary, and what each page of it should be. */
#define PAGES 2048u
#define BASE (GIB - PAGES / 2 * 4096)

struct model {
    uint64_t target[PAGES];
    uint32_t perm[PAGES]; /* 0: not mapped */
};

struct stretch {
    unsigned from, count;
    uint64_t first, last;
};

static struct stretch random_stretch(void)
{
    struct stretch s;

    s.count = 1u << rand() % 12;
    s.count = s.count > 1 && rand() % 2 ? s.count - 1 : s.count;
    s.from = (unsigned)rand() % (PAGES - s.count + 1);
    if (rand() % 2) {
        s.from = s.from / 512 * 512;
    }
    s.first = BASE + s.from * PT_PAGE_SIZE;
    s.last = s.first + (s.count * PT_PAGE_SIZE - 1);
    return s;
}

static uint64_t mapped_bytes(const struct model *m, const struct stretch *s)
{
    uint64_t bytes = 0;

    for (unsigned i = s->from; i < s->from + s->count; i++) {
        bytes += m->perm[i] != 0 ? PT_PAGE_SIZE : 0;
    }
    return bytes;
}

static void map_random(struct pagetable *pt, struct model *m)
{
    struct stretch s = random_stretch();
    uint64_t target = ((uint64_t)rand() % 4 * MIB2) + (rand() % 2 ? s.first : 0x5000);
    uint32_t perm = 1 + (uint32_t)rand() % PT_PERM_MASK;
    int expected = mapped_bytes(m, &s) == 0 ? 0 : -EEXIST;

    assert_int_equal(pagetable_map(pt, s.first, s.last, target, perm), expected);
    for (unsigned i = 0; expected == 0 && i < s.count; i++) {
        m->target[s.from + i] = target + i * PT_PAGE_SIZE;
        m->perm[s.from + i] = perm;
    }
}

static void change_random(struct pagetable *pt, struct model *m)
{
    struct stretch s = random_stretch();
    uint32_t perm = rand() % 3 ? 0 : 1 + (uint32_t)rand() % PT_PERM_MASK;
    uint64_t bytes = mapped_bytes(m, &s);
    struct pt_found found, expected = { .bytes = bytes };

    for (unsigned i = s.from; i < s.from + s.count; i++) {
        expected.perm |= m->perm[i];
        expected.lost |= m->perm[i] & ~perm;
        m->perm[i] = m->perm[i] != 0 ? perm : 0;
    }
    if (perm == 0) {
        assert_int_equal(pagetable_unmap(pt, s.first, s.last, &found), 0);
    } else {
        assert_int_equal(pagetable_protect(pt, s.first, s.last, perm, &found), 0);
    }
    assert_int_equal(found.bytes, expected.bytes);
    assert_int_equal(found.perm, expected.perm);
    assert_int_equal(found.lost, expected.lost);
}

static void compare(const struct pagetable *pt, const struct model *m)
{
    struct pt_span span;

    for (unsigned i = 0; i < PAGES; i++) {
        uint64_t addr = BASE + i * PT_PAGE_SIZE;

        pagetable_walk(pt, addr, &span);
        assert_true(span.first <= addr && addr + 4095 <= span.last);
        assert_int_equal(span.perm, m->perm[i]);
        if (span.perm != 0) {
            assert_int_equal(span.target + (addr - span.first), m->target[i]);
        }
    }
    pagetable_walk(pt, BASE - 1, &span);
    assert_int_equal(span.perm, 0);
    pagetable_walk(pt, BASE + PAGES * PT_PAGE_SIZE, &span);
    assert_int_equal(span.perm, 0);
}

static void test_random(void **state)
{
    static struct model model;

    memset(&model, 0, sizeof(model));
    srand(7);
    for (int i = 0; i < 3000; i++) {
        if (rand() % 2) {
            map_random(*state, &model);
        } else {
            change_random(*state, &model);
        }
        if (i % 8 == 0) {
            compare(*state, &model);
        }
    }
    compare(*state, &model);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_widths),
        CASE(test_largest_leaves),
        CASE(test_target_not_aligned),
        CASE(test_split),
        CASE(test_protect),
        CASE(test_overlap),
        CASE(test_whole_space),
        CASE(test_random),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
