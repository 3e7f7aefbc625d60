/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the demo does with the device, one after the other.
 */

#ifndef CHECKS_H
#define CHECKS_H

#include "driver.h"

struct check {
    const char *what;
    /* Writes what it saw to seen; true when that is right and no error came. */
    bool (*run)(struct driver *d, char *seen, size_t size);
};

extern const struct check checks[];
extern const size_t nr_checks;

/* The same for the device behind an IOMMU. */
extern const struct check iommu_checks[];
extern const size_t nr_iommu_checks;

#endif /* CHECKS_H */
