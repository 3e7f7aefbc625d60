/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the client gets of us: the doorbell page, which it maps (--poll) or in which its hypervisor
 * stores values (--ioeventfd), and the bells. A client that has gone keeps them, so each client gets
 * others.
 */
#include "nvme.h"

#include "../common/shared_memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The doorbells lie in the file where they lie in the BAR, so that a client can map them. */
static int open_page(struct nvme *nvme)
{
    void *page;

    nvme->doorbell_fd = shared_memory_create("nvme-doorbells", NVME_REG_END + DOORBELL_PAGE);
    if (nvme->doorbell_fd < 0) {
        return -1;
    }
    page = mmap(NULL, DOORBELL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, nvme->doorbell_fd,
                NVME_REG_END);
    if (page == MAP_FAILED) {
        return -1;
    }
    nvme->doorbells = page;
    return 0;
}

static bool shares(const struct nvme *nvme)
{
    return nvme->config.poll || nvme->config.ioeventfd;
}

void share_init(struct nvme *nvme)
{
    nvme->doorbell_fd = -1;
    nvme->doorbells = &nvme->own_doorbells;
}

int share_open(struct nvme *nvme)
{
    return shares(nvme) ? open_page(nvme) : 0;
}

void share_close(struct nvme *nvme)
{
    if (nvme->doorbells != &nvme->own_doorbells) {
        munmap(nvme->doorbells, DOORBELL_PAGE);
    }
    if (nvme->doorbell_fd >= 0) {
        close(nvme->doorbell_fd);
    }
    bells_close(nvme);
    share_init(nvme);
}

static int withdraw(struct nvme *nvme)
{
    if ((nvme->config.poll && vfu_set_region_file(nvme->ctx, REGISTER_BAR, -1, 0) != 0) ||
        vfu_remove_ioeventfds(nvme->ctx, REGISTER_BAR) != 0) {
        return -1;
    }
    share_close(nvme);
    return 0;
}

static int offer(struct nvme *nvme)
{
    if (open_page(nvme) != 0 ||
        (nvme->config.poll && vfu_set_region_file(nvme->ctx, REGISTER_BAR, nvme->doorbell_fd,
                                                  0) != 0)) {
        return -1;
    }
    return bells_setup(nvme);
}

void share_renew(struct nvme *nvme)
{
    if (!shares(nvme)) {
        return;
    }
    if (withdraw(nvme) != 0 || offer(nvme) != 0) {
        vfu_log(nvme->ctx, LOG_WARNING,
                "no doorbell page for the next client: %s: it rings doorbells by messages",
                strerror(errno));
        (void)withdraw(nvme);
    }
}
