/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The machine's IOMMU: an address space for each of some PASIDs, and a page that comes when the
 * device asks for it.
 */

#ifndef IOMMU_H
#define IOMMU_H

#include "vfio-user-client-iommu.h"

#include <stdbool.h>

#define IOMMU_PASIDS 4
#define IOMMU_PAGE_SIZE 0x1000u
#define IOMMU_BASE 0x10000u /* where the pages of every PASID begin */
#define IOMMU_ON_DEMAND 3   /* the page that is not there before it is asked for */

struct ram;

struct machine_iommu {
    vfuc_iommu_t *iommu;
    vfuc_iommu_domain_t *domains[IOMMU_PASIDS];
    const struct ram *shared; /* where the page on demand is */
};

/* 0, or -1 and errno. */
int iommu_init(struct machine_iommu *machine);
void iommu_destroy(struct machine_iommu *machine);

/* RAM, and an address space for each PASID. */
int iommu_add_rams(struct machine_iommu *machine, const struct ram *rams);

/* A page of a PASID leads to an address in RAM; to no other any more, when this returns 0. */
int iommu_map(struct machine_iommu *machine, unsigned pasid, unsigned page, uint64_t addr);
/* It leads nowhere, and the device has let go of it. */
int iommu_unmap(struct machine_iommu *machine, unsigned pasid, unsigned page);

/* What has happened so far. */
vfuc_iommu_stats_t iommu_stats(const struct machine_iommu *machine);

#endif /* IOMMU_H */
