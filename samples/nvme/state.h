/* SPDX-License-Identifier: BSD-3-Clause */
/* A controller as a sequence of bytes, for migration: everything that the guest could notice. */

#ifndef NVME_STATE_H
#define NVME_STATE_H

#include <stddef.h>
#include <stdint.h>

struct nvme;

/* What state_save() gives at most. */
#define STATE_MAX_SIZE (2u << 20)

/*
 * The controller is paused, and the caller is the first worker. Returns the state, to be freed, and
 * its size; NULL when there is no memory for it.
 */
void *state_save(struct nvme *nvme, size_t *size);

/*
 * The same; and the controller is as after a reset. Every field is checked before the first one is
 * used. Returns NULL, or what is wrong.
 */
const char *state_load(struct nvme *nvme, const void *state, size_t size);

#endif /* NVME_STATE_H */
