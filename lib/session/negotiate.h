/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_SESSION_NEGOTIATE_H
#define VFU_SESSION_NEGOTIATE_H

#include "transport/stream.h"
#include "util/log.h"

#include <stdbool.h>
#include <stdint.h>

/* The `iommu` object of the version message (vfio-user IOMMU extension, Negotiation). */
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

/* What this server has to offer. */
struct server_offer {
    bool migration;
    uint32_t pgsize;
    struct iommu_caps iommu;
};

/* What both sides agreed on. */
struct agreed_caps {
    uint16_t minor;
    uint32_t max_msg_fds; /* the client's */
    uint32_t max_data_xfer_size; /* the client's */
    bool twin_socket;
    bool write_multiple;
    struct iommu_caps iommu;
};

/*
 * Waits for the client's VERSION until the deadline (CLOCK_MONOTONIC, ns), answers it, and hands
 * out what was agreed; *twin is opened when a twin socket is part of that. Returns 0; -EAGAIN
 * when the deadline passed and the message is not there yet (call again with the same stream);
 * another negative errno when this client cannot be served, who has been told where possible.
 */
int negotiate(struct stream *stream, uint64_t deadline, const struct server_offer *offer,
              struct agreed_caps *agreed, struct stream *twin, const struct logger *log);

/* The two halves, for tests: text is the client's JSON, NUL-terminated, or NULL. */
int negotiate_parse(const char *text, const struct server_offer *offer,
                    struct agreed_caps *agreed, const struct logger *log);
/* Returns a string to free(), or NULL. A client that sent text gets no longer one back. */
char *negotiate_answer(const char *text, const struct server_offer *offer,
                       struct agreed_caps *agreed);

#endif /* VFU_SESSION_NEGOTIATE_H */
