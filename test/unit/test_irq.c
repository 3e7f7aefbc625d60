/* SPDX-License-Identifier: BSD-3-Clause */
/* Interrupts: DEVICE_SET_IRQS, triggers from any thread, masks and what they hold back. */
#include "device/irq.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cmocka.h>

#define INTX VFU_DEV_INTX_IRQ
#define MSI VFU_DEV_MSI_IRQ
#define MSIX VFU_DEV_MSIX_IRQ
#define ERR VFU_DEV_ERR_IRQ
#define REQ VFU_DEV_REQ_IRQ

#define TRIGGER VFIO_IRQ_SET_ACTION_TRIGGER
#define MASK VFIO_IRQ_SET_ACTION_MASK
#define UNMASK VFIO_IRQ_SET_ACTION_UNMASK
#define NONE VFIO_IRQ_SET_DATA_NONE
#define BOOL VFIO_IRQ_SET_DATA_BOOL
#define EVENTFD VFIO_IRQ_SET_DATA_EVENTFD
#define ASSIGN (TRIGGER | EVENTFD)
#define FIRE (TRIGGER | NONE)

#define VECTORS 8

static unsigned lines;

static void count_line(struct vfu_ctx *ctx, int level, const char *msg)
{
    (void)ctx;
    (void)level;
    (void)msg;
    lines++;
}

static const struct logger counting = { .fn = count_line, .level = LOG_ERR };

static int set_up(void **state)
{
    static struct irqs irqs;

    irqs_init(&irqs, &counting);
    assert_int_equal(irqs_set_count(&irqs, INTX, 1), 0);
    assert_int_equal(irqs_set_count(&irqs, MSI, 4), 0);
    assert_int_equal(irqs_set_count(&irqs, MSIX, VECTORS), 0);
    assert_int_equal(irqs_set_count(&irqs, ERR, 2), 0);
    assert_int_equal(irqs_realize(&irqs), 0);
    lines = 0;
    *state = &irqs;
    return 0;
}

static int tear_down(void **state)
{
    irqs_destroy(*state);
    return 0;
}

static int event(void)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

static uint64_t count_of(int fd)
{
    uint64_t count = 0;

    return read(fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) != -1;
}

/* One command, without descriptors. */
static int set(struct irqs *irqs, uint32_t index, uint32_t flags, uint32_t start, uint32_t count,
               const char *data, size_t len)
{
    struct vfio_irq_set cmd = {
        .argsz = sizeof(cmd), .flags = flags, .index = index, .start = start, .count = count
    };
    int err = irqs_check(irqs, &cmd, sizeof(cmd) + len, 0);

    return err < 0 ? err : irqs_apply(irqs, &cmd, (const uint8_t *)data, NULL, 0);
}

static int set_mask(struct irqs *irqs, uint32_t index, uint32_t vector, bool masked)
{
    return set(irqs, index, (masked ? MASK : UNMASK) | NONE, vector, 1, NULL, 0);
}

/* Gives duplicates of nr descriptors to the vectors from start on. */
static int assign(struct irqs *irqs, uint32_t index, uint32_t start, const int *fds, uint32_t nr)
{
    struct vfio_irq_set cmd = {
        .argsz = sizeof(cmd), .flags = ASSIGN, .index = index, .start = start, .count = nr
    };
    int dups[VECTORS], err = irqs_check(irqs, &cmd, sizeof(cmd), nr);

    if (err < 0) {
        return err;
    }
    for (uint32_t i = 0; i < nr; i++) {
        dups[i] = dup(fds[i]);
        assert_true(dups[i] >= 0);
    }
    err = irqs_apply(irqs, &cmd, NULL, dups, nr);
    for (uint32_t i = 0; i < nr; i++) {
        assert_int_equal(dups[i] == -1, err == 0);
        if (dups[i] != -1) {
            close(dups[i]);
        }
    }
    return err;
}

static void test_refused_fields(void **state)
{
    static const struct {
        const char *name;
        uint32_t index, flags, start, count;
        size_t data, fds;
    } bad[] = {
        { "index", 5, FIRE, 0, 1, 0, 0 },
        { "largest index", UINT32_MAX, FIRE, 0, 1, 0, 0 },
        { "no flags", INTX, 0, 0, 1, 0, 0 },
        { "no action", INTX, NONE, 0, 1, 0, 0 },
        { "two actions", INTX, NONE | MASK | UNMASK, 0, 1, 0, 0 },
        { "trigger and mask", INTX, FIRE | MASK, 0, 1, 0, 0 },
        { "no data type", INTX, TRIGGER, 0, 1, 0, 0 },
        { "two data types", INTX, FIRE | BOOL, 0, 1, 1, 0 },
        { "all data types", INTX, TRIGGER | 7, 0, 1, 1, 0 },
        { "unknown flag", INTX, FIRE | 0x40, 0, 1, 0, 0 },
        { "BOOL without data", MSI, TRIGGER | BOOL, 0, 2, 0, 0 },
        { "BOOL, one byte short", MSI, TRIGGER | BOOL, 0, 2, 1, 0 },
        { "BOOL, one byte over", MSI, TRIGGER | BOOL, 0, 2, 3, 0 },
        { "BOOL, largest count", MSI, TRIGGER | BOOL, 0, UINT32_MAX, 0, 0 },
        { "start at the end", MSI, FIRE, 4, 1, 0, 0 },
        { "largest start", MSI, FIRE, UINT32_MAX, 1, 0, 0 },
        { "count", MSI, FIRE, 0, 5, 0, 0 },
        { "start + count", MSI, FIRE, 2, 3, 0, 0 },
        { "start + count wraps", MSI, FIRE, 2, UINT32_MAX, 0, 0 },
        { "beyond this type, not the table", INTX, FIRE, 1, 1, 0, 0 },
        { "mask ERR", ERR, MASK | NONE, 0, 1, 0, 0 },
        { "unmask REQ", REQ, UNMASK | NONE, 0, 1, 0, 0 },
        { "two ERR", ERR, FIRE, 0, 2, 0, 0 },
        { "count 0 with start", MSI, FIRE, 1, 0, 0, 0 },
        { "count 0 with mask", MSI, MASK | NONE, 0, 0, 0, 0 },
        { "count 0 with BOOL", MSI, TRIGGER | BOOL, 0, 0, 0, 0 },
        { "count 0 with EVENTFD", MSI, ASSIGN, 0, 0, 0, 0 },
        { "descriptors with NONE", MSI, FIRE, 0, 1, 0, 1 },
        { "descriptors with BOOL", MSI, TRIGGER | BOOL, 0, 1, 1, 1 },
        { "too few descriptors", MSI, ASSIGN, 0, 3, 0, 2 },
        { "too many descriptors", MSI, ASSIGN, 0, 1, 0, 2 },
    };
    struct irqs *irqs = *state;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct vfio_irq_set cmd = {
            .argsz = sizeof(cmd), .flags = bad[i].flags, .index = bad[i].index,
            .start = bad[i].start, .count = bad[i].count
        };

        lines = 0;
        if (irqs_check(irqs, &cmd, sizeof(cmd) + bad[i].data, bad[i].fds) != -EINVAL ||
            lines != 1) {
            fail_msg("%s: accepted, or not logged once", bad[i].name);
        }
    }
}

static void test_before_realize(void **state)
{
    struct vfio_irq_set cmd = { .argsz = sizeof(cmd), .flags = FIRE, .count = 1 };
    struct irqs irqs;

    (void)state;
    irqs_init(&irqs, &counting);
    assert_int_equal(irqs_set_count(&irqs, VFU_DEV_NUM_IRQS, 1), -EINVAL);
    assert_int_equal(irqs_set_count(&irqs, INTX, 1), 0);
    assert_int_equal(irqs_check(&irqs, &cmd, sizeof(cmd), 0), -EINVAL);
    assert_int_equal(irq_trigger(&irqs, 0), -EINVAL);
    assert_int_equal(irq_trigger_type(&irqs, ERR, 0), -EINVAL);
    assert_false(irq_pending(&irqs, MSIX, 0));
    irq_mask_vector(&irqs, 0, true);
    irq_mask_function(&irqs, false);
    irqs_close_all(&irqs);
    assert_int_equal(irqs_realize(&irqs), 0);
    assert_int_equal(irqs_set_count(&irqs, INTX, 2), -EBUSY);
    assert_int_equal(irqs_check(&irqs, &cmd, sizeof(cmd), 0), 0);
    irqs_destroy(&irqs);
}

static void test_trigger(void **state)
{
    struct irqs *irqs = *state;
    int fd = event();

    assert_int_equal(irq_trigger(irqs, 0), -ENOENT);
    assert_int_equal(assign(irqs, MSIX, 3, &fd, 1), 0);
    assert_int_equal(irq_trigger(irqs, 3), 0);
    assert_int_equal(irq_trigger_type(irqs, MSIX, 3), 0);
    assert_int_equal(count_of(fd), 2);
    assert_int_equal(irq_trigger(irqs, 2), -ENOENT);
    assert_int_equal(irq_trigger(irqs, VECTORS), -EINVAL); /* ERR is not in reach */
    assert_int_equal(irq_trigger(irqs, UINT32_MAX), -EINVAL);
    assert_int_equal(irq_trigger_type(irqs, INTX, 3), -EINVAL);
    assert_int_equal(irq_trigger_type(irqs, VFU_DEV_NUM_IRQS, 0), -EINVAL);
    close(fd);
}

static void test_err_and_req_are_their_own(void **state)
{
    struct irqs *irqs = *state;
    int fds[2] = { event(), event() };

    assert_int_equal(irq_trigger_type(irqs, ERR, 0), -ENOENT);
    assert_int_equal(assign(irqs, ERR, 0, &fds[0], 1), 0);
    assert_int_equal(assign(irqs, REQ, 0, &fds[1], 1), 0);
    assert_int_equal(irq_trigger_type(irqs, REQ, 0), 0);
    assert_int_equal(irq_trigger_type(irqs, REQ, 1), -EINVAL);
    assert_int_equal(count_of(fds[0]), 0);
    assert_int_equal(count_of(fds[1]), 1);
    assert_int_equal(assign(irqs, MSIX, 0, &fds[1], 1), 0);
    irq_mask_function(irqs, true);
    assert_int_equal(set(irqs, ERR, FIRE, 0, 1, NULL, 0), 0);
    assert_int_equal(count_of(fds[0]), 1);
    assert_int_equal(set(irqs, ERR, FIRE, 0, 0, NULL, 0), 0);
    assert_int_equal(irq_trigger_type(irqs, ERR, 0), -ENOENT);
    assert_int_equal(irq_trigger_type(irqs, REQ, 0), 0);
    close(fds[0]);
    close(fds[1]);
}

/* As clients with few descriptors per message do it: a run at a time. */
static void test_runs(void **state)
{
    struct irqs *irqs = *state;
    int fds[VECTORS];

    for (uint32_t i = 0; i < VECTORS; i++) {
        fds[i] = event();
    }
    for (uint32_t i = 0; i < VECTORS; i += 2) {
        assert_int_equal(assign(irqs, MSIX, i, &fds[i], 2), 0);
    }
    assert_int_equal(set(irqs, MSIX, ASSIGN, 2, 3, NULL, 0), 0); /* no descriptors: taken away */
    for (uint32_t i = 0; i < VECTORS; i++) {
        assert_int_equal(irq_trigger(irqs, i), i >= 2 && i < 5 ? -ENOENT : 0);
    }
    assert_int_equal(set(irqs, MSIX, FIRE, 0, 0, NULL, 0), 0);
    for (uint32_t i = 0; i < VECTORS; i++) {
        assert_int_equal(irq_trigger(irqs, i), -ENOENT);
        assert_int_equal(count_of(fds[i]), i >= 2 && i < 5 ? 0 : 1);
        close(fds[i]);
    }
}

static void test_descriptors_are_closed(void **state)
{
    struct vfio_irq_set cmd = { .argsz = sizeof(cmd), .flags = ASSIGN, .index = MSI, .count = 1 };
    struct irqs *irqs = *state;
    int first = event(), second = event(), fd = first;

    assert_int_equal(irqs_apply(irqs, &cmd, NULL, &fd, 1), 0);
    assert_int_equal(fd, -1);
    fd = second;
    assert_int_equal(irqs_apply(irqs, &cmd, NULL, &fd, 1), 0);
    assert_false(is_open(first));
    assert_true(is_open(second));
    irqs_close_all(irqs);
    assert_false(is_open(second));
    assert_int_equal(irq_trigger(irqs, 0), -ENOENT);
}

static void test_simulated(void **state)
{
    struct irqs *irqs = *state;
    int fds[2] = { event(), event() };

    assert_int_equal(assign(irqs, MSI, 1, fds, 2), 0);
    assert_int_equal(set(irqs, MSI, FIRE, 0, 4, NULL, 0), 0); /* vectors 0 and 3 are not set */
    assert_int_equal(count_of(fds[0]), 1);
    assert_int_equal(count_of(fds[1]), 1);
    assert_int_equal(set(irqs, MSI, TRIGGER | BOOL, 0, 4, "\1\0\1\1", 4), 0);
    assert_int_equal(count_of(fds[0]), 0);
    assert_int_equal(count_of(fds[1]), 1);
    assert_int_equal(set(irqs, MSI, TRIGGER | BOOL, 1, 1, "\2", 1), 0);
    assert_int_equal(count_of(fds[0]), 0);
    close(fds[0]);
    close(fds[1]);
}

/* Anything but an eventfd could wait for the client, raise SIGPIPE, or SIGXFSZ. */
static void test_other_descriptors_are_refused(void **state)
{
    struct irqs *irqs = *state;
    int pipes[2], sockets[2], good = event();

    assert_return_code(pipe(pipes), errno);
    assert_return_code(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), errno);
    int bad[] = { pipes[0], pipes[1], sockets[0], memfd_create("anon_inode:[eventfd]", MFD_CLOEXEC),
                  epoll_create1(EPOLL_CLOEXEC), timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC),
                  open("/dev/null", O_RDWR | O_CLOEXEC), open("/", O_PATH | O_CLOEXEC) };

    assert_int_equal(assign(irqs, MSI, 0, &good, 1), 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        int fds[2] = { event(), bad[i] };

        assert_true(bad[i] >= 0);
        lines = 0;
        assert_int_equal(assign(irqs, MSI, 0, fds, 2), -EINVAL);
        assert_int_equal(lines, 1);
        assert_int_equal(irq_trigger(irqs, 0), 0);
        assert_int_equal(irq_trigger(irqs, 1), -ENOENT);
        assert_int_equal(count_of(fds[0]), 0);
        close(fds[0]);
        close(bad[i]);
    }
    assert_int_equal(count_of(good), sizeof(bad) / sizeof(bad[0]));
    close(sockets[1]);
    close(good);
}

/* Its write(2) would wait for the client to read. */
static void test_full_counter(void **state)
{
    struct irqs *irqs = *state;
    int fd = event();

    assert_int_equal(assign(irqs, INTX, 0, &fd, 1), 0);
    assert_return_code(eventfd_write(fd, UINT64_MAX - 1), errno);
    assert_return_code(fcntl(fd, F_SETFL, 0), errno);
    assert_int_equal(irq_trigger(irqs, 0), -EAGAIN);
    assert_int_equal(set(irqs, INTX, FIRE, 0, 1, NULL, 0), -EAGAIN);
    assert_true(count_of(fd) == UINT64_MAX - 1);
    close(fd);
}

static void test_mask_holds_back(void **state)
{
    static const uint32_t types[] = { INTX, MSI, MSIX };
    struct irqs *irqs = *state;

    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        int fd = event();

        assert_int_equal(assign(irqs, types[i], 0, &fd, 1), 0);
        assert_int_equal(set_mask(irqs, types[i], 0, true), 0);
        assert_int_equal(irq_trigger(irqs, 0), 0);
        assert_int_equal(irq_trigger(irqs, 0), 0);
        assert_int_equal(count_of(fd), 0);
        assert_true(irq_pending(irqs, types[i], 0));
        assert_int_equal(set_mask(irqs, types[i], 0, false), 0);
        assert_int_equal(count_of(fd), 1);
        assert_false(irq_pending(irqs, types[i], 0));
        assert_int_equal(set_mask(irqs, types[i], 0, true), 0);
        assert_int_equal(set_mask(irqs, types[i], 0, false), 0);
        assert_int_equal(count_of(fd), 0);
        close(fd);
    }
}

/* As in VFIO, where disabling an index forgets its masks. What is pending is delivered then. */
static void test_disabled_type_is_unmasked(void **state)
{
    struct irqs *irqs = *state;
    int fd = event();

    assert_int_equal(assign(irqs, INTX, 0, &fd, 1), 0);
    assert_int_equal(set_mask(irqs, INTX, 0, true), 0);
    assert_int_equal(irq_trigger(irqs, 0), 0);
    assert_int_equal(set(irqs, INTX, FIRE, 0, 0, NULL, 0), 0);
    assert_int_equal(count_of(fd), 0);
    assert_int_equal(assign(irqs, INTX, 0, &fd, 1), 0);
    assert_int_equal(count_of(fd), 1);
    assert_int_equal(irq_trigger(irqs, 0), 0);
    assert_int_equal(count_of(fd), 1);
    close(fd);
}

enum mask_kind { BY_SET_IRQS, BY_TABLE, BY_FUNCTION };

static void mask_by(struct irqs *irqs, enum mask_kind kind, uint32_t index, bool masked)
{
    switch (kind) {
    case BY_SET_IRQS:
        assert_int_equal(set_mask(irqs, index, 1, masked), 0);
        break;
    case BY_TABLE:
        irq_mask_vector(irqs, 1, masked);
        break;
    case BY_FUNCTION:
        irq_mask_function(irqs, masked);
        break;
    }
}

/* Bit n of order: step n is one of the mask's (mask, trigger, unmask), else the eventfd's. */
static void run_order(struct irqs *irqs, enum mask_kind kind, uint32_t index, unsigned order)
{
    int fd = event(), mask_steps = 0, fd_steps = 0;
    bool masked = false, given = false, pending = false;
    uint64_t expected = 0, count = 0;

    for (int step = 0; step < 6; step++) {
        if ((order & 1u << step) == 0) {
            given = fd_steps++ != 1;
            assert_int_equal(given ? assign(irqs, index, 1, &fd, 1)
                                   : set(irqs, index, ASSIGN, 1, 1, NULL, 0), 0);
        } else if (mask_steps++ == 1) {
            assert_int_equal(irq_trigger(irqs, 1), 0);
            pending = true;
        } else {
            masked = mask_steps == 1;
            mask_by(irqs, kind, index, masked);
        }
        if (pending && given && !masked) {
            pending = false;
            expected = 1;
        }
        count += count_of(fd);
        if (count != expected || irq_pending(irqs, index, 1) != pending) {
            fail_msg("type %u, mask %d, order 0x%x, step %d: signalled %d times", index, kind, order,
                     step, (int)count);
        }
    }
    assert_int_equal(count, 1);
    irqs_close_all(irqs);
    close(fd);
}

/* An eventfd is given, taken away and given; meanwhile a vector is masked, triggered and unmasked. */
static void test_every_order_of_mask_and_eventfd(void **state)
{
    static const struct {
        uint32_t index;
        enum mask_kind kind;
    } masks[] = {
        { INTX, BY_SET_IRQS }, { MSI, BY_SET_IRQS }, { MSIX, BY_SET_IRQS },
        { MSIX, BY_TABLE }, { MSIX, BY_FUNCTION },
    };
    struct irqs irqs;

    (void)state;
    irqs_init(&irqs, &counting);
    for (uint32_t type = INTX; type <= MSIX; type++) {
        assert_int_equal(irqs_set_count(&irqs, type, 2), 0);
    }
    assert_int_equal(irqs_realize(&irqs), 0);
    for (size_t i = 0; i < sizeof(masks) / sizeof(masks[0]); i++) {
        for (unsigned order = 0; order < 1u << 6; order++) {
            if (__builtin_popcount(order) == 3) {
                run_order(&irqs, masks[i].kind, masks[i].index, order);
            }
        }
    }
    irqs_destroy(&irqs);
}

/* A device may trigger before a driver has set anything up. */
static void test_nothing_is_kept_without_a_mask(void **state)
{
    struct irqs *irqs = *state;
    int fd = event();

    assert_int_equal(irq_trigger(irqs, 0), -ENOENT);
    assert_int_equal(assign(irqs, INTX, 0, &fd, 1), 0);
    assert_int_equal(count_of(fd), 0);
    close(fd);
}

static void test_reset_drops_what_is_pending(void **state)
{
    struct irqs *irqs = *state;
    int fd = event();

    irq_mask_vector(irqs, 0, true);
    assert_int_equal(set_mask(irqs, MSIX, 1, true), 0);
    assert_int_equal(irq_trigger(irqs, 0), 0);
    assert_int_equal(irq_trigger(irqs, 1), 0);
    irqs_reset(irqs);
    assert_false(irq_pending(irqs, MSIX, 0));
    assert_false(irq_pending(irqs, MSIX, 1));
    assert_int_equal(irq_trigger(irqs, 0), -ENOENT);
    assert_int_equal(assign(irqs, MSIX, 1, &fd, 1), 0);
    assert_int_equal(irq_trigger(irqs, 1), 0);
    assert_int_equal(count_of(fd), 0); /* the mask of SET_IRQS is the client's */
    assert_int_equal(set_mask(irqs, MSIX, 1, false), 0);
    assert_int_equal(count_of(fd), 1);
    close(fd);
}

/* A client may go from one type to another without taking the first away. */
static void test_masks_of_another_type_do_not_count(void **state)
{
    struct irqs *irqs = *state;
    int fd = event();

    assert_int_equal(assign(irqs, INTX, 0, &fd, 1), 0);
    assert_int_equal(set_mask(irqs, INTX, 0, true), 0);
    assert_int_equal(irq_trigger(irqs, 0), 0);
    assert_int_equal(assign(irqs, MSIX, 0, &fd, 1), 0);
    assert_false(irq_pending(irqs, MSIX, 0)); /* it was for INTx */
    assert_int_equal(irq_trigger(irqs, 0), 0);
    assert_int_equal(count_of(fd), 1);
    irq_mask_vector(irqs, 0, true);
    assert_int_equal(irq_trigger(irqs, 0), 0);
    assert_int_equal(count_of(fd), 0);
    assert_int_equal(set_mask(irqs, INTX, 0, false), 0);
    assert_int_equal(count_of(fd), 0);
    assert_int_equal(assign(irqs, MSI, 0, &fd, 1), 0);
    irq_mask_function(irqs, true);
    assert_int_equal(irq_trigger(irqs, 0), 0);
    assert_int_equal(count_of(fd), 1);
    close(fd);
}

static void test_msix_masks(void **state)
{
    struct irqs *irqs = *state;
    int fds[2] = { event(), event() };

    assert_int_equal(assign(irqs, MSIX, 0, fds, 2), 0);
    irq_mask_vector(irqs, 0, true);
    irq_mask_vector(irqs, VECTORS, true); /* there is none */
    assert_int_equal(irq_trigger(irqs, 0), 0);
    assert_int_equal(irq_trigger(irqs, 1), 0);
    assert_int_equal(count_of(fds[0]), 0);
    assert_int_equal(count_of(fds[1]), 1);
    irq_mask_function(irqs, true);
    assert_int_equal(irq_trigger(irqs, 1), 0);
    assert_int_equal(count_of(fds[1]), 0);
    irq_mask_vector(irqs, 0, false);
    assert_int_equal(count_of(fds[0]), 0); /* the function's mask is left */
    assert_true(irq_pending(irqs, MSIX, 0));
    irq_mask_function(irqs, false);
    assert_int_equal(count_of(fds[0]), 1);
    assert_int_equal(count_of(fds[1]), 1);
    close(fds[0]);
    close(fds[1]);
}

static void test_table_mask_stays_without_eventfd(void **state)
{
    struct irqs *irqs = *state;
    int fd = event();

    assert_int_equal(assign(irqs, MSIX, 2, &fd, 1), 0);
    irq_mask_vector(irqs, 2, true);
    assert_int_equal(set(irqs, MSIX, ASSIGN, 2, 1, NULL, 0), 0);
    assert_int_equal(irq_trigger(irqs, 2), 0);
    assert_int_equal(assign(irqs, MSIX, 2, &fd, 1), 0);
    assert_int_equal(irq_trigger(irqs, 2), 0);
    assert_int_equal(count_of(fd), 0);
    irq_mask_vector(irqs, 2, false);
    assert_int_equal(count_of(fd), 1);
    close(fd);
}

static void test_next_client_begins_unmasked(void **state)
{
    struct irqs *irqs = *state;
    int fd = event();

    assert_int_equal(assign(irqs, MSIX, 0, &fd, 1), 0);
    irq_mask_vector(irqs, 0, true);
    assert_int_equal(set_mask(irqs, MSIX, 0, true), 0);
    assert_int_equal(irq_trigger(irqs, 0), 0);
    irqs_close_all(irqs);
    assert_int_equal(assign(irqs, MSIX, 0, &fd, 1), 0);
    assert_false(irq_pending(irqs, MSIX, 0));
    assert_int_equal(irq_trigger(irqs, 0), 0);
    assert_int_equal(count_of(fd), 1);
    close(fd);
}

struct shooter {
    struct irqs *irqs;
    _Atomic bool stop;
    _Atomic unsigned shots;
};

static void *shoot(void *arg)
{
    struct shooter *s = arg;

    while (!atomic_load(&s->stop)) {
        for (uint32_t i = 0; i < VECTORS; i++) {
            irq_trigger(s->irqs, i);
        }
        atomic_fetch_add(&s->shots, 1);
    }
    return NULL;
}

/*
 * Triggers on two threads while eventfds come and go: whatever opens next gets the number of the
 * one just closed, and must not be written to.
 */
static void test_triggers_race_with_set_irqs(void **state)
{
    struct irqs *irqs = *state;
    struct shooter shooter = { .irqs = irqs };
    pthread_t threads[2];
    uint64_t stray = 0;

    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, shoot, &shooter), 0);
    }
    for (uint32_t i = 0; i < 3000 || atomic_load(&shooter.shots) < 100; i++) {
        struct vfio_irq_set cmd = {
            .argsz = sizeof(cmd), .flags = ASSIGN, .index = i % 3 == 0 ? MSI : MSIX,
            .start = i % 4, .count = 1
        };
        int fd = event(), bystander;

        irqs_apply(irqs, &cmd, NULL, &fd, 1);
        set_mask(irqs, MSIX, i % VECTORS, i % 2 == 0);
        irq_mask_function(irqs, i % 5 == 0);
        irqs_apply(irqs, &cmd, NULL, NULL, 0);
        bystander = event();
        for (int spin = 0; spin < 100; spin++) {
            stray += count_of(bystander);
        }
        close(bystander);
    }
    atomic_store(&shooter.stop, true);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(stray, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_refused_fields),
        TEST(test_before_realize),
        TEST(test_trigger),
        TEST(test_err_and_req_are_their_own),
        TEST(test_runs),
        TEST(test_descriptors_are_closed),
        TEST(test_simulated),
        TEST(test_other_descriptors_are_refused),
        TEST(test_full_counter),
        TEST(test_mask_holds_back),
        TEST(test_disabled_type_is_unmasked),
        cmocka_unit_test(test_every_order_of_mask_and_eventfd),
        TEST(test_nothing_is_kept_without_a_mask),
        TEST(test_reset_drops_what_is_pending),
        TEST(test_masks_of_another_type_do_not_count),
        TEST(test_msix_masks),
        TEST(test_table_mask_stays_without_eventfd),
        TEST(test_next_client_begins_unmasked),
        TEST(test_triggers_race_with_set_irqs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
