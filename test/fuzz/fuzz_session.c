/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A server and its client in one thread. The input is a byte of device options, a byte that picks
 * the client's proposal (bit 7: with the IOMMU extension switched on; bit 6: with each request in the
 * log), and then records: a kind (bit 7: the server does not run after it), and what follows from the
 * kind. Records that the server's waiting uses up are not there afterwards;
 * when none is left, the client hangs up.
 *
 * Whatever happens: every command has exactly one reply, every access of the device ends exactly
 * once, no wait has nothing to end it, no descriptor and no memory is left.
 */
#include "device.h"
#include "fuzz.h"
#include "peer.h"
#include "resources.h"
#include "threads.h"

#include "device/ctx.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syslog.h>
#include <unistd.h>

enum record {
    RECORD_COMMAND, /* flags, files, length (16 bits), a message */
    RECORD_REPLY, /* enum peer_answer, length (16 bits), data */
    RECORD_RAW, /* length (16 bits), bytes of the stream */
    RECORD_ORDER, /* struct device_order, from outside a callback */
    RECORD_TIME, /* milliseconds (16 bits) */
    RECORD_TRUNCATE, /* which file, its new size in KiB (16 bits) */
    RECORD_RECONNECT, /* proposal */
    RECORD_RUN,
    RECORD_KINDS,
};

#define RECORD_MORE 0x80

/* Beside the proposal. */
#define CHOICE_SWITCHED_ON 0x80
#define CHOICE_DEBUG 0x40

enum command_flags {
    COMMAND_SIZED = 1 << 0, /* the header's size is set right */
    COMMAND_TYPED = 1 << 1, /* and it is made a command */
    COMMAND_FILES = 4, /* from this bit on: the number of descriptors */
};

static const char *const proposals[] = {
    NULL,
    "",
    "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\"migration\":"
    "{\"pgsize\":4096},\"write_multiple\":true,\"pgsizes\":4096,\"max_dma_maps\":65535,\"x\":\""
    "                                                      \"}}",
    "{\"capabilities\":{\"iommu\":{\"pasid\":{\"bits\":20,\"exec\":true,\"priv\":true},\"ats\":"
    "{\"queue_depth\":32,\"page_shift\":12,\"max_entries\":64},\"pri\":{\"max_requests\":512}}}}",
    "{\"capabilities\":{\"max_data_xfer_size\":100,\"iommu\":{\"pasid\":{\"bits\":8},\"ats\":"
    "{\"queue_depth\":2,\"page_shift\":12,\"max_entries\":2},\"pri\":{\"max_requests\":4}}}}",
    "{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{\"supported\":true}}}",
    "{\"capabilities\":{\"max_data_xfer_size\":1}}",
    "{\"capabilities\":{\"iommu\":{\"pasid\":{\"bits\":20}}}}",
};

#define NR_FILES 8
#define FILE_SIZE (1u << 20)

/* What the client passes: memory of two sizes, and what is no memory. */
static int files[NR_FILES];
static bool truncated;

static struct device device;
static struct peer peer;
static struct tape tape;
static int newcomer = -1; /* a connection that the server has not accepted */
static bool nested; /* the server waits, inside of a call */

static void open_files(void)
{
    files[0] = memfd_create("large", MFD_CLOEXEC);
    files[1] = memfd_create("small", MFD_CLOEXEC);
    files[2] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    files[3] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
    files[4] = open("/dev/null", O_RDWR | O_CLOEXEC);
    files[5] = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    files[6] = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    files[7] = open("/dev/zero", O_RDWR | O_CLOEXEC);
    for (int i = 0; i < NR_FILES; i++) {
        REQUIRE(files[i] >= 0);
    }
    truncated = true;
}

static void restore_files(void)
{
    uint64_t count;

    if (truncated) {
        REQUIRE(ftruncate(files[0], FILE_SIZE) == 0 && ftruncate(files[1], 65536) == 0);
        truncated = false;
    }
    for (int i = 2; i < 4; i++) {
        (void)!read(files[i], &count, sizeof(count));
    }
}

/* The transport: whoever has connected is accepted once. */

static int accept_newcomer(struct transport *t, struct stream *s, size_t max_message)
{
    int fd = newcomer;

    (void)t;
    if (fd == -1) {
        return -EAGAIN;
    }
    newcomer = -1;
    return stream_open(s, fd, fd, true, max_message);
}

static struct transport_ops transport;

/* Records */

static void send_version(const char *text)
{
    uint8_t message[512];
    const struct vfio_user_version version = { .minor = 1 };
    size_t len = strlen(text) > 0 ? strlen(text) + 1 : 0;
    const struct vfio_user_header hdr = {
        .cmd = VFIO_USER_VERSION,
        .msg_size = (uint32_t)(sizeof(hdr) + sizeof(version) + len),
    };

    REQUIRE(hdr.msg_size <= sizeof(message));
    memcpy(message, &hdr, sizeof(hdr));
    memcpy(message + sizeof(hdr), &version, sizeof(version));
    memcpy(message + sizeof(hdr) + sizeof(version), text, len);
    peer_send(&peer, message, hdr.msg_size, NULL, 0);
}

static void hang_up(void)
{
    peer_close(&peer);
    if (newcomer != -1) {
        close(newcomer);
        newcomer = -1;
    }
}

static void send_message(uint16_t cmd, uint32_t flags, const void *payload, size_t len,
                         const int *fds, size_t nr_fds)
{
    const struct vfio_user_header hdr = {
        .cmd = cmd,
        .msg_size = (uint32_t)(sizeof(hdr) + len),
        .flags = flags,
    };
    uint8_t message[64];

    REQUIRE(hdr.msg_size <= sizeof(message));
    memcpy(message, &hdr, sizeof(hdr));
    memcpy(message + sizeof(hdr), payload, len);
    peer_send(&peer, message, hdr.msg_size, fds, nr_fds);
}

static void write_config(int capability, size_t offset, uint16_t value)
{
    struct { struct vfio_user_region_access access; uint8_t data[sizeof(value)]; } write = {
        .access = {
            .offset = vfu_pci_find_capability(device.ctx, true, capability) + offset,
            .region = VFU_PCI_DEV_CFG_REGION_IDX,
            .count = sizeof(value),
        },
    };

    memcpy(write.data, &value, sizeof(value));
    send_message(VFIO_USER_REGION_WRITE, 0, &write, sizeof(write.access) + sizeof(value), NULL, 0);
}

/* What a guest's driver and its VMM do first; a device without the extension refuses it. */
static void switch_on(void)
{
    const struct vfio_user_dma_map map = {
        .argsz = sizeof(map),
        .flags = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE,
        .size = FILE_SIZE,
    };

    send_message(VFIO_USER_DMA_MAP, VFIO_USER_F_TRANSLATED, &map, sizeof(map), files, 1);
    write_config(PCI_EXT_CAP_ID_PASID, offsetof(struct pasidcap, pasidctl), 7);
    write_config(PCI_EXT_CAP_ID_ATS, offsetof(struct atscap, atsctl), 0x8000);
    write_config(PCI_EXT_CAP_ID_PRI, 0xc, 32);
    write_config(PCI_EXT_CAP_ID_PRI, 4, 1);
}

static void connect_client(uint8_t choice)
{
    const uint8_t proposal = choice & ~(CHOICE_SWITCHED_ON | CHOICE_DEBUG);
    const char *text = proposals[proposal % (sizeof(proposals) / sizeof(proposals[0]))];

    if (newcomer != -1) {
        close(newcomer);
    }
    newcomer = peer_connect(&peer);
    if (text != NULL) {
        send_version(text);
    }
    if (choice & CHOICE_SWITCHED_ON) {
        switch_on();
    }
}

static void do_command(void)
{
    uint8_t flags = tape_u8(&tape), which = tape_u8(&tape), message[4096];
    size_t len = tape_u16(&tape) % sizeof(message), nr = flags >> COMMAND_FILES;
    const uint8_t *data = tape_bytes(&tape, &len);
    struct vfio_user_header hdr;
    int fds[16];

    if (len < sizeof(hdr)) {
        return;
    }
    memcpy(message, data, len);
    memcpy(&hdr, message, sizeof(hdr));
    if (flags & COMMAND_SIZED) {
        hdr.msg_size = (uint32_t)len;
    }
    if (flags & COMMAND_TYPED) {
        hdr.flags &= ~(uint32_t)VFIO_USER_F_TYPE_MASK;
    }
    memcpy(message, &hdr, sizeof(hdr));
    for (size_t i = 0; i < nr; i++) {
        fds[i] = files[(which + i) % NR_FILES];
    }
    if (peer.nr_awaited < PEER_AWAITED) {
        peer_send(&peer, message, len, fds, nr);
    }
}

static void do_reply(void)
{
    uint8_t how = tape_u8(&tape);
    size_t len = tape_u16(&tape);
    const uint8_t *data = tape_bytes(&tape, &len);

    peer_answer(&peer, how, data, len);
}

static void do_raw(void)
{
    size_t len = tape_u16(&tape);
    const uint8_t *data = tape_bytes(&tape, &len);

    peer_send_raw(&peer, data, len);
}

static void do_order(void)
{
    struct device_order order;

    tape_read(&tape, &order, sizeof(order));
    if (!nested) {
        device_obey(&device, &order);
    }
}

static void do_truncate(void)
{
    uint8_t which = tape_u8(&tape) % 2;
    uint16_t size = tape_u16(&tape);

    truncated = true;
    REQUIRE(ftruncate(files[which], (off_t)(size % 1025u) * 1024) == 0);
}

static void do_reconnect(void)
{
    uint8_t proposal = tape_u8(&tape);

    if (nested) {
        hang_up();
    } else {
        connect_client(proposal);
    }
}

/* Plays the next record; its kind, or -1 at the end of the tape. */
static int play(bool *more)
{
    uint8_t kind = tape_u8(&tape);

    *more = kind & RECORD_MORE;
    kind = (kind & ~RECORD_MORE) % RECORD_KINDS;
    switch (kind) {
    case RECORD_COMMAND:
        do_command();
        break;
    case RECORD_REPLY:
        do_reply();
        break;
    case RECORD_RAW:
        do_raw();
        break;
    case RECORD_ORDER:
        do_order();
        break;
    case RECORD_TIME:
        threads_pass(tape_u16(&tape) * UINT64_C(1000000));
        break;
    case RECORD_TRUNCATE:
        do_truncate();
        break;
    case RECORD_RECONNECT:
        do_reconnect();
        break;
    default:
        break;
    }
    return kind;
}

/* The server waits: the client reads, or the next thing happens, or nothing ever will again. */
static bool idle(int ms)
{
    bool more, connected = peer.fd != -1, before = nested;
    int kind;

    if (peer_drain(&peer)) {
        return true;
    }
    if (tape.left == 0) {
        hang_up();
        return connected;
    }
    nested = true;
    kind = play(&more);
    nested = before;
    return kind != RECORD_TIME || ms < 0;
}

/* The server's loop */

static bool readable(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };

    return fd >= 0 && poll(&pfd, 1, 0) > 0;
}

/* As long as there is something to do, as the loop of a device finds out. */
static void run_server(void)
{
    int r, err;

    do {
        if (newcomer != -1 || device.ctx->has_newcomer) {
            vfu_attach_ctx(device.ctx);
        }
        r = vfu_run_ctx(device.ctx);
        err = r < 0 ? errno : 0;
        REQUIRE(r >= 0 || err == ENOTCONN || err == EBUSY);
        peer_drain(&peer);
    } while (r > 0 || (r == 0 && readable(vfu_get_poll_fd(device.ctx))) ||
             (err == ENOTCONN && newcomer != -1));
    vfu_next_timeout(device.ctx);
}

/* Whatever the device still holds up is ended: afterwards nothing may be unanswered. */
static void settle(void)
{
    const struct device_order quiesced = { .number = ORDER_QUIESCED };

    for (int i = 0; i < 10000; i++) {
        device_release_all(&device);
        run_server();
        if (!device.quiescing) {
            return;
        }
        device_obey(&device, &quiesced);
        peer_drain(&peer);
    }
    REQUIRE(!device.quiescing);
}

static void play_all(void)
{
    bool more;

    while (tape.left > 0) {
        play(&more);
        if (!more) {
            run_server();
        }
    }
    settle();
    if (peer.fd != -1 && peer.honest && session_is_open(&device.ctx->session)) {
        REQUIRE(peer.nr_awaited == 0);
    }
}

static void end_all(void)
{
    hang_up();
    settle();
    REQUIRE(!session_is_open(&device.ctx->session));
    for (int i = 0; i < DEVICE_SLOTS; i++) {
        REQUIRE(device.slots[i].state == SLOT_FREE);
    }
    REQUIRE(device.callbacks == 0);
}

static void run(const uint8_t *data, size_t size)
{
    uint8_t options, choice;

    tape = (struct tape){ data, size };
    restore_files();
    threads_begin(idle);
    peer_init(&peer);
    options = tape_u8(&tape);
    choice = tape_u8(&tape);
    device_start(&device, options, choice & CHOICE_DEBUG ? LOG_DEBUG : LOG_INFO);
    transport = *device.ctx->tran.ops;
    transport.accept = accept_newcomer;
    device.ctx->tran.ops = &transport;
    connect_client(choice);
    run_server();
    play_all();
    end_all();
    device_stop(&device);
    threads_settle();
    threads_end();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool warm;
    unsigned before;

    if (!warm) {
        /* What is made once is there before anything is counted. */
        open_files();
        run((const uint8_t *)"\x03\x01", 2);
        warm = true;
    }
    before = resources_held();
    run(data, size);
    REQUIRE(resources_held() == before);
    return 0;
}
