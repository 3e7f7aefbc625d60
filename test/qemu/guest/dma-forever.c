/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A guest that is firmware and nothing else: finds the edu device behind a root port, checks one
 * transfer there and back, and then has the device do DMA for ever. It is at work a moment after a
 * reset, so that a test can reset the machine again and again. Linked to the last 64 KiB below
 * 4 GiB, where a PC starts; it has no data of its own in RAM, only the addresses below.
 */
#include <stdint.h>

#define PAGE 4096
#define BUFFER 0x40000
#define EDU 0x11e81234
#define STACK "0x200000"
#define RAM 0x300000      /* where the guest's data is */
#define WINDOW 0xe0000000 /* where the device's BAR will be */

enum { PCI_COMMAND = 0x04, PCI_CLASS = 0x08, PCI_BAR0 = 0x10, PCI_BUSES = 0x18, PCI_MEMORY = 0x20 };
enum { MEMORY_AND_MASTER = 0x6 };
enum { DMA_SRC = 0x80, DMA_DST = 0x88, DMA_COUNT = 0x90, DMA_CMD = 0x98 };
enum { RUN = 1, TO_RAM = 2 };

/*
 * The last 256 bytes below 4 GiB. A processor starts 16 bytes before the end, in real mode; this
 * goes on to 32 bits and flat segments.
 */
__asm__(".section .reset, \"ax\"\n"
        ".code16\n"
        "real:\n"
        "    cli\n"
        "    lgdtl %cs:0xff00 + table - real\n"
        "    mov $1, %eax\n"
        "    mov %eax, %cr0\n"
        "    ljmpl $8, $flat\n"
        ".code32\n"
        "flat:\n"
        "    mov $16, %eax\n"
        "    mov %eax, %ds\n"
        "    mov %eax, %es\n"
        "    mov %eax, %ss\n"
        "    mov $" STACK ", %esp\n"
        "    call run\n"
        ".balign 8\n"
        "descriptors: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff\n"
        "table: .word 23\n"
        "    .long descriptors\n"
        "    .org 0xf0\n"
        ".code16\n"
        "    jmp real\n"
        "    .org 0x100\n"
        ".text\n"
        ".code32\n");

static volatile uint8_t *const page = (volatile uint8_t *)RAM;
static volatile uint8_t *const bar = (volatile uint8_t *)WINDOW;

static void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static uint32_t in32(uint16_t port)
{
    uint32_t value;

    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* The first serial port, as QEMU has it: always ready. */
static void say(const char *words)
{
    while (*words != '\0') {
        out8(0x3f8, (uint8_t)*words++);
    }
}

static void fail(const char *why)
{
    say(why);
    for (;;) {
        __asm__ volatile("cli; hlt");
    }
}

static void select_config(uint8_t bus, uint8_t device, uint8_t reg)
{
    out32(0xcf8, 0x80000000u | (uint32_t)bus << 16 | (uint32_t)device << 11 | reg);
}

static uint32_t get_config(uint8_t bus, uint8_t device, uint8_t reg)
{
    select_config(bus, device, reg);
    return in32(0xcfc);
}

static void put_config(uint8_t bus, uint8_t device, uint8_t reg, uint32_t value)
{
    select_config(bus, device, reg);
    out32(0xcfc, value);
}

static uint8_t find_root_port(void)
{
    for (uint8_t device = 0; device < 32; device++) {
        if (get_config(0, device, PCI_CLASS) >> 16 == 0x0604) {
            return device;
        }
    }
    fail("guest: failed: no root port\n");
    return 0;
}

static void enable_edu(void)
{
    uint8_t port = find_root_port();

    put_config(0, port, PCI_BUSES, 0x00010100); /* the bus behind it is bus 1 */
    put_config(0, port, PCI_MEMORY, WINDOW | WINDOW >> 16);
    put_config(0, port, PCI_COMMAND, MEMORY_AND_MASTER);
    if (get_config(1, 0, 0) != EDU) {
        fail("guest: failed: the edu device is lost\n");
    }
    put_config(1, 0, PCI_BAR0, WINDOW);
    put_config(1, 0, PCI_COMMAND, MEMORY_AND_MASTER);
}

static void put(unsigned reg, uint32_t value)
{
    *(volatile uint32_t *)(bar + reg) = value;
}

static void start(uint32_t src, uint32_t dst, uint32_t direction)
{
    put(DMA_SRC, src);
    put(DMA_DST, dst);
    put(DMA_COUNT, PAGE);
    put(DMA_CMD, RUN | direction);
}

static void finish(void)
{
    while (*(volatile uint32_t *)(bar + DMA_CMD) & RUN) {
    }
}

static void verify(void)
{
    for (uint32_t i = 0; i < PAGE; i++) {
        page[i] = (uint8_t)(i * 7);
    }
    start(RAM, BUFFER, 0);
    finish();
    for (uint32_t i = 0; i < PAGE; i++) {
        page[i] = 0;
    }
    start(BUFFER, RAM, TO_RAM);
    finish();
    for (uint32_t i = 0; i < PAGE; i++) {
        if (page[i] != (uint8_t)(i * 7)) {
            fail("guest: failed: DMA brought other data\n");
        }
    }
    say("guest: verified\n");
}

void run(void)
{
    enable_edu();
    verify();
    for (;;) {
        start(RAM, BUFFER, 0);
        say("guest: dma\n");
        finish();
        start(BUFFER, RAM, TO_RAM);
        say("guest: dma\n");
        finish();
    }
}
