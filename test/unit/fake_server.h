/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A server at the other end of a client's socket, that says what a test tells it to say, and keeps
 * book of what it is told. What does not go as expected fails the test.
 */
#ifndef FAKE_SERVER_H
#define FAKE_SERVER_H

#include "vfio-user.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAKE_MAX_RECORDS 4096
#define FAKE_MAX_PAYLOAD 16384
#define FAKE_MAX_REPLIES 64

/* A command of the client's. */
struct record {
    struct vfio_user_header hdr;
    uint8_t payload[64];
    size_t len;
    size_t nr_fds;
    bool answered;
};

/* A reply of the client's. */
struct fake_reply {
    bool there;
    struct vfio_user_header hdr;
    uint8_t payload[FAKE_MAX_PAYLOAD];
    size_t len;
};

struct fake_server {
    char dir[64], path[96];
    int listener, fd;
    pthread_t thread;
    const char *version; /* JSON of the answer to VERSION */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct record records[FAKE_MAX_RECORDS];
    size_t nr_records;
    uint16_t held_cmd; /* commands that are not answered until told; 0: none */
    uint16_t refused_cmd;
    int refused_error;
    struct fake_reply replies[FAKE_MAX_REPLIES];
    uint16_t next_id;
};

/* Listens; the client may connect. version: JSON, NULL for one without any extension. */
void fake_server_start(struct fake_server *s, const char *version);
/* After the client has gone. */
void fake_server_stop(struct fake_server *s);
/* Hangs up; the client may connect again. */
void fake_server_hang_up(struct fake_server *s);

/* Sends a command; prefix NULL: none. Returns its id. */
uint16_t fake_server_send(struct fake_server *s, uint16_t cmd, uint32_t flags,
                          const struct vfio_user_pasid_prefix *prefix, const void *payload,
                          size_t len);
/* Waits for the reply: its errno, or 0 with up to size bytes of payload, and their number. */
int fake_server_reply(struct fake_server *s, uint16_t id, void *payload, size_t size,
                      size_t *len);
/* Both. */
int fake_server_ask(struct fake_server *s, uint16_t cmd, uint32_t flags,
                    const struct vfio_user_pasid_prefix *prefix, const void *request, size_t len,
                    void *reply, size_t size, size_t *reply_len);

/* Commands of this kind are held, 0: none any more, and those held are answered. */
void fake_server_hold(struct fake_server *s, uint16_t cmd);
/* Answers the one that was held longest; false: there is none. */
bool fake_server_release_one(struct fake_server *s);
/* Commands of this kind are refused with this errno. */
void fake_server_refuse(struct fake_server *s, uint16_t cmd, int error);

/* How many of a kind came, or came and are not answered. */
size_t fake_server_count(struct fake_server *s, uint16_t cmd);
size_t fake_server_outstanding(struct fake_server *s, uint16_t cmd);
/* Waits until so many of a kind have come. */
void fake_server_wait(struct fake_server *s, uint16_t cmd, size_t count);
/* Number nth (from 0) of a kind. */
struct record fake_server_record(struct fake_server *s, uint16_t cmd, size_t nth);
/* All that has come, in order, into an array of FAKE_MAX_RECORDS; it is forgotten here. */
size_t fake_server_take(struct fake_server *s, struct record *records);
/* Forgets what has come. */
void fake_server_clear(struct fake_server *s);

#endif /* FAKE_SERVER_H */
