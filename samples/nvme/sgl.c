/* SPDX-License-Identifier: BSD-3-Clause */
/* Scatter Gather Lists (NVMe 4.4). */
#include "nvme.h"

#include <string.h>

#define TYPE(descriptor) ((descriptor)->type >> 4)
#define SUBTYPE(descriptor) ((descriptor)->type & 0xf)

static uint16_t fault(struct command *cmd, uint16_t status, const char *why)
{
    cmd->why = why;
    return status | NVME_STATUS_DNR;
}

static uint16_t add(struct command *cmd, const struct nvme_sgl_descriptor *d, bool is_bucket)
{
    struct data *data = &cmd->data;

    if (d->length == 0) {
        return NVME_SC_SUCCESS;
    }
    if (d->length > data->len - data->found) {
        return fault(cmd, NVME_SC_DATA_SGL_LENGTH, "the SGL describes more than the transfer");
    }
    if (!is_bucket && d->address + (d->length - 1) < d->address) {
        return fault(cmd, NVME_SC_DATA_TRANSFER_ERROR, "an SGL data block wraps around");
    }
    return data_add(cmd, d->address, d->length, is_bucket);
}

/* A bucket takes what is read; when data is to be written, it has none. */
static uint16_t add_bucket(struct command *cmd, const struct nvme_sgl_descriptor *d)
{
    return cmd->data.prot & PROT_WRITE ? add(cmd, d, true) : NVME_SC_SUCCESS;
}

/* list_len is what this segment has left: a descriptor of another one must be its last. */
static uint16_t begin_segment(struct command *cmd, const struct nvme_sgl_descriptor *d)
{
    struct data *data = &cmd->data;

    if (data->last_segment) {
        return fault(cmd, NVME_SC_INVALID_SGL_SEGMENT, "the last SGL segment leads to another");
    }
    if (data->list_len > 0) {
        return fault(cmd, NVME_SC_INVALID_SGL_COUNT,
                     "an SGL segment descriptor is not the last of its segment");
    }
    if (d->length == 0 || d->length % sizeof(*d) != 0 ||
        d->address + (d->length - 1) < d->address) {
        return fault(cmd, NVME_SC_INVALID_SGL_SEGMENT, "an SGL segment has an impossible length");
    }
    data->last_segment = TYPE(d) == NVME_SGL_LAST_SEGMENT;
    data->list_addr = d->address;
    data->list_len = d->length;
    return NVME_SC_SUCCESS;
}

static uint16_t take(struct command *cmd, const struct nvme_sgl_descriptor *d)
{
    if (++cmd->data.nr_descriptors > DATA_MAX_DESCRIPTORS) {
        return fault(cmd, NVME_SC_INVALID_SGL_COUNT, "the SGL has too many descriptors");
    }
    if (SUBTYPE(d) != 0) {
        return fault(cmd, NVME_SC_SGL_TYPE, "an SGL descriptor's subtype is not supported");
    }
    switch (TYPE(d)) {
    case NVME_SGL_DATA_BLOCK:
        return add(cmd, d, false);
    case NVME_SGL_BIT_BUCKET:
        return add_bucket(cmd, d);
    case NVME_SGL_SEGMENT:
    case NVME_SGL_LAST_SEGMENT:
        return begin_segment(cmd, d);
    default:
        return fault(cmd, NVME_SC_SGL_TYPE, "an SGL descriptor's type is not supported");
    }
}

/* Nothing follows: all of the transfer must have been described, and the last segment reached. */
static uint16_t check_end(struct command *cmd)
{
    struct data *data = &cmd->data;

    if (data->list_len > 0) {
        return NVME_SC_SUCCESS;
    }
    if (!data->last_segment) {
        return fault(cmd, NVME_SC_INVALID_SGL_SEGMENT, "an SGL segment leads to no other");
    }
    if (data->found < data->len) {
        return fault(cmd, NVME_SC_DATA_SGL_LENGTH, "the SGL describes less than the transfer");
    }
    return NVME_SC_SUCCESS;
}

static uint16_t parse(struct command *cmd, const void *list, size_t len)
{
    struct data *data = &cmd->data;
    uint64_t behind = data->list_len;
    uint16_t status = NVME_SC_SUCCESS;
    struct nvme_sgl_descriptor d;

    for (size_t i = 0; i < len && status == NVME_SC_SUCCESS; i += sizeof(d)) {
        memcpy(&d, (const char *)list + i, sizeof(d));
        data->list_len = behind + (len - i - sizeof(d));
        status = take(cmd, &d);
    }
    return status == NVME_SC_SUCCESS ? check_end(cmd) : status;
}

uint16_t sgl_begin(struct command *cmd)
{
    const struct nvme_sgl_descriptor *d = &cmd->sqe.sgl;
    uint16_t status;

    cmd->data.parse = parse;
    cmd->data.list_entry = sizeof(*d);
    status = take(cmd, d);
    if (status == NVME_SC_SUCCESS && cmd->data.list_len == 0) {
        cmd->data.last_segment = true;
        status = check_end(cmd);
    }
    return status;
}
