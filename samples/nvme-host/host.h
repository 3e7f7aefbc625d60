/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An NVMe host: attaches to a controller as a virtual machine does, with memory of its own that the
 * device may reach, and drives it as a driver does. One thread.
 *
 * Functions that can fail return false after a line on standard error.
 */

#ifndef HOST_H
#define HOST_H

#include "../nvme/spec.h"
#include "vfio-user-client.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HOST_PAGE 4096u
#define HOST_MAX_QUEUES 16u /* for I/O */
#define HOST_DOORBELLS (2 * (HOST_MAX_QUEUES + 1))
#define HOST_TIMEOUT_MS 20000 /* far more than anything takes */

struct host_queue {
    uint16_t qid, entries;
    uint64_t sq_addr, cq_addr;
    struct nvme_command *sq;
    struct nvme_completion *cq;
    uint16_t tail, head, phase;
    uint16_t rung_tail, rung_head;
};

/* A doorbell that is rung by an eventfd. */
struct host_bell {
    int fd;
    uint32_t *value; /* NULL: there is none, it is rung by messages */
};

struct host_bells {
    vfuc_ioeventfd_t *list; /* as they came, of the whole region */
    uint32_t count;
    uint8_t *map;
    size_t map_size;
    struct host_bell bells[HOST_DOORBELLS];
};

struct host {
    const char *path;
    vfuc_t *client; /* NULL: not attached */
    atomic_bool lost; /* the connection has ended, and not by host_detach() */
    int mem_fd;
    uint8_t *mem; /* at HOST_MEM_ADDR for the device */
    uint64_t mem_size, mem_used;
    void *doorbell_map; /* NULL: they are rung by messages */
    size_t doorbell_map_size;
    uint32_t *doorbells;
    bool use_bells; /* to be set before attaching */
    struct host_bells bells;
    /* Shadow doorbells (NVMe 5.7): values, and which of them the device wants to hear of. */
    bool use_shadows; /* to be set before the start */
    bool shadows_on;
    uint32_t *shadows, *wanted;
    int irq_fds[HOST_MAX_QUEUES + 1]; /* of MSI-X vector n: queue n */
    unsigned nr_irqs;
    struct host_queue admin;
    uint8_t *admin_page;
    struct host_queue queues[HOST_MAX_QUEUES + 1]; /* from 1 */
    unsigned nr_queues;
    uint64_t blocks; /* of namespace 1 */
    uint32_t block_size;
    uint32_t max_transfer; /* bytes */
    bool has_zeroes, has_compare, has_shadows;
};

void host_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* nr_queues I/O queues of entries each, and data_size bytes beside them. */
bool host_init(struct host *host, const char *path, unsigned nr_queues, unsigned entries,
               uint64_t data_size);
void host_destroy(struct host *host);

bool host_attach(struct host *host);
void host_detach(struct host *host);
/* Says that the connection was lost, if it was; the interrupts are signalled as well then. */
bool host_lost(const struct host *host);

/* bells.c: the eventfds that the device has for its doorbells. */
bool host_open_bells(struct host *host);
void host_close_bells(struct host *host);
bool host_ring_bell(struct host *host, unsigned index, uint32_t value);

/* From whatever state to one with I/O queues; what was under way is forgotten. */
bool host_start(struct host *host);
/* CC.EN to 0, and waits until the controller has stopped. */
bool host_stop(struct host *host);
/* Deletes and makes the I/O queues again; nothing may be under way. */
bool host_renew_queues(struct host *host);
bool host_function_reset(struct host *host);
bool host_device_reset(struct host *host);

/* Page-aligned memory for the life of the host. */
void *host_alloc(struct host *host, uint64_t size);
uint64_t host_addr(const struct host *host, const void *at);

static inline bool host_queue_full(const struct host_queue *queue, unsigned in_flight)
{
    return in_flight + 1 >= queue->entries;
}

void host_put(struct host_queue *queue, const struct nvme_command *command);
/* The next completion, if there is one. */
bool host_pop(struct host_queue *queue, struct nvme_completion *completion);
/* Tells the device of what was put and popped since. */
bool host_ring(struct host *host, struct host_queue *queue);

/*
 * PRP entries of a buffer in the host's memory: list is a page for those that do not fit into the
 * command, for buffers of up to 2 MiB.
 */
void host_set_prps(const struct host *host, struct nvme_command *command, const void *buffer,
                   uint64_t len, uint64_t *list);

uint64_t host_now_ms(void);

#endif /* HOST_H */
