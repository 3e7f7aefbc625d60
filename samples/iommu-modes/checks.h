/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is checked with each kind of IOMMU: always the same calls. Each check runs in a machine with
 * a domain of its own that is attached to pasid.
 */

#ifndef CHECKS_H
#define CHECKS_H

#include "machine.h"

struct bench {
    struct machine *machine;
    uint32_t pasid; /* or VFUC_NO_PASID */
    vfuc_iommu_domain_t *domain;
    uint8_t secret; /* the last that was put into RAM */
    char *seen; /* what is to be printed */
    size_t size;
};

/* Returns whether all was as expected. */
typedef bool (check_t)(struct bench *b);

check_t check_identity, check_scattered, check_unmapped_write, check_unmapped_read,
    check_read_only, check_other_page, check_under_way, check_batch, check_spaces, check_stage1,
    check_stage2, check_both_stages, check_on_demand, check_no_such_page, check_process,
    check_evicted;

/* The fault callback that the checks of page requests count on. */
void on_fault(void *pvt, vfuc_iommu_t *iommu, const vfuc_iommu_fault_t *fault);

#endif /* CHECKS_H */
