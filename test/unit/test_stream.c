/* SPDX-License-Identifier: BSD-3-Clause */
/* The byte stream: pieces, descriptors and where they lie, the end at each byte, sockets and pipes. */
#include "transport/stream.h"

#include "transport/transport.h"
#include "util/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define MAX_MESSAGE 4096u
#define SLACK (64u * 1024u) /* what a stream keeps beyond a message */

struct fixture {
    struct stream stream;
    int peer; /* the other end */
    int peer_in; /* for pipes: what the stream writes */
    unsigned fds; /* open before */
};

static unsigned open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned n = 0;

    assert_non_null(dir);
    while (readdir(dir) != NULL) {
        n++;
    }
    closedir(dir);
    return n;
}

static int set_up_socket(void **state)
{
    static struct fixture f;
    int pair[2];

    f.fds = open_fds();
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(stream_open(&f.stream, pair[0], pair[0], true, MAX_MESSAGE), 0);
    f.peer = pair[1];
    f.peer_in = -1;
    *state = &f;
    return 0;
}

static int set_up_pipes(void **state)
{
    static struct fixture f;
    int in[2], out[2];

    f.fds = open_fds();
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    assert_int_equal(stream_open(&f.stream, in[0], out[1], false, MAX_MESSAGE), 0);
    f.peer = in[1];
    f.peer_in = out[0];
    *state = &f;
    return 0;
}

static void close_peer(struct fixture *f)
{
    if (f->peer != -1) {
        close(f->peer);
        f->peer = -1;
    }
    if (f->peer_in != -1) {
        close(f->peer_in);
        f->peer_in = -1;
    }
}

/* Whatever happened, no descriptor is left. */
static int tear_down(void **state)
{
    struct fixture *f = *state;

    stream_close(&f->stream);
    close_peer(f);
    assert_int_equal(open_fds(), f->fds);
    return 0;
}

/* Sends len bytes, each one more than the one before, with nr_fds new descriptors. */
static void peer_sends(struct fixture *f, uint8_t first, size_t len, size_t nr_fds)
{
    union {
        char bytes[CMSG_SPACE(STREAM_MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    uint8_t data[MAX_MESSAGE];
    int fds[STREAM_MAX_FDS];
    struct iovec iov = { .iov_base = data, .iov_len = len };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    struct cmsghdr *c;

    for (size_t i = 0; i < len; i++) {
        data[i] = (uint8_t)(first + i);
    }
    if (nr_fds == 0) {
        assert_int_equal(write(f->peer, data, len), len);
        return;
    }
    for (size_t i = 0; i < nr_fds; i++) {
        fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        assert_true(fds[i] >= 0);
    }
    memset(&control, 0, sizeof(control));
    msg.msg_control = control.bytes;
    msg.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
    c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
    memcpy(CMSG_DATA(c), fds, nr_fds * sizeof(int));
    assert_int_equal(sendmsg(f->peer, &msg, 0), len);
    while (nr_fds > 0) {
        close(fds[--nr_fds]);
    }
}

/* Takes n bytes, which begin with first, and closes the descriptors: their number. */
static size_t take(struct fixture *f, uint8_t first, size_t n)
{
    int fds[STREAM_MAX_FDS];
    size_t nr_fds, i;
    bool lost;

    assert_true(stream_buffered(&f->stream) >= n);
    for (i = 0; i < n; i++) {
        assert_int_equal(stream_data(&f->stream)[i], (uint8_t)(first + i));
    }
    stream_consume(&f->stream, n, fds, &nr_fds, &lost);
    assert_false(lost);
    for (i = 0; i < nr_fds; i++) {
        assert_int_equal(fcntl(fds[i], F_GETFD), FD_CLOEXEC);
        close(fds[i]);
    }
    return nr_fds;
}

static ssize_t receive(struct fixture *f)
{
    assert_int_equal(stream_make_room(&f->stream, MAX_MESSAGE), 0);
    return stream_receive(&f->stream, MAX_MESSAGE, false);
}

/* Both kinds */

static void test_pieces(void **state)
{
    struct fixture *f = *state;

    for (size_t size = 1; size < 20; size++) {
        for (size_t at = 0; at < size; at++) {
            assert_int_equal(receive(f), -EAGAIN);
            peer_sends(f, (uint8_t)at, 1, 0);
            assert_int_equal(receive(f), 1);
            assert_int_equal(stream_buffered(&f->stream), at + 1);
        }
        assert_int_equal(take(f, 0, size), 0);
        assert_int_equal(stream_buffered(&f->stream), 0);
    }
}

static void test_several_at_once(void **state)
{
    struct fixture *f = *state;

    peer_sends(f, 0, 100, 0);
    assert_int_equal(receive(f), 100);
    for (uint8_t at = 0; at < 100; at += 10) {
        take(f, at, 10);
    }
    assert_int_equal(receive(f), -EAGAIN);
}

/* Never more than asked for: what follows stays with the kernel. */
static void test_limit(void **state)
{
    struct fixture *f = *state;

    peer_sends(f, 0, 64, 0);
    assert_int_equal(stream_make_room(&f->stream, MAX_MESSAGE), 0);
    for (uint8_t at = 0; at < 64; at += 16) {
        assert_int_equal(stream_receive(&f->stream, 16, at % 32 == 0), 16);
        assert_int_equal(stream_buffered(&f->stream), 16);
        take(f, at, 16);
    }
    assert_int_equal(stream_receive(&f->stream, 16, false), -EAGAIN);
}

static void test_end_behind_every_byte(void **state)
{
    struct fixture *f = *state;
    bool socket = f->stream.is_socket;

    for (size_t n = 0; n < 20; n++) {
        f = *state;
        if (n > 0) {
            peer_sends(f, 0, n, 0);
        }
        close_peer(f);
        for (size_t got = 0; got < n;) {
            ssize_t r = receive(f);

            assert_true(r > 0);
            got += (size_t)r;
        }
        assert_int_equal(receive(f), -ENOMSG);
        assert_int_equal(receive(f), -ENOMSG);
        assert_int_equal(stream_receive(&f->stream, 1, true), -ENOMSG);
        assert_int_equal(stream_buffered(&f->stream), n);
        tear_down(state);
        socket ? set_up_socket(state) : set_up_pipes(state);
    }
}

/* How far the counting bytes of one stream have come. */
struct flow {
    uint64_t sent, taken;
};

/* n more bytes come, and all but the last keep are taken. */
static void pass(struct fixture *f, struct flow *flow, size_t n, size_t keep)
{
    peer_sends(f, (uint8_t)flow->sent, n, 0);
    flow->sent += n;
    while (stream_buffered(&f->stream) < flow->sent - flow->taken) {
        assert_true(receive(f) > 0);
    }
    take(f, (uint8_t)flow->taken, flow->sent - flow->taken - keep);
    flow->taken = flow->sent - keep;
}

/* A stream of any length goes through the buffer, whatever is left in it between two receives. */
static void test_long_stream(void **state)
{
    static const size_t sizes[] = { 1, 1000, 4096, 7, 4095, 333, 4096, 2048 };
    struct fixture *f = *state;
    struct flow flow = { 0 };

    for (size_t i = 0; i < 400; i++) {
        pass(f, &flow, sizes[i % 8], sizes[i % 8] / 3);
    }
    pass(f, &flow, 1, 0);
    assert_int_equal(f->stream.pos, flow.sent);
}

static void test_room_for_the_largest(void **state)
{
    struct fixture *f = *state;
    struct flow flow = { 0 };

    for (size_t i = 0; i < 200; i++) {
        pass(f, &flow, i % 3 == 0 ? MAX_MESSAGE : 1000 + i, 1);
        assert_int_equal(stream_make_room(&f->stream, MAX_MESSAGE), 0);
        assert_true(f->stream.cap - f->stream.head >= MAX_MESSAGE);
        assert_true(f->stream.cap > f->stream.tail);
    }
}

/* What was consumed stays where it is, as long as it is pinned. */
static void test_pinned(void **state)
{
    struct fixture *f = *state;
    struct flow flow = { 0 };
    const uint8_t *message = stream_data(&f->stream);

    stream_pin(&f->stream);
    pass(f, &flow, 12, 4);
    /* Enough to fill the buffer several times. */
    for (size_t i = 0; i < 4 * (SLACK + MAX_MESSAGE) / 4096; i++) {
        pass(f, &flow, 4096, 4);
        for (uint8_t at = 0; at < 8; at++) {
            assert_int_equal(message[at], at);
        }
    }
    stream_unpin(&f->stream);
    assert_null(f->stream.pinned);
    pass(f, &flow, 4, 0);
}

static void test_closed_while_pinned(void **state)
{
    struct fixture *f = *state;

    stream_pin(&f->stream);
    for (size_t i = 0; i < 40; i++) {
        peer_sends(f, 0, 4096, 0);
        assert_true(receive(f) > 0);
        take(f, 0, 4096);
    }
    assert_non_null(f->stream.pinned);
    stream_close(&f->stream);
    stream_unpin(&f->stream);
    f->stream.rx_fd = f->stream.tx_fd = -1;
}

static void peer_expects(struct fixture *f, const void *data, size_t len)
{
    int fd = f->peer_in != -1 ? f->peer_in : f->peer;
    uint8_t buf[2048];
    size_t got = 0;

    assert_true(len <= sizeof(buf));
    while (got < len) {
        ssize_t n = read(fd, buf + got, len - got);

        assert_true(n > 0);
        got += (size_t)n;
    }
    assert_memory_equal(buf, data, len);
}

/* In one piece, in parts, with empty parts; around the size up to which parts are put together. */
static void test_sending(void **state)
{
    static const size_t sizes[][3] = {
        { 1, 0, 0 }, { 0, 1, 0 }, { 16, 0, 16 }, { 16, 496, 0 }, { 16, 497, 0 }, { 512, 0, 0 },
        { 513, 0, 0 }, { 256, 256, 1 }, { 0, 0, 2000 }, { 16, 16, 1500 },
    };
    struct fixture *f = *state;
    uint8_t data[2048];

    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = (uint8_t)(i * 7);
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        const size_t *n = sizes[i];
        struct iovec iov[] = {
            { .iov_base = data, .iov_len = n[0] },
            { .iov_base = data + n[0], .iov_len = n[1] },
            { .iov_base = data + n[0] + n[1], .iov_len = n[2] },
        };
        size_t all = n[0] + n[1] + n[2];

        assert_int_equal(stream_send(&f->stream, iov, 3, NULL, 0), all);
        peer_expects(f, data, all);
    }
}

static void test_sending_to_nobody(void **state)
{
    struct iovec iov = { .iov_base = "x", .iov_len = 1 };
    struct fixture *f = *state;

    close_peer(f);
    assert_int_equal(stream_send(&f->stream, &iov, 1, NULL, 0), -ECONNRESET);
}

/* A peer that does not read: as much as there is room for, and then EAGAIN, never a wait. */
static void test_sending_to_one_who_does_not_read(void **state)
{
    struct fixture *f = *state;
    size_t size = 8u << 20, sent = 0;
    uint8_t *data = calloc(1, size);
    struct iovec iov = { .iov_base = data, .iov_len = size };
    ssize_t n;

    assert_non_null(data);
    while ((n = stream_send(&f->stream, &iov, 1, NULL, 0)) > 0) {
        sent += (size_t)n;
    }
    assert_int_equal(n, -EAGAIN);
    assert_true(sent > 0 && sent < size);
    free(data);
}

/* Sockets alone */

/* The descriptors belong to the message that has the last byte received with them. */
static void test_descriptors_and_positions(void **state)
{
    struct fixture *f = *state;

    peer_sends(f, 0, 10, 0);
    peer_sends(f, 10, 10, 2);
    peer_sends(f, 20, 10, 0);
    peer_sends(f, 30, 10, 1);
    while (stream_buffered(&f->stream) < 40) {
        assert_true(receive(f) > 0);
    }
    assert_int_equal(take(f, 0, 10), 0);
    assert_int_equal(take(f, 10, 10), 2);
    assert_int_equal(take(f, 20, 10), 0);
    assert_int_equal(take(f, 30, 10), 1);
    assert_int_equal(f->stream.nr_fds, 0);
}

/* A message in two pieces, of which either carries the descriptors; and both. */
static void test_descriptors_with_a_piece(void **state)
{
    struct fixture *f = *state;

    for (size_t with = 1; with < 4; with++) {
        peer_sends(f, 0, 4, with & 1);
        assert_int_equal(receive(f), 4);
        assert_int_equal(f->stream.nr_fds, with & 1);
        peer_sends(f, 4, 6, with >> 1);
        assert_int_equal(receive(f), 6);
        assert_int_equal(take(f, 0, 10), (with & 1) + (with >> 1));
    }
}

/* Bytes that are received one by one: the descriptors are with the message all the same. */
static void test_descriptors_byte_by_byte(void **state)
{
    struct fixture *f = *state;

    peer_sends(f, 0, 8, 3);
    peer_sends(f, 8, 8, 1);
    for (size_t i = 0; i < 16; i++) {
        assert_int_equal(stream_make_room(&f->stream, MAX_MESSAGE), 0);
        assert_int_equal(stream_receive(&f->stream, 1, false), 1);
    }
    assert_int_equal(take(f, 0, 8), 3);
    assert_int_equal(take(f, 8, 8), 1);
}

static void test_as_many_descriptors_as_the_kernel_passes(void **state)
{
    struct fixture *f = *state;

    peer_sends(f, 0, 1, STREAM_MAX_FDS);
    assert_int_equal(receive(f), 1);
    assert_int_equal(take(f, 0, 1), STREAM_MAX_FDS);
}

/* Two loads for one message: one load is handed out, the other closed. */
static void test_more_descriptors_than_a_message_has(void **state)
{
    struct fixture *f = *state;

    peer_sends(f, 0, 1, STREAM_MAX_FDS);
    peer_sends(f, 1, 1, STREAM_MAX_FDS);
    assert_int_equal(receive(f), 1);
    assert_int_equal(receive(f), 1);
    assert_int_equal(take(f, 0, 2), STREAM_MAX_FDS);
}

/* A client that sends bytes with descriptors and never a whole message holds no more than these. */
static void test_descriptors_are_bounded(void **state)
{
    struct fixture *f = *state;
    int fds[STREAM_MAX_FDS];
    size_t nr_fds;
    bool lost;

    for (uint8_t i = 0; i < 5; i++) {
        peer_sends(f, i, 1, 200);
        assert_int_equal(receive(f), 1);
    }
    assert_true(open_fds() <= f->fds + 2 + 2 * STREAM_MAX_FDS);
    stream_consume(&f->stream, 5, fds, &nr_fds, &lost);
    assert_true(lost);
    assert_int_equal(nr_fds, STREAM_MAX_FDS);
    while (nr_fds > 0) {
        close(fds[--nr_fds]);
    }
    peer_sends(f, 0, 1, 1);
    assert_int_equal(receive(f), 1);
    assert_int_equal(take(f, 0, 1), 1);
}

/* Descriptors that nobody took go with the stream. */
static void test_descriptors_left_in_the_stream(void **state)
{
    struct fixture *f = *state;

    peer_sends(f, 0, 4, 7);
    assert_int_equal(receive(f), 4);
    peer_sends(f, 4, 4, 7); /* these are never received */
}

static void test_out_of_descriptors(void **state)
{
    struct fixture *f = *state;
    int fds[STREAM_MAX_FDS], next = dup(f->peer);
    struct rlimit old, tight;
    size_t nr_fds;
    bool lost;

    assert_true(next >= 0);
    close(next);
    peer_sends(f, 0, 1, 6);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    tight = (struct rlimit){ .rlim_cur = (rlim_t)next + 2, .rlim_max = old.rlim_max };
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
    assert_int_equal(receive(f), 1);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    stream_consume(&f->stream, 1, fds, &nr_fds, &lost);
    assert_true(lost);
    assert_int_equal(nr_fds, 2);
    close(fds[0]);
    close(fds[1]);
    peer_sends(f, 0, 1, 0);
    assert_int_equal(receive(f), 1);
    take(f, 0, 1);
}

static void test_peeking(void **state)
{
    struct fixture *f = *state;
    uint8_t buf[8];

    assert_int_equal(stream_peek(&f->stream, buf, 8), -EAGAIN);
    peer_sends(f, 0, 4, 2);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(stream_peek(&f->stream, buf, 8), 4);
        assert_int_equal(buf[3], 3);
        assert_int_equal(f->stream.nr_fds, 0);
    }
    assert_int_equal(receive(f), 4);
    assert_int_equal(take(f, 0, 4), 2);
    close_peer(f);
    assert_int_equal(stream_peek(&f->stream, buf, 8), -ENOMSG);
}

static void test_sending_descriptors(void **state)
{
    struct fixture *f = *state;
    struct fixture other = { .peer = -1, .peer_in = -1 };
    int fds[STREAM_MAX_FDS + 1];
    struct iovec iov = { .iov_base = "\0\1\2", .iov_len = 3 };

    for (size_t i = 0; i <= STREAM_MAX_FDS; i++) {
        fds[i] = f->peer;
    }
    assert_int_equal(stream_send(&f->stream, &iov, 1, fds, STREAM_MAX_FDS + 1), -EINVAL);
    assert_int_equal(stream_open(&other.stream, dup(f->peer), -1, true, MAX_MESSAGE), 0);
    assert_int_equal(receive(&other), -EAGAIN);
    assert_int_equal(stream_send(&f->stream, &iov, 1, fds, 1), 3);
    assert_int_equal(stream_send(&f->stream, &iov, 1, fds, STREAM_MAX_FDS), 3);
    assert_int_equal(receive(&other), 3);
    assert_int_equal(receive(&other), 3);
    assert_int_equal(fcntl(other.stream.fds[0].fd, F_SETFD, FD_CLOEXEC), 0);
    assert_int_equal(take(&other, 0, 3), 1);
    assert_int_equal(take(&other, 0, 3), STREAM_MAX_FDS);
    stream_close(&other.stream);
}

static void test_reset_by_the_peer(void **state)
{
    struct fixture *f = *state;
    struct iovec iov = { .iov_base = "x", .iov_len = 1 };

    /* A UNIX socket that is closed with bytes unread resets the connection. */
    assert_int_equal(stream_send(&f->stream, &iov, 1, NULL, 0), 1);
    close_peer(f);
    assert_int_equal(receive(f), -ECONNRESET);
}

/* The transport over standard input and output */

static const struct logger silent = { 0 };

/* Descriptors 0 and 1 are these two for a while; cmocka writes to standard output, too. */
struct standard {
    int saved[2];
};

static void replace_standard(struct standard *s, int in, int out)
{
    fflush(NULL);
    s->saved[0] = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
    s->saved[1] = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
}

static void restore_standard(struct standard *s)
{
    for (int i = 0; i < 2; i++) {
        if (s->saved[i] == -1) {
            close(i);
        } else {
            dup2(s->saved[i], i);
            close(s->saved[i]);
        }
    }
}

static void test_pipe_transport(void **state)
{
    struct transport t = { .ops = &transport_pipe };
    unsigned before = open_fds();
    struct iovec iov = { .iov_base = "out", .iov_len = 3 };
    struct standard standard;
    struct stream s;
    int in[2], out[2], err, polled, own_in, own_out;
    ssize_t received, sent;
    char buf[4];

    (void)state;
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    replace_standard(&standard, in[0], out[1]);
    err = t.ops->listen(&t, "ignored", true, &silent);
    polled = t.ops->poll_fd(&t);
    err = err < 0 ? err : t.ops->accept(&t, &s, MAX_MESSAGE);
    restore_standard(&standard);
    assert_int_equal(err, 0);
    assert_int_equal(polled, STDIN_FILENO);
    assert_false(s.is_socket);
    own_in = s.rx_fd;
    own_out = s.tx_fd;
    assert_true(own_in > 2 && own_out > 2 && own_in != own_out);
    assert_int_equal(fcntl(own_in, F_GETFD), FD_CLOEXEC);
    assert_int_equal(write(in[1], "in", 2), 2);
    assert_int_equal(stream_make_room(&s, MAX_MESSAGE), 0);
    received = stream_receive(&s, MAX_MESSAGE, true);
    sent = stream_send(&s, &iov, 1, NULL, 0);
    assert_int_equal(received, 2);
    assert_int_equal(sent, 3);
    assert_int_equal(read(out[0], buf, 4), 3);
    stream_close(&s);
    t.ops->close(&t);
    for (int i = 0; i < 2; i++) {
        close(in[i]);
        close(out[i]);
    }
    assert_int_equal(open_fds(), before);
}

/* Without standard input or output there is no client, and nothing is left behind. */
static void test_pipe_transport_without_pipes(void **state)
{
    struct transport t = { .ops = &transport_pipe };
    unsigned before = open_fds();

    (void)state;
    for (int missing = 0; missing < 2; missing++) {
        struct standard standard;
        struct stream s;
        int err;

        replace_standard(&standard, STDIN_FILENO, STDOUT_FILENO);
        close(missing);
        err = t.ops->accept(&t, &s, MAX_MESSAGE);
        restore_standard(&standard);
        assert_int_equal(err, -EBADF);
        assert_int_equal(open_fds(), before);
    }
}

/* The socket transport's refusals leave nothing behind either. */
static void test_socket_transport(void **state)
{
    struct transport t = { .ops = &transport_sock }, second = { .ops = &transport_sock };
    char dir[] = "/tmp/vfu-stream-XXXXXX", path[200], longest[200];
    unsigned before = open_fds();
    struct stream s;

    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/socket", dir);
    memset(longest, 'x', sizeof(longest));
    longest[sizeof(longest) - 1] = '\0';
    assert_int_equal(t.ops->listen(&t, longest, true, &silent), -ENAMETOOLONG);
    longest[108] = '\0';
    assert_int_equal(t.ops->listen(&t, longest, true, &silent), -ENAMETOOLONG);
    assert_int_equal(t.ops->listen(&t, dir, true, &silent), -EADDRINUSE);
    assert_int_equal(open_fds(), before);
    assert_int_equal(t.ops->listen(&t, path, true, &silent), 0);
    assert_int_equal(second.ops->listen(&second, path, true, &silent), -EADDRINUSE);
    second.ops->close(&second);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(t.ops->accept(&t, &s, MAX_MESSAGE), -EAGAIN);
    t.ops->close(&t);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(open_fds(), before);
    assert_int_equal(rmdir(dir), 0);
}

#define SOCKET(test) cmocka_unit_test_setup_teardown(test, set_up_socket, tear_down)
#define PIPES(test) { #test " by pipes", test, set_up_pipes, tear_down, NULL }
#define BOTH(test) SOCKET(test), PIPES(test)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(test_pieces),
        BOTH(test_several_at_once),
        BOTH(test_limit),
        BOTH(test_end_behind_every_byte),
        BOTH(test_long_stream),
        BOTH(test_room_for_the_largest),
        BOTH(test_pinned),
        BOTH(test_closed_while_pinned),
        BOTH(test_sending),
        BOTH(test_sending_to_nobody),
        BOTH(test_sending_to_one_who_does_not_read),
        SOCKET(test_descriptors_and_positions),
        SOCKET(test_descriptors_with_a_piece),
        SOCKET(test_descriptors_byte_by_byte),
        SOCKET(test_as_many_descriptors_as_the_kernel_passes),
        SOCKET(test_more_descriptors_than_a_message_has),
        SOCKET(test_descriptors_are_bounded),
        SOCKET(test_descriptors_left_in_the_stream),
        SOCKET(test_out_of_descriptors),
        SOCKET(test_peeking),
        SOCKET(test_sending_descriptors),
        SOCKET(test_reset_by_the_peer),
        cmocka_unit_test(test_pipe_transport),
        cmocka_unit_test(test_pipe_transport_without_pipes),
        cmocka_unit_test(test_socket_transport),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
