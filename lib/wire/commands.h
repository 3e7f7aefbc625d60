/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_WIRE_COMMANDS_H
#define VFU_WIRE_COMMANDS_H

#include "vfio-user.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Our largest data transfer, and what we offer as max_data_xfer_size. */
#define WIRE_MAX_DATA_XFER (1024u * 1024u)

/*
 * The largest message taken: a full data transfer behind its fixed part, as in libvfio-user 0.x.
 * None of the client's messages has a PASID prefix and data.
 */
#define WIRE_MAX_MESSAGE                                                                           \
    (sizeof(struct vfio_user_header) + sizeof(struct vfio_user_region_access) + WIRE_MAX_DATA_XFER)

/* The largest error number taken from a reply, as the kernel's MAX_ERRNO would allow. */
#define WIRE_MAX_ERRNO 4096

/* Who sends a command. */
enum command_from {
    FROM_CLIENT = 1,
    FROM_SERVER = 2,
};

enum command_trait {
    CMD_ARGSZ = 1 << 0, /* begins with argsz, which must be at least the fixed part */
    CMD_QUIESCE = 1 << 1, /* the device is quiesced around it */
    CMD_PREFIX = 1 << 2, /* may carry VFIO_USER_F_PASID */
    CMD_TRANSLATED = 1 << 3, /* may carry VFIO_USER_F_TRANSLATED */
    CMD_ATS = 1 << 4, /* exists only when ATS was negotiated */
    CMD_PRI = 1 << 5, /* exists only when PRI was negotiated */
    CMD_ANYTIME = 1 << 6, /* does not wait while another command has the device quiesce */
};

struct command_rule {
    const char *name;
    enum command_from from; /* 0: no such command */
    uint32_t min_payload; /* the fixed part of the request, without the PASID prefix */
    uint32_t max_payload; /* 0: up to the largest message */
    uint32_t min_reply; /* the fixed part of a success reply, for commands of the server */
    uint32_t max_fds; /* descriptors beyond these are closed */
    uint32_t traits;
};

/* NULL for a number that is no command. */
const struct command_rule *command_rule(uint16_t cmd);

/* The traits of a command, 0 for an unknown one. */
uint32_t command_traits(uint16_t cmd);

/* The command's name for log lines, never NULL. */
const char *command_name(uint16_t cmd);

struct logger;

/* What the version negotiation enabled, as far as framing is concerned. */
struct wire_features {
    bool pasid;
    bool ats;
    bool pri;
    uint32_t pasid_bits;
};

/*
 * The checks that hold for each request of a client, driven by the table alone: known command and
 * direction, flags, prefix, payload length, argsz. Returns 0, or the negative errno for the reply
 * after a log line that names the field. payload starts behind the header.
 */
int wire_check_request(const struct vfio_user_header *hdr, const uint8_t *payload, size_t len,
                       const struct wire_features *features, const struct logger *log);

static inline bool wire_is_reply(const struct vfio_user_header *hdr)
{
    return (hdr->flags & VFIO_USER_F_TYPE_MASK) == VFIO_USER_F_TYPE_REPLY;
}

static inline bool wire_size_ok(const struct vfio_user_header *hdr)
{
    return hdr->msg_size >= sizeof(*hdr) && hdr->msg_size <= WIRE_MAX_MESSAGE;
}

#endif /* VFU_WIRE_COMMANDS_H */
