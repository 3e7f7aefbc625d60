/* SPDX-License-Identifier: BSD-3-Clause */
#include "device.h"

#include "../common/service.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* As QEMU fills it in for a device that has no subsystem of its own. */
#define SUBSYSTEM_VENDOR_ID 0x1af4
#define SUBSYSTEM_ID 0x1100
#define CLASS_BASE 0x00
#define CLASS_SUB 0xff
#define INTERRUPT 0
#define LINK_2_5GT_X1 0x11

/*
 * Logging
 */

static void print_log(vfu_ctx_t *ctx, int level, const char *msg)
{
    (void)ctx;
    service_print_log("edu", level, msg);
}

static void edu_vlog(void *owner, int level, const char *fmt, va_list ap)
{
    struct server *server = owner;
    char line[256];

    vsnprintf(line, sizeof(line), fmt, ap);
    vfu_log(server->ctx, level, "%s", line);
}

/*
 * What the device asks for
 */

static void factorial_job(void *arg)
{
    struct server *server = arg;

    server->factorial.result = edu_factorial(server->factorial.n);
}

static void start_factorial(void *owner, uint32_t n)
{
    struct server *server = owner;

    server->factorial.n = n;
    worker_run(&server->factorial_worker);
}

void device_factorial_done(struct server *server)
{
    if (worker_done(&server->factorial_worker)) {
        edu_factorial_done(&server->edu, server->factorial.result);
    }
}

static void dma_job(void *arg)
{
    struct server *server = arg;

    dma_transfer(&server->dma_space, &server->dma.transfer, &server->dma.result);
}

static void start_dma(void *owner, const struct edu_transfer *transfer)
{
    static const struct edu_dma_result dropped = { .err = -EPERM };
    struct server *server = owner;

    vfu_log(server->ctx, LOG_DEBUG, "DMA of %zu bytes %s 0x%" PRIx64, transfer->len,
            transfer->to_ram ? "to" : "from", transfer->addr);
    if (!vfu_pci_get_config_space(server->ctx)->hdr.cmd.bme) {
        vfu_log(server->ctx, LOG_WARNING,
                "DMA of %zu bytes %s 0x%" PRIx64 " dropped: the driver did not set Bus Master "
                "Enable",
                transfer->len, transfer->to_ram ? "to" : "from", transfer->addr);
        edu_dma_done(&server->edu, &dropped);
        return;
    }
    server->dma.transfer = *transfer;
    worker_run(&server->dma_worker);
}

void device_dma_done(struct server *server)
{
    const struct edu_transfer *transfer = &server->dma.transfer;

    if (!worker_done(&server->dma_worker)) {
        return;
    }
    if (server->dma.result.err != 0) {
        vfu_log(server->ctx, LOG_WARNING,
                "DMA of %zu bytes %s 0x%" PRIx64 " failed at 0x%" PRIx64 ": %s",
                transfer->len, transfer->to_ram ? "to" : "from", transfer->addr,
                server->dma.result.fault_addr, strerror(-server->dma.result.err));
    }
    edu_dma_done(&server->edu, &server->dma.result);
    if (server->quiescing) {
        server->quiescing = false;
        if (vfu_device_quiesced(server->ctx, 0) != 0) {
            vfu_log(server->ctx, LOG_WARNING, "cannot go on after the DMA: %s", strerror(errno));
        }
    }
}

/* Interrupt Disable is for INTx alone (PCIe 7.5.1.1.3). */
static bool interrupt_enabled(const struct server *server)
{
    return server->msi->mc.msie || !vfu_pci_get_config_space(server->ctx)->hdr.cmd.id;
}

/* A guest's handler for a shared INTx asks Interrupt Status whether it is meant. */
static void interrupt(void *owner, bool asserted)
{
    struct server *server = owner;

    vfu_pci_get_config_space(server->ctx)->hdr.sts.is = asserted;
    if (!asserted || !interrupt_enabled(server)) {
        return;
    }
    /* ENOENT: the client has not asked for interrupts; its driver polls. */
    if (vfu_irq_trigger(server->ctx, INTERRUPT) != 0 && errno != ENOENT) {
        vfu_log(server->ctx, LOG_WARNING, "interrupt lost: %s", strerror(errno));
    }
}

static const struct edu_ops edu_ops = {
    .start_factorial = start_factorial,
    .start_dma = start_dma,
    .interrupt = interrupt,
    .vlog = edu_vlog,
};

/*
 * What the library asks for
 */

static ssize_t access_bar0(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct server *server = vfu_get_private(ctx);
    uint64_t value = 0;
    size_t used = count < sizeof(value) ? count : sizeof(value);

    if (is_write) {
        memcpy(&value, buf, used);
        edu_write(&server->edu, (uint64_t)offset, count, le64toh(value));
    } else {
        memset(buf, 0, count);
        value = htole64(edu_read(&server->edu, (uint64_t)offset, count));
        memcpy(buf, &value, used);
    }
    return (ssize_t)count;
}

/* INTx is a level: whoever unmasks it without having dealt with its cause gets it again. */
static void intx_mask_changed(vfu_ctx_t *ctx, uint32_t start, uint32_t count, bool mask)
{
    struct server *server = vfu_get_private(ctx);

    (void)start;
    (void)count;
    if (!mask && server->edu.regs.irq_status != 0) {
        interrupt(server, true);
    }
}

static int quiesce(vfu_ctx_t *ctx)
{
    struct server *server = vfu_get_private(ctx);

    if (!edu_dma_running(&server->edu)) {
        return 0;
    }
    server->quiescing = true;
    errno = EBUSY;
    return -1;
}

static int reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    struct server *server = vfu_get_private(ctx);

    /* A lost client is a reset like any other: the next client must not see this one's data. */
    (void)type;
    /* vfu_destroy_ctx() resets too, when the threads have ended and no client will come. */
    if (server->stopping) {
        return 0;
    }
    vfu_log(ctx, LOG_INFO, "reset");
    worker_drain(&server->factorial_worker);
    /* With an IOMMU nothing has quiesced us: what waited has been cancelled, the rest is short. */
    worker_drain(&server->dma_worker);
    edu_reset(&server->edu);
    return 0;
}

static void dma_register(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    vfu_log(ctx, LOG_INFO, "RAM at 0x%" PRIxPTR ", 0x%zx bytes, %s", (uintptr_t)info->iova.iov_base,
            info->iova.iov_len, info->vaddr != NULL ? "shared" : "by messages");
}

static void dma_unregister(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    vfu_log(ctx, LOG_INFO, "RAM at 0x%" PRIxPTR ", 0x%zx bytes, is gone",
            (uintptr_t)info->iova.iov_base, info->iova.iov_len);
}

/*
 * Set-up
 */

static int add_msi(struct server *server)
{
    struct msicap cap = { .hdr.id = PCI_CAP_ID_MSI, .mc.c64 = 1 };
    ssize_t pos = vfu_pci_add_capability(server->ctx, 0, 0, &cap);

    if (pos < 0) {
        return -1;
    }
    server->msi =
        (const struct msicap *)((const uint8_t *)vfu_pci_get_config_space(server->ctx) + pos);
    return 0;
}

/* Guests look for ATS, PRI and PASID in PCI Express functions only (PCIe 7.5.3, 7.8.9, 10.5). */
static int add_express(struct server *server)
{
    const struct pmcap pm = { .hdr.id = PCI_CAP_ID_PM, .pc.vs = 3, .pmcs.nsfrst = 1 };
    const struct pxcap express = {
        .hdr.id = PCI_CAP_ID_EXP,
        .pxcaps.ver = 2,
        .pxdcap = { .rer = 1, .flrc = 1 },
        .pxlcap.stuff = LINK_2_5GT_X1,
        .pxls.stuff = LINK_2_5GT_X1,
        /* A PASID travels in an end-to-end TLP prefix (PCIe 6.20). */
        .pxdcap2 = { .eetps = 1, .meetp = 1 },
    };

    if (vfu_pci_add_capability(server->ctx, 0, 0, (void *)&pm) < 0) {
        return -1;
    }
    return vfu_pci_add_capability(server->ctx, 0, 0, (void *)&express) < 0 ? -1 : 0;
}

static bool has_iommu(const struct server_options *options)
{
    return options->pasid_bits > 0 || options->ats || options->pri;
}

static int setup_pci(struct server *server, const struct server_options *options)
{
    vfu_pci_type_t type = has_iommu(options) ? VFU_PCI_TYPE_EXPRESS : VFU_PCI_TYPE_CONVENTIONAL;
    vfu_ctx_t *ctx = server->ctx;

    if (vfu_pci_init(ctx, type, PCI_HEADER_TYPE_NORMAL, 0) != 0) {
        return -1;
    }
    vfu_pci_set_id(ctx, EDU_VENDOR_ID, EDU_DEVICE_ID, SUBSYSTEM_VENDOR_ID, SUBSYSTEM_ID);
    vfu_pci_set_class(ctx, CLASS_BASE, CLASS_SUB, 0);
    vfu_pci_get_config_space(ctx)->hdr.rid = EDU_REVISION;
    if (has_iommu(options) && add_express(server) != 0) {
        return -1;
    }
    return add_msi(server);
}

/* References keep memory in its place as long as it is used: no need to quiesce for that. */
static int setup_iommu(struct server *server, const struct server_options *options)
{
    const vfu_iommu_config_t config = {
        .size = sizeof(config),
        .pasid_bits = options->pasid_bits,
        .ats = options->ats,
        .pri = options->pri,
    };

    if (!has_iommu(options)) {
        vfu_setup_device_quiesce_cb(server->ctx, quiesce);
        return 0;
    }
    return vfu_setup_device_iommu(server->ctx, &config);
}

static int setup_context(struct server *server, const struct server_options *options)
{
    vfu_ctx_t *ctx = server->ctx;

    if (setup_pci(server, options) != 0 ||
        vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, EDU_BAR_SIZE, access_bar0,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0) != 0 ||
        vfu_setup_device_dma(ctx, LIBVFIO_USER_MAX_DMA_REGIONS, dma_register, dma_unregister) !=
            0 ||
        vfu_setup_device_reset_cb(ctx, reset) != 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_INTX_IRQ, 1) != 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSI_IRQ, 1) != 0 ||
        vfu_setup_irq_state_callback(ctx, VFU_DEV_INTX_IRQ, intx_mask_changed) != 0 ||
        setup_iommu(server, options) != 0) {
        return -1;
    }
    return vfu_realize_ctx(ctx);
}

static int start_threads(struct server *server, bool iommu)
{
    int err = dma_space_init(&server->dma_space, server->ctx, iommu);

    if (err != 0) {
        return err;
    }
    err = worker_start(&server->factorial_worker, factorial_job, server);
    if (err != 0) {
        dma_space_destroy(&server->dma_space);
        return err;
    }
    err = worker_start(&server->dma_worker, dma_job, server);
    if (err != 0) {
        worker_stop(&server->factorial_worker);
        dma_space_destroy(&server->dma_space);
    }
    return err;
}

int device_setup(struct server *server, const struct server_options *options)
{
    edu_init(&server->edu, &edu_ops, server, options->dma_mask_bits, has_iommu(options));
    if (vfu_setup_log(server->ctx, print_log, options->log_level) != 0 ||
        setup_context(server, options) != 0) {
        return -errno;
    }
    return start_threads(server, has_iommu(options));
}

static void log_counters(struct server *server)
{
    vfu_iommu_stats_t s;

    vfu_iommu_get_stats(server->ctx, &s);
    vfu_log(server->ctx, LOG_INFO,
            "translation cache: %" PRIu64 " hits, %" PRIu64 " misses, %" PRIu64
            " translations asked, %" PRIu64 " invalidations; %" PRIu64 " pages requested, %" PRIu64
            " faults, %" PRIu64 " protocol errors",
            s.atc_hits, s.atc_misses, s.translations, s.invalidations, s.page_requests, s.faults,
            s.protocol_errors);
}

void device_stop(struct server *server)
{
    if (server->dma_space.iommu) {
        log_counters(server);
    }
    worker_stop(&server->dma_worker);
    worker_stop(&server->factorial_worker);
    dma_space_destroy(&server->dma_space);
}
