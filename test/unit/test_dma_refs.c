/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "dma_fixture.h"

#define LARGE (4ull << 20) /* references are sharded */

static int set_up(void **state)
{
    *state = new_dma(1000);
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

/* A drain that counts. */
struct waiter {
    struct dma_drain drain;
    atomic_int done;
};

static void on_done(struct dma_drain *drain)
{
    struct waiter *waiter = (struct waiter *)drain;

    atomic_fetch_add(&waiter->done, 1);
}

static void waiter_init(struct waiter *waiter)
{
    dma_drain_init(&waiter->drain, on_done);
    atomic_init(&waiter->done, 0);
}

static int unmap_wait(struct dma_space *space, uint64_t addr, uint64_t size, struct waiter *waiter)
{
    return dma_unmap(space, span(addr, size), NULL, NULL, &waiter->drain);
}

static struct dma_sg handle(struct dma_space *space, uint64_t addr)
{
    struct dma_sg sg;

    assert_int_equal(dma_addr_to_sgl(space, addr, 1, &sg, 1, PROT_WRITE), 1);
    return sg;
}

static int hold(void **state, const struct dma_sg *sg)
{
    return dma_sgl_hold(*state, sg, 1);
}

static void release(void **state, const struct dma_sg *sg)
{
    dma_sgl_release(*state, sg, 1);
}

static void map_any(void **state, uint64_t addr, uint64_t size)
{
    assert_int_equal(map_message(space_of(state), addr, size, RW), 0);
}

static void test_stale_handles(void **state)
{
    static const uint64_t sizes[] = { PAGE, LARGE };
    struct dma_sg old, sg;
    size_t i, round;

    for (i = 0; i < 2; i++) {
        map_any(state, 0, sizes[i]);
        old = handle(space_of(state), 0);
        for (round = 0; round < 10; round++) {
            assert_int_equal(unmap(space_of(state), 0, sizes[i]), 1);
            assert_int_equal(hold(state, &old), -ESTALE);
            /* The slot is used again, for the same range even: still another region. */
            map_any(state, 0, sizes[i]);
            sg = handle(space_of(state), 0);
            assert_ptr_equal(sg.entry, old.entry);
            assert_int_equal(hold(state, &old), -ESTALE);
            assert_int_equal(hold(state, &sg), 0);
            release(state, &sg);
        }
        assert_int_equal(unmap(space_of(state), 0, sizes[i]), 1);
    }
}

static void test_zeroed_handle(void **state)
{
    struct dma_sg sg = { 0 };
    struct iovec iov;

    assert_int_equal(hold(state, &sg), -EINVAL);
    assert_int_equal(dma_sgl_get(*state, &sg, &iov, 1), -EINVAL);
    assert_false(dma_sg_is_mappable(*state, &sg));
    dma_sgl_put(*state, &sg, 1);
    dma_sgl_mark_dirty(*state, &sg, 1);
}

static void test_nothing_outstanding(void **state)
{
    struct waiter waiter;
    struct dma_sg sg;

    waiter_init(&waiter);
    map_any(state, 0, PAGE);
    sg = handle(space_of(state), 0);
    assert_int_equal(hold(state, &sg), 0);
    release(state, &sg);
    assert_int_equal(unmap_wait(space_of(state), 0, PAGE, &waiter), 1);
    assert_true(dma_drain_arm(&waiter.drain));
    assert_int_equal(waiter.done, 0);
}

static void check_drain(void **state, uint64_t size)
{
    struct waiter waiter;
    struct dma_sg sg;

    waiter_init(&waiter);
    map_any(state, 0, size);
    sg = handle(space_of(state), 0);
    assert_int_equal(hold(state, &sg), 0);
    assert_int_equal(hold(state, &sg), 0);
    assert_int_equal(unmap_wait(space_of(state), 0, size, &waiter), 1);
    assert_false(dma_drain_arm(&waiter.drain));
    /* The range is free again at once. */
    map_any(state, 0, size);
    release(state, &sg);
    assert_int_equal(waiter.done, 0);
    assert_int_equal(hold(state, &sg), -ESTALE);
    assert_int_equal(waiter.done, 0);
    release(state, &sg);
    assert_int_equal(waiter.done, 1);
    assert_int_equal(unmap(space_of(state), 0, size), 1);
}

static void test_drain(void **state)
{
    check_drain(state, PAGE);
    check_drain(state, LARGE);
}

/* Waits for what it removed and nothing else. */
static void test_drain_is_exact(void **state)
{
    struct dma_sg kept, gone, neighbour;
    struct waiter waiter;

    waiter_init(&waiter);
    map_any(state, 0 * PAGE, PAGE);
    map_any(state, 1 * PAGE, PAGE);
    map_any(state, 2 * PAGE, PAGE);
    kept = handle(space_of(state), 0);
    gone = handle(space_of(state), PAGE);
    neighbour = handle(space_of(state), 2 * PAGE);
    assert_int_equal(hold(state, &kept), 0);
    assert_int_equal(hold(state, &gone), 0);
    assert_int_equal(hold(state, &neighbour), 0);
    assert_int_equal(unmap(space_of(state), 2 * PAGE, PAGE), 1);
    assert_int_equal(unmap_wait(space_of(state), PAGE, PAGE, &waiter), 1);
    assert_false(dma_drain_arm(&waiter.drain));
    release(state, &gone);
    assert_int_equal(waiter.done, 1);
    release(state, &kept);
    release(state, &neighbour);
    assert_int_equal(waiter.done, 1);
}

/* A later unmap of the same range waits for the earlier, still lingering region too. */
static void test_several_drains_on_one_region(void **state)
{
    struct waiter waiters[3];
    struct dma_sg first, second;
    size_t i;

    for (i = 0; i < 3; i++) {
        waiter_init(&waiters[i]);
    }
    map_any(state, 0, PAGE);
    first = handle(space_of(state), 0);
    assert_int_equal(hold(state, &first), 0);
    assert_int_equal(unmap_wait(space_of(state), 0, PAGE, &waiters[0]), 1);
    for (i = 1; i < 3; i++) {
        map_any(state, 0, PAGE);
        second = handle(space_of(state), 0);
        assert_int_equal(unmap_wait(space_of(state), 0, PAGE, &waiters[i]), 1);
    }
    assert_int_equal(hold(state, &second), -ESTALE);
    for (i = 0; i < 3; i++) {
        assert_false(dma_drain_arm(&waiters[i].drain));
    }
    release(state, &first);
    for (i = 0; i < 3; i++) {
        assert_int_equal(waiters[i].done, 1);
    }
}

/* One drain over several spaces, as a global invalidation needs it. */
static void test_one_drain_for_all(void **state)
{
    struct dma_space *other;
    struct waiter waiter;
    struct dma_sg a, b;

    waiter_init(&waiter);
    assert_int_equal(dma_pasid_space_create(*state, 5, false, &other), 0);
    map_any(state, 0, PAGE);
    assert_int_equal(map_message(other, 0, LARGE, RW), 0);
    a = handle(space_of(state), 0);
    b = handle(other, 0);
    assert_int_equal(hold(state, &a), 0);
    assert_int_equal(hold(state, &b), 0);
    assert_int_equal(dma_unmap_all(space_of(state), NULL, NULL, &waiter.drain), 1);
    assert_int_equal(dma_unmap_all(other, NULL, NULL, &waiter.drain), 1);
    release(state, &a);
    assert_false(dma_drain_arm(&waiter.drain));
    assert_int_equal(waiter.done, 0);
    release(state, &b);
    assert_int_equal(waiter.done, 1);
}

/* A device that puts twice must not free what another thread holds later. */
static void test_excess_put(void **state)
{
    static const uint64_t sizes[] = { PAGE, LARGE };
    struct waiter waiter;
    struct dma_sg sg, old;
    size_t i;

    for (i = 0; i < 2; i++) {
        waiter_init(&waiter);
        map_any(state, 0, sizes[i]);
        old = sg = handle(space_of(state), 0);
        release(state, &sg);
        release(state, &sg);
        assert_int_equal(hold(state, &sg), 0);
        assert_int_equal(unmap_wait(space_of(state), 0, sizes[i], &waiter), 1);
        assert_false(dma_drain_arm(&waiter.drain));
        assert_int_equal(waiter.done, 0);
        release(state, &sg);
        assert_int_equal(waiter.done, 1);
        release(state, &sg);
        /* And not touch the next life of the slot. */
        map_any(state, 0, sizes[i]);
        sg = handle(space_of(state), 0);
        assert_ptr_equal(sg.entry, old.entry);
        assert_int_equal(hold(state, &sg), 0);
        release(state, &old);
        waiter_init(&waiter);
        assert_int_equal(unmap_wait(space_of(state), 0, sizes[i], &waiter), 1);
        assert_false(dma_drain_arm(&waiter.drain));
        release(state, &sg);
        assert_int_equal(waiter.done, 1);
    }
}

struct other_thread {
    struct dma *dma;
    struct dma_sg sg;
};

static void *put_there(void *arg)
{
    struct other_thread *other = arg;

    dma_sgl_release(other->dma, &other->sg, 1);
    return NULL;
}

/* Got here, put there: the shards differ, the sum counts. */
static void test_put_on_another_thread(void **state)
{
    struct other_thread other = { .dma = *state };
    struct waiter waiter;
    pthread_t thread;
    unsigned int i;

    waiter_init(&waiter);
    map_any(state, 0, LARGE);
    other.sg = handle(space_of(state), 0);
    for (i = 0; i < 3; i++) {
        assert_int_equal(hold(state, &other.sg), 0);
    }
    for (i = 0; i < 3; i++) {
        if (i == 1) {
            assert_int_equal(unmap_wait(space_of(state), 0, LARGE, &waiter), 1);
            assert_false(dma_drain_arm(&waiter.drain));
        }
        assert_int_equal(waiter.done, 0);
        assert_int_equal(pthread_create(&thread, NULL, put_there, &other), 0);
        pthread_join(thread, NULL);
    }
    assert_int_equal(waiter.done, 1);
}

/* Freed whatever is still held. */
static void test_destroy_with_references(void **state)
{
    struct dma *dma = new_dma(10);
    struct dma_space *space = dma_requester_space(dma);
    int fd = memory_file(LARGE);
    struct dma_sg sg;

    (void)state;
    assert_int_equal(map_file(space, 0, LARGE, fd, 0), 0);
    sg = handle(space, 0);
    assert_int_equal(dma_sgl_hold(dma, &sg, 1), 0);
    assert_int_equal(unmap(space, 0, LARGE), 1);
    assert_int_equal(map_file(space, 0, LARGE, fd, 0), 0);
    sg = handle(space, 0);
    assert_int_equal(dma_sgl_hold(dma, &sg, 1), 0);
    dma_destroy(dma);
    close(fd);
}

/* --- cached translations -------------------------------------------------------------------- */

static int cache(struct dma_space *space, uint64_t addr, uint64_t size, uint64_t translated,
                 int prot, uint8_t tags)
{
    struct dma_translation translation = {
        .iova = span(addr, size), .translated = translated, .prot = prot, .tags = tags
    };

    return dma_cache_insert(space, &translation);
}

static void test_cache(void **state)
{
    struct dma_space *space = space_of(state), *memory = dma_translated_space(*state);
    int fd = memory_file(16 * PAGE);
    struct dma_sg direct, cached;
    struct iovec a, b;
    struct dma_hit hit;

    assert_int_equal(map_file(memory, 0x100000, 8 * PAGE, fd, 0), 0);
    assert_int_equal(map_file(memory, 0x100000 + 8 * PAGE, 8 * PAGE, fd, 8 * PAGE), 0);
    assert_int_equal(cache(memory, 0, PAGE, 0x100000, RW, 0), -EINVAL);
    assert_int_equal(cache(space, 0x5000, PAGE, 0, RW, 0), -EFAULT);
    assert_int_equal(cache(space, 0x5000, 2 * PAGE, 0x100000 + 15 * PAGE, RW, 0), -EFAULT);
    assert_int_equal(cache(space, 0x5000, 2 * PAGE, UINT64_MAX - PAGE + 1, RW, 0), -EFAULT);
    assert_int_equal(cache(space, 0x5000, PAGE, 0x100000 + 2 * PAGE, RW, 0), 1);
    /* Split where the regions meet. */
    assert_int_equal(cache(space, 0x8000, 4 * PAGE, 0x100000 + 6 * PAGE, RW, 0), 2);
    assert_int_equal(dma_nr_cached(*state), 3);
    assert_int_equal(dma_lookup(space, 0x9fff, &hit), 0);
    assert_int_equal(hit.iova.last, 0x9fff);
    assert_true(hit.cached);

    direct = handle(memory, 0x100000 + 9 * PAGE);
    cached = handle(space, 0xb000);
    assert_int_equal(dma_sgl_get(*state, &direct, &a, 1), 0);
    assert_int_equal(dma_sgl_get(*state, &cached, &b, 1), 0);
    assert_ptr_equal(a.iov_base, b.iov_base);
    dma_sgl_put(*state, &direct, 1);
    dma_sgl_put(*state, &cached, 1);

    assert_int_equal(map_message(space, 0x20000, PAGE, RW), 0);
    assert_int_equal(cache(space, 0x1f000, 2 * PAGE, 0x100000, RW, 0), -EEXIST);
    /* A newer one replaces, a region wins. */
    assert_int_equal(cache(space, 0x5000, PAGE, 0x100000, RW, 0), 1);
    assert_int_equal(dma_nr_cached(*state), 3);
    assert_int_equal(map_message(space, 0x5000, PAGE, RW), 0);
    assert_int_equal(dma_nr_cached(*state), 2);
    close(fd);
}

static void test_cache_permissions(void **state)
{
    struct dma_space *space = space_of(state), *memory = dma_translated_space(*state);
    struct dma_sg sg;

    assert_int_equal(map_message(memory, 0, PAGE, PROT_READ), 0);
    assert_int_equal(map_message(memory, PAGE, PAGE, RW), 0);
    assert_int_equal(cache(space, 0, PAGE, 0, RW, 0), -EACCES);
    assert_int_equal(cache(space, 0, 2 * PAGE, 0, RW, 0), -EACCES);
    assert_int_equal(dma_nr_cached(*state), 0);
    assert_int_equal(cache(space, 0, PAGE, PAGE, PROT_READ, 0), 1);
    assert_int_equal(dma_addr_to_sgl(space, 0, 1, &sg, 1, PROT_WRITE), -EACCES);
    assert_int_equal(dma_addr_to_sgl(space, 0, 1, &sg, 1, PROT_READ), 1);
    assert_int_equal(cache(space, 0, PAGE, PAGE, PROT_WRITE, 0), 1);
    assert_int_equal(dma_addr_to_sgl(space, 0, 1, &sg, 1, PROT_READ), -EACCES);
    assert_int_equal(dma_addr_to_sgl(space, 0, 1, &sg, 1, PROT_WRITE), 1);
}

static void test_cache_target(void **state)
{
    struct dma_space *space = space_of(state), *memory = dma_translated_space(*state);
    struct dma_target target;
    struct dma_sg sg;

    assert_int_equal(map_message(memory, 0x100000, 4 * PAGE, RW), 0);
    assert_int_equal(map_message(space, 0x100000, PAGE, RW), 0);
    assert_int_equal(cache(space, 0, PAGE, 0x100000 + PAGE, RW, 0), 1);
    sg = handle(space, 0x123);
    assert_false(dma_sg_is_mappable(*state, &sg));
    assert_int_equal(dma_sg_target(*state, &sg, &target), 0);
    assert_int_equal(target.mode, DMA_MODE_MESSAGE);
    assert_true(target.space.translated);
    assert_int_equal(target.address, 0x100000 + PAGE + 0x123);
    sg = handle(space, 0x100010);
    assert_int_equal(dma_sg_target(*state, &sg, &target), 0);
    assert_false(target.space.translated);
    assert_int_equal(target.address, 0x100010);
    assert_int_equal(unmap(space, 0x100000, PAGE), 1);
    assert_int_equal(dma_sg_target(*state, &sg, &target), -ESTALE);
}

static bool odd_tags(uint8_t tags, void *arg)
{
    (void)arg;
    return tags % 2 == 1;
}

static void test_drop(void **state)
{
    struct dma_space *space = space_of(state);
    struct waiter waiter;
    struct dma_sg sg;
    uint64_t i;

    waiter_init(&waiter);
    assert_int_equal(map_message(dma_translated_space(*state), 0, 64 * PAGE, RW), 0);
    assert_int_equal(map_message(space, 0x100000, PAGE, RW), 0);
    for (i = 0; i < 16; i++) {
        assert_int_equal(cache(space, i * PAGE, PAGE, (63 - i) * PAGE, RW, (uint8_t)i), 1);
    }
    sg = handle(space, 5 * PAGE);
    assert_int_equal(hold(state, &sg), 0);
    /* One byte of a page is enough to drop the entry. */
    assert_int_equal(dma_drop(space, span(4 * PAGE - 1, 2), NULL, NULL, &waiter.drain), 2);
    assert_int_equal(dma_drop(space, span(0, 8 * PAGE), odd_tags, NULL, &waiter.drain), 3);
    assert_false(dma_drain_arm(&waiter.drain));
    release(state, &sg);
    assert_int_equal(waiter.done, 1);
    assert_int_equal(dma_drop(space, RANGE_ALL, NULL, NULL, NULL), 11);
    assert_int_equal(dma_nr_regions(*state), 2);
}

/* An invalidation waits for entries dropped before, but not for unmapped regions. */
static void test_drop_waits_for_dropped(void **state)
{
    struct dma_space *space = space_of(state);
    struct waiter first, second, other;
    struct dma_sg sg, region;

    waiter_init(&first);
    waiter_init(&second);
    waiter_init(&other);
    assert_int_equal(map_message(dma_translated_space(*state), 0, 64 * PAGE, RW), 0);
    map_any(state, 0, PAGE);
    region = handle(space, 0);
    assert_int_equal(hold(state, &region), 0);
    assert_int_equal(unmap(space, 0, PAGE), 1);
    assert_int_equal(cache(space, 0, PAGE, 0, RW, 1), 1);
    sg = handle(space, 0);
    assert_int_equal(hold(state, &sg), 0);
    assert_int_equal(dma_drop(space, span(0, PAGE), NULL, NULL, &first.drain), 1);
    assert_int_equal(dma_drop(space, span(0, PAGE), odd_tags, NULL, &second.drain), 0);
    assert_int_equal(dma_drop(space, span(PAGE, PAGE), NULL, NULL, &other.drain), 0);
    assert_false(dma_drain_arm(&first.drain));
    assert_false(dma_drain_arm(&second.drain));
    assert_true(dma_drain_arm(&other.drain));
    release(state, &sg);
    assert_int_equal(first.done, 1);
    assert_int_equal(second.done, 1);
    release(state, &region);
}

/* An unmap in the translated space takes the translations along, and waits for their users. */
static void test_unmap_drops_translations(void **state)
{
    struct dma_space *space = space_of(state), *memory = dma_translated_space(*state);
    int fd = memory_file(4 * PAGE);
    struct waiter waiter;
    struct dma_sg sg;
    struct iovec iov;
    struct dma_hit hit;

    waiter_init(&waiter);
    assert_int_equal(map_file(memory, 0, 4 * PAGE, fd, 0), 0);
    close(fd);
    assert_int_equal(map_message(memory, 4 * PAGE, PAGE, RW), 0);
    assert_int_equal(cache(space, 0, PAGE, PAGE, RW, 0), 1);
    assert_int_equal(cache(space, PAGE, PAGE, 4 * PAGE, RW, 0), 1);
    sg = handle(space, 0);
    assert_int_equal(dma_sgl_get(*state, &sg, &iov, 1), 0);
    assert_int_equal(unmap_wait(memory, 0, 4 * PAGE, &waiter), 1);
    assert_false(dma_drain_arm(&waiter.drain));
    assert_int_equal(dma_lookup(space, 0, &hit), -ENOENT);
    assert_int_equal(dma_lookup(space, PAGE, &hit), 0);
    assert_int_equal(waiter.done, 0);
    memset(iov.iov_base, 1, iov.iov_len); /* still there */
    dma_sgl_put(*state, &sg, 1);
    assert_int_equal(waiter.done, 1);
}

static void test_evict(void **state)
{
    struct dma_space *space = space_of(state);
    int fd = memory_file(16 * PAGE);
    struct dma_hit hit;
    struct dma_sg sg;
    struct iovec iov;
    uint64_t i;

    assert_int_equal(map_file(dma_translated_space(*state), 0, 16 * PAGE, fd, 0), 0);
    for (i = 0; i < 8; i++) {
        assert_int_equal(cache(space, i * PAGE, PAGE, i * PAGE, RW, 0), 1);
    }
    /* All are new, so the first in goes; that was a round, and now use counts. */
    assert_int_equal(dma_cache_evict(*state, 1), 1);
    assert_int_equal(dma_lookup(space, 0, &hit), -ENOENT);
    sg = handle(space, PAGE);
    assert_int_equal(dma_sgl_get(*state, &sg, &iov, 1), 0);
    dma_sgl_put(*state, &sg, 1);
    assert_int_equal(dma_cache_evict(*state, 2), 2);
    assert_int_equal(dma_lookup(space, PAGE, &hit), 0);
    assert_int_equal(dma_lookup(space, 2 * PAGE, &hit), -ENOENT);
    assert_int_equal(dma_lookup(space, 3 * PAGE, &hit), -ENOENT);
    assert_int_equal(dma_cache_evict(*state, 100), 5);
    assert_int_equal(dma_cache_evict(*state, 1), 0);
    close(fd);
}

/* --- threads -------------------------------------------------------------------------------- */

#define RACE_ROUNDS 3000

struct racer {
    struct dma *dma;
    atomic_bool *stop;
    uint64_t size;
    size_t holds;
    bool wrong;
};

/* Whoever holds a reference finds the pattern that was in the file when the region was mapped. */
static void *race(void *arg)
{
    struct racer *racer = arg;
    struct dma_space *space = dma_requester_space(racer->dma);
    struct iovec iov;
    struct dma_sg sg;

    while (!atomic_load(racer->stop)) {
        if (dma_addr_to_sgl(space, PAGE, 8, &sg, 1, PROT_READ) != 1 ||
            dma_sgl_get(racer->dma, &sg, &iov, 1) != 0) {
            continue;
        }
        racer->holds++;
        if (memcmp(iov.iov_base, "guestmem", 8) != 0) {
            racer->wrong = true;
        }
        dma_sgl_put(racer->dma, &sg, 1);
    }
    return NULL;
}

/* The mapping goes with the region: without references, readers would fault. */
static void race_with_unmap(uint64_t size)
{
    struct dma *dma = new_dma(10);
    struct racer racers[2];
    struct waiter *waiters = calloc(RACE_ROUNDS, sizeof(*waiters));
    pthread_t threads[2];
    atomic_bool stop = false;
    size_t i, pending = 0, done = 0;
    int fd = memory_file(size);

    assert_non_null(waiters);
    assert_int_equal(pwrite(fd, "guestmem", 8, PAGE), 8);
    for (i = 0; i < 2; i++) {
        racers[i] = (struct racer){ .dma = dma, .stop = &stop, .size = size };
        assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
    }
    for (i = 0; i < RACE_ROUNDS; i++) {
        waiter_init(&waiters[i]);
        assert_int_equal(map_file(dma_requester_space(dma), 0, size, fd, 0), 0);
        assert_int_equal(unmap_wait(dma_requester_space(dma), 0, size, &waiters[i]), 1);
        pending += !dma_drain_arm(&waiters[i].drain);
    }
    atomic_store(&stop, true);
    for (i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_false(racers[i].wrong);
    }
    for (i = 0; i < RACE_ROUNDS; i++) {
        assert_true(waiters[i].done <= 1);
        done += (size_t)waiters[i].done;
    }
    assert_int_equal(done, pending);
    free(waiters);
    dma_destroy(dma);
    close(fd);
}

static void test_get_races_unmap(void **state)
{
    (void)state;
    race_with_unmap(4 * PAGE);
    race_with_unmap(LARGE);
}

/* Fills, drops and evictions on several threads at once, with users in between. */
static void *churn(void *arg)
{
    struct racer *racer = arg;
    struct dma_space *space = dma_requester_space(racer->dma);
    uint64_t random = 362436069 + (uintptr_t)arg, i, page;
    struct waiter waiter;
    struct iovec iov;
    struct dma_sg sg;

    for (i = 0; i < RACE_ROUNDS; i++) {
        page = next_random(&random) % 32;
        cache(space, page * PAGE, PAGE, page * PAGE, RW, 0);
        if (dma_addr_to_sgl(space, page * PAGE, 8, &sg, 1, PROT_READ) == 1 &&
            dma_sgl_get(racer->dma, &sg, &iov, 1) == 0) {
            racer->wrong = racer->wrong || *(uint64_t *)iov.iov_base != page;
            dma_sgl_put(racer->dma, &sg, 1);
        }
        if (i % 4 == 0) {
            waiter_init(&waiter);
            dma_drop(space, span(page * PAGE, 2 * PAGE), NULL, NULL, &waiter.drain);
            if (!dma_drain_arm(&waiter.drain)) {
                while (atomic_load(&waiter.done) == 0) {
                    sched_yield();
                }
            }
        }
        if (i % 16 == 0) {
            dma_cache_evict(racer->dma, 2);
        }
    }
    return NULL;
}

static void test_cache_churn(void **state)
{
    struct racer racers[3];
    pthread_t threads[3];
    uint64_t page;
    size_t i;
    int fd = memory_file(32 * PAGE);

    for (page = 0; page < 32; page++) {
        assert_int_equal(pwrite(fd, &page, sizeof(page), (off_t)(page * PAGE)), sizeof(page));
    }
    assert_int_equal(map_file(dma_translated_space(*state), 0, 32 * PAGE, fd, 0), 0);
    for (i = 0; i < 3; i++) {
        racers[i] = (struct racer){ .dma = *state };
        assert_int_equal(pthread_create(&threads[i], NULL, churn, &racers[i]), 0);
    }
    for (i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        assert_false(racers[i].wrong);
    }
    dma_drop(space_of(state), RANGE_ALL, NULL, NULL, NULL);
    assert_int_equal(dma_nr_cached(*state), 0);
    close(fd);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_stale_handles),
        TEST(test_zeroed_handle),
        TEST(test_nothing_outstanding),
        TEST(test_drain),
        TEST(test_drain_is_exact),
        TEST(test_several_drains_on_one_region),
        TEST(test_one_drain_for_all),
        TEST(test_excess_put),
        TEST(test_put_on_another_thread),
        TEST(test_destroy_with_references),
        TEST(test_cache),
        TEST(test_cache_permissions),
        TEST(test_cache_target),
        TEST(test_drop),
        TEST(test_drop_waits_for_dropped),
        TEST(test_unmap_drops_translations),
        TEST(test_evict),
        TEST(test_get_races_unmap),
        TEST(test_cache_churn),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
