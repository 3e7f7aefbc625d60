# SPDX-License-Identifier: BSD-3-Clause
"""A guest that writes whatever into its queues, lists and doorbells: the controller survives it."""

import random
import struct

import pytest

from vfiouser.nvme import Namespace, command, pattern
from vfiouser.nvme_spec import CC, DOORBELLS, PAGE

ENTRIES = 64
OPCODES = list(range(0x10)) + [0x18, 0x7C, 0x80, 0x81, 0xFF]


class Chaos:
    def __init__(self, nvme, seed):
        self.nvme = nvme
        self.rng = random.Random(seed)
        self.area = nvme.alloc(64 * PAGE)

    def address(self):
        rng, memory = self.rng, self.nvme.memory
        return rng.choice([
            self.area + PAGE * rng.randrange(64),
            self.area + 4 * rng.randrange(16 * PAGE),
            self.area + PAGE * rng.randrange(64) + PAGE - 8 * rng.randrange(4),
            memory.base + memory.slot.size - rng.choice([0, 1, 8, 4096]),
            0, rng.getrandbits(64), 2**64 - 4096 * rng.randrange(1, 4),
        ])

    def number(self, bits=32):
        rng = self.rng
        return rng.choice([0, 1, 2, 7, 0xFF, 0x100, 1 << (bits - 1), (1 << bits) - 1,
                           rng.getrandbits(bits), rng.getrandbits(8), rng.getrandbits(4) << 16])

    def descriptor(self):
        rng = self.rng
        return struct.pack("<QI3xB", self.address(), rng.choice([0, 16, 32, 512, 4096, self.number()]),
                           rng.choice([0, 0, 0x10, 0x20, 0x30, 0x30, 0x40, rng.getrandbits(8)]))

    def fill_area(self):
        """Lists of every kind, many of which point at each other."""
        data = b"".join(
            self.descriptor() if self.rng.random() < 0.5
            else struct.pack("<QQ", self.address(), self.address()) for _ in range(PAGE // 2))
        self.nvme.memory.write(self.area + 8 * PAGE * self.rng.randrange(8), data)

    def entry(self):
        rng = self.rng
        flags = rng.choice([0, 0, 0x40, 0x40, 0x80, rng.getrandbits(8)])
        sqe = bytearray(command(rng.choice(OPCODES), cid=rng.getrandbits(6), flags=flags,
                                nsid=rng.choice([0, 1, 1, 1, 1, 2, 0xFFFFFFFF]),
                                prp1=self.address(), prp2=self.address(),
                                cdw10=self.number(), cdw11=self.number(), cdw12=self.number(),
                                cdw13=self.number()))
        if flags & 0xC0:
            sqe[24:40] = self.descriptor()
        elif rng.random() < 0.3:
            sqe[40:64] = struct.pack("<IIIIII", rng.choice([0, 1, 8]), 0, rng.choice([0, 7, 255]),
                                     0, 0, 0)
        return bytes(sqe)

    def run(self, queues, rounds):
        nvme, rng = self.nvme, self.rng
        for _ in range(rounds):
            if rng.random() < 0.1:
                self.fill_area()
            sq = rng.choice(queues)
            for _ in range(rng.randrange(1, 16)):
                nvme.memory.write(sq.addr + 64 * sq.tail, self.entry())
                sq.tail = (sq.tail + 1) % sq.entries
            tail = sq.tail if rng.random() < 0.95 else rng.getrandbits(16)
            nvme.doorbell(2 * sq.qid, tail)
            while sq.cq.pop():
                pass
            if rng.random() < 0.05:
                nvme.write(DOORBELLS + 4 * rng.randrange(300), rng.getrandbits(16))
            if rng.random() < 0.02:
                nvme.write(4 * rng.randrange(16), rng.getrandbits(32))
            if not nvme.read(CC) & 1 or nvme.csts & 2:
                return


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.nvme_args("--namespace", "memory=64M", "--namespace", "memory=1M,block=4096")
def test_chaos(nvme, share):
    for seed in range(40 if share else 4):
        if not share and nvme.memory.slot in nvme.client.memory.slots:
            nvme.client.dma_unmap(nvme.memory.slot.addr, nvme.memory.slot.size)
            nvme.client.dma_map(nvme.memory.slot, share=False)
        nvme.memory.next = nvme.memory.base
        nvme.start_io(2, ENTRIES)
        Chaos(nvme, seed).run([nvme.admin, *nvme.queues.values()], 60 if share else 30)
        assert nvme.client.device_info().num_regions == 9
    nvme.memory.next = nvme.memory.base
    nvme.client.reset()
    nvme.enable_bus_master()
    disk = Namespace(nvme, nvme.start_io())
    disk.write(0, pattern(4096))
    assert disk.read(0, 4096) == pattern(4096)
