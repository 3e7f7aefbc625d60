/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands and their replies, in both directions. */
#include "client.h"

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
 * Lock held. Returns the call if it is asynchronous: the caller completes it without the lock.
 * One that somebody waits for is gone as soon as the lock is dropped: NULL.
 */
static struct call *end_call(struct vfuc *client, struct call *call, int error)
{
    LIST_REMOVE(call, link);
    call->error = error;
    call->finished = true;
    if (call->done != NULL) {
        return call;
    }
    pthread_cond_broadcast(&client->cond);
    return NULL;
}

static void complete_async(struct call *call, const void *payload, size_t len)
{
    if (call != NULL) {
        call->done(call->pvt, call->error, payload, len);
        free(call);
    }
}

void client_break(struct vfuc *client)
{
    struct call *call;

    pthread_mutex_lock(&client->lock);
    client->broken = true;
    if (client->fd != -1) {
        shutdown(client->fd, SHUT_RDWR);
    }
    for (int i = 0; i < CLIENT_BUCKETS; i++) {
        while ((call = LIST_FIRST(&client->calls[i])) != NULL) {
            call = end_call(client, call, ENOTCONN);
            pthread_mutex_unlock(&client->lock);
            complete_async(call, NULL, 0);
            pthread_mutex_lock(&client->lock);
        }
    }
    pthread_mutex_unlock(&client->lock);
}

/* Starting */

static int begin(struct vfuc *client, struct call *call)
{
    int err = 0;

    pthread_mutex_lock(&client->lock);
    if (client->broken) {
        err = -ENOTCONN;
    } else {
        do {
            client->last_id++;
        } while (find_call(client, client->last_id) != NULL);
        call->id = client->last_id;
        LIST_INSERT_HEAD(bucket(client, call->id), call, link);
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
static void wait_for(struct vfuc *client, struct call *call)
{
    struct timespec ts;
    bool late = false;

    deadline(&ts, client->options.timeout_ms);
    pthread_mutex_lock(&client->lock);
    while (!call->finished && !late) {
        late = pthread_cond_timedwait(&client->cond, &client->lock, &ts) == ETIMEDOUT;
    }
    if (!call->finished) {
        end_call(client, call, ETIMEDOUT);
    }
    late = call->error == ETIMEDOUT;
    pthread_mutex_unlock(&client->lock);
    if (late) {
        client_log(client, "no reply to command %u in %u ms", call->cmd,
                   client->options.timeout_ms);
        client_break(client);
    }
}

ssize_t client_call(struct vfuc *client, const struct client_command *command)
{
    struct call call = {
        .cmd = command->cmd,
        .in = command->in,
        .nr_in = command->nr_in,
        .wants_fd = command->reply_fd != NULL,
        .fd = -1,
    };
    struct vfio_user_header hdr = { .cmd = command->cmd, .flags = command->flags };
    int err = begin(client, &call);

    if (err < 0) {
        return err;
    }
    hdr.msg_id = call.id;
    err = client_send(client, &hdr, command->out, command->nr_out, command->fds, command->nr_fds);
    if (err < 0) {
        pthread_mutex_lock(&client->lock);
        if (!call.finished) {
            end_call(client, &call, -err);
        }
        pthread_mutex_unlock(&client->lock);
        if (err != -EMSGSIZE && err != -EINVAL) {
            client_break(client);
        }
        return err;
    }
    wait_for(client, &call);
    if (command->reply_fd != NULL) {
        *command->reply_fd = call.fd;
    }
    return call.error != 0 ? -call.error : (ssize_t)call.reply_len;
}

ssize_t vfuc_command(vfuc_t *client, uint16_t cmd, uint32_t flags, const void *request,
                     size_t request_size, void *reply, size_t reply_size)
{
    const struct iovec out = { (void *)request, request_size };
    const struct iovec in = { reply, reply_size };
    const struct client_command command = {
        .cmd = cmd,
        .flags = flags & (VFIO_USER_F_PASID | VFIO_USER_F_TRANSLATED),
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
    struct vfio_user_header hdr = {
        .cmd = cmd,
        .flags = flags & (VFIO_USER_F_PASID | VFIO_USER_F_TRANSLATED),
    };
    struct call *call = calloc(1, sizeof(*call));
    int err;

    if (call == NULL) {
        return (int)client_result(-ENOMEM);
    }
    call->cmd = cmd;
    call->fd = -1;
    call->done = done;
    call->pvt = pvt;
    err = begin(client, call);
    if (err < 0) {
        free(call);
        return (int)client_result(err);
    }
    hdr.msg_id = call->id;
    if (client_send(client, &hdr, &out, request_size > 0, NULL, 0) < 0) {
        client_break(client);
    }
    return 0;
}

int vfuc_reply(vfuc_t *client, uint16_t id, uint16_t cmd, int error, const void *payload,
               size_t len)
{
    const struct iovec out = { (void *)payload, len };
    const struct vfio_user_header hdr = {
        .msg_id = id,
        .cmd = cmd,
        .flags = VFIO_USER_F_TYPE_REPLY | (error != 0 ? VFIO_USER_F_ERROR : 0),
        .error_no = (uint32_t)error,
    };

    return (int)client_result(client_send(client, &hdr, &out, error == 0 && len > 0, NULL, 0));
}

/* The receiver */

static int reply_error(const struct vfio_user_header *hdr)
{
    if (!(hdr->flags & VFIO_USER_F_ERROR)) {
        return 0;
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

static void handle_reply(struct vfuc *client, const struct vfio_user_header *hdr,
                         const uint8_t *payload, size_t len, int *fds, size_t nr_fds)
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
        if (call->wants_fd && nr_fds > 0) {
            call->fd = fds[0];
            fds[0] = -1;
        }
    }
    call = end_call(client, call, error);
    pthread_mutex_unlock(&client->lock);
    complete_async(call, payload, len);
}

static void handle_command(struct vfuc *client, const struct vfio_user_header *hdr,
                           uint8_t *payload, size_t len)
{
    bool plain = !(hdr->flags & (VFIO_USER_F_PASID | VFIO_USER_F_TRANSLATED));

    if (client->options.unit != NULL &&
        client->options.unit->command(client->options.unit, client, hdr, payload, len)) {
        return;
    }
    if (plain && (hdr->cmd == VFIO_USER_DMA_READ || hdr->cmd == VFIO_USER_DMA_WRITE)) {
        client_serve_dma(client, hdr, payload, len);
    } else if (client->options.command != NULL) {
        client->options.command(client->options.pvt, hdr->msg_id, hdr->cmd, hdr->flags, payload,
                                len);
    } else {
        client_log(client, "server sent command %u: refused", hdr->cmd);
        vfuc_reply(client, hdr->msg_id, hdr->cmd, ENOTSUP, NULL, 0);
    }
}

static int receive_one(struct vfuc *client)
{
    struct vfio_user_header hdr;
    int fds[CLIENT_MAX_FDS];
    size_t nr_fds = 0, len = 0;
    int err = client_receive_exact(client, &hdr, sizeof(hdr), fds, &nr_fds);

    if (err == 0 && (hdr.msg_size < sizeof(hdr) || hdr.msg_size > CLIENT_MAX_MESSAGE)) {
        client_log(client, "server sent a message of %u bytes: connection ended", hdr.msg_size);
        err = -EPROTO;
    }
    if (err == 0) {
        len = hdr.msg_size - sizeof(hdr);
        err = client_receive_exact(client, client->buf, len, fds, &nr_fds);
    }
    if (err == 0) {
        if ((hdr.flags & VFIO_USER_F_TYPE_MASK) == VFIO_USER_F_TYPE_REPLY) {
            handle_reply(client, &hdr, client->buf, len, fds, nr_fds);
        } else {
            handle_command(client, &hdr, client->buf, len);
        }
    }
    for (size_t i = 0; i < nr_fds; i++) {
        if (fds[i] != -1) {
            close(fds[i]);
        }
    }
    return err;
}

void *client_receive(void *arg)
{
    struct vfuc *client = arg;

    while (receive_one(client) == 0) {
        continue;
    }
    client_break(client);
    return NULL;
}
