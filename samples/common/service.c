/* SPDX-License-Identifier: BSD-3-Clause */
#include "service.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#define MAX_PAUSES 100 /* of 10 ms, before lack of memory is an error */

/* Is there somebody behind the socket that is in the way? */
static bool socket_answers(const char *path)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bool answers;

    if (fd < 0) {
        return false;
    }
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    /* EAGAIN: its queue of clients is full. */
    answers = connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 || errno == EAGAIN;
    close(fd);
    return answers;
}

static const char *explain_path_in_use(const char *path)
{
    struct stat st;

    if (lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode)) {
        return "a file that is not a socket is there: choose another path";
    }
    if (socket_answers(path)) {
        return "another server lives there: stop it, or choose another path";
    }
    return "no server listens there, an earlier one left the socket: remove it and try again";
}

static const struct {
    int err;
    const char *advice;
} path_errors[] = {
    { ENAMETOOLONG, "a socket's path has 107 bytes at most: choose a shorter one" },
    { ENOENT, "create its directory first" },
    { ENOTDIR, "a part of the path is not a directory: choose another path" },
    { EACCES, "this user must not write to its directory: choose another path" },
};

static void explain_socket_error(const char *program, const char *path, int err)
{
    fprintf(stderr, "%s: cannot listen on %s: %s\n", program, path, strerror(err));
    if (err == EADDRINUSE) {
        fprintf(stderr, "%s: %s\n", program, explain_path_in_use(path));
    }
    for (size_t i = 0; i < sizeof(path_errors) / sizeof(path_errors[0]); i++) {
        if (path_errors[i].err == err) {
            fprintf(stderr, "%s: %s\n", program, path_errors[i].advice);
        }
    }
}

/* bind(2) makes the socket with the permissions that the umask leaves: no moment with others. */
static vfu_ctx_t *create_context(const char *path, const struct access_rules *rules, int flags,
                                 void *pvt)
{
    mode_t mask = umask(077);
    vfu_ctx_t *ctx;
    int err;

    umask(rules != NULL && rules->has_mode ? ~rules->mode & 0777 : mask);
    ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, flags, pvt, VFU_DEV_TYPE_PCI);
    err = errno;
    umask(mask);
    errno = err;
    return ctx;
}

vfu_ctx_t *service_listen(const char *program, const char *path, struct access_rules *rules,
                          int flags, void *pvt)
{
    vfu_ctx_t *ctx = create_context(path, rules, flags, pvt);

    if (ctx == NULL) {
        int err = errno;

        explain_socket_error(program, path, err);
        errno = err;
        return NULL;
    }
    if (rules != NULL) {
        vfu_setup_client_cb(ctx, access_check, rules);
    }
    /* Made by this call, so that no later one fails. */
    if ((flags & LIBVFIO_USER_FLAG_ATTACH_NB) && vfu_get_event_fd(ctx) < 0) {
        int err = errno;

        fprintf(stderr, "%s: cannot wait for clients: %s\n", program, strerror(err));
        vfu_destroy_ctx(ctx);
        errno = err;
        return NULL;
    }
    return ctx;
}

void service_print_log(const char *program, int level, const char *msg)
{
    static const char *const names[] = { "emergency", "alert",  "critical", "error",
                                         "warning",   "notice", "info",     "debug" };

    fprintf(stderr, "%s: %s: %s\n", program, names[level], msg);
}

int service_open_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0) {
        return -1;
    }
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int service_poll(struct pollfd *fds, nfds_t nr_fds)
{
    const struct timespec pause = { .tv_nsec = 10000000 };
    unsigned pauses = 0;

    while (poll(fds, nr_fds, -1) < 0) {
        if (errno == EINTR) {
            continue;
        }
        if (errno != ENOMEM || pauses++ == MAX_PAUSES) {
            return -errno;
        }
        nanosleep(&pause, NULL);
    }
    return 0;
}
