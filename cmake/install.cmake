# SPDX-License-Identifier: BSD-3-Clause
# Installation, CMake package and pkg-config files.

include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/vfio-user)
set(installed_libraries vfio-user vfio-user-static)
set(pc_files libvfio-user)

install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/vfio-user
    FILES_MATCHING PATTERN "*.h")

if(VFU_HAVE_CLIENT)
    list(APPEND installed_libraries vfio-user-client vfio-user-client-static)
    list(APPEND pc_files libvfio-user-client)
    install(DIRECTORY client/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/vfio-user
        FILES_MATCHING PATTERN "*.h")
endif()

if(TARGET vfu-ls)
    set_target_properties(vfu-ls PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
    install(TARGETS vfu-ls)
endif()

install(TARGETS ${installed_libraries} EXPORT vfio-user-targets)
install(EXPORT vfio-user-targets NAMESPACE vfio-user:: DESTINATION ${package_dir})

configure_package_config_file(
    cmake/vfio-user-config.cmake.in vfio-user-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(vfio-user-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES
    ${PROJECT_BINARY_DIR}/vfio-user-config.cmake
    ${PROJECT_BINARY_DIR}/vfio-user-config-version.cmake
    DESTINATION ${package_dir})

# Relative to where the file lies, so that an installed tree may be moved.
file(RELATIVE_PATH VFU_PC_TO_PREFIX
    /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
foreach(pc IN LISTS pc_files)
    configure_file(cmake/${pc}.pc.in ${pc}.pc @ONLY)
    install(FILES ${PROJECT_BINARY_DIR}/${pc}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endforeach()
