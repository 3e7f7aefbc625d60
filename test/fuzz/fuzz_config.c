/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Configuration space: a byte of device options, then accesses. Each begins with an offset (16 bits;
 * the top bit says write) and a count, and a write's data follows.
 */
#include "device.h"
#include "fuzz.h"

#include "device/ctx.h"

#include <sys/syslog.h>

#define SPACE 4096u
#define MAX_LIST 64

/* The ID and the place of each capability, as a guest finds them. */
struct list {
    uint32_t entries[MAX_LIST];
    unsigned nr;
};

static void walk(struct device *d, struct list *list)
{
    uint32_t offset = ((uint8_t *)vfu_pci_get_config_space(d->ctx))[PCI_CAPABILITY_LIST];

    list->nr = 0;
    while (offset != 0) {
        const uint8_t *cap = (uint8_t *)vfu_pci_get_config_space(d->ctx) + offset;

        REQUIRE(list->nr < MAX_LIST && offset >= 0x40 && offset < 0x100);
        list->entries[list->nr++] = offset << 16 | cap[0];
        offset = cap[1];
    }
    for (offset = 0x100; offset != 0;) {
        uint32_t header;

        memcpy(&header, (uint8_t *)vfu_pci_get_config_space(d->ctx) + offset, sizeof(header));
        REQUIRE(list->nr < MAX_LIST && offset >= 0x100 && offset < SPACE);
        list->entries[list->nr++] = offset << 16 | (header & 0xffff);
        offset = header >> 20;
    }
}

/* No guest changes what a device is, where its capabilities are, or which they are. */
static void check(struct device *d, const struct list *before)
{
    struct list now;

    walk(d, &now);
    REQUIRE(now.nr == before->nr);
    REQUIRE(memcmp(now.entries, before->entries, now.nr * sizeof(now.entries[0])) == 0);
    REQUIRE(vfu_pci_get_config_space(d->ctx)->hdr.id.raw == 0x56781234);
    REQUIRE(vfu_pci_get_config_space(d->ctx)->hdr.htype.raw == 0);
}

/* Within the region: what lies outside never comes so far. Returns whether it was a write. */
static bool access_space(struct device *d, struct tape *tape)
{
    uint16_t where = tape_u16(tape);
    uint8_t size = tape_u8(tape);
    uint32_t offset = where % SPACE;
    size_t count = size < 128 ? 1u + size : (size - 127u) * 32;
    bool write = where & 0x8000;
    char *buf;
    ssize_t n;

    count = count < SPACE - offset ? count : SPACE - offset;
    buf = malloc(count);
    REQUIRE(buf != NULL);
    tape_read(tape, buf, write ? count : 0);
    n = region_access_by_client(d->ctx, VFU_PCI_DEV_CFG_REGION_IDX, buf, count, offset, write);
    REQUIRE(n == (ssize_t)count || (n < 0 && n > -4096));
    free(buf);
    return write;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tape tape = { data, size };
    struct device device;
    struct list list;

    device_start(&device, tape_u8(&tape), LOG_INFO);
    walk(&device, &list);
    REQUIRE(list.nr >= 8);
    while (tape.left > 0) {
        if (access_space(&device, &tape)) {
            check(&device, &list);
        }
    }
    device_stop(&device);
    return 0;
}
