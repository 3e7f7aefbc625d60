/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_REGION_H
#define VFU_DEVICE_REGION_H

#include "libvfio-user.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

struct ioeventfd {
    uint64_t offset; /* in the region */
    uint32_t size;
    uint32_t flags;
    uint64_t datamatch;
    int fd; /* the device's, like shadow_fd; -1 for none */
    int shadow_fd;
    size_t shadow_offset;
    LIST_ENTRY(ioeventfd) link;
};

struct region {
    uint64_t size;
    uint32_t flags; /* VFU_REGION_FLAG_*; 0: never set up */
    vfu_region_access_cb_t *access;
    struct iovec *areas; /* what may be mapped: offset and length */
    uint32_t nr_areas;
    int fd; /* the device's */
    uint64_t fd_offset;
    LIST_HEAD(, ioeventfd) ioeventfds; /* newest first */
};

struct region_setup {
    uint64_t size;
    vfu_region_access_cb_t *access;
    uint32_t flags;
    const struct iovec *areas;
    uint32_t nr_areas;
    int fd;
    uint64_t fd_offset;
};

struct request;
struct vfio_user_region_access;
struct vfu_ctx;

void regions_init(struct vfu_ctx *ctx);
void regions_destroy(struct vfu_ctx *ctx);

/* 0, -EINVAL or -ENOMEM; the region stays as it was on failure. */
int region_setup(struct vfu_ctx *ctx, int index, const struct region_setup *setup);
int region_add_ioeventfd(struct vfu_ctx *ctx, uint32_t index, const struct ioeventfd *io);

/* Between clients: 0, -EINVAL or -EBUSY. See libvfio-user-session.h. */
int region_set_file(struct vfu_ctx *ctx, int index, int fd, uint64_t offset);
int region_remove_ioeventfds(struct vfu_ctx *ctx, uint32_t index);

/*
 * Why the client may not read (or write: direction is VFU_REGION_FLAG_READ or _WRITE) there, or NULL:
 * bounds, the region's direction, and migration, which forbids access in stop-and-copy.
 */
const char *region_access_fault(const struct vfu_ctx *ctx,
                                const struct vfio_user_region_access *access, uint32_t direction);

/* Why a REGION_WRITE_MULTI is refused whatever its writes are, or NULL. */
const char *region_multi_fault(const struct vfu_ctx *ctx, const struct request *req);

/* One access by the client: count, or a negative errno. */
ssize_t region_access_by_client(struct vfu_ctx *ctx, uint32_t index, char *buf, size_t count,
                      uint64_t offset, bool is_write);

/* The device's callback: count, or a negative errno. */
ssize_t region_call_device(struct vfu_ctx *ctx, const struct region *region, char *buf,
                           size_t count, uint64_t offset, bool is_write);

/* The commands that concern regions. */
int region_command_info(struct vfu_ctx *ctx, struct request *req);
int region_command_io_fds(struct vfu_ctx *ctx, struct request *req);
int region_command_read(struct vfu_ctx *ctx, struct request *req);
int region_command_write(struct vfu_ctx *ctx, struct request *req);
int region_command_write_multi(struct vfu_ctx *ctx, struct request *req);

#endif /* VFU_DEVICE_REGION_H */
