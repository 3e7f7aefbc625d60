/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * As much of the client's side of vfio-user as the demo needs, on a bare socket (vfio-user
 * protocol, "Message sizes" and "Commands").
 */

#ifndef BARE_CLIENT_H
#define BARE_CLIENT_H

#include "vfio-user.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BARE_CLIENT_MAX_XFER 4096 /* data in one message, bytes */

struct bare_client {
    int fd;
    uint16_t last_id;
    /*
     * Carries a DMA_READ (to_device) or DMA_WRITE of the server out, on access->data. Returns 0 or
     * a negative errno.
     */
    int (*serve)(void *owner, struct vfio_user_dma_region_access *access, bool to_device);
    void *owner;
    union {
        struct vfio_user_header hdr;
        uint8_t bytes[sizeof(struct vfio_user_header) + sizeof(struct vfio_user_dma_region_access) +
                      BARE_CLIENT_MAX_XFER];
    } in;
};

/* Connects and negotiates the version; serve and owner are set. Returns 0 or a negative errno. */
int bare_client_open(struct bare_client *client, const char *path, int timeout_ms);
void bare_client_close(struct bare_client *client);

/*
 * Sends a command, with a descriptor unless fd is -1, and waits for its reply, serving meanwhile.
 *
 * @reply: receives the reply's payload, which must have reply_len bytes at least.
 *
 * Returns 0, or a negative errno: the server's, or -EPROTO for a message that does not fit.
 */
int bare_client_request(struct bare_client *client, uint16_t cmd, const void *payload, size_t len,
                        int fd, void *reply, size_t reply_len);

/* Serves one command of the server; client->fd is readable. Returns 0 or a negative errno. */
int bare_client_serve(struct bare_client *client);

#endif /* BARE_CLIENT_H */
