/* SPDX-License-Identifier: BSD-3-Clause */
#include "util/peer_file.h"

#include "util/statx.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The kernel answers for the files of these file systems only, from the inode in memory. */
bool peer_file_is_memory(int fd)
{
    return fcntl(fd, F_GET_SEALS) >= 0;
}

/* The exporter's name is what the fdinfo of a dma-buf has, and that of no other file. */
static bool is_dma_buf(int fd)
{
    char path[64], *line = NULL;
    size_t size = 0;
    bool found = false;
    FILE *info;

    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
    info = fopen(path, "re");
    if (info == NULL) {
        return false;
    }
    while (!found && getline(&line, &size, info) > 0) {
        found = strncmp(line, "exp_name:", strlen("exp_name:")) == 0;
    }
    free(line);
    fclose(info);
    return found;
}

/* The kind of pipes, sockets, eventfds and the like: mmap(2) says ENODEV of them. */
#define NO_MEMORY "special"
#define MEMORY "memory"

/* What identifies the file system of a file. */
struct place {
    unsigned int major, minor;
    uint64_t mount;
};

/* How well a line of /proc/self/mountinfo (proc_pid_mountinfo(5)) fits: 0 not, 2 best. */
static int match_mount(const char *line, const struct place *place, char kind[PEER_FILE_KIND_MAX])
{
    unsigned long long mount;
    unsigned int major, minor;
    const char *type = strstr(line, " - ");
    int match = 0;

    if (type == NULL || sscanf(line, "%llu %*u %u:%u", &mount, &major, &minor) != 3) {
        return 0;
    }
    if (mount == place->mount) {
        match = 2;
    } else if (major == place->major && minor == place->minor) {
        match = 1;
    }
    if (match > 0) {
        snprintf(kind, PEER_FILE_KIND_MAX, "%.*s", (int)strcspn(type + 3, " "), type + 3);
    }
    return match;
}

/*
 * The peer may have opened its file in a mount namespace of its own: then the device number alone
 * tells. Both are the kernel's, and not for the peer to choose.
 */
static void find_mount(const struct place *place, char kind[PEER_FILE_KIND_MAX])
{
    FILE *mounts = fopen("/proc/self/mountinfo", "re");
    char *line = NULL;
    size_t size = 0;
    int match = 0;

    while (mounts != NULL && match < 2 && getline(&line, &size, mounts) > 0) {
        match = match_mount(line, place, kind);
    }
    free(line);
    if (mounts != NULL) {
        fclose(mounts);
    }
}

/* With AT_STATX_DONT_SYNC, file systems answer from what the kernel has, FUSE included. */
void peer_file_kind(int fd, char kind[PEER_FILE_KIND_MAX])
{
    struct place place;
    struct statx st;

    snprintf(kind, PEER_FILE_KIND_MAX, "unknown");
    if (peer_file_is_memory(fd)) {
        snprintf(kind, PEER_FILE_KIND_MAX, MEMORY);
    } else if (is_dma_buf(fd)) {
        snprintf(kind, PEER_FILE_KIND_MAX, "dma-buf");
    } else if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_MNT_ID, &st) ==
               0) {
        if (S_ISCHR(st.stx_mode) || S_ISBLK(st.stx_mode)) {
            snprintf(kind, PEER_FILE_KIND_MAX, "device");
            return;
        }
        if (!S_ISREG(st.stx_mode)) {
            snprintf(kind, PEER_FILE_KIND_MAX, NO_MEMORY);
            return;
        }
        place = (struct place){ st.stx_dev_major, st.stx_dev_minor,
                                (st.stx_mask & STATX_MNT_ID) != 0 ? st.stx_mnt_id : 0 };
        find_mount(&place, kind);
    }
}

static bool lists(const char *list, const char *kind)
{
    size_t len;

    for (; list != NULL && *list != '\0'; list += len + (list[len] == ',')) {
        len = strcspn(list, ",");
        if ((len == strlen(kind) && memcmp(list, kind, len) == 0) ||
            (len == strlen("any") && memcmp(list, "any", len) == 0)) {
            return true;
        }
    }
    return false;
}

int peer_file_check_memory(int fd, const char *allowed, char kind[PEER_FILE_KIND_MAX])
{
    peer_file_kind(fd, kind);
    if (strcmp(kind, MEMORY) == 0 || lists(allowed, kind) ||
        lists(getenv("VFU_MEMORY_FILES"), kind)) {
        return 0;
    }
    return strcmp(kind, NO_MEMORY) == 0 ? -ENODEV : -EPERM;
}

size_t peer_file_page_size(const struct stat *st)
{
    uint64_t block = (uint64_t)st->st_blksize, page = (uint64_t)sysconf(_SC_PAGESIZE);
    bool sane = st->st_blksize > 0 && block <= PEER_FILE_PAGE_MAX && (block & (block - 1)) == 0;

    return sane && block > page ? block : page;
}
