/* SPDX-License-Identifier: BSD-3-Clause */
/* Transactions in both directions, against a peer at the other end of a socket pair. */
#include "session/channel.h"
#include "session/session.h"
#include "util/clock.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

struct fixture {
    struct session session;
    struct logger log;
    int peer, twin; /* the client's ends */
    unsigned dispatched;
    int wait_in_dispatch; /* the result of a transaction that dispatch waits for */
    bool transact_in_dispatch;
};

static void init_txn(struct txn *txn, void *reply, size_t size)
{
    *txn = (struct txn){
        .cmd = VFIO_USER_DMA_READ,
        .reply = reply,
        .reply_cap = size,
        .deadline = DEADLINE_NEVER,
    };
}

static int dispatch(void *owner, struct request *req)
{
    struct fixture *f = owner;
    struct vfio_user_dma_region_access reply;
    struct txn txn;

    (void)req;
    f->dispatched++;
    if (f->transact_in_dispatch) {
        f->transact_in_dispatch = false;
        init_txn(&txn, &reply, sizeof(reply));
        assert_int_equal(txn_start(&f->session, &txn), 0);
        f->wait_in_dispatch = txn_wait(&f->session, &txn);
    }
    return 0;
}

static const struct session_ops ops = { .dispatch = dispatch };

/* Returns the client's end. */
static int open_stream(struct stream *stream)
{
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(stream_open(stream, pair[0], pair[0], true, WIRE_MAX_MESSAGE), 0);
    return pair[1];
}

static int setup_session(void **state, bool twin)
{
    static struct fixture fixture;
    const struct wire_features features = { .pasid = true, .pasid_bits = 20 };
    struct stream stream, twin_stream;

    memset(&fixture, 0, sizeof(fixture));
    fixture.peer = open_stream(&stream);
    fixture.twin = twin ? open_stream(&twin_stream) : -1;
    fixture.log = (struct logger){ .ctx = (struct vfu_ctx *)&fixture, .level = LOG_ERR };
    assert_int_equal(session_init(&fixture.session, &ops, &fixture, &fixture.log), 0);
    session_open(&fixture.session, &stream, twin ? &twin_stream : NULL, &features,
                 WIRE_MAX_DATA_XFER);
    *state = &fixture;
    return 0;
}

static int setup(void **state)
{
    return setup_session(state, false);
}

static int setup_with_twin(void **state)
{
    return setup_session(state, true);
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    session_destroy(&f->session);
    close(f->peer);
    if (f->twin != -1) {
        close(f->twin);
    }
    return 0;
}

static void send_message(int fd, uint16_t id, uint16_t cmd, uint32_t flags, uint32_t error,
                         size_t payload)
{
    uint8_t message[64] = { 0 };
    struct vfio_user_header hdr = {
        .msg_id = id,
        .cmd = cmd,
        .msg_size = (uint32_t)(sizeof(hdr) + payload),
        .flags = flags,
        .error_no = error,
    };

    memcpy(message, &hdr, sizeof(hdr));
    memset(message + sizeof(hdr), id, payload);
    assert_int_equal(send(fd, message, hdr.msg_size, 0), hdr.msg_size);
}

static void peer_sends(struct fixture *f, uint16_t id, uint16_t cmd, uint32_t flags, uint32_t error,
                       size_t payload)
{
    send_message(f->peer, id, cmd, flags, error, payload);
}

static void peer_replies(struct fixture *f, uint16_t id)
{
    peer_sends(f, id, VFIO_USER_DMA_READ, VFIO_USER_F_TYPE_REPLY, 0, 16);
}

/* The next message that the session sent. */
static struct vfio_user_header peer_receives(struct fixture *f)
{
    struct vfio_user_header hdr;
    uint8_t rest[64];

    assert_int_equal(recv(f->peer, &hdr, sizeof(hdr), MSG_WAITALL), sizeof(hdr));
    if (hdr.msg_size > sizeof(hdr)) {
        assert_int_equal(recv(f->peer, rest, hdr.msg_size - sizeof(hdr), MSG_WAITALL),
                         hdr.msg_size - sizeof(hdr));
    }
    return hdr;
}

static void test_replies_in_any_order(void **state)
{
    struct fixture *f = *state;
    struct txn txns[3];
    uint8_t replies[3][16];

    for (int i = 0; i < 3; i++) {
        init_txn(&txns[i], replies[i], 16);
        assert_int_equal(txn_start(&f->session, &txns[i]), 0);
    }
    for (int i = 2; i >= 0; i--) {
        peer_replies(f, txns[i].id);
    }
    for (int i = 0; i < 3; i++) {
        assert_int_equal(txn_wait(&f->session, &txns[i]), 0);
        assert_int_equal(replies[i][0], (uint8_t)txns[i].id);
        assert_int_equal(txns[i].reply_len, 16);
    }
}

struct bad_reply {
    uint16_t cmd;
    uint32_t flags, error;
    size_t payload;
    int expected;
};

static void test_bad_replies(void **state)
{
    static const struct bad_reply table[] = {
        { VFIO_USER_DMA_WRITE, VFIO_USER_F_TYPE_REPLY, 0, 16, -EPROTO },
        { VFIO_USER_DMA_READ, VFIO_USER_F_TYPE_REPLY, 0, 0, -EPROTO },
        { VFIO_USER_DMA_READ, VFIO_USER_F_TYPE_REPLY, 0, 15, -EPROTO },
        { VFIO_USER_DMA_READ, VFIO_USER_F_TYPE_REPLY, 0, 17, -EPROTO },
        { VFIO_USER_DMA_READ, VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR, EFAULT, 0, -EFAULT },
        { VFIO_USER_DMA_READ, VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR, 0, 0, -EPROTO },
        { VFIO_USER_DMA_READ, VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR, 4097, 0, -EPROTO },
    };
    struct fixture *f = *state;

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        uint8_t reply[16];
        struct txn txn;

        init_txn(&txn, reply, sizeof(reply));
        assert_int_equal(txn_start(&f->session, &txn), 0);
        peer_sends(f, txn.id, table[i].cmd, table[i].flags, table[i].error, table[i].payload);
        assert_int_equal(txn_wait(&f->session, &txn), table[i].expected);
    }
}

static void test_deadline_and_late_reply(void **state)
{
    struct fixture *f = *state;
    uint8_t reply[16] = { 0 };
    struct txn txn, next;
    uint16_t late;

    init_txn(&txn, reply, sizeof(reply));
    txn.deadline = 1; /* long past */
    assert_int_equal(txn_start(&f->session, &txn), 0);
    assert_int_equal(txn_wait(&f->session, &txn), -ETIMEDOUT);
    late = txn.id;
    init_txn(&next, reply, sizeof(reply));
    assert_int_equal(txn_start(&f->session, &next), 0);
    assert_int_not_equal(next.id, late);
    peer_replies(f, late);
    peer_replies(f, next.id);
    assert_int_equal(txn_wait(&f->session, &next), 0);
    assert_int_equal(reply[0], (uint8_t)next.id);
    assert_int_equal(session_late_replies(&f->session), 1);
}

static void count_done(struct txn *txn)
{
    (*(unsigned *)txn->data)++;
}

static void test_callback_and_cancel(void **state)
{
    struct fixture *f = *state;
    unsigned done[2] = { 0 };
    uint8_t reply[2][16];
    struct txn txns[2];

    for (int i = 0; i < 2; i++) {
        init_txn(&txns[i], reply[i], 16);
        txns[i].done = count_done;
        txns[i].data = &done[i];
        assert_int_equal(txn_start(&f->session, &txns[i]), 0);
    }
    assert_true(txn_cancel(&f->session, &txns[0], -ECANCELED));
    assert_int_equal(done[0], 1);
    assert_int_equal(txns[0].error, -ECANCELED);
    assert_false(txn_cancel(&f->session, &txns[0], -ECANCELED));
    peer_replies(f, txns[0].id);
    peer_replies(f, txns[1].id);
    assert_int_equal(session_run(&f->session, RUN_ONCE), 0);
    assert_int_equal(session_run(&f->session, RUN_ONCE), 0);
    assert_int_equal(done[0], 1);
    assert_int_equal(done[1], 1);
    assert_int_equal(txns[1].error, 0);
}

/* Commands that come while a callback waits for its reply are served after it, in order. */
static void test_commands_before_the_reply(void **state)
{
    struct fixture *f = *state;
    uint16_t asked = 0;

    f->transact_in_dispatch = true;
    f->wait_in_dispatch = -1;
    for (uint16_t id = 100; id < 103; id++) {
        peer_sends(f, id, VFIO_USER_DEVICE_RESET, 0, 0, 0);
    }
    peer_replies(f, 1); /* the session's first id */
    assert_int_equal(session_run(&f->session, RUN_ONCE), 3);
    assert_int_equal(f->wait_in_dispatch, 0);
    assert_int_equal(f->dispatched, 3);
    asked = peer_receives(f).msg_id;
    assert_int_equal(asked, 1);
    for (uint16_t id = 100; id < 103; id++) {
        assert_int_equal(peer_receives(f).msg_id, id);
    }
}

static void test_hold_and_release(void **state)
{
    struct fixture *f = *state;
    uint8_t reply[16];
    struct txn txn;

    session_hold(&f->session);
    peer_sends(f, 7, VFIO_USER_DEVICE_RESET, 0, 0, 0);
    assert_int_equal(session_run(&f->session, RUN_ONCE), -EBUSY);
    assert_int_equal(f->dispatched, 0);
    init_txn(&txn, reply, sizeof(reply));
    assert_int_equal(txn_start(&f->session, &txn), 0);
    peer_receives(f);
    peer_sends(f, 8, VFIO_USER_DEVICE_RESET, 0, 0, 0);
    peer_replies(f, txn.id);
    assert_int_equal(txn_wait(&f->session, &txn), 0);
    session_release(&f->session, NULL);
    assert_int_equal(session_run(&f->session, RUN_BUFFERED), 2);
    assert_int_equal(peer_receives(f).msg_id, 7);
    assert_int_equal(peer_receives(f).msg_id, 8);
}

static void test_peer_gone_with_everything_pending(void **state)
{
    struct fixture *f = *state;
    unsigned done = 0;
    uint8_t reply[16];
    struct txn waited, called;

    init_txn(&waited, reply, sizeof(reply));
    init_txn(&called, reply, sizeof(reply));
    called.done = count_done;
    called.data = &done;
    assert_int_equal(txn_start(&f->session, &waited), 0);
    assert_int_equal(txn_start(&f->session, &called), 0);
    shutdown(f->peer, SHUT_RDWR);
    assert_int_equal(txn_wait(&f->session, &waited), -ENOTCONN);
    assert_int_equal(session_run(&f->session, RUN_ONCE), -ENOTCONN);
    assert_int_equal(done, 1);
    assert_int_equal(called.error, -ENOTCONN);
    assert_int_equal(txn_start(&f->session, &waited), -ENOTCONN);
}

static void test_broken_framing_ends_the_connection(void **state)
{
    static const uint32_t sizes[] = { 0, 15, WIRE_MAX_MESSAGE + 1, UINT32_MAX };

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct vfio_user_header hdr = {
            .msg_id = 5,
            .cmd = VFIO_USER_REGION_READ,
            .msg_size = sizes[i],
        };
        struct fixture *f = *state;

        assert_int_equal(send(f->peer, &hdr, sizeof(hdr), 0), sizeof(hdr));
        assert_int_equal(session_run(&f->session, RUN_ONCE), 0);
        assert_int_equal(session_run(&f->session, RUN_ONCE), -ENOTCONN);
        hdr = peer_receives(f);
        assert_int_equal(hdr.error_no, EINVAL);
        assert_int_equal(hdr.msg_id, 5);
        teardown(state);
        setup(state);
    }
}

/* A client that does not read */

#define LARGE (4u << 20)

struct large {
    struct fixture *fixture;
    struct txn txn;
    struct iovec out;
    uint8_t reply[16];
    uint8_t data[LARGE];
    unsigned done;
    int result;
};

/* A command that does not fit into the socket. */
static void init_large(struct large *large, struct fixture *f)
{
    large->fixture = f;
    large->done = 0;
    init_txn(&large->txn, large->reply, sizeof(large->reply));
    large->out = (struct iovec){ .iov_base = large->data, .iov_len = LARGE };
    large->txn.out = &large->out;
    large->txn.nr_out = 1;
}

static void *start_large(void *arg)
{
    struct large *large = arg;

    large->result = txn_start(&large->fixture->session, &large->txn);
    return NULL;
}

static void wait_readable(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };

    assert_int_equal(poll(&pfd, 1, -1), 1);
}

static void drain(int fd, size_t left)
{
    static uint8_t sink[65536];

    while (left > 0) {
        ssize_t n = recv(fd, sink, left < sizeof(sink) ? left : sizeof(sink), 0);

        assert_true(n > 0);
        left -= (size_t)n;
    }
}

/* The refusal of a bad frame cannot be sent in the middle of another message. */
static void test_bad_frame_during_a_send(void **state)
{
    static struct large large;
    struct fixture *f = *state;
    struct vfio_user_header hdr = { .msg_id = 5, .msg_size = 3 };

    init_large(&large, f);
    assert_int_equal(send(f->peer, &hdr, sizeof(hdr), 0), sizeof(hdr));
    assert_int_equal(txn_start(&f->session, &large.txn), 0);
    assert_int_equal(txn_wait(&f->session, &large.txn), -ENOTCONN);
    assert_int_equal(session_error(&f->session), -EPROTO);
}

static void count_large(struct txn *txn)
{
    ((struct large *)((char *)txn - offsetof(struct large, txn)))->done++;
}

/* Deadlines that pass while the command is being sent count when it has left. */
static void test_deadline_passes_during_a_send(void **state)
{
    static struct large large;
    struct fixture *f = *state;
    pthread_t thread;

    init_large(&large, f);
    large.txn.done = count_large;
    large.txn.deadline = 1; /* long past */
    assert_int_equal(pthread_create(&thread, NULL, start_large, &large), 0);
    wait_readable(f->peer);
    assert_int_equal(session_run(&f->session, RUN_ONCE), 0);
    assert_int_equal(large.done, 0);
    drain(f->peer, sizeof(struct vfio_user_header) + LARGE);
    pthread_join(thread, NULL);
    assert_int_equal(session_run(&f->session, RUN_ONCE), 0);
    assert_int_equal(large.done, 1);
    assert_int_equal(large.txn.error, -ETIMEDOUT);
}

/* A client that answers twice, or floods */

static void log_on_twin(struct vfu_ctx *ctx, int level, const char *line)
{
    struct fixture *f = (struct fixture *)ctx;

    (void)level;
    (void)line;
    f->log.fn = NULL;
    send_message(f->twin, 1, VFIO_USER_DMA_READ, VFIO_USER_F_TYPE_REPLY, 0, 16);
    pthread_mutex_lock(&f->session.lock);
    assert_int_equal(channel_pump(&f->session, &f->session.twin), 1);
    pthread_mutex_unlock(&f->session.lock);
}

/* The second reply arrives on the twin, while the first is being read: the bad one, which logs. */
static void test_two_replies_at_once(void **state)
{
    struct fixture *f = *state;
    uint8_t reply[16] = { 0 };
    struct txn txn;

    init_txn(&txn, reply, sizeof(reply));
    assert_int_equal(txn_start(&f->session, &txn), 0);
    f->log.fn = log_on_twin;
    peer_sends(f, txn.id, VFIO_USER_DMA_READ, VFIO_USER_F_TYPE_REPLY, 0, 17);
    assert_int_equal(session_run(&f->session, RUN_ONCE), 0);
    assert_int_equal(txn_wait(&f->session, &txn), -EPROTO);
    assert_int_equal(f->session.txns.nr_pending, 0);
    assert_int_equal(reply[0], 0);
}

/* Each reply to nothing is logged, and that sends the next one: a client that never pauses. */
static void log_and_send(struct vfu_ctx *ctx, int level, const char *line)
{
    struct fixture *f = (struct fixture *)ctx;

    (void)level;
    (void)line;
    if (++f->dispatched < 1000) {
        send_message(f->twin != -1 ? f->twin : f->peer, 9, VFIO_USER_DMA_READ,
                     VFIO_USER_F_TYPE_REPLY, 0, 16);
    }
}

/* Most of it is left in the socket. */
static void flood(struct fixture *f, int expected)
{
    f->log.fn = log_and_send;
    log_and_send((struct vfu_ctx *)f, 0, NULL);
    assert_int_equal(session_run(&f->session, RUN_ONCE), expected);
    assert_in_range(f->dispatched, 1, 3);
    f->log.fn = NULL;
}

static void test_flood_on_the_twin(void **state)
{
    flood(*state, 0);
}

static void test_flood_while_held(void **state)
{
    struct fixture *f = *state;

    session_hold(&f->session);
    flood(f, -EBUSY);
}

/* Clients come and go under a thread that never stops asking */

struct asker {
    struct fixture *fixture;
    _Atomic bool stop;
    _Atomic unsigned asked;
};

static void *ask_on_and_on(void *arg)
{
    struct asker *asker = arg;
    uint8_t reply[16];
    struct txn txn;

    while (!asker->stop) {
        init_txn(&txn, reply, sizeof(reply));
        if (txn_start(&asker->fixture->session, &txn) == 0) {
            asker->asked++;
            sched_yield();
            assert_int_equal(txn_wait(&asker->fixture->session, &txn), -ENOTCONN);
        }
    }
    return NULL;
}

static void test_sessions_under_a_thread(void **state)
{
    struct fixture *f = *state;
    struct asker asker = { .fixture = f };
    const struct wire_features features = { 0 };
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, ask_on_and_on, &asker), 0);
    for (unsigned i = 1; i <= 100; i++) {
        struct stream stream, twin;

        while (asker.asked < i) {
            sched_yield();
        }
        session_close(&f->session);
        close(f->peer);
        close(f->twin);
        f->peer = open_stream(&stream);
        f->twin = open_stream(&twin);
        session_open(&f->session, &stream, &twin, &features, WIRE_MAX_DATA_XFER);
    }
    asker.stop = true;
    session_close(&f->session);
    pthread_join(thread, NULL);
}

/* Put off and let through */

static struct request *put_off;

static int dispatch_later(void *owner, struct request *req)
{
    struct fixture *f = owner;

    assert_true(req->tagged);
    assert_int_equal(req->pasid, 0x77777);
    assert_int_equal(req->len, 32);
    assert_int_equal(req->payload[0], 0x77);
    if (f->dispatched++ > 0) {
        return 0;
    }
    put_off = request_detach(req);
    session_hold(&f->session);
    return REQUEST_DEFERRED;
}

static void test_prefix_of_a_request_put_off(void **state)
{
    static const struct session_ops later = { .dispatch = dispatch_later };
    uint8_t message[sizeof(struct vfio_user_header) + 40];
    struct fixture *f = *state;
    struct vfio_user_header hdr = {
        .msg_id = 3,
        .cmd = VFIO_USER_DMA_MAP,
        .msg_size = sizeof(message),
        .flags = VFIO_USER_F_PASID,
    };
    const struct vfio_user_pasid_prefix prefix = { .pasid = 0x77777 };

    memset(message, 0x77, sizeof(message));
    memcpy(message, &hdr, sizeof(hdr));
    memcpy(message + sizeof(hdr), &prefix, sizeof(prefix));
    f->session.ops = &later;
    assert_int_equal(send(f->peer, message, sizeof(message), 0), sizeof(message));
    assert_int_equal(session_run(&f->session, RUN_ONCE), -EBUSY);
    session_release(&f->session, put_off);
    assert_int_equal(session_run(&f->session, RUN_BUFFERED), 1);
    assert_int_equal(f->dispatched, 2);
    hdr = peer_receives(f);
    assert_int_equal(hdr.error_no, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_replies_in_any_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_replies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deadline_and_late_reply, setup, teardown),
        cmocka_unit_test_setup_teardown(test_callback_and_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_commands_before_the_reply, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hold_and_release, setup, teardown),
        cmocka_unit_test_setup_teardown(test_peer_gone_with_everything_pending, setup, teardown),
        cmocka_unit_test_setup_teardown(test_broken_framing_ends_the_connection, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_frame_during_a_send, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deadline_passes_during_a_send, setup, teardown),
        cmocka_unit_test_setup_teardown(test_two_replies_at_once, setup_with_twin, teardown),
        cmocka_unit_test_setup_teardown(test_flood_on_the_twin, setup_with_twin, teardown),
        cmocka_unit_test_setup_teardown(test_flood_while_held, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sessions_under_a_thread, setup_with_twin, teardown),
        cmocka_unit_test_setup_teardown(test_prefix_of_a_request_put_off, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
