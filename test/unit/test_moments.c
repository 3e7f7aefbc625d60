/* SPDX-License-Identifier: BSD-3-Clause */
/* What the functions of the interface answer when they are called at the wrong moment. */
#include "libvfio-user.h"
#include "vfio-user-client.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

/* The outcome of the calls that no callback may make; 0 where one was not refused. */
struct refusals {
    int attach, run, quiesced;
};

struct device {
    vfu_ctx_t *ctx;
    char dir[32], path[64];
    bool pause; /* the quiesce callback says EBUSY */
    unsigned nr_quiesced;
    struct refusals in_access, in_quiesce, in_reset, in_register;
};

static int errno_of(int result)
{
    return result == -1 ? errno : 0;
}

static struct refusals try_all(vfu_ctx_t *ctx)
{
    struct refusals r;

    r.attach = errno_of(vfu_attach_ctx(ctx));
    r.run = errno_of(vfu_run_ctx(ctx));
    r.quiesced = errno_of(vfu_device_quiesced(ctx, 0));
    vfu_destroy_ctx(ctx);
    return r;
}

static void assert_refused(struct refusals r)
{
    assert_int_equal(r.attach, EDEADLK);
    assert_int_equal(r.run, EDEADLK);
    assert_int_equal(r.quiesced, EINVAL);
}

static ssize_t access_bar(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct device *dev = vfu_get_private(ctx);

    (void)offset;
    dev->in_access = try_all(ctx);
    if (!is_write) {
        memset(buf, 0x5a, count);
    }
    return (ssize_t)count;
}

static int quiesce(vfu_ctx_t *ctx)
{
    struct device *dev = vfu_get_private(ctx);

    dev->in_quiesce = try_all(ctx);
    dev->nr_quiesced++;
    if (dev->pause) {
        errno = EBUSY;
        return -1;
    }
    return 0;
}

static int reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    struct device *dev = vfu_get_private(ctx);

    (void)type;
    dev->in_reset = try_all(ctx);
    return 0;
}

static void dma_registered(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    struct device *dev = vfu_get_private(ctx);

    (void)info;
    dev->in_register = try_all(ctx);
}

static int set_up(void **state)
{
    struct device *dev = calloc(1, sizeof(*dev));

    assert_non_null(dev);
    strcpy(dev->dir, "/tmp/vfu-moments-XXXXXX");
    assert_non_null(mkdtemp(dev->dir));
    snprintf(dev->path, sizeof(dev->path), "%s/socket", dev->dir);
    dev->ctx = vfu_create_ctx(VFU_TRANS_SOCK, dev->path, 0, dev, VFU_DEV_TYPE_PCI);
    assert_non_null(dev->ctx);
    *state = dev;
    return 0;
}

static int tear_down(void **state)
{
    struct device *dev = *state;

    vfu_destroy_ctx(dev->ctx);
    rmdir(dev->dir);
    free(dev);
    return 0;
}

static void make_device(struct device *dev)
{
    assert_int_equal(vfu_pci_init(dev->ctx, VFU_PCI_TYPE_CONVENTIONAL, 0, 0), 0);
    assert_int_equal(vfu_setup_region(dev->ctx, VFU_PCI_DEV_BAR0_REGION_IDX, 4096, access_bar,
                                      VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0), 0);
    assert_int_equal(vfu_setup_device_nr_irqs(dev->ctx, VFU_DEV_MSI_IRQ, 1), 0);
    assert_int_equal(vfu_setup_device_reset_cb(dev->ctx, reset), 0);
    vfu_setup_device_quiesce_cb(dev->ctx, quiesce);
    assert_int_equal(vfu_setup_device_dma(dev->ctx, 4, dma_registered, NULL), 0);
    assert_int_equal(vfu_realize_ctx(dev->ctx), 0);
}

/* A client for the time of a test: does its work while the test's thread serves. */
struct client {
    pthread_t thread;
    const char *path;
    void (*work)(vfuc_t *client);
};

static void *client_main(void *arg)
{
    struct client *c = arg;
    vfuc_t *client = vfuc_connect(c->path, NULL);

    if (client != NULL) {
        c->work(client);
        vfuc_disconnect(client);
    }
    return client;
}

static void start_client(struct client *c, struct device *dev, void (*work)(vfuc_t *client))
{
    *c = (struct client){ .path = dev->path, .work = work };
    assert_int_equal(pthread_create(&c->thread, NULL, client_main, c), 0);
    assert_int_equal(vfu_attach_ctx(dev->ctx), 0);
}

static void end_client(struct client *c)
{
    void *connected;

    assert_int_equal(pthread_join(c->thread, &connected), 0);
    assert_non_null(connected);
}

static void test_before_the_set_up(void **state)
{
    struct device *dev = *state;
    char sg[64] = { 0 };
    dma_sg_t *sgl = (dma_sg_t *)sg;
    struct iovec iov;
    char data[8];

    assert_int_equal(errno_of(vfu_run_ctx(dev->ctx)), EINVAL);
    assert_int_equal(errno_of(vfu_device_quiesced(dev->ctx, 0)), EINVAL);
    assert_int_equal(errno_of(vfu_irq_trigger(dev->ctx, 0)), EINVAL);
    assert_int_equal(errno_of(vfu_irq_trigger_type(dev->ctx, VFU_DEV_ERR_IRQ, 0)), EINVAL);
    assert_int_equal(errno_of(vfu_addr_to_sgl(dev->ctx, NULL, 1, sgl, 1, PROT_READ)), EINVAL);
    assert_int_equal(errno_of(vfu_sgl_get(dev->ctx, sgl, &iov, 1, 0)), EINVAL);
    assert_int_equal(errno_of(vfu_sgl_read(dev->ctx, sgl, 1, data, 0)), EINVAL);
    assert_int_equal(errno_of(vfu_sgl_write(dev->ctx, sgl, 1, data, 0)), EINVAL);
    assert_false(vfu_sg_is_mappable(dev->ctx, sgl));
    vfu_sgl_put(dev->ctx, sgl, &iov, 1);
    vfu_sgl_mark_dirty(dev->ctx, sgl, 1);
    vfu_pci_set_id(dev->ctx, 1, 2, 3, 4);
    vfu_pci_set_class(dev->ctx, 1, 2, 3);
    assert_int_equal(errno_of((int)vfu_pci_add_capability(dev->ctx, 0, 0, data)), EINVAL);
    assert_int_equal(vfu_pci_find_capability(dev->ctx, false, 1), 0);
    assert_int_equal(vfu_pci_find_next_capability(dev->ctx, true, 0, 1), 0);
    assert_null(vfu_pci_get_config_space(dev->ctx));
}

static void test_without_a_client(void **state)
{
    struct device *dev = *state;

    make_device(dev);
    assert_int_equal(vfu_realize_ctx(dev->ctx), 0);
    assert_int_equal(errno_of(vfu_run_ctx(dev->ctx)), ENOTCONN);
    assert_int_equal(errno_of(vfu_device_quiesced(dev->ctx, 0)), EINVAL);
    assert_int_equal(errno_of(vfu_irq_trigger(dev->ctx, 0)), ENOENT);
    assert_int_equal(errno_of(vfu_irq_trigger_type(dev->ctx, VFU_DEV_REQ_IRQ, 0)), ENOENT);
    assert_int_equal(errno_of(vfu_setup_device_nr_irqs(dev->ctx, VFU_DEV_MSI_IRQ, 2)), EBUSY);
    assert_int_equal(errno_of(vfu_pci_init(dev->ctx, VFU_PCI_TYPE_EXPRESS, 0, 0)), EEXIST);
}

static void use_all(vfuc_t *client)
{
    static char page[4096];
    const vfuc_memory_t memory = { .iova = 0x1000, .size = sizeof(page), .vaddr = page, .fd = -1,
                                   .prot = PROT_READ | PROT_WRITE };
    uint32_t value = 0;

    assert_int_equal(vfuc_region_read(client, VFU_PCI_DEV_BAR0_REGION_IDX, 0, &value,
                                      sizeof(value)), 0);
    assert_int_equal(value, 0x5a5a5a5a);
    assert_int_equal(vfuc_dma_map(client, &memory), 0);
    assert_int_equal(vfuc_reset(client), 0);
}

/* Each is refused inside every callback, and the context is served on. */
static void test_inside_callbacks(void **state)
{
    struct device *dev = *state;
    struct client client;

    make_device(dev);
    start_client(&client, dev, use_all);
    assert_int_equal(errno_of(vfu_run_ctx(dev->ctx)), ENOTCONN);
    end_client(&client);
    assert_refused(dev->in_access);
    assert_refused(dev->in_quiesce);
    assert_refused(dev->in_reset);
    assert_refused(dev->in_register);
}

static void reset_once(vfuc_t *client)
{
    assert_int_equal(vfuc_reset(client), 0);
}

static void test_while_quiescing(void **state)
{
    struct device *dev = *state;
    struct client client;

    make_device(dev);
    dev->pause = true;
    start_client(&client, dev, reset_once);
    assert_int_equal(errno_of(vfu_run_ctx(dev->ctx)), EBUSY);
    assert_int_equal(errno_of(vfu_attach_ctx(dev->ctx)), EINVAL);
    assert_int_equal(dev->nr_quiesced, 1);
    dev->pause = false;
    assert_int_equal(vfu_device_quiesced(dev->ctx, 0), 0);
    assert_int_equal(errno_of(vfu_device_quiesced(dev->ctx, 0)), EINVAL);
    assert_int_equal(errno_of(vfu_run_ctx(dev->ctx)), ENOTCONN);
    end_client(&client);
    assert_refused(dev->in_reset);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_before_the_set_up, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_without_a_client, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_inside_callbacks, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_while_quiescing, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
