# SPDX-License-Identifier: BSD-3-Clause
# Samples and tools. A file samples/<name>.c, or all C files of a folder samples/<name>/, make one
# executable; samples/common/ is what they share.

# Samples that drive a device themselves, with the client library.
set(VFU_SAMPLES_WITH_CLIENT client-60 edu-demo iommu-modes migration nvme-host shadow-ioeventfd)

# What the NVMe sample keeps its bytes in; unit tests link it too.
pkg_check_modules(LIBURING IMPORTED_TARGET liburing)
vfu_glob(nvme_backend_sources samples/nvme/backend*.c)
add_library(nvme-backend STATIC ${nvme_backend_sources})
target_include_directories(nvme-backend PUBLIC ${PROJECT_SOURCE_DIR}/samples/nvme)
target_link_libraries(nvme-backend PUBLIC Threads::Threads)
if(LIBURING_FOUND)
    target_link_libraries(nvme-backend PRIVATE PkgConfig::LIBURING)
    target_compile_definitions(nvme-backend PRIVATE HAVE_LIBURING)
endif()

vfu_glob(common_sources samples/common/*.c)
add_library(sample-common STATIC ${common_sources})
target_link_libraries(sample-common PUBLIC vfio-user Threads::Threads)

vfu_glob(sample_paths samples/*)
list(FILTER sample_paths EXCLUDE REGEX "/common$")
foreach(path IN LISTS sample_paths)
    get_filename_component(sample ${path} NAME_WE)
    if(IS_DIRECTORY ${path})
        vfu_glob(sample_sources samples/${sample}/*.c)
    elseif(path MATCHES "\\.c$")
        set(sample_sources ${path})
    else()
        continue()
    endif()
    list(REMOVE_ITEM sample_sources ${nvme_backend_sources})
    if(NOT sample_sources)
        continue()
    endif()

    add_executable(sample-${sample} ${sample_sources})
    set_target_properties(sample-${sample} PROPERTIES
        OUTPUT_NAME ${sample}
        RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/samples)
    target_link_libraries(sample-${sample} PRIVATE sample-common)
    if(VFU_HAVE_CLIENT AND sample IN_LIST VFU_SAMPLES_WITH_CLIENT)
        target_link_libraries(sample-${sample} PRIVATE vfio-user-client)
    endif()
    if(sample STREQUAL nvme)
        target_link_libraries(sample-nvme PRIVATE nvme-backend)
    endif()
endforeach()

set(tool_libraries vfio-user Threads::Threads)
if(VFU_HAVE_CLIENT)
    list(APPEND tool_libraries vfio-user-client)
endif()
vfu_executables(tools ${tool_libraries})
