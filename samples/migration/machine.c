/* SPDX-License-Identifier: BSD-3-Clause */
#include "machine.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORD_BITS 64

static bool failed(const struct machine *machine, const char *what, int err)
{
    fprintf(stderr, "migration: %s: %s: %s\n", machine->name, what, strerror(err));
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
        return failed(machine, "no RAM", errno);
    }
    machine->ram = ram;
    machine->written = calloc(machine_bitmap_words(machine), sizeof(machine->written[0]));
    return machine->written != NULL ? true : failed(machine, "no RAM", ENOMEM);
}

/* The device's process is this program too, with other arguments. */
static bool start_process(struct machine *machine, char *program)
{
    char *argv[] = { program, "--device", "--socket", machine->socket, NULL };
    char line[PATH_MAX + 64], expected[PATH_MAX + 64];
    int err = process_start(&machine->process, argv);

    if (err != 0) {
        machine->process.pid = 0;
        return failed(machine, "cannot start the device", -err);
    }
    err = process_read_line(&machine->process, line, sizeof(line), TIMEOUT_MS);
    if (err != 0) {
        return failed(machine, "the device does not start", -err);
    }
    snprintf(expected, sizeof(expected), "migration: listening on %s", machine->socket);
    return strcmp(line, expected) == 0 ? true : failed(machine, line, EPROTO);
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

    fprintf(stderr, "migration: %s: %s\n", machine->name, line);
}

static bool attach(struct machine *machine, bool messages)
{
    const vfuc_options_t options = {
        .timeout_ms = TIMEOUT_MS,
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

    machine->device = vfuc_connect(machine->socket, &options);
    if (machine->device == NULL) {
        return failed(machine, "cannot attach to the device", errno);
    }
    if (vfuc_dma_map(machine->device, &ram) < 0) {
        return failed(machine, "cannot give the device the RAM", errno);
    }
    return true;
}

bool machine_start(struct machine *machine, const char *name, char *program, const char *directory,
                   size_t ram_size, bool messages)
{
    *machine = (struct machine){ .name = name, .ram_size = ram_size, .ram_fd = -1 };
    snprintf(machine->socket, sizeof(machine->socket), "%s/%s.sock", directory, name);
    return make_ram(machine) && start_process(machine, program) && attach(machine, messages);
}

static bool end_process(struct machine *machine)
{
    int status = process_end(&machine->process, TIMEOUT_MS);

    machine->process.pid = 0;
    if (status < 0) {
        return failed(machine, "SIGTERM does not end the device", -status);
    }
    if (WIFSIGNALED(status)) {
        fprintf(stderr, "migration: %s: the device was killed by signal %d\n", machine->name,
                WTERMSIG(status));
    } else if (status != 0) {
        fprintf(stderr, "migration: %s: the device ended with status %d\n", machine->name,
                WEXITSTATUS(status));
    }
    return status == 0;
}

bool machine_stop(struct machine *machine)
{
    bool ok = true;

    vfuc_disconnect(machine->device);
    if (machine->process.pid > 0) {
        ok = end_process(machine);
        /* There if the process had to be killed. */
        unlink(machine->socket);
    }
    if (machine->ram != NULL) {
        munmap(machine->ram, machine->ram_size);
    }
    if (machine->ram_fd >= 0) {
        close(machine->ram_fd);
    }
    free((void *)machine->written);
    return ok;
}
