/* SPDX-License-Identifier: BSD-3-Clause */
/* A server that says what a test wants it to say: one connection, in a thread. */
#ifndef TEST_CLIENT_FAKE_H
#define TEST_CLIENT_FAKE_H

#include "vfio-user-client.h"
#include "vfio-user.h"

#include <pthread.h>
#include <stdbool.h>

#define FAKE_MAX_PAYLOAD 8192

/* What is sent; the fields that are 0 are as they should be. */
struct fake_message {
    const void *payload;
    size_t len;
    uint32_t msg_size; /* 0: right */
    uint16_t cmd; /* 0: that of the command */
    uint16_t id_delta;
    uint32_t flags; /* 0: a reply */
    uint32_t error;
    unsigned nr_fds; /* how many descriptors come along, of fd */
    int fd;
    bool silent; /* nothing is sent */
    size_t cut; /* so many bytes of it are left out, and nothing follows */
};

struct fake {
    char dir[64];
    char path[80];
    int listener, fd;
    pthread_t thread;
    const void *version; /* what follows the header of the answer to VERSION */
    size_t version_len;
    const struct fake_message *version_message; /* or all of it */
    /* To whatever is not answered by respond; resets succeed. NULL: success. */
    const struct fake_message *answer;
    /* Returns false for a command that answer is for. */
    bool (*respond)(struct fake *fake, const struct vfio_user_header *hdr);
    uint8_t payload[FAKE_MAX_PAYLOAD]; /* of the command */
    void *pvt;
};

void fake_start(struct fake *fake);
/* When the client has gone. */
void fake_stop(struct fake *fake);

void fake_send(struct fake *fake, const struct vfio_user_header *to,
               const struct fake_message *message);
/* A command, and the header and payload of what comes next. */
void fake_command(struct fake *fake, uint16_t id, uint16_t cmd, uint32_t flags,
                  const void *payload, size_t len);
bool fake_receive(struct fake *fake, struct vfio_user_header *hdr);

#endif /* TEST_CLIENT_FAKE_H */
