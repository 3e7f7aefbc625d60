# SPDX-License-Identifier: BSD-3-Clause
"""A guest that writes whatever into an NVMe controller's queues, lists and doorbells."""

import random
import struct

from . import wire
from .nvme import command
from .nvme_spec import (ADMIN_ABORT, ADMIN_AER, ADMIN_CREATE_CQ, ADMIN_CREATE_SQ, ADMIN_DELETE_CQ,
                        ADMIN_DELETE_SQ, ADMIN_DOORBELL_BUFFER, ADMIN_SET_FEATURES, CC,
                        CC_SHN_NORMAL, DOORBELLS, PAGE)
from .wire import CONFIG

STOP, RUNNING, STOP_COPY = 1, 2, 3
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

    def queue_command(self):
        """What makes and deletes queues, or waits for something, on the admin queue."""
        rng, admin = self.rng, self.nvme.admin
        qid, page = rng.randrange(6), self.area + PAGE * rng.randrange(60)
        size = rng.choice([1, 3, 63]) << 16
        opcode, fields = rng.choice([
            (ADMIN_CREATE_CQ, {"prp1": page, "cdw10": size | qid, "cdw11": rng.choice([1, 3])}),
            (ADMIN_CREATE_SQ, {"prp1": page, "cdw10": size | qid,
                               "cdw11": rng.randrange(6) << 16 | 1}),
            (ADMIN_DELETE_SQ, {"cdw10": qid}), (ADMIN_DELETE_CQ, {"cdw10": qid}),
            (ADMIN_ABORT, {"cdw10": rng.getrandbits(6) << 16 | qid}), (ADMIN_AER, {}),
            (ADMIN_DOORBELL_BUFFER, {"prp1": page, "prp2": self.area}),
            (ADMIN_SET_FEATURES, {"cdw10": 4, "cdw11": rng.choice([300, 350])}),
        ])
        admin.submit(opcode, **fields)
        while admin.cq.pop():
            pass

    def disturb(self):
        """Something from outside. True: it is enough."""
        nvme, number = self.nvme, self.rng.random()
        if number < 0.1:
            nvme.client.write_int(CONFIG, 4, self.rng.choice([0, 2, 6]), 2)
        elif number < 0.2:
            for state in (self.rng.choice([STOP, STOP_COPY]), RUNNING):
                nvme.client.feature(wire.FEATURE_SET | wire.FEAT_MIG_STATE,
                                    wire.FEATURE_MIG_STATE.pack(device_state=state))
        elif number < 0.25:
            nvme.write(CC, nvme.read(CC) | CC_SHN_NORMAL)
        return number > 0.95

    def queues_come_and_go(self, rounds):
        for _ in range(rounds):
            for _ in range(self.rng.randrange(6)):
                self.queue_command()
            self.run([self.nvme.admin, *self.nvme.queues.values()], 3)
            if self.disturb():
                return
