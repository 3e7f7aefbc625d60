/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What particular clients do that the protocol does not say. A test plays each of them:
 * test/py/test_*_habits.py.
 *
 * Habits that a general rule meets, so that no code knows of them:
 *  - SPDK's host side sends VERSION without capabilities: they have their defaults (negotiate.c).
 *  - SPDK's host side attaches the memory's descriptor to DMA_UNMAP too, and sends payloads longer
 *    than the structure: spare descriptors are closed, spare bytes ignored (commands.c).
 *  - QEMU (10.1 and later) takes one descriptor with DEVICE_GET_REGION_INFO, however many areas the
 *    region has, so one is sent (region.c); SPDK's host side wants one an area, and has one area.
 *  - QEMU needs a reply's header in one read: a message leaves in one send where the socket has
 *    room (channel.c).
 *  - QEMU sends commands without waiting, with and without NO_REPLY, and unmaps ranges that hold
 *    several regions or none: what is there is unmapped, and ENOENT says that nothing was.
 *  - cloud-hypervisor sets MSI-X eventfds sixteen at a time, any part of the vectors in any order,
 *    and has no answer to a command: its memory always comes with a descriptor (irq.c, region.c).
 */
#ifndef VFU_WIRE_QUIRKS_H
#define VFU_WIRE_QUIRKS_H

#include "vfio-user.h"

#include <stdbool.h>
#include <stddef.h>

/* QEMU (10.1 and later) answers DMA_WRITE with a bare header: success, and nothing to compare. */
static inline bool quirk_bare_reply(uint16_t cmd)
{
    return cmd == VFIO_USER_DMA_WRITE;
}

/*
 * QEMU (10.1 and later) reads the reply to VERSION into a buffer as long as its request, and gives
 * the connection up on a longer one. A client that sent no capabilities has said nothing of that.
 */
static inline bool quirk_version_reply_fits(size_t request_text, size_t reply_text)
{
    return request_text == 0 || reply_text <= request_text;
}

#endif /* VFU_WIRE_QUIRKS_H */
