/* SPDX-License-Identifier: BSD-3-Clause */
/* The registers of ATS (PCIe 10.5.1), PRI (10.5.2) and PASID (7.8.9). */
#include "device/pci_caps.h"

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

/* The structure as it would be with the written bytes in it: one transition, old to new. */
static void overlay(void *out, const void *reg, size_t size, size_t offset, const uint8_t *data,
                    size_t count)
{
    memcpy(out, reg, size);
    memcpy((uint8_t *)out + offset, data, count);
}

int pci_ats_write(struct pci_config *pci, const struct pci_cap *cap, size_t offset,
                  const uint8_t *data, size_t count)
{
    struct atscap *ats = (struct atscap *)pci_cap_bytes(pci, cap), asked;
    uint16_t old = ats->atsctl.raw, value;
    uint16_t writable = ATS_ENABLE | ATS_STU | (ats->atsc.amas ? ATS_ATTRIBUTES : 0);

    overlay(&asked, ats, sizeof(asked), offset, data, count);
    value = asked.atsctl.raw & writable;
    if ((old & ATS_ENABLE) && (value & ATS_ENABLE) && (old & ATS_STU) != (value & ATS_STU)) {
        log_warn(pci->log, "pci: ATS: the smallest translation unit cannot change while ATS is "
                 "enabled: ignored");
        value = (uint16_t)((value & ~ATS_STU) | (old & ATS_STU));
    }
    if (value != old) {
        ats->atsctl.raw = value;
        pci->ops->iommu_changed(pci->owner);
    }
    return 0;
}

int pci_pasid_write(struct pci_config *pci, const struct pci_cap *cap, size_t offset,
                    const uint8_t *data, size_t count)
{
    struct pasidcap *pasid = (struct pasidcap *)pci_cap_bytes(pci, cap), asked;
    uint16_t value, capability;

    memcpy(&capability, &pasid->pasidc, sizeof(capability));
    overlay(&asked, pasid, sizeof(asked), offset, data, count);
    /* What can be enabled has the same bit in the capability and in the control register. */
    value = asked.pasidctl.raw &
            (PASID_ENABLE | (capability & (PASID_EXEC | PASID_PRIV | PASID_TRANSLATED)));
    if (value == pasid->pasidctl.raw) {
        return 0;
    }
    if (ats_enabled(pci)) {
        log_warn(pci->log, "pci: PASID control cannot change while ATS is enabled: ignored");
        return 0;
    }
    pasid->pasidctl.raw = value;
    pci->ops->iommu_changed(pci->owner);
    return 0;
}

/* Bits of a 16-bit register that the write carries, in bytes that it touches. */
static uint16_t written_bits(size_t reg, size_t offset, const uint8_t *data, size_t count)
{
    uint16_t bits = 0;

    for (size_t i = 0; i < 2; i++) {
        if (reg + i >= offset && reg + i < offset + count) {
            bits |= (uint16_t)(data[reg + i - offset] << (8 * i));
        }
    }
    return bits;
}

int pci_pri_write(struct pci_config *pci, const struct pci_cap *cap, size_t offset,
                  const uint8_t *data, size_t count)
{
    struct pricap *pri = (struct pricap *)pci_cap_bytes(pci, cap), asked;
    bool was = pri->prictl.raw & PRI_ENABLE, now, reset;

    overlay(&asked, pri, sizeof(asked), offset, data, count);
    now = asked.prictl.raw & PRI_ENABLE;
    reset = written_bits(offsetof(struct pricap, prictl), offset, data, count) & PRI_RESET;

    pri->prists.raw &= (uint16_t)~(written_bits(offsetof(struct pricap, prists), offset, data,
                                                count) & (PRI_RF | PRI_UPRGI));
    if (asked.allocation != pri->allocation) {
        if (was) {
            log_warn(pci->log, "pci: PRI: the allocation cannot change while PRI is enabled: "
                     "ignored");
        } else {
            pri->allocation = asked.allocation;
        }
    }
    if (now && !was) {
        if (!(pri->prists.raw & PRI_STOPPED)) {
            pci->ops->pri_reset(pci->owner);
        }
        pri->prists.raw &= (uint16_t)~(PRI_STOPPED | PRI_RF | PRI_UPRGI);
    }
    pri->prictl.raw = now ? PRI_ENABLE : 0;
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

void pci_iommu_reset(struct pci_config *pci)
{
    for (unsigned i = 0; i < pci->extended.nr; i++) {
        const struct pci_cap *cap = &pci->extended.caps[i];

        if (cap->type->reset != NULL) {
            cap->type->reset(pci_cap_bytes(pci, cap));
        }
    }
}
