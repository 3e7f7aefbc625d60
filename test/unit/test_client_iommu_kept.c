/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A server that does not let go, or says that it cannot: no call reports success while it can still
 * reach what was taken away, and nothing of that comes back with the next connection.
 */
#include "iommu_fixture.h"

#define INVALIDATE VFIO_USER_ATS_INVALIDATE

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_restricted_beside_its_like),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
