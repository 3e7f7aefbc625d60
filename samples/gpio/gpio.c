/* SPDX-License-Identifier: BSD-3-Clause */
#include "gpio.h"

static uint32_t levels(const struct gpio *gpio)
{
    return (gpio->output & gpio->direction) | (gpio->pins & ~gpio->direction);
}

static char driven_level(uint32_t direction, uint32_t output, unsigned line)
{
    if ((direction >> line & 1) == 0) {
        return 'z';
    }
    return (output >> line & 1) ? '1' : '0';
}

/* Outputs change on the outside; that is no edge of an input. */
static void set_outputs(struct gpio *gpio, uint32_t direction, uint32_t output)
{
    uint32_t old_direction = gpio->direction, old_output = gpio->output;

    gpio->direction = direction;
    gpio->output = output;
    for (unsigned line = 0; line < GPIO_LINES; line++) {
        char level = driven_level(direction, output, line);

        if (level != driven_level(old_direction, old_output, line)) {
            gpio->driven(gpio->owner, line, level);
        }
    }
}

void gpio_reset(struct gpio *gpio)
{
    set_outputs(gpio, 0, 0);
    gpio->irq_enable = 0;
    gpio->irq_status = 0;
}

bool gpio_read(const struct gpio *gpio, uint64_t offset, uint32_t *value)
{
    switch (offset) {
    case GPIO_DIRECTION:
        *value = gpio->direction;
        return true;
    case GPIO_OUTPUT:
        *value = gpio->output;
        return true;
    case GPIO_INPUT:
        *value = levels(gpio);
        return true;
    case GPIO_IRQ_ENABLE:
        *value = gpio->irq_enable;
        return true;
    case GPIO_IRQ_STATUS:
        *value = gpio->irq_status;
        return true;
    default:
        return false;
    }
}

bool gpio_write(struct gpio *gpio, uint64_t offset, uint32_t value)
{
    switch (offset) {
    case GPIO_DIRECTION:
        set_outputs(gpio, value, gpio->output);
        return true;
    case GPIO_OUTPUT:
        set_outputs(gpio, gpio->direction, value);
        return true;
    case GPIO_IRQ_ENABLE:
        gpio->irq_enable = value;
        return true;
    case GPIO_IRQ_STATUS:
        gpio->irq_status &= ~value;
        return true;
    default:
        return false;
    }
}

void gpio_drive(struct gpio *gpio, unsigned line, bool level)
{
    uint32_t before = levels(gpio), edge;

    gpio->pins = (gpio->pins & ~(1u << line)) | (uint32_t)level << line;
    edge = (before ^ levels(gpio)) & gpio->irq_enable;
    if (edge != 0) {
        gpio->irq_status |= edge;
        gpio->interrupt(gpio->owner);
    }
}
