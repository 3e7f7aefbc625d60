/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <pthread.h>

#include "dma/dma_internal.h"
#include "dma_fixture.h"

#define BASE 0x100000ull
#define PAGES 512ull

struct fixture {
    struct dma *dma;
    struct dma_space *space;
    int fd;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    f->dma = new_dma(100);
    f->space = dma_requester_space(f->dma);
    f->fd = memory_file(2 * PAGES * PAGE);
    assert_int_equal(map_file(f->space, BASE, PAGES * PAGE, f->fd, 0), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    dma_destroy(f->dma);
    close(f->fd);
    free(f);
    return 0;
}

static void mark(struct fixture *f, uint64_t addr, uint64_t len)
{
    struct dma_sg sg;

    assert_int_equal(dma_addr_to_sgl(f->space, addr, len, &sg, 1, PROT_WRITE), 1);
    dma_sgl_mark_dirty(f->dma, &sg, 1);
}

/* The bitmap of a report, of up to 64 bits per word, as the client reads it. */
static uint64_t words[PAGES];

static int report_sized(struct fixture *f, uint64_t addr, uint64_t len, uint64_t page)
{
    uint64_t size = dma_dirty_bitmap_size(len, page);

    assert_true(size <= sizeof(words));
    memset(words, 0xcd, sizeof(words));
    return dma_dirty_report(f->space, span(addr, len), page, (uint8_t *)words, size);
}

static void report(struct fixture *f, uint64_t addr, uint64_t len, uint64_t page)
{
    assert_int_equal(report_sized(f, addr, len, page), 0);
}

static void assert_clean(struct fixture *f)
{
    size_t i;

    report(f, BASE, PAGES * PAGE, PAGE);
    for (i = 0; i < PAGES / 64; i++) {
        assert_int_equal(words[i], 0);
    }
}

static void test_sizes(void **state)
{
    (void)state;
    assert_int_equal(dma_dirty_bitmap_size(1, PAGE), 8);
    assert_int_equal(dma_dirty_bitmap_size(64 * PAGE, PAGE), 8);
    assert_int_equal(dma_dirty_bitmap_size(64 * PAGE + 1, PAGE), 16);
    assert_int_equal(dma_dirty_bitmap_size(0, PAGE), 0);
    assert_int_equal(dma_dirty_bitmap_size(PAGE, 0), 0);
    assert_int_equal(dma_dirty_bitmap_size(UINT64_MAX, 1), 1ull << 61);
}

static void test_errors(void **state)
{
    struct fixture *f = *state;
    uint8_t bitmap[64];

    assert_int_equal(report_sized(f, BASE, PAGE, PAGE), -EINVAL); /* off */
    assert_int_equal(dma_dirty_start(f->dma, 0), -EINVAL);
    assert_int_equal(dma_dirty_start(f->dma, 3 * PAGE), -EINVAL);
    assert_int_equal(dma_dirty_start(f->dma, 2 * PAGES * PAGE), -EINVAL);
    assert_int_equal(dma_dirty_page_size(f->dma), 0);
    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    assert_int_equal(dma_dirty_start(f->dma, 2 * PAGE), -EINVAL);
    assert_int_equal(dma_dirty_page_size(f->dma), PAGE);
    assert_int_equal(report_sized(f, BASE, PAGE, 3), -EINVAL);
    assert_int_equal(report_sized(f, BASE, PAGE, 0), -EINVAL);
    assert_int_equal(report_sized(f, BASE, PAGE - 1, PAGE), -EINVAL);
    assert_int_equal(dma_dirty_report(f->space, span(BASE, PAGE), PAGE, bitmap, 16), -EINVAL);
    /* New regions must be large enough for the page, except in message mode. */
    assert_int_equal(map_file(f->space, 0, PAGE / 2, f->fd, 0), -EINVAL);
    assert_int_equal(map_message(f->space, 0, 1, RW), 0);
    dma_dirty_stop(f->dma);
    dma_dirty_stop(f->dma);
    assert_int_equal(report_sized(f, BASE, PAGE, PAGE), -EINVAL);
}

static void test_marks(void **state)
{
    struct fixture *f = *state;
    struct iovec iov;
    struct dma_sg sg;
    char buf[4] = { 0 };

    mark(f, BASE, 1); /* not logging yet */
    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    assert_clean(f);
    mark(f, BASE + 5 * PAGE + 4095, 2);
    assert_int_equal(dma_addr_to_sgl(f->space, BASE + 70 * PAGE, 8, &sg, 1, PROT_WRITE), 1);
    assert_int_equal(dma_sgl_get(f->dma, &sg, &iov, 1), 0);
    dma_sgl_put(f->dma, &sg, 1);
    assert_int_equal(dma_addr_to_sgl(f->space, BASE + 71 * PAGE, 4, &sg, 1, PROT_WRITE), 1);
    assert_int_equal(dma_sg_copy(f->dma, &sg, buf, true), 0);
    /* Reads, and references given back without a word, mark nothing. */
    assert_int_equal(dma_sg_copy(f->dma, &sg, buf, false), 0);
    assert_int_equal(dma_addr_to_sgl(f->space, BASE, 8, &sg, 1, PROT_READ), 1);
    assert_int_equal(dma_sgl_get(f->dma, &sg, &iov, 1), 0);
    dma_sgl_put(f->dma, &sg, 1);
    assert_int_equal(dma_addr_to_sgl(f->space, BASE, 8, &sg, 1, PROT_WRITE), 1);
    assert_int_equal(dma_sgl_hold(f->dma, &sg, 1), 0);
    dma_sgl_release(f->dma, &sg, 1);

    report(f, BASE, PAGES * PAGE, PAGE);
    assert_int_equal(words[0], 3ull << 5);
    assert_int_equal(words[1], 3ull << 6);
    assert_int_equal(words[2], 0);
    assert_clean(f);
}

static void test_long_mark(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    mark(f, BASE + 60 * PAGE, 140 * PAGE);
    report(f, BASE, PAGES * PAGE, PAGE);
    assert_int_equal(words[0], 0xfull << 60);
    assert_int_equal(words[1], UINT64_MAX);
    assert_int_equal(words[2], UINT64_MAX);
    assert_int_equal(words[3], 0xff);
    mark(f, BASE, PAGES * PAGE);
    report(f, BASE, PAGES * PAGE, PAGE);
    assert_int_equal(words[7], UINT64_MAX);
    assert_clean(f);
}

/* Larger pages collect, smaller ones repeat; also where the bit numbers pass 256. */
static void test_page_sizes(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    mark(f, BASE + 300 * PAGE, 1);
    report(f, BASE, PAGES * PAGE, PAGE / 4);
    assert_int_equal(words[300 * 4 / 64], 0xfull << (300 * 4 % 64));
    assert_int_equal(words[300 * 4 / 64 + 1], 0);
    mark(f, BASE + 300 * PAGE, 1);
    mark(f, BASE + 303 * PAGE, 1);
    mark(f, BASE + 511 * PAGE, 1);
    report(f, BASE, PAGES * PAGE, 4 * PAGE);
    assert_int_equal(words[1], (1ull << (75 - 64)) | 1ull << 63);
    assert_int_equal(words[0], 0);
    mark(f, BASE + 511 * PAGE, 1);
    report(f, BASE, PAGES * PAGE, PAGES * PAGE);
    assert_int_equal(words[0], 1);
    assert_clean(f);
}

/* A part of a region: reports its pages, and leaves the others for later. */
static void test_parts(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    mark(f, BASE, 300 * PAGE);
    report(f, BASE + 10 * PAGE, 3 * PAGE, PAGE);
    assert_int_equal(words[0], 7);
    report(f, BASE + 10 * PAGE, 3 * PAGE, PAGE);
    assert_int_equal(words[0], 0);
    report(f, BASE + 8 * PAGE, 64 * PAGE, PAGE);
    assert_int_equal(words[0], ~(7ull << 2));
    report(f, BASE, 16 * PAGE, PAGE);
    assert_int_equal(words[0], 0xff);
}

/* What a report does not cover whole stays dirty for the report of the rest. */
static void test_parts_of_pages(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(dma_dirty_start(f->dma, PAGE / 4), 0);
    mark(f, BASE + 2 * PAGE, PAGE);
    report(f, BASE + 2 * PAGE, PAGE / 2, PAGE / 4);
    assert_int_equal(words[0], 3);
    report(f, BASE + 2 * PAGE + PAGE / 2, PAGE / 2, PAGE / 4);
    assert_int_equal(words[0], 3);
    report(f, BASE + 2 * PAGE, PAGE, PAGE / 4);
    assert_int_equal(words[0], 0xf);
    assert_clean(f);
}

/* Holes and message regions are clean, and a range may cross anything. */
static void test_holes_and_several_regions(void **state)
{
    struct fixture *f = *state;
    uint64_t end = BASE + PAGES * PAGE;

    assert_int_equal(map_message(f->space, end, 4 * PAGE, RW), 0);
    assert_int_equal(map_file(f->space, end + 8 * PAGE, 4 * PAGE + 7, f->fd, 0), 0);
    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    report(f, 0, PAGE, PAGE);
    assert_int_equal(words[0], 0);
    report(f, end + PAGE, PAGE, PAGE);
    assert_int_equal(words[0], 0);
    mark(f, end - PAGE, 1);
    mark(f, end, 4 * PAGE);
    mark(f, end + 9 * PAGE, 1);
    mark(f, end + 12 * PAGE + 3, 1); /* in the last, partial page */
    report(f, end - 2 * PAGE, 32 * PAGE, PAGE);
    assert_int_equal(words[0], 1u << 1 | 1u << 11 | 1u << 14);
    report(f, end - 2 * PAGE, 32 * PAGE, PAGE);
    assert_int_equal(words[0], 0);
    report(f, UINT64_MAX - PAGE + 1, PAGE, PAGE);
    assert_int_equal(words[0], 0);
}

/* A region that does not begin on a page boundary has its pages counted from its start. */
static void test_unaligned_region(void **state)
{
    struct fixture *f = *state;
    uint64_t at = 0x40000123;

    assert_int_equal(map_file(f->space, at, 4 * PAGE, f->fd, 0), 0);
    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    mark(f, at + PAGE, 1);
    report(f, at, 4 * PAGE, PAGE);
    assert_int_equal(words[0], 2);
    mark(f, at + PAGE, 1);
    report(f, 0x40000000, 8 * PAGE, PAGE);
    assert_int_equal(words[0], 6); /* it straddles two pages of the report */
}

static void test_region_mapped_while_logging(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    assert_int_equal(map_file(f->space, 0, 4 * PAGE, f->fd, 0), 0);
    mark(f, 3 * PAGE, 1);
    report(f, 0, 4 * PAGE, PAGE);
    assert_int_equal(words[0], 8);
}

static void test_restart_forgets(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    mark(f, BASE, 200 * PAGE);
    dma_dirty_stop(f->dma);
    mark(f, BASE + 300 * PAGE, 1);
    assert_int_equal(dma_dirty_start(f->dma, 2 * PAGE), 0);
    assert_clean(f);
}

static void test_translation_marks_its_region(void **state)
{
    struct fixture *f = *state;
    struct dma_space *memory = dma_translated_space(f->dma);
    struct dma_translation translation = { .translated = 0x7000 + 2 * PAGE, .prot = RW };
    uint8_t bitmap[8];
    uint64_t bits;

    translation.iova = span(0x10000, 2 * PAGE);
    assert_int_equal(map_file(memory, 0x7000, 8 * PAGE, f->fd, 0), 0);
    assert_int_equal(dma_cache_insert(f->space, &translation), 1);
    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    mark(f, 0x10000 + PAGE, 1);
    assert_int_equal(dma_dirty_report(memory, span(0x7000, 8 * PAGE), PAGE, bitmap, 8), 0);
    memcpy(&bits, bitmap, 8);
    assert_int_equal(bits, 1u << 3);
    report(f, 0x10000, 2 * PAGE, PAGE);
    assert_int_equal(words[0], 0);
}

/* --- marks from many threads beside reports: none is lost ----------------------------------- */

#define ROUNDS 20000

struct marker {
    struct fixture *f;
    uint64_t first;
};

static void *mark_on(void *arg)
{
    struct marker *marker = arg;
    uint64_t i;

    for (i = 0; i < ROUNDS; i++) {
        mark(marker->f, BASE + (marker->first + 2 * (i % (PAGES / 2))) * PAGE, 1);
    }
    return NULL;
}

static void test_no_mark_is_lost(void **state)
{
    struct fixture *f = *state;
    struct marker markers[2] = { { f, 0 }, { f, 1 } };
    uint64_t seen[PAGES / 64] = { 0 };
    pthread_t threads[2];
    size_t i, round;

    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    for (i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, mark_on, &markers[i]), 0);
    }
    for (round = 0; round < 200; round++) {
        report(f, BASE, PAGES * PAGE, PAGE);
        for (i = 0; i < PAGES / 64; i++) {
            seen[i] |= words[i];
        }
    }
    for (i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    report(f, BASE, PAGES * PAGE, PAGE);
    for (i = 0; i < PAGES / 64; i++) {
        assert_int_equal(seen[i] | words[i], UINT64_MAX);
    }
    assert_clean(f);
}

#define TIB8 (8ull << 40)

/* Marks at both ends and at a leaf's border of the largest region, of a file that is not as long. */
static void test_largest_region(void **state)
{
    struct fixture *f = *state;
    static const uint64_t at[] = { 0, (128ull << 20) - PAGE, 128ull << 20, TIB8 - PAGE };
    uint64_t i, base = 1ull << 50;

    assert_int_equal(map_mode(f->space, base, TIB8, f->fd, 0, RW, DMA_MODE_FILE_IO), 0);
    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    for (i = 0; i < 4; i++) {
        mark(f, base + at[i], 1);
    }
    mark(f, base + (256ull << 20) - PAGE, 2 * PAGE);
    for (i = 0; i < 4; i++) {
        report(f, base + at[i], PAGE, PAGE);
        assert_int_equal(words[0], 1);
    }
    report(f, base + (256ull << 20) - 32 * PAGE, 64 * PAGE, PAGE);
    assert_int_equal(words[0], 3ull << 31);
    report(f, base, TIB8, TIB8 / 64);
    assert_int_equal(words[0], 0);
}

/* What all bitmaps could need is bounded, whether logging or the map comes first. */
static void test_limit(void **state)
{
    struct fixture *f = *state;
    uint64_t i, base = 1ull << 50;

    for (i = 0; i < 4; i++) {
        assert_int_equal(map_mode(f->space, base + i * TIB8, TIB8, f->fd, 0, RW, DMA_MODE_FILE_IO),
                         0);
    }
    assert_int_equal(dma_dirty_start(f->dma, PAGE), -ENOSPC);
    assert_int_equal(dma_dirty_page_size(f->dma), 0);
    assert_int_equal(unmap(f->space, base, TIB8), 1);
    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    assert_int_equal(map_mode(f->space, base, TIB8, f->fd, 0, RW, DMA_MODE_FILE_IO), -ENOSPC);
    assert_int_equal(map_mode(f->space, base, TIB8 / 2, f->fd, 0, RW, DMA_MODE_FILE_IO), 0);
}

/* Few of many regions are dirty, and not only in this space: a report finds those it is about. */
static void test_few_of_many_regions(void **state)
{
    struct dma *dma = new_dma(2000);
    struct fixture f = { dma, dma_requester_space(dma), memory_file(PAGE) };
    struct fixture other = { dma, dma_translated_space(dma), f.fd };
    uint64_t i;

    (void)state;
    for (i = 0; i < 1000; i++) {
        assert_int_equal(map_file(f.space, i * PAGE, PAGE, f.fd, 0), 0);
        assert_int_equal(map_file(other.space, i * PAGE, PAGE, f.fd, 0), 0);
    }
    assert_int_equal(dma_dirty_start(dma, PAGE), 0);
    mark(&f, 999 * PAGE, 1);
    mark(&f, 500 * PAGE, 1);
    mark(&other, 998 * PAGE, 1);
    report(&f, 0, 1024 * PAGE, PAGE);
    for (i = 0; i < 16; i++) {
        assert_int_equal(words[i], i == 500 / 64 ? 1ull << 500 % 64
                                   : i == 999 / 64 ? 1ull << 999 % 64 : 0);
    }
    report(&f, 0, 1024 * PAGE, PAGE);
    assert_int_equal(words[999 / 64], 0);
    report(&other, 992 * PAGE, 64 * PAGE, PAGE);
    assert_int_equal(words[0], 1u << 6);
    dma_destroy(dma);
    close(f.fd);
}

/* When there was no memory to mark a page, all pages are dirty until logging starts again. */
static void test_lost_marks(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    atomic_store(&f->dma->dirty.lost, atomic_load(&f->dma->dirty.epoch));
    report(f, BASE, 64 * PAGE, PAGE);
    assert_int_equal(words[0], UINT64_MAX);
    report(f, BASE, 64 * PAGE, PAGE);
    assert_int_equal(words[0], UINT64_MAX);
    dma_dirty_stop(f->dma);
    assert_int_equal(dma_dirty_start(f->dma, PAGE), 0);
    assert_clean(f);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_sizes),
        TEST(test_errors),
        TEST(test_marks),
        TEST(test_long_mark),
        TEST(test_page_sizes),
        TEST(test_parts),
        TEST(test_parts_of_pages),
        TEST(test_holes_and_several_regions),
        TEST(test_unaligned_region),
        TEST(test_region_mapped_while_logging),
        TEST(test_restart_forgets),
        TEST(test_translation_marks_its_region),
        TEST(test_no_mark_is_lost),
        TEST(test_largest_region),
        TEST(test_limit),
        TEST(test_few_of_many_regions),
        TEST(test_lost_marks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
