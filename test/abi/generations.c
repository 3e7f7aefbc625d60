/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sources of both generations of the interface compile against the one header, and each call reaches
 * the symbol of its own generation. The functions are stand-ins that record what they were called
 * with, so this program is not linked with the library.
 */

#include <stdio.h>
#include <string.h>

#include "libvfio-user.h"

static struct {
    const char *name;
    size_t number;
    int flags;
} last;

static int record(const char *name, size_t number, int flags)
{
    last.name = name;
    last.number = number;
    last.flags = flags;
    return 0;
}

/* The macros stand aside for a definition of either form, too. */
int vfu_setup_device_dma(vfu_ctx_t *vfu_ctx, size_t max_regions,
                         vfu_dma_register_cb_t *dma_register,
                         vfu_dma_unregister_cb_t *dma_unregister)
{
    (void)vfu_ctx;
    (void)dma_register;
    (void)dma_unregister;
    return record("setup", max_regions, 0);
}

int vfu_setup_device_dma_v0(vfu_ctx_t *vfu_ctx, vfu_dma_register_cb_t *dma_register,
                            vfu_dma_unregister_cb_t *dma_unregister)
{
    (void)vfu_ctx;
    (void)dma_register;
    (void)dma_unregister;
    return record("setup_v0", 0, 0);
}

int vfu_sgl_read(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data, int flags)
{
    (void)vfu_ctx;
    (void)sg;
    (void)data;
    return record("read", sg_cnt, flags);
}

int vfu_sgl_read_v0(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data)
{
    (void)vfu_ctx;
    (void)sg;
    (void)data;
    return record("read_v0", sg_cnt, 0);
}

int vfu_sgl_write(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data, int flags)
{
    (void)vfu_ctx;
    (void)sg;
    (void)data;
    return record("write", sg_cnt, flags);
}

int vfu_sgl_write_v0(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data)
{
    (void)vfu_ctx;
    (void)sg;
    (void)data;
    return record("write_v0", sg_cnt, 0);
}

static int failures;

static void expect(const char *name, size_t number, int flags)
{
    if (strcmp(last.name, name) != 0 || last.number != number || last.flags != flags) {
        fprintf(stderr, "called %s(%zu, %d), expected %s(%zu, %d)\n", last.name, last.number,
                last.flags, name, number, flags);
        failures++;
    }
}

static void on_dma(vfu_ctx_t *vfu_ctx, vfu_dma_info_t *info)
{
    (void)vfu_ctx;
    (void)info;
}

int main(void)
{
    int (*address)(vfu_ctx_t *, dma_sg_t *, size_t, void *, int) = vfu_sgl_read;
    char data[4];

    vfu_setup_device_dma(NULL, 16, on_dma, on_dma);
    expect("setup", 16, 0);
    vfu_setup_device_dma(NULL, on_dma, on_dma);
    expect("setup_v0", 0, 0);
    vfu_sgl_read(NULL, NULL, 1, data, VFU_SGL_DIRECT_ACCESS);
    expect("read", 1, VFU_SGL_DIRECT_ACCESS);
    vfu_sgl_read(NULL, NULL, 2, data);
    expect("read_v0", 2, 0);
    vfu_sgl_write(NULL, NULL, 3, data, VFU_SGL_DIRECT_ACCESS);
    expect("write", 3, VFU_SGL_DIRECT_ACCESS);
    vfu_sgl_write(NULL, NULL, 4, data);
    expect("write_v0", 4, 0);
    address(NULL, NULL, 5, data, 0);
    expect("read", 5, 0);
    return failures == 0 ? 0 : 1;
}
