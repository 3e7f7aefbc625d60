/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/irq_command.h"

#include "device/ctx.h"

#include <errno.h>
#include <string.h>

int irq_command_info(struct vfu_ctx *ctx, struct request *req)
{
    struct vfio_irq_info *info = ctx->scratch, in;

    memcpy(&in, req->payload, sizeof(in));
    if (in.index >= VFU_DEV_NUM_IRQS) {
        log_err(&ctx->log, "GET_IRQ_INFO id %u: no interrupt type %u", req->hdr.msg_id, in.index);
        return -EINVAL;
    }
    *info = (struct vfio_irq_info){
        .argsz = sizeof(*info),
        .flags = VFIO_IRQ_INFO_EVENTFD,
        .index = in.index,
        .count = ctx->irqs.counts[in.index],
    };
    log_debug(&ctx->log, "irq_info[%u] flags %#x count %u argsz %u", info->index, info->flags,
              info->count, info->argsz);
    request_reply_with(req, info, sizeof(*info));
    return 0;
}

static void tell_device(struct vfu_ctx *ctx, const struct vfio_irq_set *set)
{
    bool mask = (set->flags & VFIO_IRQ_SET_ACTION_MASK) != 0;

    if (ctx->irq_state[set->index] != NULL &&
        (set->flags & (VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_ACTION_UNMASK)) != 0) {
        ctx->irq_state[set->index](ctx, set->start, set->count, mask);
    }
}

static void log_set(struct vfu_ctx *ctx, const struct vfio_irq_set *set, size_t nr_fds)
{
    static const char *const types[VFU_DEV_NUM_IRQS] = {
        [VFU_DEV_INTX_IRQ] = "INTx", [VFU_DEV_MSI_IRQ] = "MSI", [VFU_DEV_MSIX_IRQ] = "MSI-X",
        [VFU_DEV_ERR_IRQ] = "ERR",   [VFU_DEV_REQ_IRQ] = "REQ",
    };
    bool all = set->count == 0;
    bool eventfds = (set->flags & VFIO_IRQ_SET_DATA_EVENTFD) != 0 &&
                    (set->flags & VFIO_IRQ_SET_ACTION_TRIGGER) != 0;
    const char *action = all || (eventfds && nr_fds == 0)             ? "disabled"
                         : eventfds                                   ? "set, an eventfd for each"
                         : set->flags & VFIO_IRQ_SET_ACTION_MASK      ? "masked"
                         : set->flags & VFIO_IRQ_SET_ACTION_UNMASK    ? "unmasked"
                                                                      : "triggered by the client";

    log_debug(&ctx->log, "IRQ type %s range [%u, %u) %s, flags %#x", types[set->index], set->start,
              all ? ctx->irqs.counts[set->index] : set->start + set->count, action, set->flags);
}

int irq_command_set(struct vfu_ctx *ctx, struct request *req)
{
    size_t nr_fds = req->nr_fds;
    struct vfio_irq_set set;
    int err;

    memcpy(&set, req->payload, sizeof(set));
    err = irqs_check(&ctx->irqs, &set, req->len, req->nr_fds);
    if (err < 0) {
        return err;
    }
    err = irqs_apply(&ctx->irqs, &set, req->payload + sizeof(set), req->fds, req->nr_fds);
    tell_device(ctx, &set);
    if (err == 0) {
        log_set(ctx, &set, nr_fds);
    }
    return err;
}
