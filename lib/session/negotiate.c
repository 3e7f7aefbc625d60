/* SPDX-License-Identifier: BSD-3-Clause */
/* The version message: vfio-user protocol, VFIO_USER_VERSION. */
#include "session/negotiate.h"

#include "libvfio-user.h"
#include "util/clock.h"
#include "wire/commands.h"
#include "wire/quirks.h"

#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* What we advertise; more descriptors are taken, as many as the kernel passes. */
#define SERVER_MAX_MSG_FDS 8
#define CLIENT_MAX_MSG_FDS 1024
#define CLIENT_DEFAULT_MSG_FDS 1

/* The largest VERSION taken: a client that sends more is not about to make sense. */
#define MAX_JSON (64u * 1024u)
#define MAX_JSON_DEPTH 16

#define SEND_MS 1000

enum member_type {
    MEMBER_INT,
    MEMBER_BOOL,
};

/* One member of an object: its type, its range, and where it goes. */
struct member {
    const char *name;
    enum member_type type;
    int64_t min, max;
    void *out; /* uint32_t or bool */
};

/* Fills what is there, leaves the others alone. Returns 0 or -EINVAL. */
static int read_members(struct json_object *obj, const char *where, const struct member *members,
                        size_t nr, const struct logger *log)
{
    for (size_t i = 0; i < nr; i++) {
        const struct member *m = &members[i];
        struct json_object *value;
        int64_t number;

        if (!json_object_object_get_ex(obj, m->name, &value)) {
            continue;
        }
        if (!json_object_is_type(value, m->type == MEMBER_INT ? json_type_int
                                                              : json_type_boolean)) {
            log_err(log, "VERSION: %s.%s has the wrong type", where, m->name);
            return -EINVAL;
        }
        if (m->type == MEMBER_BOOL) {
            *(bool *)m->out = json_object_get_boolean(value);
            continue;
        }
        number = json_object_get_int64(value);
        if (number < m->min || number > m->max) {
            log_err(log, "VERSION: %s.%s is %lld, must be between %lld and %lld", where, m->name,
                    (long long)number, (long long)m->min, (long long)m->max);
            return -EINVAL;
        }
        *(uint32_t *)m->out = number < UINT32_MAX ? (uint32_t)number : UINT32_MAX;
    }
    return 0;
}

/* A member that must be an object if it is there. Returns 1, 0 (absent) or -EINVAL. */
static int get_object(struct json_object *obj, const char *name, struct json_object **out,
                      const struct logger *log)
{
    if (!json_object_object_get_ex(obj, name, out)) {
        return 0;
    }
    if (!json_object_is_type(*out, json_type_object)) {
        log_err(log, "VERSION: %s is not an object", name);
        return -EINVAL;
    }
    return 1;
}

#define READ(obj, where, members, log)                                                             \
    read_members(obj, where, members, sizeof(members) / sizeof((members)[0]), log)

static int parse_iommu(struct json_object *caps, struct iommu_caps *iommu,
                       const struct logger *log)
{
    struct json_object *obj, *part;
    struct member pasid[] = {
        { "bits", MEMBER_INT, 1, 20, &iommu->pasid.bits },
        { "exec", MEMBER_BOOL, 0, 0, &iommu->pasid.exec },
        { "priv", MEMBER_BOOL, 0, 0, &iommu->pasid.priv },
    };
    struct member ats[] = {
        { "queue_depth", MEMBER_INT, 1, 32, &iommu->ats.queue_depth },
        { "page_shift", MEMBER_INT, 12, 63, &iommu->ats.page_shift },
        { "max_entries", MEMBER_INT, 1, INT32_MAX, &iommu->ats.max_entries },
    };
    struct member pri[] = {
        { "max_requests", MEMBER_INT, 1, INT32_MAX, &iommu->pri.max_requests },
    };
    struct {
        const char *name;
        bool *present;
        struct member *members;
        size_t nr;
    } parts[] = {
        { "pasid", &iommu->pasid.present, pasid, sizeof(pasid) / sizeof(pasid[0]) },
        { "ats", &iommu->ats.present, ats, sizeof(ats) / sizeof(ats[0]) },
        { "pri", &iommu->pri.present, pri, sizeof(pri) / sizeof(pri[0]) },
    };
    int r = get_object(caps, "iommu", &obj, log);

    if (r <= 0) {
        return r;
    }
    iommu->present = true;
    iommu->pasid.bits = 20;
    iommu->ats.queue_depth = 32;
    iommu->ats.page_shift = 12;
    iommu->ats.max_entries = 64;
    iommu->pri.max_requests = 512;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        r = get_object(obj, parts[i].name, &part, log);
        if (r < 0) {
            return r;
        }
        *parts[i].present = r > 0;
        if (r > 0) {
            r = read_members(part, parts[i].name, parts[i].members, parts[i].nr, log);
            if (r < 0) {
                return r;
            }
        }
    }
    return 0;
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* What both have. Without ATS there are no page requests; with nothing left, no extension. */
static void meet_iommu(struct iommu_caps *theirs, const struct iommu_caps *ours)
{
    theirs->pasid.present &= ours->pasid.present;
    theirs->pasid.bits = smaller(theirs->pasid.bits, ours->pasid.bits);
    theirs->pasid.exec &= ours->pasid.exec;
    theirs->pasid.priv &= ours->pasid.priv;
    theirs->ats.present &= ours->ats.present;
    theirs->ats.queue_depth = smaller(theirs->ats.queue_depth, ours->ats.queue_depth);
    theirs->ats.max_entries = smaller(theirs->ats.max_entries, ours->ats.max_entries);
    if (theirs->ats.page_shift < ours->ats.page_shift) {
        theirs->ats.page_shift = ours->ats.page_shift;
    }
    theirs->pri.present &= ours->pri.present && theirs->ats.present;
    theirs->pri.max_requests = smaller(theirs->pri.max_requests, ours->pri.max_requests);
    theirs->present &= ours->present && (theirs->pasid.present || theirs->ats.present);
    if (!theirs->present) {
        memset(theirs, 0, sizeof(*theirs));
    }
}

static int parse_caps(struct json_object *root, const struct server_offer *offer,
                      struct agreed_caps *agreed, const struct logger *log)
{
    struct json_object *caps, *part;
    uint32_t pgsize = 0;
    const struct member top[] = {
        { "max_msg_fds", MEMBER_INT, 0, CLIENT_MAX_MSG_FDS, &agreed->max_msg_fds },
        { "max_data_xfer_size", MEMBER_INT, 1, INT64_MAX, &agreed->max_data_xfer_size },
        { "write_multiple", MEMBER_BOOL, 0, 0, &agreed->write_multiple },
    };
    const struct member twin[] = {
        { "supported", MEMBER_BOOL, 0, 0, &agreed->twin_socket },
    };
    const struct member migration[] = {
        { "pgsize", MEMBER_INT, 0, INT32_MAX, &pgsize },
    };
    int r = get_object(root, "capabilities", &caps, log);

    if (r <= 0) {
        return r;
    }
    r = READ(caps, "capabilities", top, log);
    if (r == 0 && (r = get_object(caps, "twin_socket", &part, log)) > 0) {
        r = READ(part, "twin_socket", twin, log);
    }
    if (r == 0 && offer->migration && (r = get_object(caps, "migration", &part, log)) > 0) {
        r = READ(part, "migration", migration, log);
        if (r == 0 && pgsize != 0 && pgsize != offer->pgsize) {
            log_err(log, "VERSION: migration.pgsize %u, ours is %u", pgsize, offer->pgsize);
            r = -EINVAL;
        }
    }
    return r < 0 ? r : parse_iommu(caps, &agreed->iommu, log);
}

int negotiate_parse(const char *text, const struct server_offer *offer,
                    struct agreed_caps *agreed, const struct logger *log)
{
    struct json_tokener *tokener;
    struct json_object *root;
    size_t len;
    int r;

    memset(agreed, 0, sizeof(*agreed));
    agreed->max_msg_fds = CLIENT_DEFAULT_MSG_FDS;
    agreed->max_data_xfer_size = VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE;
    if (text == NULL) {
        return 0;
    }
    len = strlen(text);
    tokener = json_tokener_new_ex(MAX_JSON_DEPTH);
    if (tokener == NULL) {
        return -ENOMEM;
    }
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);
    root = json_tokener_parse_ex(tokener, text, (int)len + 1);
    if (root == NULL || !json_object_is_type(root, json_type_object) ||
        json_tokener_get_parse_end(tokener) < len) {
        log_err(log, "VERSION: the capabilities are not a JSON object (%s)",
                json_tokener_error_desc(json_tokener_get_error(tokener)));
        r = -EINVAL;
    } else {
        r = parse_caps(root, offer, agreed, log);
    }
    json_object_put(root);
    json_tokener_free(tokener);
    meet_iommu(&agreed->iommu, &offer->iommu);
    agreed->twin_socket &= agreed->max_msg_fds > 0 && !agreed->iommu.present;
    return r;
}

static void add_int(struct json_object *obj, const char *name, uint32_t value)
{
    json_object_object_add(obj, name, json_object_new_int64(value));
}

static struct json_object *add_object(struct json_object *obj, const char *name)
{
    struct json_object *part = json_object_new_object();

    json_object_object_add(obj, name, part);
    return part;
}

/* Only the parts that the client proposed, and of them only what it may have named. */
static void add_iommu(struct json_object *caps, const struct iommu_caps *iommu)
{
    struct json_object *obj = add_object(caps, "iommu"), *part;

    if (iommu->pasid.present) {
        part = add_object(obj, "pasid");
        add_int(part, "bits", iommu->pasid.bits);
        if (iommu->pasid.exec) {
            json_object_object_add(part, "exec", json_object_new_boolean(true));
        }
        if (iommu->pasid.priv) {
            json_object_object_add(part, "priv", json_object_new_boolean(true));
        }
    }
    if (iommu->ats.present) {
        part = add_object(obj, "ats");
        add_int(part, "queue_depth", iommu->ats.queue_depth);
        add_int(part, "page_shift", iommu->ats.page_shift);
        add_int(part, "max_entries", iommu->ats.max_entries);
    }
    if (iommu->pri.present) {
        add_int(add_object(obj, "pri"), "max_requests", iommu->pri.max_requests);
    }
}

static bool named(struct json_object *proposal, const char *name)
{
    return json_object_object_get_ex(proposal, name, NULL);
}

/*
 * Clients of the plain protocol have always been sent the first two members. A client of the
 * IOMMU extension is sent only members that it named itself.
 */
static char *render(struct json_object *proposal, const struct server_offer *offer,
                    const struct agreed_caps *agreed)
{
    struct json_object *root = json_object_new_object();
    struct json_object *caps = add_object(root, "capabilities"), *part;
    bool all = !agreed->iommu.present;
    const char *text;
    char *copy;

    if (all || named(proposal, "max_msg_fds")) {
        add_int(caps, "max_msg_fds", SERVER_MAX_MSG_FDS);
    }
    if (all || named(proposal, "max_data_xfer_size")) {
        add_int(caps, "max_data_xfer_size", WIRE_MAX_DATA_XFER);
    }
    if (offer->migration && (all || named(proposal, "migration"))) {
        add_int(add_object(caps, "migration"), "pgsize", offer->pgsize);
    }
    if (agreed->twin_socket) {
        part = add_object(caps, "twin_socket");
        json_object_object_add(part, "supported", json_object_new_boolean(true));
        add_int(part, "fd_index", 0);
    }
    if (agreed->write_multiple) {
        json_object_object_add(caps, "write_multiple", json_object_new_boolean(true));
    }
    if (agreed->iommu.present) {
        add_iommu(caps, &agreed->iommu);
    }
    text = json_object_to_json_string_ext(root, JSON_C_TO_STRING_PLAIN);
    copy = text != NULL ? strdup(text) : NULL;
    json_object_put(root);
    return copy;
}

/* What stock servers do not send is left out where the reply would be too long with it. */
char *negotiate_answer(const char *text, const struct server_offer *offer,
                       struct agreed_caps *agreed)
{
    struct json_object *root = text != NULL ? json_tokener_parse(text) : NULL, *proposal = NULL;
    char *answer;

    json_object_object_get_ex(root, "capabilities", &proposal);
    answer = render(proposal, offer, agreed);
    if (answer != NULL &&
        !quirk_version_reply_fits(text != NULL ? strlen(text) : 0, strlen(answer)) &&
        (agreed->write_multiple || agreed->iommu.present)) {
        free(answer);
        agreed->write_multiple = false;
        memset(&agreed->iommu, 0, sizeof(agreed->iommu));
        answer = render(proposal, offer, agreed);
    }
    json_object_put(root);
    return answer;
}

static int send_all(struct stream *stream, struct iovec *iov, size_t nr, const int *fds,
                    size_t nr_fds)
{
    uint64_t deadline = deadline_after_ms(SEND_MS);

    while (nr > 0) {
        ssize_t n = stream_send(stream, iov, nr, fds, nr_fds);

        if (n == -EAGAIN) {
            struct pollfd pfd = { .fd = stream->tx_fd, .events = POLLOUT };

            if (poll(&pfd, 1, deadline_poll_ms(deadline)) == 0) {
                return -ETIMEDOUT;
            }
            continue;
        }
        if (n < 0) {
            return (int)n;
        }
        nr_fds = 0;
        while (nr > 0 && (size_t)n >= iov->iov_len) {
            n -= (ssize_t)iov->iov_len;
            iov++;
            nr--;
        }
        if (nr > 0) {
            iov->iov_base = (char *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
        }
    }
    return 0;
}

static int refuse(struct stream *stream, const struct vfio_user_header *req, int err)
{
    struct vfio_user_header hdr = {
        .msg_id = req->msg_id,
        .cmd = req->cmd,
        .msg_size = sizeof(hdr),
        .flags = VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR,
        .error_no = (uint32_t)-err,
    };
    struct iovec iov = { .iov_base = &hdr, .iov_len = sizeof(hdr) };

    send_all(stream, &iov, 1, NULL, 0);
    return err;
}

/*
 * Receives the first message, and not a byte more: what follows must stay in the socket, where
 * whoever polls it sees it.
 */
static int receive_version(struct stream *stream, uint64_t deadline,
                           struct vfio_user_header *hdr, const struct logger *log)
{
    for (;;) {
        size_t held = stream_buffered(stream), want = sizeof(*hdr);
        ssize_t n;

        if (held >= sizeof(*hdr)) {
            memcpy(hdr, stream_data(stream), sizeof(*hdr));
            if (wire_is_reply(hdr) || !wire_size_ok(hdr) ||
                hdr->msg_size > sizeof(*hdr) + sizeof(struct vfio_user_version) + MAX_JSON) {
                log_err(log, "first message: command %u, size %u, flags 0x%x is no VERSION",
                        hdr->cmd, hdr->msg_size, hdr->flags);
                return -EINVAL;
            }
            want = hdr->msg_size;
            if (held == want) {
                return 0;
            }
        }
        n = stream_receive(stream, want - held, false);
        if (n == -EAGAIN) {
            struct pollfd pfd = { .fd = stream->rx_fd, .events = POLLIN };

            n = poll(&pfd, 1, deadline_poll_ms(deadline));
            if (n <= 0) {
                return n == 0 ? -EAGAIN : -errno;
            }
            continue;
        }
        if (n < 0) {
            return n == -ENOMSG && held > 0 ? -ECONNRESET : (int)n;
        }
    }
}

/* The client's JSON, or NULL when it sent none; *err tells what is wrong with the rest. */
static const char *check_version(const struct vfio_user_header *hdr, const uint8_t *payload,
                                 uint16_t *minor, int *err, const struct logger *log)
{
    size_t len = hdr->msg_size - sizeof(*hdr);
    struct vfio_user_version version;

    *err = -EINVAL;
    if (hdr->cmd != VFIO_USER_VERSION) {
        log_err(log, "first message is %s, not VERSION", command_name(hdr->cmd));
        return NULL;
    }
    if (len < sizeof(version)) {
        log_err(log, "VERSION: payload of %zu bytes, need at least %zu", len, sizeof(version));
        return NULL;
    }
    memcpy(&version, payload, sizeof(version));
    if (version.major != LIB_VFIO_USER_MAJOR) {
        log_err(log, "VERSION: client speaks major version %u, we speak %u", version.major,
                LIB_VFIO_USER_MAJOR);
        return NULL;
    }
    *minor = version.minor < LIB_VFIO_USER_MINOR ? version.minor : LIB_VFIO_USER_MINOR;
    if (len > sizeof(version) && payload[len - 1] != '\0') {
        log_err(log, "VERSION: the capabilities do not end in NUL");
        return NULL;
    }
    *err = 0;
    return len > sizeof(version) ? (const char *)payload + sizeof(version) : NULL;
}

static int make_twin(struct stream *twin, int *passed)
{
    int pair[2], err;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == -1) {
        return -errno;
    }
    err = stream_open(twin, pair[0], pair[0], true, WIRE_MAX_MESSAGE);
    if (err < 0) {
        close(pair[1]);
        return err;
    }
    *passed = pair[1];
    return 0;
}

static int answer(struct stream *stream, const struct vfio_user_header *req, const char *text,
                  const struct server_offer *offer, struct agreed_caps *agreed,
                  struct stream *twin)
{
    char *json = negotiate_answer(text, offer, agreed);
    struct vfio_user_version version = {
        .major = LIB_VFIO_USER_MAJOR,
        .minor = agreed->minor,
    };
    struct vfio_user_header hdr = {
        .msg_id = req->msg_id,
        .cmd = VFIO_USER_VERSION,
        .flags = VFIO_USER_F_TYPE_REPLY,
    };
    struct iovec iov[3] = {
        { .iov_base = &hdr, .iov_len = sizeof(hdr) },
        { .iov_base = &version, .iov_len = sizeof(version) },
        { .iov_base = json },
    };
    int passed = -1, err = 0;

    if (json == NULL) {
        return refuse(stream, req, -ENOMEM);
    }
    if (agreed->twin_socket) {
        err = make_twin(twin, &passed);
    }
    if (err < 0) {
        free(json);
        return refuse(stream, req, err);
    }
    iov[2].iov_len = strlen(json) + 1;
    hdr.msg_size = (uint32_t)(sizeof(hdr) + sizeof(version) + iov[2].iov_len);
    err = send_all(stream, iov, 3, &passed, passed == -1 ? 0 : 1);
    free(json);
    if (passed != -1) {
        close(passed);
        if (err < 0) {
            stream_close(twin);
        }
    }
    return err;
}

int negotiate(struct stream *stream, uint64_t deadline, const struct server_offer *offer,
              struct agreed_caps *agreed, struct stream *twin, const struct logger *log)
{
    struct vfio_user_header hdr;
    const char *text;
    int fds[STREAM_MAX_FDS], err;
    size_t nr_fds;
    uint16_t minor = 0;
    bool lost;

    err = receive_version(stream, deadline, &hdr, log);
    if (err < 0) {
        return err;
    }
    text = check_version(&hdr, stream_data(stream) + sizeof(hdr), &minor, &err, log);
    stream_consume(stream, hdr.msg_size, fds, &nr_fds, &lost);
    if (nr_fds > 0) {
        log_err(log, "VERSION: came with %zu file descriptors, must have none", nr_fds);
        while (nr_fds > 0) {
            close(fds[--nr_fds]);
        }
        return -EFAULT;
    }
    if (err == 0) {
        err = negotiate_parse(text, offer, agreed, log);
        agreed->twin_socket &= stream->is_socket;
    }
    if (err < 0) {
        return refuse(stream, &hdr, err);
    }
    agreed->minor = minor;
    return answer(stream, &hdr, text, offer, agreed, twin);
}
