/* SPDX-License-Identifier: BSD-3-Clause */
/* Memory that a device shares with its client. */

#ifndef SHARED_MEMORY_H
#define SHARED_MEMORY_H

#include <stddef.h>

/*
 * Creates a memory file of size bytes, all zero, and seals its size: a client that truncates a file
 * which the device has mapped would end the device by SIGBUS. Returns the descriptor, or -1 with
 * errno.
 */
int shared_memory_create(const char *name, size_t size);

#endif /* SHARED_MEMORY_H */
