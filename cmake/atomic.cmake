# SPDX-License-Identifier: BSD-3-Clause
# GCC calls libatomic for atomics of one byte on some processors (riscv64). Adds it to
# Threads::Threads, which everything that uses atomics links.

include(CheckCSourceCompiles)
check_c_source_compiles("
#include <stdatomic.h>
int main(int argc, char **argv)
{
    _Atomic unsigned char byte = (unsigned char)argc;

    (void)argv;
    return atomic_exchange(&byte, 0);
}" VFU_ATOMICS_ARE_BUILT_IN)
if(NOT VFU_ATOMICS_ARE_BUILT_IN)
    target_link_libraries(Threads::Threads INTERFACE atomic)
endif()
