/* SPDX-License-Identifier: BSD-3-Clause */
/* Capabilities: where they go, how they are found, and what a guest may write in them. */
#include "pci_fixture.h"

#define EXTENDED VFU_CAP_FLAG_EXTENDED
#define CALLBACK VFU_CAP_FLAG_CALLBACK
#define READONLY VFU_CAP_FLAG_READONLY

static int set_up(void **state)
{
    *state = new_device(VFU_PCI_TYPE_EXPRESS);
    return 0;
}

static int set_up_conventional(void **state)
{
    *state = new_device(VFU_PCI_TYPE_CONVENTIONAL);
    return 0;
}

static int tear_down(void **state)
{
    free_device(*state);
    return 0;
}

static const void *vendor(uint8_t size)
{
    static uint8_t cap[256];

    memset(cap, 0, sizeof(cap));
    cap[0] = PCI_CAP_ID_VNDR;
    cap[2] = size;
    return cap;
}

static const void *extended_vendor(uint16_t size)
{
    static uint8_t cap[4096];
    struct pcie_ext_cap_vsc_hdr hdr = {
        .hdr = { .id = PCI_EXT_CAP_ID_VNDR, .version = 1 }, .len = size & 0xfff
    };

    memset(cap, 0x11, sizeof(cap));
    memcpy(cap, &hdr, sizeof(hdr));
    return cap;
}

static const void *dsn(void)
{
    static const struct dsncap cap = {
        .hdr = { .id = PCI_EXT_CAP_ID_DSN, .version = 1, .next = 0x777 }, .sn_lo = 1, .sn_hi = 2
    };

    return &cap;
}

/* Set-up and placement */

static void test_init(void **state)
{
    static const struct {
        int type, hdr_type, err;
        size_t size;
    } table[] = {
        { VFU_PCI_TYPE_CONVENTIONAL, 0, 0, 256 }, { VFU_PCI_TYPE_PCI_X_1, 0, 0, 256 },
        { VFU_PCI_TYPE_PCI_X_2, 0, 0, 4096 },     { VFU_PCI_TYPE_EXPRESS, 0, 0, 4096 },
        { VFU_PCI_TYPE_EXPRESS + 1, 0, -EINVAL, 0 }, { -1, 0, -EINVAL, 0 },
        { VFU_PCI_TYPE_EXPRESS, 1, -EINVAL, 0 },
    };
    const struct logger silent = { 0 };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        struct pci_config pci = { .log = &silent };

        assert_int_equal(pci_config_init(&pci, (vfu_pci_type_t)table[i].type, table[i].hdr_type),
                         table[i].err);
        assert_int_equal(pci.size, table[i].size);
        if (table[i].err == 0) {
            assert_int_equal(pci_config_init(&pci, VFU_PCI_TYPE_EXPRESS, 0), -EEXIST);
        }
        pci_config_destroy(&pci);
    }
}

static void test_realize(void **state)
{
    struct pci_device *dev = *state;

    dev->pci.bars[0] = (struct pci_bar){ 0x100, 0 };
    dev->pci.bars[1] = (struct pci_bar){ 0x1000, VFU_REGION_FLAG_MEM };
    dev->pci.bars[2] = (struct pci_bar){
        0x1000, VFU_REGION_FLAG_MEM | VFU_REGION_FLAG_64_BITS | VFU_REGION_FLAG_PREFETCH
    };
    dev->pci.bars[4] = (struct pci_bar){ 0x1000, VFU_REGION_FLAG_MEM | VFU_REGION_FLAG_PREFETCH };
    assert_int_equal(add(dev, 0, 0, bare(PCI_CAP_ID_PM)), 0x40);
    assert_int_equal(pci_config_realize(&dev->pci, 0, true), 0);
    assert_int_equal(get(dev, PCI_BASE_ADDRESS_0, 4), 1);
    assert_int_equal(get(dev, PCI_BASE_ADDRESS_1, 4), 0);
    assert_int_equal(get(dev, PCI_BASE_ADDRESS_2, 4), 0xc);
    assert_int_equal(get(dev, PCI_BASE_ADDRESS_3, 4), 0); /* 1 would be an address of 4 GiB */
    assert_int_equal(get(dev, PCI_BASE_ADDRESS_4, 4), 8);
    assert_int_equal(get(dev, PCI_INTERRUPT_PIN, 1), 1);
    assert_int_equal(get(dev, PCI_STATUS, 2), PCI_STATUS_CAP_LIST);
    assert_int_equal(put(dev, PCI_BASE_ADDRESS_2, UINT32_MAX, 4), 0);
    assert_int_equal(put(dev, PCI_BASE_ADDRESS_3, UINT32_MAX, 4), 0);
    assert_int_equal(get(dev, PCI_BASE_ADDRESS_2, 4), 0xfffff00c);
    assert_int_equal(get(dev, PCI_BASE_ADDRESS_3, 4), UINT32_MAX);
    assert_int_equal(put(dev, PCI_BASE_ADDRESS_0, UINT32_MAX, 4), 0);
    assert_int_equal(get(dev, PCI_BASE_ADDRESS_0, 4), 0xffffff01);
}

static void test_realize_without_init(void **state)
{
    const struct logger silent = { 0 };
    struct pci_config pci = { .log = &silent };

    (void)state;
    assert_int_equal(pci_config_add_capability(&pci, 0, 0, bare(PCI_CAP_ID_PM)), -EINVAL);
    assert_int_equal(pci_config_find_capability(&pci, false, 0, PCI_CAP_ID_PM), -EINVAL);
    assert_int_equal(pci_config_realize(&pci, 0, false), 0);
    assert_int_equal(pci.size, 256);
    assert_int_equal(pci.space->hdr.intr.ipin, 0);
    assert_int_equal(pci.space->hdr.sts.raw, 0);
    pci_config_destroy(&pci);
}

/* A device may add these bits itself; a driver's byte write must not fail for them. */
static void test_command_of_one_byte(void **state)
{
    struct pci_device *dev = *state;

    dev->pci.space->hdr.cmd.raw = PCI_COMMAND_FAST_BACK;
    assert_int_equal(put(dev, PCI_COMMAND, PCI_COMMAND_MASTER, 1), 0);
    assert_int_equal(get(dev, PCI_COMMAND, 1), PCI_COMMAND_MASTER);
}

static void test_placement_refused(void **state)
{
    struct pci_device *dev = *state;
    const struct {
        size_t pos;
        int flags;
        const void *cap;
        int err;
    } table[] = {
        { 0, 8, bare(PCI_CAP_ID_PM), -EINVAL },
        { 0, CALLBACK, bare(PCI_CAP_ID_PM), -EINVAL },
        { 0x3c, 0, bare(PCI_CAP_ID_PM), -EINVAL },
        { 0xfc, 0, bare(PCI_CAP_ID_PM), -EINVAL },
        { 0x100, 0, bare(PCI_CAP_ID_PM), -EINVAL },
        { 0x400, 0, bare(PCI_CAP_ID_PM), -EINVAL },
        { 4096, 0, bare(PCI_CAP_ID_PM), -EINVAL },
        { SIZE_MAX, 0, bare(PCI_CAP_ID_PM), -EINVAL },
        { SIZE_MAX - 3, 0, bare(PCI_CAP_ID_PM), -EINVAL },
        { 0x40, EXTENDED, dsn(), -EINVAL },
        { 0x104, EXTENDED, dsn(), -EINVAL }, /* the first is at 0x100 */
        { 4096 - 12, EXTENDED, dsn(), -EINVAL },
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        assert_int_equal(add(dev, table[i].pos, table[i].flags, table[i].cap), table[i].err);
    }
    assert_int_equal(add(dev, 0, 0, bare(0x02)), -ENOTSUP);
    assert_int_equal(add(dev, 0, EXTENDED, bare(0x01)), -ENOTSUP);
    assert_int_equal(add(dev, 0, 0, vendor(2)), -EINVAL); /* shorter than its own header */
    assert_int_equal(add(dev, 0, EXTENDED, extended_vendor(7)), -EINVAL);
    assert_int_equal(dev->pci.standard.nr + dev->pci.extended.nr, 0);
}

static void test_placement_explicit(void **state)
{
    struct pci_device *dev = *state;

    assert_int_equal(add(dev, 0x50, 0, bare(PCI_CAP_ID_PM)), 0x50);
    assert_int_equal(add(dev, 0x54, 0, bare(PCI_CAP_ID_PM)), -EINVAL); /* overlaps */
    assert_int_equal(add(dev, 0x58, 0, bare(PCI_CAP_ID_PM)), -EINVAL); /* touches */
    assert_int_equal(add(dev, 0x48, 0, bare(PCI_CAP_ID_PM)), -EINVAL); /* touches */
    assert_int_equal(add(dev, 0x59, 0, bare(PCI_CAP_ID_PM)), 0x59);
    assert_int_equal(add(dev, 0, 0, bare(PCI_CAP_ID_MSIX)), 0x64);
    assert_int_equal(get(dev, PCI_CAPABILITY_LIST, 1), 0x50);
    assert_int_equal(get(dev, 0x51, 1), 0x59);
    assert_int_equal(get(dev, 0x5a, 1), 0x64);
    assert_int_equal(get(dev, 0x65, 1), 0);
    assert_int_equal(add(dev, 0x100, EXTENDED, dsn()), 0x100);
    assert_int_equal(add(dev, 0x10c, EXTENDED, dsn()), -EINVAL);
    assert_int_equal(add(dev, 0x800, EXTENDED, dsn()), 0x800);
    assert_int_equal(get(dev, 0x100, 4), 0x80010003);
    assert_int_equal(get(dev, 0x800, 4), 0x00010003);
}

/* Behind one that was placed low lies one that was placed high. */
static void test_placement_around_others(void **state)
{
    struct pci_device *dev = *state;

    assert_int_equal(add(dev, 0x60, 0, bare(PCI_CAP_ID_PM)), 0x60);
    assert_int_equal(add(dev, 0x6c, 0, bare(PCI_CAP_ID_MSIX)), 0x6c);
    assert_int_equal(add(dev, 0x40, 0, vendor(5)), 0x40);
    assert_int_equal(add(dev, 0, 0, bare(PCI_CAP_ID_MSI)), 0x48); /* just fits */
    assert_int_equal(add(dev, 0, 0, bare(PCI_CAP_ID_EXP)), 0x78);
    assert_int_equal(get(dev, 0x60, 1), PCI_CAP_ID_PM);
    assert_int_equal(get(dev, 0x6c, 1), PCI_CAP_ID_MSIX);
}

static void test_no_space(void **state)
{
    struct pci_device *dev = *state;

    assert_int_equal(add(dev, 0, 0, vendor(184)), 0x40);
    assert_int_equal(add(dev, 0, 0, bare(PCI_CAP_ID_MSIX)), -ENOSPC);
    assert_int_equal(add(dev, 0, 0, bare(PCI_CAP_ID_PM)), 0xf8);
    assert_int_equal(add(dev, 0, 0, bare(PCI_CAP_ID_PM)), -ENOSPC);
    assert_int_equal(add(dev, 0, EXTENDED, extended_vendor(0xef0)), 0x100);
    assert_int_equal(add(dev, 0, EXTENDED, extended_vendor(0x18)), -ENOSPC);
}

static void test_at_most_128(void **state)
{
    struct pci_device *dev = *state;

    for (int i = 0; i < PCI_MAX_CAPS; i++) {
        assert_true(add(dev, 0, EXTENDED, dsn()) > 0);
    }
    assert_int_equal(add(dev, 0, EXTENDED, dsn()), -ENOSPC);
    assert_true(pci_config_find_capability(&dev->pci, true, 0, PCI_EXT_CAP_ID_VNDR) == -ENOENT);
}

static void test_conventional_has_no_extended(void **state)
{
    struct pci_device *dev = *state;

    assert_int_equal(add(dev, 0, EXTENDED, dsn()), -EINVAL);
    assert_int_equal(pci_config_find_capability(&dev->pci, true, 0, PCI_EXT_CAP_ID_DSN), -EINVAL);
    assert_int_equal(pci_config_find_capability(&dev->pci, true, 0x100, 0), -EINVAL);
    assert_int_equal(add(dev, 0xf8, 0, bare(PCI_CAP_ID_PM)), -EINVAL); /* ends at the end */
    assert_int_equal(add(dev, 0xf4, 0, bare(PCI_CAP_ID_PM)), 0xf4);
}

static void test_find(void **state)
{
    struct pci_device *dev = *state;

    assert_int_equal(pci_config_find_capability(&dev->pci, false, 0, PCI_CAP_ID_PM), -ENOENT);
    assert_int_equal(add(dev, 0, 0, bare(PCI_CAP_ID_PM)), 0x40);
    assert_int_equal(add(dev, 0, 0, vendor(8)), 0x48);
    assert_int_equal(add(dev, 0, 0, vendor(8)), 0x50);
    assert_int_equal(add(dev, 0, EXTENDED, extended_vendor(16)), 0x100);
    assert_int_equal(add(dev, 0, EXTENDED, dsn()), 0x110);
    assert_int_equal(add(dev, 0, EXTENDED, extended_vendor(16)), 0x11c);
    const struct {
        bool extended;
        size_t pos;
        int id;
        ssize_t found;
    } table[] = {
        { false, 0, PCI_CAP_ID_PM, 0x40 },
        { false, 0x40, PCI_CAP_ID_PM, -ENOENT },
        { false, 0, PCI_CAP_ID_VNDR, 0x48 },
        { false, 0x40, PCI_CAP_ID_VNDR, 0x48 },
        { false, 0x48, PCI_CAP_ID_VNDR, 0x50 },
        { false, 0x50, PCI_CAP_ID_VNDR, -ENOENT },
        { false, 0, PCI_CAP_ID_MSI, -ENOENT },
        { false, 0xe0, PCI_CAP_ID_PM, -ENOENT }, /* no capability there */
        { false, 0xfe, PCI_CAP_ID_PM, -ENOENT },
        { false, 0xff, PCI_CAP_ID_PM, -EINVAL },
        { false, 0x100, PCI_CAP_ID_PM, -EINVAL },
        { false, SIZE_MAX - 8, PCI_CAP_ID_PM, -EINVAL },
        { true, 0, PCI_EXT_CAP_ID_VNDR, 0x100 },
        { true, 0x100, PCI_EXT_CAP_ID_VNDR, 0x11c },
        { true, 0x100, PCI_EXT_CAP_ID_DSN, 0x110 },
        { true, 0x11c, PCI_EXT_CAP_ID_VNDR, -ENOENT },
        { true, 0, PCI_EXT_CAP_ID_ATS, -ENOENT },
        { true, 0x800, PCI_EXT_CAP_ID_DSN, -ENOENT },
        { true, 4092, PCI_EXT_CAP_ID_DSN, -ENOENT },
        { true, 4093, PCI_EXT_CAP_ID_DSN, -EINVAL },
        { true, 4095, PCI_EXT_CAP_ID_DSN, -EINVAL },
        { true, 4096, PCI_EXT_CAP_ID_DSN, -EINVAL },
        { true, 8192, PCI_EXT_CAP_ID_DSN, -EINVAL },
        { true, SIZE_MAX, PCI_EXT_CAP_ID_DSN, -EINVAL },
        { true, SIZE_MAX - 3, PCI_EXT_CAP_ID_DSN, -EINVAL },
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        assert_int_equal(pci_config_find_capability(&dev->pci, table[i].extended, table[i].pos,
                                                    table[i].id), table[i].found);
    }
}

/* The device may have edited the list: a loop, and a link to the last byte. */
static void test_find_in_a_bad_list(void **state)
{
    struct pci_device *dev = *state;
    uint8_t *bytes = (uint8_t *)dev->pci.space;

    assert_int_equal(add(dev, 0, 0, bare(PCI_CAP_ID_PM)), 0x40);
    bytes[0x41] = 0x40;
    assert_int_equal(pci_config_find_capability(&dev->pci, false, 0, PCI_CAP_ID_MSI), -ENOENT);
    bytes[0x41] = 0xff;
    assert_int_equal(pci_config_find_capability(&dev->pci, false, 0, PCI_CAP_ID_MSI), -EINVAL);
    bytes[0x102] = 0xf1;
    bytes[0x103] = 0xff;
    assert_int_equal(pci_config_find_capability(&dev->pci, true, 0, PCI_EXT_CAP_ID_DSN), -EINVAL);
}

/* Writes */

struct write {
    size_t offset; /* in the capability */
    size_t count;
    uint64_t value;
    uint32_t after; /* the double word at the offset's */
};

static void check_writes(struct pci_device *dev, size_t pos, const struct write *table, size_t nr)
{
    for (size_t i = 0; i < nr; i++) {
        const struct write *w = &table[i];
        int err = put(dev, pos + w->offset, w->value, w->count);
        uint32_t after = get(dev, pos + (w->offset & ~3u), 4);

        if (err != 0 || after != w->after) {
            fail_msg("write %zu, offset 0x%zx, count %zu: %d, then 0x%x instead of 0x%x", i,
                     w->offset, w->count, err, after, w->after);
        }
    }
}

#define CHECK_WRITES(dev, pos, table)                                                              \
    check_writes(dev, pos, table, sizeof(table) / sizeof((table)[0]))

static void test_write_pm(void **state)
{
    static const struct write table[] = {
        { 0, 1, 0, 0x00030001 },
        { 1, 1, 0, 0x00030001 },
        { 0, 4, 0, 0x00030001 },
        { 2, 2, 0, 0x00030001 },
        { 3, 1, 0, 0x00030001 },
        { 4, 2, 0x0103, 0x8103 }, /* PME status stays... */
        { 4, 1, 0, 0x8100 },
        { 5, 1, 0x85, 0x0500 }, /* ...until 1 is written to it */
        { 4, 4, UINT32_MAX, 0x1f03 },
        { 3, 2, 0, 0x00030001 }, /* into the control register's first byte */
        { 6, 1, 1, 0x1f00 },
        { 7, 1, 1, 0x1f00 },
        { 6, 2, 1, 0x1f00 },
    };
    struct pmcap pm = {
        .hdr = { .id = PCI_CAP_ID_PM, .next = 0x77 }, .pc = { .vs = 3 }, .pmcs = { .pmes = 1 }
    };
    struct pci_device *dev = *state;

    CHECK_WRITES(dev, (size_t)add(dev, 0, 0, &pm), table);
}

static void test_write_msi(void **state)
{
    /* 4 of at most 32 messages; 64 bits, with masks. */
    struct msicap msi = {
        .hdr = { .id = PCI_CAP_ID_MSI }, .mc = { .mmc = 2, .c64 = 1, .pvm = 1 }, .mpend = 5
    };
    static const struct write table[] = {
        { 1, 1, 0, 0x01840005 },
        { 2, 2, 0xff8f | 2 << 4, 0x01a50005 }, /* only enable and MME change */
        { 2, 1, 0x30, 0x01a40005 }, /* 8 messages: as many as before, and disabled */
        { 2, 2, 0x71, 0x01a50005 },
        { 2, 1, 0x10, 0x01940005 },
        { 3, 1, 0xff, 0x01940005 },
        { 4, 4, UINT32_MAX, 0xfffffffc },
        { 5, 1, 0, 0xffff00fc },
        { 8, 4, 0x12345678, 0x12345678 },
        { 12, 2, 0x4321, 0x4321 },
        { 14, 2, 0xffff, 0x4321 },
        { 16, 4, 0xdeadbeef, 0xdeadbeef },
        { 20, 4, 0, 5 }, /* pending bits are the device's */
    };
    static const struct write most[] = {
        { 2, 2, 0x60, 0x000e0005 }, /* reserved, whatever the device says it has */
        { 2, 2, 0x50, 0x005e0005 },
    };
    struct pci_device *dev = *state;

    CHECK_WRITES(dev, (size_t)add(dev, 0, 0, &msi), table);
    msi.mc = (struct mc){ .mmc = 7 };
    CHECK_WRITES(dev, (size_t)add(dev, 0, 0, &msi), most);
}

static void test_write_msix(void **state)
{
    struct msixcap msix = {
        .hdr = { .id = PCI_CAP_ID_MSIX }, .mxc = { .ts = 7 }, .mtab = { .tbir = 4 }
    };
    static const struct {
        struct write write;
        unsigned changes;
        bool enabled, masked;
    } table[] = {
        { { 2, 2, 0xc000, 0xc0070011 }, 1, true, true },
        { { 2, 2, 0xffff, 0xc0070011 }, 1, true, true },
        { { 2, 1, 0, 0xc0070011 }, 1, true, true },
        { { 3, 1, 0x80, 0x80070011 }, 2, true, false },
        { { 3, 1, 0x40, 0x40070011 }, 3, false, true },
        { { 4, 4, UINT32_MAX, 4 }, 3, false, true },
        { { 8, 4, UINT32_MAX, 0 }, 3, false, true },
        { { 2, 6, 0, 0x00070011 }, 4, false, false },
        { { 0, 4, 0, 0x00070011 }, 4, false, false },
    };
    struct pci_device *dev = *state;
    size_t pos = (size_t)add(dev, 0, 0, &msix);

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        check_writes(dev, pos, &table[i].write, 1);
        assert_int_equal(dev->msix_changes, table[i].changes);
        assert_int_equal(dev->msix_enabled, table[i].enabled);
        assert_int_equal(dev->msix_masked, table[i].masked);
    }
    pos = (size_t)add(dev, 0x91, 0, &msix); /* as the device wants it */
    assert_int_equal(put(dev, pos + 2, 0x8000, 2), 0);
    assert_int_equal(get(dev, pos + 2, 2), 0x8007);
}

static void test_write_express(void **state)
{
    struct pxcap px = {
        .hdr = { .id = PCI_CAP_ID_EXP }, .pxcaps = { .ver = 2 }, .pxds = { .stuff = 0x23 }
    };
    static const struct write table[] = {
        { 0, 2, 0, 0x00020010 },
        { 2, 2, 0, 0x00020010 },
        { 4, 2, 1, 0 },
        { 8, 2, 0x7fff, 0x00237fff },
        { 8, 1, 0, 0x00237f00 },
        { 9, 1, 0, 0x00230000 },
        { 8, 2, 0x8001, 0x00230001 }, /* no function level reset */
        { 8, 4, 0x00011234, 0x00221234 }, /* errors clear by writing 1 */
        { 10, 2, 0xffff, 0x00201234 },
        { 0x10, 2, 0xffff, 0 },
        { 0x18, 2, 0xffff, 0 },
        { 0x1c, 2, 0xffff, 0 },
        { 0x28, 2, 0x1234, 0x1234 },
        { 0x29, 4, 0xffffff56, 0x5634 },
        { 0x30, 2, 0x4321, 0x4321 },
        { 0x38, 2, 0xffff, 0 },
        { 0x3a, 2, 0xffff, 0 },
        { 0x0c, 2, 0xffff, 0 },
    };
    struct pci_device *dev = *state;

    CHECK_WRITES(dev, (size_t)add(dev, 0, 0, &px), table);
    assert_int_equal(dev->resets, 0);
}

/* Whatever write carries the bit. The device is asked first for each that touches the register. */
static void test_function_level_reset(void **state)
{
    struct pxcap px = { .hdr = { .id = PCI_CAP_ID_EXP }, .pxdcap = { .flrc = 1 } };
    static const struct {
        int offset; /* from Device Control */
        uint64_t value;
        size_t count;
        bool touches, resets;
    } table[] = {
        { 0, 0x8000, 2, true, true },  { 0, 0x8000, 4, true, true },
        { 1, 0x80, 1, true, true },    { -4, 0x800000000000, 8, true, true },
        { -1, 0x800000, 3, true, true }, { 0, 0x7fff, 2, true, false },
        { 0, 0xff, 1, true, false },   { 1, 0x7f, 1, true, false },
        { -2, 0xffffffff, 3, true, false }, { 2, 0xffff, 2, false, false },
        { -2, 0xffff, 2, false, false },
    };
    struct pci_device *dev = *state;
    size_t control;

    assert_false(pci_config_is_device_control(&dev->pci, 8, 2)); /* without the capability */
    control = (size_t)add(dev, 0, 0, &px) + 8;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        size_t at = control + (size_t)table[i].offset;

        dev->resets = 0;
        assert_int_equal(pci_config_is_device_control(&dev->pci, at, table[i].count),
                         table[i].touches);
        assert_int_equal(put(dev, at, table[i].value, table[i].count), 0);
        assert_int_equal(dev->resets, table[i].resets);
        assert_int_equal(get(dev, control, 2) & 0x8000, 0);
    }
    dev->reset_answer = -EBUSY;
    assert_int_equal(put(dev, control, 0x8000, 2), -EBUSY);
}

static void test_write_vendor(void **state)
{
    static const struct write table[] = {
        { 2, 1, 0xff, 0x00100009 },
        { 3, 1, 0xab, 0xab100009 },
        { 4, 4, 0x01020304, 0x01020304 },
        { 15, 1, 0x99, 0x99000000 },
    };
    static const struct write extended[] = {
        { 3, 1, 0, 0x0001000b },
        { 4, 4, 0, 0x01000000 },
        { 7, 1, 0, 0x01000000 },
        { 8, 4, 0xa5a5a5a5, 0xa5a5a5a5 },
    };
    static const struct write serial[] = {
        { 0, 4, 0, 0x00010003 },
        { 4, 4, 0, 1 },
        { 11, 1, 9, 2 },
    };
    struct pci_device *dev = *state;

    CHECK_WRITES(dev, (size_t)add(dev, 0, 0, vendor(16)), table);
    CHECK_WRITES(dev, (size_t)add(dev, 0, EXTENDED, extended_vendor(16)), extended);
    pci_config_keep_extended(&dev->pci, 0);
    CHECK_WRITES(dev, (size_t)add(dev, 0, EXTENDED, dsn()), serial);
}

static void test_read_only(void **state)
{
    struct pci_device *dev = *state;
    size_t pos = (size_t)add(dev, 0, READONLY, vendor(16));

    assert_int_equal(put(dev, pos + 4, 1, 4), 0);
    assert_int_equal(get(dev, pos + 4, 4), 0);
}

/* Who serves which byte */

static void test_callback_capability(void **state)
{
    struct pci_device *dev = *state;
    size_t pos;

    dev->has_callback = true;
    pos = (size_t)add(dev, 0, CALLBACK, vendor(16));
    assert_int_equal(get(dev, pos, 4), 0xdadadada);
    assert_int_equal(put(dev, pos, 1, 1), 0); /* its header, too */
    assert_int_equal(dev->calls, 2);
    assert_int_equal(dev->last_offset, pos);
    assert_int_equal(dev->last_count, 1);
    assert_true(dev->last_write);
    dev->answer = -EACCES;
    assert_int_equal(put(dev, pos, 1, 1), -EACCES);
    dev->answer = 3;
    assert_int_equal(put(dev, pos, 1, 4), -EINVAL);
    dev->pci.standard.caps[0].flags |= READONLY;
    dev->answer = 0;
    dev->calls = 0;
    assert_int_equal(put(dev, pos, 1, 1), 0);
    assert_int_equal(dev->calls, 0);
}

static void test_gaps(void **state)
{
    struct pci_device *dev = *state;

    ((uint8_t *)dev->pci.space)[0x200] = 0x42;
    assert_int_equal(get(dev, 0x200, 4), 0x42);
    assert_int_equal(put(dev, 0x200, 1, 4), 0);
    assert_int_equal(get(dev, 0x200, 4), 0x42);
    dev->has_callback = true;
    assert_int_equal(get(dev, 0x200, 4), 0xdadadada);
    assert_int_equal(put(dev, 0x200, 1, 4), 0);
    assert_int_equal(dev->calls, 2);
    dev->answer = -EIO;
    assert_int_equal(put(dev, 0x200, 1, 4), -EIO);
    dev->answer = 2;
    assert_int_equal(put(dev, 0x200, 1, 4), -EINVAL);
}

/* The header, a gap, a capability, a gap: each byte by the party that it belongs to. */
static void test_an_access_is_split(void **state)
{
    struct pci_device *dev = *state;
    uint8_t all[256];

    dev->has_callback = true;
    assert_int_equal(add(dev, 0x50, 0, vendor(16)), 0x50);
    dev->pci.space->raw[0x3f] = 7;
    assert_int_equal(pci_config_access(&dev->pci, (char *)all, sizeof(all), 0, false), 256);
    assert_int_equal(dev->calls, 2);
    assert_int_equal(dev->last_offset, 0x60);
    assert_int_equal(dev->last_count, 0xa0);
    assert_int_equal(all[0x3f], 7);
    assert_int_equal(all[0x40], 0xda);
    assert_int_equal(all[0x4f], 0xda);
    assert_int_equal(all[0x50], PCI_CAP_ID_VNDR);
    assert_int_equal(all[0x5f], 0);
    assert_int_equal(all[0x60], 0xda);

    assert_int_equal(put(dev, 0x5e, 0x44332211, 4), 0);
    assert_int_equal(get(dev, 0x5e, 2), 0x2211);
    assert_int_equal(dev->last_offset, 0x60);
    assert_int_equal(dev->last_count, 2);
    assert_int_equal(put(dev, 0x4e, 0x44332211, 4), 0); /* the capability's header stays */
    assert_int_equal(dev->last_offset, 0x4e);
    assert_int_equal(get(dev, 0x50, 2), PCI_CAP_ID_VNDR);
    assert_int_equal(put(dev, PCI_INTERRUPT_LINE, 0x0b, 8), 0);
    assert_int_equal(get(dev, PCI_INTERRUPT_LINE, 1), 0x0b);
    assert_int_equal(dev->last_offset, 0x40);
    assert_int_equal(dev->last_count, 4);
    /* What the device refuses is not half applied. */
    dev->answer = -EACCES;
    assert_int_equal(put(dev, PCI_INTERRUPT_LINE, 0x0c, 8), -EACCES);
    assert_int_equal(put(dev, 0x5e, 0, 4), -EACCES);
    assert_int_equal(get(dev, PCI_INTERRUPT_LINE, 1), 0x0b);
    assert_int_equal(get(dev, 0x5e, 2), 0x2211);
}

/* A region set up larger than the space that pci_config_init() made. */
static void test_behind_the_space(void **state)
{
    struct pci_device *dev = *state;
    char buf[64];

    memset(buf, 1, sizeof(buf));
    assert_int_equal(pci_config_access(&dev->pci, buf, sizeof(buf), 256 - 32, false), 64);
    assert_int_equal(buf[63], 0);
    assert_int_equal(get(dev, 256, 4), 0);
    assert_int_equal(get(dev, 4096, 4), 0);
    assert_int_equal(put(dev, 256, 1, 4), 0);
    assert_int_equal(put(dev, 254, UINT32_MAX, 4), 0);
    assert_int_equal(pci_config_access(&dev->pci, buf, 0, 256, true), 0);
}

/* Whatever a guest writes where: an answer, and what it may not change stays. */
static void test_random_accesses(void **state)
{
    struct pci_device *dev = *state;
    struct msixcap msix = { .hdr = { .id = PCI_CAP_ID_MSIX }, .mxc = { .ts = 7 } };
    struct pxcap px = { .hdr = { .id = PCI_CAP_ID_EXP }, .pxdcap = { .flrc = 1 } };
    struct atscap ats = { .hdr = { .id = PCI_EXT_CAP_ID_ATS, .version = 1 } };
    struct pricap pri = { .hdr = { .id = PCI_EXT_CAP_ID_PRI, .version = 1 }, .capacity = 9 };
    struct pasidcap pasid = { .hdr = { .id = PCI_EXT_CAP_ID_PASID, .version = 1 } };
    char buf[96];

    add(dev, 0, 0, bare(PCI_CAP_ID_PM));
    add(dev, 0, 0, bare(PCI_CAP_ID_MSI));
    add(dev, 0, 0, &msix);
    add(dev, 0, 0, &px);
    add(dev, 0, 0, vendor(9));
    add(dev, 0, EXTENDED, dsn());
    add(dev, 0, EXTENDED, &ats);
    add(dev, 0, EXTENDED, &pri);
    add(dev, 0, EXTENDED, &pasid);
    add(dev, 0, EXTENDED, extended_vendor(33));
    srand(7);
    for (int i = 0; i < 200000; i++) {
        size_t count = 1 + (size_t)rand() % sizeof(buf);
        size_t room = rand() % 4 ? 0x180 : 4096;
        ssize_t n;

        for (size_t b = 0; b < count; b++) {
            buf[b] = (char)rand();
        }
        dev->has_callback = rand() % 2;
        n = pci_config_access(&dev->pci, buf, count, (uint64_t)rand() % (room - count + 1),
                              rand() % 2);
        assert_int_equal(n, count);
    }
    assert_int_equal(get(dev, 0, 4), 0);
    assert_int_equal(pci_config_find_capability(&dev->pci, false, 0, PCI_CAP_ID_VNDR), 0xa8);
    assert_int_equal(pci_config_find_capability(&dev->pci, true, 0, PCI_EXT_CAP_ID_VNDR), 0x12c);
    assert_int_equal(get(dev, 0x104, 4), 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define TEST_CONVENTIONAL(name) \
    cmocka_unit_test_setup_teardown(name, set_up_conventional, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_init),
        TEST(test_realize),
        cmocka_unit_test(test_realize_without_init),
        TEST(test_command_of_one_byte),
        TEST(test_placement_refused),
        TEST(test_placement_explicit),
        TEST(test_placement_around_others),
        TEST(test_no_space),
        TEST(test_at_most_128),
        TEST_CONVENTIONAL(test_conventional_has_no_extended),
        TEST(test_find),
        TEST(test_find_in_a_bad_list),
        TEST(test_write_pm),
        TEST(test_write_msi),
        TEST(test_write_msix),
        TEST(test_write_express),
        TEST(test_function_level_reset),
        TEST(test_write_vendor),
        TEST(test_read_only),
        TEST(test_callback_capability),
        TEST(test_gaps),
        TEST(test_an_access_is_split),
        TEST_CONVENTIONAL(test_behind_the_space),
        TEST(test_random_accesses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
