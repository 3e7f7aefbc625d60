/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The life of a context, once for each allocation in it, which fails: calls of the interface fail
 * with ENOMEM or EMFILE and can be made again, the client is answered or loses its connection, and
 * nothing leaks, crashes or hangs. The linker wraps what allocates; only this thread's calls fail.
 */
#include "libvfio-user-iommu.h"

#include <err.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MEMORY_SIZE 0x10000
#define MESSAGE_IOVA 0x100000 /* memory without a file */
#define FILE_IOVA 0x200000 /* by pread and pwrite */
#define NR_ACCESSES 6
#define PASID 5

/* Which call of this thread fails: 0 is the next. */
static _Thread_local long countdown = -1;
static bool failed;

static bool fails(int error)
{
    if (countdown < 0 || countdown-- > 0) {
        return false;
    }
    failed = true;
    errno = error;
    return true;
}

#define WRAP(type, name, failure, error, params, args)                                             \
    type __real_##name params;                                                                     \
    type __wrap_##name params;                                                                     \
    type __wrap_##name params                                                                      \
    {                                                                                              \
        return fails(error) ? (failure) : __real_##name args;                                      \
    }

WRAP(void *, malloc, NULL, ENOMEM, (size_t size), (size))
WRAP(void *, calloc, NULL, ENOMEM, (size_t count, size_t size), (count, size))
WRAP(void *, aligned_alloc, NULL, ENOMEM, (size_t align, size_t size), (align, size))
WRAP(char *, strdup, NULL, ENOMEM, (const char *text), (text))
WRAP(void *, mmap, MAP_FAILED, ENOMEM,
     (void *addr, size_t len, int prot, int flags, int fd, off_t at),
     (addr, len, prot, flags, fd, at))
WRAP(int, eventfd, -1, EMFILE, (unsigned int count, int flags), (count, flags))
WRAP(int, socketpair, -1, EMFILE, (int domain, int type, int protocol, int *pair),
     (domain, type, protocol, pair))

/* The client: a thread that answers what the server asks, and counts the replies */

struct client {
    int fd, twin;
    pthread_t thread;
    int wake; /* readable when a message has been dealt with, or there will be none */
    atomic_uint replies;
    unsigned asked; /* for translations */
};

static bool receive(int fd, void *buf, size_t len, int *passed)
{
    for (size_t at = 0; at < len;) {
        union {
            char bytes[CMSG_SPACE(sizeof(int))];
            struct cmsghdr header;
        } control;
        struct iovec iov = { (char *)buf + at, len - at };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
                              .msg_controllen = sizeof(control.bytes) };
        ssize_t n = recvmsg(fd, &msg, 0);

        if (n <= 0) {
            return false;
        }
        if (msg.msg_controllen != 0) {
            memcpy(passed, CMSG_DATA(&control.header), sizeof(*passed));
        }
        at += (size_t)n;
    }
    return true;
}

/* Every third page is not there at first. */
static size_t translate(struct client *client, const uint8_t *request, uint8_t *out)
{
    struct vfio_user_ats_translate asked;
    struct vfio_user_ats_entry entry = { .length = 0x1000 };
    struct vfio_user_ats_translate_reply reply = { .argsz = sizeof(reply) + sizeof(entry),
                                                   .nr_entries = 1 };

    memcpy(&asked, request, sizeof(asked));
    entry.address = asked.address;
    if (client->asked++ % 3 != 0) {
        entry.translated = 0x2000;
        entry.perm = VFIO_USER_ATS_PERM_READ | VFIO_USER_ATS_PERM_WRITE;
    }
    memcpy(out, &reply, sizeof(reply));
    memcpy(out + sizeof(reply), &entry, sizeof(entry));
    return sizeof(reply) + sizeof(entry);
}

static size_t page_response(const uint8_t *request, uint8_t *out)
{
    struct vfio_user_page_request asked;
    struct vfio_user_page_response response = { .argsz = sizeof(response) };

    memcpy(&asked, request, sizeof(asked));
    response.group = asked.group;
    memcpy(out, &response, sizeof(response));
    return sizeof(response);
}

static size_t dma_reply(const uint8_t *request, uint8_t *out, bool read)
{
    struct vfio_user_dma_region_access access;
    size_t count;

    memcpy(&access, request, sizeof(access));
    count = read ? access.count : 0;
    memcpy(out, &access, sizeof(access));
    memset(out + sizeof(access), 0, count);
    return sizeof(access) + count;
}

static void answer(struct client *client, int fd, struct vfio_user_header hdr,
                   const uint8_t *request)
{
    uint8_t out[8192];
    size_t len = 0;
    struct iovec iov[] = { { &hdr, sizeof(hdr) }, { out, 0 } };
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };

    request += hdr.flags & VFIO_USER_F_PASID ? sizeof(struct vfio_user_pasid_prefix) : 0;
    switch (hdr.cmd) {
    case VFIO_USER_DMA_READ:
    case VFIO_USER_DMA_WRITE:
        len = dma_reply(request, out, hdr.cmd == VFIO_USER_DMA_READ);
        break;
    case VFIO_USER_ATS_TRANSLATE:
        len = translate(client, request, out);
        break;
    case VFIO_USER_PAGE_REQUEST:
        len = page_response(request, out);
        break;
    default:
        errx(1, "the server sent command %u", hdr.cmd);
    }
    hdr.flags = VFIO_USER_F_TYPE_REPLY;
    hdr.msg_size = (uint32_t)(sizeof(hdr) + len);
    iov[1].iov_len = len;
    sendmsg(fd, &msg, MSG_NOSIGNAL);
}

/* One message, from whichever socket has one. False at the end. */
static bool serve(struct client *client)
{
    struct pollfd pfds[] = { { .fd = client->fd, .events = POLLIN },
                             { .fd = client->twin, .events = POLLIN } };
    struct vfio_user_header hdr;
    uint8_t payload[8192];
    int fd, passed = -1;

    poll(pfds, 2, -1);
    fd = pfds[0].revents != 0 ? client->fd : client->twin;
    if (!receive(fd, &hdr, sizeof(hdr), &passed)) {
        return false;
    }
    if (hdr.msg_size - sizeof(hdr) > sizeof(payload)) {
        errx(1, "the server sent %u bytes", hdr.msg_size);
    }
    if (!receive(fd, payload, hdr.msg_size - sizeof(hdr), &passed)) {
        return false;
    }
    if (passed != -1) {
        client->twin = passed;
    }
    if (hdr.flags & VFIO_USER_F_TYPE_REPLY) {
        client->replies++;
    } else if (!(hdr.flags & VFIO_USER_F_NO_REPLY)) {
        answer(client, fd, hdr, payload);
    }
    return true;
}

static void *client_main(void *arg)
{
    struct client *client = arg;

    while (serve(client)) {
        eventfd_write(client->wake, 1);
    }
    eventfd_write(client->wake, 1);
    return NULL;
}

/* The device */

struct device {
    vfu_ctx_t *ctx;
    int memory, event;
    int wake; /* the client's */
    bool iommu;
    bool quiesce_later;
    bool gone; /* the client */
    int pending; /* of an access: -1, then its error */
    dma_sg_t *sgl;
    char path[64];
};

/* A failure must be that of the allocation. */
static void check(const char *what, int result)
{
    if (result < 0 && !failed) {
        err(1, "%s", what);
    }
}

static ssize_t bar_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx;
    (void)offset;
    if (!is_write) {
        memset(buf, 1, count);
    }
    return (ssize_t)count;
}

static void registered(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx;
    (void)info;
}

static int quiesce(vfu_ctx_t *ctx)
{
    struct device *dev = vfu_get_private(ctx);

    errno = EBUSY;
    return dev->quiesce_later ? -1 : 0;
}

static void resolved(vfu_ctx_t *ctx, vfu_dma_request_t *req, int error)
{
    (void)ctx;
    ((struct device *)req->pvt)->pending = error;
}

static void translated(vfu_ctx_t *ctx, void *pvt, int error, const vfu_translation_t *translation)
{
    (void)ctx;
    (void)translation;
    ((struct device *)pvt)->pending = error;
}

static void paged(vfu_ctx_t *ctx, void *pvt, int error, uint32_t code)
{
    (void)ctx;
    (void)code;
    ((struct device *)pvt)->pending = error;
}

/* What failed for want of memory succeeds when there is some again. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        if ((call) < 0) {                                                                          \
            check(#call, -1);                                                                      \
            if (errno != ENOMEM || (call) < 0) {                                                   \
                err(1, "again: %s", #call);                                                        \
            }                                                                                      \
        }                                                                                          \
    } while (0)

static void set_up_pci(struct device *dev)
{
    struct pmcap pm = { .hdr = { .id = PCI_CAP_ID_PM } };
    struct msixcap msix = {
        .hdr = { .id = PCI_CAP_ID_MSIX },
        .mxc = { .ts = 3 },
        .mtab = { .tbir = 2 },
        .mpba = { .pbir = 2, .pbao = 0x100 },
    };
    struct iovec area = { (void *)0x1000, 0x1000 };
    vfu_ctx_t *ctx = dev->ctx;

    TRY(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, 0, 0));
    TRY(vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, 0x4000, bar_access,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, &area, 1, dev->memory, 0));
    TRY(vfu_create_ioeventfd(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, dev->event, 0, 4, 0, 0, -1, 0));
    TRY(vfu_setup_region(ctx, VFU_PCI_DEV_BAR2_REGION_IDX, 0x1000, NULL,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0));
    TRY(vfu_pci_add_capability(ctx, 0, 0, &pm));
    TRY(vfu_pci_add_capability(ctx, 0, 0, &msix));
}

static bool set_up(struct device *dev)
{
    const vfu_iommu_config_t config = { .size = sizeof(config), .pasid_bits = 8, .ats = true,
                                        .pri = true };

    dev->ctx = vfu_create_ctx(VFU_TRANS_SOCK, dev->path, LIBVFIO_USER_FLAG_ATTACH_NB, dev,
                              VFU_DEV_TYPE_PCI);
    if (dev->ctx == NULL) {
        check("vfu_create_ctx", -1);
        return false;
    }
    set_up_pci(dev);
    TRY(vfu_setup_device_nr_irqs(dev->ctx, VFU_DEV_MSIX_IRQ, 4));
    TRY(vfu_setup_device_dma(dev->ctx, 64, registered, registered));
    if (dev->iommu) {
        TRY(vfu_setup_device_iommu(dev->ctx, &config));
    }
    vfu_setup_device_quiesce_cb(dev->ctx, quiesce);
    TRY(vfu_realize_ctx(dev->ctx));
    return true;
}

/* Lets the device do what there is, and then waits for it or the client. */
static void run(struct device *dev, struct client *client)
{
    struct pollfd pfds[] = { { .fd = vfu_get_poll_fd(dev->ctx), .events = POLLIN },
                             { .fd = client->wake, .events = POLLIN } };
    eventfd_t count;
    int ret;

    poll(pfds, 2, -1);
    if (pfds[1].revents != 0) {
        eventfd_read(client->wake, &count);
    }
    ret = vfu_run_ctx(dev->ctx);
    if (ret < 0 && errno == EBUSY && dev->quiesce_later) {
        dev->quiesce_later = false;
        check("vfu_device_quiesced", vfu_device_quiesced(dev->ctx, 0));
    } else if (ret < 0) {
        check("vfu_run_ctx", ret);
        dev->gone = errno == ENOTCONN;
    }
}

static void send_message(struct client *client, uint16_t cmd, uint32_t flags, const void *payload,
                         size_t len, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control = { .header = { .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
                              .cmsg_len = CMSG_LEN(sizeof(int)) } };
    struct vfio_user_pasid_prefix prefix = { .pasid = PASID };
    size_t prefix_len = flags & VFIO_USER_F_PASID ? sizeof(prefix) : 0;
    struct vfio_user_header hdr = { .cmd = cmd, .flags = flags,
                                    .msg_size = (uint32_t)(sizeof(hdr) + prefix_len + len) };
    struct iovec iov[] = { { &hdr, sizeof(hdr) }, { &prefix, prefix_len },
                           { (void *)payload, len } };
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 3 };

    if (fd != -1) {
        memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof(control.bytes);
    }
    if (sendmsg(client->fd, &msg, MSG_NOSIGNAL) < 0) {
        check("sendmsg", -1);
    }
}

/* A command of the client and its reply, which may be an error. */
static void command(struct device *dev, struct client *client, uint16_t cmd, uint32_t flags,
                    const void *payload, size_t len, int fd)
{
    unsigned before = client->replies;

    if (!dev->gone) {
        send_message(client, cmd, flags, payload, len, fd);
    }
    while (!dev->gone && client->replies == before) {
        run(dev, client);
    }
}

static void map(struct device *dev, struct client *client, uint32_t header_flags, uint64_t addr,
                uint32_t flags, int fd)
{
    const struct vfio_user_dma_map request = {
        .argsz = sizeof(request),
        .flags = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE | flags,
        .addr = addr,
        .size = MEMORY_SIZE,
    };

    command(dev, client, VFIO_USER_DMA_MAP, header_flags, &request, sizeof(request), fd);
}

static void unmap(struct device *dev, struct client *client, uint32_t header_flags)
{
    const struct vfio_user_dma_unmap request = { .argsz = sizeof(request), .size = MEMORY_SIZE };

    command(dev, client, VFIO_USER_DMA_UNMAP, header_flags, &request, sizeof(request), -1);
}

static void write_config(struct device *dev, struct client *client, int id, size_t reg,
                         uint32_t value, uint32_t size)
{
    const struct vfio_user_region_access access = {
        .offset = vfu_pci_find_capability(dev->ctx, true, id) + reg,
        .region = VFU_PCI_DEV_CFG_REGION_IDX,
        .count = size,
    };
    uint8_t request[sizeof(access) + sizeof(value)];

    memcpy(request, &access, sizeof(access));
    memcpy(request + sizeof(access), &value, sizeof(value));
    command(dev, client, VFIO_USER_REGION_WRITE, 0, request, sizeof(access) + size, -1);
}

/* Memory by mapping, by file and by message. */
static void transfer(struct device *dev)
{
    static const uintptr_t addrs[] = { 0x1000, MESSAGE_IOVA, FILE_IOVA };
    char buf[4096];

    for (size_t i = 0; i < sizeof(addrs) / sizeof(addrs[0]) && !dev->gone; i++) {
        if (vfu_addr_to_sgl(dev->ctx, (void *)addrs[i], sizeof(buf), dev->sgl, 1,
                            PROT_READ | PROT_WRITE) == 1) {
            check("vfu_sgl_read", vfu_sgl_read(dev->ctx, dev->sgl, 1, buf, VFU_SGL_DIRECT_ACCESS));
            check("vfu_sgl_write",
                  vfu_sgl_write(dev->ctx, dev->sgl, 1, buf, VFU_SGL_DIRECT_ACCESS));
        }
    }
}

static void wait_done(struct device *dev, struct client *client, const char *what, int started)
{
    check(what, started);
    while (started == 0 && !dev->gone && dev->pending == -1) {
        run(dev, client);
    }
    if (started == 0 && dev->pending > 0 && !failed) {
        errx(1, "%s: %s", what, strerror(dev->pending));
    }
}

static void resolve_pages(struct device *dev, struct client *client)
{
    for (unsigned i = 0; i < NR_ACCESSES && !dev->gone; i++) {
        vfu_dma_request_t req = {
            .addr = 0x5000 + i * 0x1000,
            .len = 8,
            .pasid = i % 2 ? PASID : PASID + 1,
            .prot = i % 2 ? PROT_READ | PROT_WRITE : PROT_READ,
            .sgl = dev->sgl,
            .max_nr_sgs = 1,
            .pvt = dev,
            .done = resolved,
        };

        dev->pending = -1;
        wait_done(dev, client, "vfu_dma_resolve", vfu_dma_resolve(dev->ctx, &req));
        if (dev->pending == 0) {
            vfu_dma_release(dev->ctx, &req);
        } else if (dev->pending == -1) {
            vfu_dma_cancel(dev->ctx, &req);
        }
    }
}

static void use_iommu(struct device *dev, struct client *client)
{
    const struct vfio_user_ats_invalidate everything = { .argsz = sizeof(everything),
                                                         .flags = VFIO_USER_ATS_INV_F_ALL };
    const vfu_page_range_t page = { .addr = 0x7000, .nr_pages = 1,
                                    .perm = VFIO_USER_ATS_PERM_READ };

    write_config(dev, client, PCI_EXT_CAP_ID_PASID, 6, 1, 2);
    write_config(dev, client, PCI_EXT_CAP_ID_ATS, 6, 0x8000, 2);
    write_config(dev, client, PCI_EXT_CAP_ID_PRI, 12, 8, 4);
    write_config(dev, client, PCI_EXT_CAP_ID_PRI, 4, 1, 2);
    resolve_pages(dev, client);
    dev->pending = -1;
    if (!dev->gone) {
        wait_done(dev, client, "vfu_ats_translate",
                  vfu_ats_translate(dev->ctx, PASID, 0, 0x9000, false, translated, dev));
    }
    dev->pending = -1;
    if (!dev->gone) {
        wait_done(dev, client, "vfu_page_request",
                  vfu_page_request(dev->ctx, PASID, 0, &page, 1, paged, dev));
    }
    command(dev, client, VFIO_USER_ATS_INVALIDATE, VFIO_USER_F_PASID, &everything,
            sizeof(everything), -1);
    unmap(dev, client, VFIO_USER_F_TRANSLATED);
}

static bool attach(struct device *dev, struct client *client)
{
    /* The reply must not be longer than this. */
    static const char plain[] = "{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{"
                                "\"supported\":true},\"filler\":\"                            "
                                "                "
                                "                                                           \"}}";
    static const char extended[] = "{\"capabilities\":{\"max_msg_fds\":8,\"iommu\":{\"pasid\":{"
                                   "\"bits\":8},\"ats\":{},\"pri\":{}},\"filler\":\"       "
                                   "       "
                                   "                                                       \"}}";
    const char *json = dev->iommu ? extended : plain;
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    char version[sizeof(struct vfio_user_version) + sizeof(plain) + sizeof(extended)] = { 0 };

    *client = (struct client){ .fd = socket(AF_UNIX, SOCK_STREAM, 0), .twin = -1,
                               .wake = dev->wake };
    strcpy(addr.sun_path, dev->path);
    if (connect(client->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        err(1, "connect");
    }
    strcpy(version + sizeof(struct vfio_user_version), json);
    send_message(client, VFIO_USER_VERSION, 0, version,
                 sizeof(struct vfio_user_version) + strlen(json) + 1, -1);
    dev->gone = vfu_attach_ctx(dev->ctx) < 0;
    if (dev->gone) {
        check("vfu_attach_ctx", -1);
        close(client->fd);
        return false;
    }
    pthread_create(&client->thread, NULL, client_main, client);
    return true;
}

static void detach(struct device *dev, struct client *client)
{
    shutdown(client->fd, SHUT_RDWR);
    while (!dev->gone) {
        if (vfu_run_ctx(dev->ctx) < 0) {
            dev->gone = errno == ENOTCONN;
        }
    }
    pthread_join(client->thread, NULL);
    close(client->fd);
    if (client->twin != -1) {
        close(client->twin);
    }
}

/* A client that has everything done. */
static void serve_client(struct device *dev)
{
    const struct vfio_irq_set irq = { .argsz = sizeof(irq), .index = VFU_DEV_MSIX_IRQ, .count = 1,
                                      .flags = VFIO_IRQ_SET_DATA_EVENTFD |
                                               VFIO_IRQ_SET_ACTION_TRIGGER };
    struct client client;

    if (!attach(dev, &client)) {
        return;
    }
    while (client.replies == 0) {
        run(dev, &client); /* VERSION's has been sent */
    }
    map(dev, &client, 0, 0, 0, dev->memory);
    map(dev, &client, dev->iommu ? VFIO_USER_F_TRANSLATED : 0, 0, 0, dev->memory);
    map(dev, &client, 0, FILE_IOVA, VFIO_USER_F_DMA_REGION_FILE_IO, dev->memory);
    dev->quiesce_later = true;
    map(dev, &client, dev->iommu ? VFIO_USER_F_PASID : 0, MESSAGE_IOVA, 0, -1);
    dev->quiesce_later = false;
    map(dev, &client, 0, MESSAGE_IOVA, 0, -1);
    command(dev, &client, VFIO_USER_DEVICE_SET_IRQS, 0, &irq, sizeof(irq), dev->event);
    transfer(dev);
    if (dev->iommu) {
        use_iommu(dev, &client);
    }
    unmap(dev, &client, 0);
    command(dev, &client, VFIO_USER_DEVICE_RESET, 0, NULL, 0, -1);
    detach(dev, &client);
}

/* Returns whether an allocation has failed. */
static bool live(struct device *dev, long fail_at)
{
    failed = false;
    countdown = fail_at;
    if (set_up(dev)) {
        serve_client(dev);
        serve_client(dev);
    }
    vfu_destroy_ctx(dev->ctx);
    countdown = -1;
    return failed;
}

int main(void)
{
    struct device dev = { .memory = memfd_create("guest", MFD_CLOEXEC),
                          .event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
                          .wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC) };
    char dir[] = "/tmp/vfu-test-XXXXXX";
    long count;

    if (mkdtemp(dir) == NULL || ftruncate(dev.memory, MEMORY_SIZE) < 0) {
        err(1, "set-up");
    }
    snprintf(dev.path, sizeof(dev.path), "%s/socket", dir);
    dev.sgl = calloc(1, dma_sg_size());
    for (int iommu = 0; iommu < 2; iommu++) {
        dev.iommu = iommu;
        for (count = 0; live(&dev, count); count++) {
            continue;
        }
        printf("%s: each of %ld allocations has failed once\n", iommu ? "with an IOMMU" : "plain",
               count);
    }
    free(dev.sgl);
    close(dev.memory);
    close(dev.event);
    close(dev.wake);
    rmdir(dir);
    return 0;
}
