/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The EDU device behind a vfio-user socket: what the library asks and what the device needs, and
 * the event loop around both.
 */

#ifndef SERVER_H
#define SERVER_H

#include "../common/access.h"
#include "dma.h"
#include "edu.h"
#include "libvfio-user.h"
#include "worker.h"

#include <stdbool.h>
#include <stdint.h>

struct server_options {
    const char *socket_path;
    struct access_rules access;
    unsigned dma_mask_bits;
    int log_level; /* syslog(3) level */
    unsigned pasid_bits; /* 0: no PASIDs */
    bool ats;
    bool pri;
};

/*
 * The event loop's thread owns all of it. The two workers see their job, which that thread leaves
 * alone until the job has ended.
 */
struct server {
    vfu_ctx_t *ctx;
    struct edu edu;
    int signal_fd; /* SIGTERM, SIGINT */
    bool stopping; /* a signal came, or the server ends for another reason */
    bool attached;
    bool quiescing; /* the library waits for the DMA to end */
    const struct msicap *msi;

    struct worker factorial_worker;
    struct {
        uint32_t n;
        uint32_t result;
    } factorial;

    struct worker dma_worker;
    struct dma_space dma_space;
    struct {
        struct edu_transfer transfer;
        struct edu_dma_result result;
    } dma;
};

/* Returns 0 or a negative errno, after having said on standard error what is wrong. */
int server_start(struct server *server, struct server_options *options);

/* Serves one client after the other until SIGTERM or SIGINT. Returns 0 or a negative errno. */
int server_run(struct server *server);

/* Ends what server_start() began, and removes the socket. */
void server_stop(struct server *server);

#endif /* SERVER_H */
