/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/irq.h"

#include <errno.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>
#include <sys/stat.h>
#include <unistd.h>

#define ACTIONS VFIO_IRQ_SET_ACTION_TYPE_MASK
#define DATA_TYPES VFIO_IRQ_SET_DATA_TYPE_MASK

void irqs_init(struct irqs *irqs, const struct logger *log)
{
    memset(irqs, 0, sizeof(*irqs));
    irqs->log = log;
    irqs->counts[VFU_DEV_ERR_IRQ] = 1;
    irqs->counts[VFU_DEV_REQ_IRQ] = 1;
    for (int i = 0; i < IRQ_LOCKS; i++) {
        pthread_mutex_init(&irqs->locks[i], NULL);
    }
}

void irqs_destroy(struct irqs *irqs)
{
    irqs_close_all(irqs);
    free(irqs->vectors);
    for (int i = 0; i < IRQ_LOCKS; i++) {
        pthread_mutex_destroy(&irqs->locks[i]);
    }
}

int irqs_set_count(struct irqs *irqs, enum vfu_dev_irq_type type, uint32_t count)
{
    if ((unsigned)type >= VFU_DEV_NUM_IRQS) {
        return -EINVAL;
    }
    if (irqs->vectors != NULL) {
        log_err(irqs->log, "irq: the number of interrupts is fixed once the device is realized");
        return -EBUSY;
    }
    irqs->counts[type] = count;
    return 0;
}

static size_t nr_vectors(const struct irqs *irqs)
{
    return (size_t)irqs->nr_shared + irqs->counts[VFU_DEV_ERR_IRQ] +
           irqs->counts[VFU_DEV_REQ_IRQ];
}

int irqs_realize(struct irqs *irqs)
{
    const uint32_t *counts = irqs->counts;

    irqs->nr_shared = MAX(counts[VFU_DEV_INTX_IRQ],
                          MAX(counts[VFU_DEV_MSI_IRQ], counts[VFU_DEV_MSIX_IRQ]));
    irqs->vectors = calloc(nr_vectors(irqs), sizeof(*irqs->vectors));
    if (irqs->vectors == NULL) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < nr_vectors(irqs); i++) {
        irqs->vectors[i].fd = -1;
    }
    return 0;
}

static pthread_mutex_t *lock_of(struct irqs *irqs, size_t index)
{
    return &irqs->locks[index % IRQ_LOCKS];
}

/* Where the vectors of a type begin in the table. */
static size_t base_of(const struct irqs *irqs, uint32_t type)
{
    switch (type) {
    case VFU_DEV_ERR_IRQ:
        return irqs->nr_shared;
    case VFU_DEV_REQ_IRQ:
        return (size_t)irqs->nr_shared + irqs->counts[VFU_DEV_ERR_IRQ];
    default:
        return 0;
    }
}

static bool is_shared(uint32_t type)
{
    return type != VFU_DEV_ERR_IRQ && type != VFU_DEV_REQ_IRQ;
}

/* Lock held. ERR and REQ have no masks. */
static bool is_masked(const struct irqs *irqs, size_t index)
{
    uint32_t armed = atomic_load_explicit(&irqs->armed, memory_order_acquire);
    uint32_t masks = 1u << armed;

    if (armed == VFU_DEV_MSIX_IRQ && index < irqs->nr_shared) {
        if (atomic_load_explicit(&irqs->function_masked, memory_order_acquire)) {
            return true;
        }
        masks |= 1u << IRQ_MASK_TABLE;
    }
    return (irqs->vectors[index].masks & masks) != 0;
}

/*
 * The client may have filled a counter whose writers wait, and a vector's lock is held: it is not
 * waited for.
 */
static int signal_fd(int fd)
{
    const uint64_t one = 1;
    struct pollfd pfd = { .fd = fd, .events = POLLOUT };

    if (poll(&pfd, 1, 0) == 0) {
        return -EAGAIN;
    }
    return write(fd, &one, sizeof(one)) == (ssize_t)sizeof(one) ? 0 : -errno;
}

static int trigger(struct irqs *irqs, size_t index)
{
    struct irq_vector *v = &irqs->vectors[index];
    int err = 0;

    pthread_mutex_lock(lock_of(irqs, index));
    if (v->fd == -1) {
        err = -ENOENT;
    } else if (is_masked(irqs, index)) {
        v->pending = true;
    } else {
        err = signal_fd(v->fd);
    }
    pthread_mutex_unlock(lock_of(irqs, index));
    return err;
}

int irq_trigger(struct irqs *irqs, uint32_t subindex)
{
    if (irqs->vectors == NULL || subindex >= irqs->nr_shared) {
        log_err(irqs->log, "irq: no vector %u, the device has %u", subindex, irqs->nr_shared);
        return -EINVAL;
    }
    return trigger(irqs, subindex);
}

int irq_trigger_type(struct irqs *irqs, enum vfu_dev_irq_type type, uint32_t subindex)
{
    if (irqs->vectors == NULL || (unsigned)type >= VFU_DEV_NUM_IRQS ||
        subindex >= irqs->counts[type]) {
        log_err(irqs->log, "irq: no vector %u of type %u", subindex, type);
        return -EINVAL;
    }
    return trigger(irqs, base_of(irqs, type) + subindex);
}

/* Masks */

/* What was held back goes out now, if nothing holds it any more. Lock held. */
static void deliver_pending(struct irqs *irqs, size_t index)
{
    struct irq_vector *v = &irqs->vectors[index];

    if (!v->pending || is_masked(irqs, index)) {
        return;
    }
    v->pending = false;
    if (v->fd != -1 && signal_fd(v->fd) < 0) {
        log_err(irqs->log, "irq: cannot deliver pending vector %zu: %s", index, strerror(errno));
    }
}

static void set_mask(struct irqs *irqs, size_t index, unsigned bit, bool masked)
{
    struct irq_vector *v = &irqs->vectors[index];

    pthread_mutex_lock(lock_of(irqs, index));
    v->masks = (uint8_t)(masked ? v->masks | 1u << bit : v->masks & ~(1u << bit));
    deliver_pending(irqs, index);
    pthread_mutex_unlock(lock_of(irqs, index));
}

void irq_mask_vector(struct irqs *irqs, uint32_t vector, bool masked)
{
    if (irqs->vectors != NULL && vector < irqs->nr_shared) {
        set_mask(irqs, vector, IRQ_MASK_TABLE, masked);
    }
}

void irq_reset_vector(struct irqs *irqs, uint32_t vector)
{
    if (irqs->vectors != NULL && vector < irqs->nr_shared) {
        pthread_mutex_lock(lock_of(irqs, vector));
        irqs->vectors[vector].masks &= (uint8_t) ~(1u << IRQ_MASK_TABLE);
        irqs->vectors[vector].pending = false;
        pthread_mutex_unlock(lock_of(irqs, vector));
    }
}

void irq_mask_function(struct irqs *irqs, bool masked)
{
    atomic_store_explicit(&irqs->function_masked, masked, memory_order_release);
    for (uint32_t i = 0; irqs->vectors != NULL && !masked && i < irqs->nr_shared; i++) {
        pthread_mutex_lock(lock_of(irqs, i));
        deliver_pending(irqs, i);
        pthread_mutex_unlock(lock_of(irqs, i));
    }
}

bool irq_vector_pending(struct irqs *irqs, uint32_t vector)
{
    bool pending = false;

    if (irqs->vectors != NULL && vector < irqs->nr_shared) {
        pthread_mutex_lock(lock_of(irqs, vector));
        pending = irqs->vectors[vector].pending;
        pthread_mutex_unlock(lock_of(irqs, vector));
    }
    return pending;
}

/* DEVICE_SET_IRQS */

static bool one_bit(uint32_t bits)
{
    return bits != 0 && powerof2(bits);
}

static const char *set_fault(const struct irqs *irqs, const struct vfio_irq_set *set, size_t len,
                             size_t nr_fds)
{
    uint32_t action = set->flags & ACTIONS, data = set->flags & DATA_TYPES;
    uint64_t end = (uint64_t)set->start + set->count;

    if (set->index >= VFU_DEV_NUM_IRQS) {
        return "no such type of interrupt";
    }
    if ((set->flags & ~(uint32_t)(ACTIONS | DATA_TYPES)) != 0 || !one_bit(action) ||
        !one_bit(data)) {
        return "flags must name one action and one type of data";
    }
    if (data == VFIO_IRQ_SET_DATA_BOOL && len != sizeof(*set) + (uint64_t)set->count) {
        return "the payload does not hold one byte per interrupt";
    }
    if ((set->count > 0 || action != VFIO_IRQ_SET_ACTION_TRIGGER ||
         data != VFIO_IRQ_SET_DATA_NONE || set->start != 0) &&
        (set->start >= irqs->counts[set->index] || end > irqs->counts[set->index])) {
        return "start and count are beyond the device's interrupts";
    }
    if ((set->index == VFU_DEV_ERR_IRQ || set->index == VFU_DEV_REQ_IRQ) &&
        (action != VFIO_IRQ_SET_ACTION_TRIGGER || set->count > 1)) {
        return "ERR and REQ can only be triggered";
    }
    if (set->count == 0 && (set->start != 0 || action != VFIO_IRQ_SET_ACTION_TRIGGER ||
                            data != VFIO_IRQ_SET_DATA_NONE)) {
        return "a count of 0 means disable, with TRIGGER, no data and start 0 alone";
    }
    if (nr_fds > 0 && data != VFIO_IRQ_SET_DATA_EVENTFD) {
        return "file descriptors without data type EVENTFD";
    }
    if (nr_fds > 0 && nr_fds != set->count) {
        return "the number of file descriptors is not count";
    }
    return irqs->vectors == NULL ? "the device is not realized" : NULL;
}

int irqs_check(const struct irqs *irqs, const struct vfio_irq_set *set, size_t len, size_t nr_fds)
{
    const char *fault = set_fault(irqs, set, len, nr_fds);

    if (fault == NULL) {
        return 0;
    }
    log_err(irqs->log, "SET_IRQS: index %u, flags 0x%x, start %u, count %u, %zu descriptors: %s",
            set->index, set->flags, set->start, set->count, nr_fds, fault);
    return -EINVAL;
}

/*
 * Writing to what the client sent must neither raise SIGPIPE nor wait for a reader, as it could on
 * a pipe, a socket or a terminal. An eventfd has no file type at all.
 */
static bool may_be_eventfd(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && ((st.st_mode & S_IFMT) == 0 || S_ISREG(st.st_mode));
}

/* fd is taken over; -1 takes the eventfd away, and with it the masks in drop. */
static void set_fd(struct irqs *irqs, size_t index, int fd, uint8_t drop)
{
    struct irq_vector *v = &irqs->vectors[index];
    int old;

    pthread_mutex_lock(lock_of(irqs, index));
    old = v->fd;
    v->fd = fd;
    if (fd == -1) {
        v->pending = false;
        v->masks &= (uint8_t)~drop;
    }
    pthread_mutex_unlock(lock_of(irqs, index));
    if (old != -1) {
        close(old);
    }
}

void irqs_close_all(struct irqs *irqs)
{
    for (size_t i = 0; irqs->vectors != NULL && i < nr_vectors(irqs); i++) {
        set_fd(irqs, i, -1, UINT8_MAX);
    }
}

/* The table changes hands: what is pending was meant for the type that had it before. */
static void arm(struct irqs *irqs, uint32_t type)
{
    if (atomic_load_explicit(&irqs->armed, memory_order_relaxed) == type) {
        return;
    }
    atomic_store_explicit(&irqs->armed, type, memory_order_release);
    for (uint32_t i = 0; i < irqs->nr_shared; i++) {
        pthread_mutex_lock(lock_of(irqs, i));
        irqs->vectors[i].pending = false;
        pthread_mutex_unlock(lock_of(irqs, i));
    }
}

/* TRIGGER with data: the client asks for interrupts to be simulated. Unset ones are passed over. */
static int simulate(struct irqs *irqs, size_t index)
{
    int err = trigger(irqs, index);

    return err == -ENOENT ? 0 : err;
}

static int apply_one(struct irqs *irqs, const struct vfio_irq_set *set, uint32_t i,
                     const uint8_t *data, int *fds, size_t nr_fds)
{
    size_t index = base_of(irqs, set->index) + set->start + i;

    if (set->flags & VFIO_IRQ_SET_ACTION_MASK) {
        set_mask(irqs, index, set->index, true);
    } else if (set->flags & VFIO_IRQ_SET_ACTION_UNMASK) {
        set_mask(irqs, index, set->index, false);
    } else if (set->flags & VFIO_IRQ_SET_DATA_EVENTFD) {
        set_fd(irqs, index, nr_fds > 0 ? fds[i] : -1, (uint8_t)(1u << set->index));
        if (nr_fds > 0) {
            fds[i] = -1;
        }
    } else if ((set->flags & VFIO_IRQ_SET_DATA_NONE) || data[i] == 1) {
        return simulate(irqs, index);
    }
    return 0;
}

int irqs_apply(struct irqs *irqs, const struct vfio_irq_set *set, const uint8_t *data, int *fds,
               size_t nr_fds)
{
    size_t base = base_of(irqs, set->index);

    for (size_t i = 0; i < nr_fds; i++) {
        if (!may_be_eventfd(fds[i])) {
            log_err(irqs->log, "SET_IRQS: index %u, start %u: descriptor %zu of %zu is no eventfd",
                    set->index, set->start, i, nr_fds);
            return -EINVAL;
        }
    }
    if (nr_fds > 0 && (set->flags & VFIO_IRQ_SET_ACTION_TRIGGER) && is_shared(set->index)) {
        arm(irqs, set->index);
    }
    for (uint32_t i = 0; set->count == 0 && i < irqs->counts[set->index]; i++) {
        set_fd(irqs, base + i, -1, (uint8_t)(1u << set->index));
    }
    for (uint32_t i = 0; i < set->count; i++) {
        int err = apply_one(irqs, set, i, data, fds, nr_fds);

        if (err < 0) {
            return err;
        }
    }
    return 0;
}
