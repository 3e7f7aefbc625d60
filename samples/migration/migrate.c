/* SPDX-License-Identifier: BSD-3-Clause */
#include "migrate.h"

#include "recorder.h"
#include "vfio-user.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/vfio.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WORD_BITS 64
#define STATE_BUFFER 0x40000
/* Of pre-copy: what is left after these rounds is copied while the guest stands still. */
#define MIN_ROUNDS 4
#define MAX_ROUNDS 12
#define FEW_PAGES 16

struct migration {
    struct machine *source, *destination;
    uint64_t *dirty; /* bitmap of pages */
    uint8_t *buffer;
};

static bool failed(const struct machine *machine, const char *what)
{
    return machine_failed(machine, what, errno);
}

static double now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static void report(const char *what, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void report(const char *what, const char *fmt, ...)
{
    va_list ap;

    printf("%-12s", what);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

/*
 * Memory
 */

/*
 * The device may write to the page meanwhile: what was copied is of no use then, but the page is
 * dirty and will be copied again. Races by intention, so it is hidden from the thread sanitizer,
 * and not a memcpy() for the same reason.
 */
__attribute__((no_sanitize("thread"))) static void copy_page(uint8_t *to, const uint8_t *from)
{
    volatile uint64_t *out = (volatile uint64_t *)to;
    const volatile uint64_t *in = (const volatile uint64_t *)from;

    for (size_t i = 0; i < PAGE_SIZE / sizeof(*in); i++) {
        out[i] = in[i];
    }
}

/* Copies the dirty pages, and returns how many they are. */
static size_t copy_pages(struct migration *m)
{
    size_t pages = 0;

    for (size_t page = 0; page < m->source->ram_size / PAGE_SIZE; page++) {
        if (m->dirty[page / WORD_BITS] >> page % WORD_BITS & 1) {
            copy_page(m->destination->ram + page * PAGE_SIZE, m->source->ram + page * PAGE_SIZE);
            pages++;
        }
    }
    return pages;
}

/* Pages that were written to since the last time, by the device itself or by its messages. */
static bool fetch_dirty(struct migration *m)
{
    size_t words = machine_bitmap_words(m->source);

    if (vfuc_dirty_report(m->source->device, 0, m->source->ram_size, PAGE_SIZE, m->dirty,
                          words * sizeof(m->dirty[0])) < 0) {
        return failed(m->source, "no report of dirty pages");
    }
    for (size_t i = 0; i < words; i++) {
        m->dirty[i] |= atomic_exchange(&m->source->written[i], 0);
    }
    return true;
}

/*
 * The device's state
 */

/* Hands what there is from one device to the other. Returns the bytes, or -1. */
static ssize_t copy_state(struct migration *m, size_t most)
{
    size_t copied = 0;

    while (copied < most) {
        ssize_t n = vfuc_migration_read(m->source->device, m->buffer, STATE_BUFFER);

        if (n < 0) {
            failed(m->source, "cannot save the device's state");
            return -1;
        }
        if (n == 0) {
            break;
        }
        if (vfuc_migration_write(m->destination->device, m->buffer, (size_t)n) < 0) {
            failed(m->destination, "cannot load the device's state");
            return -1;
        }
        copied += (size_t)n;
    }
    return (ssize_t)copied;
}

static bool set_state(struct machine *machine, uint32_t state, const char *name)
{
    char what[64];

    snprintf(what, sizeof(what), "the device does not go to %s", name);
    return vfuc_migration_set_state(machine->device, state) == 0 || failed(machine, what);
}

/*
 * The steps
 */

static bool prepare(struct migration *m)
{
    const vfuc_range_t ram = { .iova = 0, .size = m->source->ram_size };
    uint64_t flags;

    if (vfuc_migration_flags(m->source->device, &flags) < 0) {
        return failed(m->source, "the device cannot be migrated");
    }
    if ((flags & VFIO_MIGRATION_PRE_COPY) == 0) {
        errno = ENOTSUP;
        return failed(m->source, "the device cannot be saved while it runs");
    }
    if (vfuc_dirty_start(m->source->device, PAGE_SIZE, &ram, 1) < 0) {
        return failed(m->source, "the device cannot tell dirty pages");
    }
    /* What messages have written before is in the first copy, which is of everything. */
    for (size_t i = 0; i < machine_bitmap_words(m->source); i++) {
        atomic_store(&m->source->written[i], 0);
    }
    memset(m->dirty, 0xff, machine_bitmap_words(m->source) * sizeof(m->dirty[0]));
    return set_state(m->destination, VFIO_USER_DEVICE_STATE_RESUMING, "RESUMING") &&
           set_state(m->source, VFIO_USER_DEVICE_STATE_PRE_COPY, "PRE_COPY");
}

/* Copies while the guest and the device go on, until little is left, or it does not get less. */
static bool pre_copy(struct migration *m, struct guest *guest)
{
    size_t state_size = sizeof(struct recorder);

    for (int round = 1; round <= MAX_ROUNDS; round++) {
        size_t pages = copy_pages(m);
        ssize_t state = copy_state(m, state_size);
        char name[16];

        if (state < 0) {
            return false;
        }
        snprintf(name, sizeof(name), "pre-copy %d", round);
        report(name, "%zu of %zu pages, %zd bytes of state", pages, m->source->ram_size / PAGE_SIZE,
               state);
        /* The load goes on: the next round has something to copy. */
        if (!guest_wait(guest, guest_checked(guest) + 1) || !fetch_dirty(m)) {
            return false;
        }
        if (round >= MIN_ROUNDS && pages <= FEW_PAGES) {
            break;
        }
    }
    return true;
}

/* The guest stands still: what is dirty now is the rest. */
static bool stop_and_copy(struct migration *m)
{
    size_t pages = copy_pages(m);
    ssize_t state;

    if (!set_state(m->source, VFIO_USER_DEVICE_STATE_STOP_COPY, "STOP_COPY") || !fetch_dirty(m)) {
        return false;
    }
    pages += copy_pages(m);
    state = copy_state(m, SIZE_MAX);
    if (state < 0) {
        return false;
    }
    report("stop-copy", "%zu pages, %zd bytes of state", pages, state);
    return set_state(m->source, VFIO_USER_DEVICE_STATE_STOP, "STOP") &&
           set_state(m->destination, VFIO_USER_DEVICE_STATE_STOP, "STOP");
}

static bool read_digest(struct machine *machine, uint64_t *digest)
{
    return vfuc_region_read(machine->device, VFIO_PCI_BAR0_REGION_INDEX, RECORDER_DIGEST, digest,
                            sizeof(*digest)) >= 0 ||
           failed(machine, "cannot read the checksum of the device's state");
}

/* Nothing moves: both machines must be the same. */
static bool compare(struct migration *m)
{
    uint64_t here, there;
    size_t page;

    for (page = 0; page < m->source->ram_size / PAGE_SIZE; page++) {
        if (memcmp(m->source->ram + page * PAGE_SIZE, m->destination->ram + page * PAGE_SIZE,
                   PAGE_SIZE) != 0) {
            fprintf(stderr, "migration: page 0x%zx of the RAM has not arrived as it was\n", page);
            return false;
        }
    }
    if (!read_digest(m->source, &here) || !read_digest(m->destination, &there)) {
        return false;
    }
    if (here != there) {
        fprintf(stderr, "migration: the device's state has not arrived as it was\n");
        return false;
    }
    report("compared", "%zu pages and the device's state (checksum 0x%016" PRIx64 ") are the same",
           page, here);
    return true;
}

static bool run(struct migration *m, struct guest *guest)
{
    const struct host there = { .device = m->destination->device, .ram = m->destination->ram };
    double stopped;

    if (!prepare(m) || !pre_copy(m, guest)) {
        guest_pause(guest);
        return false;
    }
    stopped = now_ms();
    guest_pause(guest);
    if (!stop_and_copy(m) || !compare(m) ||
        !set_state(m->destination, VFIO_USER_DEVICE_STATE_RUNNING, "RUNNING")) {
        return false;
    }
    guest_resume(guest, &there);
    report("resumed", "on the %s, after %.1f ms, the comparison included", m->destination->name,
           now_ms() - stopped);
    return vfuc_dirty_stop(m->source->device) == 0 || failed(m->source, "logging does not stop");
}

bool migrate(struct machine *source, struct machine *destination, struct guest *guest)
{
    struct migration m = { .source = source, .destination = destination };
    bool ok;

    m.dirty = calloc(machine_bitmap_words(source), sizeof(m.dirty[0]));
    m.buffer = malloc(STATE_BUFFER);
    if (m.dirty == NULL || m.buffer == NULL) {
        guest_pause(guest);
        ok = failed(source, "no memory for the migration");
    } else {
        ok = run(&m, guest);
    }
    free(m.dirty);
    free(m.buffer);
    return ok;
}
