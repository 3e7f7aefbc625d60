/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver of the edu device in the guest's user space: registers by the mapped BAR, INTx by
 * uio_pci_generic, DMA to a page of its own.
 *
 * edu-driver <folder of the device in /sys> <its /dev/uio>
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define BAR_SIZE 0x100000
#define BUFFER 0x40000

enum { ID = 0x00, LIVENESS = 0x04, FACTORIAL = 0x08, STATUS = 0x20, IRQ_STATUS = 0x24,
       IRQ_ACK = 0x64, DMA_SRC = 0x80, DMA_DST = 0x88, DMA_COUNT = 0x90, DMA_CMD = 0x98 };

static volatile uint8_t *bar;
static int uio, config;

static uint32_t get(unsigned reg)
{
    return *(volatile uint32_t *)(bar + reg);
}

static void put(unsigned reg, uint32_t value)
{
    *(volatile uint32_t *)(bar + reg) = value;
}

static void put_wide(unsigned reg, uint64_t value)
{
    *(volatile uint64_t *)(bar + reg) = value;
}

static int open_in(const char *folder, const char *name, int flags)
{
    char path[256];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    fd = open(path, flags);
    if (fd < 0) {
        err(1, "%s", path);
    }
    return fd;
}

static void check(const char *what, uint64_t found, uint64_t expected)
{
    printf("  %-24s 0x%llx\n", what, (unsigned long long)found);
    if (found != expected) {
        errx(1, "%s is 0x%llx, must be 0x%llx", what, (unsigned long long)found,
             (unsigned long long)expected);
    }
}

/* uio_pci_generic sets Interrupt Disable when the interrupt comes. */
static void enable_interrupt(void)
{
    const uint16_t command = 0x6; /* memory, bus master */

    if (pwrite(config, &command, sizeof(command), 4) != sizeof(command)) {
        err(1, "config");
    }
}

static void wait_interrupt(uint32_t cause)
{
    uint32_t count;

    if (read(uio, &count, sizeof(count)) != sizeof(count)) {
        err(1, "uio");
    }
    check("interrupt status", get(IRQ_STATUS), cause);
    put(IRQ_ACK, cause);
    enable_interrupt();
}

static uint64_t physical(const void *address)
{
    int fd = open("/proc/self/pagemap", O_RDONLY);
    uint64_t entry;

    if (fd < 0 || pread(fd, &entry, sizeof(entry), (uintptr_t)address / PAGE * 8) != 8 ||
        !(entry >> 63)) {
        err(1, "pagemap");
    }
    close(fd);
    return (entry & ((1ull << 55) - 1)) * PAGE;
}

static void dma(uint64_t src, uint64_t dst, uint64_t count, uint32_t cmd)
{
    put_wide(DMA_SRC, src);
    put_wide(DMA_DST, dst);
    put_wide(DMA_COUNT, count);
    put_wide(DMA_CMD, cmd | 5); /* start, and interrupt */
    wait_interrupt(0x100);
}

int main(int argc, char **argv)
{
    uint8_t *page;

    if (argc != 3) {
        errx(2, "usage: edu-driver SYS-FOLDER UIO");
    }
    config = open_in(argv[1], "config", O_RDWR);
    enable_interrupt();
    bar = mmap(NULL, BAR_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
               open_in(argv[1], "resource0", O_RDWR | O_SYNC), 0);
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);
    uio = open(argv[2], O_RDWR);
    if (bar == MAP_FAILED || page == MAP_FAILED || uio < 0) {
        err(1, "set-up");
    }

    check("identification", get(ID), 0x010000ed);
    put(LIVENESS, 0x12345678);
    check("liveness", get(LIVENESS), (uint32_t)~0x12345678);
    put(STATUS, 0x80);
    put(FACTORIAL, 10);
    wait_interrupt(0x1);
    check("factorial of 10", get(FACTORIAL), 3628800);

    for (int i = 0; i < PAGE; i++) {
        page[i] = (uint8_t)(i * 7);
    }
    dma(physical(page), BUFFER, PAGE, 0);
    memset(page, 0, PAGE);
    dma(BUFFER, physical(page), PAGE, 2);
    for (int i = 0; i < PAGE; i++) {
        if (page[i] != (uint8_t)(i * 7)) {
            errx(1, "byte %d after DMA is 0x%x", i, page[i]);
        }
    }
    printf("  DMA of %d bytes there and back\n", PAGE);
    return 0;
}
