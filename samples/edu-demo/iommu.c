/* SPDX-License-Identifier: BSD-3-Clause */
#include "iommu.h"
#include "vfio-user.h"

#include <errno.h>
#include <string.h>
#include <time.h>

void iommu_init(struct machine_iommu *iommu)
{
    pthread_condattr_t attr;

    memset(iommu, 0, sizeof(*iommu));
    pthread_mutex_init(&iommu->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&iommu->changed, &attr);
    pthread_condattr_destroy(&attr);
}

void iommu_destroy(struct machine_iommu *iommu)
{
    pthread_cond_destroy(&iommu->changed);
    pthread_mutex_destroy(&iommu->lock);
}

struct iommu_counts iommu_counts(struct machine_iommu *iommu)
{
    struct iommu_counts counts;

    pthread_mutex_lock(&iommu->lock);
    counts = iommu->counts;
    pthread_mutex_unlock(&iommu->lock);
    return counts;
}

/*
 * What the device asks
 */

/* The page of an address, or -1. */
static int page_of(uint64_t addr)
{
    return addr >= IOMMU_BASE && addr < IOMMU_BASE + IOMMU_PAGES * IOMMU_PAGE_SIZE
               ? (int)((addr - IOMMU_BASE) / IOMMU_PAGE_SIZE)
               : -1;
}

static int answer_translate(struct machine_iommu *iommu, unsigned pasid, const uint8_t *payload,
                            size_t len, uint8_t *out, size_t *out_len)
{
    struct vfio_user_ats_translate request;
    struct {
        struct vfio_user_ats_translate_reply head;
        struct vfio_user_ats_entry entry;
    } reply = { .head = { .argsz = sizeof(reply), .nr_entries = 1 } };
    int page;

    if (len != sizeof(request)) {
        return EINVAL;
    }
    memcpy(&request, payload, len);
    page = page_of(request.address);
    reply.entry.address = request.address;
    reply.entry.length = IOMMU_PAGE_SIZE;
    if (page >= 0 && iommu->map[pasid][page] != 0) {
        reply.entry.translated = iommu->map[pasid][page];
        reply.entry.perm = VFIO_USER_ATS_PERM_READ | VFIO_USER_ATS_PERM_WRITE;
    }
    iommu->counts.translations++;
    memcpy(out, &reply, sizeof(reply));
    *out_len = sizeof(reply);
    return 0;
}

static int answer_page_request(struct machine_iommu *iommu, unsigned pasid, const uint8_t *payload,
                               size_t len, uint8_t *out, size_t *out_len)
{
    struct vfio_user_page_request request;
    struct vfio_user_page_request_entry entry;
    struct vfio_user_page_response response = {
        .argsz = sizeof(response),
        .code = VFIO_USER_PAGE_RESP_INVALID,
    };
    int page;

    if (len != sizeof(request) + sizeof(entry)) {
        return EINVAL;
    }
    memcpy(&request, payload, sizeof(request));
    memcpy(&entry, payload + sizeof(request), sizeof(entry));
    page = page_of(entry.address);
    if (page >= 0 && iommu->on_fault[pasid][page] != 0) {
        iommu->map[pasid][page] = iommu->on_fault[pasid][page];
        response.code = VFIO_USER_PAGE_RESP_SUCCESS;
    }
    response.group = request.group;
    iommu->counts.page_requests++;
    memcpy(out, &response, sizeof(response));
    *out_len = sizeof(response);
    return 0;
}

/* RAM that is not shared, by its address: the device reads it in messages that fit here. */
static int answer_read(struct machine_iommu *iommu, const uint8_t *payload, size_t len,
                       uint8_t *out, size_t *out_len)
{
    const struct ram *ram = &iommu->rams[RAM_BY_MESSAGES];
    struct vfio_user_dma_region_access access;

    if (len != sizeof(access)) {
        return EINVAL;
    }
    memcpy(&access, payload, len);
    if (access.addr < ram->addr || access.addr - ram->addr > RAM_SIZE - 48 || access.count > 48) {
        return EFAULT;
    }
    memcpy(out, &access, sizeof(access));
    memcpy(out + sizeof(access), ram->mem + (access.addr - ram->addr), access.count);
    *out_len = sizeof(access) + access.count;
    return 0;
}

static int answer(struct machine_iommu *iommu, uint16_t cmd, uint32_t flags,
                  const uint8_t *payload, size_t len, struct held_reply *reply)
{
    struct vfio_user_pasid_prefix prefix = { 0 };

    if (flags & VFIO_USER_F_PASID) {
        if (len < sizeof(prefix)) {
            return EINVAL;
        }
        memcpy(&prefix, payload, sizeof(prefix));
        payload += sizeof(prefix);
        len -= sizeof(prefix);
    }
    if (prefix.pasid >= IOMMU_PASIDS) {
        return EINVAL;
    }
    switch (cmd) {
    case VFIO_USER_ATS_TRANSLATE:
        return answer_translate(iommu, prefix.pasid, payload, len, reply->payload, &reply->len);
    case VFIO_USER_PAGE_REQUEST:
        return answer_page_request(iommu, prefix.pasid, payload, len, reply->payload,
                                   &reply->len);
    case VFIO_USER_DMA_READ:
        return answer_read(iommu, payload, len, reply->payload, &reply->len);
    default:
        return ENOTSUP;
    }
}

static void command(void *pvt, uint16_t id, uint16_t cmd, uint32_t flags, const void *payload,
                    size_t len)
{
    struct machine_iommu *iommu = pvt;
    struct held_reply reply = { .used = true, .id = id, .cmd = cmd };
    bool hold;
    int err;

    pthread_mutex_lock(&iommu->lock);
    err = answer(iommu, cmd, flags, payload, len, &reply);
    hold = err == 0 && cmd == VFIO_USER_DMA_READ && iommu->hold_dma;
    if (hold) {
        iommu->hold_dma = false;
        iommu->held = reply;
        pthread_cond_broadcast(&iommu->changed);
    }
    pthread_mutex_unlock(&iommu->lock);
    if (!hold) {
        vfuc_reply(iommu->client, id, cmd, err, reply.payload, reply.len);
    }
}

/*
 * What the machine does
 */

void iommu_propose(struct machine_iommu *iommu, vfuc_options_t *options)
{
    options->iommu = (vfuc_iommu_proposal_t){
        .pasid_bits = 20,
        .ats_queue_depth = 32,
        .ats_page_shift = 12,
        .ats_max_entries = 1,
        .pri_max_requests = 64,
    };
    options->command = command;
    options->pvt = iommu;
}

void iommu_attach(struct machine_iommu *iommu, vfuc_t *client, const struct ram *rams)
{
    iommu->client = client;
    iommu->rams = rams;
}

void iommu_map(struct machine_iommu *iommu, unsigned pasid, unsigned page, uint64_t addr)
{
    pthread_mutex_lock(&iommu->lock);
    iommu->map[pasid][page] = addr;
    pthread_mutex_unlock(&iommu->lock);
}

void iommu_provide(struct machine_iommu *iommu, unsigned pasid, unsigned page, uint64_t addr)
{
    pthread_mutex_lock(&iommu->lock);
    iommu->on_fault[pasid][page] = addr;
    pthread_mutex_unlock(&iommu->lock);
}

static void completed(void *pvt, int error, const void *payload, size_t len)
{
    struct machine_iommu *iommu = pvt;

    (void)payload;
    (void)len;
    pthread_mutex_lock(&iommu->lock);
    iommu->counts.completions += error == 0;
    pthread_cond_broadcast(&iommu->changed);
    pthread_mutex_unlock(&iommu->lock);
}

int iommu_invalidate(struct machine_iommu *iommu, unsigned pasid, unsigned page)
{
    const struct {
        struct vfio_user_pasid_prefix prefix;
        struct vfio_user_ats_invalidate inv;
    } __attribute__((packed)) msg = {
        .prefix = { .pasid = pasid },
        .inv = {
            .argsz = sizeof(msg.inv),
            .address = IOMMU_BASE + page * IOMMU_PAGE_SIZE,
            .length = IOMMU_PAGE_SIZE,
        },
    };

    return vfuc_command_start(iommu->client, VFIO_USER_ATS_INVALIDATE, VFIO_USER_F_PASID, &msg,
                              sizeof(msg), completed, iommu);
}

void iommu_hold_dma(struct machine_iommu *iommu)
{
    pthread_mutex_lock(&iommu->lock);
    iommu->hold_dma = true;
    pthread_mutex_unlock(&iommu->lock);
}

static void deadline_after(struct timespec *ts, int ms)
{
    clock_gettime(CLOCK_MONOTONIC, ts);
    ts->tv_sec += ms / 1000;
}

bool iommu_wait_held(struct machine_iommu *iommu, int timeout_ms)
{
    struct timespec deadline;
    bool held;
    int err = 0;

    deadline_after(&deadline, timeout_ms);
    pthread_mutex_lock(&iommu->lock);
    while (!iommu->held.used && err == 0) {
        err = pthread_cond_timedwait(&iommu->changed, &iommu->lock, &deadline);
    }
    held = iommu->held.used;
    pthread_mutex_unlock(&iommu->lock);
    return held;
}

void iommu_answer_held(struct machine_iommu *iommu)
{
    struct held_reply reply;

    pthread_mutex_lock(&iommu->lock);
    reply = iommu->held;
    iommu->held.used = false;
    pthread_mutex_unlock(&iommu->lock);
    vfuc_reply(iommu->client, reply.id, reply.cmd, 0, reply.payload, reply.len);
}

bool iommu_wait_completions(struct machine_iommu *iommu, unsigned count, int timeout_ms)
{
    struct timespec deadline;
    bool there;
    int err = 0;

    deadline_after(&deadline, timeout_ms);
    pthread_mutex_lock(&iommu->lock);
    while (iommu->counts.completions < count && err == 0) {
        err = pthread_cond_timedwait(&iommu->changed, &iommu->lock, &deadline);
    }
    there = iommu->counts.completions >= count;
    pthread_mutex_unlock(&iommu->lock);
    return there;
}
