/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_CTX_H
#define VFU_DEVICE_CTX_H

#include "device/dma_cancel.h"
#include "device/events.h"
#include "device/irq.h"
#include "device/msix.h"
#include "device/quiesce.h"
#include "device/region.h"
#include "dma/dma.h"
#include "libvfio-user-session.h"
#include "libvfio-user.h"
#include "pci/pci.h"
#include "session/negotiate.h"
#include "session/session.h"
#include "transport/transport.h"
#include "util/limits.h"

#include <stdbool.h>

struct migration;
struct iommu;

/*
 * One emulated device and its one client. The control thread owns all of it, but for the DMA
 * tables, the session's transactions and the interrupts, which say themselves what other threads
 * may do.
 */
struct vfu_ctx {
    struct logger log;
    void *pvt;
    struct limits limits;
    bool nonblocking;
    bool realized;
    unsigned entered; /* calls under way that run callbacks; a callback must not make another */

    struct transport tran;
    struct session session;
    struct capabilities agreed;
    struct stream newcomer; /* connected, its VERSION not yet here */
    bool has_newcomer;
    vfu_client_cb_t *client_cb; /* may refuse newcomers; NULL: none */
    void *client_arg;
    uint64_t newcomer_deadline;
    uint64_t accept_again; /* not before, when accept() lacked a descriptor or memory */
    struct events events;

    struct region regions[VFU_PCI_DEV_NUM_REGIONS];
    struct pci_config pci;
    struct irqs irqs;
    struct msix msix;
    vfu_dev_irq_state_cb_t *irq_state[VFU_DEV_NUM_IRQS];
    struct quiesce quiesce;
    vfu_reset_cb_t *reset;
    bool keep_state; /* over the end of a connection: see vfu_setup_device_keep_state() */

    struct dma_transfers transfers;
    struct dma_ending ending; /* of the request that is served: under transfers.lock */
    struct dma *dma; /* NULL: the device does no DMA */
    vfu_dma_register_cb_t *dma_register;
    vfu_dma_unregister_cb_t *dma_unregister;
    bool dma_unmap_waits; /* the reply to DMA_UNMAP waits for references to be put */
    uint32_t dma_timeout_ms; /* for one DMA_READ or DMA_WRITE */

    struct migration *migration; /* NULL: none */
    bool migrate_state; /* the library's too: see vfu_setup_device_migrate_state() */
    struct iommu *iommu; /* NULL: the device does not use the extension */

    void *scratch; /* a reply of the largest size; the control thread's */
    int scratch_fds[STREAM_MAX_FDS];
};

#endif /* VFU_DEVICE_CTX_H */
