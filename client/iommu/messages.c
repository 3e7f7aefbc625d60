/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands of the server: which are ours, and what is wrong with them. */
#include "iommu/iommu.h"

#include <errno.h>
#include <string.h>

/* What a command is, and what it needs to have been agreed on. */
struct kind {
    uint16_t cmd;
    bool ats, pri; /* part of these */
    bool translated; /* may have F_TRANSLATED */
    int (*serve)(struct message *msg);
};

static const struct kind kinds[] = {
    { VFIO_USER_DMA_READ, false, false, true, serve_dma },
    { VFIO_USER_DMA_WRITE, false, false, true, serve_dma },
    { VFIO_USER_ATS_TRANSLATE, true, false, false, serve_translate },
    { VFIO_USER_PAGE_REQUEST, true, true, false, serve_page_request },
};

void message_reply(const struct message *msg, int error, const void *payload, size_t len)
{
    if (!(msg->hdr->flags & VFIO_USER_F_NO_REPLY)) {
        vfuc_reply(msg->client, msg->hdr->msg_id, msg->hdr->cmd, error, payload, len);
    }
}

int message_refuse(const struct message *msg, int error, const char *why)
{
    struct vfuc_iommu *iommu = msg->iommu;

    client_log(msg->client, "server's command %u, id %u: %s", msg->hdr->cmd, msg->hdr->msg_id,
               why);
    pthread_mutex_lock(&iommu->lock);
    iommu->stats.refused++;
    pthread_mutex_unlock(&iommu->lock);
    return error;
}

/* vfio-user IOMMU extension, PFX: in this order. */
static int check_flags(const struct message *msg, const struct kind *kind)
{
    const vfuc_iommu_proposal_t *agreed = &msg->iommu->agreed.iommu;
    bool tagged = (msg->hdr->flags & VFIO_USER_F_PASID) != 0;
    bool translated = (msg->hdr->flags & VFIO_USER_F_TRANSLATED) != 0;

    if ((tagged && agreed->pasid_bits == 0) ||
        ((translated || kind->ats) && agreed->ats_queue_depth == 0) ||
        (kind->pri && agreed->pri_max_requests == 0)) {
        return message_refuse(msg, ENOTSUP, "uses what was not agreed on");
    }
    if (translated && (tagged || !kind->translated)) {
        return message_refuse(msg, EINVAL, "flags contradict each other");
    }
    return 0;
}

static int take_prefix(struct message *msg)
{
    const vfuc_iommu_proposal_t *agreed = &msg->iommu->agreed.iommu;
    const uint32_t known = (agreed->pasid_exec ? VFIO_USER_PASID_ATTR_EXEC : 0u) |
                           (agreed->pasid_priv ? VFIO_USER_PASID_ATTR_PRIV : 0u);
    struct vfio_user_pasid_prefix prefix;

    msg->space = (struct space_of){ .pasid = VFUC_NO_PASID };
    if (!(msg->hdr->flags & VFIO_USER_F_PASID)) {
        return 0;
    }
    if (msg->len < sizeof(prefix)) {
        return message_refuse(msg, EINVAL, "is too short for its PASID prefix");
    }
    memcpy(&prefix, msg->payload, sizeof(prefix));
    if (prefix.pasid >> agreed->pasid_bits != 0 || (prefix.attrs & ~known) != 0) {
        return message_refuse(msg, EINVAL, "has a PASID or attributes that were not agreed on");
    }
    msg->space = (struct space_of){ .pasid = prefix.pasid, .attrs = prefix.attrs };
    msg->payload += sizeof(prefix);
    msg->len -= sizeof(prefix);
    return 0;
}

bool iommu_command(struct vfuc_unit *unit, struct vfuc *client, const struct vfio_user_header *hdr,
                   uint8_t *payload, size_t len)
{
    struct vfuc_iommu *iommu = (struct vfuc_iommu *)unit;
    struct message msg = {
        .iommu = iommu,
        .client = client,
        .hdr = hdr,
        .payload = payload,
        .len = len,
    };
    const struct kind *kind = NULL;
    int error;

    msg.restoring = iommu_meet(iommu, client) == CLIENT_RESTORING;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (kinds[i].cmd == hdr->cmd) {
            kind = &kinds[i];
        }
    }
    if (kind == NULL || iommu->mode == VFUC_IOMMU_NONE) {
        return false;
    }
    error = check_flags(&msg, kind);
    error = error != 0 ? error : take_prefix(&msg);
    error = error != 0 ? error : kind->serve(&msg);
    if (error != 0) {
        message_reply(&msg, error, NULL, 0);
    }
    return true;
}
