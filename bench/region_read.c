/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a region read costs beside a bare exchange of messages of the same sizes over the same
 * kind of socket, between the same two processes. Rounds of both alternate, so that whatever else
 * the machine does falls on both; the median of the rounds' ratios is the result.
 */
#include "libvfio-user.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 41
#define READS 4000
#define BAR_SIZE 4096

#define CLIENT_CPU 0

struct read_request {
    struct vfio_user_header hdr;
    struct vfio_user_region_access access;
} __attribute__((packed));

static void die(const char *what)
{
    fprintf(stderr, "region_read: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static ssize_t bar_access(vfu_ctx_t *vfu_ctx, char *buf, size_t count, loff_t offset,
                          bool is_write)
{
    (void)vfu_ctx;
    (void)offset;
    if (!is_write) {
        memset(buf, 0x5a, count);
    }
    return (ssize_t)count;
}

static vfu_ctx_t *make_device(const char *path)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, 0, NULL, VFU_DEV_TYPE_PCI);

    if (ctx == NULL || vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, 0, 0) < 0 ||
        vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE, bar_access,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0) < 0 ||
        vfu_realize_ctx(ctx) < 0) {
        die("device");
    }
    return ctx;
}

/* Client and servers each have a place, or the scheduler's choice would be what is measured. */
static void stay_on(int cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu % (int)sysconf(_SC_NPROCESSORS_ONLN), &set);
    if (sched_setaffinity(0, sizeof(set), &set) < 0) {
        fprintf(stderr, "region_read: cannot choose a processor: %s\n", strerror(errno));
    }
}

/* The limit: as little as a server of such messages can do. */
static void serve_bare(int fd, size_t request, size_t reply)
{
    char buf[BAR_SIZE + 64] = { 0 };

    while (recv(fd, buf, sizeof(buf), 0) == (ssize_t)request) {
        if (send(fd, buf, reply, MSG_NOSIGNAL) != (ssize_t)reply) {
            break;
        }
    }
    _exit(0);
}

static pid_t start_bare(int cpu, int *fd, size_t request, size_t reply)
{
    int pair[2];
    pid_t pid = -1;

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0 || (pid = fork()) < 0) {
        die("bare server");
    }
    if (pid == 0) {
        close(pair[0]);
        stay_on(cpu);
        serve_bare(pair[1], request, reply);
    }
    close(pair[1]);
    *fd = pair[0];
    return pid;
}

static pid_t start_device(int cpu, int *fd)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    const struct {
        struct vfio_user_header hdr;
        struct vfio_user_version version;
    } __attribute__((packed)) version = {
        .hdr = { .cmd = VFIO_USER_VERSION, .msg_size = sizeof(version) },
        .version = { .major = LIB_VFIO_USER_MAJOR, .minor = LIB_VFIO_USER_MINOR },
    };
    char dir[] = "/tmp/vfu-bench-XXXXXX", reply[1024];
    vfu_ctx_t *ctx;
    pid_t pid = -1;

    if (mkdtemp(dir) == NULL) {
        die("mkdtemp");
    }
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/sock", dir);
    ctx = make_device(addr.sun_path);
    pid = fork();
    if (pid == 0) {
        stay_on(cpu);
        if (vfu_attach_ctx(ctx) == 0) {
            vfu_run_ctx(ctx);
        }
        _exit(0);
    }
    *fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (pid < 0 || connect(*fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
        send(*fd, &version, sizeof(version), 0) != sizeof(version) ||
        recv(*fd, reply, sizeof(reply), 0) < (ssize_t)sizeof(version)) {
        die("attach");
    }
    vfu_destroy_ctx(ctx);
    rmdir(dir);
    return pid;
}

static double exchange(int fd, const void *request, size_t request_len, size_t reply_len)
{
    char buf[BAR_SIZE + 64];
    double start = now_ns();

    for (int i = 0; i < READS; i++) {
        if (send(fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len ||
            recv(fd, buf, sizeof(buf), 0) != (ssize_t)reply_len) {
            die("exchange");
        }
    }
    return (now_ns() - start) / READS;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median(double *values)
{
    qsort(values, ROUNDS, sizeof(*values), by_value);
    return values[ROUNDS / 2];
}

static void run(int server_cpu, uint32_t count)
{
    const struct read_request request = {
        .hdr = { .msg_id = 1, .cmd = VFIO_USER_REGION_READ, .msg_size = sizeof(request) },
        .access = { .count = count },
    };
    size_t reply = sizeof(request) + count;
    double bare[ROUNDS], region[ROUNDS], ratio[ROUNDS];
    int bare_fd, device_fd;
    pid_t bare_pid = start_bare(server_cpu, &bare_fd, sizeof(request), reply);
    pid_t device_pid = start_device(server_cpu, &device_fd);

    exchange(bare_fd, &request, sizeof(request), reply);
    exchange(device_fd, &request, sizeof(request), reply);
    for (int i = 0; i < ROUNDS; i++) {
        bare[i] = exchange(bare_fd, &request, sizeof(request), reply);
        region[i] = exchange(device_fd, &request, sizeof(request), reply);
        ratio[i] = region[i] / bare[i];
    }
    printf("  region read of %4u bytes: %7.0f ns, bare socket %7.0f ns, ratio %.3f\n", count,
           median(region), median(bare), median(ratio));
    close(bare_fd);
    close(device_fd);
    waitpid(bare_pid, NULL, 0);
    waitpid(device_pid, NULL, 0);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    stay_on(CLIENT_CPU);
    for (int cpu = CLIENT_CPU; cpu <= CLIENT_CPU + 1; cpu++) {
        printf("%s\n", cpu == CLIENT_CPU ? "client and server on one processor:"
                                         : "on two processors:");
        run(cpu, 4);
        run(cpu, 8);
        run(cpu, 4096);
    }
    return 0;
}
