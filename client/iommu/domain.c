/* SPDX-License-Identifier: BSD-3-Clause */
/* Domains: address spaces and what is mapped in them. */
#include "iommu/iommu.h"

#include <errno.h>
#include <stdlib.h>

vfuc_iommu_domain_t *vfuc_iommu_domain_create(vfuc_iommu_t *iommu)
{
    struct vfuc_iommu_domain *domain = calloc(1, sizeof(*domain));

    if (domain == NULL || pagetable_init(&domain->table, iommu->options.address_bits) < 0) {
        free(domain);
        iommu_result(-ENOMEM);
        return NULL;
    }
    domain->iommu = iommu;
    pthread_mutex_lock(&iommu->lock);
    LIST_INSERT_HEAD(&iommu->domains, domain, link);
    pthread_mutex_unlock(&iommu->lock);
    return domain;
}

void domain_free(struct vfuc_iommu_domain *domain)
{
    LIST_REMOVE(domain, link);
    pagetable_destroy(&domain->table);
    free(domain);
}

int vfuc_iommu_domain_destroy(vfuc_iommu_domain_t *domain)
{
    struct vfuc_iommu *iommu;
    int err = 0;

    if (domain == NULL) {
        return 0;
    }
    iommu = domain->iommu;
    pthread_mutex_lock(&iommu->lock);
    if (domain->refs > 0) {
        err = -EBUSY;
    } else {
        if (domain->stage2 != NULL) {
            domain->stage2->refs--;
            domain->stage2->nr_above--;
        }
        domain_free(domain);
    }
    pthread_mutex_unlock(&iommu->lock);
    return iommu_result(err);
}

/* The second stage */

/* Lock and turn held. */
static int exchange_stage2(struct vfuc_iommu_domain *domain, struct vfuc_iommu_domain *stage2)
{
    if (domain->nr_above > 0 || (stage2 != NULL && (stage2->iommu != domain->iommu ||
                                                    stage2 == domain || stage2->stage2 != NULL))) {
        return -EINVAL;
    }
    if (domain->stage2 != NULL) {
        domain->stage2->refs--;
        domain->stage2->nr_above--;
    }
    if (stage2 != NULL) {
        stage2->refs++;
        stage2->nr_above++;
    }
    domain->stage2 = stage2;
    iommu_begin_exchange(domain->iommu);
    return 0;
}

int vfuc_iommu_domain_set_stage2(vfuc_iommu_domain_t *domain, vfuc_iommu_domain_t *stage2)
{
    struct vfuc_iommu *iommu = domain->iommu;
    struct change all = { domain, 0, pagetable_last(&domain->table), false };
    int err = iommu_may_wait(iommu);

    if (err < 0) {
        return iommu_result(err);
    }
    iommu_take_turn(iommu);
    pthread_mutex_lock(&iommu->lock);
    err = exchange_stage2(domain, stage2);
    all.global = domain->had_global;
    pthread_mutex_unlock(&iommu->lock);
    err = err < 0 ? err : changes_tell_in_turn(iommu, &all, 1);
    iommu_end_turn(iommu);
    return iommu_result(err);
}

/* Mapping */

int domain_check_range(const struct vfuc_iommu_domain *domain, uint64_t iova, uint64_t size)
{
    uint64_t last = pagetable_last(&domain->table);

    if (((iova | size) & PT_PAGE_MASK) != 0 || size == 0) {
        return -EINVAL;
    }
    return iova > last || size - 1 > last - iova ? -ERANGE : 0;
}

int domain_check_perm(uint32_t perm)
{
    bool meaning = (perm & PERM_RW) != 0 && (perm & ~PT_PERM_MASK) == 0 &&
                   (!(perm & VFUC_IOMMU_EXEC) || (perm & VFUC_IOMMU_READ));

    return meaning ? 0 : -EINVAL;
}

static bool is_shadowed(struct vfuc_iommu *iommu)
{
    bool shadowed;

    pthread_mutex_lock(&iommu->lock);
    shadowed = iommu_active_mode(iommu) == VFUC_IOMMU_SHADOW;
    pthread_mutex_unlock(&iommu->lock);
    return shadowed;
}

static int map_table(struct vfuc_iommu_domain *domain, const struct change *where, uint64_t target,
                     uint32_t perm, bool *shadowed)
{
    struct vfuc_iommu *iommu = domain->iommu;
    int err;

    pthread_mutex_lock(&iommu->lock);
    err = pagetable_map(&domain->table, where->first, where->last, target, perm);
    if (err == 0 && (perm & VFUC_IOMMU_GLOBAL)) {
        domain->had_global = true;
    }
    /* One that connects after this looks at the tables itself. */
    *shadowed = iommu_active_mode(iommu) == VFUC_IOMMU_SHADOW;
    pthread_mutex_unlock(&iommu->lock);
    return err;
}

/* What cannot be shown to the device is not mapped. */
static int show(struct vfuc_iommu_domain *domain, const struct change *where)
{
    struct vfuc_iommu *iommu = domain->iommu;
    struct pt_found found;
    int err = changes_tell(iommu, where, 1);

    if (err < 0) {
        pthread_mutex_lock(&iommu->lock);
        pagetable_unmap(&domain->table, where->first, where->last, &found);
        pthread_mutex_unlock(&iommu->lock);
        changes_tell(iommu, where, 1);
    }
    return err;
}

int vfuc_iommu_map(vfuc_iommu_domain_t *domain, uint64_t iova, uint64_t address, uint64_t size,
                   uint32_t perm)
{
    const struct change where = { domain, iova, iova + (size - 1), false };
    bool shadowed = is_shadowed(domain->iommu);
    int err = shadowed ? iommu_may_wait(domain->iommu) : 0;

    err = err < 0 ? err : domain_check_range(domain, iova, size);
    err = err < 0 ? err : domain_check_perm(perm);
    if (err == 0 && ((address & PT_PAGE_MASK) != 0 || size - 1 > UINT64_MAX - address)) {
        err = -EINVAL;
    }
    err = err < 0 ? err : map_table(domain, &where, address, perm, &shadowed);
    if (err == 0 && shadowed) {
        err = show(domain, &where);
    }
    return iommu_result(err);
}

/* Unmapping and protecting */

/* perm 0: out with it. What the device has to be told is in *change. */
static int reduce(struct vfuc_iommu_domain *domain, struct change *change, uint32_t perm,
                  bool *less)
{
    struct vfuc_iommu *iommu = domain->iommu;
    struct pt_found found;
    int err;

    pthread_mutex_lock(&iommu->lock);
    err = perm == 0 ? pagetable_unmap(&domain->table, change->first, change->last, &found)
                    : pagetable_protect(&domain->table, change->first, change->last, perm, &found);
    if (err == 0 && found.bytes == 0) {
        err = -ENOENT;
    }
    if (perm & VFUC_IOMMU_GLOBAL) {
        domain->had_global = true;
    }
    change->global = (found.perm & VFUC_IOMMU_GLOBAL) != 0;
    /* Whatever can be cached and says more than the table: rights, or attributes that changed. */
    *less = found.lost != 0 || (found.gained & ~PERM_RWX) != 0;
    pthread_mutex_unlock(&iommu->lock);
    return err;
}

int vfuc_iommu_unmap(vfuc_iommu_domain_t *domain, uint64_t iova, uint64_t size)
{
    struct change change = { domain, iova, iova + (size - 1), false };
    int err = iommu_may_wait(domain->iommu);
    bool less;

    err = err < 0 ? err : domain_check_range(domain, iova, size);
    err = err < 0 ? err : reduce(domain, &change, 0, &less);
    err = err < 0 ? err : changes_tell(domain->iommu, &change, 1);
    return iommu_result(err);
}

int vfuc_iommu_protect(vfuc_iommu_domain_t *domain, uint64_t iova, uint64_t size, uint32_t perm)
{
    struct change change = { domain, iova, iova + (size - 1), false };
    int err = iommu_may_wait(domain->iommu);
    bool less;

    err = err < 0 ? err : domain_check_range(domain, iova, size);
    err = err < 0 ? err : domain_check_perm(perm);
    err = err < 0 ? err : reduce(domain, &change, perm, &less);
    if (err == 0 && (less || is_shadowed(domain->iommu))) {
        err = changes_tell(domain->iommu, &change, 1);
    }
    return iommu_result(err);
}

/* Gathering */

vfuc_iommu_gather_t *vfuc_iommu_gather_create(vfuc_iommu_t *iommu)
{
    struct vfuc_iommu_gather *gather = calloc(1, sizeof(*gather));

    if (gather == NULL) {
        iommu_result(-ENOMEM);
        return NULL;
    }
    gather->iommu = iommu;
    return gather;
}

static void add_change(struct vfuc_iommu_gather *gather, const struct change *change)
{
    struct change *last = gather->nr > 0 ? &gather->changes[gather->nr - 1] : NULL;

    if (last != NULL && last->domain == change->domain &&
        (change->first == last->last + 1 || change->last + 1 == last->first)) {
        last->first = change->first < last->first ? change->first : last->first;
        last->last = change->last > last->last ? change->last : last->last;
        last->global = last->global || change->global;
        return;
    }
    gather->changes[gather->nr++] = *change;
    pthread_mutex_lock(&gather->iommu->lock);
    change->domain->refs++;
    pthread_mutex_unlock(&gather->iommu->lock);
}

int vfuc_iommu_unmap_start(vfuc_iommu_domain_t *domain, uint64_t iova, uint64_t size,
                           vfuc_iommu_gather_t *gather)
{
    struct change change = { domain, iova, iova + (size - 1), false };
    int err = domain->iommu != gather->iommu ? -EINVAL : domain_check_range(domain, iova, size);
    bool less;

    /* Room first: what was unmapped must not be forgotten. */
    err = err < 0 ? err : iommu_grow((void **)&gather->changes, &gather->max, gather->nr,
                                     sizeof(*gather->changes));
    err = err < 0 ? err : reduce(domain, &change, 0, &less);
    if (err == 0) {
        add_change(gather, &change);
    }
    return iommu_result(err);
}

static void empty(struct vfuc_iommu_gather *gather)
{
    pthread_mutex_lock(&gather->iommu->lock);
    while (gather->nr > 0) {
        gather->changes[--gather->nr].domain->refs--;
    }
    pthread_mutex_unlock(&gather->iommu->lock);
}

int vfuc_iommu_sync(vfuc_iommu_gather_t *gather)
{
    int err = iommu_may_wait(gather->iommu);

    if (err == 0) {
        err = changes_tell(gather->iommu, gather->changes, gather->nr);
        empty(gather);
    }
    return iommu_result(err);
}

void vfuc_iommu_gather_destroy(vfuc_iommu_gather_t *gather)
{
    if (gather != NULL) {
        empty(gather);
        free(gather->changes);
        free(gather);
    }
}
