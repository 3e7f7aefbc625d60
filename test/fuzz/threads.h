/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threads, waiting and time for targets that are one OS thread, so that an input always does the
 * same. The functions that start threads, sleep and tell the time are wrapped by the linker: a
 * thread is a fiber, which runs until it waits. When all wait, the target makes something happen,
 * or time passes. It passes by nothing else, but for a microsecond with each look at the clock.
 */
#ifndef VFU_FUZZ_THREADS_H
#define VFU_FUZZ_THREADS_H

#include <stdbool.h>
#include <stdint.h>

/*
 * From here to threads_end(), the calling OS thread is the world. idle() is called when every thread
 * waits, for ms milliseconds, or for ever if that is negative. It makes something happen, or returns
 * false to have that time pass. NULL: time passes.
 */
void threads_begin(bool (*idle)(int ms));
void threads_end(void);

/* Lets the other threads run until each of them has ended or waits. */
void threads_settle(void);

/* From now on it is later. */
void threads_pass(uint64_t ns);

#endif /* VFU_FUZZ_THREADS_H */
