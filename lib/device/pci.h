/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_PCI_H
#define VFU_DEVICE_PCI_H

#include "pci/pci.h"

struct vfu_ctx;

/* What a context answers its configuration space. */
extern const struct pci_config_ops device_pci_ops;

/* Ends the set-up of configuration space with what the rest of the device looks like. */
int device_pci_realize(struct vfu_ctx *ctx);

/* Whether the library keeps configuration space: the device's callback does not serve all of it. */
bool device_pci_is_ours(const struct vfu_ctx *ctx);

/* Brings configuration space back to its reset values, unless the device's callback serves it. */
void device_pci_reset(struct vfu_ctx *ctx, enum pci_reset kind);

#endif /* VFU_DEVICE_PCI_H */
