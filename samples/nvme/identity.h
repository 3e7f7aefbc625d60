/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The names by which hosts tell controllers and namespaces apart (NVMe 5.15, 7.9, 7.10). By default
 * they are derived from what a namespace is stored in: a file has the same names whenever it is
 * served, and no two servers or namespaces have the same ones.
 */

#ifndef NVME_IDENTITY_H
#define NVME_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IDENTITY_SERIAL_SIZE 20u
#define IDENTITY_NQN_SIZE 223u
#define IDENTITY_CNTLID_MAX 0xffefu /* larger values are reserved */
#define IDENTITY_NAMESPACES 32u

struct nvme;

struct namespace_identity {
    uint8_t uuid[16], nguid[16], eui64[8];
};

/* Part of the migrated state: the guest finds its disk under the same names on the other side. */
struct identity {
    char serial[IDENTITY_SERIAL_SIZE + 1];
    char subnqn[IDENTITY_NQN_SIZE + 1];
    uint16_t cntlid;
    uint16_t reserved;
    struct namespace_identity namespaces[IDENTITY_NAMESPACES];
};

/* What the command line says. Zeros or NULL: not set, use the default. */
struct identity_config {
    const char *serial, *subnqn;
    unsigned cntlid;
};

/*
 * Sets nvme->own_identity and nvme->identity from the configuration and the files of the
 * namespaces. Returns 0, or -errno if there are no random numbers.
 */
int identity_init(struct nvme *nvme);

/* Checks the texts of an identity that a client has sent. */
bool identity_valid(const struct identity *identity);

/*
 * Reads 2 * size hexadecimal digits; hyphens between bytes are skipped. Returns false if text is
 * anything else, or all zeros, which says "no identifier" (figures 247, 249).
 */
bool identity_parse_hex(const char *text, uint8_t *bytes, size_t size);

#endif /* NVME_IDENTITY_H */
