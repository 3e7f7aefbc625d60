/* SPDX-License-Identifier: BSD-3-Clause */
/* Admin commands (NVMe 5): queues, Abort, Doorbell Buffer Config, and who does the others. */
#include "nvme.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ABORT_DID_NOT 1u

/*
 * Creating queues
 */

static bool valid_qid(struct nvme *nvme, uint16_t id)
{
    return id >= 1 && id <= nvme->config.nr_queues;
}

static bool valid_vector(struct nvme *nvme, uint32_t vector)
{
    switch (atomic_load(&nvme->interrupts.mode)) {
    case INTERRUPT_INTX:
        return vector == 0;
    case INTERRUPT_MSI:
        return vector < NVME_MSI_VECTORS;
    default:
        return vector < nvme_vectors(nvme);
    }
}

/* What both kinds have in common. False: the command has failed. */
static bool take_queue(struct command *cmd, const enum queue_state *states,
                       struct queue_config *config)
{
    struct nvme *nvme = cmd->worker->nvme;
    uint32_t cc = atomic_load(&nvme->controller.cc);

    config->id = (uint16_t)cmd->sqe.cdw10;
    config->entries = (cmd->sqe.cdw10 >> 16) + 1;
    config->addr = cmd->sqe.prp1;
    if (!valid_qid(nvme, config->id) || states[config->id] != QUEUE_NONE) {
        command_fail(cmd, NVME_SC_INVALID_QID, "the queue cannot be, or is there already");
    } else if (config->entries < NVME_MIN_ENTRIES || config->entries > NVME_MAX_ENTRIES) {
        command_fail(cmd, NVME_SC_INVALID_QUEUE_SIZE, "a queue cannot be that large, or small");
    } else if (!(cmd->sqe.cdw11 & NVME_QUEUE_CONTIGUOUS)) {
        command_fail(cmd, NVME_SC_INVALID_FIELD, "queues must be contiguous");
    } else if (NVME_CC_IOSQES(cc) != 6 || NVME_CC_IOCQES(cc) != 4) {
        command_fail(cmd, NVME_SC_INVALID_FIELD, "CC.IOSQES must be 6, and CC.IOCQES 4");
    } else if (config->addr % nvme_page_size(cmd->worker->nvme) != 0) {
        command_fail(cmd, NVME_SC_PRP_OFFSET, "the queue is not aligned to a page");
    } else {
        return true;
    }
    return false;
}

static void create_cq(struct command *cmd)
{
    struct nvme *nvme = cmd->worker->nvme;
    struct queue_config config;

    if (!take_queue(cmd, nvme->admin.cq_state, &config)) {
        return;
    }
    config.vector = cmd->sqe.cdw11 >> 16;
    if (!valid_vector(nvme, config.vector)) {
        command_fail(cmd, NVME_SC_INVALID_VECTOR, "there is no such interrupt vector");
        return;
    }
    if (!(cmd->sqe.cdw11 & NVME_CQ_INTERRUPTS)) {
        config.vector = NO_VALUE;
    }
    cq_create(nvme, &config);
    nvme->admin.cq_state[config.id] = QUEUE_LIVE;
    command_complete(cmd, NVME_SC_SUCCESS);
}

static void create_sq(struct command *cmd)
{
    struct nvme *nvme = cmd->worker->nvme;
    uint16_t cqid = (uint16_t)(cmd->sqe.cdw11 >> 16);
    struct queue_config config;

    if (!take_queue(cmd, nvme->admin.sq_state, &config)) {
        return;
    }
    if (!valid_qid(nvme, cqid)) {
        command_fail(cmd, NVME_SC_INVALID_QID, "there cannot be such a completion queue");
        return;
    }
    if (nvme->admin.cq_state[cqid] != QUEUE_LIVE) {
        command_fail(cmd, NVME_SC_CQ_INVALID, "the completion queue is not there");
        return;
    }
    sq_create(nvme, &config, &nvme->cqs[cqid]);
    nvme->admin.sq_state[config.id] = QUEUE_LIVE;
    command_complete(cmd, NVME_SC_SUCCESS);
}

/*
 * Deleting queues: the owner says when nothing is left of it
 */

static void delete_sq(struct command *cmd)
{
    struct nvme *nvme = cmd->worker->nvme;
    struct admin *admin = &nvme->admin;
    uint16_t id = (uint16_t)cmd->sqe.cdw10;

    if (!valid_qid(nvme, id) || admin->sq_state[id] != QUEUE_LIVE) {
        command_fail(cmd, NVME_SC_INVALID_QID, "the submission queue is not there");
        return;
    }
    admin->sq_state[id] = QUEUE_DELETING;
    admin->deleting_sq[id] = cmd;
    cmd->stage = STAGE_BACKEND;
    sq_delete(&nvme->sqs[id]);
}

void admin_sq_deleted(struct sq *sq)
{
    struct admin *admin = &sq->worker->nvme->admin;

    admin->sq_state[sq->id] = QUEUE_NONE;
    command_complete(admin->deleting_sq[sq->id], NVME_SC_SUCCESS);
}

static bool in_use(struct nvme *nvme, uint16_t cqid)
{
    for (unsigned i = 1; i < NVME_MAX_QUEUES; i++) {
        if (nvme->admin.sq_state[i] != QUEUE_NONE && nvme->sqs[i].cq->id == cqid) {
            return true;
        }
    }
    return false;
}

static void delete_cq(struct command *cmd)
{
    struct nvme *nvme = cmd->worker->nvme;
    struct admin *admin = &nvme->admin;
    uint16_t id = (uint16_t)cmd->sqe.cdw10;

    if (!valid_qid(nvme, id) || admin->cq_state[id] != QUEUE_LIVE) {
        command_fail(cmd, NVME_SC_INVALID_QID, "the completion queue is not there");
        return;
    }
    if (in_use(nvme, id)) {
        command_fail(cmd, NVME_SC_INVALID_QUEUE_DELETION,
                     "submission queues use the completion queue still");
        return;
    }
    admin->cq_state[id] = QUEUE_DELETING;
    admin->deleting_cq[id] = cmd;
    cmd->stage = STAGE_BACKEND;
    cq_delete(&nvme->cqs[id]);
}

void admin_cq_deleted(struct cq *cq)
{
    struct admin *admin = &cq->worker->nvme->admin;

    admin->cq_state[cq->id] = QUEUE_NONE;
    command_complete(admin->deleting_cq[cq->id], NVME_SC_SUCCESS);
}

/*
 * Abort (NVMe 5.1): only what waits for memory can be given up
 */

static void abort_done(struct command *cmd)
{
    cmd->worker->nvme->admin.nr_aborts--;
    command_complete(cmd, NVME_SC_SUCCESS);
}

static bool abort_in(struct worker *worker, uint16_t sqid, uint16_t cid)
{
    for (unsigned i = 0; i < WORKER_COMMANDS; i++) {
        struct command *cmd = &worker->commands[i];

        if ((cmd->stage != STAGE_MEMORY && cmd->stage != STAGE_PARKED) || cmd->sq->id != sqid ||
            cmd->sqe.cid != cid) {
            continue;
        }
        if (cmd->stage == STAGE_PARKED) {
            command_unpark(cmd);
            command_complete(cmd, NVME_SC_ABORT_REQUESTED);
        } else {
            cmd->aborted = true;
            command_cancel(cmd);
        }
        return true;
    }
    return false;
}

/* Runs where the queue is served, and goes back. */
static void abort_on_owner(struct worker *worker, struct event *event)
{
    struct command *cmd = (struct command *)((char *)event - offsetof(struct command, event));
    uint32_t which = cmd->sqe.cdw10;

    if (abort_in(worker, (uint16_t)which, (uint16_t)(which >> 16))) {
        cmd->result = 0;
    }
    event->run = command_resume;
    worker_post(cmd->worker, event);
}

static void abort_command(struct command *cmd)
{
    struct nvme *nvme = cmd->worker->nvme;
    uint16_t sqid = (uint16_t)cmd->sqe.cdw10, cid = (uint16_t)(cmd->sqe.cdw10 >> 16);
    bool known = sqid == 0 || (valid_qid(nvme, sqid) && nvme->admin.sq_state[sqid] == QUEUE_LIVE);

    cmd->result = ABORT_DID_NOT;
    if (nvme->admin.nr_aborts >= ADMIN_ABORT_LIMIT) {
        command_complete(cmd, NVME_SC_ABORT_LIMIT);
        return;
    }
    if (!known || (sqid == 0 && events_abort(nvme, cid))) {
        cmd->result = known ? 0 : ABORT_DID_NOT;
        command_complete(cmd, NVME_SC_SUCCESS);
        return;
    }
    nvme->admin.nr_aborts++;
    cmd->stage = STAGE_BACKEND;
    cmd->resume = abort_done;
    cmd->event.run = abort_on_owner;
    worker_post(nvme->sqs[sqid].worker, &cmd->event);
}

/*
 * Doorbell Buffer Config (NVMe 5.7)
 */

static void shadows_done(struct command *cmd)
{
    atomic_store(&cmd->worker->nvme->admin.shadow_page, cmd->sqe.prp1 | 1);
    command_complete(cmd, NVME_SC_SUCCESS);
}

/* Every worker opens them for itself. The command keeps the memory until all have done so. */
static void take_shadows(struct worker *worker, struct event *event)
{
    struct shadow_doorbells *shadow =
        (struct shadow_doorbells *)((char *)event - offsetof(struct shadow_doorbells, event));
    struct command *cmd = shadow->cmd;
    bool off = (atomic_load(&worker->nvme->controller.hold) & HOLD_OFF) != 0;

    /* If the controller is being disabled, this worker may have closed everything already. */
    if (!off && !shadows_move(worker, cmd->sqe.prp1, cmd->sqe.prp2,
                              cmd->data.segments[0].request.iov[0].iov_base)) {
        worker_post(worker, event);
        return;
    }
    if (atomic_fetch_sub(&worker->nvme->admin.shadow_setups, 1) == 1) {
        cmd->resume = shadows_done;
        worker_post(cmd->worker, &cmd->event);
    }
}

static bool is_shared(const struct command *cmd)
{
    for (size_t i = 0; i < cmd->data.nr_segments; i++) {
        const vfu_dma_request_t *req = &cmd->data.segments[i].request;

        for (size_t j = 0; j < req->nr_sgs; j++) {
            if (req->iov[j].iov_base == NULL) {
                return false;
            }
        }
    }
    return true;
}

static void shadows_mapped(struct command *cmd)
{
    struct nvme *nvme = cmd->worker->nvme;

    if (!is_shared(cmd)) {
        command_fail(cmd, NVME_SC_INVALID_FIELD, "shadow doorbells need shared memory");
        return;
    }
    /* Another one may have been waiting for the same memory. */
    if (atomic_load(&nvme->admin.shadow_setups) > 0) {
        command_complete(cmd, NVME_SC_SEQUENCE_ERROR);
        return;
    }
    cmd->stage = STAGE_BACKEND;
    atomic_store(&nvme->admin.shadow_setups, nvme->nr_workers);
    for (unsigned i = 0; i < nvme->nr_workers; i++) {
        struct shadow_doorbells *shadow = &nvme->admin.shadows[i];

        shadow->cmd = cmd;
        shadow->event.run = take_shadows;
        worker_post(&nvme->workers[i], &shadow->event);
    }
}

static void doorbell_buffer(struct command *cmd)
{
    struct nvme *nvme = cmd->worker->nvme;
    uint64_t page = nvme_page_size(cmd->worker->nvme);

    if (cmd->sqe.prp1 % page != 0 || cmd->sqe.prp2 % page != 0) {
        command_fail(cmd, NVME_SC_INVALID_FIELD, "the buffers must be aligned to pages");
    } else if (atomic_load(&nvme->admin.shadow_setups) > 0) {
        command_complete(cmd, NVME_SC_SEQUENCE_ERROR);
    } else {
        /* Two pages: PRP 1 and PRP 2 are an entry each, and both have to be there. */
        data_map(cmd, 2 * page, PROT_READ | PROT_WRITE, shadows_mapped);
    }
}

/*
 * Dispatch
 */

static const struct admin_command {
    void (*begin)(struct command *cmd);
} admin_commands[] = {
    [NVME_ADMIN_DELETE_SQ] = { delete_sq },
    [NVME_ADMIN_CREATE_SQ] = { create_sq },
    [NVME_ADMIN_GET_LOG_PAGE] = { admin_get_log_page },
    [NVME_ADMIN_DELETE_CQ] = { delete_cq },
    [NVME_ADMIN_CREATE_CQ] = { create_cq },
    [NVME_ADMIN_IDENTIFY] = { admin_identify },
    [NVME_ADMIN_ABORT] = { abort_command },
    [NVME_ADMIN_SET_FEATURES] = { admin_set_features },
    [NVME_ADMIN_GET_FEATURES] = { admin_get_features },
    [NVME_ADMIN_ASYNC_EVENT] = { events_request },
    [NVME_ADMIN_DOORBELL_BUFFER] = { doorbell_buffer },
};

static const struct admin_command *admin_command(unsigned opcode)
{
    return opcode < sizeof(admin_commands) / sizeof(admin_commands[0]) &&
                   admin_commands[opcode].begin != NULL
               ? &admin_commands[opcode]
               : NULL;
}

uint32_t admin_effects(unsigned opcode)
{
    return admin_command(opcode) != NULL ? NVME_EFFECT_SUPPORTED : 0;
}

void admin_begin(struct command *cmd)
{
    const struct admin_command *command = admin_command(cmd->sqe.opcode);

    if (command == NULL) {
        command_fail(cmd, NVME_SC_INVALID_OPCODE, "there is no such admin command");
    } else if (NVME_PSDT(cmd->sqe.flags) != 0) {
        command_fail(cmd, NVME_SC_INVALID_FIELD, "admin commands take PRPs");
    } else {
        command->begin(cmd);
    }
}

/*
 * Beginning and end
 */

int admin_init(struct nvme *nvme)
{
    struct admin *admin = &nvme->admin;

    pthread_mutex_init(&admin->errors.lock, NULL);
    atomic_store(&admin->power_cycles, 1);
    admin->shadows = calloc(NVME_MAX_WORKERS, sizeof(*admin->shadows));
    if (admin->shadows == NULL) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < NVME_MAX_WORKERS; i++) {
        if (ring_init(&admin->shadows[i].values, DOORBELL_PAGE) != 0 ||
            ring_init(&admin->shadows[i].wanted, DOORBELL_PAGE) != 0) {
            return -ENOMEM;
        }
    }
    admin_reset(nvme);
    return 0;
}

void admin_destroy(struct nvme *nvme)
{
    struct admin *admin = &nvme->admin;

    for (unsigned i = 0; admin->shadows != NULL && i < NVME_MAX_WORKERS; i++) {
        ring_destroy(&admin->shadows[i].values);
        ring_destroy(&admin->shadows[i].wanted);
    }
    free(admin->shadows);
    pthread_mutex_destroy(&admin->errors.lock);
}

void admin_reset(struct nvme *nvme)
{
    memset(nvme->admin.cq_state, 0, sizeof(nvme->admin.cq_state));
    memset(nvme->admin.sq_state, 0, sizeof(nvme->admin.sq_state));
    nvme->admin.nr_aborts = 0;
    atomic_store(&nvme->admin.shadow_page, 0);
    atomic_store(&nvme->admin.bad_doorbells, 0);
    features_reset(nvme);
    events_reset(nvme);
}

void admin_power_cycle(struct nvme *nvme, bool unsafe)
{
    struct admin *admin = &nvme->admin;

    pthread_mutex_lock(&admin->errors.lock);
    memset(admin->errors.entries, 0, sizeof(admin->errors.entries));
    pthread_mutex_unlock(&admin->errors.lock);
    atomic_fetch_add(&admin->power_cycles, 1);
    atomic_fetch_add(&admin->unsafe_shutdowns, unsafe);
}
