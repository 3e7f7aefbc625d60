/* SPDX-License-Identifier: BSD-3-Clause */
/* Get Features and Set Features (NVMe 5.12, 5.21). */
#include "nvme.h"

#include <string.h>

#define SAVE (1u << 31)      /* in cdw10 of Set Features */
#define CHANGEABLE (1u << 2) /* of what Get Features says a feature can do */

enum select {
    SELECT_CURRENT,
    SELECT_DEFAULT,
    SELECT_SAVED,
    SELECT_CAPABILITIES,
};

#define TIMESTAMP_MASK ((UINT64_C(1) << 48) - 1)
#define TIMESTAMP_BY_HOST (UINT64_C(1) << 49)

static const struct features defaults = {
    .over_temperature = ADMIN_WARNING_TEMPERATURE,
};

void features_reset(struct nvme *nvme)
{
    nvme->admin.features = defaults;
    nvme->admin.features.timestamp_at = nvme_now_ms();
    atomic_store(&nvme->admin.write_cache, true);
}

static void invalid(struct command *cmd, const char *why)
{
    command_fail(cmd, NVME_SC_INVALID_FIELD, why);
}

static void done(struct command *cmd, uint32_t result)
{
    cmd->result = result;
    command_complete(cmd, NVME_SC_SUCCESS);
}

/*
 * Words that are stored
 */

static struct features *features_of(struct command *cmd)
{
    return &cmd->worker->nvme->admin.features;
}

static void get_arbitration(struct command *cmd, const struct features *f)
{
    done(cmd, f->arbitration);
}

static void set_arbitration(struct command *cmd, uint32_t value)
{
    features_of(cmd)->arbitration = value & 0xffffff07;
    done(cmd, 0);
}

static void get_power(struct command *cmd, const struct features *f)
{
    done(cmd, f->power);
}

static void set_power(struct command *cmd, uint32_t value)
{
    if ((value & 0x1f) != 0) {
        invalid(cmd, "there is no such power state");
        return;
    }
    features_of(cmd)->power = value & 0xe0;
    done(cmd, 0);
}

static void get_error_recovery(struct command *cmd, const struct features *f)
{
    done(cmd, f->error_recovery);
}

static void set_error_recovery(struct command *cmd, uint32_t value)
{
    if (value >> 16 & 1) {
        invalid(cmd, "errors for deallocated blocks are not supported");
        return;
    }
    features_of(cmd)->error_recovery = value & 0xffff;
    done(cmd, 0);
}

static void get_coalescing(struct command *cmd, const struct features *f)
{
    done(cmd, f->coalescing);
}

/* A recommendation: interrupts are coalesced by what ends together. */
static void set_coalescing(struct command *cmd, uint32_t value)
{
    features_of(cmd)->coalescing = value & 0xffff;
    done(cmd, 0);
}

static void get_atomicity(struct command *cmd, const struct features *f)
{
    done(cmd, f->atomicity);
}

static void set_atomicity(struct command *cmd, uint32_t value)
{
    features_of(cmd)->atomicity = value & 1;
    done(cmd, 0);
}

/*
 * Temperature and events
 */

/* Where a threshold is kept; NULL: there is no such sensor or threshold. */
static uint16_t *threshold(struct features *f, uint32_t selector)
{
    unsigned sensor = selector >> 16 & 0xf, kind = selector >> 20 & 3;

    if ((sensor != 0 && sensor != 0xf) || kind > 1) {
        return NULL;
    }
    return kind == 0 ? &f->over_temperature : &f->under_temperature;
}

static void warn_of_temperature(struct nvme *nvme)
{
    if (events_critical_warning(nvme) & nvme->admin.features.async_events) {
        events_raise(nvme, NVME_EVENT_SMART, NVME_EVENT_TEMPERATURE, NVME_LOG_SMART);
    }
}

static void get_temperature(struct command *cmd, const struct features *f)
{
    struct features copy = *f;
    const uint16_t *value = threshold(&copy, cmd->sqe.cdw11);

    if (value == NULL) {
        invalid(cmd, "there is no such temperature threshold");
        return;
    }
    done(cmd, *value);
}

static void set_temperature(struct command *cmd, uint32_t value)
{
    uint16_t *place = threshold(features_of(cmd), value);

    if (place == NULL) {
        invalid(cmd, "there is no such temperature threshold");
        return;
    }
    *place = (uint16_t)value;
    warn_of_temperature(cmd->worker->nvme);
    done(cmd, 0);
}

static void get_async_events(struct command *cmd, const struct features *f)
{
    done(cmd, f->async_events);
}

static void set_async_events(struct command *cmd, uint32_t value)
{
    features_of(cmd)->async_events = value & (0x1f | NVME_OAES_NAMESPACES);
    warn_of_temperature(cmd->worker->nvme);
    done(cmd, 0);
}

/*
 * Cache, queues, vectors
 */

static void get_write_cache(struct command *cmd, const struct features *f)
{
    done(cmd, f == &defaults || atomic_load(&cmd->worker->nvme->admin.write_cache));
}

static void set_write_cache(struct command *cmd, uint32_t value)
{
    atomic_store(&cmd->worker->nvme->admin.write_cache, (value & 1) != 0);
    done(cmd, 0);
}

static uint32_t queues_granted(const struct command *cmd)
{
    uint32_t n = cmd->worker->nvme->config.nr_queues - 1;

    return n | n << 16;
}

static void get_queues(struct command *cmd, const struct features *f)
{
    (void)f;
    done(cmd, queues_granted(cmd));
}

static bool has_io_queues(const struct admin *admin)
{
    for (unsigned i = 1; i < NVME_MAX_QUEUES; i++) {
        if (admin->cq_state[i] != QUEUE_NONE || admin->sq_state[i] != QUEUE_NONE) {
            return true;
        }
    }
    return false;
}

static void set_queues(struct command *cmd, uint32_t value)
{
    if ((value & 0xffff) == 0xffff || value >> 16 == 0xffff) {
        invalid(cmd, "65536 queues are one too many");
    } else if (has_io_queues(&cmd->worker->nvme->admin)) {
        command_fail(cmd, NVME_SC_SEQUENCE_ERROR, "I/O queues are there already");
    } else {
        done(cmd, queues_granted(cmd));
    }
}

static void get_vector(struct command *cmd, const struct features *f)
{
    uint32_t vector = cmd->sqe.cdw11 & 0xffff;

    if (vector >= nvme_vectors(cmd->worker->nvme)) {
        invalid(cmd, "there is no such interrupt vector");
        return;
    }
    done(cmd, vector | (uint32_t)f->vector_coalescing[vector] << 16);
}

static void set_vector(struct command *cmd, uint32_t value)
{
    if ((value & 0xffff) >= nvme_vectors(cmd->worker->nvme)) {
        invalid(cmd, "there is no such interrupt vector");
        return;
    }
    features_of(cmd)->vector_coalescing[value & 0xffff] = value >> 16 & 1;
    done(cmd, 0);
}

/*
 * Features with data
 */

static uint64_t timestamp(const struct features *f)
{
    return (f->timestamp + nvme_now_ms() - f->timestamp_at) & TIMESTAMP_MASK;
}

void features_freeze_timestamp(struct features *f)
{
    f->timestamp = timestamp(f);
    f->timestamp_at = 0;
}

void features_thaw_timestamp(struct features *f)
{
    f->timestamp_at = nvme_now_ms();
}

static void get_timestamp(struct command *cmd, const struct features *f)
{
    uint64_t value = timestamp(f);

    value |= f->timestamp_set ? TIMESTAMP_BY_HOST : 0;
    data_reply(cmd, &value, sizeof(value));
}

static void timestamp_mapped(struct command *cmd)
{
    struct features *f = features_of(cmd);
    uint64_t value;

    if (!data_copy(cmd, 0, &value, sizeof(value), false)) {
        return;
    }
    f->timestamp = value & TIMESTAMP_MASK;
    f->timestamp_at = nvme_now_ms();
    f->timestamp_set = true;
    done(cmd, 0);
}

static void set_timestamp(struct command *cmd, uint32_t value)
{
    (void)value;
    data_map(cmd, sizeof(uint64_t), PROT_READ, timestamp_mapped);
}

/* The short identifier is the first half of the long one. */
static size_t host_id_size(const struct command *cmd)
{
    return cmd->sqe.cdw11 & 1 ? 16 : 8;
}

static void get_host_id(struct command *cmd, const struct features *f)
{
    data_reply(cmd, f->host_id, host_id_size(cmd));
}

static void host_id_mapped(struct command *cmd)
{
    uint8_t id[sizeof(features_of(cmd)->host_id)] = { 0 };

    if (!data_copy(cmd, 0, id, host_id_size(cmd), false)) {
        return;
    }
    memcpy(features_of(cmd)->host_id, id, sizeof(id));
    done(cmd, 0);
}

static void set_host_id(struct command *cmd, uint32_t value)
{
    (void)value;
    data_map(cmd, host_id_size(cmd), PROT_READ, host_id_mapped);
}

/*
 * Dispatch
 */

static const struct feature {
    uint8_t id;
    void (*get)(struct command *cmd, const struct features *f);
    void (*set)(struct command *cmd, uint32_t value); /* cdw11 */
} table[] = {
    { NVME_FEAT_ARBITRATION, get_arbitration, set_arbitration },
    { NVME_FEAT_POWER, get_power, set_power },
    { NVME_FEAT_TEMPERATURE, get_temperature, set_temperature },
    { NVME_FEAT_ERROR_RECOVERY, get_error_recovery, set_error_recovery },
    { NVME_FEAT_WRITE_CACHE, get_write_cache, set_write_cache },
    { NVME_FEAT_QUEUES, get_queues, set_queues },
    { NVME_FEAT_COALESCING, get_coalescing, set_coalescing },
    { NVME_FEAT_VECTOR, get_vector, set_vector },
    { NVME_FEAT_ATOMICITY, get_atomicity, set_atomicity },
    { NVME_FEAT_ASYNC_EVENTS, get_async_events, set_async_events },
    { NVME_FEAT_TIMESTAMP, get_timestamp, set_timestamp },
    { NVME_FEAT_HOST_ID, get_host_id, set_host_id },
};

static const struct feature *find(struct command *cmd)
{
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (table[i].id == (cmd->sqe.cdw10 & 0xff)) {
            return &table[i];
        }
    }
    invalid(cmd, "there is no such feature");
    return NULL;
}

void admin_get_features(struct command *cmd)
{
    const struct feature *feature = find(cmd);

    if (feature == NULL) {
        return;
    }
    switch (cmd->sqe.cdw10 >> 8 & 7) {
    case SELECT_CURRENT:
        feature->get(cmd, features_of(cmd));
        break;
    case SELECT_DEFAULT:
    case SELECT_SAVED: /* nothing can be saved: what counts is the default */
        feature->get(cmd, &defaults);
        break;
    case SELECT_CAPABILITIES:
        done(cmd, CHANGEABLE);
        break;
    default:
        invalid(cmd, "SEL is reserved");
    }
}

void admin_set_features(struct command *cmd)
{
    const struct feature *feature = find(cmd);

    if (feature == NULL) {
        return;
    }
    if (cmd->sqe.cdw10 & SAVE) {
        command_fail(cmd, NVME_SC_FEATURE_NOT_SAVEABLE, "features cannot be saved");
    } else if (cmd->sqe.nsid != 0 && cmd->sqe.nsid != NVME_NSID_ALL) {
        command_fail(cmd, NVME_SC_FEATURE_NOT_NAMESPACE, "features are not of one namespace");
    } else {
        feature->set(cmd, cmd->sqe.cdw11);
    }
}
