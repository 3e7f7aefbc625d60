/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_SESSION_REQUEST_H
#define VFU_SESSION_REQUEST_H

#include "session/wait.h"
#include "vfio-user.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>

struct session;

/* What dispatch returns when the request will be finished later. */
#define REQUEST_DEFERRED 1

/* A command of the client, until its reply has left. */
struct request {
    struct session *session;
    uint64_t epoch; /* of the connection it came by */
    struct vfio_user_header hdr;
    bool checked; /* by the rules of the wire, and payload is behind the prefix */
    bool tagged; /* has a PASID prefix */
    uint32_t pasid;
    uint32_t pasid_attrs;
    uint8_t *payload; /* behind header and prefix */
    size_t len;
    int *fds; /* an entry that is taken over becomes -1; the others are closed */
    size_t nr_fds;
    bool fds_lost; /* more came with it, and could not be received */

    uint32_t progress; /* the handler's: how far it came before the request was put off */

    struct iovec reply[2]; /* the payload of the success reply */
    size_t nr_reply;
    const int *reply_fds; /* stay the owner's */
    size_t nr_reply_fds;

    bool heap; /* owns its memory */
    struct wait wait; /* of a detached request, while it is held back */
    STAILQ_ENTRY(request) link;
};

STAILQ_HEAD(request_queue, request);

static inline bool request_translated(const struct request *req)
{
    return (req->hdr.flags & VFIO_USER_F_TRANSLATED) != 0;
}

/* Sets the payload of the success reply. The memory must live until the request is finished. */
void request_reply_with(struct request *req, void *data, size_t len);

/*
 * A copy of its own of the request, descriptors included, that outlives the receive buffer; the
 * original is empty afterwards. A request that has memory of its own is returned as it is. NULL
 * when out of memory, and the original is as it was.
 */
struct request *request_detach(struct request *req);

/*
 * Notes what a detached request is held back for, until it is finished or request_go_on() is
 * called: the log says so if it takes long. reason must be a constant.
 */
void request_hold(struct request *req, const char *reason);
void request_go_on(struct request *req);

/*
 * Sends the reply (err is 0 or a negative errno) unless the client wanted none, closes what
 * descriptors are left, and frees a detached request. Any thread.
 */
void request_finish(struct request *req, int err);

/* Frees it without a reply: the client is gone. */
void request_drop(struct request *req);

#endif /* VFU_SESSION_REQUEST_H */
