/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A storm on the IOMMU interface, with every byte checked.
 *
 * One process plays all parts: a device whose I/O threads read and write guest memory through the
 * translation cache, its control thread, and a client thread with page tables that are changed,
 * invalidated, faulted in, switched off and on, reset and disconnected all the time.
 *
 * What is checked. A guest frame holds the tag of the one page that it is mapped at. When its
 * invalidation has completed the client poisons it: a device that still reads through an old
 * translation sees poison, one that still writes spoils it. So a completion that comes too early
 * is seen from both sides.
 */
#include "libvfio-user-iommu.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define NR_FRAMES 512
#define NR_PASIDS 4 /* and the requester space */
#define NR_SPACES (NR_PASIDS + 1)
#define NR_PAGES 32
#define IOVA_BASE 0x100000u
#define GUEST_BASE 0x40000000u /* of the translated space */
#define NR_IO_THREADS 3
#define POISON 0xdeaddeaddeaddeadull
#define MAX_PENDING 64
#define MAX_ENTRIES 8 /* of a translation reply */
#define MAX_LATE 8

#define CHECK(cond, ...)                                                                           \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "iommu_storm: %s:%d: %s: ", __FILE__, __LINE__, #cond);                \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* One byte stream of luck per thread, so that a seed tells a run apart. */
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t tag_of(unsigned space, unsigned page)
{
    return 0x7a60000000000000ull | (uint64_t)space << 32 | page;
}

static uint32_t pasid_of(unsigned space)
{
    return space == 0 ? VFU_NO_PASID : space - 1;
}

/* The client */

enum pending_kind {
    PENDING_NONE,
    PENDING_PLAIN, /* nothing to do when it is answered */
    PENDING_MAP, /* guest memory: translations lead there once this is answered */
    PENDING_RELEASE, /* an invalidation: poison the frame */
};

struct pending {
    enum pending_kind kind;
    int frame;
};

struct translation {
    struct vfio_user_ats_translate_reply head;
    struct vfio_user_ats_entry entries[MAX_ENTRIES];
};

/* A reply that was made up and not yet sent: what is invalidated meanwhile overtakes it. */
struct late_reply {
    bool used;
    struct vfio_user_header hdr;
    struct translation reply;
};

struct client {
    int fd;
    uint64_t luck;
    uint8_t *memory;
    int memfd;
    int map[NR_SPACES][NR_PAGES]; /* frame, or -1 */
    bool busy[NR_FRAMES]; /* mapped, or not yet released */
    struct pending pending[MAX_PENDING];
    unsigned nr_pending;
    struct late_reply late[MAX_LATE];
    bool mapped; /* the server has guest memory */
    unsigned nr_invalidations;
    uint64_t translations, faults, invalidations, sessions, resets, messages;
    uint8_t in[1 << 17];
    size_t held;
};

static uint64_t *frame_words(const struct client *c, int frame)
{
    return (uint64_t *)(c->memory + (size_t)frame * PAGE);
}

static void fill(const struct client *c, int frame, uint64_t value)
{
    _Atomic uint64_t *words = (_Atomic uint64_t *)frame_words(c, frame);

    for (unsigned i = 0; i < PAGE / 8; i++) {
        atomic_store_explicit(&words[i], value, memory_order_relaxed);
    }
}

static int take_frame(struct client *c, uint64_t tag)
{
    unsigned start = next_random(&c->luck) % NR_FRAMES;

    for (unsigned i = 0; i < NR_FRAMES; i++) {
        int frame = (int)((start + i) % NR_FRAMES);
        const uint64_t *words = frame_words(c, frame);

        if (c->busy[frame]) {
            continue;
        }
        for (unsigned w = 0; w < PAGE / 8; w++) {
            CHECK(words[w] == POISON, "frame %d was written after its invalidation completed: "
                  "word %u is %#" PRIx64, frame, w, words[w]);
        }
        c->busy[frame] = true;
        fill(c, frame, tag);
        return frame;
    }
    return -1;
}

static void send_message(struct client *c, uint16_t id, uint16_t cmd, uint32_t flags,
                         const void *payload, size_t len, int fd)
{
    struct vfio_user_header hdr = {
        .msg_id = id,
        .cmd = cmd,
        .msg_size = (uint32_t)(sizeof(hdr) + len),
        .flags = flags,
    };
    struct iovec iov[] = { { &hdr, sizeof(hdr) }, { (void *)payload, len } };
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = len > 0 ? 2 : 1 };

    if (fd != -1) {
        memset(&control, 0, sizeof(control));
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof(control.bytes);
        CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &fd, sizeof(fd));
    }
    CHECK(sendmsg(c->fd, &msg, MSG_NOSIGNAL) == (ssize_t)hdr.msg_size, "send: %s",
          strerror(errno));
    c->messages++;
}

static void command(struct client *c, enum pending_kind kind, int frame, uint16_t cmd,
                    uint32_t flags, const void *payload, size_t len, int fd)
{
    unsigned slot = 0;

    while (c->pending[slot].kind != PENDING_NONE) {
        slot++;
        CHECK(slot < MAX_PENDING, "too many commands in flight");
    }
    c->pending[slot] = (struct pending){ .kind = kind, .frame = frame };
    c->nr_pending++;
    send_message(c, (uint16_t)slot, cmd, flags, payload, len, fd);
}

static void config_write(struct client *c, uint64_t offset, uint32_t value, uint32_t count)
{
    struct {
        struct vfio_user_region_access access;
        uint32_t value;
    } __attribute__((packed)) write = {
        .access = { .offset = offset, .region = VFU_PCI_DEV_CFG_REGION_IDX, .count = count },
        .value = value,
    };

    command(c, PENDING_PLAIN, -1, VFIO_USER_REGION_WRITE, 0, &write,
            sizeof(write.access) + count, -1);
}

/* Where vfu_setup_device_iommu() puts its capabilities: ATS, PRI, PASID, one after the other. */
#define ATS_CONTROL 0x106
#define PRI_CONTROL 0x10c
#define PRI_ALLOCATION 0x114
#define PASID_CONTROL 0x11e

static void switch_on(struct client *c)
{
    config_write(c, ATS_CONTROL, 0, 2);
    config_write(c, PASID_CONTROL, 1, 2);
    config_write(c, ATS_CONTROL, 0x8000, 2);
    config_write(c, PRI_CONTROL, 2, 2);
    config_write(c, PRI_ALLOCATION, 64, 4);
    config_write(c, PRI_CONTROL, 1, 2);
}

/* The page changes first, then the old frame is invalidated, and poisoned when that is done. */
static void change_page(struct client *c, unsigned space, unsigned page, bool present)
{
    struct {
        struct vfio_user_pasid_prefix prefix;
        struct vfio_user_ats_invalidate inv;
    } __attribute__((packed)) msg = {
        .prefix = { .pasid = space - 1 },
        .inv = {
            .argsz = sizeof(msg.inv),
            .address = IOVA_BASE + page * PAGE,
            .length = PAGE,
        },
    };
    int old = c->map[space][page];

    if (old < 0 || c->nr_invalidations >= 32) {
        return;
    }
    c->map[space][page] = present ? take_frame(c, tag_of(space, page)) : -1;
    c->nr_invalidations++;
    c->invalidations++;
    if (space == 0) {
        command(c, PENDING_RELEASE, old, VFIO_USER_ATS_INVALIDATE, 0, &msg.inv, sizeof(msg.inv),
                -1);
    } else {
        command(c, PENDING_RELEASE, old, VFIO_USER_ATS_INVALIDATE, VFIO_USER_F_PASID, &msg,
                sizeof(msg), -1);
    }
}

static unsigned space_of(const struct vfio_user_header *hdr, const uint8_t **payload)
{
    struct vfio_user_pasid_prefix prefix;

    if (!(hdr->flags & VFIO_USER_F_PASID)) {
        return 0;
    }
    memcpy(&prefix, *payload, sizeof(prefix));
    *payload += sizeof(prefix);
    CHECK(prefix.pasid < NR_PASIDS, "PASID %u", prefix.pasid);
    return prefix.pasid + 1;
}

static void reply(struct client *c, const struct vfio_user_header *hdr, const void *payload,
                  size_t len)
{
    send_message(c, hdr->msg_id, hdr->cmd, VFIO_USER_F_TYPE_REPLY, payload, len, -1);
}

static void refuse(struct client *c, const struct vfio_user_header *hdr, uint32_t err)
{
    struct vfio_user_header out = {
        .msg_id = hdr->msg_id,
        .cmd = hdr->cmd,
        .msg_size = sizeof(out),
        .flags = VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR,
        .error_no = err,
    };

    CHECK(send(c->fd, &out, sizeof(out), MSG_NOSIGNAL) == sizeof(out), "send: %s",
          strerror(errno));
}

static void send_late(struct client *c)
{
    struct late_reply *late = &c->late[next_random(&c->luck) % MAX_LATE];

    if (late->used) {
        late->used = false;
        reply(c, &late->hdr, &late->reply, late->reply.head.argsz);
    }
}

static void send_now_or_late(struct client *c, const struct vfio_user_header *hdr,
                             const struct translation *out)
{
    struct late_reply *late = &c->late[next_random(&c->luck) % MAX_LATE];

    if (late->used || next_random(&c->luck) % 2 == 0) {
        reply(c, hdr, out, out->head.argsz);
        return;
    }
    *late = (struct late_reply){ .used = true, .hdr = *hdr, .reply = *out };
}

static void answer_translate(struct client *c, const struct vfio_user_header *hdr,
                             const uint8_t *payload)
{
    unsigned space = space_of(hdr, &payload);
    struct vfio_user_ats_translate req;
    struct translation out = { 0 };
    uint64_t page;

    memcpy(&req, payload, sizeof(req));
    page = (req.address - IOVA_BASE) / PAGE;
    for (uint64_t addr = req.address;
         addr < req.address + req.length && out.head.nr_entries < MAX_ENTRIES; addr += PAGE, page++) {
        struct vfio_user_ats_entry *e = &out.entries[out.head.nr_entries++];
        int frame = c->mapped && page < NR_PAGES ? c->map[space][page] : -1;

        *e = (struct vfio_user_ats_entry){ .address = addr, .length = PAGE };
        if (frame >= 0) {
            e->translated = GUEST_BASE + (uint64_t)frame * PAGE;
            e->perm = VFIO_USER_ATS_PERM_READ | VFIO_USER_ATS_PERM_WRITE;
        }
    }
    out.head.argsz = (uint32_t)(sizeof(out.head) +
                                out.head.nr_entries * sizeof(out.entries[0]));
    c->translations++;
    send_now_or_late(c, hdr, &out);
}

static void answer_page_request(struct client *c, const struct vfio_user_header *hdr,
                                const uint8_t *payload)
{
    unsigned space = space_of(hdr, &payload);
    struct vfio_user_page_request req;
    struct vfio_user_page_request_entry e;
    struct vfio_user_page_response response = { .argsz = sizeof(response) };

    memcpy(&req, payload, sizeof(req));
    if (req.flags & VFIO_USER_PAGE_REQ_F_STOP) {
        return;
    }
    for (uint32_t i = 0; i < req.nr_entries; i++) {
        memcpy(&e, payload + sizeof(req) + i * sizeof(e), sizeof(e));
        for (uint32_t n = 0; n < e.nr_pages; n++) {
            uint64_t page = (e.address - IOVA_BASE) / PAGE + n;

            if (page < NR_PAGES && c->map[space][page] < 0) {
                c->map[space][page] = take_frame(c, tag_of(space, (unsigned)page));
            }
        }
    }
    response.group = req.group;
    response.code = next_random(&c->luck) % 64 == 0 ? VFIO_USER_PAGE_RESP_INVALID
                                                    : VFIO_USER_PAGE_RESP_SUCCESS;
    c->faults++;
    reply(c, hdr, &response, sizeof(response));
}

/* Untranslated messages, when ATS is off: translated here, page by page within one access. */
static void answer_dma(struct client *c, const struct vfio_user_header *hdr,
                       const uint8_t *payload)
{
    unsigned space = space_of(hdr, &payload);
    struct vfio_user_dma_region_access access;
    static uint8_t out[sizeof(access) + 4 * PAGE];

    memcpy(&access, payload, sizeof(access));
    CHECK(access.count <= 4 * PAGE, "count %" PRIu64, (uint64_t)access.count);
    memcpy(out, &access, sizeof(access));
    for (uint64_t done = 0; done < access.count;) {
        uint64_t addr = access.addr + done, in_page = addr % PAGE;
        uint64_t page = (addr - IOVA_BASE) / PAGE, n = PAGE - in_page;
        int frame = page < NR_PAGES ? c->map[space][page] : -1;

        n = n < access.count - done ? n : access.count - done;
        if (frame < 0) {
            refuse(c, hdr, EFAULT);
            return;
        }
        if (hdr->cmd == VFIO_USER_DMA_READ) {
            memcpy(out + sizeof(access) + done, c->memory + (size_t)frame * PAGE + in_page, n);
        } else {
            memcpy(c->memory + (size_t)frame * PAGE + in_page, payload + sizeof(access) + done, n);
        }
        done += n;
    }
    reply(c, hdr, out, sizeof(access) + (hdr->cmd == VFIO_USER_DMA_READ ? access.count : 0));
}

static void handle_reply(struct client *c, const struct vfio_user_header *hdr)
{
    struct pending *p = &c->pending[hdr->msg_id];

    CHECK(hdr->msg_id < MAX_PENDING && p->kind != PENDING_NONE, "reply to %u", hdr->msg_id);
    CHECK(hdr->error_no == 0, "%u answered with %s", hdr->cmd, strerror((int)hdr->error_no));
    if (p->kind == PENDING_RELEASE) {
        fill(c, p->frame, POISON);
        c->busy[p->frame] = false;
        c->nr_invalidations--;
    }
    c->mapped |= p->kind == PENDING_MAP;
    p->kind = PENDING_NONE;
    c->nr_pending--;
}

static void handle(struct client *c, const struct vfio_user_header *hdr, const uint8_t *payload)
{
    if (hdr->flags & VFIO_USER_F_TYPE_REPLY) {
        handle_reply(c, hdr);
        return;
    }
    switch (hdr->cmd) {
    case VFIO_USER_ATS_TRANSLATE:
        answer_translate(c, hdr, payload);
        break;
    case VFIO_USER_PAGE_REQUEST:
        answer_page_request(c, hdr, payload);
        break;
    case VFIO_USER_DMA_READ:
    case VFIO_USER_DMA_WRITE:
        answer_dma(c, hdr, payload);
        break;
    default:
        CHECK(false, "server sent command %u", hdr->cmd);
    }
}

/* Receives and handles what is there; waits for something when asked to. */
static void pump(struct client *c, bool wait)
{
    struct vfio_user_header hdr;
    size_t used = 0;
    ssize_t n = recv(c->fd, c->in + c->held, sizeof(c->in) - c->held, wait ? 0 : MSG_DONTWAIT);

    if (n < 0 && errno == EAGAIN) {
        return;
    }
    CHECK(n > 0, "the server has gone: %s", n < 0 ? strerror(errno) : "end of stream");
    c->held += (size_t)n;
    while (c->held - used >= sizeof(hdr)) {
        memcpy(&hdr, c->in + used, sizeof(hdr));
        if (c->held - used < hdr.msg_size) {
            break;
        }
        handle(c, &hdr, c->in + used + sizeof(hdr));
        used += hdr.msg_size;
    }
    c->held -= used;
    memmove(c->in, c->in + used, c->held);
}

static const char version_text[] =
    "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,\"iommu\":{"
    "\"pasid\":{\"bits\":20},\"ats\":{\"queue_depth\":32,\"page_shift\":12,\"max_entries\":8},"
    "\"pri\":{\"max_requests\":512}}}}";

/* A fresh memory file each time: the device may hold the last of the old one a little longer. */
static void open_session(struct client *c, const char *path)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    struct vfio_user_dma_map map = {
        .argsz = sizeof(map),
        .flags = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE,
        .addr = GUEST_BASE,
        .size = NR_FRAMES * PAGE,
    };
    struct {
        struct vfio_user_version version;
        char text[sizeof(version_text)];
    } __attribute__((packed)) hello = { .version = { .minor = LIB_VFIO_USER_MINOR } };

    c->memfd = memfd_create("guest", MFD_CLOEXEC);
    CHECK(c->memfd >= 0 && ftruncate(c->memfd, NR_FRAMES * PAGE) == 0, "memfd");
    c->memory = mmap(NULL, NR_FRAMES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, c->memfd, 0);
    CHECK(c->memory != MAP_FAILED, "mmap");
    for (int i = 0; i < NR_FRAMES; i++) {
        fill(c, i, POISON);
        c->busy[i] = false;
    }
    memset(c->map, 0xff, sizeof(c->map));
    memset(c->pending, 0, sizeof(c->pending));
    c->nr_pending = c->nr_invalidations = 0;
    c->held = 0;
    c->mapped = false;
    memset(c->late, 0, sizeof(c->late));
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    CHECK(connect(c->fd, (struct sockaddr *)&addr, sizeof(addr)) == 0, "connect: %s",
          strerror(errno));
    memcpy(hello.text, version_text, sizeof(version_text));
    command(c, PENDING_PLAIN, -1, VFIO_USER_VERSION, 0, &hello, sizeof(hello), -1);
    while (c->nr_pending > 0) {
        pump(c, true);
    }
    command(c, PENDING_MAP, -1, VFIO_USER_DMA_MAP, VFIO_USER_F_TRANSLATED, &map, sizeof(map),
            c->memfd);
    switch_on(c);
    c->sessions++;
}

static void close_session(struct client *c)
{
    close(c->fd);
    munmap(c->memory, NR_FRAMES * PAGE);
    close(c->memfd);
}

static void drain(struct client *c)
{
    while (c->nr_pending > 0) {
        send_late(c);
        pump(c, false);
    }
}

static void one_action(struct client *c, const char *path)
{
    uint64_t luck = next_random(&c->luck);
    unsigned space = luck % NR_SPACES, page = luck / 16 % NR_PAGES;

    if (c->nr_pending + 8 > MAX_PENDING) {
        return;
    }
    switch (luck / 1024 % 512) {
    case 0: /* ATS off and on */
    case 1: /* PASID off and on, and everything else with it */
        switch_on(c);
        break;
    case 2: /* PRI off, whatever is outstanding; reset; on */
        config_write(c, PRI_CONTROL, 0, 2);
        config_write(c, PRI_CONTROL, 2, 2);
        config_write(c, PRI_CONTROL, 1, 2);
        break;
    case 3:
        command(c, PENDING_PLAIN, -1, VFIO_USER_DEVICE_RESET, 0, NULL, 0, -1);
        switch_on(c);
        c->resets++;
        break;
    case 4:
        if (luck / (1024 * 512) % 2 == 0) {
            drain(c);
        }
        close_session(c);
        open_session(c, path);
        break;
    default:
        change_page(c, space, page, luck / 1024 % 2 == 0);
        break;
    }
}

/* The device */

struct device {
    vfu_ctx_t *ctx;
    atomic_bool stop;
    _Atomic uint64_t reads, writes, errors[256];
};

struct io_thread {
    struct device *device;
    pthread_t thread;
    uint64_t luck;
};

static void check_read(const uint64_t *words, unsigned space, uint64_t addr, uint64_t len)
{
    for (uint64_t i = 0; i < len / 8; i++) {
        unsigned page = (unsigned)((addr + i * 8 - IOVA_BASE) / PAGE);

        CHECK(words[i] == tag_of(space, page), "read %#" PRIx64 " from page %u of space %u, "
              "word %" PRIu64, words[i], page, space, i);
    }
}

static bool expected(int err)
{
    return err == EFAULT || err == ECANCELED || err == EPERM || err == ENOTCONN || err == EAGAIN;
}

static void one_access(struct io_thread *io)
{
    struct device *d = io->device;
    uint64_t luck = next_random(&io->luck);
    unsigned space = luck % NR_SPACES, page = luck / 16 % NR_PAGES;
    uint64_t in_page = luck / 4096 % (PAGE / 8) * 8, len = 8 + luck / (1 << 24) % 1024 * 8;
    uint64_t room = (uint64_t)(NR_PAGES - page) * PAGE - in_page;
    vfu_dma_request_t req = {
        .addr = IOVA_BASE + page * PAGE + in_page,
        .len = len < room ? len : room,
        .pasid = pasid_of(space),
    };
    uint64_t words[1024 + 1];
    bool write = luck >> 63;
    int ret;

    if (write) {
        for (uint64_t i = 0; i < req.len / 8; i++) {
            words[i] = tag_of(space, (unsigned)((req.addr + i * 8 - IOVA_BASE) / PAGE));
        }
        ret = vfu_dma_write(d->ctx, &req, words);
    } else {
        ret = vfu_dma_read(d->ctx, &req, words);
    }
    if (ret < 0) {
        CHECK(expected(errno), "access failed: %s", strerror(errno));
        d->errors[errno & 255]++;
    } else if (write) {
        d->writes++;
    } else {
        check_read(words, space, req.addr, req.len);
        d->reads++;
    }
}

static void *io_main(void *arg)
{
    struct io_thread *io = arg;

    while (!atomic_load(&io->device->stop)) {
        one_access(io);
    }
    return NULL;
}

static void *control_main(void *arg)
{
    struct device *d = arg;

    while (!atomic_load(&d->stop)) {
        struct pollfd pfd = { .fd = vfu_get_poll_fd(d->ctx), .events = POLLIN };

        poll(&pfd, 1, 10);
        if (vfu_run_ctx(d->ctx) < 0 && errno == ENOTCONN) {
            vfu_attach_ctx(d->ctx);
        }
    }
    return NULL;
}

static void unregistered(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx;
    (void)info;
}

static void print_log(vfu_ctx_t *ctx, int level, const char *msg)
{
    (void)ctx;
    fprintf(stderr, "[%d] %s\n", level, msg);
}

static void make_device(struct device *d, const char *path, int level)
{
    const vfu_iommu_config_t config = {
        .size = sizeof(config),
        .pasid_bits = 20,
        .ats = true,
        .atc_entries = 64,
        .pri = true,
    };

    d->ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL,
                            VFU_DEV_TYPE_PCI);
    CHECK(d->ctx != NULL, "create: %s", strerror(errno));
    vfu_setup_log(d->ctx, print_log, level);
    CHECK(vfu_pci_init(d->ctx, VFU_PCI_TYPE_EXPRESS, 0, 0) == 0 &&
          vfu_setup_device_dma(d->ctx, 64, unregistered, unregistered) == 0 &&
          vfu_setup_device_iommu(d->ctx, &config) == 0 && vfu_realize_ctx(d->ctx) == 0,
          "set-up: %s", strerror(errno));
}

/* Between two actions a few accesses get done, so that there is something to disturb. */
static void let_device_work(struct client *c, struct device *d)
{
    uint64_t goal = d->reads + d->writes + 4;

    for (int i = 0; i < 2000 && d->reads + d->writes < goal; i++) {
        pump(c, false);
        send_late(c);
        sched_yield();
    }
}

static void print_result(const struct client *c, struct device *d)
{
    vfu_iommu_stats_t s;

    vfu_iommu_get_stats(d->ctx, &s);
    printf("client: %" PRIu64 " sessions, %" PRIu64 " resets, %" PRIu64 " messages, %" PRIu64
           " translations, %" PRIu64 " page groups, %" PRIu64 " invalidations\n",
           c->sessions, c->resets, c->messages, c->translations, c->faults, c->invalidations);
    printf("device: %" PRIu64 " reads and %" PRIu64 " writes checked; %" PRIu64 " faults, %" PRIu64
           " cancelled, %" PRIu64 " not permitted, %" PRIu64 " not connected, %" PRIu64
           " given up\n", d->reads, d->writes, d->errors[EFAULT], d->errors[ECANCELED],
           d->errors[EPERM], d->errors[ENOTCONN], d->errors[EAGAIN]);
    printf("cache:  %" PRIu64 " hits, %" PRIu64 " misses, %" PRIu64 " joined, %" PRIu64
           " evicted, %" PRIu64 " discarded, %" PRIu64 " late\n", s.atc_hits, s.atc_misses,
           s.translations_joined, s.atc_evictions, s.translations_discarded, s.late_replies);
    CHECK(s.protocol_errors == 0, "%" PRIu64 " protocol errors", s.protocol_errors);
}

int main(int argc, char **argv)
{
    unsigned long actions = argc > 1 ? strtoul(argv[1], NULL, 0) : 20000;
    int level = argc > 2 ? atoi(argv[2]) : LOG_ERR;
    char dir[] = "/tmp/vfu-storm-XXXXXX", path[64];
    struct io_thread io[NR_IO_THREADS];
    struct device device = { 0 };
    struct client *client = calloc(1, sizeof(*client));
    pthread_t control;

    CHECK(client != NULL && mkdtemp(dir) != NULL, "set-up");
    snprintf(path, sizeof(path), "%s/sock", dir);
    make_device(&device, path, level);
    pthread_create(&control, NULL, control_main, &device);
    for (unsigned i = 0; i < NR_IO_THREADS; i++) {
        io[i] = (struct io_thread){ .device = &device, .luck = 77 + i };
        pthread_create(&io[i].thread, NULL, io_main, &io[i]);
    }
    client->luck = 4711;
    open_session(client, path);
    for (unsigned long i = 0; i < actions; i++) {
        one_action(client, path);
        let_device_work(client, &device);
        if (actions >= 10 && i % (actions / 10) == 0) {
            fprintf(stderr, "\r%lu of %lu actions", i, actions);
        }
    }
    fprintf(stderr, "\r%lu actions done          \n", actions);
    drain(client);
    close_session(client);
    atomic_store(&device.stop, true);
    for (unsigned i = 0; i < NR_IO_THREADS; i++) {
        pthread_join(io[i].thread, NULL);
    }
    pthread_join(control, NULL);
    print_result(client, &device);
    vfu_destroy_ctx(device.ctx);
    rmdir(dir);
    free(client);
    return 0;
}
