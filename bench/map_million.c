/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A million mappings of 4 KiB of one memory file, as a virtual machine monitor pushes them for a
 * guest behind an IOMMU, each by a message of its own with the file's descriptor. Shown are the
 * rates of DMA_MAP and DMA_UNMAP beside that of the same messages to a server that only answers,
 * and what the device's process has grown to. An argument changes the number.
 */
#include "libvfio-user.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define WINDOW 32 /* messages in flight */

struct map_message {
    struct vfio_user_header hdr;
    struct vfio_user_dma_map map;
} __attribute__((packed));

struct unmap_message {
    struct vfio_user_header hdr;
    struct vfio_user_dma_unmap unmap;
} __attribute__((packed));

static void die(const char *what)
{
    fprintf(stderr, "map_million: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void send_message(int fd, void *data, size_t len, int passed)
{
    struct iovec iov = { data, len };
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = { 0 };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    if (passed != -1) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof(control.bytes);
        CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &passed, sizeof(passed));
    }
    if (sendmsg(fd, &msg, MSG_NOSIGNAL) != (ssize_t)len) {
        die("send");
    }
}

static void receive_replies(int fd, unsigned n, size_t payload)
{
    for (unsigned i = 0; i < n; i++) {
        struct vfio_user_header hdr;
        char rest[64];

        if (recv(fd, &hdr, sizeof(hdr), MSG_WAITALL) != sizeof(hdr)) {
            die("receive");
        }
        if (hdr.error_no != 0) {
            errno = (int)hdr.error_no;
            die("the server refused");
        }
        if (payload > 0 && recv(fd, rest, payload, MSG_WAITALL) != (ssize_t)payload) {
            die("receive");
        }
    }
}

/* Messages per second. */
static double run(const char *what, int fd, unsigned long count, bool unmap, int memfd)
{
    double start = now();

    for (unsigned long i = 0; i < count; i += WINDOW) {
        unsigned n = count - i < WINDOW ? (unsigned)(count - i) : WINDOW;

        for (unsigned w = 0; w < n; w++) {
            uint64_t at = (uint64_t)(i + w) * PAGE;
            struct map_message map = {
                .hdr = { .cmd = VFIO_USER_DMA_MAP, .msg_size = sizeof(map) },
                .map = { .argsz = sizeof(map.map), .flags = 3, .offset = at, .addr = at,
                         .size = PAGE },
            };
            struct unmap_message gone = {
                .hdr = { .cmd = VFIO_USER_DMA_UNMAP, .msg_size = sizeof(gone) },
                .unmap = { .argsz = sizeof(gone.unmap), .addr = at, .size = PAGE },
            };

            if (unmap) {
                send_message(fd, &gone, sizeof(gone), -1);
            } else {
                send_message(fd, &map, sizeof(map), memfd);
            }
        }
        receive_replies(fd, n, unmap ? sizeof(struct vfio_user_dma_unmap) : 0);
        if (isatty(STDERR_FILENO) && i % (count / 20 + 1) < WINDOW) {
            fprintf(stderr, "\r%s: %lu%%", what, i * 100 / count);
        }
    }
    return (double)count / (now() - start);
}

/* Answers anything with a bare header, and closes what comes with it. */
static void serve_bare(int fd)
{
    struct map_message msg;

    for (;;) {
        char control[CMSG_SPACE(sizeof(int))];
        struct iovec iov = { &msg, sizeof(msg) };
        struct msghdr in = {
            .msg_iov = &iov,
            .msg_iovlen = 1,
            .msg_control = control,
            .msg_controllen = sizeof(control),
        };
        int passed;

        if (recvmsg(fd, &in, MSG_WAITALL) != sizeof(msg)) {
            _exit(0);
        }
        memcpy(&passed, CMSG_DATA(CMSG_FIRSTHDR(&in)), sizeof(passed));
        close(passed);
        msg.hdr.msg_size = sizeof(msg.hdr);
        if (send(fd, &msg.hdr, sizeof(msg.hdr), MSG_NOSIGNAL) != sizeof(msg.hdr)) {
            _exit(0);
        }
    }
}

static pid_t start_bare(int *fd)
{
    int pair[2];
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0) {
        die("socketpair");
    }
    pid = fork();
    if (pid == 0) {
        close(pair[0]);
        serve_bare(pair[1]);
    }
    close(pair[1]);
    *fd = pair[0];
    return pid;
}

static void mapped(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx;
    (void)info;
}

static vfu_ctx_t *make_device(const char *path)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, 0, NULL, VFU_DEV_TYPE_PCI);

    if (ctx == NULL || vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, 0, 0) < 0 ||
        vfu_setup_device_dma(ctx, 2 * LIBVFIO_USER_MAX_DMA_REGIONS, mapped, mapped) < 0 ||
        vfu_realize_ctx(ctx) < 0) {
        die("device");
    }
    return ctx;
}

static void serve_device(vfu_ctx_t *ctx)
{
    if (vfu_attach_ctx(ctx) == 0) {
        vfu_run_ctx(ctx);
    }
    _exit(0);
}

static int connect_device(const char *path)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    const struct {
        struct vfio_user_header hdr;
        struct vfio_user_version version;
    } __attribute__((packed)) hello = {
        .hdr = { .cmd = VFIO_USER_VERSION, .msg_size = sizeof(hello) },
        .version = { .minor = LIB_VFIO_USER_MINOR },
    };
    char reply[1024];
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        die("connect");
    }
    send_message(fd, (void *)&hello, sizeof(hello), -1);
    if (recv(fd, reply, sizeof(reply), 0) < (ssize_t)sizeof(hello)) {
        die("VERSION");
    }
    return fd;
}

static long resident_kib(pid_t pid)
{
    char path[64], line[128];
    long kib = 0;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    f = fopen(path, "r");
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        if (sscanf(line, "RssAnon: %ld", &kib) == 1) {
            break;
        }
    }
    if (f != NULL) {
        fclose(f);
    }
    return kib;
}

int main(int argc, char **argv)
{
    unsigned long count = argc > 1 ? strtoul(argv[1], NULL, 0) : 1000000;
    char dir[] = "/tmp/vfu-bench-XXXXXX", path[64];
    int memfd = memfd_create("guest", MFD_CLOEXEC), bare_fd, fd;
    double bare, map, unmap;
    vfu_ctx_t *ctx;
    pid_t bare_pid, pid;
    long before, after;

    if (count == 0 || memfd < 0 || ftruncate(memfd, (off_t)count * PAGE) < 0 ||
        mkdtemp(dir) == NULL) {
        die("set-up");
    }
    signal(SIGPIPE, SIG_IGN);
    snprintf(path, sizeof(path), "%s/sock", dir);
    bare_pid = start_bare(&bare_fd);
    bare = run("bare", bare_fd, count < 200000 ? count : 200000, false, memfd);
    close(bare_fd);
    ctx = make_device(path);
    pid = fork();
    if (pid == 0) {
        serve_device(ctx);
    }
    fd = connect_device(path);
    vfu_destroy_ctx(ctx);
    before = resident_kib(pid);
    map = run("map", fd, count, false, memfd);
    after = resident_kib(pid);
    unmap = run("unmap", fd, count, true, memfd);
    close(fd);
    waitpid(pid, NULL, 0);
    waitpid(bare_pid, NULL, 0);
    rmdir(dir);
    printf("\r%lu mappings of 4 KiB of one file\n", count);
    printf("  map:   %8.0f per second, %.2f of bare messages (%.0f)\n", map, map / bare, bare);
    printf("  unmap: %8.0f per second\n", unmap);
    printf("  memory of the device: %ld bytes per mapping\n",
           (after - before) * 1024 / (long)count);
    return 0;
}
