/* SPDX-License-Identifier: BSD-3-Clause */
/* Configuration space: its lists of capabilities are the server's word. */
#include "client.h"

#include "util/peer_file.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <unistd.h>

/* Capabilities begin on 4 bytes: there cannot be more of them (PCIe 7.5.3, 7.6.3). */
#define MAX_CAPABILITIES ((PCI_CFG_SPACE_SIZE - PCI_STD_HEADER_SIZEOF) / 4)
#define MAX_EXTENDED ((PCI_CFG_SPACE_EXP_SIZE - PCI_CFG_SPACE_SIZE) / 4)

int vfuc_config_read(vfuc_t *client, uint32_t offset, void *data, size_t count)
{
    return vfuc_region_read(client, VFIO_PCI_CONFIG_REGION_INDEX, offset, data, count);
}

int vfuc_config_write(vfuc_t *client, uint32_t offset, const void *data, size_t count)
{
    return vfuc_region_write(client, VFIO_PCI_CONFIG_REGION_INDEX, offset, data, count);
}

static int malformed(struct vfuc *client, const char *what, uint32_t offset)
{
    client_log(client, "configuration space: the list of %s leads to 0x%x", what, offset);
    return -EPROTO;
}

/* Stores up to max, and returns how many there are; or -errno. */
static int list_capabilities(struct vfuc *client, vfuc_capability_t *list, uint32_t max)
{
    uint16_t status;
    uint8_t pos, header[2];
    uint32_t n;

    if (vfuc_config_read(client, PCI_STATUS, &status, sizeof(status)) < 0 ||
        vfuc_config_read(client, PCI_CAPABILITY_LIST, &pos, 1) < 0) {
        return -errno;
    }
    if (!(status & PCI_STATUS_CAP_LIST)) {
        return 0;
    }
    for (n = 0; (pos &= 0xfc) != 0; n++) {
        if (pos < PCI_STD_HEADER_SIZEOF || n == MAX_CAPABILITIES) {
            return malformed(client, "capabilities", pos);
        }
        if (vfuc_config_read(client, pos, header, sizeof(header)) < 0) {
            return -errno;
        }
        if (n < max) {
            list[n] = (vfuc_capability_t){ .id = header[0], .offset = pos };
        }
        pos = header[1];
    }
    return (int)n;
}

static int list_extended(struct vfuc *client, vfuc_capability_t *list, uint32_t max)
{
    uint32_t pos = PCI_CFG_SPACE_SIZE, header, n;

    for (n = 0; pos != 0; n++) {
        if (pos < PCI_CFG_SPACE_SIZE || n == MAX_EXTENDED) {
            return malformed(client, "extended capabilities", pos);
        }
        if (vfuc_config_read(client, pos, &header, sizeof(header)) < 0) {
            return -errno;
        }
        if (n == 0 && header == 0) {
            return 0;
        }
        if (n < max) {
            list[n] = (vfuc_capability_t){
                .id = PCI_EXT_CAP_ID(header),
                .version = PCI_EXT_CAP_VER(header),
                .offset = (uint16_t)pos,
                .extended = true,
            };
        }
        pos = PCI_EXT_CAP_NEXT(header);
    }
    return (int)n;
}

int vfuc_config_capabilities(vfuc_t *client, vfuc_capability_t *list, uint32_t max)
{
    vfuc_region_info_t info;
    int n = list_capabilities(client, list, max), extended = 0;

    if (n >= 0 && vfuc_region_info(client, VFIO_PCI_CONFIG_REGION_INDEX, &info) < 0) {
        n = -errno;
    }
    if (n >= 0 && info.fd != -1) {
        peer_file_close(info.fd);
    }
    if (n >= 0 && info.size >= PCI_CFG_SPACE_EXP_SIZE) {
        uint32_t stored = (uint32_t)n < max ? (uint32_t)n : max;

        extended = list_extended(client, max > stored ? list + stored : NULL, max - stored);
    }
    return (int)client_result(n < 0 ? n : extended < 0 ? extended : n + extended);
}

int vfuc_config_find(vfuc_t *client, bool extended, uint16_t id)
{
    vfuc_capability_t list[MAX_CAPABILITIES + MAX_EXTENDED];
    int n = vfuc_config_capabilities(client, list, MAX_CAPABILITIES + MAX_EXTENDED);

    for (int i = 0; i < n; i++) {
        if (list[i].extended == extended && list[i].id == id) {
            return list[i].offset;
        }
    }
    return n < 0 ? -1 : (int)client_result(-ENOENT);
}
