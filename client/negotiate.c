/* SPDX-License-Identifier: BSD-3-Clause */
/* The version message, proposed and answered. */
#include "client.h"
#include "wire/capabilities.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define MAJOR 0
#define MINOR 2
#define MAX_ANSWER 65536
#define DEFAULT_PAGE_SIZE 4096 /* of dirty pages, when the server names none */

static size_t write_proposal(const struct vfuc *client, char text[CAPABILITIES_MAX_TEXT])
{
    const vfuc_iommu_proposal_t *iommu = &client->options.iommu;
    const struct capabilities proposal = {
        .max_msg_fds = CLIENT_MAX_FDS,
        .max_data_xfer_size = client->options.max_data_xfer_size,
        .write_multiple = true,
        .migration = {
            .pgsize = (uint32_t)sysconf(_SC_PAGESIZE),
            .max_bitmap_size = CLIENT_MAX_DATA,
        },
        .iommu = {
            .present = iommu->pasid_bits > 0 || iommu->ats_queue_depth > 0,
            .pasid = { iommu->pasid_bits > 0, iommu->pasid_exec, iommu->pasid_priv,
                       iommu->pasid_bits },
            .ats = { iommu->ats_queue_depth > 0, iommu->ats_queue_depth, iommu->ats_page_shift,
                     iommu->ats_max_entries },
            .pri = { iommu->pri_max_requests > 0, iommu->pri_max_requests },
        },
        .named = { .max_msg_fds = true, .max_data_xfer_size = true, .migration = true },
    };

    return capabilities_write(&proposal, text);
}

/* Nothing that was not proposed, and no more of it. */
static bool within_proposal(const struct iommu_caps *iommu, const vfuc_iommu_proposal_t *proposed)
{
    return (!iommu->pasid.present ||
            (proposed->pasid_bits > 0 && iommu->pasid.bits <= proposed->pasid_bits &&
             iommu->pasid.exec <= proposed->pasid_exec &&
             iommu->pasid.priv <= proposed->pasid_priv)) &&
           (!iommu->ats.present ||
            (proposed->ats_queue_depth > 0 &&
             iommu->ats.queue_depth <= proposed->ats_queue_depth &&
             iommu->ats.page_shift >= proposed->ats_page_shift &&
             iommu->ats.max_entries <= proposed->ats_max_entries)) &&
           (!iommu->pri.present ||
            (proposed->pri_max_requests > 0 &&
             iommu->pri.max_requests <= proposed->pri_max_requests));
}

static void take_iommu(const struct iommu_caps *iommu, vfuc_iommu_proposal_t *agreed)
{
    if (iommu->pasid.present) {
        agreed->pasid_bits = iommu->pasid.bits;
        agreed->pasid_exec = iommu->pasid.exec;
        agreed->pasid_priv = iommu->pasid.priv;
    }
    if (iommu->ats.present) {
        agreed->ats_queue_depth = iommu->ats.queue_depth;
        agreed->ats_page_shift = iommu->ats.page_shift;
        agreed->ats_max_entries = iommu->ats.max_entries;
    }
    if (iommu->pri.present) {
        agreed->pri_max_requests = iommu->pri.max_requests;
    }
}

static int read_answer(struct vfuc *client, const char *text, vfuc_agreed_t *agreed)
{
    const vfuc_iommu_proposal_t *proposed = &client->options.iommu;
    struct capabilities caps;
    char why[CAPABILITIES_MAX_WHY];

    capabilities_default(&caps);
    caps.migration.pgsize = DEFAULT_PAGE_SIZE;
    /* A member that the answer leaves out has the value that was proposed. */
    caps.iommu.pasid.bits = proposed->pasid_bits;
    caps.iommu.ats.queue_depth = proposed->ats_queue_depth;
    caps.iommu.ats.page_shift = proposed->ats_page_shift;
    caps.iommu.ats.max_entries = proposed->ats_max_entries;
    caps.iommu.pri.max_requests = proposed->pri_max_requests;
    if (capabilities_read(text, &caps, true, why) < 0) {
        client_log(client, "VERSION: the server's answer is refused: %s", why);
        return -EPROTO;
    }
    if (caps.max_data_xfer_size > INT32_MAX || !within_proposal(&caps.iommu, proposed)) {
        client_log(client, "VERSION: the server's answer is refused: it exceeds the proposal");
        return -EPROTO;
    }
    agreed->max_msg_fds = caps.max_msg_fds;
    agreed->max_data_xfer_size = caps.max_data_xfer_size < CLIENT_MAX_DATA
                                     ? caps.max_data_xfer_size : CLIENT_MAX_DATA;
    agreed->write_multiple = caps.write_multiple;
    agreed->migration_page_size = caps.named.migration ? caps.migration.pgsize : 0;
    take_iommu(&caps.iommu, &agreed->iommu);
    return 0;
}

static int check_answer(const struct vfio_user_header *hdr)
{
    if (hdr->msg_id != 0 || hdr->cmd != VFIO_USER_VERSION || hdr->msg_size < sizeof(*hdr) ||
        (hdr->flags & VFIO_USER_F_TYPE_MASK) != VFIO_USER_F_TYPE_REPLY) {
        return -EPROTO;
    }
    if (hdr->flags & VFIO_USER_F_ERROR) {
        return hdr->error_no == 0 || hdr->error_no > 4096 ? -EPROTO : -(int)hdr->error_no;
    }
    if (hdr->msg_size < sizeof(*hdr) + sizeof(struct vfio_user_version) ||
        hdr->msg_size > MAX_ANSWER) {
        return -EPROTO;
    }
    return 0;
}

/* The length of what follows the header, in client->buf, or -errno. */
static ssize_t receive_answer(struct vfuc *client)
{
    struct inbox inbox = { .deadline = client_now_ms() + client->options.timeout_ms };
    struct vfio_user_header hdr = { 0 };
    int err = client_receive_exact(client, &inbox, &hdr, sizeof(hdr));

    err = err < 0 ? err : check_answer(&hdr);
    if (err == 0) {
        err = client_receive_exact(client, &inbox, client->buf, hdr.msg_size - sizeof(hdr));
    }
    client_close_inbox(&inbox);
    return err < 0 ? err : (ssize_t)(hdr.msg_size - sizeof(hdr));
}

static int receive_agreed(struct vfuc *client, vfuc_agreed_t *agreed)
{
    struct vfio_user_version version;
    ssize_t len = receive_answer(client);

    if (len < 0) {
        return (int)len;
    }
    memcpy(&version, client->buf, sizeof(version));
    if (version.major != MAJOR || version.minor > MINOR) {
        client_log(client, "server speaks version %u.%u", version.major, version.minor);
        return -EPROTO;
    }
    if ((size_t)len == sizeof(version)) {
        return 0;
    }
    if (client->buf[len - 1] != '\0' ||
        strlen((char *)client->buf + sizeof(version)) != (size_t)len - sizeof(version) - 1) {
        return -EPROTO;
    }
    return read_answer(client, (const char *)client->buf + sizeof(version), agreed);
}

static int send_proposal(struct vfuc *client)
{
    char text[CAPABILITIES_MAX_TEXT];
    struct vfio_user_version version = { .major = MAJOR, .minor = MINOR };
    const struct vfio_user_header hdr = { .cmd = VFIO_USER_VERSION };
    const struct iovec out[2] = {
        { &version, sizeof(version) },
        { text, write_proposal(client, text) + 1 },
    };
    uint64_t epoch;
    int err = client_epoch(client, &epoch);

    return err < 0 ? err : client_send(client, epoch, &hdr, out, 2, NULL, 0);
}

int client_negotiate(struct vfuc *client, vfuc_agreed_t *agreed)
{
    int err = send_proposal(client);

    memset(agreed, 0, sizeof(*agreed));
    agreed->max_msg_fds = 1;
    agreed->max_data_xfer_size = VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE;
    err = err < 0 ? err : receive_agreed(client, agreed);
    if (err == -EPROTO) {
        client_log(client, "server's answer to VERSION makes no sense");
    }
    return err;
}
