/* SPDX-License-Identifier: BSD-3-Clause */
/* Asynchronous events (NVMe 5.2). */
#include "nvme.h"

#include <string.h>

void events_reset(struct nvme *nvme)
{
    struct async_events *events = &nvme->admin.events;

    events->nr_held = 0;
    for (unsigned i = 0; i < NVME_EVENT_TYPES; i++) {
        events->pending[i] = NO_VALUE;
        events->masked[i] = false;
    }
}

/* What is held is its identifier: the command itself has other uses. */
void events_request(struct command *cmd)
{
    struct async_events *events = &cmd->worker->nvme->admin.events;
    struct sq *sq = cmd->sq;

    if (events->nr_held == ADMIN_EVENT_LIMIT) {
        command_fail(cmd, NVME_SC_AER_LIMIT, "more asynchronous event requests than AERL allows");
        return;
    }
    events->cids[events->nr_held++] = cmd->sqe.cid;
    cmd->worker->busy--;
    sq_release(sq, cmd);
}

static void forget_first(struct async_events *events, unsigned index)
{
    events->nr_held--;
    memmove(&events->cids[index], &events->cids[index + 1],
            (events->nr_held - index) * sizeof(events->cids[0]));
}

bool events_abort(struct nvme *nvme, uint16_t cid)
{
    struct async_events *events = &nvme->admin.events;

    for (unsigned i = 0; i < events->nr_held; i++) {
        if (events->cids[i] == cid &&
            cq_post_event(&nvme->cqs[0], &nvme->sqs[0], cid, 0, NVME_SC_ABORT_REQUESTED)) {
            forget_first(events, i);
            return true;
        }
    }
    return false;
}

void events_raise(struct nvme *nvme, enum nvme_event_type type, uint8_t info, uint8_t log_page)
{
    struct async_events *events = &nvme->admin.events;

    if (!events->masked[type] && events->pending[type] == NO_VALUE) {
        events->pending[type] = (uint32_t)type | (uint32_t)info << 8 | (uint32_t)log_page << 16;
    }
}

void events_unmask(struct nvme *nvme, enum nvme_event_type type)
{
    nvme->admin.events.masked[type] = false;
}

void events_poll(struct nvme *nvme)
{
    struct async_events *events = &nvme->admin.events;

    for (unsigned i = 0; i < NVME_EVENT_TYPES && events->nr_held > 0; i++) {
        if (events->pending[i] == NO_VALUE || controller_held(&nvme->controller)) {
            continue;
        }
        if (!cq_post_event(&nvme->cqs[0], &nvme->sqs[0], events->cids[0], events->pending[i],
                           NVME_SC_SUCCESS)) {
            return;
        }
        forget_first(events, 0);
        events->pending[i] = NO_VALUE;
        events->masked[i] = true;
    }
}

static void report_bad_doorbell(struct worker *lead, struct event *event)
{
    struct admin *admin = &lead->nvme->admin;
    unsigned which;

    (void)event;
    atomic_store(&admin->bad_doorbell_posted, false);
    which = atomic_exchange(&admin->bad_doorbells, 0);
    for (uint8_t info = 0; which >> info != 0; info++) {
        if (which >> info & 1) {
            events_raise(lead->nvme, NVME_EVENT_ERROR, info, NVME_LOG_ERROR);
        }
    }
}

void events_bad_doorbell(struct nvme *nvme, uint8_t info)
{
    struct admin *admin = &nvme->admin;

    atomic_fetch_or(&admin->bad_doorbells, 1u << info);
    if (!atomic_exchange(&admin->bad_doorbell_posted, true)) {
        admin->bad_doorbell_event.run = report_bad_doorbell;
        worker_post(nvme_lead(nvme), &admin->bad_doorbell_event);
    }
}

uint8_t events_critical_warning(const struct nvme *nvme)
{
    const struct features *features = &nvme->admin.features;
    bool outside = ADMIN_TEMPERATURE >= features->over_temperature ||
                   ADMIN_TEMPERATURE <= features->under_temperature;

    return outside ? NVME_SMART_TEMPERATURE : 0;
}
