/* SPDX-License-Identifier: BSD-3-Clause */
/* The client is whoever holds the other ends of standard input and output: for tests and fuzzing. */
#include "transport/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static int pipe_listen(struct transport *t, const char *path, bool nonblocking,
                       const struct logger *log)
{
    (void)path;
    (void)nonblocking;
    (void)log;
    t->listen_fd = -1;
    t->path = NULL;
    return 0;
}

static int pipe_poll_fd(const struct transport *t)
{
    (void)t;
    return STDIN_FILENO;
}

/* Works on copies, so that the process keeps its own standard input and output. */
static int pipe_accept(struct transport *t, struct stream *s, size_t max_message)
{
    int in = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
    int out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);

    (void)t;
    if (in == -1 || out == -1) {
        int err = errno;

        if (in != -1) {
            close(in);
        }
        if (out != -1) {
            close(out);
        }
        return -err;
    }
    return stream_open(s, in, out, false, max_message);
}

static void pipe_turn_away(struct transport *t)
{
    (void)t;
}

static void pipe_close(struct transport *t)
{
    (void)t;
}

const struct transport_ops transport_pipe = {
    .listen = pipe_listen,
    .poll_fd = pipe_poll_fd,
    .accept = pipe_accept,
    .turn_away = pipe_turn_away,
    .close = pipe_close,
};
