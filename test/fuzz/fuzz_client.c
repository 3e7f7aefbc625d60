/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The client library and its software IOMMU, against a server that lies. The input is a byte of
 * options, a length and as many bytes that say what the caller does, and then records for the
 * server: each command of the client is answered by the next one. Behind the last, the server is
 * honest for as long as it has sent nothing that makes that impossible; else it hangs up.
 *
 * Whatever the server sends, each call of the caller returns, and no descriptor is left.
 */
#include "fuzz.h"
#include "resources.h"
#include "threads.h"

#include "vfio-user-client-iommu.h"
#include "vfio-user.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define FILE_SIZE 0x10000u
#define LARGEST (2u << 20)
#define TIMEOUT_MS 5000

enum option {
    OPTION_IOMMU = 1 << 0, /* the client is connected by a software IOMMU */
    OPTION_ATS = 1 << 1, /* and the server agrees to ATS */
    OPTION_REFUSE = 1 << 2, /* there is no callback for the server's commands */
};

enum record {
    RECORD_GOOD, /* an honest answer; length, pairs of position and XOR */
    RECORD_ANSWER, /* flags, length (16 bits), payload */
    RECORD_COMMAND, /* of the server: length (16 bits), message; the size is set right */
    RECORD_RAW, /* length, bytes */
    RECORD_HANGUP,
    RECORD_KINDS,
};

enum answer {
    ANSWER_ERROR = 1 << 0, /* the errno is the length of the payload */
    ANSWER_OTHER_ID = 1 << 1,
    ANSWER_OTHER_COMMAND = 1 << 2,
    ANSWER_NO_REPLY_BIT = 1 << 3,
    ANSWER_FILES = 4, /* from this bit on: the number of descriptors */
};

static struct {
    int listener;
    char path[64];
    int files[4]; /* what the server passes */
    int memory; /* what the client shares */
    uint8_t *vaddr;
} common;

/* The server, on a thread of its own */

struct server {
    struct tape tape;
    uint8_t options;
    bool honest;
    int fd;
    uint8_t *request; /* the message at hand, header and all */
    uint8_t *reply;
};

static uint8_t request_buffer[LARGEST], reply_buffer[LARGEST];

static bool receive_exact(int fd, void *data, size_t len)
{
    size_t got = 0;

    while (got < len) {
        struct iovec iov = { (char *)data + got, len - got };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t n = recvmsg(fd, &msg, 0);

        if (n <= 0) {
            return false;
        }
        got += (size_t)n;
    }
    return true;
}

static bool server_sends(struct server *s, const void *data, size_t len, size_t nr_fds)
{
    union {
        char bytes[CMSG_SPACE(16 * sizeof(int))];
        struct cmsghdr align;
    } control = { .bytes = { 0 } };
    struct iovec iov = { .iov_base = (void *)data, .iov_len = len };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    if (nr_fds > 0) {
        struct cmsghdr *c;

        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
        c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
        for (size_t i = 0; i < nr_fds; i++) {
            memcpy(CMSG_DATA(c) + i * sizeof(int), &common.files[i % 4], sizeof(int));
        }
    }
    return sendmsg(s->fd, &msg, MSG_NOSIGNAL) == (ssize_t)len;
}

#define TEXT_PLAIN                                                                                 \
    "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":65536,\"migration\":"             \
    "{\"pgsize\":4096},\"write_multiple\":true}}"
#define TEXT_ATS                                                                                   \
    "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":65536,\"iommu\":{\"pasid\":"      \
    "{\"bits\":8},\"ats\":{\"queue_depth\":4,\"page_shift\":12,\"max_entries\":4},\"pri\":"        \
    "{\"max_requests\":8}}}}"

/* Behind the payload of a request: what an honest server answers. */

static size_t good_version(const struct server *s, uint8_t *out)
{
    const char *text = s->options & OPTION_ATS ? TEXT_ATS : TEXT_PLAIN;
    const struct vfio_user_version version = { .minor = 2 };

    memcpy(out, &version, sizeof(version));
    memcpy(out + sizeof(version), text, strlen(text) + 1);
    return sizeof(version) + strlen(text) + 1;
}

static size_t good_region_info(const uint8_t *request, uint8_t *out, size_t *nr_fds)
{
    struct vfio_region_info info;
    struct {
        struct vfio_region_info_cap_sparse_mmap cap;
        struct vfio_region_sparse_mmap_area areas[2];
    } sparse = {
        .cap = { .header = { .id = VFIO_REGION_INFO_CAP_SPARSE_MMAP, .version = 1 },
                 .nr_areas = 2 },
        .areas = { { 0x1000, 0x1000 }, { 0x4000, 0x2000 } },
    };
    bool mappable;

    memcpy(&info, request, sizeof(info));
    mappable = info.index == 2;
    info.flags = 3;
    info.size = info.index == 7 ? 4096 : 0x8000;
    if (mappable) {
        info.flags |= VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS;
        info.cap_offset = info.argsz >= sizeof(info) + sizeof(sparse) ? sizeof(info) : 0;
        *nr_fds = 1;
    }
    mappable &= info.argsz >= sizeof(info) + sizeof(sparse);
    info.argsz = sizeof(info) + (info.index == 2 ? sizeof(sparse) : 0);
    memcpy(out, &info, sizeof(info));
    memcpy(out + sizeof(info), &sparse, sizeof(sparse));
    return sizeof(info) + (mappable ? sizeof(sparse) : 0);
}

/* The count of a request, within what the client may ask for. */
static uint32_t count_at(const uint8_t *request, size_t at)
{
    uint32_t count;

    memcpy(&count, request + at, sizeof(count));
    return count <= 1u << 20 ? count : 0;
}

static size_t good_read(const uint8_t *request, uint8_t *out, size_t fixed, size_t at)
{
    uint32_t count = count_at(request, at);

    memcpy(out, request, fixed);
    memset(out + fixed, 0, count);
    return fixed + count;
}

static size_t good_reply(struct server *s, const struct vfio_user_header *hdr, uint8_t *out,
                         size_t *nr_fds)
{
    const uint8_t *request = s->request + sizeof(*hdr);
    size_t len = hdr->msg_size - sizeof(*hdr);
    const uint32_t info[] = { 16, 2, 9, 5 }, irqs[] = { 16, 1, 2, 16 }, io_fds[] = { 16, 0, 0, 0 };

    switch (hdr->cmd) {
    case VFIO_USER_VERSION:
        return good_version(s, out);
    case VFIO_USER_DEVICE_GET_INFO:
        memcpy(out, info, sizeof(info));
        return sizeof(info);
    case VFIO_USER_DEVICE_GET_REGION_INFO:
        return good_region_info(request, out, nr_fds);
    case VFIO_USER_DEVICE_GET_REGION_IO_FDS:
        memcpy(out, io_fds, sizeof(io_fds));
        return sizeof(io_fds);
    case VFIO_USER_DEVICE_GET_IRQ_INFO:
        memcpy(out, irqs, sizeof(irqs));
        return sizeof(irqs);
    case VFIO_USER_REGION_READ:
        return good_read(request, out, sizeof(struct vfio_user_region_access), 12);
    case VFIO_USER_MIG_DATA_READ:
        return good_read(request, out, sizeof(struct vfio_user_mig_data), 4);
    case VFIO_USER_REGION_WRITE:
        memcpy(out, request, sizeof(struct vfio_user_region_access));
        return sizeof(struct vfio_user_region_access);
    case VFIO_USER_DMA_UNMAP:
    case VFIO_USER_DEVICE_FEATURE:
        memcpy(out, request, len);
        return len;
    default:
        return 0;
    }
}

static bool answer(struct server *s, const struct vfio_user_header *request, size_t len,
                   uint8_t how, size_t nr_fds)
{
    struct vfio_user_header hdr = {
        .msg_id = (uint16_t)(request->msg_id ^ (how & ANSWER_OTHER_ID ? 1 : 0)),
        .cmd = (uint16_t)(request->cmd ^ (how & ANSWER_OTHER_COMMAND ? 1 : 0)),
        .msg_size = (uint32_t)(sizeof(hdr) + len),
        .flags = VFIO_USER_F_TYPE_REPLY | (how & ANSWER_NO_REPLY_BIT ? VFIO_USER_F_NO_REPLY : 0),
    };

    if (how & ANSWER_ERROR) {
        hdr.flags |= VFIO_USER_F_ERROR;
        hdr.error_no = (uint32_t)len;
    }
    memcpy(s->reply, &hdr, sizeof(hdr));
    return server_sends(s, s->reply, hdr.msg_size, nr_fds);
}

static bool answer_well(struct server *s, const struct vfio_user_header *hdr, bool patched)
{
    uint8_t *payload = s->reply + sizeof(*hdr);
    size_t nr_fds = 0, len = good_reply(s, hdr, payload, &nr_fds);

    if (patched) {
        size_t nr = tape_u8(&s->tape) & ~(size_t)1;
        const uint8_t *patches = tape_bytes(&s->tape, &nr);

        for (size_t i = 0; i + 1 < nr; i += 2) {
            if (patches[i] < len) {
                payload[patches[i]] ^= patches[i + 1];
            }
        }
    }
    return answer(s, hdr, len, 0, nr_fds);
}

static bool answer_badly(struct server *s, const struct vfio_user_header *hdr, bool *answered)
{
    uint8_t how = tape_u8(&s->tape);
    size_t len = tape_u16(&s->tape);
    const uint8_t *data = tape_bytes(&s->tape, &len);

    if (len > 0) {
        memcpy(s->reply + sizeof(*hdr), data, len);
    }
    *answered = !(how & ANSWER_OTHER_ID);
    s->honest &= *answered;
    return answer(s, hdr, len, how, how >> ANSWER_FILES);
}

static bool ask(struct server *s)
{
    size_t len = tape_u16(&s->tape) % 4096;
    const uint8_t *data = tape_bytes(&s->tape, &len);
    struct vfio_user_header hdr;

    if (len < sizeof(hdr)) {
        return true;
    }
    memcpy(s->reply, data, len);
    memcpy(&hdr, data, sizeof(hdr));
    hdr.msg_size = (uint32_t)len;
    memcpy(s->reply, &hdr, sizeof(hdr));
    return server_sends(s, s->reply, len, 0);
}

static bool send_raw(struct server *s)
{
    size_t len = tape_u8(&s->tape);
    const uint8_t *data = tape_bytes(&s->tape, &len);

    s->honest = false;
    return len == 0 || server_sends(s, data, len, 0);
}

/*
 * Plays records until the command at hand is answered. False: the connection ends. Once the client
 * may be waiting for the rest of a message, no other command will come: then all are played.
 */
static bool serve(struct server *s, const struct vfio_user_header *hdr)
{
    bool answered = false, good = true;

    while (good && !(answered && s->honest)) {
        if (s->tape.left == 0) {
            return s->honest && answer_well(s, hdr, false);
        }
        switch (tape_u8(&s->tape) % RECORD_KINDS) {
        case RECORD_GOOD:
            good = answer_well(s, hdr, true);
            answered = true;
            break;
        case RECORD_ANSWER:
            good = answer_badly(s, hdr, &answered);
            break;
        case RECORD_COMMAND:
            good = ask(s);
            break;
        case RECORD_RAW:
            good = send_raw(s);
            break;
        default:
            return false;
        }
    }
    return good;
}

static void *run_server(void *arg)
{
    struct server *s = arg;
    struct vfio_user_header hdr;
    struct pollfd pfd = { .fd = common.listener, .events = POLLIN };

    poll(&pfd, 1, -1);
    s->fd = accept4(common.listener, NULL, NULL, SOCK_CLOEXEC);
    while (s->fd != -1 && receive_exact(s->fd, &hdr, sizeof(hdr))) {
        REQUIRE(hdr.msg_size >= sizeof(hdr) && hdr.msg_size <= LARGEST);
        memcpy(s->request, &hdr, sizeof(hdr));
        if (!receive_exact(s->fd, s->request + sizeof(hdr), hdr.msg_size - sizeof(hdr))) {
            break;
        }
        if ((hdr.flags & (VFIO_USER_F_TYPE_MASK | VFIO_USER_F_NO_REPLY)) == 0 && !serve(s, &hdr)) {
            break;
        }
    }
    if (s->fd != -1) {
        close(s->fd);
    }
    return NULL;
}

/* The caller */

struct caller {
    _Atomic(vfuc_t *) client; /* NULL until it is connected, when callbacks may come already */
    vfuc_iommu_t *iommu; /* NULL: none */
    vfuc_iommu_domain_t *domain;
    vfuc_mapping_t *mapping;
};

static void call_regions(struct caller *c, uint8_t which)
{
    vfuc_region_info_t info;
    uint8_t data[256] = { 0 };
    vfuc_ioeventfd_t list[4];
    vfuc_capability_t capabilities[8];
    int n;

    switch (which % 8) {
    case 0:
        if (vfuc_region_info(c->client, 2, &info) == 0) {
            REQUIRE(info.nr_areas <= VFUC_MAX_AREAS);
            if (info.fd != -1) {
                close(info.fd);
            }
        }
        break;
    case 1:
        vfuc_region_read(c->client, 0, 8, data, sizeof(data));
        break;
    case 2:
        vfuc_region_write(c->client, 0, 8, data, sizeof(data));
        break;
    case 3:
        vfuc_region_post(c->client, 0, 8, data, 4);
        break;
    case 4:
        n = vfuc_region_ioeventfds(c->client, 0, list, 4);
        if (n > 0 && n <= 4) {
            vfuc_close_ioeventfds(list, (uint32_t)n);
        }
        break;
    case 5:
        vfuc_config_capabilities(c->client, capabilities, 8);
        break;
    case 6:
        vfuc_region_munmap(c->mapping);
        c->mapping = vfuc_region_mmap(c->client, 2, PROT_READ | PROT_WRITE);
        break;
    default:
        /* A file that is too short for what is mapped is the server's to answer for: no access. */
        if (c->mapping != NULL) {
            vfuc_mapping_at(c->mapping, 0x1000, 8);
        }
        break;
    }
}

static void call_device(struct caller *c, uint8_t which)
{
    vfuc_device_info_t info;
    const int fds[] = { common.files[1], -1, common.files[1] };

    switch (which % 8) {
    case 0:
        vfuc_device_info(c->client, &info);
        break;
    case 1:
        vfuc_irq_count(c->client, 2);
        break;
    case 2:
        vfuc_irq_set_eventfds(c->client, 2, 1, 3, fds);
        break;
    case 3:
        vfuc_irq_mask(c->client, 0, 0, 1, true);
        break;
    case 4:
        vfuc_irq_disable(c->client, 2);
        break;
    case 5:
        vfuc_reset(c->client);
        break;
    case 6:
        vfuc_feature_probe(c->client, 1, 1u << 16);
        break;
    default:
        vfuc_config_find(c->client, true, 0xf);
        break;
    }
}

static void call_migration(struct caller *c, uint8_t which)
{
    const vfuc_range_t range = { 0, FILE_SIZE };
    uint8_t data[64] = { 0 };
    uint64_t flags;
    uint32_t state;

    switch (which % 8) {
    case 0:
        vfuc_migration_flags(c->client, &flags);
        break;
    case 1:
        vfuc_migration_state(c->client, &state);
        break;
    case 2:
        vfuc_migration_set_state(c->client, which >> 4);
        break;
    case 3:
        vfuc_migration_read(c->client, data, sizeof(data));
        break;
    case 4:
        vfuc_migration_write(c->client, data, 1);
        break;
    case 5:
        vfuc_dirty_start(c->client, 4096, &range, 1);
        break;
    case 6:
        vfuc_dirty_report(c->client, 0, FILE_SIZE, 4096, data, 8);
        break;
    default:
        vfuc_dirty_stop(c->client);
        break;
    }
}

static void call_memory(struct caller *c, uint8_t which)
{
    vfuc_memory_t memory = {
        .iova = (which >> 4) * UINT64_C(0x10000),
        .size = 0x4000,
        .prot = PROT_READ | PROT_WRITE,
        .fd = which & 8 ? common.memory : -1,
        .vaddr = common.vaddr,
    };
    uint8_t bitmap[8];

    switch (which % 4) {
    case 0:
    case 1:
        vfuc_dma_map(c->client, &memory);
        break;
    case 2:
        vfuc_dma_unmap(c->client, &memory);
        break;
    default:
        vfuc_dma_unmap_dirty(c->client, &memory, 4096, bitmap, sizeof(bitmap));
        break;
    }
}

static void call_iommu(struct caller *c, uint8_t which)
{
    const uint64_t iova = (which >> 4) * UINT64_C(0x2000);
    const uint32_t rw = VFUC_IOMMU_READ | VFUC_IOMMU_WRITE;
    vfuc_iommu_translation_t translation;

    switch (which % 8) {
    case 0:
    case 1:
        vfuc_iommu_map(c->domain, iova, 0x1000, 0x3000, rw);
        break;
    case 2:
        vfuc_iommu_unmap(c->domain, iova, 0x1000);
        break;
    case 3:
        vfuc_iommu_protect(c->domain, iova, 0x2000, VFUC_IOMMU_READ);
        break;
    case 4:
        vfuc_iommu_attach(c->iommu, which >> 4, c->domain);
        break;
    case 5:
        vfuc_iommu_attach(c->iommu, which >> 4, NULL);
        break;
    case 6:
        vfuc_iommu_translate(c->iommu, VFUC_NO_PASID, iova, &translation);
        break;
    default:
        vfuc_iommu_set_unit(c->iommu, 12 + (which >> 7));
        break;
    }
}

static void call(struct caller *c, uint8_t which)
{
    static void (*const plain[])(struct caller *, uint8_t) = {
        call_regions, call_device, call_migration, call_memory,
    };

    /* The IOMMU's own maps are not to be disturbed. */
    if (c->iommu != NULL && which % 4 == 3) {
        call_iommu(c, which / 4);
    } else {
        plain[which % 4](c, which / 4);
    }
}

/* A command of the server, for a caller without an IOMMU. */
static void on_command(void *pvt, uint16_t id, uint16_t cmd, uint32_t flags, const void *payload,
                       size_t len)
{
    struct caller *c = pvt;
    vfuc_t *client = c->client;
    uint8_t sum = 0;

    (void)flags;
    for (size_t i = 0; i < len; i++) {
        sum ^= ((const uint8_t *)payload)[i];
    }
    if (client != NULL) {
        vfuc_reply(client, id, cmd, sum & 1 ? EIO : 0, payload, len < 32 ? len : 32);
    }
}

static void on_fault(void *pvt, vfuc_iommu_t *iommu, const vfuc_iommu_fault_t *fault)
{
    (void)pvt;
    vfuc_iommu_page_response(iommu, fault->id, fault->address & 0x1000 ? 0 : 1);
}

static void swallow(void *pvt, const char *line)
{
    (void)pvt;
    REQUIRE(strlen(line) > 0);
}

static void connect_iommu(struct caller *c, const vfuc_options_t *options)
{
    const vfuc_iommu_options_t unit = { .invalidate_timeout_ms = TIMEOUT_MS, .fault = on_fault };
    const vfuc_iommu_memory_t memory = {
        .size = FILE_SIZE,
        .prot = PROT_READ | PROT_WRITE,
        .fd = common.memory,
        .vaddr = common.vaddr,
    };

    c->iommu = vfuc_iommu_create(&unit);
    REQUIRE(c->iommu != NULL);
    REQUIRE(vfuc_iommu_add_memory(c->iommu, &memory) == 0);
    c->domain = vfuc_iommu_domain_create(c->iommu);
    REQUIRE(c->domain != NULL);
    REQUIRE(vfuc_iommu_map(c->domain, 0, 0, 0x8000, VFUC_IOMMU_READ | VFUC_IOMMU_WRITE) == 0);
    REQUIRE(vfuc_iommu_attach(c->iommu, VFUC_NO_PASID, c->domain) == 0);
    c->client = vfuc_iommu_connect(c->iommu, common.path, options);
}

static void run_caller(uint8_t options, const uint8_t *calls, size_t nr_calls)
{
    struct caller c = { .iommu = NULL };
    const vfuc_options_t plain = {
        .timeout_ms = TIMEOUT_MS,
        .log = swallow,
        .command = options & OPTION_REFUSE ? NULL : on_command,
        .pvt = &c,
    };
    const vfuc_options_t behind = { .timeout_ms = TIMEOUT_MS, .log = swallow };

    if (options & OPTION_IOMMU) {
        connect_iommu(&c, &behind);
    } else {
        c.client = vfuc_connect(common.path, &plain);
    }
    for (size_t i = 0; c.client != NULL && i < nr_calls; i++) {
        call(&c, calls[i]);
    }
    vfuc_region_munmap(c.mapping);
    if (c.iommu != NULL) {
        vfuc_iommu_disconnect(c.iommu);
        vfuc_iommu_destroy(c.iommu);
    } else {
        vfuc_disconnect(c.client);
    }
}

static void set_up(void)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    snprintf(common.path, sizeof(common.path), "/tmp/vfu-fuzz-client-%d", getpid());
    memcpy(addr.sun_path, common.path, strlen(common.path) + 1);
    unlink(common.path);
    common.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(bind(common.listener, (struct sockaddr *)&addr, sizeof(addr)) == 0);
    REQUIRE(listen(common.listener, 8) == 0);
    common.memory = memfd_create("guest", MFD_CLOEXEC);
    common.files[0] = memfd_create("region", MFD_CLOEXEC);
    common.files[1] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    common.files[2] = memfd_create("short", MFD_CLOEXEC);
    common.files[3] = open("/dev/null", O_RDWR | O_CLOEXEC);
    REQUIRE(ftruncate(common.memory, FILE_SIZE) == 0 && ftruncate(common.files[0], 0x8000) == 0);
    common.vaddr = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, common.memory, 0);
    REQUIRE(common.vaddr != MAP_FAILED);
}

static void clean_up(void)
{
    unlink(common.path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tape tape = { data, size };
    struct server server = {
        .options = tape_u8(&tape),
        .honest = true,
        .request = request_buffer,
        .reply = reply_buffer,
    };
    size_t nr_calls = tape_u8(&tape) % 64;
    const uint8_t *calls = tape_bytes(&tape, &nr_calls);
    pthread_t thread;
    unsigned before;

    if (common.listener == 0) {
        set_up();
        atexit(clean_up);
    }
    server.tape = tape;
    before = resources_held();
    threads_begin(NULL);
    REQUIRE(pthread_create(&thread, NULL, run_server, &server) == 0);
    run_caller(server.options, calls, nr_calls);
    pthread_join(thread, NULL);
    threads_end();
    REQUIRE(resources_held() == before);
    return 0;
}
