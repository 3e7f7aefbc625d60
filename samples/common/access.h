/* SPDX-License-Identifier: BSD-3-Clause */
/* Who may use the socket of a service: the options --socket-mode, --allow-uid and --allow-gid. */

#ifndef ACCESS_H
#define ACCESS_H

#include "libvfio-user-session.h"

#include <getopt.h>
#include <stdbool.h>
#include <sys/types.h>

#define ACCESS_MAX_IDS 16

struct access_rules {
    bool has_mode;
    mode_t mode; /* of the socket */
    /* Clients need one of these; none at all: every client is allowed. */
    uid_t uids[ACCESS_MAX_IDS];
    unsigned nr_uids;
    gid_t gids[ACCESS_MAX_IDS];
    unsigned nr_gids;
};

/* What getopt_long() returns for the options. */
enum access_option {
    ACCESS_SOCKET_MODE = 0x100,
    ACCESS_ALLOW_UID,
    ACCESS_ALLOW_GID,
};

#define ACCESS_LONG_OPTIONS                                                                        \
    { "socket-mode", required_argument, NULL, ACCESS_SOCKET_MODE },                                \
    { "allow-uid", required_argument, NULL, ACCESS_ALLOW_UID },                                    \
    { "allow-gid", required_argument, NULL, ACCESS_ALLOW_GID }

#define ACCESS_USAGE                                                                               \
    "      --socket-mode MODE  permissions of the socket, as 0660 (default: the umask's)\n"        \
    "      --allow-uid USER    serve processes of this user (name or number) and no others;\n"     \
    "      --allow-gid GROUP   or of this group. Both can be given several times\n"

/*
 * Takes one of the options. Returns whether c is one of them and its value is good, after having
 * said on standard error what is wrong with the value.
 */
bool access_take_option(const char *program, int c, const char *value, struct access_rules *rules);

/* A vfu_client_cb_t whose argument is a struct access_rules. */
int access_check(vfu_ctx_t *ctx, const vfu_client_t *client, void *rules);

#endif /* ACCESS_H */
