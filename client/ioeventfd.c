/* SPDX-License-Identifier: BSD-3-Clause */
/* GET_REGION_IO_FDS: writes that the hypervisor turns into signals. */
#include "client.h"
#include "util/peer_eventfd.h"

#include "util/peer_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_RECORDS 1024
#define NO_FD UINT32_MAX

struct reply {
    vfio_user_region_io_fds_reply_t head;
    vfio_user_sub_region_ioeventfd_t records[MAX_RECORDS];
};

/* Several records may name one descriptor, so each gets a copy of its own. */
static int copy_fd(const int *fds, size_t nr_fds, uint32_t index, int *out)
{
    *out = -1;
    if (index == NO_FD) {
        return 0;
    }
    if (index >= nr_fds) {
        return -EPROTO;
    }
    *out = fcntl(fds[index], F_DUPFD_CLOEXEC, 0);
    return *out == -1 ? -errno : 0;
}

static int read_record(const vfio_user_sub_region_ioeventfd_t *wire, const int *fds, size_t nr_fds,
                       vfuc_ioeventfd_t *out)
{
    int err;

    *out = (vfuc_ioeventfd_t){
        .offset = wire->gpa_offset,
        .size = wire->size,
        .datamatch = wire->datamatch,
        .shadow_offset = wire->shadow_offset,
        .flags = wire->flags,
        .type = wire->type,
        .fd = -1,
        .shadow_fd = -1,
    };
    if (wire->size > UINT64_MAX - wire->gpa_offset ||
        wire->type > VFIO_USER_IO_FD_TYPE_IOEVENTFD_SHADOW) {
        return -EPROTO;
    }
    err = copy_fd(fds, nr_fds, wire->fd_index, &out->fd);
    if (err == 0 && out->fd != -1 && peer_eventfd_check(out->fd) < 0) {
        err = -EPROTO;
    }
    if (err == 0 && wire->type == VFIO_USER_IO_FD_TYPE_IOEVENTFD_SHADOW) {
        err = copy_fd(fds, nr_fds, wire->shadow_mem_fd_index, &out->shadow_fd);
    }
    return err;
}

void vfuc_close_ioeventfds(vfuc_ioeventfd_t *list, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (list[i].fd != -1) {
            peer_file_close(list[i].fd);
        }
        if (list[i].shadow_fd != -1) {
            peer_file_close(list[i].shadow_fd);
        }
        list[i].fd = list[i].shadow_fd = -1;
    }
}

/* How many records there are, all of them read if that is at most max; or -errno. */
static int read_records(const struct reply *reply, size_t len, uint32_t region, const int *fds,
                        size_t nr_fds, vfuc_ioeventfd_t *list, uint32_t max)
{
    uint32_t count = reply->head.count;
    int err = 0;

    if (len < sizeof(reply->head) || reply->head.index != region) {
        return -EPROTO;
    }
    if (count > MAX_RECORDS) {
        return -E2BIG;
    }
    if (len != sizeof(reply->head) + count * sizeof(reply->records[0])) {
        return -EPROTO;
    }
    if (count > max) {
        return (int)count;
    }
    for (uint32_t i = 0; i < count; i++) {
        err = read_record(&reply->records[i], fds, nr_fds, &list[i]);
        if (err < 0) {
            vfuc_close_ioeventfds(list, i + 1);
            return err;
        }
    }
    return (int)count;
}

int vfuc_region_ioeventfds(vfuc_t *client, uint32_t region, vfuc_ioeventfd_t *list, uint32_t max)
{
    struct reply *reply = malloc(sizeof(*reply));
    const vfio_user_region_io_fds_request_t request = {
        .argsz = sizeof(*reply),
        .index = region,
    };
    const struct iovec out = { (void *)&request, sizeof(request) };
    const struct iovec in = { reply, sizeof(*reply) };
    int fds[CLIENT_MAX_FDS];
    size_t nr_fds = 0;
    const struct client_command command = {
        .cmd = VFIO_USER_DEVICE_GET_REGION_IO_FDS,
        .out = &out,
        .nr_out = 1,
        .in = &in,
        .nr_in = 1,
        .reply_fds = fds,
        .max_reply_fds = CLIENT_MAX_FDS,
        .nr_reply_fds = &nr_fds,
    };
    ssize_t r = reply == NULL ? -ENOMEM : client_call(client, &command);

    if (r >= 0) {
        r = read_records(reply, (size_t)r, region, fds, nr_fds, list, max);
        if (r == -EPROTO) {
            client_log(client, "ioeventfds of region %u are malformed", region);
        }
    }
    while (nr_fds > 0) {
        peer_file_close(fds[--nr_fds]);
    }
    free(reply);
    return (int)client_result(r);
}
