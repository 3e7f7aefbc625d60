/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a DMA lookup and a reference cost, each beside a physical limit measured in the same run:
 * for lookups, one load from a random place of a table as large as the index and its entries, each
 * load depending on the one before (what any lookup must at least pay); for references, a pair of
 * locked additions to a private cache line.
 *
 * Usage: dma_lookup [regions]        (default 1000000, of 4 KiB each)
 */

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dma/dma.h"
#include "util/clock.h"
#include "util/limits.h"
#include "util/log.h"

#define PAGE 4096ull
#define ROUNDS 4000000u

static void die(const char *what)
{
    fprintf(stderr, "dma_lookup: %s\n", what);
    exit(EXIT_FAILURE);
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void row(const char *name, double value, const char *unit)
{
    printf("%-52s %10.2f %s\n", name, value, unit);
}

static double per_round(uint64_t start)
{
    return (double)(clock_now_ns() - start) / ROUNDS;
}

static size_t resident_bytes(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    unsigned long total = 0, resident = 0;

    if (file == NULL || fscanf(file, "%lu %lu", &total, &resident) != 2) {
        die("/proc/self/statm");
    }
    fclose(file);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}

static struct dma *new_dma(size_t max_regions)
{
    static const struct logger silent;
    static struct limits limits;
    struct dma_config config = { .log = &silent, .limits = &limits, .max_regions = max_regions };
    struct dma *dma;

    limits_init(&limits);
    if (dma_create(&config, &dma) < 0) {
        die("dma_create");
    }
    return dma;
}

static int memory_file(uint64_t size)
{
    int fd = memfd_create("bench", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, (off_t)size) < 0) {
        die("memfd");
    }
    return fd;
}

static void map(struct dma_space *space, uint64_t addr, uint64_t size, int fd, uint64_t offset)
{
    struct dma_mapping mapping = {
        .iova = { addr, addr + size - 1 },
        .prot = PROT_READ | PROT_WRITE,
        .mode = DMA_MODE_MMAP,
        .fd = fd,
        .offset = offset,
    };
    struct dma_entry *region;

    if (dma_map(space, &mapping, &region) != 0) {
        die("dma_map");
    }
}

/* --- limits --------------------------------------------------------------------------------- */

struct line {
    _Alignas(64) uint64_t next;
};

/* Dependent random loads from a table of this many cache lines, with huge pages like the index. */
static double chase(size_t lines)
{
    struct line *table;
    size_t bytes = lines * sizeof(*table), i, j;
    uint64_t random = 88172645463325252ull, at = 0, start, swap;

    table = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (table == MAP_FAILED) {
        die("mmap");
    }
    madvise(table, bytes, MADV_HUGEPAGE);
    for (i = 0; i < lines; i++) {
        table[i].next = i;
    }
    for (i = lines - 1; i > 0; i--) { /* one cycle through all (Sattolo) */
        j = next_random(&random) % i;
        swap = table[i].next;
        table[i].next = table[j].next;
        table[j].next = swap;
    }
    start = clock_now_ns();
    for (i = 0; i < ROUNDS; i++) {
        at = table[at].next;
    }
    __asm__ volatile("" : : "r"(at));
    munmap(table, bytes);
    return per_round(start);
}

static double two_atomics(void)
{
    static _Alignas(64) _Atomic uint32_t cell[2];
    uint64_t start = clock_now_ns();
    unsigned int i;

    for (i = 0; i < ROUNDS; i++) {
        atomic_fetch_add(&cell[0], 1);
        atomic_fetch_add(&cell[1], 1);
    }
    return per_round(start);
}

/* --- lookups -------------------------------------------------------------------------------- */

static void one_region(void)
{
    struct dma *dma = new_dma(1);
    struct dma_space *space = dma_requester_space(dma);
    int fd = memory_file(1ull << 30);
    struct dma_sg sg = { 0 };
    uint64_t start, addr = 0;
    unsigned int i;

    map(space, 0, 1ull << 30, fd, 0);
    start = clock_now_ns();
    for (i = 0; i < ROUNDS; i++) {
        addr = (sg.offset + PAGE) & ((1ull << 30) - 1);
        if (dma_addr_to_sgl(space, addr, 512, &sg, 1, PROT_READ) != 1) {
            die("lookup");
        }
    }
    row("lookup, 1 region", per_round(start), "ns");
    row("  limit: dependent load, 1 line", chase(2), "ns");
    close(fd);
    dma_destroy(dma);
}

/* The address of each lookup depends on what the one before found, as the limit's loads do. */
static double random_lookups(struct dma_space *space, uint64_t regions)
{
    uint64_t random = 362436069, start = clock_now_ns(), addr = 0;
    struct dma_sg sg = { 0 };
    unsigned int i;

    for (i = 0; i < ROUNDS; i++) {
        addr = next_random(&random) % regions * 2 * PAGE + (sg.offset & 1);
        if (dma_addr_to_sgl(space, addr, 512, &sg, 1, PROT_READ) != 1) {
            die("lookup");
        }
    }
    return per_round(start);
}

static void many_regions(uint64_t regions)
{
    struct dma *dma = new_dma(regions);
    struct dma_space *space = dma_requester_space(dma);
    int fd = memory_file(regions * PAGE);
    size_t before = resident_bytes(), bytes;
    uint64_t i, start = clock_now_ns();

    for (i = 0; i < regions; i++) {
        map(space, i * 2 * PAGE, PAGE, fd, (regions - 1 - i) * PAGE);
    }
    row("map, one of many", (double)(clock_now_ns() - start) / (double)regions, "ns");
    bytes = resident_bytes() - before;
    row("memory per region", (double)bytes / (double)regions, "bytes");
    row("lookup, random among all", random_lookups(space, regions), "ns");
    row("  limit: dependent load, table as large", chase(bytes / 64 + 2), "ns");
    start = clock_now_ns();
    dma_unmap_all(space, NULL, NULL, NULL);
    row("unmap, one of many", (double)(clock_now_ns() - start) / (double)regions, "ns");
    close(fd);
    dma_destroy(dma);
}

/* --- references ----------------------------------------------------------------------------- */

struct holder {
    struct dma *dma;
    struct dma_sg sg;
    pthread_barrier_t *barrier;
    double ns;
};

static void *get_and_put(void *arg)
{
    struct holder *holder = arg;
    struct iovec iov;
    uint64_t start;
    unsigned int i;

    pthread_barrier_wait(holder->barrier);
    start = clock_now_ns();
    for (i = 0; i < ROUNDS; i++) {
        if (dma_sgl_get(holder->dma, &holder->sg, &iov, 1) < 0) {
            die("get");
        }
        dma_sgl_put(holder->dma, &holder->sg, 1);
    }
    holder->ns = per_round(start);
    return NULL;
}

static double references(struct dma *dma, const struct dma_sg *sg, unsigned int threads)
{
    struct holder holders[2];
    pthread_barrier_t barrier;
    pthread_t ids[2];
    unsigned int i;
    double sum = 0;

    pthread_barrier_init(&barrier, NULL, threads);
    for (i = 0; i < threads; i++) {
        holders[i] = (struct holder){ .dma = dma, .sg = *sg, .barrier = &barrier };
        if (pthread_create(&ids[i], NULL, get_and_put, &holders[i]) != 0) {
            die("pthread_create");
        }
    }
    for (i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        sum += holders[i].ns / threads;
    }
    pthread_barrier_destroy(&barrier);
    return sum;
}

static void get_put(uint64_t size, const char *what)
{
    struct dma *dma = new_dma(1);
    struct dma_space *space = dma_requester_space(dma);
    int fd = memory_file(size);
    struct dma_sg sg;
    char name[64];

    map(space, 0, size, fd, 0);
    if (dma_addr_to_sgl(space, 0, 512, &sg, 1, PROT_READ) != 1) {
        die("lookup");
    }
    snprintf(name, sizeof(name), "get + put, %s, 1 thread", what);
    row(name, references(dma, &sg, 1), "ns");
    snprintf(name, sizeof(name), "get + put, %s, 2 threads", what);
    row(name, references(dma, &sg, 2), "ns");
    close(fd);
    dma_destroy(dma);
}

int main(int argc, char **argv)
{
    uint64_t regions = argc > 1 ? strtoull(argv[1], NULL, 0) : 1000000;

    if (regions == 0 || regions > UINT32_MAX) {
        die("usage: dma_lookup [regions]");
    }
    one_region();
    printf("%" PRIu64 " regions of 4 KiB:\n", regions);
    many_regions(regions);
    get_put(1ull << 30, "1 GiB region");
    get_put(PAGE, "4 KiB region");
    row("  limit: two atomic additions", two_atomics(), "ns");
    return 0;
}
