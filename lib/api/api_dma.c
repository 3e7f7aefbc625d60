/* SPDX-License-Identifier: BSD-3-Clause */
#include "api/api.h"

#include "libvfio-user-iommu.h"

#include <sys/mman.h>

#define NO_DMA "vfu_setup_device_dma() was not called"

static int refuse(struct vfu_ctx *ctx, int err, const char *function, const char *why)
{
    log_refused(&ctx->log, err, "%s: %s", function, why);
    return err;
}

int(vfu_setup_device_dma)(vfu_ctx_t *vfu_ctx, size_t max_regions,
                          vfu_dma_register_cb_t *dma_register,
                          vfu_dma_unregister_cb_t *dma_unregister)
{
    const struct dma_config config = {
        .log = &vfu_ctx->log,
        .limits = &vfu_ctx->limits,
        .max_regions = max_regions,
    };
    int err;

    if (vfu_ctx->dma == NULL) {
        err = dma_create(&config, &vfu_ctx->dma);
        if (err < 0) {
            return api_result(err);
        }
    }
    vfu_ctx->dma_register = dma_register;
    vfu_ctx->dma_unregister = dma_unregister;
    return 0;
}

int vfu_setup_device_dma_v0(vfu_ctx_t *vfu_ctx, vfu_dma_register_cb_t *dma_register,
                            vfu_dma_unregister_cb_t *dma_unregister)
{
    return (vfu_setup_device_dma)(vfu_ctx, LIBVFIO_USER_MAX_DMA_REGIONS, dma_register,
                                  dma_unregister);
}

size_t dma_sg_size(void)
{
    return sizeof(dma_sg_t);
}

/* Above max_nr_sgs, the number that is needed comes back as -(n) - 1, and errno is 0. */
int vfu_addr_to_sgl(vfu_ctx_t *vfu_ctx, vfu_dma_addr_t dma_addr, size_t len, dma_sg_t *sgl,
                    size_t max_nr_sgs, int prot)
{
    int n;

    if (vfu_ctx->dma == NULL) {
        return api_result(refuse(vfu_ctx, -EINVAL, __func__, NO_DMA));
    }
    n = dma_addr_to_sgl(dma_requester_space(vfu_ctx->dma), (uintptr_t)dma_addr, len, sgl,
                        max_nr_sgs, prot);
    if (n > 0 && (size_t)n > max_nr_sgs) {
        errno = 0;
        return -n - 1;
    }
    return api_result(n);
}

int vfu_sgl_get(vfu_ctx_t *vfu_ctx, dma_sg_t *sgl, struct iovec *iov, size_t cnt, int flags)
{
    const char *why = vfu_ctx->dma == NULL ? NO_DMA : "unknown flags";
    int err = -EINVAL;

    if (vfu_ctx->dma != NULL && flags == 0) {
        err = dma_sgl_get(vfu_ctx->dma, sgl, iov, cnt);
        why = err == -EFAULT   ? "memory that cannot be mapped: use vfu_sgl_read() and _write()"
              : err == -ESTALE ? "the memory was unmapped meanwhile"
                               : "an entry that vfu_addr_to_sgl() did not make";
    }
    return api_result(err < 0 ? refuse(vfu_ctx, err, __func__, why) : err);
}

void vfu_sgl_put(vfu_ctx_t *vfu_ctx, dma_sg_t *sgl, struct iovec *iov, size_t cnt)
{
    (void)iov;
    if (vfu_ctx->dma != NULL) {
        dma_sgl_put(vfu_ctx->dma, sgl, cnt);
    }
}

void vfu_sgl_mark_dirty(vfu_ctx_t *vfu_ctx, dma_sg_t *sgl, size_t cnt)
{
    if (vfu_ctx->dma != NULL) {
        dma_sgl_mark_dirty(vfu_ctx->dma, sgl, cnt);
    }
}

bool vfu_sg_is_mappable(vfu_ctx_t *vfu_ctx, dma_sg_t *sg)
{
    return vfu_ctx->dma != NULL && dma_sg_is_mappable(vfu_ctx->dma, sg);
}

void api_transfer_held(struct dma_transfer *transfer, const dma_sg_t *sg, void *data, bool direct)
{
    struct dma *dma = transfer->ctx->dma;
    struct dma_target target;
    int err = direct ? dma_held_copy(dma, sg, data, transfer->to_guest) : -ENOTSUP;

    if (err == -ENOTSUP) {
        dma_held_target(dma, sg, &target);
        dma_transfer_add(transfer, &target, sg->length, data);
    } else {
        dma_transfer_fail(transfer, err, data);
    }
}

/* References are held meanwhile: an unmap or invalidation waits until this is done. */
static int copy(vfu_ctx_t *vfu_ctx, const dma_sg_t *sgl, size_t cnt, uint8_t *data, int flags,
                bool to_guest)
{
    const char *name = to_guest ? "vfu_sgl_write" : "vfu_sgl_read";
    struct dma_transfer transfer;
    int err;

    if (vfu_ctx->dma == NULL || (flags & ~VFU_SGL_DIRECT_ACCESS) != 0) {
        return refuse(vfu_ctx, -EINVAL, name, vfu_ctx->dma == NULL ? NO_DMA : "unknown flags");
    }
    for (size_t i = 0; i < cnt; i++) {
        if (to_guest && !sgl[i].writeable) {
            return refuse(vfu_ctx, -EPERM, name, "an entry that was not made for writing");
        }
    }
    err = dma_sgl_hold(vfu_ctx->dma, sgl, cnt);
    if (err < 0) {
        return refuse(vfu_ctx, err, name, "the memory was unmapped meanwhile, or never mapped");
    }
    dma_transfer_init(&transfer, vfu_ctx, sgl, cnt, VFU_NO_PASID, to_guest);
    for (size_t i = 0; i < cnt && transfer.error == 0; i++) {
        api_transfer_held(&transfer, &sgl[i], data, flags & VFU_SGL_DIRECT_ACCESS);
        data += sgl[i].length;
    }
    err = dma_transfer_end(&transfer);
    dma_sgl_release(vfu_ctx->dma, sgl, cnt);
    return err;
}

int(vfu_sgl_read)(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data, int flags)
{
    return api_result(copy(vfu_ctx, sg, sg_cnt, data, flags, false));
}

int(vfu_sgl_write)(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data, int flags)
{
    return api_result(copy(vfu_ctx, sg, sg_cnt, data, flags, true));
}

int vfu_sgl_read_v0(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data)
{
    return (vfu_sgl_read)(vfu_ctx, sg, sg_cnt, data, 0);
}

int vfu_sgl_write_v0(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data)
{
    return (vfu_sgl_write)(vfu_ctx, sg, sg_cnt, data, 0);
}
