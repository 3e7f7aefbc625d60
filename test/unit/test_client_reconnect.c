/* SPDX-License-Identifier: BSD-3-Clause */
/* The server goes away and comes back: what was set up is there again. */
#include "client_device.h"

#include <errno.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE 4096
#define IOVA 0x100000

struct fixture {
    struct device *device;
    vfuc_t *client;
    int lost_fd; /* counts */
    int lost_error;
    _Atomic bool stop;
    _Atomic unsigned reads, refused, wrong;
};

static void on_lost(void *pvt, int error)
{
    const uint64_t one = 1;
    struct fixture *f = pvt;

    f->lost_error = error;
    if (write(f->lost_fd, &one, sizeof(one)) != sizeof(one)) {
        f->lost_error = -1;
    }
}

static int setup(void **state)
{
    static struct fixture fixture;
    const vfuc_options_t options = { .pvt = &fixture, .lost = on_lost };

    memset(&fixture, 0, sizeof(fixture));
    fixture.lost_fd = eventfd(0, EFD_CLOEXEC);
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
    close(f->lost_fd);
    return 0;
}

static void wait_until_lost(struct fixture *f)
{
    uint64_t count = 0;

    assert_int_equal(read(f->lost_fd, &count, sizeof(count)), sizeof(count));
    assert_int_equal(count, 1);
}

static void *map_memory(vfuc_t *client, int fd, uint64_t iova, uint64_t size, uint64_t offset)
{
    void *vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    const vfuc_memory_t memory = {
        .iova = iova,
        .size = size,
        .prot = PROT_READ | PROT_WRITE,
        .fd = fd,
        .fd_offset = offset,
        .vaddr = vaddr,
    };

    assert_ptr_not_equal(vaddr, MAP_FAILED);
    assert_int_equal(vfuc_dma_map(client, &memory), 0);
    return vaddr;
}

/* The client stands there without a server. */
static void check_lost(struct fixture *f)
{
    uint8_t bytes[4];

    wait_until_lost(f);
    assert_int_equal(f->lost_error, ENOTCONN);
    assert_int_equal(vfuc_region_read(f->client, 0, 0, bytes, 4), -1);
    assert_int_equal(errno, ENOTCONN);
    assert_int_equal(vfuc_region_post(f->client, 0, 0, bytes, 4), -1);
    assert_int_equal(errno, ENOTCONN);
    assert_int_equal(vfuc_reconnect(f->client), -1);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(vfuc_region_read(f->client, 0, 0, bytes, 4), -1);
    assert_int_equal(errno, ENOTCONN);
}

static void test_everything_is_there_again(void **state)
{
    struct fixture *f = *state;
    int guest = memfd_create("guest", MFD_CLOEXEC), irqs[3];
    vfuc_mapping_t *mapping = vfuc_region_mmap(f->client, 2, PROT_READ | PROT_WRITE);
    uint8_t *area = vfuc_mapping_at(mapping, DEVICE_AREA0, 16), *memory, messages[64] = { 0 };
    const vfuc_memory_t by_message = {
        .iova = 0x5000, .size = 64, .prot = PROT_WRITE, .fd = -1, .vaddr = messages,
    };
    uint64_t count;

    assert_int_equal(ftruncate(guest, 64 * PAGE), 0);
    memory = map_memory(f->client, guest, IOVA, 64 * PAGE, 0);
    assert_int_equal(vfuc_dma_map(f->client, &by_message), 0);
    for (int i = 0; i < 3; i++) {
        irqs[i] = eventfd(0, EFD_CLOEXEC);
    }
    assert_int_equal(vfuc_irq_set_eventfds(f->client, VFIO_PCI_MSIX_IRQ_INDEX, 2, 3, irqs), 0);
    area[0] = 1;

    device_stop(f->device);
    device_forget_bar2(f->device);
    check_lost(f);
    device_start(f->device);
    assert_int_equal(vfuc_reconnect(f->client), 0);

    assert_int_equal(device_do(f->client, DEVICE_FILL_DIRECT, IOVA + 63 * PAGE, PAGE), 0);
    assert_int_equal(memory[64 * PAGE - 1], DEVICE_FILL);
    assert_int_equal(device_do(f->client, DEVICE_FILL_BY_MESSAGE, 0x5000, 64), 0);
    assert_int_equal(messages[63], DEVICE_FILL);
    assert_int_equal(device_do(f->client, DEVICE_INTERRUPT, 0, 4), 0);
    assert_int_equal(read(irqs[2], &count, sizeof(count)), sizeof(count));
    assert_int_equal(device_do(f->client, DEVICE_INTERRUPT, 0, 1), ENOENT);
    /* The same addresses, and the new device's memory there. */
    assert_int_equal(area[0], 0);
    area[1] = 7;
    assert_int_equal(f->device->bar2[DEVICE_AREA0 + 1], 7);

    for (int i = 0; i < 3; i++) {
        close(irqs[i]);
    }
    munmap(memory, 64 * PAGE);
    close(guest);
}

/* What was taken away while there was no server does not come back. */
static void test_taken_away_meanwhile(void **state)
{
    struct fixture *f = *state;
    uint8_t bytes[64];
    vfuc_memory_t memory = {
        .iova = 0x5000, .size = 64, .prot = PROT_WRITE, .fd = -1, .vaddr = bytes,
    };
    int irq = eventfd(0, EFD_CLOEXEC);

    assert_int_equal(vfuc_dma_map(f->client, &memory), 0);
    memory.iova = 0x6000;
    assert_int_equal(vfuc_dma_map(f->client, &memory), 0);
    assert_int_equal(vfuc_irq_set_eventfds(f->client, VFIO_PCI_MSIX_IRQ_INDEX, 0, 1, &irq), 0);
    device_stop(f->device);
    check_lost(f);
    assert_int_equal(vfuc_dma_unmap(f->client, &memory), -1);
    assert_int_equal(errno, ENOTCONN);
    assert_int_equal(vfuc_irq_disable(f->client, VFIO_PCI_MSIX_IRQ_INDEX), -1);
    assert_int_equal(errno, ENOTCONN);
    memory.iova = 0x7000;
    assert_int_equal(vfuc_dma_map(f->client, &memory), -1);
    assert_int_equal(errno, ENOTCONN);
    close(irq);

    device_start(f->device);
    assert_int_equal(vfuc_reconnect(f->client), 0);
    assert_int_equal(device_do(f->client, DEVICE_FILL_BY_MESSAGE, 0x5000, 64), 0);
    assert_int_equal(device_do(f->client, DEVICE_FILL_BY_MESSAGE, 0x6000, 64), ENOENT);
    assert_int_equal(device_do(f->client, DEVICE_FILL_BY_MESSAGE, 0x7000, 64), ENOENT);
    assert_int_equal(device_do(f->client, DEVICE_INTERRUPT, 0, 0), ENOENT);
}

/* Nor does what was taken away beside something else that was to be set. */
static void test_one_taken_away_meanwhile(void **state)
{
    struct fixture *f = *state;
    int irqs[] = { eventfd(0, EFD_CLOEXEC), eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
    int changed[] = { -1, irqs[0] };
    uint64_t count;

    assert_int_equal(vfuc_irq_set_eventfds(f->client, VFIO_PCI_MSIX_IRQ_INDEX, 0, 2, irqs), 0);
    device_stop(f->device);
    check_lost(f);
    assert_int_equal(vfuc_irq_set_eventfds(f->client, VFIO_PCI_MSIX_IRQ_INDEX, 0, 2, changed), -1);
    assert_int_equal(errno, ENOTCONN);
    close(irqs[0]);

    device_start(f->device);
    assert_int_equal(vfuc_reconnect(f->client), 0);
    assert_int_equal(device_do(f->client, DEVICE_INTERRUPT, 0, 0), ENOENT);
    assert_int_equal(device_do(f->client, DEVICE_INTERRUPT, 0, 1), 0);
    assert_int_equal(read(irqs[1], &count, sizeof(count)), sizeof(count));
    close(irqs[1]);
}

/* A device with other areas is not the same: nothing is mapped where something else was. */
static void test_another_device(void **state)
{
    struct fixture *f = *state;
    vfuc_mapping_t *mapping = vfuc_region_mmap(f->client, 2, PROT_READ | PROT_WRITE);
    uint8_t *area = vfuc_mapping_at(mapping, DEVICE_AREA1, 16), byte;

    area[0] = 9;
    device_stop(f->device);
    device_forget_bar2(f->device);
    check_lost(f);
    f->device->other_areas = true;
    device_start(f->device);
    assert_int_equal(vfuc_reconnect(f->client), -1);
    assert_int_equal(errno, ESTALE);
    assert_int_equal(area[0], 9);
    assert_int_equal(vfuc_region_read(f->client, 0, 0, &byte, 1), -1);
    assert_int_equal(errno, ENOTCONN);

    /* Without that mapping it will do. */
    vfuc_region_munmap(mapping);
    assert_int_equal(vfuc_reconnect(f->client), 0);
    assert_int_equal(vfuc_region_read(f->client, 0, 0, &byte, 1), 0);
}

/* Mappings of every address space are there again. */
static void test_spaces(void **state)
{
    struct fixture *f = *state;
    const vfuc_options_t options = { .iommu = { 8, false, false, 8, 12, 64, 0 } };
    uint8_t bytes[PAGE];
    vfuc_memory_t spaces[] = {
        { .has_pasid = true, .pasid = 3 },
        { .has_pasid = true, .pasid = 0 },
        { .translated = true },
        { .pasid = 7 }, /* of none */
    };
    vfuc_t *client;

    f->device->iommu = true;
    device_stop(f->device);
    device_start(f->device);
    wait_until_lost(f);
    client = vfuc_connect(f->device->path, &options);
    assert_non_null(client);
    for (int i = 0; i < 4; i++) {
        spaces[i].iova = IOVA;
        spaces[i].size = PAGE;
        spaces[i].prot = PROT_READ;
        spaces[i].fd = -1;
        spaces[i].vaddr = bytes;
        assert_int_equal(vfuc_dma_map(client, &spaces[i]), 0);
    }
    assert_int_equal(vfuc_dma_unmap(client, &spaces[1]), 0);
    assert_int_equal(vfuc_reconnect(client), 0);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(vfuc_dma_unmap(client, &spaces[i]), i == 1 ? -1 : 0);
    }

    /* The same without the extension is not the same. */
    device_stop(f->device);
    f->device->iommu = false;
    device_start(f->device);
    assert_int_equal(vfuc_reconnect(client), -1);
    assert_int_equal(errno, ESTALE);
    vfuc_disconnect(client);
}

/* By our own will: nobody is told that it was lost, and nothing leaks. */
static void test_again_and_again(void **state)
{
    struct fixture *f = *state;
    unsigned fds = 0;
    uint64_t count = 1;
    uint8_t byte;

    for (int i = 0; i < 20; i++) {
        assert_int_equal(vfuc_reconnect(f->client), 0);
        assert_int_equal(vfuc_region_read(f->client, 0, 0, &byte, 1), 0);
        if (i == 0) {
            fds = open_fds();
        }
    }
    assert_int_equal(open_fds(), fds);
    assert_int_equal(write(f->lost_fd, &count, sizeof(count)), sizeof(count));
    wait_until_lost(f);
}

static void *keep_reading(void *arg)
{
    struct fixture *f = arg;
    uint64_t value;

    while (!f->stop) {
        if (vfuc_region_read(f->client, 0, 0, &value, sizeof(value)) == 0) {
            f->reads++;
        } else if (errno == ENOTCONN) {
            f->refused++;
        } else {
            f->wrong++;
        }
    }
    return NULL;
}

static void test_under_load(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[2];

    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, keep_reading, f), 0);
    }
    for (int i = 0; i < 20; i++) {
        unsigned before = f->reads;

        assert_int_equal(vfuc_reconnect(f->client), 0);
        while (f->reads == before) {
            sched_yield();
        }
    }
    f->stop = true;
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(f->wrong, 0);
}

/* What a call has said of a mapping is so, whenever the connection went. */
#define SLOTS 8
#define MAPPERS 4

struct mapper {
    struct fixture *f;
    uint64_t iova;
    uint8_t *bytes;
    bool there[SLOTS]; /* what the calls said */
};

static void *keep_mapping(void *arg)
{
    struct mapper *mapper = arg;
    unsigned slot = 0;

    while (!mapper->f->stop) {
        const vfuc_memory_t memory = {
            .iova = mapper->iova + slot * PAGE,
            .size = PAGE,
            .prot = PROT_WRITE,
            .fd = -1,
            .vaddr = mapper->bytes,
        };

        if (mapper->there[slot]) {
            bool gone = vfuc_dma_unmap(mapper->f->client, &memory) == 0 || errno == ENOTCONN;

            mapper->there[slot] = !gone;
            mapper->f->wrong += !gone;
        } else if (vfuc_dma_map(mapper->f->client, &memory) == 0) {
            mapper->there[slot] = true;
        } else {
            mapper->f->wrong += errno != ENOTCONN;
        }
        mapper->f->reads++;
        slot = (slot + 1) % SLOTS;
    }
    return NULL;
}

static void check_mapper(const struct mapper *mapper)
{
    for (unsigned slot = 0; slot < SLOTS; slot++) {
        assert_int_equal(device_do(mapper->f->client, DEVICE_FILL_BY_MESSAGE,
                                   mapper->iova + slot * PAGE, PAGE),
                         mapper->there[slot] ? 0 : ENOENT);
    }
}

static void test_mapping_meanwhile(void **state)
{
    struct fixture *f = *state;
    struct mapper mappers[MAPPERS];
    pthread_t threads[MAPPERS];
    uint8_t *bytes = calloc(1, PAGE);

    assert_non_null(bytes);
    for (uint64_t i = 0; i < MAPPERS; i++) {
        mappers[i] = (struct mapper){ .f = f, .iova = IOVA + i * 0x100000, .bytes = bytes };
        assert_int_equal(pthread_create(&threads[i], NULL, keep_mapping, &mappers[i]), 0);
    }
    for (int i = 0; i < 150; i++) {
        unsigned before = f->reads;

        assert_int_equal(vfuc_reconnect(f->client), 0);
        while (f->reads < before + 5) {
            sched_yield();
        }
    }
    f->stop = true;
    for (int i = 0; i < MAPPERS; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(f->wrong, 0);
    for (int i = 0; i < MAPPERS; i++) {
        check_mapper(&mappers[i]);
    }
    free(bytes);
}

/* One file, many mappings, some of them gone again. */
static void test_many_mappings(void **state)
{
    struct fixture *f = *state;
    int guest = memfd_create("guest", MFD_CLOEXEC);
    vfuc_memory_t range = { .iova = IOVA + 100 * PAGE, .size = PAGE };
    void *vaddr[500];

    assert_int_equal(ftruncate(guest, 500 * PAGE), 0);
    for (uint64_t i = 0; i < 500; i++) {
        vaddr[i] = map_memory(f->client, guest, IOVA + i * PAGE, PAGE, (499 - i) * PAGE);
    }
    for (; range.iova < IOVA + 200 * PAGE; range.iova += PAGE) {
        assert_int_equal(vfuc_dma_unmap(f->client, &range), 0);
    }
    assert_int_equal(vfuc_reconnect(f->client), 0);
    assert_int_equal(device_do(f->client, DEVICE_FILL_DIRECT, IOVA + 99 * PAGE, PAGE), 0);
    assert_int_equal(device_do(f->client, DEVICE_FILL_DIRECT, IOVA + 100 * PAGE, PAGE), ENOENT);
    assert_int_equal(device_do(f->client, DEVICE_FILL_DIRECT, IOVA + 199 * PAGE, PAGE), ENOENT);
    assert_int_equal(device_do(f->client, DEVICE_FILL_DIRECT, IOVA + 200 * PAGE, PAGE), 0);
    assert_int_equal(((uint8_t *)vaddr[200])[7], DEVICE_FILL);
    for (int i = 0; i < 500; i++) {
        munmap(vaddr[i], PAGE);
    }
    close(guest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_everything_is_there_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_taken_away_meanwhile, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_taken_away_meanwhile, setup, teardown),
        cmocka_unit_test_setup_teardown(test_another_device, setup, teardown),
        cmocka_unit_test_setup_teardown(test_spaces, setup, teardown),
        cmocka_unit_test_setup_teardown(test_again_and_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_under_load, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mapping_meanwhile, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_mappings, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
