/* SPDX-License-Identifier: BSD-3-Clause */
#include "fake_server.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* Whatever does not come in this time does not come. */
#define PATIENCE_S 20

static const char plain_version[] = "{\"capabilities\": {\"max_msg_fds\": 8}}";

/* The wire */

static bool receive(struct fake_server *s, void *data, size_t len, size_t *nr_fds)
{
    union {
        char bytes[CMSG_SPACE(16 * sizeof(int))];
        struct cmsghdr align;
    } control;

    for (size_t done = 0; done < len;) {
        struct iovec iov = { (char *)data + done, len - done };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
                              .msg_controllen = sizeof(control.bytes) };
        ssize_t n = recvmsg(s->fd, &msg, MSG_CMSG_CLOEXEC);

        if (n <= 0) {
            return false;
        }
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c != NULL; c = CMSG_NXTHDR(&msg, c)) {
            size_t nr = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

            for (size_t i = 0; i < nr; i++) {
                int fd;

                memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
                close(fd);
                (*nr_fds)++;
            }
        }
        done += (size_t)n;
    }
    return true;
}

/* Lock held: messages are not mixed. */
static void transmit(struct fake_server *s, struct vfio_user_header hdr, const void *a, size_t na,
                     const void *b, size_t nb)
{
    struct iovec iov[] = { { &hdr, sizeof(hdr) }, { (void *)a, na }, { (void *)b, nb } };
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 3 };

    hdr.msg_size = (uint32_t)(sizeof(hdr) + na + nb);
    sendmsg(s->fd, &msg, MSG_NOSIGNAL);
}

/* Lock held. */
static void answer(struct fake_server *s, struct record *record)
{
    int error = record->hdr.cmd == s->refused_cmd ? s->refused_error : 0;
    const struct vfio_user_header hdr = {
        .msg_id = record->hdr.msg_id,
        .cmd = record->hdr.cmd,
        .flags = VFIO_USER_F_TYPE_REPLY | (error != 0 ? VFIO_USER_F_ERROR : 0),
        .error_no = (uint32_t)error,
    };
    size_t len = record->hdr.cmd == VFIO_USER_DMA_UNMAP && error == 0 ? record->len : 0;

    if (record->hdr.flags & VFIO_USER_F_PASID && len > 0) {
        len -= sizeof(struct vfio_user_pasid_prefix);
        transmit(s, hdr, record->payload + sizeof(struct vfio_user_pasid_prefix), len, NULL, 0);
    } else {
        transmit(s, hdr, record->payload, len, NULL, 0);
    }
    record->answered = true;
}

static void note_command(struct fake_server *s, const struct vfio_user_header *hdr,
                         const uint8_t *payload, size_t len, size_t nr_fds)
{
    struct record *record;

    pthread_mutex_lock(&s->lock);
    if (s->nr_records < FAKE_MAX_RECORDS) {
        record = &s->records[s->nr_records++];
        *record = (struct record){ .hdr = *hdr, .len = len, .nr_fds = nr_fds };
        memcpy(record->payload, payload, len < sizeof(record->payload) ? len
                                                                       : sizeof(record->payload));
        if (hdr->cmd != s->held_cmd) {
            answer(s, record);
        }
    }
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void note_reply(struct fake_server *s, const struct vfio_user_header *hdr,
                       const uint8_t *payload, size_t len)
{
    struct fake_reply *reply = &s->replies[hdr->msg_id % FAKE_MAX_REPLIES];

    pthread_mutex_lock(&s->lock);
    reply->there = true;
    reply->hdr = *hdr;
    reply->len = len;
    memcpy(reply->payload, payload, len);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static bool negotiate(struct fake_server *s)
{
    const struct vfio_user_version version = { .major = 0, .minor = 1 };
    struct vfio_user_header hdr;
    uint8_t payload[FAKE_MAX_PAYLOAD];
    size_t nr_fds = 0;

    if (!receive(s, &hdr, sizeof(hdr), &nr_fds) || hdr.msg_size > sizeof(payload) ||
        !receive(s, payload, hdr.msg_size - sizeof(hdr), &nr_fds)) {
        return false;
    }
    hdr.flags = VFIO_USER_F_TYPE_REPLY;
    transmit(s, hdr, &version, sizeof(version), s->version, strlen(s->version) + 1);
    return true;
}

static void serve_connection(struct fake_server *s)
{
    struct vfio_user_header hdr;
    uint8_t payload[FAKE_MAX_PAYLOAD];

    for (;;) {
        size_t nr_fds = 0, len;

        if (!receive(s, &hdr, sizeof(hdr), &nr_fds)) {
            return;
        }
        len = hdr.msg_size - sizeof(hdr);
        if (len > sizeof(payload) || !receive(s, payload, len, &nr_fds)) {
            return;
        }
        if ((hdr.flags & VFIO_USER_F_TYPE_MASK) == VFIO_USER_F_TYPE_REPLY) {
            note_reply(s, &hdr, payload, len);
        } else {
            note_command(s, &hdr, payload, len, nr_fds);
        }
    }
}

/* One connection after the other, until nobody listens any more. */
static void *serve(void *arg)
{
    struct fake_server *s = arg;
    int fd;

    while ((fd = accept(s->listener, NULL, NULL)) != -1) {
        pthread_mutex_lock(&s->lock);
        s->fd = fd;
        pthread_mutex_unlock(&s->lock);
        if (negotiate(s)) {
            serve_connection(s);
        }
        pthread_mutex_lock(&s->lock);
        s->fd = -1;
        close(fd);
        pthread_mutex_unlock(&s->lock);
    }
    return NULL;
}

void fake_server_start(struct fake_server *s, const char *version)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    pthread_condattr_t attr;

    memset(s, 0, sizeof(*s));
    s->version = version != NULL ? version : plain_version;
    s->fd = -1;
    strcpy(s->dir, "/tmp/fake-server-XXXXXX");
    assert_non_null(mkdtemp(s->dir));
    snprintf(s->path, sizeof(s->path), "%s/socket", s->dir);
    memcpy(addr.sun_path, s->path, sizeof(s->path));
    s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(listen(s->listener, 1), 0);
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

void fake_server_hang_up(struct fake_server *s)
{
    pthread_mutex_lock(&s->lock);
    shutdown(s->fd, SHUT_RDWR);
    pthread_mutex_unlock(&s->lock);
}

void fake_server_stop(struct fake_server *s)
{
    shutdown(s->listener, SHUT_RDWR);
    pthread_join(s->thread, NULL);
    close(s->listener);
    unlink(s->path);
    rmdir(s->dir);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
}

/* Lock held. */
static void wait_changed(struct fake_server *s)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_sec += PATIENCE_S;
    if (pthread_cond_timedwait(&s->changed, &s->lock, &ts) == ETIMEDOUT) {
        fail_msg("the client does not do what was waited for");
    }
}

/* Commands to the client */

uint16_t fake_server_send(struct fake_server *s, uint16_t cmd, uint32_t flags,
                          const struct vfio_user_pasid_prefix *prefix, const void *payload,
                          size_t len)
{
    struct vfio_user_header hdr = {
        .cmd = cmd,
        .flags = flags | (prefix != NULL ? VFIO_USER_F_PASID : 0),
    };

    pthread_mutex_lock(&s->lock);
    hdr.msg_id = s->next_id++;
    s->replies[hdr.msg_id % FAKE_MAX_REPLIES].there = false;
    transmit(s, hdr, prefix, prefix != NULL ? sizeof(*prefix) : 0, payload, len);
    pthread_mutex_unlock(&s->lock);
    return hdr.msg_id;
}

int fake_server_reply(struct fake_server *s, uint16_t id, void *payload, size_t size, size_t *len)
{
    struct fake_reply *reply = &s->replies[id % FAKE_MAX_REPLIES];
    int error;

    pthread_mutex_lock(&s->lock);
    while (!reply->there || reply->hdr.msg_id != id) {
        wait_changed(s);
    }
    error = reply->hdr.flags & VFIO_USER_F_ERROR ? (int)reply->hdr.error_no : 0;
    if (error == 0 && payload != NULL) {
        memcpy(payload, reply->payload, reply->len < size ? reply->len : size);
    }
    if (len != NULL) {
        *len = reply->len;
    }
    pthread_mutex_unlock(&s->lock);
    return error;
}

int fake_server_ask(struct fake_server *s, uint16_t cmd, uint32_t flags,
                    const struct vfio_user_pasid_prefix *prefix, const void *request, size_t len,
                    void *reply, size_t size, size_t *reply_len)
{
    return fake_server_reply(s, fake_server_send(s, cmd, flags, prefix, request, len), reply, size,
                             reply_len);
}

/* Commands of the client */

bool fake_server_release_one(struct fake_server *s)
{
    bool found = false;

    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < s->nr_records && !found; i++) {
        if (!s->records[i].answered) {
            answer(s, &s->records[i]);
            found = true;
        }
    }
    pthread_mutex_unlock(&s->lock);
    return found;
}

void fake_server_hold(struct fake_server *s, uint16_t cmd)
{
    pthread_mutex_lock(&s->lock);
    s->held_cmd = cmd;
    pthread_mutex_unlock(&s->lock);
    while (cmd == 0 && fake_server_release_one(s)) {
        continue;
    }
}

void fake_server_refuse(struct fake_server *s, uint16_t cmd, int error)
{
    pthread_mutex_lock(&s->lock);
    s->refused_cmd = cmd;
    s->refused_error = error;
    pthread_mutex_unlock(&s->lock);
}

/* Lock held. */
static size_t count(const struct fake_server *s, uint16_t cmd, bool outstanding)
{
    size_t n = 0;

    for (size_t i = 0; i < s->nr_records; i++) {
        n += s->records[i].hdr.cmd == cmd && !(outstanding && s->records[i].answered);
    }
    return n;
}

size_t fake_server_count(struct fake_server *s, uint16_t cmd)
{
    size_t n;

    pthread_mutex_lock(&s->lock);
    n = count(s, cmd, false);
    pthread_mutex_unlock(&s->lock);
    return n;
}

size_t fake_server_outstanding(struct fake_server *s, uint16_t cmd)
{
    size_t n;

    pthread_mutex_lock(&s->lock);
    n = count(s, cmd, true);
    pthread_mutex_unlock(&s->lock);
    return n;
}

void fake_server_wait(struct fake_server *s, uint16_t cmd, size_t n)
{
    pthread_mutex_lock(&s->lock);
    while (count(s, cmd, false) < n) {
        wait_changed(s);
    }
    pthread_mutex_unlock(&s->lock);
}

struct record fake_server_record(struct fake_server *s, uint16_t cmd, size_t nth)
{
    struct record found = { .len = 0 };
    bool there = false;

    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < s->nr_records && !there; i++) {
        if (s->records[i].hdr.cmd == cmd && nth-- == 0) {
            found = s->records[i];
            there = true;
        }
    }
    pthread_mutex_unlock(&s->lock);
    assert_true(there);
    return found;
}

size_t fake_server_take(struct fake_server *s, struct record *records)
{
    size_t n;

    pthread_mutex_lock(&s->lock);
    n = s->nr_records;
    memcpy(records, s->records, n * sizeof(*records));
    s->nr_records = 0;
    pthread_mutex_unlock(&s->lock);
    return n;
}

void fake_server_clear(struct fake_server *s)
{
    pthread_mutex_lock(&s->lock);
    s->nr_records = 0;
    pthread_mutex_unlock(&s->lock);
}
