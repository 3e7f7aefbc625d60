/* SPDX-License-Identifier: BSD-3-Clause */
/* The vfio-user side: context, event loop, reset. */
#include "nvme.h"

#include "../common/service.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static void print_log(vfu_ctx_t *ctx, int level, const char *msg)
{
    (void)ctx;
    service_print_log("nvme", level, msg);
}

static int reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    static const char *const causes[] = {
        [VFU_RESET_DEVICE] = "the client asked for it",
        [VFU_RESET_LOST_CONN] = "the client is gone",
        [VFU_RESET_PCI_FLR] = "function level reset",
    };
    struct nvme *nvme = vfu_get_private(ctx);
    bool in_use = controller_in_use(nvme);

    vfu_log(ctx, LOG_INFO, "controller reset: %s", causes[type]);
    controller_reset(nvme);
    migration_reset(nvme);
    /* As with VFIO, a client's reset keeps the configuration space. */
    if (type != VFU_RESET_DEVICE) {
        pci_reset(nvme);
    }
    /* The names that came with a migration belong to that guest, and so do the errors. */
    if (type == VFU_RESET_LOST_CONN) {
        nvme->identity = nvme->own_identity;
        nvme->told_bus_master = false;
        admin_power_cycle(nvme, in_use);
        share_renew(nvme);
    }
    return 0;
}

/* References keep memory in its place as long as it is used: there is no need to quiesce. */
static int setup_context(struct nvme *nvme)
{
    const vfu_iommu_config_t iommu = {
        .size = sizeof(iommu),
        .ats = nvme->config.ats,
        .pri = nvme->config.pri,
    };

    if (vfu_setup_log(nvme->ctx, print_log, nvme->config.log_level) != 0 || pci_setup(nvme) != 0 ||
        memory_setup(nvme) != 0 || vfu_setup_device_iommu(nvme->ctx, &iommu) != 0 ||
        vfu_setup_device_reset_cb(nvme->ctx, reset) != 0 || migration_setup(nvme) != 0) {
        return -1;
    }
    return vfu_realize_ctx(nvme->ctx);
}

static void stop_workers(struct nvme *nvme)
{
    for (unsigned i = 0; i < NVME_MAX_WORKERS; i++) {
        worker_end(&nvme->workers[i]);
    }
    for (unsigned i = 0; i < NVME_MAX_WORKERS; i++) {
        worker_close(&nvme->workers[i]);
    }
}

static int start_workers(struct nvme *nvme)
{
    int err = 0;

    nvme->nr_workers = nvme->config.nr_workers;
    for (unsigned i = 0; i < nvme->nr_workers && err == 0; i++) {
        err = worker_start(&nvme->workers[i], nvme, i);
    }
    return err;
}

static void close_all(struct nvme *nvme)
{
    stop_workers(nvme);
    vfu_destroy_ctx(nvme->ctx);
    nvme->ctx = NULL;
    migration_destroy(nvme);
    share_close(nvme);
    if (nvme->signal_fd >= 0) {
        close(nvme->signal_fd);
    }
    admin_destroy(nvme);
    queues_destroy(nvme);
    controller_destroy(nvme);
    namespaces_close(nvme);
}

/* What needs no context. */
static int set_up_controller(struct nvme *nvme)
{
    int err;

    share_init(nvme);
    controller_init(nvme);
    /* Before the workers start: they inherit the mask. */
    nvme->signal_fd = service_open_signals();
    err = nvme->signal_fd < 0 ? -errno : queues_init(nvme);
    if (err == 0) {
        err = identity_init(nvme);
    }
    if (err == 0) {
        err = admin_init(nvme);
    }
    if (err != 0) {
        fprintf(stderr, "nvme: cannot set the controller up: %s\n", strerror(-err));
        return err;
    }
    return namespaces_open(nvme);
}

int server_start(struct nvme *nvme)
{
    int err = set_up_controller(nvme);

    if (err != 0) {
        close_all(nvme);
        return err;
    }
    nvme->ctx = service_listen("nvme", nvme->config.socket, &nvme->config.access,
                               LIBVFIO_USER_FLAG_ATTACH_NB, nvme);
    if (nvme->ctx == NULL) {
        err = -errno;
        close_all(nvme);
        return err;
    }
    err = setup_context(nvme) == 0 ? 0 : -errno;
    if (err == 0) {
        err = start_workers(nvme);
    }
    if (err != 0) {
        fprintf(stderr, "nvme: cannot set the device up: %s\n", strerror(-err));
        close_all(nvme);
    }
    return err;
}

void server_stop(struct nvme *nvme)
{
    /* A client that owes us answers must not keep us waiting for them. */
    if (nvme->attached) {
        (void)shutdown(vfu_get_poll_fd(nvme->ctx), SHUT_RDWR);
    }
    controller_reset(nvme);
    close_all(nvme);
}

static bool attach_client(struct nvme *nvme)
{
    if (vfu_attach_ctx(nvme->ctx) == 0) {
        if (!nvme->config.poll) {
            vfu_log(nvme->ctx, LOG_INFO,
                    "BAR 0: no area can be mapped: clients that insist on mapping the doorbells, "
                    "as SPDK's host does (\"Error to get device BAR0\"), need --poll");
        }
        return true;
    }
    if (errno != EAGAIN && errno != EWOULDBLOCK) {
        vfu_log(nvme->ctx, LOG_WARNING, "a client could not attach: %s", strerror(errno));
    }
    return false;
}

/* 0, or -errno when the client is gone (-ENOTCONN) or nothing goes any more. */
static int serve_client(struct nvme *nvme)
{
    int err;

    pci_sync(nvme);
    err = vfu_run_ctx(nvme->ctx) >= 0 ? 0 : -errno;
    pci_sync(nvme);
    return err == -EINTR || err == -EAGAIN ? 0 : err;
}

int server_run(struct nvme *nvme)
{
    struct pollfd fds[2] = { { .fd = nvme->signal_fd, .events = POLLIN },
                             { .fd = vfu_get_event_fd(nvme->ctx), .events = POLLIN } };
    int err = 0;

    while (err == 0 && fds[0].revents == 0) {
        err = service_poll(fds, 2);
        if (err != 0) {
            continue;
        }
        if (nvme->attached) {
            err = serve_client(nvme);
            if (err == -ENOTCONN) {
                nvme->attached = false;
                err = 0;
            }
        } else if (fds[1].revents != 0) {
            nvme->attached = attach_client(nvme);
        }
    }
    if (err != 0) {
        vfu_log(nvme->ctx, LOG_ERR, "the server ends: %s", strerror(-err));
    }
    return err;
}
