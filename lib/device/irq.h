/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_IRQ_H
#define VFU_DEVICE_IRQ_H

#include "libvfio-user.h"
#include "util/log.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The interrupts of a device: eventfds that the client gave by DEVICE_SET_IRQS, and their masks.
 * INTx, MSI and MSI-X share one table of vectors, ERR and REQ have one vector each.
 *
 * Triggering is for any thread; everything else is for the control thread. A vector's lock keeps
 * its eventfd from being closed under a trigger. A signal under that lock never waits for the client:
 * see util/peer_eventfd.h.
 *
 * A trigger does not name the type. With an eventfd, a vector belongs to the type that the shared
 * table was last given eventfds for, and the masks of that type count. Without one, the client may be
 * setting up any type: a trigger stays pending for each type that has the vector masked. A pending
 * interrupt is delivered once its type is unmasked and has an eventfd. A reset, the end of the
 * client, or eventfds for another type drop it.
 */
#define IRQ_LOCKS 16

struct irq_vector {
    int fd; /* -1: the client wants none */
    uint8_t masks; /* bit n: by SET_IRQS for type n; bit IRQ_MASK_TABLE: by the MSI-X table */
    uint8_t pending; /* bit n: triggered while masked as an interrupt of type n */
};

#define IRQ_MASK_TABLE VFU_DEV_NUM_IRQS

/* What migrates of a vector: struct irq_vector without the eventfd, which is the client's. */
struct irq_vector_state {
    uint8_t masks;
    uint8_t pending;
};

struct irqs {
    const struct logger *log;
    uint32_t counts[VFU_DEV_NUM_IRQS];
    struct irq_vector *vectors; /* nr_shared, then ERR, then REQ; NULL before irqs_realize() */
    uint32_t nr_shared;
    /* What the shared table was last given eventfds for. */
    _Atomic uint32_t armed; /* enum vfu_dev_irq_type */
    _Atomic bool function_masked; /* MSI-X */
    pthread_mutex_t locks[IRQ_LOCKS];
};

void irqs_init(struct irqs *irqs, const struct logger *log);
void irqs_destroy(struct irqs *irqs);

/* 0, -EINVAL, or -EBUSY after irqs_realize(). */
int irqs_set_count(struct irqs *irqs, enum vfu_dev_irq_type type, uint32_t count);
/* 0 or -ENOMEM. */
int irqs_realize(struct irqs *irqs);
/* Takes back every eventfd and mask: the client is gone. */
void irqs_close_all(struct irqs *irqs);

/*
 * Checks a struct vfio_irq_set (vfio-user protocol, DEVICE_SET_IRQS) with len bytes of payload in
 * all and nr_fds descriptors. 0, or -EINVAL after a log line that says what is wrong.
 */
int irqs_check(const struct irqs *irqs, const struct vfio_irq_set *set, size_t len,
               size_t nr_fds);
/*
 * Does what a checked one asks for. data is behind the structure; an entry of fds that is kept
 * becomes -1. 0, -EINVAL with nothing done (one of fds cannot be an eventfd), or a negative errno
 * of the eventfd.
 */
int irqs_apply(struct irqs *irqs, const struct vfio_irq_set *set, const uint8_t *data, int *fds,
               size_t nr_fds);

/*
 * Any thread. Returns 0 if the interrupt was signalled or is pending, -EINVAL (no such vector),
 * -ENOENT (no eventfd and no mask), or the error of peer_eventfd_signal().
 */
int irq_trigger(struct irqs *irqs, uint32_t subindex);
int irq_trigger_type(struct irqs *irqs, enum vfu_dev_irq_type type, uint32_t subindex);

/* The masks of MSI-X (PCI 6.8.2): a pending interrupt is delivered when the last one goes. */
void irq_mask_vector(struct irqs *irqs, uint32_t vector, bool masked);
void irq_mask_function(struct irqs *irqs, bool masked);
/* A reset: drops the masks of the MSI-X table and what is pending. */
void irqs_reset(struct irqs *irqs);
/* Is an interrupt of a type that shares the table pending? False if there is no such vector. */
bool irq_pending(struct irqs *irqs, enum vfu_dev_irq_type type, uint32_t vector);

/*
 * Migration. irqs_save() copies the state of nr_shared vectors. irqs_restorable() says whether a
 * state from elsewhere can be one of this device; irqs_restore() takes such a state over and delivers
 * nothing: irqs_deliver_pending() does, once the device runs.
 */
void irqs_save(struct irqs *irqs, struct irq_vector_state *state);
bool irqs_restorable(const struct irqs *irqs, const struct irq_vector_state *state);
void irqs_restore(struct irqs *irqs, const struct irq_vector_state *state);
void irqs_deliver_pending(struct irqs *irqs);

#endif /* VFU_DEVICE_IRQ_H */
