/* SPDX-License-Identifier: BSD-3-Clause */
#include "device.h"

#include "fuzz.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#define BAR2_SIZE 0x8000u
#define BAR4_SIZE 0x1000u
#define NR_MSIX 16

/* Backs the regions of every device, and is never truncated. */
static struct {
    int bar2, bar4, shadow, event;
} files = { -1, -1, -1, -1 };

static int memory_file(size_t size)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);

    REQUIRE(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    return fd;
}

static void make_files(void)
{
    if (files.bar2 == -1) {
        files.bar2 = memory_file(BAR2_SIZE);
        files.bar4 = memory_file(BAR4_SIZE);
        files.shadow = memory_file(4096);
        files.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
}

/* What the device is asked to do */

static vfu_dma_addr_t address(const struct device_order *o)
{
    return (vfu_dma_addr_t)(uintptr_t)o->addr;
}

static uint32_t pasid_of(const struct device_order *o)
{
    return o->flags & 0x80 ? o->pasid : VFU_NO_PASID;
}

static size_t limited(const struct device_order *o)
{
    return o->len % (DEVICE_DATA + 1);
}

static int find(struct device *d, const struct device_order *o, dma_sg_t *sgl)
{
    if (o->flags & 0x80) {
        return vfu_addr_to_sgl_pasid(d->ctx, address(o), o->pasid, limited(o), sgl, DEVICE_SGS,
                                     o->prot & 3);
    }
    return vfu_addr_to_sgl(d->ctx, address(o), limited(o), sgl, DEVICE_SGS, o->prot & 3);
}

static void sgl_copy(struct device *d, const struct device_order *o, bool write)
{
    uint8_t sgl[DEVICE_SGS * 64] __attribute__((aligned(16)));
    int n;

    REQUIRE(dma_sg_size() <= 64);
    n = find(d, o, (dma_sg_t *)sgl);
    if (n <= 0) {
        return;
    }
    if (write) {
        vfu_sgl_write(d->ctx, (dma_sg_t *)sgl, (size_t)n, d->data, o->flags & 1);
    } else {
        vfu_sgl_read(d->ctx, (dma_sg_t *)sgl, (size_t)n, d->data, o->flags & 1);
    }
}

/* Memory that was given out is there to be used, whatever the client does to the file. */
static void touch(const struct iovec *iov, size_t n, bool write)
{
    for (size_t i = 0; i < n; i++) {
        volatile uint8_t *bytes = iov[i].iov_base;
        size_t len = iov[i].iov_len;

        if (bytes == NULL || len == 0) {
            continue;
        }
        for (size_t at = 0; at < len; at += 4096) {
            (void)bytes[at];
        }
        (void)bytes[len - 1];
        if (write) {
            bytes[0] = 1;
            bytes[len - 1] = 2;
        }
    }
}

static void sgl_get(struct device *d, struct device_slot *slot, const struct device_order *o)
{
    int n;

    if (slot->state != SLOT_FREE) {
        return;
    }
    n = find(d, o, slot->sgl);
    if (n <= 0 || vfu_sgl_get(d->ctx, slot->sgl, slot->iov, (size_t)n, 0) < 0) {
        return;
    }
    touch(slot->iov, (size_t)n, o->prot & PROT_WRITE);
    slot->nr = n;
    slot->state = SLOT_SGL;
}

static void sgl_put(struct device *d, struct device_slot *slot)
{
    if (slot->state == SLOT_SGL) {
        vfu_sgl_put(d->ctx, slot->sgl, slot->iov, (size_t)slot->nr);
        slot->state = SLOT_FREE;
    }
}

static void release(struct device *d, struct device_slot *slot)
{
    if (slot->state == SLOT_HELD) {
        slot->state = SLOT_FREE;
        vfu_dma_release(d->ctx, &slot->req);
    }
}

static void resolved(vfu_ctx_t *ctx, vfu_dma_request_t *req, int error)
{
    struct device_slot *slot = req->pvt;

    (void)ctx;
    REQUIRE(slot->state == SLOT_BUSY);
    slot->state = error == 0 ? SLOT_HELD : SLOT_FREE;
    if (error == 0) {
        REQUIRE(req->nr_sgs > 0 && req->nr_sgs <= DEVICE_SGS);
        touch(req->iov, req->nr_sgs, req->prot & PROT_WRITE);
    } else {
        REQUIRE(error > 0 && error < 4096);
    }
}

static void revoked(vfu_ctx_t *ctx, vfu_dma_request_t *req)
{
    struct device *d = vfu_get_private(ctx);

    if (!(d->options & DEVICE_RELEASES_LATER)) {
        release(d, req->pvt);
    }
}

static void prepare(struct device_slot *slot, const struct device_order *o)
{
    slot->req = (vfu_dma_request_t){
        .addr = o->addr,
        .len = o->len,
        .pasid = pasid_of(o),
        .attrs = o->attrs,
        .prot = o->prot & 3,
        .flags = o->flags & 3,
        .sgl = slot->sgl,
        .iov = slot->iov,
        .max_nr_sgs = DEVICE_SGS,
        .pvt = slot,
        .done = resolved,
        .revoked = o->number % ORDER_COUNT == ORDER_KEEP ? revoked : NULL,
    };
}

static void resolve(struct device *d, struct device_slot *slot, const struct device_order *o)
{
    if (slot->state != SLOT_FREE) {
        return;
    }
    prepare(slot, o);
    slot->state = SLOT_BUSY;
    if (vfu_dma_resolve(d->ctx, &slot->req) < 0) {
        REQUIRE(slot->state == SLOT_BUSY);
        slot->state = SLOT_FREE;
    }
}

static void cancel(struct device *d, struct device_slot *slot)
{
    if (slot->state == SLOT_BUSY && vfu_dma_cancel(d->ctx, &slot->req) == 0) {
        REQUIRE(slot->state != SLOT_BUSY);
    }
}

static void dma_copy(struct device *d, struct device_slot *slot, const struct device_order *o,
                     bool write)
{
    if (slot->state != SLOT_FREE) {
        return;
    }
    prepare(slot, o);
    slot->req.len = limited(o);
    slot->state = SLOT_BUSY;
    if (write) {
        vfu_dma_write(d->ctx, &slot->req, d->data);
    } else {
        vfu_dma_read(d->ctx, &slot->req, d->data);
    }
    slot->state = SLOT_FREE;
}

static void translated(vfu_ctx_t *ctx, void *pvt, int error, const vfu_translation_t *translation)
{
    struct device *d = pvt;

    (void)ctx;
    REQUIRE(d->callbacks > 0);
    d->callbacks--;
    if (error == 0) {
        REQUIRE(translation->first <= translation->last);
    }
}

static void paged(vfu_ctx_t *ctx, void *pvt, int error, uint32_t code)
{
    struct device *d = pvt;

    (void)ctx;
    (void)error;
    (void)code;
    REQUIRE(d->callbacks > 0);
    d->callbacks--;
}

static void translate(struct device *d, const struct device_order *o)
{
    d->callbacks++;
    if (vfu_ats_translate(d->ctx, pasid_of(o), o->attrs, o->addr, o->prot & PROT_WRITE, translated,
                          d) < 0) {
        d->callbacks--;
    }
}

static void page_request(struct device *d, const struct device_order *o)
{
    vfu_page_range_t ranges[4];
    size_t nr = o->flags % 5u;

    for (size_t i = 0; i < 4; i++) {
        ranges[i] = (vfu_page_range_t){ o->addr + (i << 20), o->len, o->prot & 15 };
    }
    d->callbacks++;
    if (vfu_page_request(d->ctx, pasid_of(o), o->attrs, ranges, nr, paged, d) < 0) {
        d->callbacks--;
    }
}

static void invalidate_done(struct device *d)
{
    if (d->nr_later > 0) {
        vfu_invalidate_done(d->ctx, d->later[--d->nr_later]);
    }
}

static void quiesced(struct device *d, const struct device_order *o)
{
    if (d->quiescing && d->depth == 0) {
        d->quiescing = false;
        vfu_device_quiesced(d->ctx, o->flags & 1 ? EIO : 0);
    }
}

void device_obey(struct device *d, const struct device_order *o)
{
    struct device_slot *slot = &d->slots[o->slot % DEVICE_SLOTS];

    switch (o->number % ORDER_COUNT) {
    case ORDER_SGL_READ:
    case ORDER_SGL_WRITE:
        sgl_copy(d, o, o->number % ORDER_COUNT == ORDER_SGL_WRITE);
        break;
    case ORDER_SGL_GET:
        sgl_get(d, slot, o);
        break;
    case ORDER_SGL_PUT:
        sgl_put(d, slot);
        break;
    case ORDER_MARK_DIRTY:
        if (slot->state == SLOT_SGL) {
            vfu_sgl_mark_dirty(d->ctx, slot->sgl, (size_t)slot->nr);
        }
        break;
    case ORDER_TRIGGER:
        vfu_irq_trigger(d->ctx, o->len);
        break;
    case ORDER_TRIGGER_TYPE:
        vfu_irq_trigger_type(d->ctx, (enum vfu_dev_irq_type)(o->prot % 8), o->len);
        break;
    case ORDER_RESOLVE:
    case ORDER_KEEP:
        resolve(d, slot, o);
        break;
    case ORDER_RELEASE:
        release(d, slot);
        break;
    case ORDER_MOVE:
        if (slot->state == SLOT_HELD) {
            vfu_dma_move(d->ctx, &slot->req, o->addr, d->data, limited(o), o->flags & 1);
        }
        break;
    case ORDER_CANCEL:
        cancel(d, slot);
        break;
    case ORDER_DMA_READ:
    case ORDER_DMA_WRITE:
        dma_copy(d, slot, o, o->number % ORDER_COUNT == ORDER_DMA_WRITE);
        break;
    case ORDER_TRANSLATE:
        translate(d, o);
        break;
    case ORDER_PAGE_REQUEST:
        page_request(d, o);
        break;
    case ORDER_PASID_STOP:
        vfu_pasid_stop(d->ctx, o->pasid);
        break;
    case ORDER_INVALIDATE_DONE:
        invalidate_done(d);
        break;
    case ORDER_QUIESCED:
        quiesced(d, o);
        break;
    case ORDER_FAIL:
        d->fail = true;
        break;
    default:
        break;
    }
}

void device_release_all(struct device *d)
{
    for (int i = 0; i < DEVICE_SLOTS; i++) {
        sgl_put(d, &d->slots[i]);
        release(d, &d->slots[i]);
    }
    while (d->nr_later > 0) {
        invalidate_done(d);
    }
}

/* Callbacks */

static ssize_t bar0_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct device *d = vfu_get_private(ctx);
    struct device_order order = { 0 };

    REQUIRE(offset >= 0 && (uint64_t)offset + count <= 4096);
    if (!is_write) {
        memset(buf, 0x5a, count);
        return (ssize_t)count;
    }
    if (offset == 0) {
        memcpy(&order, buf, count < sizeof(order) ? count : sizeof(order));
        d->depth++;
        device_obey(d, &order);
        d->depth--;
    }
    if (d->fail) {
        d->fail = false;
        errno = EIO;
        return -1;
    }
    return (ssize_t)count;
}

static ssize_t io_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct device *d = vfu_get_private(ctx);

    REQUIRE(offset >= 0 && (uint64_t)offset + count <= sizeof(d->io));
    memcpy(is_write ? (void *)(d->io + offset) : buf, is_write ? (void *)buf : d->io + offset,
           count);
    return (ssize_t)count;
}

/* A region of no content; what it answers is not always what was asked for. */
static ssize_t odd_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx;
    if (!is_write) {
        memset(buf, 0, count);
    }
    return offset % 3 == 0 ? (ssize_t)count : offset % 3 - 2;
}

static int quiesce(vfu_ctx_t *ctx)
{
    struct device *d = vfu_get_private(ctx);

    if (d->options & DEVICE_QUIESCES_LATER) {
        d->quiescing = true;
        errno = EBUSY;
        return -1;
    }
    return 0;
}

static int reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    struct device *d = vfu_get_private(ctx);

    if (type == VFU_RESET_LOST_CONN) {
        d->quiescing = false;
        device_release_all(d);
    }
    return 0;
}

static void dma_registered(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx;
    if (info->vaddr != NULL) {
        const struct iovec whole = { info->vaddr, info->iova.iov_len };

        REQUIRE(info->mapping.iov_len >= info->iova.iov_len);
        if (info->iova.iov_len < 1 << 20) {
            touch(&whole, info->prot & PROT_READ ? 1 : 0, false);
        }
    }
}

static void dma_unregistered(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx;
    (void)info;
}

static void irq_state(vfu_ctx_t *ctx, uint32_t start, uint32_t count, bool mask)
{
    (void)ctx;
    (void)mask;
    REQUIRE((uint64_t)start + count <= NR_MSIX);
}

static int transition(vfu_ctx_t *ctx, vfu_migr_state_t state)
{
    struct device *d = vfu_get_private(ctx);

    d->migration_left = 100;
    (void)state;
    return 0;
}

static ssize_t read_state(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    struct device *d = vfu_get_private(ctx);
    uint64_t n = count < d->migration_left ? count : d->migration_left;

    memset(buf, 0x77, n);
    d->migration_left -= (unsigned)n;
    return (ssize_t)n;
}

static ssize_t write_state(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    const struct iovec data = { buf, count };

    (void)ctx;
    touch(&data, 1, false);
    return (ssize_t)count;
}

static int invalidate(vfu_ctx_t *ctx, uint32_t pasid, bool global, uint64_t first, uint64_t last,
                      vfu_invalidation_t *inv)
{
    struct device *d = vfu_get_private(ctx);

    (void)pasid;
    (void)global;
    REQUIRE(first <= last);
    if (!(d->options & DEVICE_INVALIDATES_LATER) || d->nr_later == 64) {
        return 0;
    }
    d->later[d->nr_later++] = inv;
    errno = EBUSY;
    return -1;
}

/* Formats every line, for nobody. */
static void swallow(vfu_ctx_t *ctx, int level, const char *msg)
{
    (void)ctx;
    (void)level;
    REQUIRE(strlen(msg) > 0);
}

/* Set-up */

static void set_up_regions(struct device *d)
{
    const int memory = VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM;
    struct iovec areas[] = { { (void *)0x1000, 0x1000 }, { (void *)0x4000, 0x2000 } };
    vfu_region_access_cb_t *config = d->options & DEVICE_CONFIG_CALLBACK ? odd_access : NULL;

    vfu_setup_region(d->ctx, VFU_PCI_DEV_BAR0_REGION_IDX, 4096, bar0_access, memory, NULL, 0, -1,
                     0);
    vfu_setup_region(d->ctx, VFU_PCI_DEV_BAR1_REGION_IDX, sizeof(d->io), io_access,
                     VFU_REGION_FLAG_RW, NULL, 0, -1, 0);
    vfu_setup_region(d->ctx, VFU_PCI_DEV_BAR2_REGION_IDX, BAR2_SIZE, odd_access,
                     memory | VFU_REGION_FLAG_64_BITS | VFU_REGION_FLAG_PREFETCH, areas, 2,
                     files.bar2, 0);
    vfu_setup_region(d->ctx, VFU_PCI_DEV_BAR4_REGION_IDX, BAR4_SIZE, NULL, memory, NULL, 0,
                     files.bar4, 0);
    vfu_setup_region(d->ctx, VFU_PCI_DEV_ROM_REGION_IDX, 4096, odd_access, VFU_REGION_FLAG_READ,
                     NULL, 0, -1, 0);
    vfu_setup_region(d->ctx, VFU_PCI_DEV_CFG_REGION_IDX, 4096, config, VFU_REGION_FLAG_RW, NULL, 0,
                     -1, 0);
    vfu_create_ioeventfd(d->ctx, VFU_PCI_DEV_BAR0_REGION_IDX, files.event, 64, 4, 1, 7, -1, 0);
    vfu_create_ioeventfd(d->ctx, VFU_PCI_DEV_BAR0_REGION_IDX, files.event, 72, 8, 0, 0,
                         files.shadow, 8);
}

static void add_capabilities(struct device *d)
{
    struct pxcap express = { .hdr.id = PCI_CAP_ID_EXP, .pxdcap.flrc = 1 };
    struct msixcap msix = { .hdr.id = PCI_CAP_ID_MSIX, .mxc.ts = NR_MSIX - 1 };
    struct msicap msi = { .hdr.id = PCI_CAP_ID_MSI };
    struct pmcap pm = { .hdr.id = PCI_CAP_ID_PM };
    uint8_t vendor[16] = { PCI_CAP_ID_VNDR, 0, sizeof(vendor) };
    struct dsncap dsn = { .hdr = { .id = PCI_EXT_CAP_ID_DSN, .version = 1 } };
    struct { struct pcie_ext_cap_vsc_hdr hdr; uint8_t rest[24]; } special = {
        .hdr = { .hdr = { .id = PCI_EXT_CAP_ID_VNDR, .version = 1 }, .len = sizeof(special) },
    };
    int callback = d->options & DEVICE_CONFIG_CALLBACK ? VFU_CAP_FLAG_CALLBACK : 0;

    REQUIRE(vfu_pci_add_capability(d->ctx, 0, 0, &pm) > 0);
    REQUIRE(vfu_pci_add_capability(d->ctx, 0, 0, &msi) > 0);
    REQUIRE(vfu_pci_add_capability(d->ctx, 0, 0, &msix) > 0);
    REQUIRE(vfu_pci_add_capability(d->ctx, 0, 0, &express) > 0);
    REQUIRE(vfu_pci_add_capability(d->ctx, 0, callback, vendor) > 0);
    REQUIRE(vfu_pci_add_capability(d->ctx, 0, VFU_CAP_FLAG_READONLY, vendor) > 0);
    REQUIRE(vfu_pci_add_capability(d->ctx, 0, VFU_CAP_FLAG_EXTENDED, &dsn) > 0);
    REQUIRE(vfu_pci_add_capability(d->ctx, 0, VFU_CAP_FLAG_EXTENDED, &special) > 0);
}

static void set_up_optional(struct device *d)
{
    static const vfu_migration_callbacks_t migration = {
        .version = VFU_MIGR_CALLBACKS_VERS,
        .transition = transition,
        .read_data = read_state,
        .write_data = write_state,
    };
    const vfu_iommu_config_t config = {
        .size = sizeof(config),
        .pasid_bits = 20,
        .pasid_exec = true,
        .pasid_priv = true,
        .ats = true,
        .ats_max_entries = 8,
        .atc_entries = 16,
        .pri = true,
        .pri_max_requests = 32,
        .pri_timeout_ms = 5000,
        .retries = 8,
        .invalidate = invalidate,
    };

    if (d->options & DEVICE_HAS_DMA) {
        REQUIRE(vfu_setup_device_dma(d->ctx, 64, dma_registered, dma_unregistered) == 0);
    }
    if ((d->options & DEVICE_HAS_IOMMU) && (d->options & DEVICE_HAS_DMA)) {
        REQUIRE(vfu_setup_device_iommu(d->ctx, &config) == 0);
    }
    if (d->options & DEVICE_HAS_MIGRATION) {
        REQUIRE(vfu_setup_device_migration_callbacks(d->ctx, &migration) == 0);
    }
    if (d->options & DEVICE_QUIESCES) {
        vfu_setup_device_quiesce_cb(d->ctx, quiesce);
    }
}

void device_start(struct device *d, uint8_t options, int log_level)
{
    make_files();
    memset(d, 0, sizeof(*d));
    d->options = options;
    d->ctx = vfu_create_ctx(VFU_TRANS_PIPE, "", LIBVFIO_USER_FLAG_ATTACH_NB, d,
                            VFU_DEV_TYPE_PCI);
    REQUIRE(d->ctx != NULL);
    for (int i = 0; i < DEVICE_SLOTS; i++) {
        d->slots[i].sgl = calloc(DEVICE_SGS, dma_sg_size());
        REQUIRE(d->slots[i].sgl != NULL);
    }
    vfu_setup_log(d->ctx, swallow, log_level);
    REQUIRE(vfu_pci_init(d->ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) == 0);
    vfu_pci_set_id(d->ctx, 0x1234, 0x5678, 0, 0);
    set_up_regions(d);
    add_capabilities(d);
    vfu_setup_device_nr_irqs(d->ctx, VFU_DEV_INTX_IRQ, 1);
    vfu_setup_device_nr_irqs(d->ctx, VFU_DEV_MSI_IRQ, 8);
    vfu_setup_device_nr_irqs(d->ctx, VFU_DEV_MSIX_IRQ, NR_MSIX);
    vfu_setup_irq_state_callback(d->ctx, VFU_DEV_INTX_IRQ, irq_state);
    vfu_setup_irq_state_callback(d->ctx, VFU_DEV_MSIX_IRQ, irq_state);
    vfu_setup_device_reset_cb(d->ctx, reset);
    set_up_optional(d);
    REQUIRE(vfu_realize_ctx(d->ctx) == 0);
}

void device_stop(struct device *d)
{
    device_release_all(d);
    vfu_destroy_ctx(d->ctx);
    REQUIRE(d->callbacks == 0);
    for (int i = 0; i < DEVICE_SLOTS; i++) {
        REQUIRE(d->slots[i].state == SLOT_FREE);
        free(d->slots[i].sgl);
    }
}
