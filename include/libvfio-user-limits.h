/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a client may take of the process that serves it, and which files it may pass as memory.
 *
 * Each context has one table of limits. Every limit has a default that suits a device with one
 * virtual machine; docs/limits.md explains each, and how to choose other values. A request that
 * would go beyond a limit is refused with the errno that the table names, changes nothing, and
 * the log line names the limit.
 *
 * An operator who cannot recompile the device sets the environment variable VFU_LIMITS, for example
 * VFU_LIMITS=mapped-files=256,address-space=2T. vfu_realize_ctx() reads the variable, which wins
 * over vfu_set_limit().
 */
#ifndef LIB_VFIO_USER_LIMITS_H
#define LIB_VFIO_USER_LIMITS_H

#include "libvfio-user.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The numbers are part of the ABI: new limits come before VFU_NR_LIMITS. */
enum vfu_limit {
    /* mapped-files: mappings of memory files in this process. Default 4096. ENOSPC. */
    VFU_LIMIT_MAPPED_FILES,
    /* address-space: bytes of memory files that are mapped. Default 16 TiB. ENOSPC. */
    VFU_LIMIT_ADDRESS_SPACE,
    /* io-files: descriptors kept for memory that is read and written as a file. Default 64. ENOSPC. */
    VFU_LIMIT_IO_FILES,
    /* dirty-bitmaps: bytes that a record of dirty pages may need. Default 1 GiB. ENOSPC. */
    VFU_LIMIT_DIRTY_BITMAPS,
    /* pasid-spaces: address spaces of PASIDs that one client had made. Default 65536. ENOSPC. */
    VFU_LIMIT_PASID_SPACES,
    /*
     * queued-output: bytes that wait for the client to read its socket. Default 16 MiB. A client
     * for which more would wait is disconnected. In force from the next client on.
     */
    VFU_LIMIT_QUEUED_OUTPUT,
    /*
     * output-time: milliseconds in which a client takes something of what is queued for it, or is
     * disconnected. Default 10000. In force from the next client on.
     */
    VFU_LIMIT_OUTPUT_TIME,
    /*
     * version-time: milliseconds that a client has after it has connected until its version message
     * is whole. Default 10000. The next client is accepted then.
     */
    VFU_LIMIT_VERSION_TIME,
    VFU_NR_LIMITS,
};

/*
 * Sets a limit.
 *
 * @limit: which.
 * @value: in the unit of the limit. 0 refuses everything that the limit counts. What is in use
 *   already stays in use.
 *
 * Returns 0, or -1 with errno EINVAL: no such limit.
 *
 * Control thread, at any time.
 */
int vfu_set_limit(vfu_ctx_t *vfu_ctx, enum vfu_limit limit, uint64_t value);

/* Returns the value of a limit that is in force; 0 with errno EINVAL if there is no such limit. */
uint64_t vfu_get_limit(vfu_ctx_t *vfu_ctx, enum vfu_limit limit);

/*
 * Allows more kinds of files as guest memory.
 *
 * Files of memfd_create(2), tmpfs and hugetlbfs are always allowed: no other process can delay an
 * access to them. Any other file may make an access wait for as long as its file system likes. A
 * client that brings a FUSE file of its own could stop the device for ever, so DMA_MAP refuses other
 * files with EPERM. The environment variable VFU_MEMORY_FILES, with a list of the same form, allows
 * kinds in addition to those of this call.
 *
 * @kinds: names separated by commas; replaces the list of an earlier call. A name is the type of a
 *   file system as in /proc/filesystems ("ext4", "xfs"), "dma-buf", "device" for device files (DAX),
 *   or "any". NULL or "": no others. Copied.
 *
 * Returns 0, or -1 with errno ENOMEM.
 *
 * Control thread, before vfu_realize_ctx().
 */
int vfu_set_memory_files(vfu_ctx_t *vfu_ctx, const char *kinds);

#ifdef __cplusplus
}
#endif

#endif /* LIB_VFIO_USER_LIMITS_H */
