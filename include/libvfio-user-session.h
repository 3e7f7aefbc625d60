/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client's session: who may have one, and what ends with it.
 *
 * What ends with it are the files and eventfds that a device shares with its client. A client keeps every descriptor that it has got: the file of a region that it may map, the
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

#include <sys/types.h>

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

/*
 * The process that has connected to the socket, as the kernel knows it (unix(7), SO_PEERCRED): the
 * credentials of the moment of connect(2). The socket may have been passed on to another process
 * since, which these credentials do not show.
 */
typedef struct vfu_client {
    pid_t pid; /* 0: of another PID namespace */
    uid_t uid; /* effective */
    gid_t gid; /* effective; supplementary groups are not known */
} vfu_client_t;

/*
 * Decides about a client that has connected, before anything that it sent is read.
 *
 * @client: valid during the call.
 * @arg: of vfu_setup_client_cb().
 *
 * Returns 0 to accept the client; -1 with errno to refuse it: the connection is closed, a log line
 * gives the credentials and errno, and vfu_attach_ctx() fails with that errno (EACCES if it is 0 or
 * EAGAIN). Calls that block or serve the client fail with EDEADLK.
 */
typedef int(vfu_client_cb_t)(vfu_ctx_t *vfu_ctx, const vfu_client_t *client, void *arg);

/*
 * Sets the callback that decides who may attach. It runs in vfu_attach_ctx(), once for each client of
 * a VFU_TRANS_SOCK context. A client whose credentials the kernel does not tell is refused. Without a
 * callback, everybody who can connect to the socket may attach.
 *
 * @cb: the callback; NULL for none.
 * @arg: passed to it.
 *
 * Returns 0, or -1 with errno:
 * ENOTSUP: the clients of this context have no credentials (VFU_TRANS_PIPE).
 *
 * Control thread, at any time outside callbacks.
 */
int vfu_setup_client_cb(vfu_ctx_t *vfu_ctx, vfu_client_cb_t *cb, void *arg);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_SESSION_H */
