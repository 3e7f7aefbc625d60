/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Preloaded into a program: makes one call of it fail, chosen by the place in the code that makes
 * the call. The file $VFU_FAULTS, which the test maps as well, lists every place seen so far and
 * says which one is to fail, how, and how often. Only calls from the modules that $VFU_FAULTS_IN
 * names are seen ("libvfio-user.so:nvme"); those of libc and of sanitizers go through.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define NR_SITES 2048
#define NR_SLOTS 16384 /* of the hash table, a power of two */
#define EARLY 65536 /* bytes allocated while the functions of libc are looked up */

/* vfiouser/faults.py has the same layouts. */
struct site {
    char module[40];
    char function[32];
    uint64_t offset; /* of the return address in the module */
    _Atomic uint64_t calls;
};

struct control {
    _Atomic uint32_t armed; /* the site that is to fail plus one; 0: none */
    _Atomic int32_t error; /* errno; 0: a transfer that ends after a byte */
    _Atomic int64_t skip; /* calls of it that succeed before */
    _Atomic int64_t left; /* calls of it that are still to fail */
    _Atomic uint32_t failed; /* calls that have failed */
    _Atomic uint32_t nr_sites;
    _Atomic int64_t live; /* allocations that have not been freed */
    _Atomic uint32_t lock;
    uint32_t reserved;
    struct site sites[NR_SITES];
};

enum verdict {
    PASS,
    FAIL,
    SHORT,
};

static struct control *control;
static const char *modules;
static struct slot {
    _Atomic uintptr_t key; /* the return address and the function */
    _Atomic int32_t site; /* plus one; -1: not of these modules; 0: not known yet */
} slots[NR_SLOTS];

__attribute__((constructor)) static void open_control(void)
{
    const char *path = getenv("VFU_FAULTS");
    int fd = path != NULL ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *map;

    if (fd < 0) {
        return;
    }
    map = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    modules = getenv("VFU_FAULTS_IN");
    control = map != MAP_FAILED && modules != NULL ? map : NULL;
}

static bool watched(const char *module)
{
    for (const char *at = modules; at != NULL && *at != '\0';) {
        size_t len = strcspn(at, ":");

        if (strncmp(at, module, len) == 0 && (module[len] == '\0' || module[len] == '.')) {
            return true;
        }
        at += len + (at[len] == ':');
    }
    return false;
}

/* The site with this place, perhaps of an earlier process, or a new one. Returns it plus one. */
static int32_t add_site(const char *module, uint64_t offset, const char *function)
{
    uint32_t at;

    while (atomic_exchange(&control->lock, 1) != 0) {
        sched_yield();
    }
    for (at = 0; at < control->nr_sites; at++) {
        const struct site *site = &control->sites[at];

        if (site->offset == offset && strcmp(site->module, module) == 0 &&
            strcmp(site->function, function) == 0) {
            break;
        }
    }
    if (at == control->nr_sites && at < NR_SITES) {
        struct site *site = &control->sites[at];

        strncpy(site->module, module, sizeof(site->module) - 1);
        strncpy(site->function, function, sizeof(site->function) - 1);
        site->offset = offset;
        control->nr_sites = at + 1;
    }
    atomic_store(&control->lock, 0);
    return at < NR_SITES ? (int32_t)at + 1 : -1;
}

static int32_t look_up(void *caller, const char *function)
{
    Dl_info info;
    const char *name;

    if (dladdr(caller, &info) == 0) {
        return -1;
    }
    name = strrchr(info.dli_fname, '/');
    name = name != NULL ? name + 1 : info.dli_fname;
    return watched(name) ? add_site(name, (uintptr_t)caller - (uintptr_t)info.dli_fbase, function)
                         : -1;
}

static int32_t find_site(void *caller, const char *function)
{
    uintptr_t key = (uintptr_t)caller ^ (uintptr_t)function << 40;

    for (size_t at = key % NR_SLOTS;; at = (at + 1) % NR_SLOTS) {
        uintptr_t found = 0;

        if (atomic_compare_exchange_strong(&slots[at].key, &found, key) || found == key) {
            int32_t site = atomic_load(&slots[at].site);

            if (site == 0) {
                site = look_up(caller, function);
                atomic_store(&slots[at].site, site);
            }
            return site;
        }
    }
}

static enum verdict judge(void *caller, const char *function)
{
    int saved = errno;
    int32_t site;

    if (control == NULL) {
        return PASS;
    }
    site = find_site(caller, function);
    errno = saved;
    if (site < 0) {
        return PASS;
    }
    atomic_fetch_add(&control->sites[site - 1].calls, 1);
    if (atomic_load(&control->armed) != (uint32_t)site ||
        atomic_fetch_sub(&control->skip, 1) > 0 || atomic_fetch_sub(&control->left, 1) <= 0) {
        return PASS;
    }
    atomic_fetch_add(&control->failed, 1);
    if (control->error == 0) {
        return SHORT;
    }
    errno = control->error;
    return FAIL;
}

#define JUDGE(name) judge(__builtin_return_address(0), #name)

/* The next definition of a function: libc's, or a sanitizer's. */
#define REAL(name)                                                                                 \
    ({                                                                                             \
        static __typeof__(&name) _Atomic real;                                                     \
        if (real == NULL) {                                                                        \
            real = (__typeof__(&name))look_up_real(#name);                                         \
        }                                                                                          \
        real;                                                                                      \
    })

static _Thread_local bool looking_up;
static char early[EARLY] __attribute__((aligned(16)));
static atomic_size_t early_used;

static void *look_up_real(const char *name)
{
    void *real;

    looking_up = true;
    real = dlsym(RTLD_NEXT, name);
    looking_up = false;
    return real;
}

static void *allocate_early(size_t size)
{
    size_t at = atomic_fetch_add(&early_used, (size + 15) & ~(size_t)15);

    return at + size <= EARLY ? early + at : NULL;
}

static bool is_early(const void *at)
{
    return (const char *)at >= early && (const char *)at < early + EARLY;
}

static void *count(void *allocated)
{
    if (allocated != NULL && control != NULL) {
        atomic_fetch_add(&control->live, 1);
    }
    return allocated;
}

/* Memory */

void *malloc(size_t size)
{
    if (looking_up) {
        return allocate_early(size);
    }
    return JUDGE(malloc) != PASS ? NULL : count(REAL(malloc)(size));
}

void *calloc(size_t nr, size_t size)
{
    if (looking_up) {
        return allocate_early(nr * size);
    }
    return JUDGE(calloc) != PASS ? NULL : count(REAL(calloc)(nr, size));
}

void *realloc(void *old, size_t size)
{
    enum verdict verdict = JUDGE(realloc);

    if (is_early(old)) {
        return NULL;
    }
    return verdict != PASS ? NULL : old == NULL ? count(REAL(realloc)(old, size))
                                                : REAL(realloc)(old, size);
}

void *reallocarray(void *old, size_t nr, size_t size)
{
    if (JUDGE(reallocarray) != PASS) {
        return NULL;
    }
    return old == NULL ? count(REAL(reallocarray)(old, nr, size))
                       : REAL(reallocarray)(old, nr, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return JUDGE(aligned_alloc) != PASS ? NULL : count(REAL(aligned_alloc)(alignment, size));
}

int posix_memalign(void **result, size_t alignment, size_t size)
{
    int error = JUDGE(posix_memalign) != PASS ? ENOMEM
                                              : REAL(posix_memalign)(result, alignment, size);

    if (error == 0) {
        count(*result);
    }
    return error;
}

char *strdup(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = JUDGE(strdup) != PASS ? NULL : count(REAL(malloc)(size));

    return copy != NULL ? memcpy(copy, text, size) : NULL;
}

void free(void *at)
{
    if (at == NULL || is_early(at)) {
        return;
    }
    if (control != NULL) {
        atomic_fetch_sub(&control->live, 1);
    }
    REAL(free)(at);
}

/* What fails as a whole */

#define WRAP(type, name, failure, params, args)                                                    \
    type name params                                                                               \
    {                                                                                              \
        return JUDGE(name) != PASS ? (failure) : REAL(name) args;                                  \
    }

WRAP(void *, mmap, MAP_FAILED, (void *addr, size_t len, int prot, int flags, int fd, off_t at),
     (addr, len, prot, flags, fd, at))
WRAP(int, madvise, -1, (void *addr, size_t len, int advice), (addr, len, advice))
WRAP(int, eventfd, -1, (unsigned int value, int flags), (value, flags))
WRAP(int, epoll_create1, -1, (int flags), (flags))
WRAP(int, epoll_ctl, -1, (int epfd, int op, int fd, struct epoll_event *event),
     (epfd, op, fd, event))
WRAP(int, epoll_wait, -1, (int epfd, struct epoll_event *events, int nr, int timeout),
     (epfd, events, nr, timeout))
WRAP(int, signalfd, -1, (int fd, const sigset_t *mask, int flags), (fd, mask, flags))
WRAP(int, memfd_create, -1, (const char *name, unsigned int flags), (name, flags))
WRAP(int, socket, -1, (int domain, int type, int protocol), (domain, type, protocol))
WRAP(int, socketpair, -1, (int domain, int type, int protocol, int pair[2]),
     (domain, type, protocol, pair))
WRAP(int, bind, -1, (int fd, const struct sockaddr *addr, socklen_t len), (fd, addr, len))
WRAP(int, listen, -1, (int fd, int backlog), (fd, backlog))
WRAP(int, connect, -1, (int fd, const struct sockaddr *addr, socklen_t len), (fd, addr, len))
WRAP(int, accept4, -1, (int fd, struct sockaddr *addr, socklen_t *len, int flags),
     (fd, addr, len, flags))
WRAP(int, getsockopt, -1, (int fd, int level, int name, void *value, socklen_t *len),
     (fd, level, name, value, len))
WRAP(int, poll, -1, (struct pollfd *fds, nfds_t nr, int timeout), (fds, nr, timeout))
WRAP(int, fstat, -1, (int fd, struct stat *st), (fd, st))
WRAP(int, statx, -1, (int dir, const char *path, int flags, unsigned int mask, struct statx *stx),
     (dir, path, flags, mask, stx))
WRAP(int, ftruncate, -1, (int fd, off_t len), (fd, len))
WRAP(int, fallocate, -1, (int fd, int mode, off_t at, off_t len), (fd, mode, at, len))
WRAP(int, fdatasync, -1, (int fd), (fd))
WRAP(ssize_t, readlink, -1, (const char *path, char *buf, size_t size), (path, buf, size))
WRAP(FILE *, fopen, NULL, (const char *path, const char *mode), (path, mode))
WRAP(int, pthread_create, control->error,
     (pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg),
     (thread, attr, run, arg))

/* The functions of liburing return -errno. */
struct io_uring;
struct io_uring_params;
int io_uring_submit(struct io_uring *ring);
int io_uring_queue_init_params(unsigned depth, struct io_uring *ring,
                               struct io_uring_params *params);
WRAP(int, io_uring_submit, -control->error, (struct io_uring *ring), (ring))
WRAP(int, io_uring_queue_init_params, -control->error,
     (unsigned depth, struct io_uring *ring, struct io_uring_params *params),
     (depth, ring, params))

int fcntl(int fd, int cmd, ...)
{
    va_list args;
    void *arg;

    va_start(args, cmd);
    arg = va_arg(args, void *);
    va_end(args);
    return JUDGE(fcntl) != PASS ? -1 : REAL(fcntl)(fd, cmd, arg);
}

long syscall(long number, ...)
{
    va_list args;
    long arg[6];

    va_start(args, number);
    for (size_t i = 0; i < 6; i++) {
        arg[i] = va_arg(args, long);
    }
    va_end(args);
    return JUDGE(syscall) != PASS
               ? -1
               : REAL(syscall)(number, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
}

int open(const char *path, int flags, ...)
{
    va_list args;
    unsigned int mode;

    va_start(args, flags);
    mode = va_arg(args, unsigned int);
    va_end(args);
    return JUDGE(open) != PASS ? -1 : REAL(open)(path, flags, mode);
}

/* Transfers, which can be short */

#define WRAP_TRANSFER(name, params, args, shorten)                                                 \
    ssize_t name params                                                                            \
    {                                                                                              \
        enum verdict verdict = JUDGE(name);                                                        \
        if (verdict == FAIL) {                                                                     \
            return -1;                                                                             \
        }                                                                                          \
        if (verdict == SHORT) {                                                                    \
            shorten;                                                                               \
        }                                                                                          \
        return REAL(name) args;                                                                    \
    }

#define FIRST_BYTE len = len != 0

WRAP_TRANSFER(read, (int fd, void *buf, size_t len), (fd, buf, len), FIRST_BYTE)
WRAP_TRANSFER(write, (int fd, const void *buf, size_t len), (fd, buf, len), FIRST_BYTE)
WRAP_TRANSFER(pread, (int fd, void *buf, size_t len, off_t at), (fd, buf, len, at), FIRST_BYTE)
WRAP_TRANSFER(pwrite, (int fd, const void *buf, size_t len, off_t at), (fd, buf, len, at),
              FIRST_BYTE)
WRAP_TRANSFER(recv, (int fd, void *buf, size_t len, int flags), (fd, buf, len, flags), FIRST_BYTE)
WRAP_TRANSFER(send, (int fd, const void *buf, size_t len, int flags), (fd, buf, len, flags),
              FIRST_BYTE)

static ssize_t transfer_vector(enum verdict verdict, __typeof__(&preadv2) real, int fd,
                               const struct iovec *iov, int nr, off_t at, int flags)
{
    struct iovec first = { .iov_base = nr > 0 ? iov->iov_base : NULL,
                           .iov_len = nr > 0 && iov->iov_len != 0 };

    return verdict == FAIL ? -1 : verdict == SHORT ? real(fd, &first, 1, at, flags)
                                                   : real(fd, iov, nr, at, flags);
}

ssize_t preadv2(int fd, const struct iovec *iov, int nr, off_t at, int flags)
{
    return transfer_vector(JUDGE(preadv2), REAL(preadv2), fd, iov, nr, at, flags);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int nr, off_t at, int flags)
{
    return transfer_vector(JUDGE(pwritev2), REAL(pwritev2), fd, iov, nr, at, flags);
}

/* The first byte of a message, with its descriptors. */
static struct msghdr first_byte(const struct msghdr *msg, struct iovec *first)
{
    struct msghdr cut = *msg;

    *first = (struct iovec){ .iov_base = msg->msg_iov->iov_base,
                             .iov_len = msg->msg_iov->iov_len != 0 };
    cut.msg_iov = first;
    cut.msg_iovlen = 1;
    return cut;
}

ssize_t recvmsg(int fd, struct msghdr *msg, int flags)
{
    enum verdict verdict = JUDGE(recvmsg);
    struct msghdr cut;
    struct iovec first;
    ssize_t n;

    if (verdict != SHORT) {
        return verdict == FAIL ? -1 : REAL(recvmsg)(fd, msg, flags);
    }
    cut = first_byte(msg, &first);
    n = REAL(recvmsg)(fd, &cut, flags);
    msg->msg_controllen = cut.msg_controllen;
    msg->msg_flags = cut.msg_flags;
    return n;
}

ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
    enum verdict verdict = JUDGE(sendmsg);
    struct msghdr cut;
    struct iovec first;

    if (verdict != SHORT) {
        return verdict == FAIL ? -1 : REAL(sendmsg)(fd, msg, flags);
    }
    cut = first_byte(msg, &first);
    return REAL(sendmsg)(fd, &cut, flags);
}
