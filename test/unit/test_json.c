/* SPDX-License-Identifier: BSD-3-Clause */
/* The JSON of VERSION: writing into too little room, and reading a text cut at every byte. */
#include "wire/capabilities.h"
#include "wire/json.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static int write_sample(char *buf, size_t size)
{
    struct json_out out;

    json_begin(&out, buf, size);
    json_uint(&out, "n", 4294967295u);
    json_open(&out, "o");
    json_bool(&out, "t", true);
    json_bool(&out, "f", false);
    json_close(&out);
    json_open(&out, "empty");
    json_close(&out);
    return json_end(&out);
}

#define SAMPLE "{\"n\":4294967295,\"o\":{\"t\":true,\"f\":false},\"empty\":{}}"

/* The buffer is allocated to the byte, so that a write beyond it is found. */
static void test_every_size_of_buffer(void **state)
{
    (void)state;
    for (size_t size = 1; size < 2 * sizeof(SAMPLE); size++) {
        char *buf = malloc(size);

        assert_non_null(buf);
        if (size < sizeof(SAMPLE)) {
            assert_int_equal(write_sample(buf, size), -ENOSPC);
        } else {
            assert_int_equal(write_sample(buf, size), sizeof(SAMPLE) - 1);
            assert_string_equal(buf, SAMPLE);
        }
        free(buf);
    }
}

/* The largest values that the capabilities can have fit into the buffer that is made for them. */
static void test_longest_capabilities(void **state)
{
    struct capabilities caps;
    char text[CAPABILITIES_MAX_TEXT];
    size_t len;

    (void)state;
    memset(&caps, 0xff, sizeof(caps));
    caps.twin_socket = caps.write_multiple = true;
    caps.named.max_msg_fds = caps.named.max_data_xfer_size = caps.named.migration = true;
    caps.iommu.present = caps.iommu.pasid.present = caps.iommu.ats.present = true;
    caps.iommu.pri.present = caps.iommu.pasid.exec = caps.iommu.pasid.priv = true;
    len = capabilities_write(&caps, text);
    assert_true(len > 0);
    assert_int_equal(strlen(text), len);
}

static void test_text_cut_at_every_byte(void **state)
{
    static const char text[] =
        " {\"a\" : [ 1 , -0.5e+3, {\"\\u00e4\\n\":null}, \"\\\"\"] , \"n\":7, \"o\":{\"b\":false}}";
    uint32_t n = 0;
    bool b = true, there = false;
    const struct json_member inner[] = { { .name = "b", .type = JSON_BOOL, .out = &b } };
    const struct json_member members[] = {
        { .name = "n", .type = JSON_INT, .min = 1, .max = 7, .out = &n },
        { .name = "o", .type = JSON_OBJECT, .members = inner, .nr_members = 1, .present = &there },
    };
    char why[64];

    (void)state;
    for (size_t len = 0; len < sizeof(text); len++) {
        char *cut = strndup(text, len);

        assert_non_null(cut);
        assert_int_equal(json_read(cut, members, 2, why, sizeof(why)),
                         len == sizeof(text) - 1 ? 0 : -EINVAL);
        free(cut);
    }
    assert_int_equal(n, 7);
    assert_false(b);
    assert_true(there);
}

static void test_reasons(void **state)
{
    static const struct {
        const char *text, *why;
    } table[] = {
        { "[]", "the text is not one JSON object" },
        { "{\"n\":8}", "n is 8, must be between 1 and 7" },
        { "{\"n\":\"7\"}", "n has the wrong type, must be of type integer" },
        { "{\"o\":[]}", "o has the wrong type, must be of type object" },
    };
    uint32_t n = 0;
    const struct json_member members[] = {
        { .name = "n", .type = JSON_INT, .min = 1, .max = 7, .out = &n },
        { .name = "o", .type = JSON_OBJECT },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        char why[64] = "";

        assert_int_equal(json_read(table[i].text, members, 2, why, sizeof(why)), -EINVAL);
        assert_string_equal(why, table[i].why);
    }
    assert_int_equal(n, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_size_of_buffer),
        cmocka_unit_test(test_longest_capabilities),
        cmocka_unit_test(test_text_cut_at_every_byte),
        cmocka_unit_test(test_reasons),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
