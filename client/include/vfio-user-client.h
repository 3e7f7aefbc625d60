/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The other end of the socket: attach to a vfio-user server, and drive its device.
 *
 * A client has a receiver thread of its own, which matches replies to commands and answers the
 * server's DMA_READ and DMA_WRITE at once, so a caller that waits never keeps the server waiting.
 *
 * Threads. Every function may be called by any thread, any number of them at a time, unless it says
 * otherwise. Callbacks run on the receiver thread, with no lock of the library held. They may call
 * what does not wait: vfuc_reply(), vfuc_agreed(), vfuc_dma_messages(), the functions named _start
 * and _post; whatever waits for the server returns EDEADLK there. They must not call
 * vfuc_region_munmap(), and vfuc_disconnect() does nothing there.
 *
 * The server is not trusted: what it sends is checked, and a reply that does not fit is EPROTO.
 * It can hold a caller for the timeout, and no longer.
 *
 * Functions return 0 or a count, or -1 with errno. Common to all that send a command:
 * ENOTCONN: the connection has ended: vfuc_reconnect(). ETIMEDOUT: no reply in time, and the
 * connection was ended. EPROTO: the reply was malformed. EDEADLK: inside a callback.
 * EAGAIN: 32768 commands are in flight. EINVAL: an argument, or the server's opinion of it.
 * EMSGSIZE: more than a message carries. Any other: what the server answered; EIO stands for
 * ENOTCONN and ETIMEDOUT too, which are said here of the connection.
 */
#ifndef VFIO_USER_CLIENT_H
#define VFIO_USER_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vfuc vfuc_t;

/* What to propose of the IOMMU extension; zero: nothing. */
typedef struct vfuc_iommu_proposal {
    uint32_t pasid_bits; /* 1..20 */
    bool pasid_exec, pasid_priv;
    uint32_t ats_queue_depth; /* 1..32 */
    uint32_t ats_page_shift; /* at least 12 */
    uint32_t ats_max_entries;
    uint32_t pri_max_requests;
} vfuc_iommu_proposal_t;

/* Answers for a machine: what vfuc_iommu_connect() puts into the options. */
struct vfuc_unit;

typedef struct vfuc_options {
    uint32_t timeout_ms; /* for a reply; 0: 10000 */
    uint32_t max_data_xfer_size; /* of the server's DMA messages, in bytes; 0: 1 MiB */
    vfuc_iommu_proposal_t iommu;
    void (*log)(void *pvt, const char *line); /* what the server did wrong; NULL: nobody listens */
    /*
     * A command of the server that this library does not answer by itself (ATS_TRANSLATE,
     * PAGE_REQUEST, DMA messages with a PASID or in the translated space). On the receiver thread;
     * to be answered by vfuc_reply(), from here or later. NULL: refused with ENOTSUP.
     */
    void (*command)(void *pvt, uint16_t id, uint16_t cmd, uint32_t flags, const void *payload,
                    size_t len);
    void *pvt; /* for all callbacks */
    /*
     * The server wrote to memory by a message, in the plain address space: for who keeps track of
     * dirty pages. On the receiver thread, when the bytes are there.
     */
    void (*written)(void *pvt, uint64_t iova, uint64_t len);
    struct vfuc_unit *unit; /* NULL: none */
    /*
     * The connection has ended, and not by vfuc_disconnect() or vfuc_reconnect(). On the receiver
     * thread, after the last other callback: have another thread call vfuc_reconnect(). error is
     * ENOTCONN (the server has gone), EPROTO, ETIMEDOUT or another errno.
     */
    void (*lost)(void *pvt, int error);
} vfuc_options_t;

/* What was agreed on. */
typedef struct {
    uint32_t max_msg_fds; /* the server's */
    uint32_t max_data_xfer_size; /* the server's, in bytes */
    vfuc_iommu_proposal_t iommu;
    bool write_multiple; /* several posted writes travel in one message */
    uint32_t migration_page_size; /* of dirty pages; 0: the device has no migration */
} vfuc_agreed_t;

/*
 * Connects to the server at a path and negotiates.
 *
 * @options: NULL for the defaults; copied.
 *
 * Returns the client, to be freed by vfuc_disconnect(), or NULL with errno: those of socket(2) and
 * connect(2), ENAMETOOLONG, EPROTO, ETIMEDOUT, ENOMEM, or the server's refusal.
 */
vfuc_t *vfuc_connect(const char *path, const vfuc_options_t *options);

/* Ends the connection and frees the client. No other call may be under way. NULL is ignored. */
void vfuc_disconnect(vfuc_t *client);

/*
 * Connects again to the server at the same path, after the connection was lost or to end it: a
 * server that was restarted finds the memory and the eventfds as they were set up, and mapped
 * regions are mapped again at their addresses. Descriptors in use must still be open. What the
 * device holds (its registers, migration state, page logging) is the caller's matter, and so are
 * ioeventfds, which are the old server's: ask for them again. Server's commands that were not
 * answered are forgotten; whoever means to answer one has to know first, as ids begin anew.
 *
 * Commands of other threads get ENOTCONN until this has returned 0; mappings and eventfds may wait
 * for it. What was to be unmapped or taken away while there was no connection does not come back.
 *
 * ECONNREFUSED, ENOENT: the server is not there yet; try again. ESTALE: it agrees to another IOMMU
 * or has other areas to map than before: not the same device. Others as vfuc_connect(). After a
 * failure there is no connection.
 */
int vfuc_reconnect(vfuc_t *client);

/* What the server agreed to. */
void vfuc_agreed(vfuc_t *client, vfuc_agreed_t *agreed);

typedef struct {
    uint32_t flags; /* VFIO_DEVICE_FLAGS_* */
    uint32_t num_regions;
    uint32_t num_irqs;
} vfuc_device_info_t;

int vfuc_device_info(vfuc_t *client, vfuc_device_info_t *info);

typedef struct vfuc_mmap_area {
    uint64_t offset, size; /* within the region */
} vfuc_mmap_area_t;

#define VFUC_MAX_AREAS 64

typedef struct {
    uint64_t size;
    uint64_t fd_offset; /* of the region in fd */
    uint32_t flags; /* VFIO_REGION_INFO_FLAG_* */
    int fd; /* the caller's from now on; -1: the region cannot be mapped */
    bool sparse; /* only the areas may be mapped; false: all of it, if it has the MMAP flag */
    uint32_t nr_areas;
    vfuc_mmap_area_t areas[VFUC_MAX_AREAS];
} vfuc_region_info_t;

/* EINVAL: no such region. E2BIG: more than VFUC_MAX_AREAS. The caller closes info->fd. */
int vfuc_region_info(vfuc_t *client, uint32_t region, vfuc_region_info_t *info);

/* Reads or writes count bytes of a region by message; at most the agreed transfer size. */
int vfuc_region_read(vfuc_t *client, uint32_t region, uint64_t offset, void *data, size_t count);
int vfuc_region_write(vfuc_t *client, uint32_t region, uint64_t offset, const void *data,
                      size_t count);

/* A write that nobody waits for: an error of the server's goes unseen. */
int vfuc_region_post(vfuc_t *client, uint32_t region, uint64_t offset, const void *data,
                     size_t count);

/* A write of 1 to 8 bytes. */
typedef struct vfuc_write {
    uint64_t offset;
    uint32_t region;
    uint32_t count;
    uint8_t data[8];
} vfuc_write_t;

/* Writes that nobody waits for, in this order, in as few messages as the server takes. */
int vfuc_region_post_many(vfuc_t *client, const vfuc_write_t *writes, size_t nr_writes);

/*
 * The end of a command that nobody waits for: error is 0 or an errno. On the receiver thread,
 * exactly once; payload is valid during the call.
 */
typedef void (vfuc_done_t)(void *pvt, int error, const void *payload, size_t len);

/*
 * As vfuc_region_read() and vfuc_region_write(), without waiting; payload is what was read. An
 * error of these calls means that done is not called. A reply that never comes ends the connection
 * after one to two timeouts.
 */
int vfuc_region_read_start(vfuc_t *client, uint32_t region, uint64_t offset, size_t count,
                           vfuc_done_t *done, void *pvt);
int vfuc_region_write_start(vfuc_t *client, uint32_t region, uint64_t offset, const void *data,
                            size_t count, vfuc_done_t *done, void *pvt);

/*
 * Mapped regions
 */

typedef struct vfuc_mapping vfuc_mapping_t;

typedef struct vfuc_mapped_area {
    uint64_t offset, size; /* within the region */
    void *vaddr;
} vfuc_mapped_area_t;

/*
 * Maps what of a region may be mapped, which is nothing of most: then all of it goes by messages.
 * If the server shortens the file afterwards, accesses to the areas find zeroes, and
 * vfuc_mapping_read() and vfuc_mapping_write() give EIO. The library handles SIGBUS for that; do not
 * block the signal in threads that access the areas. A thread that calls vfuc_mapping_read() or
 * vfuc_mapping_write() has it unblocked.
 *
 * @prot: PROT_READ, PROT_WRITE: what the areas are mapped for.
 *
 * Returns the mapping, to be freed by vfuc_region_munmap(), or NULL with errno: those of
 * vfuc_region_info() and mmap(2). EPROTO: areas that are not in the file, or not at a page's start.
 * EPERM, ENODEV: the file is not of memfd, tmpfs or hugetlbfs, and its kind is not listed in the
 * environment variable VFU_MEMORY_FILES: an access could wait for the server for ever.
 */
vfuc_mapping_t *vfuc_region_mmap(vfuc_t *client, uint32_t region, int prot);

/* NULL is ignored. vfuc_disconnect() does it for those that are left. */
void vfuc_region_munmap(vfuc_mapping_t *mapping);

/* Stores up to max areas, and returns how many there are. They stay where they are. */
uint32_t vfuc_mapping_areas(vfuc_mapping_t *mapping, vfuc_mapped_area_t *areas, uint32_t max);

/* Where count bytes from offset on are mapped; NULL when not all of them are, in one area. */
void *vfuc_mapping_at(vfuc_mapping_t *mapping, uint64_t offset, uint64_t count);

/*
 * Access to any part of the region and of any length: in place where it is mapped, by messages
 * elsewhere. Aligned accesses of 2, 4 and 8 bytes are single ones.
 */
int vfuc_mapping_read(vfuc_mapping_t *mapping, uint64_t offset, void *data, size_t count);
int vfuc_mapping_write(vfuc_mapping_t *mapping, uint64_t offset, const void *data, size_t count);

/*
 * Writes that the hypervisor turns into signals (GET_REGION_IO_FDS), for KVM_IOEVENTFD
 */

typedef struct vfuc_ioeventfd {
    uint64_t offset, size; /* within the region */
    uint64_t datamatch;
    uint64_t shadow_offset; /* in shadow_fd */
    uint32_t flags; /* KVM_IOEVENTFD_FLAG_* */
    uint32_t type; /* VFIO_USER_IO_FD_TYPE_* */
    int fd; /* -1: none */
    int shadow_fd; /* the file that gets the value written; -1: none */
} vfuc_ioeventfd_t;

/*
 * Returns how many there are; they are stored if that is at most max, and are the caller's then,
 * for vfuc_close_ioeventfds(). E2BIG: more than 1024. EPROTO: also if fd is no eventfd.
 */
int vfuc_region_ioeventfds(vfuc_t *client, uint32_t region, vfuc_ioeventfd_t *list, uint32_t max);
void vfuc_close_ioeventfds(vfuc_ioeventfd_t *list, uint32_t count);

/*
 * PCI configuration space
 */

int vfuc_config_read(vfuc_t *client, uint32_t offset, void *data, size_t count);
int vfuc_config_write(vfuc_t *client, uint32_t offset, const void *data, size_t count);

typedef struct vfuc_capability {
    uint16_t id; /* PCI_CAP_ID_*, PCI_EXT_CAP_ID_* of <linux/pci_regs.h> */
    uint16_t offset;
    uint8_t version; /* of extended ones */
    bool extended;
} vfuc_capability_t;

/*
 * The capabilities in the order of their lists, the extended ones last. Stores up to max and
 * returns how many there are. EPROTO: a list that leads nowhere, or in a circle.
 */
int vfuc_config_capabilities(vfuc_t *client, vfuc_capability_t *list, uint32_t max);

/* The offset of the first one with an id. ENOENT: there is none. */
int vfuc_config_find(vfuc_t *client, bool extended, uint16_t id);

/*
 * Interrupts
 */

/* The number of interrupts of a type (VFIO_PCI_*_IRQ_INDEX), or -1. */
int vfuc_irq_count(vfuc_t *client, uint32_t type);

/*
 * Has the device signal eventfds for the interrupts start .. start + count - 1 of a type, which
 * end at 2048. The descriptors stay the caller's. -1 takes that eventfd away again, NULL all.
 */
int vfuc_irq_set_eventfds(vfuc_t *client, uint32_t type, uint32_t start, uint32_t count,
                          const int *eventfds);
int vfuc_irq_mask(vfuc_t *client, uint32_t type, uint32_t start, uint32_t count, bool mask);
/* No interrupts of this type any more. */
int vfuc_irq_disable(vfuc_t *client, uint32_t type);

/*
 * Eventfds of interrupts and ioeventfds. The server holds their file descriptions as well: it can
 * clear O_NONBLOCK, and fill or empty a counter after a poll(2) of the caller, so that write(2) and
 * read(2) would wait for as long as it likes. These functions never wait, and may be called from
 * callbacks.
 */

/* Adds 1 to the counter. EAGAIN: it is full. EINVAL: fd is no eventfd. Others of io_submit(2). */
int vfuc_eventfd_signal(int fd);

/*
 * Stores the counter and sets it to 0; with EFD_SEMAPHORE stores 1 and subtracts it. EAGAIN: it is 0.
 * EOPNOTSUPP: a kernel before Linux 5.8.
 */
int vfuc_eventfd_take(int fd, uint64_t *count);

/*
 * Memory that the device may reach
 */

/*
 * The server gets fd, and could shorten the file. Seal it: F_SEAL_SHRINK. Otherwise the library
 * survives its own accesses to it, and where it has vaddr puts zeroes there, as for mapped regions.
 */
typedef struct vfuc_memory {
    uint64_t iova;
    uint64_t size; /* bytes */
    int prot; /* PROT_READ, PROT_WRITE: what the device may do */
    int fd; /* a memory file to share, which stays the caller's; -1: by messages only */
    uint64_t fd_offset;
    void *vaddr; /* the same memory here, for messages; NULL only with an fd; stays until unmapped */
    bool translated; /* of the translated space (IOMMU extension), where iova is an address */
    bool has_pasid; /* of the address space of a PASID */
    uint32_t pasid;
} vfuc_memory_t;

/* EEXIST: something else is mapped there. */
int vfuc_dma_map(vfuc_t *client, const vfuc_memory_t *memory);
/* Takes back what lies in the range; waits until the device has let go. space: as it was mapped. */
int vfuc_dma_unmap(vfuc_t *client, const vfuc_memory_t *memory);
/* Everything in the plain address space. */
int vfuc_dma_unmap_all(vfuc_t *client);
/* DMA messages that were answered. */
uint64_t vfuc_dma_messages(vfuc_t *client);

int vfuc_reset(vfuc_t *client);

/*
 * Features (DEVICE_FEATURE)
 */

/* Does the device have this feature (VFIO_DEVICE_FEATURE_*) for operations (.._GET, .._SET)? */
int vfuc_feature_probe(vfuc_t *client, uint32_t feature, uint32_t operations);

/* Sends size bytes of data and stores up to room bytes of the answer. Returns its length. */
ssize_t vfuc_feature_get(vfuc_t *client, uint32_t feature, const void *data, size_t size,
                         void *answer, size_t room);
int vfuc_feature_set(vfuc_t *client, uint32_t feature, const void *data, size_t size);

/*
 * Migration: the states and their transitions are those of <linux/vfio.h>, version 2. States are
 * VFIO_USER_DEVICE_STATE_* (vfio-user.h). EINVAL: the device has no migration, or there is no way
 * to that state.
 */

/* What the device can do: VFIO_MIGRATION_STOP_COPY, _PRE_COPY, _P2P. */
int vfuc_migration_flags(vfuc_t *client, uint64_t *flags);
int vfuc_migration_state(vfuc_t *client, uint32_t *state);
/* Goes there, through the states on the way. After an error: vfuc_migration_state(). */
int vfuc_migration_set_state(vfuc_t *client, uint32_t state);

/*
 * A piece of the device's state, size of at most the smaller of both sides' max_data_xfer_size.
 * In PRE_COPY and STOP_COPY: returns the bytes read, 0 when there are no more (in PRE_COPY: now).
 */
ssize_t vfuc_migration_read(vfuc_t *client, void *data, size_t size);
/* In RESUMING. */
int vfuc_migration_write(vfuc_t *client, const void *data, size_t size);

/* Takes len bytes of state, all of them: 0, or -1 with errno to give up. */
typedef int (vfuc_save_t)(void *pvt, const void *data, size_t len);
/* Fetches up to size bytes: their number, 0 at the end, or -1 with errno. */
typedef ssize_t (vfuc_load_t)(void *pvt, void *data, size_t size);

/*
 * Saves the whole state and leaves the device in STOP. The first running_bytes or so are taken
 * while it runs on (PRE_COPY); 0: it is stopped at once, which any device can do. When that fails
 * the device is put back to the state it was in, and errno is that of the step, or of save.
 *
 * A stopped device refuses most other commands (EINVAL): mapping of memory and of regions,
 * interrupts, vfuc_reset(). save has to give up on a state that does not end: it is the device's.
 */
int vfuc_migration_save(vfuc_t *client, uint64_t running_bytes, vfuc_save_t *save, void *pvt);

/*
 * Loads a state and leaves the device in STOP: vfuc_migration_set_state(RUNNING) starts it. When
 * that fails what the device holds is undefined, and it may still be resuming: load again, or
 * vfuc_migration_set_state(RUNNING) and vfuc_reset().
 */
int vfuc_migration_load(vfuc_t *client, vfuc_load_t *load, void *pvt);

/*
 * Pages that the device has written to, where it does so by itself. What it writes by DMA_WRITE
 * messages comes by here: see vfuc_options_t.written.
 */

typedef struct vfuc_range {
    uint64_t iova, size; /* bytes */
} vfuc_range_t;

/*
 * Logging begins, with pages of page_size bytes (a power of two). ranges are a hint, up to 4096;
 * servers may log everything.
 */
int vfuc_dirty_start(vfuc_t *client, uint64_t page_size, const vfuc_range_t *ranges,
                     uint32_t nr_ranges);
int vfuc_dirty_stop(vfuc_t *client);

/* Bytes of the bitmap for size bytes of memory: whole 64-bit words. 0: page_size is wrong. */
uint64_t vfuc_dirty_bitmap_size(uint64_t size, uint64_t page_size);

/*
 * Reads the pages written to since the last report, and clears them there. Bit n is page n from
 * iova on, least significant first. What is not mapped reads as clean. Servers of libvfio-user 0.x
 * want a range that begins where a mapping does and lies within it, and say ENOENT or ENOTSUP of
 * any other. EMSGSIZE: the bitmap is larger than a message.
 */
int vfuc_dirty_report(vfuc_t *client, uint64_t iova, uint64_t size, uint64_t page_size,
                      void *bitmap, uint64_t bitmap_size);

/* vfuc_dma_unmap(), and the last report for that mapping. */
int vfuc_dma_unmap_dirty(vfuc_t *client, const vfuc_memory_t *memory, uint64_t page_size,
                         void *bitmap, uint64_t bitmap_size);

/*
 * Any command: request is what follows the header, and up to reply_size bytes of what follows the
 * header of the reply are stored, not over the request. flags: VFIO_USER_F_PASID,
 * VFIO_USER_F_TRANSLATED. Returns the size of the reply's payload, which may be larger than
 * reply_size, or -1.
 */
ssize_t vfuc_command(vfuc_t *client, uint16_t cmd, uint32_t flags, const void *request,
                     size_t request_size, void *reply, size_t reply_size);

/* The same without waiting. */
int vfuc_command_start(vfuc_t *client, uint16_t cmd, uint32_t flags, const void *request,
                       size_t request_size, vfuc_done_t *done, void *pvt);

/*
 * Answers a command of the server: error is 0 or an errno. ENOENT: there is no such command on this
 * connection, or it was answered.
 */
int vfuc_reply(vfuc_t *client, uint16_t id, uint16_t cmd, int error, const void *payload,
               size_t len);

#ifdef __cplusplus
}
#endif

#endif /* VFIO_USER_CLIENT_H */
