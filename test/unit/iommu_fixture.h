/* SPDX-License-Identifier: BSD-3-Clause */
/* A machine whose IOMMU has a fake server behind it. */
#ifndef IOMMU_FIXTURE_H
#define IOMMU_FIXTURE_H

#include "fake_server.h"
#include "vfio-user-client-iommu.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE UINT64_C(4096)
#define MIB2 (UINT64_C(2) << 20)
#define GIB (UINT64_C(1) << 30)
#define R VFUC_IOMMU_READ
#define W VFUC_IOMMU_WRITE
#define X VFUC_IOMMU_EXEC
#define RW (R | W)
#define ME VFUC_NO_PASID

/* 4 MiB of memory in a file. */
#define RAM UINT64_C(0x100000000)
#define RAM_SIZE (UINT64_C(4) << 20)

#define PASID_CAPS "\"pasid\": {\"bits\": 8, \"exec\": true, \"priv\": true}"
#define ATS_CAPS(depth, entries, shift) "\"ats\": {\"queue_depth\": " #depth ", \"page_shift\": " \
    #shift ", \"max_entries\": " #entries "}"
#define VERSION(caps) "{\"capabilities\": {\"iommu\": {" caps "}}}"
#define FULL_VERSION \
    VERSION(PASID_CAPS ", " ATS_CAPS(4, 8, 12) ", \"pri\": {\"max_requests\": 16}")

struct fixture {
    struct fake_server server;
    vfuc_iommu_t *iommu;
    vfuc_t *client;
    vfuc_iommu_domain_t *domain; /* of requests without a PASID */
    int fd;
    uint8_t *ram;
};

static inline void assert_fails(int result, int error)
{
    int seen = errno;

    assert_int_equal(result, -1);
    assert_int_equal(seen, error);
}

static inline void fixture_start(struct fixture *f, const char *version,
                                 const vfuc_iommu_options_t *options)
{
    vfuc_iommu_memory_t memory = {
        .address = RAM, .size = RAM_SIZE, .prot = PROT_READ | PROT_WRITE,
    };

    fake_server_start(&f->server, version);
    f->iommu = vfuc_iommu_create(options);
    assert_non_null(f->iommu);
    f->fd = memory.fd = memfd_create("ram", MFD_CLOEXEC);
    assert_int_equal(ftruncate(f->fd, (off_t)RAM_SIZE), 0);
    f->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
    memory.vaddr = f->ram;
    assert_int_equal(vfuc_iommu_add_memory(f->iommu, &memory), 0);
    f->domain = vfuc_iommu_domain_create(f->iommu);
    assert_int_equal(vfuc_iommu_attach(f->iommu, ME, f->domain), 0);
    f->client = vfuc_iommu_connect(f->iommu, f->server.path, NULL);
    assert_non_null(f->client);
}

static inline void fixture_end(struct fixture *f)
{
    vfuc_iommu_disconnect(f->iommu);
    vfuc_iommu_destroy(f->iommu);
    fake_server_stop(&f->server);
    munmap(f->ram, RAM_SIZE);
    close(f->fd);
}

#endif /* IOMMU_FIXTURE_H */
