/* SPDX-License-Identifier: BSD-3-Clause */
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXIT_NOT_STARTED 127

static void run_child(char *const argv[], int out, bool quiet, pid_t parent)
{
    int err = quiet ? open("/dev/null", O_WRONLY | O_CLOEXEC) : STDERR_FILENO;

    if (prctl(PR_SET_PDEATHSIG, SIGTERM) == 0 && getppid() == parent &&
        dup2(out, STDOUT_FILENO) >= 0 && dup2(err, STDERR_FILENO) >= 0) {
        execv(argv[0], argv);
    }
    _exit(EXIT_NOT_STARTED);
}

int process_sibling(const char *name, char *path, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", path, size);
    char *slash;

    if (n < 0) {
        return -errno;
    }
    if ((size_t)n == size) {
        return -ENAMETOOLONG;
    }
    path[n] = '\0';
    slash = strrchr(path, '/');
    if (slash == NULL || strlen(name) + 1 >= size - (size_t)(slash - path)) {
        return -ENAMETOOLONG;
    }
    strcpy(slash + 1, name);
    return 0;
}

int process_directory(const char *name, char *path, size_t size)
{
    const char *tmp = getenv("TMPDIR");

    if ((size_t)snprintf(path, size, "%s/%s-XXXXXX", tmp != NULL ? tmp : "/tmp", name) >= size) {
        return -ENAMETOOLONG;
    }
    return mkdtemp(path) != NULL ? 0 : -errno;
}

int process_start(struct process *process, char *const argv[], bool quiet)
{
    pid_t parent = getpid();
    int fds[2], err;

    if (access(argv[0], X_OK) != 0 || pipe2(fds, O_CLOEXEC) != 0) {
        return -errno;
    }
    process->pid = fork();
    if (process->pid == 0) {
        run_child(argv, fds[1], quiet, parent);
    }
    err = process->pid < 0 ? -errno : 0;
    close(fds[1]);
    if (err == 0) {
        process->pidfd = pidfd_open(process->pid, 0);
        err = process->pidfd < 0 ? -errno : 0;
        if (err != 0) {
            kill(process->pid, SIGKILL);
            waitpid(process->pid, NULL, 0);
        }
    }
    if (err != 0) {
        close(fds[0]);
        return err;
    }
    process->out = fds[0];
    return 0;
}

int process_read_line(struct process *process, char *line, size_t size, int timeout_ms)
{
    struct pollfd fd = { .fd = process->out, .events = POLLIN };

    for (size_t len = 0; len < size; len++) {
        ssize_t n;

        switch (poll(&fd, 1, timeout_ms)) {
        case 0:
            return -ETIMEDOUT;
        case -1:
            return -errno;
        }
        n = read(process->out, &line[len], 1);
        if (n <= 0) {
            return n < 0 ? -errno : -EPIPE;
        }
        if (line[len] == '\n') {
            line[len] = '\0';
            return 0;
        }
    }
    return -EMSGSIZE;
}

int process_end(struct process *process, int timeout_ms)
{
    struct pollfd fd = { .fd = process->pidfd, .events = POLLIN };
    int status, ready;

    kill(process->pid, SIGTERM);
    ready = poll(&fd, 1, timeout_ms);
    if (ready != 1) {
        kill(process->pid, SIGKILL);
    }
    waitpid(process->pid, &status, 0);
    close(process->pidfd);
    close(process->out);
    return ready == 1 ? status : -ETIMEDOUT;
}
