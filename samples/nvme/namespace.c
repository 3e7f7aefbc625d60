/* SPDX-License-Identifier: BSD-3-Clause */
#include "nvme.h"

#include <errno.h>
#include <stdio.h>

static int open_one(struct nvme *nvme, struct namespace *ns, const struct namespace_config *config)
{
    const char *name = config->path != NULL ? config->path : "memory";
    char why[256] = "";

    ns->nvme = nvme;
    ns->backend = config->path != NULL
                      ? backend_open_file(config->path, config->direct, config->shared, why,
                                          sizeof(why))
                      : backend_open_memory(config->size, why, sizeof(why));
    if (ns->backend == NULL) {
        fprintf(stderr, "nvme: namespace %u (%s): %s\n", ns->id, name, why);
        return -EIO;
    }
    ns->block_shift = (unsigned)__builtin_ctz(config->block_size);
    ns->blocks = backend_size(ns->backend) >> ns->block_shift;
    ns->aligned = config->direct;
    if (ns->blocks == 0) {
        fprintf(stderr, "nvme: namespace %u (%s) is smaller than one block of %u bytes\n", ns->id,
                name, config->block_size);
        return -EINVAL;
    }
    return 0;
}

int namespaces_open(struct nvme *nvme)
{
    int err = 0;

    for (unsigned i = 0; i < nvme->config.nr_namespaces && err == 0; i++) {
        nvme->namespaces[i].id = i + 1;
        nvme->nr_namespaces = i + 1;
        err = open_one(nvme, &nvme->namespaces[i], &nvme->config.namespaces[i]);
    }
    if (err != 0) {
        namespaces_close(nvme);
    }
    return err;
}

void namespaces_close(struct nvme *nvme)
{
    for (unsigned i = 0; i < nvme->nr_namespaces; i++) {
        backend_close(nvme->namespaces[i].backend);
    }
    nvme->nr_namespaces = 0;
}
