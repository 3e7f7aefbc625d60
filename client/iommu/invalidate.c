/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The device lets go of what was taken away: ATS_INVALIDATE and its completion (vfio-user IOMMU
 * extension, INV; PCIe 10.3), or a change of its shadow mappings.
 */
#include "iommu/iommu.h"

#include <errno.h>
#include <time.h>

static struct timespec deadline_after(uint32_t ms)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_sec += ms / 1000;
    ts.tv_nsec += (long)(ms % 1000) * 1000000;
    if (ts.tv_nsec >= 1000000000) {
        ts.tv_sec++;
        ts.tv_nsec -= 1000000000;
    }
    return ts;
}

/* Lock held. Until a counter of completions moves; when it does not, the device is isolated. */
static int wait_progress(struct vfuc_iommu *iommu, const uint64_t *counter)
{
    const struct timespec deadline = deadline_after(iommu->options.invalidate_timeout_ms);
    uint64_t seen = *counter;
    int err = 0;

    while (*counter == seen && !iommu->isolated && err == 0) {
        err = pthread_cond_timedwait(&iommu->changed, &iommu->lock, &deadline);
    }
    if (*counter != seen) {
        return 0;
    }
    if (iommu->isolated) {
        return -EIO;
    }
    iommu_isolate(iommu, "it did not complete an invalidation in time");
    return -ETIMEDOUT;
}

/* Lock held. */
static void complete(struct invalidation *inv, int error)
{
    struct vfuc_iommu *iommu = inv->iommu;

    inv->used = false;
    iommu->nr_invalidations--;
    iommu->completions++;
    iommu->stats.invalidations += error == 0;
    if (inv->batch != NULL) {
        inv->batch->completed++;
        inv->batch->error = inv->batch->error != 0 ? inv->batch->error : error;
    }
    pthread_cond_broadcast(&iommu->changed);
}

static void completed(void *pvt, int error, const void *payload, size_t len)
{
    struct invalidation *inv = pvt;
    struct vfuc_iommu *iommu = inv->iommu;

    (void)payload;
    (void)len;
    pthread_mutex_lock(&iommu->lock);
    complete(inv, error);
    pthread_mutex_unlock(&iommu->lock);
}

/* Lock held. One of those that may be outstanding; there is one. */
static struct invalidation *take_slot(struct vfuc_iommu *iommu, struct batch *batch)
{
    struct invalidation *inv = iommu->invalidations;

    while (inv->used) {
        inv++;
    }
    inv->used = true;
    inv->batch = batch;
    iommu->nr_invalidations++;
    batch->sent++;
    return inv;
}

/* What is to be dropped where. */
struct target {
    uint32_t pasid;
    uint32_t flags;
    uint64_t first, last;
};

static int send_invalidation(struct vfuc *client, const struct target *target, void *slot)
{
    bool all = (target->flags & VFIO_USER_ATS_INV_F_ALL) != 0;
    bool tagged = target->pasid != VFUC_NO_PASID;
    const struct {
        struct vfio_user_pasid_prefix prefix;
        struct vfio_user_ats_invalidate inv;
    } __attribute__((packed)) msg = {
        .prefix = { .pasid = target->pasid },
        .inv = {
            .argsz = sizeof(msg.inv),
            .flags = target->flags,
            .address = all ? 0 : target->first,
            .length = all ? 0 : target->last - target->first + 1,
        },
    };

    return vfuc_command_start(client, VFIO_USER_ATS_INVALIDATE, tagged ? VFIO_USER_F_PASID : 0,
                              tagged ? (const void *)&msg : &msg.inv,
                              tagged ? sizeof(msg) : sizeof(msg.inv), completed, slot);
}

/* Lock held, and dropped meanwhile. */
static int start(struct vfuc_iommu *iommu, const struct target *target, struct batch *batch)
{
    struct invalidation *inv;
    struct vfuc *client;
    int err = 0;

    while (err == 0 && iommu->client != NULL &&
           iommu->nr_invalidations >= iommu->agreed.iommu.ats_queue_depth) {
        err = wait_progress(iommu, &iommu->completions);
    }
    client = iommu->client;
    if (err == 0) {
        err = client == NULL ? -ENOTCONN : iommu->isolated ? -EIO : 0;
    }
    if (err < 0) {
        return err;
    }
    inv = take_slot(iommu, batch);
    iommu_begin_sending(iommu);
    pthread_mutex_unlock(&iommu->lock);
    if (send_invalidation(client, target, inv) < 0) {
        completed(inv, errno, NULL, 0);
    }
    pthread_mutex_lock(&iommu->lock);
    iommu_end_sending(iommu);
    return 0;
}

/* Lock held. What was sent ends without us when we do not wait for it any longer. */
static int finish(struct vfuc_iommu *iommu, struct batch *batch, int err)
{
    while (err == 0 && batch->completed < batch->sent) {
        err = wait_progress(iommu, &batch->completed);
    }
    for (int i = 0; i < MAX_INVALIDATIONS; i++) {
        if (iommu->invalidations[i].batch == batch) {
            iommu->invalidations[i].batch = NULL;
        }
    }
    if (err < 0 || batch->error == 0) {
        return err;
    }
    if (batch->error == ENOTCONN) {
        return -ENOTCONN;
    }
    iommu_isolate(iommu, "it did not complete an invalidation");
    return batch->error == ETIMEDOUT ? -ETIMEDOUT : -EPROTO;
}

/* Lock held. Of each space that shows the change: the range, or all of it through a stage 1. */
static int start_change(struct vfuc_iommu *iommu, const struct change *change, struct batch *batch)
{
    struct attachment *attachment;
    uint64_t cursor = 0;
    int err = 0;

    while (err == 0 && (attachment = attachment_next(iommu, change->domain, &cursor)) != NULL) {
        bool nested = attachment->domain != change->domain;
        bool global = nested ? attachment->domain->had_global : change->global;
        const struct target target = {
            .pasid = attachment->pasid,
            .flags = (nested ? VFIO_USER_ATS_INV_F_ALL : 0u) |
                     (global ? VFIO_USER_ATS_INV_F_GLOBAL : 0u),
            .first = change->first,
            .last = change->last,
        };

        err = start(iommu, &target, batch);
    }
    return err;
}

static int change_shadows(struct vfuc_iommu *iommu, const struct change *changes, size_t nr)
{
    int result = 0, err;

    for (size_t i = 0; i < nr; i++) {
        err = shadow_refresh_domain(iommu, changes[i].domain, changes[i].first, changes[i].last);
        result = result < 0 ? result : err;
    }
    return result;
}

static int invalidate_changes(struct vfuc_iommu *iommu, const struct change *changes, size_t nr)
{
    struct batch batch = { 0 };
    int err = 0;

    pthread_mutex_lock(&iommu->lock);
    for (size_t i = 0; i < nr && err == 0; i++) {
        err = start_change(iommu, &changes[i], &batch);
    }
    err = finish(iommu, &batch, err);
    pthread_mutex_unlock(&iommu->lock);
    return err;
}

/*
 * A change of a domain that another thread is putting another in the place of is shown by nothing
 * any more, and yet the device has let go of it only when that thread has heard so.
 */
static void wait_for_exchange(struct vfuc_iommu *iommu)
{
    uint64_t seen;

    pthread_mutex_lock(&iommu->lock);
    seen = iommu->exchanges;
    while (iommu->exchanging && iommu->exchanges == seen) {
        pthread_cond_wait(&iommu->changed, &iommu->lock);
    }
    pthread_mutex_unlock(&iommu->lock);
}

static enum vfuc_iommu_mode mode_of(struct vfuc_iommu *iommu)
{
    enum vfuc_iommu_mode mode;

    pthread_mutex_lock(&iommu->lock);
    mode = iommu_active_mode(iommu);
    pthread_mutex_unlock(&iommu->lock);
    return mode;
}

static int tell(struct vfuc_iommu *iommu, enum vfuc_iommu_mode mode, const struct change *changes,
                size_t nr)
{
    if (mode == VFUC_IOMMU_SHADOW) {
        return change_shadows(iommu, changes, nr);
    }
    return mode == VFUC_IOMMU_ATS ? invalidate_changes(iommu, changes, nr) : 0;
}

/* What nothing shows any more may be what the device has kept. */
static int unless_kept(struct vfuc_iommu *iommu, int err)
{
    return err < 0 ? err : iommu_check_isolated(iommu);
}

int changes_tell(struct vfuc_iommu *iommu, const struct change *changes, size_t nr)
{
    enum vfuc_iommu_mode mode = mode_of(iommu);
    int err;

    if (mode == VFUC_IOMMU_SHADOW) {
        iommu_take_turn(iommu);
        err = tell(iommu, mode, changes, nr);
        iommu_end_turn(iommu);
    } else {
        err = tell(iommu, mode, changes, nr);
        wait_for_exchange(iommu);
    }
    return unless_kept(iommu, err);
}

int changes_tell_in_turn(struct vfuc_iommu *iommu, const struct change *changes, size_t nr)
{
    return unless_kept(iommu, tell(iommu, mode_of(iommu), changes, nr));
}

int space_invalidate(struct vfuc_iommu *iommu, uint32_t pasid, bool global)
{
    const struct target target = {
        .pasid = pasid,
        .flags = VFIO_USER_ATS_INV_F_ALL | (global ? VFIO_USER_ATS_INV_F_GLOBAL : 0u),
    };
    struct batch batch = { 0 };
    int err;

    pthread_mutex_lock(&iommu->lock);
    err = start(iommu, &target, &batch);
    err = finish(iommu, &batch, err);
    pthread_mutex_unlock(&iommu->lock);
    return err;
}
