/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Waiting, for targets that are one thread: the functions that the library sleeps in are wrapped.
 * Where it would sleep, the target goes on instead; time passes only by idle_pass().
 */
#ifndef VFU_FUZZ_IDLE_H
#define VFU_FUZZ_IDLE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Called where the library would sleep with nothing to wake it, for ms milliseconds, or for ever if
 * that is negative. Makes something happen, or returns false to have that time pass. NULL: the
 * functions are the plain ones.
 */
extern bool (*idle_hook)(int ms);

/* From now on it is later. */
void idle_pass(uint64_t ns);

#endif /* VFU_FUZZ_IDLE_H */
