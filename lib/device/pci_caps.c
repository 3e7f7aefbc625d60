/* SPDX-License-Identifier: BSD-3-Clause */
/* Capability lists, and what a guest may write in the standard ones (PCI 6.7, PCIe 7.5). */
#include "device/pci_caps.h"

#include "pci_caps/ats.h"
#include "pci_caps/pasid.h"
#include "pci_caps/pri.h"

#include <errno.h>
#include <string.h>

#define FIRST_STANDARD PCI_STD_HEADER_SIZEOF
#define FIRST_EXTENDED PCI_CFG_SPACE_SIZE

#define CAP_FLAGS (VFU_CAP_FLAG_EXTENDED | VFU_CAP_FLAG_CALLBACK | VFU_CAP_FLAG_READONLY)

/* Write handlers */

void pci_cap_write_masked(uint8_t *reg, const uint8_t *mask, size_t offset, const uint8_t *data,
                          size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint8_t m = mask[offset + i];

        reg[offset + i] = (uint8_t)((reg[offset + i] & ~m) | (data[i] & m));
    }
}

static int write_vendor(struct pci_config *pci, const struct pci_cap *cap, size_t offset,
                        const uint8_t *data, size_t count)
{
    memcpy(pci_cap_bytes(pci, cap) + offset, data, count);
    return 0;
}

static int refuse(struct pci_config *pci, const struct pci_cap *cap, size_t offset, size_t count,
                  int err)
{
    log_err(pci->log, "pci: capability %s: cannot write %zu bytes at offset %zu", cap->type->name,
            count, offset);
    return err;
}

/* Power state control is stored; what is read-only there no driver has a reason to write. */
static int write_pm(struct pci_config *pci, const struct pci_cap *cap, size_t offset,
                    const uint8_t *data, size_t count)
{
    static const struct {
        size_t offset, count;
        int err;
    } rules[] = {
        { offsetof(struct pmcap, pmcs), 2, 0 },
        { offsetof(struct pmcap, pc), 2, -ENOTSUP },
        { offsetof(struct pmcap, pmcsr_bse), 1, -ENOTSUP },
        { offsetof(struct pmcap, data), 1, -ENOTSUP },
    };

    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        if (rules[i].offset != offset || rules[i].count != count) {
            continue;
        }
        if (rules[i].err == 0) {
            memcpy(pci_cap_bytes(pci, cap) + offset, data, count);
            return 0;
        }
        return refuse(pci, cap, offset, count, rules[i].err);
    }
    return refuse(pci, cap, offset, count, -EINVAL);
}

#define MSI_MME_MAX 5

static int write_msi(struct pci_config *pci, const struct pci_cap *cap, size_t offset,
                     const uint8_t *data, size_t count)
{
    /* Address, upper address, data and mask bits; message control is looked at by itself. */
    static const uint8_t mask[sizeof(struct msicap)] = {
        [offsetof(struct msicap, ma)] = 0xfc, 0xff, 0xff, 0xff,
        [offsetof(struct msicap, mua)] = 0xff, 0xff, 0xff, 0xff,
        [offsetof(struct msicap, md)] = 0xff, 0xff,
        [offsetof(struct msicap, mmask)] = 0xff, 0xff, 0xff, 0xff,
    };
    struct msicap *msi = (struct msicap *)pci_cap_bytes(pci, cap), asked = *msi;

    memcpy((uint8_t *)&asked + offset, data, count);
    if (offset < offsetof(struct msicap, ma)) {
        msi->mc.msie = asked.mc.msie;
        if (asked.mc.mme > MSI_MME_MAX || asked.mc.mme > msi->mc.mmc) {
            log_err(pci->log, "pci: MSI: 2^%u messages enabled, 2^%u are there", asked.mc.mme,
                    msi->mc.mmc);
            return -EINVAL;
        }
        msi->mc.mme = asked.mc.mme;
    }
    pci_cap_write_masked((uint8_t *)msi, mask, offset, data, count);
    return 0;
}

/* Copied, as the structure is aligned and its place is the device's choice. */
static int write_msix(struct pci_config *pci, const struct pci_cap *cap, size_t offset,
                      const uint8_t *data, size_t count)
{
    struct msixcap now, asked;

    memcpy(&now, pci_cap_bytes(pci, cap), sizeof(now));
    asked = now;
    memcpy((uint8_t *)&asked + offset, data, count);
    if (now.mxc.fm != asked.mxc.fm || now.mxc.mxe != asked.mxc.mxe) {
        now.mxc.fm = asked.mxc.fm;
        now.mxc.mxe = asked.mxc.mxe;
        memcpy(pci_cap_bytes(pci, cap), &now, sizeof(now));
        pci->ops->msix_changed(pci->owner, now.mxc.mxe, now.mxc.fm);
    }
    return 0;
}

#define DEVICE_CONTROL_FLR 0x8000

static int write_device_control(struct pci_config *pci, struct pxcap *px, const uint8_t *data)
{
    uint16_t value;

    memcpy(&value, data, sizeof(value));
    px->pxdc.raw = value & (uint16_t)~DEVICE_CONTROL_FLR;
    if (!(value & DEVICE_CONTROL_FLR)) {
        return 0;
    }
    if (!px->pxdcap.flrc) {
        log_err(pci->log, "pci: function level reset asked for, the device has none");
        return -EINVAL;
    }
    return pci->ops->reset_function(pci->owner);
}

static int write_express(struct pci_config *pci, const struct pci_cap *cap, size_t offset,
                         const uint8_t *data, size_t count)
{
    struct pxcap *px = (struct pxcap *)pci_cap_bytes(pci, cap);

    if (count != sizeof(uint16_t)) {
        return refuse(pci, cap, offset, count, -EINVAL);
    }
    switch (offset) {
    case offsetof(struct pxcap, pxdc):
        return write_device_control(pci, px, data);
    case offsetof(struct pxcap, pxdc2):
        memcpy(&px->pxdc2, data, count);
        return 0;
    case offsetof(struct pxcap, pxlc2):
        memcpy(&px->pxlc2, data, count);
        return 0;
    case offsetof(struct pxcap, pxlc):
    case offsetof(struct pxcap, pxsc):
    case offsetof(struct pxcap, pxrc):
    case offsetof(struct pxcap, pxsc2):
        return 0;
    default:
        return refuse(pci, cap, offset, count, -EINVAL);
    }
}

bool pci_config_is_device_control(const struct pci_config *pci, uint64_t offset)
{
    const struct pci_cap *px = pci_cap_find(pci, false, PCI_CAP_ID_EXP);

    return px != NULL && offset == px->offset + offsetof(struct pxcap, pxdc);
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
    { "PM", PCI_CAP_ID_PM, .size = sizeof(struct pmcap), .header = 2, .write = write_pm },
    { "MSI", PCI_CAP_ID_MSI, .size = sizeof(struct msicap), .header = 2, .write = write_msi },
    { "VNDR", PCI_CAP_ID_VNDR, .length = vendor_length, .header = 3, .write = write_vendor },
    { "EXP", PCI_CAP_ID_EXP, .size = sizeof(struct pxcap), .header = 2, .write = write_express },
    { "MSI-X", PCI_CAP_ID_MSIX, .size = sizeof(struct msixcap), .header = 2,
      .write = write_msix },
    { "DSN", PCI_EXT_CAP_ID_DSN, true, SIZE_AND_HEADER(struct dsncap) },
    { "VSEC", PCI_EXT_CAP_ID_VNDR, true, .length = extended_vendor_length, .header = 8,
      .write = write_vendor },
    { "ATS", PCI_EXT_CAP_ID_ATS, true, SIZE_AND_HEADER(struct atscap), .write = pci_ats_write,
      .reset = pci_ats_reset },
    { "PRI", PCI_EXT_CAP_ID_PRI, true, SIZE_AND_HEADER(struct pricap), .write = pci_pri_write,
      .reset = pci_pri_reset },
    { "PASID", PCI_EXT_CAP_ID_PASID, true, SIZE_AND_HEADER(struct pasidcap),
      .write = pci_pasid_write, .reset = pci_pasid_reset },
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

/* Lists */

static const struct pci_cap_list *list_of(const struct pci_config *pci, bool extended)
{
    return extended ? &pci->extended : &pci->standard;
}

const struct pci_cap *pci_cap_find(const struct pci_config *pci, bool extended, uint16_t id)
{
    const struct pci_cap_list *list = list_of(pci, extended);

    for (unsigned i = 0; i < list->nr; i++) {
        if (list->caps[i].type->id == id) {
            return &list->caps[i];
        }
    }
    return NULL;
}

static bool express(const struct pci_config *pci)
{
    return pci->type == VFU_PCI_TYPE_PCI_X_2 || pci->type == VFU_PCI_TYPE_EXPRESS;
}

static uint16_t cap_id(const void *data, bool extended)
{
    if (extended) {
        return (uint16_t)((const struct pcie_ext_cap_hdr *)data)->id;
    }
    return ((const struct cap_hdr *)data)->id;
}

/* Ranges that only touch count as overlapping, as they always have. */
static bool collides(const struct pci_cap_list *list, size_t pos, size_t size)
{
    for (unsigned i = 0; i < list->nr; i++) {
        const struct pci_cap *cap = &list->caps[i];

        if (pos <= (size_t)cap->offset + cap->size && cap->offset <= pos + size) {
            return true;
        }
    }
    return false;
}

static size_t limit_of(const struct pci_config *pci, bool extended)
{
    return extended ? pci->size : PCI_CFG_SPACE_SIZE;
}

static int check_position(const struct pci_config *pci, bool extended, size_t pos, size_t size)
{
    const struct pci_cap_list *list = list_of(pci, extended);
    size_t first = extended ? FIRST_EXTENDED : FIRST_STANDARD;

    if (pos < first || pos + size > limit_of(pci, extended) ||
        (extended && list->nr == 0 && pos != FIRST_EXTENDED) || collides(list, pos, size)) {
        log_err(pci->log, "pci: no %s capability can be at 0x%zx",
                extended ? "extended" : "standard", pos);
        return -EINVAL;
    }
    return 0;
}

static size_t end_of(const struct pci_cap *cap)
{
    return ((size_t)cap->offset + cap->size + 3) & ~(size_t)3;
}

/* The capability that a new one would share bytes with, or NULL. */
static const struct pci_cap *obstacle(const struct pci_cap_list *list, size_t pos, size_t size)
{
    for (unsigned i = 0; i < list->nr; i++) {
        const struct pci_cap *cap = &list->caps[i];

        if (pos < (size_t)cap->offset + cap->size && cap->offset < pos + size) {
            return cap;
        }
    }
    return NULL;
}

/* Behind the last of the list, on the next double word, and behind what is in the way there. */
static ssize_t choose_position(const struct pci_config *pci, bool extended, size_t size)
{
    const struct pci_cap_list *list = list_of(pci, extended);
    size_t pos = extended ? FIRST_EXTENDED : FIRST_STANDARD;
    const struct pci_cap *cap = list->nr > 0 ? &list->caps[list->nr - 1] : NULL;

    for (; cap != NULL; cap = obstacle(list, pos, size)) {
        pos = end_of(cap);
    }
    if (pos + size > limit_of(pci, extended)) {
        log_err(pci->log, "pci: no room for a capability of %zu bytes at 0x%zx", size, pos);
        return -ENOSPC;
    }
    return (ssize_t)pos;
}

static void link_cap(struct pci_config *pci, bool extended, size_t pos)
{
    const struct pci_cap_list *list = list_of(pci, extended);
    uint8_t *bytes = (uint8_t *)pci->space;

    if (extended) {
        ((struct pcie_ext_cap_hdr *)(bytes + pos))->next = 0;
        if (list->nr > 0) {
            uint16_t last = list->caps[list->nr - 1].offset;

            ((struct pcie_ext_cap_hdr *)(bytes + last))->next = (uint32_t)pos & 0xfff;
        }
        return;
    }
    ((struct cap_hdr *)(bytes + pos))->next = 0;
    if (list->nr > 0) {
        ((struct cap_hdr *)(bytes + list->caps[list->nr - 1].offset))->next = (uint8_t)pos;
    } else {
        pci->space->hdr.cap = (uint8_t)pos;
    }
}

static int check_capability(const struct pci_config *pci, int flags,
                            const struct pci_cap_list *list)
{
    if ((flags & ~CAP_FLAGS) != 0) {
        log_err(pci->log, "pci: unknown capability flags 0x%x", flags);
        return -EINVAL;
    }
    if ((flags & VFU_CAP_FLAG_CALLBACK) && !pci->ops->has_device_access(pci->owner)) {
        log_err(pci->log, "pci: a callback capability needs a configuration region callback");
        return -EINVAL;
    }
    if (((flags & VFU_CAP_FLAG_EXTENDED) && !express(pci)) || pci->space == NULL) {
        log_err(pci->log, "pci: this configuration space has no such capabilities");
        return -EINVAL;
    }
    if (list->nr == PCI_MAX_CAPS) {
        log_err(pci->log, "pci: more than %d capabilities", PCI_MAX_CAPS);
        return -ENOSPC;
    }
    return 0;
}

ssize_t pci_config_add_capability(struct pci_config *pci, size_t pos, int flags, const void *data)
{
    bool extended = (flags & VFU_CAP_FLAG_EXTENDED) != 0;
    struct pci_cap_list *list = extended ? &pci->extended : &pci->standard;
    const struct pci_cap_type *type;
    size_t size;
    ssize_t r = check_capability(pci, flags, list);

    if (r < 0) {
        return r;
    }
    type = pci_cap_type(extended, cap_id(data, extended));
    if (type == NULL) {
        log_err(pci->log, "pci: capability 0x%x is not supported", cap_id(data, extended));
        return -ENOTSUP;
    }
    size = type->size != 0 ? type->size : type->length(data);
    if (size < type->header || pos + size >= pci->size || pos >= pci->size) {
        log_err(pci->log, "pci: capability %s of %zu bytes at 0x%zx does not fit", type->name,
                size, pos);
        return -EINVAL;
    }
    r = pos != 0 ? check_position(pci, extended, pos, size) : choose_position(pci, extended, size);
    if (r < 0) {
        return r;
    }
    pos = pos != 0 ? pos : (size_t)r;
    memcpy((uint8_t *)pci->space + pos, data, size);
    if (type->reset != NULL) {
        type->reset((uint8_t *)pci->space + pos);
    }
    link_cap(pci, extended, pos);
    list->caps[list->nr++] = (struct pci_cap){
        .type = type,
        .offset = (uint16_t)pos,
        .size = (uint16_t)size,
        .header = type->header,
        .flags = (uint16_t)flags,
    };
    return (ssize_t)pos;
}

void pci_config_keep_extended(struct pci_config *pci, unsigned nr)
{
    struct pci_cap_list *list = &pci->extended;
    uint8_t *bytes = (uint8_t *)pci->space;

    while (list->nr > nr) {
        const struct pci_cap *cap = &list->caps[--list->nr];

        memset(bytes + cap->offset, 0, cap->size);
    }
    if (nr > 0) {
        ((struct pcie_ext_cap_hdr *)(bytes + list->caps[nr - 1].offset))->next = 0;
    }
}

/*
 * Walks the list in the buffer, which the device may have edited: every link is checked, and no
 * more are followed than there is room for.
 */
ssize_t pci_config_find_capability(const struct pci_config *pci, bool extended, size_t pos, int id)
{
    const uint8_t *bytes = (const uint8_t *)pci->space;
    size_t header = extended ? sizeof(struct pcie_ext_cap_hdr) : sizeof(struct cap_hdr);
    size_t limit = limit_of(pci, extended);
    bool skip = pos != 0;

    if (pci->space == NULL || (extended && !express(pci))) {
        return -EINVAL;
    }
    if (pos == 0) {
        pos = extended ? FIRST_EXTENDED : pci->space->hdr.cap;
    }
    for (size_t hops = 0; pos != 0 && hops < PCI_CFG_SPACE_EXP_SIZE / 4; hops++) {
        size_t next;

        if (pos > limit - header) {
            return -EINVAL;
        }
        if (!skip && cap_id(bytes + pos, extended) == id) {
            return (ssize_t)pos;
        }
        skip = false;
        next = extended ? ((const struct pcie_ext_cap_hdr *)(bytes + pos))->next
                        : ((const struct cap_hdr *)(bytes + pos))->next;
        pos = next;
    }
    return -ENOENT;
}
