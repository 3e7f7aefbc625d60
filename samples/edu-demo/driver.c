/* SPDX-License-Identifier: BSD-3-Clause */
#include "driver.h"
#include "iommu.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/pci_regs.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* Where the device sees the RAM: within the 28 bits that it can address. */
static const uint64_t ram_addrs[NR_RAMS] = {
    [RAM_SHARED] = 0x100000,
    [RAM_BY_MESSAGES] = 0x200000,
};

bool driver_ok(const struct driver *d)
{
    return d->error[0] == '\0';
}

void driver_fail(struct driver *d, const char *fmt, ...)
{
    va_list ap;

    if (!driver_ok(d)) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(d->error, sizeof(d->error), fmt, ap);
    va_end(ap);
}

/*
 * The machine
 */

static void add_ram(struct driver *d, enum ram_kind kind)
{
    struct ram *ram = &d->rams[kind];
    int fd = memfd_create("edu-demo RAM", MFD_CLOEXEC);

    ram->addr = ram_addrs[kind];
    if (fd < 0 || ftruncate(fd, RAM_SIZE) != 0) {
        driver_fail(d, "no RAM: %s", strerror(errno));
        return;
    }
    ram->mem = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ram->mem == MAP_FAILED) {
        ram->mem = NULL;
        driver_fail(d, "no RAM: %s", strerror(errno));
    }
    if (kind == RAM_SHARED) {
        ram->fd = fd;
    } else {
        close(fd);
    }
}

void driver_init(struct driver *d, const char *socket_path, int timeout_ms)
{
    *d = (struct driver){
        .socket_path = socket_path,
        .timeout_ms = timeout_ms,
        .rams = { { .fd = -1 }, { .fd = -1 } },
    };
    d->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (d->irq_fd < 0) {
        driver_fail(d, "no eventfd: %s", strerror(errno));
    }
    for (int kind = 0; kind < NR_RAMS; kind++) {
        add_ram(d, kind);
    }
}

void driver_destroy(struct driver *d)
{
    for (int kind = 0; kind < NR_RAMS; kind++) {
        if (d->rams[kind].mem != NULL) {
            munmap(d->rams[kind].mem, RAM_SIZE);
        }
        if (d->rams[kind].fd >= 0) {
            close(d->rams[kind].fd);
        }
    }
    if (d->irq_fd >= 0) {
        close(d->irq_fd);
    }
}

/*
 * The connection
 */

/* Notes what went wrong with a call of the client library. */
static void check(struct driver *d, const char *what, int result)
{
    if (result < 0) {
        driver_fail(d, "%s: %s", what, strerror(errno));
    }
}

static void map_ram(struct driver *d, const struct ram *ram)
{
    const vfuc_memory_t memory = {
        .iova = ram->addr,
        .size = RAM_SIZE,
        .prot = PROT_READ | PROT_WRITE,
        .fd = ram->fd,
        .vaddr = ram->mem,
    };

    check(d, "DMA_MAP", vfuc_dma_map(d->client, &memory));
}

/* Behind an IOMMU the RAM is its business. */
static void attach(struct driver *d, const vfuc_options_t *options)
{
    if (d->iommu != NULL) {
        check(d, "IOMMU", iommu_add_rams(d->iommu, d->rams));
        d->client = vfuc_iommu_connect(d->iommu->iommu, d->socket_path, options);
        return;
    }
    d->client = vfuc_connect(d->socket_path, options);
    for (int kind = 0; d->client != NULL && kind < NR_RAMS; kind++) {
        map_ram(d, &d->rams[kind]);
    }
}

static void enable(struct driver *d)
{
    driver_config_write(d, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

void driver_attach(struct driver *d)
{
    const vfuc_options_t options = { .timeout_ms = (uint32_t)d->timeout_ms };

    if (!driver_ok(d)) {
        return;
    }
    attach(d, &options);
    if (d->client == NULL) {
        driver_fail(d, "cannot attach to %s: %s", d->socket_path, strerror(errno));
        return;
    }
    enable(d);
}

void driver_detach(struct driver *d)
{
    if (d->iommu != NULL) {
        vfuc_iommu_disconnect(d->iommu->iommu);
    } else {
        vfuc_disconnect(d->client);
    }
    d->client = NULL;
}

uint64_t driver_dma_messages(const struct driver *d)
{
    return d->client != NULL ? vfuc_dma_messages(d->client) : 0;
}

void driver_reset(struct driver *d)
{
    if (driver_ok(d)) {
        check(d, "DEVICE_RESET", vfuc_reset(d->client));
        enable(d);
    }
}

/*
 * Registers
 */

static uint64_t read_region(struct driver *d, uint32_t region, uint64_t offset, size_t size)
{
    uint64_t value = 0;

    if (driver_ok(d) && vfuc_region_read(d->client, region, offset, &value, size) < 0) {
        driver_fail(d, "reading 0x%" PRIx64 " of region %u: %s", offset, region, strerror(errno));
    }
    return driver_ok(d) ? value : 0;
}

static void write_region(struct driver *d, uint32_t region, uint64_t offset, size_t size,
                         uint64_t value)
{
    if (driver_ok(d) && vfuc_region_write(d->client, region, offset, &value, size) < 0) {
        driver_fail(d, "writing 0x%" PRIx64 " of region %u: %s", offset, region, strerror(errno));
    }
}

uint64_t driver_read(struct driver *d, enum edu_offset offset, size_t size)
{
    return read_region(d, VFIO_PCI_BAR0_REGION_INDEX, offset, size);
}

void driver_write(struct driver *d, enum edu_offset offset, size_t size, uint64_t value)
{
    write_region(d, VFIO_PCI_BAR0_REGION_INDEX, offset, size, value);
}

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

unsigned driver_wait_clear(struct driver *d, enum edu_offset offset, uint32_t bit)
{
    int64_t deadline = now_ms() + d->timeout_ms;
    unsigned polls = 0;

    while ((driver_read(d, offset, 4) & bit) != 0) {
        polls++;
        if (now_ms() > deadline) {
            driver_fail(d, "bit 0x%x of register 0x%x stays set", bit, offset);
        }
    }
    return polls;
}

uint32_t driver_config_read(struct driver *d, uint32_t offset, size_t size)
{
    return (uint32_t)read_region(d, VFIO_PCI_CONFIG_REGION_INDEX, offset, size);
}

void driver_config_write(struct driver *d, uint32_t offset, size_t size, uint32_t value)
{
    write_region(d, VFIO_PCI_CONFIG_REGION_INDEX, offset, size, value);
}

/*
 * Interrupts
 */

static uint32_t find_capability(struct driver *d, uint32_t id)
{
    uint32_t pos = driver_config_read(d, PCI_CAPABILITY_LIST, 1);

    /* No more than fit: a list that is a ring ends too. */
    for (int i = 0; pos != 0 && i < (PCI_CFG_SPACE_SIZE - PCI_STD_HEADER_SIZEOF) / 4; i++) {
        if (driver_config_read(d, pos + PCI_CAP_LIST_ID, 1) == id) {
            return pos;
        }
        pos = driver_config_read(d, pos + PCI_CAP_LIST_NEXT, 1);
    }
    return 0;
}

static void set_msi_enable(struct driver *d, bool enable)
{
    uint32_t pos = find_capability(d, PCI_CAP_ID_MSI), flags;

    if (pos == 0) {
        driver_fail(d, "the device has no MSI capability");
        return;
    }
    flags = driver_config_read(d, pos + PCI_MSI_FLAGS, 2) & ~(uint32_t)PCI_MSI_FLAGS_ENABLE;
    driver_config_write(d, pos + PCI_MSI_FLAGS, 2, flags | (enable ? PCI_MSI_FLAGS_ENABLE : 0));
}

void driver_enable_irq(struct driver *d, unsigned index)
{
    if (driver_ok(d)) {
        check(d, "SET_IRQS", vfuc_irq_set_eventfds(d->client, index, 0, 1, &d->irq_fd));
    }
    if (index == VFIO_PCI_MSI_IRQ_INDEX) {
        set_msi_enable(d, true);
    }
}

void driver_disable_irq(struct driver *d, unsigned index)
{
    if (index == VFIO_PCI_MSI_IRQ_INDEX) {
        set_msi_enable(d, false);
    }
    if (driver_ok(d)) {
        check(d, "SET_IRQS", vfuc_irq_disable(d->client, index));
    }
}

void driver_mask_intx(struct driver *d, bool mask)
{
    if (driver_ok(d)) {
        check(d, "SET_IRQS", vfuc_irq_mask(d->client, VFIO_PCI_INTX_IRQ_INDEX, 0, 1, mask));
    }
}

bool driver_irq_pending(struct driver *d)
{
    uint64_t count;

    return vfuc_eventfd_take(d->irq_fd, &count) == 0;
}

void driver_wait_irq(struct driver *d)
{
    struct pollfd pfd = { .fd = d->irq_fd, .events = POLLIN };

    while (driver_ok(d) && !driver_irq_pending(d)) {
        int ready = poll(&pfd, 1, d->timeout_ms);

        if (ready == 0) {
            driver_fail(d, "no interrupt within %d ms", d->timeout_ms);
        } else if (ready < 0 && errno != EINTR) {
            driver_fail(d, "waiting for an interrupt: %s", strerror(errno));
        }
    }
}

void driver_start_dma(struct driver *d, uint64_t src, uint64_t dst, size_t len, bool to_ram)
{
    driver_write(d, EDU_REG_DMA_SRC, 8, src);
    driver_write(d, EDU_REG_DMA_DST, 8, dst);
    driver_write(d, EDU_REG_DMA_COUNT, 8, len);
    driver_write(d, EDU_REG_DMA_CMD, 4, EDU_DMA_RUN | EDU_DMA_IRQ | (to_ram ? EDU_DMA_TO_RAM : 0));
}

void driver_finish_dma(struct driver *d)
{
    uint64_t status;

    driver_wait_irq(d);
    status = driver_read(d, EDU_REG_IRQ_STATUS, 4);
    driver_write(d, EDU_REG_IRQ_ACK, 4, status);
    if (status != EDU_IRQ_DMA) {
        driver_fail(d, "interrupt status 0x%" PRIx64 " after DMA, not 0x%x", status, EDU_IRQ_DMA);
    }
}

void driver_dma(struct driver *d, uint64_t src, uint64_t dst, size_t len, bool to_ram)
{
    driver_start_dma(d, src, dst, len, to_ram);
    driver_finish_dma(d);
}
