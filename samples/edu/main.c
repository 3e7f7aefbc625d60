/* SPDX-License-Identifier: BSD-3-Clause */
#include "server.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#define EXIT_USAGE 2

static const char usage[] =
    "Usage: edu --socket PATH [--dma-mask BITS] [--pasid BITS] [--ats] [--pri] [--verbose]...\n"
    "Serve QEMU's EDU device on a vfio-user socket.\n"
    "\n"
    "  -s, --socket PATH     socket to listen on; removed at the end\n"
    "  -m, --dma-mask BITS   address bits that DMA can reach, 1 to 64 (default 28)\n"
    "  -p, --pasid BITS      address spaces by PASID, of 1 to 20 bits\n"
    "  -a, --ats             ask the client's IOMMU for translations, and cache them\n"
    "  -r, --pri             request pages that are not present; needs --ats\n"
    ACCESS_USAGE
    "  -v, --verbose         say what clients do; twice: each request\n"
    "  -h, --help            print this text\n"
    "  -V, --version         print the version\n"
    "\n"
    "Prints \"edu: listening on PATH\" when clients may connect. SIGTERM and SIGINT end it.\n";

static const struct option long_options[] = {
    { "socket", required_argument, NULL, 's' }, { "dma-mask", required_argument, NULL, 'm' },
    { "pasid", required_argument, NULL, 'p' },  { "ats", no_argument, NULL, 'a' },
    { "pri", no_argument, NULL, 'r' },
    { "verbose", no_argument, NULL, 'v' },      { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },      ACCESS_LONG_OPTIONS,
    { NULL, 0, NULL, 0 },
};

static const int log_levels[] = { LOG_WARNING, LOG_INFO, LOG_DEBUG };

static int usage_error(void)
{
    fputs("edu: try 'edu --help'\n", stderr);
    return EXIT_USAGE;
}

static bool parse_bits(const char *option, unsigned long most, const char *text, unsigned *bits)
{
    char *end;
    unsigned long n;

    errno = 0;
    n = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || n < 1 || n > most) {
        fprintf(stderr, "edu: %s takes a number of bits from 1 to %lu, not '%s'\n", option, most,
                text);
        return false;
    }
    *bits = (unsigned)n;
    return true;
}

static int print_version(void)
{
    printf("edu: EDU device 1.0, vfio-user protocol %d.%d\n", LIB_VFIO_USER_MAJOR,
           LIB_VFIO_USER_MINOR);
    return EXIT_SUCCESS;
}

/* Returns -1 to go on, else the exit status. */
static int parse_options(int argc, char **argv, struct server_options *options)
{
    size_t verbosity = 0;
    int c;

    while ((c = getopt_long(argc, argv, "s:m:p:arvhV", long_options, NULL)) != -1) {
        switch (c) {
        case 's':
            options->socket_path = optarg;
            break;
        case 'm':
            if (!parse_bits("--dma-mask", 64, optarg, &options->dma_mask_bits)) {
                return usage_error();
            }
            break;
        case 'p':
            if (!parse_bits("--pasid", 20, optarg, &options->pasid_bits)) {
                return usage_error();
            }
            break;
        case 'a':
            options->ats = true;
            break;
        case 'r':
            options->pri = true;
            break;
        case 'v':
            verbosity += verbosity + 1 < sizeof(log_levels) / sizeof(log_levels[0]);
            break;
        case 'h':
            fputs(usage, stdout);
            return EXIT_SUCCESS;
        case 'V':
            return print_version();
        default:
            if (!access_take_option("edu", c, optarg, &options->access)) {
                return usage_error();
            }
        }
    }
    options->log_level = log_levels[verbosity];
    if (optind < argc) {
        fprintf(stderr, "edu: '%s' is too much: there are options only\n", argv[optind]);
        return usage_error();
    }
    if (options->pri && !options->ats) {
        fputs("edu: --pri needs --ats: a page that has come is asked for by a translation\n", stderr);
        return usage_error();
    }
    if (options->socket_path == NULL) {
        fputs("edu: --socket PATH is missing: where shall clients connect?\n", stderr);
        return usage_error();
    }
    return -1;
}

int main(int argc, char **argv)
{
    struct server_options options = { .dma_mask_bits = EDU_DMA_MASK_BITS };
    struct server server;
    int status = parse_options(argc, argv, &options);

    if (status >= 0) {
        return status;
    }
    if (server_start(&server, &options) != 0) {
        return EXIT_FAILURE;
    }
    printf("edu: listening on %s\n", options.socket_path);
    fflush(stdout);
    status = server_run(&server) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
    server_stop(&server);
    return status;
}
