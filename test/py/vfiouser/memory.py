# SPDX-License-Identifier: BSD-3-Clause
"""Guest memory: memory files, and the address space in which a client's DMA messages land."""

import mmap
import os


class MemFile:
    """An anonymous memory file, mapped."""

    def __init__(self, size, name="guest"):
        self.size = size
        self.fd = os.memfd_create(name)
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)

    def read(self, offset, count):
        return bytes(self.map[offset:offset + count])

    def write(self, offset, data):
        self.map[offset:offset + len(data)] = data

    def close(self):
        self.map.close()
        os.close(self.fd)


class Slot:
    """A range of the address space, backed by part of a memory file."""

    def __init__(self, addr, size, mem, offset=0, readable=True, writable=True):
        self.addr = addr
        self.size = size
        self.mem = mem
        self.offset = offset
        self.readable = readable
        self.writable = writable

    def read(self, at, count):
        return self.mem.read(self.offset + at, count)

    def write(self, at, data):
        self.mem.write(self.offset + at, data)


class GuestMemory:
    """What the client's answers to DMA_READ and DMA_WRITE are made from."""

    def __init__(self):
        self.slots = []
        self.files = []

    def add_file(self, size):
        mem = MemFile(size)
        self.files.append(mem)
        return mem

    def add(self, addr, size, mem=None, offset=0, **rights):
        """A new slot, with a memory file of its own unless one is given."""
        slot = Slot(addr, size, mem or self.add_file(size), offset, **rights)
        self.slots.append(slot)
        return slot

    def remove(self, slot):
        self.slots.remove(slot)

    def _find(self, addr, count):
        for slot in self.slots:
            if slot.addr <= addr and addr + count <= slot.addr + slot.size:
                return slot
        raise PermissionError(f"no memory at 0x{addr:x}, {count} bytes")

    def dma_read(self, addr, count):
        slot = self._find(addr, count)
        if not slot.readable:
            raise PermissionError(f"0x{addr:x} is not readable")
        return slot.read(addr - slot.addr, count)

    def dma_write(self, addr, data):
        slot = self._find(addr, len(data))
        if not slot.writable:
            raise PermissionError(f"0x{addr:x} is not writable")
        slot.write(addr - slot.addr, data)

    def close(self):
        for mem in self.files:
            mem.close()
        self.files.clear()
        self.slots.clear()
