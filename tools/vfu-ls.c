/* SPDX-License-Identifier: BSD-3-Clause */
/* Attaches to a vfio-user server, and says what its device is, as lspci would; or one register. */
#include "vfio-user-client.h"
#include "vfio-user.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TIMEOUT_MS 5000
#define MAX_CONFIG 4096
#define MAX_CAPABILITIES 1024
#define MAX_READ 4096
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const char *const region_names[] = {
    "BAR0", "BAR1", "BAR2", "BAR3", "BAR4", "BAR5", "ROM", "CONFIG", "VGA",
};
static const char *const irq_names[] = { "INTx", "MSI", "MSI-X", "ERR", "REQ" };

struct device {
    const char *path;
    vfuc_t *client;
    uint8_t config[MAX_CONFIG];
    size_t config_size;
};

/* Errors say what to do next. */

static const struct {
    int err;
    const char *advice;
} advices[] = {
    { ENOENT, "there is no such socket: start the server, or give the path that it was given" },
    { ECONNREFUSED, "nobody listens there any more: remove the socket and start the server again" },
    { EACCES, "you may not use this socket: run as the user who started the server" },
    { ENOTSOCK, "this is no socket: give the path that the server listens on" },
    { EPROTOTYPE, "this is another kind of socket: give the path that the server listens on" },
    { ENAMETOOLONG, "a socket's path has at most 107 bytes: have the server listen elsewhere" },
    { ETIMEDOUT, "no answer in time: a server has one client at a time, so detach the other (a "
                 "virtual machine?), or give --timeout" },
    { ENOTCONN, "the server has hung up: see its log, and start it again if it has ended" },
    { EPROTO, "what answers does not speak vfio-user as it should: is it the right socket?" },
    { EINVAL, "the server refuses that: is it in the region, and as wide and aligned as the "
              "device wants it?" },
};

static void __attribute__((noreturn, format(printf, 2, 3))) die(int err, const char *fmt, ...)
{
    va_list ap;

    fputs("vfu-ls: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, ": %s\n", strerror(err));
    for (size_t i = 0; i < COUNT(advices); i++) {
        if (advices[i].err == err) {
            fprintf(stderr, "vfu-ls: %s\n", advices[i].advice);
        }
    }
    exit(1);
}

/* Linux refuses a connection to what is no socket at all, which is not to be removed. */
static int connect_error(const char *path, int err)
{
    struct stat st;

    return err == ECONNREFUSED && stat(path, &st) == 0 && !S_ISSOCK(st.st_mode) ? ENOTSOCK : err;
}

static void print_log(void *pvt, const char *line)
{
    (void)pvt;
    fprintf(stderr, "vfu-ls: %s\n", line);
}

/* Words */

static const char *yes(uint32_t bit)
{
    return bit != 0 ? "yes" : "no";
}

static const char *size_words(uint64_t size, char words[32])
{
    static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB" };
    unsigned unit = 0;

    while (size != 0 && size % 1024 == 0 && unit + 1 < COUNT(units)) {
        size /= 1024;
        unit++;
    }
    snprintf(words, 32, "%" PRIu64 " %s", size, units[unit]);
    return words;
}

static const struct {
    uint16_t class, mask;
    const char *name;
} classes[] = {
    { 0x0000, 0xff00, "device without a class" },
    { 0x0106, 0xffff, "SATA controller" },
    { 0x0108, 0xffff, "non-volatile memory controller" },
    { 0x0100, 0xff00, "mass storage controller" },
    { 0x0200, 0xffff, "Ethernet controller" },
    { 0x0200, 0xff00, "network controller" },
    { 0x0300, 0xff00, "display controller" },
    { 0x0400, 0xff00, "multimedia device" },
    { 0x0500, 0xff00, "memory controller" },
    { 0x0600, 0xff00, "bridge" },
    { 0x0700, 0xff00, "communication controller" },
    { 0x0800, 0xff00, "system peripheral" },
    { 0x0900, 0xff00, "input device" },
    { 0x0c03, 0xffff, "USB controller" },
    { 0x0c00, 0xff00, "serial bus controller" },
    { 0x0d00, 0xff00, "wireless controller" },
    { 0x1000, 0xff00, "encryption controller" },
    { 0x1200, 0xff00, "processing accelerator" },
};

static const char *class_name(uint16_t class)
{
    for (size_t i = 0; i < COUNT(classes); i++) {
        if ((class & classes[i].mask) == classes[i].class) {
            return classes[i].name;
        }
    }
    return "device of an unknown class";
}

/* Registers in the copy of configuration space; all ones where there is none. */

static uint32_t get(const struct device *device, size_t offset, unsigned bytes)
{
    uint32_t value = UINT32_MAX;

    if (offset + bytes <= device->config_size) {
        value = 0;
        memcpy(&value, device->config + offset, bytes);
    }
    return value;
}

static uint32_t get16(const struct device *device, size_t offset)
{
    return get(device, offset, 2);
}

static uint32_t get32(const struct device *device, size_t offset)
{
    return get(device, offset, 4);
}

/* Capabilities (PCIe 7.5 to 7.9, 10.5) */

static void show_pm(const struct device *d, uint32_t at)
{
    uint32_t pmc = get16(d, at + PCI_PM_PMC), ctrl = get16(d, at + PCI_PM_CTRL);

    printf("version %u, state D%u, D1 %s, D2 %s, no soft reset %s, PME enabled %s\n",
           pmc & PCI_PM_CAP_VER_MASK, ctrl & PCI_PM_CTRL_STATE_MASK, yes(pmc & PCI_PM_CAP_D1),
           yes(pmc & PCI_PM_CAP_D2), yes(ctrl & PCI_PM_CTRL_NO_SOFT_RESET),
           yes(ctrl & PCI_PM_CTRL_PME_ENABLE));
}

static void show_msi(const struct device *d, uint32_t at)
{
    uint32_t flags = get16(d, at + PCI_MSI_FLAGS);

    printf("enabled %s, %u of %u vectors, 64-bit address %s, maskable %s\n",
           yes(flags & PCI_MSI_FLAGS_ENABLE), 1u << ((flags & PCI_MSI_FLAGS_QSIZE) >> 4),
           1u << ((flags & PCI_MSI_FLAGS_QMASK) >> 1), yes(flags & PCI_MSI_FLAGS_64BIT),
           yes(flags & PCI_MSI_FLAGS_MASKBIT));
}

static void show_msix(const struct device *d, uint32_t at)
{
    uint32_t flags = get16(d, at + PCI_MSIX_FLAGS), table = get32(d, at + PCI_MSIX_TABLE),
             pba = get32(d, at + PCI_MSIX_PBA);

    printf("enabled %s, function mask %s, %u vectors, table at BAR%u+0x%x, pending bits at "
           "BAR%u+0x%x\n",
           yes(flags & PCI_MSIX_FLAGS_ENABLE), yes(flags & PCI_MSIX_FLAGS_MASKALL),
           (flags & PCI_MSIX_FLAGS_QSIZE) + 1, table & PCI_MSIX_TABLE_BIR,
           table & PCI_MSIX_TABLE_OFFSET, pba & PCI_MSIX_PBA_BIR, pba & PCI_MSIX_PBA_OFFSET);
}

static const char *express_type(uint32_t flags)
{
    static const char *const names[16] = {
        [PCI_EXP_TYPE_ENDPOINT] = "endpoint",
        [PCI_EXP_TYPE_LEG_END] = "legacy endpoint",
        [PCI_EXP_TYPE_ROOT_PORT] = "root port",
        [PCI_EXP_TYPE_UPSTREAM] = "upstream port",
        [PCI_EXP_TYPE_DOWNSTREAM] = "downstream port",
        [PCI_EXP_TYPE_PCI_BRIDGE] = "bridge to PCI",
        [PCI_EXP_TYPE_PCIE_BRIDGE] = "bridge from PCI",
        [PCI_EXP_TYPE_RC_END] = "root complex integrated endpoint",
        [PCI_EXP_TYPE_RC_EC] = "root complex event collector",
    };
    const char *name = names[(flags & PCI_EXP_FLAGS_TYPE) >> 4];

    return name != NULL ? name : "unknown type";
}

static void show_express(const struct device *d, uint32_t at)
{
    uint32_t flags = get16(d, at + PCI_EXP_FLAGS), cap = get32(d, at + PCI_EXP_DEVCAP),
             ctl = get16(d, at + PCI_EXP_DEVCTL);

    printf("version %u, %s, payload %u of %u bytes, read request %u bytes, "
           "function level reset %s, extended tags %s, relaxed ordering %s, no snoop %s\n",
           flags & PCI_EXP_FLAGS_VERS, express_type(flags),
           128u << ((ctl & PCI_EXP_DEVCTL_PAYLOAD) >> 5), 128u << (cap & PCI_EXP_DEVCAP_PAYLOAD),
           128u << ((ctl & PCI_EXP_DEVCTL_READRQ) >> 12), yes(cap & PCI_EXP_DEVCAP_FLR),
           yes(ctl & PCI_EXP_DEVCTL_EXT_TAG), yes(ctl & PCI_EXP_DEVCTL_RELAX_EN),
           yes(ctl & PCI_EXP_DEVCTL_NOSNOOP_EN));
}

static void show_bytes(const struct device *d, uint32_t from, uint32_t to)
{
    for (uint32_t at = from; at < to && at < d->config_size; at++) {
        printf("%s%02x", at == from ? "" : " ", d->config[at]);
    }
    putchar('\n');
}

static void show_vendor(const struct device *d, uint32_t at)
{
    uint32_t length = get(d, at + PCI_CAP_FLAGS, 1);

    printf("%u bytes: ", length);
    show_bytes(d, at + PCI_CAP_FLAGS + 1, at + length);
}

static void show_extended_vendor(const struct device *d, uint32_t at)
{
    uint32_t header = get32(d, at + PCI_VNDR_HEADER);

    printf("id 0x%x, revision %u, %u bytes: ", PCI_VNDR_HEADER_ID(header),
           PCI_VNDR_HEADER_REV(header), PCI_VNDR_HEADER_LEN(header));
    show_bytes(d, at + 8, at + PCI_VNDR_HEADER_LEN(header));
}

static void show_serial(const struct device *d, uint32_t at)
{
    for (int i = 7; i >= 0; i--) {
        printf("%02x%s", get(d, at + 4 + (uint32_t)i, 1), i > 0 ? "-" : "\n");
    }
}

static void show_ats(const struct device *d, uint32_t at)
{
    uint32_t cap = get16(d, at + PCI_ATS_CAP), ctl = get16(d, at + PCI_ATS_CTRL);
    char unit[32];

    printf("enabled %s, smallest translation unit %s, %u invalidations in flight, page aligned "
           "requests %s, global invalidation %s, relaxed ordering %s\n",
           yes(ctl & PCI_ATS_CTRL_ENABLE),
           size_words(4096ull << PCI_ATS_CTRL_STU(ctl), unit),
           PCI_ATS_CAP_QDEP(cap) != 0 ? PCI_ATS_CAP_QDEP(cap) : PCI_ATS_MAX_QDEP,
           yes(cap & PCI_ATS_CAP_PAGE_ALIGNED), yes(cap & 1 << 6), yes(cap & 1 << 7));
}

static void show_pri(const struct device *d, uint32_t at)
{
    uint32_t ctl = get16(d, at + PCI_PRI_CTRL), status = get16(d, at + PCI_PRI_STATUS);

    printf("enabled %s, stopped %s, %u of %u page requests allotted, PASID in responses %s, "
           "response failure %s, unexpected group %s\n",
           yes(ctl & PCI_PRI_CTRL_ENABLE), yes(status & PCI_PRI_STATUS_STOPPED),
           get32(d, at + PCI_PRI_ALLOC_REQ), get32(d, at + PCI_PRI_MAX_REQ),
           yes(status & PCI_PRI_STATUS_PASID), yes(status & PCI_PRI_STATUS_RF),
           yes(status & PCI_PRI_STATUS_UPRGI));
}

static void show_pasid(const struct device *d, uint32_t at)
{
    uint32_t cap = get16(d, at + PCI_PASID_CAP), ctl = get16(d, at + PCI_PASID_CTRL);

    printf("enabled %s, %u bits, execute %s (enabled %s), privileged %s (enabled %s)\n",
           yes(ctl & PCI_PASID_CTRL_ENABLE), cap >> 8 & 0x1f, yes(cap & PCI_PASID_CAP_EXEC),
           yes(ctl & PCI_PASID_CTRL_EXEC), yes(cap & PCI_PASID_CAP_PRIV),
           yes(ctl & PCI_PASID_CTRL_PRIV));
}

static const struct capability {
    uint16_t id;
    bool extended;
    const char *name;
    void (*show)(const struct device *device, uint32_t at); /* NULL: the name is all */
} capabilities[] = {
    { PCI_CAP_ID_PM, false, "Power Management", show_pm },
    { PCI_CAP_ID_VPD, false, "Vital Product Data", NULL },
    { PCI_CAP_ID_MSI, false, "MSI", show_msi },
    { PCI_CAP_ID_PCIX, false, "PCI-X", NULL },
    { PCI_CAP_ID_VNDR, false, "Vendor Specific", show_vendor },
    { PCI_CAP_ID_EXP, false, "PCI Express", show_express },
    { PCI_CAP_ID_MSIX, false, "MSI-X", show_msix },
    { PCI_CAP_ID_AF, false, "Advanced Features", NULL },
    { PCI_EXT_CAP_ID_ERR, true, "Advanced Error Reporting", NULL },
    { PCI_EXT_CAP_ID_DSN, true, "Device Serial Number", show_serial },
    { PCI_EXT_CAP_ID_VNDR, true, "Vendor Specific", show_extended_vendor },
    { PCI_EXT_CAP_ID_ACS, true, "Access Control Services", NULL },
    { PCI_EXT_CAP_ID_ARI, true, "Alternative Routing-ID", NULL },
    { PCI_EXT_CAP_ID_ATS, true, "Address Translation Service", show_ats },
    { PCI_EXT_CAP_ID_SRIOV, true, "Single Root I/O Virtualization", NULL },
    { PCI_EXT_CAP_ID_PRI, true, "Page Request Interface", show_pri },
    { PCI_EXT_CAP_ID_PASID, true, "Process Address Space ID", show_pasid },
};

static void show_capability(const struct device *device, const vfuc_capability_t *found)
{
    printf("  [%03x] ", found->offset);
    for (size_t i = 0; i < COUNT(capabilities); i++) {
        const struct capability *known = &capabilities[i];

        if (known->id == found->id && known->extended == found->extended) {
            fputs(known->name, stdout);
            if (known->show == NULL) {
                putchar('\n');
            } else {
                fputs(": ", stdout);
                known->show(device, found->offset);
            }
            return;
        }
    }
    printf("%s 0x%02x\n", found->extended ? "Extended capability" : "Capability", found->id);
}

static void show_capabilities(const struct device *device)
{
    vfuc_capability_t *list = calloc(MAX_CAPABILITIES, sizeof(*list));
    int n = -1;

    if (list != NULL) {
        n = vfuc_config_capabilities(device->client, list, MAX_CAPABILITIES);
    }
    if (n < 0) {
        die(errno, "%s: the capabilities", device->path);
    }
    printf("Capabilities:%s\n", n == 0 ? " none" : "");
    for (int i = 0; i < n && i < MAX_CAPABILITIES; i++) {
        show_capability(device, &list[i]);
    }
    free(list);
}

/* The device */

static void show_identity(const struct device *device)
{
    uint16_t class = (uint16_t)get16(device, PCI_CLASS_DEVICE);
    uint32_t command = get16(device, PCI_COMMAND);

    printf("%04x:%04x %s (class %04x), revision %02x, subsystem %04x:%04x\n",
           get16(device, PCI_VENDOR_ID), get16(device, PCI_DEVICE_ID), class_name(class), class,
           get(device, PCI_REVISION_ID, 1), get16(device, PCI_SUBSYSTEM_VENDOR_ID),
           get16(device, PCI_SUBSYSTEM_ID));
    printf("Command: I/O %s, memory %s, bus master %s, INTx disabled %s\n",
           yes(command & PCI_COMMAND_IO), yes(command & PCI_COMMAND_MEMORY),
           yes(command & PCI_COMMAND_MASTER), yes(command & PCI_COMMAND_INTX_DISABLE));
}

static void show_iommu(const vfuc_iommu_proposal_t *iommu)
{
    char page[32];

    printf("  IOMMU extension: %s\n",
           iommu->pasid_bits != 0 || iommu->ats_queue_depth != 0 ? "agreed" : "no");
    if (iommu->pasid_bits != 0) {
        printf("    PASID: %u bits, execute %s, privileged %s\n", iommu->pasid_bits,
               yes(iommu->pasid_exec), yes(iommu->pasid_priv));
    }
    if (iommu->ats_queue_depth != 0) {
        printf("    ATS: %u invalidations in flight, pages of %s, %u translations a reply\n",
               iommu->ats_queue_depth, size_words(1ull << iommu->ats_page_shift, page),
               iommu->ats_max_entries);
    }
    if (iommu->pri_max_requests != 0) {
        printf("    PRI: %u page requests\n", iommu->pri_max_requests);
    }
}

static void show_agreed(vfuc_t *client)
{
    vfuc_agreed_t agreed;
    uint64_t flags = 0;
    char size[32];

    vfuc_agreed(client, &agreed);
    printf("Negotiated:\n  transfers of up to %s, %u file descriptors a message\n",
           size_words(agreed.max_data_xfer_size, size), agreed.max_msg_fds);
    printf("  several writes in one message: %s\n", yes(agreed.write_multiple));
    if (agreed.migration_page_size != 0 && vfuc_migration_flags(client, &flags) == 0) {
        printf("  migration: yes, while running %s, peer to peer %s, dirty pages of %u bytes\n",
               yes(flags & VFIO_MIGRATION_PRE_COPY), yes(flags & VFIO_MIGRATION_P2P),
               agreed.migration_page_size);
    } else {
        printf("  migration: no\n");
    }
    show_iommu(&agreed.iommu);
}

static void show_bar_type(const struct device *device, uint32_t region)
{
    uint32_t bar;

    if (region > VFIO_PCI_BAR5_REGION_INDEX) {
        return;
    }
    bar = get32(device, PCI_BASE_ADDRESS_0 + 4 * region);
    if (bar & PCI_BASE_ADDRESS_SPACE_IO) {
        printf(", I/O ports");
    } else {
        printf(", memory, %s-bit%s",
               (bar & PCI_BASE_ADDRESS_MEM_TYPE_MASK) == PCI_BASE_ADDRESS_MEM_TYPE_64 ? "64" : "32",
               bar & PCI_BASE_ADDRESS_MEM_PREFETCH ? ", prefetchable" : "");
    }
}

static void show_region(const struct device *device, uint32_t region)
{
    const char *name = region < COUNT(region_names) ? region_names[region] : "region";
    vfuc_region_info_t info;
    int ioeventfds;
    char size[32];

    if (vfuc_region_info(device->client, region, &info) < 0) {
        die(errno, "%s: region %u", device->path, region);
    }
    if (info.fd != -1) {
        close(info.fd);
    }
    if (info.size == 0) {
        return;
    }
    printf("  %u %s: %s", region, name, size_words(info.size, size));
    show_bar_type(device, region);
    printf(", %s%s", info.flags & VFIO_REGION_INFO_FLAG_READ ? "read" : "",
           info.flags & VFIO_REGION_INFO_FLAG_WRITE ? "/write" : "");
    if (!(info.flags & VFIO_REGION_INFO_FLAG_MMAP)) {
        printf(", by messages\n");
    } else if (!info.sparse) {
        printf(", may be mapped\n");
    } else {
        printf(", may be mapped at%s", info.nr_areas == 0 ? " no place" : "");
        for (uint32_t i = 0; i < info.nr_areas; i++) {
            printf(" 0x%" PRIx64 "-0x%" PRIx64, info.areas[i].offset,
                   info.areas[i].offset + info.areas[i].size - 1);
        }
        putchar('\n');
    }
    ioeventfds = vfuc_region_ioeventfds(device->client, region, NULL, 0);
    if (ioeventfds > 0) {
        printf("    %d ioeventfds\n", ioeventfds);
    }
}

static void show_irqs(const struct device *device, uint32_t num_irqs)
{
    printf("Interrupts:\n");
    for (uint32_t type = 0; type < num_irqs && type < COUNT(irq_names); type++) {
        int count = vfuc_irq_count(device->client, type);

        if (count < 0) {
            die(errno, "%s: interrupts %s", device->path, irq_names[type]);
        }
        if (count > 0) {
            printf("  %s: %d\n", irq_names[type], count);
        }
    }
}

static void read_config(struct device *device)
{
    vfuc_region_info_t info;

    if (vfuc_region_info(device->client, VFIO_PCI_CONFIG_REGION_INDEX, &info) < 0) {
        die(errno, "%s: configuration space", device->path);
    }
    if (info.fd != -1) {
        close(info.fd);
    }
    device->config_size = info.size < MAX_CONFIG ? info.size : MAX_CONFIG;
    if (vfuc_config_read(device->client, 0, device->config, device->config_size) < 0) {
        die(errno, "%s: reading configuration space", device->path);
    }
}

static void list(struct device *device)
{
    vfuc_device_info_t info;

    if (vfuc_device_info(device->client, &info) < 0) {
        die(errno, "%s: information about the device", device->path);
    }
    read_config(device);
    show_identity(device);
    show_agreed(device->client);
    printf("Regions (%u, the empty ones left out):\n", info.num_regions);
    for (uint32_t region = 0; region < info.num_regions && region < COUNT(region_names); region++) {
        show_region(device, region);
    }
    show_irqs(device, info.num_irqs);
    printf("Reset: %s\n", yes(info.flags & VFIO_DEVICE_FLAGS_RESET));
    show_capabilities(device);
}

/* A register */

static void __attribute__((noreturn)) usage(FILE *out)
{
    fputs("usage: vfu-ls [OPTION]... SOCKET\n"
          "       vfu-ls [OPTION]... SOCKET read REGION OFFSET SIZE\n"
          "       vfu-ls [OPTION]... SOCKET write REGION OFFSET SIZE VALUE\n"
          "REGION is BAR0 to BAR5, ROM, CONFIG or VGA; SIZE is in bytes: 1, 2, 4 or 8, or up to\n"
          "4096 to read. Each run attaches and detaches; most devices are reset when it ends.\n"
          "  --plain       do not propose the IOMMU extension\n"
          "  --timeout MS  how long to wait for each reply; 5000 unless given\n"
          "  --help        this text\n",
          out);
    exit(out == stdout ? 0 : 2);
}

static uint64_t number(const char *text, const char *what, uint64_t max)
{
    char *end;
    uint64_t value;

    errno = 0;
    value = strtoull(text, &end, 0);
    if (errno != 0 || *end != '\0' || end == text || *text == '-' || value > max) {
        fprintf(stderr, "vfu-ls: %s \"%s\" is not a number from 0 to %" PRIu64 "\n", what, text,
                max);
        usage(stderr);
    }
    return value;
}

static uint32_t region_number(const char *name)
{
    for (uint32_t i = 0; i < COUNT(region_names); i++) {
        if (strcasecmp(region_names[i], name) == 0) {
            return i;
        }
    }
    fprintf(stderr, "vfu-ls: there is no region \"%s\"\n", name);
    usage(stderr);
}

static bool is_word(uint64_t size)
{
    return size == 1 || size == 2 || size == 4 || size == 8;
}

static void print_data(const uint8_t *data, uint64_t offset, uint64_t size)
{
    uint64_t value = 0;

    if (is_word(size)) {
        memcpy(&value, data, size);
        printf("0x%0*" PRIx64 "\n", (int)(2 * size), value);
        return;
    }
    for (uint64_t i = 0; i < size; i++) {
        if (i % 16 == 0) {
            printf("%s%06" PRIx64 ":", i > 0 ? "\n" : "", offset + i);
        }
        printf(" %02x", data[i]);
    }
    putchar('\n');
}

struct access {
    bool write;
    uint32_t region;
    uint64_t offset, size, value;
};

static struct access parse_access(char **args, int nr_args)
{
    struct access access = { .write = strcmp(args[0], "write") == 0 };

    if (!access.write && strcmp(args[0], "read") != 0) {
        fprintf(stderr, "vfu-ls: \"%s\" is neither read nor write\n", args[0]);
        usage(stderr);
    }
    if (nr_args != (access.write ? 5 : 4)) {
        fprintf(stderr, "vfu-ls: %s takes REGION OFFSET SIZE%s\n", args[0],
                access.write ? " VALUE" : "");
        usage(stderr);
    }
    access.region = region_number(args[1]);
    access.offset = number(args[2], "OFFSET", UINT64_MAX);
    access.size = number(args[3], "SIZE", MAX_READ);
    if (access.write) {
        access.value = number(args[4], "VALUE", UINT64_MAX);
    }
    if (access.size == 0 || (access.write && !is_word(access.size))) {
        fprintf(stderr, "vfu-ls: SIZE %s is not one to %s\n", args[3], args[0]);
        usage(stderr);
    }
    if (access.size < 8 && access.value >> 8 * access.size != 0) {
        fprintf(stderr, "vfu-ls: VALUE %s has more than %s bytes\n", args[4], args[3]);
        usage(stderr);
    }
    return access;
}

static void do_access(struct device *device, const struct access *access)
{
    uint8_t data[MAX_READ];
    int r = access->write ? vfuc_region_write(device->client, access->region, access->offset,
                                              &access->value, access->size)
                          : vfuc_region_read(device->client, access->region, access->offset, data,
                                             access->size);

    if (r < 0) {
        die(errno, "%s: %s of %" PRIu64 " bytes at %s+0x%" PRIx64, device->path,
            access->write ? "write" : "read", access->size, region_names[access->region],
            access->offset);
    }
    if (!access->write) {
        print_data(data, access->offset, access->size);
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "plain", no_argument, NULL, 'p' },
        { "timeout", required_argument, NULL, 't' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    vfuc_options_t client = {
        .timeout_ms = TIMEOUT_MS,
        .iommu = { VFIO_USER_PASID_BITS, true, true, 32, 12, 512, 512 },
        .log = print_log,
    };
    struct device device = { .path = NULL };
    struct access access = { .size = 0 };
    int option;

    while ((option = getopt_long(argc, argv, "+h", options, NULL)) != -1) {
        if (option == 'p') {
            client.iommu = (vfuc_iommu_proposal_t){ 0 };
        } else if (option == 't') {
            client.timeout_ms = (uint32_t)number(optarg, "--timeout", 3600000);
        } else {
            usage(option == 'h' ? stdout : stderr);
        }
    }
    if (optind == argc) {
        usage(stderr);
    }
    device.path = argv[optind++];
    if (optind < argc) {
        access = parse_access(argv + optind, argc - optind);
    }
    device.client = vfuc_connect(device.path, &client);
    if (device.client == NULL) {
        die(connect_error(device.path, errno), "%s: cannot attach", device.path);
    }
    if (access.size > 0) {
        do_access(&device, &access);
    } else {
        list(&device);
    }
    vfuc_disconnect(device.client);
    return 0;
}
