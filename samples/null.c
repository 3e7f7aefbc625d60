/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The smallest device: no registers, no interrupts, no DMA, only an identity in configuration
 * space, which the library emulates. It says on standard error what its one client does, and ends
 * when the client has gone.
 *
 * What it teaches: the life cycle (create, realize, attach, run, destroy) of a device that blocks
 * between requests, and the log. samples/gpio is the same around an event loop.
 */

#include "libvfio-user.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#define VENDOR_ID 0x1234
#define DEVICE_ID 0x0000
#define CLASS_UNASSIGNED 0xff
#define EXIT_USAGE 2

static const char usage[] =
    "Usage: null --socket PATH\n"
    "Serve a PCI device that does nothing on a vfio-user socket, to one client.\n"
    "\n"
    "Prints \"null: listening on PATH\" when the client may connect, and then, on standard error,\n"
    "what it does. Ends with the client; SIGTERM and SIGINT end it too.\n";

static const char *const log_names[] = { "emergency", "alert",  "critical", "error",
                                         "warning",   "notice", "info",     "debug" };

static void print_log(vfu_ctx_t *ctx, int level, const char *msg)
{
    (void)ctx;
    fprintf(stderr, "null: %s: %s\n", log_names[level], msg);
}

/*
 * A signal. This device waits within the library, which a signal handler cannot tell to stop
 * without a race, and there is nothing that a handler could not clean up: so it is done here.
 */
static char socket_path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];

static void end(int signal_number)
{
    (void)signal_number;
    unlink(socket_path);
    _exit(EXIT_SUCCESS);
}

static vfu_ctx_t *create(const char *path)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, 0, NULL, VFU_DEV_TYPE_PCI);

    if (ctx == NULL) {
        fprintf(stderr, "null: cannot listen on %s: %s\n", path, strerror(errno));
        if (errno == EADDRINUSE) {
            fputs("null: remove that file if no other server uses it, or choose another\n", stderr);
        }
        return NULL;
    }
    strcpy(socket_path, path);
    signal(SIGTERM, end);
    signal(SIGINT, end);
    return ctx;
}

/* What the library tells a device. This one has nothing to do about any of it. */

static void dma_register(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    vfu_log(ctx, LOG_INFO, "memory at %p, 0x%zx bytes, %s", info->iova.iov_base,
            info->iova.iov_len, info->vaddr != NULL ? "shared" : "to be reached by messages");
}

static void dma_unregister(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    vfu_log(ctx, LOG_INFO, "memory at %p, 0x%zx bytes, is gone", info->iova.iov_base,
            info->iova.iov_len);
}

static int reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    static const char *const why[] = {
        [VFU_RESET_DEVICE] = "the client asked for it",
        [VFU_RESET_LOST_CONN] = "the client has gone",
        [VFU_RESET_PCI_FLR] = "function level reset",
    };

    vfu_log(ctx, LOG_INFO, "reset: %s", why[type]);
    return 0;
}

static int set_up(vfu_ctx_t *ctx)
{
    if (vfu_setup_log(ctx, print_log, LOG_DEBUG) != 0 ||
        vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) != 0 ||
        vfu_setup_device_dma(ctx, LIBVFIO_USER_MAX_DMA_REGIONS, dma_register, dma_unregister) !=
            0 ||
        vfu_setup_device_reset_cb(ctx, reset) != 0) {
        return -1;
    }
    vfu_pci_set_id(ctx, VENDOR_ID, DEVICE_ID, 0, 0);
    vfu_pci_set_class(ctx, CLASS_UNASSIGNED, 0, 0);
    return vfu_realize_ctx(ctx);
}

/* Both calls wait: the first for a client, the second until it has gone, which is ENOTCONN. */
static int serve(vfu_ctx_t *ctx)
{
    if (vfu_attach_ctx(ctx) != 0) {
        fprintf(stderr, "null: a client could not attach: %s\n", strerror(errno));
        return -1;
    }
    if (vfu_run_ctx(ctx) < 0 && errno != ENOTCONN) {
        fprintf(stderr, "null: cannot serve: %s\n", strerror(errno));
        return -1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    vfu_ctx_t *ctx;
    int err;

    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return EXIT_SUCCESS;
    }
    if (argc != 3 || strcmp(argv[1], "--socket") != 0) {
        fputs("null: --socket PATH is needed, and nothing else: try 'null --help'\n", stderr);
        return EXIT_USAGE;
    }
    ctx = create(argv[2]);
    if (ctx == NULL) {
        return EXIT_FAILURE;
    }
    err = set_up(ctx);
    if (err != 0) {
        fprintf(stderr, "null: cannot set the device up: %s\n", strerror(errno));
    } else {
        printf("null: listening on %s\n", argv[2]);
        fflush(stdout);
        err = serve(ctx);
    }
    vfu_destroy_ctx(ctx);
    return err == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
