/* SPDX-License-Identifier: BSD-3-Clause */
/* Configuration space: what a write does to the header, and what a reset does to every register. */
#include "pci_fixture.h"

#define EXTENDED VFU_CAP_FLAG_EXTENDED

static void realize(struct pci_device *dev)
{
    dev->pci.bars[0] = (struct pci_bar){ .size = 0x1000, .flags = VFU_REGION_FLAG_MEM };
    dev->pci.bars[2] = (struct pci_bar){
        .size = 1ull << 33,
        .flags = VFU_REGION_FLAG_MEM | VFU_REGION_FLAG_64_BITS | VFU_REGION_FLAG_PREFETCH,
    };
    dev->pci.rom_size = 0x1800;
    assert_int_equal(pci_config_realize(&dev->pci, 0, true), 0);
}

static int set_up(void **state)
{
    struct pci_device *dev = new_device(VFU_PCI_TYPE_EXPRESS);

    realize(dev);
    *state = dev;
    return 0;
}

static int tear_down(void **state)
{
    free_device(*state);
    return 0;
}

/* Every write completes, and changes the bits that a guest may change (PCI 6.1, 6.2). */
static void test_header_writes(void **state)
{
    static const struct {
        uint64_t offset;
        uint32_t value;
        size_t count;
        uint32_t after;
    } table[] = {
        { PCI_VENDOR_ID, 1, 4, 0 },
        { PCI_COMMAND, 0xffff, 2, 0x0557 },
        { PCI_COMMAND, 0x0406, 2, 0x0406 },
        { PCI_COMMAND, 0x07, 1, 0x07 }, /* the other byte... */
        { PCI_COMMAND + 1, 0x01, 1, 0x01 },
        { PCI_COMMAND, 0xf9000507, 4, 0x0507 }, /* ...and the status keep their value */
        { PCI_STATUS, 0xffff, 2, 0 },
        { PCI_REVISION_ID, 9, 1, 0 },
        { PCI_CACHE_LINE_SIZE, 0x10, 1, 0x10 },
        { PCI_LATENCY_TIMER, 0x20, 1, 0x20 },
        { PCI_CACHE_LINE_SIZE, 0x04030201, 4, 0x0201 },
        { PCI_HEADER_TYPE, 1, 1, 0 },
        { PCI_BIST, 1, 1, 0 },
        { PCI_BASE_ADDRESS_0, 0xffffffff, 4, 0xfffff000 },
        { PCI_BASE_ADDRESS_0 + 1, 0x12, 1, 0x10 }, /* within a register */
        { PCI_BASE_ADDRESS_0 + 2, 0xffff0000, 4, 0x00010000 }, /* across two */
        { PCI_BASE_ADDRESS_1, 0xffffffff, 4, 1 }, /* unused: only the type bit */
        { PCI_BASE_ADDRESS_2, 0xffffffff, 4, 0xc },
        { PCI_BASE_ADDRESS_3, 0xffffffff, 4, 0xfffffffe },
        { PCI_CARDBUS_CIS, 1, 4, 0 },
        { PCI_SUBSYSTEM_VENDOR_ID, 1, 4, 0 },
        { PCI_ROM_ADDRESS, 0xffffffff, 4, 0xffffe001 }, /* 6 KiB take 8 */
        { PCI_CAPABILITY_LIST, 1, 4, 0 },
        { 0x35, 1, 1, 0 },
        { PCI_INTERRUPT_LINE, 0xffffff0b, 4, 0x010b },
        { PCI_INTERRUPT_PIN, 2, 1, 1 },
    };
    struct pci_device *dev = *state;

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        uint32_t after;

        assert_int_equal(put(dev, table[i].offset, table[i].value, table[i].count), 0);
        after = get(dev, table[i].offset, table[i].count);
        if (after != table[i].after) {
            fail_msg("write %zu: 0x%x instead of 0x%x", i, after, table[i].after);
        }
    }
}

static void test_status_errors_clear_by_writing_1(void **state)
{
    struct pci_device *dev = *state;

    dev->pci.space->hdr.sts.raw = 0xf910;
    assert_int_equal(put(dev, PCI_STATUS, 0x8010, 2), 0);
    assert_int_equal(get(dev, PCI_STATUS, 2), 0x7910);
    assert_int_equal(put(dev, PCI_COMMAND, 0xff000000, 4), 0);
    assert_int_equal(get(dev, PCI_STATUS, 2), 0x0010);
}

/*
 * Resets. The device has set up something of its own in registers that a guest can change and in
 * those that it cannot, and has written some meanwhile.
 */

#define PM 0x40
#define MSI 0x48
#define MSIX 0x60
#define EXP 0x6c
#define VNDR 0xa8
#define ATS 0x100
#define PRI 0x108

static struct pci_device *device_with_everything(uint32_t max_payload, uint32_t speeds)
{
    const struct pmcap pm = { .hdr.id = PCI_CAP_ID_PM, .pc = { .vs = 3, .psup = 0x10 } };
    const struct msicap msi = { .hdr.id = PCI_CAP_ID_MSI, .mc = { .mmc = 5, .c64 = 1, .pvm = 1 } };
    const struct msixcap msix = { .hdr.id = PCI_CAP_ID_MSIX, .mxc.ts = 7 };
    const struct pxcap px = {
        .hdr.id = PCI_CAP_ID_EXP,
        .pxdcap = { .mps = max_payload & 7, .flrc = 1 },
        .pxdc.mrrs = 2,
        .pxlcap2.stuff = speeds,
    };
    const struct atscap ats = { .hdr = { .id = PCI_EXT_CAP_ID_ATS, .version = 1 } };
    const struct pricap pri = { .hdr = { .id = PCI_EXT_CAP_ID_PRI, .version = 1 }, .capacity = 8 };
    const uint8_t vendor[8] = { PCI_CAP_ID_VNDR, 0, 8, 1, 2, 3, 4, 5 };
    struct pci_device *dev = new_device(VFU_PCI_TYPE_EXPRESS);

    assert_int_equal(add(dev, 0, 0, &pm), PM);
    assert_int_equal(add(dev, 0, 0, &msi), MSI);
    assert_int_equal(add(dev, 0, 0, &msix), MSIX);
    assert_int_equal(add(dev, 0, 0, &px), EXP);
    assert_int_equal(add(dev, 0, 0, vendor), VNDR);
    assert_int_equal(add(dev, 0, EXTENDED, &ats), ATS);
    assert_int_equal(add(dev, 0, EXTENDED, &pri), PRI);
    dev->pci.space->hdr.id.vid = 0x1234;
    dev->pci.space->hdr.intr.iline = 0xff;
    realize(dev);
    return dev;
}

static void scribble(struct pci_device *dev)
{
    uint8_t all[PCI_CFG_SPACE_EXP_SIZE];

    memset(all, 0x5b, sizeof(all)); /* the byte with the function level reset is written below */
    assert_int_equal(pci_config_access(&dev->pci, (char *)all, sizeof(all), 0, true), sizeof(all));
    assert_int_equal(put(dev, EXP + 8, 0x7f7f, 2), 0);
    assert_int_equal(put(dev, EXP + 0x30, 0x0003, 2), 0);
    assert_int_equal(put(dev, PM + 4, 0x0103, 2), 0);
    assert_int_equal(put(dev, MSIX + 2, 0xc000, 2), 0);
    assert_int_equal(put(dev, ATS + 6, 0x8003, 2), 0);
    assert_int_equal(dev->resets, 0);
}

/* Of every byte, whatever capability it is in: nothing of what a guest wrote is left. */
static void test_conventional_reset(void **state)
{
    struct pci_device *dev = device_with_everything(2, 0x0e);
    uint8_t before[PCI_CFG_SPACE_EXP_SIZE], after[PCI_CFG_SPACE_EXP_SIZE];

    (void)state;
    memcpy(before, dev->pci.space, sizeof(before));
    scribble(dev);
    assert_memory_not_equal(dev->pci.space, before, sizeof(before));
    dev->pci.space->raw[0x50] = before[0x50];
    pci_config_reset(&dev->pci, PCI_RESET_CONVENTIONAL);
    memcpy(after, dev->pci.space, sizeof(after));
    assert_memory_equal(after, before, sizeof(before));
    assert_false(dev->msix_enabled || dev->msix_masked);
    free_device(dev);
}

/* What only the device changes is as it last wrote it; a late capability as it was added. */
static void test_reset_leaves_the_device_its_own(void **state)
{
    const struct dsncap dsn = { .hdr = { .id = PCI_EXT_CAP_ID_DSN, .version = 1 }, .sn_lo = 7 };
    const uint8_t late[8] = { PCI_CAP_ID_VNDR, 0, 8, 9, 9, 9, 9, 9 };
    struct pci_device *dev = device_with_everything(0, 0);
    size_t pos, vendor;

    (void)state;
    dev->pci.space->hdr.id.did = 0x4321;
    dev->pci.space->hdr.sts.is = 1;
    pos = (size_t)add(dev, 0, EXTENDED, &dsn);
    vendor = (size_t)add(dev, 0, 0, late);
    assert_int_equal(put(dev, vendor + 4, 0, 4), 0);
    pci_config_reset(&dev->pci, PCI_RESET_CONVENTIONAL);
    assert_int_equal(get(dev, PCI_VENDOR_ID, 4), 0x43211234);
    assert_int_equal(get(dev, PCI_STATUS, 2), 0x18);
    assert_int_equal(get(dev, pos + 4, 4), 7);
    assert_int_equal(get(dev, vendor + 4, 4), 0x09090909);
    free_device(dev);
}

/* PCIe 6.6.2: sticky bits and Max_Payload_Size stay, if the function has a choice there. */
static void test_function_level_reset(void **state)
{
    static const struct {
        uint32_t max_payload, speeds, control, link;
    } table[] = {
        { 0, 0x02, 0x2000, 0 },
        { 2, 0x02, 0x2060, 0 },
        { 2, 0x0e, 0x2060, 3 },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        struct pci_device *dev = device_with_everything(table[i].max_payload, table[i].speeds);

        scribble(dev);
        pci_config_reset(&dev->pci, PCI_RESET_FUNCTION);
        assert_int_equal(get(dev, EXP + 8, 2), table[i].control);
        assert_int_equal(get(dev, EXP + 0x28, 2), 0);
        assert_int_equal(get(dev, EXP + 0x30, 2), table[i].link);
        assert_int_equal(get(dev, PM + 4, 2), 0x0100); /* it wakes the system from D3cold */
        assert_int_equal(get(dev, PCI_COMMAND, 2), 0);
        assert_int_equal(get(dev, PCI_INTERRUPT_LINE, 1), 0xff);
        assert_int_equal(get(dev, MSI + 2, 2), 0x018a);
        assert_int_equal(get(dev, MSIX + 2, 2), 7);
        assert_int_equal(get(dev, VNDR + 4, 4), 0x05040302);
        assert_int_equal(get(dev, ATS + 6, 2), 0);
        free_device(dev);
    }
}

/* A write of any width, at every offset, does what its bytes would do one by one. */
static void test_widths(void **state)
{
    static const size_t widths[] = { 2, 3, 4, 8, 64 };
    static const uint8_t values[] = { 0xff, 0, 0x5a };
    struct pci_device *wide = device_with_everything(2, 2), *bytes = device_with_everything(2, 2);

    (void)state;
    for (size_t i = 0; i < sizeof(widths) * sizeof(values) / sizeof(widths[0]); i++) {
        size_t width = widths[i / sizeof(values)];
        char data[64];

        memset(data, values[i % sizeof(values)], sizeof(data));
        for (size_t at = 0; at + width <= PCI_CFG_SPACE_SIZE; at++) {
            assert_int_equal(pci_config_access(&wide->pci, data, width, at, true), width);
            for (size_t b = 0; b < width; b++) {
                assert_int_equal(pci_config_access(&bytes->pci, data, 1, at + b, true), 1);
            }
            assert_memory_equal(wide->pci.space, bytes->pci.space, PCI_CFG_SPACE_SIZE);
        }
    }
    assert_int_equal(wide->resets, bytes->resets);
    free_device(wide);
    free_device(bytes);
}

/* A capability that the device serves itself is the device's business. */
static void test_reset_of_a_callback_capability(void **state)
{
    const uint8_t vendor[8] = { PCI_CAP_ID_VNDR, 0, 8 };
    struct pci_device *dev = *state;
    size_t pos;

    dev->has_callback = true;
    pos = (size_t)add(dev, 0, VFU_CAP_FLAG_CALLBACK, vendor);
    dev->pci.space->raw[pos + 4] = 0x77;
    pci_config_reset(&dev->pci, PCI_RESET_CONVENTIONAL);
    assert_int_equal(dev->pci.space->raw[pos + 4], 0x77);
    assert_int_equal(dev->calls, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_header_writes),
        TEST(test_status_errors_clear_by_writing_1),
        cmocka_unit_test(test_conventional_reset),
        cmocka_unit_test(test_reset_leaves_the_device_its_own),
        cmocka_unit_test(test_function_level_reset),
        cmocka_unit_test(test_widths),
        TEST(test_reset_of_a_callback_capability),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
