/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_DEVICE_LIBRARY_STATE_H
#define VFU_DEVICE_LIBRARY_STATE_H

#include <stddef.h>

struct vfu_ctx;

/*
 * What the library keeps for the device, as bytes: configuration space (unless the device serves all
 * of it), with the registers of ATS, PRI and PASID; the MSI-X table; masks and pending interrupts.
 * Memory, eventfds and the translation cache are the client's. For a realized device, on the control
 * thread.
 */
size_t library_state_size(const struct vfu_ctx *ctx);
/* Fills library_state_size() bytes. */
void library_state_save(struct vfu_ctx *ctx, void *buf);

/*
 * Takes over as many bytes from another process, of a stopped device: runs the callback for the
 * IOMMU's state, delivers no interrupt. Returns 0, or -EINVAL after a log line, with nothing changed,
 * if they are no state of this device.
 */
int library_state_restore(struct vfu_ctx *ctx, const void *buf);

#endif /* VFU_DEVICE_LIBRARY_STATE_H */
