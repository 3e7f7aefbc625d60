/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The vfio-user wire format: what follows the 16-byte header in each message. Integers are in host
 * byte order; both ends of the UNIX socket are on one host.
 *
 * Structures of the kernel's VFIO interface that travel verbatim (vfio_region_info, vfio_irq_info,
 * vfio_irq_set) come from <linux/vfio.h>.
 */

#ifndef VFIO_USER_H
#define VFIO_USER_H

#include <inttypes.h>
#include <linux/version.h>
#include <linux/vfio.h>
#include <stdint.h>

#include "vfu_layout.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Largest transfer in bytes when the peer's version data names none. */
#define VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE (1024 * 1024)

#define VFIO_USER_FLAGS_NO_REPLY (0x1)

enum vfio_user_command {
    VFIO_USER_VERSION = 1,
    VFIO_USER_DMA_MAP = 2,
    VFIO_USER_DMA_UNMAP = 3,
    VFIO_USER_DEVICE_GET_INFO = 4,
    VFIO_USER_DEVICE_GET_REGION_INFO = 5,
    VFIO_USER_DEVICE_GET_REGION_IO_FDS = 6,
    VFIO_USER_DEVICE_GET_IRQ_INFO = 7,
    VFIO_USER_DEVICE_SET_IRQS = 8,
    VFIO_USER_REGION_READ = 9,
    VFIO_USER_REGION_WRITE = 10,
    VFIO_USER_DMA_READ = 11,
    VFIO_USER_DMA_WRITE = 12,
    VFIO_USER_DEVICE_RESET = 13,
    /* 14 is unassigned */
    VFIO_USER_REGION_WRITE_MULTI = 15,
    VFIO_USER_DEVICE_FEATURE = 16,
    VFIO_USER_MIG_DATA_READ = 17,
    VFIO_USER_MIG_DATA_WRITE = 18,
    VFIO_USER_MAX = 19,
};

/* Commands of the IOMMU extension; usable only when the version data of both sides has "iommu". */
enum vfio_user_iommu_command {
    VFIO_USER_ATS_TRANSLATE = 64,
    VFIO_USER_ATS_INVALIDATE = 65,
    VFIO_USER_PAGE_REQUEST = 66,
};

enum vfio_user_message_type {
    VFIO_USER_MESSAGE_COMMAND = 0,
    VFIO_USER_MESSAGE_REPLY = 1,
};

/* vfio_user_header.flags */
#define VFIO_USER_F_TYPE_MASK (0xf)
#define VFIO_USER_F_TYPE_COMMAND (0)
#define VFIO_USER_F_TYPE_REPLY (1)
#define VFIO_USER_F_NO_REPLY (0x10)
#define VFIO_USER_F_ERROR (0x20)
#define VFIO_USER_F_PASID (1 << 8)      /* the payload begins with a vfio_user_pasid_prefix */
#define VFIO_USER_F_TRANSLATED (1 << 9) /* the address lies in the translated space */

struct vfio_user_header {
    uint16_t msg_id;
    uint16_t cmd;      /* enum vfio_user_command or vfio_user_iommu_command */
    uint32_t msg_size; /* bytes, with this header */
    uint32_t flags;
    uint32_t error_no; /* errno of the peer when VFIO_USER_F_ERROR is set */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_header, 16);

/* VERSION: the NUL-terminated JSON text follows. */
struct vfio_user_version {
    uint16_t major;
    uint16_t minor;
    uint8_t data[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_version, 4);

struct vfio_user_device_info {
    uint32_t argsz;
    uint32_t flags; /* VFIO_DEVICE_FLAGS_* */
    uint32_t num_regions;
    uint32_t num_irqs;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_info, 16);

struct vfio_user_bitmap {
    uint64_t pgsize; /* bytes per bit */
    uint64_t size;   /* bytes of data */
    char data[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_bitmap, 16);

/* vfio_user_dma_map.flags */
#define VFIO_USER_F_DMA_REGION_READ (1 << 0)
#define VFIO_USER_F_DMA_REGION_WRITE (1 << 1)
#define VFIO_USER_F_DMA_REGION_MMAP (1 << 2)
#define VFIO_USER_F_DMA_REGION_FILE_IO (1 << 3)

struct vfio_user_dma_map {
    uint32_t argsz;
    uint32_t flags;
    uint64_t offset; /* of addr within the file that comes along, bytes */
    uint64_t addr;
    uint64_t size; /* bytes */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_dma_map, 32);

/* vfio_user_dma_unmap.flags, in kernel headers since 5.8 and 5.12. */
#ifndef VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP
#define VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP (1 << 0)
#endif
#ifndef VFIO_DMA_UNMAP_FLAG_ALL
#define VFIO_DMA_UNMAP_FLAG_ALL (1 << 1)
#endif

struct vfio_user_dma_unmap {
    uint32_t argsz;
    uint32_t flags;
    uint64_t addr;
    uint64_t size; /* bytes */
    struct vfio_user_bitmap bitmap[];
};
VFU_ASSERT_SIZE(struct vfio_user_dma_unmap, 24);

/* REGION_READ and REGION_WRITE */
struct vfio_user_region_access {
    uint64_t offset; /* bytes from the start of the region */
    uint32_t region;
    uint32_t count; /* bytes */
    uint8_t data[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_region_access, 16);

/* REGION_WRITE_MULTI: several small writes in one message, if both sides negotiated it. */
#define VFIO_USER_WRITE_MULTI_DATA 8  /* most bytes of one write */
#define VFIO_USER_WRITE_MULTI_MAX 200 /* most writes of one message */

struct vfio_user_write_multi_entry {
    uint64_t offset; /* bytes from the start of the region */
    uint32_t region;
    uint32_t count; /* bytes of data that are used */
    uint8_t data[VFIO_USER_WRITE_MULTI_DATA];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_write_multi_entry, 24);

struct vfio_user_write_multi {
    uint64_t wr_cnt;
    struct vfio_user_write_multi_entry entries[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_write_multi, 8);

/* DMA_READ and DMA_WRITE */
struct vfio_user_dma_region_access {
    uint64_t addr;
    uint64_t count; /* bytes */
    uint8_t data[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_dma_region_access, 16);

struct vfio_user_irq_info {
    uint32_t subindex;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_irq_info, 4);

/* DEVICE_GET_REGION_IO_FDS */
typedef struct vfio_user_region_io_fds_request {
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t count;
} __attribute__((packed)) vfio_user_region_io_fds_request_t;
VFU_ASSERT_SIZE(struct vfio_user_region_io_fds_request, 16);

#define VFIO_USER_IO_FD_TYPE_IOEVENTFD 0
#define VFIO_USER_IO_FD_TYPE_IOREGIONFD 1
#define VFIO_USER_IO_FD_TYPE_IOEVENTFD_SHADOW 2

typedef struct vfio_user_sub_region_ioeventfd {
    uint64_t gpa_offset; /* bytes from the start of the region */
    uint64_t size;       /* bytes */
    uint32_t fd_index;   /* among the descriptors of the message; ~0 for none */
    uint32_t type;       /* VFIO_USER_IO_FD_TYPE_* */
    uint32_t flags;
    uint32_t shadow_mem_fd_index;
    uint64_t shadow_offset; /* bytes */
    uint64_t datamatch;
} __attribute__((packed)) vfio_user_sub_region_ioeventfd_t;
VFU_ASSERT_SIZE(struct vfio_user_sub_region_ioeventfd, 48);

typedef struct vfio_user_sub_region_ioregionfd {
    uint64_t offset; /* bytes from the start of the region */
    uint64_t size;   /* bytes */
    uint32_t fd_index;
    uint32_t type;
    uint32_t flags;
    uint32_t padding;
    uint64_t user_data;
} __attribute__((packed)) vfio_user_sub_region_ioregionfd_t;
VFU_ASSERT_SIZE(struct vfio_user_sub_region_ioregionfd, 40);

/* The stride of the reply's array: an ioregionfd record is padded to it. */
union sub_region {
    struct vfio_user_sub_region_ioeventfd ioeventfd;
    struct vfio_user_sub_region_ioregionfd ioregionfd;
} __attribute__((packed));
VFU_ASSERT_SIZE(union sub_region, 48);

typedef struct vfio_user_region_io_fds_reply {
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t count;
    union sub_region sub_regions[];
} __attribute__((packed)) vfio_user_region_io_fds_reply_t;
VFU_ASSERT_SIZE(struct vfio_user_region_io_fds_reply, 16);

/* DEVICE_FEATURE. Kernel headers before 5.7, 5.18, 6.2 and 6.3 lack some of the constants. */
#ifndef VFIO_DEVICE_FEATURE_MASK
#define VFIO_DEVICE_FEATURE_MASK (0xffff)
#define VFIO_DEVICE_FEATURE_GET (1 << 16)
#define VFIO_DEVICE_FEATURE_SET (1 << 17)
#define VFIO_DEVICE_FEATURE_PROBE (1 << 18)
#endif
#ifndef VFIO_DEVICE_FEATURE_MIGRATION
#define VFIO_DEVICE_FEATURE_MIGRATION 1
#endif
#ifndef VFIO_MIGRATION_STOP_COPY
#define VFIO_MIGRATION_STOP_COPY (1 << 0)
#endif
#ifndef VFIO_MIGRATION_P2P
#define VFIO_MIGRATION_P2P (1 << 1)
#endif
#ifndef VFIO_MIGRATION_PRE_COPY
#define VFIO_MIGRATION_PRE_COPY (1 << 2)
#endif
#ifndef VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
#define VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE 2
#endif
#ifndef VFIO_DEVICE_FEATURE_DMA_LOGGING_START
#define VFIO_DEVICE_FEATURE_DMA_LOGGING_START 6
#endif
#ifndef VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP
#define VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP 7
#endif
#ifndef VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT
#define VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT 8
#endif

struct vfio_user_device_feature {
    uint32_t argsz;
    uint32_t flags; /* VFIO_DEVICE_FEATURE_*: operation and feature number */
    uint8_t data[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_feature, 8);

struct vfio_user_device_feature_migration {
    uint64_t flags; /* VFIO_MIGRATION_* */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_feature_migration, 8);

enum vfio_user_device_mig_state {
    VFIO_USER_DEVICE_STATE_ERROR = 0,
    VFIO_USER_DEVICE_STATE_STOP = 1,
    VFIO_USER_DEVICE_STATE_RUNNING = 2,
    VFIO_USER_DEVICE_STATE_STOP_COPY = 3,
    VFIO_USER_DEVICE_STATE_RESUMING = 4,
    VFIO_USER_DEVICE_STATE_RUNNING_P2P = 5,
    VFIO_USER_DEVICE_STATE_PRE_COPY = 6,
    VFIO_USER_DEVICE_STATE_PRE_COPY_P2P = 7,
    VFIO_USER_DEVICE_NUM_STATES = 8,
};

struct vfio_user_device_feature_mig_state {
    uint32_t device_state; /* enum vfio_user_device_mig_state */
    uint32_t data_fd;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_feature_mig_state, 8);

struct vfio_user_device_feature_dma_logging_range {
    uint64_t iova;
    uint64_t length; /* bytes */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_feature_dma_logging_range, 16);

struct vfio_user_device_feature_dma_logging_control {
    uint64_t page_size; /* bytes */
    uint32_t num_ranges;
    uint32_t reserved;
    struct vfio_user_device_feature_dma_logging_range ranges[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_feature_dma_logging_control, 16);

struct vfio_user_device_feature_dma_logging_report {
    uint64_t iova;
    uint64_t length;    /* bytes */
    uint64_t page_size; /* bytes per bit */
    uint8_t bitmap[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_feature_dma_logging_report, 24);

/* MIG_DATA_READ and MIG_DATA_WRITE */
struct vfio_user_mig_data {
    uint32_t argsz;
    uint32_t size; /* bytes of data */
    uint8_t data[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_mig_data, 8);

/*
 * The IOMMU extension.
 */

/* Precedes the payload of a command whose header has VFIO_USER_F_PASID. Not counted in argsz. */
#define VFIO_USER_PASID_BITS 20
#define VFIO_USER_PASID_ATTR_EXEC (1 << 0) /* execute requested */
#define VFIO_USER_PASID_ATTR_PRIV (1 << 1) /* privileged mode requested */

struct vfio_user_pasid_prefix {
    uint32_t pasid; /* below 1 << VFIO_USER_PASID_BITS */
    uint32_t attrs; /* VFIO_USER_PASID_ATTR_* */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_pasid_prefix, 8);

/* ATS_TRANSLATE, server to client */
#define VFIO_USER_ATS_F_NO_WRITE (1 << 0) /* write permission is not needed */

struct vfio_user_ats_translate {
    uint32_t argsz; /* largest reply payload that the server takes, bytes */
    uint32_t flags; /* VFIO_USER_ATS_F_* */
    uint64_t address;
    uint64_t length; /* bytes */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_ats_translate, 24);

/* vfio_user_ats_entry.perm; neither read nor write means not present. */
#define VFIO_USER_ATS_PERM_READ (1 << 0)
#define VFIO_USER_ATS_PERM_WRITE (1 << 1)
#define VFIO_USER_ATS_PERM_EXEC (1 << 2)
#define VFIO_USER_ATS_PERM_PRIV (1 << 3)
#define VFIO_USER_ATS_PERM_GLOBAL (1 << 4)       /* the same in every PASID */
#define VFIO_USER_ATS_PERM_UNTRANSLATED (1 << 5) /* for untranslated requests only */
#define VFIO_USER_ATS_PERM_NO_SNOOP (1 << 6)
#define VFIO_USER_ATS_PERM_MASK (0x7f)

struct vfio_user_ats_entry {
    uint64_t address;
    uint64_t translated;
    uint64_t length; /* bytes */
    uint32_t perm;   /* VFIO_USER_ATS_PERM_* */
    uint32_t reserved;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_ats_entry, 32);

struct vfio_user_ats_translate_reply {
    uint32_t argsz;
    uint32_t flags; /* 0 */
    uint32_t nr_entries;
    uint32_t reserved;
    struct vfio_user_ats_entry entries[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_ats_translate_reply, 16);

/* ATS_INVALIDATE, client to server. The reply, a bare header, is the completion. */
#define VFIO_USER_ATS_INV_F_GLOBAL (1 << 0) /* every address space */
#define VFIO_USER_ATS_INV_F_ALL (1 << 1)    /* every address; address and length are 0 */

struct vfio_user_ats_invalidate {
    uint32_t argsz;
    uint32_t flags; /* VFIO_USER_ATS_INV_F_* */
    uint64_t address;
    uint64_t length; /* bytes */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_ats_invalidate, 24);

/* PAGE_REQUEST, server to client */
#define VFIO_USER_PAGE_GROUPS 512          /* group indexes are below this */
#define VFIO_USER_PAGE_REQ_F_LAST (1 << 0) /* last message of its group, the one answered */
#define VFIO_USER_PAGE_REQ_F_STOP (1 << 1) /* stop marker of the PASID */

/* vfio_user_page_request_entry.perm */
#define VFIO_USER_PAGE_PERM_READ (1 << 0)
#define VFIO_USER_PAGE_PERM_WRITE (1 << 1)
#define VFIO_USER_PAGE_PERM_EXEC (1 << 2)
#define VFIO_USER_PAGE_PERM_PRIV (1 << 3)
#define VFIO_USER_PAGE_PERM_MASK (0xf)

struct vfio_user_page_request_entry {
    uint64_t address;
    uint32_t nr_pages; /* of the negotiated smallest translation unit */
    uint32_t perm;     /* VFIO_USER_PAGE_PERM_* */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_page_request_entry, 16);

struct vfio_user_page_request {
    uint32_t argsz;
    uint32_t flags; /* VFIO_USER_PAGE_REQ_F_* */
    uint16_t group;
    uint16_t reserved;
    uint32_t nr_entries;
    struct vfio_user_page_request_entry entries[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_page_request, 16);

/* vfio_user_page_response.code; every other value counts as failure. */
#define VFIO_USER_PAGE_RESP_SUCCESS 0
#define VFIO_USER_PAGE_RESP_INVALID 1
#define VFIO_USER_PAGE_RESP_FAILURE 15

/* Reply to the last PAGE_REQUEST of a group */
struct vfio_user_page_response {
    uint32_t argsz;
    uint16_t group;
    uint16_t code; /* VFIO_USER_PAGE_RESP_* */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_page_response, 8);

#ifdef __cplusplus
}
#endif

#endif /* VFIO_USER_H */
