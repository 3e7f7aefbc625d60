/* SPDX-License-Identifier: BSD-3-Clause */
/* PASIDs that stand for this process: pointers as addresses, pages that come when asked for. */
#include "iommu/iommu.h"

#include <errno.h>
#include <sys/mman.h>

/* Lock held. NULL: the PASID does not stand for this process. */
static struct vfuc_iommu_domain *bound_domain(const struct vfuc_iommu *iommu, uint32_t pasid)
{
    const struct attachment *attachment = attachment_find(iommu, pasid);
    struct vfuc_iommu_domain *domain = attachment != NULL ? attachment->domain : NULL;

    return domain != NULL && domain->arena_size > 0 ? domain : NULL;
}

static int prot_of(uint32_t perm)
{
    return (perm & VFUC_IOMMU_READ ? PROT_READ : 0) | (perm & VFUC_IOMMU_WRITE ? PROT_WRITE : 0);
}

/* Lock held. Brings a page in, unless it is there. */
static int bring(struct vfuc_iommu_domain *domain, uint64_t page)
{
    uint64_t address;
    int err;

    if (page < domain->arena_start || page - domain->arena_start >= domain->arena_size ||
        !memory_shared_at(domain->iommu, page, PT_PAGE_SIZE, prot_of(domain->arena_perm),
                          &address)) {
        return -EFAULT;
    }
    err = pagetable_map(&domain->table, page, page + (PT_PAGE_SIZE - 1), address,
                        domain->arena_perm);
    return err == -EEXIST ? 0 : err;
}

bool process_fault(struct vfuc_iommu *iommu, const vfuc_iommu_fault_t *fault, uint32_t *code)
{
    struct vfuc_iommu_domain *domain;
    uint64_t page = fault->address;
    int err = 0;

    pthread_mutex_lock(&iommu->lock);
    domain = bound_domain(iommu, fault->pasid);
    if (domain != NULL) {
        if ((fault->perm & PERM_RWX & ~domain->arena_perm) != 0) {
            err = -EFAULT;
        }
        for (uint64_t n = fault->size / PT_PAGE_SIZE; n > 0 && err == 0; n--) {
            err = bring(domain, page);
            page += PT_PAGE_SIZE;
        }
        *code = err == 0 ? VFIO_USER_PAGE_RESP_SUCCESS : VFIO_USER_PAGE_RESP_INVALID;
    }
    pthread_mutex_unlock(&iommu->lock);
    return domain != NULL;
}

/* Binding */

/* Lock held. Without page requests everything is there from the beginning. */
static int bring_all(struct vfuc_iommu_domain *domain)
{
    int err = 0;

    for (uint64_t n = 0; n < domain->arena_size && err == 0; n += PT_PAGE_SIZE) {
        err = bring(domain, domain->arena_start + n);
    }
    return err;
}

/* Lock held. All of the range is memory that a server can share. */
static int check_arena(const struct vfuc_iommu_domain *domain)
{
    uint64_t address;

    for (uint64_t n = 0; n < domain->arena_size; n += PT_PAGE_SIZE) {
        if (!memory_shared_at(domain->iommu, domain->arena_start + n, PT_PAGE_SIZE,
                              prot_of(domain->arena_perm), &address)) {
            return -EFAULT;
        }
    }
    return 0;
}

static int bind_domain(struct vfuc_iommu *iommu, uint32_t pasid, struct vfuc_iommu_domain *domain)
{
    const struct attachment *attachment;
    bool on_demand;
    int err;

    pthread_mutex_lock(&iommu->lock);
    attachment = attachment_find(iommu, pasid);
    err = attachment != NULL && attachment->domain != NULL ? -EEXIST : check_arena(domain);
    on_demand = iommu_active_mode(iommu) == VFUC_IOMMU_ATS &&
                iommu->agreed.iommu.pri_max_requests > 0;
    if (err == 0 && !on_demand) {
        err = bring_all(domain);
    }
    pthread_mutex_unlock(&iommu->lock);
    return err < 0 ? err : attach_domain(iommu, pasid, domain);
}

static struct vfuc_iommu_domain *new_domain(struct vfuc_iommu *iommu, void *start, size_t size,
                                            int prot)
{
    struct vfuc_iommu_domain *domain = vfuc_iommu_domain_create(iommu);

    if (domain != NULL) {
        domain->arena_start = (uintptr_t)start;
        domain->arena_size = size;
        domain->arena_perm = (prot & PROT_READ ? VFUC_IOMMU_READ : 0u) |
                             (prot & PROT_WRITE ? VFUC_IOMMU_WRITE : 0u);
    }
    return domain;
}

int vfuc_iommu_bind_process(vfuc_iommu_t *iommu, uint32_t pasid, void *start, size_t size,
                            int prot)
{
    struct vfuc_iommu_domain *domain;
    int err = iommu_may_wait(iommu);

    if (err == 0 && (pasid == VFUC_NO_PASID || (prot & (PROT_READ | PROT_WRITE)) == 0 ||
                     (prot & ~(PROT_READ | PROT_WRITE)) != 0)) {
        err = -EINVAL;
    }
    if (err < 0) {
        return iommu_result(err);
    }
    domain = new_domain(iommu, start, size, prot);
    err = domain == NULL ? -ENOMEM : domain_check_range(domain, (uintptr_t)start, size);
    if (err == 0) {
        iommu_take_turn(iommu);
        err = bind_domain(iommu, pasid, domain);
        iommu_end_turn(iommu);
    }
    if (err < 0) {
        vfuc_iommu_domain_destroy(domain);
    }
    return iommu_result(err);
}

/* NULL: the PASID is not bound. To be let go of: it may be unbound meanwhile. */
static struct vfuc_iommu_domain *hold_bound(struct vfuc_iommu *iommu, uint32_t pasid)
{
    struct vfuc_iommu_domain *domain;

    pthread_mutex_lock(&iommu->lock);
    domain = bound_domain(iommu, pasid);
    if (domain != NULL) {
        domain->refs++;
    }
    pthread_mutex_unlock(&iommu->lock);
    return domain;
}

static void let_go(struct vfuc_iommu_domain *domain)
{
    struct vfuc_iommu *iommu = domain->iommu;

    pthread_mutex_lock(&iommu->lock);
    if (--domain->refs == 0) {
        domain_free(domain);
    }
    pthread_mutex_unlock(&iommu->lock);
}

static int evict(struct vfuc_iommu_domain *domain, uint64_t start, size_t size)
{
    const struct change change = { domain, start, start + (size - 1), false };
    int err = vfuc_iommu_unmap(domain, start, size) < 0 ? -errno : 0;

    /* Another thread may have begun to evict it, and the device not have let go of it yet. */
    return err == -ENOENT ? changes_tell(domain->iommu, &change, 1) : err;
}

int vfuc_iommu_evict(vfuc_iommu_t *iommu, uint32_t pasid, void *start, size_t size)
{
    struct vfuc_iommu_domain *domain = hold_bound(iommu, pasid);
    int err;

    if (domain == NULL) {
        return iommu_result(-ENOENT);
    }
    err = evict(domain, (uintptr_t)start, size);
    let_go(domain);
    return iommu_result(err);
}

int vfuc_iommu_unbind_process(vfuc_iommu_t *iommu, uint32_t pasid)
{
    struct vfuc_iommu_domain *domain;
    int err = iommu_may_wait(iommu);

    if (err < 0) {
        return iommu_result(err);
    }
    iommu_take_turn(iommu);
    domain = hold_bound(iommu, pasid);
    err = domain != NULL ? attach_domain(iommu, pasid, NULL) : -ENOENT;
    iommu_end_turn(iommu);
    if (domain != NULL) {
        let_go(domain);
    }
    return iommu_result(err);
}
