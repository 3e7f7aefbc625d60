/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The device: a controller, its namespaces, and the threads that serve it.
 *
 * The control thread runs the vfio-user context: registers, configuration space, reset. It waits
 * for nothing but resets. The first worker serves the admin queue, all workers serve I/O queues.
 */

#ifndef NVME_H
#define NVME_H

#include "../common/access.h"
#include "admin.h"
#include "backend.h"
#include "command.h"
#include "controller.h"
#include "identity.h"
#include "libvfio-user-iommu.h"
#include "libvfio-user-session.h"
#include "libvfio-user.h"
#include "memory.h"
#include "queue.h"
#include "worker.h"

#include <time.h>

#define NVME_MAX_WORKERS 16u
#define NVME_MAX_NAMESPACES IDENTITY_NAMESPACES
#define NVME_PAGE_SHIFT 12u
#define NVME_MAX_PAGE_SHIFT 16u
#define NVME_MDTS 7u /* 512 KiB: 2^7 pages of the smallest size */
#define NVME_MAX_TRANSFER ((uint64_t)1 << (NVME_MDTS + NVME_PAGE_SHIFT))
#define NVME_OUI 0x525400 /* QEMU's, as is the PCI identity */
#define NVME_MSI_VECTORS 32u
#define REGISTER_BAR VFU_PCI_DEV_BAR0_REGION_IDX
/* With the doorbell page as many descriptors as clients take with a message that say nothing else. */
#define NVME_MAX_BELLS 7u

struct namespace_config {
    const char *path; /* NULL: memory */
    uint64_t size;    /* of memory */
    unsigned block_size;
    bool direct;
    bool shared; /* with other servers or namespaces */
    struct namespace_identity identity; /* zeros: derived from the file, or random */
};

struct nvme_config {
    const char *socket;
    struct access_rules access;
    struct namespace_config namespaces[NVME_MAX_NAMESPACES];
    unsigned nr_namespaces;
    unsigned nr_workers;
    unsigned nr_queues; /* for I/O, of each kind */
    struct identity_config identity;
    bool poll;
    bool ioeventfd;
    bool ats, pri;
    unsigned memory_grace_ms;
    int log_level;
};

struct namespace
{
    struct backend *backend;
    uint32_t id;
    unsigned block_shift;
    uint64_t blocks;
    bool aligned; /* memory must be aligned for it */
    struct backend_io flush; /* at a shutdown */
    struct nvme *nvme;
};

enum interrupt_mode {
    INTERRUPT_INTX,
    INTERRUPT_MSI,
    INTERRUPT_MSIX,
};

struct interrupts {
    _Atomic uint32_t mode;     /* enum interrupt_mode */
    _Atomic uint32_t msi_mask; /* enabled messages - 1 */
    atomic_bool intx_disabled;
    size_t msi_pos, msix_pos; /* of the capabilities */
};

struct nvme {
    struct nvme_config config;
    vfu_ctx_t *ctx;
    bool attached; /* a client is */
    int signal_fd;
    struct interrupts interrupts;
    struct doorbells *doorbells; /* the page of BAR 0: shared with the client, or this one */
    struct doorbells own_doorbells;
    int doorbell_fd; /* -1: nothing is shared */
    int bells[NVME_MAX_BELLS]; /* eventfds */
    unsigned nr_bells;
    bool told_bus_master; /* that it is off, since it has been */
    /* Who serves a queue; NULL: it is not there. */
    _Atomic(struct worker *) sq_owner[NVME_MAX_QUEUES], cq_owner[NVME_MAX_QUEUES];

    struct controller controller;
    struct memory memory;
    struct admin admin;
    /* What the host is shown: a migration brings that of its source, until its client is lost. */
    struct identity identity, own_identity;
    struct namespace namespaces[NVME_MAX_NAMESPACES];
    unsigned nr_namespaces;
    struct worker workers[NVME_MAX_WORKERS];
    unsigned nr_workers;
    struct cq cqs[NVME_MAX_QUEUES];
    struct sq sqs[NVME_MAX_QUEUES];
    struct migration *migration;
};

/* The worker that serves the admin queue. */
static inline struct worker *nvme_lead(struct nvme *nvme)
{
    return &nvme->workers[0];
}

/* Bytes, as CC.MPS was when the controller was enabled. */
static inline uint64_t nvme_page_size(const struct nvme *nvme)
{
    return (uint64_t)1 << nvme->controller.page_shift;
}

/* Milliseconds of the monotonic clock. */
static inline uint64_t nvme_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static inline uint32_t nvme_vectors(const struct nvme *nvme)
{
    return nvme->config.nr_queues + 1;
}

/* Who serves completion queues with this number: the lead those of the admin queue. */
static inline unsigned queue_worker_index(const struct nvme *nvme, unsigned id)
{
    return id == 0 ? 0 : (id - 1u) % nvme->config.nr_workers;
}

/* NULL: there is none with this number. */
static inline struct namespace *nvme_namespace(struct nvme *nvme, uint32_t id)
{
    return id >= 1 && id <= nvme->nr_namespaces ? &nvme->namespaces[id - 1] : NULL;
}

/* namespace.c: 0 or -errno, after a line on standard error. */
int namespaces_open(struct nvme *nvme);
void namespaces_close(struct nvme *nvme);

/* pci.c: the PCI function. 0, or -1 with errno. */
int pci_setup(struct nvme *nvme);
/* Looks at the configuration space: interrupts, bus mastering. Control thread. */
void pci_sync(struct nvme *nvme);
/* What the driver has switched on is off again. Control thread. */
void pci_reset(struct nvme *nvme);

/* share.c: what the client gets of us. 0, or -1 with errno. */
void share_init(struct nvme *nvme);
int share_open(struct nvme *nvme);
/* For the next client. The controller is off, and no worker hears a bell. Control thread. */
void share_renew(struct nvme *nvme);
/* The page and the bells. */
void share_close(struct nvme *nvme);

/* bell.c: 0, or -1 with errno. */
int bells_setup(struct nvme *nvme);
void bells_close(struct nvme *nvme);
/* The worker serves a queue with this number; none any more. Worker's thread. */
void bells_hear(struct worker *worker, unsigned id);
void bells_hear_none(struct worker *worker);

/* interrupt.c. Unless INTMS holds it back; NO_VALUE is none. Any thread. */
void interrupt_raise(struct nvme *nvme, uint32_t vector);

/* migrate.c */
int migration_setup(struct nvme *nvme);
/* What has come or is to go is forgotten. */
void migration_reset(struct nvme *nvme);
void migration_destroy(struct nvme *nvme);

/* server.c: -errno, after a line on standard error. */
int server_start(struct nvme *nvme);
int server_run(struct nvme *nvme);
void server_stop(struct nvme *nvme);

#endif /* NVME_H */
