/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The other end of the socket: attach to a vfio-user server, and drive its device.
 *
 * A client has a receiver thread of its own, which matches replies to commands and answers the
 * server's DMA_READ and DMA_WRITE at once, so a caller that waits never keeps the server waiting.
 * Every function may be called by any thread, unless it says otherwise. The server is not trusted:
 * what it sends is checked, and a reply that does not fit is EPROTO.
 *
 * Functions return 0 or a count, or -1 with errno. Common to all that send a command:
 * ENOTCONN: the connection has ended. ETIMEDOUT: no reply in time, and the connection was ended.
 * EPROTO: the reply was malformed. Any other: what the server answered.
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
    void *pvt; /* for both */
} vfuc_options_t;

/* What was agreed on. */
typedef struct vfuc_agreed {
    uint32_t max_msg_fds; /* the server's */
    uint32_t max_data_xfer_size; /* the server's, in bytes */
    vfuc_iommu_proposal_t iommu;
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

/* What the server agreed to. */
void vfuc_agreed(vfuc_t *client, vfuc_agreed_t *agreed);

typedef struct vfuc_device_info {
    uint32_t flags; /* VFIO_DEVICE_FLAGS_* */
    uint32_t num_regions;
    uint32_t num_irqs;
} vfuc_device_info_t;

int vfuc_device_info(vfuc_t *client, vfuc_device_info_t *info);

typedef struct vfuc_mmap_area {
    uint64_t offset, size; /* within the region */
} vfuc_mmap_area_t;

#define VFUC_MAX_AREAS 64

typedef struct vfuc_region_info {
    uint64_t size;
    uint64_t fd_offset; /* of the region in fd */
    uint32_t flags; /* VFIO_REGION_INFO_FLAG_* */
    int fd; /* the caller's from now on; -1: the region cannot be mapped */
    uint32_t nr_areas;
    vfuc_mmap_area_t areas[VFUC_MAX_AREAS];
} vfuc_region_info_t;

/* EINVAL: no such region. The caller closes info->fd. */
int vfuc_region_info(vfuc_t *client, uint32_t region, vfuc_region_info_t *info);

/* Reads or writes count bytes of a region by message; at most the agreed transfer size. */
int vfuc_region_read(vfuc_t *client, uint32_t region, uint64_t offset, void *data, size_t count);
int vfuc_region_write(vfuc_t *client, uint32_t region, uint64_t offset, const void *data,
                      size_t count);

/* A write that nobody waits for: an error of the server's goes unseen. */
int vfuc_region_post(vfuc_t *client, uint32_t region, uint64_t offset, const void *data,
                     size_t count);

/* The number of interrupts of a type (VFIO_PCI_*_IRQ_INDEX), or -1. */
int vfuc_irq_count(vfuc_t *client, uint32_t type);

/*
 * Has the device signal eventfds for the interrupts start .. start + count - 1 of a type. The
 * descriptors stay the caller's. NULL takes the eventfds away again.
 */
int vfuc_irq_set_eventfds(vfuc_t *client, uint32_t type, uint32_t start, uint32_t count,
                          const int *eventfds);
int vfuc_irq_mask(vfuc_t *client, uint32_t type, uint32_t start, uint32_t count, bool mask);
/* No interrupts of this type any more. */
int vfuc_irq_disable(vfuc_t *client, uint32_t type);

/* Memory that the device may reach. */
typedef struct vfuc_memory {
    uint64_t iova;
    uint64_t size; /* bytes */
    int prot; /* PROT_READ, PROT_WRITE: what the device may do */
    int fd; /* a memory file to share, which stays the caller's; -1: by messages only */
    uint64_t fd_offset;
    void *vaddr; /* the same memory here, for messages; NULL only with an fd */
    bool translated; /* of the translated space (IOMMU extension), where iova is an address */
    bool has_pasid; /* of the address space of a PASID */
    uint32_t pasid;
} vfuc_memory_t;

/* Up to 4096 ranges that are answered by messages. ENOSPC above that. */
int vfuc_dma_map(vfuc_t *client, const vfuc_memory_t *memory);
/* Takes back what lies in the range; waits until the device has let go. space: as it was mapped. */
int vfuc_dma_unmap(vfuc_t *client, const vfuc_memory_t *memory);
/* Everything in the plain address space. */
int vfuc_dma_unmap_all(vfuc_t *client);
/* DMA messages that were answered. */
uint64_t vfuc_dma_messages(vfuc_t *client);

int vfuc_reset(vfuc_t *client);

/*
 * Any command: request is what follows the header, and up to reply_size bytes of what follows the
 * header of the reply are stored. flags: VFIO_USER_F_PASID, VFIO_USER_F_TRANSLATED. Returns the
 * size of the reply's payload, which may be larger than reply_size, or -1.
 */
ssize_t vfuc_command(vfuc_t *client, uint16_t cmd, uint32_t flags, const void *request,
                     size_t request_size, void *reply, size_t reply_size);

/* The same without waiting: done is called on the receiver thread, with error 0 or an errno. */
typedef void (vfuc_done_t)(void *pvt, int error, const void *payload, size_t len);
int vfuc_command_start(vfuc_t *client, uint16_t cmd, uint32_t flags, const void *request,
                       size_t request_size, vfuc_done_t *done, void *pvt);

/* Answers a command of the server: error is 0 or an errno. */
int vfuc_reply(vfuc_t *client, uint16_t id, uint16_t cmd, int error, const void *payload,
               size_t len);

#ifdef __cplusplus
}
#endif

#endif /* VFIO_USER_CLIENT_H */
