/* SPDX-License-Identifier: BSD-3-Clause */
/* Features, migration and dirty pages, against a device in a thread. */
#include "client_device.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE 4096
#define IOVA 0x100000

struct fixture {
    struct device *device;
    vfuc_t *client;
    uint64_t written;
};

static void count_written(void *pvt, uint64_t iova, uint64_t len)
{
    struct fixture *f = pvt;

    (void)iova;
    f->written += len;
}

static int setup(void **state)
{
    static struct fixture fixture;
    const vfuc_options_t options = { .pvt = &fixture, .written = count_written };

    memset(&fixture, 0, sizeof(fixture));
    fixture.device = device_create();
    fixture.client = vfuc_connect(fixture.device->path, &options);
    assert_non_null(fixture.client);
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    vfuc_disconnect(f->client);
    device_destroy(f->device);
    return 0;
}

static void test_probe(void **state)
{
    struct fixture *f = *state;
    vfuc_agreed_t agreed;
    uint64_t flags = 0;

    vfuc_agreed(f->client, &agreed);
    assert_int_equal(agreed.migration_page_size, sysconf(_SC_PAGESIZE));
    assert_true(agreed.write_multiple);
    assert_int_equal(vfuc_migration_flags(f->client, &flags), 0);
    assert_int_equal(flags, VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_PRE_COPY);
    assert_int_equal(vfuc_feature_probe(f->client, VFIO_DEVICE_FEATURE_MIGRATION,
                                        VFIO_DEVICE_FEATURE_GET), 0);
    assert_int_equal(vfuc_feature_probe(f->client, VFIO_DEVICE_FEATURE_MIGRATION,
                                        VFIO_DEVICE_FEATURE_SET), -1);
    assert_int_equal(errno, EINVAL);
    assert_int_equal(vfuc_feature_probe(f->client, 0x10000, 0), -1);
    assert_int_equal(errno, EINVAL);
}

static void test_states(void **state)
{
    struct fixture *f = *state;
    uint32_t now = 0;
    uint8_t byte;

    assert_int_equal(vfuc_migration_state(f->client, &now), 0);
    assert_int_equal(now, VFIO_USER_DEVICE_STATE_RUNNING);
    assert_int_equal(vfuc_migration_set_state(f->client, VFIO_USER_DEVICE_STATE_STOP_COPY), 0);
    assert_int_equal(vfuc_migration_state(f->client, &now), 0);
    assert_int_equal(now, VFIO_USER_DEVICE_STATE_STOP_COPY);
    assert_int_equal(vfuc_migration_set_state(f->client, VFIO_USER_DEVICE_STATE_PRE_COPY), -1);
    assert_int_equal(errno, EINVAL);
    assert_int_equal(vfuc_migration_write(f->client, "x", 1), -1);
    assert_int_equal(errno, EINVAL);
    assert_int_equal(vfuc_migration_read(f->client, &byte, 1), 1);
    assert_int_equal(byte, f->device->state[0]);
    assert_int_equal(vfuc_migration_read(f->client, &byte, 2 * 1024 * 1024), -1);
    assert_int_equal(errno, EINVAL);
}

/* A saved state. */
struct saved {
    uint8_t *data;
    size_t len, at;
    size_t give_up; /* fail when that much is there; 0: never */
    uint32_t state_seen;
    vfuc_t *client;
};

static int save(void *pvt, const void *data, size_t len)
{
    struct saved *saved = pvt;

    if (saved->len == 0) {
        vfuc_migration_state(saved->client, &saved->state_seen);
    }
    if (saved->give_up != 0 && saved->len + len > saved->give_up) {
        errno = EDQUOT;
        return -1;
    }
    saved->data = realloc(saved->data, saved->len + len);
    assert_non_null(saved->data);
    memcpy(saved->data + saved->len, data, len);
    saved->len += len;
    return 0;
}

static ssize_t load(void *pvt, void *data, size_t size)
{
    struct saved *saved = pvt;
    size_t n = saved->len - saved->at < size ? saved->len - saved->at : size;

    if (saved->give_up != 0 && saved->at >= saved->give_up) {
        errno = EDQUOT;
        return -1;
    }
    memcpy(data, saved->data + saved->at, n);
    saved->at += n;
    return (ssize_t)n;
}

static void check_state(struct fixture *f, uint32_t expected)
{
    uint32_t now;

    assert_int_equal(vfuc_migration_state(f->client, &now), 0);
    assert_int_equal(now, expected);
}

static void test_save_and_load(void **state)
{
    struct fixture *f = *state;
    struct saved saved = { .client = f->client };
    uint8_t *before = malloc(DEVICE_STATE_SIZE);

    assert_non_null(before);
    memcpy(before, f->device->state, DEVICE_STATE_SIZE);
    assert_int_equal(vfuc_migration_save(f->client, 0, save, &saved), 0);
    assert_int_equal(saved.state_seen, VFIO_USER_DEVICE_STATE_STOP_COPY);
    check_state(f, VFIO_USER_DEVICE_STATE_STOP);
    assert_int_equal(saved.len, DEVICE_STATE_SIZE);
    assert_memory_equal(saved.data, before, DEVICE_STATE_SIZE);

    memset(f->device->state, 0, DEVICE_STATE_SIZE);
    assert_int_equal(vfuc_migration_load(f->client, load, &saved), 0);
    check_state(f, VFIO_USER_DEVICE_STATE_STOP);
    assert_int_equal(vfuc_migration_set_state(f->client, VFIO_USER_DEVICE_STATE_RUNNING), 0);
    assert_memory_equal(f->device->state, before, DEVICE_STATE_SIZE);
    free(saved.data);
    free(before);
}

static void test_save_running(void **state)
{
    struct fixture *f = *state;
    struct saved saved = { .client = f->client };

    f->device->precopy = 12345;
    assert_int_equal(vfuc_migration_save(f->client, UINT64_MAX, save, &saved), 0);
    assert_int_equal(saved.state_seen, VFIO_USER_DEVICE_STATE_PRE_COPY);
    assert_int_equal(saved.len, DEVICE_STATE_SIZE);
    assert_memory_equal(saved.data, f->device->state, DEVICE_STATE_SIZE);
    free(saved.data);
}

static void test_failures(void **state)
{
    struct fixture *f = *state;
    struct saved saved = { .client = f->client, .give_up = 1 };

    assert_int_equal(vfuc_migration_save(f->client, 0, save, &saved), -1);
    assert_int_equal(errno, EDQUOT);
    check_state(f, VFIO_USER_DEVICE_STATE_RUNNING);

    saved.give_up = 0;
    assert_int_equal(vfuc_migration_save(f->client, 0, save, &saved), 0);
    saved.give_up = 2000000;
    assert_int_equal(vfuc_migration_load(f->client, load, &saved), -1);
    assert_int_equal(errno, EDQUOT);
    /* One byte more than the device takes. */
    saved.give_up = 0;
    saved.at = 0;
    assert_int_equal(save(&saved, "x", 1), 0);
    assert_int_equal(vfuc_migration_load(f->client, load, &saved), -1);
    assert_int_equal(errno, ENOSPC);
    free(saved.data);
}

/* What came of a state before it failed is no part of the next. */
static void test_load_again(void **state)
{
    struct fixture *f = *state;
    struct saved saved = { .client = f->client };

    assert_int_equal(vfuc_migration_save(f->client, 0, save, &saved), 0);
    saved.give_up = 2000000;
    assert_int_equal(vfuc_migration_load(f->client, load, &saved), -1);
    assert_int_equal(errno, EDQUOT);
    assert_true(saved.at > 0);
    saved.give_up = 0;
    saved.at = 0;
    memset(f->device->state, 0, DEVICE_STATE_SIZE);
    assert_int_equal(vfuc_migration_load(f->client, load, &saved), 0);
    check_state(f, VFIO_USER_DEVICE_STATE_STOP);
    assert_memory_equal(f->device->state, saved.data, DEVICE_STATE_SIZE);
    free(saved.data);
}

/* Dirty pages */

static vfuc_memory_t map_file(struct fixture *f, uint64_t iova, uint64_t size, void **vaddr)
{
    vfuc_memory_t memory = {
        .iova = iova,
        .size = size,
        .prot = PROT_READ | PROT_WRITE,
        .fd = memfd_create("guest", MFD_CLOEXEC),
    };

    assert_int_equal(ftruncate(memory.fd, (off_t)size), 0);
    *vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd, 0);
    assert_ptr_not_equal(*vaddr, MAP_FAILED);
    memory.vaddr = *vaddr;
    assert_int_equal(vfuc_dma_map(f->client, &memory), 0);
    return memory;
}

static void test_dirty_pages(void **state)
{
    struct fixture *f = *state;
    const vfuc_range_t range = { IOVA, 100 * PAGE };
    void *vaddr;
    vfuc_memory_t memory = map_file(f, IOVA, 100 * PAGE, &vaddr);
    uint64_t bits[2] = { 1, 1 };

    assert_int_equal(vfuc_dirty_bitmap_size(100 * PAGE, PAGE), sizeof(bits));
    assert_int_equal(vfuc_dirty_report(f->client, IOVA, range.size, PAGE, bits, sizeof(bits)), -1);
    assert_int_equal(errno, EINVAL);
    assert_int_equal(vfuc_dirty_start(f->client, PAGE, &range, 1), 0);
    assert_int_equal(device_do(f->client, DEVICE_FILL_DIRECT, IOVA + 3 * PAGE, PAGE), 0);
    assert_int_equal(device_do(f->client, DEVICE_FILL_DIRECT, IOVA + 99 * PAGE, 1), 0);
    assert_int_equal(((uint8_t *)vaddr)[3 * PAGE], DEVICE_FILL);

    assert_int_equal(vfuc_dirty_report(f->client, IOVA, range.size, PAGE, bits, sizeof(bits)), 0);
    assert_int_equal(bits[0], 1ull << 3);
    assert_int_equal(bits[1], 1ull << (99 - 64));
    assert_int_equal(vfuc_dirty_report(f->client, IOVA, range.size, PAGE, bits, sizeof(bits)), 0);
    assert_int_equal(bits[0] | bits[1], 0);

    assert_int_equal(device_do(f->client, DEVICE_FILL_DIRECT, IOVA + 64 * PAGE, 1), 0);
    assert_int_equal(vfuc_dma_unmap_dirty(f->client, &memory, PAGE, bits, sizeof(bits)), 0);
    assert_int_equal(bits[0], 0);
    assert_int_equal(bits[1], 1);
    assert_int_equal(device_do(f->client, DEVICE_FILL_DIRECT, IOVA, 1), ENOENT);
    assert_int_equal(vfuc_dirty_stop(f->client), 0);
    munmap(vaddr, range.size);
    close(memory.fd);
}

static void test_dirty_sizes(void **state)
{
    struct fixture *f = *state;
    vfuc_memory_t huge = { .iova = 0, .size = 1ull << 60, .fd = -1 };
    uint64_t bits;

    assert_int_equal(vfuc_dirty_bitmap_size(1, PAGE), 8);
    assert_int_equal(vfuc_dirty_bitmap_size(64 * PAGE, PAGE), 8);
    assert_int_equal(vfuc_dirty_bitmap_size(64 * PAGE + 1, PAGE), 16);
    assert_int_equal(vfuc_dirty_bitmap_size(UINT64_MAX, 1), 1ull << 61);
    assert_int_equal(vfuc_dirty_bitmap_size(PAGE, 3), 0);
    assert_int_equal(vfuc_dirty_bitmap_size(PAGE, 0), 0);
    assert_int_equal(vfuc_dirty_report(f->client, 0, 65 * PAGE, PAGE, &bits, sizeof(bits)), -1);
    assert_int_equal(errno, EINVAL);
    assert_int_equal(vfuc_dirty_report(f->client, 0, huge.size, PAGE, &bits, UINT64_MAX), -1);
    assert_int_equal(errno, EMSGSIZE);
    assert_int_equal(vfuc_dma_unmap_dirty(f->client, &huge, PAGE, &bits, UINT64_MAX), -1);
    assert_int_equal(errno, EMSGSIZE);
    assert_int_equal(vfuc_dirty_start(f->client, 3, NULL, 0), -1);
    assert_int_equal(errno, EINVAL);
}

/* What is written by messages is told to the client's owner. */
static void test_written_by_message(void **state)
{
    struct fixture *f = *state;
    uint8_t bytes[256] = { 0 };
    const vfuc_memory_t memory = {
        .iova = IOVA,
        .size = sizeof(bytes),
        .prot = PROT_READ | PROT_WRITE,
        .fd = -1,
        .vaddr = bytes,
    };

    assert_int_equal(vfuc_dma_map(f->client, &memory), 0);
    assert_int_equal(device_do(f->client, DEVICE_FILL_BY_MESSAGE, IOVA + 16, 32), 0);
    assert_int_equal(bytes[15], 0);
    assert_int_equal(bytes[16], DEVICE_FILL);
    assert_int_equal(bytes[48], 0);
    assert_int_equal(f->written, 32);
    assert_int_equal(device_do(f->client, DEVICE_SUM_BY_MESSAGE, IOVA, 256), 32 * DEVICE_FILL);
    assert_int_equal(vfuc_dma_messages(f->client), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_probe, setup, teardown),
        cmocka_unit_test_setup_teardown(test_states, setup, teardown),
        cmocka_unit_test_setup_teardown(test_save_and_load, setup, teardown),
        cmocka_unit_test_setup_teardown(test_save_running, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failures, setup, teardown),
        cmocka_unit_test_setup_teardown(test_load_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dirty_pages, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dirty_sizes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_written_by_message, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
