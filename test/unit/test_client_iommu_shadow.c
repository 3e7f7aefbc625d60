/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The client's IOMMU and a server that only knows DMA_MAP and DMA_UNMAP: what it was told, put
 * together, is what the tables say.
 */
#include "iommu_fixture.h"

#include <stdlib.h>

#define MAP VFIO_USER_DMA_MAP
#define UNMAP VFIO_USER_DMA_UNMAP

static int setup(void **state)
{
    static struct fixture f;

    fixture_start(&f, NULL, NULL);
    assert_int_equal(vfuc_iommu_mode(f.iommu), VFUC_IOMMU_SHADOW);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture_end(*state);
    return 0;
}

static void assert_map(struct fixture *f, size_t nth, uint32_t pasid, uint64_t iova,
                       uint64_t offset, uint64_t size, uint32_t perm)
{
    struct record record = fake_server_record(&f->server, MAP, nth);
    size_t head = pasid == ME ? 0 : sizeof(struct vfio_user_pasid_prefix);
    struct vfio_user_dma_map map;

    memcpy(&map, record.payload + head, sizeof(map));
    assert_int_equal(record.hdr.flags, pasid == ME ? 0 : VFIO_USER_F_PASID);
    assert_int_equal(record.nr_fds, 1);
    assert_int_equal(map.addr, iova);
    assert_int_equal(map.offset, offset);
    assert_int_equal(map.size, size);
    assert_int_equal(map.flags & 3, perm);
}

static void assert_unmap(struct fixture *f, size_t nth, uint64_t iova, uint64_t size)
{
    struct record record = fake_server_record(&f->server, UNMAP, nth);
    struct vfio_user_dma_unmap unmap;

    memcpy(&unmap, record.payload, sizeof(unmap));
    assert_int_equal(unmap.addr, iova);
    assert_int_equal(unmap.size, size);
}

static void assert_counts(struct fixture *f, size_t maps, size_t unmaps)
{
    assert_int_equal(fake_server_count(&f->server, MAP), maps);
    assert_int_equal(fake_server_count(&f->server, UNMAP), unmaps);
}

static void test_simple(void **state)
{
    struct fixture *f = *state;

    assert_counts(f, 0, 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 0x7000, RAM + PAGE, 700 * PAGE, RW | X), 0);
    assert_map(f, 0, ME, 0x7000, PAGE, 700 * PAGE, RW);
    assert_int_equal(vfuc_iommu_map(f->domain, GIB, RAM, PAGE, R), 0);
    assert_map(f, 1, ME, GIB, 0, PAGE, R);
    assert_int_equal(vfuc_iommu_unmap(f->domain, 0x7000, 700 * PAGE), 0);
    assert_unmap(f, 0, 0x7000, 700 * PAGE);
    assert_counts(f, 2, 1);
    /* What the device is not to have without asking. */
    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, PAGE, RW | VFUC_IOMMU_PRIV), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, PAGE, RAM, PAGE, RW | VFUC_IOMMU_UNCACHED), 0);
    /* And what is not memory. */
    assert_int_equal(vfuc_iommu_map(f->domain, 2 * PAGE, RAM - PAGE, PAGE, RW), 0);
    assert_counts(f, 2, 1);
}

/* What leads on, but into another memory, is another mapping. */
static void test_two_memories(void **state)
{
    struct fixture *f = *state;
    const vfuc_iommu_memory_t more = {
        .address = RAM + RAM_SIZE, .size = 4 * PAGE, .prot = PROT_READ | PROT_WRITE, .fd = f->fd,
    };

    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM + RAM_SIZE - 2 * PAGE, 4 * PAGE, RW), 0);
    assert_counts(f, 1, 0);
    assert_int_equal(vfuc_iommu_add_memory(f->iommu, &more), 0);
    assert_counts(f, 2, 0);
    assert_map(f, 0, ME, 0, RAM_SIZE - 2 * PAGE, 2 * PAGE, RW);
    assert_map(f, 1, ME, 2 * PAGE, 0, 2 * PAGE, RW);
    assert_int_equal(vfuc_iommu_map(f->domain, MIB2, RAM + RAM_SIZE - PAGE, 2 * PAGE, RW), 0);
    assert_map(f, 2, ME, MIB2, RAM_SIZE - PAGE, PAGE, RW);
    assert_map(f, 3, ME, MIB2 + PAGE, 0, PAGE, RW);
}

/* Cut: all of it goes, and the rest comes back. */
static void test_cut(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, 16 * PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_unmap(f->domain, 4 * PAGE, 2 * PAGE), 0);
    assert_unmap(f, 0, 0, 16 * PAGE);
    assert_map(f, 1, ME, 0, 0, 4 * PAGE, RW);
    assert_map(f, 2, ME, 6 * PAGE, 6 * PAGE, 10 * PAGE, RW);
    assert_int_equal(vfuc_iommu_protect(f->domain, 8 * PAGE, PAGE, R), 0);
    assert_unmap(f, 1, 6 * PAGE, 10 * PAGE);
    assert_map(f, 3, ME, 6 * PAGE, 6 * PAGE, 2 * PAGE, RW);
    assert_map(f, 4, ME, 8 * PAGE, 8 * PAGE, PAGE, R);
    assert_map(f, 5, ME, 9 * PAGE, 9 * PAGE, 7 * PAGE, RW);
    /* The hole is closed: what is around it stays as it is. */
    assert_int_equal(vfuc_iommu_map(f->domain, 4 * PAGE, RAM + 4 * PAGE, 2 * PAGE, RW), 0);
    assert_counts(f, 7, 2);
    assert_map(f, 6, ME, 4 * PAGE, 4 * PAGE, 2 * PAGE, RW);
}

static void test_two_stages(void **state)
{
    struct fixture *f = *state;
    vfuc_iommu_domain_t *s2 = vfuc_iommu_domain_create(f->iommu);

    assert_int_equal(vfuc_iommu_map(s2, GIB, RAM, 64 * PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_domain_set_stage2(f->domain, s2), 0);
    assert_counts(f, 0, 0);
    /* Three pages of the first stage that lead on, and one that does not. */
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(vfuc_iommu_map(f->domain, i * PAGE, GIB + (8 + i) * PAGE, PAGE, RW), 0);
    }
    assert_int_equal(vfuc_iommu_map(f->domain, 3 * PAGE, GIB + 40 * PAGE, PAGE, R), 0);
    assert_counts(f, 4, 0);
    fake_server_clear(&f->server);
    /* The second stage moves a page that two of them do not see. */
    assert_int_equal(vfuc_iommu_unmap(s2, GIB + 9 * PAGE, PAGE), 0);
    assert_counts(f, 0, 1);
    assert_unmap(f, 0, PAGE, PAGE);
    assert_int_equal(vfuc_iommu_map(s2, GIB + 9 * PAGE, RAM + 100 * PAGE, PAGE, RW), 0);
    assert_counts(f, 1, 1);
    assert_map(f, 0, ME, PAGE, 100 * PAGE, PAGE, RW);
    fake_server_clear(&f->server);
    /* Attached again all is seen at once: what leads on is one. */
    assert_int_equal(vfuc_iommu_unmap(s2, GIB + 9 * PAGE, PAGE), 0);
    assert_int_equal(vfuc_iommu_map(s2, GIB + 9 * PAGE, RAM + 9 * PAGE, PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_attach(f->iommu, ME, NULL), 0);
    fake_server_clear(&f->server);
    assert_int_equal(vfuc_iommu_attach(f->iommu, ME, f->domain), 0);
    assert_counts(f, 2, 0);
    assert_map(f, 0, ME, 0, 8 * PAGE, 3 * PAGE, RW);
    assert_map(f, 1, ME, 3 * PAGE, 40 * PAGE, PAGE, R);
    assert_int_equal(vfuc_iommu_domain_set_stage2(f->domain, NULL), 0);
    assert_counts(f, 2, 2);
}

static void test_spaces(void **state)
{
    struct fixture f;

    (void)state;
    fixture_start(&f, VERSION(PASID_CAPS), NULL);
    assert_int_equal(vfuc_iommu_map(f.domain, 0, RAM, PAGE, RW), 0);
    assert_fails(vfuc_iommu_attach(f.iommu, 256, f.domain), EINVAL);
    assert_int_equal(vfuc_iommu_attach(f.iommu, 0, f.domain), 0);
    assert_map(&f, 1, 0, 0, 0, PAGE, RW);
    assert_int_equal(vfuc_iommu_map(f.domain, PAGE, RAM, PAGE, RW), 0);
    assert_counts(&f, 4, 0);
    assert_int_equal(vfuc_iommu_attach(f.iommu, 0, NULL), 0);
    assert_counts(&f, 4, 2);
    assert_int_equal(fake_server_record(&f.server, UNMAP, 0).hdr.flags, VFIO_USER_F_PASID);
    fixture_end(&f);
}

/* What the server does not take is not mapped; what it does not give back isolates the device. */
static void test_refusals(void **state)
{
    struct fixture *f = *state;
    vfuc_iommu_translation_t t;
    vfuc_iommu_domain_t *other = vfuc_iommu_domain_create(f->iommu);

    assert_int_equal(vfuc_iommu_map(other, 0, RAM, PAGE, RW), 0);
    fake_server_refuse(&f->server, MAP, ENOSPC);
    assert_fails(vfuc_iommu_map(f->domain, 0, RAM, PAGE, RW), ENOSPC);
    vfuc_iommu_translate(f->iommu, ME, 0, &t);
    assert_int_equal(t.perm, 0);
    assert_fails(vfuc_iommu_attach(f->iommu, ME, other), ENOSPC);
    vfuc_iommu_translate(f->iommu, ME, 0, &t);
    assert_int_equal(t.perm, 0);
    assert_int_equal(vfuc_iommu_domain_destroy(other), 0);
    fake_server_refuse(&f->server, UNMAP, ENOENT);
    assert_int_equal(vfuc_iommu_attach(f->iommu, ME, f->domain), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, PAGE, RW), 0);
    assert_fails(vfuc_iommu_unmap(f->domain, 0, PAGE), EPROTO);
    assert_true(vfuc_iommu_isolated(f->iommu));
    assert_fails(vfuc_iommu_map(f->domain, 0, RAM, PAGE, RW), EIO);
}

/* A server that the memory is not shared with, or that does without: DMA by messages. */
static void test_messages(void **state)
{
    struct vfio_user_dma_region_access access = { .addr = GIB + 1, .count = 7 };
    struct {
        struct vfio_user_dma_region_access head;
        uint8_t data[7];
    } __attribute__((packed)) reply;
    static uint8_t page[4096] __attribute__((aligned(4096)));
    const vfuc_iommu_memory_t memory = {
        .address = GIB, .size = PAGE, .prot = PROT_READ, .fd = -1, .vaddr = page,
    };
    struct fixture *f = *state;

    memset(page, 0x5a, sizeof(page));
    assert_int_equal(vfuc_iommu_add_memory(f->iommu, &memory), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, GIB, GIB, PAGE, RW), 0);
    assert_int_equal(fake_server_record(&f->server, MAP, 0).nr_fds, 0);
    assert_int_equal(fake_server_ask(&f->server, VFIO_USER_DMA_READ, 0, NULL, &access,
                                     sizeof(access), &reply, sizeof(reply), NULL), 0);
    for (int i = 0; i < 7; i++) {
        assert_int_equal(reply.data[i], 0x5a);
    }
    assert_int_equal(vfuc_iommu_remove_memory(f->iommu, GIB), 0);
    assert_counts(f, 1, 1);
    assert_int_equal(fake_server_ask(&f->server, VFIO_USER_DMA_READ, 0, NULL, &access,
                                     sizeof(access), NULL, 0, NULL), EFAULT);
}

/* A second device in the place of the first sees the same. */
static void test_next_device(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, PAGE, RAM + 8 * PAGE, PAGE, R), 0);
    vfuc_iommu_disconnect(f->iommu);
    fake_server_stop(&f->server);
    assert_int_equal(vfuc_iommu_unmap(f->domain, 0, PAGE), 0);
    fake_server_start(&f->server, NULL);
    f->client = vfuc_iommu_connect(f->iommu, f->server.path, NULL);
    assert_non_null(f->client);
    assert_counts(f, 1, 0);
    assert_map(f, 0, ME, PAGE, 8 * PAGE, PAGE, R);
}

/* What changed while there was no connection is so in the next one. */
static void test_reconnect(void **state)
{
    struct fixture *f = *state;
    vfuc_iommu_domain_t *s2 = vfuc_iommu_domain_create(f->iommu);

    assert_int_equal(vfuc_iommu_map(s2, 0, RAM, 8 * PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, 8 * PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, MIB2, RAM + MIB2, PAGE, R), 0);
    fake_server_hang_up(&f->server);
    assert_fails(vfuc_iommu_unmap(f->domain, 2 * PAGE, PAGE), ENOTCONN);
    assert_fails(vfuc_iommu_map(f->domain, GIB, RAM, PAGE, RW), ENOTCONN);
    fake_server_clear(&f->server);
    assert_int_equal(vfuc_iommu_reconnect(f->iommu), 0);
    assert_counts(f, 3, 0);
    assert_map(f, 0, ME, MIB2, MIB2, PAGE, R);
    assert_map(f, 1, ME, 0, 0, 2 * PAGE, RW);
    assert_map(f, 2, ME, 3 * PAGE, 3 * PAGE, 5 * PAGE, RW);
    /* One that has not let go is told of nothing, and forgets everything. */
    fake_server_refuse(&f->server, UNMAP, ENOENT);
    assert_fails(vfuc_iommu_unmap(f->domain, MIB2, PAGE), EPROTO);
    assert_fails(vfuc_iommu_unmap(f->domain, 0, PAGE), EIO);
    fake_server_hang_up(&f->server);
    fake_server_refuse(&f->server, 0, 0);
    fake_server_clear(&f->server);
    assert_int_equal(vfuc_iommu_reconnect(f->iommu), 0);
    assert_false(vfuc_iommu_isolated(f->iommu));
    assert_counts(f, 2, 0);
    assert_map(f, 0, ME, 3 * PAGE, 3 * PAGE, 5 * PAGE, RW);
    assert_map(f, 1, ME, PAGE, PAGE, PAGE, RW);
    assert_int_equal(vfuc_iommu_unmap(f->domain, 0, 8 * PAGE), 0);
    assert_counts(f, 2, 2);
}

/*
 * Composition: the tables change at random, and what the server was told is kept in a book of its
 * own, page by page.
 */
#define PAGES 64u

struct book {
    uint64_t offset[PAGES];
    uint32_t perm[PAGES]; /* 0: not mapped */
    uint64_t first[PAGES], size[PAGES]; /* of the mapping that the page is part of */
};

static void enter_map(struct book *book, const struct vfio_user_dma_map *map)
{
    for (uint64_t i = 0; i < map->size / PAGE; i++) {
        uint64_t page = map->addr / PAGE + i;

        assert_true(page < PAGES);
        assert_int_equal(book->perm[page], 0);
        book->perm[page] = map->flags & 3;
        book->offset[page] = map->offset + i * PAGE;
        book->first[page] = map->addr;
        book->size[page] = map->size;
    }
}

static void enter_unmap(struct book *book, const struct vfio_user_dma_unmap *unmap)
{
    uint64_t page = unmap->addr / PAGE;

    /* Exactly what was mapped: other servers refuse anything else. */
    assert_true(book->perm[page] != 0);
    assert_int_equal(book->first[page], unmap->addr);
    assert_int_equal(book->size[page], unmap->size);
    for (uint64_t i = 0; i < unmap->size / PAGE; i++) {
        book->perm[page + i] = 0;
    }
}

static void enter_records(struct fixture *f, struct book *book)
{
    static struct record records[FAKE_MAX_RECORDS];
    size_t n = fake_server_take(&f->server, records);

    for (size_t i = 0; i < n; i++) {
        const struct record *record = &records[i];

        if (record->hdr.cmd == MAP) {
            struct vfio_user_dma_map map;

            memcpy(&map, record->payload, sizeof(map));
            enter_map(book, &map);
        } else if (record->hdr.cmd == UNMAP) {
            struct vfio_user_dma_unmap unmap;

            memcpy(&unmap, record->payload, sizeof(unmap));
            enter_unmap(book, &unmap);
        }
    }
}

static void compare(struct fixture *f, const struct book *book)
{
    for (unsigned i = 0; i < PAGES; i++) {
        vfuc_iommu_translation_t t;

        vfuc_iommu_translate(f->iommu, ME, i * PAGE, &t);
        assert_int_equal(book->perm[i], t.perm);
        if (t.perm != 0) {
            assert_int_equal(book->offset[i], t.address - RAM);
        }
    }
}

static void change(struct fixture *f, vfuc_iommu_domain_t *s2)
{
    bool first = rand() % 2;
    vfuc_iommu_domain_t *domain = first ? f->domain : s2;
    uint64_t n = 1 + (uint64_t)rand() % 12, at = (uint64_t)rand() % (PAGES - n) * PAGE;
    uint64_t to = (uint64_t)rand() % (PAGES - n) * PAGE + (first ? 0 : RAM);
    uint32_t perm = 1 + (uint32_t)rand() % 3;

    switch (rand() % 16) {
    case 0:
        assert_int_equal(vfuc_iommu_attach(f->iommu, ME, rand() % 2 ? f->domain : s2), 0);
        break;
    case 1:
        assert_int_equal(vfuc_iommu_domain_set_stage2(f->domain, rand() % 2 ? s2 : NULL), 0);
        break;
    case 2 ... 5:
        if (vfuc_iommu_protect(domain, at, n * PAGE, perm) < 0) {
            assert_int_equal(errno, ENOENT);
        }
        break;
    case 6 ... 9:
        if (vfuc_iommu_unmap(domain, at, n * PAGE) < 0) {
            assert_int_equal(errno, ENOENT);
        }
        break;
    default:
        if (vfuc_iommu_map(domain, at, to, n * PAGE, perm) < 0) {
            assert_int_equal(errno, EEXIST);
        }
    }
}

static void test_composition(void **state)
{
    static struct book book;
    struct fixture *f = *state;
    vfuc_iommu_domain_t *s2 = vfuc_iommu_domain_create(f->iommu);
    vfuc_iommu_stats_t stats;

    srand(3);
    memset(&book, 0, sizeof(book));
    assert_int_equal(vfuc_iommu_domain_set_stage2(f->domain, s2), 0);
    for (int i = 0; i < 2000; i++) {
        change(f, s2);
        enter_records(f, &book);
        compare(f, &book);
    }
    vfuc_iommu_stats(f->iommu, &stats);
    assert_true(stats.shadow_maps > 300 && stats.shadow_unmaps > 300);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_simple),
        CASE(test_two_memories),
        CASE(test_cut),
        CASE(test_two_stages),
        cmocka_unit_test(test_spaces),
        CASE(test_refusals),
        CASE(test_messages),
        CASE(test_next_device),
        CASE(test_reconnect),
        CASE(test_composition),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
