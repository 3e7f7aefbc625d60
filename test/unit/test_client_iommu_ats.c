/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The client's IOMMU and a server that asks: ATS_TRANSLATE, DMA messages and ATS_INVALIDATE, by the
 * rules of docs/vfio-user-iommu.rst, and what happens to a server that breaks them.
 */
#include "iommu_fixture.h"

#include <stdatomic.h>

#define TRANSLATE VFIO_USER_ATS_TRANSLATE
#define INVALIDATE VFIO_USER_ATS_INVALIDATE

struct reply {
    struct vfio_user_ats_translate_reply head;
    struct vfio_user_ats_entry entries[16];
} __attribute__((packed));

static int setup(void **state)
{
    static struct fixture f;

    fixture_start(&f, FULL_VERSION, NULL);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture_end(*state);
    return 0;
}

static const struct vfio_user_pasid_prefix *prefix(struct vfio_user_pasid_prefix *p,
                                                   uint32_t pasid, uint32_t attrs)
{
    *p = (struct vfio_user_pasid_prefix){ .pasid = pasid, .attrs = attrs };
    return pasid == ME ? NULL : p;
}

/* Asks as a device that takes as many entries as fit. Returns the errno of the reply. */
static int ask_as(struct fixture *f, uint32_t pasid, uint32_t attrs, uint64_t address,
                  uint64_t length, struct reply *reply)
{
    const struct vfio_user_ats_translate request = {
        .argsz = sizeof(*reply), .address = address, .length = length,
    };
    struct vfio_user_pasid_prefix p;
    size_t len = 0;
    int error;

    memset(reply, 0, sizeof(*reply));
    error = fake_server_ask(&f->server, TRANSLATE, 0, prefix(&p, pasid, attrs), &request,
                            sizeof(request), reply, sizeof(*reply), &len);
    if (error == 0) {
        assert_int_equal(len, reply->head.argsz);
        assert_int_equal(len, sizeof(reply->head) +
                                  reply->head.nr_entries * sizeof(reply->entries[0]));
        assert_int_equal(reply->head.flags, 0);
        assert_int_equal(reply->head.reserved, 0);
    }
    return error;
}

static int ask(struct fixture *f, uint64_t address, uint64_t length, struct reply *reply)
{
    return ask_as(f, ME, 0, address, length, reply);
}

static void assert_entry(const struct reply *reply, unsigned i, uint64_t address,
                         uint64_t translated, uint64_t length, uint32_t perm)
{
    const struct vfio_user_ats_entry *e = &reply->entries[i];

    assert_true(i < reply->head.nr_entries);
    assert_int_equal(e->address, address);
    assert_int_equal(e->translated, translated);
    assert_int_equal(e->length, length);
    assert_int_equal(e->perm, perm);
    assert_int_equal(e->reserved, 0);
}

/* Translations */

static void test_memory_is_registered(void **state)
{
    struct fixture *f = *state;
    struct record record = fake_server_record(&f->server, VFIO_USER_DMA_MAP, 0);
    struct vfio_user_dma_map map;

    memcpy(&map, record.payload, sizeof(map));
    assert_int_equal(vfuc_iommu_mode(f->iommu), VFUC_IOMMU_ATS);
    assert_int_equal(fake_server_count(&f->server, VFIO_USER_DMA_MAP), 1);
    assert_int_equal(record.hdr.flags, VFIO_USER_F_TRANSLATED);
    assert_int_equal(record.nr_fds, 1);
    assert_int_equal(map.addr, RAM);
    assert_int_equal(map.size, RAM_SIZE);
}

/* ATS-2: in order, without holes; the first may begin before, the last may end behind. */
static void test_entries(void **state)
{
    struct fixture *f = *state;
    struct reply reply;

    assert_int_equal(vfuc_iommu_map(f->domain, MIB2, RAM, MIB2, RW), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 3 * MIB2, RAM + 8 * PAGE, PAGE, R), 0);
    assert_int_equal(ask(f, MIB2 + 5 * PAGE, PAGE, &reply), 0);
    assert_int_equal(reply.head.nr_entries, 1);
    assert_entry(&reply, 0, MIB2, RAM, MIB2, RW);

    assert_int_equal(ask(f, 2 * MIB2 - PAGE, 4 * PAGE, &reply), 0);
    assert_int_equal(reply.head.nr_entries, 2);
    assert_entry(&reply, 0, MIB2, RAM, MIB2, RW);
    assert_entry(&reply, 1, 2 * MIB2, 0, 3 * PAGE, 0);

    assert_int_equal(ask(f, 3 * MIB2 - 2 * PAGE, 5 * PAGE, &reply), 0);
    assert_int_equal(reply.head.nr_entries, 3);
    assert_entry(&reply, 0, 3 * MIB2 - 2 * PAGE, 0, 2 * PAGE, 0);
    assert_entry(&reply, 1, 3 * MIB2, RAM + 8 * PAGE, PAGE, R);
    assert_entry(&reply, 2, 3 * MIB2 + PAGE, 0, 2 * PAGE, 0);

    assert_int_equal(ask(f, UINT64_C(1) << 60, 2 * PAGE, &reply), 0);
    assert_entry(&reply, 0, UINT64_C(1) << 60, 0, 2 * PAGE, 0);
    assert_int_equal(ask(f, -PAGE, PAGE, &reply), 0);
    assert_entry(&reply, 0, -PAGE, 0, PAGE, 0);
}

static void test_number_of_entries(void **state)
{
    struct vfio_user_ats_translate request = { .address = 0, .length = 64 * PAGE };
    struct fixture *f = *state;
    struct reply reply;
    size_t len;

    for (unsigned i = 0; i < 64; i++) {
        assert_int_equal(vfuc_iommu_map(f->domain, i * PAGE, RAM + (i * 3 % 64) * PAGE, PAGE, RW),
                         0);
    }
    /* As many as were agreed on, and no more than there is room for. */
    assert_int_equal(ask(f, 0, 64 * PAGE, &reply), 0);
    assert_int_equal(reply.head.nr_entries, 8);
    assert_entry(&reply, 7, 7 * PAGE, RAM + 21 * PAGE, PAGE, RW);
    request.argsz = sizeof(reply.head) + 3 * sizeof(reply.entries[0]) + 31;
    assert_int_equal(fake_server_ask(&f->server, TRANSLATE, 0, NULL, &request, sizeof(request),
                                     &reply, sizeof(reply), &len), 0);
    assert_int_equal(reply.head.nr_entries, 3);
    assert_int_equal(len, sizeof(reply.head) + 3 * sizeof(reply.entries[0]));
}

/* ATS-4, PFX-5 */
static void test_permissions(void **state)
{
    const uint32_t exec = VFIO_USER_PASID_ATTR_EXEC, priv = VFIO_USER_PASID_ATTR_PRIV;
    const uint32_t p = VFUC_IOMMU_PRIV, g = VFUC_IOMMU_GLOBAL;
    struct fixture *f = *state;
    struct reply reply;

    assert_int_equal(vfuc_iommu_attach(f->iommu, 7, f->domain), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, PAGE, RW | X | g), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, PAGE, RAM + 2 * PAGE, PAGE, R | X | p), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 2 * PAGE, RAM + 4 * PAGE, PAGE,
                                    W | VFUC_IOMMU_NO_SNOOP | VFUC_IOMMU_UNCACHED), 0);
    assert_int_equal(ask(f, 0, 3 * PAGE, &reply), 0);
    assert_entry(&reply, 0, 0, RAM, PAGE, RW);
    assert_entry(&reply, 1, PAGE, 0, PAGE, 0);
    assert_entry(&reply, 2, 2 * PAGE, RAM + 4 * PAGE, PAGE,
                 W | VFUC_IOMMU_NO_SNOOP | VFUC_IOMMU_UNCACHED);
    assert_int_equal(ask_as(f, 7, 0, 0, 2 * PAGE, &reply), 0);
    assert_entry(&reply, 0, 0, RAM, PAGE, RW | g);
    assert_entry(&reply, 1, PAGE, 0, PAGE, 0);
    assert_int_equal(ask_as(f, 7, exec, 0, 3 * PAGE, &reply), 0);
    assert_entry(&reply, 0, 0, RAM, PAGE, RW | X | g);
    assert_entry(&reply, 2, 2 * PAGE, RAM + 4 * PAGE, PAGE,
                 W | VFUC_IOMMU_NO_SNOOP | VFUC_IOMMU_UNCACHED);
    assert_int_equal(ask_as(f, 7, exec | priv, 0, 2 * PAGE, &reply), 0);
    assert_entry(&reply, 0, 0, RAM, PAGE, RW | X | g | p);
    assert_entry(&reply, 1, PAGE, RAM + 2 * PAGE, PAGE, R | X | p);
    assert_int_equal(ask_as(f, 8, 0, 0, PAGE, &reply), 0);
    assert_entry(&reply, 0, 0, 0, PAGE, 0);
}

/* A unit of 64 KiB: what is smaller is for untranslated requests, which are checked here. */
static void test_unit(void **state)
{
    const uint64_t unit = 0x10000;
    struct fixture *f = *state;
    struct reply reply;

    assert_int_equal(vfuc_iommu_set_unit(f->iommu, 16), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, unit, RW), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, unit + PAGE, RAM + unit, PAGE, R), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 2 * unit, RAM + PAGE, unit, RW), 0);
    assert_int_equal(ask(f, 0, 4 * unit, &reply), 0);
    assert_int_equal(reply.head.nr_entries, 4);
    assert_entry(&reply, 0, 0, RAM, unit, RW);
    assert_entry(&reply, 1, unit, 0, unit, R | VFUC_IOMMU_UNCACHED);
    assert_entry(&reply, 2, 2 * unit, 0, unit, RW | VFUC_IOMMU_UNCACHED);
    assert_entry(&reply, 3, 3 * unit, 0, unit, 0);
    assert_int_equal(ask(f, PAGE, unit, &reply), EINVAL);
    assert_int_equal(ask(f, 0, PAGE, &reply), EINVAL);
}

/* All of a unit that is mixed is looked at: how much that may be is not for the server to say. */
static void test_large_units(void **state)
{
    const uint64_t unit = UINT64_C(16) << 20;
    struct fixture *f = *state;
    struct reply reply;
    vfuc_iommu_t *iommu = vfuc_iommu_create(NULL);
    struct fake_server server;

    assert_int_equal(vfuc_iommu_set_unit(f->iommu, 24), 0);
    for (uint64_t i = 0; i < 8; i++) {
        assert_int_equal(vfuc_iommu_map(f->domain, i * unit, RAM, PAGE, RW), 0);
    }
    assert_int_equal(ask(f, 0, 8 * unit, &reply), 0);
    assert_int_equal(reply.head.nr_entries, 4);
    assert_int_equal(vfuc_iommu_set_unit(f->iommu, 30), 0);
    assert_int_equal(ask(f, 0, 4 * GIB, &reply), 0);
    assert_int_equal(reply.head.nr_entries, 1);
    assert_entry(&reply, 0, 0, 0, GIB, RW | VFUC_IOMMU_UNCACHED);

    fake_server_start(&server, VERSION(ATS_CAPS(4, 8, 31)));
    errno = 0;
    assert_null(vfuc_iommu_connect(iommu, server.path, NULL));
    assert_int_equal(errno, ENOTSUP);
    fake_server_stop(&server);
    vfuc_iommu_destroy(iommu);
}

static void test_malformed_translations(void **state)
{
    struct {
        struct vfio_user_ats_translate request;
        uint32_t more;
    } __attribute__((packed)) msg;
    static const struct vfio_user_ats_translate wrong[] = {
        { .argsz = 48, .address = 1, .length = PAGE },
        { .argsz = 48, .address = 0, .length = PAGE + 1 },
        { .argsz = 48, .address = 0, .length = 0 },
        { .argsz = 48, .address = -PAGE, .length = 2 * PAGE },
        { .argsz = 48, .flags = 2, .address = 0, .length = PAGE },
        { .argsz = 47, .address = 0, .length = PAGE },
        { .argsz = 0, .address = 0, .length = PAGE },
    };
    struct fixture *f = *state;
    vfuc_iommu_stats_t stats;

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(fake_server_ask(&f->server, TRANSLATE, 0, NULL, &wrong[i],
                                         sizeof(wrong[i]), NULL, 0, NULL), EINVAL);
    }
    memset(&msg, 0, sizeof(msg));
    msg.request = (struct vfio_user_ats_translate){ .argsz = 48, .length = PAGE };
    assert_int_equal(fake_server_ask(&f->server, TRANSLATE, 0, NULL, &msg, sizeof(msg), NULL, 0,
                                     NULL), EINVAL);
    assert_int_equal(fake_server_ask(&f->server, TRANSLATE, 0, NULL, &msg, 23, NULL, 0, NULL),
                     EINVAL);
    assert_int_equal(fake_server_ask(&f->server, TRANSLATE, 0, NULL, NULL, 0, NULL, 0, NULL),
                     EINVAL);
    vfuc_iommu_stats(f->iommu, &stats);
    assert_int_equal(stats.refused, sizeof(wrong) / sizeof(wrong[0]) + 3);
}

/* PFX-1 to PFX-3 */
static void test_prefix(void **state)
{
    const struct vfio_user_ats_translate request = { .argsz = 48, .length = PAGE };
    const struct vfio_user_dma_region_access access = { .addr = 0, .count = 0 };
    struct vfio_user_pasid_prefix p = { .pasid = 256 };
    struct fixture *f = *state;

    assert_int_equal(fake_server_ask(&f->server, TRANSLATE, 0, &p, &request, sizeof(request), NULL,
                                     0, NULL), EINVAL);
    p = (struct vfio_user_pasid_prefix){ .pasid = 1, .attrs = 4 };
    assert_int_equal(fake_server_ask(&f->server, TRANSLATE, 0, &p, &request, sizeof(request), NULL,
                                     0, NULL), EINVAL);
    p.attrs = 0;
    assert_int_equal(fake_server_ask(&f->server, TRANSLATE, VFIO_USER_F_TRANSLATED, NULL, &request,
                                     sizeof(request), NULL, 0, NULL), EINVAL);
    assert_int_equal(fake_server_ask(&f->server, VFIO_USER_DMA_READ, VFIO_USER_F_TRANSLATED, &p,
                                     &access, sizeof(access), NULL, 0, NULL), EINVAL);
    assert_int_equal(fake_server_ask(&f->server, TRANSLATE, VFIO_USER_F_PASID, NULL, &p, 7, NULL, 0,
                                     NULL), EINVAL);
}

static void test_not_agreed(void **state)
{
    const struct vfio_user_ats_translate request = { .argsz = 48, .length = PAGE };
    const struct vfio_user_page_request page = { .argsz = 16, .flags = 1 };
    const struct vfio_user_dma_region_access access = { .addr = RAM, .count = 0 };
    const struct vfio_user_pasid_prefix p = { .pasid = 1 };
    struct fixture f;

    (void)state;
    fixture_start(&f, VERSION(ATS_CAPS(4, 8, 12)), NULL);
    assert_int_equal(fake_server_ask(&f.server, TRANSLATE, 0, &p, &request, sizeof(request), NULL,
                                     0, NULL), ENOTSUP);
    assert_int_equal(fake_server_ask(&f.server, VFIO_USER_PAGE_REQUEST, 0, NULL, &page,
                                     sizeof(page), NULL, 0, NULL), ENOTSUP);
    assert_fails(vfuc_iommu_attach(f.iommu, 1, f.domain), ENOTSUP);
    vfuc_iommu_disconnect(f.iommu);
    assert_int_equal(vfuc_iommu_attach(f.iommu, 1, f.domain), 0);
    errno = 0;
    assert_null(vfuc_iommu_connect(f.iommu, f.server.path, NULL));
    assert_int_equal(errno, ENOTSUP);
    fixture_end(&f);
    fixture_start(&f, VERSION(PASID_CAPS), NULL);
    assert_int_equal(vfuc_iommu_mode(f.iommu), VFUC_IOMMU_SHADOW);
    assert_int_equal(fake_server_ask(&f.server, TRANSLATE, 0, NULL, &request, sizeof(request),
                                     NULL, 0, NULL), ENOTSUP);
    assert_int_equal(fake_server_ask(&f.server, VFIO_USER_DMA_READ, VFIO_USER_F_TRANSLATED, NULL,
                                     &access, sizeof(access), NULL, 0, NULL), ENOTSUP);
    fixture_end(&f);
}

/* DMA by messages: DMA-6 */

struct access_msg {
    struct vfio_user_dma_region_access head;
    uint8_t data[3 * 4096];
} __attribute__((packed));

static int dma_read_as(struct fixture *f, uint32_t flags, uint32_t pasid, uint32_t attrs,
                       uint64_t addr, uint64_t count, struct access_msg *reply)
{
    const struct vfio_user_dma_region_access access = { .addr = addr, .count = count };
    struct vfio_user_pasid_prefix p;
    size_t len;
    int error = fake_server_ask(&f->server, VFIO_USER_DMA_READ, flags, prefix(&p, pasid, attrs),
                                &access, sizeof(access), reply, sizeof(*reply), &len);

    if (error == 0) {
        assert_int_equal(len, sizeof(access) + count);
        assert_memory_equal(&reply->head, &access, sizeof(access));
    }
    return error;
}

static int dma_read(struct fixture *f, uint32_t flags, uint32_t pasid, uint64_t addr,
                    uint64_t count, struct access_msg *reply)
{
    return dma_read_as(f, flags, pasid, 0, addr, count, reply);
}

static int dma_write(struct fixture *f, uint32_t flags, uint32_t pasid, uint64_t addr,
                     uint64_t count, uint8_t byte)
{
    struct access_msg msg = { .head = { .addr = addr, .count = count } };
    struct vfio_user_pasid_prefix p;
    size_t len;
    int error;

    memset(msg.data, byte, sizeof(msg.data));
    error = fake_server_ask(&f->server, VFIO_USER_DMA_WRITE, flags, prefix(&p, pasid, 0), &msg,
                            sizeof(msg.head) + count, NULL, 0, &len);
    if (error == 0) {
        assert_int_equal(len, sizeof(msg.head));
    }
    return error;
}

static bool all_are(const uint8_t *p, uint8_t byte, size_t n)
{
    while (n > 0 && *p == byte) {
        p++;
        n--;
    }
    return n == 0;
}

static void test_untranslated_messages(void **state)
{
    static struct access_msg msg;
    struct fixture *f = *state;

    for (unsigned i = 0; i < 8; i++) {
        memset(f->ram + i * PAGE, 0x10 + (int)i, PAGE);
    }
    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM + 5 * PAGE, PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, PAGE, RAM + 2 * PAGE, PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 2 * PAGE, RAM + 3 * PAGE, PAGE, R), 0);
    assert_int_equal(dma_read(f, 0, ME, 0xff0, 0x20, &msg), 0);
    assert_true(all_are(msg.data, 0x15, 16) && all_are(msg.data + 16, 0x12, 16));
    /* One that fails moves nothing. */
    assert_int_equal(dma_write(f, 0, ME, 0xff0, 2 * PAGE, 0xee), EFAULT);
    assert_true(all_are(f->ram, 0x10, PAGE) && all_are(f->ram + 5 * PAGE, 0x15, PAGE) &&
                all_are(f->ram + 2 * PAGE, 0x12, PAGE));
    assert_int_equal(dma_write(f, 0, ME, 0xff0, 0x20, 0xee), 0);
    assert_true(all_are(f->ram + 5 * PAGE, 0x15, PAGE - 16) &&
                all_are(f->ram + 6 * PAGE - 16, 0xee, 16) &&
                all_are(f->ram + 2 * PAGE, 0xee, 16) &&
                all_are(f->ram + 2 * PAGE + 16, 0x12, PAGE - 16));
    assert_int_equal(dma_read(f, 0, ME, 3 * PAGE - 1, 2, &msg), EFAULT);
    assert_int_equal(dma_read(f, 0, ME, -1, 1, &msg), EFAULT);
    assert_int_equal(dma_read(f, 0, ME, -1, 2, &msg), EINVAL);
    assert_int_equal(dma_read(f, 0, ME, 0, 0, &msg), EINVAL);
    /* Another space is another space. */
    assert_int_equal(dma_read(f, 0, 0, 0, 16, &msg), EFAULT);
    assert_int_equal(vfuc_iommu_attach(f->iommu, 0, f->domain), 0);
    assert_int_equal(dma_read(f, 0, 0, 0, 16, &msg), 0);
}

static void test_message_permissions(void **state)
{
    const uint32_t exec = VFIO_USER_PASID_ATTR_EXEC, priv = VFIO_USER_PASID_ATTR_PRIV;
    static struct access_msg msg;
    struct fixture *f = *state;

    assert_int_equal(vfuc_iommu_attach(f->iommu, 7, f->domain), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, PAGE, RAM, PAGE, R | X), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 2 * PAGE, RAM, PAGE, R | VFUC_IOMMU_PRIV), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 3 * PAGE, RAM, PAGE, W), 0);
    assert_int_equal(dma_read_as(f, 0, 7, exec, 0, 8, &msg), EFAULT);
    assert_int_equal(dma_read_as(f, 0, 7, exec, PAGE, 8, &msg), 0);
    assert_int_equal(dma_read_as(f, 0, 7, 0, PAGE, 8, &msg), 0);
    assert_int_equal(dma_read_as(f, 0, 7, 0, 2 * PAGE, 8, &msg), EFAULT);
    assert_int_equal(dma_read_as(f, 0, 7, priv, 2 * PAGE, 8, &msg), 0);
    assert_int_equal(dma_read_as(f, 0, 7, priv, PAGE, 8, &msg), 0);
    assert_int_equal(dma_read_as(f, 0, 7, 0, 3 * PAGE, 8, &msg), EFAULT);
    assert_int_equal(dma_write(f, 0, 7, 3 * PAGE, 8, 1), 0);
    assert_int_equal(dma_write(f, 0, 7, PAGE, 8, 1), EFAULT);
}

static void test_translated_messages(void **state)
{
    static struct access_msg msg;
    struct fixture *f = *state;

    memset(f->ram, 0x77, 2 * PAGE);
    assert_int_equal(dma_read(f, VFIO_USER_F_TRANSLATED, ME, RAM + 1, 2 * PAGE - 1, &msg), 0);
    assert_true(all_are(msg.data, 0x77, 2 * PAGE - 1));
    assert_int_equal(dma_write(f, VFIO_USER_F_TRANSLATED, ME, RAM + 8, 8, 0x78), 0);
    assert_true(all_are(f->ram + 8, 0x78, 8) && all_are(f->ram + 16, 0x77, PAGE));
    assert_int_equal(dma_read(f, VFIO_USER_F_TRANSLATED, ME, RAM - 1, 2, &msg), EFAULT);
    assert_int_equal(dma_read(f, VFIO_USER_F_TRANSLATED, ME, RAM + RAM_SIZE - 1, 2, &msg), EFAULT);
    assert_int_equal(dma_read(f, VFIO_USER_F_TRANSLATED, ME, 0, 1, &msg), EFAULT);
}

/* RST-4: dirty pages are those of memory. */

struct written {
    uint64_t address[4], size[4];
    unsigned nr;
};

static void on_written(void *pvt, vfuc_iommu_t *iommu, uint64_t address, uint64_t size)
{
    struct written *written = pvt;

    (void)iommu;
    written->address[written->nr % 4] = address;
    written->size[written->nr++ % 4] = size;
}

static void test_written(void **state)
{
    struct written written = { .nr = 0 };
    const vfuc_iommu_options_t options = { .written = on_written, .pvt = &written };
    static struct access_msg msg;
    struct fixture f;

    (void)state;
    fixture_start(&f, FULL_VERSION, &options);
    assert_int_equal(vfuc_iommu_map(f.domain, 0, RAM + 5 * PAGE, PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_map(f.domain, PAGE, RAM + 2 * PAGE, PAGE, RW), 0);
    assert_int_equal(dma_read(&f, 0, ME, 0xff0, 0x20, &msg), 0);
    assert_int_equal(dma_write(&f, 0, ME, PAGE, 2 * PAGE, 1), EFAULT);
    assert_int_equal(written.nr, 0);
    assert_int_equal(dma_write(&f, 0, ME, 0xff0, 0x30, 1), 0);
    assert_int_equal(dma_write(&f, VFIO_USER_F_TRANSLATED, ME, RAM + 7, 9, 1), 0);
    assert_int_equal(written.nr, 3);
    assert_int_equal(written.address[0], RAM + 5 * PAGE + 0xff0);
    assert_int_equal(written.size[0], 0x10);
    assert_int_equal(written.address[1], RAM + 2 * PAGE);
    assert_int_equal(written.size[1], 0x20);
    assert_int_equal(written.address[2], RAM + 7);
    assert_int_equal(written.size[2], 9);
    fixture_end(&f);
}

/* Invalidations */

static void assert_invalidation(struct fixture *f, size_t nth, uint32_t pasid, uint32_t flags,
                                uint64_t address, uint64_t length)
{
    struct record record = fake_server_record(&f->server, INVALIDATE, nth);
    struct vfio_user_pasid_prefix p = { .pasid = pasid }, seen;
    struct vfio_user_ats_invalidate inv;
    size_t head = pasid == ME ? 0 : sizeof(seen);

    assert_int_equal(record.hdr.flags, pasid == ME ? 0 : VFIO_USER_F_PASID);
    assert_int_equal(record.len, head + sizeof(inv));
    memcpy(&inv, record.payload + head, sizeof(inv));
    if (head > 0) {
        memcpy(&seen, record.payload, head);
        assert_memory_equal(&seen, &p, head);
    }
    assert_int_equal(inv.argsz, 24);
    assert_int_equal(inv.flags, flags);
    assert_int_equal(inv.address, address);
    assert_int_equal(inv.length, length);
}

static void test_what_is_invalidated(void **state)
{
    const uint32_t all = VFIO_USER_ATS_INV_F_ALL, global = VFIO_USER_ATS_INV_F_GLOBAL;
    struct fixture *f = *state;
    vfuc_iommu_domain_t *s2 = vfuc_iommu_domain_create(f->iommu);

    /* What can be cached only; a page that is not there is not. */
    assert_int_equal(vfuc_iommu_attach(f->iommu, 3, f->domain), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, 8 * PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_protect(f->domain, 0, PAGE, RW | X), 0);
    assert_fails(vfuc_iommu_unmap(f->domain, 16 * PAGE, PAGE), ENOENT);
    assert_int_equal(fake_server_count(&f->server, INVALIDATE), 0);
    /* Of every space that shows it. */
    assert_int_equal(vfuc_iommu_unmap(f->domain, PAGE, 2 * PAGE), 0);
    assert_int_equal(fake_server_count(&f->server, INVALIDATE), 2);
    assert_invalidation(f, 0, ME, 0, PAGE, 2 * PAGE);
    assert_invalidation(f, 1, 3, 0, PAGE, 2 * PAGE);
    assert_int_equal(vfuc_iommu_protect(f->domain, 4 * PAGE, PAGE, R), 0);
    assert_invalidation(f, 3, 3, 0, 4 * PAGE, PAGE);
    fake_server_clear(&f->server);
    /* A change of what is attached, or of the stage below. */
    assert_int_equal(vfuc_iommu_attach(f->iommu, 3, NULL), 0);
    assert_invalidation(f, 0, 3, all, 0, 0);
    assert_int_equal(vfuc_iommu_attach(f->iommu, 3, s2), 0);
    assert_int_equal(fake_server_count(&f->server, INVALIDATE), 1);
    assert_int_equal(vfuc_iommu_domain_set_stage2(f->domain, s2), 0);
    assert_invalidation(f, 1, ME, 0, 0, UINT64_C(1) << 48);
    assert_int_equal(vfuc_iommu_map(s2, RAM, RAM, MIB2, RW), 0);
    assert_int_equal(vfuc_iommu_unmap(s2, RAM + 5 * PAGE, PAGE), 0);
    assert_int_equal(fake_server_count(&f->server, INVALIDATE), 4);
    assert_invalidation(f, 2, ME, all, 0, 0);
    assert_invalidation(f, 3, 3, 0, RAM + 5 * PAGE, PAGE);
    fake_server_clear(&f->server);
    /* INV-1: global entries go with a global invalidation only. */
    assert_int_equal(vfuc_iommu_map(f->domain, GIB, RAM, PAGE, R | VFUC_IOMMU_GLOBAL), 0);
    assert_int_equal(vfuc_iommu_unmap(f->domain, GIB, PAGE), 0);
    assert_invalidation(f, 0, ME, global, GIB, PAGE);
    assert_int_equal(vfuc_iommu_attach(f->iommu, ME, NULL), 0);
    assert_invalidation(f, 1, ME, all | global, 0, 0);
}

struct waiter {
    struct fixture *f;
    pthread_t thread;
    vfuc_iommu_gather_t *gather; /* or NULL: a page of f->domain */
    uint64_t iova;
    int result, error;
    atomic_bool done;
};

static void *wait_for(void *arg)
{
    struct waiter *w = arg;

    w->result = w->gather != NULL ? vfuc_iommu_sync(w->gather)
                                  : vfuc_iommu_unmap(w->f->domain, w->iova, PAGE);
    w->error = errno;
    atomic_store(&w->done, true);
    return NULL;
}

static void start_waiter(struct waiter *w)
{
    assert_int_equal(pthread_create(&w->thread, NULL, wait_for, w), 0);
}

/* INV-7: the tables have changed before; others are answered while it waits. */
static void test_unmap_waits(void **state)
{
    struct fixture *f = *state;
    struct waiter w = { .f = f };
    struct reply reply;

    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, PAGE, RW), 0);
    assert_int_equal(vfuc_iommu_map(f->domain, PAGE, RAM + 3 * PAGE, PAGE, RW), 0);
    fake_server_hold(&f->server, INVALIDATE);
    start_waiter(&w);
    fake_server_wait(&f->server, INVALIDATE, 1);
    assert_int_equal(ask(f, 0, 2 * PAGE, &reply), 0);
    assert_entry(&reply, 0, 0, 0, PAGE, 0);
    assert_entry(&reply, 1, PAGE, RAM + 3 * PAGE, PAGE, RW);
    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM + PAGE, PAGE, RW), 0);
    assert_false(atomic_load(&w.done));
    fake_server_hold(&f->server, 0);
    pthread_join(w.thread, NULL);
    assert_int_equal(w.result, 0);
}

/* INV-6: as many as were agreed on at a time; neighbours are one. */
static void test_gather(void **state)
{
    struct fixture *f = *state;
    struct waiter w = { .f = f, .gather = vfuc_iommu_gather_create(f->iommu) };
    const unsigned pages = 33;

    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, 2 * pages * PAGE, RW), 0);
    for (unsigned i = 0; i < pages; i++) {
        assert_int_equal(vfuc_iommu_unmap_start(f->domain, 2 * i * PAGE, PAGE, w.gather), 0);
    }
    assert_fails(vfuc_iommu_unmap_start(f->domain, 0, PAGE, w.gather), ENOENT);
    assert_fails(vfuc_iommu_domain_destroy(f->domain), EBUSY);
    assert_int_equal(fake_server_count(&f->server, INVALIDATE), 0);
    fake_server_hold(&f->server, INVALIDATE);
    start_waiter(&w);
    for (unsigned i = 0; i < pages; i++) {
        fake_server_wait(&f->server, INVALIDATE, i + 4 < pages ? i + 4 : pages);
        assert_true(fake_server_outstanding(&f->server, INVALIDATE) <= 4);
        assert_false(atomic_load(&w.done));
        assert_true(fake_server_release_one(&f->server));
    }
    pthread_join(w.thread, NULL);
    assert_int_equal(w.result, 0);
    assert_int_equal(fake_server_count(&f->server, INVALIDATE), pages);
    fake_server_hold(&f->server, 0);
    fake_server_clear(&f->server);

    assert_int_equal(vfuc_iommu_map(f->domain, GIB, RAM, 8 * PAGE, RW), 0);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(vfuc_iommu_unmap_start(f->domain, GIB + i * PAGE, PAGE, w.gather), 0);
    }
    assert_int_equal(vfuc_iommu_sync(w.gather), 0);
    assert_int_equal(vfuc_iommu_sync(w.gather), 0);
    assert_int_equal(fake_server_count(&f->server, INVALIDATE), 1);
    assert_invalidation(f, 0, ME, 0, GIB, 4 * PAGE);
    vfuc_iommu_gather_destroy(w.gather);
}

/* A device that does not let go gets nothing any more. */
static void test_isolation(void **state)
{
    static const vfuc_iommu_options_t options = { .invalidate_timeout_ms = 50 };
    static struct access_msg msg;
    struct fixture f;
    struct reply reply;

    (void)state;
    fixture_start(&f, FULL_VERSION, &options);
    assert_int_equal(vfuc_iommu_map(f.domain, 0, RAM, 8 * PAGE, RW), 0);
    fake_server_hold(&f.server, INVALIDATE);
    assert_false(vfuc_iommu_isolated(f.iommu));
    assert_fails(vfuc_iommu_unmap(f.domain, 0, PAGE), ETIMEDOUT);
    assert_true(vfuc_iommu_isolated(f.iommu));
    assert_int_equal(ask(&f, PAGE, PAGE, &reply), EIO);
    assert_int_equal(dma_read(&f, 0, ME, PAGE, 16, &msg), EFAULT);
    assert_int_equal(dma_read(&f, VFIO_USER_F_TRANSLATED, ME, RAM, 16, &msg), EFAULT);
    assert_fails(vfuc_iommu_unmap(f.domain, PAGE, PAGE), EIO);
    /* The completion, late. */
    fake_server_hold(&f.server, 0);
    assert_int_equal(ask(&f, 2 * PAGE, PAGE, &reply), EIO);
    fixture_end(&f);
}

static void test_refused_invalidation(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, 8 * PAGE, RW), 0);
    fake_server_refuse(&f->server, INVALIDATE, EBUSY);
    assert_fails(vfuc_iommu_unmap(f->domain, 0, PAGE), EPROTO);
    assert_true(vfuc_iommu_isolated(f->iommu));
}

static void test_hang_up(void **state)
{
    struct fixture *f = *state;
    struct waiter w = { .f = f };

    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, 8 * PAGE, RW), 0);
    fake_server_hold(&f->server, INVALIDATE);
    start_waiter(&w);
    fake_server_wait(&f->server, INVALIDATE, 1);
    fake_server_hang_up(&f->server);
    pthread_join(w.thread, NULL);
    assert_int_equal(w.result, -1);
    assert_int_equal(w.error, ENOTCONN);
    assert_false(vfuc_iommu_isolated(f->iommu));
}

/* The server that comes back has cached nothing. */
static void test_reconnect(void **state)
{
    struct fixture *f = *state;
    struct reply reply;

    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, 8 * PAGE, RW), 0);
    fake_server_refuse(&f->server, INVALIDATE, EBUSY);
    assert_fails(vfuc_iommu_unmap(f->domain, 0, PAGE), EPROTO);
    fake_server_hang_up(&f->server);
    fake_server_refuse(&f->server, 0, 0);
    fake_server_clear(&f->server);
    assert_int_equal(vfuc_iommu_reconnect(f->iommu), 0);
    assert_false(vfuc_iommu_isolated(f->iommu));
    assert_int_equal(fake_server_record(&f->server, VFIO_USER_DMA_MAP, 0).hdr.flags,
                     VFIO_USER_F_TRANSLATED);
    assert_int_equal(ask(f, 0, 2 * PAGE, &reply), 0);
    assert_entry(&reply, 0, 0, 0, PAGE, 0);
    assert_entry(&reply, 1, PAGE, RAM + PAGE, PAGE, RW);
    assert_int_equal(vfuc_iommu_unmap(f->domain, PAGE, PAGE), 0);
}

static void *reconnect(void *arg)
{
    struct waiter *w = arg;

    w->result = vfuc_iommu_reconnect(w->f->iommu);
    atomic_store(&w->done, true);
    return NULL;
}

/* DMA-2: no translation into memory that the server does not know yet, here when it comes back. */
static void test_memory_first(void **state)
{
    struct fixture *f = *state;
    struct waiter w = { .f = f };
    struct reply reply;

    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM, 8 * PAGE, RW), 0);
    fake_server_hang_up(&f->server);
    fake_server_clear(&f->server);
    fake_server_hold(&f->server, VFIO_USER_DMA_MAP);
    assert_int_equal(pthread_create(&w.thread, NULL, reconnect, &w), 0);
    fake_server_wait(&f->server, VFIO_USER_DMA_MAP, 1);
    assert_int_equal(ask(f, 0, PAGE, &reply), EIO);
    assert_false(atomic_load(&w.done));
    fake_server_hold(&f->server, 0);
    pthread_join(w.thread, NULL);
    assert_int_equal(w.result, 0);
    assert_int_equal(ask(f, 0, PAGE, &reply), 0);
    assert_entry(&reply, 0, 0, RAM, 8 * PAGE, RW);
}

/* Memory comes and goes: DMA-2 */
static void test_memory(void **state)
{
    struct fixture *f = *state;
    vfuc_iommu_memory_t more = {
        .address = RAM + RAM_SIZE, .size = PAGE, .prot = PROT_READ, .fd = f->fd,
    };
    static struct access_msg msg;
    struct record record;
    struct reply reply;

    assert_int_equal(vfuc_iommu_map(f->domain, 0, RAM + RAM_SIZE - PAGE, 2 * PAGE, RW), 0);
    assert_int_equal(ask(f, 0, 2 * PAGE, &reply), 0);
    assert_entry(&reply, 1, PAGE, 0, PAGE, 0);
    assert_int_equal(vfuc_iommu_add_memory(f->iommu, &more), 0);
    record = fake_server_record(&f->server, VFIO_USER_DMA_MAP, 1);
    assert_int_equal(record.hdr.flags, VFIO_USER_F_TRANSLATED);
    assert_int_equal(record.nr_fds, 1);
    assert_int_equal(ask(f, 0, 2 * PAGE, &reply), 0);
    assert_entry(&reply, 1, PAGE, RAM + RAM_SIZE, PAGE, R);
    /* It was mapped here by the library: the beginning of the same file. */
    memset(f->ram, 0x3c, PAGE);
    assert_int_equal(dma_read(f, 0, ME, PAGE, PAGE, &msg), 0);
    assert_true(all_are(msg.data, 0x3c, PAGE));
    assert_int_equal(dma_write(f, VFIO_USER_F_TRANSLATED, ME, RAM + RAM_SIZE, 8, 1), EFAULT);
    assert_int_equal(vfuc_iommu_remove_memory(f->iommu, RAM + RAM_SIZE), 0);
    record = fake_server_record(&f->server, VFIO_USER_DMA_UNMAP, 0);
    assert_int_equal(record.hdr.flags, VFIO_USER_F_TRANSLATED);
    assert_int_equal(ask(f, 0, 2 * PAGE, &reply), 0);
    assert_entry(&reply, 1, PAGE, 0, PAGE, 0);
    fake_server_refuse(&f->server, VFIO_USER_DMA_MAP, ENOSPC);
    assert_fails(vfuc_iommu_add_memory(f->iommu, &more), ENOSPC);
    assert_int_equal(ask(f, 0, 2 * PAGE, &reply), 0);
    assert_entry(&reply, 1, PAGE, 0, PAGE, 0);
}

static void test_modes(void **state)
{
    static const vfuc_iommu_options_t ats = { .mode = VFUC_IOMMU_ATS };
    static const vfuc_iommu_options_t none = { .mode = VFUC_IOMMU_NONE };
    struct fake_server server;
    vfuc_iommu_t *iommu = vfuc_iommu_create(&ats);
    vfuc_iommu_domain_t *domain;
    int page;
    vfuc_iommu_memory_t memory = {
        .address = RAM, .size = PAGE, .prot = PROT_READ, .fd = -1,
        .vaddr = (void *)((uintptr_t)&page & ~(PAGE - 1)),
    };

    (void)state;
    fake_server_start(&server, NULL);
    errno = 0;
    assert_null(vfuc_iommu_connect(iommu, server.path, NULL));
    assert_int_equal(errno, ENOTSUP);
    fake_server_stop(&server);
    errno = 0;
    assert_null(vfuc_iommu_connect(iommu, "/nowhere/at/all", NULL));
    assert_int_equal(errno, ENOENT);
    vfuc_iommu_destroy(iommu);

    iommu = vfuc_iommu_create(&none);
    domain = vfuc_iommu_domain_create(iommu);
    assert_fails(vfuc_iommu_attach(iommu, ME, domain), ENOTSUP);
    assert_int_equal(vfuc_iommu_add_memory(iommu, &memory), 0);
    fake_server_start(&server, FULL_VERSION);
    /* It agrees to what was not proposed. */
    errno = 0;
    assert_null(vfuc_iommu_connect(iommu, server.path, NULL));
    assert_int_equal(errno, EPROTO);
    fake_server_stop(&server);
    fake_server_start(&server, NULL);
    assert_non_null(vfuc_iommu_connect(iommu, server.path, NULL));
    errno = 0;
    assert_null(vfuc_iommu_connect(iommu, server.path, NULL));
    assert_int_equal(errno, EBUSY);
    assert_int_equal(fake_server_record(&server, VFIO_USER_DMA_MAP, 0).hdr.flags, 0);
    vfuc_iommu_disconnect(iommu);
    fake_server_stop(&server);
    vfuc_iommu_destroy(iommu);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_memory_is_registered),
        CASE(test_entries),
        CASE(test_number_of_entries),
        CASE(test_permissions),
        CASE(test_unit),
        CASE(test_large_units),
        CASE(test_malformed_translations),
        CASE(test_prefix),
        cmocka_unit_test(test_not_agreed),
        CASE(test_untranslated_messages),
        CASE(test_message_permissions),
        CASE(test_translated_messages),
        cmocka_unit_test(test_written),
        CASE(test_what_is_invalidated),
        CASE(test_unmap_waits),
        CASE(test_gather),
        cmocka_unit_test(test_isolation),
        CASE(test_refused_invalidation),
        CASE(test_hang_up),
        CASE(test_reconnect),
        CASE(test_memory_first),
        CASE(test_memory),
        cmocka_unit_test(test_modes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
