/* SPDX-License-Identifier: BSD-3-Clause */
/* The same device behind an IOMMU that remaps. */
#include "checks.h"
#include "iommu.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/pci_regs.h>
#include <stdio.h>
#include <string.h>

#define LEN 32u
#define COPY_PAGE 15u /* of PASID 0, and of RAM */

static uint32_t find_extended(struct driver *d, uint32_t id)
{
    uint32_t pos = PCI_CFG_SPACE_SIZE;

    for (int i = 0; pos != 0 && i < 64; i++) {
        uint32_t header = driver_config_read(d, pos, 4);

        if (PCI_EXT_CAP_ID(header) == id) {
            return pos;
        }
        pos = PCI_EXT_CAP_NEXT(header);
    }
    driver_fail(d, "the device has no extended capability 0x%x", id);
    return 0;
}

/* As a guest's kernel does: PASID before ATS. */
static bool check_enable(struct driver *d, char *seen, size_t size)
{
    uint32_t pasid = find_extended(d, PCI_EXT_CAP_ID_PASID);
    uint32_t ats = find_extended(d, PCI_EXT_CAP_ID_ATS);
    uint32_t pri = find_extended(d, PCI_EXT_CAP_ID_PRI);

    driver_config_write(d, pasid + PCI_PASID_CTRL, 2, PCI_PASID_CTRL_ENABLE);
    driver_config_write(d, ats + PCI_ATS_CTRL, 2, PCI_ATS_CTRL_ENABLE);
    driver_config_write(d, pri + PCI_PRI_ALLOC_REQ, 4, 32);
    driver_config_write(d, pri + PCI_PRI_CTRL, 2, PCI_PRI_CTRL_ENABLE);
    driver_enable_irq(d, VFIO_PCI_MSI_IRQ_INDEX);
    snprintf(seen, size, "capabilities at 0x%x, 0x%x and 0x%x enabled", pasid, ats, pri);
    return pasid != 0 && ats != 0 && pri != 0;
}

static uint8_t *ram_page(struct driver *d, unsigned page)
{
    return d->rams[RAM_SHARED].mem + page * IOMMU_PAGE_SIZE;
}

static uint64_t ram_addr(struct driver *d, enum ram_kind kind, unsigned page)
{
    return d->rams[kind].addr + page * IOMMU_PAGE_SIZE;
}

static uint64_t iova(unsigned page)
{
    return IOMMU_BASE + page * IOMMU_PAGE_SIZE;
}

static void choose_pasid(struct driver *d, unsigned pasid)
{
    driver_write(d, EDU_REG_DMA_PASID, 8, EDU_PASID_VALID | pasid);
}

static void map(struct driver *d, unsigned pasid, unsigned page, uint64_t addr)
{
    if (iommu_map(d->iommu, pasid, page, addr) < 0) {
        driver_fail(d, "mapping page %u of PASID %u: %s", page, pasid, strerror(errno));
    }
}

static void unmap(struct driver *d, unsigned pasid, unsigned page)
{
    if (iommu_unmap(d->iommu, pasid, page) < 0) {
        driver_fail(d, "unmapping page %u of PASID %u: %s", page, pasid, strerror(errno));
    }
}

/* From the address in the PASID's space through the device to another page of RAM, and looks. */
static bool device_sees(struct driver *d, unsigned pasid, unsigned page, uint8_t byte)
{
    uint8_t *copy = ram_page(d, COPY_PAGE);

    memset(copy, 0, LEN);
    choose_pasid(d, pasid);
    driver_dma(d, iova(page), EDU_BUFFER_ADDR, LEN, false);
    if (driver_read(d, EDU_REG_DMA_ERROR, 8) != 0) {
        return false;
    }
    choose_pasid(d, 0);
    driver_dma(d, EDU_BUFFER_ADDR, iova(COPY_PAGE), LEN, true);
    for (unsigned i = 0; i < LEN; i++) {
        if (copy[i] != byte) {
            return false;
        }
    }
    return true;
}

static bool check_pasids(struct driver *d, char *seen, size_t size)
{
    bool ok = true;

    map(d, 0, COPY_PAGE, ram_addr(d, RAM_SHARED, COPY_PAGE));
    for (unsigned pasid = 1; pasid <= 2; pasid++) {
        memset(ram_page(d, pasid), 0xa0 + (int)pasid, IOMMU_PAGE_SIZE);
        map(d, pasid, 0, ram_addr(d, RAM_SHARED, pasid));
    }
    for (unsigned pasid = 1; pasid <= 2; pasid++) {
        ok = device_sees(d, pasid, 0, (uint8_t)(0xa0 + pasid)) && ok;
    }
    snprintf(seen, size, "address 0x%" PRIx64 " holds 0xa1 in PASID 1 and 0xa2 in PASID 2",
             iova(0));
    return ok;
}

static bool check_cache(struct driver *d, char *seen, size_t size)
{
    uint64_t before = iommu_stats(d->iommu).translations, after;
    bool ok = true;

    for (int i = 0; i < 10; i++) {
        ok = device_sees(d, 1, 0, 0xa1) && ok;
    }
    after = iommu_stats(d->iommu).translations;
    snprintf(seen, size, "20 transfers more asked for %" PRIu64 " translations", after - before);
    return ok && after == before;
}

static bool check_page_request(struct driver *d, char *seen, size_t size)
{
    uint64_t before = iommu_stats(d->iommu).faults, error, fault, pages;
    bool ok;

    memset(ram_page(d, IOMMU_ON_DEMAND), 0xa3, IOMMU_PAGE_SIZE);
    ok = device_sees(d, 1, IOMMU_ON_DEMAND, 0xa3);
    choose_pasid(d, 1);
    driver_dma(d, iova(4), EDU_BUFFER_ADDR, LEN, false);
    error = driver_read(d, EDU_REG_DMA_ERROR, 8);
    fault = driver_read(d, EDU_REG_DMA_FAULT, 8);
    pages = iommu_stats(d->iommu).faults - before;
    snprintf(seen, size, "%" PRIu64 " pages asked for: one came, the other failed the DMA at 0x%"
             PRIx64 " (%s)", pages, fault, strerror((int)error));
    return ok && pages == 2 && error == EFAULT && fault == iova(4);
}

static bool check_invalidation(struct driver *d, char *seen, size_t size)
{
    uint64_t before = iommu_stats(d->iommu).invalidations, after;
    bool ok;

    memset(ram_page(d, 5), 0xb5, IOMMU_PAGE_SIZE);
    map(d, 1, 0, ram_addr(d, RAM_SHARED, 5));
    after = iommu_stats(d->iommu).invalidations;
    ok = device_sees(d, 1, 0, 0xb5);
    snprintf(seen, size, "completed; the device sees the new page, and PASID 2 its own still");
    return ok && device_sees(d, 2, 0, 0xa2) && after == before + 1;
}

/* While the device writes, by messages, the page is taken from it. */
static bool check_exact_completion(struct driver *d, char *seen, size_t size)
{
    static uint8_t at_unmap[EDU_BUFFER_SIZE];
    uint8_t *page = d->rams[RAM_BY_MESSAGES].mem;
    bool same;

    memset(page, 0, EDU_BUFFER_SIZE);
    map(d, 1, 6, ram_addr(d, RAM_BY_MESSAGES, 0));
    choose_pasid(d, 1);
    driver_start_dma(d, EDU_BUFFER_ADDR, iova(6), EDU_BUFFER_SIZE, true);
    unmap(d, 1, 6);
    memcpy(at_unmap, page, EDU_BUFFER_SIZE);
    driver_finish_dma(d);
    same = memcmp(at_unmap, page, EDU_BUFFER_SIZE) == 0;
    snprintf(seen, size, "after the unmap nothing is written, though a DMA was under way");
    return same;
}

static bool check_counters(struct driver *d, char *seen, size_t size)
{
    vfuc_iommu_stats_t stats = iommu_stats(d->iommu);

    snprintf(seen, size, "%" PRIu64 " translations, %" PRIu64 " pages requested, %" PRIu64
             " invalidations, %" PRIu64 " refused",
             stats.translations, stats.faults, stats.invalidations, stats.refused);
    return stats.refused == 0 && !vfuc_iommu_isolated(d->iommu->iommu);
}

const struct check iommu_checks[] = {
    { "PASID, ATS, PRI", check_enable },
    { "two PASIDs", check_pasids },
    { "translation cache", check_cache },
    { "page requests", check_page_request },
    { "invalidation", check_invalidation },
    { "exact completion", check_exact_completion },
    { "counters", check_counters },
};
const size_t nr_iommu_checks = sizeof(iommu_checks) / sizeof(iommu_checks[0]);
