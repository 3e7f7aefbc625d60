/* SPDX-License-Identifier: BSD-3-Clause */
#include "identity.h"

#include "nvme.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

/* 128 bits, as two hashes that start from different values. */
struct seed {
    uint64_t halves[2];
};

/* FNV-1a, and a final mix (that of MurmurHash3), because FNV leaves similar inputs similar. */
static uint64_t hash(uint64_t h, const void *data, size_t len)
{
    const uint8_t *bytes = data;

    for (size_t i = 0; i < len; i++) {
        h = (h ^ bytes[i]) * UINT64_C(0x100000001b3);
    }
    h = (h ^ h >> 33) * UINT64_C(0xff51afd7ed558ccd);
    h = (h ^ h >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
    return h ^ h >> 33;
}

static void seed_add(struct seed *seed, const void *data, size_t len)
{
    for (unsigned i = 0; i < 2; i++) {
        seed->halves[i] = hash(seed->halves[i] ^ (i + 1), data, len);
    }
}

static void seed_add_path(struct seed *seed, const char *path)
{
    char *real = realpath(path, NULL);

    seed_add(seed, real != NULL ? real : path, strlen(real != NULL ? real : path));
    free(real);
}

/*
 * A file: its path and inode number. Several servers may serve a shared file, and each of them must
 * look like a different controller: there the socket's path counts as well.
 */
static int seed_namespace(const struct nvme_config *config, unsigned index, struct seed *seed)
{
    const struct namespace_config *ns = &config->namespaces[index];
    struct stat st = { 0 };

    if (ns->path == NULL) {
        return getrandom(seed, sizeof(*seed), 0) == (ssize_t)sizeof(*seed) ? 0 : -EIO;
    }
    *seed = (struct seed){ 0 };
    (void)stat(ns->path, &st);
    seed_add_path(seed, ns->path);
    seed_add(seed, &st.st_ino, sizeof(st.st_ino));
    seed_add(seed, &index, sizeof(index));
    if (ns->shared) {
        seed_add_path(seed, config->socket);
    }
    return 0;
}

/* RFC 9562: version 8 is of the maker's own scheme. */
static void make_uuid(uint8_t *uuid, const struct seed *seed)
{
    memcpy(uuid, seed, sizeof(*seed));
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x80);
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

/* EUI-64 and NGUID contain the organization's identifier, most significant byte first (7.10). */
static void make_namespace(struct namespace_identity *id, const struct seed *seed)
{
    const uint8_t oui[] = { NVME_OUI >> 16, NVME_OUI >> 8 & 0xff, NVME_OUI & 0xff };
    const uint8_t *bytes = (const uint8_t *)seed;

    make_uuid(id->uuid, seed);
    memcpy(id->eui64, oui, sizeof(oui));
    memcpy(id->eui64 + 3, bytes, 5);
    memcpy(id->nguid, bytes, 8);
    memcpy(id->nguid + 8, oui, sizeof(oui));
    memcpy(id->nguid + 11, bytes + 8, 5);
}

static bool is_set(const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] != 0) {
            return true;
        }
    }
    return false;
}

static void override(uint8_t *bytes, const uint8_t *wanted, size_t size)
{
    if (is_set(wanted, size)) {
        memcpy(bytes, wanted, size);
    }
}

static void make_controller(struct identity *id, const struct identity_config *config,
                            const struct seed *seed)
{
    uint8_t u[16];

    make_uuid(u, seed);
    if (config->serial != NULL) {
        snprintf(id->serial, sizeof(id->serial), "%s", config->serial);
    } else {
        snprintf(id->serial, sizeof(id->serial), "VU%016llx", (unsigned long long)seed->halves[0]);
    }
    if (config->subnqn != NULL) {
        snprintf(id->subnqn, sizeof(id->subnqn), "%s", config->subnqn);
    } else {
        snprintf(id->subnqn, sizeof(id->subnqn),
                 "nqn.2014-08.org.nvmexpress:uuid:"
                 "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
                 u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12],
                 u[13], u[14], u[15]);
    }
    id->cntlid = (uint16_t)(config->cntlid != 0 ? config->cntlid
                                                : 1 + seed->halves[1] % IDENTITY_CNTLID_MAX);
}

int identity_init(struct nvme *nvme)
{
    struct identity *id = &nvme->own_identity;
    struct seed all = { 0 }, seed;

    for (unsigned i = 0; i < nvme->config.nr_namespaces; i++) {
        const struct namespace_identity *wanted = &nvme->config.namespaces[i].identity;
        int err = seed_namespace(&nvme->config, i, &seed);

        if (err != 0) {
            fprintf(stderr, "nvme: namespace %u: no random numbers for its identifiers\n", i + 1);
            return err;
        }
        seed_add(&all, &seed, sizeof(seed));
        make_namespace(&id->namespaces[i], &seed);
        override(id->namespaces[i].uuid, wanted->uuid, sizeof(wanted->uuid));
        override(id->namespaces[i].nguid, wanted->nguid, sizeof(wanted->nguid));
        override(id->namespaces[i].eui64, wanted->eui64, sizeof(wanted->eui64));
    }
    make_controller(id, &nvme->config.identity, &all);
    nvme->identity = *id;
    return 0;
}

bool identity_valid(const struct identity *identity)
{
    return memchr(identity->serial, '\0', sizeof(identity->serial)) != NULL &&
           memchr(identity->subnqn, '\0', sizeof(identity->subnqn)) != NULL;
}

static int hex_digit(char c)
{
    static const char digits[] = "0123456789abcdefABCDEF";
    const char *at = c != '\0' ? strchr(digits, c) : NULL;
    int value = at != NULL ? (int)(at - digits) : -1;

    return value < 16 ? value : value - 6;
}

bool identity_parse_hex(const char *text, uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        int high, low;

        text += i > 0 && *text == '-';
        high = hex_digit(text[0]);
        low = high >= 0 ? hex_digit(text[1]) : -1;
        if (low < 0) {
            return false;
        }
        bytes[i] = (uint8_t)(high << 4 | low);
        text += 2;
    }
    return *text == '\0' && is_set(bytes, size);
}
