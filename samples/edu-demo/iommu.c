/* SPDX-License-Identifier: BSD-3-Clause */
#include "iommu.h"

#include "driver.h"
#include "vfio-user.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define RW (VFUC_IOMMU_READ | VFUC_IOMMU_WRITE)

static uint64_t iova(unsigned page)
{
    return IOMMU_BASE + page * IOMMU_PAGE_SIZE;
}

/* On the client's receiver thread. */
static void on_fault(void *pvt, vfuc_iommu_t *iommu, const vfuc_iommu_fault_t *fault)
{
    struct machine_iommu *machine = pvt;
    uint32_t code = VFIO_USER_PAGE_RESP_INVALID;

    if (fault->pasid < IOMMU_PASIDS && fault->address == iova(IOMMU_ON_DEMAND) &&
        vfuc_iommu_map(machine->domains[fault->pasid], fault->address,
                       machine->shared->addr + IOMMU_ON_DEMAND * IOMMU_PAGE_SIZE, IOMMU_PAGE_SIZE,
                       RW) == 0) {
        code = VFIO_USER_PAGE_RESP_SUCCESS;
    }
    vfuc_iommu_page_response(iommu, fault->id, code);
}

int iommu_init(struct machine_iommu *machine)
{
    const vfuc_iommu_options_t options = {
        .mode = VFUC_IOMMU_ATS,
        .fault = on_fault,
        .pvt = machine,
    };

    memset(machine, 0, sizeof(*machine));
    machine->iommu = vfuc_iommu_create(&options);
    return machine->iommu != NULL ? 0 : -1;
}

void iommu_destroy(struct machine_iommu *machine)
{
    vfuc_iommu_destroy(machine->iommu);
}

int iommu_add_rams(struct machine_iommu *machine, const struct ram *rams)
{
    machine->shared = &rams[RAM_SHARED];
    for (int kind = 0; kind < NR_RAMS; kind++) {
        const vfuc_iommu_memory_t memory = {
            .address = rams[kind].addr,
            .size = RAM_SIZE,
            .prot = PROT_READ | PROT_WRITE,
            .fd = rams[kind].fd,
            .vaddr = rams[kind].mem,
        };

        if (vfuc_iommu_add_memory(machine->iommu, &memory) < 0) {
            return -1;
        }
    }
    for (unsigned pasid = 0; pasid < IOMMU_PASIDS; pasid++) {
        machine->domains[pasid] = vfuc_iommu_domain_create(machine->iommu);
        if (machine->domains[pasid] == NULL ||
            vfuc_iommu_attach(machine->iommu, pasid, machine->domains[pasid]) < 0) {
            return -1;
        }
    }
    return 0;
}

int iommu_map(struct machine_iommu *machine, unsigned pasid, unsigned page, uint64_t addr)
{
    if (iommu_unmap(machine, pasid, page) < 0 && errno != ENOENT) {
        return -1;
    }
    return vfuc_iommu_map(machine->domains[pasid], iova(page), addr, IOMMU_PAGE_SIZE, RW);
}

int iommu_unmap(struct machine_iommu *machine, unsigned pasid, unsigned page)
{
    return vfuc_iommu_unmap(machine->domains[pasid], iova(page), IOMMU_PAGE_SIZE);
}

vfuc_iommu_stats_t iommu_stats(const struct machine_iommu *machine)
{
    vfuc_iommu_stats_t stats;

    vfuc_iommu_stats(machine->iommu, &stats);
    return stats;
}
