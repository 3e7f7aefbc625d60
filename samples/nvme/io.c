/* SPDX-License-Identifier: BSD-3-Clause */
/* NVM commands (NVMe 6). */
#include "nvme.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Compare looks at this much at a time. */
#define COMPARE_CHUNK 4096u
/* Verify reads this much at a time. */
#define VERIFY_CHUNK (UINT64_C(64) << 10)

/*
 * What they have in common
 */

static uint64_t first_block(const struct command *cmd)
{
    return cmd->sqe.cdw10 | (uint64_t)cmd->sqe.cdw11 << 32;
}

static uint64_t nr_blocks(const struct command *cmd)
{
    return (cmd->sqe.cdw12 & 0xffff) + UINT64_C(1);
}

/* Blocks of the namespace, overflow or not. */
static bool within(const struct namespace *ns, uint64_t first, uint64_t count)
{
    return first <= ns->blocks && count <= ns->blocks - first;
}

/* The blocks of cdw10..12, for the backend. False: the command has failed. */
static bool take_blocks(struct command *cmd, enum backend_op op)
{
    struct namespace *ns = cmd->ns;

    cmd->lba = first_block(cmd);
    if (!within(ns, first_block(cmd), nr_blocks(cmd))) {
        command_fail(cmd, NVME_SC_LBA_OUT_OF_RANGE, "beyond the end of the namespace");
        return false;
    }
    cmd->io = (struct backend_io){
        .op = op,
        .offset = first_block(cmd) << ns->block_shift,
        .len = nr_blocks(cmd) << ns->block_shift,
    };
    return true;
}

static bool within_transfer_limit(struct command *cmd)
{
    if (cmd->io.len > NVME_MAX_TRANSFER) {
        command_fail(cmd, NVME_SC_INVALID_FIELD, "more data than MDTS allows");
        return false;
    }
    return true;
}

static struct command *command_of(struct backend_io *io)
{
    return (struct command *)((char *)io - offsetof(struct command, io));
}

static void submit(struct command *cmd, void (*done)(struct backend_io *io, int error))
{
    cmd->stage = STAGE_BACKEND;
    cmd->io.done = done;
    backend_submit(cmd->worker->backend, cmd->ns->backend, &cmd->io);
}

static bool failed(struct command *cmd, int error)
{
    cmd->stage = STAGE_RUNNING;
    if (error == 0) {
        return false;
    }
    cmd->why = strerror(error);
    vfu_log(cmd->worker->nvme->ctx, LOG_WARNING,
            "namespace %u: %s of %" PRIu64 " bytes at %" PRIu64 " failed: %s", cmd->ns->id,
            cmd->io.op == BACKEND_READ ? "read" : "write", cmd->io.len, cmd->io.offset,
            strerror(error));
    if (error == ENOSPC) {
        command_complete(cmd, NVME_SC_CAPACITY_EXCEEDED);
    } else {
        command_complete(cmd,
                         cmd->io.op == BACKEND_READ ? NVME_SC_READ_ERROR : NVME_SC_WRITE_FAULT);
    }
    return true;
}

static void done(struct backend_io *io, int error)
{
    struct command *cmd = command_of(io);

    if (!failed(cmd, error)) {
        command_complete(cmd, NVME_SC_SUCCESS);
    }
}

/* Durable at once, when the host says so or has switched the cache off. */
static bool wants_fua(struct command *cmd)
{
    return (cmd->sqe.cdw12 & NVME_RW_FUA) ||
           !atomic_load_explicit(&cmd->worker->nvme->admin.write_cache, memory_order_relaxed);
}

static void count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

/*
 * Read and Write
 */

static void count_read(struct command *cmd)
{
    count(&cmd->worker->counters.reads, 1);
    count(&cmd->worker->counters.blocks_read, cmd->io.len / 512);
}

static void read_done(struct backend_io *io, int error)
{
    struct command *cmd = command_of(io);

    if (!failed(cmd, error) && data_iov_done(cmd)) {
        count_read(cmd);
        command_complete(cmd, NVME_SC_SUCCESS);
    }
}

static void write_done(struct backend_io *io, int error)
{
    struct command *cmd = command_of(io);

    if (!failed(cmd, error)) {
        count(&cmd->worker->counters.writes, 1);
        count(&cmd->worker->counters.blocks_written, io->len / 512);
        command_complete(cmd, NVME_SC_SUCCESS);
    }
}

static void transfer(struct command *cmd)
{
    if (data_iov(cmd, cmd->ns->aligned)) {
        submit(cmd, cmd->io.op == BACKEND_READ ? read_done : write_done);
    }
}

static void io_read(struct command *cmd)
{
    if (take_blocks(cmd, BACKEND_READ) && within_transfer_limit(cmd)) {
        data_map(cmd, cmd->io.len, PROT_WRITE, transfer);
    }
}

static void io_write(struct command *cmd)
{
    if (take_blocks(cmd, BACKEND_WRITE) && within_transfer_limit(cmd)) {
        cmd->io.fua = wants_fua(cmd);
        data_map(cmd, cmd->io.len, PROT_READ, transfer);
    }
}

/*
 * Commands that read into a buffer of ours
 */

static void read_to_buffer(struct command *cmd, void (*then)(struct backend_io *io, int error))
{
    if (!buffer_get(cmd, &cmd->buffer, cmd->io.len)) {
        return;
    }
    buffer_io(cmd, &cmd->buffer);
    submit(cmd, then);
}

static void compare(struct command *cmd)
{
    uint8_t chunk[COMPARE_CHUNK];

    for (uint64_t offset = 0; offset < cmd->io.len; offset += sizeof(chunk)) {
        size_t n = cmd->io.len - offset < sizeof(chunk) ? cmd->io.len - offset : sizeof(chunk);

        if (!data_copy(cmd, offset, chunk, n, false)) {
            return;
        }
        if (memcmp(chunk, cmd->buffer.bytes + offset, n) != 0) {
            command_fail(cmd, NVME_SC_COMPARE_FAILURE, "the data is different");
            return;
        }
    }
    command_complete(cmd, NVME_SC_SUCCESS);
}

static void compare_read(struct backend_io *io, int error)
{
    struct command *cmd = command_of(io);

    if (!failed(cmd, error)) {
        count_read(cmd);
        compare(cmd);
    }
}

static void compare_mapped(struct command *cmd)
{
    read_to_buffer(cmd, compare_read);
}

static void io_compare(struct command *cmd)
{
    if (take_blocks(cmd, BACKEND_READ) && within_transfer_limit(cmd)) {
        data_map(cmd, cmd->io.len, PROT_READ, compare_mapped);
    }
}

/* Nothing is transferred to the host, so that MDTS is no limit (6.14): one piece after another. */
static void verify_next(struct command *cmd);

static void verified(struct backend_io *io, int error)
{
    struct command *cmd = command_of(io);

    if (!failed(cmd, error)) {
        verify_next(cmd);
    }
}

static void verify_next(struct command *cmd)
{
    uint64_t done_bytes = (uint64_t)cmd->step * VERIFY_CHUNK;
    uint64_t all = nr_blocks(cmd) << cmd->ns->block_shift;
    uint64_t left = all > done_bytes ? all - done_bytes : 0;

    if (left == 0) {
        command_complete(cmd, NVME_SC_SUCCESS);
        return;
    }
    cmd->io = (struct backend_io){
        .op = BACKEND_READ,
        .offset = (first_block(cmd) << cmd->ns->block_shift) + done_bytes,
        .len = left < VERIFY_CHUNK ? left : VERIFY_CHUNK,
    };
    cmd->step++;
    read_to_buffer(cmd, verified);
}

static void io_verify(struct command *cmd)
{
    if (take_blocks(cmd, BACKEND_READ)) {
        verify_next(cmd);
    }
}

/*
 * Commands without data
 */

static void io_write_zeroes(struct command *cmd)
{
    if (take_blocks(cmd, BACKEND_WRITE_ZEROES)) {
        cmd->io.fua = wants_fua(cmd);
        submit(cmd, done);
    }
}

static void flush_next(struct command *cmd);

static void flushed(struct backend_io *io, int error)
{
    struct command *cmd = command_of(io);

    if (!failed(cmd, error)) {
        flush_next(cmd);
    }
}

/* One namespace after the other, when it is for all. */
static void flush_next(struct command *cmd)
{
    struct nvme *nvme = cmd->worker->nvme;
    bool all = cmd->sqe.nsid == NVME_NSID_ALL;

    if (cmd->step == (all ? nvme->nr_namespaces : 1)) {
        command_complete(cmd, NVME_SC_SUCCESS);
        return;
    }
    cmd->ns = all ? &nvme->namespaces[cmd->step] : cmd->ns;
    cmd->step++;
    cmd->io = (struct backend_io){ .op = BACKEND_FLUSH };
    submit(cmd, flushed);
}

/*
 * Dataset Management
 */

static void deallocate_next(struct command *cmd);

static void deallocated(struct backend_io *io, int error)
{
    struct command *cmd = command_of(io);

    if (!failed(cmd, error)) {
        deallocate_next(cmd);
    }
}

static void deallocate_next(struct command *cmd)
{
    const struct nvme_dsm_range *ranges = (const struct nvme_dsm_range *)cmd->buffer.bytes;
    unsigned nr_ranges = (cmd->sqe.cdw10 & 0xff) + 1;
    struct nvme_dsm_range range;

    do {
        if (cmd->step == nr_ranges) {
            command_complete(cmd, NVME_SC_SUCCESS);
            return;
        }
        range = ranges[cmd->step++];
    } while (range.blocks == 0);
    cmd->io = (struct backend_io){
        .op = BACKEND_DISCARD,
        .offset = range.first << cmd->ns->block_shift,
        .len = (uint64_t)range.blocks << cmd->ns->block_shift,
    };
    submit(cmd, deallocated);
}

/* All of them are checked before the first one goes. */
static void ranges_mapped(struct command *cmd)
{
    unsigned nr_ranges = (cmd->sqe.cdw10 & 0xff) + 1;
    struct nvme_dsm_range range;

    if (!buffer_get(cmd, &cmd->buffer, cmd->data.len) ||
        !data_copy(cmd, 0, cmd->buffer.bytes, cmd->buffer.len, false)) {
        return;
    }
    for (unsigned i = 0; i < nr_ranges; i++) {
        memcpy(&range, cmd->buffer.bytes + i * sizeof(range), sizeof(range));
        cmd->lba = range.first;
        if (!within(cmd->ns, range.first, range.blocks)) {
            command_fail(cmd, NVME_SC_LBA_OUT_OF_RANGE, "a range is beyond the namespace's end");
            return;
        }
    }
    if (!(cmd->sqe.cdw11 & NVME_DSM_DEALLOCATE)) {
        command_complete(cmd, NVME_SC_SUCCESS);
        return;
    }
    deallocate_next(cmd);
}

static void io_dataset_management(struct command *cmd)
{
    unsigned nr_ranges = (cmd->sqe.cdw10 & 0xff) + 1;

    data_map(cmd, nr_ranges * sizeof(struct nvme_dsm_range), PROT_READ, ranges_mapped);
}

/*
 * Dispatch
 */

#define READS NVME_EFFECT_SUPPORTED
#define WRITES (NVME_EFFECT_SUPPORTED | NVME_EFFECT_CHANGES_DATA)

static const struct io_command {
    void (*begin)(struct command *cmd);
    uint32_t effects;
    bool for_all; /* it may name all namespaces */
} io_commands[] = {
    [NVME_IO_FLUSH] = { .begin = flush_next, .effects = READS, .for_all = true },
    [NVME_IO_WRITE] = { .begin = io_write, .effects = WRITES },
    [NVME_IO_READ] = { .begin = io_read, .effects = READS },
    [NVME_IO_COMPARE] = { .begin = io_compare, .effects = READS },
    [NVME_IO_WRITE_ZEROES] = { .begin = io_write_zeroes, .effects = WRITES },
    [NVME_IO_DATASET_MANAGEMENT] = { .begin = io_dataset_management, .effects = WRITES },
    [NVME_IO_VERIFY] = { .begin = io_verify, .effects = READS },
};

static const struct io_command *io_command(unsigned opcode)
{
    if (opcode >= sizeof(io_commands) / sizeof(io_commands[0]) ||
        io_commands[opcode].begin == NULL) {
        return NULL;
    }
    return &io_commands[opcode];
}

uint32_t io_effects(unsigned opcode)
{
    const struct io_command *command = io_command(opcode);

    return command != NULL ? command->effects : 0;
}

void io_begin(struct command *cmd)
{
    const struct io_command *command = io_command(cmd->sqe.opcode);

    if (command == NULL) {
        command_fail(cmd, NVME_SC_INVALID_OPCODE, "there is no such NVM command");
        return;
    }
    cmd->ns = nvme_namespace(cmd->worker->nvme, cmd->sqe.nsid);
    if (cmd->ns == NULL && !(command->for_all && cmd->sqe.nsid == NVME_NSID_ALL)) {
        command_fail(cmd, NVME_SC_INVALID_NAMESPACE, "there is no such namespace");
        return;
    }
    command->begin(cmd);
}
