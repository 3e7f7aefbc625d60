/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The capabilities of the VERSION message, as either end proposes or answers them: vfio-user
 * protocol, VFIO_USER_VERSION; vfio-user IOMMU extension, Negotiation.
 */
#ifndef VFU_WIRE_CAPABILITIES_H
#define VFU_WIRE_CAPABILITIES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The longest text that capabilities_write() makes, with its NUL. */
#define CAPABILITIES_MAX_TEXT 512

/* The longest reason that capabilities_read() gives, with its NUL. */
#define CAPABILITIES_MAX_WHY 128

/* The object `iommu`. */
struct iommu_caps {
    bool present;
    struct {
        bool present, exec, priv;
        uint32_t bits;
    } pasid;
    struct {
        bool present;
        uint32_t queue_depth, page_shift, max_entries;
    } ats;
    struct {
        bool present;
        uint32_t max_requests;
    } pri;
};

struct capabilities {
    uint16_t minor; /* of the protocol's version, which stands beside the JSON */
    uint32_t max_msg_fds, max_data_xfer_size;
    bool twin_socket;
    bool write_multiple;
    struct {
        uint32_t pgsize;
        uint32_t max_bitmap_size; /* written if it is not 0, not read */
    } migration;
    struct iommu_caps iommu;
    /* Which of the members that may be left out are there. */
    struct {
        bool max_msg_fds, max_data_xfer_size, migration;
    } named;
};

/* Sets what a peer that says nothing means. */
void capabilities_default(struct capabilities *caps);

/*
 * Reads the JSON of a VERSION message, NUL-terminated or NULL for none. What the text does not name
 * stays as it is in *caps.
 *
 * @migration: false if the reader has no migration, and so does not look into that object.
 * @why: on failure, what is wrong with the text.
 *
 * Returns 0 or -EINVAL.
 */
int capabilities_read(const char *text, struct capabilities *caps, bool migration,
                      char why[CAPABILITIES_MAX_WHY]);

/* Writes what is named or true. Returns the length of the text without its NUL. */
size_t capabilities_write(const struct capabilities *caps, char text[CAPABILITIES_MAX_TEXT]);

#endif /* VFU_WIRE_CAPABILITIES_H */
