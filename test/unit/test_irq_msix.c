/* SPDX-License-Identifier: BSD-3-Clause */
/* The MSI-X table and pending bit array in a BAR that the device leaves to the library. */
#include "device/ctx.h"

#include <errno.h>
#include <linux/vfio.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#define VECTORS 70 /* more than one quad word of pending bits */
#define TABLE 0x1000
#define TABLE_SIZE (VECTORS * PCI_MSIX_ENTRY_SIZE)
#define PBA 0x3000
#define PBA_SIZE 16
#define TABLE_BAR 4
#define PBA_BAR 5

static struct vfu_ctx *new_context(uint8_t table_bar, uint8_t pba_bar)
{
    struct msixcap cap = {
        .hdr = { .id = PCI_CAP_ID_MSIX },
        .mxc = { .ts = VECTORS - 1 },
        .mtab = { .tbir = table_bar & 7, .to = TABLE >> 3 },
        .mpba = { .pbir = pba_bar & 7, .pbao = PBA >> 3 },
    };
    struct vfu_ctx *ctx = calloc(1, sizeof(*ctx));

    assert_non_null(ctx);
    ctx->pci.log = &ctx->log;
    irqs_init(&ctx->irqs, &ctx->log);
    assert_int_equal(irqs_set_count(&ctx->irqs, VFU_DEV_MSIX_IRQ, VECTORS), 0);
    assert_int_equal(irqs_realize(&ctx->irqs), 0);
    assert_int_equal(pci_config_init(&ctx->pci, VFU_PCI_TYPE_EXPRESS, 0), 0);
    /* An odd place: none but the device's choice. */
    assert_int_equal(pci_config_add_capability(&ctx->pci, 0x91, 0, &cap), 0x91);
    ctx->regions[TABLE_BAR].size = 0x4000;
    ctx->regions[PBA_BAR].size = 0x4000;
    return ctx;
}

static int tear_down(void **state)
{
    struct vfu_ctx *ctx = *state;

    msix_destroy(ctx);
    irqs_destroy(&ctx->irqs);
    pci_config_destroy(&ctx->pci);
    free(ctx);
    return 0;
}

static int set_up(void **state)
{
    struct vfu_ctx *ctx = new_context(TABLE_BAR, PBA_BAR);

    assert_int_equal(msix_realize(ctx), 0);
    *state = ctx;
    return 0;
}

static void put(struct vfu_ctx *ctx, uint64_t offset, uint64_t value, size_t count)
{
    char buf[sizeof(value)];

    memcpy(buf, &value, sizeof(buf));
    assert_int_equal(msix_access(ctx, TABLE_BAR, buf, count, offset, true), count);
}

static uint64_t get(struct vfu_ctx *ctx, uint32_t bar, uint64_t offset, size_t count)
{
    uint64_t value = 0;

    assert_int_equal(msix_access(ctx, bar, (char *)&value, count, offset, false), count);
    return value;
}

static uint64_t entry(uint32_t vector)
{
    return TABLE + (uint64_t)vector * PCI_MSIX_ENTRY_SIZE;
}

static int arm(struct vfu_ctx *ctx, uint32_t vector)
{
    struct vfio_irq_set cmd = {
        .argsz = sizeof(cmd), .index = VFU_DEV_MSIX_IRQ, .start = vector, .count = 1,
        .flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD
    };
    int fd = eventfd(0, EFD_NONBLOCK), kept = dup(fd);

    assert_int_equal(irqs_apply(&ctx->irqs, &cmd, NULL, &fd, 1), 0);
    return kept;
}

static uint64_t count_of(int fd)
{
    uint64_t count = 0;

    return read(fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

static void test_table_is_memory(void **state)
{
    struct vfu_ctx *ctx = *state;

    for (uint32_t i = 0; i < VECTORS; i++) {
        assert_int_equal(get(ctx, TABLE_BAR, entry(i), 8), 0);
        assert_int_equal(get(ctx, TABLE_BAR, entry(i) + 8, 8), 1ull << 32); /* masked */
    }
    put(ctx, entry(1), 0xfee01000, 4);
    put(ctx, entry(1) + 8, 0x4041, 8); /* data, and the mask goes */
    assert_int_equal(get(ctx, TABLE_BAR, entry(1), 8), 0xfee01000);
    assert_int_equal(get(ctx, TABLE_BAR, entry(1) + 8, 8), 0x4041);
    assert_int_equal(get(ctx, TABLE_BAR, entry(0) + 12, 4), 1);
    assert_int_equal(get(ctx, TABLE_BAR, entry(2) + 12, 4), 1);
}

static void test_mask_and_pending(void **state)
{
    struct vfu_ctx *ctx = *state;
    int fd = arm(ctx, 65);

    assert_int_equal(irq_trigger(&ctx->irqs, 65), 0);
    assert_int_equal(count_of(fd), 1); /* the client has not masked it, whatever the table says */
    put(ctx, entry(65) + 12, 1, 4);
    assert_int_equal(irq_trigger(&ctx->irqs, 65), 0);
    assert_int_equal(count_of(fd), 0);
    assert_int_equal(get(ctx, PBA_BAR, PBA, 8), 0);
    assert_int_equal(get(ctx, PBA_BAR, PBA + 8, 8), 2);
    assert_int_equal(get(ctx, PBA_BAR, PBA + 8, 1), 2);
    put(ctx, entry(65), 0xfee02000, 8); /* the rest of the entry does not matter */
    assert_int_equal(count_of(fd), 0);
    put(ctx, entry(65) + 12, 0, 1);
    assert_int_equal(count_of(fd), 1);
    assert_int_equal(get(ctx, PBA_BAR, PBA + 8, 8), 0);
    close(fd);
}

static void test_one_write_over_several_entries(void **state)
{
    struct vfu_ctx *ctx = *state;
    int first = arm(ctx, 0), third = arm(ctx, 2);
    char buf[3 * PCI_MSIX_ENTRY_SIZE] = { 0 };

    buf[2 * PCI_MSIX_ENTRY_SIZE + PCI_MSIX_ENTRY_VECTOR_CTRL] = 1;
    assert_int_equal(msix_access(ctx, TABLE_BAR, buf, sizeof(buf), TABLE, true), sizeof(buf));
    assert_int_equal(irq_trigger(&ctx->irqs, 0), 0);
    assert_int_equal(irq_trigger(&ctx->irqs, 2), 0);
    assert_int_equal(count_of(first), 1);
    assert_int_equal(count_of(third), 0);
    close(first);
    close(third);
}

static void test_pending_bits_are_read_only(void **state)
{
    struct vfu_ctx *ctx = *state;
    char ones[PBA_SIZE];

    memset(ones, 0xff, sizeof(ones));
    assert_int_equal(msix_access(ctx, PBA_BAR, ones, sizeof(ones), PBA, true), PBA_SIZE);
    assert_int_equal(get(ctx, PBA_BAR, PBA, 8), 0);
    assert_int_equal(get(ctx, PBA_BAR, PBA + 8, 8), 0);
}

static void test_outside(void **state)
{
    static const struct {
        uint32_t bar;
        uint64_t offset;
        size_t count;
    } table[] = {
        { TABLE_BAR, TABLE - 4, 4 },
        { TABLE_BAR, TABLE - 4, 8 },
        { TABLE_BAR, TABLE + TABLE_SIZE - 4, 8 },
        { TABLE_BAR, TABLE + TABLE_SIZE, 4 },
        { TABLE_BAR, 0, 4 },
        { TABLE_BAR, UINT64_MAX, 4 },
        { TABLE_BAR, PBA, 8 },
        { PBA_BAR, TABLE, 4 },
        { PBA_BAR, PBA - 8, 8 },
        { PBA_BAR, PBA + PBA_SIZE, 8 },
        { PBA_BAR, PBA + PBA_SIZE - 4, 8 },
        { 0, TABLE, 4 },
    };
    struct vfu_ctx *ctx = *state;
    char buf[8] = { 0 };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        for (int is_write = 0; is_write < 2; is_write++) {
            assert_int_equal(msix_access(ctx, table[i].bar, buf, table[i].count, table[i].offset,
                                         is_write), -EINVAL);
        }
    }
}

static ssize_t callback(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx;
    (void)buf;
    (void)offset;
    (void)is_write;
    return (ssize_t)count;
}

static void check_not_served(struct vfu_ctx *ctx)
{
    void *state = ctx;
    char buf[4];

    assert_int_equal(msix_realize(ctx), 0);
    assert_null(ctx->msix.table);
    assert_int_equal(msix_access(ctx, TABLE_BAR, buf, sizeof(buf), TABLE, false), -EINVAL);
    assert_int_equal(msix_access(ctx, PBA_BAR, buf, sizeof(buf), PBA, false), -EINVAL);
    tear_down(&state);
}

static void test_the_device_serves_it(void **state)
{
    struct vfu_ctx *ctx = new_context(TABLE_BAR, PBA_BAR);

    (void)state;
    ctx->regions[TABLE_BAR].access = callback;
    check_not_served(ctx);
}

static void test_no_place_for_it(void **state)
{
    struct vfu_ctx *ctx;

    (void)state;
    check_not_served(new_context(6, PBA_BAR)); /* there is no such BAR */
    check_not_served(new_context(7, PBA_BAR));
    check_not_served(new_context(3, PBA_BAR)); /* not set up */
    ctx = new_context(TABLE_BAR, PBA_BAR);
    ctx->pci.space->hdr.cap = 0;
    check_not_served(ctx);
    ctx = new_context(TABLE_BAR, PBA_BAR);
    ctx->pci.space->hdr.cap = 0xfc; /* runs out of the capabilities' space */
    ctx->pci.space->raw[0xfc] = PCI_CAP_ID_MSIX;
    check_not_served(ctx);
}

/* More entries than the device has interrupts. */
static void test_vectors_without_interrupt(void **state)
{
    struct vfu_ctx *ctx = new_context(TABLE_BAR, PBA_BAR);

    irqs_destroy(&ctx->irqs);
    irqs_init(&ctx->irqs, &ctx->log);
    assert_int_equal(irqs_set_count(&ctx->irqs, VFU_DEV_MSIX_IRQ, 2), 0);
    assert_int_equal(irqs_realize(&ctx->irqs), 0);
    assert_int_equal(msix_realize(ctx), 0);
    put(ctx, entry(VECTORS - 1) + 12, 0, 4);
    put(ctx, entry(VECTORS - 1) + 12, 1, 4);
    assert_int_equal(get(ctx, PBA_BAR, PBA + 8, 8), 0);
    *state = ctx;
    tear_down(state);
}

static void test_random_accesses(void **state)
{
    struct vfu_ctx *ctx = *state;
    char buf[64];

    srand(11);
    for (int i = 0; i < 50000; i++) {
        uint32_t bar = (uint32_t)rand() % 6;
        size_t count = 1 + (size_t)rand() % sizeof(buf);
        uint64_t offset = (uint64_t)rand() % 0x4000;
        bool inside = (bar == TABLE_BAR && offset >= TABLE &&
                       offset + count <= TABLE + TABLE_SIZE) ||
                      (bar == PBA_BAR && offset >= PBA && offset + count <= PBA + PBA_SIZE);

        memset(buf, rand(), sizeof(buf));
        assert_int_equal(msix_access(ctx, bar, buf, count, offset, rand() % 2),
                         inside ? (ssize_t)count : -EINVAL);
    }
}

static void test_reset(void **state)
{
    struct vfu_ctx *ctx = *state;
    int fd = arm(ctx, 3);

    put(ctx, entry(3), 0xfee01000, 8);
    put(ctx, entry(3) + 12, 1, 4);
    assert_int_equal(irq_trigger(&ctx->irqs, 3), 0);
    msix_reset(ctx);
    assert_int_equal(get(ctx, TABLE_BAR, entry(3), 8), 0);
    assert_int_equal(get(ctx, TABLE_BAR, entry(3) + 12, 4), 1);
    assert_int_equal(get(ctx, PBA_BAR, PBA, 8), 0);
    assert_int_equal(count_of(fd), 0); /* what was held back is forgotten */
    assert_int_equal(irq_trigger(&ctx->irqs, 3), 0);
    assert_int_equal(count_of(fd), 1);
    close(fd);
}

/* Moves the state of one device to another. */
static int migrate(struct vfu_ctx *from, struct vfu_ctx *to, size_t offset, uint8_t flip)
{
    size_t size = msix_state_size(from);
    uint8_t *buf = malloc(size);
    int err;

    assert_non_null(buf);
    msix_save(from, buf);
    buf[offset] ^= flip;
    err = msix_check_state(to, buf, size);
    if (err == 0) {
        msix_restore(to, buf);
    }
    free(buf);
    return err;
}

static void test_migration(void **state)
{
    struct vfu_ctx *from = *state, *to = new_context(TABLE_BAR, PBA_BAR);
    void *other = to;
    int fd;

    assert_int_equal(msix_realize(to), 0);
    put(from, entry(2), 0xfee01000, 8);
    put(from, entry(65) + 12, 1, 4);
    assert_int_equal(irq_trigger(&from->irqs, 65), 0);
    assert_int_equal(migrate(from, to, 0, 0), 0);
    assert_int_equal(get(to, TABLE_BAR, entry(2), 8), 0xfee01000);
    assert_int_equal(get(to, TABLE_BAR, entry(65) + 12, 4), 1);
    assert_int_equal(get(to, PBA_BAR, PBA + 8, 8), 2);
    fd = arm(to, 65);
    assert_int_equal(count_of(fd), 0);
    put(to, entry(65) + 12, 0, 4);
    assert_int_equal(count_of(fd), 1);
    close(fd);
    tear_down(&other);
}

/* Pending without a mask: the eventfd comes before the state, and the device runs after it. */
static void test_migration_delivers_when_the_device_runs(void **state)
{
    struct vfu_ctx *from = *state, *to = new_context(TABLE_BAR, PBA_BAR);
    void *other = to;
    int fd;

    assert_int_equal(msix_realize(to), 0);
    put(from, entry(3) + 12, 1, 4);
    assert_int_equal(irq_trigger(&from->irqs, 3), 0);
    put(from, entry(3) + 12, 0, 4);
    fd = arm(to, 3);
    assert_int_equal(migrate(from, to, 0, 0), 0);
    assert_int_equal(count_of(fd), 0);
    irqs_deliver_pending(&to->irqs);
    assert_int_equal(count_of(fd), 1);
    close(fd);
    tear_down(&other);
}

/* Header: two counts; then masks and pending bits of each vector; then the table. */
static void test_migration_refuses(void **state)
{
    struct vfu_ctx *from = *state, *to = new_context(TABLE_BAR, PBA_BAR);
    const size_t vectors = 8, table = vectors + 2 * VECTORS;
    void *other = to;

    assert_int_equal(msix_realize(to), 0);
    put(from, entry(1) + 12, 1, 4);
    put(to, entry(1), 0xfee02000, 8);
    for (size_t i = 0; i < 8; i++) {
        assert_int_equal(migrate(from, to, i, 1), -EINVAL);
    }
    assert_int_equal(migrate(from, to, vectors + 1, 1 << VFU_DEV_INTX_IRQ), -EINVAL);
    assert_int_equal(migrate(from, to, vectors + 1, 1 << VFU_DEV_ERR_IRQ), -EINVAL);
    assert_int_equal(migrate(from, to, vectors + 1, 1 << IRQ_MASK_TABLE), -EINVAL);
    assert_int_equal(migrate(from, to, vectors, 1 << VFU_DEV_MSI_IRQ), -EINVAL);
    assert_int_equal(migrate(from, to, vectors, 0x80), -EINVAL);
    assert_int_equal(migrate(from, to, table + PCI_MSIX_ENTRY_SIZE + 12, 1), -EINVAL);
    assert_int_equal(msix_check_state(to, "", 0), -EINVAL);
    assert_int_equal(get(to, TABLE_BAR, entry(1), 8), 0xfee02000);
    assert_int_equal(migrate(from, to, vectors + 1, 1 << VFU_DEV_MSIX_IRQ), 0);
    assert_int_equal(get(to, PBA_BAR, PBA, 8), 1);
    tear_down(&other);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_table_is_memory),
        TEST(test_mask_and_pending),
        TEST(test_one_write_over_several_entries),
        TEST(test_pending_bits_are_read_only),
        TEST(test_outside),
        cmocka_unit_test(test_the_device_serves_it),
        cmocka_unit_test(test_no_place_for_it),
        cmocka_unit_test(test_vectors_without_interrupt),
        TEST(test_reset),
        TEST(test_migration),
        TEST(test_migration_delivers_when_the_device_runs),
        TEST(test_migration_refuses),
        TEST(test_random_accesses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
