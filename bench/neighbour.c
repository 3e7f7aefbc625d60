/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Two contexts in one thread: how long a client of the one waits for a region read while a client
 * of the other attacks. Each attack runs in a process of its own; the same reads without an attack
 * come first, and the ratio of the worst ones is the result.
 */
#include "libvfio-user-events.h"
#include "libvfio-user.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BAR_SIZE (1u << 20)
#define DEFAULT_READS 20000
#define EXIT_USAGE 2

enum {
    VICTIM,
    ATTACKED,
    NR_DEVICES
};

static const char usage[] =
    "Usage: neighbour [--reads N] [--poll-fd] [--help]\n"
    "Serve two contexts in one thread, attack one of them, and print the median and the worst\n"
    "region read of the other's client, in microseconds, with and without each attack.\n"
    "\n"
    "  --reads N   reads for each attack; 20000 without this option\n"
    "  --poll-fd   the loop polls vfu_get_poll_fd() and vfu_next_timeout(), as one of libvfio-user\n"
    "              0.x does, instead of vfu_get_event_fd()\n";

struct request {
    struct vfio_user_header hdr;
    struct vfio_user_region_access access;
} __attribute__((packed));

struct version {
    struct vfio_user_header hdr;
    struct vfio_user_version version;
} __attribute__((packed));

struct paths {
    char directory[32];
    char sockets[NR_DEVICES][48];
};

static void die(const char *what)
{
    fprintf(stderr, "neighbour: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

/* The server */

static ssize_t access_bar(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx;
    (void)offset;
    if (!is_write) {
        memset(buf, 0x5a, count);
    }
    return (ssize_t)count;
}

static vfu_ctx_t *make_device(const char *path)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL,
                                    VFU_DEV_TYPE_PCI);

    if (ctx == NULL || vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, 0, 0) < 0 ||
        vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE, access_bar,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0) < 0 ||
        vfu_realize_ctx(ctx) < 0) {
        die("cannot set a device up");
    }
    return ctx;
}

static void turn(vfu_ctx_t *ctx, bool *attached)
{
    if (!*attached) {
        *attached = vfu_attach_ctx(ctx) == 0;
    } else if (vfu_run_ctx(ctx) < 0 && errno == ENOTCONN) {
        *attached = false;
    }
}

static void serve(vfu_ctx_t *ctxs[NR_DEVICES], bool poll_fd)
{
    bool attached[NR_DEVICES] = { false };

    for (;;) {
        struct pollfd fds[NR_DEVICES];
        int timeout = -1;

        for (int i = 0; i < NR_DEVICES; i++) {
            int next = poll_fd ? vfu_next_timeout(ctxs[i]) : -1;

            fds[i].fd = poll_fd ? vfu_get_poll_fd(ctxs[i]) : vfu_get_event_fd(ctxs[i]);
            fds[i].events = POLLIN;
            timeout = next >= 0 && (timeout < 0 || next < timeout) ? next : timeout;
        }
        if (poll(fds, NR_DEVICES, timeout) == 0) {
            fds[VICTIM].revents = fds[ATTACKED].revents = POLLIN;
        }
        for (int i = 0; i < NR_DEVICES; i++) {
            if (fds[i].revents != 0) {
                turn(ctxs[i], &attached[i]);
            }
        }
    }
}

/* Clients */

static int connect_to(const char *path)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        die("cannot connect");
    }
    return fd;
}

static struct version make_version(void)
{
    return (struct version){
        .hdr = { .cmd = VFIO_USER_VERSION, .msg_size = sizeof(struct version) },
        .version = { .major = LIB_VFIO_USER_MAJOR, .minor = LIB_VFIO_USER_MINOR },
    };
}

static struct request make_read(uint32_t count)
{
    return (struct request){
        .hdr = { .cmd = VFIO_USER_REGION_READ, .msg_size = sizeof(struct request) },
        .access = { .region = VFU_PCI_DEV_BAR0_REGION_IDX, .count = count },
    };
}

static int attach_to(const char *path)
{
    const struct version version = make_version();
    char reply[1024];
    int fd = connect_to(path);

    if (send(fd, &version, sizeof(version), 0) != sizeof(version) ||
        recv(fd, reply, sizeof(reply), 0) < (ssize_t)sizeof(version)) {
        die("cannot attach");
    }
    return fd;
}

/* The attacks: each goes on until it is killed. */

static void be_silent(const char *path)
{
    for (;;) {
        int fd = connect_to(path);
        char byte;

        (void)!read(fd, &byte, 1);
        close(fd);
    }
}

static void speak_slowly(const char *path)
{
    const struct version version = make_version();

    for (;;) {
        int fd = connect_to(path);

        for (size_t i = 0; i + 1 < sizeof(version); i++) {
            send(fd, (const char *)&version + i, 1, MSG_NOSIGNAL);
            usleep(1000);
        }
        close(fd);
    }
}

static void come_and_go(const char *path)
{
    for (;;) {
        close(connect_to(path));
    }
}

static void come_and_wait(const char *path)
{
    for (;;) {
        int fd = connect_to(path);

        usleep(2000);
        close(fd);
    }
}

static void never_read(const char *path)
{
    const struct request read = make_read(BAR_SIZE);

    for (;;) {
        int fd = attach_to(path);

        while (send(fd, &read, sizeof(read), MSG_NOSIGNAL) > 0) {
        }
        close(fd);
    }
}

/* One large reply at a time, read with a pause in between. */
static void read_slowly(const char *path)
{
    const struct request read = make_read(BAR_SIZE);
    static char buf[65536];
    int fd = attach_to(path);

    for (;;) {
        size_t left = sizeof(read) + BAR_SIZE;

        send(fd, &read, sizeof(read), MSG_NOSIGNAL);
        while (left > 0) {
            ssize_t n = recv(fd, buf, sizeof(buf), 0);

            if (n <= 0) {
                die("connection lost");
            }
            left -= (size_t)n;
            usleep(1000);
        }
    }
}

static void answer_nothing(const char *path)
{
    const struct vfio_user_header reply = {
        .cmd = VFIO_USER_DMA_READ,
        .msg_size = sizeof(reply),
        .flags = VFIO_USER_F_TYPE_REPLY,
    };

    for (;;) {
        int fd = attach_to(path);

        while (send(fd, &reply, sizeof(reply), MSG_NOSIGNAL) > 0) {
        }
        close(fd);
    }
}

static const struct attack {
    const char *name;
    void (*run)(const char *path);
} attacks[] = {
    { "connects and is silent", be_silent },
    { "a byte of VERSION each ms", speak_slowly },
    { "connects and goes", come_and_go },
    { "connects, waits, goes", come_and_wait },
    { "never reads 1 MiB replies", never_read },
    { "reads 1 MiB replies slowly", read_slowly },
    { "replies to nothing", answer_nothing },
};

/* Measuring */

static double now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* Prints one line, and returns the worst read. without: the worst one without an attack, or 0. */
static double measure(int fd, const char *name, size_t reads, double without)
{
    const struct request read = make_read(4);
    double *times = calloc(reads, sizeof(*times)), worst, median;
    char reply[64];

    if (times == NULL) {
        die("no memory");
    }
    for (size_t i = 0; i < reads; i++) {
        double start = now_us();

        if (send(fd, &read, sizeof(read), MSG_NOSIGNAL) != (ssize_t)sizeof(read) ||
            recv(fd, reply, sizeof(reply), 0) != (ssize_t)sizeof(read) + 4) {
            die("the other client's device");
        }
        times[i] = now_us() - start;
    }
    qsort(times, reads, sizeof(*times), by_value);
    median = times[reads / 2];
    worst = times[reads - 1];
    free(times);
    printf("%-28s %10.1f %10.1f", name, median, worst);
    if (without > 0) {
        printf(" %8.2f", worst / without);
    }
    putchar('\n');
    return worst;
}

static pid_t start(void)
{
    pid_t pid = fork();

    if (pid < 0) {
        die("cannot start a process");
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    }
    return pid;
}

static void stop(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void run(const struct paths *paths, size_t reads, bool poll_fd)
{
    vfu_ctx_t *ctxs[NR_DEVICES];
    pid_t server, attacker;
    double without;
    int fd;

    for (int i = 0; i < NR_DEVICES; i++) {
        ctxs[i] = make_device(paths->sockets[i]);
    }
    server = start();
    if (server == 0) {
        serve(ctxs, poll_fd);
    }
    fd = attach_to(paths->sockets[VICTIM]);
    printf("%-28s %10s %10s %8s\n", "the other client", "median us", "worst us", "ratio");
    without = measure(fd, "is not there", reads, 0);
    for (size_t i = 0; i < sizeof(attacks) / sizeof(attacks[0]); i++) {
        attacker = start();
        if (attacker == 0) {
            attacks[i].run(paths->sockets[ATTACKED]);
        }
        measure(fd, attacks[i].name, reads, without);
        stop(attacker);
    }
    stop(server);
    for (int i = 0; i < NR_DEVICES; i++) {
        vfu_destroy_ctx(ctxs[i]);
    }
}

int main(int argc, char **argv)
{
    struct paths paths = { .directory = "/tmp/vfu-bench-XXXXXX" };
    size_t reads = DEFAULT_READS;
    bool poll_fd = false;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            fputs(usage, stdout);
            return EXIT_SUCCESS;
        }
        if (strcmp(argv[i], "--poll-fd") == 0) {
            poll_fd = true;
        } else if (strcmp(argv[i], "--reads") == 0 && i + 1 < argc && atoi(argv[i + 1]) > 0) {
            reads = (size_t)atoi(argv[++i]);
        } else {
            fprintf(stderr, "neighbour: does not take '%s' so: try 'neighbour --help'\n", argv[i]);
            return EXIT_USAGE;
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (mkdtemp(paths.directory) == NULL) {
        die("cannot make a directory");
    }
    for (int i = 0; i < NR_DEVICES; i++) {
        snprintf(paths.sockets[i], sizeof(paths.sockets[i]), "%s/%d", paths.directory, i);
    }
    run(&paths, reads, poll_fd);
    rmdir(paths.directory);
    return EXIT_SUCCESS;
}
