/* SPDX-License-Identifier: BSD-3-Clause */
/* The IOMMU itself: its life, the device behind it, and who may wait for whom. */
#include "iommu/iommu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_ADDRESS_BITS 48
#define DEFAULT_TIMEOUT_MS 5000
#define DEFAULT_MERGE (UINT64_C(2) << 20)
/* Requests are kept one by one: this many pages, whatever was proposed. */
#define MAX_PAGE_REQUESTS 65536u
/* What the smallest translation unit can be: all of one is looked at for an answer. */
#define MAX_UNIT_SHIFT 30

static const vfuc_iommu_proposal_t everything = {
    .pasid_bits = VFIO_USER_PASID_BITS,
    .pasid_exec = true,
    .pasid_priv = true,
    .ats_queue_depth = MAX_INVALIDATIONS,
    .ats_page_shift = PT_PAGE_SHIFT,
    .ats_max_entries = 64,
    .pri_max_requests = 512,
};

int iommu_result(int err)
{
    if (err < 0) {
        errno = -err;
        return -1;
    }
    return 0;
}

int iommu_grow(void **array, size_t *max, size_t nr, size_t size)
{
    size_t wanted = *max > 0 ? *max * 2 : 8;
    void *bigger;

    if (nr < *max) {
        return 0;
    }
    bigger = reallocarray(*array, wanted, size);
    if (bigger == NULL) {
        return -ENOMEM;
    }
    *array = bigger;
    *max = wanted;
    return 0;
}

/* Who may wait */

int iommu_may_wait(struct vfuc_iommu *iommu)
{
    bool inside;

    pthread_mutex_lock(&iommu->lock);
    inside = iommu->client != NULL && client_on_receiver(iommu->client);
    pthread_mutex_unlock(&iommu->lock);
    return inside ? -EDEADLK : 0;
}

void iommu_end_sending(struct vfuc_iommu *iommu)
{
    iommu->nr_senders--;
    pthread_cond_broadcast(&iommu->changed);
}

void iommu_take_turn(struct vfuc_iommu *iommu)
{
    pthread_mutex_lock(&iommu->lock);
    while (iommu->turn_taken) {
        pthread_cond_wait(&iommu->changed, &iommu->lock);
    }
    iommu->turn_taken = true;
    pthread_mutex_unlock(&iommu->lock);
}

void iommu_end_turn(struct vfuc_iommu *iommu)
{
    pthread_mutex_lock(&iommu->lock);
    iommu->turn_taken = false;
    iommu->exchanging = false;
    pthread_cond_broadcast(&iommu->changed);
    pthread_mutex_unlock(&iommu->lock);
}

void iommu_begin_exchange(struct vfuc_iommu *iommu)
{
    iommu->exchanging = true;
    iommu->exchanges++;
}

/* State */

enum vfuc_iommu_mode iommu_active_mode(const struct vfuc_iommu *iommu)
{
    return iommu->client != NULL ? iommu->mode : VFUC_IOMMU_NONE;
}

enum vfuc_iommu_mode vfuc_iommu_mode(vfuc_iommu_t *iommu)
{
    enum vfuc_iommu_mode mode;

    pthread_mutex_lock(&iommu->lock);
    mode = iommu->client != NULL ? iommu->mode : iommu->options.mode;
    pthread_mutex_unlock(&iommu->lock);
    return mode;
}

bool vfuc_iommu_isolated(vfuc_iommu_t *iommu)
{
    bool isolated;

    pthread_mutex_lock(&iommu->lock);
    isolated = iommu->isolated;
    pthread_mutex_unlock(&iommu->lock);
    return isolated;
}

void iommu_isolate(struct vfuc_iommu *iommu, const char *why)
{
    if (!iommu->isolated && iommu->client != NULL) {
        client_log(iommu->client, "device is isolated from its memory: %s", why);
    }
    iommu->isolated = true;
    pthread_cond_broadcast(&iommu->changed);
}

int iommu_check_isolated(struct vfuc_iommu *iommu)
{
    bool kept;

    pthread_mutex_lock(&iommu->lock);
    kept = iommu->client != NULL && iommu->isolated;
    pthread_mutex_unlock(&iommu->lock);
    return kept ? -EIO : 0;
}

int iommu_kept(struct vfuc_iommu *iommu, int err)
{
    if (err == -ENOTCONN) {
        return err;
    }
    pthread_mutex_lock(&iommu->lock);
    iommu_isolate(iommu, strerror(-err));
    pthread_mutex_unlock(&iommu->lock);
    return err == -ETIMEDOUT ? err : -EPROTO;
}

uint64_t iommu_unit_size(const struct vfuc_iommu *iommu)
{
    unsigned shift = iommu->unit_shift;

    if (iommu->agreed.iommu.ats_page_shift > shift) {
        shift = iommu->agreed.iommu.ats_page_shift;
    }
    return UINT64_C(1) << shift;
}

int vfuc_iommu_set_unit(vfuc_iommu_t *iommu, unsigned shift)
{
    if (shift < PT_PAGE_SHIFT || shift > MAX_UNIT_SHIFT) {
        return iommu_result(-EINVAL);
    }
    pthread_mutex_lock(&iommu->lock);
    iommu->unit_shift = shift;
    pthread_mutex_unlock(&iommu->lock);
    return 0;
}

void vfuc_iommu_stats(vfuc_iommu_t *iommu, vfuc_iommu_stats_t *stats)
{
    pthread_mutex_lock(&iommu->lock);
    *stats = iommu->stats;
    pthread_mutex_unlock(&iommu->lock);
}

/* Life */

static int set_options(struct vfuc_iommu *iommu, const vfuc_iommu_options_t *options)
{
    vfuc_iommu_options_t *o = &iommu->options;

    if (options != NULL) {
        *o = *options;
    }
    if (o->address_bits == 0) {
        o->address_bits = DEFAULT_ADDRESS_BITS;
    }
    if (o->invalidate_timeout_ms == 0) {
        o->invalidate_timeout_ms = DEFAULT_TIMEOUT_MS;
    }
    if (o->max_merge == 0) {
        o->max_merge = DEFAULT_MERGE;
    }
    if (o->address_bits < PT_MIN_BITS || o->address_bits > PT_MAX_BITS ||
        o->max_merge < PT_PAGE_SIZE || (o->max_merge & (o->max_merge - 1)) != 0 ||
        o->mode > VFUC_IOMMU_NONE) {
        return -EINVAL;
    }
    return 0;
}

vfuc_iommu_t *vfuc_iommu_create(const vfuc_iommu_options_t *options)
{
    struct vfuc_iommu *iommu = calloc(1, sizeof(*iommu));
    pthread_condattr_t attr;
    int err = iommu != NULL ? set_options(iommu, options) : -ENOMEM;

    if (err < 0) {
        free(iommu);
        iommu_result(err);
        return NULL;
    }
    iommu->unit.command = iommu_command;
    iommu->unit_shift = PT_PAGE_SHIFT;
    pthread_mutex_init(&iommu->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&iommu->changed, &attr);
    pthread_condattr_destroy(&attr);
    LIST_INIT(&iommu->domains);
    for (int i = 0; i < MAX_INVALIDATIONS; i++) {
        iommu->invalidations[i].iommu = iommu;
    }
    return iommu;
}

void vfuc_iommu_destroy(vfuc_iommu_t *iommu)
{
    struct vfuc_iommu_domain *domain;

    if (iommu == NULL) {
        return;
    }
    attachments_destroy(iommu);
    while ((domain = LIST_FIRST(&iommu->domains)) != NULL) {
        domain_free(domain);
    }
    memory_destroy(iommu);
    free(iommu->requests);
    pthread_cond_destroy(&iommu->changed);
    pthread_mutex_destroy(&iommu->lock);
    free(iommu);
}

/* The device */

static void propose(const struct vfuc_iommu *iommu, vfuc_options_t *options)
{
    static const vfuc_iommu_proposal_t nothing;
    vfuc_iommu_proposal_t *p = &options->iommu;

    if (memcmp(p, &nothing, sizeof(nothing)) == 0) {
        *p = iommu->options.proposal;
    }
    if (memcmp(p, &nothing, sizeof(nothing)) == 0) {
        *p = everything;
    }
    if (iommu->options.mode == VFUC_IOMMU_NONE) {
        *p = nothing;
    }
    if (iommu->options.mode == VFUC_IOMMU_SHADOW) {
        p->ats_queue_depth = p->ats_page_shift = p->ats_max_entries = p->pri_max_requests = 0;
    }
    if (p->ats_queue_depth > MAX_INVALIDATIONS) {
        p->ats_queue_depth = MAX_INVALIDATIONS;
    }
    if (p->pri_max_requests > MAX_PAGE_REQUESTS) {
        p->pri_max_requests = MAX_PAGE_REQUESTS;
    }
}

/* Room for as many page requests as may be agreed on. */
static int begin_connecting(struct vfuc_iommu *iommu, const vfuc_options_t *options)
{
    uint32_t max = options->iommu.pri_max_requests;
    struct page_request *requests = calloc(max > 0 ? max : 1, sizeof(*requests));
    int err = requests != NULL ? 0 : -ENOMEM;

    pthread_mutex_lock(&iommu->lock);
    if (err == 0 && (iommu->client != NULL || iommu->connecting)) {
        err = -EBUSY;
    }
    if (err == 0) {
        free(iommu->requests);
        iommu->requests = requests;
        iommu->max_requests = max;
        iommu->next_request = 0;
        iommu->connecting = true;
        iommu->isolated = false;
        requests = NULL;
    }
    pthread_mutex_unlock(&iommu->lock);
    free(requests);
    return err;
}

/* Lock held. The server may ask before vfuc_connect() has returned: who comes first does it. */
static void meet_client(struct vfuc_iommu *iommu, struct vfuc *client)
{
    if (iommu->client != NULL) {
        return;
    }
    iommu->client = client;
    vfuc_agreed(client, &iommu->agreed);
    iommu->mode = iommu->options.mode;
    if (iommu->mode == VFUC_IOMMU_AUTO) {
        iommu->mode = iommu->agreed.iommu.ats_queue_depth > 0 ? VFUC_IOMMU_ATS : VFUC_IOMMU_SHADOW;
    }
    /* Nothing may lead to memory before the server has answered that it knows it. */
    for (size_t i = 0; i < iommu->nr_memory; i++) {
        iommu->memory[i].there = iommu->mode == VFUC_IOMMU_SHADOW;
    }
}

enum client_state iommu_meet(struct vfuc_iommu *iommu, struct vfuc *client)
{
    enum client_state state;
    uint64_t epoch;

    pthread_mutex_lock(&client->lock);
    state = client->state;
    epoch = client->epoch;
    pthread_mutex_unlock(&client->lock);

    pthread_mutex_lock(&iommu->lock);
    meet_client(iommu, client);
    if (iommu->epoch != epoch) {
        /* Another connection: the server has forgotten what it asked for. */
        page_requests_forget(iommu);
        iommu->epoch = epoch;
    }
    pthread_mutex_unlock(&iommu->lock);
    return state;
}

/* Lock held. Can the device be what is expected of it? */
static int check_device(const struct vfuc_iommu *iommu)
{
    uint32_t bits = iommu->agreed.iommu.pasid_bits;

    if (iommu->mode == VFUC_IOMMU_ATS &&
        (iommu->agreed.iommu.ats_queue_depth == 0 ||
         iommu->agreed.iommu.ats_page_shift > MAX_UNIT_SHIFT)) {
        return -ENOTSUP;
    }
    for (size_t i = 0; i < iommu->nr_attached; i++) {
        const struct attachment *a = iommu->attached[i];

        if (a->domain != NULL && a->pasid != VFUC_NO_PASID &&
            (bits == 0 || a->pasid >> bits != 0)) {
            return -ENOTSUP;
        }
    }
    return 0;
}

static int bring_up(struct vfuc_iommu *iommu, struct vfuc *client)
{
    enum vfuc_iommu_mode mode;
    int err;

    pthread_mutex_lock(&iommu->lock);
    meet_client(iommu, client);
    iommu->connecting = false;
    mode = iommu->mode;
    err = check_device(iommu);
    pthread_mutex_unlock(&iommu->lock);
    if (err < 0) {
        return err;
    }
    iommu_take_turn(iommu);
    err = memory_announce(iommu);
    if (err == 0 && mode == VFUC_IOMMU_SHADOW) {
        err = shadow_refresh_all(iommu);
    }
    iommu_end_turn(iommu);
    return err;
}

vfuc_t *vfuc_iommu_connect(vfuc_iommu_t *iommu, const char *path, const vfuc_options_t *options)
{
    vfuc_options_t copy = { 0 };
    struct vfuc *client;
    int err;

    if (options != NULL) {
        copy = *options;
    }
    propose(iommu, &copy);
    copy.unit = &iommu->unit;
    err = begin_connecting(iommu, &copy);
    if (err < 0) {
        iommu_result(err);
        return NULL;
    }
    client = vfuc_connect(path, &copy);
    if (client == NULL) {
        err = -errno;
        pthread_mutex_lock(&iommu->lock);
        iommu->client = NULL;
        iommu->connecting = false;
        pthread_mutex_unlock(&iommu->lock);
    } else {
        err = bring_up(iommu, client);
    }
    if (err < 0) {
        vfuc_iommu_disconnect(iommu);
        iommu_result(err);
        return NULL;
    }
    return client;
}

/* Connecting again */

/*
 * What was the matter of the old connection ends with it. An answer that is on its way to the old
 * server is not to find a command of the new one under its id.
 */
static void forget_connection(struct vfuc_iommu *iommu)
{
    pthread_mutex_lock(&iommu->lock);
    iommu->isolated = false;
    page_requests_forget(iommu);
    while (iommu->nr_senders > 0) {
        pthread_cond_wait(&iommu->changed, &iommu->lock);
    }
    pthread_mutex_unlock(&iommu->lock);
}

static int reconnect(struct vfuc_iommu *iommu, struct vfuc *client, bool shadowed)
{
    int err;

    client_hang_up(client);
    forget_connection(iommu);
    /* What is not true any more shall not come back: the server that has gone keeps nothing. */
    if (shadowed) {
        shadow_refresh_all(iommu);
    }
    err = vfuc_reconnect(client) < 0 ? -errno : 0;
    return err == 0 && shadowed ? shadow_refresh_all(iommu) : err;
}

int vfuc_iommu_reconnect(vfuc_iommu_t *iommu)
{
    struct vfuc *client;
    bool shadowed;
    int err = iommu_may_wait(iommu);

    if (err < 0) {
        return iommu_result(err);
    }
    iommu_take_turn(iommu);
    pthread_mutex_lock(&iommu->lock);
    client = iommu->client;
    shadowed = iommu_active_mode(iommu) == VFUC_IOMMU_SHADOW;
    pthread_mutex_unlock(&iommu->lock);
    err = client != NULL ? reconnect(iommu, client, shadowed) : -ENOTCONN;
    iommu_end_turn(iommu);
    return iommu_result(err);
}

/* Turn held: what the last device knew is not known to the next. */
static void forget_device(struct vfuc_iommu *iommu)
{
    iommu->client = NULL;
    memset(&iommu->agreed, 0, sizeof(iommu->agreed));
    page_requests_forget(iommu);
    for (size_t i = 0; i < iommu->nr_attached; i++) {
        iommu->attached[i]->nr_shadows = 0;
    }
    for (size_t i = 0; i < iommu->nr_memory; i++) {
        iommu->memory[i].there = true;
    }
}

void vfuc_iommu_disconnect(vfuc_iommu_t *iommu)
{
    struct vfuc *client;

    if (iommu_may_wait(iommu) < 0) {
        client_log(iommu->client, "vfuc_iommu_disconnect() inside a callback: ignored");
        return;
    }
    iommu_take_turn(iommu);
    pthread_mutex_lock(&iommu->lock);
    client = iommu->client;
    pthread_mutex_unlock(&iommu->lock);
    if (client != NULL) {
        /* Ends every command, with it every invalidation; no callback runs any more. */
        client_hang_up(client);
    }
    pthread_mutex_lock(&iommu->lock);
    forget_device(iommu);
    while (iommu->nr_senders > 0) {
        pthread_cond_wait(&iommu->changed, &iommu->lock);
    }
    pthread_mutex_unlock(&iommu->lock);
    vfuc_disconnect(client);
    iommu_end_turn(iommu);
}
