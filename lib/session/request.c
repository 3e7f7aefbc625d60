/* SPDX-License-Identifier: BSD-3-Clause */
#include "session/request.h"

#include "session/channel.h"
#include "util/peer_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void request_reply_with(struct request *req, void *data, size_t len)
{
    req->reply[0] = (struct iovec){ .iov_base = data, .iov_len = len };
    req->nr_reply = 1;
}

struct request *request_detach(struct request *req)
{
    struct request *copy;

    if (req->heap) {
        return req;
    }
    copy = malloc(sizeof(*copy) + req->nr_fds * sizeof(int) + req->len);
    if (copy == NULL) {
        return NULL;
    }
    *copy = *req;
    copy->heap = true;
    copy->fds = (int *)(copy + 1);
    copy->payload = (uint8_t *)(copy->fds + req->nr_fds);
    if (req->nr_fds > 0) {
        memcpy(copy->fds, req->fds, req->nr_fds * sizeof(int));
    }
    if (req->len > 0) {
        memcpy(copy->payload, req->payload, req->len);
    }
    req->nr_fds = 0;
    return copy;
}

void request_hold(struct request *req, const char *reason)
{
    pthread_mutex_lock(&req->session->lock);
    req->wait = (struct wait){
        .name = command_name(req->hdr.cmd),
        .number = req->hdr.msg_id,
        .reason = reason,
    };
    wait_begin(req->session, &req->wait);
    pthread_mutex_unlock(&req->session->lock);
}

void request_go_on(struct request *req)
{
    pthread_mutex_lock(&req->session->lock);
    wait_end(req->session, &req->wait);
    pthread_mutex_unlock(&req->session->lock);
}

void request_drop(struct request *req)
{
    for (size_t i = 0; i < req->nr_fds; i++) {
        if (req->fds[i] != -1) {
            peer_file_close(req->fds[i]);
        }
    }
    if (req->heap) {
        request_go_on(req);
        free(req);
    }
}

void request_finish(struct request *req, int err)
{
    struct vfio_user_header hdr = {
        .msg_id = req->hdr.msg_id,
        .cmd = req->hdr.cmd,
        .msg_size = sizeof(hdr),
        .flags = VFIO_USER_F_TYPE_REPLY,
    };
    struct iovec iov[1 + sizeof(req->reply) / sizeof(req->reply[0])] = {
        { .iov_base = &hdr, .iov_len = sizeof(hdr) },
    };
    size_t nr_iov = 1;

    /* Other errors are logged where they are found; this one may come from anywhere. */
    if (err == -ENOMEM) {
        log_err(req->session->log, "%s id %u: out of memory: refused",
                command_name(req->hdr.cmd), req->hdr.msg_id);
    }
    if (err < 0) {
        hdr.flags |= VFIO_USER_F_ERROR;
        hdr.error_no = (uint32_t)-err;
    } else {
        for (size_t i = 0; i < req->nr_reply; i++) {
            iov[nr_iov++] = req->reply[i];
            hdr.msg_size += (uint32_t)req->reply[i].iov_len;
        }
    }
    if (!(req->hdr.flags & VFIO_USER_F_NO_REPLY)) {
        channel_send(req->session, &req->session->main, req->epoch, iov, nr_iov, req->reply_fds,
                     err < 0 ? 0 : req->nr_reply_fds);
    }
    request_drop(req);
}
