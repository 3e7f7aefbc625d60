/* SPDX-License-Identifier: BSD-3-Clause */
#include "nvme.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* FNV-1a: the same namespace has the same identity each time. */
static uint64_t hash(uint64_t h, const char *text)
{
    for (; *text != '\0'; text++) {
        h = (h ^ (uint8_t)*text) * 0x100000001b3u;
    }
    return h;
}

/* A UUID of version 8: the serial number, the number of the namespace, and what it is made of. */
static void make_uuid(struct namespace *ns, const char *serial, const char *path)
{
    uint64_t halves[2] = { hash(0xcbf29ce484222325u, serial), hash(ns->id, path) };

    memcpy(ns->uuid, halves, sizeof(halves));
    ns->uuid[6] = (uint8_t)((ns->uuid[6] & 0x0f) | 0x80);
    ns->uuid[8] = (uint8_t)((ns->uuid[8] & 0x3f) | 0x80);
}

static int open_one(struct nvme *nvme, struct namespace *ns, const struct namespace_config *config)
{
    const char *name = config->path != NULL ? config->path : "memory";
    char why[256] = "";

    ns->nvme = nvme;
    ns->backend = config->path != NULL
                      ? backend_open_file(config->path, config->direct, why, sizeof(why))
                      : backend_open_memory(config->size, why, sizeof(why));
    if (ns->backend == NULL) {
        fprintf(stderr, "nvme: namespace %u (%s): %s\n", ns->id, name, why);
        return -EIO;
    }
    ns->block_shift = (unsigned)__builtin_ctz(config->block_size);
    ns->blocks = backend_size(ns->backend) >> ns->block_shift;
    ns->aligned = config->direct;
    make_uuid(ns, nvme->config.serial, name);
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
