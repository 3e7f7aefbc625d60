/* SPDX-License-Identifier: BSD-3-Clause */
/* Command line. */
#include "nvme.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_USAGE 2

static const char usage[] =
    "Usage: nvme SOCKET --namespace WHAT [--namespace WHAT]... [OPTION]...\n"
    "Serve an NVMe controller on a vfio-user socket.\n"
    "\n"
    "  -n, --namespace memory=SIZE[,block=512|4096]\n"
    "  -n, --namespace file=PATH[,block=512|4096][,direct][,shared]\n"
    "                        a disk: memory that is gone at the end, or a file or block\n"
    "                        device; direct: past the page cache; shared: others may serve\n"
    "                        it, too. SIZE as in 64M or 1G. Also uuid=, nguid= and eui64=\n"
    "                        with hexadecimal digits\n"
    "  -t, --threads N       threads for I/O, 1 to 16 (default 2)\n"
    "  -q, --queues N        I/O queues of each kind, 1 to 64 (default 64)\n"
    "  -s, --serial TEXT     serial number, up to 20 characters\n"
    "  -N, --subnqn NQN      name of the NVM subsystem, up to 223 characters\n"
    "  -c, --cntlid N        controller identifier, 1 to 65519\n"
    "                        These are derived from the files, or random for memory\n"
    "  -p, --poll            let the client map the doorbells, and poll them\n"
    "  -i, --ioeventfd       let the client ring the doorbells by eventfds, without messages\n"
    "  -a, --ats             ask the client's IOMMU for translations, and cache them\n"
    "  -r, --pri             request pages that are not present; needs --ats\n"
    "  -g, --memory-grace MS how long memory of a queue may be unmapped before that is fatal\n"
    "                        (default 5000)\n"
    ACCESS_USAGE
    "  -v, --verbose         say what happens; twice: each request\n"
    "  -h, --help            print this text\n"
    "\n"
    "Prints \"nvme: listening on SOCKET\" when clients may connect. SIGTERM and SIGINT end it.\n";

static const struct option long_options[] = {
    { "namespace", required_argument, NULL, 'n' },
    { "threads", required_argument, NULL, 't' },
    { "queues", required_argument, NULL, 'q' },
    { "serial", required_argument, NULL, 's' },
    { "subnqn", required_argument, NULL, 'N' },
    { "cntlid", required_argument, NULL, 'c' },
    { "memory-grace", required_argument, NULL, 'g' },
    { "poll", no_argument, NULL, 'p' },
    { "ioeventfd", no_argument, NULL, 'i' },
    { "ats", no_argument, NULL, 'a' },
    { "pri", no_argument, NULL, 'r' },
    { "verbose", no_argument, NULL, 'v' },
    { "help", no_argument, NULL, 'h' },
    ACCESS_LONG_OPTIONS,
    { NULL, 0, NULL, 0 },
};

static const int log_levels[] = { LOG_WARNING, LOG_INFO, LOG_DEBUG };

static int usage_error(void)
{
    fputs("nvme: try 'nvme --help'\n", stderr);
    return EXIT_USAGE;
}

static bool parse_number(const char *option, const char *text, unsigned least, unsigned most,
                         unsigned *number)
{
    char *end;
    unsigned long n;

    errno = 0;
    n = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || *text == '-' || n < least || n > most) {
        fprintf(stderr, "nvme: %s takes a number from %u to %u, not '%s'\n", option, least, most,
                text);
        return false;
    }
    *number = (unsigned)n;
    return true;
}

/* Bytes, or with one of the letters K, M, G, T. */
static bool parse_size(const char *text, uint64_t *size)
{
    static const char units[] = "KMGT";
    unsigned shift = 0;
    const char *unit;
    char *end;

    errno = 0;
    *size = strtoull(text, &end, 10);
    if (errno == 0 && end != text && *end != '\0') {
        unit = strchr(units, *end & ~0x20);
        shift = unit != NULL && end[1] == '\0' ? (unsigned)(unit - units + 1) * 10 : 64;
    }
    if (errno != 0 || end == text || *text == '-' || shift == 64 || *size == 0 ||
        *size > (UINT64_C(1) << 62) >> shift) {
        fprintf(stderr, "nvme: a size is a number of bytes, or of K, M, G or T, not '%s'\n", text);
        return false;
    }
    *size <<= shift;
    return true;
}

static bool parse_block_size(const char *text, unsigned *size)
{
    if (strcmp(text, "512") != 0 && strcmp(text, "4096") != 0) {
        fprintf(stderr, "nvme: a block has 512 or 4096 bytes, not '%s'\n", text);
        return false;
    }
    *size = (unsigned)atoi(text);
    return true;
}

/* False: it is no such item, or it is wrong, which *wrong says after a line on standard error. */
static bool parse_name(const char *item, const char *value, struct namespace_config *ns,
                       bool *wrong)
{
    const struct {
        const char *item;
        uint8_t *bytes;
        size_t size;
    } names[] = {
        { "uuid", ns->identity.uuid, sizeof(ns->identity.uuid) },
        { "nguid", ns->identity.nguid, sizeof(ns->identity.nguid) },
        { "eui64", ns->identity.eui64, sizeof(ns->identity.eui64) },
    };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(item, names[i].item) != 0) {
            continue;
        }
        if (identity_parse_hex(value, names[i].bytes, names[i].size)) {
            return true;
        }
        fprintf(stderr, "nvme: %s takes %zu hexadecimal digits, not all 0, and not '%s'\n", item,
                2 * names[i].size, value);
        *wrong = true;
    }
    return false;
}

static bool parse_namespace_item(char *item, struct namespace_config *ns)
{
    char *value = strchr(item, '=');
    bool wrong = false;

    if (value != NULL) {
        *value++ = '\0';
        if (parse_name(item, value, ns, &wrong) || wrong) {
            return !wrong;
        }
        if (strcmp(item, "file") == 0) {
            ns->path = value;
            return true;
        }
        if (strcmp(item, "memory") == 0) {
            return parse_size(value, &ns->size);
        }
        if (strcmp(item, "block") == 0) {
            return parse_block_size(value, &ns->block_size);
        }
    } else if (strcmp(item, "direct") == 0) {
        ns->direct = true;
        return true;
    } else if (strcmp(item, "shared") == 0) {
        ns->shared = true;
        return true;
    }
    fprintf(stderr,
            "nvme: '%s' is unknown to --namespace: there are file=PATH, memory=SIZE, "
            "block=512|4096, direct, shared, uuid=, nguid= and eui64=\n",
            item);
    return false;
}

static bool parse_namespace(char *text, struct nvme_config *config)
{
    struct namespace_config *ns = &config->namespaces[config->nr_namespaces];
    char *item;

    if (config->nr_namespaces == NVME_MAX_NAMESPACES) {
        fprintf(stderr, "nvme: there can be %u namespaces, not more\n", NVME_MAX_NAMESPACES);
        return false;
    }
    *ns = (struct namespace_config){ .block_size = 512 };
    while ((item = strsep(&text, ",")) != NULL) {
        if (!parse_namespace_item(item, ns)) {
            return false;
        }
    }
    if ((ns->path == NULL) == (ns->size == 0)) {
        fputs("nvme: a namespace is file=PATH or memory=SIZE, one of them\n", stderr);
        return false;
    }
    if ((ns->direct || ns->shared) && ns->path == NULL) {
        fputs("nvme: direct and shared are for files\n", stderr);
        return false;
    }
    config->nr_namespaces++;
    return true;
}

static bool parse_text(const char *option, const char *text, size_t most, const char **place)
{
    size_t len = strlen(text);

    for (size_t i = 0; i < len; i++) {
        if (text[i] < 0x20 || text[i] > 0x7e) {
            len = 0;
        }
    }
    if (len == 0 || len > most) {
        fprintf(stderr, "nvme: %s takes 1 to %zu printable ASCII characters\n", option, most);
        return false;
    }
    *place = text;
    return true;
}

static bool check(const struct nvme_config *config)
{
    if (config->socket == NULL) {
        fputs("nvme: SOCKET is missing: where shall clients connect?\n", stderr);
    } else if (config->nr_namespaces == 0) {
        fputs("nvme: there is no disk: try --namespace memory=64M\n", stderr);
    } else if (config->poll && config->ioeventfd) {
        fputs("nvme: choose --poll or --ioeventfd: a thread that polls needs no wakeup\n", stderr);
    } else if (config->pri && !config->ats) {
        fputs("nvme: --pri needs --ats: a page that has come is asked for by a translation\n",
              stderr);
    } else {
        return true;
    }
    return false;
}

static bool parse_option(int c, struct nvme_config *config, size_t *verbosity)
{
    switch (c) {
    case 'n':
        return parse_namespace(optarg, config);
    case 't':
        return parse_number("--threads", optarg, 1, NVME_MAX_WORKERS, &config->nr_workers);
    case 'q':
        return parse_number("--queues", optarg, 1, NVME_MAX_IO_QUEUES, &config->nr_queues);
    case 's':
        return parse_text("--serial", optarg, IDENTITY_SERIAL_SIZE, &config->identity.serial);
    case 'N':
        return parse_text("--subnqn", optarg, IDENTITY_NQN_SIZE, &config->identity.subnqn);
    case 'c':
        return parse_number("--cntlid", optarg, 1, IDENTITY_CNTLID_MAX, &config->identity.cntlid);
    case 'g':
        return parse_number("--memory-grace", optarg, 0, MEMORY_GRACE_MAX_MS,
                            &config->memory_grace_ms);
    case 'p':
        config->poll = true;
        return true;
    case 'i':
        config->ioeventfd = true;
        return true;
    case 'a':
        config->ats = true;
        return true;
    case 'r':
        config->pri = true;
        return true;
    case 'v':
        *verbosity += *verbosity + 1 < sizeof(log_levels) / sizeof(log_levels[0]);
        return true;
    default:
        return access_take_option("nvme", c, optarg, &config->access);
    }
}

/* Returns -1 to go on, else the exit status. */
static int parse_options(int argc, char **argv, struct nvme_config *config)
{
    size_t verbosity = 0;
    int c;

    while ((c = getopt_long(argc, argv, "n:t:q:s:N:c:g:piarvh", long_options, NULL)) != -1) {
        if (c == 'h') {
            fputs(usage, stdout);
            return EXIT_SUCCESS;
        }
        if (!parse_option(c, config, &verbosity)) {
            return usage_error();
        }
    }
    config->log_level = log_levels[verbosity];
    config->socket = optind < argc ? argv[optind] : NULL;
    if (optind + 1 < argc) {
        fprintf(stderr, "nvme: '%s' is too much: there is one SOCKET\n", argv[optind + 1]);
        return usage_error();
    }
    return check(config) ? -1 : usage_error();
}

int main(int argc, char **argv)
{
    struct nvme *nvme = calloc(1, sizeof(*nvme));
    int status;

    if (nvme == NULL) {
        fputs("nvme: out of memory\n", stderr);
        return EXIT_FAILURE;
    }
    nvme->config = (struct nvme_config){ .nr_workers = 2,
                                         .nr_queues = NVME_MAX_IO_QUEUES,
                                         .memory_grace_ms = MEMORY_GRACE_MS };
    status = parse_options(argc, argv, &nvme->config);
    if (status < 0 && server_start(nvme) != 0) {
        status = EXIT_FAILURE;
    }
    if (status < 0) {
        printf("nvme: listening on %s\n", nvme->config.socket);
        fflush(stdout);
        status = server_run(nvme) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
        server_stop(nvme);
    }
    free(nvme);
    return status;
}
