/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A card with 32 lines, each an input or an output. This is the card itself; it knows nothing of
 * vfio-user.
 */

#ifndef GPIO_H
#define GPIO_H

#include <stdbool.h>
#include <stdint.h>

#define GPIO_VENDOR_ID 0x1234
#define GPIO_DEVICE_ID 0x6910
#define GPIO_LINES 32
#define GPIO_BAR_SIZE 4096

/* Registers of BAR 0: one bit for each line; 4 bytes, little endian. */
enum gpio_offset {
    GPIO_DIRECTION = 0x00,  /* RW. 1: an output */
    GPIO_OUTPUT = 0x04,     /* RW. what outputs drive */
    GPIO_INPUT = 0x08,      /* R. the levels of all lines */
    GPIO_IRQ_ENABLE = 0x0c, /* RW. edges of this input interrupt */
    GPIO_IRQ_STATUS = 0x10, /* R: such edges came. Writing 1 takes the bit back */
};

struct gpio {
    uint32_t direction;
    uint32_t output;
    uint32_t pins; /* what the world drives */
    uint32_t irq_enable;
    uint32_t irq_status;

    void *owner;
    void (*interrupt)(void *owner);
    /* An output has changed; level is '0', '1', or 'z' when nobody drives it any more. */
    void (*driven)(void *owner, unsigned line, char level);
};

/* Back to inputs and zeroes. The world is as it was. */
void gpio_reset(struct gpio *gpio);

/* Returns false when there is no such register, or not for this direction. */
bool gpio_read(const struct gpio *gpio, uint64_t offset, uint32_t *value);
bool gpio_write(struct gpio *gpio, uint64_t offset, uint32_t value);

/* The world drives a line. An output wins against it. */
void gpio_drive(struct gpio *gpio, unsigned line, bool level);

#endif /* GPIO_H */
