/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * JSON (RFC 8259) as the VERSION message needs it: an object is read into a table of members, and
 * written member by member. Both directions allocate nothing, so that a peer's text can neither
 * exhaust memory nor fail for the lack of it.
 */
#ifndef VFU_WIRE_JSON_H
#define VFU_WIRE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The deepest nesting that is read, the outermost object included. */
#define JSON_MAX_DEPTH 16

enum json_type {
    JSON_ANY, /* of a member: not looked into */
    JSON_INT, /* without fraction and exponent */
    JSON_BOOL,
    JSON_OBJECT,
    JSON_OTHER, /* null, strings, arrays, numbers that are no integers */
};

/* A member of an object: what it may be, and where its value goes. */
struct json_member {
    const char *name;
    enum json_type type;
    int64_t min, max; /* of an integer */
    void *out; /* uint32_t (clamped to it) or bool; NULL for an object */
    bool *present; /* set to true if the member is there; may be NULL */
    const struct json_member *members; /* of an object */
    size_t nr_members;
};

/*
 * Reads a text that must be one object. Members that the table does not name are ignored, and those
 * that are absent leave *out as it is. If a name comes twice the last one counts. Names are
 * compared as they are written: one that contains escapes is unknown.
 *
 * @why: on failure, what is wrong with the text, NUL-terminated.
 *
 * Returns 0 or -EINVAL, with some of the members filled.
 */
int json_read(const char *text, const struct json_member *members, size_t nr, char *why,
              size_t why_size);

/* A text that is being written. Once it is full nothing more is written, and json_end() says so. */
struct json_out {
    char *buf;
    size_t size, len;
    bool follows; /* a member stands before the next one */
};

/* Starts the outermost object. */
void json_begin(struct json_out *out, char *buf, size_t size);
void json_open(struct json_out *out, const char *name);
void json_close(struct json_out *out);
void json_uint(struct json_out *out, const char *name, uint32_t value);
void json_bool(struct json_out *out, const char *name, bool value);
/* Ends the outermost object. Returns the length without the NUL, or -ENOSPC. */
int json_end(struct json_out *out);

#endif /* VFU_WIRE_JSON_H */
