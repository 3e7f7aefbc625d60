/* SPDX-License-Identifier: BSD-3-Clause */
/* The controller registers (NVMe 3.1). */
#include "nvme.h"

#include <inttypes.h>
#include <string.h>

static uint64_t capabilities(void)
{
    return (NVME_MAX_ENTRIES - 1) | NVME_CAP_CQR | NVME_CAP_TO(60) | NVME_CAP_CSS_NVM |
           NVME_CAP_MPSMAX(NVME_MAX_PAGE_SHIFT);
}

static void write_cc(struct nvme *nvme, uint32_t value)
{
    struct controller *c = &nvme->controller;
    uint32_t old = atomic_load(&c->cc);

    value &= NVME_CC_WRITABLE;
    /* While enabled, only these two change. */
    if ((old & NVME_CC_EN) && (value & NVME_CC_EN)) {
        value = (old & ~NVME_CC_SHN_MASK) | (value & NVME_CC_SHN_MASK);
    }
    atomic_store(&c->cc, value);
    if ((value & NVME_CC_EN) && !(old & NVME_CC_EN)) {
        controller_enable(nvme);
    } else if (!(value & NVME_CC_EN) && (old & NVME_CC_EN)) {
        controller_disable(nvme);
    }
    if (NVME_CC_SHN(value) != 0 && NVME_CC_SHN(old) == 0) {
        controller_shutdown(nvme);
    }
}

/* Admin queue registers are for a disabled controller. */
static bool enabled(struct controller *c)
{
    return (atomic_load(&c->cc) & NVME_CC_EN) != 0;
}

static void write_half(_Atomic uint64_t *reg, bool high, uint32_t value)
{
    uint64_t now = atomic_load(reg);

    atomic_store(reg, high ? (now & UINT32_MAX) | (uint64_t)value << 32
                           : (now & ~(uint64_t)UINT32_MAX) | (value & ~UINT32_C(0xfff)));
}

static void write_register(struct nvme *nvme, uint64_t offset, uint32_t value)
{
    struct controller *c = &nvme->controller;

    switch (offset) {
    case NVME_REG_INTMS:
        atomic_fetch_or(&c->intms, value);
        return;
    case NVME_REG_INTMC:
        atomic_fetch_and(&c->intms, ~value);
        queues_interrupt_again(nvme);
        return;
    case NVME_REG_CC:
        write_cc(nvme, value);
        return;
    default:
        break;
    }
    if (enabled(c)) {
        return;
    }
    switch (offset) {
    case NVME_REG_AQA:
        atomic_store(&c->aqa, value & NVME_AQA_WRITABLE);
        break;
    case NVME_REG_ASQ:
    case NVME_REG_ASQ + 4:
        write_half(&c->asq, offset != NVME_REG_ASQ, value);
        break;
    case NVME_REG_ACQ:
    case NVME_REG_ACQ + 4:
        write_half(&c->acq, offset != NVME_REG_ACQ, value);
        break;
    default:
        break;
    }
}

static uint32_t read_register(struct nvme *nvme, uint64_t offset)
{
    struct controller *c = &nvme->controller;
    const struct {
        uint32_t offset, value;
    } registers[] = {
        { NVME_REG_CSTS, atomic_load(&c->csts) },
        { NVME_REG_CAP, (uint32_t)capabilities() },
        { NVME_REG_CAP + 4, (uint32_t)(capabilities() >> 32) },
        { NVME_REG_VS, NVME_VERSION_1_4 },
        { NVME_REG_INTMS, atomic_load(&c->intms) },
        { NVME_REG_INTMC, atomic_load(&c->intms) },
        { NVME_REG_CC, atomic_load(&c->cc) },
        { NVME_REG_AQA, atomic_load(&c->aqa) },
        { NVME_REG_ASQ, (uint32_t)atomic_load(&c->asq) },
        { NVME_REG_ASQ + 4, (uint32_t)(atomic_load(&c->asq) >> 32) },
        { NVME_REG_ACQ, (uint32_t)atomic_load(&c->acq) },
        { NVME_REG_ACQ + 4, (uint32_t)(atomic_load(&c->acq) >> 32) },
    };

    for (size_t i = 0; i < sizeof(registers) / sizeof(registers[0]); i++) {
        if (registers[i].offset == offset) {
            return registers[i].value;
        }
    }
    return 0;
}

/* Reads of any size; what is not a register reads as zero. */
static void read_bytes(struct nvme *nvme, uint8_t *buf, size_t count, uint64_t offset)
{
    while (count > 0) {
        size_t within = offset % sizeof(uint32_t);
        size_t n = sizeof(uint32_t) - within < count ? sizeof(uint32_t) - within : count;
        uint32_t value = offset < NVME_REG_END ? read_register(nvme, offset - within) : 0;

        memcpy(buf, (uint8_t *)&value + within, n);
        buf += n;
        offset += n;
        count -= n;
    }
}

static void write_one(struct nvme *nvme, uint64_t offset, uint32_t value)
{
    if (offset < NVME_REG_END) {
        write_register(nvme, offset, value);
    } else {
        doorbell_written(nvme, (unsigned)((offset - NVME_REG_END) / sizeof(value)), value);
    }
}

/* Registers are written as double words, or two of them at a time (NVMe 3.1). */
ssize_t controller_access(struct nvme *nvme, char *buf, size_t count, uint64_t offset,
                          bool is_write)
{
    uint32_t value;

    if (!is_write) {
        read_bytes(nvme, (uint8_t *)buf, count, offset);
        return (ssize_t)count;
    }
    if (offset % sizeof(value) != 0 || (count != sizeof(value) && count != 2 * sizeof(value))) {
        vfu_log(nvme->ctx, LOG_WARNING, "write of %zu bytes to register 0x%" PRIx64 " ignored",
                count, offset);
        return (ssize_t)count;
    }
    for (size_t i = 0; i < count; i += sizeof(value)) {
        memcpy(&value, buf + i, sizeof(value));
        write_one(nvme, offset + i, value);
    }
    return (ssize_t)count;
}
