/* SPDX-License-Identifier: BSD-3-Clause */
/* The kinds of capability, and what a guest may write in each (PCI 6.7, 6.8; PCIe 7.5, 7.7). */
#include "pci/pci_internal.h"

#include "pci_caps/ats.h"
#include "pci_caps/pasid.h"
#include "pci_caps/pri.h"

#include <errno.h>
#include <string.h>

uint16_t pci_write_ones(const struct pci_write *write, uint64_t reg)
{
    uint16_t ones = 0;

    for (unsigned i = 0; i < sizeof(ones); i++) {
        if (reg + i >= write->offset && reg + i < write->offset + write->count) {
            ones |= (uint16_t)(write->data[reg + i - write->offset] << (8 * i));
        }
    }
    return ones;
}

/* Power management (PCI PM 3.2): power state, PME enable, data select; PME status. */

#define PMCS_LOW offsetof(struct pmcap, pmcs)
#define PMCS_HIGH (PMCS_LOW + 1)
#define PME_FROM_D3COLD 0x10
#define PME_ENABLE 0x01
#define PME_STATUS 0x80

static const uint8_t pm_writable[sizeof(struct pmcap)] = { [PMCS_LOW] = 0x03, 0x1f };
static const uint8_t pm_clearable[sizeof(struct pmcap)] = { [PMCS_HIGH] = PME_STATUS };

/* A function that wakes the system from D3cold keeps what it wakes it for. */
static void adapt_pm(const uint8_t *cap, const struct pci_masks *masks)
{
    if (((const struct pmcap *)cap)->pc.psup & PME_FROM_D3COLD) {
        masks->sticky[PMCS_HIGH] = PME_ENABLE | PME_STATUS;
    }
}

/* MSI: enable and number of messages; address, upper address, data, mask bits. */

#define MSI_MME_MAX 5

static const uint8_t msi_writable[sizeof(struct msicap)] = {
    [offsetof(struct msicap, mc)] = 0x71,
    [offsetof(struct msicap, ma)] = 0xfc, 0xff, 0xff, 0xff,
    [offsetof(struct msicap, mua)] = 0xff, 0xff, 0xff, 0xff,
    [offsetof(struct msicap, md)] = 0xff, 0xff,
    [offsetof(struct msicap, mmask)] = 0xff, 0xff, 0xff, 0xff,
};

static bool msi_allows(const uint8_t *cap)
{
    const struct msicap *msi = (const struct msicap *)cap;

    return msi->mc.mme <= MSI_MME_MAX && msi->mc.mme <= msi->mc.mmc;
}

static int msi_written(struct pci_config *pci, const struct pci_cap *cap,
                       const struct pci_write *write)
{
    struct msicap *msi = (struct msicap *)pci_cap_bytes(pci, cap);

    (void)write;
    if (!msi_allows(pci_cap_bytes(pci, cap))) {
        log_warn(pci->log, "pci: MSI: 2^%u messages enabled, the device has 2^%u: ignored",
                 msi->mc.mme, msi->mc.mmc);
        msi->mc.mme = ((const struct msicap *)pci_cap_before(pci, cap))->mc.mme;
    }
    return 0;
}

/* MSI-X: enable and function mask. */

#define MSIX_CONTROL_HIGH (offsetof(struct msixcap, mxc) + 1)
#define MSIX_ENABLE 0x80
#define MSIX_FUNCTION_MASK 0x40

static const uint8_t msix_writable[sizeof(struct msixcap)] = {
    [MSIX_CONTROL_HIGH] = MSIX_ENABLE | MSIX_FUNCTION_MASK,
};

static void msix_apply(struct pci_config *pci, const struct pci_cap *cap)
{
    uint8_t control = pci_cap_bytes(pci, cap)[MSIX_CONTROL_HIGH];

    pci->ops->msix_changed(pci->owner, control & MSIX_ENABLE, control & MSIX_FUNCTION_MASK);
}

static int msix_written(struct pci_config *pci, const struct pci_cap *cap,
                        const struct pci_write *write)
{
    (void)write;
    if (pci_cap_bytes(pci, cap)[MSIX_CONTROL_HIGH] !=
        pci_cap_before(pci, cap)[MSIX_CONTROL_HIGH]) {
        msix_apply(pci, cap);
    }
    return 0;
}

/*
 * Express: Device Control, Device Control 2 and Link Control 2; the errors in Device Status. There
 * is no link, so that what else configures it is read-only.
 */

#define DEVICE_CONTROL_FLR 0x8000
#define DEVICE_STATUS_ERRORS 0x0f
#define MAX_PAYLOAD_SIZE 0xe0
#define SPEEDS_ABOVE_2_5GT 0xfc

static const uint8_t express_writable[sizeof(struct pxcap)] = {
    [offsetof(struct pxcap, pxdc)] = 0xff, 0x7f,
    [offsetof(struct pxcap, pxdc2)] = 0xff, 0xff,
    [offsetof(struct pxcap, pxlc2)] = 0xff, 0xff,
};
static const uint8_t express_clearable[sizeof(struct pxcap)] = {
    [offsetof(struct pxcap, pxds)] = DEVICE_STATUS_ERRORS,
};

/* A function with one payload size, or one link speed, has no setting to keep there. */
static void adapt_express(const uint8_t *cap, const struct pci_masks *masks)
{
    const struct pxcap *px = (const struct pxcap *)cap;

    if (px->pxdcap.mps > 0) {
        masks->sticky[offsetof(struct pxcap, pxdc)] = MAX_PAYLOAD_SIZE;
    }
    if (px->pxlcap2.stuff & SPEEDS_ABOVE_2_5GT) {
        memset(masks->sticky + offsetof(struct pxcap, pxlc2), 0xff, sizeof(px->pxlc2));
    }
}

static int express_written(struct pci_config *pci, const struct pci_cap *cap,
                           const struct pci_write *write)
{
    const struct pxcap *px = (const struct pxcap *)pci_cap_bytes(pci, cap);
    uint64_t control = cap->offset + offsetof(struct pxcap, pxdc);

    if (!(pci_write_ones(write, control) & DEVICE_CONTROL_FLR)) {
        return 0;
    }
    if (!px->pxdcap.flrc) {
        log_warn(pci->log, "pci: function level reset: the Express capability does not offer it: "
                 "ignored");
        return 0;
    }
    return pci->ops->reset_function(pci->owner);
}

bool pci_config_is_device_control(const struct pci_config *pci, uint64_t offset, size_t count)
{
    const struct pci_cap *cap = pci_cap_find(pci, false, PCI_CAP_ID_EXP);
    uint64_t control;

    if (cap == NULL) {
        return false;
    }
    control = cap->offset + offsetof(struct pxcap, pxdc);
    return offset < control + sizeof(union pxdc) && control < offset + count;
}

/* Kinds */

static uint16_t vendor_length(const uint8_t *data)
{
    return ((const struct vsc *)data)->size;
}

static uint16_t extended_vendor_length(const uint8_t *data)
{
    return (uint16_t)((const struct pcie_ext_cap_vsc_hdr *)data)->len;
}

#define SIZE_AND_HEADER(type) .size = sizeof(type), .header = sizeof(struct pcie_ext_cap_hdr)

static const struct pci_cap_type types[] = {
    { "PM", PCI_CAP_ID_PM, .size = sizeof(struct pmcap), .header = 2, .writable = pm_writable,
      .clearable = pm_clearable, .adapt = adapt_pm },
    { "MSI", PCI_CAP_ID_MSI, .size = sizeof(struct msicap), .header = 2,
      .writable = msi_writable, .written = msi_written, .allows = msi_allows },
    { "VNDR", PCI_CAP_ID_VNDR, .length = vendor_length, .header = 3, .storage = true },
    { "EXP", PCI_CAP_ID_EXP, .size = sizeof(struct pxcap), .header = 2,
      .writable = express_writable, .clearable = express_clearable, .adapt = adapt_express,
      .written = express_written },
    { "MSI-X", PCI_CAP_ID_MSIX, .size = sizeof(struct msixcap), .header = 2,
      .writable = msix_writable, .written = msix_written, .apply = msix_apply },
    { "DSN", PCI_EXT_CAP_ID_DSN, true, SIZE_AND_HEADER(struct dsncap) },
    { "VSEC", PCI_EXT_CAP_ID_VNDR, true, .length = extended_vendor_length, .header = 8,
      .storage = true },
    { "ATS", PCI_EXT_CAP_ID_ATS, true, SIZE_AND_HEADER(struct atscap),
      .writable = pci_ats_writable, .adapt = pci_ats_adapt, .written = pci_ats_written,
      .reset = pci_ats_reset },
    { "PRI", PCI_EXT_CAP_ID_PRI, true, SIZE_AND_HEADER(struct pricap),
      .writable = pci_pri_writable, .clearable = pci_pri_clearable, .written = pci_pri_written,
      .reset = pci_pri_reset, .apply = pci_pri_apply },
    { "PASID", PCI_EXT_CAP_ID_PASID, true, SIZE_AND_HEADER(struct pasidcap),
      .writable = pci_pasid_writable, .adapt = pci_pasid_adapt, .written = pci_pasid_written,
      .reset = pci_pasid_reset },
};

const struct pci_cap_type *pci_cap_type(bool extended, uint16_t id)
{
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (types[i].extended == extended && types[i].id == id) {
            return &types[i];
        }
    }
    return NULL;
}

static void copy_mask(uint8_t *mask, const uint8_t *bits, size_t size)
{
    if (bits != NULL) {
        memcpy(mask, bits, size);
    }
}

void pci_cap_init_masks(struct pci_config *pci, const struct pci_cap *cap)
{
    const struct pci_cap_type *type = cap->type;
    const struct pci_masks masks = {
        .writable = pci->masks.writable + cap->offset,
        .clearable = pci->masks.clearable + cap->offset,
        .sticky = pci->masks.sticky + cap->offset,
    };

    if (!pci_cap_is_ours(cap)) {
        return;
    }
    copy_mask(masks.writable, type->writable, cap->size);
    copy_mask(masks.clearable, type->clearable, cap->size);
    if (type->storage) {
        memset(masks.writable + type->header, 0xff, (size_t)cap->size - type->header);
    }
    if (type->adapt != NULL) {
        type->adapt(pci_cap_bytes(pci, cap), &masks);
    }
}
