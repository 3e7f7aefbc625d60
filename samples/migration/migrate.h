/* SPDX-License-Identifier: BSD-3-Clause */
/* Live migration of a guest, and the recorder with it, from one machine to another. */

#ifndef MIGRATE_H
#define MIGRATE_H

#include "guest.h"
#include "machine.h"

/*
 * While the guest runs on the source. Afterwards it runs on the destination, and the source's
 * device is stopped. Prints how it goes. Returns false when it went wrong, after having said what;
 * the guest is then paused.
 */
bool migrate(struct machine *source, struct machine *destination, struct guest *guest);

#endif /* MIGRATE_H */
