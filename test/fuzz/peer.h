/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client in the same thread as the server: it sends what it is told, remembers what it has asked
 * and what it was asked, and checks that what comes back is well-formed and answers something.
 */
#ifndef VFU_FUZZ_PEER_H
#define VFU_FUZZ_PEER_H

#include "vfio-user.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PEER_ASKED 64
#define PEER_AWAITED 512
#define PEER_KEPT 64

/* A command of the server. */
struct peer_command {
    struct vfio_user_header hdr;
    uint8_t payload[PEER_KEPT]; /* the beginning of it */
    int fd; /* where it came, and the reply goes */
};

struct peer {
    int fd; /* -1 when not connected */
    int twin;
    bool greeted; /* has sent its first message, which is VERSION or ought to be */
    bool honest; /* its framing is whole, so every command must have its one reply */
    struct peer_command asked[PEER_ASKED]; /* and not answered, oldest first */
    size_t nr_asked;
    struct { uint16_t id, cmd; } awaited[PEER_AWAITED];
    size_t nr_awaited;
    size_t replies; /* sent, and not refused: those that no command waits for are */
};

void peer_init(struct peer *peer);
/* Connects: the server's end of the connection, which is the caller's. */
int peer_connect(struct peer *peer);
void peer_close(struct peer *peer);

/* Sends a message; it is awaited if a reply must come. */
void peer_send(struct peer *peer, const uint8_t *message, size_t len, const int *fds,
               size_t nr_fds);
/* Sends bytes, whatever they are. */
void peer_send_raw(struct peer *peer, const uint8_t *bytes, size_t len);

/* Receives and checks whatever has come. True if something has. */
bool peer_drain(struct peer *peer);

enum peer_answer {
    ANSWER_NEWEST = 1 << 0, /* rather than the oldest command */
    ANSWER_ERROR = 1 << 1, /* with the first byte of the data as the errno */
    ANSWER_GOOD = 1 << 2, /* as an honest client would; data: pairs of position and XOR */
    ANSWER_AGAIN = 1 << 3, /* and keeps the command, to answer it again */
    ANSWER_LARGE = 1 << 4, /* translations of 2 MiB; a bare header for DMA_WRITE */
    ANSWER_OTHER = 1 << 5, /* with another command's number */
};

/* Answers a command of the server, if there is one. */
void peer_answer(struct peer *peer, uint8_t how, const uint8_t *data, size_t len);

#endif /* VFU_FUZZ_PEER_H */
