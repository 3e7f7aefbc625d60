/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What an interrupt costs beside a bare write to the eventfd: the call alone, and the time until a
 * client's thread, which sleeps in poll(), has read the eventfd. Rounds of all ways alternate, so that
 * whatever else the machine does falls on all; the median of the rounds' ratios is the result.
 */
#include "device/irq.h"
#include "util/peer_eventfd_thread.h"

#include <errno.h>
#include <getopt.h>
#include <linux/vfio.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_ROUNDS 1001
#define SIGNALS 500

static const char usage[] =
    "Usage: interrupt [--rounds N]\n"
    "Measure interrupts beside a bare write to the client's eventfd.\n"
    "\n"
    "  -r, --rounds N   rounds of 500 interrupts each way, up to 1001 (41)\n"
    "  -h, --help       print this text\n"
    "\n"
    "call: the trigger alone. latency: until a thread in poll() has read the eventfd.\n"
    "The ratio is that to the bare write, as the median over the rounds.\n";

static struct irqs irqs;
static int eventfd_of_client;
static _Atomic uint64_t arrived_ns; /* 0: not yet */
static _Atomic bool ending;

static void die(const char *what)
{
    fprintf(stderr, "interrupt: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static int bare_write(void)
{
    return eventfd_write(eventfd_of_client, 1);
}

/* As long as no client fills the counter in between. */
static int poll_and_write(void)
{
    struct pollfd pfd = { .fd = eventfd_of_client, .events = POLLOUT };

    return poll(&pfd, 1, 0) == 1 ? eventfd_write(eventfd_of_client, 1) : -1;
}

static int trigger(void)
{
    return irq_trigger(&irqs, 0);
}

static int on_thread(void)
{
    return peer_eventfd_signal_on_thread(eventfd_of_client);
}

static const struct way {
    const char *name;
    int (*signal)(void);
} ways[] = {
    { "bare write", bare_write },
    { "poll and write", poll_and_write },
    { "trigger", trigger },
    { "without AIO", on_thread },
};

#define WAYS (sizeof(ways) / sizeof(ways[0]))

static double call_ns(const struct way *way)
{
    uint64_t start = now_ns(), end;
    eventfd_t count;

    for (int i = 0; i < SIGNALS; i++) {
        if (way->signal() != 0) {
            die(way->name);
        }
    }
    end = now_ns();
    eventfd_read(eventfd_of_client, &count);
    return (double)(end - start) / SIGNALS;
}

static void *run_client(void *arg)
{
    struct pollfd pfd = { .fd = eventfd_of_client, .events = POLLIN };
    eventfd_t count;

    while (!atomic_load(&ending)) {
        if (poll(&pfd, 1, -1) == 1 && eventfd_read(eventfd_of_client, &count) == 0) {
            atomic_store(&arrived_ns, now_ns());
        }
    }
    return arg;
}

static double latency_ns(const struct way *way)
{
    double sum = 0;

    for (int i = 0; i < SIGNALS; i++) {
        uint64_t start, end;

        atomic_store(&arrived_ns, 0);
        start = now_ns();
        if (way->signal() != 0) {
            die(way->name);
        }
        while ((end = atomic_load(&arrived_ns)) == 0) {
            sched_yield();
        }
        sum += (double)(end - start);
    }
    return sum / SIGNALS;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median(double *values, int rounds)
{
    qsort(values, (size_t)rounds, sizeof(*values), by_value);
    return values[rounds / 2];
}

static void measure(const char *what, double (*once)(const struct way *way), int rounds)
{
    static double values[WAYS][MAX_ROUNDS], ratios[WAYS][MAX_ROUNDS];

    for (int i = 0; i < rounds; i++) {
        for (size_t w = 0; w < WAYS; w++) {
            values[w][i] = once(&ways[w]);
            ratios[w][i] = values[w][i] / values[0][i];
        }
    }
    for (size_t w = 0; w < WAYS; w++) {
        printf("  %-8s %-15s %8.0f ns, ratio %.2f\n", what, ways[w].name,
               median(values[w], rounds), median(ratios[w], rounds));
    }
}

static void set_up(void)
{
    static const struct logger silent;
    const struct vfio_irq_set set = {
        .argsz = sizeof(set), .count = 1, .index = VFU_DEV_MSIX_IRQ,
        .flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD,
    };
    int fd;

    eventfd_of_client = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    fd = dup(eventfd_of_client);
    irqs_init(&irqs, &silent);
    if (fd < 0 || irqs_set_count(&irqs, VFU_DEV_MSIX_IRQ, 1) < 0 || irqs_realize(&irqs) < 0 ||
        irqs_apply(&irqs, &set, NULL, &fd, 1) < 0) {
        die("set-up");
    }
}

static int parse_options(int argc, char **argv)
{
    static const struct option options[] = {
        { "rounds", required_argument, NULL, 'r' }, { "help", no_argument, NULL, 'h' }, { 0 },
    };
    int c, rounds = 41;

    while ((c = getopt_long(argc, argv, "r:h", options, NULL)) != -1) {
        if (c == 'h') {
            fputs(usage, stdout);
            exit(0);
        }
        rounds = c == 'r' ? atoi(optarg) : 0;
    }
    if (optind < argc || rounds < 1 || rounds > MAX_ROUNDS) {
        fputs(usage, stderr);
        exit(2);
    }
    return rounds;
}

int main(int argc, char **argv)
{
    int rounds = parse_options(argc, argv);
    pthread_t client;

    set_up();
    measure("call", call_ns, rounds);
    if (pthread_create(&client, NULL, run_client, NULL) != 0) {
        die("thread");
    }
    measure("latency", latency_ns, rounds);
    atomic_store(&ending, true);
    bare_write();
    pthread_join(client, NULL);
    irqs_destroy(&irqs);
    close(eventfd_of_client);
    return 0;
}
