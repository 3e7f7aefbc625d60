/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
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

/* No size to map whole: just the range. */
static void test_character_device(void **state)
{
    struct dma_space *space = space_of(state);
    int fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
    const vfu_dma_info_t *info;

    assert_true(fd >= 0);
    assert_int_equal(map_file(space, 0, PAGE + 1, fd, 0), 0);
    info = info_at(space, 0);
    assert_int_equal(info->mapping.iov_len, 2 * PAGE);
    memset(info->vaddr, 1, PAGE + 1);
    close(fd);
}

static void test_not_mappable(void **state)
{
    int pipes[2];

    assert_return_code(pipe2(pipes, O_CLOEXEC), 0);
    assert_true(map_mode(space_of(state), 0, PAGE, pipes[0], 0, PROT_READ, DMA_MODE_MMAP) < 0);
    assert_int_equal(dma_nr_regions(*state), 0);
    close(pipes[0]);
    close(pipes[1]);
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

/* Whether this process can have as much address space as the cap: under TSan it cannot. */
static bool cap_is_reachable(void)
{
    void *all = mmap(NULL, MEMFILE_MAPPED_MAX, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (all == MAP_FAILED) {
        return false;
    }
    munmap(all, MEMFILE_MAPPED_MAX);
    return true;
}

static void test_address_space_cap(void **state)
{
    struct dma_space *space = space_of(state);
    uint64_t step = DMA_MAX_REGION_SIZE, i;
    int fd = memory_file(6 * DMA_MAX_REGION_SIZE);

    if (!cap_is_reachable()) {
        close(fd);
        skip();
    }
    for (i = 0; i < MEMFILE_MAPPED_MAX / step; i++) {
        assert_int_equal(map_file(space, i * step, step, fd, i * step), 0);
    }
    assert_int_equal(map_file(space, i * step, step, fd, i * step), -ENOMEM);
    /* What is mapped already can be used again. */
    assert_int_equal(map_file(space, i * step, step, fd, 0), 0);
    close(fd);
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

static void map_something(void)
{
    struct dma *dma;
    struct dma_config config = { .log = &silent, .max_regions = 1 };
    int fd = memfd_create("child", 0);

    if (dma_create(&config, &dma) < 0 || ftruncate(fd, PAGE) < 0 ||
        map_file(dma_requester_space(dma), 0, PAGE, fd, 0) != 0) {
        _exit(1);
    }
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
        TEST(test_not_mappable),
        TEST(test_huge_sparse_file),
        TEST(test_address_space_cap),
        TEST(test_truncation),
        TEST(test_copy_finds_truncation),
        TEST(test_huge_pages),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
