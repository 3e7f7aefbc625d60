/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The interface for authors of devices: emulate a PCI device in a process of its own and serve it
 * over a UNIX socket to a virtual machine monitor, by the vfio-user protocol.
 *
 * Conventions
 * - A function that returns int or ssize_t gives -1 and sets errno when it fails; one that
 *   returns a pointer gives NULL and sets errno.
 * - The *control thread* of a context is the one thread that calls vfu_attach_ctx(), vfu_run_ctx()
 *   and vfu_device_quiesced(); every callback of the device runs on it. Set-up functions belong to
 *   it as well. Several contexts may be served by several threads. What other threads may call too
 *   says so.
 * - A call at the wrong moment fails and changes nothing. vfu_attach_ctx(), vfu_run_ctx() and,
 *   when something waits for it, vfu_device_quiesced() give EDEADLK inside a callback, where
 *   vfu_destroy_ctx() is logged and ignored; vfu_run_ctx() gives EINVAL before vfu_realize_ctx(),
 *   ENOTCONN without a client and EBUSY while the device quiesces; DMA functions give EINVAL before
 *   vfu_setup_device_dma(), and ENOENT or ESTALE for memory that was unmapped meanwhile;
 *   vfu_irq_trigger() gives EINVAL before vfu_realize_ctx() and ENOENT without a client.
 * - The context must not be NULL, except for vfu_destroy_ctx().
 * - loff_t needs GNU mode: -std=gnu11, -std=gnu99 or _GNU_SOURCE.
 */

#ifndef LIB_VFIO_USER_H
#define LIB_VFIO_USER_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <syslog.h>
#include <unistd.h>

/* libvfio-user 0.x includes it for its devices; C libraries other than glibc may not have it. */
#if defined(__has_include)
#if __has_include(<sys/queue.h>)
#include <sys/queue.h>
#endif
#endif

#include "pci_caps/ats.h"
#include "pci_caps/dsn.h"
#include "pci_caps/msi.h"
#include "pci_caps/msix.h"
#include "pci_caps/pasid.h"
#include "pci_caps/pm.h"
#include "pci_caps/pri.h"
#include "pci_caps/px.h"
#include "pci_defs.h"
#include "vfio-user.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LIB_VFIO_USER_MAJOR 0
#define LIB_VFIO_USER_MINOR 2

/* An address in the client's DMA address space. A number in the guise of a pointer. */
typedef void *vfu_dma_addr_t;

struct vfu_ctx;
typedef struct vfu_ctx vfu_ctx_t;

struct dma_sg;
typedef struct dma_sg dma_sg_t;

/*
 * Life cycle
 */

typedef enum {
    VFU_TRANS_SOCK,
    VFU_TRANS_PIPE, /* standard input and output; for tests */
    VFU_TRANS_MAX,
} vfu_trans_t;

typedef enum {
    VFU_DEV_TYPE_PCI,
} vfu_dev_type_t;

/* vfu_attach_ctx() and vfu_run_ctx() do not block. */
#define LIBVFIO_USER_FLAG_ATTACH_NB (1 << 0)

/*
 * Creates a context and starts to listen on its socket.
 *
 * @trans: how clients connect.
 * @path: file system path of the socket, below 108 bytes; copied. An existing file is not removed.
 *   Empty: the device is only realized, no client can come.
 * @flags: 0 or LIBVFIO_USER_FLAG_ATTACH_NB.
 * @pvt: given back by vfu_get_private().
 * @dev_type: VFU_DEV_TYPE_PCI.
 *
 * Returns the context, to be freed with vfu_destroy_ctx(), or NULL with errno:
 * EINVAL: unknown flag. ENOTSUP: unknown transport or device type. ENAMETOOLONG: path too long.
 * EADDRINUSE, EACCES, and others of socket(2), bind(2), listen(2). ENOMEM.
 *
 * Any thread. vfio-user protocol, "UNIX domain sockets".
 */
vfu_ctx_t *vfu_create_ctx(vfu_trans_t trans, const char *path, int flags, void *pvt,
                          vfu_dev_type_t dev_type);

/*
 * Ends the context: removes every DMA region (unregister callback), calls the reset callback with
 * VFU_RESET_LOST_CONN, closes what the library opened, removes the socket and frees the context.
 * The quiesce callback is not called: the device must be quiet. Descriptors that the device gave
 * (regions, ioeventfds) stay open.
 *
 * @vfu_ctx: the context; NULL is ignored.
 *
 * The control thread, outside callbacks, when no other thread uses the context any more.
 */
void vfu_destroy_ctx(vfu_ctx_t *vfu_ctx);

/*
 * Ends the set-up: a missing configuration space is made (256 bytes), BAR type bits, the interrupt
 * pin and the capability bit are filled in, the interrupt tables are allocated. A device with PASID,
 * ATS or PRI (vfu_setup_device_iommu()) and without an Express capability is given one. What does not
 * fit together in the device leaves a line each in its log. Does nothing on a context that is
 * realized already.
 *
 * Returns 0, or -1 with errno:
 * EINVAL: a 64-bit BAR overlaps the next one. ENOSPC: no room for the Express capability. ENOMEM.
 *
 * Control thread.
 */
int vfu_realize_ctx(vfu_ctx_t *vfu_ctx);

/*
 * Accepts a client and negotiates the version with it. After a failure the next client can be
 * accepted by another call. With LIBVFIO_USER_FLAG_ATTACH_NB the call does not wait, except for a
 * millisecond when it accepts a client whose version message is on its way; when that does not come,
 * vfu_get_poll_fd() is that client's socket until it does, or until the client is turned away.
 *
 * Returns 0, or -1 with errno:
 * EAGAIN or EWOULDBLOCK: with LIBVFIO_USER_FLAG_ATTACH_NB, nobody is connecting, or has not spoken.
 *   A client that has not within ten seconds (the limit version-time, libvfio-user-limits.h) is
 *   turned away for the next one; vfu_next_timeout() and vfu_get_event_fd() know of that deadline.
 * EINTR: a signal.
 * EINVAL: a client is attached already, or this one's version message was refused, or the context
 *   has no path.
 * EACCES, and others: the callback of vfu_setup_client_cb() refused the client.
 * ECONNRESET, ENOMSG: the client went away. EFAULT: it sent descriptors with the version message.
 * EMFILE, ENOMEM, and others of accept(2). A call that follows such a failure within 0.1 s and fails
 *   again turns the client away, unless vfu_get_event_fd() is in use, which waits as long.
 * EDEADLK: inside a callback.
 *
 * Control thread. vfio-user protocol, VERSION.
 */
int vfu_attach_ctx(vfu_ctx_t *vfu_ctx);

/*
 * Handles requests of the client: with LIBVFIO_USER_FLAG_ATTACH_NB the next one, and those that
 * waited for it; without that flag, until an error. A request that
 * fails is answered with an error and is no failure of this call.
 *
 * Returns the number of requests handled, 0 if none has come, or -1 with errno:
 * EINVAL: not realized.
 * EBUSY: the device was asked to quiesce and has not finished; call again after
 *   vfu_device_quiesced().
 * ENOTCONN: no client, or it went away: the context has been reset, vfu_attach_ctx() may follow.
 * EINTR: a signal came while waiting. EDEADLK: inside a callback.
 * Others: what the quiesce callback failed with when the connection was lost.
 *
 * Control thread, outside callbacks.
 */
int vfu_run_ctx(vfu_ctx_t *vfu_ctx);

/*
 * Returns the descriptor to poll for input: the connection's when a client is attached, else the
 * listening one. It changes when a client attaches or goes away. -1 with errno EINVAL: the context
 * has no path.
 *
 * Control thread.
 */
int vfu_get_poll_fd(vfu_ctx_t *vfu_ctx);

/*
 * Returns the pointer that vfu_create_ctx() was given. Any thread.
 */
void *vfu_get_private(vfu_ctx_t *vfu_ctx);

/*
 * Logging
 *
 * Without a vfu_setup_log() a context is silent, unless the environment has VFU_LOG=debug, info,
 * notice, warn or err: then lines of that level and above go to standard error, each behind the
 * program and the socket that it serves.
 *
 * Of lines of one kind, from one place in the library or one call of vfu_log(), a context prints
 * ten in five seconds; a line says how many more there were. LOG_DEBUG is not limited.
 */

/*
 * @level: syslog(3) level, LOG_EMERG..LOG_DEBUG.
 * @msg: one line without the newline; valid during the call.
 *
 * Runs on whatever thread logs.
 */
typedef void(vfu_log_fn_t)(vfu_ctx_t *vfu_ctx, int level, const char *msg);

/*
 * Logs a line through the log function, unless there is none or @level is above the configured one
 * or the rate limit for this call is reached. Keeps errno.
 *
 * @level: syslog(3) level.
 * @fmt: as printf(3), without newline. NULL logs nothing. Text beyond 8191 bytes is cut off.
 *
 * Any thread.
 */
void vfu_log(vfu_ctx_t *vfu_ctx, int level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * Sets the log function and the level, whatever VFU_LOG says.
 *
 * @log: called for each line; NULL silences.
 * @level: syslog(3) level; lines above it are dropped.
 *
 * Returns 0, or -1 with errno EINVAL: level outside LOG_EMERG..LOG_DEBUG.
 *
 * Control thread.
 */
int vfu_setup_log(vfu_ctx_t *vfu_ctx, vfu_log_fn_t *log, int level);

/*
 * Regions
 */

#define VFU_REGION_FLAG_READ (1 << 0)
#define VFU_REGION_FLAG_WRITE (1 << 1)
#define VFU_REGION_FLAG_RW (VFU_REGION_FLAG_READ | VFU_REGION_FLAG_WRITE)
#define VFU_REGION_FLAG_MEM (1 << 2)       /* memory space; I/O space without it */
#define VFU_REGION_FLAG_ALWAYS_CB (1 << 3) /* configuration space: no emulation */
#define VFU_REGION_FLAG_64_BITS (1 << 4)   /* 64-bit BAR, uses the next BAR too */
#define VFU_REGION_FLAG_PREFETCH (1 << 5)
#define VFU_REGION_FLAG_MASK                                                                       \
    (VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM | VFU_REGION_FLAG_ALWAYS_CB |                        \
     VFU_REGION_FLAG_64_BITS | VFU_REGION_FLAG_PREFETCH)

enum {
    VFU_PCI_DEV_BAR0_REGION_IDX = 0,
    VFU_PCI_DEV_BAR1_REGION_IDX,
    VFU_PCI_DEV_BAR2_REGION_IDX,
    VFU_PCI_DEV_BAR3_REGION_IDX,
    VFU_PCI_DEV_BAR4_REGION_IDX,
    VFU_PCI_DEV_BAR5_REGION_IDX,
    VFU_PCI_DEV_ROM_REGION_IDX,
    VFU_PCI_DEV_CFG_REGION_IDX,
    VFU_PCI_DEV_VGA_REGION_IDX,
    VFU_PCI_DEV_NUM_REGIONS,
};

enum {
    VFU_GENERIC_DEV_MIGR_REGION_IDX = 0,
    VFU_GENERIC_DEV_NUM_REGIONS,
};

/*
 * The client reads or writes a region. The library has checked that the access lies within the
 * region and fits its READ and WRITE flags; the callback checks the rest.
 *
 * @buf: data written, or room for the data read.
 * @count: bytes; the access arrives whole, of any size that fits the region.
 * @offset: bytes from the start of the region.
 * @is_write: direction.
 *
 * Returns @count, or -1 with the errno for the client. Anything else tells the client EINVAL.
 */
typedef ssize_t(vfu_region_access_cb_t)(vfu_ctx_t *vfu_ctx, char *buf, size_t count, loff_t offset,
                                        bool is_write);

/*
 * Defines or redefines a region.
 *
 * @region_idx: VFU_PCI_DEV_*_REGION_IDX.
 * @size: bytes; a BAR's is 0 or a power of two, at least 16 (memory) or 4 (I/O). For configuration
 *   space, the size that vfu_pci_init() chose.
 * @region_access: access callback; NULL if all is mapped, or holds only the MSI-X table and PBA.
 * @flags: VFU_REGION_FLAG_*, with READ or WRITE at least.
 * @mmap_areas: parts that the client may map: iov_base is the offset, iov_len the length, bytes;
 *   copied. NULL with a descriptor means the whole region.
 * @nr_mmap_areas: entries of @mmap_areas, at most 4096.
 * @fd: file that backs the region, or -1. Neither duplicated nor closed. The client gets it, and
 *   still holds it when it has gone: vfu_set_region_file() gives the next client another. If a client
 *   truncates the file, the device's own accesses beyond the end are SIGBUS: make the file by
 *   memfd_create(2) with MFD_ALLOW_SEALING, set its size and add F_SEAL_SHRINK, F_SEAL_GROW and
 *   F_SEAL_SEAL. vfu_realize_ctx() warns about memory files that can shrink.
 * @offset: where in the file the region begins, bytes.
 *
 * Returns 0, or -1 with errno:
 * EINVAL: unknown flag or neither READ nor WRITE; ALWAYS_CB without callback; areas without a
 *   count, without a descriptor or beyond the region; unknown region; a BAR whose size, or 64-bit
 *   pairing, does not fit; configuration space not RW or with MEM.
 * ENOMEM.
 *
 * Control thread. vfio-user protocol, DEVICE_GET_REGION_INFO; PCIe 7.5.1.2.1.
 */
int vfu_setup_region(vfu_ctx_t *vfu_ctx, int region_idx, size_t size,
                     vfu_region_access_cb_t *region_access, int flags, struct iovec *mmap_areas,
                     uint32_t nr_mmap_areas, int fd, uint64_t offset);

/*
 * Adds an ioeventfd to a region: the client's hypervisor signals it instead of sending a write.
 *
 * @region_idx: VFU_PCI_DEV_*_REGION_IDX.
 * @fd: the eventfd, or -1. Neither duplicated nor closed. The client gets the same file description
 *      and may clear O_NONBLOCK, or read the counter after a poll(2) of the device: read with
 *      preadv2(2) and RWF_NOWAIT, or not at all (EPOLLET), where a wait would hold the device. A
 *      client that has gone still holds it: see libvfio-user-session.h.
 * @gpa_offset: bytes from the start of the region.
 * @size: bytes of the write that matches.
 * @flags: as of KVM_IOEVENTFD, passed on.
 * @datamatch: value that matches, when @flags say so.
 * @shadow_fd: memory file that receives the value written, or -1. Seal it as a region's file.
 * @shadow_offset: where in @shadow_fd, bytes.
 *
 * Returns 0, or -1 with errno:
 * EINVAL: unknown region; range beyond it; a shadow file when the library has no support for it.
 * ENOMEM.
 *
 * Control thread. vfio-user protocol, DEVICE_GET_REGION_IO_FDS.
 */
int vfu_create_ioeventfd(vfu_ctx_t *vfu_ctx, uint32_t region_idx, int fd, size_t gpa_offset,
                         uint32_t size, uint32_t flags, uint64_t datamatch, int shadow_fd,
                         size_t shadow_offset);

/*
 * Reset and quiescing
 */

typedef enum vfu_reset_type {
    VFU_RESET_DEVICE,    /* the client asked for it */
    VFU_RESET_LOST_CONN, /* the client is gone; the result is ignored */
    VFU_RESET_PCI_FLR,   /* function level reset by the Device Control register */
} vfu_reset_type_t;

/*
 * Resets the device. Returns 0, or -1 with the errno for the client. A positive value counts as 0.
 *
 * Before it runs, the library has reset what it keeps itself: the MSI-X table, and in configuration
 * space every bit that a guest can change, which is again as it was at vfu_realize_ctx() or when the
 * capability was added. Function level reset leaves the bits that PCIe 6.6.2 names (sticky ones,
 * Max_Payload_Size). Bits that only the device changes stay as they are, and so does what the
 * callback writes into configuration space. Capabilities with VFU_CAP_FLAG_CALLBACK, and the whole
 * space of a configuration region with VFU_REGION_FLAG_ALWAYS_CB, are reset by the device.
 */
typedef int(vfu_reset_cb_t)(vfu_ctx_t *vfu_ctx, vfu_reset_type_t type);

/*
 * Sets the reset callback.
 *
 * @reset: the callback; NULL for none.
 *
 * Returns 0.
 *
 * Control thread. vfio-user protocol, DEVICE_RESET; PCIe 6.6.2.
 */
int vfu_setup_device_reset_cb(vfu_ctx_t *vfu_ctx, vfu_reset_cb_t *reset);

/*
 * Says what the next client meets when a client has gone. By default it meets a device after a
 * reset. A device for clients that reconnect and go on where they were keeps its state instead: the
 * library leaves configuration space alone when a connection ends. Guest memory, eventfds and the
 * MSI-X table go with the client in any case, and the reset callback runs with VFU_RESET_LOST_CONN.
 *
 * @keep: true to keep the state. A new context does not.
 *
 * Control thread, at any time outside callbacks.
 */
void vfu_setup_device_keep_state(vfu_ctx_t *vfu_ctx, bool keep);

/*
 * Asks the device to stop using guest memory, before the library changes what the device relies on:
 * DMA regions, reset, migration state, loss of the client. The device may go on when the request is
 * done, which is when vfu_run_ctx() or vfu_device_quiesced() returns.
 *
 * Returns 0 when the device is quiet; -1 with errno EBUSY when it will be later and then calls
 * vfu_device_quiesced(); -1 with another errno to refuse the request. A positive value counts as 0.
 */
typedef int(vfu_device_quiesce_cb_t)(vfu_ctx_t *vfu_ctx);

/*
 * Sets the quiesce callback.
 *
 * @quiesce_cb: the callback; NULL: the device never needs to be asked.
 *
 * Control thread.
 */
void vfu_setup_device_quiesce_cb(vfu_ctx_t *vfu_ctx, vfu_device_quiesce_cb_t *quiesce_cb);

/*
 * Tells that the device, asked to quiesce, has done so. The request that waited is carried out and
 * answered within this call, callbacks included.
 *
 * @quiesce_errno: 0, or the errno that the request fails with.
 *
 * Returns 0, or -1 with errno:
 * EINVAL: no quiesce callback, or nothing waits for it. EDEADLK: inside a callback.
 * Others of sending the reply.
 *
 * Control thread, outside callbacks.
 */
int vfu_device_quiesced(vfu_ctx_t *vfu_ctx, int quiesce_errno);

/*
 * DMA. The library does not look at Bus Master Enable: the device checks it (PCIe 7.5.1.1.3).
 */

/* Upper bound for the regions of a context. */
#define LIBVFIO_USER_MAX_DMA_REGIONS (1000 * 1000)

/* A DMA region that the client mapped. */
typedef struct vfu_dma_info {
    struct iovec iova;    /* address in the client's DMA space, and length in bytes */
    void *vaddr;          /* the first byte in this process; NULL when not mapped */
    struct iovec mapping; /* the whole mapping that mmap(2) made; {NULL, 0} when not mapped */
    size_t page_size;     /* bytes */
    uint32_t prot;        /* PROT_READ, PROT_WRITE */
} vfu_dma_info_t;
VFU_STATIC_ASSERT(sizeof(void *) != 8 || sizeof(struct vfu_dma_info) == 56,
                  "size of struct vfu_dma_info is part of the ABI");

/*
 * A region became usable. @info stays valid until the region is unregistered.
 */
typedef void(vfu_dma_register_cb_t)(vfu_ctx_t *vfu_ctx, vfu_dma_info_t *info);

/*
 * A region goes away. The device must have let go of it when the callback returns. @info is valid
 * during the callback.
 */
typedef void(vfu_dma_unregister_cb_t)(vfu_ctx_t *vfu_ctx, vfu_dma_info_t *info);

/*
 * Lets the device use DMA. Without it the client's maps succeed without effect.
 *
 * The name is also a macro that counts arguments: with three, (ctx, dma_register, dma_unregister),
 * the form of older releases, vfu_setup_device_dma_v0() is called. Define
 * LIBVFIO_USER_NO_COMPAT_MACROS before including this header to have the functions alone.
 *
 * @max_regions: most regions at a time.
 * @dma_register, @dma_unregister: callbacks, each may be NULL.
 *
 * Returns 0, or -1 with errno ENOMEM.
 *
 * Control thread. vfio-user protocol, DMA_MAP, DMA_UNMAP.
 */
int(vfu_setup_device_dma)(vfu_ctx_t *vfu_ctx, size_t max_regions,
                          vfu_dma_register_cb_t *dma_register,
                          vfu_dma_unregister_cb_t *dma_unregister);

/*
 * vfu_setup_device_dma() with LIBVFIO_USER_MAX_DMA_REGIONS as the limit: the form of older
 * releases. Parameters, result, errno and thread are the same.
 */
int vfu_setup_device_dma_v0(vfu_ctx_t *vfu_ctx, vfu_dma_register_cb_t *dma_register,
                            vfu_dma_unregister_cb_t *dma_unregister);

/*
 * Returns the size of a dma_sg_t in bytes: the stride of the arrays that the functions below take.
 * Any thread.
 */
size_t dma_sg_size(void);

/*
 * Finds what lies at an address range of the client: one entry for each region that it touches.
 *
 * @dma_addr: start, in the client's DMA space.
 * @len: bytes.
 * @sgl: array of entries, dma_sg_size() bytes each.
 * @max_nr_sgs: entries that fit.
 * @prot: PROT_READ, PROT_WRITE: what the access will be.
 *
 * Returns the number of entries, 0 for no bytes; -1 with errno, or when n entries are needed and
 * @max_nr_sgs is less, -n - 1 with errno 0 and the entries that fit filled in.
 * ENOENT: a part of the range is not mapped. EACCES: PROT_WRITE and a region is read-only.
 * EINVAL: the device has no DMA.
 *
 * Any thread, while the device is not quiesced; a callback of the device at any time.
 */
int vfu_addr_to_sgl(vfu_ctx_t *vfu_ctx, vfu_dma_addr_t dma_addr, size_t len, dma_sg_t *sgl,
                    size_t max_nr_sgs, int prot);

/*
 * Gives addresses in this process for entries of vfu_addr_to_sgl(). They may be used until
 * vfu_sgl_put(), at most until the unregister callback of their region has returned.
 *
 * @sgl: entries.
 * @iov: receives an address and a length in bytes for each entry.
 * @cnt: number of entries, above 0.
 * @flags: 0.
 *
 * Returns 0, or -1 with errno:
 * EINVAL: an entry that is not valid, or flags. ESTALE: what an entry names was unmapped since.
 * EFAULT: a region that is not mapped into this process (use vfu_sgl_read() and vfu_sgl_write()
 * there), or whose file the client truncated.
 *
 * Any thread, as vfu_addr_to_sgl().
 */
int vfu_sgl_get(vfu_ctx_t *vfu_ctx, dma_sg_t *sgl, struct iovec *iov, size_t cnt, int flags);

/*
 * Marks the pages of writable entries dirty, if the client logs them; for entries held longer than
 * one access.
 *
 * @sgl: entries that vfu_sgl_get() resolved.
 * @cnt: number of entries.
 *
 * Any thread, as vfu_addr_to_sgl().
 */
void vfu_sgl_mark_dirty(vfu_ctx_t *vfu_ctx, dma_sg_t *sgl, size_t cnt);

/*
 * Ends the use of what vfu_sgl_get() gave, and marks the pages of writable entries dirty.
 *
 * @sgl, @iov, @cnt: as for vfu_sgl_get().
 *
 * Any thread, as vfu_addr_to_sgl().
 */
void vfu_sgl_put(vfu_ctx_t *vfu_ctx, dma_sg_t *sgl, struct iovec *iov, size_t cnt);

/* Use the mapping or the file of the region where there is one, rather than a message. */
#define VFU_SGL_DIRECT_ACCESS (1 << 0)

/*
 * Reads client memory. Without VFU_SGL_DIRECT_ACCESS, or where the client gave no file, this is a
 * DMA_READ message to the client, and the call waits for its reply.
 *
 * The name is also a macro that counts arguments: with four, the form of older releases,
 * vfu_sgl_read_v0() is called. See vfu_setup_device_dma().
 *
 * @sg: entries; messages for all of them are under way together.
 * @sg_cnt: number of entries.
 * @data: receives the bytes; as many as the entries have.
 * @flags: 0 or VFU_SGL_DIRECT_ACCESS.
 *
 * Returns 0, or -1 with errno; what a failed call transferred is undefined:
 * EINVAL: unknown flag; entry not valid; a reply that does not fit the request; no DMA.
 * ESTALE: what an entry names was unmapped since. EFAULT: the client truncated the file.
 * EIO: the file could not be read. ENOTCONN: the client is gone. ETIMEDOUT: no reply within 30
 * seconds. ECANCELED: no reply yet, and the client waits for what would wait for it: a reset, a stop
 * for migration, bus mastering off, DMA_UNMAP of this memory, ATS_INVALIDATE. The access may be
 * repeated once the request is done. Any other: the client's own error.
 *
 * Any thread, as vfu_addr_to_sgl(). vfio-user protocol, DMA_READ.
 */
int(vfu_sgl_read)(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data, int flags);

/*
 * vfu_sgl_read() without flags: the form of older releases. Parameters, result, errno and thread
 * are the same.
 */
int vfu_sgl_read_v0(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data);

/*
 * Writes client memory, as vfu_sgl_read() reads it, by DMA_WRITE messages. A direct write marks the
 * pages dirty.
 *
 * @sg, @sg_cnt, @flags: as for vfu_sgl_read().
 * @data: the bytes to write; as many as the entry has.
 *
 * Returns 0, or -1 with errno: those of vfu_sgl_read(), and EPERM: the entry was made without
 * PROT_WRITE.
 *
 * Any thread, as vfu_addr_to_sgl(). vfio-user protocol, DMA_WRITE.
 */
int(vfu_sgl_write)(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data, int flags);

/*
 * vfu_sgl_write() without flags: the form of older releases. Parameters, result, errno and thread
 * are the same.
 */
int vfu_sgl_write_v0(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data);

/*
 * Returns whether the entry's region is mapped into this process, so that vfu_sgl_get() works on
 * it.
 *
 * Any thread, as vfu_addr_to_sgl().
 */
bool vfu_sg_is_mappable(vfu_ctx_t *vfu_ctx, dma_sg_t *sg);

#ifndef LIBVFIO_USER_NO_COMPAT_MACROS
#define VFU_PICK_5TH(_1, _2, _3, _4, picked, ...) picked
#define VFU_PICK_6TH(_1, _2, _3, _4, _5, picked, ...) picked

#define vfu_setup_device_dma(...)                                                                  \
    VFU_PICK_5TH(__VA_ARGS__, vfu_setup_device_dma, vfu_setup_device_dma_v0,                       \
                 vfu_wrong_number_of_arguments, vfu_wrong_number_of_arguments, 0)                  \
    (__VA_ARGS__)

#define vfu_sgl_read(...)                                                                          \
    VFU_PICK_6TH(__VA_ARGS__, vfu_sgl_read, vfu_sgl_read_v0, vfu_wrong_number_of_arguments,        \
                 vfu_wrong_number_of_arguments, vfu_wrong_number_of_arguments, 0)                  \
    (__VA_ARGS__)

#define vfu_sgl_write(...)                                                                         \
    VFU_PICK_6TH(__VA_ARGS__, vfu_sgl_write, vfu_sgl_write_v0, vfu_wrong_number_of_arguments,      \
                 vfu_wrong_number_of_arguments, vfu_wrong_number_of_arguments, 0)                  \
    (__VA_ARGS__)
#endif

/*
 * Interrupts
 */

enum vfu_dev_irq_type {
    VFU_DEV_INTX_IRQ,
    VFU_DEV_MSI_IRQ,
    VFU_DEV_MSIX_IRQ,
    VFU_DEV_ERR_IRQ,
    VFU_DEV_REQ_IRQ,
    VFU_DEV_NUM_IRQS,
};

/*
 * The client masked or unmasked interrupts.
 *
 * @start: first interrupt of the type.
 * @count: number of interrupts.
 * @mask: masked or unmasked.
 */
typedef void(vfu_dev_irq_state_cb_t)(vfu_ctx_t *vfu_ctx, uint32_t start, uint32_t count, bool mask);

/*
 * Sets how many interrupts of a type the device has. Before vfu_realize_ctx().
 *
 * @type: interrupt type. ERR and REQ have one from the start.
 * @count: number of interrupts.
 *
 * Returns 0, or -1 with errno. EINVAL: unknown type. EBUSY: the device is realized already.
 *
 * Control thread. vfio-user protocol, DEVICE_GET_IRQ_INFO.
 */
int vfu_setup_device_nr_irqs(vfu_ctx_t *vfu_ctx, enum vfu_dev_irq_type type, uint32_t count);

/*
 * Sets the callback for masking of one interrupt type.
 *
 * @type: interrupt type.
 * @cb: the callback; NULL for none.
 *
 * Returns 0, or -1 with errno EINVAL: unknown type.
 *
 * Control thread. vfio-user protocol, DEVICE_SET_IRQS.
 */
int vfu_setup_irq_state_callback(vfu_ctx_t *vfu_ctx, enum vfu_dev_irq_type type,
                                 vfu_dev_irq_state_cb_t *cb);

/*
 * Raises an interrupt.
 *
 * @subindex: number of the interrupt in the table that INTx, MSI and MSI-X share.
 *
 * Returns 0 if the interrupt was signalled, or is pending because the client has masked it; or -1
 * with errno:
 * EINVAL: no such interrupt. ENOENT: the client has not set an eventfd for it and has not masked it.
 * EAGAIN: the client has filled its counter. Others of io_submit(2) and write(2) on the eventfd.
 *
 * Never waits for the client, whatever it does to its eventfd. Any thread.
 */
int vfu_irq_trigger(vfu_ctx_t *vfu_ctx, uint32_t subindex);

/*
 * Raises an interrupt of any type: the only way to those of ERR (an unrecoverable error of the
 * device) and REQ (the device wants the client to let go of it).
 *
 * @type: interrupt type; INTx, MSI and MSI-X share their table, as for vfu_irq_trigger().
 * @subindex: number of the interrupt, below the count of its type.
 *
 * Returns as vfu_irq_trigger() does; EINVAL also: unknown type. Any thread.
 */
int vfu_irq_trigger_type(vfu_ctx_t *vfu_ctx, enum vfu_dev_irq_type type, uint32_t subindex);

/*
 * Migration
 */

typedef enum {
    VFU_MIGR_STATE_STOP,
    VFU_MIGR_STATE_RUNNING,
    VFU_MIGR_STATE_STOP_AND_COPY,
    VFU_MIGR_STATE_PRE_COPY,
    VFU_MIGR_STATE_RESUME,
} vfu_migr_state_t;

#define VFU_MIGR_CALLBACKS_VERS 2

typedef struct {
    /* VFU_MIGR_CALLBACKS_VERS */
    int version;

    /*
     * Takes one step to @state; the library walks the steps of a longer way. A stopped device that
     * is reset, and one whose client has gone, goes to VFU_MIGR_STATE_RUNNING at once: the call
     * follows that of the reset callback.
     * Returns 0, or -1 with the errno for the client: the device stays in the last state reached.
     */
    int (*transition)(vfu_ctx_t *vfu_ctx, vfu_migr_state_t state);

    /*
     * Produces migration data into @buf, @count bytes at most.
     * Returns the bytes produced, 0 at the end of the data, or -1 with the errno for the client.
     */
    ssize_t (*read_data)(vfu_ctx_t *vfu_ctx, void *buf, uint64_t count);

    /*
     * Takes @count bytes of migration data from @buf.
     * Returns @count, or -1 with the errno for the client.
     */
    ssize_t (*write_data)(vfu_ctx_t *vfu_ctx, void *buf, uint64_t count);
} vfu_migration_callbacks_t;

/*
 * Lets the device be migrated. The migration state begins as running.
 *
 * The stream is the device's own data, as the callbacks produce and take it. What the library keeps
 * for the device is not in it, unless vfu_setup_device_migrate_state() is called: the client saves
 * and restores configuration space (the ATS, PRI and PASID registers included), the MSI-X table, and
 * interrupts with their masks, by region accesses and SET_IRQS in the states STOP or RUNNING. Bits of
 * the pending bit array are read-only, so a device raises what was pending again when it resumes.
 *
 * @callbacks: copied; all three functions are needed.
 *
 * Returns 0, or -1 with errno:
 * EINVAL: a version other than VFU_MIGR_CALLBACKS_VERS, or a function is missing. ENOMEM.
 *
 * Control thread. vfio-user protocol, DEVICE_FEATURE, MIG_DATA_READ, MIG_DATA_WRITE.
 */
int vfu_setup_device_migration_callbacks(vfu_ctx_t *vfu_ctx,
                                         const vfu_migration_callbacks_t *callbacks);

/*
 * Says whether what the library keeps for the device migrates with it: configuration space, with the
 * registers of ATS, PRI and PASID; the MSI-X table; masks and pending interrupts. By default it does
 * not, and the stream is the device's own data, byte for byte, as in libvfio-user 0.x. Guest memory,
 * eventfds and the translation cache are the client's in any case.
 *
 * With it, the library wraps the device's data into blocks and adds one of its own, which is sampled
 * when the device has gone to STOP_COPY and precedes the data that the device produces there. Data of
 * PRE_COPY comes before. The callbacks see the device's bytes only, in pieces of other sizes than the
 * client's. On the other side the block is restored as soon as it has come whole, in RESUMING: the
 * device finds configuration space as it was, and the callback for the IOMMU's state runs. Pending
 * interrupts are delivered when the device goes to RUNNING, or later, once unmasked and with an
 * eventfd. The masks are restored without a call of vfu_dev_irq_state_cb_t.
 *
 * Restored are bits that a guest can change. Those of configuration space that are read-only must be
 * as they were set up on both sides (what the device has changed in them since vfu_realize_ctx() is
 * its own), and BARs, ROM and vectors must be the same; what the device serves itself
 * (VFU_CAP_FLAG_CALLBACK, VFU_REGION_FLAG_ALWAYS_CB) is the device's data. A state of another device,
 * of another version, or that no guest could have made is refused with EINVAL and restores nothing. A
 * stream that was refused, or that has not come to its end, does not lead out of RESUMING: only a
 * reset or the end of the connection does.
 *
 * A stream without such blocks, of a server without this call, is taken as well: all of it is the
 * device's data, and the rest is left to the client, as above. A server without this call hands all
 * of a stream with blocks to its device, which cannot know them.
 *
 * @migrate: true to migrate it. A new context does not.
 *
 * Control thread, at any time outside callbacks; in force from the next stream on. vfio-user
 * protocol, MIG_DATA_READ, MIG_DATA_WRITE; <linux/vfio.h>, enum vfio_device_mig_state.
 */
void vfu_setup_device_migrate_state(vfu_ctx_t *vfu_ctx, bool migrate);

/*
 * PCI configuration space
 */

typedef enum {
    VFU_PCI_TYPE_CONVENTIONAL,
    VFU_PCI_TYPE_PCI_X_1,
    VFU_PCI_TYPE_PCI_X_2,
    VFU_PCI_TYPE_EXPRESS,
} vfu_pci_type_t;

/*
 * Makes the configuration space: 256 bytes, or 4096 for PCI-X 2.0 and PCI Express. Optional; once,
 * before vfu_realize_ctx().
 *
 * @pci_type: kind of the bus.
 * @hdr_type: PCI_HEADER_TYPE_NORMAL.
 * @revision: not used; set hdr.rid by vfu_pci_get_config_space().
 *
 * Returns 0, or -1 with errno:
 * EINVAL: unknown bus or header type. EEXIST: there is a configuration space already. ENOMEM.
 *
 * Control thread. PCIe 7.2.
 */
int vfu_pci_init(vfu_ctx_t *vfu_ctx, vfu_pci_type_t pci_type, int hdr_type, int revision);

/*
 * Sets the identity of the device. After vfu_pci_init() or vfu_realize_ctx().
 *
 * @vid, @did: vendor and device ID.
 * @ssvid, @ssid: subsystem vendor and subsystem ID.
 *
 * Control thread. PCIe 7.5.1.1, 7.5.1.2.
 */
void vfu_pci_set_id(vfu_ctx_t *vfu_ctx, uint16_t vid, uint16_t did, uint16_t ssvid, uint16_t ssid);

/*
 * Sets the class of the device. After vfu_pci_init() or vfu_realize_ctx().
 *
 * @base, @sub: base class and sub class.
 * @pi: programming interface.
 *
 * Control thread. PCIe 7.5.1.1.6.
 */
void vfu_pci_set_class(vfu_ctx_t *vfu_ctx, uint8_t base, uint8_t sub, uint8_t pi);

/*
 * Returns the configuration space, which the device may read and change. It stays where it is until
 * vfu_destroy_ctx(). NULL before vfu_pci_init() and vfu_realize_ctx().
 *
 * Control thread.
 */
vfu_pci_config_space_t *vfu_pci_get_config_space(vfu_ctx_t *vfu_ctx);

#define VFU_CAP_FLAG_EXTENDED (1 << 0) /* PCI Express extended capability */
#define VFU_CAP_FLAG_CALLBACK (1 << 1) /* the configuration region's callback gets its accesses */
#define VFU_CAP_FLAG_READONLY (1 << 2) /* the client's writes are refused */

/*
 * Adds a capability at the end of its list. After vfu_pci_init() or vfu_realize_ctx().
 *
 * @pos: offset in configuration space, bytes; 0: after the last one.
 * @flags: VFU_CAP_FLAG_*.
 * @data: the capability, header included; copied. Its size follows from its ID; the next pointer is
 *   set by the library.
 *
 * Returns the offset of the capability, or -1 with errno:
 * EINVAL: unknown flag; CALLBACK but the configuration region has none; an extended one without
 *   extended space; a position that is out of range, taken, or not 0x100 for the first extended
 *   one.
 * ENOTSUP: unknown ID. ENOSPC: no room, or 128 capabilities of the kind.
 *
 * Control thread. PCIe 7.5, 7.6.
 */
ssize_t vfu_pci_add_capability(vfu_ctx_t *vfu_ctx, size_t pos, int flags, void *data);

/*
 * Finds the first capability with an ID.
 *
 * @extended: search the extended capabilities.
 * @cap_id: PCI_CAP_ID_* or PCI_EXT_CAP_ID_*.
 *
 * Returns its offset, or 0 with errno:
 * ENOENT: there is none. EINVAL: the list leads out of configuration space.
 *
 * Control thread.
 */
size_t vfu_pci_find_capability(vfu_ctx_t *vfu_ctx, bool extended, int cap_id);

/*
 * Finds the next capability with an ID.
 *
 * @extended: search the extended capabilities.
 * @pos: offset of the capability to start after, bytes; 0 for the head of the list.
 * @cap_id: PCI_CAP_ID_* or PCI_EXT_CAP_ID_*.
 *
 * Returns its offset, or 0 with errno:
 * ENOENT: there is none. EINVAL: @pos, or a link, lies outside configuration space.
 *
 * Control thread.
 */
size_t vfu_pci_find_next_capability(vfu_ctx_t *vfu_ctx, bool extended, size_t pos, int cap_id);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_H */
