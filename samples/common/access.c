/* SPDX-License-Identifier: BSD-3-Clause */
#include "access.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>

/* (uid_t)-1 and (gid_t)-1 mean "no change" to the kernel, and nobody has them. */
static bool parse_id(const char *text, unsigned *id)
{
    unsigned long n;
    char *end;

    errno = 0;
    n = strtoul(text, &end, 10);
    *id = (unsigned)n;
    return errno == 0 && end != text && *end == '\0' && *text != '-' && n < (unsigned)-1;
}

static bool find_user(const char *text, unsigned *id)
{
    const struct passwd *user = getpwnam(text);

    if (user == NULL) {
        return parse_id(text, id);
    }
    *id = user->pw_uid;
    return true;
}

static bool find_group(const char *text, unsigned *id)
{
    const struct group *group = getgrnam(text);

    if (group == NULL) {
        return parse_id(text, id);
    }
    *id = group->gr_gid;
    return true;
}

static bool add_id(const char *program, const char *what, const char *text,
                   bool (*find)(const char *text, unsigned *id), unsigned *ids, unsigned *nr_ids)
{
    if (*nr_ids == ACCESS_MAX_IDS) {
        fprintf(stderr, "%s: at most %d can be allowed by --allow-%s\n", program, ACCESS_MAX_IDS,
                what);
        return false;
    }
    if (!find(text, &ids[*nr_ids])) {
        fprintf(stderr, "%s: --allow-%s takes a name or a number, and '%s' is neither\n", program,
                what, text);
        return false;
    }
    ++*nr_ids;
    return true;
}

static bool parse_mode(const char *program, const char *text, struct access_rules *rules)
{
    char *end;
    unsigned long mode = strtoul(text, &end, 8);

    if (end == text || *end != '\0' || *text == '-' || mode > 0777) {
        fprintf(stderr, "%s: --socket-mode takes an octal number up to 0777, not '%s'\n", program,
                text);
        return false;
    }
    rules->has_mode = true;
    rules->mode = (mode_t)mode;
    return true;
}

bool access_take_option(const char *program, int c, const char *value, struct access_rules *rules)
{
    switch (c) {
    case ACCESS_SOCKET_MODE:
        return parse_mode(program, value, rules);
    case ACCESS_ALLOW_UID:
        return add_id(program, "uid", value, find_user, rules->uids, &rules->nr_uids);
    case ACCESS_ALLOW_GID:
        return add_id(program, "gid", value, find_group, rules->gids, &rules->nr_gids);
    default:
        return false;
    }
}

static bool lists(const unsigned *ids, unsigned nr_ids, unsigned id)
{
    for (unsigned i = 0; i < nr_ids; i++) {
        if (ids[i] == id) {
            return true;
        }
    }
    return false;
}

int access_check(vfu_ctx_t *ctx, const vfu_client_t *client, void *arg)
{
    const struct access_rules *rules = arg;

    (void)ctx;
    if (rules->nr_uids + rules->nr_gids == 0 || lists(rules->uids, rules->nr_uids, client->uid) ||
        lists(rules->gids, rules->nr_gids, client->gid)) {
        return 0;
    }
    errno = EACCES;
    return -1;
}
