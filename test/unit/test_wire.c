/* SPDX-License-Identifier: BSD-3-Clause */
/* The checks that hold for every request: the table of commands, read row by row. */
#include "wire/commands.h"

#include "util/log.h"
#include "wire/quirks.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define NR(array) (sizeof(array) / sizeof((array)[0]))

/* What the vfio-user protocol says of each command that a client sends. */
struct expected {
    uint16_t cmd;
    const char *name;
    uint32_t size; /* of the fixed part of the payload */
    bool argsz; /* begins with argsz */
    bool prefix; /* may have a PASID prefix */
    bool translated; /* may name the translated space */
};

static const struct expected client_commands[] = {
    { VFIO_USER_VERSION, "VERSION", 4, false, false, false },
    { VFIO_USER_DMA_MAP, "DMA_MAP", 32, true, true, true },
    { VFIO_USER_DMA_UNMAP, "DMA_UNMAP", 24, true, true, true },
    { VFIO_USER_DEVICE_GET_INFO, "DEVICE_GET_INFO", 16, true, false, false },
    { VFIO_USER_DEVICE_GET_REGION_INFO, "DEVICE_GET_REGION_INFO", 32, true, false, false },
    { VFIO_USER_DEVICE_GET_REGION_IO_FDS, "DEVICE_GET_REGION_IO_FDS", 16, true, false, false },
    { VFIO_USER_DEVICE_GET_IRQ_INFO, "DEVICE_GET_IRQ_INFO", 16, true, false, false },
    { VFIO_USER_DEVICE_SET_IRQS, "DEVICE_SET_IRQS", 20, true, false, false },
    { VFIO_USER_REGION_READ, "REGION_READ", 16, false, false, false },
    { VFIO_USER_REGION_WRITE, "REGION_WRITE", 16, false, false, false },
    { VFIO_USER_DEVICE_RESET, "DEVICE_RESET", 0, false, false, false },
    { VFIO_USER_REGION_WRITE_MULTI, "REGION_WRITE_MULTI", 8, false, false, false },
    { VFIO_USER_DEVICE_FEATURE, "DEVICE_FEATURE", 8, false, false, false },
    { VFIO_USER_MIG_DATA_READ, "MIG_DATA_READ", 8, false, false, false },
    { VFIO_USER_MIG_DATA_WRITE, "MIG_DATA_WRITE", 8, false, false, false },
    { VFIO_USER_ATS_INVALIDATE, "ATS_INVALIDATE", 24, true, true, false },
};

static const uint16_t server_commands[] = {
    VFIO_USER_DMA_READ, VFIO_USER_DMA_WRITE, VFIO_USER_ATS_TRANSLATE, VFIO_USER_PAGE_REQUEST,
};

static const struct wire_features nothing = { 0 };
static const struct wire_features everything = { true, true, true, 20 };

/* The last line of the log: a refusal must be told, and name its command. */
static char line[256];
static unsigned lines;

static void keep_line(struct vfu_ctx *ctx, int level, const char *msg)
{
    (void)ctx;
    assert_int_equal(level, LOG_ERR);
    snprintf(line, sizeof(line), "%s", msg);
    lines++;
}

static const struct logger logger = { .fn = keep_line, .level = LOG_DEBUG };

/*
 * Checks a request whose payload lies at the end of its memory, so that a sanitizer sees a read
 * beyond it. A refusal must come with exactly one line.
 */
static int check(uint16_t cmd, uint32_t flags, const void *payload, size_t len,
                 const struct wire_features *features)
{
    const struct vfio_user_header hdr = {
        .msg_id = 77,
        .cmd = cmd,
        .msg_size = (uint32_t)(sizeof(hdr) + len),
        .flags = flags,
    };
    uint8_t *copy = malloc(len + !len);
    unsigned before = lines;
    int err;

    assert_non_null(copy);
    memcpy(copy, payload, len);
    err = wire_check_request(&hdr, copy, len, features, &logger);
    free(copy);
    assert_int_equal(lines - before, err < 0);
    /* What lies behind the end makes no difference. */
    assert_int_equal(wire_check_request(&hdr, payload, len, features, &logger), err);
    return err;
}

/* A payload of len bytes with an argsz in front, behind a PASID prefix if there is room for one. */
static const uint8_t *payload_of(uint32_t argsz, uint32_t prefixed)
{
    static uint8_t payload[64];

    memset(payload, 0, sizeof(payload));
    memcpy(payload + prefixed, &argsz, sizeof(argsz));
    return payload;
}

static const struct expected *expected(uint16_t cmd)
{
    for (size_t i = 0; i < NR(client_commands); i++) {
        if (client_commands[i].cmd == cmd) {
            return &client_commands[i];
        }
    }
    return NULL;
}

static bool from_server(uint16_t cmd)
{
    for (size_t i = 0; i < NR(server_commands); i++) {
        if (server_commands[i] == cmd) {
            return true;
        }
    }
    return false;
}

static void test_every_number(void **state)
{
    (void)state;
    for (uint32_t cmd = 0; cmd <= UINT16_MAX; cmd++) {
        const struct command_rule *rule = command_rule((uint16_t)cmd);
        const struct expected *e = expected((uint16_t)cmd);

        if (e != NULL) {
            assert_non_null(rule);
            assert_int_equal(rule->from, FROM_CLIENT);
            assert_int_equal(rule->min_payload, e->size);
            assert_string_equal(command_name((uint16_t)cmd), e->name);
            assert_int_equal(command_traits((uint16_t)cmd), rule->traits);
        } else if (from_server((uint16_t)cmd)) {
            assert_non_null(rule);
            assert_int_equal(rule->from, FROM_SERVER);
        } else {
            assert_null(rule);
            assert_int_equal(command_traits((uint16_t)cmd), 0);
            assert_string_equal(command_name((uint16_t)cmd), "unknown command");
        }
    }
}

static void test_who_may_send_it(void **state)
{
    (void)state;
    for (uint32_t cmd = 0; cmd <= UINT16_MAX; cmd++) {
        int err = check((uint16_t)cmd, 0, payload_of(64, 0), 24, &everything);
        const struct expected *e = expected((uint16_t)cmd);

        assert_int_equal(err, e == NULL || e->size > 24 ? -EINVAL : 0);
    }
}

/* A byte less than the fixed part, the fixed part, and all that may follow it. */
static void test_sizes(void **state)
{
    (void)state;
    for (size_t i = 0; i < NR(client_commands); i++) {
        const struct expected *e = &client_commands[i];

        for (size_t len = 0; len <= e->size + 8; len++) {
            bool exact = e->cmd == VFIO_USER_ATS_INVALIDATE;
            bool fits = len >= e->size && !(exact && len > e->size);
            int err = check(e->cmd, 0, payload_of(64, 0), len, &everything);

            assert_int_equal(err, fits ? 0 : -EINVAL);
            assert_true(fits || strstr(line, e->name) == line);
        }
    }
}

static void test_argsz(void **state)
{
    static const uint32_t large[] = { 64, 4096, INT32_MAX, (uint32_t)INT32_MAX + 1, UINT32_MAX };

    (void)state;
    for (size_t i = 0; i < NR(client_commands); i++) {
        const struct expected *e = &client_commands[i];

        for (uint32_t argsz = 0; argsz < e->size; argsz++) {
            int err = check(e->cmd, 0, payload_of(argsz, 0), e->size, &everything);

            assert_int_equal(err, e->argsz ? -EINVAL : 0);
        }
        for (size_t j = 0; j < NR(large); j++) {
            const uint8_t *payload = payload_of(large[j], 0);

            assert_int_equal(check(e->cmd, 0, payload, e->size, &everything), 0);
        }
    }
}

struct flags_case {
    uint32_t flags;
    int err;
};

/* The type is all that is looked at; the error bit and unknown ones mean nothing in a command. */
static void test_header_flags(void **state)
{
    static const struct flags_case table[] = {
        { 0, 0 },
        { VFIO_USER_F_NO_REPLY, 0 },
        { VFIO_USER_F_ERROR, 0 },
        { 1u << 31 | 1u << 10 | 1u << 6, 0 },
        { VFIO_USER_F_TYPE_REPLY, -EINVAL },
        { 2, -EINVAL },
        { 3, -EINVAL },
        { 8, -EINVAL },
        { 15, -EINVAL },
        { 2 | VFIO_USER_F_NO_REPLY, -EINVAL },
        { UINT32_MAX, -EINVAL },
    };

    (void)state;
    for (size_t i = 0; i < NR(table); i++) {
        const uint8_t *payload = payload_of(16, 0);

        assert_int_equal(check(VFIO_USER_DEVICE_GET_INFO, table[i].flags, payload, 16, &everything),
                         table[i].err);
    }
}

/* Each bit of the IOMMU extension on each command, with every part of it negotiated. */
static void test_extension_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < NR(client_commands); i++) {
        const struct expected *e = &client_commands[i];
        size_t len = e->size;

        assert_int_equal(check(e->cmd, VFIO_USER_F_PASID, payload_of(64, 8), len + 8, &everything),
                         e->prefix ? 0 : -EINVAL);
        assert_int_equal(check(e->cmd, VFIO_USER_F_TRANSLATED, payload_of(64, 0), len, &everything),
                         e->translated ? 0 : -EINVAL);
        assert_int_equal(check(e->cmd, VFIO_USER_F_PASID | VFIO_USER_F_TRANSLATED,
                               payload_of(64, 8), len + 8, &everything), -EINVAL);
    }
}

struct feature_case {
    struct wire_features features;
    uint32_t flags;
    uint16_t cmd;
    int err;
};

static void test_what_was_negotiated(void **state)
{
    static const struct feature_case table[] = {
        { { 0 }, 0, VFIO_USER_DMA_MAP, 0 },
        { { 0 }, VFIO_USER_F_PASID, VFIO_USER_DMA_MAP, -ENOTSUP },
        { { 0 }, VFIO_USER_F_TRANSLATED, VFIO_USER_DMA_MAP, -ENOTSUP },
        { { 0 }, VFIO_USER_F_PASID, VFIO_USER_DEVICE_GET_INFO, -ENOTSUP },
        { { 0 }, 0, VFIO_USER_ATS_INVALIDATE, -ENOTSUP },
        { { .pasid = true, .pasid_bits = 20 }, VFIO_USER_F_PASID, VFIO_USER_DMA_MAP, 0 },
        { { .pasid = true, .pasid_bits = 20 }, VFIO_USER_F_TRANSLATED, VFIO_USER_DMA_MAP,
          -ENOTSUP },
        { { .pasid = true, .pasid_bits = 20 }, VFIO_USER_F_PASID | VFIO_USER_F_TRANSLATED,
          VFIO_USER_DMA_MAP, -ENOTSUP },
        { { .pasid = true, .pasid_bits = 20 }, 0, VFIO_USER_ATS_INVALIDATE, -ENOTSUP },
        { { .ats = true }, VFIO_USER_F_TRANSLATED, VFIO_USER_DMA_MAP, 0 },
        { { .ats = true }, VFIO_USER_F_PASID, VFIO_USER_DMA_MAP, -ENOTSUP },
        { { .ats = true }, 0, VFIO_USER_ATS_INVALIDATE, 0 },
        { { .ats = true }, VFIO_USER_F_PASID, VFIO_USER_ATS_INVALIDATE, -ENOTSUP },
        { { .pri = true }, 0, VFIO_USER_ATS_INVALIDATE, -ENOTSUP },
    };

    (void)state;
    for (size_t i = 0; i < NR(table); i++) {
        const struct feature_case *c = &table[i];
        uint32_t prefix = c->flags & VFIO_USER_F_PASID ? 8 : 0;
        size_t len = prefix + command_rule(c->cmd)->min_payload;

        assert_int_equal(check(c->cmd, c->flags, payload_of(64, prefix), len, &c->features),
                         c->err);
    }
}

struct prefix_case {
    uint32_t bits; /* of PASID, as negotiated */
    uint32_t pasid, attrs;
    int err;
};

static void test_prefix(void **state)
{
    static const struct prefix_case table[] = {
        { 20, 0, 0, 0 },
        { 20, 0xfffff, 3, 0 },
        { 20, 0x100000, 0, -EINVAL },
        { 20, UINT32_MAX, 0, -EINVAL },
        { 20, 0, 4, -EINVAL },
        { 20, 0, 1u << 31, -EINVAL },
        { 1, 1, 1, 0 },
        { 1, 2, 0, -EINVAL },
        { 8, 255, 2, 0 },
        { 8, 256, 0, -EINVAL },
    };

    (void)state;
    for (size_t i = 0; i < NR(table); i++) {
        const struct prefix_case *c = &table[i];
        const struct wire_features features = { true, true, true, c->bits };
        uint8_t payload[40] = { 0 };

        memcpy(payload, &c->pasid, 4);
        memcpy(payload + 4, &c->attrs, 4);
        payload[8] = 32;
        assert_int_equal(check(VFIO_USER_DMA_MAP, VFIO_USER_F_PASID, payload, 40, &features),
                         c->err);
    }
}

/* The prefix counts in the size of the message and not in argsz. */
static void test_prefix_and_sizes(void **state)
{
    (void)state;
    for (size_t len = 0; len <= 40; len++) {
        assert_int_equal(check(VFIO_USER_DMA_MAP, VFIO_USER_F_PASID, payload_of(32, 8), len,
                               &everything), len == 40 ? 0 : -EINVAL);
    }
    assert_int_equal(check(VFIO_USER_DMA_MAP, VFIO_USER_F_PASID, payload_of(31, 8), 40,
                           &everything), -EINVAL);
    for (size_t len = 0; len <= 40; len++) {
        assert_int_equal(check(VFIO_USER_ATS_INVALIDATE, VFIO_USER_F_PASID, payload_of(24, 8), len,
                               &everything), len == 32 ? 0 : -EINVAL);
    }
}

static void test_message_sizes(void **state)
{
    static const struct { uint32_t size; bool ok; } table[] = {
        { 0, false }, { 1, false }, { 15, false }, { 16, true }, { 17, true },
        { 16 + 16 + WIRE_MAX_DATA_XFER, true },
        { 16 + 16 + WIRE_MAX_DATA_XFER + 1, false },
        { INT32_MAX, false }, { UINT32_MAX, false },
    };

    (void)state;
    for (size_t i = 0; i < NR(table); i++) {
        const struct vfio_user_header hdr = { .msg_size = table[i].size };

        assert_int_equal(wire_size_ok(&hdr), table[i].ok);
    }
}

static void test_type_of_a_message(void **state)
{
    (void)state;
    for (uint32_t type = 0; type < 16; type++) {
        const struct vfio_user_header hdr = { .flags = type | 0xfffffff0u };

        assert_int_equal(wire_is_reply(&hdr), type == 1);
    }
}

/* Which traits the other floors rely on. */
static void test_traits(void **state)
{
    const uint32_t moving = CMD_QUIESCE;

    (void)state;
    for (uint32_t cmd = 0; cmd < 128; cmd++) {
        uint32_t traits = command_traits((uint16_t)cmd);

        assert_int_equal((traits & moving) != 0, cmd == VFIO_USER_DMA_MAP ||
                         cmd == VFIO_USER_DMA_UNMAP || cmd == VFIO_USER_DEVICE_RESET);
        assert_int_equal((traits & CMD_ANYTIME) != 0, cmd == VFIO_USER_ATS_INVALIDATE);
    }
    assert_int_equal(command_rule(VFIO_USER_DMA_MAP)->max_fds, 1);
    assert_int_equal(command_rule(VFIO_USER_DMA_UNMAP)->max_fds, 0);
    assert_true(command_rule(VFIO_USER_DEVICE_SET_IRQS)->max_fds >= 253);
    assert_int_equal(command_rule(VFIO_USER_DMA_READ)->min_reply, 16);
    assert_int_equal(command_rule(VFIO_USER_DMA_WRITE)->min_reply, 0);
    assert_int_equal(command_rule(VFIO_USER_ATS_TRANSLATE)->min_reply, 16);
    assert_int_equal(command_rule(VFIO_USER_PAGE_REQUEST)->min_reply, 8);
}

static void test_quirks(void **state)
{
    (void)state;
    for (uint32_t cmd = 0; cmd < 128; cmd++) {
        assert_int_equal(quirk_bare_reply((uint16_t)cmd), cmd == VFIO_USER_DMA_WRITE);
    }
    assert_true(quirk_version_reply_fits(0, 1000));
    assert_true(quirk_version_reply_fits(194, 194));
    assert_false(quirk_version_reply_fits(194, 195));
    assert_false(quirk_version_reply_fits(1, 2));
}

/* A logger without a function must do. */
static void test_silent(void **state)
{
    static const struct logger silent = { 0 };
    const struct vfio_user_header hdr = { .cmd = 14, .msg_size = sizeof(hdr) };

    (void)state;
    assert_int_equal(wire_check_request(&hdr, NULL, 0, &nothing, &silent), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_number),
        cmocka_unit_test(test_who_may_send_it),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_argsz),
        cmocka_unit_test(test_header_flags),
        cmocka_unit_test(test_extension_bits),
        cmocka_unit_test(test_what_was_negotiated),
        cmocka_unit_test(test_prefix),
        cmocka_unit_test(test_prefix_and_sizes),
        cmocka_unit_test(test_message_sizes),
        cmocka_unit_test(test_type_of_a_message),
        cmocka_unit_test(test_traits),
        cmocka_unit_test(test_quirks),
        cmocka_unit_test(test_silent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
