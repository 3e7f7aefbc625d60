/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands and their replies, in both directions. */
#include "client.h"

#include "util/peer_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_ERRNO 4096

static struct call_list *bucket(struct vfuc *client, uint16_t id)
{
    return &client->calls[id % CLIENT_BUCKETS];
}

static struct call *find_call(struct vfuc *client, uint16_t id)
{
    struct call *call;

    LIST_FOREACH (call, bucket(client, id), link) {
        if (call->id == id) {
            return call;
        }
    }
    return NULL;
}

/*
 * Lock held. Returns the call if nobody waits for it: the caller completes it without the lock.
 * One that somebody waits for is gone as soon as the lock is dropped: NULL.
 */
static struct call *end_call(struct vfuc *client, struct call *call, int error)
{
    LIST_REMOVE(call, link);
    client->nr_calls--;
    call->error = error;
    call->finished = true;
    if (call->done != NULL) {
        TAILQ_REMOVE(&client->unattended, call, order);
        return call;
    }
    pthread_cond_broadcast(&client->cond);
    return NULL;
}

static void complete(struct call *call, const uint8_t *payload, size_t len)
{
    if (call == NULL) {
        return;
    }
    if (call->error == 0 && (len < call->skip || (call->expect != 0 && len != call->expect))) {
        call->error = EPROTO;
    }
    if (call->error != 0) {
        call->done(call->pvt, call->error, NULL, 0);
    } else {
        call->done(call->pvt, 0, payload + call->skip, len - call->skip);
    }
    free(call);
}

static int broken_error(int err)
{
    return err == -ETIMEDOUT ? ETIMEDOUT : ENOTCONN;
}

/* Calls that nobody waits for are left to the receiver, whose thread their callbacks run on. */
void client_break(struct vfuc *client, uint64_t epoch, int err)
{
    struct call *call, *next;

    pthread_mutex_lock(&client->lock);
    if (client->epoch == epoch && client->state != CLIENT_LOST) {
        client->state = CLIENT_LOST;
        shutdown(client->fd, SHUT_RDWR);
        for (int i = 0; i < CLIENT_BUCKETS; i++) {
            for (call = LIST_FIRST(&client->calls[i]); call != NULL; call = next) {
                next = LIST_NEXT(call, link);
                if (call->done == NULL) {
                    end_call(client, call, broken_error(err));
                }
            }
        }
    }
    pthread_mutex_unlock(&client->lock);
}

/* Starting */

/* Lock held. */
static bool may_send(struct vfuc *client)
{
    return client->state == CLIENT_CONNECTED ||
           (client->state == CLIENT_RESTORING && pthread_equal(client->restorer, pthread_self()));
}

int client_epoch(struct vfuc *client, uint64_t *epoch)
{
    int err;

    pthread_mutex_lock(&client->lock);
    err = may_send(client) ? 0 : -ENOTCONN;
    *epoch = client->epoch;
    pthread_mutex_unlock(&client->lock);
    return err;
}

/* The id and the connection are for the caller: the call may be over when this returns. */
static int begin(struct vfuc *client, struct call *call, uint16_t *id, uint64_t *epoch)
{
    int err = 0;

    pthread_mutex_lock(&client->lock);
    if (!may_send(client)) {
        err = -ENOTCONN;
    } else if (client->nr_calls == CLIENT_MAX_CALLS) {
        err = -EAGAIN;
    } else {
        do {
            client->last_id++;
        } while (find_call(client, client->last_id) != NULL);
        call->id = client->last_id;
        LIST_INSERT_HEAD(bucket(client, call->id), call, link);
        client->nr_calls++;
        if (call->done != NULL) {
            call->deadline = client_now_ms() + client->options.timeout_ms;
            TAILQ_INSERT_TAIL(&client->unattended, call, order);
        }
        *id = call->id;
        *epoch = client->epoch;
    }
    pthread_mutex_unlock(&client->lock);
    return err;
}

static void deadline(struct timespec *ts, uint32_t ms)
{
    clock_gettime(CLOCK_MONOTONIC, ts);
    ts->tv_sec += ms / 1000;
    ts->tv_nsec += (long)(ms % 1000) * 1000000;
    if (ts->tv_nsec >= 1000000000) {
        ts->tv_sec++;
        ts->tv_nsec -= 1000000000;
    }
}

/* A server that misses the deadline has lost our trust: what it says later could be anything. */
static void wait_for(struct vfuc *client, struct call *call, uint64_t epoch)
{
    struct timespec ts;
    bool late = false;

    deadline(&ts, client->options.timeout_ms);
    pthread_mutex_lock(&client->lock);
    while (!call->finished && !late) {
        late = pthread_cond_timedwait(&client->cond, &client->lock, &ts) == ETIMEDOUT;
    }
    late = !call->finished;
    if (late) {
        end_call(client, call, ETIMEDOUT);
    }
    pthread_mutex_unlock(&client->lock);
    if (late) {
        client_log(client, "no reply to command %u in %u ms: connection ended", call->cmd,
                   client->options.timeout_ms);
        client_break(client, epoch, -ENOTCONN);
    }
}

/* Takes back a call whose message was not sent. */
static void abandon(struct vfuc *client, struct call *call)
{
    pthread_mutex_lock(&client->lock);
    if (!call->finished) {
        end_call(client, call, 0);
    }
    pthread_mutex_unlock(&client->lock);
}

/* A server may answer what it has not got yet: ids can be guessed. */
static void drop_fds(struct call *call)
{
    while (call->nr_fds > 0) {
        peer_file_close(call->fds[--call->nr_fds]);
    }
}

ssize_t client_call(struct vfuc *client, const struct client_command *command)
{
    struct call call = {
        .cmd = command->cmd,
        .in = command->in,
        .nr_in = command->nr_in,
        .fds = command->reply_fds,
        .max_fds = command->max_reply_fds,
    };
    struct vfio_user_header hdr = { .cmd = command->cmd, .flags = command->flags };
    uint64_t epoch;
    uint16_t id;
    int err;

    if (client_on_receiver(client)) {
        return -EDEADLK;
    }
    err = begin(client, &call, &id, &epoch);
    if (err < 0) {
        return err;
    }
    hdr.msg_id = id;
    err = client_send(client, epoch, &hdr, command->out, command->nr_out, command->fds,
                      command->nr_fds);
    if (err < 0) {
        abandon(client, &call);
        drop_fds(&call);
        return err;
    }
    wait_for(client, &call, epoch);
    if (command->nr_reply_fds != NULL) {
        *command->nr_reply_fds = call.nr_fds;
    }
    return call.error != 0 ? -call.error : (ssize_t)call.reply_len;
}

static bool too_large(const struct iovec *iov, size_t nr_iov)
{
    size_t left = CLIENT_MAX_MESSAGE - sizeof(struct vfio_user_header);

    for (size_t i = 0; i < nr_iov; i++) {
        if (iov[i].iov_len > left) {
            return true;
        }
        left -= iov[i].iov_len;
    }
    return false;
}

int client_start(struct vfuc *client, const struct client_start *start)
{
    struct vfio_user_header hdr = { .cmd = start->cmd, .flags = start->flags };
    struct call *call;
    uint64_t epoch;
    uint16_t id;
    int err;

    if (start->done == NULL || too_large(start->out, start->nr_out)) {
        return start->done == NULL ? -EINVAL : -EMSGSIZE;
    }
    call = calloc(1, sizeof(*call));
    if (call == NULL) {
        return -ENOMEM;
    }
    call->cmd = start->cmd;
    call->done = start->done;
    call->pvt = start->pvt;
    call->skip = start->skip;
    call->expect = start->expect;
    err = begin(client, call, &id, &epoch);
    if (err < 0) {
        free(call);
        return err;
    }
    hdr.msg_id = id;
    /* From here on the call is the receiver's, which ends it with the connection. */
    err = client_send(client, epoch, &hdr, start->out, start->nr_out, NULL, 0);
    if (err < 0) {
        client_break(client, epoch, err);
    }
    return 0;
}

int client_post(struct vfuc *client, uint16_t cmd, const struct iovec *iov, size_t nr_iov)
{
    const struct vfio_user_header hdr = { .cmd = cmd, .flags = VFIO_USER_F_NO_REPLY };
    uint64_t epoch;
    int err = client_epoch(client, &epoch);

    return err < 0 ? err : client_send(client, epoch, &hdr, iov, nr_iov, NULL, 0);
}

#define SPACE_FLAGS (VFIO_USER_F_PASID | VFIO_USER_F_TRANSLATED)

ssize_t vfuc_command(vfuc_t *client, uint16_t cmd, uint32_t flags, const void *request,
                     size_t request_size, void *reply, size_t reply_size)
{
    const struct iovec out = { (void *)request, request_size };
    const struct iovec in = { reply, reply_size };
    const struct client_command command = {
        .cmd = cmd,
        .flags = flags & SPACE_FLAGS,
        .out = &out,
        .nr_out = request_size > 0,
        .in = &in,
        .nr_in = reply_size > 0,
    };

    return client_result(client_call(client, &command));
}

int vfuc_command_start(vfuc_t *client, uint16_t cmd, uint32_t flags, const void *request,
                       size_t request_size, vfuc_done_t *done, void *pvt)
{
    const struct iovec out = { (void *)request, request_size };
    const struct client_start start = {
        .cmd = cmd,
        .flags = flags & SPACE_FLAGS,
        .out = &out,
        .nr_out = request_size > 0,
        .done = done,
        .pvt = pvt,
    };

    return (int)client_result(client_start(client, &start));
}

/* Commands of the server, which are answered once and on the connection they came by. */

static uint64_t *asked_word(struct vfuc *client, uint16_t id, uint64_t *bit)
{
    *bit = 1ull << id % 64;
    return &client->asked[id / 64];
}

/* False: that id is in use. */
static bool note_asked(struct vfuc *client, uint16_t id)
{
    uint64_t bit, *word;
    bool known;

    pthread_mutex_lock(&client->lock);
    word = asked_word(client, id, &bit);
    known = (*word & bit) != 0;
    *word |= bit;
    pthread_mutex_unlock(&client->lock);
    return !known;
}

static int take_asked(struct vfuc *client, uint16_t id, uint64_t *epoch)
{
    uint64_t bit, *word;
    int err = 0;

    pthread_mutex_lock(&client->lock);
    word = asked_word(client, id, &bit);
    *epoch = client->epoch;
    if (client->state == CLIENT_LOST) {
        err = -ENOTCONN;
    } else if ((*word & bit) == 0) {
        err = -ENOENT;
    }
    *word &= ~bit;
    pthread_mutex_unlock(&client->lock);
    return err;
}

int client_answer(struct vfuc *client, const struct vfio_user_header *hdr, int error,
                  const struct iovec *iov, size_t nr_iov)
{
    const struct vfio_user_header out = {
        .msg_id = hdr->msg_id,
        .cmd = hdr->cmd,
        .flags = VFIO_USER_F_TYPE_REPLY | (error != 0 ? VFIO_USER_F_ERROR : 0),
        .error_no = (uint32_t)error,
    };
    uint64_t epoch;
    int err;

    if (hdr->flags & VFIO_USER_F_NO_REPLY) {
        return 0;
    }
    err = take_asked(client, hdr->msg_id, &epoch);
    return err < 0 ? err : client_send(client, epoch, &out, iov, error == 0 ? nr_iov : 0, NULL, 0);
}

int vfuc_reply(vfuc_t *client, uint16_t id, uint16_t cmd, int error, const void *payload,
               size_t len)
{
    const struct iovec out = { (void *)payload, len };
    const struct vfio_user_header hdr = { .msg_id = id, .cmd = cmd };

    if (error < 0 || error > MAX_ERRNO) {
        return (int)client_result(-EINVAL);
    }
    return (int)client_result(client_answer(client, &hdr, error, &out, len > 0));
}

/* The receiver */

/* The end of a connection is not for the server to claim: callers take it to have let go of all. */
static int reply_error(const struct vfio_user_header *hdr)
{
    if (!(hdr->flags & VFIO_USER_F_ERROR)) {
        return 0;
    }
    if (hdr->error_no == ENOTCONN || hdr->error_no == ETIMEDOUT) {
        return EIO;
    }
    return hdr->error_no == 0 || hdr->error_no > MAX_ERRNO ? EPROTO : (int)hdr->error_no;
}

static void scatter(const struct iovec *iov, size_t nr_iov, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < nr_iov && len > 0; i++) {
        size_t n = MIN(len, iov[i].iov_len);

        memcpy(iov[i].iov_base, data, n);
        data += n;
        len -= n;
    }
}

static void hand_over_fds(struct call *call, struct inbox *inbox)
{
    while (call->nr_fds < call->max_fds && call->nr_fds < inbox->nr_fds) {
        call->fds[call->nr_fds] = inbox->fds[call->nr_fds];
        inbox->fds[call->nr_fds++] = -1;
    }
}

static void handle_reply(struct vfuc *client, const struct vfio_user_header *hdr,
                         const uint8_t *payload, size_t len, struct inbox *inbox)
{
    struct call *call;
    int error = reply_error(hdr);

    pthread_mutex_lock(&client->lock);
    call = find_call(client, hdr->msg_id);
    if (call == NULL) {
        pthread_mutex_unlock(&client->lock);
        client_log(client, "reply %u to command %u that was not sent: dropped", hdr->msg_id,
                   hdr->cmd);
        return;
    }
    if (call->cmd != hdr->cmd) {
        error = EPROTO;
    }
    if (error == 0) {
        call->reply_len = len;
        scatter(call->in, call->nr_in, payload, len);
        hand_over_fds(call, inbox);
    }
    call = end_call(client, call, error);
    pthread_mutex_unlock(&client->lock);
    complete(call, payload, len);
}

static int handle_command(struct vfuc *client, const struct vfio_user_header *hdr,
                          uint8_t *payload, size_t len)
{
    const vfuc_options_t *options = &client->options;
    bool plain = !(hdr->flags & SPACE_FLAGS);

    if (!(hdr->flags & VFIO_USER_F_NO_REPLY) && !note_asked(client, hdr->msg_id)) {
        client_log(client, "server sent command %u under id %u, which is not answered yet: "
                   "connection ended", hdr->cmd, hdr->msg_id);
        return -EPROTO;
    }
    if (options->unit != NULL && options->unit->command(options->unit, client, hdr, payload, len)) {
        return 0;
    }
    if (plain && (hdr->cmd == VFIO_USER_DMA_READ || hdr->cmd == VFIO_USER_DMA_WRITE)) {
        client_serve_dma(client, hdr, payload, len);
    } else if (options->command != NULL) {
        options->command(options->pvt, hdr->msg_id, hdr->cmd, hdr->flags, payload, len);
    } else {
        client_log(client, "server sent command %u: refused", hdr->cmd);
        client_answer(client, hdr, ENOTSUP, NULL, 0);
    }
    return 0;
}

static int handle_message(struct vfuc *client, const struct vfio_user_header *hdr,
                          uint8_t *payload, size_t len, struct inbox *inbox)
{
    switch (hdr->flags & VFIO_USER_F_TYPE_MASK) {
    case VFIO_USER_F_TYPE_REPLY:
        handle_reply(client, hdr, payload, len, inbox);
        return 0;
    case VFIO_USER_F_TYPE_COMMAND:
        return handle_command(client, hdr, payload, len);
    default:
        client_log(client, "server sent a message with flags 0x%x, neither command nor reply: "
                   "connection ended", hdr->flags);
        return -EPROTO;
    }
}

static int receive_one(struct vfuc *client)
{
    struct vfio_user_header hdr;
    struct inbox inbox = { .nr_fds = 0 };
    size_t len = 0;
    int err = client_receive_exact(client, &inbox, &hdr, sizeof(hdr));

    if (err == 0 && (hdr.msg_size < sizeof(hdr) || hdr.msg_size > CLIENT_MAX_MESSAGE)) {
        client_log(client, "server sent a message of %u bytes: connection ended", hdr.msg_size);
        err = -EPROTO;
    }
    if (err == 0) {
        len = hdr.msg_size - sizeof(hdr);
        err = client_receive_exact(client, &inbox, client->buf, len);
    }
    if (err == -ETIMEDOUT) {
        client_log(client, "server stopped in the middle of a message: connection ended");
    }
    if (err == 0) {
        err = handle_message(client, &hdr, client->buf, len, &inbox);
    }
    client_close_inbox(&inbox);
    return err;
}

/* Replies that nobody waits for, and that are overdue. */
static int check_unattended(struct vfuc *client)
{
    const struct call *first;
    uint16_t cmd = 0;
    bool late;

    pthread_mutex_lock(&client->lock);
    first = TAILQ_FIRST(&client->unattended);
    late = first != NULL && client_now_ms() > first->deadline;
    if (late) {
        cmd = first->cmd;
    }
    pthread_mutex_unlock(&client->lock);
    if (late) {
        client_log(client, "no reply to command %u in %u ms: connection ended", cmd,
                   client->options.timeout_ms);
    }
    return late ? -ETIMEDOUT : 0;
}

static void end_unattended(struct vfuc *client, int error)
{
    struct call *call;

    pthread_mutex_lock(&client->lock);
    while ((call = TAILQ_FIRST(&client->unattended)) != NULL) {
        end_call(client, call, error);
        pthread_mutex_unlock(&client->lock);
        complete(call, NULL, 0);
        pthread_mutex_lock(&client->lock);
    }
    pthread_mutex_unlock(&client->lock);
}

void *client_receive(void *arg)
{
    struct vfuc *client = arg;
    uint64_t epoch;
    bool ending;
    int err;

    atomic_store(&client->receiver_self, pthread_self());
    pthread_mutex_lock(&client->lock);
    epoch = client->epoch;
    pthread_mutex_unlock(&client->lock);
    do {
        err = receive_one(client);
        if (err == 0 || err == -EAGAIN) {
            err = check_unattended(client);
        }
    } while (err == 0);
    client_break(client, epoch, err);
    end_unattended(client, broken_error(err));
    pthread_mutex_lock(&client->lock);
    ending = client->ending;
    pthread_mutex_unlock(&client->lock);
    if (!ending && client->options.lost != NULL) {
        client->options.lost(client->options.pvt, -err);
    }
    atomic_store(&client->receiver_self, 0);
    return NULL;
}
