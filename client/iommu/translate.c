/* SPDX-License-Identifier: BSD-3-Clause */
/* ATS_TRANSLATE: vfio-user IOMMU extension, ATS; PCIe 10.2. */
#include "iommu/iommu.h"

#include <errno.h>
#include <string.h>

/* Entries of one reply, whatever was agreed on. */
#define MAX_ENTRIES 512u
/* And what they look at, unless one unit is more: the server has chosen the size of those. */
#define MAX_LOOK (UINT64_C(64) << 20)

/* What is asked for, checked. */
struct query {
    const struct message *msg;
    uint64_t first, last;
    uint64_t unit; /* bytes */
    uint32_t max_entries;
};

struct answer {
    struct vfio_user_ats_translate_reply head;
    struct vfio_user_ats_entry entries[MAX_ENTRIES];
};

/* What this request gets to see of what a span allows: ATS-4. */
static uint32_t granted(const struct query *q, uint32_t perm)
{
    uint32_t attrs = q->msg->space.attrs;
    bool privileged = (attrs & VFIO_USER_PASID_ATTR_PRIV) != 0;

    if ((perm & PERM_RW) == 0 || ((perm & VFUC_IOMMU_PRIV) && !privileged)) {
        return 0;
    }
    if (!(attrs & VFIO_USER_PASID_ATTR_EXEC) || !(perm & VFUC_IOMMU_READ)) {
        perm &= ~VFUC_IOMMU_EXEC;
    }
    if (q->msg->space.pasid == VFUC_NO_PASID) {
        perm &= ~VFUC_IOMMU_GLOBAL;
    }
    return privileged ? perm | VFUC_IOMMU_PRIV : perm & ~VFUC_IOMMU_PRIV;
}

/*
 * A unit that is not of one piece, or not aligned where it leads: no entry can say that. Where any
 * of it is mapped, the device is to send its accesses untranslated, and they are checked here.
 */
static struct vfio_user_ats_entry mixed_unit(const struct query *q, uint64_t addr)
{
    struct vfio_user_ats_entry entry = { .address = addr, .length = q->unit };
    struct pt_span span;

    for (uint64_t at = addr;; at = span.last + 1) {
        space_walk(q->msg->iommu, q->msg->space.pasid, at, &span);
        entry.perm |= granted(q, span.perm) & PERM_RW;
        if (span.last - addr >= q->unit - 1) {
            break;
        }
    }
    if (entry.perm != 0) {
        entry.perm |= VFUC_IOMMU_UNCACHED;
    }
    return entry;
}

/* A hole from addr on, as far as it is one and was asked for. */
static struct vfio_user_ats_entry hole(const struct query *q, uint64_t addr, struct pt_span *span)
{
    uint64_t last = span->last;

    while (last < q->last) {
        space_walk(q->msg->iommu, q->msg->space.pasid, last + 1, span);
        if (granted(q, span->perm) != 0) {
            break;
        }
        last = span->last;
    }
    last = last < q->last ? last : q->last;
    /* All of a unit, or none of it: addr and what was asked for are on its boundaries. */
    return (struct vfio_user_ats_entry){
        .address = addr,
        .length = (last - addr + 1) & ~(q->unit - 1),
    };
}

/* The entry for addr, which is on a unit's boundary. Lock held. */
static struct vfio_user_ats_entry entry_for(const struct query *q, uint64_t addr, bool begins)
{
    const struct vfuc_iommu *iommu = q->msg->iommu;
    struct vfio_user_ats_entry entry = { 0 };
    struct pt_span span;
    uint64_t first, last;

    space_walk_merged(iommu, q->msg->space.pasid, addr, iommu->options.max_merge, &span);
    entry.perm = granted(q, span.perm);
    if (entry.perm == 0) {
        entry = hole(q, addr, &span);
        return entry.length > 0 ? entry : mixed_unit(q, addr);
    }
    /* Only the first entry may begin before what is asked for. */
    first = begins ? (span.first + (q->unit - 1)) & ~(q->unit - 1) : addr;
    last = span.last;
    if (first > addr || last - addr < q->unit - 1 ||
        ((span.target + (first - span.first)) & (q->unit - 1)) != 0) {
        return mixed_unit(q, addr);
    }
    entry.address = first;
    entry.translated = span.target + (first - span.first);
    entry.length = (last - first + 1) & ~(q->unit - 1);
    return entry;
}

static void fill(const struct query *q, struct answer *answer)
{
    struct vfuc_iommu *iommu = q->msg->iommu;
    uint64_t addr = q->first;
    uint32_t n = 0;

    pthread_mutex_lock(&iommu->lock);
    do {
        struct vfio_user_ats_entry *entry = &answer->entries[n];

        *entry = entry_for(q, addr, n == 0);
        addr = entry->address + entry->length;
        iommu->stats.entries += entry->perm != 0;
        n++;
    } while (n < q->max_entries && addr != 0 && addr <= q->last);
    iommu->stats.translations++;
    pthread_mutex_unlock(&iommu->lock);
    answer->head = (struct vfio_user_ats_translate_reply){
        .argsz = (uint32_t)(sizeof(answer->head) + n * sizeof(answer->entries[0])),
        .nr_entries = n,
    };
}

/* 0, or the errno of what is wrong with the request. */
static int read_query(const struct message *msg, struct query *q)
{
    struct vfuc_iommu *iommu = msg->iommu;
    struct vfio_user_ats_translate in;
    const size_t head = sizeof(struct vfio_user_ats_translate_reply);
    uint64_t most;

    if (msg->len != sizeof(in)) {
        return EINVAL;
    }
    memcpy(&in, msg->payload, sizeof(in));
    pthread_mutex_lock(&iommu->lock);
    q->unit = iommu_unit_size(iommu);
    pthread_mutex_unlock(&iommu->lock);
    if ((in.flags & ~(uint32_t)VFIO_USER_ATS_F_NO_WRITE) != 0 ||
        ((in.address | in.length) & (q->unit - 1)) != 0 || in.length == 0 ||
        in.length - 1 > UINT64_MAX - in.address ||
        in.argsz < head + sizeof(struct vfio_user_ats_entry)) {
        return EINVAL;
    }
    q->msg = msg;
    q->max_entries = (uint32_t)((in.argsz - head) / sizeof(struct vfio_user_ats_entry));
    if (q->max_entries > iommu->agreed.iommu.ats_max_entries) {
        q->max_entries = iommu->agreed.iommu.ats_max_entries;
    }
    if (q->max_entries > MAX_ENTRIES) {
        q->max_entries = MAX_ENTRIES;
    }
    /* A first part of more than that many units: what looking costs is bounded. */
    most = q->max_entries < MAX_LOOK / q->unit ? q->max_entries * q->unit : MAX_LOOK;
    most = most > q->unit ? most : q->unit;
    q->first = in.address;
    q->last = in.address + ((in.length < most ? in.length : most) - 1);
    return 0;
}

int serve_translate(struct message *msg)
{
    struct answer answer;
    struct query query;
    int error = read_query(msg, &query);

    if (error != 0) {
        return message_refuse(msg, error, "is malformed");
    }
    if (msg->restoring || vfuc_iommu_isolated(msg->iommu)) {
        return EIO;
    }
    fill(&query, &answer);
    message_reply(msg, 0, &answer, answer.head.argsz);
    return 0;
}
