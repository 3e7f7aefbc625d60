/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a hypervisor does with doorbells that the device has eventfds for: a value goes into the
 * file that comes with them, and then the eventfd is rung.
 */
#include "host.h"

#include <errno.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

static bool get_list(struct host *host)
{
    struct host_bells *bells = &host->bells;
    int count = vfuc_region_ioeventfds(host->client, VFIO_PCI_BAR0_REGION_INDEX, NULL, 0);

    if (count > 0) {
        bells->list = calloc((size_t)count, sizeof(*bells->list));
        count = bells->list == NULL
                    ? -1
                    : vfuc_region_ioeventfds(host->client, VFIO_PCI_BAR0_REGION_INDEX, bells->list,
                                             (uint32_t)count);
    }
    if (count <= 0) {
        host_fail("no ioeventfds: %s", count == 0 ? "the device has none" : strerror(errno));
        return false;
    }
    bells->count = (uint32_t)count;
    return true;
}

/* One file for all of them. */
static bool map_values(struct host_bells *bells)
{
    struct stat st;
    void *map;

    if (fstat(bells->list[0].shadow_fd, &st) != 0) {
        host_fail("no file for what doorbells are rung with: %s", strerror(errno));
        return false;
    }
    map = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED,
               bells->list[0].shadow_fd, 0);
    if (map == MAP_FAILED) {
        host_fail("cannot map the values of doorbells: %s", strerror(errno));
        return false;
    }
    bells->map = map;
    bells->map_size = (size_t)st.st_size;
    return true;
}

static bool use_bell(struct host_bells *bells, const vfuc_ioeventfd_t *io)
{
    uint64_t index = (io->offset - NVME_REG_END) / sizeof(uint32_t);

    if (io->offset < NVME_REG_END || io->offset % sizeof(uint32_t) != 0 ||
        io->size != sizeof(uint32_t) || io->fd < 0 || io->shadow_fd < 0 ||
        io->shadow_offset % sizeof(uint32_t) != 0 || bells->map_size < sizeof(uint32_t) ||
        io->shadow_offset > bells->map_size - sizeof(uint32_t)) {
        host_fail("the ioeventfd at 0x%llx is not that of a doorbell",
                  (unsigned long long)io->offset);
        return false;
    }
    if (index < HOST_DOORBELLS) {
        bells->bells[index] = (struct host_bell){
            .fd = io->fd,
            .value = (uint32_t *)(bells->map + io->shadow_offset),
        };
    }
    return true;
}

bool host_open_bells(struct host *host)
{
    struct host_bells *bells = &host->bells;

    if (!get_list(host) || !map_values(bells)) {
        return false;
    }
    for (uint32_t i = 0; i < bells->count; i++) {
        if (!use_bell(bells, &bells->list[i])) {
            return false;
        }
    }
    return true;
}

void host_close_bells(struct host *host)
{
    struct host_bells *bells = &host->bells;

    if (bells->map != NULL) {
        munmap(bells->map, bells->map_size);
    }
    vfuc_close_ioeventfds(bells->list, bells->count);
    free(bells->list);
    *bells = (struct host_bells){ .list = NULL };
}

bool host_ring_bell(struct host *host, unsigned index, uint32_t value)
{
    const struct host_bell *bell = &host->bells.bells[index];

    __atomic_store_n(bell->value, value, __ATOMIC_SEQ_CST);
    if (vfuc_eventfd_signal(bell->fd) != 0) {
        host_fail("cannot ring doorbell %u: %s", index, strerror(errno));
        return false;
    }
    return true;
}
