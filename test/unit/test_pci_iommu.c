/* SPDX-License-Identifier: BSD-3-Clause */
/* The registers of ATS, PRI and PASID: PCIe 10.5.1, 10.5.2, 7.8.9. */
#include "pci_fixture.h"

#define ATS 0x100
#define ATS_CONTROL (ATS + 6)
#define PRI 0x108
#define PRI_CONTROL (PRI + 4)
#define PRI_STATUS (PRI + 6)
#define PRI_CAPACITY (PRI + 8)
#define PRI_ALLOCATION (PRI + 12)
#define PASID 0x118
#define PASID_CONTROL (PASID + 6)

#define E 0x8000u /* ATS enable */
#define STU(n) (n)
#define RF 1u
#define UPRGI 2u
#define STOPPED 0x100u
#define PASID_REQUIRED 0x8000u

static const struct atscap ats = {
    .hdr = { .id = PCI_EXT_CAP_ID_ATS, .version = 1 }, .atsc = { .par = 1 }
};
static const struct pricap pri = {
    .hdr = { .id = PCI_EXT_CAP_ID_PRI, .version = 1 }, .prists = { .prpr = 1 }, .capacity = 64
};
static const struct pasidcap pasid = {
    .hdr = { .id = PCI_EXT_CAP_ID_PASID, .version = 1 },
    .pasidc = { .eps = 1, .pms = 1, .width = 20 }
};

static struct pci_device *device_with(const void *a, const void *b, const void *c)
{
    struct pci_device *dev = new_device(VFU_PCI_TYPE_EXPRESS);

    assert_int_equal(add(dev, 0, VFU_CAP_FLAG_EXTENDED, a), ATS);
    assert_int_equal(add(dev, 0, VFU_CAP_FLAG_EXTENDED, b), PRI);
    assert_int_equal(add(dev, 0, VFU_CAP_FLAG_EXTENDED, c), PASID);
    return dev;
}

static int set_up(void **state)
{
    *state = device_with(&ats, &pri, &pasid);
    return 0;
}

static int tear_down(void **state)
{
    free_device(*state);
    return 0;
}

static void check_defaults(struct pci_device *dev)
{
    assert_int_equal(get(dev, ATS + 4, 4), 0x20);
    assert_int_equal(get(dev, PRI_CONTROL, 2), 0);
    assert_int_equal(get(dev, PRI_STATUS, 2), PASID_REQUIRED | STOPPED);
    assert_int_equal(get(dev, PRI_CAPACITY, 4), 64);
    assert_int_equal(get(dev, PRI_ALLOCATION, 4), 0);
    assert_int_equal(get(dev, PASID + 4, 4), 0x1406);
}

static void test_defaults(void **state)
{
    check_defaults(*state);
}

/* Whatever control and status the device's structures hold, they begin as after a reset. */
static void test_defaults_of_careless_structures(void **state)
{
    struct atscap a = ats;
    struct pricap p = pri;
    struct pasidcap s = pasid;
    struct pci_device *dev;

    (void)state;
    a.atsctl.raw = 0xffff;
    p.prictl.raw = 0xffff;
    p.prists.raw = 0xfeff;
    p.allocation = 7;
    s.pasidctl.raw = 0xffff;
    dev = device_with(&a, &p, &s);
    check_defaults(dev);
    free_device(dev);
}

static void test_reset(void **state)
{
    struct pci_device *dev = *state;

    assert_int_equal(put(dev, PASID_CONTROL, 7, 2), 0);
    assert_int_equal(put(dev, ATS_CONTROL, E | STU(3), 2), 0);
    assert_int_equal(put(dev, PRI_ALLOCATION, 5, 4), 0);
    assert_int_equal(put(dev, PRI_CONTROL, 1, 2), 0);
    pci_pri_event(&dev->pci, PCI_PRI_RESPONSE_FAILURE);
    pci_pri_event(&dev->pci, PCI_PRI_UNEXPECTED_GROUP);
    pci_iommu_reset(&dev->pci);
    check_defaults(dev);
}

static void test_without_capabilities(void **state)
{
    struct pci_device *dev = new_device(VFU_PCI_TYPE_EXPRESS);
    struct pci_iommu_registers regs;

    (void)state;
    pci_iommu_read(&dev->pci, &regs);
    assert_false(regs.ats_enabled || regs.pasid_enabled || regs.pri_enabled);
    pci_pri_event(&dev->pci, PCI_PRI_STOPPED);
    pci_pri_stopping(&dev->pci);
    pci_iommu_reset(&dev->pci);
    free_device(dev);
}

/* A dword store over a read-only register must not fail, and changes nothing. */
static void test_read_only_registers(void **state)
{
    static const struct {
        uint64_t offset;
        size_t count;
    } table[] = {
        { ATS, 4 }, { ATS + 3, 1 }, { ATS + 4, 2 }, { ATS + 4, 1 }, { PRI + 3, 1 },
        { PRI_CAPACITY, 4 }, { PRI_CAPACITY + 1, 2 }, { PASID, 2 }, { PASID + 4, 2 },
        { PASID + 5, 1 },
    };
    struct pci_device *dev = *state;

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        uint32_t before = get(dev, table[i].offset, table[i].count);

        assert_int_equal(put(dev, table[i].offset, UINT32_MAX, table[i].count), 0);
        assert_int_equal(get(dev, table[i].offset, table[i].count), before);
    }
    assert_int_equal(dev->iommu_changes + dev->pri_resets, 0);
}

/* One write after the other: what the register then holds, and how often the change was told. */
struct step {
    uint64_t offset;
    size_t count;
    uint32_t value;
    uint32_t after; /* the 16-bit register at the offset's */
    unsigned changes;
};

static void check_steps(struct pci_device *dev, const struct step *steps, size_t nr)
{
    for (size_t i = 0; i < nr; i++) {
        const struct step *s = &steps[i];
        int err = put(dev, s->offset, s->value, s->count);
        uint32_t after = get(dev, s->offset & ~1ull, 2);

        if (err != 0 || after != s->after || dev->iommu_changes != s->changes) {
            fail_msg("step %zu: %d, register 0x%x, %u changes, instead of 0x%x, %u", i, err, after,
                     dev->iommu_changes, s->after, s->changes);
        }
    }
}

#define CHECK_STEPS(dev, steps) check_steps(dev, steps, sizeof(steps) / sizeof((steps)[0]))

static void test_ats_control(void **state)
{
    static const struct step steps[] = {
        { ATS_CONTROL, 2, 0x7fe0, 0, 0 }, /* reserved, and attributes that it has not */
        { ATS_CONTROL, 2, STU(31), STU(31), 1 }, /* every bit of the STU */
        { ATS_CONTROL, 2, STU(31), STU(31), 1 },
        { ATS_CONTROL, 1, STU(4), STU(4), 2 },
        { ATS_CONTROL + 1, 1, 0x80, E | STU(4), 3 },
        { ATS_CONTROL, 2, E | STU(5), E | STU(4), 3 }, /* fixed while enabled */
        { ATS_CONTROL, 1, STU(6), E | STU(4), 3 },
        { ATS_CONTROL, 2, STU(6), STU(6), 4 }, /* not while disabling */
        { ATS_CONTROL, 2, E | STU(1), E | STU(1), 5 }, /* nor while enabling */
        { ATS_CONTROL + 1, 1, 0, STU(1), 6 },
    };
    struct pci_device *dev = *state;
    struct pci_iommu_registers regs;

    CHECK_STEPS(dev, steps);
    assert_int_equal(put(dev, ATS + 4, (E | STU(2)) << 16 | 0xffff, 4), 0);
    assert_int_equal(get(dev, ATS + 4, 4), (E | STU(2)) << 16 | 0x20);
    pci_iommu_read(&dev->pci, &regs);
    assert_true(regs.ats_enabled);
    assert_int_equal(regs.stu, 14);
}

static void test_ats_memory_attributes(void **state)
{
    struct atscap with = ats;
    struct pci_device *dev;

    (void)state;
    with.atsc.amas = 1;
    dev = device_with(&with, &pri, &pasid);
    assert_int_equal(put(dev, ATS_CONTROL, 0xffff, 2), 0);
    assert_int_equal(get(dev, ATS_CONTROL, 2), 0xf81f);
    free_device(dev);
}

static void test_pasid_control(void **state)
{
    static const struct step steps[] = {
        { PASID_CONTROL, 2, 0xfff8, 0, 0 },
        { PASID_CONTROL, 2, 7, 7, 1 },
        { PASID_CONTROL + 1, 1, 0xff, 7, 1 },
        { PASID_CONTROL, 1, 1, 1, 2 },
        { ATS_CONTROL, 2, E, E, 3 },
        { PASID_CONTROL, 2, 0, 1, 3 }, /* fixed while ATS is enabled */
        { PASID_CONTROL, 2, 3, 1, 3 },
        { PASID_CONTROL, 2, 1, 1, 3 },
        { ATS_CONTROL, 2, 0, 0, 4 },
        { PASID_CONTROL, 2, 5, 5, 5 },
    };
    struct pci_device *dev = *state;
    struct pci_iommu_registers regs;

    CHECK_STEPS(dev, steps);
    pci_iommu_read(&dev->pci, &regs);
    assert_true(regs.pasid_enabled && regs.priv_enabled && !regs.exec_enabled);
}

static void test_pasid_permissions_follow_the_capability(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 8; bits++) {
        struct pasidcap cap = pasid;
        struct pci_device *dev;

        cap.pasidc.eps = bits & 1;
        cap.pasidc.pms = bits >> 1 & 1;
        cap.pasidc.trps = bits >> 2 & 1;
        dev = device_with(&ats, &pri, &cap);
        assert_int_equal(put(dev, PASID_CONTROL, 0xffff, 2), 0);
        assert_int_equal(get(dev, PASID_CONTROL, 2), 1 | bits << 1);
        free_device(dev);
    }
}

/* PRI */

static void enable(struct pci_device *dev, uint32_t allocation)
{
    assert_int_equal(put(dev, PRI_ALLOCATION, allocation, 4), 0);
    assert_int_equal(put(dev, PRI_CONTROL, 1, 2), 0);
}

static uint32_t status(struct pci_device *dev)
{
    return get(dev, PRI_STATUS, 2) & ~PASID_REQUIRED;
}

static void test_pri_control(void **state)
{
    static const struct step steps[] = {
        { PRI_CONTROL, 2, 0xfffc, 0, 0 },
        { PRI_CONTROL + 1, 1, 0xff, 0, 0 },
        { PRI_CONTROL, 2, 1, 1, 1 },
        { PRI_CONTROL, 1, 1, 1, 1 },
        { PRI_CONTROL + 1, 1, 0, 1, 1 },
        { PRI_CONTROL, 1, 0, 0, 2 },
    };
    struct pci_device *dev = *state;

    CHECK_STEPS(dev, steps);
    assert_int_equal(dev->pri_resets, 0);
}

static void test_pri_status_clears_what_is_written(void **state)
{
    struct pci_device *dev = *state;

    enable(dev, 1);
    pci_pri_event(&dev->pci, PCI_PRI_RESPONSE_FAILURE);
    pci_pri_event(&dev->pci, PCI_PRI_UNEXPECTED_GROUP);
    assert_int_equal(status(dev), RF | UPRGI);
    assert_int_equal(put(dev, PRI_CONTROL, 1, 2), 0); /* the other half */
    assert_int_equal(put(dev, PRI_CONTROL, 0xff, 1), 0);
    assert_int_equal(put(dev, PRI_STATUS, 0, 2), 0);
    assert_int_equal(put(dev, PRI_STATUS + 1, 0xff, 1), 0);
    assert_int_equal(put(dev, PRI_CAPACITY, UINT32_MAX, 4), 0);
    assert_int_equal(status(dev), RF | UPRGI);
    assert_int_equal(put(dev, PRI_STATUS, RF, 1), 0);
    assert_int_equal(status(dev), UPRGI);
    assert_int_equal(put(dev, PRI_CONTROL, UPRGI << 16 | 1, 4), 0); /* one store over both */
    assert_int_equal(status(dev), 0);
    assert_int_equal(get(dev, PRI_CONTROL, 2), 1);
    assert_int_equal(get(dev, PRI_STATUS, 2), PASID_REQUIRED);
}

static void test_pri_enabling_clears_status(void **state)
{
    struct pci_device *dev = *state;

    enable(dev, 1);
    pci_pri_event(&dev->pci, PCI_PRI_RESPONSE_FAILURE);
    pci_pri_event(&dev->pci, PCI_PRI_UNEXPECTED_GROUP);
    assert_int_equal(put(dev, PRI_CONTROL, 0, 2), 0);
    assert_int_equal(status(dev), RF | UPRGI | STOPPED);
    assert_int_equal(put(dev, PRI_CONTROL, 1, 2), 0);
    assert_int_equal(status(dev), 0);
    assert_int_equal(dev->pri_resets, 0);
}

static void test_pri_allocation(void **state)
{
    struct pci_device *dev = *state;
    struct pci_iommu_registers regs;

    assert_int_equal(put(dev, PRI_ALLOCATION, UINT32_MAX, 4), 0);
    assert_int_equal(put(dev, PRI_ALLOCATION + 1, 0, 1), 0);
    assert_int_equal(get(dev, PRI_ALLOCATION, 4), 0xffff00ff);
    pci_iommu_read(&dev->pci, &regs);
    assert_int_equal(regs.pri_allocation, 64); /* no more than the capacity */
    enable(dev, 20);
    assert_int_equal(put(dev, PRI_ALLOCATION, 21, 4), 0);
    assert_int_equal(put(dev, PRI_ALLOCATION, 22, 1), 0);
    assert_int_equal(get(dev, PRI_ALLOCATION, 4), 20);
    pci_iommu_read(&dev->pci, &regs);
    assert_true(regs.pri_enabled);
    assert_int_equal(regs.pri_allocation, 20);
    assert_int_equal(put(dev, PRI_CONTROL, 0, 2), 0);
    assert_int_equal(put(dev, PRI_ALLOCATION, 3, 4), 0);
    assert_int_equal(get(dev, PRI_ALLOCATION, 4), 3);
}

static void test_pri_reset(void **state)
{
    static const struct {
        uint32_t before, write;
        unsigned resets;
    } table[] = {
        { 0, 2, 1 }, /* disabled */
        { 1, 2, 1 }, /* disabled by the same write */
        { 1, 3, 0 }, /* stays enabled */
        { 0, 3, 0 }, /* enabled by the same write */
        { 1, 0, 0 },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        struct pci_device *dev = device_with(&ats, &pri, &pasid);

        assert_int_equal(put(dev, PRI_CONTROL, table[i].before, 2), 0);
        assert_int_equal(put(dev, PRI_CONTROL, table[i].write, 2), 0);
        assert_int_equal(dev->pri_resets, table[i].resets);
        assert_int_equal(get(dev, PRI_CONTROL, 2), table[i].write & 1);
        assert_int_equal(status(dev), table[i].write & 1 ? 0 : STOPPED);
        free_device(dev);
    }
}

/* Disabled with requests outstanding. */
static struct pci_device *stopping(void)
{
    struct pci_device *dev = device_with(&ats, &pri, &pasid);

    enable(dev, 8);
    assert_int_equal(put(dev, PRI_CONTROL, 0, 2), 0);
    pci_pri_stopping(&dev->pci);
    assert_int_equal(status(dev), 0);
    return dev;
}

static void test_pri_stopping(void **state)
{
    struct pci_device *dev;

    (void)state;
    dev = stopping();
    pci_pri_event(&dev->pci, PCI_PRI_UNEXPECTED_GROUP);
    assert_int_equal(status(dev), UPRGI);
    pci_pri_event(&dev->pci, PCI_PRI_STOPPED); /* the last response */
    assert_int_equal(status(dev), UPRGI | STOPPED);
    free_device(dev);

    dev = stopping();
    pci_pri_event(&dev->pci, PCI_PRI_RESPONSE_FAILURE);
    assert_int_equal(status(dev), RF | STOPPED);
    free_device(dev);

    dev = stopping();
    assert_int_equal(put(dev, PRI_CONTROL, 2, 1), 0);
    assert_int_equal(dev->pri_resets, 1);
    assert_int_equal(status(dev), STOPPED);
    free_device(dev);

    dev = stopping(); /* enabled again: what is outstanding is forgotten first */
    assert_int_equal(put(dev, PRI_CONTROL, 1, 1), 0);
    assert_int_equal(dev->pri_resets, 1);
    assert_int_equal(status(dev), 0);
    free_device(dev);
}

static void test_pri_events_while_enabled(void **state)
{
    struct pci_device *dev = *state;

    enable(dev, 1);
    pci_pri_event(&dev->pci, PCI_PRI_STOPPED); /* late: it was enabled meanwhile */
    assert_int_equal(status(dev), 0);
    pci_pri_event(&dev->pci, PCI_PRI_RESPONSE_FAILURE);
    assert_int_equal(status(dev), RF);
    assert_int_equal(get(dev, PRI_CONTROL, 2), 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_defaults),
        cmocka_unit_test(test_defaults_of_careless_structures),
        TEST(test_reset),
        cmocka_unit_test(test_without_capabilities),
        TEST(test_read_only_registers),
        TEST(test_ats_control),
        cmocka_unit_test(test_ats_memory_attributes),
        TEST(test_pasid_control),
        cmocka_unit_test(test_pasid_permissions_follow_the_capability),
        TEST(test_pri_control),
        TEST(test_pri_status_clears_what_is_written),
        TEST(test_pri_enabling_clears_status),
        TEST(test_pri_allocation),
        cmocka_unit_test(test_pri_reset),
        cmocka_unit_test(test_pri_stopping),
        TEST(test_pri_events_while_enabled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
