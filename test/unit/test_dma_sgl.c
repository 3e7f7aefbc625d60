/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>

#include "dma_fixture.h"

/* Three regions side by side, a hole, one more: file, message, read-only file, FILE_IO. */
#define FILE_AT 0x10000ull
#define MESSAGE_AT (FILE_AT + 4 * PAGE)
#define ROM_AT (MESSAGE_AT + PAGE)
#define IO_AT (ROM_AT + 2 * PAGE)

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
    f->fd = memory_file(16 * PAGE);
    assert_int_equal(map_file(f->space, FILE_AT, 4 * PAGE, f->fd, PAGE), 0);
    assert_int_equal(map_message(f->space, MESSAGE_AT, PAGE, RW), 0);
    assert_int_equal(map_mode(f->space, ROM_AT, PAGE, f->fd, 8 * PAGE, PROT_READ, DMA_MODE_MMAP),
                     0);
    assert_int_equal(map_mode(f->space, IO_AT, PAGE, f->fd, 9 * PAGE, RW, DMA_MODE_FILE_IO), 0);
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

static void test_split(void **state)
{
    struct fixture *f = *state;
    struct dma_sg sgl[3];

    memset(sgl, 0xee, sizeof(sgl));
    assert_int_equal(dma_addr_to_sgl(f->space, FILE_AT + 100, 6 * PAGE - 200, sgl, 3, 0), 3);
    assert_ptr_equal(sgl[0].dma_addr, (void *)FILE_AT);
    assert_int_equal(sgl[0].offset, 100);
    assert_int_equal(sgl[0].length, 4 * PAGE - 100);
    assert_false(sgl[0].writeable);
    assert_ptr_equal(sgl[1].dma_addr, (void *)MESSAGE_AT);
    assert_int_equal(sgl[1].offset, 0);
    assert_int_equal(sgl[1].length, PAGE);
    assert_ptr_equal(sgl[2].dma_addr, (void *)ROM_AT);
    assert_int_equal(sgl[2].length, PAGE - 100);

    assert_int_equal(dma_addr_to_sgl(f->space, FILE_AT, 8, sgl, 1, PROT_WRITE), 1);
    assert_true(sgl[0].writeable);
    assert_int_equal(sgl[0].length, 8);
}

/* How many it takes is told also when they do not fit; those that fit are filled. */
static void test_too_few(void **state)
{
    struct fixture *f = *state;
    struct dma_sg sgl[3];

    memset(sgl, 0, sizeof(sgl));
    assert_int_equal(dma_addr_to_sgl(f->space, FILE_AT, 6 * PAGE, sgl, 1, 0), 3);
    assert_non_null(sgl[0].entry);
    assert_null(sgl[1].entry);
    assert_int_equal(dma_addr_to_sgl(f->space, FILE_AT, 6 * PAGE, NULL, 0, 0), 3);
}

static void test_refusals(void **state)
{
    static const struct {
        uint64_t addr, len;
        int prot, ret;
    } cases[] = {
        { FILE_AT, 0, PROT_WRITE, 0 },
        { 5, 0, 0, 0 },
        { FILE_AT - 1, 2, 0, -ENOENT },
        { ROM_AT, PAGE + 1, PROT_READ, -ENOENT },
        { ROM_AT, PAGE, PROT_READ, 1 },
        { ROM_AT, 1, PROT_WRITE, -EACCES },
        { FILE_AT, 6 * PAGE, PROT_WRITE, -EACCES },
        { FILE_AT, 5 * PAGE, PROT_WRITE, 2 },
        { FILE_AT, UINT64_MAX, PROT_READ, -ENOENT },
        { UINT64_MAX, 2, PROT_READ, -ENOENT },
        { UINT64_MAX, 1, PROT_READ, -ENOENT },
    };
    struct fixture *f = *state;
    struct dma_sg sgl[4];
    size_t i;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(
            dma_addr_to_sgl(f->space, cases[i].addr, cases[i].len, sgl, 4, cases[i].prot),
            cases[i].ret);
    }
}

static void test_top_of_the_address_space(void **state)
{
    struct fixture *f = *state;
    struct dma_sg sg;

    assert_int_equal(map_message(f->space, UINT64_MAX - PAGE + 1, PAGE, RW), 0);
    assert_int_equal(dma_addr_to_sgl(f->space, UINT64_MAX - 7, 8, &sg, 1, RW), 1);
    assert_int_equal(sg.length, 8);
    assert_int_equal(dma_addr_to_sgl(f->space, UINT64_MAX - 7, 9, &sg, 1, RW), -ENOENT);
}

static void test_get(void **state)
{
    struct fixture *f = *state;
    struct dma_sg sgl[2];
    struct iovec iov[2];
    char text[8];

    assert_int_equal(dma_addr_to_sgl(f->space, FILE_AT + PAGE, 5, &sgl[0], 1, RW), 1);
    assert_int_equal(dma_addr_to_sgl(f->space, ROM_AT + 3, 7, &sgl[1], 1, PROT_READ), 1);
    assert_int_equal(dma_sgl_get(f->dma, sgl, iov, 2), 0);
    assert_int_equal(iov[0].iov_len, 5);
    assert_int_equal(iov[1].iov_len, 7);
    memcpy(iov[0].iov_base, "hello", 5);
    assert_int_equal(pread(f->fd, text, 5, 2 * PAGE), 5);
    assert_memory_equal(text, "hello", 5);
    assert_int_equal(pwrite(f->fd, "rom", 3, 8 * PAGE + 3), 3);
    assert_memory_equal(iov[1].iov_base, "rom", 3);
    dma_sgl_put(f->dma, sgl, 2);
}

static void never_called(struct dma_drain *drain)
{
    (void)drain;
    fail();
}

/* No reference is left behind by a get that failed half way. */
static void test_get_is_all_or_nothing(void **state)
{
    struct fixture *f = *state;
    struct dma_sg sgl[2];
    struct iovec iov[2];
    struct dma_drain drain;

    assert_int_equal(dma_addr_to_sgl(f->space, MESSAGE_AT - 1, 2, sgl, 2, RW), 2);
    assert_int_equal(dma_sgl_get(f->dma, sgl, iov, 2), -EFAULT);
    sgl[1] = (struct dma_sg){ 0 };
    assert_int_equal(dma_sgl_get(f->dma, sgl, iov, 2), -EINVAL);
    assert_int_equal(dma_sgl_hold(f->dma, sgl, 2), -EINVAL);
    assert_int_equal(dma_addr_to_sgl(f->space, MESSAGE_AT, 2, &sgl[1], 1, RW), 1);
    assert_int_equal(unmap(f->space, MESSAGE_AT, PAGE), 1);
    assert_int_equal(dma_sgl_get(f->dma, sgl, iov, 2), -ESTALE);
    assert_int_equal(dma_sgl_hold(f->dma, sgl, 2), -ESTALE);

    dma_drain_init(&drain, never_called);
    assert_int_equal(dma_unmap_all(f->space, NULL, NULL, &drain), 3);
    assert_true(dma_drain_arm(&drain));
}

static void test_mappable(void **state)
{
    struct fixture *f = *state;
    struct dma_sg sg;

    assert_int_equal(dma_addr_to_sgl(f->space, FILE_AT, 1, &sg, 1, 0), 1);
    assert_true(dma_sg_is_mappable(f->dma, &sg));
    assert_int_equal(unmap(f->space, FILE_AT, 4 * PAGE), 1);
    assert_false(dma_sg_is_mappable(f->dma, &sg));
    assert_int_equal(dma_addr_to_sgl(f->space, IO_AT, 1, &sg, 1, 0), 1);
    assert_false(dma_sg_is_mappable(f->dma, &sg));
    assert_int_equal(dma_addr_to_sgl(f->space, MESSAGE_AT, 1, &sg, 1, 0), 1);
    assert_false(dma_sg_is_mappable(f->dma, &sg));
}

static int copy_at(struct fixture *f, uint64_t addr, void *buf, uint64_t len, bool to_guest)
{
    struct dma_sg sg;

    assert_int_equal(
        dma_addr_to_sgl(f->space, addr, len, &sg, 1, to_guest ? PROT_WRITE : PROT_READ), 1);
    return dma_sg_copy(f->dma, &sg, buf, to_guest);
}

static void test_copy(void **state)
{
    static const struct {
        uint64_t addr, offset;
    } cases[] = { { FILE_AT, PAGE }, { IO_AT, 9 * PAGE } };
    struct fixture *f = *state;
    char out[64], in[64];
    size_t i;

    for (i = 0; i < 2; i++) {
        memset(out, 'a' + (int)i, sizeof(out));
        assert_int_equal(copy_at(f, cases[i].addr + 17, out, sizeof(out), true), 0);
        assert_int_equal(pread(f->fd, in, sizeof(in), (off_t)cases[i].offset + 17), sizeof(in));
        assert_memory_equal(in, out, sizeof(in));
        memset(in, 0, sizeof(in));
        assert_int_equal(copy_at(f, cases[i].addr + 17, in, sizeof(in), false), 0);
        assert_memory_equal(in, out, sizeof(in));
    }
}

static void test_copy_refusals(void **state)
{
    struct fixture *f = *state;
    struct dma_sg sg = { 0 };
    char buf[8] = { 0 };

    assert_int_equal(dma_sg_copy(f->dma, &sg, buf, false), -EINVAL);
    assert_int_equal(copy_at(f, MESSAGE_AT, buf, 8, false), -ENOTSUP);
    assert_int_equal(dma_addr_to_sgl(f->space, FILE_AT, 8, &sg, 1, PROT_READ), 1);
    assert_int_equal(dma_sg_copy(f->dma, &sg, buf, true), -EPERM);
    assert_int_equal(unmap(f->space, FILE_AT, 4 * PAGE), 1);
    assert_int_equal(dma_sg_copy(f->dma, &sg, buf, false), -ESTALE);
    /* The file ends before the region does. */
    assert_return_code(ftruncate(f->fd, 9 * PAGE + 4), 0);
    assert_int_equal(copy_at(f, IO_AT, buf, 4, false), 0);
    assert_int_equal(copy_at(f, IO_AT, buf, 8, false), -EIO);
}

/* Through a cached translation, the file is reached at the translated place. */
static void test_copy_through_translation(void **state)
{
    struct fixture *f = *state;
    struct dma_space *memory = dma_translated_space(f->dma);
    struct dma_translation translation = { .iova = { 0x100000, 0x100fff },
                                           .translated = 0x7000 + PAGE,
                                           .prot = RW };
    char in[4];

    assert_int_equal(map_mode(memory, 0x7000, 2 * PAGE, f->fd, 12 * PAGE, RW, DMA_MODE_FILE_IO), 0);
    assert_int_equal(dma_cache_insert(f->space, &translation), 1);
    assert_int_equal(copy_at(f, 0x100010, "data", 4, true), 0);
    assert_int_equal(pread(f->fd, in, 4, 13 * PAGE + 0x10), 4);
    assert_memory_equal(in, "data", 4);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_split),         TEST(test_too_few),
        TEST(test_refusals),      TEST(test_top_of_the_address_space),
        TEST(test_get),           TEST(test_get_is_all_or_nothing),
        TEST(test_mappable),      TEST(test_copy),
        TEST(test_copy_refusals), TEST(test_copy_through_translation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
