/* SPDX-License-Identifier: BSD-3-Clause */
#include "card.h"

#include "../common/service.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define CLASS_OTHER 0xff
#define INTERRUPT 0

/*
 * What the card asks for
 */

/* Interrupt Disable is for INTx alone (PCIe 7.5.1.1.3). */
static bool interrupt_enabled(const struct card *card)
{
    return card->msi->mc.msie || !vfu_pci_get_config_space(card->ctx)->hdr.cmd.id;
}

static void interrupt(void *owner)
{
    struct card *card = owner;

    /* ENOENT: the client has not asked for interrupts; its driver polls. */
    if (interrupt_enabled(card) && vfu_irq_trigger(card->ctx, INTERRUPT) != 0 && errno != ENOENT) {
        vfu_log(card->ctx, LOG_WARNING, "interrupt lost: %s", strerror(errno));
    }
}

static void driven(void *owner, unsigned line, char level)
{
    (void)owner;
    printf("%u=%c\n", line, level);
    fflush(stdout);
}

/*
 * What the library asks for
 */

/* The registers take whole, aligned words; the client is told what else it tries. */
static ssize_t access_registers(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset,
                                bool is_write)
{
    struct card *card = vfu_get_private(ctx);
    uint32_t value = 0;
    bool known;

    if (count != sizeof(value)) {
        errno = EINVAL;
        return -1;
    }
    if (is_write) {
        memcpy(&value, buf, sizeof(value));
        known = gpio_write(&card->gpio, (uint64_t)offset, le32toh(value));
    } else {
        known = gpio_read(&card->gpio, (uint64_t)offset, &value);
        value = htole32(value);
        memcpy(buf, &value, sizeof(value));
    }
    if (!known) {
        vfu_log(ctx, LOG_WARNING, "no register at 0x%jx to %s", (intmax_t)offset,
                is_write ? "write" : "read");
        errno = EINVAL;
        return -1;
    }
    return (ssize_t)count;
}

/* INTx is a level: whoever unmasks it without having dealt with its cause gets it again. */
static void intx_mask_changed(vfu_ctx_t *ctx, uint32_t start, uint32_t count, bool mask)
{
    struct card *card = vfu_get_private(ctx);

    (void)start;
    (void)count;
    if (!mask && card->gpio.irq_status != 0) {
        interrupt(card);
    }
}

/*
 * Before a reset, for instance. A pulse is not cut short: the library waits until the card says
 * that it has ended. Meanwhile vfu_run_ctx() gives EBUSY.
 */
static int quiesce(vfu_ctx_t *ctx)
{
    struct card *card = vfu_get_private(ctx);

    if (!card->pulsing || (card->gpio.pins >> PULSE_LINE & 1) == 0) {
        return 0;
    }
    card->quiescing = true;
    errno = EBUSY;
    return -1;
}

void card_pulse(struct card *card)
{
    bool level = (card->gpio.pins >> PULSE_LINE & 1) == 0;

    gpio_drive(&card->gpio, PULSE_LINE, level);
    if (!level && card->quiescing) {
        card->quiescing = false;
        if (vfu_device_quiesced(card->ctx, 0) != 0) {
            vfu_log(card->ctx, LOG_WARNING, "cannot go on after the pulse: %s", strerror(errno));
        }
    }
}

/* When a client is lost, too: the next client meets the card as after a reset. */
static int reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    struct card *card = vfu_get_private(ctx);

    (void)type;
    gpio_reset(&card->gpio);
    vfu_log(ctx, LOG_INFO, "reset: all lines are inputs");
    return 0;
}

static void print_log(vfu_ctx_t *ctx, int level, const char *msg)
{
    (void)ctx;
    service_print_log("gpio", level, msg);
}

/*
 * Set-up
 */

static int setup_pci(struct card *card)
{
    const struct msicap msi = { .hdr.id = PCI_CAP_ID_MSI, .mc.c64 = 1 };
    ssize_t pos;

    if (vfu_pci_init(card->ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) != 0) {
        return -1;
    }
    vfu_pci_set_id(card->ctx, GPIO_VENDOR_ID, GPIO_DEVICE_ID, 0, 0);
    vfu_pci_set_class(card->ctx, CLASS_OTHER, 0, 0);
    pos = vfu_pci_add_capability(card->ctx, 0, 0, (void *)&msi);
    if (pos < 0) {
        return -1;
    }
    card->msi = (const void *)((const uint8_t *)vfu_pci_get_config_space(card->ctx) + pos);
    return 0;
}

int card_setup(struct card *card, int log_level)
{
    vfu_ctx_t *ctx = card->ctx;

    card->gpio = (struct gpio){ .owner = card, .interrupt = interrupt, .driven = driven };
    if (vfu_setup_log(ctx, print_log, log_level) != 0 || setup_pci(card) != 0 ||
        vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, GPIO_BAR_SIZE, access_registers,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0) != 0 ||
        vfu_setup_device_reset_cb(ctx, reset) != 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_INTX_IRQ, 1) != 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSI_IRQ, 1) != 0 ||
        vfu_setup_irq_state_callback(ctx, VFU_DEV_INTX_IRQ, intx_mask_changed) != 0) {
        return -1;
    }
    vfu_setup_device_quiesce_cb(ctx, quiesce);
    return vfu_realize_ctx(ctx);
}
