# SPDX-License-Identifier: BSD-3-Clause
# libvfio-user-client: the client library and its software IOMMU.

vfu_glob(client_sources client/*.c client/*/*.c)
vfu_glob(both_ends lib/wire/capabilities.c lib/wire/json.c lib/util/peer_*.c lib/util/sigbus.c)
set(VFU_CLIENT_MAP ${PROJECT_SOURCE_DIR}/client/libvfio-user-client.map)
set(VFU_HAVE_CLIENT OFF)

if(client_sources)
    set(VFU_HAVE_CLIENT ON)
    vfu_library(vfio-user-client ${VFU_CLIENT_MAP}
        SOURCES ${client_sources} ${both_ends}
        INCLUDE ${PROJECT_SOURCE_DIR}/client/include ${PROJECT_SOURCE_DIR}/include
        LINK Threads::Threads)
    target_include_directories(vfio-user-client-objects PRIVATE
        ${PROJECT_SOURCE_DIR}/client ${PROJECT_SOURCE_DIR}/lib)
endif()
