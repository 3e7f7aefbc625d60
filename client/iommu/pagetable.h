/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A page table: a tree of 512 entries per node with leaves of 4 KiB, 2 MiB and 1 GiB, as hardware
 * has them. Targets are 4 KiB aligned addresses of any width. No locking: that is the caller's.
 */
#ifndef VFUC_IOMMU_PAGETABLE_H
#define VFUC_IOMMU_PAGETABLE_H

#include <stdint.h>

#define PT_PAGE_SHIFT 12
#define PT_PAGE_SIZE (UINT64_C(1) << PT_PAGE_SHIFT)
#define PT_PAGE_MASK (PT_PAGE_SIZE - 1)
#define PT_MIN_BITS 30
#define PT_MAX_BITS 57

/* Permissions are kept as they are given, in so many bits; 0 means not mapped. */
#define PT_PERM_MASK 0x7fu

struct pt_node;

struct pagetable {
    struct pt_node *root;
    unsigned bits;  /* of an input address */
    unsigned level; /* of the root; the leaves of level 0 have 4 KiB */
};

/* Addresses that are mapped in one piece, or not at all. */
struct pt_span {
    uint64_t first, last; /* inclusive */
    uint64_t target;      /* of first; 0 when not mapped */
    uint32_t perm;        /* 0: not mapped */
};

/* All of this returns 0 or a negative errno. */

/* -EINVAL: bits not within PT_MIN_BITS..PT_MAX_BITS. -ENOMEM. */
int pagetable_init(struct pagetable *pt, unsigned bits);
void pagetable_destroy(struct pagetable *pt);

/* The last input address. */
uint64_t pagetable_last(const struct pagetable *pt);

/*
 * Maps [first, last] to target and on, with the largest leaves that alignment and size allow. All
 * addresses on page boundaries, perm not 0. -EEXIST: part of it is mapped. -ENOMEM. Nothing is
 * changed by a call that fails.
 */
int pagetable_map(struct pagetable *pt, uint64_t first, uint64_t last, uint64_t target,
                  uint32_t perm);

/* What was found where something was changed. */
struct pt_found {
    uint64_t bytes; /* mapped */
    uint32_t perm;  /* of any of it */
    uint32_t lost;  /* permissions that any of it had and has no more */
    uint32_t gained; /* that any of it did not have */
};

/*
 * Takes out what is mapped in [first, last], or gives it other permissions (perm not 0). Leaves
 * that are cut are split. -ENOMEM: nothing was changed.
 */
int pagetable_unmap(struct pagetable *pt, uint64_t first, uint64_t last, struct pt_found *found);
int pagetable_protect(struct pagetable *pt, uint64_t first, uint64_t last, uint32_t perm,
                      struct pt_found *found);

/* The leaf that holds an address, or the hole: as much of it as one entry of the tree shows. */
void pagetable_walk(const struct pagetable *pt, uint64_t addr, struct pt_span *span);

#endif /* VFUC_IOMMU_PAGETABLE_H */
