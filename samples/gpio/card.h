/* SPDX-License-Identifier: BSD-3-Clause */
/* The GPIO card put together with the library: set-up and callbacks. */

#ifndef CARD_H
#define CARD_H

#include "gpio.h"
#include "libvfio-user.h"

#define PULSE_LINE 0

/* All of it belongs to the thread of the event loop. */
struct card {
    vfu_ctx_t *ctx;
    struct gpio gpio;
    const struct msicap *msi;
    bool pulsing;   /* a timer drives PULSE_LINE */
    bool quiescing; /* the library waits for the end of a pulse */
};

/* Sets up card->ctx, a context whose private pointer is the card. Returns 0, or -1 with errno. */
int card_setup(struct card *card, int log_level);

/* The timer's tick: a pulse begins or ends. */
void card_pulse(struct card *card);

#endif /* CARD_H */
