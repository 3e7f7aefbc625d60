// SPDX-License-Identifier: BSD-3-Clause
//
// The headers are clean C++, and a device written in C++ links with the library and runs.

#include "libvfio-user.h"
#if __has_include("libvfio-user-iommu.h")
#include "libvfio-user-iommu.h"
#endif
#include "pci_caps/ats.h"
#include "pci_caps/common.h"
#include "pci_caps/dsn.h"
#include "pci_caps/msi.h"
#include "pci_caps/msix.h"
#include "pci_caps/pasid.h"
#include "pci_caps/pm.h"
#include "pci_caps/pri.h"
#include "pci_caps/px.h"
#include "pci_defs.h"
#include "vfio-user.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace
{

constexpr size_t bar_size = 4096;

struct device {
    char registers[bar_size];
    int resets;
};

ssize_t bar_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    auto *dev = static_cast<device *>(vfu_get_private(ctx));

    if (is_write) {
        memcpy(dev->registers + offset, buf, count);
    } else {
        memcpy(buf, dev->registers + offset, count);
    }
    return static_cast<ssize_t>(count);
}

int reset(vfu_ctx_t *ctx, vfu_reset_type_t)
{
    static_cast<device *>(vfu_get_private(ctx))->resets++;
    return 0;
}

int set_up(vfu_ctx_t *ctx)
{
    pmcap pm = {};

    pm.hdr.id = PCI_CAP_ID_PM;
    if (vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) < 0) {
        return -1;
    }
    vfu_pci_set_id(ctx, 0x1234, 0x5678, 0, 0);
    vfu_pci_get_config_space(ctx)->hdr.cmd.bme = 1;
    if (vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, bar_size, bar_access,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, nullptr, 0, -1, 0) < 0 ||
        vfu_setup_device_reset_cb(ctx, reset) < 0 ||
        vfu_setup_device_dma(ctx, 16, nullptr, nullptr) < 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_INTX_IRQ, 1) < 0 ||
        vfu_pci_add_capability(ctx, 0, 0, &pm) < 0) {
        return -1;
    }
    return vfu_realize_ctx(ctx);
}

} // namespace

int main()
{
    char dir[] = "/tmp/vfu-abi-XXXXXX";
    device dev = {};

    if (mkdtemp(dir) == nullptr) {
        perror("mkdtemp");
        return 1;
    }

    std::string path = std::string(dir) + "/socket";
    int failed = 1;
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, path.c_str(), LIBVFIO_USER_FLAG_ATTACH_NB, &dev,
                                    VFU_DEV_TYPE_PCI);

    if (ctx == nullptr) {
        perror("vfu_create_ctx");
    } else {
        failed = set_up(ctx);
        if (failed != 0) {
            perror("set-up");
        }
        vfu_destroy_ctx(ctx);
    }
    rmdir(dir);
    return failed == 0 && dev.resets == 1 ? 0 : 1;
}
