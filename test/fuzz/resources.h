/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What an input must give back: descriptors and large blocks of memory. Smaller ones are for the
 * leak sanitizer to find.
 *
 * The sanitizer's allocator maps each large block and unmaps it, with its shadow, which took half of
 * the time of an input. Under it, large blocks are kept here for the next input, poisoned meanwhile.
 */
#ifndef VFU_FUZZ_RESOURCES_H
#define VFU_FUZZ_RESOURCES_H

/* Open descriptors and large blocks in use. */
unsigned resources_held(void);

#endif /* VFU_FUZZ_RESOURCES_H */
