/* SPDX-License-Identifier: BSD-3-Clause */
/* Identify (NVMe 5.15). */
#include "nvme.h"

#include <string.h>

#define MODEL "vfio-user NVMe controller"
#define FIRMWARE "1.0"
#define SHUTDOWN_US 1000000

/* Texts are padded with blanks. */
static void put_text(char *field, size_t size, const char *text)
{
    size_t len = strnlen(text, size);

    memset(field, ' ', size);
    memcpy(field, text, len);
}

static void identify_controller(struct command *cmd)
{
    struct nvme *nvme = cmd->worker->nvme;
    const vfu_pci_hdr_t *hdr = &vfu_pci_get_config_space(nvme->ctx)->hdr;
    struct nvme_identify_controller id = {
        .vid = hdr->id.vid,
        .ssvid = hdr->ss.vid,
        .rab = 6,
        .ieee = { NVME_OUI & 0xff, NVME_OUI >> 8 & 0xff, NVME_OUI >> 16 },
        .mdts = NVME_MDTS,
        .cntlid = nvme->identity.cntlid,
        .ver = NVME_VERSION_1_4,
        .rtd3r = SHUTDOWN_US,
        .rtd3e = SHUTDOWN_US,
        .oaes = NVME_OAES_NAMESPACES,
        .ctratt = NVME_CTRATT_HOST_ID_128,
        .cntrltype = 1,
        .oacs = NVME_OACS_DOORBELL_BUFFER,
        .acl = ADMIN_ABORT_LIMIT - 1,
        .aerl = ADMIN_EVENT_LIMIT - 1,
        .frmw = 1 << 1 | 1, /* one slot, read-only */
        .lpa = NVME_LPA_EFFECTS | NVME_LPA_EXTENDED,
        .elpe = ADMIN_ERROR_ENTRIES - 1,
        .wctemp = ADMIN_WARNING_TEMPERATURE,
        .cctemp = ADMIN_CRITICAL_TEMPERATURE,
        .sqes = 6 << 4 | 6,
        .cqes = 4 << 4 | 4,
        .nn = nvme->nr_namespaces,
        .oncs = NVME_ONCS_COMPARE | NVME_ONCS_DSM | NVME_ONCS_WRITE_ZEROES |
                NVME_ONCS_FEATURE_SELECT | NVME_ONCS_TIMESTAMP | NVME_ONCS_VERIFY,
        .vwc = NVME_VWC_PRESENT | NVME_VWC_FLUSH_ALL,
        .sgls = NVME_SGLS_SUPPORTED | NVME_SGLS_BIT_BUCKET,
        .psd = { { .max_power = 2500 } },
    };

    put_text(id.sn, sizeof(id.sn), nvme->identity.serial);
    put_text(id.mn, sizeof(id.mn), MODEL);
    put_text(id.fr, sizeof(id.fr), FIRMWARE);
    memcpy(id.subnqn, nvme->identity.subnqn, sizeof(nvme->identity.subnqn));
    data_reply(cmd, &id, sizeof(id));
}

static void identify_namespace(struct command *cmd)
{
    const struct namespace *ns = nvme_namespace(cmd->worker->nvme, cmd->sqe.nsid);
    struct nvme_identify_namespace id = { 0 };
    const struct namespace_identity *names;

    if (ns == NULL) {
        command_fail(cmd, NVME_SC_INVALID_NAMESPACE, "there is no such namespace");
        return;
    }
    names = &cmd->worker->nvme->identity.namespaces[ns->id - 1];
    memcpy(id.nguid, names->nguid, sizeof(id.nguid));
    memcpy(id.eui64, names->eui64, sizeof(id.eui64));
    id.nsze = ns->blocks;
    id.ncap = ns->blocks;
    id.nuse = ns->blocks;
    id.lbaf[0].lbads = (uint8_t)ns->block_shift;
    data_reply(cmd, &id, sizeof(id));
}

/* The namespaces behind the one that the command names, in order. */
static void active_list(struct command *cmd)
{
    struct nvme *nvme = cmd->worker->nvme;
    uint32_t list[NVME_IDENTIFY_SIZE / sizeof(uint32_t)] = { 0 };

    if (cmd->sqe.nsid >= NVME_NSID_ALL - 1) {
        command_fail(cmd, NVME_SC_INVALID_NAMESPACE, "no namespace can follow this one");
        return;
    }
    for (uint32_t i = 0;
         cmd->sqe.nsid < nvme->nr_namespaces && i < nvme->nr_namespaces - cmd->sqe.nsid; i++) {
        list[i] = cmd->sqe.nsid + 1 + i;
    }
    data_reply(cmd, list, sizeof(list));
}

/* Appends a namespace identification descriptor (figure 249). Returns where the next one goes. */
static uint8_t *add_descriptor(uint8_t *at, enum nvme_descriptor_type type, const uint8_t *id,
                               uint8_t len)
{
    at[0] = (uint8_t)type;
    at[1] = len;
    memcpy(at + 4, id, len);
    return at + 4 + len;
}

static void descriptors(struct command *cmd)
{
    const struct namespace *ns = nvme_namespace(cmd->worker->nvme, cmd->sqe.nsid);
    uint8_t list[NVME_IDENTIFY_SIZE] = { 0 }, *at = list;
    const struct namespace_identity *id;

    if (ns == NULL) {
        command_fail(cmd, NVME_SC_INVALID_NAMESPACE, "there is no such namespace");
        return;
    }
    id = &cmd->worker->nvme->identity.namespaces[ns->id - 1];
    at = add_descriptor(at, NVME_DESCRIPTOR_EUI64, id->eui64, sizeof(id->eui64));
    at = add_descriptor(at, NVME_DESCRIPTOR_NGUID, id->nguid, sizeof(id->nguid));
    (void)add_descriptor(at, NVME_DESCRIPTOR_UUID, id->uuid, sizeof(id->uuid));
    data_reply(cmd, list, sizeof(list));
}

static void (*const structures[])(struct command *cmd) = {
    [NVME_CNS_NAMESPACE] = identify_namespace,
    [NVME_CNS_CONTROLLER] = identify_controller,
    [NVME_CNS_ACTIVE_LIST] = active_list,
    [NVME_CNS_DESCRIPTORS] = descriptors,
};

void admin_identify(struct command *cmd)
{
    unsigned cns = cmd->sqe.cdw10 & 0xff;

    if (cns >= sizeof(structures) / sizeof(structures[0])) {
        command_fail(cmd, NVME_SC_INVALID_FIELD, "there is no such structure to identify");
        return;
    }
    structures[cns](cmd);
}
