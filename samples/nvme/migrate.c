/* SPDX-License-Identifier: BSD-3-Clause */
#include "nvme.h"

int migration_setup(struct nvme *nvme)
{
    (void)nvme;
    return 0;
}

void migration_destroy(struct nvme *nvme)
{
    (void)nvme;
}
