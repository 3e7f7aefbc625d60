# SPDX-License-Identifier: BSD-3-Clause
# Directories are read at build time: a new source file needs no change here.

# vfu_glob(<variable> <pattern>...): files of the source tree, re-checked on every build.
function(vfu_glob variable)
    list(TRANSFORM ARGN PREPEND ${PROJECT_SOURCE_DIR}/)
    file(GLOB files CONFIGURE_DEPENDS ${ARGN})
    set(${variable} ${files} PARENT_SCOPE)
endfunction()

# vfu_executables(<directory> <libraries>...): one executable for each C file of the directory, built
# into the directory of the same name in the build tree.
function(vfu_executables directory)
    vfu_glob(sources ${directory}/*.c)
    foreach(source IN LISTS sources)
        get_filename_component(name ${source} NAME_WE)
        add_executable(${name} ${source})
        target_link_libraries(${name} PRIVATE ${ARGN})
        set_target_properties(${name} PROPERTIES
            RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/${directory})
    endforeach()
endfunction()

# vfu_library(<name> <map> LINK <libraries>... SOURCES <files>...): <name>, a shared object that
# exports what the map lists, and <name>-static, of the same object files.
function(vfu_library name map)
    cmake_parse_arguments(arg "" "" "LINK;SOURCES;INCLUDE" ${ARGN})

    add_library(${name}-objects OBJECT ${arg_SOURCES})
    target_include_directories(${name}-objects PRIVATE ${arg_INCLUDE})
    target_link_libraries(${name}-objects PRIVATE ${arg_LINK})
    set_target_properties(${name}-objects PROPERTIES POSITION_INDEPENDENT_CODE ON)

    add_library(${name} SHARED $<TARGET_OBJECTS:${name}-objects>)
    set_target_properties(${name} PROPERTIES
        VERSION 0.0.1 SOVERSION 0 LINK_DEPENDS ${map} LINKER_LANGUAGE C)
    target_link_options(${name} PRIVATE -Wl,--version-script=${map})
    # Clang leaves the sanitizer's symbols of a shared object to the executable.
    if(NOT VFU_SANITIZE AND NOT VFU_FUZZ)
        target_link_options(${name} PRIVATE -Wl,--no-undefined)
    endif()

    add_library(${name}-static STATIC $<TARGET_OBJECTS:${name}-objects>)
    set_target_properties(${name}-static PROPERTIES LINKER_LANGUAGE C)

    target_link_libraries(${name} PRIVATE ${arg_LINK})
    target_link_libraries(${name}-static PUBLIC ${arg_LINK})
    foreach(library IN ITEMS ${name} ${name}-static)
        set_target_properties(${library} PROPERTIES
            OUTPUT_NAME ${name}
            ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib
            LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
        target_include_directories(${library} PUBLIC
            "$<BUILD_INTERFACE:${arg_INCLUDE}>"
            $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
            $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/vfio-user>)
    endforeach()
endfunction()
