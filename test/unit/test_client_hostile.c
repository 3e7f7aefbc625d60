/* SPDX-License-Identifier: BSD-3-Clause */
/* Servers that lie: each lie costs one errno, and no memory, descriptor or thread. */
#include "client_device.h"
#include "client_fake.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

/* Only the cases that wait for it are to see this one. */
#define SHORT_TIMEOUT_MS 200
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static vfuc_t *connect_to(struct fake *fake, uint32_t timeout_ms)
{
    const vfuc_options_t options = { .timeout_ms = timeout_ms, .max_data_xfer_size = 65536 };

    return vfuc_connect(fake->path, &options);
}

/* On a machine that is busy the negotiation may be late as well: then it is tried again. */
static vfuc_t *start(struct fake *fake, bool times_out)
{
    const struct fake blank = *fake;
    vfuc_t *client;

    for (;;) {
        fake_start(fake);
        client = connect_to(fake, times_out ? SHORT_TIMEOUT_MS : 0);
        if (client != NULL || !times_out) {
            assert_non_null(client);
            return client;
        }
        fake_stop(fake);
        *fake = blank;
    }
}

/* Replies that do not fit */

static int do_info(vfuc_t *client)
{
    vfuc_device_info_t info;

    return vfuc_device_info(client, &info);
}

static int do_read(vfuc_t *client)
{
    uint64_t data;

    return vfuc_region_read(client, 0, 0, &data, sizeof(data));
}

static int do_region(vfuc_t *client)
{
    vfuc_region_info_t info;
    int r = vfuc_region_info(client, 2, &info);

    if (r == 0 && info.fd != -1) {
        close(info.fd);
    }
    return r;
}

static int do_mmap(vfuc_t *client)
{
    vfuc_mapping_t *mapping = vfuc_region_mmap(client, 2, PROT_READ);
    int err = errno;

    vfuc_region_munmap(mapping);
    errno = err;
    return mapping != NULL ? 0 : -1;
}

static int count_areas(vfuc_t *client)
{
    vfuc_mapped_area_t area;
    vfuc_mapping_t *mapping = vfuc_region_mmap(client, 2, PROT_READ);
    int n = mapping != NULL ? (int)vfuc_mapping_areas(mapping, &area, 1) : -1;

    vfuc_region_munmap(mapping);
    return n;
}

static int do_map_all(vfuc_t *client)
{
    return count_areas(client) == 1 ? 0 : -1;
}

static int do_map_none(vfuc_t *client)
{
    return count_areas(client) == 0 ? 0 : -1;
}

static int do_irq(vfuc_t *client)
{
    return vfuc_irq_count(client, 2) < 0 ? -1 : 0;
}

static int do_io_fds(vfuc_t *client)
{
    vfuc_ioeventfd_t list[4];
    int n = vfuc_region_ioeventfds(client, 2, list, COUNT(list));

    if (n > 0) {
        vfuc_close_ioeventfds(list, n < 4 ? (uint32_t)n : 0);
    }
    return n < 0 ? -1 : 0;
}

static int do_mig_read(vfuc_t *client)
{
    uint8_t data[16];

    return vfuc_migration_read(client, data, sizeof(data)) < 0 ? -1 : 0;
}

static int do_mig_flags(vfuc_t *client)
{
    uint64_t flags;

    return vfuc_migration_flags(client, &flags);
}

static int do_mig_state(vfuc_t *client)
{
    uint32_t state;

    return vfuc_migration_state(client, &state);
}

static int do_dirty(vfuc_t *client)
{
    uint64_t bits[2];

    return vfuc_dirty_report(client, 0x1000, 128 * 4096, 4096, bits, sizeof(bits));
}

static int do_unmap(vfuc_t *client)
{
    const vfuc_memory_t memory = { .iova = 0x1000, .size = 128 * 4096 };
    uint64_t bits[2];

    return vfuc_dma_unmap_dirty(client, &memory, 4096, bits, sizeof(bits));
}

static int do_write(vfuc_t *client)
{
    return vfuc_region_write(client, 0, 0, "x", 1);
}

static int do_capabilities(vfuc_t *client)
{
    vfuc_capability_t list[4];

    return vfuc_config_capabilities(client, list, COUNT(list)) < 0 ? -1 : 0;
}

struct lie {
    const char *name;
    int (*act)(vfuc_t *client);
    int expected; /* errno; 0: taken for the truth */
    bool ends; /* the connection */
    struct fake_message message;
};

static void check_lie(const struct lie *lie, int fd)
{
    unsigned fds = open_fds();
    struct fake_message message = lie->message;
    struct fake fake = { .answer = &message };
    vfuc_t *client;
    int r;

    message.fd = fd;
    client = start(&fake, lie->expected == ETIMEDOUT);
    errno = 0;
    r = lie->act(client);
    if ((lie->expected == 0 ? r != 0 : r != -1 || errno != lie->expected)) {
        fail_msg("%s: %d, errno %d, not %d", lie->name, r, errno, lie->expected);
    }
    r = vfuc_reset(client);
    if (r != (lie->ends ? -1 : 0)) {
        fail_msg("%s: the connection has %s", lie->name, r == 0 ? "not ended" : "ended");
    }
    vfuc_disconnect(client);
    fake_stop(&fake);
    /* Some files a thread of the library closes: the limit is for a hang only. */
    for (long tries = 0; open_fds() != fds && tries < 1000000; tries++) {
        sched_yield();
    }
    if (open_fds() != fds) {
        fail_msg("%s: %u descriptors are open, %u were", lie->name, open_fds(), fds);
    }
}

static void check_lies(const struct lie *lies, size_t n)
{
    int fd = memfd_create("lie", MFD_CLOEXEC);

    assert_int_equal(ftruncate(fd, 0x4000), 0);
    for (size_t i = 0; i < n; i++) {
        check_lie(&lies[i], fd);
    }
    close(fd);
}

static const uint8_t zeros[8192];

#define BYTES(n) .payload = zeros, .len = (n)
#define DATA(what) .payload = &(what), .len = sizeof(what)

static void test_frames(void **state)
{
    const struct lie lies[] = {
        { "another id", do_read, ETIMEDOUT, true, { BYTES(24), .id_delta = 1 } },
        { "not a reply", do_read, ETIMEDOUT, true, { BYTES(24), .flags = VFIO_USER_F_NO_REPLY } },
        { "no reply", do_read, ETIMEDOUT, true, { .silent = true } },
        { "half a header", do_read, ETIMEDOUT, true, { BYTES(0), .cut = 8 } },
        { "half a payload", do_read, ETIMEDOUT, true, { BYTES(24), .cut = 12 } },
        { "neither command nor reply", do_read, ENOTCONN, true, { BYTES(24), .flags = 7 } },
        { "size below the header", do_read, ENOTCONN, true, { BYTES(24), .msg_size = 15 } },
        { "size 2 MiB", do_read, ENOTCONN, true, { BYTES(24), .msg_size = 2 << 20 } },
        { "size 4 GiB", do_read, ENOTCONN, true, { BYTES(24), .msg_size = UINT32_MAX } },
        { "another command", do_read, EPROTO, false, { BYTES(24), .cmd = 77 } },
        { "an error without number", do_read, EPROTO, false, { BYTES(0), .flags = 0x21 } },
        { "an error beyond all", do_read, EPROTO, false,
          { BYTES(0), .flags = 0x21, .error = 4097 } },
        { "a negative error", do_read, EPROTO, false,
          { BYTES(0), .flags = 0x21, .error = (uint32_t)-5 } },
        { "an error", do_read, EXDEV, false, { BYTES(0), .flags = 0x21, .error = EXDEV } },
        { "an error with payload", do_read, EXDEV, false,
          { BYTES(24), .flags = 0x21, .error = EXDEV } },
        { "three descriptors", do_read, 0, false, { BYTES(24), .nr_fds = 3 } },
        { "64 descriptors", do_read, 0, false, { BYTES(24), .nr_fds = 64 } },
        { "65 descriptors", do_read, ENOTCONN, true, { BYTES(24), .nr_fds = 65 } },
        { "253 descriptors", do_read, ENOTCONN, true, { BYTES(24), .nr_fds = 253 } },
    };

    (void)state;
    check_lies(lies, COUNT(lies));
}

static const struct vfio_irq_info wrong_irq = { .argsz = 16, .index = 3, .count = 1 };
static const struct vfio_irq_info many_irqs = { .argsz = 16, .index = 2, .count = UINT32_MAX };
static const struct vfio_user_mig_data too_much = { .argsz = 8, .size = 17 };
static const struct vfio_user_mig_data not_there = { .argsz = 8, .size = 16 };
static const struct vfio_user_device_feature no_state[2] = {
    { 16, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE }, { 8, 0 },
};
static const struct vfio_user_device_feature other_flags[2] = { { 16, 5 }, { 0, 0 } };
static const struct vfio_user_device_feature migration_head = {
    8, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION,
};

static void test_payloads(void **state)
{
    const struct lie lies[] = {
        { "no data", do_read, EPROTO, false, { BYTES(16) } },
        { "less data", do_read, EPROTO, false, { BYTES(23) } },
        { "more data", do_read, EPROTO, false, { BYTES(25) } },
        { "nothing", do_read, EPROTO, false, { BYTES(0) } },
        { "nothing for a write", do_write, 0, false, { BYTES(0) } },
        { "half of device info", do_info, EPROTO, false, { BYTES(15) } },
        { "half of irq info", do_irq, EPROTO, false, { BYTES(15) } },
        { "another irq", do_irq, EPROTO, false, { DATA(wrong_irq) } },
        { "4294967295 irqs", do_irq, EPROTO, false, { DATA(many_irqs) } },
        { "no migration data", do_mig_read, EPROTO, false, { BYTES(7) } },
        { "more migration data", do_mig_read, EPROTO, false, { DATA(too_much) } },
        { "data that is not there", do_mig_read, EPROTO, false, { DATA(not_there) } },
        { "long migration data", do_mig_read, EPROTO, false, { BYTES(25) } },
        { "half a feature", do_mig_flags, EPROTO, false, { BYTES(7) } },
        { "another feature", do_mig_flags, EPROTO, false, { DATA(other_flags) } },
        { "no flags", do_mig_flags, EPROTO, false, { DATA(migration_head) } },
        { "no such state", do_mig_state, EPROTO, false, { DATA(no_state) } },
        { "no dirty pages", do_dirty, EPROTO, false, { BYTES(8) } },
        { "short dirty pages", do_dirty, EPROTO, false, { BYTES(8 + 24 + 15) } },
        { "long dirty pages", do_dirty, EPROTO, false, { BYTES(8 + 24 + 17) } },
        { "no bitmap", do_unmap, EPROTO, false, { BYTES(24) } },
        { "short bitmap", do_unmap, EPROTO, false, { BYTES(24 + 16 + 15) } },
        { "another bitmap", do_unmap, EPROTO, false, { BYTES(24 + 16 + 16) } },
    };

    (void)state;
    check_lies(lies, COUNT(lies));
}

/* Regions */

struct region_lie {
    struct vfio_region_info info;
    struct vfio_info_cap_header other;
    struct vfio_region_info_cap_sparse_mmap cap;
    struct vfio_region_sparse_mmap_area areas[66];
};

#define FLAT (VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_MMAP)
#define CAPS (FLAT | VFIO_REGION_INFO_FLAG_CAPS)
#define INFO(...) { .argsz = 64, .index = 2, .flags = CAPS, .size = 0x8000, __VA_ARGS__ }
#define PLAIN(...) { .index = 2, .flags = FLAT, __VA_ARGS__ }
#define OTHER offsetof(struct region_lie, other)
#define SPARSE offsetof(struct region_lie, cap)
#define CAP(n) { .header = { .id = VFIO_REGION_INFO_CAP_SPARSE_MMAP, .version = 1 }, .nr_areas = n }
#define AREAS(n)                                                                                   \
    (offsetof(struct region_lie, areas) + (n) * sizeof(struct vfio_region_sparse_mmap_area))

static const struct region_lie
    region_index = { .info = { .argsz = 64, .index = 3, .size = 0x8000 } },
    region_wraps = { .info = PLAIN(.size = 0x8000, .offset = UINT64_MAX) },
    region_too_much = { .info = PLAIN(.size = 0x8000, .argsz = 5000) },
    cap_outside = { .info = INFO(.cap_offset = 4000) },
    cap_far_outside = { .info = INFO(.cap_offset = UINT32_MAX - 3) },
    cap_at_the_end = { .info = INFO(.cap_offset = AREAS(0) - 4), .cap = CAP(1) },
    cap_in_front = { .info = INFO(.cap_offset = 8) },
    cap_circle = { .info = INFO(.cap_offset = OTHER), .other = { .id = 77, .next = OTHER } },
    cap_back = { .info = INFO(.cap_offset = SPARSE), .other = { .id = 77, .next = SPARSE },
                 .cap = { .header = { .id = 78, .next = OTHER } } },
    cap_other = { .info = INFO(.cap_offset = OTHER), .other = { .id = 77 } },
    areas_not_there = { .info = INFO(.cap_offset = SPARSE), .cap = CAP(2) },
    areas_endless = { .info = INFO(.cap_offset = SPARSE), .cap = CAP(UINT32_MAX) },
    areas_many = { .info = INFO(.cap_offset = SPARSE), .cap = CAP(65) },
    area_empty = { .info = INFO(.cap_offset = SPARSE), .cap = CAP(1), .areas = { { 0x1000, 0 } } },
    area_outside = { .info = INFO(.cap_offset = SPARSE), .cap = CAP(1),
                     .areas = { { 0x7000, 0x1001 } } },
    area_wraps = { .info = INFO(.cap_offset = SPARSE), .cap = CAP(1),
                   .areas = { { UINT64_MAX - 0xfff, 0x2000 } } },
    areas_overlap = { .info = INFO(.cap_offset = SPARSE), .cap = CAP(2),
                      .areas = { { 0x2000, 0x2000 }, { 0x1000, 0x1001 } } },
    areas_twice = { .info = INFO(.cap_offset = SPARSE), .cap = CAP(2),
                    .areas = { { 0x2000, 0x1000 }, { 0x2000, 0x1000 } } },
    areas_right = { .info = INFO(.cap_offset = OTHER), .other = { .id = 77, .next = SPARSE },
                    .cap = CAP(2), .areas = { { 0x2000, 0x1000 }, { 0x1000, 0x1000 } } },
    area_odd = { .info = INFO(.cap_offset = SPARSE), .cap = CAP(1),
                 .areas = { { 0x800, 0x1000 } } },
    area_behind_file = { .info = INFO(.cap_offset = SPARSE), .cap = CAP(1),
                         .areas = { { 0x3000, 0x2000 } } },
    area_far_behind = { .info = INFO(.cap_offset = SPARSE, .offset = 1ull << 63), .cap = CAP(1),
                        .areas = { { 0, 0x1000 } } },
    whole_behind_file = { .info = PLAIN(.size = 0x8000) },
    whole_in_file = { .info = PLAIN(.size = 0x4000) },
    whole_with_other = { .info = { .index = 2, .flags = CAPS, .size = 0x4000, .cap_offset = OTHER },
                         .other = { .id = 77 } },
    sparse_and_empty = { .info = INFO(.cap_offset = SPARSE), .cap = CAP(0) };

#define LIE(lie, n) { .payload = &(lie), .len = AREAS(n), .nr_fds = 1 }

static void test_regions(void **state)
{
    const struct lie lies[] = {
        { "half of it", do_region, EPROTO, false,
          { .payload = &region_index, .len = 31, .nr_fds = 1 } },
        { "too long", do_region, EPROTO, false, { BYTES(4097), .nr_fds = 1 } },
        { "another region", do_region, EPROTO, false, LIE(region_index, 0) },
        { "a size that wraps", do_region, EPROTO, false, LIE(region_wraps, 0) },
        { "more than was asked for", do_region, E2BIG, false, LIE(region_too_much, 0) },
        { "capability outside", do_region, EPROTO, false, LIE(cap_outside, 0) },
        { "capability far outside", do_region, EPROTO, false, LIE(cap_far_outside, 0) },
        { "capability at the end", do_region, EPROTO, false, LIE(cap_at_the_end, 0) },
        { "capability in front", do_region, EPROTO, false, LIE(cap_in_front, 0) },
        { "capability of itself", do_region, EPROTO, false, LIE(cap_circle, 0) },
        { "capabilities in a circle", do_region, EPROTO, false, LIE(cap_back, 0) },
        { "no areas", do_region, 0, false, LIE(cap_other, 0) },
        { "areas that are not there", do_region, EPROTO, false, LIE(areas_not_there, 1) },
        { "4294967295 areas", do_region, EPROTO, false, LIE(areas_endless, 1) },
        { "65 areas", do_region, E2BIG, false, LIE(areas_many, 65) },
        { "an empty area", do_region, EPROTO, false, LIE(area_empty, 1) },
        { "an area outside", do_region, EPROTO, false, LIE(area_outside, 1) },
        { "an area that wraps", do_region, EPROTO, false, LIE(area_wraps, 1) },
        { "areas that overlap", do_region, EPROTO, false, LIE(areas_overlap, 2) },
        { "an area twice", do_region, EPROTO, false, LIE(areas_twice, 2) },
        { "areas", do_region, 0, false, LIE(areas_right, 2) },
        { "areas, mapped", do_mmap, 0, false, LIE(areas_right, 2) },
        { "half a page", do_mmap, EPROTO, false, LIE(area_odd, 1) },
        { "behind the file", do_mmap, EPROTO, false, LIE(area_behind_file, 1) },
        { "far behind the file", do_mmap, EPROTO, false, LIE(area_far_behind, 1) },
        { "region behind the file", do_mmap, EPROTO, false, LIE(whole_behind_file, 0) },
        { "region in the file", do_mmap, 0, false, LIE(whole_in_file, 0) },
        { "region, counted", do_map_all, 0, false, LIE(whole_in_file, 0) },
        { "another capability", do_map_all, 0, false, LIE(whole_with_other, 0) },
        { "areas, but none", do_map_none, 0, false, LIE(sparse_and_empty, 0) },
        { "no file", do_mmap, 0, false, { .payload = &whole_in_file, .len = AREAS(0) } },
    };

    (void)state;
    check_lies(lies, COUNT(lies));
}

/* Files that could hold an access up are not mapped, but for those that the operator allows. */
static void test_files_of_regions(void **state)
{
    static const struct {
        const char *path, *allowed;
        int expected;
    } files[] = {
        { "/proc/self/comm", NULL, EPERM },
        { "/proc/self/comm", "device,ext4", EPERM },
        { "/proc/self/comm", "proc", EPROTO }, /* it has no bytes */
        { "/dev/zero", NULL, EPERM },
        { "/dev/zero", "device", 0 },
        { "/dev/zero", "any", 0 },
        { "/", NULL, ENODEV },
    };
    int fd;

    (void)state;
    for (size_t i = 0; i < COUNT(files); i++) {
        const struct lie lie = { files[i].path, do_mmap, files[i].expected, false,
                                 LIE(whole_in_file, 0) };

        if (files[i].allowed != NULL) {
            setenv("VFU_MEMORY_FILES", files[i].allowed, 1);
        }
        fd = open(files[i].path, O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        check_lie(&lie, fd);
        close(fd);
        unsetenv("VFU_MEMORY_FILES");
    }
}

/* Ioeventfds */

struct io_lie {
    vfio_user_region_io_fds_reply_t head;
    vfio_user_sub_region_ioeventfd_t records[2];
};

#define HEAD(region, n) { .argsz = 112, .index = region, .count = n }
#define NO_FD .fd_index = UINT32_MAX

static const struct io_lie
    io_right = { HEAD(2, 2), { { .fd_index = 0 }, { NO_FD } } },
    io_index = { HEAD(1, 2), { { NO_FD }, { NO_FD } } },
    io_count = { HEAD(2, 3), { { NO_FD }, { NO_FD } } },
    io_endless = { HEAD(2, UINT32_MAX), { { NO_FD }, { NO_FD } } },
    io_fd = { HEAD(2, 2), { { .fd_index = 0 }, { .fd_index = 1 } } },
    io_shadow = { HEAD(2, 2), { { NO_FD }, { NO_FD, .type = 2, .shadow_mem_fd_index = 9 } } },
    io_type = { HEAD(2, 2), { { .fd_index = 0 }, { NO_FD, .type = 3 } } },
    io_wraps = { HEAD(2, 2), { { NO_FD }, { NO_FD, .gpa_offset = UINT64_MAX, .size = 2 } } };

#define IO(lie) { DATA(lie), .nr_fds = 1 }

static void test_ioeventfds(void **state)
{
    const struct lie lies[] = {
        { "the truth", do_io_fds, 0, false, IO(io_right) },
        { "half of it", do_io_fds, EPROTO, false, { BYTES(15), .nr_fds = 2 } },
        { "another region", do_io_fds, EPROTO, false, IO(io_index) },
        { "records that are not there", do_io_fds, EPROTO, false, IO(io_count) },
        { "4294967295 records", do_io_fds, E2BIG, false, IO(io_endless) },
        { "a descriptor that is not there", do_io_fds, EPROTO, false, IO(io_fd) },
        { "a file that is not there", do_io_fds, EPROTO, false, IO(io_shadow) },
        { "an unknown type", do_io_fds, EPROTO, false, IO(io_type) },
        { "a place that wraps", do_io_fds, EPROTO, false, IO(io_wraps) },
    };

    const struct lie no_eventfd = { "a file for an eventfd", do_io_fds, EPROTO, false, IO(io_right) };
    int fd = eventfd(0, EFD_CLOEXEC);

    (void)state;
    for (size_t i = 0; i < COUNT(lies); i++) {
        check_lie(&lies[i], fd);
    }
    close(fd);
    check_lies(&no_eventfd, 1);
}

/* Negotiation */

struct version_lie {
    const char *name;
    const char *text;
    int expected;
    uint16_t major, minor;
};

static char *nested(unsigned depth)
{
    char *text = malloc(2 * depth + 64);

    assert_non_null(text);
    strcpy(text, "{\"capabilities\":{\"x\":");
    memset(text + strlen("{\"capabilities\":{\"x\":"), '[', depth);
    memset(text + strlen("{\"capabilities\":{\"x\":") + depth, ']', depth);
    strcpy(text + strlen("{\"capabilities\":{\"x\":") + 2 * depth, "}}");
    return text;
}

static void check_version(const char *name, const void *answer, size_t len,
                          const struct fake_message *message, int expected, bool times_out)
{
    unsigned fds = open_fds();
    struct fake fake = { .version = answer, .version_len = len, .version_message = message };
    vfuc_t *client;

    fake_start(&fake);
    errno = 0;
    client = connect_to(&fake, times_out ? SHORT_TIMEOUT_MS : 0);
    if ((client == NULL ? errno : 0) != expected) {
        fail_msg("%s: errno %d, not %d", name, errno, expected);
    }
    vfuc_disconnect(client);
    fake_stop(&fake);
    assert_int_equal(open_fds(), fds);
}

static void check_text(const struct version_lie *lie)
{
    const struct vfio_user_version version = { lie->major, lie->minor };
    size_t len = sizeof(version) + strlen(lie->text) + 1;
    uint8_t *answer = malloc(len);

    assert_non_null(answer);
    memcpy(answer, &version, sizeof(version));
    memcpy(answer + sizeof(version), lie->text, len - sizeof(version));
    check_version(lie->name, answer, len, NULL, lie->expected, false);
    free(answer);
}

#define IN_CAPS(text) "{\"capabilities\":{" text "}}"

static void test_version_texts(void **state)
{
    char *deep = nested(20000), *shallow = nested(2);
    const struct version_lie lies[] = {
        { "nothing known", "{\"x\":1,\"capabilities\":{\"y\":[1,2]}}", 0, 0, 0 },
        { "an empty object", "{}", 0, 0, 1 },
        { "little nesting", shallow, 0, 0, 0 },
        { "deep nesting", deep, EPROTO, 0, 0 },
        { "major 1", "{}", EPROTO, 1, 0 },
        { "minor 3", "{}", EPROTO, 0, 3 },
        { "an empty text", "", EPROTO, 0, 0 },
        { "garbage", "\xff\xfe\x01 garbage", EPROTO, 0, 0 },
        { "half an object", "{\"capabilities\":{", EPROTO, 0, 0 },
        { "two objects", "{}{}", EPROTO, 0, 0 },
        { "another kind of quotes", IN_CAPS("\"x\":'y'"), EPROTO, 0, 0 },
        { "a number", "5", EPROTO, 0, 0 },
        { "null", "null", EPROTO, 0, 0 },
        { "an array", "[]", EPROTO, 0, 0 },
        { "capabilities 5", "{\"capabilities\":5}", EPROTO, 0, 0 },
        { "fds as text", IN_CAPS("\"max_msg_fds\":\"8\""), EPROTO, 0, 0 },
        { "fds below 0", IN_CAPS("\"max_msg_fds\":-1"), EPROTO, 0, 0 },
        { "size 0", IN_CAPS("\"max_data_xfer_size\":0"), EPROTO, 0, 0 },
        { "size below 0", IN_CAPS("\"max_data_xfer_size\":-4096"), EPROTO, 0, 0 },
        { "size 1e300", IN_CAPS("\"max_data_xfer_size\":1e300"), EPROTO, 0, 0 },
        { "a huge size", IN_CAPS("\"max_data_xfer_size\":99999999999999999999999"), EPROTO, 0, 0 },
        { "size 1.5", IN_CAPS("\"max_data_xfer_size\":1.5"), EPROTO, 0, 0 },
        { "write_multiple 1", IN_CAPS("\"write_multiple\":1"), EPROTO, 0, 0 },
        { "migration true", IN_CAPS("\"migration\":true"), EPROTO, 0, 0 },
        { "pgsize -1", IN_CAPS("\"migration\":{\"pgsize\":-1}"), EPROTO, 0, 0 },
        { "an iommu nobody asked for", IN_CAPS("\"iommu\":{\"pasid\":{\"bits\":20}}"), EPROTO, 0,
          0 },
        { "ats nobody asked for", IN_CAPS("\"iommu\":{\"ats\":{}}"), EPROTO, 0, 0 },
        { "iommu 7", IN_CAPS("\"iommu\":7"), EPROTO, 0, 0 },
    };

    (void)state;
    for (size_t i = 0; i < COUNT(lies); i++) {
        check_text(&lies[i]);
    }
    free(deep);
    free(shallow);
}

static void test_version_messages(void **state)
{
    static const uint8_t no_end[] = { 0, 0, 0, 0, '{', '}' };
    static const uint8_t two_ends[] = { 0, 0, 0, 0, '{', '}', 0, 'x', 0 };
    const struct {
        const char *name;
        int expected;
        struct fake_message message;
    } lies[] = {
        { "no end", EPROTO, { DATA(no_end) } },
        { "two ends", EPROTO, { DATA(two_ends) } },
        { "no text", 0, { BYTES(4) } },
        { "half a version", EPROTO, { BYTES(3) } },
        { "another id", EPROTO, { BYTES(4), .id_delta = 1 } },
        { "another command", EPROTO, { BYTES(4), .cmd = 2 } },
        { "not a reply", EPROTO, { BYTES(4), .flags = 0x10 } },
        { "a refusal", EUSERS, { BYTES(0), .flags = 0x21, .error = EUSERS } },
        { "a refusal without a number", EPROTO, { BYTES(0), .flags = 0x21 } },
        { "4 GiB", EPROTO, { BYTES(4), .msg_size = UINT32_MAX } },
        { "15 bytes", EPROTO, { BYTES(4), .msg_size = 15 } },
        { "253 descriptors", EPROTO, { BYTES(4), .nr_fds = 253 } },
        { "5 descriptors", 0, { BYTES(4), .nr_fds = 5 } },
        { "silence", ETIMEDOUT, { .silent = true } },
        { "half of it", ETIMEDOUT, { DATA(no_end), .cut = 1 } },
    };

    (void)state;
    for (size_t i = 0; i < COUNT(lies); i++) {
        struct fake_message message = lies[i].message;

        message.fd = STDERR_FILENO;
        check_version(lies[i].name, NULL, 0, &message, lies[i].expected,
                      lies[i].expected == ETIMEDOUT);
    }
}

/* Configuration space of which every byte leads in a circle */

static bool circular_config(struct fake *fake, const struct vfio_user_header *hdr)
{
    struct vfio_user_region_access access;
    struct {
        struct vfio_user_region_access head;
        uint8_t data[4];
    } reply = { .data = { 0x10, 0, 0, 0 } };
    const struct vfio_region_info info = { .argsz = sizeof(info), .index = 7, .size = 4096 };
    const uint8_t *pattern = fake->pvt;

    if (hdr->cmd == VFIO_USER_DEVICE_GET_REGION_INFO) {
        fake_send(fake, hdr, &(struct fake_message){ DATA(info) });
        return true;
    }
    if (hdr->cmd != VFIO_USER_REGION_READ) {
        return false;
    }
    memcpy(&access, fake->payload, sizeof(access));
    reply.head = access;
    memcpy(reply.data, pattern, sizeof(reply.data));
    if (access.count == 4) { /* an extended capability */
        memcpy(reply.data, pattern + 4, sizeof(reply.data));
    } else if (access.offset == 6) {
        reply.data[0] = pattern[8];
    }
    fake_send(fake, hdr,
              &(struct fake_message){ .payload = &reply, .len = sizeof(access) + access.count });
    return true;
}

static void test_config_circles(void **state)
{
    /* Of a capability, of an extended one, and of the status register. */
    static const uint8_t patterns[][9] = {
        { 0x40, 0x40, 0, 0, 0, 0, 0, 0, 0x10 },
        { 0x10, 0x10, 0, 0, 0, 0, 0, 0, 0x10 },
        { 0, 0, 0, 0, 3, 0, 0x01, 0x10, 0 },
        { 0, 0, 0, 0, 3, 0, 0x01, 0x08, 0 },
    };

    (void)state;
    for (size_t i = 0; i < COUNT(patterns); i++) {
        struct fake fake = { .respond = circular_config, .pvt = (void *)patterns[i] };
        vfuc_t *client = start(&fake, false);

        assert_int_equal(do_capabilities(client), -1);
        assert_int_equal(errno, EPROTO);
        vfuc_disconnect(client);
        fake_stop(&fake);
    }
}

/* Commands of the server */

struct dma_lie {
    const char *name;
    uint16_t cmd;
    uint64_t addr, count;
    size_t len; /* of the payload, beyond what is said of it */
    int expected;
};

#define R VFIO_USER_DMA_READ
#define W VFIO_USER_DMA_WRITE

/* Mapped: a page each at 0, 0x10000, 0x11000 and the end, to be read; one at 0x20000, written. */
static const struct dma_lie dma_lies[] = {
    { "right", R, 0x10000, 4096, 0, 0 },
    { "right", W, 0x20000, 4096, 4096, 0 },
    { "in front", R, 0xffff, 2, 0, EFAULT },
    { "behind", R, 0x11fff, 2, 0, EFAULT },
    { "across two", R, 0x10400, 0x1800, 0, 0 },
    { "write in front", W, 0x1ffff, 2, 2, EFAULT },
    { "write behind", W, 0x20fff, 2, 2, EFAULT },
    { "nowhere", R, 0x50000, 1, 0, EFAULT },
    { "not for writing", W, 0x10000, 8, 8, EFAULT },
    { "not for reading", R, 0x20000, 8, 0, EFAULT },
    { "wraps", R, UINT64_MAX, 2, 0, EFAULT },
    { "the last byte", R, UINT64_MAX, 1, 0, 0 },
    { "nothing", R, 0x10000, 0, 0, EINVAL },
    { "nothing written", W, 0x20000, 0, 0, EINVAL },
    { "2^64 - 1", R, 0x10000, UINT64_MAX, 0, EINVAL },
    { "2^64 - 16", R, 0x10000, UINT64_MAX - 15, 0, EINVAL },
    { "2^32", R, 0x10000, 1ull << 32, 0, EINVAL },
    { "more than was agreed", R, 0x10000, 65537, 0, EINVAL },
    { "less than it says", W, 0x20000, 8, 7, EINVAL },
    { "more than it says", W, 0x20000, 8, 9, EINVAL },
    { "no data", W, 0x20000, 8, 0, EINVAL },
    { "data to read", R, 0x10000, 8, 8, EINVAL },
};

struct dma_run {
    unsigned wrong;
    char what[256];
};

static void complain(struct dma_run *run, const char *name, const struct vfio_user_header *hdr)
{
    if (run->wrong++ == 0) {
        snprintf(run->what, sizeof(run->what), "%s: flags 0x%x, error %u, %u bytes", name,
                 hdr->flags, hdr->error_no, hdr->msg_size);
    }
}

static bool expected_reply(const struct dma_lie *lie, const struct vfio_user_header *hdr)
{
    size_t data = lie->cmd == R && lie->expected == 0 ? lie->count : 0;

    return hdr->msg_id == 4711 && hdr->cmd == lie->cmd &&
           hdr->flags == (lie->expected != 0 ? 0x21u : 1u) &&
           hdr->error_no == (uint32_t)lie->expected &&
           hdr->msg_size == sizeof(*hdr) + (lie->expected != 0 ? 0 : 16 + data);
}

/* A reset makes the server send them all. */
static bool send_dma_lies(struct fake *fake, const struct vfio_user_header *hdr)
{
    struct {
        struct vfio_user_dma_region_access head;
        uint8_t data[4096];
    } out;
    struct vfio_user_header reply;

    if (hdr->cmd != VFIO_USER_DEVICE_RESET) {
        return false;
    }
    for (size_t i = 0; i < COUNT(dma_lies); i++) {
        memset(&out, dma_lies[i].expected == 0 ? 0x77 : 0x11, sizeof(out));
        out.head.addr = dma_lies[i].addr;
        out.head.count = dma_lies[i].count;
        fake_command(fake, 4711, dma_lies[i].cmd, 0, &out, sizeof(out.head) + dma_lies[i].len);
        if (!fake_receive(fake, &reply) || !expected_reply(&dma_lies[i], &reply)) {
            complain(fake->pvt, dma_lies[i].name, &reply);
        }
    }
    fake_command(fake, 4711, R, 0, &out, 15);
    if (!fake_receive(fake, &reply) || reply.error_no != EINVAL) {
        complain(fake->pvt, "half a request", &reply);
    }
    return false;
}

static void map_two(vfuc_t *client, uint8_t *readable, uint8_t *writable)
{
    const uint64_t read_at[] = { 0, 0x10000, 0x11000, UINT64_MAX - 4095 };
    vfuc_memory_t memory = {
        .iova = 0x20000, .size = 4096, .prot = PROT_WRITE, .fd = -1, .vaddr = writable,
    };

    assert_int_equal(vfuc_dma_map(client, &memory), 0);
    for (size_t i = 0; i < COUNT(read_at); i++) {
        memory.iova = read_at[i];
        memory.prot = PROT_READ;
        memory.vaddr = readable;
        assert_int_equal(vfuc_dma_map(client, &memory), 0);
    }
}

static void test_dma(void **state)
{
    struct dma_run run = { 0 };
    struct fake fake = { .respond = send_dma_lies, .pvt = &run };
    uint8_t *readable = calloc(1, 4096), *writable = calloc(1, 4096);
    vfuc_t *client = start(&fake, false);

    (void)state;
    map_two(client, readable, writable);
    assert_int_equal(vfuc_reset(client), 0);
    assert_int_equal(readable[0], 0);
    for (int i = 0; i < 4096; i++) {
        assert_int_equal(writable[i], 0x77);
    }
    assert_int_equal(vfuc_dma_messages(client), 4);
    vfuc_disconnect(client);
    fake_stop(&fake);
    if (run.wrong > 0) {
        fail_msg("%u of %zu: %s", run.wrong, COUNT(dma_lies), run.what);
    }
    free(readable);
    free(writable);
}

/* More than fit into the socket, of everything; answers are read now and then. */
#define FLOOD 20000

static bool flood(struct fake *fake, const struct vfio_user_header *hdr)
{
    const struct vfio_user_dma_region_access access = { .addr = 0x10000, .count = 16 };
    struct vfio_user_header reply = { .msg_id = 40000 };
    struct dma_run *run = fake->pvt;

    if (hdr->cmd != VFIO_USER_DEVICE_RESET) {
        return false;
    }
    for (unsigned i = 0; i < FLOOD; i++) {
        bool known = i % 2 == 0;

        fake_command(fake, (uint16_t)i, known ? R : (uint16_t)(i % 1000 + 200), 0, &access,
                     sizeof(access));
        if (i % 50 == 49) {
            for (unsigned n = 0; n < 50; n++) {
                if (!fake_receive(fake, &reply) ||
                    reply.error_no != (n % 2 == 0 ? 0 : ENOTSUP)) {
                    complain(run, "flood", &reply);
                }
            }
        }
        if (i % 100 == 0) {
            fake_command(fake, 1, W, VFIO_USER_F_NO_REPLY, &access, sizeof(access));
            fake_send(fake, &reply, &(struct fake_message){ BYTES(5), .cmd = 9 });
        }
    }
    return false;
}

static void test_flood(void **state)
{
    struct dma_run run = { 0 };
    struct fake fake = { .respond = flood, .pvt = &run };
    uint8_t *readable = calloc(1, 4096), *writable = calloc(1, 4096);
    vfuc_t *client = start(&fake, false);

    (void)state;
    map_two(client, readable, writable);
    assert_int_equal(vfuc_reset(client), 0);
    assert_int_equal(vfuc_dma_messages(client), FLOOD / 2);
    vfuc_disconnect(client);
    fake_stop(&fake);
    if (run.wrong > 0) {
        fail_msg("%u of %u: %s", run.wrong, FLOOD, run.what);
    }
    free(readable);
    free(writable);
}

/* Commands for the client's owner: one answer each */

struct owner {
    vfuc_t *client;
    uint16_t id;
    unsigned commands;
    int lost_fd, lost_error;
};

static void on_command(void *pvt, uint16_t id, uint16_t cmd, uint32_t flags, const void *payload,
                       size_t len)
{
    struct owner *owner = pvt;

    (void)cmd;
    (void)flags;
    (void)payload;
    (void)len;
    owner->id = id;
    owner->commands++;
}

static void on_lost(void *pvt, int error)
{
    const uint64_t one = 1;
    struct owner *owner = pvt;

    owner->lost_error = error;
    if (write(owner->lost_fd, &one, sizeof(one)) != sizeof(one)) {
        owner->lost_error = -1;
    }
}

static bool ask_owner(struct fake *fake, const struct vfio_user_header *hdr)
{
    const struct { uint16_t id; uint32_t flags; } *asked = fake->pvt;

    if (hdr->cmd == VFIO_USER_DEVICE_RESET) {
        fake_command(fake, asked->id, VFIO_USER_PAGE_REQUEST, asked->flags, zeros, 8);
    }
    return false;
}

static void test_owner_answers_once(void **state)
{
    struct owner owner = { .lost_fd = eventfd(0, EFD_CLOEXEC) };
    const vfuc_options_t options = { .command = on_command, .lost = on_lost, .pvt = &owner };
    struct { uint16_t id; uint32_t flags; } asked = { 5, 0 };
    struct fake fake = { .respond = ask_owner, .pvt = &asked };
    uint64_t count;

    (void)state;
    fake_start(&fake);
    owner.client = vfuc_connect(fake.path, &options);
    assert_non_null(owner.client);
    assert_int_equal(vfuc_reply(owner.client, 5, VFIO_USER_PAGE_REQUEST, 0, NULL, 0), -1);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(vfuc_reset(owner.client), 0);
    assert_int_equal(owner.commands, 1);
    assert_int_equal(owner.id, 5);
    assert_int_equal(vfuc_reply(owner.client, 5, VFIO_USER_PAGE_REQUEST, 0, NULL, 0), 0);
    assert_int_equal(vfuc_reply(owner.client, 5, VFIO_USER_PAGE_REQUEST, 0, NULL, 0), -1);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(vfuc_reply(owner.client, 5, VFIO_USER_PAGE_REQUEST, 4097, NULL, 0), -1);
    assert_int_equal(errno, EINVAL);

    /* One that is not to be answered is not. */
    asked.flags = VFIO_USER_F_NO_REPLY;
    asked.id = 6;
    assert_int_equal(vfuc_reset(owner.client), 0);
    assert_int_equal(vfuc_reply(owner.client, 6, VFIO_USER_PAGE_REQUEST, 0, NULL, 0), -1);
    assert_int_equal(errno, ENOENT);

    /* The same id again, before it is answered, and the conversation is over. */
    asked.flags = 0;
    assert_int_equal(vfuc_reset(owner.client), 0);
    assert_int_equal(vfuc_reset(owner.client), -1);
    assert_int_equal(errno, ENOTCONN);
    assert_int_equal(read(owner.lost_fd, &count, sizeof(count)), sizeof(count));
    assert_int_equal(owner.lost_error, EPROTO);
    assert_int_equal(vfuc_reply(owner.client, 6, VFIO_USER_PAGE_REQUEST, 0, NULL, 0), -1);
    assert_int_equal(errno, ENOTCONN);
    vfuc_disconnect(owner.client);
    fake_stop(&fake);
    close(owner.lost_fd);
}

/* Commands that nobody waits for */

static void note_error(void *pvt, int error, const void *payload, size_t len)
{
    const uint64_t one = 1;
    struct owner *owner = pvt;

    (void)payload;
    (void)len;
    owner->lost_error = error;
    if (write(owner->lost_fd, &one, sizeof(one)) != sizeof(one)) {
        owner->lost_error = -1;
    }
}

static void test_unattended(void **state)
{
    const struct {
        struct fake_message message;
        int expected;
    } lies[] = {
        { { BYTES(24) }, 0 },
        { { BYTES(16) }, EPROTO },
        { { BYTES(8) }, EPROTO },
        { { BYTES(0) }, EPROTO },
        { { BYTES(25) }, EPROTO },
        { { BYTES(24), .flags = 0x21, .error = EXDEV }, EXDEV },
        { { BYTES(24), .cmd = 3 }, EPROTO },
        { { BYTES(24), .msg_size = 1 }, ENOTCONN },
        { { .silent = true }, ETIMEDOUT },
    };
    struct owner owner = { .lost_fd = eventfd(0, EFD_CLOEXEC) };
    uint64_t count;

    (void)state;
    for (size_t i = 0; i < COUNT(lies); i++) {
        struct fake fake = { .answer = &lies[i].message };
        vfuc_t *client = start(&fake, lies[i].expected == ETIMEDOUT);

        assert_int_equal(vfuc_region_read_start(client, 0, 0, 8, note_error, &owner), 0);
        assert_int_equal(read(owner.lost_fd, &count, sizeof(count)), sizeof(count));
        assert_int_equal(owner.lost_error, lies[i].expected);
        vfuc_disconnect(client);
        fake_stop(&fake);
    }
    close(owner.lost_fd);
}

/* An answer to a command that is still on its way: the server can guess what follows. */

struct early {
    vfuc_t *client;
    int blocked; /* counts: the client's socket is full */
};

static bool answer_early(struct fake *fake, const struct vfio_user_header *hdr)
{
    const struct early *early = fake->pvt;
    const struct fake_message answer = {
        BYTES(32), .cmd = VFIO_USER_DEVICE_GET_REGION_INFO, .id_delta = 1, .nr_fds = 1,
        .fd = fake->listener,
    };
    struct pollfd pollfd = { .fd = fake->fd, .events = POLLIN };
    const uint64_t one = 1;

    fake_send(fake, hdr, &(struct fake_message){ .len = 0 });
    while (poll(&pollfd, 1, -1) == 1 && !(pollfd.revents & POLLHUP)) {
        if (write(early->blocked, &one, sizeof(one)) == sizeof(one)) {
            fake_send(fake, hdr, &answer);
        }
    }
    return true;
}

static void *post_much(void *arg)
{
    static const uint8_t much[1 << 20];
    struct early *early = arg;

    while (vfuc_region_post(early->client, 0, 0, much, sizeof(much)) == 0) {
        continue;
    }
    return NULL;
}

static void test_answer_before_the_command(void **state)
{
    struct early early = { .blocked = eventfd(0, EFD_CLOEXEC) };
    struct fake fake = { .respond = answer_early, .pvt = &early };
    unsigned fds = open_fds();
    vfuc_region_info_t info;
    pthread_t thread;
    uint64_t count;

    (void)state;
    early.client = start(&fake, true);
    assert_int_equal(vfuc_reset(early.client), 0);
    assert_int_equal(pthread_create(&thread, NULL, post_much, &early), 0);
    assert_int_equal(read(early.blocked, &count, sizeof(count)), sizeof(count));
    assert_int_equal(vfuc_region_info(early.client, 0, &info), -1);
    pthread_join(thread, NULL);
    vfuc_disconnect(early.client);
    fake_stop(&fake);
    assert_int_equal(open_fds(), fds);
    close(early.blocked);
}

/* A server that hangs up while somebody waits. */
static bool hang_up(struct fake *fake, const struct vfio_user_header *hdr)
{
    (void)hdr;
    shutdown(fake->fd, SHUT_RDWR);
    return true;
}

static void test_hang_up(void **state)
{
    struct owner owner = { .lost_fd = eventfd(0, EFD_CLOEXEC) };
    const vfuc_options_t options = { .lost = on_lost, .pvt = &owner };
    struct fake fake = { .respond = hang_up };
    vfuc_t *client;
    uint64_t count;

    (void)state;
    fake_start(&fake);
    client = vfuc_connect(fake.path, &options);
    assert_non_null(client);
    assert_int_equal(vfuc_reset(client), -1);
    assert_int_equal(errno, ENOTCONN);
    assert_int_equal(read(owner.lost_fd, &count, sizeof(count)), sizeof(count));
    assert_int_equal(owner.lost_error, ENOTCONN);
    vfuc_disconnect(client);
    fake_stop(&fake);
    close(owner.lost_fd);
}

/* One that stops in the middle of a message, when nobody waits for anything. */
static bool stop_in_the_middle(struct fake *fake, const struct vfio_user_header *hdr)
{
    fake_send(fake, hdr, &(struct fake_message){ .len = 0 });
    fake_send(fake, hdr, &(struct fake_message){ BYTES(16), .cut = 20 });
    return true;
}

static void test_stop_in_the_middle(void **state)
{
    struct owner owner = { .lost_fd = eventfd(0, EFD_CLOEXEC) };
    const vfuc_options_t options = {
        .lost = on_lost, .pvt = &owner, .timeout_ms = SHORT_TIMEOUT_MS,
    };
    struct fake fake = { .respond = stop_in_the_middle };
    vfuc_t *client;
    uint64_t count;

    (void)state;
    fake_start(&fake);
    client = vfuc_connect(fake.path, &options);
    if (client != NULL && vfuc_reset(client) == 0) {
        assert_int_equal(read(owner.lost_fd, &count, sizeof(count)), sizeof(count));
        assert_int_equal(owner.lost_error, ETIMEDOUT);
    } else {
        assert_int_equal(errno, ETIMEDOUT); /* a busy machine */
    }
    vfuc_disconnect(client);
    fake_stop(&fake);
    close(owner.lost_fd);
}

/* One that does not accept, with as many in front of it as there may be. */
static void test_full_queue(void **state)
{
    const vfuc_options_t options = { .timeout_ms = SHORT_TIMEOUT_MS };
    struct sockaddr_un addr = { .sun_family = AF_UNIX, .sun_path = "/tmp/vfuc-full-XXXXXX" };
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), waiting[8], n = 0, r;

    (void)state;
    assert_non_null(mkdtemp(addr.sun_path));
    strcat(addr.sun_path, "/socket");
    assert_int_equal(bind(listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(listen(listener, 0), 0);
    do {
        waiting[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        r = connect(waiting[n++], (struct sockaddr *)&addr, sizeof(addr));
    } while (r == 0 && n < 8);
    assert_int_equal(r, -1);
    assert_null(vfuc_connect(addr.sun_path, &options));
    assert_int_equal(errno, ETIMEDOUT);
    while (n > 0) {
        close(waiting[--n]);
    }
    close(listener);
    unlink(addr.sun_path);
    *strrchr(addr.sun_path, '/') = '\0';
    rmdir(addr.sun_path);
}

static void test_no_server(void **state)
{
    char path[200];

    (void)state;
    assert_null(vfuc_connect("/nowhere/at/all", NULL));
    assert_int_equal(errno, ENOENT);
    memset(path, 'x', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    assert_null(vfuc_connect(path, NULL));
    assert_int_equal(errno, ENAMETOOLONG);
    vfuc_disconnect(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frames),
        cmocka_unit_test(test_payloads),
        cmocka_unit_test(test_regions),
        cmocka_unit_test(test_files_of_regions),
        cmocka_unit_test(test_ioeventfds),
        cmocka_unit_test(test_version_texts),
        cmocka_unit_test(test_version_messages),
        cmocka_unit_test(test_config_circles),
        cmocka_unit_test(test_dma),
        cmocka_unit_test(test_flood),
        cmocka_unit_test(test_owner_answers_once),
        cmocka_unit_test(test_unattended),
        cmocka_unit_test(test_answer_before_the_command),
        cmocka_unit_test(test_hang_up),
        cmocka_unit_test(test_stop_in_the_middle),
        cmocka_unit_test(test_full_queue),
        cmocka_unit_test(test_no_server),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
