/* SPDX-License-Identifier: BSD-3-Clause */
/* Regions mapped into this process: what may be is, the rest goes by messages. */
#include "client.h"

#include "util/peer_file.h"
#include "util/sigbus.h"

#include <errno.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <sys/stat.h>
#include <unistd.h>

struct vfuc_mapping {
    struct vfuc *client;
    uint32_t region;
    int prot;
    uint32_t nr_areas;
    vfuc_mapped_area_t areas[VFUC_MAX_AREAS];
    struct guard *guards[VFUC_MAX_AREAS]; /* the server may truncate the file */
    LIST_ENTRY(vfuc_mapping) link;
};

/* A region that may be mapped, and does not say where, is one area. */
static void whole_region(vfuc_region_info_t *info)
{
    if (!(info->flags & VFIO_REGION_INFO_FLAG_MMAP) || info->fd == -1) {
        info->nr_areas = 0;
    } else if (!info->sparse && info->size > 0) {
        info->nr_areas = 1;
        info->areas[0] = (vfuc_mmap_area_t){ 0, info->size };
    }
}

/* Memory only: another file may belong to a file system of the server that never answers. */
static int check_kind(struct vfuc *client, uint32_t region, const vfuc_region_info_t *info)
{
    char kind[PEER_FILE_KIND_MAX];
    int err = peer_file_check_memory(info->fd, NULL, kind);

    if (err < 0) {
        client_log(client, "region %u: its file is of kind '%s', not of memfd, tmpfs or hugetlbfs: "
                   "not mapped (VFU_MEMORY_FILES=%s in the environment allows it)", region, kind,
                   kind);
    }
    return err;
}

/* What the server offers has to be there: an access behind the end of a file is SIGBUS. */
static int check_areas(struct vfuc *client, uint32_t region, const vfuc_region_info_t *info)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct stat st;
    int err;

    if (info->nr_areas == 0) {
        return 0;
    }
    err = check_kind(client, region, info);
    if (err < 0) {
        return err;
    }
    if (fstat(info->fd, &st) == -1) {
        return -errno;
    }
    for (uint32_t i = 0; i < info->nr_areas; i++) {
        uint64_t offset = info->fd_offset + info->areas[i].offset;

        if (offset % page != 0 || offset > INT64_MAX ||
            (S_ISREG(st.st_mode) && ((uint64_t)st.st_size < offset ||
                                     (uint64_t)st.st_size - offset < info->areas[i].size))) {
            client_log(client, "region %u: area at 0x%llx of 0x%llx bytes is not a page's start, "
                       "or not in the file", region, (unsigned long long)info->areas[i].offset,
                       (unsigned long long)info->areas[i].size);
            return -EPROTO;
        }
    }
    return 0;
}

/* Maps an area; in place, with a guard instead of the old one, when it was mapped before. */
static int map_area(struct vfuc_mapping *mapping, const vfuc_region_info_t *info, uint32_t i)
{
    const vfuc_mmap_area_t *from = &info->areas[i];
    vfuc_mapped_area_t *area = &mapping->areas[i];
    void *vaddr = mmap(area->vaddr, from->size, mapping->prot,
                       MAP_SHARED | (area->vaddr != NULL ? MAP_FIXED : 0), info->fd,
                       (off_t)(info->fd_offset + from->offset));
    struct guard *guard;
    int err;

    if (vaddr == MAP_FAILED) {
        return -errno;
    }
    err = client_guard(info->fd, vaddr, from->size, &guard);
    if (err < 0) {
        if (area->vaddr == NULL) {
            munmap(vaddr, from->size);
        }
        return err;
    }
    client_unguard(mapping->guards[i]);
    mapping->guards[i] = guard;
    *area = (vfuc_mapped_area_t){ from->offset, from->size, vaddr };
    return 0;
}

static void unmap_areas(struct vfuc_mapping *mapping)
{
    for (uint32_t i = 0; i < mapping->nr_areas; i++) {
        client_unguard(mapping->guards[i]);
        munmap(mapping->areas[i].vaddr, mapping->areas[i].size);
    }
    mapping->nr_areas = 0;
}

static int map_areas(struct vfuc_mapping *mapping, const vfuc_region_info_t *info)
{
    int err = 0;

    for (uint32_t i = 0; i < info->nr_areas && err == 0; i++) {
        mapping->areas[i].vaddr = NULL;
        mapping->guards[i] = NULL;
        err = map_area(mapping, info, i);
        mapping->nr_areas += err == 0;
    }
    return err;
}

/* The areas of a region, checked; the caller closes info->fd. */
static int ask(struct vfuc *client, uint32_t region, vfuc_region_info_t *info)
{
    int err;

    if (vfuc_region_info(client, region, info) < 0) {
        return -errno;
    }
    whole_region(info);
    err = check_areas(client, region, info);
    if (err < 0) {
        peer_file_close(info->fd);
    }
    return err;
}

static int fill(struct vfuc_mapping *mapping)
{
    vfuc_region_info_t info;
    int err = ask(mapping->client, mapping->region, &info);

    if (err < 0) {
        return err;
    }
    err = map_areas(mapping, &info);
    if (err < 0) {
        unmap_areas(mapping);
    }
    if (info.fd != -1) {
        peer_file_close(info.fd);
    }
    return err;
}

vfuc_mapping_t *vfuc_region_mmap(vfuc_t *client, uint32_t region, int prot)
{
    struct vfuc_mapping *mapping;
    int err = -EDEADLK;

    if (client_on_receiver(client) || prot == 0 || (prot & ~(PROT_READ | PROT_WRITE)) != 0) {
        errno = client_on_receiver(client) ? EDEADLK : EINVAL;
        return NULL;
    }
    mapping = calloc(1, sizeof(*mapping));
    if (mapping == NULL) {
        return NULL;
    }
    mapping->client = client;
    mapping->region = region;
    mapping->prot = prot;
    pthread_mutex_lock(&client->life_lock);
    err = fill(mapping);
    if (err == 0) {
        LIST_INSERT_HEAD(&client->mappings, mapping, link);
    }
    pthread_mutex_unlock(&client->life_lock);
    if (err < 0) {
        free(mapping);
        errno = -err;
        return NULL;
    }
    return mapping;
}

void vfuc_region_munmap(vfuc_mapping_t *mapping)
{
    struct vfuc *client;

    if (mapping == NULL) {
        return;
    }
    client = mapping->client;
    pthread_mutex_lock(&client->life_lock);
    LIST_REMOVE(mapping, link);
    pthread_mutex_unlock(&client->life_lock);
    unmap_areas(mapping);
    free(mapping);
}

void client_unmap_all(struct vfuc *client)
{
    struct vfuc_mapping *mapping;

    while ((mapping = LIST_FIRST(&client->mappings)) != NULL) {
        LIST_REMOVE(mapping, link);
        unmap_areas(mapping);
        free(mapping);
    }
}

/* In place: others have the addresses. */
static int restore_mapping(struct vfuc_mapping *mapping)
{
    vfuc_region_info_t info;
    int err = ask(mapping->client, mapping->region, &info);

    if (err < 0) {
        return err;
    }
    if (info.nr_areas != mapping->nr_areas) {
        err = -ESTALE;
    }
    for (uint32_t i = 0; i < mapping->nr_areas && err == 0; i++) {
        if (info.areas[i].offset != mapping->areas[i].offset ||
            info.areas[i].size != mapping->areas[i].size) {
            err = -ESTALE;
        }
    }
    for (uint32_t i = 0; i < mapping->nr_areas && err == 0; i++) {
        err = map_area(mapping, &info, i);
    }
    if (err == -ESTALE) {
        client_log(mapping->client, "region %u of the server that came back has other areas",
                   mapping->region);
    }
    if (info.fd != -1) {
        peer_file_close(info.fd);
    }
    return err;
}

int client_restore_mappings(struct vfuc *client)
{
    struct vfuc_mapping *mapping;
    int err = 0;

    LIST_FOREACH (mapping, &client->mappings, link) {
        err = err < 0 ? err : restore_mapping(mapping);
    }
    return err;
}

/* Access */

uint32_t vfuc_mapping_areas(vfuc_mapping_t *mapping, vfuc_mapped_area_t *areas, uint32_t max)
{
    for (uint32_t i = 0; i < mapping->nr_areas && i < max; i++) {
        areas[i] = mapping->areas[i];
    }
    return mapping->nr_areas;
}

/* 0, or -EIO when the server has truncated the file of an area. */
static int check_truncated(const struct vfuc_mapping *mapping)
{
    for (uint32_t i = 0; i < mapping->nr_areas; i++) {
        if (guard_tripped(mapping->guards[i])) {
            return -EIO;
        }
    }
    return 0;
}

/*
 * Where an offset is mapped, or NULL; and for how many bytes from there on that is so, at most
 * count.
 */
static uint8_t *locate(const struct vfuc_mapping *mapping, uint64_t offset, uint64_t *count)
{
    for (uint32_t i = 0; i < mapping->nr_areas; i++) {
        const vfuc_mapped_area_t *area = &mapping->areas[i];

        if (offset >= area->offset && offset - area->offset < area->size) {
            *count = MIN(*count, area->size - (offset - area->offset));
            return (uint8_t *)area->vaddr + (offset - area->offset);
        }
        if (area->offset > offset) {
            *count = MIN(*count, area->offset - offset);
        }
    }
    return NULL;
}

void *vfuc_mapping_at(vfuc_mapping_t *mapping, uint64_t offset, uint64_t count)
{
    uint64_t mapped = count;
    uint8_t *at = locate(mapping, offset, &mapped);

    return mapped == count ? at : NULL;
}

/* A register is accessed once and whole, as the bus would: memcpy() promises neither. */
static void copy(void *to, const void *from, size_t count)
{
    bool aligned = ((uintptr_t)to | (uintptr_t)from) % count == 0;

    if (count == 8 && aligned) {
        *(volatile uint64_t *)to = *(const volatile uint64_t *)from;
    } else if (count == 4 && aligned) {
        *(volatile uint32_t *)to = *(const volatile uint32_t *)from;
    } else if (count == 2 && aligned) {
        *(volatile uint16_t *)to = *(const volatile uint16_t *)from;
    } else {
        memcpy(to, from, count);
    }
}

/* The caller's side may be anywhere: by way of a word of our own. */
static void access_mapped(uint8_t *at, uint8_t *data, size_t count, bool is_write)
{
    uint64_t word;

    if (count > sizeof(word)) {
        memcpy(is_write ? at : data, is_write ? data : at, count);
    } else if (is_write) {
        memcpy(&word, data, count);
        copy(at, &word, count);
    } else {
        copy(&word, at, count);
        memcpy(data, &word, count);
    }
}

static int access_region(vfuc_mapping_t *mapping, uint64_t offset, uint8_t *data, size_t count,
                         bool is_write)
{
    if (count > UINT64_MAX - offset) {
        return (int)client_result(-EINVAL);
    }
    guard_this_thread();
    while (count > 0) {
        uint64_t n = count;
        uint8_t *at = locate(mapping, offset, &n);
        int r = 0;

        if (at != NULL && (mapping->prot & (is_write ? PROT_WRITE : PROT_READ))) {
            access_mapped(at, data, n, is_write);
            r = (int)client_result(check_truncated(mapping));
        } else {
            n = MIN(n, atomic_load(&mapping->client->max_data));
            r = is_write
                    ? vfuc_region_write(mapping->client, mapping->region, offset, data, n)
                    : vfuc_region_read(mapping->client, mapping->region, offset, data, n);
        }
        if (r < 0) {
            return -1;
        }
        offset += n;
        data += n;
        count -= n;
    }
    return 0;
}

int vfuc_mapping_read(vfuc_mapping_t *mapping, uint64_t offset, void *data, size_t count)
{
    return access_region(mapping, offset, data, count, false);
}

int vfuc_mapping_write(vfuc_mapping_t *mapping, uint64_t offset, const void *data, size_t count)
{
    return access_region(mapping, offset, (uint8_t *)data, count, true);
}
