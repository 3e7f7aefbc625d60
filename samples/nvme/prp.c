/* SPDX-License-Identifier: BSD-3-Clause */
/* Physical Region Pages (NVMe 4.3). */
#include "nvme.h"

#include <string.h>

#define ENTRY sizeof(uint64_t)

static uint16_t offset_fault(struct command *cmd, const char *why)
{
    cmd->why = why;
    return NVME_SC_PRP_OFFSET | NVME_STATUS_DNR;
}

/* The list goes on at addr: as many entries as are needed, or as the page has. */
static void begin_list(struct command *cmd, uint64_t addr)
{
    struct data *data = &cmd->data;
    uint64_t page = nvme_page_size(cmd->worker->nvme);
    uint64_t needed = (data->len - data->found + page - 1) / page * ENTRY;
    uint64_t in_page = page - addr % page;

    data->list_addr = addr;
    data->list_len = needed < in_page ? needed : in_page;
}

static uint16_t add_page(struct command *cmd, uint64_t addr)
{
    struct data *data = &cmd->data;
    uint64_t page = nvme_page_size(cmd->worker->nvme), left = data->len - data->found;

    if (addr % page != 0) {
        return offset_fault(cmd, "a PRP entry behind the first has an offset");
    }
    return data_add(cmd, addr, left < page ? left : page, false);
}

/* The last entry of a page points to the next one, unless it is the last of all. */
static uint16_t parse(struct command *cmd, const void *list, size_t len)
{
    struct data *data = &cmd->data;
    uint64_t page = nvme_page_size(cmd->worker->nvme);
    uint16_t status = NVME_SC_SUCCESS;

    for (size_t i = 0; i < len && status == NVME_SC_SUCCESS; i += ENTRY) {
        bool last = i + ENTRY == len && data->list_len == 0;
        uint64_t entry;

        memcpy(&entry, (const char *)list + i, sizeof(entry));
        if (!last || data->len - data->found <= page) {
            status = add_page(cmd, entry);
        } else if (entry % page != 0) {
            status = offset_fault(cmd, "the pointer to a further PRP list has an offset");
        } else {
            begin_list(cmd, entry);
        }
    }
    return status;
}

uint16_t prp_begin(struct command *cmd)
{
    struct data *data = &cmd->data;
    uint64_t page = nvme_page_size(cmd->worker->nvme);
    uint64_t in_page = page - cmd->sqe.prp1 % page;
    uint16_t status;

    data->parse = parse;
    data->list_entry = ENTRY;
    if (cmd->sqe.prp1 % sizeof(uint32_t) != 0) {
        return offset_fault(cmd, "PRP entry 1 is not aligned to a double word");
    }
    status = data_add(cmd, cmd->sqe.prp1, data->len < in_page ? data->len : in_page, false);
    if (status != NVME_SC_SUCCESS || data->found == data->len) {
        return status;
    }
    if (data->len - data->found <= page) {
        return add_page(cmd, cmd->sqe.prp2);
    }
    if (cmd->sqe.prp2 % ENTRY != 0) {
        return offset_fault(cmd, "the PRP list is not aligned to a quad word");
    }
    begin_list(cmd, cmd->sqe.prp2);
    return NVME_SC_SUCCESS;
}
