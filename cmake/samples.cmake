# SPDX-License-Identifier: BSD-3-Clause
# Samples and tools. A file samples/<name>.c, or all C files of a folder samples/<name>/, make one
# executable.

# Samples that drive a device themselves, with the client library.
set(VFU_SAMPLES_WITH_CLIENT edu-demo)

pkg_check_modules(LIBURING IMPORTED_TARGET liburing)

vfu_glob(sample_paths samples/*)
foreach(path IN LISTS sample_paths)
    get_filename_component(sample ${path} NAME_WE)
    if(IS_DIRECTORY ${path})
        vfu_glob(sample_sources samples/${sample}/*.c)
    elseif(path MATCHES "\\.c$")
        set(sample_sources ${path})
    else()
        continue()
    endif()
    if(NOT sample_sources)
        continue()
    endif()

    add_executable(sample-${sample} ${sample_sources})
    set_target_properties(sample-${sample} PROPERTIES
        OUTPUT_NAME ${sample}
        RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/samples)
    target_link_libraries(sample-${sample} PRIVATE vfio-user Threads::Threads)
    if(VFU_HAVE_CLIENT AND sample IN_LIST VFU_SAMPLES_WITH_CLIENT)
        target_link_libraries(sample-${sample} PRIVATE vfio-user-client)
    endif()
    if(sample STREQUAL nvme AND LIBURING_FOUND)
        target_link_libraries(sample-nvme PRIVATE PkgConfig::LIBURING)
        target_compile_definitions(sample-nvme PRIVATE HAVE_LIBURING)
    endif()
endforeach()

set(tool_libraries vfio-user Threads::Threads PkgConfig::JSON_C)
if(VFU_HAVE_CLIENT)
    list(APPEND tool_libraries vfio-user-client)
endif()
vfu_executables(tools ${tool_libraries})
