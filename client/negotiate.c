/* SPDX-License-Identifier: BSD-3-Clause */
/* The version message, proposed and answered. */
#include "client.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAJOR 0
#define MINOR 2
#define MAX_ANSWER 65536
#define MAX_DEPTH 8
#define DEFAULT_PAGE_SIZE 4096 /* of dirty pages, when the server names none */

static struct json_object *child(struct json_object *obj, const char *name)
{
    struct json_object *part = json_object_new_object();

    json_object_object_add(obj, name, part);
    return part;
}

static void add_int(struct json_object *obj, const char *name, uint32_t value)
{
    json_object_object_add(obj, name, json_object_new_int64(value));
}

static void add_iommu(struct json_object *caps, const vfuc_iommu_proposal_t *p)
{
    struct json_object *iommu = child(caps, "iommu"), *part;

    if (p->pasid_bits > 0) {
        part = child(iommu, "pasid");
        add_int(part, "bits", p->pasid_bits);
        json_object_object_add(part, "exec", json_object_new_boolean(p->pasid_exec));
        json_object_object_add(part, "priv", json_object_new_boolean(p->pasid_priv));
    }
    if (p->ats_queue_depth > 0) {
        part = child(iommu, "ats");
        add_int(part, "queue_depth", p->ats_queue_depth);
        add_int(part, "page_shift", p->ats_page_shift);
        add_int(part, "max_entries", p->ats_max_entries);
    }
    if (p->pri_max_requests > 0) {
        add_int(child(iommu, "pri"), "max_requests", p->pri_max_requests);
    }
}

static struct json_object *proposal(const struct vfuc *client)
{
    const vfuc_iommu_proposal_t *iommu = &client->options.iommu;
    struct json_object *root = json_object_new_object();
    struct json_object *caps = child(root, "capabilities"), *migration;

    add_int(caps, "max_msg_fds", CLIENT_MAX_FDS);
    add_int(caps, "max_data_xfer_size", client->options.max_data_xfer_size);
    json_object_object_add(caps, "write_multiple", json_object_new_boolean(true));
    migration = child(caps, "migration");
    add_int(migration, "pgsize", (uint32_t)sysconf(_SC_PAGESIZE));
    add_int(migration, "max_bitmap_size", CLIENT_MAX_DATA);
    if (iommu->pasid_bits > 0 || iommu->ats_queue_depth > 0) {
        add_iommu(caps, iommu);
    }
    return root;
}

/* A number within limits; what is absent is left alone. 0 or -EPROTO. */
static int get_int(struct json_object *obj, const char *name, int64_t min, int64_t max,
                   uint32_t *out)
{
    struct json_object *value;
    int64_t number;

    if (!json_object_object_get_ex(obj, name, &value)) {
        return 0;
    }
    number = json_object_get_int64(value);
    if (!json_object_is_type(value, json_type_int) || number < min || number > max) {
        return -EPROTO;
    }
    *out = (uint32_t)number;
    return 0;
}

static int get_bool(struct json_object *obj, const char *name, bool *out)
{
    struct json_object *value;

    if (!json_object_object_get_ex(obj, name, &value)) {
        return 0;
    }
    *out = json_object_get_boolean(value);
    return json_object_is_type(value, json_type_boolean) ? 0 : -EPROTO;
}

/* An object, NULL when it is absent. */
static int get_object(struct json_object *obj, const char *name, struct json_object **out)
{
    *out = NULL;
    if (obj == NULL || !json_object_object_get_ex(obj, name, out)) {
        return 0;
    }
    return json_object_is_type(*out, json_type_object) ? 0 : -EPROTO;
}

/* A part of the extension, which has to have been proposed. */
static int get_part(struct json_object *iommu, const char *name, uint32_t proposed,
                    struct json_object **part)
{
    int err = get_object(iommu, name, part);

    return err == 0 && *part != NULL && proposed == 0 ? -EPROTO : err;
}

/* Nothing that was not proposed, and no more of it. */
static int read_iommu(struct json_object *caps, const vfuc_iommu_proposal_t *proposed,
                      vfuc_iommu_proposal_t *agreed)
{
    struct json_object *iommu, *part;
    int err = get_object(caps, "iommu", &iommu);

    err = err < 0 ? err : get_part(iommu, "pasid", proposed->pasid_bits, &part);
    if (err == 0 && part != NULL) {
        agreed->pasid_bits = proposed->pasid_bits;
        err = get_int(part, "bits", 1, proposed->pasid_bits, &agreed->pasid_bits);
        err = err < 0 ? err : get_bool(part, "exec", &agreed->pasid_exec);
        err = err < 0 ? err : get_bool(part, "priv", &agreed->pasid_priv);
        if (agreed->pasid_exec > proposed->pasid_exec ||
            agreed->pasid_priv > proposed->pasid_priv) {
            err = -EPROTO;
        }
    }
    err = err < 0 ? err : get_part(iommu, "ats", proposed->ats_queue_depth, &part);
    if (err == 0 && part != NULL) {
        agreed->ats_queue_depth = proposed->ats_queue_depth;
        agreed->ats_page_shift = proposed->ats_page_shift;
        agreed->ats_max_entries = proposed->ats_max_entries;
        err = get_int(part, "queue_depth", 1, proposed->ats_queue_depth,
                      &agreed->ats_queue_depth);
        err = err < 0 ? err : get_int(part, "page_shift", proposed->ats_page_shift, 63,
                                      &agreed->ats_page_shift);
        err = err < 0 ? err : get_int(part, "max_entries", 1, proposed->ats_max_entries,
                                      &agreed->ats_max_entries);
    }
    err = err < 0 ? err : get_part(iommu, "pri", proposed->pri_max_requests, &part);
    if (err == 0 && part != NULL) {
        agreed->pri_max_requests = proposed->pri_max_requests;
        err = get_int(part, "max_requests", 1, proposed->pri_max_requests,
                      &agreed->pri_max_requests);
    }
    return err;
}

/* The text has to be one object and nothing else. NULL: it is not. */
static struct json_object *parse(const char *text)
{
    struct json_tokener *tokener = json_tokener_new_ex(MAX_DEPTH);
    struct json_object *root = NULL;
    size_t len = strlen(text);

    if (tokener == NULL) {
        return NULL;
    }
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);
    root = json_tokener_parse_ex(tokener, text, (int)len + 1);
    if (json_tokener_get_parse_end(tokener) < len) {
        json_object_put(root);
        root = NULL;
    }
    json_tokener_free(tokener);
    return root;
}

static int read_answer(struct vfuc *client, const char *text, vfuc_agreed_t *agreed)
{
    struct json_object *root = parse(text), *caps, *part;
    int err = json_object_is_type(root, json_type_object) ? 0 : -EPROTO;

    err = err < 0 ? err : get_object(root, "capabilities", &caps);
    if (err == 0 && caps != NULL) {
        err = get_int(caps, "max_msg_fds", 0, INT32_MAX, &agreed->max_msg_fds);
        err = err < 0 ? err : get_int(caps, "max_data_xfer_size", 1, INT32_MAX,
                                      &agreed->max_data_xfer_size);
        err = err < 0 ? err : get_bool(caps, "write_multiple", &agreed->write_multiple);
        err = err < 0 ? err : get_object(caps, "migration", &part);
        if (err == 0 && part != NULL) {
            agreed->migration_page_size = DEFAULT_PAGE_SIZE;
            err = get_int(part, "pgsize", 0, INT32_MAX, &agreed->migration_page_size);
        }
        err = err < 0 ? err : read_iommu(caps, &client->options.iommu, &agreed->iommu);
    }
    json_object_put(root);
    if (agreed->max_data_xfer_size > CLIENT_MAX_DATA) {
        agreed->max_data_xfer_size = CLIENT_MAX_DATA;
    }
    return err;
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
    struct json_object *root = proposal(client);
    const char *text = json_object_to_json_string_ext(root, JSON_C_TO_STRING_PLAIN);
    struct vfio_user_version version = { .major = MAJOR, .minor = MINOR };
    const struct vfio_user_header hdr = { .cmd = VFIO_USER_VERSION };
    struct iovec out[2] = { { &version, sizeof(version) } };
    uint64_t epoch;
    int err = -ENOMEM;

    if (text != NULL) {
        out[1] = (struct iovec){ (void *)text, strlen(text) + 1 };
        err = client_epoch(client, &epoch);
        err = err < 0 ? err : client_send(client, epoch, &hdr, out, 2, NULL, 0);
    }
    json_object_put(root);
    return err;
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
