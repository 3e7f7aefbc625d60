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

/* From the address in the PASID's space through the device to another page of RAM, and looks. */
static bool device_sees(struct driver *d, unsigned pasid, unsigned page, uint8_t byte)
{
    uint8_t *copy = ram_page(d, 15);

    memset(copy, 0, LEN);
    iommu_map(d->iommu, 0, 7, ram_addr(d, RAM_SHARED, 15));
    choose_pasid(d, pasid);
    driver_dma(d, iova(page), EDU_BUFFER_ADDR, LEN, false);
    if (driver_read(d, EDU_REG_DMA_ERROR, 8) != 0) {
        return false;
    }
    choose_pasid(d, 0);
    driver_dma(d, EDU_BUFFER_ADDR, iova(7), LEN, true);
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

    for (unsigned pasid = 1; pasid <= 2; pasid++) {
        memset(ram_page(d, pasid), 0xa0 + (int)pasid, IOMMU_PAGE_SIZE);
        iommu_map(d->iommu, pasid, 0, ram_addr(d, RAM_SHARED, pasid));
    }
    for (unsigned pasid = 1; pasid <= 2; pasid++) {
        ok = device_sees(d, pasid, 0, (uint8_t)(0xa0 + pasid)) && ok;
    }
    snprintf(seen, size, "address 0x%" PRIx64 " holds 0xa1 in PASID 1 and 0xa2 in PASID 2", iova(0));
    return ok;
}

static bool check_cache(struct driver *d, char *seen, size_t size)
{
    unsigned before = iommu_counts(d->iommu).translations, after;
    bool ok = true;

    for (int i = 0; i < 10; i++) {
        ok = device_sees(d, 1, 0, 0xa1) && ok;
    }
    after = iommu_counts(d->iommu).translations;
    snprintf(seen, size, "20 transfers more asked for %u translations", after - before);
    return ok && after == before;
}

static bool check_page_request(struct driver *d, char *seen, size_t size)
{
    unsigned before = iommu_counts(d->iommu).page_requests;
    uint64_t error;
    bool ok;

    memset(ram_page(d, 3), 0xa3, IOMMU_PAGE_SIZE);
    iommu_provide(d->iommu, 1, 3, ram_addr(d, RAM_SHARED, 3));
    ok = device_sees(d, 1, 3, 0xa3);
    choose_pasid(d, 1);
    driver_dma(d, iova(4), EDU_BUFFER_ADDR, LEN, false);
    error = driver_read(d, EDU_REG_DMA_ERROR, 8);
    snprintf(seen, size, "%u page requests: one page came, the other failed the DMA at 0x%" PRIx64
             " (%s)", iommu_counts(d->iommu).page_requests - before, driver_read(d, EDU_REG_DMA_FAULT, 8),
             strerror((int)error));
    return ok && iommu_counts(d->iommu).page_requests == before + 2 && error == EFAULT &&
           driver_read(d, EDU_REG_DMA_FAULT, 8) == iova(4);
}

static bool check_invalidation(struct driver *d, char *seen, size_t size)
{
    unsigned done = iommu_counts(d->iommu).completions;
    bool ok;

    memset(ram_page(d, 5), 0xb5, IOMMU_PAGE_SIZE);
    iommu_map(d->iommu, 1, 0, ram_addr(d, RAM_SHARED, 5));
    iommu_invalidate(d->iommu, 1, 0);
    ok = iommu_wait_completions(d->iommu, done + 1, d->timeout_ms);
    ok = device_sees(d, 1, 0, 0xb5) && ok;
    snprintf(seen, size, "completed; the device sees the new page, and PASID 2 its own still");
    return ok && device_sees(d, 2, 0, 0xa2);
}

/* The DMA is held up in a message that the machine does not answer yet. */
static bool check_exact_completion(struct driver *d, char *seen, size_t size)
{
    unsigned done = iommu_counts(d->iommu).completions;
    bool other_first, waits, ends;

    memset(d->rams[RAM_BY_MESSAGES].mem, 0xc1, IOMMU_PAGE_SIZE);
    iommu_map(d->iommu, 1, 6, ram_addr(d, RAM_BY_MESSAGES, 0));
    iommu_hold_dma(d->iommu);
    choose_pasid(d, 1);
    driver_start_dma(d, iova(6), EDU_BUFFER_ADDR, LEN, false);
    waits = iommu_wait_held(d->iommu, d->timeout_ms);
    iommu_invalidate(d->iommu, 1, 6);
    iommu_invalidate(d->iommu, 2, 0);
    other_first = iommu_wait_completions(d->iommu, done + 1, d->timeout_ms);
    /* Whatever the device had to say before this answer, it has said. */
    driver_read(d, EDU_REG_ID, 4);
    waits = waits && iommu_counts(d->iommu).completions == done + 1;
    iommu_answer_held(d->iommu);
    ends = iommu_wait_completions(d->iommu, done + 2, d->timeout_ms);
    driver_finish_dma(d);
    snprintf(seen, size, "PASID 2's completes at once, PASID 1's %s the running DMA",
             waits && ends ? "waits for" : "DOES NOT WAIT FOR");
    return other_first && waits && ends;
}

static bool check_counters(struct driver *d, char *seen, size_t size)
{
    snprintf(seen, size, "%u translations, %u page requests, %u invalidations, 0 refused",
             iommu_counts(d->iommu).translations, iommu_counts(d->iommu).page_requests, iommu_counts(d->iommu).completions);
    return iommu_counts(d->iommu).completions == 3;
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
