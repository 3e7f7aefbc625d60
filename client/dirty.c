/* SPDX-License-Identifier: BSD-3-Clause */
/* Which pages the device has written to. */
#include "client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* As many ranges as fit into what a message may carry; the server logs all of memory anyway. */
#define MAX_RANGES 4096

static bool power_of_two(uint64_t n)
{
    return n != 0 && (n & (n - 1)) == 0;
}

uint64_t vfuc_dirty_bitmap_size(uint64_t size, uint64_t page_size)
{
    uint64_t pages;

    if (size == 0 || !power_of_two(page_size)) {
        return 0;
    }
    pages = (size - 1) / page_size + 1;
    return (pages / 64 + (pages % 64 != 0)) * sizeof(uint64_t);
}

int vfuc_dirty_start(vfuc_t *client, uint64_t page_size, const vfuc_range_t *ranges,
                     uint32_t nr_ranges)
{
    struct vfio_user_device_feature_dma_logging_control *control;
    size_t size = sizeof(*control) + nr_ranges * sizeof(control->ranges[0]);
    int err;

    if (!power_of_two(page_size) || nr_ranges > MAX_RANGES) {
        return (int)client_result(-EINVAL);
    }
    control = calloc(1, size);
    if (control == NULL) {
        return (int)client_result(-ENOMEM);
    }
    control->page_size = page_size;
    control->num_ranges = nr_ranges;
    for (uint32_t i = 0; i < nr_ranges; i++) {
        control->ranges[i].iova = ranges[i].iova;
        control->ranges[i].length = ranges[i].size;
    }
    err = client_feature_set(client, VFIO_DEVICE_FEATURE_DMA_LOGGING_START, control, size);
    free(control);
    return (int)client_result(err);
}

int vfuc_dirty_stop(vfuc_t *client)
{
    return (int)client_result(
        client_feature_set(client, VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, NULL, 0));
}

static int report(struct vfuc *client, uint64_t iova, uint64_t size, uint64_t page_size,
                  void *bitmap, uint64_t bitmap_size)
{
    const struct vfio_user_device_feature_dma_logging_report request = {
        .iova = iova,
        .length = size,
        .page_size = page_size,
    };
    struct vfio_user_device_feature_dma_logging_report *answer;
    size_t full = sizeof(*answer) + bitmap_size;
    ssize_t r;

    if (bitmap_size > CLIENT_MAX_DATA - sizeof(*answer)) {
        return -EMSGSIZE;
    }
    answer = malloc(full);
    if (answer == NULL) {
        return -ENOMEM;
    }
    r = client_feature_get(client, VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, &request,
                           sizeof(request), answer, full);
    if (r >= 0 && ((size_t)r != full || answer->iova != iova || answer->length != size)) {
        client_log(client, "dirty pages at 0x%llx: a report of %zd bytes, %zu were expected",
                   (unsigned long long)iova, r, full);
        r = -EPROTO;
    }
    if (r >= 0) {
        memcpy(bitmap, answer->bitmap, bitmap_size);
    }
    free(answer);
    return r < 0 ? (int)r : 0;
}

int vfuc_dirty_report(vfuc_t *client, uint64_t iova, uint64_t size, uint64_t page_size,
                      void *bitmap, uint64_t bitmap_size)
{
    uint64_t needed = vfuc_dirty_bitmap_size(size, page_size);

    if (needed == 0 || bitmap_size < needed) {
        return (int)client_result(-EINVAL);
    }
    return (int)client_result(report(client, iova, size, page_size, bitmap, needed));
}
