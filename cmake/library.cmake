# SPDX-License-Identifier: BSD-3-Clause
# libvfio-user: the server library.

vfu_glob(lib_sources lib/*.c lib/*/*.c)
set(VFU_LIB_MAP ${PROJECT_SOURCE_DIR}/lib/libvfio-user.map)

vfu_library(vfio-user ${VFU_LIB_MAP}
    SOURCES ${lib_sources}
    INCLUDE ${PROJECT_SOURCE_DIR}/include
    LINK Threads::Threads)
target_include_directories(vfio-user-objects PRIVATE ${PROJECT_SOURCE_DIR}/lib)
