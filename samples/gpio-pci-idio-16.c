/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The ACCES PCI-IDIO-16, a card with 16 outputs and 16 inputs whose driver (gpio-pci-idio-16) is
 * part of Linux. Here each output is wired to the input of the same number: what the guest drives,
 * it reads back, with an interrupt.
 *
 * What it teaches: a device that an existing driver finds, and what -v shows of a client. QEMU's
 * functional test of its vfio-user client starts a server of this name and reads its log.
 *
 * The registers are those of Linux's drivers/gpio/gpio-idio-16.c.
 */

#include "libvfio-user.h"

#include "common/service.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#define VENDOR_ACCES 0x494f
#define DEVICE_PCI_IDIO_16 0x0dc8
#define CLASS_OTHER 0xff
#define BAR_SIZE 256
#define EXIT_USAGE 2

/* One byte each, in BAR 2. */
enum idio_16_register {
    OUT0_7 = 0,
    IN0_7 = 1,    /* writing clears the interrupt */
    IRQ_CTL = 2,  /* reading enables interrupts, writing disables them */
    FILTERS = 3,  /* of the inputs, against bouncing: nothing bounces here */
    OUT8_15 = 4,
    IN8_15 = 5,
    IRQ_STATUS = 6,
};

#define STATUS_IN0_7 0x1
#define STATUS_IN8_15 0x2
#define STATUS_INTERRUPT 0x4

struct card {
    uint8_t low, high; /* the outputs, which are the inputs */
    uint8_t status;
    bool irq_enabled;
};

static const char usage[] =
    "Usage: gpio-pci-idio-16 [-v] SOCKET\n"
    "Serve a PCI-IDIO-16 card, each output wired to an input, on a vfio-user socket.\n"
    "\n"
    "  -v  show every request on standard error\n"
    "  -h  print this text\n"
    "\n"
    "Prints \"gpio: listening on SOCKET\" when clients may connect; they are served one after the\n"
    "other. SIGTERM and SIGINT end it.\n";

static void print_log(vfu_ctx_t *ctx, int level, const char *msg)
{
    (void)ctx;
    (void)level;
    fprintf(stderr, "gpio: %s\n", msg);
}

/* An input that changes interrupts, until the driver clears it. */
static void drive(vfu_ctx_t *ctx, uint8_t *outputs, uint8_t value, uint8_t changed)
{
    struct card *card = vfu_get_private(ctx);

    if (*outputs == value) {
        return;
    }
    *outputs = value;
    card->status |= changed | STATUS_INTERRUPT;
    /* ENOENT: the client has not asked for interrupts. */
    if (card->irq_enabled && vfu_irq_trigger(ctx, 0) != 0 && errno != ENOENT) {
        vfu_log(ctx, LOG_WARNING, "interrupt lost: %s", strerror(errno));
    }
}

static void write_register(vfu_ctx_t *ctx, loff_t offset, uint8_t value)
{
    struct card *card = vfu_get_private(ctx);

    switch (offset) {
    case OUT0_7:
        drive(ctx, &card->low, value, STATUS_IN0_7);
        break;
    case OUT8_15:
        drive(ctx, &card->high, value, STATUS_IN8_15);
        break;
    case IN0_7:
        card->status = 0;
        break;
    case IRQ_CTL:
        card->irq_enabled = false;
        break;
    default:
        break;
    }
}

static uint8_t read_register(struct card *card, loff_t offset)
{
    switch (offset) {
    case OUT0_7:
    case IN0_7:
        return card->low;
    case OUT8_15:
    case IN8_15:
        return card->high;
    case IRQ_CTL:
        card->irq_enabled = true;
        return 0;
    case IRQ_STATUS:
        return card->status;
    default:
        return 0;
    }
}

static ssize_t access_bar2(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    for (size_t i = 0; i < count; i++) {
        if (is_write) {
            write_register(ctx, offset + (loff_t)i, (uint8_t)buf[i]);
        } else {
            buf[i] = (char)read_register(vfu_get_private(ctx), offset + (loff_t)i);
        }
    }
    return (ssize_t)count;
}

static int reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    (void)type;
    *(struct card *)vfu_get_private(ctx) = (struct card){ 0 };
    return 0;
}

static int set_up(vfu_ctx_t *ctx, int log_level)
{
    if (vfu_setup_log(ctx, print_log, log_level) != 0 ||
        vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) != 0 ||
        vfu_setup_region(ctx, VFU_PCI_DEV_BAR2_REGION_IDX, BAR_SIZE, access_bar2,
                         VFU_REGION_FLAG_RW, NULL, 0, -1, 0) != 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_INTX_IRQ, 1) != 0 ||
        vfu_setup_device_reset_cb(ctx, reset) != 0) {
        return -1;
    }
    vfu_pci_set_id(ctx, VENDOR_ACCES, DEVICE_PCI_IDIO_16, 0, 0);
    vfu_pci_set_class(ctx, CLASS_OTHER, 0, 0);
    return vfu_realize_ctx(ctx);
}

/* One client after the other. Returns only if the library cannot go on. */
static void serve(vfu_ctx_t *ctx)
{
    for (;;) {
        if (vfu_attach_ctx(ctx) != 0) {
            vfu_log(ctx, LOG_WARNING, "a client could not attach: %s", strerror(errno));
        } else if (vfu_run_ctx(ctx) < 0 && errno != ENOTCONN) {
            fprintf(stderr, "gpio: cannot serve: %s\n", strerror(errno));
            return;
        }
    }
}

/* As in samples/null.c: there is nothing that a handler could not clean up. */
static char socket_path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];

static void end(int signal_number)
{
    (void)signal_number;
    unlink(socket_path);
    _exit(EXIT_SUCCESS);
}

int main(int argc, char **argv)
{
    struct card card = { 0 };
    int log_level = LOG_WARNING, option;
    vfu_ctx_t *ctx;

    while ((option = getopt(argc, argv, "vh")) != -1) {
        if (option == 'h') {
            fputs(usage, stdout);
            return EXIT_SUCCESS;
        }
        if (option != 'v') {
            return EXIT_USAGE;
        }
        log_level = LOG_DEBUG;
    }
    if (optind != argc - 1) {
        fputs("gpio: one SOCKET is needed: try 'gpio-pci-idio-16 -h'\n", stderr);
        return EXIT_USAGE;
    }
    ctx = service_listen("gpio", argv[optind], NULL, 0, &card);
    if (ctx == NULL) {
        return EXIT_FAILURE;
    }
    strcpy(socket_path, argv[optind]);
    signal(SIGTERM, end);
    signal(SIGINT, end);
    if (set_up(ctx, log_level) != 0) {
        fprintf(stderr, "gpio: cannot set the card up: %s\n", strerror(errno));
    } else {
        printf("gpio: listening on %s\n", argv[optind]);
        fflush(stdout);
        serve(ctx);
    }
    vfu_destroy_ctx(ctx);
    return EXIT_FAILURE;
}
