/* SPDX-License-Identifier: BSD-3-Clause */
/* Mappings of files that the server has too, and may truncate. */
#include "client.h"

#include "util/peer_file.h"
#include "util/sigbus.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

int client_guard(int fd, void *vaddr, uint64_t size, struct guard **guard)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t start = (uintptr_t)vaddr / page * page;
    uintptr_t end = ((uintptr_t)vaddr + size + page - 1) / page * page;
    struct stat st;

    if (fstat(fd, &st) == -1) {
        return -errno;
    }
    *guard = guard_add((void *)start, end - start, peer_file_page_size(&st));
    return *guard == NULL ? -ENOMEM : 0;
}

void client_unguard(struct guard *guard)
{
    if (guard != NULL) {
        guard_remove(guard);
    }
}
