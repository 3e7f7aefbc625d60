/* SPDX-License-Identifier: BSD-3-Clause */
/* Get Log Page (NVMe 5.14), and the error log behind one of them. */
#include "nvme.h"

#include <stdlib.h>
#include <string.h>

#define RETAIN_EVENT (1u << 15) /* in cdw10 */

union log_data {
    struct nvme_error_entry errors[ADMIN_ERROR_ENTRIES];
    struct nvme_smart smart;
    struct nvme_firmware_log firmware;
    uint32_t changed_namespaces[1024];
    struct nvme_effects_log effects;
};

void error_log_add(struct nvme *nvme, const struct command *cmd, uint16_t status)
{
    struct error_log *log = &nvme->admin.errors;
    struct nvme_error_entry *entry;

    pthread_mutex_lock(&log->lock);
    entry = &log->entries[log->count++ % ADMIN_ERROR_ENTRIES];
    *entry = (struct nvme_error_entry){
        .error_count = log->count,
        .sq_id = cmd->sq->id,
        .cid = cmd->sqe.cid,
        .status = (uint16_t)(status << 1),
        .parameter = UINT16_MAX,
        .lba = cmd->lba,
        .nsid = cmd->sqe.nsid,
    };
    pthread_mutex_unlock(&log->lock);
}

/* The newest first. */
static size_t fill_errors(struct nvme *nvme, union log_data *data)
{
    struct error_log *log = &nvme->admin.errors;

    pthread_mutex_lock(&log->lock);
    for (uint64_t i = 0; i < ADMIN_ERROR_ENTRIES && i < log->count; i++) {
        data->errors[i] = log->entries[(log->count - 1 - i) % ADMIN_ERROR_ENTRIES];
    }
    pthread_mutex_unlock(&log->lock);
    return sizeof(data->errors);
}

static uint64_t sum(struct nvme *nvme, size_t counter)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < nvme->nr_workers; i++) {
        const char *counters = (const char *)&nvme->workers[i].counters;

        n += atomic_load_explicit((_Atomic uint64_t *)(counters + counter), memory_order_relaxed);
    }
    return n;
}

#define SUM(nvme, counter)                                                                         \
    sum(nvme, offsetof(struct worker, counter) - offsetof(struct worker, counters))

static size_t fill_smart(struct nvme *nvme, union log_data *data)
{
    /* Units of a thousand blocks of 512 bytes, rounded up. */
    data->smart = (struct nvme_smart){
        .critical_warning = events_critical_warning(nvme),
        .temperature = ADMIN_TEMPERATURE,
        .spare = 100,
        .spare_threshold = 10,
        .units_read = { (SUM(nvme, counters.blocks_read) + 999) / 1000 },
        .units_written = { (SUM(nvme, counters.blocks_written) + 999) / 1000 },
        .reads = { SUM(nvme, counters.reads) },
        .writes = { SUM(nvme, counters.writes) },
        .power_cycles = { atomic_load(&nvme->admin.power_cycles) },
        .unsafe_shutdowns = { atomic_load(&nvme->admin.unsafe_shutdowns) },
    };
    pthread_mutex_lock(&nvme->admin.errors.lock);
    data->smart.error_entries[0] = nvme->admin.errors.count;
    pthread_mutex_unlock(&nvme->admin.errors.lock);
    return sizeof(data->smart);
}

static size_t fill_firmware(struct nvme *nvme, union log_data *data)
{
    (void)nvme;
    data->firmware.active = 1;
    memcpy(data->firmware.revision[0], "1.0     ", sizeof(data->firmware.revision[0]));
    return sizeof(data->firmware);
}

/* Namespaces stay what they are. */
static size_t fill_changed(struct nvme *nvme, union log_data *data)
{
    (void)nvme;
    return sizeof(data->changed_namespaces);
}

static size_t fill_effects(struct nvme *nvme, union log_data *data)
{
    (void)nvme;
    for (unsigned i = 0; i < 256; i++) {
        data->effects.admin[i] = admin_effects(i);
        data->effects.io[i] = io_effects(i);
    }
    return sizeof(data->effects);
}

static const struct log_page {
    size_t (*fill)(struct nvme *nvme, union log_data *data);
    enum nvme_event_type event; /* reading it lets such events through again */
} pages[] = {
    [NVME_LOG_ERROR] = { fill_errors, NVME_EVENT_ERROR },
    [NVME_LOG_SMART] = { fill_smart, NVME_EVENT_SMART },
    [NVME_LOG_FIRMWARE] = { fill_firmware, NVME_EVENT_TYPES },
    [NVME_LOG_CHANGED_NAMESPACES] = { fill_changed, NVME_EVENT_NOTICE },
    [NVME_LOG_EFFECTS] = { fill_effects, NVME_EVENT_TYPES },
};

static bool names_namespace(uint32_t nsid)
{
    return nsid != 0 && nsid != NVME_NSID_ALL;
}

/* Fills in len bytes of the page from offset on; what is behind its end is zero. */
static void send(struct command *cmd, const struct log_page *page, uint64_t offset, size_t len)
{
    union log_data *data = calloc(1, sizeof(*data));
    uint8_t *out = calloc(1, len);
    size_t size;

    if (data == NULL || out == NULL) {
        command_complete(cmd, NVME_SC_INTERNAL_ERROR);
    } else {
        size = page->fill(cmd->worker->nvme, data);
        if (offset > size) {
            command_fail(cmd, NVME_SC_INVALID_FIELD, "the offset is behind the page's end");
        } else {
            memcpy(out, (const char *)data + offset, size - offset < len ? size - offset : len);
            data_reply(cmd, out, len);
        }
    }
    free(data);
    free(out);
}

void admin_get_log_page(struct command *cmd)
{
    unsigned id = cmd->sqe.cdw10 & 0xff;
    uint64_t dwords = (cmd->sqe.cdw10 >> 16 | (uint64_t)(cmd->sqe.cdw11 & 0xffff) << 16) + 1;
    uint64_t offset = cmd->sqe.cdw12 | (uint64_t)cmd->sqe.cdw13 << 32;
    uint64_t len = dwords * sizeof(uint32_t);
    const struct log_page *page = id < sizeof(pages) / sizeof(pages[0]) ? &pages[id] : NULL;

    if (page == NULL || page->fill == NULL) {
        command_fail(cmd, NVME_SC_INVALID_LOG_PAGE, "there is no such log page");
    } else if (offset % sizeof(uint32_t) != 0 || len > NVME_MAX_TRANSFER) {
        command_fail(cmd, NVME_SC_INVALID_FIELD, "the offset is odd, or the length beyond MDTS");
    } else if (id == NVME_LOG_SMART && names_namespace(cmd->sqe.nsid)) {
        command_fail(cmd, NVME_SC_INVALID_FIELD, "namespaces have no health of their own");
    } else {
        if (!(cmd->sqe.cdw10 & RETAIN_EVENT) && page->event != NVME_EVENT_TYPES) {
            events_unmask(cmd->worker->nvme, page->event);
        }
        send(cmd, page, offset, len);
    }
}
