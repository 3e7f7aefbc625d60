/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The table of what was mapped: a search tree (tsearch(3)) by address space and address. Ranges of
 * a space do not overlap, so "equal" can mean "overlaps", and a range finds what it touches.
 */
#include "client.h"

#include "util/sigbus.h"

#include <errno.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/param.h>

struct range {
    uint64_t space; /* 0: plain, 1: translated, others: of a PASID */
    uint64_t first, last;
};

struct known {
    struct range range; /* first: what is searched for is a range */
    vfuc_memory_t memory;
    struct guard *guard; /* the server has the file, and may truncate it; NULL: it has not */
};

static void free_known(void *arg)
{
    struct known *entry = arg;

    client_unguard(entry->guard);
    free(entry);
}

static uint64_t space_number(const vfuc_memory_t *memory)
{
    return (memory->translated ? 1u : 0u) +
           (memory->has_pasid ? 2 * ((uint64_t)memory->pasid + 1) : 0);
}

static struct range range_of(const vfuc_memory_t *memory)
{
    return (struct range){ space_number(memory), memory->iova, memory->iova + (memory->size - 1) };
}

static int compare(const void *pa, const void *pb)
{
    const struct range *a = pa, *b = pb;

    if (a->space != b->space) {
        return a->space < b->space ? -1 : 1;
    }
    if (a->last < b->first) {
        return -1;
    }
    return a->first > b->last ? 1 : 0;
}

static struct known *find(struct vfuc *client, const struct range *range)
{
    struct known **node = tfind(range, &client->memory, compare);

    return node != NULL ? *node : NULL;
}

static bool same_memory(const vfuc_memory_t *a, const vfuc_memory_t *b)
{
    return a->iova == b->iova && a->size == b->size && a->prot == b->prot && a->fd == b->fd &&
           a->fd_offset == b->fd_offset && a->vaddr == b->vaddr;
}

int client_remember(struct vfuc *client, const vfuc_memory_t *memory)
{
    struct known *entry = malloc(sizeof(*entry)), **node;
    int result = 0;

    if (entry == NULL) {
        return -ENOMEM;
    }
    *entry = (struct known){ .range = range_of(memory), .memory = *memory };
    if (memory->fd != -1 && memory->vaddr != NULL) {
        result = client_guard(memory->fd, memory->vaddr, memory->size, &entry->guard);
        if (result < 0) {
            free(entry);
            return result;
        }
    }
    pthread_mutex_lock(&client->memory_lock);
    node = tsearch(entry, &client->memory, compare);
    if (node == NULL) {
        result = -ENOMEM;
    } else if (*node != entry) {
        result = same_memory(&(*node)->memory, memory) ? 1 : -EEXIST;
    }
    pthread_mutex_unlock(&client->memory_lock);
    if (result != 0) {
        free_known(entry);
    }
    return result;
}

void client_forget(struct vfuc *client, const vfuc_memory_t *memory, bool whole)
{
    struct range range = range_of(memory);
    struct known *entry;

    if (whole) {
        range.first = 0;
        range.last = UINT64_MAX;
    }
    pthread_mutex_lock(&client->memory_lock);
    while ((entry = find(client, &range)) != NULL) {
        if (entry->range.first < range.first && entry->range.last >= range.last) {
            break;
        } else if (entry->range.first < range.first) {
            range.first = entry->range.last + 1;
        } else if (entry->range.last > range.last) {
            if (entry->range.first == range.first) {
                break;
            }
            range.last = entry->range.first - 1;
        } else {
            tdelete(entry, &client->memory, compare);
            free_known(entry);
        }
    }
    pthread_mutex_unlock(&client->memory_lock);
}

/* Where an address is here, and how many bytes from it on; NULL when it may not be reached so. */
static uint8_t *reach(struct vfuc *client, uint64_t iova, int prot, uint64_t *len)
{
    const struct range range = { 0, iova, iova };
    const struct known *entry = find(client, &range);

    if (entry == NULL || entry->memory.vaddr == NULL || !(entry->memory.prot & prot)) {
        return NULL;
    }
    *len = entry->memory.size - (iova - entry->memory.iova);
    return (uint8_t *)entry->memory.vaddr + (iova - entry->memory.iova);
}

/* Both passes see the same table: the lock is held. */
static bool walk(struct vfuc *client, uint64_t iova, uint64_t len, uint8_t *data, bool to_memory)
{
    uint64_t n;

    for (uint64_t done = 0; done < len; done += n) {
        uint8_t *at = reach(client, iova + done, to_memory ? PROT_WRITE : PROT_READ, &n);

        if (at == NULL) {
            return false;
        }
        n = MIN(n, len - done);
        if (data != NULL && to_memory) {
            memcpy(at, data + done, n);
        } else if (data != NULL) {
            memcpy(data + done, at, n);
        }
    }
    return true;
}

/* The lock is held until the bytes have been moved: an unmap means that they are not. */
int client_copy(struct vfuc *client, uint64_t iova, uint64_t len, void *data, bool to_memory)
{
    bool reached = false;

    guard_this_thread();
    if (len == 0 || len - 1 > UINT64_MAX - iova) {
        return -EFAULT;
    }
    pthread_mutex_lock(&client->memory_lock);
    if (walk(client, iova, len, NULL, to_memory)) {
        reached = walk(client, iova, len, data, to_memory);
    }
    pthread_mutex_unlock(&client->memory_lock);
    return reached ? 0 : -EFAULT;
}

/* Where the walk of this thread writes: twalk(3) has no argument for it, and musl no twalk_r(). */
static _Thread_local struct {
    vfuc_memory_t *list;
    size_t n;
} listing;

static void visit(const void *node, VISIT which, int depth)
{
    const struct known *entry = *(struct known *const *)node;

    (void)depth;
    if (which != postorder && which != leaf) {
        return;
    }
    if (listing.list != NULL) {
        listing.list[listing.n] = entry->memory;
    }
    listing.n++;
}

/* Copies the table to list, unless that is NULL. Returns its length. Caller holds memory_lock. */
static size_t walk_table(struct vfuc *client, vfuc_memory_t *list)
{
    listing.list = list;
    listing.n = 0;
    twalk(client->memory, visit);
    return listing.n;
}

ssize_t client_list_memory(struct vfuc *client, vfuc_memory_t **list)
{
    ssize_t n;

    pthread_mutex_lock(&client->memory_lock);
    *list = calloc(walk_table(client, NULL) + 1, sizeof(**list));
    n = *list != NULL ? (ssize_t)walk_table(client, *list) : -ENOMEM;
    pthread_mutex_unlock(&client->memory_lock);
    return n;
}

void client_forget_all(struct vfuc *client)
{
    pthread_mutex_lock(&client->memory_lock);
    tdestroy(client->memory, free_known);
    client->memory = NULL;
    pthread_mutex_unlock(&client->memory_lock);
}
