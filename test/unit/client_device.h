/* SPDX-License-Identifier: BSD-3-Clause */
/* A device in a thread of the test, for the client library to attach to. */
#ifndef TEST_CLIENT_DEVICE_H
#define TEST_CLIENT_DEVICE_H

#include "libvfio-user.h"
#include "vfio-user-client.h"

#include <pthread.h>
#include <stdint.h>

/* BAR 0 answers by messages: memory, and registers behind it. */
#define DEVICE_BAR0_SIZE 4096
#define DEVICE_REG_IOVA 0x100 /* 64 bits */
#define DEVICE_REG_LENGTH 0x108 /* 32 bits */
#define DEVICE_REG_COMMAND 0x10c /* 32 bits: enum device_command */
#define DEVICE_REG_RESULT 0x110 /* 32 bits: 0, an errno, or a sum */
#define DEVICE_REG_IOEVENT 0x200 /* its ioeventfd; and 8 bytes on, one with a shadow */

enum device_command {
    DEVICE_FILL_DIRECT = 1, /* memory at IOVA becomes DEVICE_FILL, in place */
    DEVICE_FILL_BY_MESSAGE,
    DEVICE_SUM_BY_MESSAGE,
    DEVICE_INTERRUPT, /* number LENGTH */
};
#define DEVICE_FILL 0xa5

/* BAR 2 is a file; two areas of it may be mapped, the rest is answered by messages. */
#define DEVICE_BAR2_SIZE 0x8000
#define DEVICE_AREA0 0x1000
#define DEVICE_AREA0_SIZE 0x1000
#define DEVICE_AREA1 0x4000
#define DEVICE_AREA1_SIZE 0x2000
/* BAR 4 is a file and mapped whole. */
#define DEVICE_BAR4_SIZE 0x2000

#define DEVICE_NR_IRQS 20
/* The migration data: more than one chunk of it. */
#define DEVICE_STATE_SIZE (3 * 1024 * 1024 + 5)

struct device {
    char dir[64];
    char path[80];
    vfu_ctx_t *ctx;
    pthread_t thread;
    int stop_fd;
    int bar2_fd, bar4_fd;
    int ioeventfd, shadow_fd;
    uint8_t *bar2; /* the file, as the device sees it */
    bool other_areas; /* only one may be mapped */
    bool iommu; /* it offers the IOMMU extension */
    uint8_t bar0[DEVICE_BAR0_SIZE];
    _Atomic unsigned bar2_messages; /* accesses to BAR 2 that came by message */
    _Atomic unsigned bar0_writes;

    uint8_t *state; /* of the migration */
    size_t state_at;
    size_t precopy; /* bytes offered while running */
    vfu_migr_state_t migration;
};

/* Serves at a path of its own until device_destroy(). */
struct device *device_create(void);
void device_destroy(struct device *device);

/* Ends the serving, or begins it again at the same path with a device like the first. */
void device_stop(struct device *device);
void device_start(struct device *device);

/* While it is stopped: what it has in BAR 2 is lost. */
void device_forget_bar2(struct device *device);

/* Has the device do something, through BAR 0. What DEVICE_REG_RESULT says afterwards. */
uint32_t device_do(vfuc_t *client, enum device_command command, uint64_t iova, uint32_t length);

/* Open descriptors of this process. */
unsigned open_fds(void);

#endif /* TEST_CLIENT_DEVICE_H */
