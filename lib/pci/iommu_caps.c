/* SPDX-License-Identifier: BSD-3-Clause */
/* The registers of ATS (PCIe 10.5.1), PRI (10.5.2) and PASID (7.8.9). */
#include "pci/pci_internal.h"

#include "pci_caps/ats.h"
#include "pci_caps/pasid.h"
#include "pci_caps/pri.h"

#include <string.h>

#define ATS_ENABLE 0x8000u
#define ATS_STU 0x001fu
#define ATS_ATTRIBUTES 0x7800u /* default and enable of memory attributes */

#define PRI_ENABLE 0x0001u
#define PRI_RESET 0x0002u
#define PRI_RF 0x0001u
#define PRI_UPRGI 0x0002u
#define PRI_STOPPED 0x0100u
#define PRI_PASID_REQUIRED 0x8000u

#define PASID_ENABLE 0x0001u
#define PASID_EXEC 0x0002u
#define PASID_PRIV 0x0004u
#define PASID_TRANSLATED 0x0008u

static void *find(const struct pci_config *pci, uint16_t id)
{
    const struct pci_cap *cap = pci_cap_find(pci, true, id);

    return cap != NULL ? pci_cap_bytes(pci, cap) : NULL;
}

static bool ats_enabled(const struct pci_config *pci)
{
    const struct atscap *ats = find(pci, PCI_EXT_CAP_ID_ATS);

    return ats != NULL && (ats->atsctl.raw & ATS_ENABLE);
}

/* What the guest may write. The attributes of ATS and the permissions of PASID: if it has them. */

const uint8_t pci_ats_writable[sizeof(struct atscap)] = {
    [offsetof(struct atscap, atsctl)] = ATS_STU, ATS_ENABLE >> 8,
};
const uint8_t pci_pri_writable[sizeof(struct pricap)] = {
    [offsetof(struct pricap, prictl)] = PRI_ENABLE,
    [offsetof(struct pricap, allocation)] = 0xff, 0xff, 0xff, 0xff,
};
const uint8_t pci_pri_clearable[sizeof(struct pricap)] = {
    [offsetof(struct pricap, prists)] = PRI_RF | PRI_UPRGI,
};
const uint8_t pci_pasid_writable[sizeof(struct pasidcap)] = {
    [offsetof(struct pasidcap, pasidctl)] = PASID_ENABLE,
};

void pci_ats_adapt(const uint8_t *cap, const struct pci_masks *masks)
{
    if (((const struct atscap *)cap)->atsc.amas) {
        masks->writable[offsetof(struct atscap, atsctl) + 1] |= ATS_ATTRIBUTES >> 8;
    }
}

/* What can be enabled has the same bit in the capability and in the control register. */
void pci_pasid_adapt(const uint8_t *cap, const struct pci_masks *masks)
{
    masks->writable[offsetof(struct pasidcap, pasidctl)] =
        PASID_ENABLE | (cap[offsetof(struct pasidcap, pasidc)] &
                        (PASID_EXEC | PASID_PRIV | PASID_TRANSLATED));
}

int pci_ats_written(struct pci_config *pci, const struct pci_cap *cap,
                    const struct pci_write *write)
{
    struct atscap *ats = (struct atscap *)pci_cap_bytes(pci, cap);
    const struct atscap *before = (const struct atscap *)pci_cap_before(pci, cap);
    uint16_t now = ats->atsctl.raw, old = before->atsctl.raw;

    (void)write;
    if ((old & ATS_ENABLE) && (now & ATS_ENABLE) && (old & ATS_STU) != (now & ATS_STU)) {
        log_warn(pci->log, "pci: ATS: the smallest translation unit cannot change while ATS is "
                 "enabled: ignored");
        now = (uint16_t)((now & ~ATS_STU) | (old & ATS_STU));
        ats->atsctl.raw = now;
    }
    if (now != old) {
        pci->ops->iommu_changed(pci->owner);
    }
    return 0;
}

int pci_pasid_written(struct pci_config *pci, const struct pci_cap *cap,
                      const struct pci_write *write)
{
    struct pasidcap *pasid = (struct pasidcap *)pci_cap_bytes(pci, cap);
    const struct pasidcap *before = (const struct pasidcap *)pci_cap_before(pci, cap);

    (void)write;
    if (pasid->pasidctl.raw == before->pasidctl.raw) {
        return 0;
    }
    if (ats_enabled(pci)) {
        log_warn(pci->log, "pci: PASID control cannot change while ATS is enabled: ignored");
        pasid->pasidctl.raw = before->pasidctl.raw;
        return 0;
    }
    pci->ops->iommu_changed(pci->owner);
    return 0;
}

int pci_pri_written(struct pci_config *pci, const struct pci_cap *cap,
                    const struct pci_write *write)
{
    struct pricap *pri = (struct pricap *)pci_cap_bytes(pci, cap);
    const struct pricap *before = (const struct pricap *)pci_cap_before(pci, cap);
    bool was = before->prictl.raw & PRI_ENABLE, now = pri->prictl.raw & PRI_ENABLE;
    bool reset = pci_write_ones(write, cap->offset + offsetof(struct pricap, prictl)) & PRI_RESET;

    if (was && pri->allocation != before->allocation) {
        log_warn(pci->log, "pci: PRI: the allocation cannot change while PRI is enabled: ignored");
        pri->allocation = before->allocation;
    }
    if (now && !was) {
        if (!(pri->prists.raw & PRI_STOPPED)) {
            pci->ops->pri_reset(pci->owner);
        }
        pri->prists.raw &= (uint16_t)~(PRI_STOPPED | PRI_RF | PRI_UPRGI);
    }
    if (!now && was) {
        /* Whoever knows of requests outstanding takes that back by pci_pri_stopping(). */
        pri->prists.raw |= PRI_STOPPED;
    }
    if (now != was) {
        pci->ops->iommu_changed(pci->owner);
    }
    if (reset && !now) {
        pri->prists.raw |= PRI_STOPPED;
        pci->ops->pri_reset(pci->owner);
    }
    return 0;
}

void pci_pri_stopping(struct pci_config *pci)
{
    struct pricap *pri = find(pci, PCI_EXT_CAP_ID_PRI);

    if (pri != NULL) {
        pri->prists.raw &= (uint16_t)~PRI_STOPPED;
    }
}

void pci_pri_event(struct pci_config *pci, enum pci_pri_event event)
{
    struct pricap *pri = find(pci, PCI_EXT_CAP_ID_PRI);

    if (pri == NULL) {
        return;
    }
    switch (event) {
    case PCI_PRI_STOPPED:
        if (!(pri->prictl.raw & PRI_ENABLE)) {
            pri->prists.raw |= PRI_STOPPED;
        }
        break;
    case PCI_PRI_RESPONSE_FAILURE:
        pri->prists.raw |= PRI_RF;
        if (!(pri->prictl.raw & PRI_ENABLE)) {
            pri->prists.raw |= PRI_STOPPED;
        }
        break;
    case PCI_PRI_UNEXPECTED_GROUP:
        pri->prists.raw |= PRI_UPRGI;
        break;
    }
}

/* Read-only registers of the library that are not as the device was set up: for a migration. */
static void note_limits(struct pci_config *pci, const void *reg, size_t size)
{
    memcpy(pci->initial + ((const uint8_t *)reg - (const uint8_t *)pci->space), reg, size);
}

void pci_iommu_show(struct pci_config *pci, const struct pci_iommu_limits *limits)
{
    const struct pci_cap *cap = pci_cap_find(pci, true, PCI_EXT_CAP_ID_PASID);
    struct atscap *ats = find(pci, PCI_EXT_CAP_ID_ATS);
    struct pricap *pri = find(pci, PCI_EXT_CAP_ID_PRI);

    if (ats != NULL) {
        ats->atsc.iqd = limits->ats_queue_depth & 31; /* 0 means 32 */
        note_limits(pci, &ats->atsc, sizeof(ats->atsc));
    }
    if (pri != NULL) {
        pri->capacity = limits->pri_capacity;
        note_limits(pci, &pri->capacity, sizeof(pri->capacity));
    }
    if (cap != NULL) {
        struct pasidcap *pasid = (struct pasidcap *)pci_cap_bytes(pci, cap);

        pasid->pasidc.width = limits->pasid_bits & 31;
        pasid->pasidc.eps = limits->pasid_exec;
        pasid->pasidc.pms = limits->pasid_priv;
        note_limits(pci, &pasid->pasidc, sizeof(pasid->pasidc));
        pci_cap_init_masks(pci, cap);
        pasid->pasidctl.raw &= pci->masks.writable[cap->offset +
                                                   offsetof(struct pasidcap, pasidctl)];
    }
}

void pci_iommu_read(const struct pci_config *pci, struct pci_iommu_registers *regs)
{
    const struct atscap *ats = find(pci, PCI_EXT_CAP_ID_ATS);
    const struct pricap *pri = find(pci, PCI_EXT_CAP_ID_PRI);
    const struct pasidcap *pasid = find(pci, PCI_EXT_CAP_ID_PASID);

    memset(regs, 0, sizeof(*regs));
    if (ats != NULL) {
        regs->ats_enabled = ats->atsctl.raw & ATS_ENABLE;
        regs->stu = 12 + (ats->atsctl.raw & ATS_STU);
    }
    if (pasid != NULL) {
        regs->pasid_enabled = pasid->pasidctl.raw & PASID_ENABLE;
        regs->exec_enabled = pasid->pasidctl.raw & PASID_EXEC;
        regs->priv_enabled = pasid->pasidctl.raw & PASID_PRIV;
    }
    if (pri != NULL) {
        regs->pri_enabled = pri->prictl.raw & PRI_ENABLE;
        regs->pri_failed = pri->prists.raw & PRI_RF;
        regs->pri_allocation = pri->allocation < pri->capacity ? pri->allocation : pri->capacity;
    }
}

/* Reset: PCIe's defaults, also of a structure that the device has just given. */

void pci_ats_reset(uint8_t *cap)
{
    ((struct atscap *)cap)->atsctl.raw = 0;
}

void pci_pasid_reset(uint8_t *cap)
{
    ((struct pasidcap *)cap)->pasidctl.raw = 0;
}

void pci_pri_reset(uint8_t *cap)
{
    struct pricap *pri = (struct pricap *)cap;

    pri->prictl.raw = 0;
    pri->prists.raw = (uint16_t)((pri->prists.raw & PRI_PASID_REQUIRED) | PRI_STOPPED);
    pri->allocation = 0;
}

/* Nothing is outstanding: the interface has stopped if it is disabled. */
void pci_pri_apply(struct pci_config *pci, const struct pci_cap *cap)
{
    struct pricap *pri = (struct pricap *)pci_cap_bytes(pci, cap);

    pri->prists.raw &= (uint16_t)~PRI_STOPPED;
    if (!(pri->prictl.raw & PRI_ENABLE)) {
        pri->prists.raw |= PRI_STOPPED;
    }
}

void pci_iommu_reset(struct pci_config *pci)
{
    for (unsigned i = 0; i < pci->extended.nr; i++) {
        const struct pci_cap *cap = &pci->extended.caps[i];

        if (cap->type->reset != NULL) {
            cap->type->reset(pci_cap_bytes(pci, cap));
        }
    }
}
