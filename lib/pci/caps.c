/* SPDX-License-Identifier: BSD-3-Clause */
/* The lists of capabilities (PCI 6.7, PCIe 7.6.3): adding, linking, finding. */
#include "pci/pci_internal.h"

#include <errno.h>
#include <string.h>

#define FIRST_STANDARD PCI_STD_HEADER_SIZEOF
#define FIRST_EXTENDED PCI_CFG_SPACE_SIZE

#define CAP_FLAGS (VFU_CAP_FLAG_EXTENDED | VFU_CAP_FLAG_CALLBACK | VFU_CAP_FLAG_READONLY)

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

static void apply_list(struct pci_config *pci, const struct pci_cap_list *list)
{
    for (unsigned i = 0; i < list->nr; i++) {
        const struct pci_cap *cap = &list->caps[i];

        if (pci_cap_is_ours(cap) && cap->type->apply != NULL) {
            cap->type->apply(pci, cap);
        }
    }
}

void pci_caps_apply(struct pci_config *pci)
{
    apply_list(pci, &pci->standard);
    apply_list(pci, &pci->extended);
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
    list->caps[list->nr] = (struct pci_cap){
        .type = type,
        .offset = (uint16_t)pos,
        .size = (uint16_t)size,
        .flags = (uint16_t)flags,
    };
    pci_cap_init_masks(pci, &list->caps[list->nr++]);
    memcpy(pci->initial + pos, (uint8_t *)pci->space + pos, size);
    return (ssize_t)pos;
}

void pci_config_keep_extended(struct pci_config *pci, unsigned nr)
{
    struct pci_cap_list *list = &pci->extended;
    uint8_t *bytes = (uint8_t *)pci->space;

    while (list->nr > nr) {
        const struct pci_cap *cap = &list->caps[--list->nr];

        memset(bytes + cap->offset, 0, cap->size);
        memset(pci->masks.writable + cap->offset, 0, cap->size);
        memset(pci->masks.clearable + cap->offset, 0, cap->size);
        memset(pci->masks.sticky + cap->offset, 0, cap->size);
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
