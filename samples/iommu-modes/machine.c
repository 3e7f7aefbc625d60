/* SPDX-License-Identifier: BSD-3-Clause */
#include "machine.h"

#include "../edu/edu_regs.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MAX_ARGS 16
#define PAGES_ON_REQUEST 32

bool machine_ok(const struct machine *m)
{
    return m->error[0] == '\0';
}

void machine_fail(struct machine *m, const char *fmt, ...)
{
    va_list ap;

    if (!machine_ok(m)) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(m->error, sizeof(m->error), fmt, ap);
    va_end(ap);
}

void machine_check(struct machine *m, const char *what, int result)
{
    if (result < 0) {
        machine_fail(m, "%s: %s", what, strerror(errno));
    }
}

/*
 * RAM
 */

static void add_ram(struct machine *m)
{
    vfuc_iommu_memory_t memory = {
        .address = RAM_ADDRESS,
        .size = RAM_PAGES * PAGE,
        .prot = PROT_READ | PROT_WRITE,
    };

    m->ram_fd = memory.fd = memfd_create("iommu-modes RAM", MFD_CLOEXEC);
    if (memory.fd < 0 || ftruncate(memory.fd, (off_t)memory.size) != 0) {
        machine_fail(m, "no RAM: %s", strerror(errno));
        return;
    }
    memory.vaddr = mmap(NULL, memory.size, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd, 0);
    if (memory.vaddr == MAP_FAILED) {
        machine_fail(m, "no RAM: %s", strerror(errno));
        return;
    }
    m->ram = memory.vaddr;
    machine_check(m, "RAM", vfuc_iommu_add_memory(m->iommu, &memory));
}

uint8_t *ram_page(const struct machine *m, unsigned page)
{
    return m->ram + page * PAGE;
}

uint64_t ram_address(unsigned page)
{
    return RAM_ADDRESS + page * PAGE;
}

static uint8_t pattern(size_t i, uint8_t seed)
{
    return (uint8_t)(seed + i * 7 + i / 251);
}

void ram_fill(const struct machine *m, unsigned page, uint8_t seed)
{
    for (size_t i = 0; i < PAGE; i++) {
        ram_page(m, page)[i] = pattern(i, seed);
    }
}

void ram_clear(const struct machine *m, unsigned page)
{
    memset(ram_page(m, page), 0, PAGE);
}

bool ram_is(const struct machine *m, unsigned page, uint8_t seed)
{
    for (size_t i = 0; i < PAGE; i++) {
        if (ram_page(m, page)[i] != pattern(i, seed)) {
            return false;
        }
    }
    return true;
}

bool ram_is_clear(const struct machine *m, unsigned page)
{
    static const uint8_t zeros[PAGE];

    return memcmp(ram_page(m, page), zeros, PAGE) == 0;
}

/*
 * Registers
 */

static uint64_t region_read(struct machine *m, uint32_t region, uint64_t offset, size_t size)
{
    uint64_t value = 0;

    if (machine_ok(m)) {
        machine_check(m, "register", vfuc_region_read(m->client, region, offset, &value, size));
    }
    return value;
}

static void region_write(struct machine *m, uint32_t region, uint64_t offset, size_t size,
                         uint64_t value)
{
    if (machine_ok(m)) {
        machine_check(m, "register", vfuc_region_write(m->client, region, offset, &value, size));
    }
}

static uint32_t config_read(struct machine *m, uint32_t offset, size_t size)
{
    return (uint32_t)region_read(m, VFIO_PCI_CONFIG_REGION_INDEX, offset, size);
}

static void config_write(struct machine *m, uint32_t offset, size_t size, uint32_t value)
{
    region_write(m, VFIO_PCI_CONFIG_REGION_INDEX, offset, size, value);
}

static uint64_t device_read(struct machine *m, enum edu_offset offset)
{
    return region_read(m, VFIO_PCI_BAR0_REGION_INDEX, offset, 8);
}

static void device_write(struct machine *m, enum edu_offset offset, uint64_t value)
{
    region_write(m, VFIO_PCI_BAR0_REGION_INDEX, offset, 8, value);
}

/* 0: the device has no such extended capability. */
static uint32_t find_extended(struct machine *m, uint32_t id)
{
    uint32_t pos = PCI_CFG_SPACE_SIZE;

    for (int i = 0; pos != 0 && i < 64; i++) {
        uint32_t header = config_read(m, pos, 4);

        if (PCI_EXT_CAP_ID(header) == id) {
            return pos;
        }
        pos = PCI_EXT_CAP_NEXT(header);
    }
    return 0;
}

/* Of a PCI Express device: PASID, ATS and PRI, as far as it has them. */
static void enable_iommu(struct machine *m)
{
    uint32_t pasid = find_extended(m, PCI_EXT_CAP_ID_PASID);
    uint32_t ats = find_extended(m, PCI_EXT_CAP_ID_ATS);
    uint32_t pri = find_extended(m, PCI_EXT_CAP_ID_PRI);

    /* As a guest's kernel does: PASID before ATS. */
    if (pasid != 0) {
        config_write(m, pasid + PCI_PASID_CTRL, 2, PCI_PASID_CTRL_ENABLE);
    }
    if (ats != 0) {
        config_write(m, ats + PCI_ATS_CTRL, 2, PCI_ATS_CTRL_ENABLE);
    }
    if (pri != 0) {
        config_write(m, pri + PCI_PRI_ALLOC_REQ, 4, PAGES_ON_REQUEST);
        config_write(m, pri + PCI_PRI_CTRL, 2, PCI_PRI_CTRL_ENABLE);
    }
}

/*
 * The job
 */

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void start(struct machine *m, uint64_t src, uint64_t dst, size_t len, uint64_t cmd)
{
    device_write(m, EDU_REG_DMA_SRC, src);
    device_write(m, EDU_REG_DMA_DST, dst);
    device_write(m, EDU_REG_DMA_COUNT, len);
    device_write(m, EDU_REG_DMA_CMD, EDU_DMA_RUN | cmd);
}

static int finish(struct machine *m)
{
    int64_t deadline = now_ms() + m->timeout_ms;

    while ((device_read(m, EDU_REG_DMA_CMD) & EDU_DMA_RUN) != 0 && machine_ok(m)) {
        if (now_ms() > deadline) {
            machine_fail(m, "the DMA does not end");
        }
    }
    return m->has_iommu_registers ? (int)device_read(m, EDU_REG_DMA_ERROR) : 0;
}

static void choose_space(struct machine *m, uint32_t pasid)
{
    if (m->has_iommu_registers) {
        device_write(m, EDU_REG_DMA_PASID, pasid == VFUC_NO_PASID ? 0 : EDU_PASID_VALID | pasid);
    } else if (pasid != VFUC_NO_PASID) {
        machine_fail(m, "the device knows no PASIDs");
    }
}

int machine_job(struct machine *m, uint32_t pasid, uint64_t src, uint64_t dst, size_t len,
                uint64_t *fault)
{
    int err;

    choose_space(m, pasid);
    start(m, src, EDU_BUFFER_ADDR, len, 0);
    err = finish(m);
    if (err == 0) {
        start(m, EDU_BUFFER_ADDR, dst, len, EDU_DMA_TO_RAM);
        err = finish(m);
    }
    *fault = m->has_iommu_registers && err != 0 ? device_read(m, EDU_REG_DMA_FAULT) : 0;
    return err;
}

void machine_start_write(struct machine *m, uint32_t pasid, uint64_t dst, size_t len)
{
    choose_space(m, pasid);
    start(m, EDU_BUFFER_ADDR, dst, len, EDU_DMA_TO_RAM);
}

void machine_finish_write(struct machine *m)
{
    finish(m);
}

/*
 * Life
 */

static void start_server(struct machine *m, char *const options[])
{
    char *argv[MAX_ARGS] = { (char *)m->server, "--socket", (char *)m->socket_path,
                             "--dma-mask", "64" };
    char line[PATH_MAX + 64] = "", expected[PATH_MAX + 64];
    size_t n = 5;
    int err;

    for (; *options != NULL && n < MAX_ARGS - 1; options++) {
        argv[n++] = *options;
    }
    m->has_iommu_registers = n > 5;
    err = process_start(&m->process, argv, !m->verbose);
    if (err != 0) {
        machine_fail(m, "cannot start %s: %s", m->server, strerror(-err));
        return;
    }
    m->running = true;
    err = process_read_line(&m->process, line, sizeof(line), m->timeout_ms);
    snprintf(expected, sizeof(expected), "edu: listening on %s", m->socket_path);
    if (err != 0 || strcmp(line, expected) != 0) {
        machine_fail(m, "the server is not ready: %s", err != 0 ? strerror(-err) : line);
    }
}

void machine_start(struct machine *m, char *const server_options[],
                   const vfuc_iommu_options_t *options)
{
    m->error[0] = '\0';
    m->client = NULL;
    m->ram = NULL;
    m->ram_fd = -1;
    m->running = false;
    m->iommu = vfuc_iommu_create(options);
    if (m->iommu == NULL) {
        machine_fail(m, "no IOMMU: %s", strerror(errno));
        return;
    }
    add_ram(m);
    if (machine_ok(m)) {
        start_server(m, server_options);
    }
}

void machine_plug(struct machine *m)
{
    const vfuc_options_t options = { .timeout_ms = (uint32_t)m->timeout_ms };

    if (!machine_ok(m)) {
        return;
    }
    m->client = vfuc_iommu_connect(m->iommu, m->socket_path, &options);
    if (m->client == NULL) {
        machine_fail(m, "cannot attach to %s: %s", m->socket_path, strerror(errno));
        return;
    }
    config_write(m, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    if (m->has_iommu_registers) {
        enable_iommu(m);
    }
}

void machine_stop(struct machine *m)
{
    if (m->client != NULL) {
        vfuc_iommu_disconnect(m->iommu);
    }
    if (m->running) {
        int status = process_end(&m->process, m->timeout_ms);

        if (status != 0) {
            machine_fail(m, "the server ended with status 0x%x", (unsigned)status);
        }
    }
    vfuc_iommu_destroy(m->iommu);
    if (m->ram != NULL) {
        munmap(m->ram, RAM_PAGES * PAGE);
    }
    if (m->ram_fd >= 0) {
        close(m->ram_fd);
    }
}
