/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Doorbells without messages: a device gives its client eventfds, and memory for the values, and
 * the client rings by these alone. In a virtual machine the hypervisor does so, as soon as the
 * guest writes the register (KVM_IOEVENTFD); here this program does.
 *
 * What it teaches: vfu_create_ioeventfd(), with and without a shadow (device.c), and what a client
 * does with what it gets (here).
 */

#include "../common/demo.h"
#include "doorbell.h"
#include "vfio-user-client.h"

#include <endian.h>
#include <errno.h>
#include <getopt.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXIT_USAGE 2
#define MAX_RINGS 100000000

static const char usage[] =
    "Usage: shadow-ioeventfd [--rings N] [--no-shadow]\n"
    "       shadow-ioeventfd --device --socket PATH [--no-shadow]\n"
    "Ring the doorbells of a device in another process, without a message.\n"
    "\n"
    "  -r, --rings N      how often (default 20000)\n"
    "  -n, --no-shadow    plain ioeventfds: the device learns that it was rung, not with what\n"
    "  -d, --device       only serve the device, until SIGTERM or SIGINT\n"
    "  -s, --socket PATH  where; removed at the end\n"
    "  -h, --help         print this text\n";

static const struct option long_options[] = {
    { "rings", required_argument, NULL, 'r' }, { "no-shadow", no_argument, NULL, 'n' },
    { "device", no_argument, NULL, 'd' },      { "socket", required_argument, NULL, 's' },
    { "help", no_argument, NULL, 'h' },        { NULL, 0, NULL, 0 },
};

struct options {
    unsigned long rings;
    bool no_shadow;
    bool device;
    const char *socket_path;
};

/* A doorbell as the client has it. */
struct bell {
    int fd;
    _Atomic uint32_t *shadow; /* NULL: none */
    uint32_t rings;
};

struct client {
    struct demo *demo;
    int device_pidfd;
    vfuc_t *device;
    vfuc_ioeventfd_t fds[NR_DOORBELLS];
    int nr_fds;
    struct bell bells[NR_DOORBELLS];
    void *shadow;
    size_t shadow_size;
    int irq_fd;
};

/*
 * Attaching
 */

/* The file is the device's, but its size must hold what the device says is in it. */
static bool map_shadow(struct client *client, int fd)
{
    struct stat st;
    void *shadow;

    if (fstat(fd, &st) != 0) {
        return demo_failed(client->demo, "no size of the shadow file", errno);
    }
    shadow = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shadow == MAP_FAILED) {
        return demo_failed(client->demo, "the shadow file cannot be mapped", errno);
    }
    client->shadow = shadow;
    client->shadow_size = (size_t)st.st_size;
    return true;
}

static bool use_ioeventfd(struct client *client, const vfuc_ioeventfd_t *io)
{
    size_t index = (io->offset - DOORBELL_RING) / sizeof(uint32_t);

    if (index >= NR_DOORBELLS || io->size != sizeof(uint32_t) || io->fd < 0) {
        return demo_failed(client->demo, "not an ioeventfd of a doorbell", EPROTO);
    }
    client->bells[index].fd = io->fd;
    if (io->shadow_fd < 0) {
        return true;
    }
    /* One file for all of them. */
    if (client->shadow == NULL && !map_shadow(client, io->shadow_fd)) {
        return false;
    }
    if (io->shadow_offset % sizeof(uint32_t) != 0 ||
        client->shadow_size < sizeof(uint32_t) ||
        io->shadow_offset > client->shadow_size - sizeof(uint32_t)) {
        return demo_failed(client->demo, "a shadow beyond its file", EPROTO);
    }
    client->bells[index].shadow =
        (_Atomic uint32_t *)((uint8_t *)client->shadow + io->shadow_offset);
    return true;
}

static bool get_doorbells(struct client *client)
{
    client->nr_fds = vfuc_region_ioeventfds(client->device, VFIO_PCI_BAR0_REGION_INDEX, client->fds,
                                            NR_DOORBELLS);
    if (client->nr_fds < 0) {
        client->nr_fds = 0;
        return demo_failed(client->demo, "no ioeventfds", errno);
    }
    if (client->nr_fds != NR_DOORBELLS) {
        return demo_failed(client->demo, "not as many ioeventfds as doorbells", EPROTO);
    }
    for (int i = 0; i < client->nr_fds; i++) {
        if (!use_ioeventfd(client, &client->fds[i])) {
            return false;
        }
    }
    printf("%d doorbells, each an eventfd %s\n", client->nr_fds,
           client->shadow != NULL ? "and a word of shared memory" : "alone");
    return true;
}

static bool attach(struct client *client, const char *socket_path)
{
    const vfuc_options_t options = { .timeout_ms = DEMO_TIMEOUT_MS };

    client->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (client->irq_fd < 0) {
        return demo_failed(client->demo, "no eventfd", errno);
    }
    client->device = vfuc_connect(socket_path, &options);
    if (client->device == NULL) {
        return demo_failed(client->demo, "cannot attach to the device", errno);
    }
    if (vfuc_irq_set_eventfds(client->device, VFIO_PCI_INTX_IRQ_INDEX, 0, 1, &client->irq_fd) < 0) {
        return demo_failed(client->demo, "no interrupts", errno);
    }
    return get_doorbells(client);
}

static void detach(struct client *client)
{
    if (client->shadow != NULL) {
        munmap(client->shadow, client->shadow_size);
    }
    vfuc_close_ioeventfds(client->fds, (uint32_t)client->nr_fds);
    vfuc_disconnect(client->device);
    if (client->irq_fd >= 0) {
        close(client->irq_fd);
    }
}

/*
 * Ringing
 */

/* What a hypervisor does with the guest's write: the value, and then the signal. */
static bool ring(struct client *client, unsigned long number)
{
    struct bell *bell = &client->bells[number % NR_DOORBELLS];

    if (bell->shadow != NULL) {
        *bell->shadow = htole32((uint32_t)number);
    }
    bell->rings++;
    return vfuc_eventfd_signal(bell->fd) == 0 || demo_failed(client->demo, "cannot ring", errno);
}

static bool ring_by_message(struct client *client, unsigned long number)
{
    size_t index = number % NR_DOORBELLS;
    uint32_t value = htole32((uint32_t)number);

    client->bells[index].rings++;
    return vfuc_region_write(client->device, VFIO_PCI_BAR0_REGION_INDEX,
                             DOORBELL_RING + index * sizeof(value), &value, sizeof(value)) >= 0 ||
           demo_failed(client->demo, "cannot ring by a message", errno);
}

/*
 * Interrupts may come together, but one comes after the last ring; or the end of the device's
 * process does.
 */
static bool wait_interrupt(struct client *client)
{
    struct pollfd fds[] = {
        { .fd = client->irq_fd, .events = POLLIN },
        { .fd = client->device_pidfd, .events = POLLIN },
    };
    uint64_t count;

    while (vfuc_eventfd_take(client->irq_fd, &count) != 0) {
        int ready = poll(fds, 2, DEMO_TIMEOUT_MS);

        if (ready == 0 || fds[1].revents != 0) {
            return demo_failed(client->demo, "no interrupt", ready == 0 ? ETIMEDOUT : EPIPE);
        }
    }
    return true;
}

static double now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

/* Each ring waits for the device's answer to it. */
static bool ring_and_wait(struct client *client, const char *how, unsigned long rings,
                          bool (*ring_one)(struct client *client, unsigned long number))
{
    double begin = now_us();

    for (unsigned long i = 1; i <= rings; i++) {
        if (!ring_one(client, i) || !wait_interrupt(client)) {
            return false;
        }
    }
    printf("%lu rings %s, an interrupt after each: %.1f us\n", rings, how,
           (now_us() - begin) / (double)rings);
    return true;
}

static bool read_register(struct client *client, enum doorbell_register kind, size_t index,
                          uint32_t *value)
{
    if (vfuc_region_read(client->device, VFIO_PCI_BAR0_REGION_INDEX,
                         kind + index * sizeof(*value), value, sizeof(*value)) < 0) {
        return demo_failed(client->demo, "cannot read a register", errno);
    }
    *value = le32toh(*value);
    return true;
}

/* Until the device has dealt with all that was rung: then the value is the last one. */
static bool wait_rings(struct client *client, size_t index)
{
    uint32_t rings;

    if (!read_register(client, DOORBELL_RINGS, index, &rings)) {
        return false;
    }
    while (rings != client->bells[index].rings) {
        if (!wait_interrupt(client) || !read_register(client, DOORBELL_RINGS, index, &rings)) {
            return false;
        }
    }
    return true;
}

static void print_bell(const struct client *client, size_t index, uint32_t value)
{
    printf("doorbell %zu: rung %u times, ", index, client->bells[index].rings);
    if (client->shadow != NULL) {
        printf("last with %u, no message\n", value);
    } else {
        printf("with what it cannot know, no message\n");
    }
}

/* The device has seen all rings, the last value if it can, and no message. */
static bool check(struct client *client, unsigned long last)
{
    for (size_t i = 0; i < NR_DOORBELLS; i++) {
        uint32_t value, messages, expected = (uint32_t)(last - (last - i) % NR_DOORBELLS);

        if (!wait_rings(client, i) || !read_register(client, DOORBELL_VALUE, i, &value) ||
            !read_register(client, DOORBELL_MESSAGES, i, &messages)) {
            return false;
        }
        if (client->shadow == NULL) {
            expected = 0;
        }
        if (value != expected || messages != 0) {
            fprintf(stderr, "shadow-ioeventfd: doorbell %zu: value %u, not %u; %u messages\n", i,
                    value, expected, messages);
            return false;
        }
        print_bell(client, i, value);
    }
    return true;
}

static bool demonstrate(struct client *client, unsigned long rings)
{
    if (!ring_and_wait(client, "by eventfd", rings, ring)) {
        return false;
    }
    /* Faster than the device may look: it gets fewer signals, and the last value. */
    for (unsigned long i = 1; i <= rings; i++) {
        if (!ring(client, i)) {
            return false;
        }
    }
    printf("%lu rings by eventfd, as fast as they can be made\n", rings);
    return check(client, rings) &&
           ring_and_wait(client, "by message, for comparison", rings, ring_by_message);
}

static bool run(struct demo *demo, const struct options *options)
{
    struct client client = { .demo = demo, .irq_fd = -1 };
    struct demo_device device = { .process.pid = 0 };
    bool ok = demo_start_device(demo, &device, "doorbells",
                                options->no_shadow ? "--no-shadow" : NULL);

    client.device_pidfd = device.process.pidfd;
    ok = ok && attach(&client, device.socket) && demonstrate(&client, options->rings);
    detach(&client);
    return demo_stop_device(demo, &device) && ok;
}

/*
 * Command line
 */

static int usage_error(void)
{
    fputs("shadow-ioeventfd: try 'shadow-ioeventfd --help'\n", stderr);
    return EXIT_USAGE;
}

static bool parse_rings(const char *text, unsigned long *rings)
{
    char *end;

    errno = 0;
    *rings = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || *rings < NR_DOORBELLS || *rings > MAX_RINGS) {
        fprintf(stderr, "shadow-ioeventfd: --rings takes a number from %d to %d, not '%s'\n",
                NR_DOORBELLS, MAX_RINGS, text);
        return false;
    }
    return true;
}

/* Returns -1 to go on, else the exit status. */
static int parse_options(int argc, char **argv, struct options *options)
{
    bool ok = true;
    int c;

    while (ok && (c = getopt_long(argc, argv, "r:nds:h", long_options, NULL)) != -1) {
        switch (c) {
        case 'r':
            ok = parse_rings(optarg, &options->rings);
            break;
        case 'n':
            options->no_shadow = true;
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
        fprintf(stderr, "shadow-ioeventfd: '%s' is too much: there are options only\n",
                argv[optind]);
        ok = false;
    }
    if (ok && options->device != (options->socket_path != NULL)) {
        fputs("shadow-ioeventfd: --device and --socket PATH belong together\n", stderr);
        ok = false;
    }
    return ok ? -1 : usage_error();
}

int main(int argc, char **argv)
{
    struct options options = { .rings = 20000 };
    struct demo demo;
    int status = parse_options(argc, argv, &options);

    if (status >= 0) {
        return status;
    }
    if (options.device) {
        return device_run(options.socket_path, !options.no_shadow);
    }
    if (!demo_begin(&demo, "shadow-ioeventfd")) {
        return EXIT_FAILURE;
    }
    return demo_end(&demo, run(&demo, &options));
}
