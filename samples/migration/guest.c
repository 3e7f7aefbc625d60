/* SPDX-License-Identifier: BSD-3-Clause */
#include "guest.h"

#include "recorder.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/vfio.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A value is mixed in with each of these steps of the guest. */
#define STEPS_PER_MIX 3

static void fail(struct guest *guest, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void fail(struct guest *guest, const char *fmt, ...)
{
    va_list ap;

    pthread_mutex_lock(&guest->lock);
    va_start(ap, fmt);
    vsnprintf(guest->error, sizeof(guest->error), fmt, ap);
    va_end(ap);
    pthread_cond_broadcast(&guest->changed);
    pthread_mutex_unlock(&guest->lock);
}

/*
 * Registers
 */

static bool read_register(struct guest *guest, enum recorder_register reg, uint64_t *value)
{
    guest->register_accesses++;
    if (vfuc_region_read(guest->host.device, VFIO_PCI_BAR0_REGION_INDEX, reg, value,
                         sizeof(*value)) < 0) {
        fail(guest, "reading register 0x%x: %s", reg, strerror(errno));
        return false;
    }
    return true;
}

static bool write_register(struct guest *guest, enum recorder_register reg, uint64_t value)
{
    guest->register_accesses++;
    if (vfuc_region_write(guest->host.device, VFIO_PCI_BAR0_REGION_INDEX, reg, &value,
                          sizeof(value)) < 0) {
        fail(guest, "writing register 0x%x: %s", reg, strerror(errno));
        return false;
    }
    return true;
}

/*
 * Records
 */

/* The values that were mixed in since the last record go into the generator here too. */
static bool expect_mixes(struct guest *guest, const struct record *record)
{
    if (record->mixes < guest->expected.mixes || record->mixes > guest->nr_mixed) {
        fail(guest, "record %" PRIu64 " has %" PRIu64 " mixed values, %" PRIu64 " were written",
             record->number, record->mixes, guest->nr_mixed);
        return false;
    }
    while (guest->expected.mixes < record->mixes) {
        generator_mix(&guest->expected, guest->mixed[guest->expected.mixes % RING_LENGTH]);
    }
    return true;
}

static bool check_record(struct guest *guest)
{
    uint64_t place = guest->expected.number % RING_LENGTH;
    struct record record, expected;

    memcpy(&record, guest->host.ram + RING_ADDR + place * sizeof(record), sizeof(record));
    if (record.number != guest->expected.number ||
        record.checksum != record_checksum(&record)) {
        fail(guest, "record %" PRIu64 " expected, found %" PRIu64 " with a %s checksum",
             guest->expected.number, record.number,
             record.checksum == record_checksum(&record) ? "good" : "wrong");
        return false;
    }
    if (!expect_mixes(guest, &record)) {
        return false;
    }
    generator_next(&guest->expected, &expected);
    if (memcmp(&record, &expected, sizeof(record)) != 0) {
        fail(guest, "record %" PRIu64 " is not what follows from those before", record.number);
        return false;
    }
    return true;
}

static bool check_new_records(struct guest *guest)
{
    uint64_t written;

    if (!read_register(guest, RECORDER_WRITTEN, &written)) {
        return false;
    }
    if (written < guest->expected.number) {
        fail(guest, "the device has written %" PRIu64 " records, %" PRIu64 " have been here",
             written, guest->expected.number);
        return false;
    }
    if (written == guest->expected.number) {
        return true;
    }
    while (guest->expected.number < written) {
        if (!check_record(guest)) {
            return false;
        }
    }
    if (!write_register(guest, RECORDER_CONSUMED, written)) {
        return false;
    }
    pthread_mutex_lock(&guest->lock);
    guest->checked = written;
    pthread_cond_broadcast(&guest->changed);
    pthread_mutex_unlock(&guest->lock);
    return true;
}

/* Noted before it is written, as a record may show it before the write has been answered. */
static bool mix(struct guest *guest)
{
    uint64_t value = scramble(guest->nr_mixed + 1);

    if (guest->nr_mixed - guest->expected.mixes == RING_LENGTH) {
        return true;
    }
    guest->mixed[guest->nr_mixed++ % RING_LENGTH] = value;
    return write_register(guest, RECORDER_MIX, value);
}

static bool device_runs(struct guest *guest)
{
    uint64_t error;

    if (!read_register(guest, RECORDER_ERROR, &error)) {
        return false;
    }
    if (error != 0) {
        fail(guest, "the device ended with: %s", strerror((int)error));
    }
    return error == 0;
}

static bool step(struct guest *guest, uint64_t number)
{
    if (number % STEPS_PER_MIX == 0 && (!mix(guest) || !device_runs(guest))) {
        return false;
    }
    return check_new_records(guest);
}

/*
 * The thread
 */

/* Returns false at the end. */
static bool may_go_on(struct guest *guest)
{
    bool go_on;

    pthread_mutex_lock(&guest->lock);
    while (guest->pause && !guest->ending) {
        guest->paused = true;
        pthread_cond_broadcast(&guest->changed);
        pthread_cond_wait(&guest->changed, &guest->lock);
    }
    guest->paused = false;
    go_on = !guest->ending;
    pthread_mutex_unlock(&guest->lock);
    return go_on;
}

static void *run(void *arg)
{
    struct guest *guest = arg;
    uint64_t number = 0;

    while (may_go_on(guest) && step(guest, number)) {
        number++;
    }
    return NULL;
}

static bool healthy(const struct guest *guest)
{
    return guest->error[0] == '\0';
}

bool guest_wait(struct guest *guest, uint64_t checked)
{
    bool ok;

    pthread_mutex_lock(&guest->lock);
    while (guest->checked < checked && healthy(guest)) {
        pthread_cond_wait(&guest->changed, &guest->lock);
    }
    ok = healthy(guest);
    pthread_mutex_unlock(&guest->lock);
    return ok;
}

uint64_t guest_checked(struct guest *guest)
{
    uint64_t checked;

    pthread_mutex_lock(&guest->lock);
    checked = guest->checked;
    pthread_mutex_unlock(&guest->lock);
    return checked;
}

void guest_pause(struct guest *guest)
{
    pthread_mutex_lock(&guest->lock);
    guest->pause = true;
    while (!guest->paused && healthy(guest)) {
        pthread_cond_wait(&guest->changed, &guest->lock);
    }
    pthread_mutex_unlock(&guest->lock);
}

void guest_resume(struct guest *guest, const struct host *host)
{
    pthread_mutex_lock(&guest->lock);
    guest->host = *host;
    guest->pause = false;
    pthread_cond_broadcast(&guest->changed);
    pthread_mutex_unlock(&guest->lock);
}

static bool start_device(struct guest *guest)
{
    return write_register(guest, RECORDER_RING, RING_ADDR) &&
           write_register(guest, RECORDER_LENGTH, RING_LENGTH) &&
           write_register(guest, RECORDER_CONTROL, 1);
}

int guest_start(struct guest *guest, const struct host *host)
{
    int err;

    *guest = (struct guest){ .host = *host, .expected.state = RECORD_SEED };
    pthread_mutex_init(&guest->lock, NULL);
    pthread_cond_init(&guest->changed, NULL);
    guest->mixed = calloc(RING_LENGTH, sizeof(guest->mixed[0]));
    if (guest->mixed == NULL) {
        return -ENOMEM;
    }
    err = start_device(guest) ? -pthread_create(&guest->thread, NULL, run, guest) : -EIO;
    if (err != 0) {
        free(guest->mixed);
    }
    return err;
}

void guest_end(struct guest *guest)
{
    pthread_mutex_lock(&guest->lock);
    guest->ending = true;
    pthread_cond_broadcast(&guest->changed);
    pthread_mutex_unlock(&guest->lock);
    pthread_join(guest->thread, NULL);
    if (healthy(guest)) {
        write_register(guest, RECORDER_CONTROL, 0);
    }
    free(guest->mixed);
    pthread_cond_destroy(&guest->changed);
    pthread_mutex_destroy(&guest->lock);
}
