/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Shadow mappings: for servers that do not ask, what the tables say is mapped in the server, range
 * by range. A range is contiguous for the device and in one memory. One that is there and still
 * true is left alone; the protocol has no way to change one, so one that is not is taken out, and
 * what remains of it is mapped anew.
 */
#include "iommu/iommu.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* Messages are translated anyway, with or without a mapping in the server. */
#define SHADOW_PERM PERM_RW

static size_t position(const struct attachment *attachment, uint64_t iova)
{
    size_t low = 0, high = attachment->nr_shadows;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (attachment->shadows[middle].last < iova) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* What the device may be given of a span without being asked. */
static uint32_t shown(const struct pt_span *span)
{
    return span->perm & (VFUC_IOMMU_PRIV | VFUC_IOMMU_UNCACHED) ? 0 : span->perm & SHADOW_PERM;
}

/* Lock held. Is what was mapped still what the tables say? */
static bool is_true(const struct vfuc_iommu *iommu, const struct attachment *attachment,
                    const struct shadow *shadow)
{
    struct pt_span span;

    for (uint64_t iova = shadow->first;; iova = span.last + 1) {
        space_walk(iommu, attachment->pasid, iova, &span);
        if (shown(&span) != shadow->perm ||
            span.target + (iova - span.first) != shadow->address + (iova - shadow->first)) {
            return false;
        }
        if (span.last >= shadow->last) {
            return true;
        }
    }
}

/*
 * Lock held. From iova on, at most up to last: what can be mapped as one, or a hole (perm 0). The
 * memory it lies in, in *memory.
 */
static void next_run(const struct vfuc_iommu *iommu, const struct attachment *attachment,
                     uint64_t iova, uint64_t last, struct shadow *run, struct memory **memory)
{
    struct pt_span span;
    uint64_t until = 0, address;

    for (uint64_t at = iova;; at = span.last + 1) {
        space_walk(iommu, attachment->pasid, at, &span);
        address = span.target + (at - span.first);
        if (at == iova) {
            *run = (struct shadow){ .first = iova, .address = address, .perm = shown(&span) };
            *memory = run->perm != 0 ? memory_find(iommu, address, &until) : NULL;
        } else if (shown(&span) != run->perm ||
                   (run->perm != 0 && (address != run->address + (at - iova) || address > until))) {
            break;
        }
        run->last = span.last < last ? span.last : last;
        if (span.last >= last) {
            break;
        }
    }
}

static vfuc_memory_t wire_mapping(const struct attachment *attachment, const struct shadow *shadow,
                                  const struct memory *memory)
{
    vfuc_memory_t m = {
        .iova = shadow->first,
        .size = shadow->last - shadow->first + 1,
        .prot = (shadow->perm & VFUC_IOMMU_READ ? PROT_READ : 0) |
                (shadow->perm & VFUC_IOMMU_WRITE ? PROT_WRITE : 0),
        .fd = -1,
        .has_pasid = attachment->pasid != VFUC_NO_PASID,
        .pasid = attachment->pasid,
    };

    if (memory != NULL) {
        m.fd = memory->given.fd;
        m.fd_offset = memory->given.fd_offset + (shadow->address - memory->given.address);
        m.vaddr = m.fd == -1 ? memory_pointer(memory, shadow->address) : NULL;
    }
    return m;
}

static int take_out(struct vfuc_iommu *iommu, struct attachment *attachment, size_t at)
{
    const vfuc_memory_t m = wire_mapping(attachment, &attachment->shadows[at], NULL);
    int err = vfuc_dma_unmap(iommu->client, &m) < 0 ? iommu_kept(iommu, -errno) : 0;

    /* A connection that has ended took the mapping along. */
    if (err < 0 && err != -ENOTCONN && err != -ETIMEDOUT) {
        return err;
    }
    attachment->nr_shadows--;
    memmove(&attachment->shadows[at], &attachment->shadows[at + 1],
            (attachment->nr_shadows - at) * sizeof(*attachment->shadows));
    pthread_mutex_lock(&iommu->lock);
    iommu->stats.shadow_unmaps++;
    pthread_mutex_unlock(&iommu->lock);
    return err;
}

static int put_in(struct vfuc_iommu *iommu, struct attachment *attachment,
                  const struct shadow *shadow, const vfuc_memory_t *m)
{
    size_t at = position(attachment, shadow->first);
    int err = iommu_grow((void **)&attachment->shadows, &attachment->max_shadows,
                         attachment->nr_shadows, sizeof(*attachment->shadows));

    if (err < 0) {
        return err;
    }
    if (vfuc_dma_map(iommu->client, m) < 0) {
        return -errno;
    }
    memmove(&attachment->shadows[at + 1], &attachment->shadows[at],
            (attachment->nr_shadows - at) * sizeof(*attachment->shadows));
    attachment->shadows[at] = *shadow;
    attachment->nr_shadows++;
    pthread_mutex_lock(&iommu->lock);
    iommu->stats.shadow_maps++;
    pthread_mutex_unlock(&iommu->lock);
    return 0;
}

/*
 * What is not true any more goes, also when the device has kept something else. The range grows to
 * all of what was taken out.
 */
static int remove_wrong(struct vfuc_iommu *iommu, struct attachment *attachment, uint64_t *first,
                        uint64_t *last)
{
    size_t i = position(attachment, *first);
    uint64_t end = *last;
    int result = 0;

    while (i < attachment->nr_shadows && attachment->shadows[i].first <= end) {
        const struct shadow shadow = attachment->shadows[i];
        size_t before = attachment->nr_shadows;
        bool keep;
        int err;

        pthread_mutex_lock(&iommu->lock);
        keep = is_true(iommu, attachment, &shadow);
        pthread_mutex_unlock(&iommu->lock);
        if (keep) {
            i++;
            continue;
        }
        err = take_out(iommu, attachment, i);
        result = result < 0 ? result : err;
        i += attachment->nr_shadows == before;
        *first = shadow.first < *first ? shadow.first : *first;
        *last = shadow.last > *last ? shadow.last : *last;
    }
    return result;
}

/* What is not there yet comes. */
static int add_missing(struct vfuc_iommu *iommu, struct attachment *attachment, uint64_t first,
                       uint64_t last)
{
    struct shadow run;

    for (uint64_t iova = first;; iova = run.last + 1) {
        size_t i = position(attachment, iova);
        struct shadow *there = i < attachment->nr_shadows ? &attachment->shadows[i] : NULL;
        struct memory *memory = NULL;
        vfuc_memory_t m;
        int err = 0;

        if (there != NULL && there->first <= iova) {
            run = *there;
        } else {
            pthread_mutex_lock(&iommu->lock);
            next_run(iommu, attachment, iova,
                     there != NULL && there->first <= last ? there->first - 1 : last, &run,
                     &memory);
            pthread_mutex_unlock(&iommu->lock);
        }
        if (memory != NULL) {
            m = wire_mapping(attachment, &run, memory);
            err = put_in(iommu, attachment, &run, &m);
        }
        if (err < 0 || run.last >= last) {
            return err;
        }
    }
}

int shadow_refresh(struct vfuc_iommu *iommu, struct attachment *attachment, uint64_t first,
                   uint64_t last)
{
    int err = vfuc_iommu_isolated(iommu) ? -EIO : 0;

    err = err < 0 ? err : remove_wrong(iommu, attachment, &first, &last);
    return err < 0 ? err : add_missing(iommu, attachment, first, last);
}

int shadow_refresh_domain(struct vfuc_iommu *iommu, const struct vfuc_iommu_domain *domain,
                          uint64_t first, uint64_t last)
{
    struct attachment *attachment;
    uint64_t cursor = 0;
    int result = 0, err;

    for (;;) {
        bool whole;

        pthread_mutex_lock(&iommu->lock);
        attachment = attachment_next(iommu, domain, &cursor);
        whole = attachment != NULL && attachment->domain != domain;
        pthread_mutex_unlock(&iommu->lock);
        if (attachment == NULL) {
            return result;
        }
        err = shadow_refresh(iommu, attachment, whole ? 0 : first, whole ? UINT64_MAX : last);
        result = result < 0 ? result : err;
    }
}

int shadow_refresh_all(struct vfuc_iommu *iommu)
{
    return shadow_refresh_domain(iommu, NULL, 0, UINT64_MAX);
}
