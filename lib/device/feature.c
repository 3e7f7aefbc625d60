/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/feature.h"

#include "device/ctx.h"
#include "device/migration.h"

#include <errno.h>
#include <string.h>

#define GET VFIO_DEVICE_FEATURE_GET
#define SET VFIO_DEVICE_FEATURE_SET
#define PROBE VFIO_DEVICE_FEATURE_PROBE

/* data is what follows the feature header; the handler sets the reply. */
typedef int (feature_fn)(struct vfu_ctx *ctx, struct request *req,
                         const struct vfio_user_device_feature *head, const uint8_t *data,
                         size_t len);

static int too_short(struct vfu_ctx *ctx, const struct request *req, const char *what)
{
    log_err(&ctx->log, "DEVICE_FEATURE id %u: payload or argsz is too small for %s",
            req->hdr.msg_id, what);
    return -EINVAL;
}

/* A reply of one fixed structure behind the feature header. */
static int reply_with(struct vfu_ctx *ctx, struct request *req,
                      const struct vfio_user_device_feature *head, const void *data, size_t len)
{
    struct vfio_user_device_feature *out = ctx->scratch;

    if (head->argsz < sizeof(*out) + len) {
        return too_short(ctx, req, "the reply");
    }
    out->argsz = (uint32_t)(sizeof(*out) + len);
    out->flags = head->flags;
    memcpy(out->data, data, len);
    request_reply_with(req, out, sizeof(*out) + len);
    return 0;
}

static int echo(struct vfu_ctx *ctx, struct request *req)
{
    memcpy(ctx->scratch, req->payload, req->len);
    request_reply_with(req, ctx->scratch, req->len);
    return 0;
}

static int get_migration(struct vfu_ctx *ctx, struct request *req,
                         const struct vfio_user_device_feature *head, const uint8_t *data,
                         size_t len)
{
    const struct vfio_user_device_feature_migration reply = {
        .flags = VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_PRE_COPY,
    };

    (void)data;
    (void)len;
    return reply_with(ctx, req, head, &reply, sizeof(reply));
}

static int mig_state(struct vfu_ctx *ctx, struct request *req,
                     const struct vfio_user_device_feature *head, const uint8_t *data, size_t len)
{
    struct vfio_user_device_feature_mig_state state = { 0 };
    int err;

    if (head->flags & GET) {
        state.device_state = migration_state(ctx);
        return reply_with(ctx, req, head, &state, sizeof(state));
    }
    if (len < sizeof(state)) {
        return too_short(ctx, req, "the state");
    }
    memcpy(&state, data, sizeof(state));
    err = migration_set_state(ctx, state.device_state);
    return err < 0 ? err : echo(ctx, req);
}

static int logging_start(struct vfu_ctx *ctx, struct request *req,
                         const struct vfio_user_device_feature *head, const uint8_t *data,
                         size_t len)
{
    struct vfio_user_device_feature_dma_logging_control control;
    int err;

    (void)head;
    if (len < sizeof(control)) {
        return too_short(ctx, req, "the logging control");
    }
    memcpy(&control, data, sizeof(control));
    if (ctx->dma == NULL) {
        log_err(&ctx->log, "DEVICE_FEATURE id %u: dirty logging: the device does no DMA: refused",
                req->hdr.msg_id);
        return -EINVAL;
    }
    err = dma_dirty_start(ctx->dma, control.page_size);
    return err < 0 ? err : echo(ctx, req);
}

static int logging_stop(struct vfu_ctx *ctx, struct request *req,
                        const struct vfio_user_device_feature *head, const uint8_t *data,
                        size_t len)
{
    (void)head;
    (void)data;
    (void)len;
    if (ctx->dma != NULL) {
        dma_dirty_stop(ctx->dma);
    }
    return echo(ctx, req);
}

/* What a VMM migrates is guest memory: with ATS, that is the translated space. */
static struct dma_space *logged_space(const struct vfu_ctx *ctx)
{
    return ctx->agreed.iommu.ats.present ? dma_translated_space(ctx->dma)
                                         : dma_requester_space(ctx->dma);
}

static int logging_report(struct vfu_ctx *ctx, struct request *req,
                          const struct vfio_user_device_feature *head, const uint8_t *data,
                          size_t len)
{
    struct vfio_user_device_feature *out = ctx->scratch;
    struct vfio_user_device_feature_dma_logging_report report;
    uint64_t bitmap, full;
    struct range range;
    int err;

    if (len < sizeof(report)) {
        return too_short(ctx, req, "the logging report");
    }
    memcpy(&report, data, sizeof(report));
    if (ctx->dma == NULL || report.page_size == 0 || report.length < report.page_size ||
        !range_make(report.iova, report.length, &range)) {
        log_err(&ctx->log, "dirty logging: no report of 0x%llx bytes at 0x%llx in pages of 0x%llx",
                (unsigned long long)report.length, (unsigned long long)report.iova,
                (unsigned long long)report.page_size);
        return -EINVAL;
    }
    bitmap = dma_dirty_bitmap_size(report.length, report.page_size);
    full = sizeof(*out) + sizeof(report) + bitmap;
    if (bitmap > WIRE_MAX_DATA_XFER - 64 || head->argsz < full) {
        return too_short(ctx, req, "the dirty bitmap");
    }
    memcpy(out->data, &report, sizeof(report));
    err = dma_dirty_report(logged_space(ctx), range, report.page_size,
                           out->data + sizeof(report), bitmap);
    if (err < 0) {
        return err;
    }
    out->argsz = (uint32_t)full;
    out->flags = head->flags;
    request_reply_with(req, out, full);
    return 0;
}

static const struct {
    uint32_t allowed;
    feature_fn *fn;
} features[] = {
    [VFIO_DEVICE_FEATURE_MIGRATION] = { GET | PROBE, get_migration },
    [VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE] = { GET | SET | PROBE, mig_state },
    [VFIO_DEVICE_FEATURE_DMA_LOGGING_START] = { SET | PROBE, logging_start },
    [VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP] = { SET | PROBE, logging_stop },
    [VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT] = { GET | PROBE, logging_report },
};

bool feature_needs_quiesce(const struct request *req)
{
    struct vfio_user_device_feature head;

    memcpy(&head, req->payload, sizeof(head));
    return !(head.flags & PROBE) &&
           (head.flags & (SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE)) != 0;
}

bool feature_stops_device(const struct vfu_ctx *ctx, const struct request *req)
{
    struct vfio_user_device_feature head;
    struct vfio_user_device_feature_mig_state state;

    memcpy(&head, req->payload, sizeof(head));
    if (head.flags != (SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE) ||
        req->len < sizeof(head) + sizeof(state) || head.argsz < req->len) {
        return false;
    }
    memcpy(&state, req->payload + sizeof(head), sizeof(state));
    return migration_would_stop(ctx, state.device_state);
}

int feature_command(struct vfu_ctx *ctx, struct request *req)
{
    struct vfio_user_device_feature head;
    uint32_t feature, ops, allowed = 0;
    int err;

    memcpy(&head, req->payload, sizeof(head));
    feature = head.flags & VFIO_DEVICE_FEATURE_MASK;
    ops = head.flags & ~(uint32_t)VFIO_DEVICE_FEATURE_MASK;
    if (ctx->migration != NULL && feature < sizeof(features) / sizeof(features[0])) {
        allowed = features[feature].allowed;
    }
    if ((ops & ~allowed) != 0 || (ops != GET && ops != SET && !(ops & PROBE))) {
        log_err(&ctx->log, "DEVICE_FEATURE id %u: feature %u does not do operations 0x%x%s",
                req->hdr.msg_id, feature, ops >> 16,
                ctx->migration == NULL ? " (the device has no migration)" : "");
        return -EINVAL;
    }
    if (ops != GET && head.argsz < req->len) {
        return too_short(ctx, req, "the request");
    }
    err = (ops & PROBE) ? echo(ctx, req)
                        : features[feature].fn(ctx, req, &head, req->payload + sizeof(head),
                                               req->len - sizeof(head));
    if (err == 0) {
        log_debug(&ctx->log, "device feature %u: %s%s%s", feature, ops & PROBE ? "probe " : "",
                  ops & GET ? "get" : "", ops & SET ? "set" : "");
    }
    return err;
}
