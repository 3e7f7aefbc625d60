# SPDX-License-Identifier: BSD-3-Clause
# Unit tests, ABI tests, benchmarks and fuzz targets. They link the static libraries, so that the
# private functions are in reach.

pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)

add_library(vfu-test-base INTERFACE)
target_include_directories(vfu-test-base INTERFACE
    ${PROJECT_SOURCE_DIR}/lib ${PROJECT_SOURCE_DIR}/client ${PROJECT_SOURCE_DIR}/test/unit)
target_link_libraries(vfu-test-base INTERFACE vfio-user-static m)
if(VFU_HAVE_CLIENT)
    target_link_libraries(vfu-test-base INTERFACE vfio-user-client-static)
endif()

# test/unit/test_*.c are the tests; what else lies there supports them.
vfu_glob(unit_tests test/unit/test_*.c)
vfu_glob(unit_support test/unit/*.c test/unit/support/*.c)
list(REMOVE_ITEM unit_support ${unit_tests})
if(NOT VFU_SAMPLES)
    list(FILTER unit_tests EXCLUDE REGEX "/test_nvme_")
endif()
if(unit_support)
    add_library(unit-support STATIC ${unit_support})
    target_link_libraries(unit-support PUBLIC vfu-test-base PkgConfig::CMOCKA)
endif()
foreach(source IN LISTS unit_tests)
    get_filename_component(name ${source} NAME_WE)
    add_executable(${name} ${source})
    target_link_libraries(${name} PRIVATE
        $<TARGET_NAME_IF_EXISTS:unit-support> vfu-test-base PkgConfig::CMOCKA)
    set_target_properties(${name} PROPERTIES
        RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/test/unit)
    if(name MATCHES "^test_nvme_")
        target_link_libraries(${name} PRIVATE nvme-backend)
    endif()
    add_test(NAME unit/${name} COMMAND ${name})
endforeach()

# Most of the layout proof is made by the compiler; running it checks the bit-fields.
vfu_glob(layout_sources test/abi/layout_*.c)
add_executable(abi-layout ${layout_sources})
target_include_directories(abi-layout PRIVATE ${PROJECT_SOURCE_DIR}/include)
add_test(NAME abi/layout COMMAND abi-layout)

set(public_headers ${PROJECT_SOURCE_DIR}/include)
if(EXISTS ${PROJECT_SOURCE_DIR}/client/include)
    list(APPEND public_headers ${PROJECT_SOURCE_DIR}/client/include)
endif()
add_test(NAME abi/headers COMMAND
    ${PROJECT_SOURCE_DIR}/test/abi/check-headers
    ${CMAKE_C_COMPILER} ${CMAKE_CXX_COMPILER} ${public_headers})

add_executable(abi-generations ${PROJECT_SOURCE_DIR}/test/abi/generations.c)
target_include_directories(abi-generations PRIVATE ${PROJECT_SOURCE_DIR}/include)
add_test(NAME abi/generations COMMAND abi-generations)

add_executable(abi-cxx ${PROJECT_SOURCE_DIR}/test/abi/device.cc)
target_link_libraries(abi-cxx PRIVATE vfio-user vfio-user-client Threads::Threads)
add_test(NAME abi/cxx COMMAND abi-cxx)

# vfu_symbol_test(<name> <library> <map> <compatibility list> <header pattern>)
function(vfu_symbol_test name library map list pattern)
    vfu_glob(headers ${pattern})
    add_test(NAME ${name} COMMAND
        ${PROJECT_SOURCE_DIR}/test/abi/check-symbols
        ${CMAKE_C_COMPILER} $<TARGET_FILE:${library}> lib${library}.so.0 ${map} ${list}
        ${PROJECT_SOURCE_DIR}/include ${headers})
endfunction()

vfu_symbol_test(abi/symbols vfio-user ${VFU_LIB_MAP}
    ${PROJECT_SOURCE_DIR}/test/abi/symbols-0.x include/libvfio-user*.h)
if(VFU_HAVE_CLIENT)
    vfu_symbol_test(abi/client-symbols vfio-user-client ${VFU_CLIENT_MAP}
        /dev/null client/include/*.h)
endif()

# A build for debugging has no checked string functions.
if(NOT VFU_SANITIZE AND NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
    set(hardened vfio-user vfio-user-client)
    if(VFU_SAMPLES)
        list(APPEND hardened sample-nvme sample-edu sample-gpio vfu-ls)
    endif()
    list(TRANSFORM hardened REPLACE "(.+)" "$<TARGET_FILE:\\1>")
    add_test(NAME abi/hardening COMMAND
        ${PROJECT_SOURCE_DIR}/test/abi/check-hardening ${hardened})
endif()

find_program(MESON meson)
if(MESON AND NOT VFU_SANITIZE)
    add_test(NAME abi/meson COMMAND ${PROJECT_SOURCE_DIR}/test/abi/check-meson
        ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/samples/null.c)
endif()
set_target_properties(abi-cxx PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/test/abi)

set_target_properties(abi-layout abi-generations PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/test/abi)

add_test(NAME documents COMMAND ${PROJECT_SOURCE_DIR}/test/check-documents)

vfu_executables(bench vfu-test-base)

# Storms: short here; an argument makes them as long as one likes.
vfu_glob(storms test/stress/*.c)
foreach(source IN LISTS storms)
    get_filename_component(name ${source} NAME_WE)
    add_executable(${name} ${source})
    target_link_libraries(${name} PRIVATE vfu-test-base)
    set_target_properties(${name} PROPERTIES
        RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/test/stress)
    add_test(NAME stress/${name} COMMAND ${name} 5000)
    set_tests_properties(stress/${name} PROPERTIES
        ENVIRONMENT "TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/test/tsan.supp")
endforeach()
foreach(function malloc calloc aligned_alloc strdup mmap eventfd socketpair)
    target_link_options(alloc_failures PRIVATE -Wl,--wrap=${function})
endforeach()

# Fuzz targets: test/fuzz/fuzz_<name>.c. Each is also a program that replays files, and a test that
# replays the seeds, what campaigns have learned (test/fuzz/corpus/<name>/) and whatever they have
# found before (test/fuzz/regressions/<name>/).
find_program(PYTHON3 NAMES python3 REQUIRED)
vfu_glob(fuzz_targets test/fuzz/fuzz_*.c)
vfu_glob(fuzz_support test/fuzz/*.c)
list(REMOVE_ITEM fuzz_support ${fuzz_targets} ${PROJECT_SOURCE_DIR}/test/fuzz/replay.c)
vfu_glob(fuzz_regressions test/fuzz/regressions/*/*)
set(fuzz_seeds ${PROJECT_BINARY_DIR}/test/fuzz/seeds)
vfu_glob(fuzz_wire test/py/vfiouser/wire.py)

add_custom_command(OUTPUT ${fuzz_seeds}/stamp
    COMMAND ${PYTHON3} -B ${PROJECT_SOURCE_DIR}/test/fuzz/make-seeds ${fuzz_seeds}
    COMMAND ${CMAKE_COMMAND} -E touch ${fuzz_seeds}/stamp
    DEPENDS ${PROJECT_SOURCE_DIR}/test/fuzz/make-seeds ${fuzz_wire}
    COMMENT "Making seeds for the fuzz targets")
add_custom_target(fuzz-seeds ALL DEPENDS ${fuzz_seeds}/stamp)
add_custom_target(fuzz DEPENDS fuzz-seeds)

add_library(fuzz-support OBJECT ${fuzz_support})
target_link_libraries(fuzz-support PUBLIC vfu-test-base)
# The targets are one thread with a time of its own: see test/fuzz/threads.h and resources.h.
foreach(function
        pthread_create pthread_join pthread_self sched_yield pthread_mutex_lock
        pthread_rwlock_rdlock pthread_rwlock_wrlock pthread_cond_wait pthread_cond_timedwait
        pthread_cond_broadcast pthread_cond_signal poll epoll_wait recvmsg sendmsg clock_gettime
        malloc free)
    target_link_options(fuzz-support PUBLIC -Wl,--wrap=${function})
endforeach()

if(VFU_SAMPLES)
    vfu_glob(fuzz_nvme_sources samples/nvme/*.c samples/common/*.c)
    list(FILTER fuzz_nvme_sources EXCLUDE REGEX "/(main|backend[^/]*)\\.c$")
    add_library(fuzz-nvme OBJECT ${fuzz_nvme_sources})
    target_link_libraries(fuzz-nvme PUBLIC vfu-test-base nvme-backend)
    foreach(function service_listen service_open_signals service_print_log)
        target_link_options(fuzz-nvme PUBLIC -Wl,--wrap=${function})
    endforeach()
    # The library, which is linked statically, has functions of these names as well.
    foreach(function setup destroy reset)
        target_compile_definitions(fuzz-nvme PRIVATE
            migration_${function}=nvme_migration_${function})
    endforeach()
else()
    list(FILTER fuzz_targets EXCLUDE REGEX "/fuzz_nvme")
endif()

# fuzz_executable(<name> <sources>...)
function(fuzz_executable name)
    add_executable(${name} ${ARGN})
    target_link_libraries(${name} PRIVATE fuzz-support)
    if(name MATCHES "nvme$")
        target_link_libraries(${name} PRIVATE fuzz-nvme)
    endif()
    set_target_properties(${name} PROPERTIES
        RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/test/fuzz)
endfunction()

foreach(source IN LISTS fuzz_targets)
    get_filename_component(name ${source} NAME_WE)
    string(REPLACE "fuzz_" "" short ${name})
    if(VFU_FUZZ)
        fuzz_executable(${name} ${source})
        target_link_options(${name} PRIVATE -fsanitize=fuzzer)
        add_dependencies(fuzz ${name})
    endif()
    fuzz_executable(replay-${short} ${source} ${PROJECT_SOURCE_DIR}/test/fuzz/replay.c)
    add_dependencies(replay-${short} fuzz-seeds)
    set(found ${fuzz_regressions})
    list(FILTER found INCLUDE REGEX "/regressions/${short}/")
    if(IS_DIRECTORY ${PROJECT_SOURCE_DIR}/test/fuzz/corpus/${short})
        list(APPEND found ${PROJECT_SOURCE_DIR}/test/fuzz/corpus/${short})
    endif()
    add_test(NAME fuzz/${short} COMMAND replay-${short} ${fuzz_seeds}/${short} ${found})
endforeach()

# Devices that tests attach to, and the samples as tests of their own.
vfu_executables(test/device vfio-user Threads::Threads)
if(TARGET sample-edu-demo)
    add_test(NAME samples/edu-demo COMMAND sample-edu-demo)
endif()
if(TARGET sample-iommu-modes)
    add_test(NAME samples/iommu-modes COMMAND sample-iommu-modes)
endif()
if(TARGET sample-nvme AND TARGET sample-nvme-host)
    add_test(NAME stress/nvme-verify COMMAND
        ${PROJECT_SOURCE_DIR}/test/stress/nvme-verify ${PROJECT_BINARY_DIR} 2)
    set_tests_properties(stress/nvme-verify PROPERTIES
        ENVIRONMENT "TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/test/tsan.supp")
endif()
