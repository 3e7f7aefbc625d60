/* SPDX-License-Identifier: BSD-3-Clause */
/* Configuration space: header registers, capability lists, and the registers of PRI. */
#include "device/pci_config.h"
#include "pci_caps/ats.h"
#include "pci_caps/pri.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct logger quiet;
static unsigned resets, pri_resets, changes;

static ssize_t device_access(void *owner, char *buf, size_t count, uint64_t offset, bool is_write)
{
    (void)owner;
    (void)buf;
    (void)count;
    (void)offset;
    (void)is_write;
    return -EIO;
}

static bool has_device_access(void *owner)
{
    return owner != NULL;
}

static int reset_function(void *owner)
{
    (void)owner;
    resets++;
    return 0;
}

static void msix_changed(void *owner, bool enabled, bool masked)
{
    (void)owner;
    (void)enabled;
    (void)masked;
}

static void iommu_changed(void *owner)
{
    (void)owner;
    changes++;
}

static void pri_reset(void *owner)
{
    (void)owner;
    pri_resets++;
}

static const struct pci_config_ops ops = {
    .device_access = device_access,
    .has_device_access = has_device_access,
    .reset_function = reset_function,
    .msix_changed = msix_changed,
    .iommu_changed = iommu_changed,
    .pri_reset = pri_reset,
};

static int setup(void **state)
{
    static struct pci_config pci;

    pci = (struct pci_config){ .log = &quiet, .ops = &ops };
    pci.bars[0] = (struct pci_bar){ .size = 0x1000, .flags = VFU_REGION_FLAG_MEM };
    pci.bars[2] = (struct pci_bar){
        .size = 1ull << 33,
        .flags = VFU_REGION_FLAG_MEM | VFU_REGION_FLAG_64_BITS | VFU_REGION_FLAG_PREFETCH,
    };
    assert_int_equal(pci_config_init(&pci, VFU_PCI_TYPE_EXPRESS, 0), 0);
    assert_int_equal(pci_config_realize(&pci, 0, true), 0);
    resets = pri_resets = changes = 0;
    *state = &pci;
    return 0;
}

static int teardown(void **state)
{
    pci_config_destroy(*state);
    return 0;
}

static int put(struct pci_config *pci, uint64_t offset, uint32_t value, size_t count)
{
    char buf[4];
    ssize_t n;

    memcpy(buf, &value, sizeof(buf));
    n = pci_config_access(pci, buf, count, offset, true);
    return n < 0 ? (int)n : 0;
}

static uint32_t get(struct pci_config *pci, uint64_t offset, size_t count)
{
    uint32_t value = 0;

    assert_int_equal(pci_config_access(pci, (char *)&value, count, offset, false), count);
    return value;
}

static void test_header_writes(void **state)
{
    static const struct {
        uint64_t offset;
        uint32_t value;
        size_t count;
        int err;
        uint32_t after;
    } table[] = {
        { PCI_VENDOR_ID, 1, 4, -EINVAL, 0 },
        { PCI_COMMAND, 0x0547, 2, -EINVAL, 0 },
        { PCI_COMMAND, 0x0406, 2, 0, 0x0406 },
        { PCI_COMMAND, 0x07, 1, 0, 0x0407 }, /* the other byte keeps its value */
        { PCI_STATUS, 0xffff, 2, 0, 0 },
        { PCI_REVISION_ID, 9, 1, 0, 0 },
        { PCI_CACHE_LINE_SIZE, 0x10, 1, 0, 0x10 },
        { PCI_LATENCY_TIMER, 0x20, 1, 0, 0x20 },
        { PCI_HEADER_TYPE, 1, 1, -EINVAL, 0 },
        { PCI_BIST, 1, 1, -EINVAL, 0 },
        { PCI_BASE_ADDRESS_0, 0xffffffff, 4, 0, 0xfffff000 },
        { PCI_BASE_ADDRESS_1, 0xffffffff, 4, 0, 1 }, /* unused: only the type bit */
        { PCI_BASE_ADDRESS_2, 0xffffffff, 4, 0, 0xc },
        { PCI_BASE_ADDRESS_3, 0xffffffff, 4, 0, 0xfffffffe },
        { PCI_CARDBUS_CIS, 1, 4, -EINVAL, 0 },
        { PCI_SUBSYSTEM_VENDOR_ID, 1, 4, -EINVAL, 0 },
        { PCI_ROM_ADDRESS, 0xfffff800, 4, 0, 0 },
        { PCI_ROM_ADDRESS, 0x1000, 4, -EINVAL, 0 },
        { PCI_CAPABILITY_LIST, 1, 1, -EINVAL, 0 },
        { PCI_INTERRUPT_LINE, 11, 1, 0, 11 },
        { PCI_INTERRUPT_PIN, 2, 1, 0, 1 },
        { 0x35, 1, 1, -EINVAL, 0 },
        { 0x11, 1, 1, -EINVAL, 0 }, /* within a register */
    };
    struct pci_config *pci = *state;

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        assert_int_equal(put(pci, table[i].offset, table[i].value, table[i].count), table[i].err);
        if (table[i].err == 0) {
            size_t count = table[i].offset == PCI_COMMAND ? 2 : table[i].count;

            assert_int_equal(get(pci, table[i].offset, count), table[i].after);
        }
    }
}

static void test_capability_placement(void **state)
{
    struct pci_config *pci = *state;
    struct pmcap pm = { .hdr = { .id = PCI_CAP_ID_PM, .next = 0x77 } };
    struct msicap msi = { .hdr = { .id = PCI_CAP_ID_MSI } };
    struct cap_hdr unknown = { .id = 0x42 };
    struct dsncap dsn = { .hdr = { .id = PCI_EXT_CAP_ID_DSN, .version = 1 } };

    assert_int_equal(pci_config_add_capability(pci, 0, 8, &pm), -EINVAL);
    assert_int_equal(pci_config_add_capability(pci, 0, VFU_CAP_FLAG_CALLBACK, &pm), -EINVAL);
    assert_int_equal(pci_config_add_capability(pci, 0, 0, &unknown), -ENOTSUP);
    assert_int_equal(pci_config_add_capability(pci, 0x20, 0, &pm), -EINVAL);
    assert_int_equal(pci_config_add_capability(pci, 0xffff, 0, &pm), -EINVAL);
    assert_int_equal(pci_config_add_capability(pci, 0, 0, &pm), 0x40);
    assert_int_equal(pci_config_add_capability(pci, 0x44, 0, &msi), -EINVAL);
    assert_int_equal(pci_config_add_capability(pci, 0x48, 0, &msi), -EINVAL); /* touches */
    assert_int_equal(pci_config_add_capability(pci, 0, 0, &msi), 0x48);
    assert_int_equal(get(pci, 0x40, 2), PCI_CAP_ID_PM | 0x48 << 8);
    assert_int_equal(get(pci, 0x48, 2), PCI_CAP_ID_MSI);
    assert_int_equal(get(pci, PCI_CAPABILITY_LIST, 1), 0x40);
    assert_int_equal(pci_config_add_capability(pci, 0x200, VFU_CAP_FLAG_EXTENDED, &dsn), -EINVAL);
    assert_int_equal(pci_config_add_capability(pci, 0, VFU_CAP_FLAG_EXTENDED, &dsn), 0x100);
    assert_int_equal(pci_config_find_capability(pci, false, 0, PCI_CAP_ID_MSI), 0x48);
    assert_int_equal(pci_config_find_capability(pci, false, 0x48, PCI_CAP_ID_MSI), -ENOENT);
    assert_int_equal(pci_config_find_capability(pci, true, 0, PCI_EXT_CAP_ID_DSN), 0x100);
    assert_int_equal(pci_config_find_capability(pci, true, 0x100, PCI_EXT_CAP_ID_DSN), -ENOENT);
    assert_int_equal(pci_config_find_capability(pci, true, 4096, PCI_EXT_CAP_ID_DSN), -EINVAL);
    assert_int_equal(put(pci, 0x40, 0, 1), -EPERM);
    assert_int_equal(put(pci, 0x44, 0x103, 2), 0);
    assert_int_equal(get(pci, 0x44, 2), 0x103);
    assert_int_equal(put(pci, 0x42, 0, 2), -ENOTSUP);
    assert_int_equal(put(pci, 0x104, 0, 4), -EPERM);
}

static void test_function_level_reset(void **state)
{
    struct pci_config *pci = *state;
    struct pxcap px = { .hdr = { .id = PCI_CAP_ID_EXP }, .pxdcap = { .flrc = 1 } };
    ssize_t pos = pci_config_add_capability(pci, 0, 0, &px);

    assert_true(pos > 0);
    assert_true(pci_config_is_device_control(pci, (uint64_t)pos + 8));
    assert_false(pci_config_is_device_control(pci, (uint64_t)pos + 10));
    assert_int_equal(put(pci, (uint64_t)pos + 8, 0x8010, 2), 0);
    assert_int_equal(resets, 1);
    assert_int_equal(get(pci, (uint64_t)pos + 8, 2), 0x0010);
    assert_int_equal(put(pci, (uint64_t)pos + 8, 0, 4), -EINVAL);
}

#define CONTROL 0x104
#define STATUS 0x106
#define ALLOCATION 0x10c
#define STOPPED 0x100

static void test_pri_registers(void **state)
{
    struct pci_config *pci = *state;
    struct pricap cap = {
        .hdr = { .id = PCI_EXT_CAP_ID_PRI, .version = 1 },
        .prists = { .stopped = 1 },
        .capacity = 64,
    };

    assert_int_equal(pci_config_add_capability(pci, 0, VFU_CAP_FLAG_EXTENDED, &cap), 0x100);
    assert_int_equal(put(pci, ALLOCATION, 32, 4), 0);
    assert_int_equal(put(pci, CONTROL, 1, 2), 0);
    assert_int_equal(get(pci, STATUS, 2), 0);
    assert_int_equal(put(pci, ALLOCATION, 16, 4), 0);
    assert_int_equal(get(pci, ALLOCATION, 4), 32); /* fixed while enabled */
    assert_int_equal(put(pci, CONTROL, 3, 2), 0);
    assert_int_equal(pri_resets, 0); /* no reset while enabled */
    pci_pri_event(pci, PCI_PRI_RESPONSE_FAILURE);
    pci_pri_event(pci, PCI_PRI_UNEXPECTED_GROUP);
    assert_int_equal(get(pci, STATUS, 2), 3);
    assert_int_equal(put(pci, CONTROL, 1, 2), 0);
    assert_int_equal(get(pci, STATUS, 2), 3); /* the status half was not written */
    assert_int_equal(put(pci, STATUS, 1, 1), 0);
    assert_int_equal(get(pci, STATUS, 2), 2);
    assert_int_equal(put(pci, CONTROL, 0, 2), 0);
    assert_int_equal(get(pci, STATUS, 2), 2 | STOPPED);
    assert_int_equal(put(pci, CONTROL, 2, 2), 0);
    assert_int_equal(pri_resets, 1);
    assert_int_equal(get(pci, CONTROL, 2), 0);
    assert_int_equal(put(pci, CONTROL, 1, 2), 0);
    assert_int_equal(get(pci, STATUS, 2), 0);
    pci_iommu_reset(pci);
    assert_int_equal(get(pci, CONTROL, 4), STOPPED << 16);
    assert_int_equal(get(pci, ALLOCATION, 4), 0);
    assert_int_equal(changes, 3);
}

static void test_random_accesses(void **state)
{
    struct pci_config *pci = *state;
    struct msicap msi = { .hdr = { .id = PCI_CAP_ID_MSI } };
    struct atscap ats = { .hdr = { .id = PCI_EXT_CAP_ID_ATS, .version = 1 } };
    char buf[64];

    srand(1);
    pci_config_add_capability(pci, 0, 0, &msi);
    pci_config_add_capability(pci, 0, VFU_CAP_FLAG_EXTENDED, &ats);
    for (int i = 0; i < 100000; i++) {
        size_t count = 1 + (size_t)rand() % sizeof(buf);

        memset(buf, rand(), sizeof(buf));
        pci_config_access(pci, buf, count, (uint64_t)rand() % (4096 - count + 1), rand() % 2);
    }
    assert_int_equal(get(pci, PCI_VENDOR_ID, 4), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_header_writes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_capability_placement, setup, teardown),
        cmocka_unit_test_setup_teardown(test_function_level_reset, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pri_registers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_random_accesses, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
