/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The NVMe sample behind its registers and queues: a hostile guest, without a client in between. The
 * input is a byte of options and then records: a kind (bit 7: the workers do not run after it), and
 * what follows from the kind. Guest memory is 32 pages from address 0 on, rings first.
 *
 * Whatever happens: the controller comes to rest, and after the guest has gone no queue, no command
 * and no memory is left.
 */
#include "fuzz.h"
#include "resources.h"
#include "threads.h"

#include "../../samples/common/service.h"
#include "device/ctx.h"
#include "nvme.h"
#include "spec.h"

#include <linux/pci_regs.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096u
#define MEMORY_SIZE (32 * PAGE)
#define ENTRIES 64u
#define DISK_SIZE 65536u

enum set_up_option {
    OPTION_ENABLED = 1 << 0, /* the controller is enabled when the records begin */
    OPTION_QUEUES = 1 << 1, /* and has a pair of I/O queues */
    OPTION_SHADOWS = 1 << 2, /* and shadow doorbells */
};

enum record {
    RECORD_COMMAND, /* enum command_flags, a submission queue entry */
    RECORD_MEMORY, /* address (32 bits), length (8 bits), bytes */
    RECORD_REGISTER, /* log2 of the size, offset (16 bits), value (64 bits); bit 2 of the size: read */
    RECORD_CONFIG, /* offset (16 bits), value (16 bits) */
    RECORD_BELL, /* which doorbell, value (16 bits) */
    RECORD_MAPPING, /* which page (bit 7: is unmapped, else mapped), of how many */
    RECORD_TIME, /* milliseconds (16 bits) */
    RECORD_MIGRATE, /* length, pairs of a position (16 bits) and XOR (8 bits) */
    RECORD_KINDS,
};

#define RECORD_MORE 0x80

enum command_flags {
    COMMAND_IO = 1 << 0, /* on the first I/O queue */
    COMMAND_SILENT = 1 << 1, /* without a doorbell */
    COMMAND_WITHIN = 1 << 2, /* its addresses are made to lie within the memory */
    COMMAND_BLOCKS = 1 << 3, /* its namespace exists, its blocks are on the disk */
};

/* Pages of guest memory with a purpose. */
enum page { PAGE_ASQ, PAGE_ACQ, PAGE_SQ, PAGE_CQ, PAGE_SHADOWS, PAGE_WANTED, PAGE_DATA };

static struct nvme nvme;
static struct tape tape;
static uint8_t *memory;
static int memory_fd;
static uint32_t tails[2];

/* In place of the functions without __wrap_: no socket, no signals. */

__typeof__(service_listen) __wrap_service_listen;
__typeof__(service_open_signals) __wrap_service_open_signals;
__typeof__(service_print_log) __wrap_service_print_log;

vfu_ctx_t *__wrap_service_listen(const char *program, const char *path, struct access_rules *rules,
                                 int flags, void *pvt)
{
    (void)program;
    (void)rules;
    return vfu_create_ctx(VFU_TRANS_PIPE, path, flags, pvt, VFU_DEV_TYPE_PCI);
}

int __wrap_service_open_signals(void)
{
    return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

void __wrap_service_print_log(const char *program, int level, const char *msg)
{
    (void)program;
    (void)level;
    REQUIRE(strlen(msg) > 0);
}

/* The guest */

static void access_region(uint32_t region, uint64_t offset, void *data, size_t count, bool write)
{
    ssize_t n;

    pci_sync(&nvme);
    n = region_access_by_client(nvme.ctx, region, data, count, offset, write);
    REQUIRE(n == (ssize_t)count || (n < 0 && n > -4096));
    pci_sync(&nvme);
}

static void write_register(uint64_t offset, uint64_t value, size_t count)
{
    access_region(VFU_PCI_DEV_BAR0_REGION_IDX, offset, &value, count, true);
}

static void write_config(uint64_t offset, uint16_t value)
{
    access_region(VFU_PCI_DEV_CFG_REGION_IDX, offset, &value, sizeof(value), true);
}

static void map_pages(uint64_t first, uint64_t nr)
{
    struct dma_mapping mapping = {
        .prot = PROT_READ | PROT_WRITE,
        .mode = DMA_MODE_MMAP,
        .fd = memory_fd,
        .offset = first * PAGE,
    };
    struct dma_entry *entry;

    if (range_make(first * PAGE, nr * PAGE, &mapping.iova) &&
        dma_map(dma_requester_space(nvme.ctx->dma), &mapping, &entry) >= 0) {
        atomic_fetch_add(&nvme.memory.maps, 1);
        controller_wake(&nvme);
    }
}

static void unmap_pages(uint64_t first, uint64_t nr)
{
    struct range range;

    if (range_make(first * PAGE, nr * PAGE, &range)) {
        atomic_store(&nvme.memory.unmapped_at, nvme_now_ms());
        dma_unmap(dma_requester_space(nvme.ctx->dma), range, NULL, NULL, NULL);
    }
}

static void ring(unsigned queue)
{
    write_register(NVME_REG_END + 8 * queue, tails[queue], 4);
}

static void submit(unsigned queue, const struct nvme_command *command, bool silent)
{
    const unsigned page = queue == 0 ? PAGE_ASQ : PAGE_SQ;

    memcpy(memory + page * PAGE + tails[queue] * sizeof(*command), command, sizeof(*command));
    tails[queue] = (tails[queue] + 1) % ENTRIES;
    memcpy(memory + PAGE_SHADOWS * PAGE + 8 * queue, &tails[queue], sizeof(tails[queue]));
    if (!silent) {
        ring(queue);
    }
}

static void submit_admin(uint8_t opcode, uint64_t prp1, uint64_t prp2, uint32_t cdw10,
                         uint32_t cdw11)
{
    const struct nvme_command command = {
        .opcode = opcode, .prp1 = prp1, .prp2 = prp2, .cdw10 = cdw10, .cdw11 = cdw11
    };

    submit(0, &command, false);
    threads_settle();
}

static void set_up(uint8_t options)
{
    if (options & OPTION_ENABLED) {
        write_config(PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
        write_register(NVME_REG_AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1), 4);
        write_register(NVME_REG_ASQ, PAGE_ASQ * PAGE, 8);
        write_register(NVME_REG_ACQ, PAGE_ACQ * PAGE, 8);
        write_register(NVME_REG_CC, 4 << 20 | 6 << 16 | 1, 4);
        threads_settle();
    }
    if (options & OPTION_QUEUES) {
        submit_admin(NVME_ADMIN_CREATE_CQ, PAGE_CQ * PAGE, 0, (ENTRIES - 1) << 16 | 1, 1);
        submit_admin(NVME_ADMIN_CREATE_SQ, PAGE_SQ * PAGE, 0, (ENTRIES - 1) << 16 | 1, 1 << 16 | 1);
    }
    if (options & OPTION_SHADOWS) {
        submit_admin(NVME_ADMIN_DOORBELL_BUFFER, PAGE_SHADOWS * PAGE, PAGE_WANTED * PAGE, 0, 0);
    }
}

/* Records */

static void do_command(void)
{
    uint8_t flags = tape_u8(&tape);
    struct nvme_command command;

    tape_read(&tape, &command, sizeof(command));
    if (flags & COMMAND_WITHIN) {
        command.prp1 %= MEMORY_SIZE;
        command.prp2 %= MEMORY_SIZE;
    }
    if (flags & COMMAND_BLOCKS) {
        command.nsid = 1;
        command.cdw10 %= DISK_SIZE / 512;
        command.cdw11 = 0;
        command.cdw12 &= ~0xfff0u;
    }
    submit(flags & COMMAND_IO, &command, flags & COMMAND_SILENT);
}

static void do_memory(void)
{
    uint32_t address;
    size_t len;
    const uint8_t *data;

    tape_read(&tape, &address, sizeof(address));
    address %= MEMORY_SIZE;
    len = tape_u8(&tape);
    len = len < MEMORY_SIZE - address ? len : MEMORY_SIZE - address;
    data = tape_bytes(&tape, &len);
    if (len > 0) {
        memcpy(memory + address, data, len);
    }
}

static void do_register(void)
{
    uint8_t size = tape_u8(&tape);
    uint16_t offset = tape_u16(&tape);
    uint64_t value;

    tape_read(&tape, &value, sizeof(value));
    /* What lies outside the region never comes so far. */
    access_region(VFU_PCI_DEV_BAR0_REGION_IDX, offset % (2 * PAGE - 8), &value, 1u << (size & 3),
                  !(size & 4));
}

static void do_config(void)
{
    uint16_t offset = tape_u16(&tape);

    write_config(offset % (PAGE - 2), tape_u16(&tape));
}

static void do_bell(void)
{
    uint8_t which = tape_u8(&tape);

    write_register(NVME_REG_END + 4 * which, tape_u16(&tape), 4);
}

static void do_mapping(void)
{
    uint8_t first = tape_u8(&tape), nr = tape_u8(&tape);

    if (first & 0x80) {
        unmap_pages(first & 0x7f, nr);
    } else if ((first + nr) * PAGE <= MEMORY_SIZE) {
        map_pages(first, nr);
    }
}

/* The controller is moved to where it is, as whoever is in between has changed it. */
static void do_migrate(void)
{
    size_t len = tape_u8(&tape) / 3 * 3, size;
    const uint8_t *patches = tape_bytes(&tape, &len);
    uint8_t *state;

    controller_pause(&nvme);
    state = controller_save(&nvme, &size);
    REQUIRE(state != NULL);
    for (size_t i = 0; i + 3 <= len; i += 3) {
        state[(patches[i] | patches[i + 1] << 8) % size] ^= patches[i + 2];
    }
    controller_reset(&nvme);
    controller_pause(&nvme);
    if (controller_load(&nvme, state, size) == NULL) {
        controller_resume(&nvme);
    } else {
        controller_reset(&nvme);
    }
    free(state);
}

static void play(void)
{
    static void (*const records[RECORD_KINDS])(void) = {
        [RECORD_COMMAND] = do_command, [RECORD_MEMORY] = do_memory,
        [RECORD_REGISTER] = do_register, [RECORD_CONFIG] = do_config,
        [RECORD_BELL] = do_bell, [RECORD_MAPPING] = do_mapping,
        [RECORD_MIGRATE] = do_migrate,
    };
    uint8_t kind = tape_u8(&tape), number = (kind & ~RECORD_MORE) % RECORD_KINDS;

    if (number == RECORD_TIME) {
        threads_pass(tape_u16(&tape) * UINT64_C(1000000));
    } else {
        records[number]();
    }
    if (!(kind & RECORD_MORE)) {
        threads_settle();
    }
}

/* The process */

static void start(void)
{
    nvme.config = (struct nvme_config){
        .socket = "",
        .namespaces = { { .size = DISK_SIZE, .block_size = 512 } },
        .nr_namespaces = 1,
        .nr_workers = 2,
        .nr_queues = 4,
        .memory_grace_ms = 100,
        .log_level = LOG_INFO,
    };
    memory_fd = memfd_create("guest", MFD_CLOEXEC);
    REQUIRE(memory_fd >= 0 && ftruncate(memory_fd, MEMORY_SIZE) == 0);
    memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
    REQUIRE(memory != MAP_FAILED && server_start(&nvme) == 0);
}

static void run(const uint8_t *data, size_t size)
{
    uint8_t options;

    tape = (struct tape){ data, size };
    options = tape_u8(&tape);
    memset(memory, 0, MEMORY_SIZE);
    memset(tails, 0, sizeof(tails));
    map_pages(0, MEMORY_SIZE / PAGE);
    set_up(options);
    while (tape.left > 0) {
        play();
    }
    nvme.ctx->reset(nvme.ctx, VFU_RESET_LOST_CONN);
    threads_settle();
    dma_unmap_all(dma_requester_space(nvme.ctx->dma), NULL, NULL, NULL);
}

static void check_end(void)
{
    for (unsigned i = 0; i < NVME_MAX_QUEUES; i++) {
        REQUIRE(atomic_load(&nvme.sq_owner[i]) == NULL && atomic_load(&nvme.cq_owner[i]) == NULL);
    }
    for (unsigned i = 0; i < nvme.nr_workers; i++) {
        REQUIRE(nvme.workers[i].busy == 0 && nvme.workers[i].nr_free == WORKER_COMMANDS);
    }
    REQUIRE(atomic_load(&nvme.controller.cc) == 0 && atomic_load(&nvme.controller.csts) == 0);
    /* An empty disk for the next input. */
    namespaces_close(&nvme);
    REQUIRE(namespaces_open(&nvme) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool warm;
    unsigned before;

    threads_begin(NULL);
    if (!warm) {
        start();
        run((const uint8_t *)"\7", 1);
        check_end();
        warm = true;
    }
    before = resources_held();
    run(data, size);
    check_end();
    REQUIRE(resources_held() == before);
    threads_end();
    return 0;
}
