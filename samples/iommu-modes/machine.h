/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A machine with some RAM, an IOMMU, and the EDU device, which is a process of its own; and what a
 * driver does with the device.
 *
 * The first error sticks: what follows does nothing, and the caller looks at the end.
 */

#ifndef MACHINE_H
#define MACHINE_H

#include "../common/process.h"
#include "vfio-user-client-iommu.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE 0x1000u
#define RAM_ADDRESS 0x40000000u
#define RAM_PAGES 64u

struct machine {
    const char *server, *socket_path;
    bool verbose; /* what the server complains about is shown */
    struct process process;
    bool running; /* the process */
    bool has_iommu_registers; /* the device tells how its DMA ended, and knows PASIDs */
    vfuc_iommu_t *iommu;
    vfuc_t *client;
    uint8_t *ram;
    int ram_fd;
    int timeout_ms;
    char error[200]; /* "": all went well */
};

bool machine_ok(const struct machine *m);
void machine_fail(struct machine *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Records the failure of a call that returned a negative value with errno. */
void machine_check(struct machine *m, const char *what, int result);

/* Starts the server with these options behind the socket's, and sets up RAM and IOMMU. */
void machine_start(struct machine *m, char *const server_options[],
                   const vfuc_iommu_options_t *options);
/* The device is plugged in, and its driver switches on what it has. */
void machine_plug(struct machine *m);
/* Ends everything; what has gone wrong on the way is an error too. */
void machine_stop(struct machine *m);

/* A page of RAM: where it is here, and its address for the device when nothing remaps. */
uint8_t *ram_page(const struct machine *m, unsigned page);
uint64_t ram_address(unsigned page);
/* Bytes that nothing else in RAM looks like. */
void ram_fill(const struct machine *m, unsigned page, uint8_t seed);
void ram_clear(const struct machine *m, unsigned page);
bool ram_is(const struct machine *m, unsigned page, uint8_t seed);
bool ram_is_clear(const struct machine *m, unsigned page);

/*
 * The DMA job: len bytes, a page at most, from src into the device and from there to dst, both in
 * the address space of the PASID. *fault is where it failed, if it did, as far as the device tells.
 * Returns the errno that the device reports, 0 also when it cannot.
 */
int machine_job(struct machine *m, uint32_t pasid, uint64_t src, uint64_t dst, size_t len,
                uint64_t *fault);

/* The way out alone: what is in the device goes to dst, and this does not wait; then the end. */
void machine_start_write(struct machine *m, uint32_t pasid, uint64_t dst, size_t len);
void machine_finish_write(struct machine *m);

#endif /* MACHINE_H */
