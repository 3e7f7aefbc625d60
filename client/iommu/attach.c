/* SPDX-License-Identifier: BSD-3-Clause */
/* Which domain translates which requests. */
#include "iommu/iommu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Requests without a PASID come first. */
static uint64_t key(uint32_t pasid)
{
    return pasid == VFUC_NO_PASID ? 0 : (uint64_t)pasid + 1;
}

static size_t position(const struct vfuc_iommu *iommu, uint64_t wanted)
{
    size_t low = 0, high = iommu->nr_attached;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (key(iommu->attached[middle]->pasid) < wanted) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

struct attachment *attachment_find(const struct vfuc_iommu *iommu, uint32_t pasid)
{
    size_t at = position(iommu, key(pasid));

    return at < iommu->nr_attached && iommu->attached[at]->pasid == pasid ? iommu->attached[at]
                                                                          : NULL;
}

struct attachment *attachment_next(const struct vfuc_iommu *iommu,
                                   const struct vfuc_iommu_domain *domain, uint64_t *cursor)
{
    for (size_t i = position(iommu, *cursor); i < iommu->nr_attached; i++) {
        struct attachment *a = iommu->attached[i];

        if (domain == NULL ||
            (a->domain != NULL && (a->domain == domain || a->domain->stage2 == domain))) {
            *cursor = key(a->pasid) + 1;
            return a;
        }
    }
    return NULL;
}

static void free_attachment(struct attachment *attachment)
{
    free(attachment->shadows);
    free(attachment);
}

void attachments_destroy(struct vfuc_iommu *iommu)
{
    for (size_t i = 0; i < iommu->nr_attached; i++) {
        free_attachment(iommu->attached[i]);
    }
    free(iommu->attached);
    iommu->nr_attached = 0;
    iommu->attached = NULL;
}

/* Lock held. NULL: no memory. */
static struct attachment *get_attachment(struct vfuc_iommu *iommu, uint32_t pasid)
{
    struct attachment *attachment = attachment_find(iommu, pasid);
    size_t at = position(iommu, key(pasid));

    if (attachment != NULL) {
        return attachment;
    }
    attachment = calloc(1, sizeof(*attachment));
    if (attachment == NULL ||
        iommu_grow((void **)&iommu->attached, &iommu->max_attached, iommu->nr_attached,
                   sizeof(*iommu->attached)) < 0) {
        free(attachment);
        return NULL;
    }
    attachment->pasid = pasid;
    memmove(&iommu->attached[at + 1], &iommu->attached[at],
            (iommu->nr_attached - at) * sizeof(*iommu->attached));
    iommu->attached[at] = attachment;
    iommu->nr_attached++;
    return attachment;
}

/* Turn and lock held. */
static void reap(struct vfuc_iommu *iommu, struct attachment *attachment)
{
    size_t at = position(iommu, key(attachment->pasid));

    if (attachment->domain != NULL || attachment->nr_shadows > 0) {
        return;
    }
    iommu->nr_attached--;
    memmove(&iommu->attached[at], &iommu->attached[at + 1],
            (iommu->nr_attached - at) * sizeof(*iommu->attached));
    free_attachment(attachment);
}

static int check(const struct vfuc_iommu *iommu, uint32_t pasid,
                 const struct vfuc_iommu_domain *domain)
{
    bool connected = iommu->client != NULL;
    uint32_t bits = connected ? iommu->agreed.iommu.pasid_bits : VFIO_USER_PASID_BITS;

    if (domain != NULL && domain->iommu != iommu) {
        return -EINVAL;
    }
    if ((connected ? iommu->mode : iommu->options.mode) == VFUC_IOMMU_NONE) {
        return -ENOTSUP;
    }
    if (pasid != VFUC_NO_PASID) {
        return bits == 0 ? -ENOTSUP : pasid >> bits != 0 ? -EINVAL : 0;
    }
    return 0;
}

/* What was attached before: nothing, or something that may be in the device's cache. */
struct previous {
    bool some, global, same;
};

/* Turn and lock held. What was there before. */
static struct previous exchange(struct vfuc_iommu *iommu, struct attachment *attachment,
                                struct vfuc_iommu_domain *domain)
{
    struct vfuc_iommu_domain *old = attachment->domain;

    attachment->domain = domain;
    iommu_begin_exchange(iommu);
    if (domain != NULL) {
        domain->refs++;
    }
    if (old != NULL) {
        old->refs--;
    }
    return (struct previous){ old != NULL, old != NULL && old->had_global, old == domain };
}

/* The device lets go of what the last domain said, and gets to know the new one. */
static int tell(struct vfuc_iommu *iommu, struct attachment *attachment,
                const struct previous *previous)
{
    enum vfuc_iommu_mode mode;

    pthread_mutex_lock(&iommu->lock);
    mode = iommu_active_mode(iommu);
    pthread_mutex_unlock(&iommu->lock);
    if (mode == VFUC_IOMMU_SHADOW) {
        return shadow_refresh(iommu, attachment, 0, UINT64_MAX);
    }
    if (mode == VFUC_IOMMU_ATS && previous->some) {
        return space_invalidate(iommu, attachment->pasid, previous->global);
    }
    return 0;
}

/* Turn held. Nothing is attached to what could not be shown all of it. */
static void take_back(struct vfuc_iommu *iommu, struct attachment *attachment)
{
    struct previous previous;

    pthread_mutex_lock(&iommu->lock);
    previous = exchange(iommu, attachment, NULL);
    pthread_mutex_unlock(&iommu->lock);
    tell(iommu, attachment, &previous);
}

int attach_domain(struct vfuc_iommu *iommu, uint32_t pasid, struct vfuc_iommu_domain *domain)
{
    struct attachment *attachment = NULL;
    struct previous previous = { .some = false };
    int err;

    pthread_mutex_lock(&iommu->lock);
    err = check(iommu, pasid, domain);
    if (err == 0) {
        attachment = get_attachment(iommu, pasid);
        err = attachment == NULL ? -ENOMEM : 0;
    }
    if (err == 0) {
        previous = exchange(iommu, attachment, domain);
    }
    pthread_mutex_unlock(&iommu->lock);
    if (err < 0) {
        return err;
    }
    err = previous.same ? 0 : tell(iommu, attachment, &previous);
    err = err < 0 ? err : iommu_check_isolated(iommu);
    if (err < 0 && domain != NULL) {
        take_back(iommu, attachment);
    }
    pthread_mutex_lock(&iommu->lock);
    reap(iommu, attachment);
    pthread_mutex_unlock(&iommu->lock);
    return err;
}

int vfuc_iommu_attach(vfuc_iommu_t *iommu, uint32_t pasid, vfuc_iommu_domain_t *domain)
{
    int err = iommu_may_wait(iommu);

    if (err == 0) {
        iommu_take_turn(iommu);
        err = attach_domain(iommu, pasid, domain);
        iommu_end_turn(iommu);
    }
    return iommu_result(err);
}
