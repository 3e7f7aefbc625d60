/* SPDX-License-Identifier: BSD-3-Clause */
/* The recorder behind a vfio-user socket, in a process of its own. */

#ifndef DEVICE_H
#define DEVICE_H

/* Serves clients until SIGTERM or SIGINT. Returns the exit status. */
int device_run(const char *socket_path);

#endif /* DEVICE_H */
