/* SPDX-License-Identifier: BSD-3-Clause */
/* Stacks that one OS thread switches between. The sanitizers are told of each switch. */
#ifndef VFU_FUZZ_FIBER_H
#define VFU_FUZZ_FIBER_H

#include <stdbool.h>
#include <stddef.h>
#include <ucontext.h>

struct fiber {
    ucontext_t context; /* of the first switch to it */
    void *place[5]; /* of the others: where it left */
    bool entered;
    void *stack;
    size_t size;
    void *sanitizer; /* ASan: the fake stack while another fiber runs. TSan: its own fiber */
};

/* Makes the running OS thread's own stack a fiber. */
void fiber_init_main(struct fiber *fiber);

/* Makes a fiber that begins with entry() when it is first switched to. entry() never returns. */
void fiber_init(struct fiber *fiber, void (*entry)(void));

void fiber_switch(struct fiber *from, struct fiber *to);

/* What entry() calls first. */
void fiber_entered(void);

#endif /* VFU_FUZZ_FIBER_H */
