/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_PCI_INTERNAL_H
#define VFU_PCI_INTERNAL_H

#include "pci/pci.h"

/* One write by the guest, of any width and offset. */
struct pci_write {
    const uint8_t *data;
    uint64_t offset; /* in configuration space */
    size_t count;
};

/* The bits of the 16-bit register at reg that the write carries a 1 for. */
uint16_t pci_write_ones(const struct pci_write *write, uint64_t reg);

/* A kind of capability: its size, and what may happen to its bits. */
struct pci_cap_type {
    const char *name;
    uint16_t id;
    bool extended;
    uint16_t size; /* 0: the capability tells its own, see length */
    uint16_t (*length)(const uint8_t *data);
    uint16_t header; /* bytes that every capability of the kind has */
    bool storage; /* the guest may write everything behind the header */
    const uint8_t *writable; /* else: size bytes; NULL for none */
    const uint8_t *clearable; /* likewise */
    /* Adapts the masks, which are the capability's, to the features that it says it has. */
    void (*adapt)(const uint8_t *cap, const struct pci_masks *masks);
    /*
     * A write has touched the capability, and its bits are stored: takes back what the register's
     * rules forbid (pci->before has the values before), and acts. 0, or a negative errno for the
     * client.
     */
    int (*written)(struct pci_config *pci, const struct pci_cap *cap,
                   const struct pci_write *write);
    /* Sets what is not as the device set it up after a reset; run when it is added, too. */
    void (*reset)(uint8_t *cap);
    /* Whether a guest's writes can lead to these bytes, which are a capability's; NULL: all can. */
    bool (*allows)(const uint8_t *cap);
    /* The registers have new values by a reset or a migration: acts on them. */
    void (*apply)(struct pci_config *pci, const struct pci_cap *cap);
};

const struct pci_cap_type *pci_cap_type(bool extended, uint16_t id);

static inline uint8_t *pci_cap_bytes(const struct pci_config *pci, const struct pci_cap *cap)
{
    return (uint8_t *)pci->space + cap->offset;
}

/* As it was before the write that is being done. */
static inline const uint8_t *pci_cap_before(const struct pci_config *pci,
                                            const struct pci_cap *cap)
{
    return pci->before + cap->offset;
}

/* Whether the library serves the guest's writes to it. */
static inline bool pci_cap_is_ours(const struct pci_cap *cap)
{
    return !(cap->flags & (VFU_CAP_FLAG_CALLBACK | VFU_CAP_FLAG_READONLY));
}

/* The capability with this id, or NULL. */
const struct pci_cap *pci_cap_find(const struct pci_config *pci, bool extended, uint16_t id);

/*
 * The capability that has the byte at this offset, or NULL. *next, which begins as UINT64_MAX or as
 * an earlier call has left it, becomes the offset where that ends to be true.
 */
const struct pci_cap *pci_cap_in(const struct pci_cap_list *list, uint64_t offset, uint64_t *next);

/* Has each kind act on its registers, after a reset or a migration. */
void pci_caps_apply(struct pci_config *pci);

/* Fills in the capability's part of the masks. */
void pci_cap_init_masks(struct pci_config *pci, const struct pci_cap *cap);

/* In header.c: the header's part, from the BARs; the type bits of a BAR; the log of a write. */
void pci_header_init_masks(struct pci_config *pci);
void pci_header_init_bar(struct pci_config *pci, int index);
void pci_header_written(const struct pci_config *pci, const struct pci_write *write);

/* In iommu_caps.c */
extern const uint8_t pci_ats_writable[], pci_pri_writable[], pci_pri_clearable[];
extern const uint8_t pci_pasid_writable[];
void pci_ats_adapt(const uint8_t *cap, const struct pci_masks *masks);
void pci_pasid_adapt(const uint8_t *cap, const struct pci_masks *masks);
int pci_ats_written(struct pci_config *pci, const struct pci_cap *cap,
                    const struct pci_write *write);
int pci_pri_written(struct pci_config *pci, const struct pci_cap *cap,
                    const struct pci_write *write);
int pci_pasid_written(struct pci_config *pci, const struct pci_cap *cap,
                      const struct pci_write *write);
void pci_ats_reset(uint8_t *cap);
void pci_pri_reset(uint8_t *cap);
void pci_pri_apply(struct pci_config *pci, const struct pci_cap *cap);
void pci_pasid_reset(uint8_t *cap);

#endif /* VFU_PCI_INTERNAL_H */
