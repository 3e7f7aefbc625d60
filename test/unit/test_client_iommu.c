/* SPDX-License-Identifier: BSD-3-Clause */
/* The client's IOMMU without a device: domains, two stages, memory, and what calls refuse. */
#include "vfio-user-client-iommu.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE UINT64_C(4096)
#define MIB2 (UINT64_C(2) << 20)
#define GIB (UINT64_C(1) << 30)
#define R VFUC_IOMMU_READ
#define W VFUC_IOMMU_WRITE
#define X VFUC_IOMMU_EXEC
#define RW (R | W)
#define ME VFUC_NO_PASID

/* Memory at 4 GiB, without a file: 16 GiB that nobody touches. */
#define RAM (4 * GIB)
#define RAM_SIZE (16 * GIB)

static void *reserve(uint64_t size)
{
    void *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    assert_ptr_not_equal(p, MAP_FAILED);
    return p;
}

static void add_memory(vfuc_iommu_t *iommu, uint64_t address, uint64_t size, int prot, void *vaddr)
{
    const vfuc_iommu_memory_t memory = {
        .address = address, .size = size, .prot = prot, .fd = -1, .vaddr = vaddr,
    };

    assert_int_equal(vfuc_iommu_add_memory(iommu, &memory), 0);
}

struct fixture {
    vfuc_iommu_t *iommu;
    vfuc_iommu_domain_t *domain;
    void *ram;
};

static int setup(void **state)
{
    static struct fixture f;

    f.iommu = vfuc_iommu_create(NULL);
    assert_non_null(f.iommu);
    f.ram = reserve(RAM_SIZE);
    add_memory(f.iommu, RAM, RAM_SIZE, PROT_READ | PROT_WRITE, f.ram);
    f.domain = vfuc_iommu_domain_create(f.iommu);
    assert_non_null(f.domain);
    assert_int_equal(vfuc_iommu_attach(f.iommu, ME, f.domain), 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    vfuc_iommu_destroy(f->iommu);
    munmap(f->ram, RAM_SIZE);
    return 0;
}

static void assert_fails(int result, int error)
{
    int seen = errno;

    assert_int_equal(result, -1);
    assert_int_equal(seen, error);
}

static void assert_translation(vfuc_iommu_t *iommu, uint32_t pasid, uint64_t iova,
                               uint64_t begins, uint64_t size, uint64_t address, uint32_t perm)
{
    vfuc_iommu_translation_t t;

    vfuc_iommu_translate(iommu, pasid, iova, &t);
    assert_int_equal(t.perm, perm);
    assert_int_equal(t.iova, begins);
    assert_int_equal(t.size, size);
    assert_int_equal(t.address, address);
}

static void assert_not_mapped(vfuc_iommu_t *iommu, uint32_t pasid, uint64_t iova)
{
    vfuc_iommu_translation_t t;

    vfuc_iommu_translate(iommu, pasid, iova, &t);
    assert_int_equal(t.perm, 0);
    assert_int_equal(t.address, 0);
    assert_true(t.iova <= iova && iova - t.iova <= t.size - 1);
}

static void test_options(void **state)
{
    static const vfuc_iommu_options_t wrong[] = {
        { .address_bits = 29 }, { .address_bits = 58 }, { .max_merge = 2048 },
        { .max_merge = 3 * PAGE }, { .mode = VFUC_IOMMU_NONE + 1 },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        errno = 0;
        assert_null(vfuc_iommu_create(&wrong[i]));
        assert_int_equal(errno, EINVAL);
    }
}

static void test_refusals(void **state)
{
    struct fixture *f = *state;
    vfuc_iommu_domain_t *d = f->domain;
    uint64_t end = UINT64_C(1) << 48;

    assert_fails(vfuc_iommu_map(d, 1, RAM, PAGE, RW), EINVAL);
    assert_fails(vfuc_iommu_map(d, 0, RAM + 1, PAGE, RW), EINVAL);
    assert_fails(vfuc_iommu_map(d, 0, RAM, PAGE + 1, RW), EINVAL);
    assert_fails(vfuc_iommu_map(d, 0, RAM, 0, RW), EINVAL);
    assert_fails(vfuc_iommu_map(d, 0, -PAGE, 2 * PAGE, RW), EINVAL);
    assert_fails(vfuc_iommu_map(d, 0, RAM, PAGE, 0), EINVAL);
    assert_fails(vfuc_iommu_map(d, 0, RAM, PAGE, W | X), EINVAL);
    assert_fails(vfuc_iommu_map(d, 0, RAM, PAGE, R | 0x80), EINVAL);
    assert_fails(vfuc_iommu_map(d, end, RAM, PAGE, RW), ERANGE);
    assert_fails(vfuc_iommu_map(d, end - PAGE, RAM, 2 * PAGE, RW), ERANGE);
    assert_fails(vfuc_iommu_map(d, -PAGE, RAM, PAGE, RW), ERANGE);
    assert_fails(vfuc_iommu_map(d, PAGE, RAM, -PAGE, RW), ERANGE);
    assert_int_equal(vfuc_iommu_map(d, end - PAGE, RAM, PAGE, RW), 0);
    assert_fails(vfuc_iommu_map(d, end - 2 * PAGE, RAM, 2 * PAGE, RW), EEXIST);
    assert_not_mapped(f->iommu, ME, end - 2 * PAGE);
    assert_fails(vfuc_iommu_unmap(d, 0, PAGE), ENOENT);
    assert_fails(vfuc_iommu_unmap(d, 0, 0), EINVAL);
    assert_fails(vfuc_iommu_unmap(d, end, PAGE), ERANGE);
    assert_fails(vfuc_iommu_protect(d, 0, PAGE, R), ENOENT);
    assert_fails(vfuc_iommu_protect(d, 0, PAGE, 0), EINVAL);
    assert_fails(vfuc_iommu_attach(f->iommu, 1 << 20, d), EINVAL);
    assert_fails(vfuc_iommu_domain_destroy(d), EBUSY);
    assert_fails(vfuc_iommu_page_response(f->iommu, 0, 0), ENOENT);
    assert_fails(vfuc_iommu_page_response(f->iommu, 0, 2), EINVAL);
    assert_fails(vfuc_iommu_set_unit(f->iommu, 11), EINVAL);
}

static void test_sizes(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(vfuc_iommu_map(f->domain, 2 * GIB, RAM, 2 * GIB, RW), 0);
    assert_translation(f->iommu, ME, 3 * GIB + 5, 3 * GIB, GIB, RAM + GIB + 5, RW);
    assert_int_equal(vfuc_iommu_unmap(f->domain, 3 * GIB + MIB2, PAGE), 0);
    assert_not_mapped(f->iommu, ME, 3 * GIB + MIB2);
    assert_translation(f->iommu, ME, 3 * GIB, 3 * GIB, MIB2, RAM + GIB, RW);
    assert_translation(f->iommu, ME, 2 * GIB, 2 * GIB, GIB, RAM, RW);
}

/* Pages that were mapped one by one, and lead on. */
static void test_merge(void **state)
{
    struct fixture *f = *state;

    for (unsigned i = 0; i < 24; i++) {
        assert_int_equal(vfuc_iommu_map(f->domain, (i + 8) * PAGE, RAM + i * PAGE, PAGE,
                                        i == 21 ? R : RW), 0);
    }
    assert_translation(f->iommu, ME, 9 * PAGE, 8 * PAGE, 8 * PAGE, RAM + PAGE, RW);
    assert_translation(f->iommu, ME, 17 * PAGE, 16 * PAGE, 8 * PAGE, RAM + 9 * PAGE, RW);
    assert_translation(f->iommu, ME, 26 * PAGE, 24 * PAGE, 4 * PAGE, RAM + 18 * PAGE, RW);
    assert_translation(f->iommu, ME, 28 * PAGE, 28 * PAGE, PAGE, RAM + 20 * PAGE, RW);
    assert_translation(f->iommu, ME, 29 * PAGE, 29 * PAGE, PAGE, RAM + 21 * PAGE, R);
}

static void test_merge_limit(void **state)
{
    const vfuc_iommu_options_t options = { .max_merge = 4 * PAGE };
    vfuc_iommu_t *iommu = vfuc_iommu_create(&options);
    vfuc_iommu_domain_t *domain = vfuc_iommu_domain_create(iommu);
    struct fixture *f = *state;

    add_memory(iommu, RAM, RAM_SIZE, PROT_READ, f->ram);
    assert_int_equal(vfuc_iommu_attach(iommu, ME, domain), 0);
    assert_int_equal(vfuc_iommu_map(domain, 0, RAM + PAGE, 64 * PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_map(domain, MIB2, RAM + MIB2, MIB2, RW), 0);
    assert_translation(iommu, ME, 9 * PAGE, 8 * PAGE, 4 * PAGE, RAM + 10 * PAGE, R);
    /* A larger page is given whole. */
    assert_translation(iommu, ME, MIB2, MIB2, MIB2, RAM + MIB2, R);
    vfuc_iommu_destroy(iommu);
}

static void test_memory(void **state)
{
    struct fixture *f = *state;
    uint64_t end = RAM + RAM_SIZE;
    vfuc_iommu_memory_t m = {
        .address = end + PAGE, .size = PAGE, .prot = PROT_READ, .fd = -1, .vaddr = f->ram,
    };

    /* What leads out of memory is not mapped, and what memory does not allow is not allowed. */
    assert_int_equal(vfuc_iommu_map(f->domain, 0, end - PAGE, 4 * PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_add_memory(f->iommu, &m), 0);
    assert_translation(f->iommu, ME, 0, 0, PAGE, end - PAGE, RW);
    assert_not_mapped(f->iommu, ME, PAGE);
    assert_translation(f->iommu, ME, 2 * PAGE, 2 * PAGE, PAGE, end + PAGE, R);
    assert_not_mapped(f->iommu, ME, 3 * PAGE);

    m.address = end;
    m.size = 2 * PAGE;
    assert_fails(vfuc_iommu_add_memory(f->iommu, &m), EEXIST);
    m.size = PAGE;
    assert_int_equal(vfuc_iommu_add_memory(f->iommu, &m), 0);
    assert_translation(f->iommu, ME, PAGE, PAGE, PAGE, end, R);
    assert_fails(vfuc_iommu_remove_memory(f->iommu, end + 2 * PAGE), ENOENT);
    assert_fails(vfuc_iommu_remove_memory(f->iommu, RAM + PAGE), ENOENT);
    assert_int_equal(vfuc_iommu_remove_memory(f->iommu, RAM), 0);
    assert_not_mapped(f->iommu, ME, 0);

    m.vaddr = NULL;
    m.address = 0;
    assert_fails(vfuc_iommu_add_memory(f->iommu, &m), EINVAL);
    m.vaddr = f->ram;
    m.address = -PAGE;
    m.size = 2 * PAGE;
    assert_fails(vfuc_iommu_add_memory(f->iommu, &m), EINVAL);
    m.size = 0;
    assert_fails(vfuc_iommu_add_memory(f->iommu, &m), EINVAL);
}

/* Two stages */

static void test_nested_sizes(void **state)
{
    struct fixture *f = *state;
    vfuc_iommu_domain_t *s2 = vfuc_iommu_domain_create(f->iommu);

    assert_int_equal(vfuc_iommu_domain_set_stage2(f->domain, s2), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 8 * GIB, 32 * GIB, GIB, R | X | VFUC_IOMMU_GLOBAL),
                     0);
    assert_not_mapped(f->iommu, ME, 8 * GIB);
    /* 1 GiB over 2 MiB, over 4 KiB, over pages that lead on. */
    assert_int_equal(vfuc_iommu_map(s2, 32 * GIB + MIB2, RAM + 3 * MIB2, MIB2, RW | X), 0);
    assert_translation(f->iommu, ME, 8 * GIB + MIB2 + 7, 8 * GIB + MIB2, MIB2, RAM + 3 * MIB2 + 7,
                       R | X | VFUC_IOMMU_GLOBAL);
    assert_int_equal(vfuc_iommu_map(s2, 32 * GIB, RAM + PAGE, PAGE, RW), 0);
    assert_translation(f->iommu, ME, 8 * GIB, 8 * GIB, PAGE, RAM + PAGE, R | VFUC_IOMMU_GLOBAL);
    assert_int_equal(vfuc_iommu_map(s2, 32 * GIB + PAGE, RAM + 2 * PAGE, 7 * PAGE, RW), 0);
    assert_translation(f->iommu, ME, 8 * GIB + PAGE, 8 * GIB, 8 * PAGE, RAM + 2 * PAGE,
                       R | VFUC_IOMMU_GLOBAL);
    /* A page over 2 MiB. */
    assert_int_equal(vfuc_iommu_map(f->domain, 0, 32 * GIB + MIB2 + 5 * PAGE, PAGE, RW), 0);
    assert_translation(f->iommu, ME, 9, 0, PAGE, RAM + 3 * MIB2 + 5 * PAGE + 9, RW);
    /* What is not to be cached in the second stage is not to be cached. */
    assert_int_equal(vfuc_iommu_map(s2, 33 * GIB, RAM + MIB2, PAGE, RW | VFUC_IOMMU_UNCACHED), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, PAGE, 33 * GIB, PAGE, RW), 0);
    assert_translation(f->iommu, ME, PAGE, PAGE, PAGE, RAM + MIB2, RW | VFUC_IOMMU_UNCACHED);
    /* Nothing in common. */
    assert_int_equal(vfuc_iommu_protect(s2, 32 * GIB, PAGE, W), 0);
    assert_not_mapped(f->iommu, ME, 8 * GIB);
    assert_int_equal(vfuc_iommu_domain_set_stage2(f->domain, NULL), 0);
    assert_int_equal(vfuc_iommu_domain_destroy(s2), 0);
}

static void test_nested_refusals(void **state)
{
    struct fixture *f = *state;
    vfuc_iommu_domain_t *a = vfuc_iommu_domain_create(f->iommu);
    vfuc_iommu_domain_t *b = vfuc_iommu_domain_create(f->iommu);
    vfuc_iommu_t *other = vfuc_iommu_create(NULL);
    vfuc_iommu_domain_t *theirs = vfuc_iommu_domain_create(other);

    assert_fails(vfuc_iommu_domain_set_stage2(a, a), EINVAL);
    assert_fails(vfuc_iommu_domain_set_stage2(a, theirs), EINVAL);
    assert_fails(vfuc_iommu_attach(f->iommu, ME, theirs), EINVAL);
    assert_int_equal(vfuc_iommu_domain_set_stage2(a, b), 0);
    assert_fails(vfuc_iommu_domain_set_stage2(f->domain, a), EINVAL);
    assert_fails(vfuc_iommu_domain_set_stage2(b, f->domain), EINVAL);
    assert_fails(vfuc_iommu_domain_destroy(b), EBUSY);
    assert_int_equal(vfuc_iommu_domain_destroy(a), 0);
    assert_int_equal(vfuc_iommu_domain_destroy(b), 0);
    vfuc_iommu_destroy(other);
}

/* Both stages change at random; what comes out is what two arrays say. */
#define PAGES 96u

struct model {
    unsigned to[2][PAGES]; /* of each stage */
    uint32_t perm[2][PAGES];
};

static void change_stage(vfuc_iommu_domain_t *domain, struct model *m, unsigned stage)
{
    unsigned n = 1 + (unsigned)rand() % 8, from = (unsigned)rand() % (PAGES - n);
    unsigned to = (unsigned)rand() % (PAGES - n);
    uint64_t base = stage == 0 ? 0 : 64 * GIB, target = stage == 0 ? 64 * GIB : RAM;
    uint32_t perm = 1 + (uint32_t)rand() % 3;
    bool any = false;

    for (unsigned i = from; i < from + n; i++) {
        any = any || m->perm[stage][i] != 0;
    }
    if (rand() % 3 == 0) {
        perm = 0;
        assert_int_equal(vfuc_iommu_unmap(domain, base + from * PAGE, n * PAGE), any ? 0 : -1);
    } else if (any && rand() % 2 == 0) {
        assert_int_equal(vfuc_iommu_protect(domain, base + from * PAGE, n * PAGE, perm), 0);
        for (unsigned i = from; i < from + n; i++) {
            m->perm[stage][i] = m->perm[stage][i] != 0 ? perm : 0;
        }
        return;
    } else {
        assert_int_equal(vfuc_iommu_map(domain, base + from * PAGE, target + to * PAGE, n * PAGE,
                                        perm), any ? -1 : 0);
    }
    for (unsigned i = 0; i < n && (perm == 0 || !any); i++) {
        m->to[stage][from + i] = to + i;
        m->perm[stage][from + i] = perm;
    }
}

static void compare(vfuc_iommu_t *iommu, const struct model *m)
{
    for (unsigned i = 0; i < PAGES; i++) {
        unsigned middle = m->to[0][i];
        uint32_t perm = m->perm[0][i] != 0 ? m->perm[0][i] & m->perm[1][middle] : 0;
        vfuc_iommu_translation_t t;

        vfuc_iommu_translate(iommu, 5, i * PAGE + 0x123, &t);
        assert_int_equal(t.perm, perm);
        if (perm != 0) {
            assert_int_equal(t.address, RAM + m->to[1][middle] * PAGE + 0x123);
            assert_int_equal(t.iova % t.size, 0);
        }
        /* All of what is given out is so. */
        for (uint64_t at = t.iova; perm != 0 && at < t.iova + t.size; at += PAGE) {
            unsigned page = (unsigned)(at / PAGE);

            assert_int_equal(m->perm[0][page] & m->perm[1][m->to[0][page]], perm);
            assert_int_equal(RAM + m->to[1][m->to[0][page]] * PAGE + (i * PAGE + 0x123 - at),
                             t.address);
        }
    }
}

static void test_nested_random(void **state)
{
    static struct model model;
    struct fixture *f = *state;
    vfuc_iommu_domain_t *s1 = vfuc_iommu_domain_create(f->iommu);
    vfuc_iommu_domain_t *s2 = vfuc_iommu_domain_create(f->iommu);

    srand(11);
    memset(&model, 0, sizeof(model));
    assert_int_equal(vfuc_iommu_domain_set_stage2(s1, s2), 0);
    assert_int_equal(vfuc_iommu_attach(f->iommu, 5, s1), 0);
    for (int i = 0; i < 3000; i++) {
        unsigned stage = (unsigned)rand() % 2;

        change_stage(stage == 0 ? s1 : s2, &model, stage);
        if (i % 4 == 0) {
            compare(f->iommu, &model);
        }
    }
}

static void test_bind_refusals(void **state)
{
    struct fixture *f = *state;
    int fd = memfd_create("arena", MFD_CLOEXEC);
    vfuc_iommu_memory_t m = {
        .address = 64 * GIB, .size = 4 * PAGE, .prot = PROT_READ | PROT_WRITE, .fd = fd,
    };
    vfuc_iommu_translation_t t;
    uint8_t *arena;

    assert_int_equal(ftruncate(fd, 4 * PAGE), 0);
    arena = m.vaddr = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_int_equal(vfuc_iommu_add_memory(f->iommu, &m), 0);
    close(fd);
    assert_fails(vfuc_iommu_bind_process(f->iommu, ME, arena, PAGE, PROT_READ), EINVAL);
    assert_fails(vfuc_iommu_bind_process(f->iommu, 1, arena, 0, PROT_READ), EINVAL);
    assert_fails(vfuc_iommu_bind_process(f->iommu, 1, arena + 1, PAGE, PROT_READ), EINVAL);
    assert_fails(vfuc_iommu_bind_process(f->iommu, 1, arena, PAGE, PROT_EXEC), EINVAL);
    assert_fails(vfuc_iommu_bind_process(f->iommu, 1, arena, PAGE, 0), EINVAL);
    /* Memory that no file is behind cannot be shared. */
    assert_fails(vfuc_iommu_bind_process(f->iommu, 1, f->ram, PAGE, PROT_READ), EFAULT);
    assert_fails(vfuc_iommu_bind_process(f->iommu, 1, arena, 5 * PAGE, PROT_READ), EFAULT);
    assert_fails(vfuc_iommu_evict(f->iommu, 1, arena, PAGE), ENOENT);
    assert_fails(vfuc_iommu_unbind_process(f->iommu, 1), ENOENT);
    assert_int_equal(vfuc_iommu_bind_process(f->iommu, 1, arena, 3 * PAGE, PROT_READ), 0);
    assert_fails(vfuc_iommu_bind_process(f->iommu, 1, arena, PAGE, PROT_READ), EEXIST);
    /* There is no device that could ask: everything is there. */
    vfuc_iommu_translate(f->iommu, 1, (uintptr_t)arena + 2 * PAGE + 1, &t);
    assert_int_equal(t.address, 64 * GIB + 2 * PAGE + 1);
    assert_int_equal(t.perm, R);
    assert_not_mapped(f->iommu, 1, (uintptr_t)arena + 3 * PAGE);
    assert_int_equal(vfuc_iommu_evict(f->iommu, 1, arena, 3 * PAGE), 0);
    assert_int_equal(vfuc_iommu_evict(f->iommu, 1, arena, 3 * PAGE), 0);
    assert_not_mapped(f->iommu, 1, (uintptr_t)arena);
    assert_int_equal(vfuc_iommu_unbind_process(f->iommu, 1), 0);
    assert_fails(vfuc_iommu_unbind_process(f->iommu, 1), ENOENT);
    munmap(arena, 4 * PAGE);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options),
        CASE(test_refusals),
        CASE(test_sizes),
        CASE(test_merge),
        CASE(test_merge_limit),
        CASE(test_memory),
        CASE(test_nested_sizes),
        CASE(test_nested_refusals),
        CASE(test_nested_random),
        CASE(test_bind_refusals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
