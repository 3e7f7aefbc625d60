/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "dma/memfile.h"
#include "dma_fixture.h"

static int set_up(void **state)
{
    *state = new_dma(100);
    return 0;
}

static int tear_down(void **state)
{
    dma_destroy(*state);
    return 0;
}

static struct dma_space *space_of(void **state)
{
    return dma_requester_space(*state);
}

static const vfu_dma_info_t *info_at(struct dma_space *space, uint64_t addr)
{
    struct dma_hit hit;

    assert_int_equal(dma_lookup(space, addr, &hit), 0);
    return dma_region_info(hit.entry);
}

static struct dma_sg handle(struct dma_space *space, uint64_t addr, uint64_t len, int prot)
{
    struct dma_sg sg;

    assert_int_equal(dma_addr_to_sgl(space, addr, len, &sg, 1, prot), 1);
    return sg;
}

static size_t open_files(void)
{
    size_t count = 0;
    int fd;

    for (fd = 0; fd < 1024; fd++) {
        count += fcntl(fd, F_GETFD) >= 0;
    }
    return count;
}

/* How often a file is mapped into this process. */
static size_t mappings_of(int fd)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    struct stat st;
    size_t count = 0;
    unsigned long inode;

    assert_non_null(maps);
    assert_return_code(fstat(fd, &st), 0);
    while (fgets(line, sizeof(line), maps) != NULL) {
        if (sscanf(line, "%*s %*s %*s %*s %lu", &inode) == 1 && inode == st.st_ino) {
            count++;
        }
    }
    fclose(maps);
    return count;
}

static void test_info(void **state)
{
    struct dma_space *space = space_of(state);
    int fd = memory_file(16 * PAGE);
    const vfu_dma_info_t *info;

    assert_int_equal(map_file(space, 0x100000, 2 * PAGE, fd, 4 * PAGE), 0);
    info = info_at(space, 0x100000);
    assert_ptr_equal(info->iova.iov_base, (void *)0x100000);
    assert_int_equal(info->iova.iov_len, 2 * PAGE);
    assert_ptr_equal(info->mapping.iov_base, info->vaddr);
    assert_int_equal(info->mapping.iov_len, 2 * PAGE);
    assert_int_equal(info->page_size, PAGE);
    assert_int_equal(info->prot, RW);

    /* Neither offset nor size need be aligned: the address keeps the odd part. */
    assert_int_equal(map_file(space, 0x200001, PAGE, fd, 5 * PAGE + 123), 0);
    info = info_at(space, 0x200001);
    assert_int_equal((uintptr_t)info->vaddr % PAGE, 123);
    assert_ptr_equal(info->mapping.iov_base, (uint8_t *)info->vaddr - 123);
    assert_int_equal(info->mapping.iov_len, 2 * PAGE);

    assert_int_equal(map_message(space, 0x300000, PAGE, PROT_READ), 0);
    info = info_at(space, 0x300000);
    assert_null(info->vaddr);
    assert_null(info->mapping.iov_base);
    assert_int_equal(info->mapping.iov_len, 0);
    assert_int_equal(info->page_size, PAGE);
    assert_int_equal(info->prot, PROT_READ);

    assert_int_equal(map_mode(space, 0x400000, PAGE, fd, 0, RW, DMA_MODE_FILE_IO), 0);
    info = info_at(space, 0x400000);
    assert_null(info->vaddr);
    assert_int_equal(info->mapping.iov_len, 0);
    close(fd);
}

static void test_one_mapping_per_file(void **state)
{
    struct dma_space *space = space_of(state);
    int fd = memory_file(64 * PAGE), again = dup(fd);
    size_t files = open_files();
    uint64_t i;

    for (i = 0; i < 32; i++) {
        assert_int_equal(map_file(space, i * PAGE, PAGE, i % 2 == 0 ? fd : again, i * PAGE), 0);
    }
    assert_int_equal(mappings_of(fd), 1);
    /* Read-only regions have a read-only mapping. */
    assert_int_equal(map_mode(space, 40 * PAGE, PAGE, fd, 0, PROT_READ, DMA_MODE_MMAP), 0);
    assert_int_equal(map_mode(space, 41 * PAGE, PAGE, fd, 0, 0, DMA_MODE_MMAP), 0);
    assert_int_equal(mappings_of(fd), 2);
    /* No descriptor is kept for mappings, one is for a file with read and write. */
    assert_int_equal(open_files(), files);
    assert_int_equal(map_mode(space, 50 * PAGE, PAGE, fd, 0, RW, DMA_MODE_FILE_IO), 0);
    assert_int_equal(map_mode(space, 51 * PAGE, PAGE, fd, 0, RW, DMA_MODE_FILE_IO), 0);
    assert_int_equal(open_files(), files + 1);
    assert_int_equal(dma_unmap_all(space, NULL, NULL, NULL), 36);
    assert_int_equal(mappings_of(fd), 0);
    assert_int_equal(open_files(), files);
    close(fd);
    close(again);
}

#define FILES 300

/* More files than the room has buckets for them, each with its own contents. */
static void test_files_are_told_apart(void **state)
{
    struct dma *dma = new_dma(FILES);
    struct dma_space *space = dma_requester_space(dma);
    uint64_t i;
    int fd;

    (void)state;
    for (i = 0; i < FILES; i++) {
        fd = memory_file(PAGE);
        assert_int_equal(map_file(space, i * PAGE, PAGE, fd, 0), 0);
        *(uint64_t *)info_at(space, i * PAGE)->vaddr = i;
        close(fd);
    }
    for (i = 0; i < FILES; i++) {
        assert_int_equal(*(uint64_t *)info_at(space, i * PAGE)->vaddr, i);
    }
    dma_destroy(dma);
}

static void test_file_grows(void **state)
{
    struct dma_space *space = space_of(state);
    int fd = memory_file(4 * PAGE);
    void *old;

    assert_int_equal(map_file(space, 0, PAGE, fd, 3 * PAGE), 0);
    old = info_at(space, 0)->vaddr;
    assert_int_equal(map_file(space, PAGE, PAGE, fd, 4 * PAGE), -EINVAL);
    assert_return_code(ftruncate(fd, 8 * PAGE), 0);
    assert_int_equal(map_file(space, PAGE, PAGE, fd, 4 * PAGE), 0);
    assert_ptr_equal(info_at(space, 0)->vaddr, old);
    strcpy(info_at(space, PAGE)->vaddr, "new");
    assert_int_equal(unmap(space, 0, PAGE), 1);
    assert_string_equal(info_at(space, PAGE)->vaddr, "new");
    close(fd);
}

static void test_end_of_file(void **state)
{
    static const struct {
        uint64_t size, offset;
        int ret;
    } cases[] = {
        { PAGE, 3 * PAGE, 0 },         { PAGE, 3 * PAGE + 1, -EINVAL },
        { 5 * PAGE, 0, -EINVAL },      { PAGE, 4 * PAGE, -EINVAL },
        { PAGE, UINT64_MAX, -EINVAL }, { PAGE, INT64_MAX, -EINVAL },
        { PAGE, 1ull << 62, -EINVAL },
    };
    int fd = memory_file(3 * PAGE + 100);
    size_t i;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(map_file(space_of(state), 0, cases[i].size, fd, cases[i].offset),
                         cases[i].ret);
        unmap(space_of(state), 0, cases[i].size);
    }
    close(fd);
}

static int reopen(int fd, int flags)
{
    char path[64];
    int again;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    again = open(path, flags | O_CLOEXEC);
    assert_true(again >= 0);
    return again;
}

static void test_access_modes(void **state)
{
    struct dma_space *space = space_of(state);
    int fd = memory_file(4 * PAGE), reader = reopen(fd, O_RDONLY), writer = reopen(fd, O_WRONLY);
    int path = reopen(fd, O_PATH);

    assert_int_equal(map_file(space, 0, PAGE, fd, 0), 0);
    assert_int_equal(map_file(space, PAGE, PAGE, reader, 0), -EACCES);
    assert_int_equal(map_mode(space, PAGE, PAGE, reader, 0, PROT_READ, DMA_MODE_MMAP), 0);
    assert_int_equal(map_file(space, 2 * PAGE, PAGE, writer, 0), -EACCES);
    assert_int_equal(map_mode(space, 2 * PAGE, PAGE, reader, 0, RW, DMA_MODE_FILE_IO), -EACCES);
    assert_int_equal(map_file(space, 2 * PAGE, PAGE, path, 0), -EACCES);
    assert_int_equal(map_file(space, 2 * PAGE, PAGE, -1, 0), -EINVAL);
    assert_int_equal(dma_nr_regions(*state), 2);
    close(fd);
    close(reader);
    close(writer);
    close(path);
}

/* Only memory is taken, and what was allowed by its kind. */
static void test_kinds_of_files(void **state)
{
    struct dma_space *space = space_of(state);
    int zero = open("/dev/zero", O_RDWR | O_CLOEXEC);
    int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC), pipes[2];

    assert_true(zero >= 0 && maps >= 0);
    assert_return_code(pipe2(pipes, O_CLOEXEC), 0);
    assert_int_equal(map_file(space, 0, PAGE, zero, 0), -EPERM);
    assert_int_equal(map_mode(space, 0, PAGE, maps, 0, PROT_READ, DMA_MODE_FILE_IO), -EPERM);
    assert_int_equal(map_mode(space, 0, PAGE, pipes[0], 0, PROT_READ, DMA_MODE_MMAP), -ENODEV);

    test_limits.memory_files = strdup("xproc,device");
    assert_int_equal(map_mode(space, 0, PAGE, maps, 0, PROT_READ, DMA_MODE_FILE_IO), -EPERM);
    assert_int_equal(map_file(space, PAGE, PAGE, zero, 0), 0);
    limits_destroy(&test_limits);

    setenv("VFU_MEMORY_FILES", "ext9,proc", 1);
    assert_int_equal(map_mode(space, 0, PAGE, maps, 0, PROT_READ, DMA_MODE_FILE_IO), 0);
    assert_int_equal(map_file(space, 2 * PAGE, PAGE, zero, 0), -EPERM);
    setenv("VFU_MEMORY_FILES", "any", 1);
    assert_int_equal(map_file(space, 2 * PAGE, PAGE, zero, 0), 0);
    unsetenv("VFU_MEMORY_FILES");
    close(zero);
    close(maps);
    close(pipes[0]);
    close(pipes[1]);
}

/* No size to map whole: just the range. */
static void test_character_device(void **state)
{
    struct dma_space *space = space_of(state);
    int fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
    const vfu_dma_info_t *info;

    assert_true(fd >= 0);
    test_limits.memory_files = strdup("device");
    assert_int_equal(map_file(space, 0, PAGE + 1, fd, 0), 0);
    info = info_at(space, 0);
    assert_int_equal(info->mapping.iov_len, 2 * PAGE);
    memset(info->vaddr, 1, PAGE + 1);
    limits_destroy(&test_limits);
    close(fd);
}

/* A sparse file beyond the cap is mapped in pieces, not as a whole. */
static void test_huge_sparse_file(void **state)
{
    struct dma_space *space = space_of(state);
    int fd = memory_file(MEMFILE_WHOLE_MAX + PAGE);

    assert_int_equal(map_file(space, 0, PAGE, fd, MEMFILE_WHOLE_MAX), 0);
    assert_int_equal(map_file(space, PAGE, PAGE, fd, 0), 0);
    assert_int_equal(mappings_of(fd), 2);
    strcpy(info_at(space, 0)->vaddr, "end");
    close(fd);
}

#define SPAN (1ull << 30)

/* Where the whole file does not fit into the limit, what was asked for does. */
static void test_address_space_limit(void **state)
{
    struct dma_space *space = space_of(state);
    int fd = memory_file(8 * SPAN), small = memory_file(PAGE);
    uint64_t i;

    limits_set(&test_limits, VFU_LIMIT_ADDRESS_SPACE, 4 * SPAN);
    for (i = 0; i < 4; i++) {
        assert_int_equal(map_file(space, i * SPAN, SPAN, fd, i * SPAN), 0);
    }
    assert_int_equal(map_file(space, i * SPAN, SPAN, fd, i * SPAN), -ENOSPC);
    assert_int_equal(map_file(space, i * SPAN, PAGE, small, 0), -ENOSPC);
    /* What is mapped already can be used again, and what was unmapped is free. */
    assert_int_equal(map_file(space, i * SPAN, SPAN, fd, 0), 0);
    assert_int_equal(unmap(space, SPAN, SPAN), 1);
    assert_int_equal(map_file(space, SPAN, PAGE, small, 0), 0);
    close(fd);
    close(small);
}

static void check_number_of_files(struct dma_space *space, enum vfu_limit limit, enum dma_mode mode)
{
    int fds[3] = { memory_file(PAGE), memory_file(PAGE), memory_file(PAGE) };
    uint64_t i;

    limits_set(&test_limits, limit, 2);
    for (i = 0; i < 3; i++) {
        assert_int_equal(map_mode(space, i * PAGE, PAGE, fds[i], 0, RW, mode),
                         i < 2 ? 0 : -ENOSPC);
    }
    assert_int_equal(map_mode(space, 3 * PAGE, PAGE, fds[1], 0, RW, mode), 0);
    assert_int_equal(unmap(space, 0, PAGE), 1);
    assert_int_equal(map_mode(space, 2 * PAGE, PAGE, fds[2], 0, RW, mode), 0);
    dma_unmap_all(space, NULL, NULL, NULL);
    for (i = 0; i < 3; i++) {
        close(fds[i]);
    }
}

static void test_number_of_files(void **state)
{
    check_number_of_files(space_of(state), VFU_LIMIT_MAPPED_FILES, DMA_MODE_MMAP);
    check_number_of_files(space_of(state), VFU_LIMIT_IO_FILES, DMA_MODE_FILE_IO);
}

/* --- truncation ----------------------------------------------------------------------------- */

static void test_truncation(void **state)
{
    struct dma_space *space = space_of(state);
    int fd = memory_file(16 * PAGE), other = memory_file(PAGE);
    struct dma_sg sg, whole;
    uint8_t buf[2 * PAGE];
    struct iovec iov;

    assert_int_equal(map_file(space, 0, 16 * PAGE, fd, 0), 0);
    assert_int_equal(map_file(space, 16 * PAGE, PAGE, other, 0), 0);
    sg = handle(space, 8 * PAGE - 10, 20, RW);
    whole = handle(space, 0, 2 * PAGE, PROT_READ);
    assert_int_equal(dma_sgl_get(*state, &sg, &iov, 1), 0);
    memset(iov.iov_base, 'x', iov.iov_len);
    assert_return_code(ftruncate(fd, 0), 0);
    /* Without the guard this kills the process. */
    memset(iov.iov_base, 'y', iov.iov_len);
    assert_int_equal(*(uint8_t *)iov.iov_base, 'y');
    dma_sgl_put(*state, &sg, 1);

    assert_int_equal(dma_sgl_get(*state, &sg, &iov, 1), -EFAULT);
    assert_int_equal(dma_sg_copy(*state, &whole, buf, false), -EFAULT);
    sg = handle(space, 16 * PAGE, 8, RW);
    assert_int_equal(dma_sgl_get(*state, &sg, &iov, 1), 0);
    dma_sgl_put(*state, &sg, 1);

    /* The client repairs its file and maps it anew: a fresh mapping serves that. */
    assert_return_code(ftruncate(fd, 16 * PAGE), 0);
    assert_int_equal(map_file(space, 20 * PAGE, PAGE, fd, 0), 0);
    sg = handle(space, 20 * PAGE, 8, RW);
    assert_int_equal(dma_sgl_get(*state, &sg, &iov, 1), 0);
    memset(iov.iov_base, 'z', iov.iov_len);
    assert_int_equal(pread(fd, buf, 1, 0), 1);
    assert_int_equal(buf[0], 'z');
    dma_sgl_put(*state, &sg, 1);
    close(fd);
    close(other);
}

/* Found out in the middle of a copy: the bytes are zeroes, the copy says so. */
static void test_copy_finds_truncation(void **state)
{
    struct dma_space *space = space_of(state);
    int fd = memory_file(4 * PAGE);
    static uint8_t buf[4 * PAGE];
    struct dma_sg sg;

    assert_int_equal(map_file(space, 0, 4 * PAGE, fd, 0), 0);
    sg = handle(space, 0, 4 * PAGE, RW);
    assert_int_equal(dma_sg_copy(*state, &sg, buf, true), 0);
    assert_return_code(ftruncate(fd, PAGE), 0);
    assert_int_equal(dma_sg_copy(*state, &sg, buf, false), -EFAULT);
    close(fd);
}

#define HUGE_PAGE (2ull << 20)

/*
 * A file of huge pages: the mapping is told in huge pages, and one is replaced as a whole. Where the
 * machine has no huge pages to give, the first touch finds that out just as a truncation would.
 */
static void test_huge_pages(void **state)
{
    struct dma_space *space = space_of(state);
    int fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
    const vfu_dma_info_t *info;
    struct dma_sg sg;
    struct iovec iov;

    if (fd < 0) {
        skip();
    }
    assert_return_code(ftruncate(fd, 2 * HUGE_PAGE), 0);
    assert_int_equal(map_file(space, 0, PAGE, fd, HUGE_PAGE + 5 * PAGE), 0);
    info = info_at(space, 0);
    assert_int_equal(info->page_size, HUGE_PAGE);
    assert_int_equal((uintptr_t)info->mapping.iov_base % HUGE_PAGE, 0);
    assert_int_equal(info->mapping.iov_len, HUGE_PAGE);
    assert_ptr_equal((uint8_t *)info->mapping.iov_base + 5 * PAGE, info->vaddr);
    assert_return_code(ftruncate(fd, 0), 0);
    close(fd);
    sg = handle(space, 0, 8, RW);
    assert_int_equal(dma_sgl_get(*state, &sg, &iov, 1), 0);
    memset(iov.iov_base, 'x', iov.iov_len);
    memset(info->mapping.iov_base, 'x', HUGE_PAGE);
    dma_sgl_put(*state, &sg, 1);
    assert_int_equal(dma_sgl_get(*state, &sg, &iov, 1), -EFAULT);
}

/* Runs body in a child; returns its wait status. */
static int in_child(void (*body)(void))
{
    struct rlimit no_core = { 0, 0 };
    int status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        setrlimit(RLIMIT_CORE, &no_core);
        signal(SIGBUS, SIG_DFL);
        body();
        _exit(42);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

/* A space of a child, with a file of so many pages at 0. */
static struct dma *map_in_child(uint64_t pages, int *fd)
{
    struct dma *dma = new_dma(1000);

    *fd = memory_file(pages * PAGE);
    if (map_file(dma_requester_space(dma), 0, pages * PAGE, *fd, 0) != 0) {
        _exit(1);
    }
    return dma;
}

static void map_something(void)
{
    int fd;

    map_in_child(1, &fd);
}

/* A page of a file that is none of ours, and ends before it. */
static void touch_foreign_page(void)
{
    int fd = memfd_create("foreign", 0);
    volatile char *page = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);

    (void)*page;
}

static void foreign_fault(void)
{
    map_something();
    touch_foreign_page();
}

static void foreign_signal(void)
{
    map_something();
    raise(SIGBUS);
}

static void exit_7(int sig)
{
    (void)sig;
    _exit(7);
}

static void exit_8(int sig, siginfo_t *info, void *context)
{
    (void)sig;
    (void)context;
    _exit(info->si_code == BUS_ADRERR ? 8 : 9);
}

static void fault_with_old_handler(void)
{
    signal(SIGBUS, exit_7);
    foreign_fault();
}

static void fault_with_old_siginfo(void)
{
    struct sigaction action = { .sa_sigaction = exit_8, .sa_flags = SA_SIGINFO };

    sigaction(SIGBUS, &action, NULL);
    foreign_fault();
}

static void test_foreign_faults_are_chained(void **state)
{
    int status;

    (void)state;
    status = in_child(foreign_fault);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    status = in_child(foreign_signal);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    status = in_child(fault_with_old_handler);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    status = in_child(fault_with_old_siginfo);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 8);
}

/* Takes every mapping that the process may still have (vm.max_map_count). */
static void use_up_mappings(void)
{
    int prot = PROT_NONE;

    /* Neighbours differ, so that the kernel does not merge them. */
    while (mmap(NULL, PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) {
        prot ^= PROT_READ;
    }
}

static void truncate_without_mappings(void)
{
    int first, second;
    struct dma *dma = map_in_child(64, &first);
    struct dma_space *space = dma_requester_space(dma);
    volatile uint8_t *one, *two;

    second = memory_file(64 * PAGE);
    if (map_file(space, SPAN, 64 * PAGE, second, 0) != 0) {
        _exit(1);
    }
    one = info_at(space, 0)->vaddr;
    two = info_at(space, SPAN)->vaddr;
    use_up_mappings();
    if (ftruncate(first, PAGE) < 0 || ftruncate(second, PAGE) < 0) {
        _exit(2);
    }
    one[8 * PAGE] = 1;
    two[8 * PAGE] = 2;
    one[63 * PAGE] = two[63 * PAGE] = 3;
    _exit(one[8 * PAGE] == 1 && two[8 * PAGE] == 2 && one[63 * PAGE] == 3 ? 42 : 3);
}

#ifndef __SANITIZE_THREAD__ /* that sanitizer's own memory does not fit into the limit */
/* What RLIMIT_DATA counts of this process: the sixth number, in pages (proc_pid_statm(5)). */
static uint64_t data_bytes(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    uint64_t pages = 0;

    if (file == NULL || fscanf(file, "%*u %*u %*u %*u %*u %" SCNu64, &pages) != 1) {
        _exit(1);
    }
    fclose(file);
    return pages * PAGE;
}

/* Replacing the whole mapping is refused, replacing the page is not. */
static void truncate_with_little_memory(void)
{
    rlim_t bytes = data_bytes() + (64u << 20);
    const struct rlimit little = { bytes, bytes };
    int fd;
    struct dma *dma = map_in_child(SPAN / PAGE, &fd);
    volatile uint8_t *at = info_at(dma_requester_space(dma), 0)->vaddr;

    if (setrlimit(RLIMIT_DATA, &little) < 0 || ftruncate(fd, PAGE) < 0) {
        _exit(2);
    }
    at[SPAN / 2] = 1;
    at[SPAN - 1] = 2;
    _exit(at[SPAN / 2] == 1 && at[SPAN - 1] == 2 ? 42 : 3);
}
#endif

struct blocked_access {
    struct dma *dma;
    struct dma_sg sg; /* of length 0: the thread looks it up itself */
    int fd;
};

static void *access_truncated(void *arg)
{
    struct blocked_access *access = arg;
    struct iovec iov;

    if (access->sg.length == 0) {
        access->sg = handle(dma_requester_space(access->dma), 0, PAGE, RW);
    }
    if (dma_sgl_get(access->dma, &access->sg, &iov, 1) != 0 || ftruncate(access->fd, 0) < 0) {
        _exit(2);
    }
    memset(iov.iov_base, 1, PAGE);
    return NULL;
}

/* A thread inherits that SIGBUS is blocked; its first lookup or reference unblocks the signal. */
static void truncate_with_signal_blocked(uint64_t size, bool look_up)
{
    struct blocked_access access;
    pthread_t thread;
    sigset_t bus;

    access.dma = map_in_child(size / PAGE, &access.fd);
    access.sg = handle(dma_requester_space(access.dma), 0, PAGE, RW);
    access.sg.length = look_up ? 0 : PAGE;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    pthread_sigmask(SIG_BLOCK, &bus, NULL);
    if (pthread_create(&thread, NULL, access_truncated, &access) != 0 ||
        pthread_join(thread, NULL) != 0) {
        _exit(3);
    }
}

static void truncate_after_blocked_lookup(void)
{
    truncate_with_signal_blocked(PAGE, true);
}

static void truncate_after_blocked_get(void)
{
    truncate_with_signal_blocked(4ull << 20, false);
}

static void test_truncation_kills_nobody(void **state)
{
    static void (*const bodies[])(void) = {
        truncate_without_mappings,
#ifndef __SANITIZE_THREAD__
        truncate_with_little_memory,
#endif
        truncate_after_blocked_lookup,
        truncate_after_blocked_get,
    };
    size_t i;
    int status;

    (void)state;
    for (i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
        status = in_child(bodies[i]);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 42) {
            fail_msg("attack %zu: wait status %#x", i, (unsigned int)status);
        }
    }
}

static struct sigaction ours;

static void pass_on(int sig, siginfo_t *info, void *context)
{
    ours.sa_sigaction(sig, info, context);
}

/* Another library's handler passes on to ours, and ours to it: the fault still kills. */
static void fault_between_two_handlers(void)
{
    struct sigaction theirs = { .sa_sigaction = pass_on, .sa_flags = SA_SIGINFO };
    struct dma *dma;
    int fd;

    dma = map_in_child(1, &fd);
    sigaction(SIGBUS, &theirs, &ours);
    fd = memory_file(PAGE);
    map_file(dma_requester_space(dma), SPAN, PAGE, fd, 0);
    touch_foreign_page();
}

static void test_handlers_do_not_recurse(void **state)
{
    int status = in_child(fault_between_two_handlers);

    (void)state;
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGBUS);
}

/* pwrite(2) beyond RLIMIT_FSIZE raises SIGXFSZ, though the file is that large already. */
static void write_beyond_limit(void)
{
    const struct rlimit limit = { PAGE, PAGE };
    struct dma_space *space = dma_requester_space(new_dma(1));
    int fd = memory_file(4 * PAGE);
    struct dma_sg sg, across;
    uint64_t data = 1;

    if (map_mode(space, 0, 4 * PAGE, fd, 0, RW, DMA_MODE_FILE_IO) != 0 ||
        setrlimit(RLIMIT_FSIZE, &limit) < 0) {
        _exit(1);
    }
    sg = handle(space, 2 * PAGE, sizeof(data), RW);
    across = handle(space, PAGE - 4, sizeof(data), RW);
    if (dma_sg_copy(dma_space_owner(space), &sg, &data, true) != -EFBIG ||
        dma_sg_copy(dma_space_owner(space), &across, &data, true) != -EFBIG) {
        _exit(2);
    }
    sg = handle(space, PAGE - sizeof(data), sizeof(data), RW);
    _exit(dma_sg_copy(dma_space_owner(space), &sg, &data, true) == 0 ? 42 : 3);
}

static void test_file_size_limit(void **state)
{
    int status = in_child(write_beyond_limit);

    (void)state;
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 42);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_foreign_faults_are_chained),
        TEST(test_info),
        TEST(test_one_mapping_per_file),
        TEST(test_files_are_told_apart),
        TEST(test_file_grows),
        TEST(test_end_of_file),
        TEST(test_access_modes),
        TEST(test_character_device),
        TEST(test_kinds_of_files),
        TEST(test_huge_sparse_file),
        TEST(test_address_space_limit),
        TEST(test_number_of_files),
        TEST(test_truncation),
        TEST(test_copy_finds_truncation),
        TEST(test_huge_pages),
        TEST(test_truncation_kills_nobody),
        TEST(test_handlers_do_not_recurse),
        TEST(test_file_size_limit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
