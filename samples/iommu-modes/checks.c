/* SPDX-License-Identifier: BSD-3-Clause */
#include "checks.h"

#include "vfio-user.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define RW (VFUC_IOMMU_READ | VFUC_IOMMU_WRITE)
#define SRC UINT64_C(0x10000) /* IOVAs */
#define DST UINT64_C(0x20000)

static void say(struct bench *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void say(struct bench *b, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(b->seen, b->size, fmt, ap);
    va_end(ap);
}

static void map_to(struct bench *b, vfuc_iommu_domain_t *domain, uint64_t iova, uint64_t address,
                   uint32_t perm)
{
    machine_check(b->machine, "map", vfuc_iommu_map(domain, iova, address, PAGE, perm));
}

static void map(struct bench *b, uint64_t iova, unsigned page, uint32_t perm)
{
    map_to(b, b->domain, iova, ram_address(page), perm);
}

static void unmap_from(struct bench *b, vfuc_iommu_domain_t *domain, uint64_t iova)
{
    machine_check(b->machine, "unmap", vfuc_iommu_unmap(domain, iova, PAGE));
}

/* A whole page from an IOVA to another goes through, and is the one with this seed. */
static bool moves(struct bench *b, uint64_t src, uint64_t dst, unsigned dst_page, uint8_t seed)
{
    uint64_t fault;

    ram_clear(b->machine, dst_page);
    return machine_job(b->machine, b->pasid, src, dst, PAGE, &fault) == 0 &&
           ram_is(b->machine, dst_page, seed);
}

/*
 * It does not: what has been put into the source page since, a secret, does not arrive. A device
 * that tells how its DMA ended says so; where it failed, if it has asked for translations (one that
 * sends messages learns that a message failed).
 */
static bool faults(struct bench *b, uint64_t src, uint64_t dst, unsigned src_page,
                   unsigned dst_page, uint64_t where)
{
    bool asks = vfuc_iommu_mode(b->machine->iommu) == VFUC_IOMMU_ATS;
    uint8_t secret = ++b->secret;
    uint64_t fault;
    int err;

    ram_fill(b->machine, src_page, secret);
    ram_clear(b->machine, dst_page);
    err = machine_job(b->machine, b->pasid, src, dst, PAGE, &fault);
    return !ram_is(b->machine, dst_page, secret) &&
           (!b->machine->has_iommu_registers || err == EFAULT) && (!asks || fault == where);
}

/* Without an IOMMU: every page of RAM is in reach, at its own address. */
bool check_identity(struct bench *b)
{
    bool ok;

    ram_fill(b->machine, 5, 0x55);
    ok = moves(b, ram_address(5), ram_address(9), 9, 0x55);
    ok = moves(b, ram_address(9), ram_address(RAM_PAGES - 1), RAM_PAGES - 1, 0x55) && ok;
    say(b, "page 5 went to page 9 and to the last one: the device reaches all of RAM");
    return ok;
}

/* What is in one piece for the device is in pieces in RAM. */
bool check_scattered(struct bench *b)
{
    uint64_t fault;
    bool ok;

    ram_fill(b->machine, 3, 0x33);
    ram_fill(b->machine, 7, 0x77);
    map(b, SRC, 7, VFUC_IOMMU_READ);
    map(b, SRC + PAGE, 3, VFUC_IOMMU_READ);
    map(b, DST, 12, RW);
    ram_clear(b->machine, 12);
    ok = machine_job(b->machine, b->pasid, SRC + 0x800, DST, PAGE, &fault) == 0 &&
         memcmp(ram_page(b->machine, 12), ram_page(b->machine, 7) + 0x800, 0x800) == 0 &&
         memcmp(ram_page(b->machine, 12) + 0x800, ram_page(b->machine, 3), 0x800) == 0;
    say(b, "4096 bytes from half of page 7 and half of page 3 are in page 12");
    return ok;
}

bool check_unmapped_write(struct bench *b)
{
    bool before, after;

    ram_fill(b->machine, 1, 0x11);
    map(b, SRC, 1, VFUC_IOMMU_READ);
    map(b, DST, 2, RW);
    before = moves(b, SRC, DST, 2, 0x11);
    unmap_from(b, b->domain, DST);
    after = faults(b, SRC, DST, 1, 2, DST) && ram_is_clear(b->machine, 2);
    say(b, "written before the unmap, not one byte after it");
    return before && after;
}

bool check_unmapped_read(struct bench *b)
{
    bool before, after;

    ram_fill(b->machine, 1, 0x1a);
    map(b, SRC, 1, VFUC_IOMMU_READ);
    map(b, DST, 2, RW);
    before = moves(b, SRC, DST, 2, 0x1a);
    unmap_from(b, b->domain, SRC);
    after = faults(b, SRC, DST, 1, 2, SRC);
    say(b, "what the page held before the unmap was read, what it holds after it is not");
    return before && after;
}

bool check_read_only(struct bench *b)
{
    bool before, denied, again;

    ram_fill(b->machine, 1, 0x2a);
    map(b, SRC, 1, RW);
    map(b, DST, 2, RW);
    before = moves(b, SRC, DST, 2, 0x2a);
    machine_check(b->machine, "protect",
                  vfuc_iommu_protect(b->domain, DST, PAGE, VFUC_IOMMU_READ));
    denied = faults(b, SRC, DST, 1, 2, DST) && ram_is_clear(b->machine, 2);
    machine_check(b->machine, "protect", vfuc_iommu_protect(b->domain, DST, PAGE, RW));
    ram_fill(b->machine, 1, 0x2b);
    again = moves(b, SRC, DST, 2, 0x2b);
    say(b, "read and write, then read only, then both: written, not written, written");
    return before && denied && again;
}

bool check_other_page(struct bench *b)
{
    bool ok;

    ram_fill(b->machine, 20, 0x20);
    ram_fill(b->machine, 21, 0x21);
    map(b, DST, 30, RW);
    map(b, SRC, 20, RW);
    ok = moves(b, SRC, DST, 30, 0x20);
    unmap_from(b, b->domain, SRC);
    map(b, SRC, 21, RW);
    ok = moves(b, SRC, DST, 30, 0x21) && ok;
    say(b, "the same address led to page 20, and leads to page 21");
    return ok;
}

/* Whatever the device was doing: when the unmap is done, nothing is written any more. */
bool check_under_way(struct bench *b)
{
    const unsigned rounds = 32;
    static uint8_t at_unmap[PAGE];
    unsigned complete = 0, late = 0;

    ram_fill(b->machine, 1, 0x3e);
    map(b, SRC, 1, RW);
    map(b, DST, 2, RW);
    if (!moves(b, SRC, DST, 2, 0x3e)) {
        return false;
    }
    for (unsigned i = 0; i < rounds; i++) {
        ram_clear(b->machine, 2);
        machine_start_write(b->machine, b->pasid, DST, PAGE);
        unmap_from(b, b->domain, DST);
        memcpy(at_unmap, ram_page(b->machine, 2), PAGE);
        machine_finish_write(b->machine);
        late += memcmp(at_unmap, ram_page(b->machine, 2), PAGE) != 0;
        complete += ram_is(b->machine, 2, 0x3e);
        map(b, DST, 2, RW);
    }
    say(b, "%u times a page was taken while it was written to, %u of them too late to stop it; "
        "written to after that: %u", rounds, complete, late);
    return late == 0;
}

/* Many pages are taken at once, with one wait. */
bool check_batch(struct bench *b)
{
    vfuc_iommu_gather_t *gather = vfuc_iommu_gather_create(b->machine->iommu);
    const unsigned pages = 12;
    unsigned gone = 0;
    bool before;

    ram_fill(b->machine, 1, 0x4b);
    map(b, SRC, 1, RW);
    for (unsigned i = 0; i < pages; i++) {
        map(b, DST + 2 * i * PAGE, 10 + i, RW);
    }
    before = moves(b, SRC, DST + 2 * (pages - 1) * PAGE, 10 + pages - 1, 0x4b);
    for (unsigned i = 0; i < pages && gather != NULL; i++) {
        before = moves(b, SRC, DST + 2 * i * PAGE, 10 + i, 0x4b) && before;
        machine_check(b->machine, "unmap",
                      vfuc_iommu_unmap_start(b->domain, DST + 2 * i * PAGE, PAGE, gather));
    }
    machine_check(b->machine, "sync", gather != NULL ? vfuc_iommu_sync(gather) : -1);
    vfuc_iommu_gather_destroy(gather);
    for (unsigned i = 0; i < pages; i++) {
        gone += faults(b, SRC, DST + 2 * i * PAGE, 1, 10 + i, DST + 2 * i * PAGE);
    }
    say(b, "%u pages in use, unmapped with one wait, %u of them out of reach", pages, gone);
    return before && gone == pages;
}

/* Two PASIDs and the requester: one address, three pages. */
bool check_spaces(struct bench *b)
{
    const uint32_t pasids[] = { VFUC_NO_PASID, 0, 5 };
    vfuc_iommu_domain_t *domains[3];
    bool ok = true;

    for (unsigned i = 0; i < 3; i++) {
        domains[i] = vfuc_iommu_domain_create(b->machine->iommu);
        ram_fill(b->machine, 40 + i, (uint8_t)(0x61 + i));
        map_to(b, domains[i], SRC, ram_address(40 + i), RW);
        map_to(b, domains[i], DST, ram_address(50 + i), RW);
        machine_check(b->machine, "attach",
                      vfuc_iommu_attach(b->machine->iommu, pasids[i], domains[i]));
    }
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 3; i++) {
            b->pasid = pasids[i];
            ok = moves(b, SRC, DST, 50 + i, (uint8_t)(0x61 + i)) && ok;
        }
    }
    machine_check(b->machine, "detach", vfuc_iommu_attach(b->machine->iommu, 5, NULL));
    ok = faults(b, SRC, DST, 42, 52, SRC) && ok;
    for (unsigned i = 0; i < 3; i++) {
        vfuc_iommu_attach(b->machine->iommu, pasids[i], NULL);
        vfuc_iommu_domain_destroy(domains[i]);
    }
    say(b, "one address is three pages; PASID 5, detached, reaches nothing");
    return ok;
}

/*
 * A guest in a guest: the inner one's tables lead to addresses of the outer one, whose tables lead
 * to RAM.
 */

#define MIDDLE UINT64_C(0x900000)

struct nested {
    vfuc_iommu_domain_t *inner, *outer;
};

/* SRC is page 1 of the outer guest and page 11 of RAM, DST page 2 and page 12. */
static void nest(struct bench *b, struct nested *n)
{
    n->inner = b->domain;
    n->outer = vfuc_iommu_domain_create(b->machine->iommu);
    machine_check(b->machine, "second stage", vfuc_iommu_domain_set_stage2(n->inner, n->outer));
    for (unsigned i = 1; i < 8; i++) {
        ram_fill(b->machine, 10 + i, (uint8_t)(0x80 + i));
        map_to(b, n->outer, MIDDLE + i * PAGE, ram_address(10 + i), RW);
    }
    map_to(b, n->inner, SRC, MIDDLE + 1 * PAGE, RW);
    map_to(b, n->inner, DST, MIDDLE + 2 * PAGE, RW);
}

static void end_nest(struct bench *b, struct nested *n)
{
    machine_check(b->machine, "second stage", vfuc_iommu_domain_set_stage2(n->inner, NULL));
    machine_check(b->machine, "domain", vfuc_iommu_domain_destroy(n->outer));
}

bool check_stage1(struct bench *b)
{
    struct nested n;
    bool ok, denied;

    nest(b, &n);
    ok = moves(b, SRC, DST, 12, 0x81);
    unmap_from(b, n.inner, SRC);
    denied = faults(b, SRC, DST, 11, 12, SRC);
    map_to(b, n.inner, SRC, MIDDLE + 3 * PAGE, RW);
    ok = moves(b, SRC, DST, 12, 0x83) && ok;
    end_nest(b, &n);
    say(b, "the inner guest unmaps a page: out of reach; and maps another: there");
    return ok && denied;
}

bool check_stage2(struct bench *b)
{
    struct nested n;
    bool ok, denied, read_only;

    nest(b, &n);
    ok = moves(b, SRC, DST, 12, 0x81);
    unmap_from(b, n.outer, MIDDLE + 1 * PAGE);
    denied = faults(b, SRC, DST, 11, 12, SRC);
    map_to(b, n.outer, MIDDLE + 1 * PAGE, ram_address(14), RW);
    ok = moves(b, SRC, DST, 12, 0x84) && ok;
    machine_check(b->machine, "protect",
                  vfuc_iommu_protect(n.outer, MIDDLE + 2 * PAGE, PAGE, VFUC_IOMMU_READ));
    read_only = faults(b, SRC, DST, 14, 12, DST) && ram_is_clear(b->machine, 12);
    end_nest(b, &n);
    say(b, "the outer guest takes a page, moves it, and write-protects one: so it is");
    return ok && denied && read_only;
}

bool check_both_stages(struct bench *b)
{
    struct nested n;
    bool ok;

    nest(b, &n);
    ok = moves(b, SRC, DST, 12, 0x81);
    unmap_from(b, n.inner, SRC);
    unmap_from(b, n.outer, MIDDLE + 1 * PAGE);
    ok = faults(b, SRC, DST, 11, 12, SRC) && ok;
    map_to(b, n.inner, SRC, MIDDLE + 1 * PAGE, RW);
    ok = faults(b, SRC, DST, 11, 12, SRC) && ok;
    map_to(b, n.outer, MIDDLE + 1 * PAGE, ram_address(15), RW);
    ok = moves(b, SRC, DST, 12, 0x85) && ok;
    end_nest(b, &n);
    say(b, "both change: in reach only when both lead there, and then to the new page");
    return ok;
}

/*
 * Page requests
 */

#define ON_DEMAND UINT64_C(0x40000000) /* pages of RAM, each at its number, when asked for */

void on_fault(void *pvt, vfuc_iommu_t *iommu, const vfuc_iommu_fault_t *fault)
{
    struct bench *b = pvt;
    uint64_t first = (fault->address - ON_DEMAND) / PAGE, pages = fault->size / PAGE;
    uint32_t code = VFIO_USER_PAGE_RESP_SUCCESS;

    if (fault->address < ON_DEMAND || first + pages > RAM_PAGES) {
        code = VFIO_USER_PAGE_RESP_INVALID;
    }
    for (uint64_t i = 0; code == VFIO_USER_PAGE_RESP_SUCCESS && i < pages; i++) {
        if (vfuc_iommu_map(b->domain, fault->address + i * PAGE,
                           ram_address((unsigned)(first + i)), PAGE, RW) < 0 && errno != EEXIST) {
            code = VFIO_USER_PAGE_RESP_INVALID;
        }
    }
    vfuc_iommu_page_response(iommu, fault->id, code);
}

bool check_on_demand(struct bench *b)
{
    vfuc_iommu_stats_t before, after;
    bool ok;

    vfuc_iommu_stats(b->machine->iommu, &before);
    ram_fill(b->machine, 8, 0x88);
    ok = moves(b, ON_DEMAND + 8 * PAGE, ON_DEMAND + 18 * PAGE, 18, 0x88);
    ok = moves(b, ON_DEMAND + 8 * PAGE, ON_DEMAND + 18 * PAGE, 18, 0x88) && ok;
    vfuc_iommu_stats(b->machine->iommu, &after);
    say(b, "nothing was mapped; %" PRIu64 " pages came, each when it was used first",
        after.faults - before.faults);
    return ok && after.faults - before.faults == 2;
}

bool check_no_such_page(struct bench *b)
{
    uint64_t beyond = ON_DEMAND + RAM_PAGES * PAGE;
    bool ok;

    ok = faults(b, ON_DEMAND + 8 * PAGE, beyond, 8, 18, beyond);
    say(b, "a page that the machine does not have fails the DMA at its address");
    return ok;
}

#define PASID_OF_PROCESS 9u

/* The device is given pointers. */
bool check_process(struct bench *b)
{
    uint8_t *from = ram_page(b->machine, 32), *to = ram_page(b->machine, 48);
    vfuc_iommu_t *iommu = b->machine->iommu;
    bool ok;

    b->pasid = PASID_OF_PROCESS;
    machine_check(b->machine, "bind", vfuc_iommu_bind_process(iommu, b->pasid, from, 32 * PAGE,
                                                              PROT_READ | PROT_WRITE));
    ram_fill(b->machine, 32, 0x32);
    ok = moves(b, (uintptr_t)from, (uintptr_t)to, 48, 0x32);
    /* RAM goes on below, but that was not given to the device. */
    ok = faults(b, (uintptr_t)from - PAGE, (uintptr_t)to, 31, 48, (uintptr_t)from - PAGE) && ok;
    machine_check(b->machine, "unbind", vfuc_iommu_unbind_process(iommu, b->pasid));
    ok = faults(b, (uintptr_t)from, (uintptr_t)to, 32, 48, (uintptr_t)from) && ok;
    say(b, "the device uses pointers of this process, and no more when that is over");
    return ok;
}

bool check_evicted(struct bench *b)
{
    uint8_t *from = ram_page(b->machine, 32), *to = ram_page(b->machine, 48);
    vfuc_iommu_t *iommu = b->machine->iommu;
    vfuc_iommu_stats_t before, after;
    bool ok;

    b->pasid = PASID_OF_PROCESS;
    machine_check(b->machine, "bind", vfuc_iommu_bind_process(iommu, b->pasid, from, 32 * PAGE,
                                                              PROT_READ | PROT_WRITE));
    ram_fill(b->machine, 32, 0x42);
    ok = moves(b, (uintptr_t)from, (uintptr_t)to, 48, 0x42);
    machine_check(b->machine, "evict", vfuc_iommu_evict(iommu, b->pasid, from, PAGE));
    machine_check(b->machine, "discard", madvise(from, PAGE, MADV_REMOVE));
    ram_fill(b->machine, 32, 0x43);
    vfuc_iommu_stats(iommu, &before);
    ok = moves(b, (uintptr_t)from, (uintptr_t)to, 48, 0x43) && ok;
    vfuc_iommu_stats(iommu, &after);
    machine_check(b->machine, "unbind", vfuc_iommu_unbind_process(iommu, b->pasid));
    say(b, "a page is taken, discarded and filled anew: the device asks again, and sees that");
    return ok && after.faults == before.faults + 1;
}
