/* SPDX-License-Identifier: BSD-3-Clause */
#include "checks.h"

#include <inttypes.h>
#include <linux/pci_regs.h>
#include <stdio.h>
#include <string.h>

#define LIVENESS 0x12345678u
#define LIVENESS_AFTER_RESET 0u
#define OWN_IRQ 0x40u /* a bit that only the driver raises */

static bool check_identification(struct driver *d, char *seen, size_t size)
{
    uint64_t id = driver_read(d, EDU_REG_ID, 4);

    snprintf(seen, size, "register 0x00 reads 0x%08" PRIx64, id);
    return id == 0x010000ed;
}

static bool check_pci(struct driver *d, char *seen, size_t size)
{
    uint32_t vendor = driver_config_read(d, PCI_VENDOR_ID, 2);
    uint32_t device = driver_config_read(d, PCI_DEVICE_ID, 2);
    uint32_t class = driver_config_read(d, PCI_CLASS_DEVICE, 2);
    uint32_t revision = driver_config_read(d, PCI_REVISION_ID, 1);

    snprintf(seen, size, "%04x:%04x, class %04x, revision %02x", vendor, device, class, revision);
    return vendor == 0x1234 && device == 0x11e8 && class == 0x00ff && revision == 0x10;
}

static bool check_liveness(struct driver *d, char *seen, size_t size)
{
    uint64_t value;

    driver_write(d, EDU_REG_LIVENESS, 4, LIVENESS);
    value = driver_read(d, EDU_REG_LIVENESS, 4);
    snprintf(seen, size, "wrote 0x%08x, read 0x%08" PRIx64, LIVENESS, value);
    return value == (uint32_t)~LIVENESS;
}

static bool check_factorial(struct driver *d, char *seen, size_t size)
{
    unsigned polls;
    uint64_t result;

    driver_write(d, EDU_REG_FACTORIAL, 4, 12);
    polls = driver_wait_clear(d, EDU_REG_STATUS, EDU_STATUS_COMPUTING);
    result = driver_read(d, EDU_REG_FACTORIAL, 4);
    snprintf(seen, size, "12! = %" PRIu64 ", status busy for %u reads", result, polls);
    return result == 479001600;
}

/* Reads and clears the interrupt status. */
static uint64_t acknowledge(struct driver *d)
{
    uint64_t status = driver_read(d, EDU_REG_IRQ_STATUS, 4);

    driver_write(d, EDU_REG_IRQ_ACK, 4, status);
    return status;
}

static bool check_msi(struct driver *d, char *seen, size_t size)
{
    uint64_t status, after, factorial;

    driver_enable_irq(d, VFIO_PCI_MSI_IRQ_INDEX);
    driver_write(d, EDU_REG_STATUS, 4, EDU_STATUS_IRQ);
    driver_write(d, EDU_REG_FACTORIAL, 4, 13);
    driver_wait_irq(d);
    status = acknowledge(d);
    after = driver_read(d, EDU_REG_IRQ_STATUS, 4);
    factorial = driver_read(d, EDU_REG_FACTORIAL, 4);
    driver_write(d, EDU_REG_STATUS, 4, 0);
    snprintf(seen, size,
             "at the end of 13! mod 2^32 = %" PRIu64 ", status 0x%" PRIx64 ", 0x%" PRIx64
             " when acknowledged",
             factorial, status, after);
    return status == EDU_IRQ_FACTORIAL && after == 0 && factorial == 1932053504 &&
           !driver_irq_pending(d);
}

/*
 * DMA: bytes go from one place of the RAM to the device's buffer, and what then
 * is in the buffer to another place. Nothing beside that place changes.
 */

#define DMA_FROM 0x1000
#define DMA_TO 0x8123

static const struct {
    size_t in_at; /* in the buffer */
    size_t in_len;
    size_t out_at;
    size_t out_len;
} dma_pairs[] = {
    { 0, EDU_BUFFER_SIZE, 0x45, 3001 },
    { 0x321, 1234, 0, EDU_BUFFER_SIZE },
};

static void fill(uint8_t *mem, size_t len, uint32_t seed)
{
    for (size_t i = 0; i < len; i++) {
        seed = seed * 1664525 + 1013904223;
        mem[i] = seed >> 24;
    }
}

/* buffer is what the device's own buffer should have in it. */
static bool copy_through_device(struct driver *d, struct ram *ram, size_t pair, uint8_t *buffer)
{
    static uint8_t expected[RAM_SIZE];
    size_t in_at = dma_pairs[pair].in_at, in_len = dma_pairs[pair].in_len;
    size_t out_at = dma_pairs[pair].out_at, out_len = dma_pairs[pair].out_len;

    fill(ram->mem, RAM_SIZE, 1 + (uint32_t)pair);
    memcpy(buffer + in_at, ram->mem + DMA_FROM, in_len);
    memcpy(expected, ram->mem, RAM_SIZE);
    memcpy(expected + DMA_TO, buffer + out_at, out_len);

    driver_dma(d, ram->addr + DMA_FROM, EDU_BUFFER_ADDR + in_at, in_len, false);
    driver_dma(d, EDU_BUFFER_ADDR + out_at, ram->addr + DMA_TO, out_len, true);
    return memcmp(ram->mem, expected, RAM_SIZE) == 0;
}

static bool check_dma(struct driver *d, enum ram_kind kind, char *seen, size_t size)
{
    struct ram *ram = &d->rams[kind];
    uint64_t before = driver_dma_messages(d), messages;
    uint8_t buffer[EDU_BUFFER_SIZE] = { 0 };
    size_t in = 0, out = 0;
    bool same = true;

    for (size_t i = 0; i < sizeof(dma_pairs) / sizeof(dma_pairs[0]); i++) {
        same = copy_through_device(d, ram, i, buffer) && same;
        in += dma_pairs[i].in_len;
        out += dma_pairs[i].out_len;
    }
    messages = driver_dma_messages(d) - before;
    snprintf(seen, size, "%zu bytes in, %zu bytes out, %s, %" PRIu64 " DMA messages", in, out,
             same ? "as expected" : "NOT as expected", messages);
    return same && (messages > 0) == (kind == RAM_BY_MESSAGES);
}

static bool check_dma_shared(struct driver *d, char *seen, size_t size)
{
    return check_dma(d, RAM_SHARED, seen, size);
}

static bool check_dma_messages(struct driver *d, char *seen, size_t size)
{
    return check_dma(d, RAM_BY_MESSAGES, seen, size);
}

/* INTx is a level: held back while masked, and there again when unmasked without acknowledging. */
static bool check_intx(struct driver *d, char *seen, size_t size)
{
    uint64_t status, after;
    bool early, late;

    driver_disable_irq(d, VFIO_PCI_MSI_IRQ_INDEX);
    driver_enable_irq(d, VFIO_PCI_INTX_IRQ_INDEX);
    driver_mask_intx(d, true);
    driver_write(d, EDU_REG_IRQ_RAISE, 4, OWN_IRQ);
    early = driver_irq_pending(d);
    driver_mask_intx(d, false);
    driver_wait_irq(d);
    driver_mask_intx(d, false);
    driver_wait_irq(d);
    status = acknowledge(d);
    after = driver_read(d, EDU_REG_IRQ_STATUS, 4);
    driver_mask_intx(d, false);
    late = driver_irq_pending(d);
    driver_disable_irq(d, VFIO_PCI_INTX_IRQ_INDEX);
    snprintf(seen, size,
             "%s while masked, status 0x%" PRIx64 " when unmasked, 0x%" PRIx64
             " and %s when acknowledged",
             early ? "one" : "none", status, after, late ? "one" : "none");
    return !early && !late && status == OWN_IRQ && after == 0;
}

/* What the device holds of its driver: a register, and the sum of the bytes of its buffer. */
struct remains {
    uint64_t liveness;
    unsigned long buffer;
};

static struct remains look(struct driver *d)
{
    struct ram *ram = &d->rams[RAM_SHARED];
    struct remains found = { .liveness = driver_read(d, EDU_REG_LIVENESS, 4) };

    driver_dma(d, EDU_BUFFER_ADDR, ram->addr, EDU_BUFFER_SIZE, true);
    for (size_t i = 0; i < EDU_BUFFER_SIZE; i++) {
        found.buffer += ram->mem[i];
    }
    return found;
}

static bool check_forgets(struct driver *d, void (*forget)(struct driver *d), char *seen,
                          size_t size)
{
    struct ram *ram = &d->rams[RAM_SHARED];
    struct remains before, after;

    driver_enable_irq(d, VFIO_PCI_MSI_IRQ_INDEX);
    driver_write(d, EDU_REG_LIVENESS, 4, LIVENESS);
    memset(ram->mem, 1, EDU_BUFFER_SIZE);
    driver_dma(d, ram->addr, EDU_BUFFER_ADDR, EDU_BUFFER_SIZE, false);
    before = look(d);
    forget(d);
    driver_enable_irq(d, VFIO_PCI_MSI_IRQ_INDEX);
    after = look(d);
    snprintf(seen, size,
             "liveness was 0x%08" PRIx64 ", is 0x%08" PRIx64
             "; bytes in the buffer were %lu, are %lu",
             before.liveness, after.liveness, before.buffer, after.buffer);
    return before.liveness == (uint32_t)~LIVENESS && before.buffer == EDU_BUFFER_SIZE &&
           after.liveness == LIVENESS_AFTER_RESET && after.buffer == 0;
}

static void attach_again(struct driver *d)
{
    driver_detach(d);
    driver_attach(d);
}

static bool check_reattach(struct driver *d, char *seen, size_t size)
{
    return check_forgets(d, attach_again, seen, size);
}

static bool check_reset(struct driver *d, char *seen, size_t size)
{
    return check_forgets(d, driver_reset, seen, size);
}

const struct check checks[] = {
    { "identification", check_identification },
    { "PCI identity", check_pci },
    { "liveness", check_liveness },
    { "factorial", check_factorial },
    { "MSI", check_msi },
    { "DMA, shared memory", check_dma_shared },
    { "DMA, by messages", check_dma_messages },
    { "INTx", check_intx },
    { "attach again", check_reattach },
    { "reset", check_reset },
};
const size_t nr_checks = sizeof(checks) / sizeof(checks[0]);
