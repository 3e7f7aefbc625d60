/* SPDX-License-Identifier: BSD-3-Clause */
#include "demo.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_DEVICES 4

static volatile pid_t device_pids[MAX_DEVICES]; /* 0: none */
static volatile sig_atomic_t interrupted;

static void interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
    for (size_t i = 0; i < MAX_DEVICES; i++) {
        if (device_pids[i] > 0) {
            kill(device_pids[i], SIGTERM);
        }
    }
}

static void replace_pid(pid_t old, pid_t pid)
{
    for (size_t i = 0; i < MAX_DEVICES; i++) {
        if (device_pids[i] == old) {
            device_pids[i] = pid;
            return;
        }
    }
}

bool demo_failed(const struct demo *demo, const char *what, int err)
{
    fprintf(stderr, "%s: %s: %s\n", demo->name, what, strerror(err));
    return false;
}

bool demo_begin(struct demo *demo, const char *name)
{
    const struct sigaction action = { .sa_handler = interrupt, .sa_flags = SA_RESTART };
    ssize_t n = readlink("/proc/self/exe", demo->program, sizeof(demo->program) - 1);
    int err = n < 0 ? -errno : process_directory(name, demo->directory, sizeof(demo->directory));

    demo->name = name;
    if (err != 0) {
        return demo_failed(demo, "no place for sockets; set TMPDIR to a directory that can be "
                                 "written to", -err);
    }
    demo->program[n] = '\0';
    /* Progress is for whoever waits for it, by a pipe too. */
    setvbuf(stdout, NULL, _IOLBF, 0);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    return true;
}

int demo_end(struct demo *demo, bool ok)
{
    rmdir(demo->directory);
    if (interrupted) {
        fprintf(stderr, "%s: ended by a signal\n", demo->name);
        ok = false;
    }
    puts(ok ? "all ok" : "FAILED");
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}

bool demo_start_device(struct demo *demo, struct demo_device *device, const char *name,
                       const char *option)
{
    char *argv[] = { demo->program, "--device", "--socket", device->socket, (char *)option, NULL };
    char line[PATH_MAX + 96], expected[PATH_MAX + 96];
    int err;

    snprintf(device->socket, sizeof(device->socket), "%s/%s", demo->directory, name);
    err = process_start(&device->process, argv, false);
    if (err != 0) {
        device->process.pid = 0;
        return demo_failed(demo, "cannot start the device", -err);
    }
    replace_pid(0, device->process.pid);
    err = process_read_line(&device->process, line, sizeof(line), DEMO_TIMEOUT_MS);
    if (err != 0) {
        return demo_failed(demo, "the device does not start", -err);
    }
    snprintf(expected, sizeof(expected), "%s: listening on %s", demo->name, device->socket);
    return strcmp(line, expected) == 0 ? !interrupted : demo_failed(demo, line, EPROTO);
}

bool demo_stop_device(struct demo *demo, struct demo_device *device)
{
    int status;

    if (device->process.pid <= 0) {
        return true;
    }
    /* Not to be signalled by number any more. */
    replace_pid(device->process.pid, 0);
    status = process_end(&device->process, DEMO_TIMEOUT_MS);
    device->process.pid = 0;
    /* There if it had to be killed. */
    unlink(device->socket);
    if (status < 0) {
        return demo_failed(demo, "SIGTERM does not end the device", -status);
    }
    if (status != 0) {
        fprintf(stderr, "%s: the device ended with %s %d\n", demo->name,
                WIFSIGNALED(status) ? "signal" : "status",
                WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    }
    return status == 0;
}
