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
 * its eventfd from being closed under a trigger.
 */
#define IRQ_LOCKS 16

struct irq_vector {
    int fd; /* -1: the client wants none */
    uint8_t masks; /* bit n: by SET_IRQS for type n; bit IRQ_MASK_TABLE: by the MSI-X table */
    bool pending; /* triggered while masked */
};

#define IRQ_MASK_TABLE VFU_DEV_NUM_IRQS

struct irqs {
    const struct logger *log;
    uint32_t counts[VFU_DEV_NUM_IRQS];
    struct irq_vector *vectors; /* nr_shared, then ERR, then REQ; NULL before irqs_realize() */
    uint32_t nr_shared;
    /* What the shared table was last given eventfds for: the masks of the others do not count. */
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

/* Any thread. 0, -EINVAL (no such vector), -ENOENT (no eventfd), or the eventfd's error. */
int irq_trigger(struct irqs *irqs, uint32_t subindex);
int irq_trigger_type(struct irqs *irqs, enum vfu_dev_irq_type type, uint32_t subindex);

/* The masks of MSI-X (PCI 6.8.2): what was held back is delivered when the last one goes. */
void irq_mask_vector(struct irqs *irqs, uint32_t vector, bool masked);
void irq_mask_function(struct irqs *irqs, bool masked);
/* A reset: the mask of the table goes, and what was held back is forgotten. */
void irq_reset_vector(struct irqs *irqs, uint32_t vector);
bool irq_vector_pending(struct irqs *irqs, uint32_t vector);

#endif /* VFU_DEVICE_IRQ_H */
