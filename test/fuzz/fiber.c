/* SPDX-License-Identifier: BSD-3-Clause */
#include "fiber.h"

#include "fuzz.h"
#include "sanitizer.h"

#include <pthread.h>
#include <sys/mman.h>

#define STACK_SIZE (1u << 20)

void fiber_init_main(struct fiber *fiber)
{
    pthread_attr_t attr;

    REQUIRE(pthread_getattr_np(pthread_self(), &attr) == 0);
    REQUIRE(pthread_attr_getstack(&attr, &fiber->stack, &fiber->size) == 0);
    pthread_attr_destroy(&attr);
    fiber->entered = true;
    TSAN(fiber->sanitizer = __tsan_get_current_fiber());
}

void fiber_init(struct fiber *fiber, void (*entry)(void))
{
    fiber->size = STACK_SIZE;
    fiber->stack = mmap(NULL, fiber->size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(fiber->stack != MAP_FAILED && getcontext(&fiber->context) == 0);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = fiber->size;
    makecontext(&fiber->context, entry, 0);
    ASAN(__lsan_register_root_region(fiber->stack, fiber->size));
    TSAN(fiber->sanitizer = __tsan_create_fiber(0));
}

void fiber_entered(void)
{
    ASAN(__sanitizer_finish_switch_fiber(NULL, NULL, NULL));
}

/*
 * swapcontext() makes a system call for the signal mask, and under ASan longjmp() forgets what is
 * poisoned on the stack: neither of them is this.
 */
static __attribute__((noinline)) void leave(struct fiber *from, struct fiber *to)
{
    if (__builtin_setjmp(from->place) != 0) {
        return;
    }
    if (to->entered) {
        __builtin_longjmp(to->place, 1);
    }
    to->entered = true;
    setcontext(&to->context);
}

void fiber_switch(struct fiber *from, struct fiber *to)
{
    ASAN(__sanitizer_start_switch_fiber(&from->sanitizer, to->stack, to->size));
    TSAN(__tsan_switch_to_fiber(to->sanitizer, 0));
    leave(from, to);
    ASAN(__sanitizer_finish_switch_fiber(from->sanitizer, NULL, NULL));
}
