# SPDX-License-Identifier: BSD-3-Clause
"""
Page tables as hardware walks them: four levels in guest memory, with one or two stages. For tests
that want only answers there is PageTable in software_iommu.
"""

from . import wire

PAGE = 4096
M2, G1 = 2 << 20, 1 << 30
SIZES = (G1, M2, PAGE)

LEVEL_SHIFTS = (39, 30, 21, 12)
INPUT_BITS = 48
INDEX_MASK = 511

# An entry: permissions as in wire.PERM_*, what it is, and an address in bits 12 and up.
PERM_MASK = (wire.PERM_READ | wire.PERM_WRITE | wire.PERM_EXEC | wire.PERM_PRIV |
             wire.PERM_GLOBAL)
LEAF, TABLE = 1 << 7, 1 << 8
ADDRESS_MASK = ~(PAGE - 1) & ((1 << 64) - 1)

ALL = wire.PERM_READ | wire.PERM_WRITE | wire.PERM_EXEC


class Fault(Exception):
    """The tables themselves cannot be read."""


class Leaf:
    """What a walk found: a translation, or with perm 0 a hole of that size."""

    def __init__(self, iova, translated, size, perm):
        self.iova = iova
        self.translated = translated
        self.size = size
        self.perm = perm

    @property
    def present(self):
        return bool(self.perm & wire.PERM_RW)

    def at(self, iova):
        return self.translated + iova - self.iova

    def __repr__(self):
        return f"<0x{self.iova:x}+0x{self.size:x} -> 0x{self.translated:x} perm {self.perm}>"


def hole(iova, size):
    return Leaf(iova & ~(size - 1), 0, size, 0)


class Frames:
    """Hands out pages of guest memory for tables."""

    def __init__(self, slot):
        self.slot = slot
        self.next = 0

    def take(self):
        assert self.next < self.slot.size, "no memory for page tables left"
        self.next += PAGE
        self.slot.write(self.next - PAGE, bytes(PAGE))
        return self.slot.addr + self.next - PAGE


class MemoryTable:
    """
    Four levels of 512 entries. memory has dma_read() and dma_write(). With a second stage the
    addresses in the table, those of tables and those of leaves, are inputs of that stage, as in a
    guest that runs a guest; frames must then give addresses of that kind.
    """

    def __init__(self, memory, frames, stage2=None):
        self.memory = memory
        self.frames = frames
        self.stage2 = stage2
        self.root = frames.take()

    def map(self, iova, target, size, perm=ALL, largest=G1):
        """With the largest pages that alignment, size and largest allow."""
        assert (iova | target | size) % PAGE == 0 and size > 0
        while size > 0:
            page = next(s for s in SIZES
                        if s <= min(size, largest) and (iova | target) % s == 0)
            self._set(iova, page, target | perm | LEAF)
            iova, target, size = iova + page, target + page, size - page

    def unmap(self, iova, size):
        """Whole pages of whichever size; a range that cuts one is a mistake of the test."""
        end = iova + size
        while iova < end:
            leaf = self.walk_one(iova)
            if leaf.present:
                assert leaf.iova >= iova and leaf.iova + leaf.size <= end, leaf
                self._set(leaf.iova, leaf.size, 0)
            iova = leaf.iova + leaf.size

    def walk_one(self, iova):
        """This stage alone."""
        if iova >> INPUT_BITS:
            return hole(iova, 1 << INPUT_BITS)
        table = self.root
        for shift in LEVEL_SHIFTS:
            entry = self._load(table + (iova >> shift & INDEX_MASK) * 8)
            if entry & LEAF:
                size = 1 << shift
                return Leaf(iova & ~(size - 1), entry & ADDRESS_MASK, size, entry & PERM_MASK)
            if not entry & TABLE:
                return hole(iova, 1 << shift)
            table = entry & ADDRESS_MASK
        raise Fault(f"no leaf at the last level for 0x{iova:x}")

    def walk(self, iova):
        """Both stages: the smaller size, the permissions that both give."""
        leaf = self.walk_one(iova)
        if self.stage2 is None or not leaf.present:
            return leaf
        second = self.stage2.walk(leaf.at(iova))
        if not second.present:
            return hole(iova, min(leaf.size, second.size))
        size = min(leaf.size, second.size)
        start = iova & ~(size - 1)
        perm = leaf.perm & (second.perm | wire.PERM_PRIV | wire.PERM_GLOBAL)
        return Leaf(start, second.at(leaf.at(start)), size, perm)

    def find(self, iova):
        """The same for SoftIommu: None where nothing is mapped."""
        leaf = self.walk(iova)
        leaf.perm &= ~wire.PERM_EXEC  # granted only to those who ask for it
        return leaf if leaf.present else None

    def _set(self, iova, page, value):
        table = self.root
        for shift in LEVEL_SHIFTS:
            at = table + (iova >> shift & INDEX_MASK) * 8
            if 1 << shift == page:
                self._store(at, value)
                return
            entry = self._load(at)
            assert not entry & LEAF, f"a larger page is at 0x{iova:x}"
            if not entry:
                entry = self.frames.take() | TABLE
                self._store(at, entry)
            table = entry & ADDRESS_MASK
        raise ValueError(f"no level has pages of 0x{page:x}")

    def _physical(self, address):
        if self.stage2 is None:
            return address
        leaf = self.stage2.walk(address)
        if not leaf.perm & wire.PERM_READ:
            raise Fault(f"a table at 0x{address:x} is not mapped by the second stage")
        return leaf.at(address)

    def _load(self, address):
        return int.from_bytes(self.memory.dma_read(self._physical(address), 8), "little")

    def _store(self, address, value):
        self.memory.dma_write(self._physical(address), value.to_bytes(8, "little"))
