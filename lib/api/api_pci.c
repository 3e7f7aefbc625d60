/* SPDX-License-Identifier: BSD-3-Clause */
#include "api/api.h"

int vfu_pci_init(vfu_ctx_t *vfu_ctx, vfu_pci_type_t pci_type, int hdr_type, int revision)
{
    struct region *config = &vfu_ctx->regions[VFU_PCI_DEV_CFG_REGION_IDX];
    int err = pci_config_init(&vfu_ctx->pci, pci_type, hdr_type);

    (void)revision;
    if (err < 0) {
        return api_result(err);
    }
    config->size = vfu_ctx->pci.size;
    config->flags = VFU_REGION_FLAG_RW;
    return 0;
}

/* NULL, and a log line, when there is no configuration space yet. */
static vfu_pci_hdr_t *header(vfu_ctx_t *vfu_ctx, const char *caller)
{
    if (vfu_ctx->pci.space == NULL) {
        log_err(&vfu_ctx->log, "%s: call vfu_pci_init() first: ignored", caller);
        return NULL;
    }
    return &vfu_ctx->pci.space->hdr;
}

void vfu_pci_set_id(vfu_ctx_t *vfu_ctx, uint16_t vid, uint16_t did, uint16_t ssvid, uint16_t ssid)
{
    vfu_pci_hdr_t *hdr = header(vfu_ctx, "vfu_pci_set_id");

    if (hdr == NULL) {
        return;
    }
    hdr->id.vid = vid;
    hdr->id.did = did;
    hdr->ss.vid = ssvid;
    hdr->ss.sid = ssid;
}

void vfu_pci_set_class(vfu_ctx_t *vfu_ctx, uint8_t base, uint8_t sub, uint8_t pi)
{
    vfu_pci_hdr_t *hdr = header(vfu_ctx, "vfu_pci_set_class");

    if (hdr == NULL) {
        return;
    }
    hdr->cc.bcc = base;
    hdr->cc.scc = sub;
    hdr->cc.pi = pi;
}

vfu_pci_config_space_t *vfu_pci_get_config_space(vfu_ctx_t *vfu_ctx)
{
    return vfu_ctx->pci.space;
}

ssize_t vfu_pci_add_capability(vfu_ctx_t *vfu_ctx, size_t pos, int flags, void *data)
{
    ssize_t r = pci_config_add_capability(&vfu_ctx->pci, pos, flags, data);

    return r < 0 ? api_result((int)r) : r;
}

size_t vfu_pci_find_next_capability(vfu_ctx_t *vfu_ctx, bool extended, size_t pos, int cap_id)
{
    ssize_t r = pci_config_find_capability(&vfu_ctx->pci, extended, pos, cap_id);

    if (r < 0) {
        errno = (int)-r;
        return 0;
    }
    return (size_t)r;
}

size_t vfu_pci_find_capability(vfu_ctx_t *vfu_ctx, bool extended, int cap_id)
{
    return vfu_pci_find_next_capability(vfu_ctx, extended, 0, cap_id);
}
