# SPDX-License-Identifier: BSD-3-Clause
"""A driver for QEMU's "edu" device (docs/specs/edu.rst in QEMU), as far as the tests need it."""

import time

from .channel import TIMEOUT
from .wire import BAR0, CONFIG

VENDOR, DEVICE, CLASS = 0x1234, 0x11E8, 0x00FF
BAR0_SIZE = 1 << 20
IDENTITY = 0x010000ED

REG_ID, REG_LIVENESS, REG_FACTORIAL, REG_STATUS = 0x00, 0x04, 0x08, 0x20
REG_IRQ_STATUS, REG_IRQ_RAISE, REG_IRQ_ACK = 0x24, 0x60, 0x64
REG_DMA_SRC, REG_DMA_DST, REG_DMA_COUNT, REG_DMA_CMD = 0x80, 0x88, 0x90, 0x98

STATUS_COMPUTING, STATUS_RAISE_IRQ = 0x01, 0x80
DMA_START, DMA_TO_RAM, DMA_RAISE_IRQ = 1, 2, 4
DMA_IRQ, FACTORIAL_IRQ = 0x100, 0x001

BUFFER, BUFFER_SIZE = 0x40000, 4096


class Edu:
    def __init__(self, client):
        self.client = client

    def read(self, reg, size=4):
        return self.client.read_int(BAR0, reg, size)

    def write(self, reg, value, size=4, flags=0):
        self.client.write_int(BAR0, reg, value, size, flags)

    def poll(self, reg, bit):
        """Reads until the bit is clear."""
        deadline = time.monotonic() + TIMEOUT
        while self.read(reg) & bit:
            assert time.monotonic() < deadline, f"bit 0x{bit:x} of register 0x{reg:x} stays set"

    def start_dma(self, src, dst, count, command=0):
        """
        Does not wait for the reply to the last write: a device may do the transfer before it
        answers. Returns its id.
        """
        self.write(REG_DMA_SRC, src, 8)
        self.write(REG_DMA_DST, dst, 8)
        self.write(REG_DMA_COUNT, count, 8)
        return self.client.send_region_write(BAR0, REG_DMA_CMD,
                                             (DMA_START | command).to_bytes(4, "little"))

    def finish_dma(self, msg_id):
        self.client.wait(msg_id)
        self.poll(REG_DMA_CMD, DMA_START)

    def dma(self, src, dst, count, command=0):
        self.finish_dma(self.start_dma(src, dst, count, command))

    def from_ram(self, addr, count, at=0, command=0):
        """Guest memory to the device's buffer."""
        self.dma(addr, BUFFER + at, count, command)

    def to_ram(self, addr, count, at=0, command=0):
        """The device's buffer to guest memory."""
        self.dma(BUFFER + at, addr, count, command | DMA_TO_RAM)

    def copy(self, src, dst, count):
        """Within guest memory, through the device."""
        self.from_ram(src, count)
        self.to_ram(dst, count)

    def enable_bus_master(self):
        self.client.write_int(CONFIG, 4, 0x0006, 2)
