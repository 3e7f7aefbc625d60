/* SPDX-License-Identifier: BSD-3-Clause */
/* A vfio-user client: attaches to the edu device, and has it copy memory by DMA. */
#include "vfio-user-client.h"

#include <err.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum { BAR0 = 0, RAISED = 0x24, ACKNOWLEDGE = 0x64, SOURCE = 0x80, DEVICE_BUFFER = 0x40000 };

static void check(int result, const char *what)
{
    if (result < 0) {
        err(1, "%s", what);
    }
}

/* From an address to an address, one of them in the device; ends with an interrupt. */
static void copy(vfuc_t *client, uint64_t from, uint64_t to, uint64_t command, int interrupt)
{
    const uint64_t registers[] = { from, to, 64, command };
    uint32_t raised;
    uint64_t count;

    for (int i = 0; i < 4; i++) {
        check(vfuc_region_post(client, BAR0, SOURCE + 8 * i, &registers[i], 8), "DMA register");
    }
    check(read(interrupt, &count, sizeof(count)) == sizeof(count) ? 0 : -1, "interrupt");
    check(vfuc_region_read(client, BAR0, RAISED, &raised, sizeof(raised)), "reason");
    check(vfuc_region_write(client, BAR0, ACKNOWLEDGE, &raised, sizeof(raised)), "acknowledge");
}

int main(int argc, char **argv)
{
    int ram = memfd_create("guest-ram", MFD_CLOEXEC), interrupt = eventfd(0, EFD_CLOEXEC);
    const uint16_t memory_and_master = 0x6;
    vfuc_memory_t memory = { .size = 1 << 20, .prot = PROT_READ | PROT_WRITE, .fd = ram };
    vfuc_t *client;

    if (argc != 2) {
        errx(1, "usage: %s SOCKET", argv[0]);
    }
    client = vfuc_connect(argv[1], NULL);
    check(client != NULL ? 0 : -1, argv[1]);
    check(ftruncate(ram, (off_t)memory.size), "RAM");
    memory.vaddr = mmap(NULL, memory.size, memory.prot, MAP_SHARED, ram, 0);
    check(vfuc_dma_map(client, &memory), "mapping RAM");
    check(vfuc_irq_set_eventfds(client, VFIO_PCI_INTX_IRQ_INDEX, 0, 1, &interrupt), "interrupt");
    check(vfuc_config_write(client, 0x4, &memory_and_master, 2), "command register");
    strcpy(memory.vaddr, "there and back again");
    copy(client, 0, DEVICE_BUFFER, 1 | 4, interrupt);
    copy(client, DEVICE_BUFFER, 0x1000, 1 | 2 | 4, interrupt);
    printf("%s\n", (char *)memory.vaddr + 0x1000);
    vfuc_disconnect(client);
    return 0;
}
