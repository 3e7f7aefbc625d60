/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device for tests: its registers are the calls of libvfio-user-iommu.h. Sixteen slots of 0x100
 * bytes in BAR 0 each hold one access; what a slot's command register is told to do happens, and
 * its status register says how it ended. Blocking calls run on a thread of the slot's own, so that
 * the control thread stays free.
 */
#include "libvfio-user-iommu.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define NR_SLOTS 16
#define SLOT_SIZE 0x100u
#define BUFFERS 0x100000u
#define BUFFER_SIZE 0x2000u
#define STATS 0x8000u
#define STATE 0x8200u
#define BAR_SIZE 0x200000u
#define MAX_SGS 32

enum command {
    CMD_RESOLVE = 1,
    CMD_RELEASE,
    CMD_READ,
    CMD_WRITE,
    CMD_CANCEL,
    CMD_TRANSLATE,
    CMD_PAGE_REQUEST,
    CMD_KEEP,
    CMD_PASID_STOP,
    CMD_INVALIDATE_DONE,
};

enum status {
    STATUS_IDLE,
    STATUS_PENDING,
    STATUS_HELD,
    STATUS_DONE,
    STATUS_FAILED,
    STATUS_REVOKED,
};

/* What a driver sees; the layout is the register map. */
struct registers {
    uint64_t addr, len;
    uint32_t pasid, attrs, prot, flags;
    uint32_t command;
    uint32_t status;
    uint32_t error, nr_sgs;
    uint64_t fault_addr;
    uint32_t perm, code;
    uint64_t translated;
};

struct slot {
    struct registers regs;
    pthread_mutex_t lock; /* of regs: an access may end on any thread */
    vfu_ctx_t *ctx;
    vfu_dma_request_t req;
    dma_sg_t *sgl;
    pthread_t thread;
    bool threaded;
    uint8_t buffer[BUFFER_SIZE];
};

struct probe {
    vfu_ctx_t *ctx;
    struct slot slots[NR_SLOTS];
    bool invalidate_later;
    bool migration;
    vfu_invalidation_t *later[64];
    size_t nr_later;
};

static void set_result(struct slot *slot, enum status status, int error, uint32_t perm,
                       uint64_t translated, uint32_t code)
{
    pthread_mutex_lock(&slot->lock);
    slot->regs.error = (uint32_t)error;
    slot->regs.fault_addr = slot->req.fault_addr;
    slot->regs.nr_sgs = (uint32_t)slot->req.nr_sgs;
    slot->regs.perm = perm;
    slot->regs.translated = translated;
    slot->regs.code = code;
    slot->regs.status = status;
    pthread_mutex_unlock(&slot->lock);
}

static void set_status(struct slot *slot, enum status status, int error)
{
    set_result(slot, status, error, 0, 0, 0);
}

static void resolved(vfu_ctx_t *ctx, vfu_dma_request_t *req, int error)
{
    (void)ctx;
    set_status(req->pvt, error == 0 ? STATUS_HELD : STATUS_FAILED, error);
}

static void revoked(vfu_ctx_t *ctx, vfu_dma_request_t *req)
{
    (void)ctx;
    set_status(req->pvt, STATUS_REVOKED, 0);
}

static void prepare(struct slot *slot)
{
    slot->req = (vfu_dma_request_t){
        .addr = slot->regs.addr,
        .len = slot->regs.len,
        .pasid = slot->regs.pasid,
        .attrs = slot->regs.attrs,
        .prot = (int)slot->regs.prot,
        .flags = slot->regs.flags,
        .sgl = slot->sgl,
        .max_nr_sgs = MAX_SGS,
        .pvt = slot,
        .done = resolved,
    };
}

static void *transfer(void *arg)
{
    struct slot *slot = arg;
    int ret = slot->regs.command == CMD_READ
                  ? vfu_dma_read(slot->ctx, &slot->req, slot->buffer)
                  : vfu_dma_write(slot->ctx, &slot->req, slot->buffer);

    set_status(slot, ret == 0 ? STATUS_DONE : STATUS_FAILED, ret == 0 ? 0 : errno);
    return NULL;
}

static int start_transfer(struct slot *slot)
{
    if (slot->regs.len > BUFFER_SIZE) {
        errno = EINVAL;
        return -1;
    }
    errno = pthread_create(&slot->thread, NULL, transfer, slot);
    slot->threaded = errno == 0;
    return slot->threaded ? 0 : -1;
}

static void translated(vfu_ctx_t *ctx, void *pvt, int error, const vfu_translation_t *t)
{
    struct slot *slot = pvt;

    (void)ctx;
    if (error == 0) {
        set_result(slot, STATUS_DONE, 0, t->perm, t->translated, 0);
    } else {
        set_status(slot, STATUS_FAILED, error);
    }
}

static void paged(vfu_ctx_t *ctx, void *pvt, int error, uint32_t code)
{
    struct slot *slot = pvt;

    (void)ctx;
    set_result(slot, error == 0 ? STATUS_DONE : STATUS_FAILED, error, 0, 0, code);
}

static int page_request(struct slot *slot)
{
    const vfu_page_range_t range = {
        .addr = slot->regs.addr,
        .nr_pages = (uint32_t)(slot->regs.len >> 12),
        .perm = slot->regs.prot,
    };

    return vfu_page_request(slot->ctx, slot->regs.pasid, slot->regs.attrs, &range, 1, paged, slot);
}

static int run_command(struct probe *probe, struct slot *slot)
{
    switch (slot->regs.command) {
    case CMD_RESOLVE:
        return vfu_dma_resolve(slot->ctx, &slot->req);
    case CMD_KEEP:
        slot->req.revoked = revoked;
        return vfu_dma_resolve(slot->ctx, &slot->req);
    case CMD_READ:
    case CMD_WRITE:
        return start_transfer(slot);
    case CMD_TRANSLATE:
        return vfu_ats_translate(slot->ctx, slot->regs.pasid, slot->regs.attrs, slot->regs.addr,
                                 slot->regs.prot & PROT_WRITE, translated, slot);
    case CMD_PAGE_REQUEST:
        return page_request(slot);
    case CMD_PASID_STOP:
        set_status(slot, STATUS_DONE, 0);
        return vfu_pasid_stop(slot->ctx, slot->regs.pasid);
    case CMD_INVALIDATE_DONE:
        set_status(slot, STATUS_DONE, 0);
        if (probe->nr_later > 0) {
            vfu_invalidate_done(slot->ctx, probe->later[--probe->nr_later]);
        }
        return 0;
    default:
        errno = EINVAL;
        return -1;
    }
}

/* Ends what the last command of the slot, perhaps of a client that is gone, has left. */
static void settle(struct slot *slot)
{
    if (slot->threaded) {
        pthread_join(slot->thread, NULL);
        slot->threaded = false;
    }
    pthread_mutex_lock(&slot->lock);
    if (slot->regs.status == STATUS_HELD || slot->regs.status == STATUS_REVOKED) {
        vfu_dma_release(slot->ctx, &slot->req);
        slot->regs.status = STATUS_IDLE;
    }
    pthread_mutex_unlock(&slot->lock);
}

static void command(struct probe *probe, struct slot *slot)
{
    if (slot->regs.command == CMD_RELEASE) {
        vfu_dma_release(slot->ctx, &slot->req);
        set_status(slot, STATUS_IDLE, 0);
        return;
    }
    if (slot->regs.command == CMD_CANCEL) {
        vfu_dma_cancel(slot->ctx, &slot->req);
        return;
    }
    settle(slot);
    prepare(slot);
    set_status(slot, STATUS_PENDING, 0);
    if (run_command(probe, slot) < 0) {
        set_status(slot, STATUS_FAILED, errno);
    }
}

/* The slot behind an address of BAR 0, and where in it; NULL when there is none. */
static struct slot *locate(struct probe *probe, size_t count, uint64_t offset, uint8_t **memory)
{
    struct slot *slot;

    if (offset < NR_SLOTS * SLOT_SIZE) {
        slot = &probe->slots[offset / SLOT_SIZE];
        *memory = (uint8_t *)&slot->regs + offset % SLOT_SIZE;
        return offset % SLOT_SIZE + count <= sizeof(slot->regs) ? slot : NULL;
    }
    if (offset >= BUFFERS && offset < BUFFERS + NR_SLOTS * BUFFER_SIZE) {
        offset -= BUFFERS;
        slot = &probe->slots[offset / BUFFER_SIZE];
        *memory = slot->buffer + offset % BUFFER_SIZE;
        return offset % BUFFER_SIZE + count <= BUFFER_SIZE ? slot : NULL;
    }
    return NULL;
}

static ssize_t slot_access(struct probe *probe, struct slot *slot, uint8_t *memory, char *buf,
                           size_t count, bool is_write)
{
    pthread_mutex_lock(&slot->lock);
    memcpy(is_write ? (void *)memory : buf, is_write ? (void *)buf : memory, count);
    pthread_mutex_unlock(&slot->lock);
    if (is_write && memory == (uint8_t *)&slot->regs.command) {
        command(probe, slot);
    }
    return (ssize_t)count;
}

static ssize_t bar_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct probe *probe = vfu_get_private(ctx);
    vfu_iommu_stats_t stats;
    vfu_iommu_state_t state;
    uint8_t *memory;
    struct slot *slot = locate(probe, count, (uint64_t)offset, &memory);

    if (slot != NULL) {
        return slot_access(probe, slot, memory, buf, count, is_write);
    }
    if (!is_write && offset == STATS && count == sizeof(stats)) {
        vfu_iommu_get_stats(ctx, &stats);
        memcpy(buf, &stats, sizeof(stats));
    } else if (!is_write && offset == STATE && count == sizeof(state)) {
        vfu_iommu_get_state(ctx, &state);
        memcpy(buf, &state, sizeof(state));
    } else {
        errno = EINVAL;
        return -1;
    }
    return (ssize_t)count;
}

static int invalidate(vfu_ctx_t *ctx, uint32_t pasid, bool global, uint64_t first, uint64_t last,
                      vfu_invalidation_t *inv)
{
    struct probe *probe = vfu_get_private(ctx);

    (void)pasid;
    (void)global;
    (void)first;
    (void)last;
    if (!probe->invalidate_later || probe->nr_later == 64) {
        return 0;
    }
    probe->later[probe->nr_later++] = inv;
    errno = EBUSY;
    return -1;
}

static void registered(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx;
    (void)info;
}

static void print_log(vfu_ctx_t *ctx, int level, const char *msg)
{
    (void)ctx;
    (void)level;
    fprintf(stderr, "iommu_probe: %s\n", msg);
}

/* A device without state of its own: what is migrated is guest memory. */
static int transition(vfu_ctx_t *ctx, vfu_migr_state_t state)
{
    (void)ctx;
    (void)state;
    return 0;
}

static ssize_t no_data(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    (void)ctx;
    (void)buf;
    (void)count;
    return 0;
}

static const vfu_migration_callbacks_t migration = {
    .version = VFU_MIGR_CALLBACKS_VERS,
    .transition = transition,
    .read_data = no_data,
    .write_data = no_data,
};

static int set_up(struct probe *probe, const char *path, const vfu_iommu_config_t *config,
                  bool iommu)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, LIBVFIO_USER_FLAG_ATTACH_NB, probe,
                                    VFU_DEV_TYPE_PCI);
    struct pxcap express = { .hdr.id = PCI_CAP_ID_EXP, .pxcaps = { .ver = 2 } };

    probe->ctx = ctx;
    if (ctx == NULL) {
        return -1;
    }
    for (int i = 0; i < NR_SLOTS; i++) {
        pthread_mutex_init(&probe->slots[i].lock, NULL);
        probe->slots[i].ctx = ctx;
        probe->slots[i].regs.pasid = VFU_NO_PASID;
        probe->slots[i].sgl = calloc(MAX_SGS, dma_sg_size());
    }
    vfu_setup_log(ctx, print_log, LOG_ERR);
    if (vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, 0, 0) < 0 ||
        vfu_pci_add_capability(ctx, 0, 0, &express) < 0 ||
        vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE, bar_access,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0) < 0 ||
        vfu_setup_device_dma(ctx, 1024, registered, registered) < 0 ||
        (probe->migration && vfu_setup_device_migration_callbacks(ctx, &migration) < 0)) {
        return -1;
    }
    if (iommu && vfu_setup_device_iommu(ctx, config) < 0) {
        return -1;
    }
    return vfu_realize_ctx(ctx);
}

static void serve(struct probe *probe, int signals)
{
    for (;;) {
        struct pollfd pfds[] = {
            { .fd = vfu_get_poll_fd(probe->ctx), .events = POLLIN },
            { .fd = signals, .events = POLLIN },
        };

        poll(pfds, 2, vfu_next_timeout(probe->ctx));
        if (pfds[1].revents != 0) {
            return;
        }
        if (vfu_run_ctx(probe->ctx) < 0 && errno == ENOTCONN) {
            vfu_attach_ctx(probe->ctx);
        }
    }
}

static int block_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

/* The client is gone by now, and with it whatever a thread waited for. */
static void tear_down(struct probe *probe)
{
    for (int i = 0; i < NR_SLOTS && probe->ctx != NULL; i++) {
        settle(&probe->slots[i]);
    }
    vfu_destroy_ctx(probe->ctx);
    for (int i = 0; i < NR_SLOTS; i++) {
        pthread_mutex_destroy(&probe->slots[i].lock);
        free(probe->slots[i].sgl);
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "socket", required_argument, NULL, 's' }, { "pasid", required_argument, NULL, 'p' },
        { "ats", no_argument, NULL, 'a' },          { "pri", no_argument, NULL, 'r' },
        { "atc", required_argument, NULL, 'n' },    { "invalidate-later", no_argument, NULL, 'l' },
        { "migration", no_argument, NULL, 'm' },
        { 0 },
    };
    vfu_iommu_config_t config = { .size = sizeof(config), .pasid_exec = true, .pasid_priv = true,
                                  .invalidate = invalidate };
    static struct probe probe;
    const char *path = NULL;
    bool iommu = false;
    int opt, signals = block_signals();

    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        iommu |= opt != 's' && opt != 'm';
        switch (opt) {
        case 's':
            path = optarg;
            break;
        case 'p':
            config.pasid_bits = (uint32_t)strtoul(optarg, NULL, 0);
            break;
        case 'a':
            config.ats = true;
            break;
        case 'r':
            config.pri = true;
            break;
        case 'n':
            config.atc_entries = strtoul(optarg, NULL, 0);
            break;
        case 'm':
            probe.migration = true;
            break;
        case 'l':
            probe.invalidate_later = true;
            break;
        default:
            return 2;
        }
    }
    if (path == NULL || set_up(&probe, path, &config, iommu) < 0) {
        fprintf(stderr, "iommu_probe: set-up failed: %s\n", strerror(errno));
        tear_down(&probe);
        return 1;
    }
    printf("iommu_probe: listening on %s\n", path);
    fflush(stdout);
    serve(&probe, signals);
    tear_down(&probe);
    close(signals);
    return 0;
}
