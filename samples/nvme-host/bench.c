/* SPDX-License-Identifier: BSD-3-Clause */
/* 4 KiB at random places, a fixed number under way. */

#include "host.h"
#include "run.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>

#define IO_SIZE 4096u

struct bench {
    const struct run_options *options;
    struct host host;
    uint8_t *buffers; /* one for each command under way */
    uint64_t random;
    uint64_t places; /* of IO_SIZE bytes in the namespace */
    uint64_t done;
};

static void submit(struct bench *b, struct host_queue *queue, unsigned index)
{
    uint32_t blocks = IO_SIZE / b->host.block_size;
    uint64_t lba = random_below(&b->random, b->places) * blocks;
    struct nvme_command command = {
        .opcode = b->options->writes ? NVME_IO_WRITE : NVME_IO_READ,
        .cid = (uint16_t)index,
        .nsid = 1,
        .prp1 = host_addr(&b->host, b->buffers + (size_t)index * IO_SIZE),
        .cdw10 = (uint32_t)lba,
        .cdw11 = (uint32_t)(lba >> 32),
        .cdw12 = blocks - 1,
    };

    host_put(queue, &command);
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
        submit(b, queue, completion.cid);
    }
    b->done += (unsigned)n;
    return host_ring(&b->host, queue) ? n : -1;
}

static bool sleep_for_interrupt(struct host *host, unsigned qid)
{
    struct pollfd pfd = { .fd = host->irq_fds[qid], .events = POLLIN };
    eventfd_t count;

    if (poll(&pfd, 1, HOST_TIMEOUT_MS) <= 0) {
        host_fail("no interrupt");
        return false;
    }
    (void)eventfd_read(pfd.fd, &count);
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
        submit(b, queue, i);
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
    return true;
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
