/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Compile-time proof of the sizes that the other headers promise. It works in C and in C++, and
 * without <assert.h>, whose static_assert macro is missing in GNU C99 mode.
 */

#ifndef LIB_VFIO_USER_LAYOUT_H
#define LIB_VFIO_USER_LAYOUT_H

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "The PCI structures here are bit-fields of a little-endian host; no other is supported."
#endif

#ifdef __cplusplus
#define VFU_STATIC_ASSERT(condition, text) static_assert(condition, text)
#else
#define VFU_STATIC_ASSERT(condition, text) _Static_assert(condition, text)
#endif

#define VFU_ASSERT_SIZE(type, size)                                                                \
    VFU_STATIC_ASSERT(sizeof(type) == (size), "size of " #type " is part of the ABI")

#endif /* LIB_VFIO_USER_LAYOUT_H */
