/* SPDX-License-Identifier: BSD-3-Clause */
#include "machine.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WORD_BITS 64

bool machine_failed(const struct machine *machine, const char *what, int err)
{
    fprintf(stderr, "%s: %s: %s: %s\n", machine->demo->name, machine->name, what, strerror(err));
    return false;
}

size_t machine_bitmap_words(const struct machine *machine)
{
    return (machine->ram_size / PAGE_SIZE + WORD_BITS - 1) / WORD_BITS;
}

static bool make_ram(struct machine *machine)
{
    void *ram = MAP_FAILED;

    machine->ram_fd = memfd_create("migration RAM", MFD_CLOEXEC);
    if (machine->ram_fd >= 0 && ftruncate(machine->ram_fd, (off_t)machine->ram_size) == 0) {
        ram = mmap(NULL, machine->ram_size, PROT_READ | PROT_WRITE, MAP_SHARED, machine->ram_fd, 0);
    }
    if (ram == MAP_FAILED) {
        return machine_failed(machine, "no RAM", errno);
    }
    machine->ram = ram;
    machine->written = calloc(machine_bitmap_words(machine), sizeof(machine->written[0]));
    return machine->written != NULL ? true : machine_failed(machine, "no RAM", ENOMEM);
}

/* On the client's receiver thread. */
static void note_written(void *pvt, uint64_t iova, uint64_t len)
{
    struct machine *machine = pvt;

    for (uint64_t page = iova / PAGE_SIZE; page <= (iova + len - 1) / PAGE_SIZE; page++) {
        atomic_fetch_or(&machine->written[page / WORD_BITS], (uint64_t)1 << page % WORD_BITS);
    }
}

static void print_log(void *pvt, const char *line)
{
    struct machine *machine = pvt;

    fprintf(stderr, "%s: %s: %s\n", machine->demo->name, machine->name, line);
}

static bool attach(struct machine *machine, bool messages)
{
    const vfuc_options_t options = {
        .timeout_ms = DEMO_TIMEOUT_MS,
        .log = print_log,
        .written = note_written,
        .pvt = machine,
    };
    const vfuc_memory_t ram = {
        .iova = 0,
        .size = machine->ram_size,
        .prot = PROT_READ | PROT_WRITE,
        .fd = messages ? -1 : machine->ram_fd,
        .vaddr = machine->ram,
    };

    machine->device = vfuc_connect(machine->process.socket, &options);
    if (machine->device == NULL) {
        return machine_failed(machine, "cannot attach to the device", errno);
    }
    if (vfuc_dma_map(machine->device, &ram) < 0) {
        return machine_failed(machine, "cannot give the device the RAM", errno);
    }
    return true;
}

bool machine_start(struct machine *machine, struct demo *demo, const char *name, size_t ram_size,
                   bool messages)
{
    *machine = (struct machine){ .demo = demo, .name = name, .ram_size = ram_size, .ram_fd = -1 };
    return make_ram(machine) && demo_start_device(demo, &machine->process, name, NULL) &&
           attach(machine, messages);
}

bool machine_stop(struct machine *machine)
{
    bool ok;

    vfuc_disconnect(machine->device);
    ok = demo_stop_device(machine->demo, &machine->process);
    if (machine->ram != NULL) {
        munmap(machine->ram, machine->ram_size);
    }
    if (machine->ram_fd >= 0) {
        close(machine->ram_fd);
    }
    free((void *)machine->written);
    return ok;
}
