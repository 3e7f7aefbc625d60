/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device on standard input and output, for one client: a page of memory in BAR 0 whose first
 * registers have it read or write guest memory by messages. Ends with status 0 when the client has
 * gone away, or been turned away.
 */
#include "libvfio-user.h"

#include <err.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define BAR_SIZE 4096u
#define BUFFER 0x100u

enum command {
    CMD_READ = 1,
    CMD_WRITE,
};

/* The register map: address, length, command, and the errno of the last command. */
struct registers {
    uint64_t addr;
    uint32_t len;
    uint32_t command;
    uint32_t error;
};

static union {
    struct registers regs;
    uint8_t bytes[BAR_SIZE];
} bar;

static int transfer(vfu_ctx_t *ctx)
{
    dma_sg_t *sg = calloc(1, dma_sg_size());
    int ret = -1;

    if (sg == NULL || bar.regs.len > BAR_SIZE - BUFFER) {
        errno = E2BIG;
    } else if (vfu_addr_to_sgl(ctx, (vfu_dma_addr_t)(uintptr_t)bar.regs.addr, bar.regs.len, sg, 1,
                               PROT_READ | PROT_WRITE) == 1) {
        ret = bar.regs.command == CMD_READ
                  ? vfu_sgl_read(ctx, sg, 1, bar.bytes + BUFFER, 0)
                  : vfu_sgl_write(ctx, sg, 1, bar.bytes + BUFFER, 0);
    }
    free(sg);
    return ret == 0 ? 0 : errno;
}

static ssize_t access_bar(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    if (!is_write) {
        memcpy(buf, bar.bytes + offset, count);
        return (ssize_t)count;
    }
    memcpy(bar.bytes + offset, buf, count);
    if (offset == offsetof(struct registers, command)) {
        bar.regs.error = (uint32_t)transfer(ctx);
    }
    return (ssize_t)count;
}

static void print_log(vfu_ctx_t *ctx, int level, const char *msg)
{
    (void)ctx;
    (void)level;
    fprintf(stderr, "pipe_device: %s\n", msg);
}

/* Until the client has gone: 0, or the errno of something else. */
static int serve(vfu_ctx_t *ctx, bool nonblocking)
{
    struct pollfd pfd = { .events = POLLIN };

    for (;;) {
        pfd.fd = vfu_get_poll_fd(ctx);
        if (nonblocking && poll(&pfd, 1, -1) < 0) {
            return errno;
        }
        if (vfu_run_ctx(ctx) < 0) {
            return errno == ENOTCONN ? 0 : errno;
        }
    }
}

static int attach(vfu_ctx_t *ctx)
{
    while (vfu_attach_ctx(ctx) < 0) {
        if (errno != EAGAIN) {
            return errno;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    bool nonblocking = argc > 1 && strcmp(argv[1], "--nonblocking") == 0;
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_PIPE, "", nonblocking ? LIBVFIO_USER_FLAG_ATTACH_NB
                                                                    : 0, NULL, VFU_DEV_TYPE_PCI);
    int error;

    if (ctx == NULL || vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) < 0 ||
        vfu_setup_log(ctx, print_log, LOG_ERR) < 0 ||
        vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE, access_bar,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0) < 0 ||
        vfu_setup_device_dma(ctx, 16, NULL, NULL) < 0 || vfu_realize_ctx(ctx) < 0) {
        err(1, "set-up");
    }
    error = attach(ctx);
    if (error != 0) {
        fprintf(stderr, "pipe_device: turned away: %s\n", strerror(error));
    } else {
        error = serve(ctx, nonblocking);
        if (error != 0) {
            errno = error;
            err(1, "serve");
        }
    }
    vfu_destroy_ctx(ctx);
    return 0;
}
