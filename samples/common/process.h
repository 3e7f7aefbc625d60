/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A child process whose standard output we read.
 */

#ifndef PROCESS_H
#define PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct process {
    pid_t pid;
    int pidfd; /* readable when it has ended */
    int out;   /* its standard output */
};

/* The path of the program of this name that was built beside ours. 0 or a negative errno. */
int process_sibling(const char *name, char *path, size_t size);

/* Makes a directory for the sockets of processes: NAME-XXXXXX in TMPDIR. 0 or a negative errno. */
int process_directory(const char *name, char *path, size_t size);

/*
 * Starts argv[0]; it gets SIGTERM should we end first. quiet: what it says on standard error is not
 * shown. Returns 0 or a negative errno.
 */
int process_start(struct process *process, char *const argv[], bool quiet);

/*
 * Reads its first line, without the newline. Returns 0 or a negative errno: -ETIMEDOUT, or -EPIPE
 * when it closed its output instead.
 */
int process_read_line(struct process *process, char *line, size_t size, int timeout_ms);

/*
 * Sends SIGTERM and waits for the end; kills it when it takes too long.
 *
 * Returns the wait status, or a negative errno: -ETIMEDOUT.
 */
int process_end(struct process *process, int timeout_ms);

#endif /* PROCESS_H */
