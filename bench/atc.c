/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a guest IOMMU costs a device: lookups and 4 KiB transfers through the translation cache
 * beside the same without an IOMMU, in one run, and transfers whose mapping is new each time (an
 * invalidation and a translation per transfer). Rounds alternate; medians are shown.
 */
#include "libvfio-user-iommu.h"
#include "vfio-user-client.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define NR_PAGES 1024u
#define IOVA 0x200000000ull
#define GUEST 0x300000000ull /* in the translated space */
#define ROUNDS 31
#define LOOKUPS 100000
#define TRANSFERS 20000
#define REMAPS 200

/* The same memory, in one mapping or in many; without an IOMMU, and in the space of a PASID. */
struct setting {
    const char *what;
    uint64_t plain; /* where it is mapped without an IOMMU */
    uint64_t size; /* of one mapping, and of one translation */
    uint32_t pasid;
};

static const struct setting settings[] = {
    { "one mapping of 4 MiB", 0x100000000ull, NR_PAGES *PAGE, 0 },
    { "1024 mappings of 4 KiB", 0x110000000ull, PAGE, 1 },
};

static vfu_ctx_t *ctx;
static vfuc_t *client;
static uint8_t data[PAGE];

static void die(const char *what)
{
    fprintf(stderr, "atc: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

/* Every page of the PASID leads to the page of guest memory with the same number. */
static void answer(void *pvt, uint16_t id, uint16_t cmd, uint32_t flags, const void *payload,
                   size_t len)
{
    struct {
        struct vfio_user_ats_translate_reply head;
        struct vfio_user_ats_entry entry;
    } reply = { .head = { .argsz = sizeof(reply), .nr_entries = 1 } };
    struct {
        struct vfio_user_pasid_prefix prefix;
        struct vfio_user_ats_translate body;
    } __attribute__((packed)) request;
    uint64_t size;

    (void)pvt;
    if (cmd != VFIO_USER_ATS_TRANSLATE || !(flags & VFIO_USER_F_PASID) || len != sizeof(request)) {
        vfuc_reply(client, id, cmd, ENOTSUP, NULL, 0);
        return;
    }
    memcpy(&request, payload, sizeof(request));
    size = settings[request.prefix.pasid].size;
    reply.entry = (struct vfio_user_ats_entry){
        .address = request.body.address & ~(size - 1),
        .translated = (request.body.address & ~(size - 1)) - IOVA + GUEST,
        .length = size,
        .perm = VFIO_USER_ATS_PERM_READ | VFIO_USER_ATS_PERM_WRITE,
    };
    vfuc_reply(client, id, cmd, 0, &reply, sizeof(reply));
}

static void *control(void *arg)
{
    (void)arg;
    if (vfu_attach_ctx(ctx) < 0) {
        die("attach");
    }
    vfu_run_ctx(ctx);
    return NULL;
}

static void unregistered(vfu_ctx_t *c, vfu_dma_info_t *info)
{
    (void)c;
    (void)info;
}

static void write_config(uint64_t offset, uint16_t value)
{
    if (vfuc_region_write(client, VFU_PCI_DEV_CFG_REGION_IDX, offset, &value, 2) < 0) {
        die("configuration space");
    }
}

static void set_up(const char *path, pthread_t *thread)
{
    const vfu_iommu_config_t config = { .size = sizeof(config), .pasid_bits = 20, .ats = true };
    const vfuc_options_t options = {
        .iommu = { .pasid_bits = 20, .ats_queue_depth = 32, .ats_page_shift = 12,
                   .ats_max_entries = 64 },
        .command = answer,
    };
    int fd = memfd_create("guest", MFD_CLOEXEC);
    vfuc_memory_t memory = {
        .iova = GUEST, .size = NR_PAGES * PAGE, .prot = PROT_READ | PROT_WRITE, .fd = fd,
        .translated = true,
    };

    ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, 0, NULL, VFU_DEV_TYPE_PCI);
    if (ctx == NULL || vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, 0, 0) < 0 ||
        vfu_setup_device_dma(ctx, 2 * NR_PAGES, unregistered, unregistered) < 0 ||
        vfu_setup_device_iommu(ctx, &config) < 0 || vfu_realize_ctx(ctx) < 0) {
        die("device");
    }
    pthread_create(thread, NULL, control, NULL);
    client = vfuc_connect(path, &options);
    if (client == NULL || ftruncate(fd, NR_PAGES * PAGE) < 0 ||
        vfuc_dma_map(client, &memory) < 0) {
        die("client");
    }
    memory.translated = false;
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
        memory.size = settings[i].size;
        for (uint64_t at = 0; at < NR_PAGES * PAGE; at += memory.size) {
            memory.iova = settings[i].plain + at;
            memory.fd_offset = at;
            if (vfuc_dma_map(client, &memory) < 0) {
                die("map");
            }
        }
    }
    close(fd);
    write_config(0x10e, 1); /* PASID enable, behind ATS */
    write_config(0x106, 0x8000); /* ATS enable */
}

static uint64_t page_of(unsigned i)
{
    return (uint64_t)(i * 2654435761u % NR_PAGES) * PAGE;
}

static double lookup(const struct setting *set, bool iommu)
{
    static dma_sg_t *sg;
    double start;

    sg = sg != NULL ? sg : malloc(dma_sg_size());
    start = now_ns();
    for (unsigned i = 0; i < LOOKUPS; i++) {
        uint64_t addr = page_of(i);
        int n = iommu ? vfu_addr_to_sgl_pasid(ctx, (void *)(uintptr_t)(IOVA + addr), set->pasid, 64,
                                              sg, 1, PROT_READ)
                      : vfu_addr_to_sgl(ctx, (void *)(uintptr_t)(set->plain + addr), 64, sg, 1,
                                        PROT_READ);

        if (n != 1) {
            die("lookup");
        }
    }
    return (now_ns() - start) / LOOKUPS;
}

/* The calls that a device makes without an IOMMU, and the same in the space of a PASID. */
static void transfer_by_sgl(uint32_t pasid, uint64_t addr)
{
    vfu_dma_addr_t at = (vfu_dma_addr_t)(uintptr_t)addr;
    static dma_sg_t *sg;
    struct iovec iov;
    int n;

    sg = sg != NULL ? sg : malloc(dma_sg_size());
    n = pasid == VFU_NO_PASID ? vfu_addr_to_sgl(ctx, at, PAGE, sg, 1, PROT_READ)
                              : vfu_addr_to_sgl_pasid(ctx, at, pasid, PAGE, sg, 1, PROT_READ);
    if (n != 1 || vfu_sgl_get(ctx, sg, &iov, 1, 0) < 0) {
        die("transfer");
    }
    memcpy(data, iov.iov_base, PAGE);
    vfu_sgl_put(ctx, sg, &iov, 1);
}

static void resolved(vfu_ctx_t *c, vfu_dma_request_t *req, int error)
{
    (void)c;
    (void)req;
    if (error != 0) {
        errno = error;
        die("resolve");
    }
}

/* The one call that also asks for what is missing. */
static void transfer_resolved(uint32_t pasid, uint64_t addr)
{
    static dma_sg_t *sg;
    struct iovec iov;
    vfu_dma_request_t req = {
        .addr = addr, .len = PAGE, .pasid = pasid, .prot = PROT_READ, .iov = &iov,
        .max_nr_sgs = 1, .done = resolved,
    };

    sg = sg != NULL ? sg : malloc(dma_sg_size());
    req.sgl = sg;
    if (vfu_dma_resolve(ctx, &req) < 0 || req.nr_sgs != 1) {
        die("resolve");
    }
    memcpy(data, iov.iov_base, PAGE);
    vfu_dma_release(ctx, &req);
}

static double transfer(const struct setting *set, bool iommu)
{
    double start = now_ns();

    for (unsigned i = 0; i < TRANSFERS; i++) {
        if (iommu) {
            transfer_by_sgl(set->pasid, IOVA + page_of(i));
        } else {
            transfer_by_sgl(VFU_NO_PASID, set->plain + page_of(i));
        }
    }
    return (now_ns() - start) / TRANSFERS;
}

static double resolve(const struct setting *set, bool iommu)
{
    double start = now_ns();

    for (unsigned i = 0; i < TRANSFERS; i++) {
        if (iommu) {
            transfer_resolved(set->pasid, IOVA + page_of(i));
        } else {
            transfer_by_sgl(VFU_NO_PASID, set->plain + page_of(i));
        }
    }
    return (now_ns() - start) / TRANSFERS;
}

/* The guest unmaps what was transferred, and maps the next. */
static double remap(void)
{
    struct {
        struct vfio_user_pasid_prefix prefix;
        struct vfio_user_ats_invalidate inv;
    } __attribute__((packed)) msg = {
        .prefix = { .pasid = settings[1].pasid },
        .inv = { .argsz = sizeof(msg.inv), .length = PAGE },
    };
    double start = now_ns();

    for (unsigned i = 0; i < REMAPS; i++) {
        vfu_dma_request_t req = { .addr = IOVA + page_of(i), .len = PAGE,
                                  .pasid = settings[1].pasid };

        if (vfu_dma_read(ctx, &req, data) < 0) {
            die("read");
        }
        msg.inv.address = req.addr;
        if (vfuc_command(client, VFIO_USER_ATS_INVALIDATE, VFIO_USER_F_PASID, &msg, sizeof(msg),
                         NULL, 0) < 0) {
            die("invalidate");
        }
    }
    return (now_ns() - start) / REMAPS;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median(double *values)
{
    qsort(values, ROUNDS, sizeof(*values), by_value);
    return values[ROUNDS / 2];
}

static void compare(const char *what, double (*run)(const struct setting *set, bool iommu))
{
    for (size_t n = 0; n < sizeof(settings) / sizeof(settings[0]); n++) {
        const struct setting *set = &settings[n];
        double with[ROUNDS], without[ROUNDS], ratio[ROUNDS];

        for (int i = 0; i < ROUNDS; i++) {
            without[i] = run(set, false);
            with[i] = run(set, true);
            ratio[i] = without[i] / with[i];
        }
        printf("%-11s %-24s %6.1f ns without an IOMMU, %6.1f ns through the ATC: %.2f\n", what,
               set->what, median(without), median(with), median(ratio));
    }
}

/* So that everything is cached. */
static void touch_all(void)
{
    for (size_t n = 0; n < sizeof(settings) / sizeof(settings[0]); n++) {
        for (unsigned i = 0; i < NR_PAGES; i++) {
            vfu_dma_request_t req = { .addr = IOVA + i * PAGE, .len = PAGE,
                                      .pasid = settings[n].pasid };

            if (vfu_dma_read(ctx, &req, data) < 0) {
                die("first read");
            }
        }
    }
}

int main(void)
{
    char dir[] = "/tmp/vfu-bench-XXXXXX", path[64];
    double remaps[ROUNDS];
    pthread_t thread;

    if (mkdtemp(dir) == NULL) {
        die("mkdtemp");
    }
    snprintf(path, sizeof(path), "%s/sock", dir);
    set_up(path, &thread);
    touch_all();
    compare("lookup", lookup);
    compare("4 KiB read", transfer);
    compare("resolved", resolve);
    for (int i = 0; i < ROUNDS; i++) {
        remaps[i] = remap();
    }
    printf(
        "4 KiB read, with a new translation and an invalidation each: %.1f us (two round trips)\n",
        median(remaps) / 1000);
    vfuc_disconnect(client);
    pthread_join(thread, NULL);
    vfu_destroy_ctx(ctx);
    rmdir(dir);
    return 0;
}
