/* SPDX-License-Identifier: BSD-3-Clause */
/* 4 KiB at random places, a fixed number under way. */

#include "host.h"
#include "run.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define IO_SIZE 4096u
#define REMAP_ADDR 0x800000000000u /* where nothing else is mapped */
#define REMAP_ROUNDS 10000u

struct bench {
    const struct run_options *options;
    struct host host;
    uint8_t *buffers; /* one for each command under way */
    uint64_t random;
    uint64_t places; /* of IO_SIZE bytes in the namespace */
    uint64_t done;
};

/* What a virtual machine monitor does when the guest's IOMMU changes: it waits for the server. */
static bool remap(struct bench *b, unsigned index, bool map)
{
    uint8_t *page = b->buffers + (size_t)index * IO_SIZE;
    const vfuc_memory_t memory = {
        .iova = REMAP_ADDR + (uint64_t)index * IO_SIZE,
        .size = IO_SIZE,
        .prot = PROT_READ | PROT_WRITE,
        .fd = b->host.mem_fd,
        .fd_offset = (uint64_t)(page - b->host.mem),
        .vaddr = page,
    };
    int err = map ? vfuc_dma_map(b->host.client, &memory)
                  : vfuc_dma_unmap(b->host.client, &memory);

    if (err < 0) {
        host_fail("cannot %s a page: %s", map ? "map" : "unmap", strerror(errno));
    }
    return err == 0;
}

/* How often a page can be mapped and unmapped: more commands than that are not to be had. */
static bool measure_remap(struct bench *b)
{
    uint64_t start = host_now_ms(), elapsed_ms;

    for (unsigned i = 0; i < REMAP_ROUNDS; i++) {
        if (!remap(b, 0, true) || !remap(b, 0, false)) {
            return false;
        }
    }
    elapsed_ms = host_now_ms() - start;
    printf("map and unmap alone: %.0f a second\n",
           REMAP_ROUNDS * 1000.0 / (double)(elapsed_ms > 0 ? elapsed_ms : 1));
    return true;
}

static bool submit(struct bench *b, struct host_queue *queue, unsigned index)
{
    uint32_t blocks = IO_SIZE / b->host.block_size;
    uint64_t lba = random_below(&b->random, b->places) * blocks;
    struct nvme_command command = {
        .opcode = b->options->writes ? NVME_IO_WRITE : NVME_IO_READ,
        .cid = (uint16_t)index,
        .nsid = 1,
        .prp1 = b->options->remap ? REMAP_ADDR + (uint64_t)index * IO_SIZE
                                  : host_addr(&b->host, b->buffers + (size_t)index * IO_SIZE),
        .cdw10 = (uint32_t)lba,
        .cdw11 = (uint32_t)(lba >> 32),
        .cdw12 = blocks - 1,
    };

    if (b->options->remap && !remap(b, index, true)) {
        return false;
    }
    host_put(queue, &command);
    return true;
}

/* Returns how many completions there were, or -1. */
static int serve(struct bench *b, struct host_queue *queue)
{
    struct nvme_completion completion;
    int n = 0;

    for (; host_pop(queue, &completion); n++) {
        if (completion.status >> 1 != NVME_SC_SUCCESS) {
            host_fail("command %u: status 0x%x", completion.cid, completion.status >> 1);
            return -1;
        }
        if ((b->options->remap && !remap(b, completion.cid, false)) ||
            !submit(b, queue, completion.cid)) {
            return -1;
        }
    }
    b->done += (unsigned)n;
    return host_ring(&b->host, queue) ? n : -1;
}

static bool sleep_for_interrupt(struct host *host, unsigned qid)
{
    struct pollfd pfd = { .fd = host->irq_fds[qid], .events = POLLIN };
    uint64_t count;

    if (poll(&pfd, 1, HOST_TIMEOUT_MS) <= 0) {
        host_fail("no interrupt");
        return false;
    }
    (void)vfuc_eventfd_take(pfd.fd, &count);
    return !host_lost(host);
}

static bool wait_for_completions(struct bench *b)
{
    return b->options->spin ? !host_lost(&b->host) : sleep_for_interrupt(&b->host, 1);
}

static bool run(struct bench *b, uint64_t *elapsed_ms)
{
    struct host_queue *queue = &b->host.queues[1];
    uint64_t start = host_now_ms();
    uint64_t end = start + (uint64_t)b->options->seconds * 1000;

    for (unsigned i = 0; i < b->options->depth; i++) {
        if (!submit(b, queue, i)) {
            return false;
        }
    }
    if (!host_ring(&b->host, queue)) {
        return false;
    }
    for (;;) {
        int n = serve(b, queue);

        if (n < 0 || (n == 0 && !wait_for_completions(b))) {
            return false;
        }
        *elapsed_ms = host_now_ms() - start;
        if (start + *elapsed_ms >= end) {
            return true;
        }
    }
}

static bool prepare(struct bench *b)
{
    uint64_t size = (uint64_t)b->options->depth * IO_SIZE;

    if (!host_init(&b->host, b->options->path, 1, b->options->depth + 1, size)) {
        return false;
    }
    b->host.use_shadows = true;
    b->host.use_bells = b->options->ioeventfd;
    if (!host_attach(&b->host) || !host_start(&b->host)) {
        return false;
    }
    b->buffers = host_alloc(&b->host, size);
    b->places = b->host.blocks * b->host.block_size / IO_SIZE;
    if (b->places == 0) {
        host_fail("the namespace is too small");
        return false;
    }
    return !b->options->remap || measure_remap(b);
}

int run_bench(const struct run_options *options)
{
    struct bench b = { .options = options, .random = options->seed };
    uint64_t elapsed_ms = 0;
    bool ok = prepare(&b) && run(&b, &elapsed_ms);

    if (ok) {
        printf("%s, depth %u: %.0f IOPS\n", options->writes ? "randwrite" : "randread",
               options->depth, (double)b.done * 1000 / (double)elapsed_ms);
        ok = host_stop(&b.host);
    }
    host_destroy(&b.host);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
