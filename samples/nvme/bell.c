/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bells: eventfds that the client's hypervisor rings as soon as the guest has written a doorbell,
 * after it has stored the value in the doorbell page (vfio-user protocol, GET_REGION_IO_FDS).
 *
 * Doorbells are dealt out to the bells once and for all, so that mostly the worker which serves a
 * queue has its bell for itself. A worker hears the bells of all queues that it serves: which those
 * are is up to the driver, as a submission queue goes where its completion queue is.
 *
 * Nobody reads the eventfds, which the client has as well and could empty at any time: epoll tells
 * of every ring (EPOLLET).
 */
#include "nvme.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

static int bell_of(const struct nvme *nvme, unsigned id)
{
    return nvme->bells[queue_worker_index(nvme, id) % nvme->nr_bells];
}

static int open_bells(struct nvme *nvme)
{
    unsigned wanted =
        nvme->config.nr_workers < NVME_MAX_BELLS ? nvme->config.nr_workers : NVME_MAX_BELLS;

    for (; nvme->nr_bells < wanted; nvme->nr_bells++) {
        int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

        if (fd < 0) {
            return -1;
        }
        nvme->bells[nvme->nr_bells] = fd;
    }
    return 0;
}

int bells_setup(struct nvme *nvme)
{
    const uint32_t size = sizeof(nvme->doorbells->reg[0]);

    if (!nvme->config.ioeventfd) {
        return 0;
    }
    if (open_bells(nvme) != 0) {
        return -1;
    }
    for (unsigned i = 0; i < 2 * (nvme->config.nr_queues + 1); i++) {
        size_t offset = NVME_REG_END + (size_t)i * size;

        if (vfu_create_ioeventfd(nvme->ctx, REGISTER_BAR, bell_of(nvme, i / 2),
                                 offset, size, 0, 0, nvme->doorbell_fd, offset) != 0) {
            return -1;
        }
    }
    return 0;
}

void bells_close(struct nvme *nvme)
{
    while (nvme->nr_bells > 0) {
        close(nvme->bells[--nvme->nr_bells]);
    }
}

void bells_hear(struct worker *worker, unsigned id)
{
    struct nvme *nvme = worker->nvme;
    struct epoll_event event = { .events = EPOLLIN | EPOLLET };

    if (nvme->nr_bells > 0 &&
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, bell_of(nvme, id), &event) != 0 &&
        errno != EEXIST) {
        controller_fatal(nvme, "worker %u cannot hear the doorbells of queue %u: %s", worker->index,
                         id, strerror(errno));
    }
}

void bells_hear_none(struct worker *worker)
{
    for (unsigned i = 0; i < worker->nvme->nr_bells; i++) {
        (void)epoll_ctl(worker->epoll_fd, EPOLL_CTL_DEL, worker->nvme->bells[i], NULL);
    }
}
