# SPDX-License-Identifier: BSD-3-Clause
# How everything of this tree is compiled.

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "Build type" FORCE)
endif()

# The empty value agrees with a source that says "#define _GNU_SOURCE" itself.
add_compile_definitions($<$<COMPILE_LANGUAGE:C>:_GNU_SOURCE=> _FILE_OFFSET_BITS=64)

add_compile_options(-Wall -Wextra -Wshadow)
# Messages are a fixed part and what follows it; the fixed part alone is put into larger structures.
if(CMAKE_C_COMPILER_ID MATCHES "Clang")
    add_compile_options(-Wno-gnu-variable-sized-type-not-at-end)
endif()
if(VFU_WERROR)
    add_compile_options(-Werror)
endif()

# Hardening, except where a sanitizer watches already and replaces the same functions.
if(NOT VFU_SANITIZE AND NOT VFU_FUZZ)
    include(CheckCCompilerFlag)
    # Clang only warns of a flag that is not for this processor.
    set(CMAKE_REQUIRED_FLAGS -Werror)
    add_compile_options(-fstack-protector-strong)
    foreach(flag -fstack-clash-protection -fcf-protection -mbranch-protection=standard)
        string(MAKE_C_IDENTIFIER VFU_HAVE${flag} have)
        check_c_compiler_flag(${flag} ${have})
        if(${have})
            add_compile_options(${flag})
        endif()
    endforeach()
    unset(CMAKE_REQUIRED_FLAGS)
    # Distributions define it themselves, perhaps to another level.
    if(NOT CMAKE_C_FLAGS MATCHES "_FORTIFY_SOURCE")
        add_compile_options($<$<NOT:$<CONFIG:Debug>>:-D_FORTIFY_SOURCE=2>)
    endif()
    add_link_options(-Wl,-z,relro,-z,now,-z,noexecstack)
endif()
include(CheckPIESupported)
check_pie_supported(LANGUAGES C)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

if(VFU_SANITIZE)
    add_compile_options(-fsanitize=${VFU_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    add_link_options(-fsanitize=${VFU_SANITIZE})
endif()

if(VFU_COVERAGE)
    # Counters that several threads change.
    add_compile_options(--coverage -fprofile-update=atomic)
    add_link_options(--coverage)
endif()

if(VFU_FUZZ)
    if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
        message(FATAL_ERROR "VFU_FUZZ needs clang: libFuzzer is part of it")
    endif()
    # The comparisons that the other sanitizers add would be traced as well: a third of the time.
    add_compile_options(-fsanitize=fuzzer-no-link -fno-sanitize-coverage=trace-cmp)
endif()
