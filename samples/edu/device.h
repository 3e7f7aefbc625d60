/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The EDU device as the library sees it: set-up, callbacks, and the work that threads do for it.
 */

#ifndef DEVICE_H
#define DEVICE_H

#include "server.h"

/* Returns 0 or a negative errno. */
int device_setup(struct server *server, const struct server_options *options);

/* Ends the threads. Afterwards the context may be destroyed. */
void device_stop(struct server *server);

/* A worker's done_fd is readable. */
void device_factorial_done(struct server *server);
void device_dma_done(struct server *server);

#endif /* DEVICE_H */
