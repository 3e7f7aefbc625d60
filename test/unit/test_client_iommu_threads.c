/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Many threads edit the tables of the client's IOMMU at once, while the server asks. Each has pages
 * of its own, so that it knows what must be there; for the rest the sanitizers look.
 */
#include "iommu_fixture.h"

#include <stdatomic.h>

#define THREADS 4u
#define PAGES 16u /* of each */
#define ROUNDS 250

struct editor {
    struct fixture *f;
    unsigned number;
    pthread_t thread;
    unsigned failures;
    atomic_bool stop;
};

/* Whoever edits is not the thread that may fail a test: it counts. */
static void expect(struct editor *e, bool ok)
{
    e->failures += !ok;
}

static bool leads_to(struct fixture *f, uint64_t iova, uint64_t address, uint32_t perm)
{
    vfuc_iommu_translation_t t;

    vfuc_iommu_translate(f->iommu, ME, iova, &t);
    return t.perm == perm && (perm == 0 || t.address == address);
}

static void *edit(void *arg)
{
    struct editor *e = arg;
    struct fixture *f = e->f;
    uint64_t base = e->number * PAGES * PAGE;
    vfuc_iommu_gather_t *gather = vfuc_iommu_gather_create(f->iommu);
    uint32_t pasid = 1 + e->number;

    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t iova = base + i % PAGES * PAGE, address = RAM + (e->number * 7 + i) % 64 * PAGE;

        expect(e, vfuc_iommu_map(f->domain, iova, address, PAGE, RW) == 0);
        expect(e, leads_to(f, iova, address, RW));
        switch (i % 4) {
        case 0:
            expect(e, vfuc_iommu_protect(f->domain, iova, PAGE, R) == 0);
            expect(e, leads_to(f, iova, address, R));
            break;
        case 1:
            expect(e, vfuc_iommu_attach(f->iommu, pasid, f->domain) == 0);
            break;
        case 2:
            expect(e, vfuc_iommu_attach(f->iommu, pasid, NULL) == 0);
            break;
        }
        if (i % 3 == 0) {
            expect(e, vfuc_iommu_unmap_start(f->domain, iova, PAGE, gather) == 0);
        } else {
            expect(e, vfuc_iommu_unmap(f->domain, iova, PAGE) == 0);
        }
        expect(e, leads_to(f, iova, 0, 0));
    }
    expect(e, vfuc_iommu_sync(gather) == 0);
    expect(e, vfuc_iommu_attach(f->iommu, pasid, NULL) == 0);
    vfuc_iommu_gather_destroy(gather);
    return NULL;
}

/* Memory comes and goes beside that. */
static void *come_and_go(void *arg)
{
    struct editor *e = arg;
    const vfuc_iommu_memory_t memory = {
        .address = RAM + GIB, .size = PAGE, .prot = PROT_READ, .fd = e->f->fd,
    };

    for (unsigned i = 0; i < ROUNDS / 4; i++) {
        expect(e, vfuc_iommu_add_memory(e->f->iommu, &memory) == 0);
        expect(e, vfuc_iommu_remove_memory(e->f->iommu, RAM + GIB) == 0);
    }
    return NULL;
}

/* What a server does meanwhile: it asks, and reads and writes by messages. */
static void be_a_server(struct fixture *f, unsigned n)
{
    const struct vfio_user_ats_translate translate = {
        .argsz = 1024, .address = n % (THREADS * PAGES) * PAGE, .length = 8 * PAGE,
    };
    const struct vfio_user_dma_region_access access = { .addr = translate.address, .count = 16 };

    fake_server_ask(&f->server, VFIO_USER_ATS_TRANSLATE, 0, NULL, &translate, sizeof(translate),
                    NULL, 0, NULL);
    fake_server_ask(&f->server, VFIO_USER_DMA_READ, 0, NULL, &access, sizeof(access), NULL, 0,
                    NULL);
    /* It has room for so many records. */
    if (n % 8 == 0) {
        fake_server_clear(&f->server);
    }
}

struct crowd {
    struct editor editors[THREADS + 1];
    pthread_t waiter;
    atomic_bool done;
};

static void *join_all(void *arg)
{
    struct crowd *crowd = arg;

    for (unsigned i = 0; i <= THREADS; i++) {
        pthread_join(crowd->editors[i].thread, NULL);
    }
    atomic_store(&crowd->done, true);
    return NULL;
}

static void run(const char *version, enum vfuc_iommu_mode mode)
{
    static struct fixture f;
    struct crowd crowd = { .done = false };

    fixture_start(&f, version, NULL);
    assert_int_equal(vfuc_iommu_mode(f.iommu), mode);
    for (unsigned i = 0; i <= THREADS; i++) {
        crowd.editors[i] = (struct editor){ .f = &f, .number = i };
        assert_int_equal(pthread_create(&crowd.editors[i].thread, NULL,
                                        i < THREADS ? edit : come_and_go, &crowd.editors[i]), 0);
    }
    assert_int_equal(pthread_create(&crowd.waiter, NULL, join_all, &crowd), 0);
    for (unsigned n = 0; !atomic_load(&crowd.done); n++) {
        be_a_server(&f, n);
    }
    pthread_join(crowd.waiter, NULL);
    for (unsigned i = 0; i <= THREADS; i++) {
        assert_int_equal(crowd.editors[i].failures, 0);
    }
    assert_false(vfuc_iommu_isolated(f.iommu));
    /* Everybody has cleaned up. */
    assert_int_equal(vfuc_iommu_attach(f.iommu, ME, NULL), 0);
    assert_int_equal(vfuc_iommu_domain_destroy(f.domain), 0);
    fixture_end(&f);
}

static void test_ats(void **state)
{
    (void)state;
    run(FULL_VERSION, VFUC_IOMMU_ATS);
}

static void test_shadow(void **state)
{
    (void)state;
    run(VERSION(PASID_CAPS), VFUC_IOMMU_SHADOW);
}

/* A device comes and goes while memory does: each knows all that was there before. */

#define MODULES 64u
#define DEVICES 300u

static void add_modules(struct fixture *f)
{
    vfuc_iommu_memory_t memory = { .size = PAGE, .prot = PROT_READ, .fd = f->fd };

    for (uint64_t i = 1; i <= MODULES; i++) {
        memory.address = RAM + (i + 1) * GIB;
        assert_int_equal(vfuc_iommu_add_memory(f->iommu, &memory), 0);
    }
}

static void *keep_coming_and_going(void *arg)
{
    struct editor *e = arg;
    const vfuc_iommu_memory_t memory = {
        .address = RAM + GIB, .size = PAGE, .prot = PROT_READ, .fd = e->f->fd,
    };

    /* There may be no device to tell, or one that goes. */
    while (!atomic_load(&e->stop)) {
        vfuc_iommu_map(e->f->domain, 0, RAM, PAGE, RW);
        vfuc_iommu_unmap(e->f->domain, 0, PAGE);
        vfuc_iommu_attach(e->f->iommu, 1, e->f->domain);
        vfuc_iommu_attach(e->f->iommu, 1, NULL);
        if (vfuc_iommu_add_memory(e->f->iommu, &memory) == 0) {
            vfuc_iommu_remove_memory(e->f->iommu, RAM + GIB);
        }
    }
    return NULL;
}

static void test_devices(void **state)
{
    static struct fixture f;
    struct editor e = { .f = &f };

    (void)state;
    fixture_start(&f, FULL_VERSION, NULL);
    add_modules(&f);
    assert_int_equal(pthread_create(&e.thread, NULL, keep_coming_and_going, &e), 0);
    for (unsigned i = 0; i < DEVICES; i++) {
        vfuc_iommu_disconnect(f.iommu);
        fake_server_clear(&f.server);
        f.client = vfuc_iommu_connect(f.iommu, f.server.path, NULL);
        assert_non_null(f.client);
        assert_true(fake_server_count(&f.server, VFIO_USER_DMA_MAP) >= 1 + MODULES);
    }
    atomic_store(&e.stop, true);
    pthread_join(e.thread, NULL);
    fixture_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ats),
        cmocka_unit_test(test_shadow),
        cmocka_unit_test(test_devices),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
