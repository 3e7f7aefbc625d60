/* SPDX-License-Identifier: BSD-3-Clause */
#include "client_device.h"

#include "libvfio-user-iommu.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static uint32_t do_dma(struct device *device, uint64_t iova, uint32_t length, uint32_t command)
{
    uint8_t sgl[8 * 64] __attribute__((aligned(16))), buf[4096];
    dma_sg_t *sg = (dma_sg_t *)sgl;
    struct iovec iov;
    uint32_t sum = 0;
    int n;

    if (length > sizeof(buf) || dma_sg_size() > sizeof(sgl)) {
        return E2BIG;
    }
    n = vfu_addr_to_sgl(device->ctx, (vfu_dma_addr_t)(uintptr_t)iova, length, sg, 1,
                        command == DEVICE_SUM_BY_MESSAGE ? PROT_READ : PROT_WRITE);
    if (n != 1) {
        return errno != 0 ? (uint32_t)errno : E2BIG;
    }
    if (command == DEVICE_FILL_DIRECT) {
        if (vfu_sgl_get(device->ctx, sg, &iov, 1, 0) < 0) {
            return (uint32_t)errno;
        }
        memset(iov.iov_base, DEVICE_FILL, iov.iov_len);
        vfu_sgl_put(device->ctx, sg, &iov, 1);
        return 0;
    }
    if (command == DEVICE_FILL_BY_MESSAGE) {
        memset(buf, DEVICE_FILL, length);
        return vfu_sgl_write(device->ctx, sg, 1, buf, 0) < 0 ? (uint32_t)errno : 0;
    }
    if (vfu_sgl_read(device->ctx, sg, 1, buf, 0) < 0) {
        return (uint32_t)errno;
    }
    for (uint32_t i = 0; i < length; i++) {
        sum += buf[i];
    }
    return sum;
}

static void obey(struct device *device)
{
    uint64_t iova;
    uint32_t length, command, result;

    memcpy(&iova, device->bar0 + DEVICE_REG_IOVA, sizeof(iova));
    memcpy(&length, device->bar0 + DEVICE_REG_LENGTH, sizeof(length));
    memcpy(&command, device->bar0 + DEVICE_REG_COMMAND, sizeof(command));
    if (command == DEVICE_INTERRUPT) {
        result = vfu_irq_trigger(device->ctx, length) < 0 ? (uint32_t)errno : 0;
    } else {
        result = do_dma(device, iova, length, command);
    }
    memcpy(device->bar0 + DEVICE_REG_RESULT, &result, sizeof(result));
}

static ssize_t access_bar0(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct device *device = vfu_get_private(ctx);

    if (!is_write) {
        memcpy(buf, device->bar0 + offset, count);
        return (ssize_t)count;
    }
    memcpy(device->bar0 + offset, buf, count);
    device->bar0_writes++;
    if (offset == DEVICE_REG_COMMAND) {
        obey(device);
    }
    return (ssize_t)count;
}

static ssize_t access_bar2(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct device *device = vfu_get_private(ctx);

    device->bar2_messages++;
    if (is_write) {
        memcpy(device->bar2 + offset, buf, count);
    } else {
        memcpy(buf, device->bar2 + offset, count);
    }
    return (ssize_t)count;
}

/* Migration */

static int transition(vfu_ctx_t *ctx, vfu_migr_state_t state)
{
    struct device *device = vfu_get_private(ctx);

    if (state == VFU_MIGR_STATE_RESUME ||
        (state == VFU_MIGR_STATE_STOP_AND_COPY && device->migration == VFU_MIGR_STATE_STOP) ||
        state == VFU_MIGR_STATE_PRE_COPY) {
        device->state_at = 0;
    }
    device->migration = state;
    return 0;
}

static ssize_t read_state(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    struct device *device = vfu_get_private(ctx);
    size_t end = device->migration == VFU_MIGR_STATE_PRE_COPY ? device->precopy
                                                              : DEVICE_STATE_SIZE;
    size_t n = end - device->state_at < count ? end - device->state_at : (size_t)count;

    memcpy(buf, device->state + device->state_at, n);
    device->state_at += n;
    return (ssize_t)n;
}

static ssize_t write_state(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    struct device *device = vfu_get_private(ctx);

    if (count > DEVICE_STATE_SIZE - device->state_at) {
        errno = ENOSPC;
        return -1;
    }
    memcpy(device->state + device->state_at, buf, count);
    device->state_at += count;
    return (ssize_t)count;
}

static const vfu_migration_callbacks_t migration = {
    .version = VFU_MIGR_CALLBACKS_VERS,
    .transition = transition,
    .read_data = read_state,
    .write_data = write_state,
};

static const vfu_iommu_config_t iommu = { .size = sizeof(iommu), .pasid_bits = 8, .ats = true };

/* Set-up */

static void set_up_regions(struct device *device)
{
    struct iovec areas[] = {
        { (void *)DEVICE_AREA0, DEVICE_AREA0_SIZE },
        { (void *)DEVICE_AREA1, DEVICE_AREA1_SIZE },
    };
    const int flags = VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM;

    assert_int_equal(vfu_setup_region(device->ctx, VFU_PCI_DEV_BAR0_REGION_IDX, DEVICE_BAR0_SIZE,
                                      access_bar0, flags, NULL, 0, -1, 0), 0);
    assert_int_equal(vfu_setup_region(device->ctx, VFU_PCI_DEV_BAR2_REGION_IDX, DEVICE_BAR2_SIZE,
                                      access_bar2, flags, areas, device->other_areas ? 1 : 2,
                                      device->bar2_fd, 0), 0);
    assert_int_equal(vfu_setup_region(device->ctx, VFU_PCI_DEV_BAR4_REGION_IDX, DEVICE_BAR4_SIZE,
                                      NULL, flags, NULL, 0, device->bar4_fd, 0), 0);
    assert_int_equal(vfu_create_ioeventfd(device->ctx, VFU_PCI_DEV_BAR0_REGION_IDX,
                                          device->ioeventfd, DEVICE_REG_IOEVENT, 4, 1, 7, -1, 0),
                     0);
    assert_int_equal(vfu_create_ioeventfd(device->ctx, VFU_PCI_DEV_BAR0_REGION_IDX,
                                          device->ioeventfd, DEVICE_REG_IOEVENT + 8, 4, 0, 0,
                                          device->shadow_fd, 64), 0);
}

static void add_capabilities(struct device *device)
{
    struct { struct cap_hdr hdr; uint8_t rest[VFIO_USER_PCI_CAP_EXP_SIZEOF - 2]; } exp = {
        .hdr.id = PCI_CAP_ID_EXP, .rest[0] = 2,
    };
    struct { struct cap_hdr hdr; uint8_t rest[10]; } msix = {
        .hdr.id = PCI_CAP_ID_MSIX, .rest[0] = DEVICE_NR_IRQS - 1,
    };
    uint8_t dsn[12] = { PCI_EXT_CAP_ID_DSN, 0, 1 };

    assert_true(vfu_pci_add_capability(device->ctx, 0, 0, &exp) > 0);
    assert_true(vfu_pci_add_capability(device->ctx, 0, 0, &msix) > 0);
    assert_true(vfu_pci_add_capability(device->ctx, 0, VFU_CAP_FLAG_EXTENDED, dsn) > 0);
}

static void *serve(void *arg)
{
    struct device *device = arg;
    bool attached = false;

    for (;;) {
        struct pollfd fds[] = {
            { .fd = vfu_get_poll_fd(device->ctx), .events = POLLIN },
            { .fd = device->stop_fd, .events = POLLIN },
        };

        poll(fds, 2, -1);
        if (fds[1].revents != 0) {
            return NULL;
        }
        if (!attached) {
            attached = vfu_attach_ctx(device->ctx) == 0;
        } else if (vfu_run_ctx(device->ctx) < 0 && errno == ENOTCONN) {
            attached = false;
        }
    }
}

void device_start(struct device *device)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, device->path, LIBVFIO_USER_FLAG_ATTACH_NB,
                                    device, VFU_DEV_TYPE_PCI);

    assert_non_null(ctx);
    device->ctx = ctx;
    assert_int_equal(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0), 0);
    vfu_pci_set_id(ctx, 0x1234, 0x5678, 0, 0);
    set_up_regions(device);
    add_capabilities(device);
    assert_int_equal(vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, DEVICE_NR_IRQS), 0);
    assert_int_equal(vfu_setup_device_dma(ctx, 1000, NULL, NULL), 0);
    assert_int_equal(vfu_setup_device_migration_callbacks(ctx, &migration), 0);
    if (device->iommu) {
        assert_int_equal(vfu_setup_device_iommu(ctx, &iommu), 0);
    }
    assert_int_equal(vfu_realize_ctx(ctx), 0);
    device->migration = VFU_MIGR_STATE_RUNNING;
    device->stop_fd = eventfd(0, EFD_CLOEXEC);
    assert_int_equal(pthread_create(&device->thread, NULL, serve, device), 0);
}

void device_stop(struct device *device)
{
    const uint64_t one = 1;

    assert_int_equal(write(device->stop_fd, &one, sizeof(one)), sizeof(one));
    pthread_join(device->thread, NULL);
    vfu_destroy_ctx(device->ctx);
    close(device->stop_fd);
    device->ctx = NULL;
}

static int memory_file(const char *name, size_t size)
{
    int fd = memfd_create(name, MFD_CLOEXEC);

    assert_true(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    return fd;
}

static void make_bar2(struct device *device)
{
    device->bar2_fd = memory_file("bar2", DEVICE_BAR2_SIZE);
    device->bar2 = mmap(NULL, DEVICE_BAR2_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
                        device->bar2_fd, 0);
    assert_ptr_not_equal(device->bar2, MAP_FAILED);
}

static void drop_bar2(struct device *device)
{
    munmap(device->bar2, DEVICE_BAR2_SIZE);
    close(device->bar2_fd);
}

void device_forget_bar2(struct device *device)
{
    drop_bar2(device);
    make_bar2(device);
}

struct device *device_create(void)
{
    struct device *device = calloc(1, sizeof(*device));

    assert_non_null(device);
    strcpy(device->dir, "/tmp/vfuc-test-XXXXXX");
    assert_non_null(mkdtemp(device->dir));
    snprintf(device->path, sizeof(device->path), "%s/socket", device->dir);
    make_bar2(device);
    device->bar4_fd = memory_file("bar4", DEVICE_BAR4_SIZE);
    device->shadow_fd = memory_file("shadow", 4096);
    device->ioeventfd = eventfd(0, EFD_CLOEXEC);
    device->state = malloc(DEVICE_STATE_SIZE);
    assert_non_null(device->state);
    for (size_t i = 0; i < DEVICE_STATE_SIZE; i++) {
        device->state[i] = (uint8_t)(i * 2654435761u >> 13);
    }
    device_start(device);
    return device;
}

void device_destroy(struct device *device)
{
    if (device->ctx != NULL) {
        device_stop(device);
    }
    drop_bar2(device);
    close(device->bar4_fd);
    close(device->shadow_fd);
    close(device->ioeventfd);
    rmdir(device->dir);
    free(device->state);
    free(device);
}

uint32_t device_do(vfuc_t *client, enum device_command command, uint64_t iova, uint32_t length)
{
    uint32_t number = command, result = 0;

    assert_int_equal(vfuc_region_write(client, 0, DEVICE_REG_IOVA, &iova, 8), 0);
    assert_int_equal(vfuc_region_write(client, 0, DEVICE_REG_LENGTH, &length, 4), 0);
    assert_int_equal(vfuc_region_write(client, 0, DEVICE_REG_COMMAND, &number, 4), 0);
    assert_int_equal(vfuc_region_read(client, 0, DEVICE_REG_RESULT, &result, 4), 0);
    return result;
}

unsigned open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned n = 0;

    assert_non_null(dir);
    while (readdir(dir) != NULL) {
        n++;
    }
    closedir(dir);
    return n;
}
