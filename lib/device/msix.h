/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_MSIX_H
#define VFU_DEVICE_MSIX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct vfu_ctx;

/*
 * The MSI-X table and pending bit array (PCI 6.8.2), for devices that leave the BAR they are in
 * without a callback.
 */
struct msix {
    uint8_t *table; /* NULL: the device has no MSI-X, or serves the table itself */
    uint32_t vectors;
    uint32_t table_bar, pba_bar;
    uint64_t table_offset, pba_offset;
};

/* Reads the MSI-X capability, once the device is set up. 0 or -ENOMEM. */
int msix_realize(struct vfu_ctx *ctx);
void msix_destroy(struct vfu_ctx *ctx);
/* After a reset, and for the next client: an unwritten table, and nothing pending for any type. */
void msix_reset(struct vfu_ctx *ctx);

/*
 * Migration of the table, and of the masks and pending bits of INTx, MSI and MSI-X. Function Mask is
 * in configuration space; eventfds are the client's. msix_save() fills msix_state_size() bytes.
 * msix_check_state() says whether a state from another process can be one of this device: 0, or
 * -EINVAL after a log line. msix_restore() takes such a state over and signals nothing:
 * irqs_deliver_pending() does, once the device runs. All need a realized device.
 */
size_t msix_state_size(const struct vfu_ctx *ctx);
void msix_save(struct vfu_ctx *ctx, void *buf);
int msix_check_state(const struct vfu_ctx *ctx, const void *buf, size_t len);
void msix_restore(struct vfu_ctx *ctx, const void *buf);

/* Access to a BAR without a callback: count, or -EINVAL where neither table nor array is. */
ssize_t msix_access(struct vfu_ctx *ctx, uint32_t bar, char *buf, size_t count, uint64_t offset,
                    bool is_write);

#endif /* VFU_DEVICE_MSIX_H */
