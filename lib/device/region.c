/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/region.h"

#include "device/ctx.h"
#include "device/migration.h"
#include "device/quiesce.h"
#include "iommu/iommu.h"
#include "util/range.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>

/* So that what describes a region fits into a reply, many times over. */
#define MAX_AREAS 4096

void regions_init(struct vfu_ctx *ctx)
{
    for (int i = 0; i < VFU_PCI_DEV_NUM_REGIONS; i++) {
        ctx->regions[i].fd = -1;
        LIST_INIT(&ctx->regions[i].ioeventfds);
    }
}

static void free_ioeventfds(struct region *region)
{
    struct ioeventfd *io;

    while ((io = LIST_FIRST(&region->ioeventfds)) != NULL) {
        LIST_REMOVE(io, link);
        free(io);
    }
}

void regions_destroy(struct vfu_ctx *ctx)
{
    for (int i = 0; i < VFU_PCI_DEV_NUM_REGIONS; i++) {
        free_ioeventfds(&ctx->regions[i]);
        free(ctx->regions[i].areas);
    }
}

static bool is_bar(int index)
{
    return index >= VFU_PCI_DEV_BAR0_REGION_IDX && index <= VFU_PCI_DEV_BAR5_REGION_IDX;
}

/* PCI 6.2.5.1: powers of two, at least 16 bytes of memory or 4 of I/O; 64 bits take two BARs. */
static const char *bar_fault(const struct vfu_ctx *ctx, int index, uint64_t size, uint32_t flags)
{
    const struct region *regions = ctx->regions;
    uint64_t smallest = flags & VFU_REGION_FLAG_MEM ? 16 : 4;

    if (size == 0) {
        return NULL;
    }
    if (!powerof2(size) || size < smallest) {
        return "the size is not a power of two, or too small";
    }
    if (index % 2 == 1 && (flags & VFU_REGION_FLAG_64_BITS)) {
        return "a 64-bit BAR must have an even index";
    }
    if (index % 2 == 1 && (regions[index - 1].flags & VFU_REGION_FLAG_64_BITS)) {
        return "the BAR below has 64 bits and takes this one too";
    }
    if (index % 2 == 0 && (flags & VFU_REGION_FLAG_64_BITS) && regions[index + 1].size > 0) {
        return "the BAR above is in use, a 64-bit BAR needs it";
    }
    return NULL;
}

static const char *area_fault(const struct region_setup *setup)
{
    if ((setup->areas == NULL) != (setup->nr_areas == 0)) {
        return "mmap areas and their number do not go together";
    }
    if (setup->nr_areas > MAX_AREAS) {
        return "too many mmap areas";
    }
    if (setup->nr_areas > 0 && setup->fd == -1) {
        return "mmap areas need a file descriptor";
    }
    return NULL;
}

static const char *setup_fault(const struct vfu_ctx *ctx, int index,
                               const struct region_setup *setup)
{
    uint32_t flags = setup->flags;
    const char *fault;

    if ((flags & ~(uint32_t)VFU_REGION_FLAG_MASK) != 0 || !(flags & VFU_REGION_FLAG_RW)) {
        return "unknown flags, or neither READ nor WRITE";
    }
    if ((flags & VFU_REGION_FLAG_ALWAYS_CB) && setup->access == NULL) {
        return "ALWAYS_CB without a callback";
    }
    fault = area_fault(setup);
    if (fault != NULL) {
        return fault;
    }
    if (index < 0 || index >= VFU_PCI_DEV_NUM_REGIONS) {
        return "no such region";
    }
    if (is_bar(index)) {
        fault = bar_fault(ctx, index, setup->size, flags);
    } else if (index == VFU_PCI_DEV_CFG_REGION_IDX &&
               ((flags & VFU_REGION_FLAG_RW) != VFU_REGION_FLAG_RW ||
                (flags & VFU_REGION_FLAG_MEM))) {
        fault = "configuration space must be readable and writable, and not MEM";
    }
    for (uint32_t i = 0; fault == NULL && i < setup->nr_areas; i++) {
        if (!extent_within((uintptr_t)setup->areas[i].iov_base, setup->areas[i].iov_len,
                           setup->size)) {
            fault = "an mmap area ends beyond the region";
        }
    }
    return fault;
}

int region_setup(struct vfu_ctx *ctx, int index, const struct region_setup *setup)
{
    struct iovec whole = { .iov_base = NULL, .iov_len = setup->size };
    const struct iovec *areas = setup->areas;
    uint32_t nr_areas = setup->nr_areas;
    const char *fault = setup_fault(ctx, index, setup);
    struct iovec *copy = NULL;
    struct region *region;

    if (fault != NULL) {
        log_err(&ctx->log, "region %d: size 0x%llx, flags 0x%x: %s", index,
                (unsigned long long)setup->size, setup->flags, fault);
        return -EINVAL;
    }
    if (setup->fd != -1 && nr_areas == 0) {
        areas = &whole;
        nr_areas = 1;
    }
    if (nr_areas > 0) {
        copy = calloc(nr_areas, sizeof(*copy));
        if (copy == NULL) {
            return -ENOMEM;
        }
        memcpy(copy, areas, nr_areas * sizeof(*copy));
    }
    region = &ctx->regions[index];
    free(region->areas);
    region->size = setup->size;
    region->flags = setup->flags;
    region->access = setup->access;
    region->areas = copy;
    region->nr_areas = nr_areas;
    region->fd = setup->fd;
    region->fd_offset = setup->fd_offset;
    return 0;
}

/* Returns -EBUSY while a client is served: it has the old descriptors, and would keep them. */
static int check_between_clients(struct vfu_ctx *ctx, const char *function, int64_t index)
{
    if (index < 0 || index >= VFU_PCI_DEV_NUM_REGIONS) {
        log_err(&ctx->log, "%s: there is no region %" PRIi64 ": refused with EINVAL", function,
                index);
        return -EINVAL;
    }
    if (session_is_open(&ctx->session) && session_error(&ctx->session) == 0) {
        log_err(&ctx->log, "%s: region %" PRIi64 ": a client is attached: refused with EBUSY",
                function, index);
        return -EBUSY;
    }
    return 0;
}

int region_set_file(struct vfu_ctx *ctx, int index, int fd, uint64_t offset)
{
    int err = check_between_clients(ctx, "vfu_set_region_file", index);

    if (err < 0) {
        return err;
    }
    if (ctx->regions[index].nr_areas == 0) {
        log_err(&ctx->log, "vfu_set_region_file: region %d was set up without a file: refused with "
                "EINVAL", index);
        return -EINVAL;
    }
    ctx->regions[index].fd = fd;
    ctx->regions[index].fd_offset = offset;
    return 0;
}

int region_remove_ioeventfds(struct vfu_ctx *ctx, uint32_t index)
{
    int err = check_between_clients(ctx, "vfu_remove_ioeventfds", index);

    if (err == 0) {
        free_ioeventfds(&ctx->regions[index]);
    }
    return err;
}

ssize_t region_call_device(struct vfu_ctx *ctx, const struct region *region, char *buf,
                           size_t count, uint64_t offset, bool is_write)
{
    ssize_t n;

    errno = 0;
    n = region->access(ctx, buf, count, (loff_t)offset, is_write);
    if (n < 0) {
        n = errno != 0 ? -errno : -EIO;
        log_err(&ctx->log, "region%zu: %s of %zu bytes at %#" PRIx64 ": the device refused it: %s",
                region - ctx->regions, is_write ? "write" : "read", count, offset,
                strerror((int)-n));
        return n;
    }
    if ((size_t)n != count) {
        log_err(&ctx->log, "region%zu: %s of %zu bytes at %#" PRIx64 ": the device's callback "
                "returned %zd: refused", region - ctx->regions, is_write ? "write" : "read", count,
                offset, n);
        return -EINVAL;
    }
    return n;
}

static ssize_t config_access(struct vfu_ctx *ctx, char *buf, size_t count, uint64_t offset,
                             bool is_write)
{
    const struct region *region = &ctx->regions[VFU_PCI_DEV_CFG_REGION_IDX];

    if (region->flags & VFU_REGION_FLAG_ALWAYS_CB) {
        return region_call_device(ctx, region, buf, count, offset, is_write);
    }
    iommu_sync_registers(ctx);
    return pci_config_access(&ctx->pci, buf, count, offset, is_write);
}

/* A register's value, or for other sizes the length. */
static void log_access(struct vfu_ctx *ctx, uint32_t index, const char *buf, size_t count,
                       uint64_t offset, bool is_write)
{
    uint64_t value = 0;

    if (count != 1 && count != 2 && count != 4 && count != 8) {
        log_debug(&ctx->log, "region%u: %s %zu bytes at %#" PRIx64, index,
                  is_write ? "wrote" : "read", count, offset);
        return;
    }
    memcpy(&value, buf, count);
    log_debug(&ctx->log, "region%u: %s %#" PRIx64 " %s (%#" PRIx64 ":%zu)", index,
              is_write ? "wrote" : "read", le64toh(value), is_write ? "to" : "from", offset, count);
}

ssize_t region_access_by_client(struct vfu_ctx *ctx, uint32_t index, char *buf, size_t count,
                      uint64_t offset, bool is_write)
{
    const struct region *region = &ctx->regions[index];
    ssize_t n;

    if (index == VFU_PCI_DEV_CFG_REGION_IDX) {
        n = config_access(ctx, buf, count, offset, is_write);
    } else if (region->access != NULL) {
        n = region_call_device(ctx, region, buf, count, offset, is_write);
    } else {
        n = msix_access(ctx, index, buf, count, offset, is_write);
        if (n < 0) {
            log_err(&ctx->log, "region%u: %s of %zu bytes at %#" PRIx64 ": the region has no "
                    "callback: refused", index, is_write ? "write" : "read", count, offset);
        }
    }
    if (n >= 0 && log_prints(&ctx->log, LOG_DEBUG)) {
        log_access(ctx, index, buf, count, offset, is_write);
    }
    return n;
}

/* Commands */

const char *region_access_fault(const struct vfu_ctx *ctx,
                                const struct vfio_user_region_access *access, uint32_t direction)
{
    if (access->count > WIRE_MAX_DATA_XFER || access->region >= VFU_PCI_DEV_NUM_REGIONS ||
        !extent_within(access->offset, access->count, ctx->regions[access->region].size)) {
        return "out of bounds";
    }
    if (access->count > 0 && !(ctx->regions[access->region].flags & direction)) {
        return direction == VFU_REGION_FLAG_READ ? "the region cannot be read"
                                                 : "the region cannot be written";
    }
    return migration_stop_and_copy(ctx) ? "no access to regions in stop-and-copy" : NULL;
}

static int check_access(struct vfu_ctx *ctx, const struct request *req,
                        const struct vfio_user_region_access *access, uint32_t direction)
{
    const char *fault = region_access_fault(ctx, access, direction);

    if (fault == NULL) {
        return 0;
    }
    log_err(&ctx->log, "%s id %u: region %u, offset 0x%llx, count 0x%x: %s: refused with EINVAL",
            command_name(req->hdr.cmd), req->hdr.msg_id, access->region,
            (unsigned long long)access->offset, access->count, fault);
    return -EINVAL;
}

int region_command_read(struct vfu_ctx *ctx, struct request *req)
{
    struct vfio_user_region_access *reply = ctx->scratch;
    ssize_t n;
    int err;

    memcpy(reply, req->payload, sizeof(*reply));
    err = check_access(ctx, req, reply, VFU_REGION_FLAG_READ);
    if (err < 0) {
        return err;
    }
    if (reply->count == 0) {
        return 0;
    }
    /* What a callback does not write must not leak what an earlier reply held. */
    memset(reply->data, 0, reply->count);
    n = region_access_by_client(ctx, reply->region, (char *)reply->data, reply->count,
                                reply->offset, false);
    if (n < 0) {
        return (int)n;
    }
    request_reply_with(req, reply, sizeof(*reply) + reply->count);
    return 0;
}

/* One checked write: 0, REQUEST_DEFERRED until the device is quiet, or a negative errno. */
static int do_write(struct vfu_ctx *ctx, struct request *req,
                    const struct vfio_user_region_access *access, uint8_t *data)
{
    ssize_t n;

    if (access->count == 0) {
        return 0;
    }
    if (access->region == VFU_PCI_DEV_CFG_REGION_IDX &&
        pci_config_is_device_control(&ctx->pci, access->offset, access->count)) {
        int r = quiesce_for_request(ctx, req);

        if (r != 0) {
            return r;
        }
    }
    n = region_access_by_client(ctx, access->region, (char *)data, access->count, access->offset,
                                true);
    return n < 0 ? (int)n : 0;
}

int region_command_write(struct vfu_ctx *ctx, struct request *req)
{
    struct vfio_user_region_access access;
    int r;

    memcpy(&access, req->payload, sizeof(access));
    if (req->len != sizeof(access) + (uint64_t)access.count) {
        log_err(&ctx->log, "REGION_WRITE id %u: payload of %zu bytes for a count of %u",
                req->hdr.msg_id, req->len, access.count);
        return -EINVAL;
    }
    r = check_access(ctx, req, &access, VFU_REGION_FLAG_WRITE);
    if (r == 0) {
        r = do_write(ctx, req, &access, req->payload + sizeof(access));
    }
    if (r == 0 && access.count > 0) {
        memcpy(ctx->scratch, &access, sizeof(access));
        request_reply_with(req, ctx->scratch, sizeof(access));
    }
    return r;
}

static struct vfio_user_region_access multi_access(const struct vfio_user_write_multi_entry *entry)
{
    return (struct vfio_user_region_access){
        .offset = entry->offset, .region = entry->region, .count = entry->count
    };
}

const char *region_multi_fault(const struct vfu_ctx *ctx, const struct request *req)
{
    struct vfio_user_write_multi multi;

    memcpy(&multi, req->payload, sizeof(multi));
    if (!ctx->agreed.write_multiple) {
        return "not negotiated";
    }
    return multi.wr_cnt > VFIO_USER_WRITE_MULTI_MAX ||
           req->len != sizeof(multi) + multi.wr_cnt * sizeof(struct vfio_user_write_multi_entry)
               ? "the payload does not hold that many" : NULL;
}

/* 0, or a negative errno when one of the writes cannot be done. */
static int check_multi(struct vfu_ctx *ctx, const struct request *req,
                       const struct vfio_user_write_multi *multi, const uint8_t *entries)
{
    struct vfio_user_write_multi_entry entry;
    const char *fault = region_multi_fault(ctx, req);

    if (fault != NULL) {
        log_err(&ctx->log, "REGION_WRITE_MULTI id %u: %llu writes in %zu bytes: %s: refused with "
                "EINVAL", req->hdr.msg_id, (unsigned long long)multi->wr_cnt, req->len, fault);
        return -EINVAL;
    }
    for (uint64_t i = 0; i < multi->wr_cnt; i++) {
        struct vfio_user_region_access access;
        int err;

        memcpy(&entry, entries + i * sizeof(entry), sizeof(entry));
        if (entry.count > sizeof(entry.data)) {
            log_err(&ctx->log, "REGION_WRITE_MULTI id %u: a write of %u bytes, at most %zu: refused",
                    req->hdr.msg_id, entry.count, sizeof(entry.data));
            return -EINVAL;
        }
        access = multi_access(&entry);
        err = check_access(ctx, req, &access, VFU_REGION_FLAG_WRITE);
        if (err < 0) {
            return err;
        }
    }
    return 0;
}

/*
 * Every write is checked before the first one is done. A request that was put off in the middle
 * goes on with the write that it was put off for.
 */
int region_command_write_multi(struct vfu_ctx *ctx, struct request *req)
{
    struct vfio_user_write_multi multi;
    const uint8_t *entries = req->payload + sizeof(multi);
    int r;

    memcpy(&multi, req->payload, sizeof(multi));
    r = check_multi(ctx, req, &multi, entries);
    while (r == 0 && req->progress < multi.wr_cnt) {
        struct vfio_user_write_multi_entry entry;
        struct vfio_user_region_access access;

        memcpy(&entry, entries + req->progress * sizeof(entry), sizeof(entry));
        access = multi_access(&entry);
        r = do_write(ctx, req, &access, entry.data);
        if (r == 0) {
            req->progress++;
        }
    }
    if (r == 0) {
        log_debug(&ctx->log, "REGION_WRITE_MULTI id %u: %" PRIu64 " writes done", req->hdr.msg_id,
                  (uint64_t)multi.wr_cnt);
        memcpy(ctx->scratch, &multi, sizeof(multi));
        request_reply_with(req, ctx->scratch, sizeof(multi));
    }
    return r;
}

/* vfio_region_info followed by the sparse mmap capability, when the client left room for it. */
int region_command_info(struct vfu_ctx *ctx, struct request *req)
{
    struct vfio_region_info in, *out = ctx->scratch;
    struct vfio_region_info_cap_sparse_mmap *sparse = (void *)(out + 1);
    const struct region *region;
    size_t caps = 0, full;

    memcpy(&in, req->payload, sizeof(in));
    if (in.index >= VFU_PCI_DEV_NUM_REGIONS) {
        log_err(&ctx->log, "GET_REGION_INFO id %u: no region %u", req->hdr.msg_id, in.index);
        return -EINVAL;
    }
    region = &ctx->regions[in.index];
    if (region->fd != -1 && region->nr_areas > 0 && region->size > 0) {
        caps = sizeof(*sparse) + region->nr_areas * sizeof(sparse->areas[0]);
    }
    full = sizeof(*out) + caps;
    memset(out, 0, full);
    out->argsz = (uint32_t)full;
    out->index = in.index;
    out->offset = region->fd_offset;
    out->size = region->size;
    out->flags = (region->flags & VFU_REGION_FLAG_READ ? VFIO_REGION_INFO_FLAG_READ : 0) |
                 (region->flags & VFU_REGION_FLAG_WRITE ? VFIO_REGION_INFO_FLAG_WRITE : 0) |
                 (region->fd != -1 ? VFIO_REGION_INFO_FLAG_MMAP : 0);
    if (caps > 0 && in.argsz >= full) {
        out->flags |= VFIO_REGION_INFO_FLAG_CAPS;
        out->cap_offset = sizeof(*out);
        sparse->header.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP;
        sparse->header.version = 1;
        sparse->nr_areas = region->nr_areas;
        for (uint32_t i = 0; i < region->nr_areas; i++) {
            sparse->areas[i].offset = (uintptr_t)region->areas[i].iov_base;
            sparse->areas[i].size = region->areas[i].iov_len;
        }
        req->reply_fds = &region->fd;
        req->nr_reply_fds = 1;
    }
    log_debug(&ctx->log, "region_info[%u] offset %#" PRIx64 " flags %#x size %" PRIu64 " argsz %u",
              out->index, (uint64_t)out->offset, out->flags, (uint64_t)out->size, out->argsz);
    request_reply_with(req, out, MIN(full, in.argsz));
    return 0;
}
