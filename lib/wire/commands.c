/* SPDX-License-Identifier: BSD-3-Clause */
#include "wire/commands.h"

#include "transport/stream.h"
#include "util/log.h"

#include <errno.h>
#include <string.h>

#define RULE(cmd, ...) [VFIO_USER_##cmd] = { .name = #cmd, __VA_ARGS__ }

#define CLIENT(cmd, min, max, fds, bits)                                                           \
    RULE(cmd, .from = FROM_CLIENT, .min_payload = (min), .max_payload = (max), .max_fds = (fds),   \
         .traits = (bits))

#define SERVER(cmd, reply, bits)                                                                   \
    RULE(cmd, .from = FROM_SERVER, .min_reply = (reply), .traits = (bits))

/* The rules of every command, in one place. Sizes are those of the vfio-user protocol, in bytes. */
static const struct command_rule rules[] = {
    CLIENT(VERSION, 4, 0, 0, 0),
    CLIENT(DMA_MAP, 32, 0, 1, CMD_ARGSZ | CMD_QUIESCE | CMD_PREFIX | CMD_TRANSLATED),
    CLIENT(DMA_UNMAP, 24, 0, 0, CMD_ARGSZ | CMD_QUIESCE | CMD_PREFIX | CMD_TRANSLATED),
    CLIENT(DEVICE_GET_INFO, 16, 0, 0, CMD_ARGSZ),
    CLIENT(DEVICE_GET_REGION_INFO, 32, 0, 0, CMD_ARGSZ),
    CLIENT(DEVICE_GET_REGION_IO_FDS, 16, 0, 0, CMD_ARGSZ),
    CLIENT(DEVICE_GET_IRQ_INFO, 16, 0, 0, CMD_ARGSZ),
    CLIENT(DEVICE_SET_IRQS, 20, 0, STREAM_MAX_FDS, CMD_ARGSZ),
    CLIENT(REGION_READ, 16, 0, 0, 0),
    CLIENT(REGION_WRITE, 16, 0, 0, 0),
    SERVER(DMA_READ, 16, CMD_PREFIX | CMD_TRANSLATED),
    SERVER(DMA_WRITE, 0, CMD_PREFIX | CMD_TRANSLATED),
    CLIENT(DEVICE_RESET, 0, 0, 0, CMD_QUIESCE),
    CLIENT(REGION_WRITE_MULTI, 8, 0, 0, 0),
    CLIENT(DEVICE_FEATURE, 8, 0, 0, 0),
    CLIENT(MIG_DATA_READ, 8, 0, 0, 0),
    CLIENT(MIG_DATA_WRITE, 8, 0, 0, 0),
    SERVER(ATS_TRANSLATE, 16, CMD_PREFIX | CMD_ATS),
    CLIENT(ATS_INVALIDATE, 24, 24, 0, CMD_ARGSZ | CMD_PREFIX | CMD_ATS | CMD_ANYTIME),
    SERVER(PAGE_REQUEST, 8, CMD_PREFIX | CMD_PRI),
};

const struct command_rule *command_rule(uint16_t cmd)
{
    if (cmd >= sizeof(rules) / sizeof(rules[0]) || rules[cmd].from == 0) {
        return NULL;
    }
    return &rules[cmd];
}

uint32_t command_traits(uint16_t cmd)
{
    const struct command_rule *rule = command_rule(cmd);

    return rule != NULL ? rule->traits : 0;
}

const char *command_name(uint16_t cmd)
{
    const struct command_rule *rule = command_rule(cmd);

    return rule != NULL ? rule->name : "unknown command";
}

static bool bit_clear(uint32_t flags, uint32_t bit)
{
    return (flags & bit) == 0;
}

/* The IOMMU extension's flag bits and prefix. Returns the size of the prefix or -errno. */
static int check_prefix(const struct vfio_user_header *hdr, const struct command_rule *rule,
                        const uint8_t *payload, size_t len, const struct wire_features *features,
                        const struct logger *log)
{
    const uint32_t bits = hdr->flags & (VFIO_USER_F_PASID | VFIO_USER_F_TRANSLATED);
    const uint32_t attrs = VFIO_USER_PASID_ATTR_EXEC | VFIO_USER_PASID_ATTR_PRIV;
    struct vfio_user_pasid_prefix prefix;

    if (bits == 0) {
        return 0;
    }
    if ((!bit_clear(bits, VFIO_USER_F_PASID) && !features->pasid) ||
        (!bit_clear(bits, VFIO_USER_F_TRANSLATED) && !features->ats)) {
        log_err(log, "%s id %u: flags 0x%x use a part of the IOMMU extension that was not "
                "negotiated", rule->name, hdr->msg_id, hdr->flags);
        return -ENOTSUP;
    }
    if (bits == (VFIO_USER_F_PASID | VFIO_USER_F_TRANSLATED) ||
        (!bit_clear(bits, VFIO_USER_F_PASID) && bit_clear(rule->traits, CMD_PREFIX)) ||
        (!bit_clear(bits, VFIO_USER_F_TRANSLATED) && bit_clear(rule->traits, CMD_TRANSLATED))) {
        log_err(log, "%s id %u: flags 0x%x are not allowed with this command", rule->name,
                hdr->msg_id, hdr->flags);
        return -EINVAL;
    }
    if (bits == VFIO_USER_F_TRANSLATED) {
        return 0;
    }
    if (len < sizeof(prefix)) {
        log_err(log, "%s id %u: payload of %zu bytes is too short for a PASID prefix", rule->name,
                hdr->msg_id, len);
        return -EINVAL;
    }
    memcpy(&prefix, payload, sizeof(prefix));
    if (prefix.pasid >> features->pasid_bits != 0 || (prefix.attrs & ~attrs) != 0) {
        log_err(log, "%s id %u: PASID prefix 0x%x, attrs 0x%x out of range (%u PASID bits)",
                rule->name, hdr->msg_id, prefix.pasid, prefix.attrs, features->pasid_bits);
        return -EINVAL;
    }
    return sizeof(prefix);
}

static int check_payload(const struct vfio_user_header *hdr, const struct command_rule *rule,
                         const uint8_t *payload, size_t len, const struct logger *log)
{
    uint32_t argsz;

    if (len < rule->min_payload || (rule->max_payload != 0 && len > rule->max_payload)) {
        log_err(log, "%s id %u: payload of %zu bytes, need at least %u%s", rule->name, hdr->msg_id,
                len, rule->min_payload, rule->max_payload != 0 ? " and no more" : "");
        return -EINVAL;
    }
    if (rule->traits & CMD_ARGSZ) {
        memcpy(&argsz, payload, sizeof(argsz));
        if (argsz < rule->min_payload) {
            log_err(log, "%s id %u: argsz %u is below %u", rule->name, hdr->msg_id, argsz,
                    rule->min_payload);
            return -EINVAL;
        }
    }
    return 0;
}

int wire_check_request(const struct vfio_user_header *hdr, const uint8_t *payload, size_t len,
                       const struct wire_features *features, const struct logger *log)
{
    const struct command_rule *rule = command_rule(hdr->cmd);
    int prefix;

    if ((hdr->flags & VFIO_USER_F_TYPE_MASK) != VFIO_USER_F_TYPE_COMMAND) {
        log_err(log, "%s id %u: flags 0x%x are of neither a command nor a reply",
                command_name(hdr->cmd), hdr->msg_id, hdr->flags);
        return -EINVAL;
    }
    if (rule == NULL || rule->from != FROM_CLIENT) {
        log_err(log, "command %u (%s) id %u is not one a client sends", hdr->cmd,
                command_name(hdr->cmd), hdr->msg_id);
        return -EINVAL;
    }
    if (((rule->traits & CMD_ATS) && !features->ats) ||
        ((rule->traits & CMD_PRI) && !features->pri)) {
        log_err(log, "%s id %u: this part of the IOMMU extension was not negotiated", rule->name,
                hdr->msg_id);
        return -ENOTSUP;
    }
    prefix = check_prefix(hdr, rule, payload, len, features, log);
    if (prefix < 0) {
        return prefix;
    }
    return check_payload(hdr, rule, payload + prefix, len - (size_t)prefix, log);
}
