/* SPDX-License-Identifier: BSD-3-Clause */
/* The memory of the machine, which translations lead to. */
#include "iommu/iommu.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t last_of(const struct memory *memory)
{
    return memory->given.address + (memory->given.size - 1);
}

/* The first that ends at or behind an address. */
static size_t position(const struct vfuc_iommu *iommu, uint64_t address)
{
    size_t low = 0, high = iommu->nr_memory;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (last_of(&iommu->memory[middle]) < address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

struct memory *memory_find(const struct vfuc_iommu *iommu, uint64_t address, uint64_t *until)
{
    size_t i = position(iommu, address);
    struct memory *memory = i < iommu->nr_memory ? &iommu->memory[i] : NULL;

    if (memory == NULL) {
        *until = UINT64_MAX;
        return NULL;
    }
    if (address < memory->given.address) {
        *until = memory->given.address - 1;
        return NULL;
    }
    *until = last_of(memory);
    return memory->there ? memory : NULL;
}

bool memory_shared_at(const struct vfuc_iommu *iommu, uint64_t start, uint64_t size, int prot,
                      uint64_t *address)
{
    for (size_t i = 0; i < iommu->nr_memory; i++) {
        const struct memory *m = &iommu->memory[i];
        uint64_t here = (uintptr_t)m->given.vaddr;

        if (m->given.fd != -1 && !m->mapped_here && start >= here &&
            start - here < m->given.size && size <= m->given.size - (start - here) &&
            (prot & ~m->given.prot) == 0) {
            *address = m->given.address + (start - here);
            return true;
        }
    }
    return false;
}

uint8_t *memory_pointer(const struct memory *memory, uint64_t address)
{
    return (uint8_t *)memory->given.vaddr + (address - memory->given.address);
}

uint32_t memory_perm(const struct memory *memory)
{
    return (memory->given.prot & PROT_READ ? VFUC_IOMMU_READ | VFUC_IOMMU_EXEC : 0u) |
           (memory->given.prot & PROT_WRITE ? VFUC_IOMMU_WRITE : 0u);
}

/* What the server is told */

static vfuc_memory_t announcement(enum vfuc_iommu_mode mode, const struct memory *memory)
{
    const vfuc_iommu_memory_t *given = &memory->given;

    return (vfuc_memory_t){
        .iova = given->address,
        .size = given->size,
        .prot = given->prot,
        .fd = given->fd,
        .fd_offset = given->fd_offset,
        /* With an IOMMU the messages are answered by us, and not by the client's own table. */
        .vaddr = given->fd == -1 || mode == VFUC_IOMMU_NONE ? given->vaddr : NULL,
        .translated = mode == VFUC_IOMMU_ATS,
    };
}

/* The device, and how it is to see memory; NULL: there is none. */
static struct vfuc *device(struct vfuc_iommu *iommu, enum vfuc_iommu_mode *mode)
{
    struct vfuc *client;

    pthread_mutex_lock(&iommu->lock);
    client = iommu->client;
    *mode = iommu->mode;
    pthread_mutex_unlock(&iommu->lock);
    return client;
}

static bool is_there(struct vfuc_iommu *iommu, size_t i)
{
    bool there;

    pthread_mutex_lock(&iommu->lock);
    there = iommu->memory[i].there;
    pthread_mutex_unlock(&iommu->lock);
    return there;
}

int memory_announce(struct vfuc_iommu *iommu)
{
    enum vfuc_iommu_mode mode;
    struct vfuc *client = device(iommu, &mode);

    /* Whoever has the turn is the only one who changes the array. */
    for (size_t i = 0; i < iommu->nr_memory; i++) {
        const vfuc_memory_t region = announcement(mode, &iommu->memory[i]);

        /* With shadow mappings it is there without the server's knowledge. */
        if (client != NULL && mode != VFUC_IOMMU_SHADOW && !is_there(iommu, i) &&
            vfuc_dma_map(client, &region) < 0) {
            return -errno;
        }
        pthread_mutex_lock(&iommu->lock);
        /* A device that came meanwhile does not know it yet, and is told when it is brought up. */
        iommu->memory[i].there |= iommu->client == client;
        pthread_mutex_unlock(&iommu->lock);
    }
    return 0;
}

/* Adding */

static int check(const vfuc_iommu_memory_t *given)
{
    bool aligned = ((given->address | given->size | given->fd_offset) & PT_PAGE_MASK) == 0;

    if (!aligned || given->size == 0 || given->size - 1 > UINT64_MAX - given->address ||
        (given->fd == -1 && given->vaddr == NULL) ||
        (given->prot & ~(PROT_READ | PROT_WRITE)) != 0) {
        return -EINVAL;
    }
    return 0;
}

static void release(struct memory *memory)
{
    client_unguard(memory->guard);
    if (memory->mapped_here) {
        munmap(memory->given.vaddr, memory->given.size);
    }
    if (memory->given.fd != -1) {
        close(memory->given.fd);
    }
}

static int hold(struct memory *memory)
{
    vfuc_iommu_memory_t *given = &memory->given;
    int err = 0;

    if (given->fd == -1) {
        return 0;
    }
    given->fd = fcntl(given->fd, F_DUPFD_CLOEXEC, 0);
    if (given->fd == -1) {
        return -errno;
    }
    if (given->vaddr == NULL) {
        given->vaddr = mmap(NULL, given->size, given->prot, MAP_SHARED, given->fd,
                            (off_t)given->fd_offset);
        err = given->vaddr == MAP_FAILED ? -errno : 0;
        memory->mapped_here = err == 0;
    }
    if (err == 0) {
        err = client_guard(given->fd, given->vaddr, given->size, &memory->guard);
    }
    if (err < 0) {
        release(memory);
    }
    return err;
}

static int insert(struct vfuc_iommu *iommu, const struct memory *memory)
{
    size_t at = position(iommu, memory->given.address);
    int err;

    if (at < iommu->nr_memory && iommu->memory[at].given.address <= last_of(memory)) {
        return -EEXIST;
    }
    err = iommu_grow((void **)&iommu->memory, &iommu->max_memory, iommu->nr_memory,
                     sizeof(*iommu->memory));
    if (err < 0) {
        return err;
    }
    memmove(&iommu->memory[at + 1], &iommu->memory[at],
            (iommu->nr_memory - at) * sizeof(*iommu->memory));
    iommu->memory[at] = *memory;
    iommu->nr_memory++;
    return 0;
}

static void drop(struct vfuc_iommu *iommu, uint64_t address)
{
    size_t at;

    pthread_mutex_lock(&iommu->lock);
    at = position(iommu, address);
    release(&iommu->memory[at]);
    iommu->nr_memory--;
    memmove(&iommu->memory[at], &iommu->memory[at + 1],
            (iommu->nr_memory - at) * sizeof(*iommu->memory));
    pthread_mutex_unlock(&iommu->lock);
}

static int add(struct vfuc_iommu *iommu, struct memory *memory)
{
    enum vfuc_iommu_mode mode;
    int err;

    pthread_mutex_lock(&iommu->lock);
    err = insert(iommu, memory);
    mode = iommu_active_mode(iommu);
    pthread_mutex_unlock(&iommu->lock);
    if (err < 0) {
        release(memory);
        return err;
    }
    err = memory_announce(iommu);
    if (err == 0 && mode == VFUC_IOMMU_SHADOW) {
        err = shadow_refresh_all(iommu);
    }
    if (err < 0) {
        pthread_mutex_lock(&iommu->lock);
        iommu->memory[position(iommu, memory->given.address)].there = false;
        pthread_mutex_unlock(&iommu->lock);
        if (mode == VFUC_IOMMU_SHADOW) {
            shadow_refresh_all(iommu);
        }
        drop(iommu, memory->given.address);
    }
    return err;
}

int vfuc_iommu_add_memory(vfuc_iommu_t *iommu, const vfuc_iommu_memory_t *given)
{
    struct memory memory = { .given = *given };
    int err = iommu_may_wait(iommu);

    err = err < 0 ? err : check(given);
    err = err < 0 ? err : hold(&memory);
    if (err < 0) {
        return iommu_result(err);
    }
    iommu_take_turn(iommu);
    err = add(iommu, &memory);
    iommu_end_turn(iommu);
    return iommu_result(err);
}

/* Removing */

/* Nothing translates to it any more; now the server has to let go. */
static int take_back(struct vfuc_iommu *iommu, const struct memory *memory)
{
    enum vfuc_iommu_mode mode;
    struct vfuc *client = device(iommu, &mode);
    const vfuc_memory_t region = announcement(mode, memory);
    int err;

    if (client == NULL) {
        return 0;
    }
    if (mode == VFUC_IOMMU_SHADOW) {
        err = shadow_refresh_all(iommu);
        return err < 0 ? err : iommu_check_isolated(iommu);
    }
    if (vfuc_dma_unmap(client, &region) < 0) {
        err = -errno;
        /* Its descriptor is closed: the next connection is not to get it. */
        client_forget(client, &region, false);
        return iommu_kept(iommu, err);
    }
    return 0;
}

static int remove_memory(struct vfuc_iommu *iommu, uint64_t address)
{
    struct memory memory = { 0 };
    size_t at;
    int err = -ENOENT;

    pthread_mutex_lock(&iommu->lock);
    at = position(iommu, address);
    if (at < iommu->nr_memory && iommu->memory[at].given.address == address) {
        iommu->memory[at].there = false;
        memory = iommu->memory[at];
        err = 0;
    }
    pthread_mutex_unlock(&iommu->lock);
    if (err == 0) {
        err = take_back(iommu, &memory);
        drop(iommu, address);
    }
    return err;
}

int vfuc_iommu_remove_memory(vfuc_iommu_t *iommu, uint64_t address)
{
    int err = iommu_may_wait(iommu);

    if (err == 0) {
        iommu_take_turn(iommu);
        err = remove_memory(iommu, address);
        iommu_end_turn(iommu);
    }
    return iommu_result(err);
}

void memory_destroy(struct vfuc_iommu *iommu)
{
    for (size_t i = 0; i < iommu->nr_memory; i++) {
        release(&iommu->memory[i]);
    }
    free(iommu->memory);
}
