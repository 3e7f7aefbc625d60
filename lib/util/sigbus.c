/* SPDX-License-Identifier: BSD-3-Clause */
#include "util/sigbus.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHUNK_GUARDS 64

/* Mappings that the handler can give up. One fault needs two at most, and the next guard refills. */
#define SPARES 32

/* Chunks are only ever appended. */
struct guard_chunk {
    struct guard guards[CHUNK_GUARDS];
    _Atomic(struct guard_chunk *) next;
};

/* A disposition that was found in place of ours. Never freed: the handler may be using it. */
struct disposition {
    struct sigaction action;
    struct disposition *next;
};

static struct {
    pthread_mutex_t lock; /* of what is not atomic; the handler never takes it */
    struct guard *free;
    struct disposition *dispositions;
    _Atomic(struct guard_chunk *) chunks;
    _Atomic(const struct sigaction *) previous;
    _Atomic(void *) spares[SPARES];
} table = { .lock = PTHREAD_MUTEX_INITIALIZER };

static size_t spare_size; /* set before the handler is installed */

/*
 * The signal that this thread passed on. A handler may leave by siglongjmp(3) and leave this behind:
 * the frame of another signal is not below the frame of this one with the same context.
 */
static __thread struct {
    void *context;
    uintptr_t frame;
} passed_on __attribute__((tls_model("initial-exec")));

static struct guard *guard_of(uintptr_t addr)
{
    struct guard_chunk *chunk = atomic_load_explicit(&table.chunks, memory_order_acquire);
    uintptr_t base;
    size_t i;

    for (; chunk != NULL; chunk = atomic_load_explicit(&chunk->next, memory_order_acquire)) {
        for (i = 0; i < CHUNK_GUARDS; i++) {
            base = atomic_load_explicit(&chunk->guards[i].base, memory_order_acquire);
            if (base != 0 && addr >= base && addr - base < atomic_load(&chunk->guards[i].length)) {
                return &chunk->guards[i];
            }
        }
    }
    return NULL;
}

/* Gives one mapping back to the process. */
static bool give_up_spare(void)
{
    void *spare;

    for (int i = 0; i < SPARES; i++) {
        spare = atomic_exchange(&table.spares[i], NULL);
        if (spare != NULL) {
            munmap(spare, spare_size);
            return true;
        }
    }
    return false;
}

static bool put_zeroes(uintptr_t start, size_t size)
{
    return mmap((void *)start, size, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

/* Another thread that faulted in the same mapping may have replaced it: then the access is tried again. */
static bool replace(struct guard *guard, uintptr_t addr)
{
    uintptr_t base = atomic_load(&guard->base);
    size_t length = atomic_load(&guard->length), block = atomic_load(&guard->block);
    size_t start = (addr - base) / block * block;
    size_t size = length - start < block ? length - start : block;

    if (atomic_load(&guard->replaced)) {
        return true;
    }
    atomic_store(&guard->tripped, true);
    do {
        if (put_zeroes(base, length)) {
            atomic_store(&guard->replaced, true);
            return true;
        }
        if (put_zeroes(base + start, size)) {
            return true;
        }
    } while (give_up_spare());
    return false;
}

static void die_of(int sig, const siginfo_t *info)
{
    /* A fault comes again by itself when we return; a signal that was sent does not. */
    signal(sig, SIG_DFL);
    if (info->si_code <= 0) {
        raise(sig);
    }
}

/* What would have happened without us. */
static void chain(int sig, siginfo_t *info, void *context)
{
    const struct sigaction *previous = atomic_load(&table.previous);
    uintptr_t frame = (uintptr_t)__builtin_frame_address(0);

    /* Two handlers that were installed over each other by turns would pass it on for ever. */
    if (passed_on.context == context && frame < passed_on.frame) {
        die_of(sig, info);
        return;
    }
    passed_on.context = context;
    passed_on.frame = frame;
    if ((previous->sa_flags & SA_SIGINFO) != 0) {
        previous->sa_sigaction(sig, info, context);
    } else if (previous->sa_handler != SIG_DFL && previous->sa_handler != SIG_IGN) {
        previous->sa_handler(sig);
    } else if (info->si_code > 0 || previous->sa_handler == SIG_DFL) {
        die_of(sig, info);
    }
    passed_on.context = NULL;
}

/*
 * mmap(2) and munmap(2) are bare system calls here, and so as safe in a handler as those that POSIX
 * lists.
 */
static void on_sigbus(int sig, siginfo_t *info, void *context)
{
    uintptr_t addr = (uintptr_t)info->si_addr;
    int saved = errno;
    struct guard *guard = NULL;

    if (info->si_code == BUS_ADRERR) {
        guard = guard_of(addr);
    }
    if (guard == NULL || !replace(guard, addr)) {
        chain(sig, info, context);
    }
    errno = saved;
}

static bool same_handler(const struct sigaction *a, const struct sigaction *b)
{
    return (a->sa_flags & SA_SIGINFO) == (b->sa_flags & SA_SIGINFO) &&
           ((a->sa_flags & SA_SIGINFO) != 0 ? a->sa_sigaction == b->sa_sigaction
                                            : a->sa_handler == b->sa_handler);
}

/* Keeps one of each, however often they take turns. Under the lock. */
static const struct sigaction *remember(const struct sigaction *action)
{
    struct disposition *known = table.dispositions;

    while (known != NULL && !same_handler(&known->action, action)) {
        known = known->next;
    }
    if (known == NULL) {
        known = calloc(1, sizeof(*known));
        if (known == NULL) {
            return NULL;
        }
        known->action = *action;
        known->next = table.dispositions;
        table.dispositions = known;
    }
    return &known->action;
}

/* Under the lock. */
static int install(void)
{
    struct sigaction ours = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK };
    struct sigaction found;
    const struct sigaction *previous;

    sigaction(SIGBUS, NULL, &found);
    if (same_handler(&found, &ours)) {
        return 0;
    }
    previous = remember(&found);
    if (previous == NULL) {
        return -ENOMEM;
    }
    atomic_store(&table.previous, previous);
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, NULL);
    return 0;
}

/* Under the lock. */
static int add_chunk(void)
{
    struct guard_chunk *chunk = calloc(1, sizeof(*chunk));
    size_t i;

    if (chunk == NULL) {
        return -ENOMEM;
    }
    for (i = 0; i < CHUNK_GUARDS; i++) {
        chunk->guards[i].next_free = table.free;
        table.free = &chunk->guards[i];
    }
    atomic_store_explicit(&chunk->next, atomic_load(&table.chunks), memory_order_relaxed);
    atomic_store_explicit(&table.chunks, chunk, memory_order_release);
    return 0;
}

/*
 * Each is a shared mapping of its own file, which the kernel merges with no other: giving one up
 * makes room for exactly one. Under the lock.
 */
static int fill_spares(void)
{
    void *spare;

    for (int i = 0; i < SPARES; i++) {
        if (atomic_load(&table.spares[i]) != NULL) {
            continue;
        }
        spare = mmap(NULL, spare_size, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (spare == MAP_FAILED) {
            return -errno;
        }
        atomic_store(&table.spares[i], spare);
    }
    return 0;
}

struct guard *guard_add(void *base, size_t length, size_t page_size)
{
    struct guard *guard = NULL;

    pthread_mutex_lock(&table.lock);
    spare_size = (size_t)sysconf(_SC_PAGESIZE);
    if (fill_spares() == 0 && install() == 0 && (table.free != NULL || add_chunk() == 0)) {
        guard = table.free;
        table.free = guard->next_free;
        atomic_store(&guard->length, length);
        atomic_store(&guard->block, page_size);
        atomic_store(&guard->tripped, false);
        atomic_store(&guard->replaced, false);
        atomic_store_explicit(&guard->base, (uintptr_t)base, memory_order_release);
    }
    pthread_mutex_unlock(&table.lock);
    return guard;
}

void guard_remove(struct guard *guard)
{
    pthread_mutex_lock(&table.lock);
    atomic_store(&guard->base, 0);
    guard->next_free = table.free;
    table.free = guard;
    pthread_mutex_unlock(&table.lock);
}

bool guard_this_thread(void)
{
    static __thread bool checked __attribute__((tls_model("initial-exec")));
    sigset_t bus, old;

    if (checked) {
        return false;
    }
    checked = true;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    return pthread_sigmask(SIG_UNBLOCK, &bus, &old) == 0 && sigismember(&old, SIGBUS) == 1;
}
