/* SPDX-License-Identifier: BSD-3-Clause */
#include "command.h"

#include "nvme.h"

#include <errno.h>
#include <string.h>

struct command *command_alloc(struct worker *worker)
{
    struct command *cmd = SLIST_FIRST(&worker->free_commands);

    if (cmd == NULL) {
        return NULL;
    }
    SLIST_REMOVE_HEAD(&worker->free_commands, free_link);
    worker->nr_free--;
    cmd->stage = STAGE_RUNNING;
    return cmd;
}

void command_free(struct command *cmd)
{
    cmd->stage = STAGE_FREE;
    SLIST_INSERT_HEAD(&cmd->worker->free_commands, cmd, free_link);
    cmd->worker->nr_free++;
}

void command_begin(struct command *cmd)
{
    cmd->stage = STAGE_RUNNING;
    cmd->event.run = command_resume;
    cmd->aborted = false;
    cmd->result = 0;
    cmd->lba = 0;
    cmd->step = 0;
    cmd->why = NULL;
    cmd->ns = NULL;
    if (NVME_FUSE(cmd->sqe.flags) != 0) {
        command_fail(cmd, NVME_SC_INVALID_FIELD, "fused operations are not supported");
    } else if (cmd->sq->id == 0) {
        admin_begin(cmd);
    } else {
        io_begin(cmd);
    }
}

void command_resume(struct worker *worker, struct event *event)
{
    struct command *cmd = (struct command *)((char *)event - offsetof(struct command, event));

    (void)worker;
    cmd->stage = STAGE_RUNNING;
    cmd->resume(cmd);
}

static void report(struct command *cmd, uint16_t status)
{
    struct nvme *nvme = cmd->worker->nvme;

    vfu_log(nvme->ctx, LOG_INFO, "queue %u command 0x%04x opcode 0x%02x: %s (status 0x%03x)",
            cmd->sq->id, cmd->sqe.cid, cmd->sqe.opcode, cmd->why != NULL ? cmd->why : "failed",
            status & ~NVME_STATUS_DNR);
    error_log_add(nvme, cmd, status);
}

void command_complete(struct command *cmd, uint16_t status)
{
    data_release(cmd);
    buffer_put(cmd, &cmd->buffer);
    cmd->status = status;
    if (status != NVME_SC_SUCCESS) {
        cmd->status |= NVME_STATUS_MORE;
        report(cmd, status);
    }
    cmd->worker->busy--;
    cq_complete(cmd->sq->cq, cmd);
}

void command_fail(struct command *cmd, uint16_t status, const char *why)
{
    cmd->why = why;
    command_complete(cmd, status | NVME_STATUS_DNR);
}

void command_park(struct command *cmd)
{
    struct worker *worker = cmd->worker;

    data_release(cmd);
    buffer_put(cmd, &cmd->buffer);
    cmd->stage = STAGE_PARKED;
    worker->busy--;
    worker->nr_parked++;
    TAILQ_INSERT_TAIL(&worker->parked, cmd, parked_link);
}

void command_unpark(struct command *cmd)
{
    struct worker *worker = cmd->worker;

    TAILQ_REMOVE(&worker->parked, cmd, parked_link);
    worker->nr_parked--;
    worker->busy++;
}

/*
 * An address that was never mapped is the host's error and is reported at once. EIO: the client has
 * translated it to memory that is not mapped now. ECANCELED: a DMA_UNMAP, an invalidation or a reset
 * has ended a message.
 */
static bool memory_may_come(struct command *cmd, int error)
{
    const struct nvme *nvme = cmd->worker->nvme;

    if (cmd->worker->drain != DRAIN_NONE || cmd->sq->detaching) {
        return false;
    }
    if (cmd->missing_since == 0) {
        cmd->missing_since = nvme_now_ms();
    }
    return ((error == EFAULT || error == EIO) && memory_may_return(nvme, cmd->missing_since)) ||
           (error == ECANCELED && !memory_is_lost(nvme, cmd->missing_since));
}

void command_memory_failed(struct command *cmd, int error)
{
    if (cmd->sq->detaching && error == ECANCELED) {
        command_complete(cmd, NVME_SC_ABORTED_SQ_DELETED);
    } else if (cmd->aborted) {
        command_complete(cmd, NVME_SC_ABORT_REQUESTED);
    } else if (cmd->worker->drain == DRAIN_PARK && error == ECANCELED) {
        command_park(cmd);
    } else if (memory_may_come(cmd, error)) {
        command_park(cmd);
        worker_await_memory(cmd->worker, true);
    } else {
        cmd->why = strerror(error);
        command_complete(cmd, NVME_SC_DATA_TRANSFER_ERROR);
    }
}

void command_cancel(struct command *cmd)
{
    data_cancel(cmd);
}
