/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device with every capability that the library knows, and no client: its configuration space is
 * printed as the hex dump that lspci of pciutils reads:
 *
 *     lspci > dump && lspci -vv -F dump
 *
 * What it teaches: how capabilities are added and found again, and what the library fills in.
 */

#include "libvfio-user-iommu.h"
#include "libvfio-user.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VENDOR_ID 0x1234
#define DEVICE_ID 0x11e9
#define CLASS_MEMORY 0x05
#define SUBCLASS_OTHER 0x80
#define REVISION 0x02
#define SERIAL_NUMBER 0x0011223344556677

#define BAR0_SIZE 0x10000
#define BAR2_SIZE 0x1000
#define NR_MSI 8
#define NR_MSIX 32
#define MSIX_BAR 2
#define MSIX_TABLE 0x000
#define MSIX_PENDING 0x800

#define DUMP_ADDRESS "00:00.0"
#define DUMP_LINE 16
#define EXIT_USAGE 2

static const char usage[] =
    "Usage: lspci [--help]\n"
    "Print the configuration space of a PCI device with every capability, for\n"
    "'lspci -vv -F FILE'.\n";

/*
 * The capabilities. The header's next pointer is the library's, the ID and, where the size is not
 * given by the ID, the size, are the device's.
 */

/* A capability whose content is the device's own affair (PCI 3.0, 6.7). */
static const struct {
    struct vsc head;
    uint8_t content[5];
} vendor = {
    .head = { .hdr.id = PCI_CAP_ID_VNDR, .size = sizeof(vendor) },
    .content = { 'h', 'e', 'l', 'l', 'o' },
};

static const struct pmcap power_management = {
    .hdr.id = PCI_CAP_ID_PM,
    .pc = { .vs = 3, .d1s = 1 },
    .pmcs = { .nsfrst = 1 },
};

/* 64-bit addresses and a mask for each message; 2^mmc messages. */
static const struct msicap msi = {
    .hdr.id = PCI_CAP_ID_MSI,
    .mc = { .mmc = 3, .c64 = 1, .pvm = 1 },
};

static const struct pxcap express = {
    .hdr.id = PCI_CAP_ID_EXP,
    .pxcaps = { .ver = 2, .dpt = PCI_EXP_TYPE_RC_END },
    .pxdcap = { .mps = 1, .etfs = 1, .rer = 1, .flrc = 1 },
    .pxdcap2 = { .ctds = 1, .eetps = 1, .meetp = 1 },
};

static const struct msixcap msix = {
    .hdr.id = PCI_CAP_ID_MSIX,
    .mxc.ts = NR_MSIX - 1,
    .mtab = { .tbir = MSIX_BAR, .to = MSIX_TABLE / 8 },
    .mpba = { .pbir = MSIX_BAR, .pbao = MSIX_PENDING / 8 },
};

static const struct dsncap serial_number = {
    .hdr = { .id = PCI_EXT_CAP_ID_DSN, .version = 1 },
    .sn_lo = (uint32_t)SERIAL_NUMBER,
    .sn_hi = (uint32_t)(SERIAL_NUMBER >> 32),
};

static const struct {
    struct pcie_ext_cap_vsc_hdr head;
    uint8_t content[8];
} extended_vendor = {
    .head = { .hdr = { .id = PCI_EXT_CAP_ID_VNDR, .version = 1 },
              .id = 0xcafe,
              .rev = 1,
              .len = sizeof(extended_vendor) },
    .content = { 'e', 'x', 't', 'e', 'n', 'd', 'e', 'd' },
};

static const struct {
    const char *name;
    int id;
    int flags;
    const void *data;
} capabilities[] = {
    { "power management", PCI_CAP_ID_PM, 0, &power_management },
    { "MSI", PCI_CAP_ID_MSI, 0, &msi },
    { "PCI Express", PCI_CAP_ID_EXP, 0, &express },
    { "MSI-X", PCI_CAP_ID_MSIX, 0, &msix },
    { "vendor-specific", PCI_CAP_ID_VNDR, VFU_CAP_FLAG_READONLY, &vendor },
    { "device serial number", PCI_EXT_CAP_ID_DSN, VFU_CAP_FLAG_EXTENDED, &serial_number },
    { "vendor-specific extended", PCI_EXT_CAP_ID_VNDR, VFU_CAP_FLAG_EXTENDED, &extended_vendor },
};

#define NR_CAPABILITIES (sizeof(capabilities) / sizeof(capabilities[0]))

/* Adds them one after the other; each can be found again, where the library has put it. */
static int add_capabilities(vfu_ctx_t *ctx)
{
    for (size_t i = 0; i < NR_CAPABILITIES; i++) {
        bool extended = (capabilities[i].flags & VFU_CAP_FLAG_EXTENDED) != 0;
        ssize_t pos = vfu_pci_add_capability(ctx, 0, capabilities[i].flags,
                                             (void *)capabilities[i].data);

        if (pos < 0) {
            fprintf(stderr, "lspci: cannot add the %s capability: %s\n", capabilities[i].name,
                    strerror(errno));
            return -1;
        }
        if (vfu_pci_find_capability(ctx, extended, capabilities[i].id) != (size_t)pos) {
            fprintf(stderr, "lspci: the %s capability was added at 0x%zx and is not found there\n",
                    capabilities[i].name, (size_t)pos);
            return -1;
        }
    }
    return 0;
}

/* ATS, PRI and PASID come with the interface that they belong to. */
static int add_iommu(vfu_ctx_t *ctx)
{
    const vfu_iommu_config_t config = {
        .size = sizeof(config),
        .pasid_bits = 20,
        .pasid_exec = true,
        .pasid_priv = true,
        .ats = true,
        .pri = true,
    };

    return vfu_setup_device_dma(ctx, LIBVFIO_USER_MAX_DMA_REGIONS, NULL, NULL) != 0
               ? -1
               : vfu_setup_device_iommu(ctx, &config);
}

/* No client will come, but a BAR needs somebody who would answer. */
static ssize_t access_bar(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx;
    (void)offset;
    if (!is_write) {
        memset(buf, 0, count);
    }
    return (ssize_t)count;
}

static int add_bars(vfu_ctx_t *ctx)
{
    const int flags = VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM;

    if (vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR0_SIZE, access_bar,
                         flags | VFU_REGION_FLAG_64_BITS | VFU_REGION_FLAG_PREFETCH, NULL, 0, -1,
                         0) != 0) {
        return -1;
    }
    return vfu_setup_region(ctx, VFU_PCI_DEV_BAR2_REGION_IDX, BAR2_SIZE, access_bar, flags, NULL,
                            0, -1, 0);
}

static int set_up(vfu_ctx_t *ctx)
{
    if (vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) != 0) {
        return -1;
    }
    vfu_pci_set_id(ctx, VENDOR_ID, DEVICE_ID, VENDOR_ID, 1);
    vfu_pci_set_class(ctx, CLASS_MEMORY, SUBCLASS_OTHER, 0);
    vfu_pci_get_config_space(ctx)->hdr.rid = REVISION;
    if (add_bars(ctx) != 0 || vfu_setup_device_nr_irqs(ctx, VFU_DEV_INTX_IRQ, 1) != 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSI_IRQ, NR_MSI) != 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, NR_MSIX) != 0 ||
        add_capabilities(ctx) != 0 || add_iommu(ctx) != 0) {
        return -1;
    }
    return vfu_realize_ctx(ctx);
}

/* Realizing marks every BAR that is not memory as I/O space; those that are not there are zero. */
static void clear_missing_bars(vfu_ctx_t *ctx)
{
    for (int i = VFU_PCI_DEV_BAR3_REGION_IDX; i <= VFU_PCI_DEV_BAR5_REGION_IDX; i++) {
        vfu_pci_get_config_space(ctx)->hdr.bars[i].raw = 0;
    }
}

static void print_dump(const uint8_t *config)
{
    printf("%s Memory controller: every capability\n", DUMP_ADDRESS);
    for (size_t line = 0; line < PCI_CFG_SPACE_EXP_SIZE; line += DUMP_LINE) {
        printf("%02zx:", line);
        for (size_t i = 0; i < DUMP_LINE; i++) {
            printf(" %02x", config[line + i]);
        }
        putchar('\n');
    }
    putchar('\n');
}

/* Without a client there is no need for a socket: a context over pipes makes none. */
static int run(void)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_PIPE, "", 0, NULL, VFU_DEV_TYPE_PCI);
    int err = -1;

    if (ctx != NULL) {
        err = set_up(ctx);
    }
    if (err != 0) {
        fprintf(stderr, "lspci: cannot set the device up: %s\n", strerror(errno));
    } else {
        clear_missing_bars(ctx);
        print_dump((const uint8_t *)vfu_pci_get_config_space(ctx));
    }
    vfu_destroy_ctx(ctx);
    return err;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return EXIT_SUCCESS;
    }
    if (argc != 1) {
        fprintf(stderr, "lspci: takes no '%s': try 'lspci --help'\n", argv[1]);
        return EXIT_USAGE;
    }
    if (run() != 0) {
        return EXIT_FAILURE;
    }
    if (fflush(stdout) != 0) {
        fprintf(stderr, "lspci: cannot print: %s\n", strerror(errno));
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
