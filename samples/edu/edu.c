/* SPDX-License-Identifier: BSD-3-Clause */
#include "edu.h"

#include <inttypes.h>
#include <string.h>
#include <syslog.h>

static void edu_log(const struct edu *edu, int level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void edu_log(const struct edu *edu, int level, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    edu->ops->vlog(edu->owner, level, fmt, ap);
    va_end(ap);
}

void edu_init(struct edu *edu, const struct edu_ops *ops, void *owner, unsigned dma_mask_bits,
              bool has_iommu)
{
    memset(edu, 0, sizeof(*edu));
    edu->ops = ops;
    edu->owner = owner;
    edu->has_iommu = has_iommu;
    edu->dma_mask = UINT64_MAX >> (64 - dma_mask_bits);
}

void edu_reset(struct edu *edu)
{
    edu->ops->interrupt(edu->owner, false);
    memset(&edu->regs, 0, sizeof(edu->regs));
    memset(edu->buffer, 0, sizeof(edu->buffer));
}

/*
 * Interrupts
 */

static void raise_irq(struct edu *edu, uint64_t bits)
{
    edu->regs.irq_status |= (uint32_t)bits;
    if (edu->regs.irq_status != 0) {
        edu->ops->interrupt(edu->owner, true);
    }
}

static void acknowledge_irq(struct edu *edu, uint64_t bits)
{
    edu->regs.irq_status &= ~(uint32_t)bits;
    if (edu->regs.irq_status == 0) {
        edu->ops->interrupt(edu->owner, false);
    }
}

/*
 * Factorial
 */

uint32_t edu_factorial(uint32_t n)
{
    uint32_t result = 1;

    /* From 34! on, 32 factors of two are in it. */
    for (; n > 1 && result != 0; n--) {
        result *= n;
    }
    return result;
}

static void write_factorial(struct edu *edu, uint64_t value)
{
    if ((edu->regs.status & EDU_STATUS_COMPUTING) != 0) {
        return;
    }
    edu->regs.factorial = (uint32_t)value;
    edu->regs.status |= EDU_STATUS_COMPUTING;
    edu->ops->start_factorial(edu->owner, (uint32_t)value);
}

void edu_factorial_done(struct edu *edu, uint32_t result)
{
    edu->regs.factorial = result;
    edu->regs.status &= ~(uint32_t)EDU_STATUS_COMPUTING;
    if ((edu->regs.status & EDU_STATUS_IRQ) != 0) {
        raise_irq(edu, EDU_IRQ_FACTORIAL);
    }
}

/*
 * DMA
 */

static bool in_buffer(uint64_t addr, uint64_t len)
{
    return addr >= EDU_BUFFER_ADDR && addr - EDU_BUFFER_ADDR <= EDU_BUFFER_SIZE &&
           len <= EDU_BUFFER_SIZE - (addr - EDU_BUFFER_ADDR);
}

static void start_dma(struct edu *edu)
{
    bool to_ram = (edu->regs.dma_cmd & EDU_DMA_TO_RAM) != 0;
    uint64_t inside = to_ram ? edu->regs.dma_src : edu->regs.dma_dst;
    uint64_t outside = to_ram ? edu->regs.dma_dst : edu->regs.dma_src;
    struct edu_transfer transfer = {
        .addr = outside & edu->dma_mask,
        .len = edu->regs.dma_count,
        .to_ram = to_ram,
        .has_pasid = (edu->regs.dma_pasid & EDU_PASID_VALID) != 0,
        .pasid = edu->regs.dma_pasid & EDU_PASID_MASK,
    };

    if (!in_buffer(inside, transfer.len)) {
        edu_log(edu, LOG_WARNING,
                "DMA of 0x%" PRIx64 " bytes at device address 0x%" PRIx64
                " is outside the buffer, [0x%x, 0x%x): dropped",
                edu->regs.dma_count, inside, EDU_BUFFER_ADDR, EDU_BUFFER_ADDR + EDU_BUFFER_SIZE);
        edu->regs.dma_cmd &= ~(uint64_t)EDU_DMA_RUN;
        return;
    }
    if (transfer.addr != outside) {
        edu_log(edu, LOG_WARNING,
                "DMA address 0x%" PRIx64 " is cut to 0x%" PRIx64
                ": the driver did not set the DMA mask 0x%" PRIx64 " (see --dma-mask)",
                outside, transfer.addr, edu->dma_mask);
    }
    transfer.buf = edu->buffer + (inside - EDU_BUFFER_ADDR);
    edu->ops->start_dma(edu->owner, &transfer);
}

void edu_dma_done(struct edu *edu, const struct edu_dma_result *result)
{
    edu->regs.dma_result = *result;
    edu->regs.dma_cmd &= ~(uint64_t)EDU_DMA_RUN;
    if ((edu->regs.dma_cmd & EDU_DMA_IRQ) != 0) {
        raise_irq(edu, EDU_IRQ_DMA);
    }
}

/*
 * Registers
 */

static uint64_t read_id(const struct edu *edu)
{
    (void)edu;
    return EDU_ID;
}

static uint64_t read_liveness(const struct edu *edu)
{
    return edu->regs.liveness;
}

static void write_liveness(struct edu *edu, uint64_t value)
{
    edu->regs.liveness = ~(uint32_t)value;
}

static uint64_t read_factorial(const struct edu *edu)
{
    return edu->regs.factorial;
}

static uint64_t read_status(const struct edu *edu)
{
    return edu->regs.status;
}

static void write_status(struct edu *edu, uint64_t value)
{
    edu->regs.status &= ~(uint32_t)EDU_STATUS_IRQ;
    edu->regs.status |= (uint32_t)value & EDU_STATUS_IRQ;
}

static uint64_t read_irq_status(const struct edu *edu)
{
    return edu->regs.irq_status;
}

static uint64_t read_dma_src(const struct edu *edu)
{
    return edu->regs.dma_src;
}

static void write_dma_src(struct edu *edu, uint64_t value)
{
    edu->regs.dma_src = value;
}

static uint64_t read_dma_dst(const struct edu *edu)
{
    return edu->regs.dma_dst;
}

static void write_dma_dst(struct edu *edu, uint64_t value)
{
    edu->regs.dma_dst = value;
}

static uint64_t read_dma_count(const struct edu *edu)
{
    return edu->regs.dma_count;
}

static void write_dma_count(struct edu *edu, uint64_t value)
{
    edu->regs.dma_count = value;
}

static uint64_t read_dma_pasid(const struct edu *edu)
{
    return edu->regs.dma_pasid;
}

static void write_dma_pasid(struct edu *edu, uint64_t value)
{
    edu->regs.dma_pasid = value & (EDU_PASID_VALID | EDU_PASID_MASK);
}

static uint64_t read_dma_error(const struct edu *edu)
{
    return (uint64_t)-edu->regs.dma_result.err;
}

static uint64_t read_dma_fault(const struct edu *edu)
{
    return edu->regs.dma_result.fault_addr;
}

static uint64_t read_dma_cmd(const struct edu *edu)
{
    return edu->regs.dma_cmd;
}

static void write_dma_cmd(struct edu *edu, uint64_t value)
{
    if ((value & EDU_DMA_RUN) != 0) {
        edu->regs.dma_cmd = value;
        start_dma(edu);
    }
}

static const struct edu_register {
    enum edu_offset offset;
    uint64_t (*read)(const struct edu *edu);        /* NULL: reads as all ones */
    void (*write)(struct edu *edu, uint64_t value); /* NULL: writes are ignored */
    bool locked;                                    /* writes are ignored while DMA runs */
    bool iommu;                                     /* not there without an IOMMU interface */
} edu_registers[] = {
    { EDU_REG_ID, read_id, NULL, false, false },
    { EDU_REG_LIVENESS, read_liveness, write_liveness, false, false },
    { EDU_REG_FACTORIAL, read_factorial, write_factorial, false, false },
    { EDU_REG_STATUS, read_status, write_status, false, false },
    { EDU_REG_IRQ_STATUS, read_irq_status, NULL, false, false },
    { EDU_REG_IRQ_RAISE, NULL, raise_irq, false, false },
    { EDU_REG_IRQ_ACK, NULL, acknowledge_irq, false, false },
    { EDU_REG_DMA_SRC, read_dma_src, write_dma_src, true, false },
    { EDU_REG_DMA_DST, read_dma_dst, write_dma_dst, true, false },
    { EDU_REG_DMA_COUNT, read_dma_count, write_dma_count, true, false },
    { EDU_REG_DMA_CMD, read_dma_cmd, write_dma_cmd, true, false },
    { EDU_REG_DMA_PASID, read_dma_pasid, write_dma_pasid, true, true },
    { EDU_REG_DMA_ERROR, read_dma_error, NULL, false, true },
    { EDU_REG_DMA_FAULT, read_dma_fault, NULL, false, true },
};

static const struct edu_register *find_register(const struct edu *edu, uint64_t offset)
{
    for (size_t i = 0; i < sizeof(edu_registers) / sizeof(edu_registers[0]); i++) {
        if (edu_registers[i].offset == offset && (edu->has_iommu || !edu_registers[i].iommu)) {
            return &edu_registers[i];
        }
    }
    return NULL;
}

/* What the bus lets through to the device: QEMU answers the rest with zeros. */
static bool reaches_device(uint64_t offset, size_t size)
{
    return (size == 4 || size == 8) && offset % size == 0;
}

static bool size_allowed(uint64_t offset, size_t size)
{
    return size == 4 || offset >= EDU_REG_WIDE;
}

uint64_t edu_read(const struct edu *edu, uint64_t offset, size_t size)
{
    const struct edu_register *reg = find_register(edu, offset);

    if (!reaches_device(offset, size)) {
        return 0;
    }
    if (reg == NULL || reg->read == NULL || !size_allowed(offset, size)) {
        return UINT64_MAX;
    }
    return reg->read(edu);
}

void edu_write(struct edu *edu, uint64_t offset, size_t size, uint64_t value)
{
    const struct edu_register *reg = find_register(edu, offset);

    if (reg == NULL || reg->write == NULL || !reaches_device(offset, size) ||
        !size_allowed(offset, size)) {
        edu_log(edu, LOG_DEBUG, "write of %zu bytes at 0x%" PRIx64 " ignored: no such register",
                size, offset);
        return;
    }
    if (reg->locked && edu_dma_running(edu)) {
        edu_log(edu, LOG_INFO, "write at 0x%" PRIx64 " ignored: DMA is running", offset);
        return;
    }
    reg->write(edu, value);
}
