/* SPDX-License-Identifier: BSD-3-Clause */
/* The end of a context while the IOMMU extension has things under way, against a bare client. */
#include "libvfio-user-iommu.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#define MEMORY_SIZE 0x10000
#define MANY_REQUESTS 100000

struct fixture {
    char dir[32], path[64];
    vfu_ctx_t *ctx;
    int client, memory;
    dma_sg_t *sgl;
    vfu_dma_request_t req;
    int error; /* of the access; -1 while it is not done */
    unsigned ended; /* page requests */
};

static void done(vfu_ctx_t *ctx, vfu_dma_request_t *req, int error)
{
    struct fixture *f = req->pvt;

    (void)ctx;
    f->error = error;
}

static void registered(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx;
    (void)info;
}

/* Sends a message and lets the device serve it. */
static void message(struct fixture *f, struct vfio_user_header hdr, const void *payload, size_t len,
                    int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = { 0 };
    struct iovec iov[] = { { &hdr, sizeof(hdr) }, { (void *)payload, len } };
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };

    hdr.msg_size = (uint32_t)(sizeof(hdr) + len);
    if (fd != -1) {
        struct cmsghdr *c = (struct cmsghdr *)control.bytes;

        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof(control.bytes);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    }
    assert_int_equal(sendmsg(f->client, &msg, 0), hdr.msg_size);
    if (hdr.cmd == VFIO_USER_VERSION) {
        assert_int_equal(vfu_attach_ctx(f->ctx), 0);
    } else {
        assert_int_equal(vfu_run_ctx(f->ctx), (hdr.flags & VFIO_USER_F_TYPE_REPLY) == 0);
    }
}

static void command(struct fixture *f, uint16_t cmd, const void *payload, size_t len)
{
    message(f, (struct vfio_user_header){ .cmd = cmd }, payload, len, -1);
}

static void write_config(struct fixture *f, int cap_id, size_t reg, uint32_t value, uint32_t size)
{
    const struct vfio_user_region_access access = {
        .offset = vfu_pci_find_capability(f->ctx, true, cap_id) + reg,
        .region = VFU_PCI_DEV_CFG_REGION_IDX,
        .count = size,
    };
    uint8_t write[sizeof(access) + sizeof(value)];

    memcpy(write, &access, sizeof(access));
    memcpy(write + sizeof(access), &value, sizeof(value));
    command(f, VFIO_USER_REGION_WRITE, write, sizeof(access) + size);
}

static void attach(struct fixture *f)
{
    static const char json[] = "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,"
                               "\"iommu\":{\"ats\":{},\"pri\":{}},\"filler\":\"              "
                               "                                                           \"}}";
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    uint8_t version[sizeof(struct vfio_user_version) + sizeof(json)] = { 0 };

    f->client = socket(AF_UNIX, SOCK_STREAM, 0);
    strcpy(addr.sun_path, f->path);
    assert_int_equal(connect(f->client, (struct sockaddr *)&addr, sizeof(addr)), 0);
    memcpy(version + sizeof(struct vfio_user_version), json, sizeof(json));
    command(f, VFIO_USER_VERSION, version, sizeof(version));
    write_config(f, PCI_EXT_CAP_ID_ATS, 6, 0x8000, 2);
    write_config(f, PCI_EXT_CAP_ID_PRI, 12, 1, 4); /* one page at a time */
    write_config(f, PCI_EXT_CAP_ID_PRI, 4, 1, 2);
}

/* Into the translated space: what a translation may lead to. */
static void map_memory(struct fixture *f)
{
    const struct vfio_user_header hdr = { .cmd = VFIO_USER_DMA_MAP,
                                          .flags = VFIO_USER_F_TRANSLATED };
    const struct vfio_user_dma_map map = {
        .argsz = sizeof(map),
        .flags = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE,
        .size = MEMORY_SIZE,
    };

    f->memory = memfd_create("guest", MFD_CLOEXEC);
    assert_int_equal(ftruncate(f->memory, MEMORY_SIZE), 0);
    message(f, hdr, &map, sizeof(map), f->memory);
}

/* The id of the next command of the server that is this one. */
static uint16_t next_command(struct fixture *f, uint16_t cmd)
{
    struct vfio_user_header hdr;
    uint8_t rest[4096];

    do {
        assert_int_equal(recv(f->client, &hdr, sizeof(hdr), MSG_DONTWAIT), sizeof(hdr));
        recv(f->client, rest, hdr.msg_size - sizeof(hdr), MSG_DONTWAIT);
    } while (hdr.cmd != cmd || (hdr.flags & VFIO_USER_F_TYPE_REPLY));
    return hdr.msg_id;
}

/* The access ends up in a cached translation, which it holds. */
static void resolve(struct fixture *f)
{
    const struct vfio_user_ats_entry entry = { .address = 0x1000, .length = 0x1000,
                                               .translated = 0x2000,
                                               .perm = VFIO_USER_ATS_PERM_READ };
    const struct vfio_user_ats_translate_reply head = { .argsz = sizeof(head) + sizeof(entry),
                                                        .nr_entries = 1 };
    uint8_t reply[sizeof(head) + sizeof(entry)];
    struct vfio_user_header hdr = { .cmd = VFIO_USER_ATS_TRANSLATE,
                                    .flags = VFIO_USER_F_TYPE_REPLY };

    memcpy(reply, &head, sizeof(head));
    memcpy(reply + sizeof(head), &entry, sizeof(entry));
    assert_int_equal(vfu_dma_resolve(f->ctx, &f->req), 0);
    hdr.msg_id = next_command(f, VFIO_USER_ATS_TRANSLATE);
    message(f, hdr, &reply, sizeof(reply), -1);
    assert_int_equal(f->error, 0);
}

static int setup(void **state)
{
    static struct fixture fixture;
    const vfu_iommu_config_t config = { .size = sizeof(config), .ats = true, .pri = true };
    struct fixture *f = &fixture;

    *f = (struct fixture){ .dir = "/tmp/vfu-test-XXXXXX", .error = -1 };
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof(f->path), "%s/socket", f->dir);
    f->ctx = vfu_create_ctx(VFU_TRANS_SOCK, f->path, LIBVFIO_USER_FLAG_ATTACH_NB, f,
                            VFU_DEV_TYPE_PCI);
    assert_non_null(f->ctx);
    assert_int_equal(vfu_pci_init(f->ctx, VFU_PCI_TYPE_EXPRESS, 0, 0), 0);
    assert_int_equal(vfu_setup_device_dma(f->ctx, 8, registered, registered), 0);
    assert_int_equal(vfu_setup_device_iommu(f->ctx, &config), 0);
    assert_int_equal(vfu_setup_device_nr_irqs(f->ctx, VFU_DEV_MSIX_IRQ, 1), 0);
    assert_int_equal(vfu_realize_ctx(f->ctx), 0);
    f->sgl = calloc(1, dma_sg_size());
    f->req = (vfu_dma_request_t){ .addr = 0x1000, .len = 8, .pasid = VFU_NO_PASID,
                                  .prot = PROT_READ, .sgl = f->sgl, .max_nr_sgs = 1, .pvt = f,
                                  .done = done };
    attach(f);
    map_memory(f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    close(f->client);
    close(f->memory);
    free(f->sgl);
    rmdir(f->dir);
    return 0;
}

/* The device has not let go of what the client takes away: that ends with the context too. */
static void test_invalidation_waits(void **state)
{
    const struct vfio_user_ats_invalidate invalidate = {
        .argsz = sizeof(invalidate),
        .address = 0x1000,
        .length = 0x1000,
    };
    struct fixture *f = *state;

    resolve(f);
    command(f, VFIO_USER_ATS_INVALIDATE, &invalidate, sizeof(invalidate));
    vfu_destroy_ctx(f->ctx);
}

static void test_unmap_waits(void **state)
{
    const struct vfio_user_header hdr = { .cmd = VFIO_USER_DMA_UNMAP,
                                          .flags = VFIO_USER_F_TRANSLATED };
    const struct vfio_user_dma_unmap unmap = { .argsz = sizeof(unmap), .size = MEMORY_SIZE };
    struct fixture *f = *state;

    resolve(f);
    message(f, hdr, &unmap, sizeof(unmap), -1);
    vfu_destroy_ctx(f->ctx);
}

static void test_translation_waits(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(vfu_dma_resolve(f->ctx, &f->req), 0);
    vfu_destroy_ctx(f->ctx);
    assert_int_equal(f->error, ENOTCONN);
}

static void paged(vfu_ctx_t *ctx, void *pvt, int error, uint32_t code)
{
    struct fixture *f = pvt;

    (void)code;
    assert_int_equal(error, ENOTCONN);
    /* The device may react to it as to any other. */
    assert_int_equal(vfu_irq_trigger(ctx, 0), -1);
    assert_int_equal(errno, ENOENT);
    f->ended++;
}

/* All but the first wait for credits. */
static void test_page_requests_wait(void **state)
{
    const vfu_page_range_t page = { .nr_pages = 1, .perm = VFIO_USER_ATS_PERM_READ };
    struct fixture *f = *state;

    for (unsigned i = 0; i < MANY_REQUESTS; i++) {
        assert_int_equal(vfu_page_request(f->ctx, VFU_NO_PASID, 0, &page, 1, paged, f), 0);
    }
    assert_int_equal(f->ended, 0);
    vfu_destroy_ctx(f->ctx);
    assert_int_equal(f->ended, MANY_REQUESTS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_invalidation_waits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unmap_waits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_translation_waits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_page_requests_wait, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
