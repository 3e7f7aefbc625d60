/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_SESSION_NEGOTIATE_H
#define VFU_SESSION_NEGOTIATE_H

#include "transport/stream.h"
#include "util/log.h"
#include "wire/capabilities.h"

#include <stdbool.h>
#include <stdint.h>

/* What this server has to offer. */
struct server_offer {
    bool migration;
    uint32_t pgsize;
    struct iommu_caps iommu;
};

/*
 * Waits for the client's VERSION until the deadline (CLOCK_MONOTONIC, ns), answers it, and hands
 * out what was agreed; *twin is opened when a twin socket is part of that. Returns 0; -EAGAIN
 * when the deadline passed and the message is not there yet (call again with the same stream);
 * another negative errno when this client cannot be served, who has been told where possible.
 */
int negotiate(struct stream *stream, uint64_t deadline, const struct server_offer *offer,
              struct capabilities *agreed, struct stream *twin, const struct logger *log);

/* The two halves, for tests: text is the client's JSON, NUL-terminated, or NULL. */
int negotiate_parse(const char *text, const struct server_offer *offer,
                    struct capabilities *agreed, const struct logger *log);
/*
 * Writes the JSON of the answer and returns its length without the NUL. @proposal: the length of
 * the client's, or 0 if it sent none: what stock servers do not send is left out of the answer, and
 * taken out of *agreed, if the answer would be longer than that.
 */
size_t negotiate_answer(size_t proposal, const struct server_offer *offer,
                        struct capabilities *agreed, char text[CAPABILITIES_MAX_TEXT]);

#endif /* VFU_SESSION_NEGOTIATE_H */
