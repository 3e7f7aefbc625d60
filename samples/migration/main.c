/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Migrates a device live, from one process to another, while it writes into guest memory and its
 * registers are read and written; and proves that nothing was lost or repeated.
 *
 * What it teaches: the migration callbacks of a device (device.c), a state that is saved while it
 * changes (recorder.c), and what a virtual machine monitor does with both (migrate.c).
 */

#include "device.h"
#include "migrate.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_USAGE 2
#define MAX_RECORDS 1000000000
#define MIN_MEMORY_MIB 16
#define MAX_MEMORY_MIB 1024

static const char usage[] =
    "Usage: migration [--records N] [--memory MIB] [--messages]\n"
    "       migration --device --socket PATH\n"
    "Migrate a device live from one process to another, under load: nothing is lost.\n"
    "\n"
    "  -r, --records N    records to check before the migration, and after it (default 200000)\n"
    "  -m, --memory MIB   RAM of the guest, 16 to 1024 (default 64)\n"
    "  -M, --messages     do not share the RAM: the device writes to it by messages\n"
    "  -d, --device       only serve the device, until SIGTERM or SIGINT\n"
    "  -s, --socket PATH  where; removed at the end\n"
    "  -h, --help         print this text\n";

static const struct option long_options[] = {
    { "records", required_argument, NULL, 'r' }, { "memory", required_argument, NULL, 'm' },
    { "messages", no_argument, NULL, 'M' },      { "device", no_argument, NULL, 'd' },
    { "socket", required_argument, NULL, 's' },  { "help", no_argument, NULL, 'h' },
    { NULL, 0, NULL, 0 },
};

struct options {
    unsigned long records;
    unsigned long memory_mib;
    bool messages;
    bool device;
    const char *socket_path;
};

/*
 * The demonstration
 */

static void fill(struct machine *machine)
{
    uint64_t *words = (uint64_t *)machine->ram;

    for (size_t i = 0; i < machine->ram_size / sizeof(words[0]); i++) {
        words[i] = scramble(i);
    }
}

static bool run_guest(struct machine machines[2], struct guest *guest, unsigned long records)
{
    uint64_t mixes;

    if (!guest_wait(guest, records)) {
        return false;
    }
    printf("%-12s%" PRIu64 " records checked\n", "load", guest_checked(guest));
    if (!migrate(&machines[0], &machines[1], guest) ||
        !guest_wait(guest, guest_checked(guest) + records)) {
        return false;
    }
    guest_pause(guest);
    mixes = guest->nr_mixed;
    printf("%-12s%" PRIu64 " records checked, none lost, none repeated; %" PRIu64
           " register accesses, %" PRIu64 " of them values for the records\n",
           "load", guest_checked(guest), guest->register_accesses, mixes);
    return guest_wait(guest, 0);
}

static bool run_load(struct machine machines[2], unsigned long records)
{
    const struct host here = { .device = machines[0].device, .ram = machines[0].ram };
    static struct guest guest;
    bool ok;
    int err = guest_start(&guest, &here);

    if (err != 0) {
        fprintf(stderr, "migration: the guest does not start: %s%s\n", strerror(-err), guest.error);
        return false;
    }
    ok = run_guest(machines, &guest, records);
    guest_end(&guest);
    if (guest.error[0] != '\0') {
        fprintf(stderr, "migration: the guest: %s\n", guest.error);
    }
    return ok && guest.error[0] == '\0';
}

static bool start(struct machine *machine, struct demo *demo, const char *name,
                  const struct options *options)
{
    if (!machine_start(machine, demo, name, options->memory_mib << 20, options->messages)) {
        return false;
    }
    printf("%-12sdevice in process %d, RAM of %lu MiB %s\n", name,
           (int)machine->process.process.pid, options->memory_mib,
           options->messages ? "reached by messages" : "shared");
    return true;
}

static bool run(struct demo *demo, const struct options *options)
{
    static const char *const names[] = { "source", "destination" };
    static struct machine machines[2];
    size_t started = 0;
    bool ok = true;

    while (ok && started < 2) {
        ok = start(&machines[started], demo, names[started], options);
        started++;
    }
    if (ok) {
        fill(&machines[0]);
        ok = run_load(machines, options->records);
    }
    while (started > 0) {
        ok = machine_stop(&machines[--started]) && ok;
    }
    return ok;
}

/*
 * Command line
 */

static int usage_error(void)
{
    fputs("migration: try 'migration --help'\n", stderr);
    return EXIT_USAGE;
}

static bool parse_number(const char *option, const char *text, unsigned long least,
                         unsigned long most, unsigned long *number)
{
    char *end;

    errno = 0;
    *number = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || *number < least || *number > most) {
        fprintf(stderr, "migration: %s takes a number from %lu to %lu, not '%s'\n", option, least,
                most, text);
        return false;
    }
    return true;
}

/* Returns -1 to go on, else the exit status. */
static int parse_options(int argc, char **argv, struct options *options)
{
    bool ok = true;
    int c;

    while (ok && (c = getopt_long(argc, argv, "r:m:Mds:h", long_options, NULL)) != -1) {
        switch (c) {
        case 'r':
            ok = parse_number("--records", optarg, 1, MAX_RECORDS, &options->records);
            break;
        case 'm':
            ok = parse_number("--memory", optarg, MIN_MEMORY_MIB, MAX_MEMORY_MIB,
                              &options->memory_mib);
            break;
        case 'M':
            options->messages = true;
            break;
        case 'd':
            options->device = true;
            break;
        case 's':
            options->socket_path = optarg;
            break;
        case 'h':
            fputs(usage, stdout);
            return EXIT_SUCCESS;
        default:
            ok = false;
        }
    }
    if (ok && optind < argc) {
        fprintf(stderr, "migration: '%s' is too much: there are options only\n", argv[optind]);
        ok = false;
    }
    if (ok && options->device != (options->socket_path != NULL)) {
        fputs("migration: --device and --socket PATH belong together\n", stderr);
        ok = false;
    }
    return ok ? -1 : usage_error();
}

int main(int argc, char **argv)
{
    struct options options = { .records = 200000, .memory_mib = 64 };
    struct demo demo;
    int status = parse_options(argc, argv, &options);

    if (status >= 0) {
        return status;
    }
    if (options.device) {
        return device_run(options.socket_path);
    }
    if (!demo_begin(&demo, "migration")) {
        return EXIT_FAILURE;
    }
    return demo_end(&demo, run(&demo, &options));
}
