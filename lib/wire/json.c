/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The grammar of the whole text is checked first. Reading it into the table may then walk over
 * values without looking at errors.
 */
#include "wire/json.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* --- reading -------------------------------------------------------------------------------- */

static const char *skip_space(const char *at)
{
    return at + strspn(at, " \t\r\n");
}

/* Each of these returns what follows the element at `at`, or NULL if there is none such. */
static const char *skip_value(const char *at, unsigned depth);

static const char *skip_escape(const char *at)
{
    if (*at != 'u') {
        return *at != '\0' && strchr("\"\\/bfnrt", *at) != NULL ? at + 1 : NULL;
    }
    for (unsigned i = 1; i <= 4; i++) {
        if (!isxdigit((unsigned char)at[i])) {
            return NULL;
        }
    }
    return at + 5;
}

static const char *skip_string(const char *at)
{
    if (*at++ != '"') {
        return NULL;
    }
    while (at != NULL && *at != '"') {
        if ((unsigned char)*at < ' ') {
            return NULL;
        }
        at = *at == '\\' ? skip_escape(at + 1) : at + 1;
    }
    return at != NULL ? at + 1 : NULL;
}

static const char *skip_digits(const char *at)
{
    return isdigit((unsigned char)*at) ? at + strspn(at, "0123456789") : NULL;
}

static const char *skip_number(const char *at)
{
    at += *at == '-';
    at = *at == '0' ? at + 1 : skip_digits(at);
    if (at != NULL && *at == '.') {
        at = skip_digits(at + 1);
    }
    if (at != NULL && (*at == 'e' || *at == 'E')) {
        at++;
        at = skip_digits(at + (*at == '+' || *at == '-'));
    }
    return at;
}

static const char *skip_word(const char *at)
{
    static const char *const words[] = { "true", "false", "null" };

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        size_t len = strlen(words[i]);

        if (strncmp(at, words[i], len) == 0) {
            return at + len;
        }
    }
    return NULL;
}

/* Skips the name of a member, and the colon. */
static const char *skip_name(const char *at)
{
    at = skip_string(at);
    if (at == NULL) {
        return NULL;
    }
    at = skip_space(at);
    return *at == ':' ? skip_space(at + 1) : NULL;
}

/* Skips an array, or an object, whose members have names. */
static const char *skip_list(const char *at, char end, unsigned depth)
{
    if (depth == 0) {
        return NULL;
    }
    at = skip_space(at + 1);
    if (*at == end) {
        return at + 1;
    }
    for (;;) {
        at = end == '}' ? skip_name(at) : at;
        at = at != NULL ? skip_value(at, depth - 1) : NULL;
        if (at == NULL) {
            return NULL;
        }
        at = skip_space(at);
        if (*at == end) {
            return at + 1;
        }
        if (*at != ',') {
            return NULL;
        }
        at = skip_space(at + 1);
    }
}

static const char *skip_value(const char *at, unsigned depth)
{
    switch (*at) {
    case '{':
        return skip_list(at, '}', depth);
    case '[':
        return skip_list(at, ']', depth);
    case '"':
        return skip_string(at);
    case 't':
    case 'f':
    case 'n':
        return skip_word(at);
    default:
        return skip_number(at);
    }
}

static enum json_type type_of(const char *value)
{
    if (*value == '{') {
        return JSON_OBJECT;
    }
    if (*value == 't' || *value == 'f') {
        return JSON_BOOL;
    }
    if (*value == '-' || isdigit((unsigned char)*value)) {
        const char *end = value + 1 + strspn(value + 1, "0123456789");

        return *end == '.' || *end == 'e' || *end == 'E' ? JSON_OTHER : JSON_INT;
    }
    return JSON_OTHER;
}

/* The integer, or the nearest one that int64_t holds. */
static int64_t integer(const char *at)
{
    bool negative = *at == '-';
    int64_t value = 0;

    for (at += negative; isdigit((unsigned char)*at); at++) {
        int digit = *at - '0';

        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, negative ? -digit : digit, &value)) {
            return negative ? INT64_MIN : INT64_MAX;
        }
    }
    return value;
}

/* Finds the value of a member: the last one, if there are several. */
static const char *find_value(const char *object, const char *name)
{
    size_t len = strlen(name);
    const char *at = skip_space(object + 1), *found = NULL;

    while (*at == '"') {
        const char *value = skip_name(at);

        if (strncmp(at + 1, name, len) == 0 && at[1 + len] == '"') {
            found = value;
        }
        at = skip_space(skip_value(value, JSON_MAX_DEPTH));
        at = skip_space(at + (*at == ','));
    }
    return found;
}

static int read_integer(const struct json_member *m, const char *value, char *why, size_t size)
{
    int64_t number = integer(value);

    if (number < m->min || number > m->max) {
        snprintf(why, size, "%s is %" PRId64 ", must be between %" PRId64 " and %" PRId64, m->name,
                 number, m->min, m->max);
        return -EINVAL;
    }
    *(uint32_t *)m->out = number < UINT32_MAX ? (uint32_t)number : UINT32_MAX;
    return 0;
}

static int read_members(const char *object, const struct json_member *members, size_t nr,
                        char *why, size_t size)
{
    static const char *const types[] = { "", "integer", "boolean", "object", "" };

    for (size_t i = 0; i < nr; i++) {
        const struct json_member *m = &members[i];
        const char *value = find_value(object, m->name);
        int err = 0;

        if (value == NULL) {
            continue;
        }
        if (m->type != JSON_ANY && type_of(value) != m->type) {
            snprintf(why, size, "%s has the wrong type, must be of type %s", m->name,
                     types[m->type]);
            return -EINVAL;
        }
        if (m->present != NULL) {
            *m->present = true;
        }
        if (m->type == JSON_INT) {
            err = read_integer(m, value, why, size);
        } else if (m->type == JSON_BOOL) {
            *(bool *)m->out = *value == 't';
        } else if (m->type == JSON_OBJECT) {
            err = read_members(value, m->members, m->nr_members, why, size);
        }
        if (err < 0) {
            return err;
        }
    }
    return 0;
}

int json_read(const char *text, const struct json_member *members, size_t nr, char *why,
              size_t why_size)
{
    const char *object = skip_space(text);
    const char *end = *object == '{' ? skip_value(object, JSON_MAX_DEPTH) : NULL;

    if (end == NULL || *skip_space(end) != '\0') {
        snprintf(why, why_size, "the text is not one JSON object");
        return -EINVAL;
    }
    return read_members(object, members, nr, why, why_size);
}

/* --- writing -------------------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void put(struct json_out *out, const char *fmt, ...)
{
    size_t left = out->size - out->len;
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(out->buf + out->len, left, fmt, ap);
    va_end(ap);
    out->len = n >= 0 && (size_t)n < left ? out->len + (size_t)n : out->size;
}

static void put_name(struct json_out *out, const char *name)
{
    put(out, "%s\"%s\":", out->follows ? "," : "", name);
    out->follows = true;
}

void json_begin(struct json_out *out, char *buf, size_t size)
{
    *out = (struct json_out){ .buf = buf, .size = size };
    put(out, "{");
}

void json_open(struct json_out *out, const char *name)
{
    put_name(out, name);
    put(out, "{");
    out->follows = false;
}

void json_close(struct json_out *out)
{
    put(out, "}");
    out->follows = true;
}

void json_uint(struct json_out *out, const char *name, uint32_t value)
{
    put_name(out, name);
    put(out, "%" PRIu32, value);
}

void json_bool(struct json_out *out, const char *name, bool value)
{
    put_name(out, name);
    put(out, value ? "true" : "false");
}

int json_end(struct json_out *out)
{
    json_close(out);
    return out->len < out->size ? (int)out->len : -ENOSPC;
}
