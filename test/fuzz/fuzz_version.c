/* SPDX-License-Identifier: BSD-3-Clause */
/* The capabilities of VERSION: a byte that picks what the server offers, then the client's text. */
#include "fuzz.h"

#include "session/negotiate.h"
#include "wire/quirks.h"

#include <errno.h>

static struct server_offer make_offer(uint8_t bits)
{
    return (struct server_offer){
        .migration = bits & 1,
        .pgsize = 4096,
        .iommu = {
            .present = bits & 2,
            .pasid = { bits & 4, bits & 8, bits & 16, bits & 32 ? 20 : 1 },
            .ats = { bits & 64, bits & 32 ? 32 : 1, bits & 8 ? 12 : 16, bits & 16 ? 64 : 1 },
            .pri = { bits & 128, 512 },
        },
    };
}

static void check_iommu(const struct iommu_caps *met, const struct iommu_caps *ours)
{
    if (!met->present) {
        REQUIRE(!met->pasid.present && !met->ats.present && !met->pri.present);
        return;
    }
    REQUIRE(ours->present && (met->pasid.present || met->ats.present));
    REQUIRE(!met->pasid.present || ours->pasid.present);
    REQUIRE(!met->ats.present || ours->ats.present);
    REQUIRE(!met->pri.present || (ours->pri.present && met->ats.present));
    REQUIRE(met->pasid.bits <= ours->pasid.bits);
    REQUIRE(!met->pasid.present || met->pasid.bits >= 1);
    REQUIRE(!met->pasid.exec || ours->pasid.exec);
    REQUIRE(!met->pasid.priv || ours->pasid.priv);
    REQUIRE(met->ats.queue_depth <= ours->ats.queue_depth);
    REQUIRE(met->ats.max_entries <= ours->ats.max_entries);
    REQUIRE(met->ats.page_shift >= ours->ats.page_shift && met->ats.page_shift < 64);
    REQUIRE(met->pri.max_requests <= ours->pri.max_requests);
}

/* What is not in use may hold anything. */
static bool same_iommu(const struct iommu_caps *a, const struct iommu_caps *b)
{
    return a->present == b->present && a->pasid.present == b->pasid.present &&
           a->ats.present == b->ats.present && a->pri.present == b->pri.present &&
           (!a->pasid.present || memcmp(&a->pasid, &b->pasid, sizeof(a->pasid)) == 0) &&
           (!a->ats.present || memcmp(&a->ats, &b->ats, sizeof(a->ats)) == 0) &&
           (!a->pri.present || a->pri.max_requests == b->pri.max_requests);
}

/* The answer must be one that a client with this very parser agrees to. */
static void check_answer(const char *text, const struct server_offer *offer,
                         struct capabilities *agreed, const struct logger *log)
{
    char answer[CAPABILITIES_MAX_TEXT];
    size_t len = negotiate_answer(text != NULL ? strlen(text) : 0, offer, agreed, answer);
    struct capabilities again;

    REQUIRE(len == strlen(answer));
    if (agreed->iommu.present || agreed->write_multiple) {
        REQUIRE(quirk_version_reply_fits(text != NULL ? strlen(text) : 0, strlen(answer)));
    }
    REQUIRE(negotiate_parse(answer, offer, &again, log) == 0);
    REQUIRE(again.write_multiple == agreed->write_multiple);
    REQUIRE(again.twin_socket == agreed->twin_socket);
    REQUIRE(same_iommu(&again.iommu, &agreed->iommu));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct logger silent;
    struct tape tape = { data, size };
    struct server_offer offer = make_offer(tape_u8(&tape));
    struct capabilities agreed;
    char *text = malloc(tape.left + 1);
    int err;

    REQUIRE(text != NULL);
    memcpy(text, tape.data, tape.left);
    text[tape.left] = '\0';
    err = negotiate_parse(text, &offer, &agreed, &silent);
    REQUIRE(err == 0 || err == -EINVAL);
    if (err == 0) {
        REQUIRE(agreed.max_msg_fds <= 1024);
        REQUIRE(agreed.max_data_xfer_size > 0);
        REQUIRE(!agreed.twin_socket || (agreed.max_msg_fds > 0 && !agreed.iommu.present));
        check_iommu(&agreed.iommu, &offer.iommu);
        check_answer(text, &offer, &agreed, &silent);
    }
    free(text);
    return 0;
}
