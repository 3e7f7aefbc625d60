/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Keeps the server alive when a client truncates a file that it had mapped: access beyond the end
 * of a mapped file is a SIGBUS, and the peer can arrange for it at any time.
 *
 * The one deliberate piece of process state of the library: a signal's disposition belongs to the
 * process, so the handler and the table it consults must too. The handler is installed with the
 * first file mapping, and again by a later one that finds another in its place. It puts zero pages
 * under the faulting access, and marks the mapping tripped. A SIGBUS at any other address goes to
 * whatever was installed before, or kills as it used to. A program that installs its own handler
 * later replaces this one until the next mapping; it loses the protection only.
 */

#ifndef VFU_DMA_SIGBUS_H
#define VFU_DMA_SIGBUS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A guarded mapping. Never freed, only reused: the handler reads it without a lock. */
struct guard {
    _Atomic uintptr_t base; /* 0: unused */
    _Atomic size_t length;
    _Atomic size_t block; /* what is replaced at once: the file's page size */
    atomic_bool tripped;
    struct guard *next_free;
};

/* Guards a mapping made of pages of the given size. NULL when out of memory. Any thread. */
struct guard *guard_add(void *base, size_t length, size_t page_size);

/* Before the mapping is unmapped. */
void guard_remove(struct guard *guard);

/* Whether an access found the file shorter than the mapping. */
static inline bool guard_tripped(const struct guard *guard)
{
    return atomic_load_explicit(&guard->tripped, memory_order_acquire);
}

#endif /* VFU_DMA_SIGBUS_H */
