/* SPDX-License-Identifier: BSD-3-Clause */
/* Memory and files behind an NVMe namespace: every backend under every engine. */

/* cmocka.h needs these four before it. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include "backend_file.h"
#include "backend_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/falloc.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (8ul << 20)
#define PATTERN(i) ((uint8_t)((i) * 7 + (i) / 251))

enum engine { BY_DEFAULT, BY_CALLS };
enum kind { MEMORY, PAGE_CACHE, DIRECT, TMPFS };

struct variant {
    enum kind kind;
    enum engine engine;
};

struct fixture {
    struct backend *backend;
    struct backend_queue *queue;
    int fd; /* the file itself, or -1 */
    char path[64];
};

struct request {
    struct backend_io io;
    bool ended;
    int error;
};

static void request_done(struct backend_io *io, int error)
{
    struct request *request = (struct request *)io;

    assert_false(request->ended);
    request->ended = true;
    request->error = error;
}

static void make_file(struct fixture *f, enum kind kind)
{
    if (kind == TMPFS) {
        f->fd = memfd_create("namespace", MFD_CLOEXEC);
        snprintf(f->path, sizeof(f->path), "/proc/self/fd/%d", f->fd);
    } else {
        strcpy(f->path, "/tmp/vfu-backend-XXXXXX");
        f->fd = mkstemp(f->path);
    }
    assert_true(f->fd >= 0);
    assert_return_code(ftruncate(f->fd, SIZE), errno);
}

static int setup(void **state)
{
    const struct variant *variant = *state;
    struct fixture *f = calloc(1, sizeof(*f));
    char why[256] = "";

    f->fd = -1;
    if (variant->kind == MEMORY) {
        f->backend = backend_open_memory(SIZE, why, sizeof(why));
    } else {
        make_file(f, variant->kind);
        f->backend = backend_open_file(f->path, variant->kind == DIRECT, false, why,
                                       sizeof(why));
    }
    if (f->backend == NULL) {
        fail_msg("%s", why);
    }
    f->queue = variant->engine == BY_CALLS ? backend_queue_calls(why, sizeof(why))
                                           : backend_queue_create(16, why, sizeof(why));
    assert_non_null(f->queue);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    backend_queue_destroy(f->queue);
    backend_close(f->backend);
    if (f->fd >= 0) {
        close(f->fd);
        unlink(f->path);
    }
    free(f);
    return 0;
}

static void start(struct fixture *f, struct request *request, struct backend_io io)
{
    request->io = io;
    request->io.done = request_done;
    request->ended = false;
    backend_submit(f->queue, f->backend, &request->io);
}

/* Sleeps on the queue's descriptor as a device does. */
static void finish(struct fixture *f, struct request *request)
{
    struct pollfd pfd = { .fd = backend_queue_fd(f->queue), .events = POLLIN };

    while (!request->ended) {
        if (backend_queue_poll(f->queue) == 0 && !request->ended) {
            assert_true(pfd.fd >= 0);
            assert_int_equal(poll(&pfd, 1, 30000), 1);
        }
    }
}

static int run(struct fixture *f, struct backend_io io)
{
    struct request request;

    start(f, &request, io);
    finish(f, &request);
    return request.error;
}

static int transfer(struct fixture *f, enum backend_op op, uint64_t offset, void *data, size_t len)
{
    struct iovec iov = { .iov_base = data, .iov_len = len };

    return run(f, (struct backend_io){
                      .op = op, .offset = offset, .len = len, .iov = &iov, .nr_iov = 1 });
}

static int simple(struct fixture *f, enum backend_op op, uint64_t offset, uint64_t len, bool fua)
{
    return run(f, (struct backend_io){ .op = op, .offset = offset, .len = len, .fua = fua });
}

static uint8_t *pattern(size_t len)
{
    uint8_t *data = malloc(len);

    for (size_t i = 0; i < len; i++) {
        data[i] = PATTERN(i);
    }
    return data;
}

static void test_size(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(backend_size(f->backend), SIZE);
}

static void test_reads_what_was_written(void **state)
{
    struct fixture *f = *state;
    const size_t sizes[] = { 512, 4096, 4608, 65536, 1 << 20 };
    uint8_t *data = pattern(1 << 20);
    uint8_t *back = malloc(1 << 20);

    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        uint64_t offset = SIZE - sizes[i];

        memset(back, 0xee, sizes[i]);
        assert_int_equal(transfer(f, BACKEND_WRITE, offset, data, sizes[i]), 0);
        assert_int_equal(transfer(f, BACKEND_READ, offset, back, sizes[i]), 0);
        assert_memory_equal(back, data, sizes[i]);
    }
    free(data);
    free(back);
}

/* Pieces at odd addresses and of odd lengths, and more of them than the kernel takes at a time. */
static void test_scattered(void **state)
{
    struct fixture *f = *state;
    const size_t piece = 33;
    const size_t len = 96 << 10;
    const size_t nr = (len + piece - 1) / piece;
    struct iovec *iov = calloc(nr, sizeof(*iov));
    uint8_t *data = pattern(len);
    uint8_t *back = calloc(nr, piece + 1);
    struct backend_io io = { .op = BACKEND_WRITE, .offset = 4096, .len = len, .iov = iov,
                             .nr_iov = nr };

    assert_true(nr > IOV_MAX);
    for (size_t i = 0; i < nr; i++) {
        iov[i].iov_len = len - i * piece < piece ? len - i * piece : piece;
        iov[i].iov_base = data + i * piece;
    }
    assert_int_equal(run(f, io), 0);
    for (size_t i = 0; i < nr; i++) {
        iov[i].iov_base = back + i * (piece + 1) + 1;
    }
    io.op = BACKEND_READ;
    assert_int_equal(run(f, io), 0);
    for (size_t i = 0; i < nr; i++) {
        assert_memory_equal(iov[i].iov_base, data + i * piece, iov[i].iov_len);
    }
    free(iov);
    free(data);
    free(back);
}

static void test_flush_and_fua(void **state)
{
    struct fixture *f = *state;
    uint8_t *data = pattern(4096);
    uint8_t back[4096];
    struct iovec iov = { .iov_base = data, .iov_len = 4096 };

    assert_int_equal(run(f, (struct backend_io){ .op = BACKEND_WRITE, .fua = true, .offset = 8192,
                                                 .len = 4096, .iov = &iov, .nr_iov = 1 }), 0);
    assert_int_equal(simple(f, BACKEND_FLUSH, 0, 0, false), 0);
    assert_int_equal(transfer(f, BACKEND_READ, 8192, back, sizeof(back)), 0);
    assert_memory_equal(back, data, sizeof(back));
    free(data);
}

static void check_bytes(struct fixture *f, uint64_t offset, size_t len, uint8_t byte)
{
    uint8_t *back = malloc(len);

    assert_int_equal(transfer(f, BACKEND_READ, offset, back, len), 0);
    for (size_t i = 0; i < len; i++) {
        assert_int_equal(back[i], byte);
    }
    free(back);
}

static void fill(struct fixture *f, uint8_t byte)
{
    uint8_t *data = malloc(SIZE);

    memset(data, byte, SIZE);
    assert_int_equal(transfer(f, BACKEND_WRITE, 0, data, SIZE), 0);
    free(data);
}

/* Twice: what the file system cannot do is remembered. */
static void test_zeroes_exactly(void **state)
{
    struct fixture *f = *state;
    const uint64_t len = (3 << 20) + 512;

    fill(f, 0x5a);
    for (int i = 0; i < 2; i++) {
        uint64_t at = 512 + (uint64_t)i * (4 << 20);

        assert_int_equal(simple(f, BACKEND_WRITE_ZEROES, at, len, i == 1), 0);
        check_bytes(f, at, len, 0);
        check_bytes(f, at - 512, 512, 0x5a);
        check_bytes(f, at + len, 512, 0x5a);
    }
}

static void test_discards_nothing_else(void **state)
{
    struct fixture *f = *state;

    fill(f, 0x77);
    assert_int_equal(simple(f, BACKEND_DISCARD, 512, (1 << 20) + 512, false), 0);
    check_bytes(f, 0, 512, 0x77);
    check_bytes(f, (1 << 20) + 1024, 1 << 20, 0x77);
    assert_int_equal(simple(f, BACKEND_DISCARD, 0, 0, false), 0);
}

/* Far more at once than the queue was made for. */
static void test_more_than_the_depth(void **state)
{
    enum { NR = 1000 };
    struct fixture *f = *state;
    struct request *requests = calloc(NR, sizeof(*requests));
    struct iovec *iov = calloc(NR, sizeof(*iov));
    uint8_t *data = pattern(NR * 512);
    uint8_t *back = calloc(NR, 512);

    for (size_t i = 0; i < NR; i++) {
        iov[i] = (struct iovec){ .iov_base = data + i * 512, .iov_len = 512 };
        start(f, &requests[i],
              (struct backend_io){ .op = BACKEND_WRITE, .offset = i * 512, .len = 512,
                                   .iov = &iov[i], .nr_iov = 1 });
    }
    for (size_t i = 0; i < NR; i++) {
        finish(f, &requests[i]);
        assert_int_equal(requests[i].error, 0);
    }
    assert_int_equal(transfer(f, BACKEND_READ, 0, back, NR * 512), 0);
    assert_memory_equal(back, data, NR * 512);
    free(requests);
    free(iov);
    free(data);
    free(back);
}

/* A callback that submits the next, as a device under load does. */
struct chain {
    struct request request;
    struct fixture *f;
    struct iovec iov;
    unsigned left;
};

static void chain_done(struct backend_io *io, int error)
{
    struct chain *chain = (struct chain *)io;

    assert_int_equal(error, 0);
    if (chain->left-- == 0) {
        chain->request.ended = true;
        return;
    }
    io->op = io->op == BACKEND_READ ? BACKEND_WRITE : BACKEND_READ;
    backend_submit(chain->f->queue, chain->f->backend, io);
}

static void test_submitting_from_done(void **state)
{
    struct fixture *f = *state;
    uint8_t data[512] = { 1 };
    struct chain chain = { .f = f, .left = 100,
                           .iov = { .iov_base = data, .iov_len = sizeof(data) } };

    chain.request.io = (struct backend_io){ .op = BACKEND_WRITE, .len = sizeof(data),
                                            .iov = &chain.iov, .nr_iov = 1, .done = chain_done };
    backend_submit(f->queue, f->backend, &chain.request.io);
    finish(f, &chain.request);
    assert_int_equal(data[0], 1);
}

static void test_cut_file(void **state)
{
    struct fixture *f = *state;
    uint8_t data[8192];

    assert_return_code(ftruncate(f->fd, 4096), errno);
    assert_int_equal(transfer(f, BACKEND_READ, 0, data, 4096), 0);
    assert_int_equal(transfer(f, BACKEND_READ, 0, data, 8192), EIO);
    assert_int_equal(transfer(f, BACKEND_READ, 1 << 20, data, 4096), EIO);
}

/* An engine of which the test plays the kernel. */

struct manual {
    struct backend_queue base;
    struct backend_io *started;
};

static void manual_start(struct backend_queue *queue, struct backend_io *io)
{
    ((struct manual *)queue)->started = io;
}

static const struct backend_engine manual_engine = { .start = manual_start };

static void begin_manual(struct fixture *f, struct manual *manual, struct request *request,
                         struct backend_io io)
{
    *manual = (struct manual){ .base.engine = &manual_engine };
    *request = (struct request){ .io = io };
    request->io.done = request_done;
    backend_submit(&manual->base, f->backend, &request->io);
    assert_ptr_equal(manual->started, &request->io);
}

static void end_manual(struct request *request, int64_t result, int expected)
{
    int error = -1;

    assert_true(file_result(&request->io, result, &error));
    assert_int_equal(error, expected);
    file_end(&request->io, error);
    assert_true(request->ended);
    assert_int_equal(request->error, expected);
}

static void go_on(struct request *request, int64_t result)
{
    int error;

    assert_false(file_result(&request->io, result, &error));
}

static void test_short_write(void **state)
{
    static uint8_t data[3][4096];
    struct iovec iov[3];
    struct manual manual;
    struct request request;
    struct file_step step;

    for (int i = 0; i < 3; i++) {
        iov[i] = (struct iovec){ .iov_base = data[i], .iov_len = 4096 };
    }
    begin_manual(*state, &manual, &request,
                 (struct backend_io){ .op = BACKEND_WRITE, .fua = true, .offset = 512,
                                      .len = sizeof(data), .iov = iov, .nr_iov = 3 });
    go_on(&request, -EINTR);
    go_on(&request, 4096 + 100);
    go_on(&request, -EAGAIN);
    file_step(&request.io, &step);
    assert_int_equal(step.call, FILE_WRITEV);
    assert_int_equal(step.flags, RWF_DSYNC);
    assert_int_equal(step.offset, 512 + 4096 + 100);
    assert_int_equal(step.nr_iov, 2);
    assert_ptr_equal(step.iov[0].iov_base, data[1] + 100);
    assert_int_equal(step.iov[0].iov_len, 4096 - 100);
    assert_ptr_equal(step.iov[1].iov_base, data[2]);
    end_manual(&request, 2 * 4096 - 100, 0);
}

static void test_failing_calls(void **state)
{
    uint8_t data[512];
    struct iovec iov = { .iov_base = data, .iov_len = sizeof(data) };
    struct backend_io io = { .op = BACKEND_WRITE, .len = sizeof(data), .iov = &iov, .nr_iov = 1 };
    const struct {
        enum backend_op op;
        int64_t result;
        int error;
    } cases[] = {
        { BACKEND_READ, -EIO, EIO },      { BACKEND_READ, 0, EIO },
        { BACKEND_WRITE, -ENOSPC, ENOSPC }, { BACKEND_WRITE, 0, EIO },
        { BACKEND_FLUSH, -EIO, EIO },     { BACKEND_DISCARD, -EIO, EIO },
        { BACKEND_DISCARD, -EOPNOTSUPP, 0 }, { BACKEND_WRITE_ZEROES, -ENOSPC, ENOSPC },
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct manual manual;
        struct request request;

        io.op = cases[i].op;
        begin_manual(*state, &manual, &request, io);
        end_manual(&request, cases[i].result, cases[i].error);
    }
}

/* Zeros that must be durable: the range is zeroed, and then the file is synchronized. */
static void test_zeroes_fua(void **state)
{
    struct manual manual;
    struct request request;
    struct file_step step;

    begin_manual(*state, &manual, &request,
                 (struct backend_io){ .op = BACKEND_WRITE_ZEROES, .fua = true, .offset = 4096,
                                      .len = 8192 });
    file_step(&request.io, &step);
    assert_int_equal(step.call, FILE_FALLOCATE);
    assert_int_equal(step.flags, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE);
    assert_int_equal(step.offset, 4096);
    assert_int_equal(step.len, 8192);
    go_on(&request, 0);
    file_step(&request.io, &step);
    assert_int_equal(step.call, FILE_FDATASYNC);
    end_manual(&request, 0, 0);

    begin_manual(*state, &manual, &request,
                 (struct backend_io){ .op = BACKEND_WRITE_ZEROES, .fua = true, .len = 8192 });
    go_on(&request, -EOPNOTSUPP);
    file_step(&request.io, &step);
    assert_int_equal(step.call, FILE_WRITEV);
    assert_int_equal(step.flags, RWF_DSYNC);
    go_on(&request, 8000);
    file_step(&request.io, &step);
    assert_int_equal(step.offset, 8000);
    assert_int_equal(step.nr_iov, 1);
    assert_int_equal(step.iov[0].iov_len, 192);
    end_manual(&request, 192, 0);
}

static void test_open_errors(void **state)
{
    const char *const paths[] = { "/nonexistent/file", "/tmp", "/dev/null" };
    char why[256];

    (void)state;
    for (size_t i = 0; i < sizeof(paths) / sizeof(*paths); i++) {
        why[0] = '\0';
        assert_null(backend_open_file(paths[i], false, false, why, sizeof(why)));
        assert_non_null(strstr(why, paths[i]));
    }
    why[0] = '\0';
    assert_null(backend_open_memory(UINT64_MAX, why, sizeof(why)));
    assert_true(why[0] != '\0');
    backend_close(NULL);
    backend_queue_destroy(NULL);
}

/* Locks are per open file: they keep out others of the same process. */
static void test_locks(void **state)
{
    struct fixture f;
    char why[256] = "";

    (void)state;
    make_file(&f, PAGE_CACHE);
    for (unsigned i = 0; i < 4; i++) {
        bool first_shared = (i & 1) != 0, second_shared = (i & 2) != 0;
        struct backend *first = backend_open_file(f.path, false, first_shared, why, sizeof(why));
        struct backend *second = backend_open_file(f.path, false, second_shared, why, sizeof(why));

        assert_non_null(first);
        assert_int_equal(second != NULL, first_shared && second_shared);
        backend_close(second);
        backend_close(first);
    }
    unlink(f.path);
    close(f.fd);
}

/* In a child: io_uring is refused from now on, as containers do it. */
static int run_without_uring(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = { .len = sizeof(code) / sizeof(*code), .filter = code };
    struct backend_queue *queue;
    char why[256] = "";

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0) {
        return 77;
    }
    queue = backend_queue_create(16, why, sizeof(why));
    if (queue == NULL || backend_queue_fd(queue) != -1) {
        return 1;
    }
    backend_queue_destroy(queue);
    return why[0] != '\0' ? 0 : 2;
}

static void test_refused_uring(void **state)
{
    pid_t pid = fork();
    int status;

    (void)state;
    if (pid == 0) {
        _exit(run_without_uring());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

#define TEST(test, variant)                                                                        \
    {                                                                                              \
        #test ", " #variant, test, setup, teardown, &variant                                       \
    }
#define TESTS(variant)                                                                             \
    TEST(test_size, variant), TEST(test_reads_what_was_written, variant),                          \
        TEST(test_scattered, variant), TEST(test_flush_and_fua, variant),                          \
        TEST(test_zeroes_exactly, variant), TEST(test_discards_nothing_else, variant),             \
        TEST(test_more_than_the_depth, variant), TEST(test_submitting_from_done, variant)

int main(void)
{
    static struct variant memory = { MEMORY, BY_DEFAULT };
    static struct variant file = { PAGE_CACHE, BY_DEFAULT };
    static struct variant file_by_calls = { PAGE_CACHE, BY_CALLS };
    static struct variant direct = { DIRECT, BY_DEFAULT };
    static struct variant direct_by_calls = { DIRECT, BY_CALLS };
    static struct variant tmpfs = { TMPFS, BY_DEFAULT };
    static struct variant tmpfs_by_calls = { TMPFS, BY_CALLS };
    const struct CMUnitTest tests[] = {
        TESTS(memory),
        TESTS(file),
        TESTS(file_by_calls),
        TESTS(direct),
        TESTS(direct_by_calls),
        TESTS(tmpfs),
        TESTS(tmpfs_by_calls),
        TEST(test_cut_file, file),
        TEST(test_cut_file, file_by_calls),
        TEST(test_short_write, file),
        TEST(test_failing_calls, file),
        TEST(test_zeroes_fua, file),
        cmocka_unit_test(test_open_errors),
        cmocka_unit_test(test_locks),
        cmocka_unit_test(test_refused_uring),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
