/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/irq.h"

#include "util/peer_eventfd.h"

#include <errno.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>
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

#define SHARED_TYPES (1u << VFU_DEV_INTX_IRQ | 1u << VFU_DEV_MSI_IRQ | 1u << VFU_DEV_MSIX_IRQ)

/* Returns the types as which a vector's interrupts may come. Caller holds the vector's lock. */
static uint8_t types_of(const struct irqs *irqs, size_t index)
{
    if (index >= irqs->nr_shared) {
        return 0; /* ERR and REQ have no masks */
    }
    if (irqs->vectors[index].fd == -1) {
        return SHARED_TYPES;
    }
    return (uint8_t)(1u << atomic_load_explicit(&irqs->armed, memory_order_acquire));
}

/* Returns those of them as which the vector is masked. Caller holds the vector's lock. */
static uint8_t masked_types(const struct irqs *irqs, size_t index)
{
    uint32_t masks = irqs->vectors[index].masks;

    if (masks & 1u << IRQ_MASK_TABLE ||
        atomic_load_explicit(&irqs->function_masked, memory_order_acquire)) {
        masks |= 1u << VFU_DEV_MSIX_IRQ;
    }
    return (uint8_t)masks & types_of(irqs, index);
}

static int trigger(struct irqs *irqs, size_t index)
{
    struct irq_vector *v = &irqs->vectors[index];
    uint8_t masked;
    int err = 0;

    pthread_mutex_lock(lock_of(irqs, index));
    masked = masked_types(irqs, index);
    if (masked != 0) {
        v->pending |= masked;
    } else if (v->fd == -1) {
        err = -ENOENT;
    } else {
        err = peer_eventfd_signal(v->fd);
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

/* Signals a pending interrupt if its type has an eventfd and no mask. Caller holds the lock. */
static void deliver_pending(struct irqs *irqs, size_t index)
{
    struct irq_vector *v = &irqs->vectors[index];
    uint8_t due = v->pending & types_of(irqs, index) & (uint8_t)~masked_types(irqs, index);
    int err;

    if (v->fd == -1 || due == 0) {
        return;
    }
    v->pending &= (uint8_t)~due;
    err = peer_eventfd_signal(v->fd);
    if (err < 0) {
        log_err(irqs->log, "irq: pending vector %zu is lost: cannot signal its eventfd: %s", index,
                strerror(-err));
    }
}

void irqs_deliver_pending(struct irqs *irqs)
{
    for (uint32_t i = 0; irqs->vectors != NULL && i < irqs->nr_shared; i++) {
        pthread_mutex_lock(lock_of(irqs, i));
        deliver_pending(irqs, i);
        pthread_mutex_unlock(lock_of(irqs, i));
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

void irq_mask_function(struct irqs *irqs, bool masked)
{
    atomic_store_explicit(&irqs->function_masked, masked, memory_order_release);
    if (!masked) {
        irqs_deliver_pending(irqs);
    }
}

/* Drops masks and pending interrupts of the shared vectors but for those in keep. */
static void keep_only(struct irqs *irqs, struct irq_vector_state keep)
{
    for (uint32_t i = 0; irqs->vectors != NULL && i < irqs->nr_shared; i++) {
        pthread_mutex_lock(lock_of(irqs, i));
        irqs->vectors[i].masks &= keep.masks;
        irqs->vectors[i].pending &= keep.pending;
        pthread_mutex_unlock(lock_of(irqs, i));
    }
}

void irqs_reset(struct irqs *irqs)
{
    keep_only(irqs, (struct irq_vector_state){ .masks = SHARED_TYPES });
}

bool irq_pending(struct irqs *irqs, enum vfu_dev_irq_type type, uint32_t vector)
{
    bool pending = false;

    if (irqs->vectors != NULL && vector < irqs->nr_shared) {
        pthread_mutex_lock(lock_of(irqs, vector));
        pending = (irqs->vectors[vector].pending & 1u << type) != 0;
        pthread_mutex_unlock(lock_of(irqs, vector));
    }
    return pending;
}

/* Migration */

void irqs_save(struct irqs *irqs, struct irq_vector_state *state)
{
    for (uint32_t i = 0; i < irqs->nr_shared; i++) {
        pthread_mutex_lock(lock_of(irqs, i));
        state[i] = (struct irq_vector_state){ .masks = irqs->vectors[i].masks,
                                              .pending = irqs->vectors[i].pending };
        pthread_mutex_unlock(lock_of(irqs, i));
    }
}

bool irqs_restorable(const struct irqs *irqs, const struct irq_vector_state *state)
{
    for (uint32_t i = 0; i < irqs->nr_shared; i++) {
        uint8_t types = 0;

        for (uint32_t type = 0; type < VFU_DEV_NUM_IRQS; type++) {
            types |= (uint8_t)((i < irqs->counts[type]) << type) & SHARED_TYPES;
        }
        if ((state[i].pending & ~types) != 0 ||
            (state[i].masks & ~(types | 1u << IRQ_MASK_TABLE)) != 0) {
            return false;
        }
    }
    return true;
}

void irqs_restore(struct irqs *irqs, const struct irq_vector_state *state)
{
    for (uint32_t i = 0; i < irqs->nr_shared; i++) {
        pthread_mutex_lock(lock_of(irqs, i));
        irqs->vectors[i].masks = state[i].masks;
        irqs->vectors[i].pending = state[i].pending;
        pthread_mutex_unlock(lock_of(irqs, i));
    }
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

/* Takes fd over, or takes the eventfd away if fd is -1, and the masks in drop. */
static void set_fd(struct irqs *irqs, size_t index, int fd, uint8_t drop)
{
    struct irq_vector *v = &irqs->vectors[index];
    int old;

    pthread_mutex_lock(lock_of(irqs, index));
    old = v->fd;
    v->fd = fd;
    v->masks &= (uint8_t)~drop;
    deliver_pending(irqs, index);
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
    keep_only(irqs, (struct irq_vector_state){ .masks = 0 });
}

/* Drops what is pending for the types that had the table before. */
static void arm(struct irqs *irqs, uint32_t type)
{
    if (atomic_load_explicit(&irqs->armed, memory_order_relaxed) != type) {
        atomic_store_explicit(&irqs->armed, type, memory_order_release);
        keep_only(irqs, (struct irq_vector_state){ .masks = UINT8_MAX,
                                                   .pending = (uint8_t)(1u << type) });
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
        set_fd(irqs, index, nr_fds > 0 ? fds[i] : -1, 0);
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
        if (peer_eventfd_check(fds[i]) < 0) {
            log_err(irqs->log, "SET_IRQS: index %u, start %u: descriptor %zu of %zu is no eventfd: "
                    "refused with EINVAL", set->index, set->start, i, nr_fds);
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
            log_err(irqs->log, "SET_IRQS: index %u, vector %u: cannot signal its eventfd: %s: "
                    "refused", set->index, set->start + i, strerror(-err));
            return err;
        }
    }
    return 0;
}
