/* SPDX-License-Identifier: BSD-3-Clause */
/* Eventfds whose file description a hostile peer holds as well: signals never wait for it. */
#include "util/peer_eventfd.h"
#include "util/peer_eventfd_thread.h"
#include "vfio-user-client.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define FULL (UINT64_MAX - 1)
#define ROUNDS 2000
#define THREADS 4

static int event(void)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

static uint64_t count_of(int fd)
{
    uint64_t count = 0;

    return read(fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

static void test_signal(void **state)
{
    int fd = event();

    (void)state;
    for (uint64_t i = 1; i < 1000; i++) { /* many times the ring */
        assert_int_equal(peer_eventfd_signal(fd), 0);
    }
    assert_int_equal(count_of(fd), 999);
    assert_int_equal(peer_eventfd_signal_on_thread(fd), 0);
    assert_int_equal(count_of(fd), 1);
    close(fd);
}

static void test_semaphore(void **state)
{
    int fd = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK);

    (void)state;
    assert_int_equal(peer_eventfd_check(fd), 0);
    assert_int_equal(peer_eventfd_signal(fd), 0);
    assert_int_equal(count_of(fd), 1);
    close(fd);
}

/* The counter is full and a write would wait. */
static void test_full(void **state)
{
    int fd = event();

    (void)state;
    assert_return_code(eventfd_write(fd, FULL), errno);
    assert_return_code(fcntl(fd, F_SETFL, 0), errno);
    assert_int_equal(peer_eventfd_signal_on_thread(fd), -EAGAIN);
    assert_int_equal(peer_eventfd_signal(fd), -EAGAIN);
    assert_true(count_of(fd) == FULL);
    assert_int_equal(peer_eventfd_signal(fd), 0);
    assert_int_equal(count_of(fd), 1);
    close(fd);
}

struct peer {
    int fd;
    unsigned spread;
    atomic_uint signals; /* what the other side has got done */
    atomic_bool stop;
};

/*
 * Empties the counter so that poll() says writable, and fills it before the write. Once a write
 * waits, no signal comes any more, and the counter stays full.
 */
static void *attack(void *arg)
{
    struct peer *peer = arg;
    unsigned seen = 0, seed = 1;

    while (!atomic_load(&peer->stop)) {
        unsigned now = atomic_load(&peer->signals);

        if (now != seen) {
            uint64_t count;
            struct iovec iov = { &count, sizeof(count) };

            seen = now;
            /* At any moment of the other side's next signal. */
            for (unsigned spin = (unsigned)rand_r(&seed) % peer->spread; spin > 0; spin--) {
                atomic_thread_fence(memory_order_seq_cst);
            }
            (void)!preadv2(peer->fd, &iov, 1, -1, RWF_NOWAIT);
            fcntl(peer->fd, F_SETFL, O_NONBLOCK);
            (void)!eventfd_write(peer->fd, FULL);
            fcntl(peer->fd, F_SETFL, 0);
        }
    }
    return NULL;
}

static void race(int (*signal_peer)(int fd), unsigned rounds, unsigned spread)
{
    struct peer peer = { .fd = event(), .spread = spread };
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, attack, &peer), 0);
    for (unsigned i = 0; i < rounds; i++) {
        int err = signal_peer(peer.fd);

        assert_true(err == 0 || err == -EAGAIN);
        atomic_fetch_add(&peer.signals, 1);
    }
    atomic_store(&peer.stop, true);
    pthread_join(thread, NULL);
    close(peer.fd);
}

static void test_race(void **state)
{
    (void)state;
    race(peer_eventfd_signal, 200 * ROUNDS, 8);
}

static void test_race_without_aio(void **state)
{
    (void)state;
    race(peer_eventfd_signal_on_thread, ROUNDS, 8192);
}

static void test_client(void **state)
{
    uint64_t count = 0;
    int fd = eventfd(0, EFD_CLOEXEC), other = memfd_create("other", MFD_CLOEXEC);

    (void)state;
    assert_int_equal(vfuc_eventfd_take(fd, &count), -1);
    assert_int_equal(errno, EAGAIN); /* without O_NONBLOCK */
    assert_int_equal(vfuc_eventfd_signal(other), -1);
    assert_int_equal(errno, EINVAL);
    assert_int_equal(vfuc_eventfd_signal(fd), 0);
    assert_int_equal(vfuc_eventfd_signal(fd), 0);
    assert_int_equal(vfuc_eventfd_take(fd, &count), 0);
    assert_int_equal(count, 2);
    close(other);
    close(fd);
}

static void *signal_often(void *arg)
{
    for (int i = 0; i < ROUNDS; i++) {
        if (peer_eventfd_signal(*(int *)arg) != 0) {
            return arg;
        }
    }
    return NULL;
}

/* They share one ring. */
static void test_threads(void **state)
{
    pthread_t threads[THREADS];
    int fd = event();

    (void)state;
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, signal_often, &fd), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        void *failed;

        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    assert_int_equal(count_of(fd), THREADS * ROUNDS);
    close(fd);
}

/* Runs a function in a child, where a failed check is the exit status. */
static void in_child(int (*run)(void))
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0) {
        _exit(run());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

#define CHECK(what)                                                                                \
    if (!(what)) {                                                                                 \
        return __LINE__ & 0xff;                                                                    \
    }

static int check_both_ways(void)
{
    int fd = eventfd(0, EFD_NONBLOCK), other = memfd_create("/anon_inode:[eventfd]", 0);

    CHECK(peer_eventfd_check(fd) == 0);
    CHECK(peer_eventfd_check(other) == -EINVAL);
    CHECK(peer_eventfd_signal(fd) == 0);
    CHECK(count_of(fd) == 1);
    return 0;
}

/* The parent's AIO context is of no use to the child. */
static void test_fork(void **state)
{
    (void)state;
    assert_int_equal(check_both_ways(), 0);
    in_child(check_both_ways);
}

/* From now on, a system call fails with ENOSYS. */
static int forbid(unsigned number)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0 ? 0 : -1;
}

static int run_without_aio(void)
{
    int fd = eventfd(0, EFD_NONBLOCK);

    CHECK(forbid(SYS_io_setup) == 0 && forbid(SYS_io_submit) == 0);
    CHECK(check_both_ways() == 0);
    CHECK(eventfd_write(fd, FULL) == 0 && fcntl(fd, F_SETFL, 0) == 0);
    CHECK(peer_eventfd_signal(fd) == -EAGAIN);
    return 0;
}

static void test_without_aio(void **state)
{
    (void)state;
    in_child(run_without_aio);
}

/* As in a chroot. */
static int run_without_proc(void)
{
    CHECK(forbid(SYS_readlink) == 0 && forbid(SYS_readlinkat) == 0);
    return check_both_ways();
}

static void test_without_proc(void **state)
{
    (void)state;
    in_child(run_without_proc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_signal),      cmocka_unit_test(test_semaphore),
        cmocka_unit_test(test_full),        cmocka_unit_test(test_race),
        cmocka_unit_test(test_race_without_aio),
        cmocka_unit_test(test_client),
        cmocka_unit_test(test_threads),     cmocka_unit_test(test_fork),
        cmocka_unit_test(test_without_aio), cmocka_unit_test(test_without_proc),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
