/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_PCI_CAPS_H
#define VFU_DEVICE_PCI_CAPS_H

#include "device/pci_config.h"

/*
 * A kind of capability. write() applies count bytes at an offset within the capability, behind
 * its header: 0 or a negative errno. NULL: the register block takes no writes (-EPERM).
 */
struct pci_cap_type {
    const char *name;
    uint16_t id;
    bool extended;
    uint16_t size; /* 0: the capability tells its own, see length */
    uint16_t (*length)(const uint8_t *data);
    uint16_t header;
    int (*write)(struct pci_config *pci, const struct pci_cap *cap, size_t offset,
                 const uint8_t *data, size_t count);
    void (*reset)(uint8_t *cap); /* to the state after a reset; NULL: it keeps what it has */
};

const struct pci_cap_type *pci_cap_type(bool extended, uint16_t id);

static inline uint8_t *pci_cap_bytes(const struct pci_config *pci, const struct pci_cap *cap)
{
    return (uint8_t *)pci->space + cap->offset;
}

/* The capability with this id, or NULL. */
const struct pci_cap *pci_cap_find(const struct pci_config *pci, bool extended, uint16_t id);

/* Takes only the bits in mask, byte by byte. */
void pci_cap_write_masked(uint8_t *reg, const uint8_t *mask, size_t offset, const uint8_t *data,
                          size_t count);

/* In pci_iommu_caps.c */
int pci_ats_write(struct pci_config *pci, const struct pci_cap *cap, size_t offset,
                  const uint8_t *data, size_t count);
int pci_pri_write(struct pci_config *pci, const struct pci_cap *cap, size_t offset,
                  const uint8_t *data, size_t count);
int pci_pasid_write(struct pci_config *pci, const struct pci_cap *cap, size_t offset,
                    const uint8_t *data, size_t count);
void pci_ats_reset(uint8_t *cap);
void pci_pri_reset(uint8_t *cap);
void pci_pasid_reset(uint8_t *cap);

#endif /* VFU_DEVICE_PCI_CAPS_H */
