/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Random I/O on several queues, of which every byte is checked. Resets and lost connections come
 * while I/O is under way; afterwards each block must hold what was written last, or what was being
 * written when the reset came.
 */

#include "host.h"
#include "run.h"
#include "shadow.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TRANSFER (64u << 10)
#define AREA_SIZE (MAX_TRANSFER + 3 * HOST_PAGE)
#define CANARY 0xa5
#define CANARY_SIZE 64u
#define RESET_EVERY_MS 400 /* at most */
#define PROGRESS_EVERY_MS 1000

enum kind {
    KIND_READ,
    KIND_WRITE,
    KIND_COMPARE,
    KIND_ZEROES,
    KIND_FLUSH,
    NR_KINDS
};

static const uint8_t opcodes[NR_KINDS] = {
    [KIND_READ] = NVME_IO_READ,       [KIND_WRITE] = NVME_IO_WRITE,
    [KIND_COMPARE] = NVME_IO_COMPARE, [KIND_ZEROES] = NVME_IO_WRITE_ZEROES,
    [KIND_FLUSH] = NVME_IO_FLUSH,
};

struct io {
    bool active;
    enum kind kind;
    uint64_t first;
    uint32_t count;
    uint32_t gen; /* written */
    uint8_t *area; /* the buffer is somewhere in it */
    uint64_t *list;
    uint8_t *data;
};

struct verify {
    const struct run_options *options;
    struct host host;
    struct shadow shadow;
    struct io *ios; /* depth for each queue: the index is the command's identifier */
    unsigned in_flight[HOST_MAX_QUEUES + 1];
    uint64_t random;
    uint64_t done, resets;
    uint64_t last_done_ms, next_reset_ms, next_progress_ms, start_ms;
    bool final; /* every block is read once */
    uint64_t next_final;
};

static struct io *io_of(struct verify *v, unsigned qid, unsigned index)
{
    return &v->ios[(qid - 1) * v->options->depth + index];
}

static bool writes(const struct io *io)
{
    return io->kind == KIND_WRITE || io->kind == KIND_ZEROES;
}

/* Choosing */

static enum kind choose_kind(struct verify *v)
{
    uint64_t n = random_below(&v->random, 100);

    if (v->final || n < 45) {
        return KIND_READ;
    }
    if (n < 85) {
        return KIND_WRITE;
    }
    if (n < 92 && v->host.has_compare) {
        return KIND_COMPARE;
    }
    return n < 98 && v->host.has_zeroes ? KIND_ZEROES : KIND_FLUSH;
}

static uint32_t most_blocks(const struct verify *v)
{
    uint32_t most = v->host.max_transfer < MAX_TRANSFER ? v->host.max_transfer : MAX_TRANSFER;

    most /= v->host.block_size;
    return v->shadow.count < most ? (uint32_t)v->shadow.count : most;
}

/* False: not now. */
static bool choose(struct verify *v, struct io *io)
{
    uint32_t most = most_blocks(v);

    io->kind = choose_kind(v);
    io->count = 0;
    io->first = 0;
    if (io->kind == KIND_FLUSH) {
        return true;
    }
    if (v->final) {
        uint64_t left = v->shadow.count - v->next_final;

        io->first = v->next_final;
        io->count = left < most ? (uint32_t)left : most;
        v->next_final += io->count;
        return io->count > 0;
    }
    io->count = 1 + (uint32_t)random_below(&v->random, random_below(&v->random, 2) ? most : 8);
    io->count = io->count < most ? io->count : most;
    io->first = random_below(&v->random, v->shadow.count - io->count + 1);
    if (io->kind == KIND_COMPARE && !shadow_known(&v->shadow, io->first, io->count)) {
        return false;
    }
    return writes(io) ? shadow_may_write(&v->shadow, io->first, io->count)
                      : shadow_may_read(&v->shadow, io->first, io->count);
}

/* Buffers start at any dword. */
static void place(struct verify *v, struct io *io)
{
    size_t len = (size_t)io->count * v->host.block_size;

    io->data = io->area + CANARY_SIZE + random_below(&v->random, HOST_PAGE / 4) * 4;
    memset(io->data - CANARY_SIZE, CANARY, len + 2 * CANARY_SIZE);
    if (io->kind == KIND_WRITE) {
        shadow_fill(&v->shadow, io->first, io->count, io->gen, io->data);
    } else if (io->kind == KIND_COMPARE) {
        shadow_expected(&v->shadow, io->first, io->count, io->data);
    }
}

static void submit(struct verify *v, struct host_queue *queue, unsigned index, struct io *io)
{
    uint64_t lba = v->shadow.first + io->first;
    struct nvme_command command = {
        .opcode = opcodes[io->kind],
        .cid = (uint16_t)index,
        .nsid = 1,
    };

    io->gen = GEN_NONE;
    if (writes(io)) {
        io->gen = io->kind == KIND_ZEROES ? (uint32_t)GEN_ZEROS : v->shadow.next_gen++;
    }
    if (io->kind != KIND_FLUSH) {
        command.cdw10 = (uint32_t)lba;
        command.cdw11 = (uint32_t)(lba >> 32);
        command.cdw12 = io->count - 1;
        if (writes(io) && random_below(&v->random, 50) == 0) {
            command.cdw12 |= NVME_RW_FUA;
        }
        shadow_begin(&v->shadow, io->first, io->count, writes(io));
    }
    if (io->kind == KIND_READ || io->kind == KIND_WRITE || io->kind == KIND_COMPARE) {
        place(v, io);
        host_set_prps(&v->host, &command, io->data, (uint64_t)io->count * v->host.block_size,
                      io->list);
    }
    io->active = true;
    v->in_flight[queue->qid]++;
    host_put(queue, &command);
}

static void submit_more(struct verify *v, struct host_queue *queue)
{
    for (unsigned i = 0; i < v->options->depth; i++) {
        struct io *io = io_of(v, queue->qid, i);

        if (host_queue_full(queue, v->in_flight[queue->qid])) {
            return;
        }
        if (!io->active && choose(v, io)) {
            submit(v, queue, i, io);
        }
    }
}

/* Completing */

static bool all_canary(const uint8_t *at)
{
    for (size_t i = 0; i < CANARY_SIZE; i++) {
        if (at[i] != CANARY) {
            return false;
        }
    }
    return true;
}

static bool check_read(struct verify *v, const struct io *io)
{
    size_t len = (size_t)io->count * v->host.block_size;
    uint32_t good = shadow_check(&v->shadow, io->first, io->count, io->data);

    if (good < io->count) {
        uint64_t block = io->first + good;

        host_fail("block %llu is wrong: written last was generation %u, perhaps %u (read of %u "
                  "blocks from %llu on)",
                  (unsigned long long)(v->shadow.first + block), v->shadow.blocks[block].gen,
                  v->shadow.blocks[block].maybe, io->count,
                  (unsigned long long)(v->shadow.first + io->first));
        return false;
    }
    if (!all_canary(io->data - CANARY_SIZE) || !all_canary(io->data + len)) {
        host_fail("a read of %zu bytes to 0x%llx has written beside its buffer", len,
                  (unsigned long long)host_addr(&v->host, io->data));
        return false;
    }
    return true;
}

static bool complete(struct verify *v, struct host_queue *queue,
                     const struct nvme_completion *completion)
{
    unsigned status = completion->status >> 1;
    struct io *io;

    if (completion->cid >= v->options->depth ||
        !io_of(v, queue->qid, completion->cid)->active) {
        host_fail("queue %u: completion of command %u, which is not under way", queue->qid,
                  completion->cid);
        return false;
    }
    io = io_of(v, queue->qid, completion->cid);
    io->active = false;
    v->in_flight[queue->qid]--;
    v->done++;
    if (status != NVME_SC_SUCCESS) {
        host_fail("queue %u: opcode 0x%02x, %u blocks from %llu on: status 0x%x", queue->qid,
                  opcodes[io->kind], io->count, (unsigned long long)(v->shadow.first + io->first),
                  status);
        return false;
    }
    if (io->kind == KIND_READ && !check_read(v, io)) {
        return false;
    }
    if (io->kind != KIND_FLUSH) {
        shadow_end(&v->shadow, io->first, io->count, io->gen);
    }
    return true;
}

/* Returns how many completions there were, or -1. */
static int serve(struct verify *v, struct host_queue *queue, bool more)
{
    struct nvme_completion completion;
    int n = 0;

    for (; host_pop(queue, &completion); n++) {
        if (!complete(v, queue, &completion)) {
            return -1;
        }
    }
    if (more) {
        submit_more(v, queue);
    }
    return host_ring(&v->host, queue) ? n : -1;
}

static int serve_all(struct verify *v, bool more)
{
    int all = 0;

    for (unsigned qid = 1; qid <= v->host.nr_queues; qid++) {
        int n = serve(v, &v->host.queues[qid], more);

        if (n < 0) {
            return -1;
        }
        all += n;
    }
    if (all > 0) {
        v->last_done_ms = host_now_ms();
    }
    return all;
}

static unsigned all_in_flight(const struct verify *v)
{
    unsigned n = 0;

    for (unsigned qid = 1; qid <= v->host.nr_queues; qid++) {
        n += v->in_flight[qid];
    }
    return n;
}

/* Sleeps until an interrupt or for 100 ms. */
static bool wait_for_interrupts(struct verify *v)
{
    struct pollfd fds[HOST_MAX_QUEUES + 1];
    uint64_t count;

    for (unsigned i = 0; i < v->host.nr_irqs; i++) {
        fds[i] = (struct pollfd){ .fd = v->host.irq_fds[i], .events = POLLIN };
    }
    if (!v->options->spin && poll(fds, v->host.nr_irqs, 100) > 0) {
        for (unsigned i = 0; i < v->host.nr_irqs; i++) {
            if (fds[i].revents != 0) {
                (void)vfuc_eventfd_take(fds[i].fd, &count);
            }
        }
    }
    if (host_lost(&v->host)) {
        return false;
    }
    if (all_in_flight(v) > 0 && host_now_ms() - v->last_done_ms > HOST_TIMEOUT_MS) {
        host_fail("%u commands under way, and none has ended for %u ms", all_in_flight(v),
                  HOST_TIMEOUT_MS);
        return false;
    }
    return true;
}

static bool drain(struct verify *v)
{
    while (all_in_flight(v) > 0) {
        int n = serve_all(v, false);

        if (n < 0 || (n == 0 && !wait_for_interrupts(v))) {
            return false;
        }
    }
    return true;
}

/* Resets */

static void abandon(struct verify *v)
{
    for (unsigned i = 0; i < v->host.nr_queues * v->options->depth; i++) {
        struct io *io = &v->ios[i];

        if (io->active && io->kind != KIND_FLUSH) {
            shadow_abandon(&v->shadow, io->first, io->count, io->gen);
        }
        io->active = false;
    }
    memset(v->in_flight, 0, sizeof(v->in_flight));
}

static bool reset_controller(struct verify *v)
{
    return host_stop(&v->host) && host_start(&v->host);
}

static bool reset_function(struct verify *v)
{
    return host_function_reset(&v->host) && host_start(&v->host);
}

static bool reset_device(struct verify *v)
{
    return host_device_reset(&v->host) && host_start(&v->host);
}

static bool reattach(struct verify *v)
{
    host_detach(&v->host);
    return host_attach(&v->host) && host_start(&v->host);
}

static bool renew_queues(struct verify *v)
{
    return drain(v) && host_renew_queues(&v->host);
}

static bool reset(struct verify *v)
{
    static bool (*const resets[])(struct verify *) = { reset_controller, reset_function,
                                                       reset_device, reattach, renew_queues };
    uint64_t kind = random_below(&v->random, sizeof(resets) / sizeof(*resets));

    v->host.use_shadows = random_below(&v->random, 2) != 0;
    if (!resets[kind](v)) {
        return false;
    }
    abandon(v);
    v->resets++;
    v->last_done_ms = host_now_ms();
    v->next_reset_ms = v->last_done_ms + 1 + random_below(&v->random, RESET_EVERY_MS);
    return true;
}

static void progress(struct verify *v, const char *what)
{
    uint64_t now = host_now_ms();

    printf("%s%llu s: %llu commands, %llu resets\n", what,
           (unsigned long long)((now - v->start_ms) / 1000), (unsigned long long)v->done,
           (unsigned long long)v->resets);
    fflush(stdout);
    v->next_progress_ms = now + PROGRESS_EVERY_MS;
}

static bool run_random(struct verify *v)
{
    uint64_t end = v->start_ms + (uint64_t)v->options->seconds * 1000;

    for (;;) {
        uint64_t now = host_now_ms();
        int n;

        if (now >= end) {
            return drain(v);
        }
        if (now >= v->next_progress_ms) {
            progress(v, "");
        }
        if (v->options->resets && now >= v->next_reset_ms && !reset(v)) {
            return false;
        }
        n = serve_all(v, true);
        if (n < 0 || (n == 0 && !wait_for_interrupts(v))) {
            return false;
        }
    }
}

static bool read_everything(struct verify *v)
{
    v->final = true;
    v->last_done_ms = host_now_ms();
    while (v->next_final < v->shadow.count || all_in_flight(v) > 0) {
        int n = serve_all(v, true);

        if (n < 0 || (n == 0 && !wait_for_interrupts(v))) {
            return false;
        }
    }
    return true;
}

static bool prepare(struct verify *v)
{
    unsigned nr = v->options->queues * v->options->depth;
    unsigned entries = v->options->depth + 1;

    if (!host_init(&v->host, v->options->path, v->options->queues, entries,
                   (uint64_t)nr * (AREA_SIZE + HOST_PAGE))) {
        return false;
    }
    v->host.use_bells = v->options->ioeventfd;
    if (!host_attach(&v->host) || !host_start(&v->host)) {
        return false;
    }
    v->ios = calloc(nr, sizeof(*v->ios));
    if (v->ios == NULL || !shadow_init(&v->shadow, v->host.blocks, v->host.block_size)) {
        host_fail("no memory");
        return false;
    }
    for (unsigned i = 0; i < nr; i++) {
        v->ios[i].area = host_alloc(&v->host, AREA_SIZE);
        v->ios[i].list = host_alloc(&v->host, HOST_PAGE);
    }
    return true;
}

int run_verify(const struct run_options *options)
{
    struct verify v = { .options = options, .random = options->seed };
    bool ok = prepare(&v);

    if (ok) {
        v.start_ms = v.last_done_ms = host_now_ms();
        v.next_progress_ms = v.start_ms + PROGRESS_EVERY_MS;
        v.next_reset_ms = v.start_ms + RESET_EVERY_MS;
        ok = run_random(&v) && read_everything(&v);
        progress(&v, ok ? "verified, " : "FAILED, ");
    }
    shadow_destroy(&v.shadow);
    free(v.ios);
    host_destroy(&v.host);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
