/* SPDX-License-Identifier: BSD-3-Clause */
/* Regions, interrupts, ioeventfds and configuration space, against a device in a thread. */
#include "client_device.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

struct fixture {
    struct device *device;
    vfuc_t *client;
};

static int setup(void **state)
{
    static struct fixture fixture;

    fixture.device = device_create();
    fixture.client = vfuc_connect(fixture.device->path, NULL);
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

static void test_device_info(void **state)
{
    struct fixture *f = *state;
    vfuc_device_info_t info;

    assert_int_equal(vfuc_device_info(f->client, &info), 0);
    assert_true(info.flags & VFIO_DEVICE_FLAGS_PCI);
    assert_int_equal(info.num_regions, VFU_PCI_DEV_NUM_REGIONS);
    assert_int_equal(info.num_irqs, VFU_DEV_NUM_IRQS);
    assert_int_equal(vfuc_irq_count(f->client, VFIO_PCI_MSIX_IRQ_INDEX), DEVICE_NR_IRQS);
    assert_int_equal(vfuc_irq_count(f->client, 5), -1);
    assert_int_equal(errno, EINVAL);
}

/* Mapped regions */

static void test_sparse_mapping(void **state)
{
    struct fixture *f = *state;
    vfuc_mapped_area_t areas[4];
    vfuc_mapping_t *mapping = vfuc_region_mmap(f->client, 2, PROT_READ | PROT_WRITE);
    uint8_t *data = malloc(DEVICE_BAR2_SIZE);

    assert_non_null(mapping);
    assert_non_null(data);
    assert_int_equal(vfuc_mapping_areas(mapping, NULL, 0), 2);
    assert_int_equal(vfuc_mapping_areas(mapping, areas, 4), 2);
    assert_int_equal(areas[0].offset, DEVICE_AREA0);
    assert_int_equal(areas[0].size, DEVICE_AREA0_SIZE);
    assert_int_equal(areas[1].offset, DEVICE_AREA1);
    assert_int_equal(areas[1].size, DEVICE_AREA1_SIZE);
    assert_ptr_equal(vfuc_mapping_at(mapping, DEVICE_AREA0 + 8, 8), (char *)areas[0].vaddr + 8);
    assert_null(vfuc_mapping_at(mapping, 0, 8));
    assert_null(vfuc_mapping_at(mapping, DEVICE_AREA0 + DEVICE_AREA0_SIZE - 4, 8));
    assert_null(vfuc_mapping_at(mapping, DEVICE_AREA0 - 4, 8));

    /* Everything at once: two areas in place, the three parts around them by messages. */
    for (size_t i = 0; i < DEVICE_BAR2_SIZE; i++) {
        data[i] = (uint8_t)(i * 31 >> 3);
    }
    assert_int_equal(vfuc_mapping_write(mapping, 0, data, DEVICE_BAR2_SIZE), 0);
    assert_int_equal(f->device->bar2_messages, 3);
    assert_memory_equal(f->device->bar2, data, DEVICE_BAR2_SIZE);
    memset(data, 0, DEVICE_BAR2_SIZE);
    assert_int_equal(vfuc_mapping_read(mapping, 1, data + 1, DEVICE_BAR2_SIZE - 1), 0);
    assert_int_equal(f->device->bar2_messages, 6);
    data[0] = f->device->bar2[0];
    assert_memory_equal(f->device->bar2, data, DEVICE_BAR2_SIZE);

    assert_int_equal(vfuc_mapping_read(mapping, DEVICE_BAR2_SIZE - 1, data, 2), -1);
    assert_int_equal(errno, EINVAL);
    assert_int_equal(vfuc_mapping_read(mapping, UINT64_MAX, data, 2), -1);
    assert_int_equal(errno, EINVAL);
    vfuc_region_munmap(mapping);
    free(data);
}

static void test_word_sizes(void **state)
{
    struct fixture *f = *state;
    vfuc_mapping_t *mapping = vfuc_region_mmap(f->client, 2, PROT_READ | PROT_WRITE);
    uint8_t odd[9];

    for (size_t size = 1; size <= 8; size++) {
        for (size_t i = 0; i < size; i++) {
            odd[i + 1] = (uint8_t)(size * 16 + i);
        }
        assert_int_equal(vfuc_mapping_write(mapping, DEVICE_AREA0 + 16 * size, odd + 1, size), 0);
        assert_memory_equal(f->device->bar2 + DEVICE_AREA0 + 16 * size, odd + 1, size);
        memset(odd, 0, sizeof(odd));
        assert_int_equal(vfuc_mapping_read(mapping, DEVICE_AREA0 + 16 * size, odd + 1, size), 0);
        assert_memory_equal(f->device->bar2 + DEVICE_AREA0 + 16 * size, odd + 1, size);
    }
    assert_int_equal(f->device->bar2_messages, 0);
    vfuc_region_munmap(mapping);
}

static void test_other_mappings(void **state)
{
    struct fixture *f = *state;
    vfuc_mapped_area_t area;
    vfuc_mapping_t *whole, *none, *readable;
    uint32_t value = 0x12345678;

    whole = vfuc_region_mmap(f->client, 4, PROT_READ);
    assert_int_equal(vfuc_mapping_areas(whole, &area, 1), 1);
    assert_int_equal(area.offset, 0);
    assert_int_equal(area.size, DEVICE_BAR4_SIZE);

    none = vfuc_region_mmap(f->client, 0, PROT_READ | PROT_WRITE);
    assert_int_equal(vfuc_mapping_areas(none, &area, 1), 0);
    assert_int_equal(vfuc_mapping_write(none, 12, &value, 4), 0);
    assert_memory_equal(f->device->bar0 + 12, &value, 4);

    /* What is mapped for reading only is written by messages. */
    readable = vfuc_region_mmap(f->client, 2, PROT_READ);
    assert_int_equal(vfuc_mapping_write(readable, DEVICE_AREA0, &value, 4), 0);
    assert_int_equal(f->device->bar2_messages, 1);
    assert_memory_equal(vfuc_mapping_at(readable, DEVICE_AREA0, 4), &value, 4);

    assert_null(vfuc_region_mmap(f->client, 9, PROT_READ));
    assert_int_equal(errno, EINVAL);
    assert_null(vfuc_region_mmap(f->client, 2, 0));
    assert_int_equal(errno, EINVAL);
    vfuc_region_munmap(whole);
    vfuc_region_munmap(NULL);
    /* The others are for vfuc_disconnect(). */
}

/* Writes that nobody waits for */

static void test_posted_writes(void **state)
{
    struct fixture *f = *state;
    vfuc_write_t writes[450];
    uint32_t seen;

    for (uint32_t i = 0; i < 450; i++) {
        writes[i] = (vfuc_write_t){ .offset = i % 64 * 4, .region = 0, .count = 4 };
        memcpy(writes[i].data, &i, 4);
    }
    assert_int_equal(vfuc_region_post_many(f->client, writes, 450), 0);
    assert_int_equal(vfuc_region_post(f->client, 0, 0, "last", 4), 0);
    /* In order: what comes after them finds them done. */
    assert_int_equal(vfuc_region_read(f->client, 0, 4, &seen, 4), 0);
    assert_int_equal(seen, 449 / 64 * 64 + 1);
    assert_int_equal(f->device->bar0_writes, 451);
    assert_memory_equal(f->device->bar0, "last", 4);

    writes[3].count = 9;
    assert_int_equal(vfuc_region_post_many(f->client, writes, 450), -1);
    assert_int_equal(errno, EINVAL);
    writes[3].count = 0;
    assert_int_equal(vfuc_region_post_many(f->client, writes, 450), -1);
    assert_int_equal(errno, EINVAL);
    assert_int_equal(vfuc_region_read(f->client, 0, 4, &seen, 4), 0);
    assert_int_equal(f->device->bar0_writes, 451);
}

/* Many at a time */

struct flight {
    vfuc_t *client;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    unsigned done, wrong;
    int error;
    int nested; /* what a call that waits said on the receiver thread */
};

static void init_flight(struct flight *flight, vfuc_t *client)
{
    memset(flight, 0, sizeof(*flight));
    flight->client = client;
    pthread_mutex_init(&flight->lock, NULL);
    pthread_cond_init(&flight->cond, NULL);
}

static void land(struct flight *flight, int error, bool right)
{
    pthread_mutex_lock(&flight->lock);
    flight->done++;
    flight->wrong += !right;
    flight->error = error;
    pthread_cond_signal(&flight->cond);
    pthread_mutex_unlock(&flight->lock);
}

static void wait_for(struct flight *flight, unsigned done)
{
    pthread_mutex_lock(&flight->lock);
    while (flight->done < done) {
        pthread_cond_wait(&flight->cond, &flight->lock);
    }
    pthread_mutex_unlock(&flight->lock);
}

static void read_done(void *pvt, int error, const void *payload, size_t len)
{
    uint64_t value = 0;

    if (len == sizeof(value)) {
        memcpy(&value, payload, sizeof(value));
    }
    land(pvt, error, error == 0 && value == 0x1122334455667788);
}

static void write_done(void *pvt, int error, const void *payload, size_t len)
{
    (void)payload;
    (void)len;
    land(pvt, error, error == 0);
}

static void test_many_in_flight(void **state)
{
    struct fixture *f = *state;
    const uint64_t value = 0x1122334455667788;
    struct flight flight;

    init_flight(&flight, f->client);
    for (unsigned i = 0; i < 1000; i++) {
        assert_int_equal(vfuc_region_write_start(f->client, 0, i % 32 * 8, &value, 8, write_done,
                                                 &flight), 0);
        assert_int_equal(vfuc_region_read_start(f->client, 0, i % 32 * 8, 8, read_done, &flight),
                         0);
    }
    wait_for(&flight, 2000);
    assert_int_equal(flight.wrong, 0);

    assert_int_equal(vfuc_region_read_start(f->client, 9, 0, 8, read_done, &flight), 0);
    wait_for(&flight, 2001);
    assert_int_equal(flight.error, EINVAL);
    assert_int_equal(vfuc_region_read_start(f->client, 0, 0, 2 << 20, read_done, &flight), -1);
    assert_int_equal(errno, EINVAL);
    assert_int_equal(vfuc_region_read_start(f->client, 0, 0, 8, NULL, &flight), -1);
    assert_int_equal(errno, EINVAL);
}

static void *reader(void *arg)
{
    struct flight *flight = arg;
    uint64_t value;

    for (int i = 0; i < 200; i++) {
        bool ok = vfuc_region_read(flight->client, 0, 0, &value, sizeof(value)) == 0;

        land(flight, 0, ok && value == 0x1122334455667788);
    }
    return NULL;
}

static void test_many_threads(void **state)
{
    struct fixture *f = *state;
    const uint64_t value = 0x1122334455667788;
    struct flight flight;
    pthread_t threads[4];

    init_flight(&flight, f->client);
    assert_int_equal(vfuc_region_write(f->client, 0, 0, &value, sizeof(value)), 0);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, reader, &flight), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(flight.done, 800);
    assert_int_equal(flight.wrong, 0);
}

/* On the receiver thread what waits is refused, and what does not is not. */
static void nested(void *pvt, int error, const void *payload, size_t len)
{
    const uint64_t value = 0x1122334455667788;
    struct flight *flight = pvt;
    uint32_t data;

    (void)error;
    (void)payload;
    (void)len;
    errno = 0;
    vfuc_region_read(flight->client, 0, 0, &data, sizeof(data));
    flight->nested = errno;
    errno = 0;
    vfuc_region_mmap(flight->client, 2, PROT_READ);
    flight->nested = flight->nested == errno ? errno : -1;
    errno = 0;
    vfuc_reconnect(flight->client);
    flight->nested = flight->nested == errno ? errno : -1;
    vfuc_disconnect(flight->client);
    vfuc_region_post(flight->client, 0, 0, &value, sizeof(value));
    if (vfuc_region_read_start(flight->client, 0, 0, 8, read_done, flight) < 0) {
        land(flight, errno, false);
    }
}

static void test_calls_from_callbacks(void **state)
{
    struct fixture *f = *state;
    struct flight flight;

    init_flight(&flight, f->client);
    assert_int_equal(vfuc_region_read_start(f->client, 0, 0, 8, nested, &flight), 0);
    wait_for(&flight, 1);
    assert_int_equal(flight.nested, EDEADLK);
    assert_int_equal(flight.wrong, 0);
}

static void note_signals(void *pvt, int error, const void *payload, size_t len)
{
    struct flight *flight = pvt;
    sigset_t blocked;

    (void)payload;
    (void)len;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    flight->nested = sigismember(&blocked, SIGTERM);
    land(flight, error, true);
}

/* The program's handlers run on the program's threads. */
static void test_signals_are_not_for_the_receiver(void **state)
{
    struct fixture *f = *state;
    struct flight flight;
    sigset_t blocked;

    init_flight(&flight, f->client);
    assert_int_equal(vfuc_region_read_start(f->client, 0, 0, 8, note_signals, &flight), 0);
    wait_for(&flight, 1);
    assert_int_equal(flight.nested, 1);
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    assert_int_equal(sigismember(&blocked, SIGTERM), 0);
}

/* Those that are in flight at the end are told. */
static void test_ended_by_disconnect(void **state)
{
    struct fixture *f = *state;
    struct flight flight;

    init_flight(&flight, f->client);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(vfuc_region_read_start(f->client, 0, 0, 8, read_done, &flight), 0);
    }
    vfuc_disconnect(f->client);
    f->client = NULL;
    assert_int_equal(flight.done, 100);
}

/* Ioeventfds */

static void test_ioeventfds(void **state)
{
    struct fixture *f = *state;
    unsigned fds = open_fds();
    const uint64_t one = 1;
    vfuc_ioeventfd_t list[4];
    uint64_t seen = 0;

    assert_int_equal(vfuc_region_ioeventfds(f->client, 0, list, 1), 2);
    assert_int_equal(open_fds(), fds);
    assert_int_equal(vfuc_region_ioeventfds(f->client, 0, list, 4), 2);
    assert_int_equal(list[0].offset, DEVICE_REG_IOEVENT + 8);
    assert_int_equal(list[0].type, VFIO_USER_IO_FD_TYPE_IOEVENTFD_SHADOW);
    assert_int_equal(list[0].shadow_offset, 64);
    assert_true(list[0].shadow_fd >= 0);
    assert_int_equal(list[1].offset, DEVICE_REG_IOEVENT);
    assert_int_equal(list[1].size, 4);
    assert_int_equal(list[1].type, VFIO_USER_IO_FD_TYPE_IOEVENTFD);
    assert_int_equal(list[1].datamatch, 7);
    assert_int_equal(list[1].flags, 1);
    assert_int_equal(list[1].shadow_fd, -1);
    assert_int_not_equal(list[0].fd, list[1].fd);
    assert_int_equal(write(list[0].fd, &one, sizeof(one)), sizeof(one));
    assert_int_equal(write(list[1].fd, &one, sizeof(one)), sizeof(one));
    assert_int_equal(read(f->device->ioeventfd, &seen, sizeof(seen)), sizeof(seen));
    assert_int_equal(seen, 2);
    vfuc_close_ioeventfds(list, 2);
    assert_int_equal(open_fds(), fds);

    assert_int_equal(vfuc_region_ioeventfds(f->client, 4, list, 4), 0);
    assert_int_equal(vfuc_region_ioeventfds(f->client, 1, list, 4), -1);
    assert_int_equal(errno, EINVAL);
}

/* Configuration space */

static void test_capabilities(void **state)
{
    struct fixture *f = *state;
    vfuc_capability_t list[8];
    uint16_t vendor;

    assert_int_equal(vfuc_config_read(f->client, PCI_VENDOR_ID, &vendor, 2), 0);
    assert_int_equal(vendor, 0x1234);
    assert_int_equal(vfuc_config_capabilities(f->client, list, 8), 3);
    assert_int_equal(list[0].id, PCI_CAP_ID_EXP);
    assert_false(list[0].extended);
    assert_int_equal(list[1].id, PCI_CAP_ID_MSIX);
    assert_int_equal(list[2].id, PCI_EXT_CAP_ID_DSN);
    assert_int_equal(list[2].version, 1);
    assert_int_equal(list[2].offset, 0x100);
    assert_true(list[2].extended);
    assert_int_equal(vfuc_config_capabilities(f->client, NULL, 0), 3);
    assert_int_equal(vfuc_config_find(f->client, false, PCI_CAP_ID_MSIX), list[1].offset);
    assert_int_equal(vfuc_config_find(f->client, true, PCI_EXT_CAP_ID_DSN), 0x100);
    assert_int_equal(vfuc_config_find(f->client, true, PCI_CAP_ID_MSIX), -1);
    assert_int_equal(errno, ENOENT);
}

/* Interrupts */

static bool signalled(int fd)
{
    uint64_t count = 0;

    return read(fd, &count, sizeof(count)) == sizeof(count) && count == 1;
}

static void test_interrupts(void **state)
{
    struct fixture *f = *state;
    int fds[DEVICE_NR_IRQS];

    for (int i = 0; i < DEVICE_NR_IRQS; i++) {
        fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
    assert_int_equal(vfuc_irq_set_eventfds(f->client, VFIO_PCI_MSIX_IRQ_INDEX, 0, DEVICE_NR_IRQS,
                                           fds), 0);
    assert_int_equal(device_do(f->client, DEVICE_INTERRUPT, 0, 18), 0);
    assert_true(signalled(fds[18]));

    /* -1 takes single ones away. */
    close(fds[17]);
    fds[17] = -1;
    assert_int_equal(vfuc_irq_set_eventfds(f->client, VFIO_PCI_MSIX_IRQ_INDEX, 16, 4, fds + 16), 0);
    assert_int_equal(device_do(f->client, DEVICE_INTERRUPT, 0, 17), ENOENT);
    assert_int_equal(device_do(f->client, DEVICE_INTERRUPT, 0, 19), 0);
    assert_true(signalled(fds[19]));
    assert_int_equal(vfuc_irq_set_eventfds(f->client, VFIO_PCI_MSIX_IRQ_INDEX, 19, 2, fds), -1);
    assert_int_equal(errno, EINVAL);
    assert_int_equal(vfuc_irq_set_eventfds(f->client, VFIO_PCI_MSIX_IRQ_INDEX, 4000, 1, fds), -1);
    assert_int_equal(errno, EINVAL);
    /* A descriptor that is not one costs the call and not the connection. */
    fds[17] = 1000000;
    assert_int_equal(vfuc_irq_set_eventfds(f->client, VFIO_PCI_MSIX_IRQ_INDEX, 17, 1, fds + 17),
                     -1);
    assert_int_equal(errno, EBADF);
    assert_int_equal(vfuc_irq_disable(f->client, VFIO_PCI_MSIX_IRQ_INDEX), 0);
    assert_int_equal(device_do(f->client, DEVICE_INTERRUPT, 0, 0), ENOENT);
    for (int i = 0; i < DEVICE_NR_IRQS; i++) {
        if (i != 17) {
            close(fds[i]);
        }
    }
}

/* Memory */

static void test_memory(void **state)
{
    struct fixture *f = *state;
    uint8_t bytes[0x3000] = { 0 };
    vfuc_memory_t memory = {
        .iova = 0x10000, .size = 0x1000, .prot = PROT_READ, .fd = -1, .vaddr = bytes,
    };

    assert_int_equal(vfuc_dma_map(f->client, &memory), 0);
    assert_int_equal(vfuc_dma_map(f->client, &memory), 0); /* the same again is no error */
    memory.size = 0x2000;
    assert_int_equal(vfuc_dma_map(f->client, &memory), -1);
    assert_int_equal(errno, EEXIST);
    memory = (vfuc_memory_t){
        .iova = 0x11000, .size = 0x1000, .prot = PROT_WRITE, .fd = -1, .vaddr = bytes + 0x1000,
    };
    assert_int_equal(vfuc_dma_map(f->client, &memory), 0);
    memory.iova = 0x12000;
    memory.size = 0x1000;
    memory.vaddr = bytes + 0x2000;
    assert_int_equal(vfuc_dma_map(f->client, &memory), 0);
    assert_int_equal(device_do(f->client, DEVICE_SUM_BY_MESSAGE, 0x10800, 16), 0);
    assert_int_equal(device_do(f->client, DEVICE_FILL_BY_MESSAGE, 0x12ff0, 16), 0);
    assert_int_equal(bytes[0x2fff], DEVICE_FILL);

    memory.size = UINT64_MAX;
    assert_int_equal(vfuc_dma_map(f->client, &memory), -1);
    assert_int_equal(errno, EINVAL);
    assert_int_equal(vfuc_dma_unmap(f->client, &memory), -1);
    assert_int_equal(errno, EINVAL);
    memory.size = 0x1000;
    assert_int_equal(vfuc_dma_unmap(f->client, &memory), 0);
    assert_int_equal(device_do(f->client, DEVICE_FILL_BY_MESSAGE, 0x12000, 16), ENOENT);
    assert_int_equal(vfuc_dma_unmap_all(f->client), 0);
    assert_int_equal(device_do(f->client, DEVICE_SUM_BY_MESSAGE, 0x10000, 16), ENOENT);
    assert_int_equal(vfuc_dma_map(f->client, &memory), 0);
}

/* The server shortens what both have mapped: no access kills us, and ours of a region say so. */
static void test_truncated_region(void **state)
{
    struct fixture *f = *state;
    vfuc_mapping_t *mapping = vfuc_region_mmap(f->client, 2, PROT_READ | PROT_WRITE);
    volatile uint8_t *at;
    uint32_t value = 7;

    assert_non_null(mapping);
    at = vfuc_mapping_at(mapping, DEVICE_AREA0, 8);
    assert_non_null((void *)(uintptr_t)at);
    assert_int_equal(vfuc_mapping_write(mapping, DEVICE_AREA0, &value, sizeof(value)), 0);
    assert_return_code(ftruncate(f->device->bar2_fd, 0), errno);
    assert_int_equal(vfuc_mapping_read(mapping, DEVICE_AREA0, &value, sizeof(value)), -1);
    assert_int_equal(errno, EIO);
    assert_int_equal(vfuc_mapping_write(mapping, DEVICE_AREA0, &value, sizeof(value)), -1);
    assert_int_equal(errno, EIO);
    *at = 1;
    assert_return_code(ftruncate(f->device->bar2_fd, DEVICE_BAR2_SIZE), errno);
    vfuc_region_munmap(mapping);
    mapping = vfuc_region_mmap(f->client, 2, PROT_READ);
    assert_non_null(mapping);
    assert_int_equal(vfuc_mapping_read(mapping, DEVICE_AREA0, &value, sizeof(value)), 0);
    vfuc_region_munmap(mapping);
}

/* The server has the file of our memory too: the receiver thread finds it shorter. */
static void test_truncated_memory(void **state)
{
    struct fixture *f = *state;
    vfuc_memory_t memory = {
        .iova = 0x10000,
        .size = 0x4000,
        .prot = PROT_READ | PROT_WRITE,
        .fd = memfd_create("RAM", MFD_CLOEXEC),
    };

    assert_return_code(ftruncate(memory.fd, 0x4000), errno);
    memory.vaddr = mmap(NULL, memory.size, memory.prot, MAP_SHARED, memory.fd, 0);
    assert_ptr_not_equal(memory.vaddr, MAP_FAILED);
    assert_int_equal(vfuc_dma_map(f->client, &memory), 0);
    assert_return_code(ftruncate(memory.fd, 0), errno);
    assert_int_equal(device_do(f->client, DEVICE_FILL_BY_MESSAGE, 0x11000, 16), 0);
    assert_int_equal(device_do(f->client, DEVICE_SUM_BY_MESSAGE, 0x12000, 16), 0);
    assert_int_equal(vfuc_dma_unmap(f->client, &memory), 0);
    munmap(memory.vaddr, memory.size);
    close(memory.fd);
}

static void test_reset(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(vfuc_reset(f->client), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_device_info, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sparse_mapping, setup, teardown),
        cmocka_unit_test_setup_teardown(test_word_sizes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_mappings, setup, teardown),
        cmocka_unit_test_setup_teardown(test_posted_writes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_in_flight, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_threads, setup, teardown),
        cmocka_unit_test_setup_teardown(test_calls_from_callbacks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_signals_are_not_for_the_receiver, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ended_by_disconnect, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ioeventfds, setup, teardown),
        cmocka_unit_test_setup_teardown(test_capabilities, setup, teardown),
        cmocka_unit_test_setup_teardown(test_interrupts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(test_truncated_region, setup, teardown),
        cmocka_unit_test_setup_teardown(test_truncated_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reset, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
