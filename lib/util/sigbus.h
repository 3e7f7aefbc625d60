/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Keeps the process alive when the peer truncates a file that is mapped here: an access beyond the
 * end of a mapped file is a SIGBUS, and the peer can arrange for one at any time.
 *
 * This is the one deliberate piece of process state of the library: a signal's disposition belongs
 * to the process, so the handler and the table it consults must too. The handler is installed with
 * the first guarded mapping, and again by a later one that finds another in its place. It puts
 * anonymous zero pages in place of the whole mapping, and marks the mapping tripped: a mapping
 * takes one fault at most, and the number of mappings of the process (vm.max_map_count) stays as it
 * is. Where the kernel refuses that much memory (strict over-commit, RLIMIT_DATA), the handler
 * replaces the page of the fault alone, which may split the mapping. Spare mappings are held ready
 * for the handler to give up, so that it finds room however many the process has made.
 *
 * A SIGBUS at any other address goes to whatever was installed before, or kills as it used to. A
 * program that installs its own handler later replaces this one until the next guarded mapping; it
 * loses the protection only. A thread that has SIGBUS blocked is killed by the fault:
 * guard_this_thread() unblocks the signal.
 */

#ifndef VFU_UTIL_SIGBUS_H
#define VFU_UTIL_SIGBUS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A guarded mapping. Never freed, only reused: the handler reads it without a lock. */
struct guard {
    _Atomic uintptr_t base; /* 0: unused */
    _Atomic size_t length;
    _Atomic size_t block; /* the file's page size: the least that can be replaced */
    atomic_bool tripped;
    atomic_bool replaced; /* as a whole: no page of the file is left in it */
    struct guard *next_free;
};

/*
 * Guards a mapping made of pages of the given size. Returns NULL when out of memory, or of mappings
 * to keep ready for the handler. Any thread.
 */
struct guard *guard_add(void *base, size_t length, size_t page_size);

/* Before the mapping is unmapped. */
void guard_remove(struct guard *guard);

/* Whether an access found the file shorter than the mapping. */
static inline bool guard_tripped(const struct guard *guard)
{
    return atomic_load_explicit(&guard->tripped, memory_order_acquire);
}

/*
 * Unblocks SIGBUS in the calling thread. Returns whether the signal was blocked. Any thread; cheap
 * after the first call of a thread.
 */
bool guard_this_thread(void);

#endif /* VFU_UTIL_SIGBUS_H */
