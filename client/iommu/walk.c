/* SPDX-License-Identifier: BSD-3-Clause */
/* From an address of the device to one of memory: one stage or two, and what holds it. */
#include "iommu/iommu.h"

/*
 * Puts what an address of the outer span leads to under it: the range that both have, and what
 * both allow. inner is a span that holds outer's target for addr.
 */
static void compose(struct pt_span *outer, uint64_t addr, const struct pt_span *inner,
                    uint32_t allowed)
{
    uint64_t middle = outer->target + (addr - outer->first);
    uint64_t before = addr - outer->first, after = outer->last - addr;

    if (middle - inner->first < before) {
        before = middle - inner->first;
    }
    if (inner->last - middle < after) {
        after = inner->last - middle;
    }
    outer->first = addr - before;
    outer->last = addr + after;
    outer->perm &= allowed;
    outer->target = inner->target + (middle - before - inner->first);
    if ((outer->perm & PERM_RW) == 0) {
        outer->perm = 0;
        outer->target = 0;
    }
}

/* The second stage says what may be done, the first also who may do it. */
static uint32_t stage2_allows(uint32_t perm)
{
    return perm == 0 ? 0 : perm | ~PERM_RWX;
}

void domain_walk(const struct vfuc_iommu_domain *domain, uint64_t iova, struct pt_span *span)
{
    const struct memory *memory;
    struct pt_span inner;
    uint64_t address;
    uint32_t seconds = 0;

    pagetable_walk(&domain->table, iova, span);
    if (span->perm != 0 && domain->stage2 != NULL) {
        pagetable_walk(&domain->stage2->table, span->target + (iova - span->first), &inner);
        seconds = inner.perm & (VFUC_IOMMU_UNCACHED | VFUC_IOMMU_NO_SNOOP);
        compose(span, iova, &inner, stage2_allows(inner.perm));
    }
    if (span->perm == 0) {
        return;
    }
    address = span->target + (iova - span->first);
    memory = memory_find(domain->iommu, address, &inner.last);
    inner.first = inner.target = memory != NULL ? memory->given.address : address;
    compose(span, iova, &inner, memory != NULL ? memory_perm(memory) | ~PERM_RWX : 0);
    if (span->perm != 0) {
        span->perm |= seconds;
    }
}

void space_walk(const struct vfuc_iommu *iommu, uint32_t pasid, uint64_t iova,
                struct pt_span *span)
{
    const struct attachment *attachment = attachment_find(iommu, pasid);

    if (attachment == NULL || attachment->domain == NULL) {
        *span = (struct pt_span){ .first = 0, .last = UINT64_MAX };
    } else {
        domain_walk(attachment->domain, iova, span);
    }
}

/* Does what is mapped behind the span's end, up to last, lead on from it with the same rights? */
static bool leads_on(const struct vfuc_iommu *iommu, uint32_t pasid, const struct pt_span *whole,
                     uint64_t first, uint64_t last)
{
    struct pt_span span;

    for (uint64_t addr = first;; addr = span.last + 1) {
        space_walk(iommu, pasid, addr, &span);
        if (span.perm != whole->perm ||
            span.target + (addr - span.first) != whole->target + (addr - whole->first)) {
            return false;
        }
        if (span.last >= last) {
            return true;
        }
    }
}

/* The largest naturally aligned block within a span that holds an address. */
static void align_block(struct pt_span *span, uint64_t iova)
{
    uint64_t size = PT_PAGE_SIZE, first = iova & ~(size - 1), next;

    for (;;) {
        next = iova & ~(size * 2 - 1);
        if (next < span->first || next + (size * 2 - 1) > span->last) {
            break;
        }
        size *= 2;
        first = next;
    }
    span->target += first - span->first;
    span->first = first;
    span->last = first + (size - 1);
}

void space_walk_merged(const struct vfuc_iommu *iommu, uint32_t pasid, uint64_t iova, uint64_t max,
                       struct pt_span *span)
{
    struct pt_span block;
    uint64_t size, buddy;

    space_walk(iommu, pasid, iova, span);
    if (span->perm == 0) {
        return;
    }
    block = *span;
    align_block(&block, iova);
    for (size = block.last - block.first + 1; size < max; size *= 2) {
        buddy = block.first ^ size;
        if (!leads_on(iommu, pasid, &block, buddy, buddy + (size - 1))) {
            break;
        }
        if (buddy < block.first) {
            block.first = buddy;
            block.target -= size;
        } else {
            block.last += size;
        }
    }
    *span = block;
}

void vfuc_iommu_translate(vfuc_iommu_t *iommu, uint32_t pasid, uint64_t iova,
                          vfuc_iommu_translation_t *translation)
{
    struct pt_span span;

    pthread_mutex_lock(&iommu->lock);
    space_walk_merged(iommu, pasid, iova, iommu->options.max_merge, &span);
    pthread_mutex_unlock(&iommu->lock);
    *translation = (vfuc_iommu_translation_t){
        .iova = span.first,
        .size = span.last - span.first + 1,
        .address = span.perm != 0 ? span.target + (iova - span.first) : 0,
        .perm = span.perm,
    };
}
