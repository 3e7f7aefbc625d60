/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A server that does not let go, or says that it cannot: no call reports success while it can still
 * reach what was taken away, and nothing of that comes back with the next connection.
 */
#include "iommu_fixture.h"

#include <stdatomic.h>

#define MAP VFIO_USER_DMA_MAP
#define UNMAP VFIO_USER_DMA_UNMAP
#define INVALIDATE VFIO_USER_ATS_INVALIDATE

static void start_shadow(struct fixture *f)
{
    fixture_start(f, VERSION(PASID_CAPS), NULL);
    assert_int_equal(vfuc_iommu_mode(f->iommu), VFUC_IOMMU_SHADOW);
}

static void start_ats(struct fixture *f)
{
    fixture_start(f, FULL_VERSION, NULL);
    assert_int_equal(vfuc_iommu_mode(f->iommu), VFUC_IOMMU_ATS);
    fake_server_clear(&f->server);
}

/* What lets neighbours lose different things: less for one of them is less. */
static void test_restricted_beside_its_like(void **state)
{
    static const uint32_t restrictions[] = {
        VFUC_IOMMU_PRIV, VFUC_IOMMU_UNCACHED, VFUC_IOMMU_NO_SNOOP,
    };
    struct fixture f;

    (void)state;
    start_ats(&f);
    for (uint64_t i = 0; i < 3; i++) {
        uint64_t iova = i * 2 * PAGE;

        assert_int_equal(vfuc_iommu_map(f.domain, iova, RAM, PAGE, RW | restrictions[i]), 0);
        assert_int_equal(vfuc_iommu_map(f.domain, iova + PAGE, RAM + PAGE, PAGE, RW), 0);
        assert_int_equal(vfuc_iommu_protect(f.domain, iova, 2 * PAGE, RW | restrictions[i]), 0);
        assert_int_equal(fake_server_count(&f.server, INVALIDATE), i + 1);
    }
    fixture_end(&f);
}

/* A server that answers with the errno of a connection that has ended is still there. */
static void test_claims_to_have_gone(void **state)
{
    static const int claims[] = { ENOTCONN, ETIMEDOUT };
    struct fixture f;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        start_ats(&f);
        assert_int_equal(vfuc_iommu_map(f.domain, 0, RAM, PAGE, RW), 0);
        fake_server_refuse(&f.server, INVALIDATE, claims[i]);
        assert_fails(vfuc_iommu_unmap(f.domain, 0, PAGE), EPROTO);
        assert_true(vfuc_iommu_isolated(f.iommu));
        fixture_end(&f);

        start_shadow(&f);
        assert_int_equal(vfuc_iommu_map(f.domain, 0, RAM, PAGE, RW), 0);
        fake_server_refuse(&f.server, UNMAP, claims[i]);
        assert_fails(vfuc_iommu_unmap(f.domain, 0, PAGE), EPROTO);
        assert_true(vfuc_iommu_isolated(f.iommu));
        fixture_end(&f);
    }
}

/* What it kept it keeps: no later call may say otherwise. */
static void check_nothing_succeeds(struct fixture *f)
{
    assert_true(vfuc_iommu_isolated(f->iommu));
    assert_fails(vfuc_iommu_attach(f->iommu, ME, NULL), EIO);
    assert_fails(vfuc_iommu_unmap(f->domain, 0, PAGE), EIO);
    assert_fails(vfuc_iommu_protect(f->domain, PAGE, PAGE, R), EIO);
    assert_fails(vfuc_iommu_domain_set_stage2(f->domain, NULL), EIO);
}

static void test_kept_after_detach(void **state)
{
    struct fixture f;

    (void)state;
    start_ats(&f);
    assert_int_equal(vfuc_iommu_map(f.domain, 0, RAM, 2 * PAGE, RW), 0);
    fake_server_refuse(&f.server, INVALIDATE, EPERM);
    assert_fails(vfuc_iommu_attach(f.iommu, ME, NULL), EPROTO);
    check_nothing_succeeds(&f);
    fixture_end(&f);

    start_shadow(&f);
    assert_int_equal(vfuc_iommu_map(f.domain, 0, RAM, 2 * PAGE, RW), 0);
    fake_server_refuse(&f.server, UNMAP, EPERM);
    assert_fails(vfuc_iommu_attach(f.iommu, ME, NULL), EPROTO);
    check_nothing_succeeds(&f);
    assert_fails(vfuc_iommu_remove_memory(f.iommu, RAM), EIO);
    fixture_end(&f);
}

/* The server that was told nothing of it learns nothing of it from the next connection either. */
static void test_kept_does_not_come_back(void **state)
{
    struct fixture f;

    (void)state;
    start_shadow(&f);
    assert_int_equal(vfuc_iommu_map(f.domain, 0, RAM, PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_attach(f.iommu, 1, f.domain), 0);
    fake_server_refuse(&f.server, UNMAP, EPERM);
    assert_fails(vfuc_iommu_attach(f.iommu, ME, NULL), EPROTO);
    assert_fails(vfuc_iommu_unmap(f.domain, 0, PAGE), EIO);
    fake_server_clear(&f.server);
    fake_server_refuse(&f.server, 0, 0);
    assert_int_equal(vfuc_iommu_reconnect(f.iommu), 0);
    assert_false(vfuc_iommu_isolated(f.iommu));
    assert_int_equal(fake_server_count(&f.server, MAP), 0);
    fixture_end(&f);
}

/* A descriptor that was closed may be another file by now. */
static void test_removed_memory_does_not_come_back(void **state)
{
    static const char *const versions[] = { FULL_VERSION, VERSION(PASID_CAPS) };
    vfuc_iommu_memory_t extra = { .address = RAM + GIB, .size = PAGE, .prot = PROT_READ };
    struct fixture f;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        fixture_start(&f, versions[i], NULL);
        extra.fd = f.fd;
        assert_int_equal(vfuc_iommu_add_memory(f.iommu, &extra), 0);
        assert_int_equal(vfuc_iommu_map(f.domain, 0, RAM + GIB, PAGE, R), 0);
        fake_server_refuse(&f.server, UNMAP, EPERM);
        assert_fails(vfuc_iommu_remove_memory(f.iommu, RAM + GIB), EPROTO);
        fake_server_refuse(&f.server, 0, 0);
        fake_server_clear(&f.server);
        assert_int_equal(vfuc_iommu_reconnect(f.iommu), 0);
        assert_int_equal(fake_server_count(&f.server, MAP), i == 0);
        fixture_end(&f);
    }
}

/* Threads */

struct caller {
    struct fixture *f;
    pthread_t thread;
    int (*call)(struct fixture *f);
    int result;
    atomic_bool done;
};

static void *run_call(void *arg)
{
    struct caller *caller = arg;

    caller->result = caller->call(caller->f);
    atomic_store(&caller->done, true);
    return NULL;
}

static void begin(struct caller *caller, struct fixture *f, int (*call)(struct fixture *f))
{
    *caller = (struct caller){ .f = f, .call = call };
    assert_int_equal(pthread_create(&caller->thread, NULL, run_call, caller), 0);
}

static void finish(struct caller *caller)
{
    pthread_join(caller->thread, NULL);
    assert_int_equal(caller->result, 0);
}

static int detach(struct fixture *f)
{
    return vfuc_iommu_attach(f->iommu, ME, NULL);
}

static int take_stage2(struct fixture *f)
{
    return vfuc_iommu_domain_set_stage2(f->domain, NULL);
}

static vfuc_iommu_domain_t *below;

static int unmap_below(struct fixture *f)
{
    (void)f;
    return vfuc_iommu_unmap(below, 0, PAGE);
}

static bool is_unmapped(vfuc_iommu_domain_t *domain)
{
    return vfuc_iommu_map(domain, 0, RAM, PAGE, R) == 0;
}

/*
 * What leaves the device along with its domain has left it when that is done, whoever asks: a page
 * of the domain is unmapped while the device is still told of the domain.
 */
static void check_leaves_along(struct fixture *f, int (*leave)(struct fixture *f))
{
    struct caller leaving, unmapping;

    fake_server_clear(&f->server);
    fake_server_hold(&f->server, INVALIDATE);
    begin(&leaving, f, leave);
    fake_server_wait(&f->server, INVALIDATE, 1);
    begin(&unmapping, f, unmap_below);
    while (!is_unmapped(below)) {
        sched_yield();
    }
    for (int i = 0; i < 1000; i++) {
        sched_yield();
        assert_false(atomic_load(&unmapping.done));
    }
    fake_server_hold(&f->server, 0);
    finish(&leaving);
    finish(&unmapping);
}

static void test_leaves_along(void **state)
{
    struct fixture f;

    (void)state;
    start_ats(&f);
    below = f.domain;
    assert_int_equal(vfuc_iommu_map(f.domain, 0, RAM, PAGE, RW), 0);
    check_leaves_along(&f, detach);
    fixture_end(&f);

    start_ats(&f);
    below = vfuc_iommu_domain_create(f.iommu);
    assert_int_equal(vfuc_iommu_domain_set_stage2(f.domain, below), 0);
    assert_int_equal(vfuc_iommu_map(below, 0, RAM, PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_map(f.domain, 0, 0, PAGE, RW), 0);
    check_leaves_along(&f, take_stage2);
    fixture_end(&f);
}

static int evict(struct fixture *f)
{
    return vfuc_iommu_evict(f->iommu, 1, f->ram, PAGE);
}

/* Who finds a page evicted by another thread has to wait for the device as that does. */
static void test_evicted_by_another(void **state)
{
    struct caller first, second;
    struct fixture f;

    (void)state;
    start_ats(&f);
    assert_int_equal(vfuc_iommu_bind_process(f.iommu, 1, f.ram, PAGE, PROT_READ), 0);
    fake_server_hold(&f.server, INVALIDATE);
    begin(&first, &f, evict);
    fake_server_wait(&f.server, INVALIDATE, 1);
    begin(&second, &f, evict);
    fake_server_wait(&f.server, INVALIDATE, 2);
    assert_false(atomic_load(&second.done));
    fake_server_hold(&f.server, 0);
    finish(&first);
    finish(&second);

    fake_server_refuse(&f.server, INVALIDATE, EPERM);
    assert_fails(evict(&f), EPROTO);
    assert_fails(evict(&f), EIO);
    fixture_end(&f);
}

/* Pages are evicted while the process is unbound, and bound again. */
static void *keep_evicting(void *arg)
{
    struct caller *caller = arg;

    while (!atomic_load(&caller->done)) {
        caller->result |= evict(caller->f) < 0 && errno != ENOENT;
        fake_server_clear(&caller->f->server); /* it has room for so many */
    }
    return NULL;
}

static void test_evicted_while_unbound(void **state)
{
    struct caller evictor;
    struct fixture f;

    (void)state;
    start_ats(&f);
    evictor = (struct caller){ .f = &f };
    assert_int_equal(pthread_create(&evictor.thread, NULL, keep_evicting, &evictor), 0);
    for (int i = 0; i < 300; i++) {
        assert_int_equal(vfuc_iommu_bind_process(f.iommu, 1, f.ram, PAGE, PROT_READ), 0);
        sched_yield();
        assert_int_equal(vfuc_iommu_unbind_process(f.iommu, 1), 0);
    }
    assert_fails(vfuc_iommu_unbind_process(f.iommu, 1), ENOENT);
    atomic_store(&evictor.done, true);
    finish(&evictor);
    fixture_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_restricted_beside_its_like),
        cmocka_unit_test(test_claims_to_have_gone),
        cmocka_unit_test(test_kept_after_detach),
        cmocka_unit_test(test_kept_does_not_come_back),
        cmocka_unit_test(test_removed_memory_does_not_come_back),
        cmocka_unit_test(test_leaves_along),
        cmocka_unit_test(test_evicted_by_another),
        cmocka_unit_test(test_evicted_while_unbound),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
