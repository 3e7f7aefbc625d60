/* SPDX-License-Identifier: BSD-3-Clause */
#include "server.h"
#include "../common/service.h"
#include "device.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/*
 * Start
 */

int server_start(struct server *server, struct server_options *options)
{
    int err;

    *server = (struct server){ .signal_fd = -1 };
    /* Before the workers start: they inherit what it blocks. */
    server->signal_fd = service_open_signals();
    if (server->signal_fd < 0) {
        err = -errno;
        fprintf(stderr, "edu: cannot wait for signals: %s\n", strerror(-err));
        return err;
    }
    server->ctx = service_listen("edu", options->socket_path, &options->access,
                                 LIBVFIO_USER_FLAG_ATTACH_NB, server);
    if (server->ctx == NULL) {
        err = -errno;
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
    server->stopping = true;
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
        [CLIENT] = { .fd = vfu_get_event_fd(server->ctx), .events = POLLIN },
    };
    int err = 0;

    while (err == 0 && !stopped(server)) {
        err = service_poll(fds, NR_FDS);
        if (err != 0) {
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
