/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver for the EDU device, and the machine that it runs in: RAM, and interrupt lines.
 *
 * The first error sticks: it is kept in the driver, and what follows does nothing. So a caller may
 * write down what it wants and look at the end.
 */

#ifndef DRIVER_H
#define DRIVER_H

#include "../edu/edu_regs.h"
#include "vfio-user-client.h"

#include <linux/vfio.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* RAM that the device maps, and RAM that it reaches by messages only. */
enum ram_kind {
    RAM_SHARED,
    RAM_BY_MESSAGES,
    NR_RAMS
};

#define RAM_SIZE 0x10000

struct machine_iommu;

struct ram {
    uint64_t addr; /* where the device sees it */
    int fd;        /* -1: not shared */
    uint8_t *mem;
};

struct driver {
    const char *socket_path;
    vfuc_t *client; /* NULL: not attached */
    struct machine_iommu *iommu; /* of the machine; NULL: none, the device sees RAM as it is */
    struct ram rams[NR_RAMS];
    int irq_fd; /* eventfd of the interrupt */
    int timeout_ms;
    char error[160]; /* "" as long as all went well */
};

/* Sets the machine up, without a device. */
void driver_init(struct driver *d, const char *socket_path, int timeout_ms);
void driver_destroy(struct driver *d);

/* Attaches the device, maps its RAM, and lets it be bus master. */
void driver_attach(struct driver *d);
void driver_detach(struct driver *d);
/* DMA_READ and DMA_WRITE commands that were served since. */
uint64_t driver_dma_messages(const struct driver *d);

bool driver_ok(const struct driver *d);
/* Records an error, unless there is one. */
void driver_fail(struct driver *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Registers of BAR 0, and configuration space. */
uint64_t driver_read(struct driver *d, enum edu_offset offset, size_t size);
void driver_write(struct driver *d, enum edu_offset offset, size_t size, uint64_t value);
/* Reads until the bit is clear. Returns how often it was set. */
unsigned driver_wait_clear(struct driver *d, enum edu_offset offset, uint32_t bit);
uint32_t driver_config_read(struct driver *d, uint32_t offset, size_t size);
void driver_config_write(struct driver *d, uint32_t offset, size_t size, uint32_t value);

/* Has the interrupts of one kind, VFIO_PCI_INTX_IRQ_INDEX or VFIO_PCI_MSI_IRQ_INDEX, delivered. */
void driver_enable_irq(struct driver *d, unsigned index);
void driver_disable_irq(struct driver *d, unsigned index);
void driver_mask_intx(struct driver *d, bool mask);

/* Waits for an interrupt. */
void driver_wait_irq(struct driver *d);
/* Has an interrupt come that nobody waited for? */
bool driver_irq_pending(struct driver *d);

/* Moves bytes from RAM to the device's buffer or back, and waits for the interrupt at the end. */
void driver_start_dma(struct driver *d, uint64_t src, uint64_t dst, size_t len, bool to_ram);
void driver_finish_dma(struct driver *d);
/* Both. */
void driver_dma(struct driver *d, uint64_t src, uint64_t dst, size_t len, bool to_ram);

/* Resets the device, and lets it be bus master again. */
void driver_reset(struct driver *d);

#endif /* DRIVER_H */
