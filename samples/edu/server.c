/* SPDX-License-Identifier: BSD-3-Clause */
#include "server.h"
#include "device.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/*
 * Start
 */

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
        return "a file that is no socket is there: choose another --socket";
    }
    if (socket_answers(path)) {
        return "another server lives there: stop it, or choose another --socket";
    }
    return "nobody lives there, the socket was left behind: remove it and try again";
}

static const struct {
    int err;
    const char *advice;
} path_errors[] = {
    { ENAMETOOLONG, "a socket's path has 107 bytes at most: choose a shorter one" },
    { ENOENT, "create its directory first" },
    { ENOTDIR, "a part of the path is no directory: choose another --socket" },
    { EACCES, "its directory is not yours to write: choose another --socket" },
};

static void explain_socket_error(const char *path, int err)
{
    fprintf(stderr, "edu: cannot listen on %s: %s\n", path, strerror(err));
    if (err == EADDRINUSE) {
        fprintf(stderr, "edu: %s\n", explain_path_in_use(path));
    }
    for (size_t i = 0; i < sizeof(path_errors) / sizeof(path_errors[0]); i++) {
        if (path_errors[i].err == err) {
            fprintf(stderr, "edu: %s\n", path_errors[i].advice);
        }
    }
}

static int open_signals(struct server *server)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    /* Before the workers start: they inherit it. */
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0) {
        return -errno;
    }
    server->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return server->signal_fd < 0 ? -errno : 0;
}

int server_start(struct server *server, const struct server_options *options)
{
    int err;

    *server = (struct server){ .signal_fd = -1 };
    err = open_signals(server);
    if (err != 0) {
        fprintf(stderr, "edu: cannot wait for signals: %s\n", strerror(-err));
        return err;
    }
    server->ctx = vfu_create_ctx(VFU_TRANS_SOCK, options->socket_path, LIBVFIO_USER_FLAG_ATTACH_NB,
                                 server, VFU_DEV_TYPE_PCI);
    if (server->ctx == NULL) {
        err = -errno;
        explain_socket_error(options->socket_path, -err);
        close(server->signal_fd);
        return err;
    }
    err = device_setup(server, options);
    if (err != 0) {
        fprintf(stderr, "edu: cannot set the device up: %s\n", strerror(-err));
        vfu_destroy_ctx(server->ctx);
        close(server->signal_fd);
    }
    return err;
}

void server_stop(struct server *server)
{
    /* No thread may use the context when it is destroyed. */
    device_stop(server);
    vfu_destroy_ctx(server->ctx);
    close(server->signal_fd);
}

/*
 * Event loop
 */

static void attach_client(struct server *server)
{
    if (vfu_attach_ctx(server->ctx) == 0) {
        server->attached = true;
    } else if (errno != EAGAIN && errno != EWOULDBLOCK) {
        vfu_log(server->ctx, LOG_WARNING, "a client could not attach: %s", strerror(errno));
    }
}

static int serve_client(struct server *server)
{
    if (vfu_run_ctx(server->ctx) >= 0) {
        return 0;
    }
    switch (errno) {
    case EBUSY: /* the end of the DMA goes on with it: see device_dma_done() */
    case EINTR:
        return 0;
    case ENOTCONN:
        server->attached = false;
        vfu_log(server->ctx, LOG_INFO, "the client is gone; waiting for the next one");
        return 0;
    default:
        return -errno;
    }
}

/* While the library waits for the device, requests of the client stay in the socket. */
static int client_fd(const struct server *server)
{
    return server->quiescing ? -1 : vfu_get_poll_fd(server->ctx);
}

/*
 * DMA by messages waits for a client that may not answer any more: ending the connection ends it,
 * by the way of every lost connection.
 */
static int begin_to_stop(struct server *server)
{
    server->stopping = true;
    if (!edu_dma_running(&server->edu)) {
        return 0;
    }
    (void)shutdown(vfu_get_poll_fd(server->ctx), SHUT_RDWR);
    /* Its end is not polled for while the library waits for the DMA. */
    return serve_client(server);
}

static bool stopped(const struct server *server)
{
    return server->stopping && !edu_dma_running(&server->edu);
}

int server_run(struct server *server)
{
    enum {
        SIGNAL,
        FACTORIAL,
        DMA,
        CLIENT,
        NR_FDS
    };
    struct pollfd fds[NR_FDS] = {
        [SIGNAL] = { .fd = server->signal_fd, .events = POLLIN },
        [FACTORIAL] = { .fd = server->factorial_worker.done_fd, .events = POLLIN },
        [DMA] = { .fd = server->dma_worker.done_fd, .events = POLLIN },
        [CLIENT] = { .events = POLLIN },
    };
    int err = 0;

    while (err == 0 && !stopped(server)) {
        fds[CLIENT].fd = client_fd(server);
        if (poll(fds, NR_FDS, -1) < 0) {
            err = errno == EINTR ? 0 : -errno;
            continue;
        }
        if (fds[SIGNAL].revents != 0) {
            fds[SIGNAL].fd = -1;
            err = begin_to_stop(server);
            continue;
        }
        if (fds[FACTORIAL].revents != 0) {
            device_factorial_done(server);
        }
        if (fds[DMA].revents != 0) {
            /* It may end the connection, and poll's answer about the client with it. */
            device_dma_done(server);
        } else if (fds[CLIENT].revents != 0 && server->attached) {
            err = serve_client(server);
        } else if (fds[CLIENT].revents != 0) {
            attach_client(server);
        }
    }
    if (err != 0) {
        vfu_log(server->ctx, LOG_ERR, "the server ends: %s", strerror(-err));
    }
    return err;
}
