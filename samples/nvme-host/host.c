/* SPDX-License-Identifier: BSD-3-Clause */
#include "host.h"

#include <errno.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MEM_ADDR UINT64_C(0x100000000) /* for the device */
#define ADMIN_ENTRIES 32

#define PCI_COMMAND 0x04
#define PCI_COMMAND_MEMORY_MASTER 0x0006
#define PCI_CAPABILITIES 0x34
#define PCI_CAP_MSIX 0x11
#define PCI_CAP_EXPRESS 0x10
#define MSIX_ENABLE 0x8000

void host_fail(const char *fmt, ...)
{
    va_list ap;

    fputs("nvme-host: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

uint64_t host_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Memory */

void *host_alloc(struct host *host, uint64_t size)
{
    void *at = host->mem + host->mem_used;

    size = (size + HOST_PAGE - 1) & ~(uint64_t)(HOST_PAGE - 1);
    if (size > host->mem_size - host->mem_used) {
        return NULL;
    }
    host->mem_used += size;
    return at;
}

uint64_t host_addr(const struct host *host, const void *at)
{
    return MEM_ADDR + (uint64_t)((const uint8_t *)at - host->mem);
}

static void alloc_queue(struct host *host, struct host_queue *queue, uint16_t qid, unsigned entries)
{
    queue->qid = qid;
    queue->entries = (uint16_t)entries;
    queue->sq = host_alloc(host, entries * sizeof(*queue->sq));
    queue->cq = host_alloc(host, entries * sizeof(*queue->cq));
    queue->sq_addr = host_addr(host, queue->sq);
    queue->cq_addr = host_addr(host, queue->cq);
}

static uint64_t queue_bytes(unsigned entries)
{
    return entries * (sizeof(struct nvme_command) + sizeof(struct nvme_completion)) +
           (uint64_t)2 * HOST_PAGE;
}

bool host_init(struct host *host, const char *path, unsigned nr_queues, unsigned entries,
               uint64_t data_size)
{
    *host = (struct host){ .path = path, .mem_fd = -1, .nr_queues = nr_queues };
    host->mem_size = queue_bytes(ADMIN_ENTRIES) + 3 * HOST_PAGE + nr_queues * queue_bytes(entries) +
                     data_size;
    host->mem_size = (host->mem_size + HOST_PAGE - 1) & ~(uint64_t)(HOST_PAGE - 1);
    host->mem_fd = memfd_create("nvme-host", MFD_CLOEXEC);
    if (host->mem_fd < 0 || ftruncate(host->mem_fd, (off_t)host->mem_size) < 0) {
        host_fail("cannot make a memory file of %llu bytes: %s",
                  (unsigned long long)host->mem_size, strerror(errno));
        return false;
    }
    host->mem = mmap(NULL, host->mem_size, PROT_READ | PROT_WRITE, MAP_SHARED, host->mem_fd, 0);
    if (host->mem == MAP_FAILED) {
        host->mem = NULL;
        host_fail("cannot map the memory file: %s", strerror(errno));
        return false;
    }

    alloc_queue(host, &host->admin, 0, ADMIN_ENTRIES);
    host->admin_page = host_alloc(host, HOST_PAGE);
    host->shadows = host_alloc(host, HOST_PAGE);
    host->wanted = host_alloc(host, HOST_PAGE);
    for (unsigned qid = 1; qid <= nr_queues; qid++) {
        alloc_queue(host, &host->queues[qid], (uint16_t)qid, entries);
    }
    for (; host->nr_irqs <= nr_queues; host->nr_irqs++) {
        host->irq_fds[host->nr_irqs] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (host->irq_fds[host->nr_irqs] < 0) {
            host_fail("cannot make an eventfd: %s", strerror(errno));
            return false;
        }
    }
    return true;
}

void host_destroy(struct host *host)
{
    host_detach(host);
    for (unsigned i = 0; i < host->nr_irqs; i++) {
        close(host->irq_fds[i]);
    }
    if (host->mem != NULL) {
        munmap(host->mem, host->mem_size);
    }
    if (host->mem_fd >= 0) {
        close(host->mem_fd);
    }
}

/* Registers */

static bool region_read(struct host *host, unsigned region, uint64_t offset, void *data, size_t len)
{
    if (vfuc_region_read(host->client, region, offset, data, len) < 0) {
        host_fail("cannot read %zu bytes of region %u at 0x%llx: %s", len, region,
                  (unsigned long long)offset, strerror(errno));
        return false;
    }
    return true;
}

static bool region_write(struct host *host, unsigned region, uint64_t offset, uint64_t value,
                         size_t len)
{
    if (vfuc_region_write(host->client, region, offset, &value, len) < 0) {
        host_fail("cannot write %zu bytes of region %u at 0x%llx: %s", len, region,
                  (unsigned long long)offset, strerror(errno));
        return false;
    }
    return true;
}

static bool config_write(struct host *host, uint64_t offset, uint64_t value, size_t len)
{
    return region_write(host, VFIO_PCI_CONFIG_REGION_INDEX, offset, value, len);
}

static bool reg_write(struct host *host, enum nvme_register reg, uint64_t value, size_t len)
{
    return region_write(host, VFIO_PCI_BAR0_REGION_INDEX, reg, value, len);
}

static bool wait_ready(struct host *host, uint32_t ready)
{
    uint64_t deadline = host_now_ms() + HOST_TIMEOUT_MS;
    uint32_t csts;

    do {
        if (!region_read(host, VFIO_PCI_BAR0_REGION_INDEX, NVME_REG_CSTS, &csts, sizeof(csts))) {
            return false;
        }
        if ((csts & NVME_CSTS_CFS) != 0 && ready) {
            host_fail("controller fatal status");
            return false;
        }
        if ((csts & NVME_CSTS_RDY) == ready) {
            return true;
        }
        poll(NULL, 0, 1);
    } while (host_now_ms() < deadline);
    host_fail("CSTS.RDY does not become %u", ready);
    return false;
}

/* Attaching */

/* Returns its offset, 0 when there is none. */
static unsigned find_capability(struct host *host, uint8_t id)
{
    uint8_t config[256];
    unsigned at;

    if (!region_read(host, VFIO_PCI_CONFIG_REGION_INDEX, 0, config, sizeof(config))) {
        return 0;
    }
    at = config[PCI_CAPABILITIES];
    for (unsigned hops = 0; at >= 0x40 && at < 0xfe && hops < 48; hops++) {
        if (config[at] == id) {
            return at;
        }
        at = config[at + 1];
    }
    host_fail("no PCI capability 0x%02x", id);
    return 0;
}

static bool enable_msix(struct host *host)
{
    unsigned at = find_capability(host, PCI_CAP_MSIX);
    uint32_t table;

    if (at == 0 ||
        !region_read(host, VFIO_PCI_CONFIG_REGION_INDEX, at + 4, &table, sizeof(table))) {
        return false;
    }
    for (unsigned vector = 0; vector < host->nr_irqs; vector++) {
        uint64_t entry = (table & ~7u) + vector * 16;

        if (!region_write(host, table & 7, entry, 0xfee00000, 4) ||
            !region_write(host, table & 7, entry + 4, 0, 4) ||
            !region_write(host, table & 7, entry + 8, 0x20 + vector, 4) ||
            !region_write(host, table & 7, entry + 12, 0, 4)) {
            return false;
        }
    }
    if (vfuc_irq_set_eventfds(host->client, VFIO_PCI_MSIX_IRQ_INDEX, 0, host->nr_irqs,
                              host->irq_fds) < 0) {
        host_fail("cannot set %u MSI-X eventfds: %s", host->nr_irqs, strerror(errno));
        return false;
    }
    return config_write(host, at + 2, MSIX_ENABLE, 2);
}

/* The doorbells, if the device lets its client map them. */
static void map_doorbells(struct host *host)
{
    vfuc_region_info_t info;
    void *map;

    if (vfuc_region_info(host->client, VFIO_PCI_BAR0_REGION_INDEX, &info) < 0 || info.fd < 0) {
        return;
    }
    for (uint32_t i = 0; i < info.nr_areas && host->doorbell_map == NULL; i++) {
        const vfuc_mmap_area_t *area = &info.areas[i];

        if (area->offset > NVME_REG_END || area->offset + area->size < NVME_REG_END + HOST_PAGE) {
            continue;
        }
        map = mmap(NULL, area->size, PROT_READ | PROT_WRITE, MAP_SHARED, info.fd,
                   (off_t)(info.fd_offset + area->offset));
        if (map != MAP_FAILED) {
            host->doorbell_map = map;
            host->doorbell_map_size = area->size;
            host->doorbells = (uint32_t *)((uint8_t *)map + (NVME_REG_END - area->offset));
        }
    }
    close(info.fd);
}

/* On the client's receiver thread. Wakes who waits for an interrupt, as none comes any more. */
static void on_lost(void *pvt, int error)
{
    struct host *host = pvt;

    (void)error;
    atomic_store(&host->lost, true);
    for (unsigned i = 0; i < host->nr_irqs; i++) {
        (void)vfuc_eventfd_signal(host->irq_fds[i]);
    }
}

bool host_lost(const struct host *host)
{
    if (atomic_load(&host->lost)) {
        host_fail("the server at %s has gone", host->path);
        return true;
    }
    return false;
}

bool host_attach(struct host *host)
{
    const vfuc_options_t options = { .lost = on_lost, .pvt = host };
    const vfuc_memory_t memory = {
        .iova = MEM_ADDR,
        .size = host->mem_size,
        .prot = PROT_READ | PROT_WRITE,
        .fd = host->mem_fd,
        .vaddr = host->mem,
    };

    atomic_store(&host->lost, false);
    host->client = vfuc_connect(host->path, &options);
    if (host->client == NULL) {
        host_fail("cannot attach to %s: %s", host->path, strerror(errno));
        return false;
    }
    if (vfuc_dma_map(host->client, &memory) < 0) {
        host_fail("cannot map memory into the device: %s", strerror(errno));
        return false;
    }
    map_doorbells(host);
    return !host->use_bells || host_open_bells(host);
}

void host_detach(struct host *host)
{
    if (host->doorbell_map != NULL) {
        munmap(host->doorbell_map, host->doorbell_map_size);
        host->doorbell_map = NULL;
        host->doorbells = NULL;
    }
    host_close_bells(host);
    vfuc_disconnect(host->client);
    host->client = NULL;
}

/* Queues */

static void reset_queue(struct host *host, struct host_queue *queue)
{
    unsigned sq = 2u * queue->qid;

    host->shadows[sq] = host->shadows[sq + 1] = 0;
    host->wanted[sq] = host->wanted[sq + 1] = 0;
    memset(queue->cq, 0, queue->entries * sizeof(*queue->cq));
    queue->tail = queue->head = 0;
    queue->rung_tail = queue->rung_head = 0;
    queue->phase = 1;
}

void host_put(struct host_queue *queue, const struct nvme_command *command)
{
    queue->sq[queue->tail] = *command;
    queue->tail = (uint16_t)((queue->tail + 1) % queue->entries);
}

bool host_pop(struct host_queue *queue, struct nvme_completion *completion)
{
    struct nvme_completion *entry = &queue->cq[queue->head];

    if ((__atomic_load_n(&entry->status, __ATOMIC_ACQUIRE) & 1) != queue->phase) {
        return false;
    }
    *completion = *entry;
    queue->head = (uint16_t)((queue->head + 1) % queue->entries);
    if (queue->head == 0) {
        queue->phase ^= 1;
    }
    return true;
}

/* Has the value passed the one that the device wants to hear of (NVMe B.5)? */
static bool shadow_passed(struct host *host, unsigned index, uint16_t old, uint16_t value)
{
    uint16_t wanted;

    __atomic_store_n(&host->shadows[index], value, __ATOMIC_SEQ_CST);
    wanted = (uint16_t)__atomic_load_n(&host->wanted[index], __ATOMIC_SEQ_CST);
    return (uint16_t)(value - wanted - 1) < (uint16_t)(value - old);
}

/* Returns whether the device has to be told by a message. */
static bool has_to_ring(struct host *host, unsigned index, uint16_t old, uint16_t value)
{
    if (old == value) {
        return false;
    }
    if (host->doorbells != NULL) {
        __atomic_store_n(&host->doorbells[index], value, __ATOMIC_RELEASE);
        return false;
    }
    return !host->shadows_on || index < 2 || shadow_passed(host, index, old, value);
}

static vfuc_write_t doorbell_write(unsigned index, uint32_t value)
{
    vfuc_write_t write = {
        .region = VFIO_PCI_BAR0_REGION_INDEX,
        .offset = NVME_REG_END + (uint64_t)index * sizeof(value),
        .count = sizeof(value),
    };

    memcpy(write.data, &value, sizeof(value));
    return write;
}

/* By its eventfd, or a message that is put to the others. */
static bool ring(struct host *host, unsigned index, uint16_t value, vfuc_write_t *writes, size_t *n)
{
    if (host->bells.bells[index].value != NULL) {
        return host_ring_bell(host, index, value);
    }
    writes[(*n)++] = doorbell_write(index, value);
    return true;
}

bool host_ring(struct host *host, struct host_queue *queue)
{
    unsigned sq = 2u * queue->qid, cq = sq + 1;
    bool ring_cq = has_to_ring(host, cq, queue->rung_head, queue->head);
    bool ring_sq = has_to_ring(host, sq, queue->rung_tail, queue->tail);
    vfuc_write_t writes[2];
    size_t n = 0;

    queue->rung_head = queue->head;
    queue->rung_tail = queue->tail;
    if ((ring_cq && !ring(host, cq, queue->head, writes, &n)) ||
        (ring_sq && !ring(host, sq, queue->tail, writes, &n))) {
        return false;
    }
    if (n > 0 && vfuc_region_post_many(host->client, writes, n) < 0) {
        host_fail("cannot ring the doorbells of queue %u: %s", queue->qid, strerror(errno));
        return false;
    }
    return true;
}

void host_set_prps(const struct host *host, struct nvme_command *command, const void *buffer,
                   uint64_t len, uint64_t *list)
{
    uint64_t addr = host_addr(host, buffer);
    uint64_t end = addr + len;
    uint64_t page = (addr | (HOST_PAGE - 1)) + 1;
    size_t n = 0;

    command->prp1 = addr;
    command->prp2 = 0;
    if (end <= page) {
        return;
    }
    if (end <= page + HOST_PAGE) {
        command->prp2 = page;
        return;
    }
    for (; page < end; page += HOST_PAGE) {
        list[n++] = page;
    }
    command->prp2 = host_addr(host, list);
}

/* Returns false when it did not succeed, whatever the reason. */
static bool admin(struct host *host, struct nvme_command *command, uint32_t *result)
{
    uint64_t deadline = host_now_ms() + HOST_TIMEOUT_MS;
    struct nvme_completion completion;

    command->cid++;
    host_put(&host->admin, command);
    if (!host_ring(host, &host->admin)) {
        return false;
    }
    while (!host_pop(&host->admin, &completion)) {
        struct pollfd pfd = { .fd = host->irq_fds[0], .events = POLLIN };
        uint64_t count;

        if (host_lost(host)) {
            return false;
        }
        if (host_now_ms() > deadline) {
            host_fail("no completion of admin command 0x%02x", command->opcode);
            return false;
        }
        poll(&pfd, 1, 1000);
        (void)vfuc_eventfd_take(host->irq_fds[0], &count);
    }
    if (completion.status >> 1 != NVME_SC_SUCCESS) {
        host_fail("admin command 0x%02x, cdw10 0x%x, cdw11 0x%x: status 0x%x", command->opcode,
                  command->cdw10, command->cdw11, completion.status >> 1);
        return false;
    }
    if (result != NULL) {
        *result = completion.result;
    }
    return host_ring(host, &host->admin);
}

static bool identify(struct host *host, enum nvme_cns cns, uint32_t nsid)
{
    struct nvme_command command = {
        .opcode = NVME_ADMIN_IDENTIFY,
        .nsid = nsid,
        .prp1 = host_addr(host, host->admin_page),
        .cdw10 = cns,
    };

    return admin(host, &command, NULL);
}

static bool identify_all(struct host *host)
{
    const struct nvme_identify_controller *controller =
        (struct nvme_identify_controller *)host->admin_page;
    const struct nvme_identify_namespace *ns = (struct nvme_identify_namespace *)host->admin_page;

    if (!identify(host, NVME_CNS_CONTROLLER, 0)) {
        return false;
    }
    host->max_transfer = controller->mdts == 0 || controller->mdts > 8
                             ? 1u << 20
                             : HOST_PAGE << controller->mdts;
    host->has_zeroes = (controller->oncs & NVME_ONCS_WRITE_ZEROES) != 0;
    host->has_compare = (controller->oncs & NVME_ONCS_COMPARE) != 0;
    host->has_shadows = (controller->oacs & NVME_OACS_DOORBELL_BUFFER) != 0;
    if (!identify(host, NVME_CNS_NAMESPACE, 1)) {
        return false;
    }
    host->blocks = ns->nsze;
    host->block_size = 1u << ns->lbaf[ns->flbas & 15].lbads;
    return true;
}

static bool create_queue(struct host *host, struct host_queue *queue)
{
    struct nvme_command cq = {
        .opcode = NVME_ADMIN_CREATE_CQ,
        .prp1 = queue->cq_addr,
        .cdw10 = (uint32_t)(queue->entries - 1) << 16 | queue->qid,
        .cdw11 = (uint32_t)queue->qid << 16 | NVME_QUEUE_CONTIGUOUS | NVME_CQ_INTERRUPTS,
    };
    struct nvme_command sq = {
        .opcode = NVME_ADMIN_CREATE_SQ,
        .prp1 = queue->sq_addr,
        .cdw10 = cq.cdw10,
        .cdw11 = (uint32_t)queue->qid << 16 | NVME_QUEUE_CONTIGUOUS,
    };

    reset_queue(host, queue);
    return admin(host, &cq, NULL) && admin(host, &sq, NULL);
}

static bool create_queues(struct host *host)
{
    for (unsigned qid = 1; qid <= host->nr_queues; qid++) {
        if (!create_queue(host, &host->queues[qid])) {
            return false;
        }
    }
    return true;
}

bool host_renew_queues(struct host *host)
{
    for (unsigned qid = 1; qid <= host->nr_queues; qid++) {
        struct nvme_command sq = { .opcode = NVME_ADMIN_DELETE_SQ, .cdw10 = qid };
        struct nvme_command cq = { .opcode = NVME_ADMIN_DELETE_CQ, .cdw10 = qid };

        if (!admin(host, &sq, NULL) || !admin(host, &cq, NULL)) {
            return false;
        }
    }
    return create_queues(host);
}

/* If they are wanted, and there is no better way. */
static bool configure_shadows(struct host *host)
{
    struct nvme_command command = {
        .opcode = NVME_ADMIN_DOORBELL_BUFFER,
        .prp1 = host_addr(host, host->shadows),
        .prp2 = host_addr(host, host->wanted),
    };

    if (!host->use_shadows || !host->has_shadows || host->doorbells != NULL) {
        return true;
    }
    host->shadows_on = admin(host, &command, NULL);
    return host->shadows_on;
}

bool host_start(struct host *host)
{
    struct nvme_command queues = {
        .opcode = NVME_ADMIN_SET_FEATURES,
        .cdw10 = NVME_FEAT_QUEUES,
        .cdw11 = (host->nr_queues - 1) << 16 | (host->nr_queues - 1),
    };
    uint32_t cc = 6u << 16 | 4u << 20;
    uint32_t allocated;

    if (!config_write(host, PCI_COMMAND, PCI_COMMAND_MEMORY_MASTER, 2) || !host_stop(host) ||
        !enable_msix(host)) {
        return false;
    }
    host->shadows_on = false;
    reset_queue(host, &host->admin);
    if (!reg_write(host, NVME_REG_AQA, (ADMIN_ENTRIES - 1) << 16 | (ADMIN_ENTRIES - 1), 4) ||
        !reg_write(host, NVME_REG_ASQ, host->admin.sq_addr, 8) ||
        !reg_write(host, NVME_REG_ACQ, host->admin.cq_addr, 8) ||
        !reg_write(host, NVME_REG_CC, cc | NVME_CC_EN, 4) || !wait_ready(host, 1) ||
        !identify_all(host) || !admin(host, &queues, &allocated)) {
        return false;
    }
    if ((allocated & 0xffff) + 1 < host->nr_queues || (allocated >> 16) + 1 < host->nr_queues) {
        host_fail("the controller has fewer than %u queues", host->nr_queues);
        return false;
    }
    return configure_shadows(host) && create_queues(host);
}

bool host_stop(struct host *host)
{
    return reg_write(host, NVME_REG_CC, 0, 4) && wait_ready(host, 0);
}

bool host_function_reset(struct host *host)
{
    unsigned at = find_capability(host, PCI_CAP_EXPRESS);

    return at != 0 && config_write(host, at + 8, 1u << 15, 2);
}

bool host_device_reset(struct host *host)
{
    if (vfuc_reset(host->client) < 0) {
        host_fail("cannot reset the device: %s", strerror(errno));
        return false;
    }
    return true;
}
