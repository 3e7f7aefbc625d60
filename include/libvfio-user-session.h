/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What ends with a client's session: the files and eventfds that a device shares with its client.
 *
 * A client keeps every descriptor that it has got: the file of a region that it may map, the
 * eventfds of ioeventfds and their shadow file. When its session has ended, it can still write to
 * that memory and ring those doorbells. A device that gives the same descriptors to the next client
 * lets the old one read and disturb the new one.
 *
 * A device ends that by giving each client descriptors of its own. In the reset callback, when it is
 * called with VFU_RESET_LOST_CONN:
 *
 * 1. Stop the threads that use the old descriptors. Remove the old eventfds from epoll sets with
 *    EPOLL_CTL_DEL: while the client holds an eventfd, close(2) does not remove it.
 * 2. vfu_remove_ioeventfds(), and vfu_set_region_file() with -1. The old descriptors and mappings
 *    may now be closed.
 * 3. Make new ones: memory files by memfd_create(2), sealed against a change of their size. Hand
 *    them to vfu_set_region_file() and vfu_create_ioeventfd(). If that fails, the next client gets
 *    none and sends messages instead.
 *
 * samples/shadow-ioeventfd and samples/nvme do so.
 */
#ifndef LIB_VFIO_USER_SESSION_H
#define LIB_VFIO_USER_SESSION_H

#include "libvfio-user.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Replaces the file behind a region, for clients that attach from now on. Size, flags, callback and
 * mmap areas of the region stay as vfu_setup_region() got them.
 *
 * @region_idx: VFU_PCI_DEV_*_REGION_IDX.
 * @fd: the file; -1 for none: then a client cannot map the region. Neither duplicated nor closed.
 *   The previous descriptor may be closed as soon as the call has succeeded.
 * @offset: where in the file the region begins, bytes.
 *
 * Returns 0, or -1 with errno:
 * EINVAL: unknown region, or one that vfu_setup_region() has set up without a file.
 * EBUSY: a client is attached. The reset callback with VFU_RESET_LOST_CONN runs after its session.
 *
 * Control thread. vfio-user protocol, DEVICE_GET_REGION_INFO.
 */
int vfu_set_region_file(vfu_ctx_t *vfu_ctx, int region_idx, int fd, uint64_t offset);

/*
 * Removes all ioeventfds of a region, for clients that attach from now on.
 *
 * @region_idx: VFU_PCI_DEV_*_REGION_IDX.
 *
 * Their descriptors may be closed as soon as the call has succeeded. vfu_create_ioeventfd() adds
 * new ones.
 *
 * Returns 0, or -1 with errno:
 * EINVAL: unknown region.
 * EBUSY: a client is attached. The reset callback with VFU_RESET_LOST_CONN runs after its session.
 *
 * Control thread. vfio-user protocol, DEVICE_GET_REGION_IO_FDS.
 */
int vfu_remove_ioeventfds(vfu_ctx_t *vfu_ctx, uint32_t region_idx);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_SESSION_H */
