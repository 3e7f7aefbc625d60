/* SPDX-License-Identifier: BSD-3-Clause */
/* ASAN(code), TSAN(code): only with that sanitizer, whose headers not every compiler has. */
#ifndef VFU_FUZZ_SANITIZER_H
#define VFU_FUZZ_SANITIZER_H

#include <stddef.h>

#ifndef __has_feature
#define __has_feature(feature) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
void __asan_poison_memory_region(const volatile void *start, size_t size);
void __asan_unpoison_memory_region(const volatile void *start, size_t size);
void __sanitizer_start_switch_fiber(void **fake_stack_save, const void *bottom, size_t size);
void __sanitizer_finish_switch_fiber(void *fake_stack, const void **bottom, size_t *size);
void __lsan_register_root_region(const void *start, size_t size);
#define ASAN(code) code
#else
#define ASAN(code)
#endif

#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
#define TSAN(code) code
#else
#define TSAN(code)
#endif

#endif /* VFU_FUZZ_SANITIZER_H */
