/* SPDX-License-Identifier: BSD-3-Clause */
/* Drives an NVMe controller behind a vfio-user socket, no virtual machine needed. */

#include "host.h"
#include "run.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_USAGE 2

static const char usage[] =
    "Usage: nvme-host SOCKET --verify [--queues N] [--depth N] [--seconds N] [--resets] [--spin]\n"
    "                        [--ioeventfd] [--seed N]\n"
    "       nvme-host SOCKET --bench randread|randwrite [--depth N] [--seconds N] [--spin]\n"
    "                        [--ioeventfd] [--remap]\n"
    "Drive the NVMe controller at SOCKET. What namespace 1 holds is lost.\n"
    "\n"
    "  --verify      random I/O on several queues of which every byte is checked\n"
    "  --resets      resets of every kind and lost connections while I/O is under way\n"
    "  --bench KIND  4 KiB reads or writes at random places, and how many a second there were\n"
    "  --queues N    I/O queues, 1 to 16 (default 2)\n"
    "  --depth N     commands under way on each, 1 to 255 (default 32)\n"
    "  --seconds N   default 5\n"
    "  --spin        look for completions all the time, instead of waiting for interrupts\n"
    "  --ioeventfd   ring the doorbells by the device's eventfds, as a hypervisor does\n"
    "  --remap       map each page before its command and unmap it afterwards, as QEMU does for a\n"
    "                guest with an IOMMU; says how often that goes without commands, too\n"
    "  --seed N      of the random numbers\n"
    "  --help        print this text\n";

enum {
    OPTION_VERIFY = 256,
    OPTION_RESETS,
    OPTION_BENCH,
    OPTION_QUEUES,
    OPTION_DEPTH,
    OPTION_SECONDS,
    OPTION_SPIN,
    OPTION_IOEVENTFD,
    OPTION_REMAP,
    OPTION_SEED,
    OPTION_HELP,
};

static const struct option long_options[] = {
    { "verify", no_argument, NULL, OPTION_VERIFY },
    { "resets", no_argument, NULL, OPTION_RESETS },
    { "bench", required_argument, NULL, OPTION_BENCH },
    { "queues", required_argument, NULL, OPTION_QUEUES },
    { "depth", required_argument, NULL, OPTION_DEPTH },
    { "seconds", required_argument, NULL, OPTION_SECONDS },
    { "spin", no_argument, NULL, OPTION_SPIN },
    { "ioeventfd", no_argument, NULL, OPTION_IOEVENTFD },
    { "remap", no_argument, NULL, OPTION_REMAP },
    { "seed", required_argument, NULL, OPTION_SEED },
    { "help", no_argument, NULL, OPTION_HELP },
    { NULL, 0, NULL, 0 },
};

static bool parse_number(const char *what, const char *text, uint64_t least, uint64_t most,
                         uint64_t *number)
{
    char *end;

    errno = 0;
    *number = strtoull(text, &end, 0);
    if (errno != 0 || end == text || *end != '\0' || *number < least || *number > most) {
        host_fail("%s takes a number from %llu to %llu, not '%s'", what, (unsigned long long)least,
                  (unsigned long long)most, text);
        return false;
    }
    return true;
}

static bool parse_unsigned(const char *what, const char *text, unsigned most, unsigned *number)
{
    uint64_t n;

    if (!parse_number(what, text, 1, most, &n)) {
        return false;
    }
    *number = (unsigned)n;
    return true;
}

static bool parse_kind(const char *text, bool *is_write)
{
    *is_write = strcmp(text, "randwrite") == 0;
    if (*is_write || strcmp(text, "randread") == 0) {
        return true;
    }
    host_fail("--bench takes randread or randwrite, not '%s'", text);
    return false;
}

struct choice {
    bool verify, bench, help;
};

static bool parse_option(int c, struct run_options *options, struct choice *choice)
{
    switch (c) {
    case OPTION_VERIFY:
        return choice->verify = true;
    case OPTION_RESETS:
        return options->resets = true;
    case OPTION_BENCH:
        choice->bench = true;
        return parse_kind(optarg, &options->writes);
    case OPTION_QUEUES:
        return parse_unsigned("--queues", optarg, HOST_MAX_QUEUES, &options->queues);
    case OPTION_DEPTH:
        return parse_unsigned("--depth", optarg, 255, &options->depth);
    case OPTION_SECONDS:
        return parse_unsigned("--seconds", optarg, 1000000, &options->seconds);
    case OPTION_SPIN:
        return options->spin = true;
    case OPTION_IOEVENTFD:
        return options->ioeventfd = true;
    case OPTION_REMAP:
        return options->remap = true;
    case OPTION_SEED:
        return parse_number("--seed", optarg, 1, UINT64_MAX, &options->seed);
    case OPTION_HELP:
        return choice->help = true;
    default:
        return false;
    }
}

int main(int argc, char **argv)
{
    struct run_options options = {
        .seconds = 5, .queues = 2, .depth = 32, .seed = host_now_ms() + 1
    };
    struct choice choice = { 0 };
    int c;

    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (!parse_option(c, &options, &choice)) {
            return EXIT_USAGE;
        }
    }
    if (choice.help) {
        fputs(usage, stdout);
        return EXIT_SUCCESS;
    }
    if (optind + 1 != argc || choice.verify == choice.bench) {
        host_fail("one SOCKET, and --verify or --bench: try --help");
        return EXIT_USAGE;
    }
    options.path = argv[optind];
    if (choice.verify) {
        printf("seed %llu\n", (unsigned long long)options.seed);
        return run_verify(&options);
    }
    return run_bench(&options);
}
