/* SPDX-License-Identifier: BSD-3-Clause */
/* The version message: every member of the capabilities, and what hostile text does. */
#include "session/negotiate.h"

#include "util/clock.h"
#include "wire/commands.h"
#include "wire/quirks.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define NR(array) (sizeof(array) / sizeof((array)[0]))
#define CAPS(members) "{\"capabilities\":{" members "}}"
#define IOMMU(members) CAPS("\"iommu\":{" members "}")

#define PASID_FULL "\"pasid\":{\"bits\":20,\"exec\":true,\"priv\":true}"
#define ATS_FULL "\"ats\":{\"queue_depth\":32,\"page_shift\":12,\"max_entries\":64}"
#define PRI_FULL "\"pri\":{\"max_requests\":512}"

/* QEMU's, from version 10.1 on: 194 bytes with the NUL. */
#define QEMU_TEXT                                                                                  \
    "{\"capabilities\": {\"pgsizes\": 4096, \"max_msg_fds\": 16, \"max_dma_maps\": 65535, "        \
    "\"max_data_xfer_size\": 1048576, \"migration\": {\"max_bitmap_size\": 268435456, "            \
    "\"pgsize\": 4096}, \"write_multiple\": true}}"

static const struct server_offer plain = { .migration = true, .pgsize = 4096 };

static const struct server_offer full = {
    .migration = true,
    .pgsize = 4096,
    .iommu = {
        .present = true,
        .pasid = { true, true, true, 20 },
        .ats = { true, 32, 12, 64 },
        .pri = { true, 512 },
    },
};

static const struct logger silent = { 0 };

static int parse(const char *text, const struct server_offer *offer, struct capabilities *agreed)
{
    return negotiate_parse(text, offer, agreed, &silent);
}

static bool same_iommu(const struct iommu_caps *a, const struct iommu_caps *b)
{
    return memcmp(a, b, sizeof(*a)) == 0;
}

/* What an older client, or one that says nothing, gets. */
static void assert_defaults(const struct capabilities *agreed)
{
    const struct iommu_caps none = { 0 };

    assert_int_equal(agreed->max_msg_fds, 1);
    assert_int_equal(agreed->max_data_xfer_size, 1024 * 1024);
    assert_false(agreed->twin_socket);
    assert_false(agreed->write_multiple);
    assert_true(same_iommu(&agreed->iommu, &none));
}

static void test_nothing_said(void **state)
{
    static const char *const texts[] = {
        NULL,
        "{}",
        "{\"capabilities\":{}}",
        "  {\"capabilities\" :\t{}\n}",
        "{\"other\":{\"max_msg_fds\":7}}",
        "{\"capabilities\":{\"unknown\":null,\"more\":[1,{\"a\":\"b\"}]}}",
        CAPS("\"max_msg_fd\":7,\"max_msg_fdss\":7,\"MAX_MSG_FDS\":7"),
    };
    struct capabilities agreed;

    (void)state;
    for (size_t i = 0; i < NR(texts); i++) {
        assert_int_equal(parse(texts[i], &full, &agreed), 0);
        assert_defaults(&agreed);
    }
}

static void test_not_an_object(void **state)
{
    static const char *const texts[] = {
        "", " ", "{", "}", "[]", "1", "true", "null", "\"capabilities\"", "{}{}", "{} x", "{}]",
        "{\"capabilities\"}", "{\"capabilities\":}", "{\"capabilities\":{}", "{capabilities:{}}",
        "{\"capabilities\":{},}", "\"\\", "{\"a\":\"\\u", "{\"a\":\"\\ud800",
        "{\"a\":nul}", "{\"a\":0x10}", "{\"a\":01}", "{\"a\":-}",
        "{\"capabilities\":null}", "{\"capabilities\":[]}", "{\"capabilities\":1}",
        "{\"capabilities\":\"{}\"}", "{\"capabilities\":true}",
    };
    struct capabilities agreed;

    (void)state;
    for (size_t i = 0; i < NR(texts); i++) {
        int err = parse(texts[i], &full, &agreed);

        if (err != -EINVAL) {
            print_message("%s: %d\n", texts[i], err);
        }
        assert_int_equal(err, -EINVAL);
    }
}

/* One member of the capabilities with one value: is it taken, and as what? */
struct value_case {
    const char *member;
    const char *value;
    int64_t result; /* negative: the error */
};

static int64_t member_of(const struct capabilities *agreed, const char *member)
{
    const struct { const char *name; int64_t value; } values[] = {
        { "max_msg_fds", agreed->max_msg_fds },
        { "max_data_xfer_size", agreed->max_data_xfer_size },
        { "write_multiple", agreed->write_multiple },
        { "pasid.bits", agreed->iommu.pasid.bits },
        { "pasid.exec", agreed->iommu.pasid.exec },
        { "pasid.priv", agreed->iommu.pasid.priv },
        { "ats.queue_depth", agreed->iommu.ats.queue_depth },
        { "ats.page_shift", agreed->iommu.ats.page_shift },
        { "ats.max_entries", agreed->iommu.ats.max_entries },
        { "pri.max_requests", agreed->iommu.pri.max_requests },
        { "twin_socket.supported", agreed->twin_socket },
    };

    for (size_t i = 0; i < NR(values); i++) {
        if (strcmp(values[i].name, member) == 0) {
            return values[i].value;
        }
    }
    return 0;
}

/* "a.b" becomes {"a":{"b":value}}; parts of the IOMMU extension are put where they belong. */
static void make_text(char *text, size_t size, const char *member, const char *value)
{
    const char *dot = strchr(member, '.');
    int part = dot != NULL ? (int)(dot - member) : 0;

    if (dot == NULL) {
        snprintf(text, size, CAPS("\"%s\":%s"), member, value);
    } else if (strncmp(member, "pri.", 4) == 0) {
        snprintf(text, size, IOMMU("\"ats\":{},\"pri\":{\"%s\":%s}"), dot + 1, value);
    } else if (strncmp(member, "twin", 4) == 0 || strncmp(member, "migr", 4) == 0) {
        snprintf(text, size, CAPS("\"%.*s\":{\"%s\":%s}"), part, member, dot + 1, value);
    } else {
        snprintf(text, size, IOMMU("\"%.*s\":{\"%s\":%s}"), part, member, dot + 1, value);
    }
}

static void check_values(const struct value_case *table, size_t nr)
{
    for (size_t i = 0; i < nr; i++) {
        struct capabilities agreed;
        char text[256];
        int64_t result;

        make_text(text, sizeof(text), table[i].member, table[i].value);
        result = parse(text, &full, &agreed);
        if (result == 0) {
            result = member_of(&agreed, table[i].member);
        }
        if (result != table[i].result) {
            print_message("%s: %lld\n", text, (long long)result);
        }
        assert_int_equal(result, table[i].result);
    }
}

static void test_numbers(void **state)
{
    static const struct value_case table[] = {
        { "max_msg_fds", "0", 0 },
        { "max_msg_fds", "1", 1 },
        { "max_msg_fds", "1024", 1024 },
        { "max_msg_fds", "1025", -EINVAL },
        { "max_msg_fds", "-1", -EINVAL },
        { "max_msg_fds", "-0", 0 },
        { "max_msg_fds", "4294967297", -EINVAL },
        { "max_msg_fds", "18446744073709551617", -EINVAL },
        { "max_msg_fds", "-18446744073709551616", -EINVAL },
        { "max_msg_fds", "1.0", -EINVAL },
        { "max_msg_fds", "1e2", -EINVAL },
        { "max_data_xfer_size", "0", -EINVAL },
        { "max_data_xfer_size", "-1", -EINVAL },
        { "max_data_xfer_size", "1", 1 },
        { "max_data_xfer_size", "1048576", 1048576 },
        { "max_data_xfer_size", "4294967295", UINT32_MAX },
        { "max_data_xfer_size", "4294967296", UINT32_MAX },
        { "max_data_xfer_size", "9223372036854775807", UINT32_MAX },
        { "max_data_xfer_size", "18446744073709551615", UINT32_MAX },
        { "max_data_xfer_size", "99999999999999999999999999", UINT32_MAX },
        { "max_data_xfer_size", "-99999999999999999999999999", -EINVAL },
        { "max_data_xfer_size", "1e400", -EINVAL },
        { "pasid.bits", "0", -EINVAL },
        { "pasid.bits", "1", 1 },
        { "pasid.bits", "20", 20 },
        { "pasid.bits", "21", -EINVAL },
        { "pasid.bits", "4294967300", -EINVAL },
        { "ats.queue_depth", "0", -EINVAL },
        { "ats.queue_depth", "1", 1 },
        { "ats.queue_depth", "32", 32 },
        { "ats.queue_depth", "33", -EINVAL },
        { "ats.page_shift", "11", -EINVAL },
        { "ats.page_shift", "12", 12 },
        { "ats.page_shift", "63", 63 },
        { "ats.page_shift", "64", -EINVAL },
        { "ats.max_entries", "0", -EINVAL },
        { "ats.max_entries", "1", 1 },
        { "ats.max_entries", "64", 64 },
        { "ats.max_entries", "2147483647", 64 },
        { "ats.max_entries", "2147483648", -EINVAL },
        { "pri.max_requests", "0", -EINVAL },
        { "pri.max_requests", "1", 1 },
        { "pri.max_requests", "512", 512 },
        { "pri.max_requests", "2147483647", 512 },
        { "pri.max_requests", "2147483648", -EINVAL },
        { "migration.pgsize", "0", 0 },
        { "migration.pgsize", "4096", 0 },
        { "migration.pgsize", "4095", -EINVAL },
        { "migration.pgsize", "8192", -EINVAL },
        { "migration.pgsize", "-1", -EINVAL },
        { "migration.pgsize", "4294971392", -EINVAL },
    };

    (void)state;
    check_values(table, NR(table));
}

static void test_booleans(void **state)
{
    static const struct value_case table[] = {
        { "write_multiple", "true", 1 },
        { "write_multiple", "false", 0 },
        { "pasid.exec", "true", 1 },
        { "pasid.exec", "false", 0 },
        { "pasid.priv", "true", 1 },
        { "pasid.priv", "false", 0 },
        { "twin_socket.supported", "true", 1 },
        { "twin_socket.supported", "false", 0 },
    };

    (void)state;
    check_values(table, NR(table));
}

/* Every member with a value of every type that is not its own. */
static void test_types(void **state)
{
    static const char *const numbers[] = {
        "max_msg_fds", "max_data_xfer_size", "pasid.bits", "ats.queue_depth", "ats.page_shift",
        "ats.max_entries", "pri.max_requests", "migration.pgsize",
    };
    static const char *const booleans[] = {
        "write_multiple", "pasid.exec", "pasid.priv", "twin_socket.supported",
    };
    static const char *const others[] = { "null", "\"1\"", "\"true\"", "[]", "[1]", "{}", "1.0" };

    (void)state;
    for (size_t i = 0; i < NR(others); i++) {
        for (size_t j = 0; j < NR(numbers); j++) {
            check_values(&(struct value_case){ numbers[j], others[i], -EINVAL }, 1);
            check_values(&(struct value_case){ numbers[j], "true", -EINVAL }, 1);
        }
        for (size_t j = 0; j < NR(booleans); j++) {
            check_values(&(struct value_case){ booleans[j], others[i], -EINVAL }, 1);
            check_values(&(struct value_case){ booleans[j], "1", -EINVAL }, 1);
        }
    }
}

static void test_objects(void **state)
{
    static const char *const objects[] = { "twin_socket", "migration", "iommu" };
    static const char *const parts[] = { "pasid", "ats", "pri" };
    static const char *const others[] = { "null", "1", "true", "\"\"", "[]", "[{}]" };
    struct capabilities agreed;
    char text[128];

    (void)state;
    for (size_t i = 0; i < NR(others); i++) {
        for (size_t j = 0; j < 3; j++) {
            snprintf(text, sizeof(text), CAPS("\"%s\":%s"), objects[j], others[i]);
            assert_int_equal(parse(text, &full, &agreed), -EINVAL);
            snprintf(text, sizeof(text), IOMMU("\"%s\":%s"), parts[j], others[i]);
            assert_int_equal(parse(text, &full, &agreed), -EINVAL);
        }
    }
}

/* What the server does not have is not looked into. */
static void test_migration_that_is_not_there(void **state)
{
    static const struct server_offer without = { .pgsize = 4096 };
    struct capabilities agreed;

    (void)state;
    assert_int_equal(parse(CAPS("\"migration\":{\"pgsize\":1}"), &without, &agreed), 0);
    assert_int_equal(parse(CAPS("\"migration\":7"), &without, &agreed), 0);
}

/* The last of several members of one name counts; the others are not even checked. */
static void test_duplicates(void **state)
{
    struct capabilities agreed;

    (void)state;
    assert_int_equal(parse(CAPS("\"max_msg_fds\":2,\"max_msg_fds\":3"), &full, &agreed), 0);
    assert_int_equal(agreed.max_msg_fds, 3);
    assert_int_equal(parse(CAPS("\"max_msg_fds\":9999,\"max_msg_fds\":3"), &full, &agreed), 0);
    assert_int_equal(parse(CAPS("\"max_msg_fds\":3,\"max_msg_fds\":-1"), &full, &agreed), -EINVAL);
    assert_int_equal(parse("{\"capabilities\":1,\"capabilities\":{}}", &full, &agreed), 0);
    assert_int_equal(parse(IOMMU("\"ats\":1,\"ats\":{}"), &full, &agreed), 0);
    assert_true(agreed.iommu.ats.present);
}

static char *nested(char open, char close, size_t depth)
{
    char *text = malloc(2 * depth + 64);
    size_t at;

    assert_non_null(text);
    at = (size_t)sprintf(text, "{\"capabilities\":{},\"x\":");
    for (size_t i = 0; i < depth; i++) {
        text[at++] = open;
    }
    for (size_t i = 0; i < depth; i++) {
        text[at++] = close;
    }
    strcpy(text + at, "}");
    return text;
}

static void test_deep_nesting(void **state)
{
    static const struct { size_t depth; int err; } table[] = {
        { 1, 0 }, { 8, 0 }, { 16, -EINVAL }, { 1000, -EINVAL }, { 1000000, -EINVAL },
    };
    struct capabilities agreed;

    (void)state;
    for (size_t i = 0; i < NR(table); i++) {
        char *text = nested('[', ']', table[i].depth);

        assert_int_equal(parse(text, &full, &agreed), table[i].err);
        free(text);
    }
}

static void test_long_text(void **state)
{
    const size_t size = 60000;
    char *text = malloc(size + 64);
    struct capabilities agreed;
    size_t at;

    (void)state;
    assert_non_null(text);
    at = (size_t)sprintf(text, "{\"capabilities\":{\"");
    memset(text + at, 'k', size);
    strcpy(text + at + size, "\":1,\"max_msg_fds\":5}}");
    assert_int_equal(parse(text, &full, &agreed), 0);
    assert_int_equal(agreed.max_msg_fds, 5);
    free(text);
}

/* The answer stays until the next one. */
static const char *answer_to(const char *text, const struct server_offer *offer,
                             struct capabilities *agreed)
{
    static char answer[CAPABILITIES_MAX_TEXT];
    size_t len;

    assert_int_equal(parse(text, offer, agreed), 0);
    len = negotiate_answer(text != NULL ? strlen(text) : 0, offer, agreed, answer);
    assert_int_equal(strlen(answer), len);
    return answer;
}

static void test_bytes_that_are_no_text(void **state)
{
    static const char *const texts[] = {
        "\xff", "\xef\xbb\xbf{}", "{\"\xc0\x80\":1}", "{\"a\":\"\xed\xa0\x80\"}",
        "{\"a\":\"\xf8\x88\x80\x80\x80\"}", "{\"capabilities\":{\"max_msg_fds\xff\":1}}",
    };
    struct capabilities agreed;

    (void)state;
    for (size_t i = 0; i < NR(texts); i++) {
        int err = parse(texts[i], &full, &agreed);

        assert_true(err == 0 || err == -EINVAL);
        if (err == 0) {
            assert_defaults(&agreed);
            answer_to(texts[i], &full, &agreed);
        }
    }
}

/* The IOMMU extension: the server's, the client's, and what both have. */
struct meet_case {
    struct iommu_caps ours;
    const char *text;
    struct iommu_caps met;
};

#define OURS_ALL { true, { true, true, true, 16 }, { true, 8, 14, 32 }, { true, 100 } }

static const struct meet_case meet_table[] = {
    { OURS_ALL, PASID_FULL "," ATS_FULL "," PRI_FULL,
      { true, { true, true, true, 16 }, { true, 8, 14, 32 }, { true, 100 } } },
    { OURS_ALL, "\"pasid\":{\"bits\":4},\"ats\":{\"queue_depth\":2,\"page_shift\":16,"
      "\"max_entries\":3},\"pri\":{\"max_requests\":7}",
      { true, { true, false, false, 4 }, { true, 2, 16, 3 }, { true, 7 } } },
    { OURS_ALL, "\"pasid\":{},\"ats\":{},\"pri\":{}",
      { true, { true, false, false, 16 }, { true, 8, 14, 32 }, { true, 100 } } },
    { { true, { true, false, true, 20 }, { false, 0, 0, 0 }, { false, 0 } }, PASID_FULL,
      { true, { true, false, true, 20 }, { false, 0, 0, 0 }, { false, 0 } } },
};

static void test_what_both_have(void **state)
{
    (void)state;
    for (size_t i = 0; i < NR(meet_table); i++) {
        const struct meet_case *c = &meet_table[i];
        struct server_offer offer = { .pgsize = 4096, .iommu = c->ours };
        struct capabilities agreed;
        char text[512];

        snprintf(text, sizeof(text), IOMMU("%s"), c->text);
        assert_int_equal(parse(text, &offer, &agreed), 0);
        assert_int_equal(agreed.iommu.present, c->met.present);
        assert_int_equal(agreed.iommu.pasid.present, c->met.pasid.present);
        assert_int_equal(agreed.iommu.pasid.bits, c->met.pasid.bits);
        assert_int_equal(agreed.iommu.pasid.exec, c->met.pasid.exec);
        assert_int_equal(agreed.iommu.pasid.priv, c->met.pasid.priv);
        assert_int_equal(agreed.iommu.ats.present, c->met.ats.present);
        assert_int_equal(agreed.iommu.pri.present, c->met.pri.present);
        if (c->met.ats.present) {
            assert_int_equal(agreed.iommu.ats.queue_depth, c->met.ats.queue_depth);
            assert_int_equal(agreed.iommu.ats.page_shift, c->met.ats.page_shift);
            assert_int_equal(agreed.iommu.ats.max_entries, c->met.ats.max_entries);
        }
        if (c->met.pri.present) {
            assert_int_equal(agreed.iommu.pri.max_requests, c->met.pri.max_requests);
        }
    }
}

/* Every subset of the parts on either side: bit 0 pasid, 1 ats, 2 pri. */
static void test_matrix_of_parts(void **state)
{
    (void)state;
    for (unsigned ours = 0; ours < 8; ours++) {
        for (unsigned theirs = 0; theirs < 8; theirs++) {
            struct server_offer offer = full;
            struct capabilities agreed;
            unsigned both = ours & theirs;
            char text[512];

            offer.iommu.pasid.present = ours & 1;
            offer.iommu.ats.present = ours & 2;
            offer.iommu.pri.present = ours & 4;
            snprintf(text, sizeof(text), IOMMU("%s%s%s\"x\":1"),
                     theirs & 1 ? PASID_FULL "," : "", theirs & 2 ? ATS_FULL "," : "",
                     theirs & 4 ? PRI_FULL "," : "");
            assert_int_equal(parse(text, &offer, &agreed), 0);
            assert_int_equal(agreed.iommu.present, (both & 3) != 0);
            assert_int_equal(agreed.iommu.pasid.present, both & 1);
            assert_int_equal(agreed.iommu.ats.present, (both & 2) != 0);
            assert_int_equal(agreed.iommu.pri.present, (both & 6) == 6);
        }
    }
}

static void test_server_without_the_extension(void **state)
{
    const struct iommu_caps none = { 0 };
    struct capabilities agreed;

    (void)state;
    assert_int_equal(parse(IOMMU(PASID_FULL "," ATS_FULL "," PRI_FULL), &plain, &agreed), 0);
    assert_true(same_iommu(&agreed.iommu, &none));
    /* Malformed is malformed, for whoever reads it. */
    assert_int_equal(parse(IOMMU("\"pasid\":{\"bits\":99}"), &plain, &agreed), -EINVAL);
}

static void test_twin_socket(void **state)
{
    static const struct { const char *text; bool twin; } table[] = {
        { CAPS("\"twin_socket\":{\"supported\":true}"), true },
        { CAPS("\"twin_socket\":{\"supported\":true,\"fd_index\":3}"), true },
        { CAPS("\"twin_socket\":{\"supported\":false}"), false },
        { CAPS("\"twin_socket\":{}"), false },
        { CAPS("\"max_msg_fds\":0,\"twin_socket\":{\"supported\":true}"), false },
        { CAPS("\"twin_socket\":{\"supported\":true},\"iommu\":{" ATS_FULL "}"), false },
    };
    struct capabilities agreed;

    (void)state;
    for (size_t i = 0; i < NR(table); i++) {
        assert_int_equal(parse(table[i].text, &full, &agreed), 0);
        assert_int_equal(agreed.twin_socket, table[i].twin);
    }
}

/* The answer */

struct answer_case {
    const struct server_offer *offer;
    const char *text, *answer;
};

static void test_answers(void **state)
{
    static const struct server_offer bare = { .pgsize = 4096 };
    static const struct answer_case table[] = {
        { &bare, NULL, CAPS("\"max_msg_fds\":8,\"max_data_xfer_size\":1048576") },
        { &plain, NULL, CAPS("\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,"
                             "\"migration\":{\"pgsize\":4096}") },
        { &plain, QEMU_TEXT, CAPS("\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,"
                                  "\"migration\":{\"pgsize\":4096},\"write_multiple\":true") },
        { &full, "{}", CAPS("\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,"
                            "\"migration\":{\"pgsize\":4096}") },
        { &full, IOMMU(PASID_FULL "," ATS_FULL "," PRI_FULL),
          IOMMU(PASID_FULL "," ATS_FULL "," PRI_FULL) },
        { &full, IOMMU("\"pasid\":{\"bits\":12}"), IOMMU("\"pasid\":{\"bits\":12}") },
        { &full, CAPS("\"max_msg_fds\":8,\"iommu\":{\"pasid\":{\"bits\":12}}"),
          CAPS("\"max_msg_fds\":8,\"iommu\":{\"pasid\":{\"bits\":12}}") },
    };

    (void)state;
    for (size_t i = 0; i < NR(table); i++) {
        struct capabilities agreed;
        const char *answer = answer_to(table[i].text, table[i].offer, &agreed);

        assert_string_equal(answer, table[i].answer);
    }
}

/* QEMU has room for as much as it sent; a proposal that is too short for the answer is not met. */
static void test_length_of_the_answer(void **state)
{
    static const char *const texts[] = {
        QEMU_TEXT,
        IOMMU(PASID_FULL "," ATS_FULL "," PRI_FULL),
        IOMMU(PASID_FULL "," ATS_FULL),
        IOMMU("\"ats\":{\"queue_depth\":9,\"page_shift\":12,\"max_entries\":9}"),
        CAPS("\"max_msg_fds\":1,\"max_data_xfer_size\":1048576,\"iommu\":{" ATS_FULL "}"),
    };

    (void)state;
    for (size_t i = 0; i < NR(texts); i++) {
        struct capabilities agreed;
        const char *answer = answer_to(texts[i], &full, &agreed);

        assert_true(strlen(answer) <= strlen(texts[i]));
        assert_int_equal(agreed.iommu.present, strstr(texts[i], "iommu") != NULL);
    }
}

static void test_too_short_for_the_answer(void **state)
{
    static const char *const texts[] = {
        IOMMU("\"ats\":{}"), IOMMU("\"pasid\":{}"), IOMMU("\"pasid\":{},\"ats\":{},\"pri\":{}"),
        CAPS("\"write_multiple\":true"), "{\"capabilities\":{\"iommu\":{\"ats\":{},\"pasid\":{}}}}",
    };

    (void)state;
    for (size_t i = 0; i < NR(texts); i++) {
        const struct iommu_caps none = { 0 };
        struct capabilities agreed;
        const char *answer = answer_to(texts[i], &full, &agreed);

        assert_null(strstr(answer, "iommu"));
        assert_null(strstr(answer, "write_multiple"));
        assert_false(agreed.write_multiple);
        assert_true(same_iommu(&agreed.iommu, &none));
    }
}

/* An answer is JSON that this very parser takes. */
static void test_answers_can_be_read(void **state)
{
    static const char *const texts[] = {
        NULL, "{}", QEMU_TEXT, IOMMU(PASID_FULL "," ATS_FULL "," PRI_FULL),
        CAPS("\"twin_socket\":{\"supported\":true}"),
    };

    (void)state;
    for (size_t i = 0; i < NR(texts); i++) {
        struct capabilities agreed, again;
        const char *answer = answer_to(texts[i], &full, &agreed);

        assert_int_equal(parse(answer, &full, &again), 0);
        assert_int_equal(again.twin_socket, agreed.twin_socket);
        assert_int_equal(again.write_multiple, agreed.write_multiple);
        assert_true(same_iommu(&again.iommu, &agreed.iommu));
    }
}

/* The exchange itself, over a socket pair */

struct exchange {
    struct stream stream, twin;
    struct capabilities agreed;
    int peer;
};

static int open_exchange(void **state)
{
    static struct exchange x;
    int pair[2];

    memset(&x, 0, sizeof(x));
    x.twin.rx_fd = x.twin.tx_fd = -1;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(stream_open(&x.stream, pair[0], pair[0], true, WIRE_MAX_MESSAGE), 0);
    x.peer = pair[1];
    *state = &x;
    return 0;
}

static int close_exchange(void **state)
{
    struct exchange *x = *state;

    stream_close(&x->stream);
    stream_close(&x->twin);
    if (x->peer != -1) {
        close(x->peer);
    }
    return 0;
}

static int run(struct exchange *x)
{
    return negotiate(&x->stream, 0, &full, &x->agreed, &x->twin, &silent);
}

/* A VERSION message; returns its size. */
static size_t version_message(uint8_t *buf, uint16_t major, uint16_t minor, const char *text,
                              size_t text_len)
{
    const struct vfio_user_version version = { .major = major, .minor = minor };
    const struct vfio_user_header hdr = {
        .msg_id = 0x1234,
        .cmd = VFIO_USER_VERSION,
        .msg_size = (uint32_t)(sizeof(hdr) + sizeof(version) + text_len),
    };

    memcpy(buf, &hdr, sizeof(hdr));
    memcpy(buf + sizeof(hdr), &version, sizeof(version));
    memcpy(buf + sizeof(hdr) + sizeof(version), text, text_len);
    return hdr.msg_size;
}

static void peer_sends(struct exchange *x, const void *data, size_t len)
{
    assert_int_equal(send(x->peer, data, len, 0), len);
}

/* The next message; payload ends in a byte more, which is NUL. */
static struct vfio_user_header peer_receives(struct exchange *x, uint8_t payload[512])
{
    struct vfio_user_header hdr;

    assert_int_equal(recv(x->peer, &hdr, sizeof(hdr), MSG_WAITALL), sizeof(hdr));
    assert_true(hdr.msg_size < 512);
    memset(payload, 0, 512);
    if (hdr.msg_size > sizeof(hdr)) {
        assert_int_equal(recv(x->peer, payload, hdr.msg_size - sizeof(hdr), MSG_WAITALL),
                         hdr.msg_size - sizeof(hdr));
    }
    return hdr;
}

static void assert_refused(struct exchange *x, int err)
{
    uint8_t payload[512];
    struct vfio_user_header hdr = peer_receives(x, payload);

    assert_int_equal(hdr.flags, VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR);
    assert_int_equal(hdr.error_no, err);
    assert_int_equal(hdr.msg_size, sizeof(hdr));
    assert_int_equal(recv(x->peer, payload, 1, MSG_DONTWAIT), -1);
}

static void test_exchange(void **state)
{
    struct exchange *x = *state;
    uint8_t message[256], payload[512];
    struct vfio_user_version version;
    struct vfio_user_header hdr;
    const char *text = "{}";

    peer_sends(x, message, version_message(message, 0, 1, text, 3));
    assert_int_equal(run(x), 0);
    hdr = peer_receives(x, payload);
    assert_int_equal(hdr.msg_id, 0x1234);
    assert_int_equal(hdr.cmd, VFIO_USER_VERSION);
    assert_int_equal(hdr.flags, VFIO_USER_F_TYPE_REPLY);
    memcpy(&version, payload, sizeof(version));
    assert_int_equal(version.major, 0);
    assert_int_equal(version.minor, 1);
    assert_int_equal(strlen((char *)payload + 4) + 1 + 4 + 16, hdr.msg_size);
    assert_int_equal(x->agreed.minor, 1);
}

static void test_minor_versions(void **state)
{
    static const struct { uint16_t theirs, agreed; } table[] = {
        { 0, 0 }, { 1, 1 }, { 2, 2 }, { 3, 2 }, { 100, 2 }, { UINT16_MAX, 2 },
    };

    for (size_t i = 0; i < NR(table); i++) {
        struct exchange *x = *state;
        uint8_t message[64];

        peer_sends(x, message, version_message(message, 0, table[i].theirs, "", 0));
        assert_int_equal(run(x), 0);
        assert_int_equal(x->agreed.minor, table[i].agreed);
        close_exchange(state);
        open_exchange(state);
    }
}

/* A byte at a time: never an answer before the last one, and not a byte taken beyond it. */
static void test_pieces(void **state)
{
    struct exchange *x = *state;
    uint8_t message[256], payload[512];
    size_t size = version_message(message, 0, 1, QEMU_TEXT, sizeof(QEMU_TEXT));

    for (size_t i = 0; i + 1 < size; i++) {
        peer_sends(x, message + i, 1);
        assert_int_equal(run(x), -EAGAIN);
        assert_int_equal(recv(x->peer, payload, 1, MSG_DONTWAIT), -1);
    }
    message[size] = 'n';
    peer_sends(x, message + size - 1, 2);
    assert_int_equal(run(x), 0);
    assert_int_equal(stream_buffered(&x->stream), 0);
    assert_int_equal(recv(x->stream.rx_fd, payload, 2, MSG_DONTWAIT), 1);
    assert_int_equal(payload[0], 'n');
}

static void test_end_at_every_byte(void **state)
{
    uint8_t message[256];
    size_t size = version_message(message, 0, 1, "{}", 3);

    for (size_t i = 0; i < size; i++) {
        struct exchange *x = *state;

        if (i > 0) {
            peer_sends(x, message, i);
        }
        shutdown(x->peer, SHUT_WR);
        assert_int_equal(run(x), i == 0 ? -ENOMSG : -ECONNRESET);
        close_exchange(state);
        open_exchange(state);
    }
}

struct refused_case {
    struct vfio_user_header hdr;
    uint8_t payload[16];
    int err;
    bool told; /* with an error reply; whether or not, negotiate() fails with err */
};

#define SIZE(n) .msg_size = sizeof(struct vfio_user_header) + (n)

static void test_refused(void **state)
{
    static const struct refused_case table[] = {
        { { .cmd = VFIO_USER_VERSION, SIZE(0) }, { 0 }, EINVAL, true },
        { { .cmd = VFIO_USER_VERSION, SIZE(3) }, { 0 }, EINVAL, true },
        { { .cmd = VFIO_USER_VERSION, SIZE(4) }, { 1 }, EINVAL, true },
        { { .cmd = VFIO_USER_VERSION, SIZE(4) }, { 0xff, 0xff }, EINVAL, true },
        { { .cmd = VFIO_USER_VERSION, SIZE(6) }, { 0, 0, 0, 0, '{', '}' }, EINVAL, true },
        { { .cmd = VFIO_USER_VERSION, SIZE(5) }, { 0 }, EINVAL, true },
        { { .cmd = VFIO_USER_VERSION, SIZE(7) }, { 0, 0, 0, 0, 'x' }, EINVAL, true },
        { { .cmd = VFIO_USER_DEVICE_RESET, SIZE(0) }, { 0 }, EINVAL, true },
        { { .cmd = 999, SIZE(4) }, { 0 }, EINVAL, true },
        { { .cmd = VFIO_USER_VERSION, .msg_size = 0 }, { 0 }, EINVAL, true },
        { { .cmd = VFIO_USER_VERSION, .msg_size = 15 }, { 0 }, EINVAL, true },
        { { .cmd = VFIO_USER_VERSION, .msg_size = UINT32_MAX }, { 0 }, EINVAL, true },
        { { .cmd = VFIO_USER_VERSION, SIZE(4 + 64 * 1024 + 1) }, { 0 }, EINVAL, true },
        { { .cmd = VFIO_USER_VERSION, SIZE(4), .flags = VFIO_USER_F_TYPE_REPLY }, { 0 }, EINVAL,
          false },
    };

    for (size_t i = 0; i < NR(table); i++) {
        struct exchange *x = *state;
        const struct refused_case *c = &table[i];

        memset(x->stream.buf, 0, 64); /* a NUL that was not sent must not do */
        peer_sends(x, &c->hdr, sizeof(c->hdr));
        if (c->hdr.msg_size > sizeof(c->hdr) &&
            c->hdr.msg_size <= sizeof(c->hdr) + sizeof(c->payload)) {
            peer_sends(x, c->payload, c->hdr.msg_size - sizeof(c->hdr));
        }
        assert_int_equal(run(x), -c->err);
        if (c->told) {
            assert_refused(x, c->err);
        } else {
            assert_int_equal(recv(x->peer, &(uint8_t){ 0 }, 1, MSG_DONTWAIT), -1);
        }
        close_exchange(state);
        open_exchange(state);
    }
}

/* Text behind an inner NUL is not text. */
static void test_inner_nul(void **state)
{
    static const char text[] = "{}\0garbage";
    struct exchange *x = *state;
    uint8_t message[64];

    peer_sends(x, message, version_message(message, 0, 1, text, sizeof(text)));
    assert_int_equal(run(x), 0);
    assert_defaults(&x->agreed);
}

static void send_with_fd(int sock, const void *data, size_t len, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = { .bytes = { 0 } };
    struct iovec iov = { .iov_base = (void *)data, .iov_len = len };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    assert_int_equal(sendmsg(sock, &msg, 0), len);
}

/* The write end of a pipe, whose read end tells when the last copy of it has been closed. */
static void test_descriptors_with_version(void **state)
{
    struct exchange *x = *state;
    uint8_t message[64], byte;
    int ends[2];

    assert_int_equal(pipe(ends), 0);
    send_with_fd(x->peer, message, version_message(message, 0, 1, "{}", 3), ends[1]);
    close(ends[1]);
    assert_int_equal(run(x), -EFAULT);
    assert_int_equal(read(ends[0], &byte, 1), 0);
    close(ends[0]);
}

static void test_twin_arrives(void **state)
{
    static const char text[] = CAPS("\"twin_socket\":{\"supported\":true}");
    struct exchange *x = *state;
    uint8_t message[256], payload[512];
    union {
        char bytes[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = { .iov_base = payload, .iov_len = sizeof(payload) };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    struct iovec out = { .iov_base = "twin", .iov_len = 4 };
    int fd;

    peer_sends(x, message, version_message(message, 0, 1, text, sizeof(text)));
    assert_int_equal(run(x), 0);
    assert_true(x->agreed.twin_socket);
    assert_true(recvmsg(x->peer, &msg, 0) > 16);
    assert_int_equal(CMSG_FIRSTHDR(&msg)->cmsg_len, CMSG_LEN(sizeof(int)));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
    assert_non_null(strstr((char *)payload + 20, "\"fd_index\":0"));
    assert_int_equal(stream_send(&x->twin, &out, 1, NULL, 0), 4);
    assert_int_equal(recv(fd, payload, 8, 0), 4);
    close(fd);
}

/* A client that goes away before it is answered. */
static void test_peer_gone(void **state)
{
    struct exchange *x = *state;
    uint8_t message[64];

    peer_sends(x, message, version_message(message, 0, 1, "{}", 3));
    close(x->peer);
    x->peer = -1;
    assert_int_equal(run(x), -ECONNRESET);
}

#define EXCHANGE(test) cmocka_unit_test_setup_teardown(test, open_exchange, close_exchange)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_said),
        cmocka_unit_test(test_not_an_object),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_booleans),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_objects),
        cmocka_unit_test(test_migration_that_is_not_there),
        cmocka_unit_test(test_duplicates),
        cmocka_unit_test(test_deep_nesting),
        cmocka_unit_test(test_long_text),
        cmocka_unit_test(test_bytes_that_are_no_text),
        cmocka_unit_test(test_what_both_have),
        cmocka_unit_test(test_matrix_of_parts),
        cmocka_unit_test(test_server_without_the_extension),
        cmocka_unit_test(test_twin_socket),
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_length_of_the_answer),
        cmocka_unit_test(test_too_short_for_the_answer),
        cmocka_unit_test(test_answers_can_be_read),
        EXCHANGE(test_exchange),
        EXCHANGE(test_minor_versions),
        EXCHANGE(test_pieces),
        EXCHANGE(test_end_at_every_byte),
        EXCHANGE(test_refused),
        EXCHANGE(test_inner_nul),
        EXCHANGE(test_descriptors_with_version),
        EXCHANGE(test_twin_arrives),
        EXCHANGE(test_peer_gone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
