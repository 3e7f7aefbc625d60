/* SPDX-License-Identifier: BSD-3-Clause */
#include "wire/capabilities.h"

#include "vfio-user.h"
#include "wire/json.h"

#include <string.h>

/* More descriptors than this are never in one message: the kernel passes 253. */
#define MAX_MSG_FDS 1024
#define DEFAULT_MSG_FDS 1

#define INTEGER(key, low, high, where)                                                             \
    { .name = (key), .type = JSON_INT, .min = (low), .max = (high), .out = &(where) }
#define BOOLEAN(key, where) { .name = (key), .type = JSON_BOOL, .out = &(where) }
#define OBJECT(key, table, there)                                                                  \
    { .name = (key), .type = JSON_OBJECT, .members = (table),                                      \
      .nr_members = sizeof(table) / sizeof((table)[0]), .present = (there) }

void capabilities_default(struct capabilities *caps)
{
    *caps = (struct capabilities){
        .max_msg_fds = DEFAULT_MSG_FDS,
        .max_data_xfer_size = VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE,
        .iommu = {
            .pasid = { .bits = 20 },
            .ats = { .queue_depth = 32, .page_shift = 12, .max_entries = 64 },
            .pri = { .max_requests = 512 },
        },
    };
}

int capabilities_read(const char *text, struct capabilities *caps, bool migration,
                      char why[CAPABILITIES_MAX_WHY])
{
    struct iommu_caps *io = &caps->iommu;
    const struct json_member pasid_members[] = {
        INTEGER("bits", 1, 20, io->pasid.bits),
        BOOLEAN("exec", io->pasid.exec),
        BOOLEAN("priv", io->pasid.priv),
    };
    const struct json_member ats_members[] = {
        INTEGER("queue_depth", 1, 32, io->ats.queue_depth),
        INTEGER("page_shift", 12, 63, io->ats.page_shift),
        INTEGER("max_entries", 1, INT32_MAX, io->ats.max_entries),
    };
    const struct json_member pri_members[] = {
        INTEGER("max_requests", 1, INT32_MAX, io->pri.max_requests),
    };
    const struct json_member iommu_members[] = {
        OBJECT("pasid", pasid_members, &io->pasid.present),
        OBJECT("ats", ats_members, &io->ats.present),
        OBJECT("pri", pri_members, &io->pri.present),
    };
    const struct json_member twin_members[] = { BOOLEAN("supported", caps->twin_socket) };
    const struct json_member migration_members[] = {
        INTEGER("pgsize", 0, INT32_MAX, caps->migration.pgsize),
    };
    struct json_member members[] = {
        INTEGER("max_msg_fds", 0, MAX_MSG_FDS, caps->max_msg_fds),
        INTEGER("max_data_xfer_size", 1, INT64_MAX, caps->max_data_xfer_size),
        BOOLEAN("write_multiple", caps->write_multiple),
        OBJECT("twin_socket", twin_members, NULL),
        OBJECT("migration", migration_members, &caps->named.migration),
        OBJECT("iommu", iommu_members, &io->present),
    };
    const struct json_member root[] = { OBJECT("capabilities", members, NULL) };

    members[0].present = &caps->named.max_msg_fds;
    members[1].present = &caps->named.max_data_xfer_size;
    if (!migration) {
        members[4].type = JSON_ANY;
    }
    return text == NULL ? 0 : json_read(text, root, 1, why, CAPABILITIES_MAX_WHY);
}

static void write_iommu(struct json_out *out, const struct iommu_caps *iommu)
{
    json_open(out, "iommu");
    if (iommu->pasid.present) {
        json_open(out, "pasid");
        json_uint(out, "bits", iommu->pasid.bits);
        if (iommu->pasid.exec) {
            json_bool(out, "exec", true);
        }
        if (iommu->pasid.priv) {
            json_bool(out, "priv", true);
        }
        json_close(out);
    }
    if (iommu->ats.present) {
        json_open(out, "ats");
        json_uint(out, "queue_depth", iommu->ats.queue_depth);
        json_uint(out, "page_shift", iommu->ats.page_shift);
        json_uint(out, "max_entries", iommu->ats.max_entries);
        json_close(out);
    }
    if (iommu->pri.present) {
        json_open(out, "pri");
        json_uint(out, "max_requests", iommu->pri.max_requests);
        json_close(out);
    }
    json_close(out);
}

static void write_migration(struct json_out *out, const struct capabilities *caps)
{
    json_open(out, "migration");
    json_uint(out, "pgsize", caps->migration.pgsize);
    if (caps->migration.max_bitmap_size > 0) {
        json_uint(out, "max_bitmap_size", caps->migration.max_bitmap_size);
    }
    json_close(out);
}

size_t capabilities_write(const struct capabilities *caps, char text[CAPABILITIES_MAX_TEXT])
{
    struct json_out out;
    int len;

    json_begin(&out, text, CAPABILITIES_MAX_TEXT);
    json_open(&out, "capabilities");
    if (caps->named.max_msg_fds) {
        json_uint(&out, "max_msg_fds", caps->max_msg_fds);
    }
    if (caps->named.max_data_xfer_size) {
        json_uint(&out, "max_data_xfer_size", caps->max_data_xfer_size);
    }
    if (caps->named.migration) {
        write_migration(&out, caps);
    }
    if (caps->twin_socket) {
        json_open(&out, "twin_socket");
        json_bool(&out, "supported", true);
        json_uint(&out, "fd_index", 0);
        json_close(&out);
    }
    if (caps->write_multiple) {
        json_bool(&out, "write_multiple", true);
    }
    if (caps->iommu.present) {
        write_iommu(&out, &caps->iommu);
    }
    json_close(&out);
    len = json_end(&out);
    return len < 0 ? 0 : (size_t)len;
}
