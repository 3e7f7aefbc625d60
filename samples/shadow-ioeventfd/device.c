/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The device. Its doorbells are ioeventfds: who writes one signals an eventfd, which a thread waits
 * for, and nothing comes by the socket. An eventfd does not say what was written: with a shadow,
 * the value is put into memory that both sides share, before the signal.
 *
 * Each client gets eventfds and memory of its own, because a client that has gone keeps those that
 * it got: see libvfio-user-session.h.
 */

#include "doorbell.h"

#include "../common/service.h"
#include "../common/shared_memory.h"
#include "libvfio-user-session.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/uio.h>

#define CLASS_OTHER 0xff
#define INTERRUPT 0
#define SHADOW_SIZE 4096
#define BAR VFU_PCI_DEV_BAR0_REGION_IDX

/* Written by the thread and by messages, read by messages. */
struct doorbell {
    int fd; /* eventfd */
    _Atomic uint32_t value, rings, messages;
};

struct device {
    vfu_ctx_t *ctx;
    struct doorbell doorbells[NR_DOORBELLS];
    _Atomic uint32_t *shadow; /* what was written, for each doorbell; NULL: none */
    int shadow_fd;
    bool wants_shadow;
    pthread_t thread; /* waits for the doorbells, if running is set */
    bool running;
    int stop_fd; /* eventfd: ends the thread */
    int signal_fd;
    bool attached;
};

/*
 * Doorbells
 */

static void interrupt(struct device *device)
{
    /* ENOENT: the client has not asked for interrupts. */
    if (vfu_irq_trigger(device->ctx, INTERRUPT) != 0 && errno != ENOENT) {
        vfu_log(device->ctx, LOG_WARNING, "interrupt lost: %s", strerror(errno));
    }
}

/*
 * The count of an eventfd is how often it was signalled since the last look. Of the values in
 * between nothing is left, which is as it should be for a doorbell.
 */
static void rung(struct device *device, size_t index)
{
    struct doorbell *doorbell = &device->doorbells[index];
    uint64_t count;
    const struct iovec iov = { &count, sizeof(count) };

    /*
     * The client has the same file description: it may have emptied the counter since poll() looked,
     * and cleared O_NONBLOCK.
     */
    if (preadv2(doorbell->fd, &iov, 1, -1, RWF_NOWAIT) != (ssize_t)sizeof(count)) {
        return;
    }
    /* Behind the count: it is not older than any of the rings that were counted. */
    if (device->shadow != NULL) {
        doorbell->value = le32toh(device->shadow[index]);
    }
    doorbell->rings += (uint32_t)count;
    interrupt(device);
}

static void *run_doorbells(void *arg)
{
    struct device *device = arg;
    struct pollfd fds[NR_DOORBELLS + 1];

    for (size_t i = 0; i < NR_DOORBELLS; i++) {
        fds[i] = (struct pollfd){ .fd = device->doorbells[i].fd, .events = POLLIN };
    }
    fds[NR_DOORBELLS] = (struct pollfd){ .fd = device->stop_fd, .events = POLLIN };
    while (fds[NR_DOORBELLS].revents == 0) {
        if (poll(fds, NR_DOORBELLS + 1, -1) < 0) {
            continue;
        }
        for (size_t i = 0; i < NR_DOORBELLS; i++) {
            if (fds[i].revents != 0) {
                rung(device, i);
            }
        }
    }
    return NULL;
}

/*
 * What still comes by messages: all that is no doorbell, and the doorbells of a client that does
 * not know ioeventfds.
 */

static bool read_register(const struct device *device, enum doorbell_register kind, size_t index,
                          uint32_t *value)
{
    const struct doorbell *doorbell = &device->doorbells[index];

    switch (kind) {
    case DOORBELL_VALUE:
        *value = doorbell->value;
        return true;
    case DOORBELL_RINGS:
        *value = doorbell->rings;
        return true;
    case DOORBELL_MESSAGES:
        *value = doorbell->messages;
        return true;
    default:
        return false;
    }
}

static bool write_register(struct device *device, enum doorbell_register kind, size_t index,
                           uint32_t value)
{
    struct doorbell *doorbell = &device->doorbells[index];

    if (kind != DOORBELL_RING) {
        return false;
    }
    doorbell->value = value;
    doorbell->messages++;
    doorbell->rings++;
    interrupt(device);
    return true;
}

static ssize_t access_registers(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset,
                                bool is_write)
{
    const loff_t stride = DOORBELL_VALUE - DOORBELL_RING;
    struct device *device = vfu_get_private(ctx);
    enum doorbell_register kind = (enum doorbell_register)(offset / stride * stride);
    size_t index = (size_t)(offset % stride) / sizeof(uint32_t);
    uint32_t value = 0;
    bool known = count == sizeof(value) && offset % (loff_t)sizeof(value) == 0 &&
                 offset < DOORBELL_END && index < NR_DOORBELLS;

    if (known && is_write) {
        memcpy(&value, buf, sizeof(value));
        known = write_register(device, kind, index, le32toh(value));
    } else if (known) {
        known = read_register(device, kind, index, &value);
        value = htole32(value);
        memcpy(buf, &value, sizeof(value));
    }
    if (!known) {
        vfu_log(ctx, LOG_WARNING, "no register to %s %zu bytes at 0x%jx",
                is_write ? "write" : "read", count, (intmax_t)offset);
        errno = EINVAL;
        return -1;
    }
    return (ssize_t)count;
}

/*
 * What the client gets of the device
 */

static int make_shadow(struct device *device)
{
    void *shadow;

    device->shadow_fd = shared_memory_create("shadow doorbells", SHADOW_SIZE);
    if (device->shadow_fd < 0) {
        return -1;
    }
    shadow = mmap(NULL, SHADOW_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, device->shadow_fd, 0);
    if (shadow == MAP_FAILED) {
        return -1;
    }
    device->shadow = shadow;
    return 0;
}

static int make_descriptors(struct device *device)
{
    for (size_t i = 0; i < NR_DOORBELLS; i++) {
        device->doorbells[i].fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (device->doorbells[i].fd < 0) {
            return -1;
        }
    }
    return device->wants_shadow ? make_shadow(device) : 0;
}

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

static void close_descriptors(struct device *device)
{
    for (size_t i = 0; i < NR_DOORBELLS; i++) {
        close_fd(&device->doorbells[i].fd);
    }
    close_fd(&device->shadow_fd);
    if (device->shadow != NULL) {
        munmap((void *)device->shadow, SHADOW_SIZE);
        device->shadow = NULL;
    }
}

static int add_doorbells(struct device *device)
{
    for (size_t i = 0; i < NR_DOORBELLS; i++) {
        const size_t offset = i * sizeof(uint32_t);

        /* No flags: whatever is written with this size signals. A shadow_fd of -1 is none. */
        if (vfu_create_ioeventfd(device->ctx, BAR, device->doorbells[i].fd,
                                 DOORBELL_RING + offset, sizeof(uint32_t), 0, 0, device->shadow_fd,
                                 device->shadow_fd >= 0 ? offset : 0) != 0) {
            return -1;
        }
    }
    return 0;
}

static int start_thread(struct device *device)
{
    int err = pthread_create(&device->thread, NULL, run_doorbells, device);

    device->running = err == 0;
    errno = err;
    return err == 0 ? 0 : -1;
}

/* The thread uses the context and the descriptors, so it ends first. */
static void stop_thread(struct device *device)
{
    uint64_t count;

    if (device->running) {
        eventfd_write(device->stop_fd, 1);
        pthread_join(device->thread, NULL);
        eventfd_read(device->stop_fd, &count);
        device->running = false;
    }
}

static int offer_doorbells(struct device *device)
{
    if (make_descriptors(device) != 0 || add_doorbells(device) != 0) {
        return -1;
    }
    return start_thread(device);
}

static int withdraw_doorbells(struct device *device)
{
    stop_thread(device);
    if (vfu_remove_ioeventfds(device->ctx, BAR) != 0) {
        return -1;
    }
    close_descriptors(device);
    return 0;
}

static int reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    struct device *device = vfu_get_private(ctx);

    if (type == VFU_RESET_LOST_CONN &&
        (withdraw_doorbells(device) != 0 || offer_doorbells(device) != 0)) {
        vfu_log(ctx, LOG_WARNING, "no ioeventfds for the next client: %s: it rings by messages",
                strerror(errno));
        (void)withdraw_doorbells(device);
    }
    for (size_t i = 0; i < NR_DOORBELLS; i++) {
        struct doorbell *doorbell = &device->doorbells[i];

        doorbell->value = doorbell->rings = doorbell->messages = 0;
    }
    return 0;
}

/*
 * Set-up
 */

static void print_log(vfu_ctx_t *ctx, int level, const char *msg)
{
    (void)ctx;
    service_print_log("shadow-ioeventfd", level, msg);
}

static int set_up(struct device *device)
{
    vfu_ctx_t *ctx = device->ctx;

    if (vfu_setup_log(ctx, print_log, LOG_WARNING) != 0 ||
        vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) != 0) {
        return -1;
    }
    vfu_pci_set_id(ctx, DOORBELL_VENDOR_ID, DOORBELL_DEVICE_ID, 0, 0);
    vfu_pci_set_class(ctx, CLASS_OTHER, 0, 0);
    if (vfu_setup_region(ctx, BAR, DOORBELL_BAR_SIZE, access_registers,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0) != 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_INTX_IRQ, 1) != 0 ||
        vfu_setup_device_reset_cb(ctx, reset) != 0 || vfu_realize_ctx(ctx) != 0) {
        return -1;
    }
    return offer_doorbells(device);
}

/*
 * Event loop
 */

static int serve_client(struct device *device)
{
    if (!device->attached) {
        device->attached = vfu_attach_ctx(device->ctx) == 0;
        if (!device->attached && errno != EAGAIN && errno != EINTR) {
            vfu_log(device->ctx, LOG_WARNING, "a client could not attach: %s", strerror(errno));
        }
        return 0;
    }
    if (vfu_run_ctx(device->ctx) >= 0 || errno == EAGAIN || errno == EINTR) {
        return 0;
    }
    device->attached = false;
    return errno == ENOTCONN ? 0 : -errno;
}

static int serve(struct device *device)
{
    int err = 0;

    while (err == 0) {
        struct pollfd fds[] = {
            { .fd = device->signal_fd, .events = POLLIN },
            { .fd = vfu_get_event_fd(device->ctx), .events = POLLIN },
        };

        err = service_poll(fds, 2);
        if (err != 0 || fds[0].revents != 0) {
            break;
        }
        err = serve_client(device);
    }
    if (err != 0) {
        fprintf(stderr, "shadow-ioeventfd: the device ends: %s\n", strerror(-err));
    }
    return err;
}

static int run(struct device *device, const char *socket_path)
{
    int err = set_up(device) == 0 ? 0 : -errno;

    if (err != 0) {
        fprintf(stderr, "shadow-ioeventfd: cannot set the device up: %s\n", strerror(-err));
        return err;
    }
    printf("shadow-ioeventfd: listening on %s\n", socket_path);
    fflush(stdout);
    return serve(device);
}

int device_run(const char *socket_path, bool shadow)
{
    struct device device = { .wants_shadow = shadow, .shadow_fd = -1 };
    int err = -1;

    for (size_t i = 0; i < NR_DOORBELLS; i++) {
        device.doorbells[i].fd = -1;
    }
    device.signal_fd = service_open_signals();
    device.stop_fd = eventfd(0, EFD_CLOEXEC);
    if (device.signal_fd < 0 || device.stop_fd < 0) {
        fprintf(stderr, "shadow-ioeventfd: no descriptors: %s\n", strerror(errno));
    } else {
        device.ctx = service_listen("shadow-ioeventfd", socket_path, NULL,
                                    LIBVFIO_USER_FLAG_ATTACH_NB, &device);
    }
    if (device.ctx != NULL) {
        err = run(&device, socket_path);
        stop_thread(&device);
        /* There is no next client to prepare for. */
        vfu_setup_device_reset_cb(device.ctx, NULL);
        /* Descriptors that the library was given stay ours. */
        vfu_destroy_ctx(device.ctx);
    }
    close_descriptors(&device);
    close_fd(&device.stop_fd);
    close_fd(&device.signal_fd);
    return err == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
