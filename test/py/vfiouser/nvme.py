# SPDX-License-Identifier: BSD-3-Clause
"""
An NVMe host: what a driver does with an NVMe 1.4 controller, step by step. Numbers and layouts are
those of the NVM Express Base Specification, revision 1.4.
"""

import itertools
import os
import select
import struct
import time
from types import SimpleNamespace

from .channel import TIMEOUT
from .nvme_spec import (ADMIN_CREATE_CQ, ADMIN_CREATE_SQ, ADMIN_IDENTIFY, ADMIN_SET_FEATURES, AQA,
                        ASQ, ACQ, CAP, CC, CC_ENABLE, CC_IO_ENTRIES, CSTS, CSTS_CFS, CSTS_RDY,
                        DOORBELLS, FEAT_QUEUES, IO_READ, IO_WRITE, PAGE, SUCCESS)
from .wire import ACTION_TRIGGER, BAR0, CONFIG, DATA_EVENTFD, MSI, MSIX

SQE = struct.Struct("<BBHIIIQQQIIIIII")
CQE = struct.Struct("<IIHHHH")
MSIX_ENABLE = 0x8000


def command(opcode, cid=0, nsid=0, prp1=0, prp2=0, flags=0, cdw2=0, cdw3=0, mptr=0, cdw10=0,
            cdw11=0, cdw12=0, cdw13=0, cdw14=0, cdw15=0):
    """A submission queue entry (4.2)."""
    return SQE.pack(opcode, flags, cid, nsid, cdw2, cdw3, mptr, prp1, prp2, cdw10, cdw11, cdw12,
                    cdw13, cdw14, cdw15)


class Completion(SimpleNamespace):
    """A completion queue entry (4.6). status: type and code; dnr, more: the bits beside it."""

    @classmethod
    def unpack(cls, data):
        result, reserved, sqhd, sqid, cid, status = CQE.unpack(data)
        return cls(result=result, reserved=reserved, sqhd=sqhd, sqid=sqid, cid=cid,
                   status=status >> 1 & 0x7FF, more=bool(status & 0x4000),
                   dnr=bool(status & 0x8000))


class Memory:
    """Guest memory that is as large for the device as it is for the host."""

    def __init__(self, client, base=0x100000, size=32 << 20, share=True):
        self.slot = client.add_memory(base, size, share)
        self.base = base
        self.next = base

    def alloc(self, size, align=PAGE):
        addr = -(-self.next // align) * align
        self.next = addr + size
        assert self.next <= self.slot.addr + self.slot.size, "guest memory is full"
        return addr

    def read(self, addr, count):
        return self.slot.read(addr - self.slot.addr, count)

    def write(self, addr, data):
        self.slot.write(addr - self.slot.addr, data)


class IommuMemory:
    """Guest memory behind a software IOMMU: neighbouring pages lie anywhere."""

    def __init__(self, soft_iommu, base=0x4000000000):
        self.iommu = soft_iommu
        self.table = soft_iommu.table(None)
        self.next = base
        self.frames = itertools.count(soft_iommu.size // PAGE - 1, -1)

    def alloc(self, size, align=PAGE):
        addr = -(-self.next // align) * align
        self.next = addr + -(-size // PAGE) * PAGE
        for page in range(addr & -PAGE, self.next, PAGE):
            if self.table.find(page) is None:
                self.table.map(page, self.iommu.frame(next(self.frames)))
        return addr

    def _pieces(self, addr, count):
        while count:
            mapping = self.table.find(addr)
            within = addr - mapping.iova
            length = min(count, mapping.size - within)
            yield mapping.translated + within - self.iommu.base, length
            addr += length
            count -= length

    def read(self, addr, count):
        return b"".join(self.iommu.memory.read(at, n) for at, n in self._pieces(addr, count))

    def write(self, addr, data):
        for at, length in self._pieces(addr, len(data)):
            self.iommu.memory.write(at, data[:length])
            data = data[length:]


class CompletionQueue:
    def __init__(self, nvme, qid, entries, vector=None, addr=None):
        self.nvme = nvme
        self.qid = qid
        self.entries = entries
        self.vector = vector
        self.addr = nvme.memory.alloc(entries * CQE.size) if addr is None else addr
        nvme.memory.write(self.addr, bytes(entries * CQE.size))
        self.head = 0
        self.phase = 1

    def pop(self, doorbell=True):
        """The next completion, or None."""
        data = self.nvme.memory.read(self.addr + self.head * CQE.size, CQE.size)
        if data[14] & 1 != self.phase:
            return None
        # The phase tag may have been seen before the rest.
        data = self.nvme.memory.read(self.addr + self.head * CQE.size, CQE.size)
        self.head = (self.head + 1) % self.entries
        self.phase ^= self.head == 0
        if doorbell:
            self.ring()
        return Completion.unpack(data)

    def ring(self):
        self.nvme.doorbell(2 * self.qid + 1, self.head)


class SubmissionQueue:
    def __init__(self, nvme, qid, entries, cq, addr=None):
        self.nvme = nvme
        self.qid = qid
        self.entries = entries
        self.cq = cq
        self.addr = nvme.memory.alloc(entries * SQE.size) if addr is None else addr
        self.tail = 0
        self.cids = itertools.cycle(range(1, 0xFFFF))

    def put(self, opcode, cid=None, **fields):
        """Only writes the entry. Returns the command's identifier."""
        cid = next(self.cids) if cid is None else cid
        self.nvme.memory.write(self.addr + self.tail * SQE.size, command(opcode, cid, **fields))
        self.tail = (self.tail + 1) % self.entries
        return cid

    def ring(self):
        self.nvme.doorbell(2 * self.qid, self.tail)

    def submit(self, opcode, **fields):
        cid = self.put(opcode, **fields)
        self.ring()
        return cid

    def wait(self, cid):
        return self.nvme.wait(self, cid)

    def run(self, opcode, **fields):
        """The completion, whatever it says."""
        return self.wait(self.submit(opcode, **fields))

    def ok(self, opcode, **fields):
        completion = self.run(opcode, **fields)
        assert completion.status == SUCCESS, (hex(opcode), fields, completion)
        return completion


class Nvme:
    """The controller of a client that has negotiated."""

    def __init__(self, client, memory=None):
        self.client = client
        self.memory = memory or Memory(client)
        self.events = []
        self.done = {}
        self.admin = None
        self.queues = {}
        self.ring_doorbell = self.doorbell_by_message
        self.enable_bus_master()

    # Registers

    def read(self, offset, size=4):
        return self.client.read_int(BAR0, offset, size)

    def write(self, offset, value, size=4):
        self.client.write_int(BAR0, offset, value, size)

    def enable_bus_master(self):
        self.client.write_int(CONFIG, 4, 0x0006, 2)

    @property
    def cap(self):
        """The fields of CAP (3.1.1) that a driver looks at."""
        value = self.read(CAP, 8)
        return SimpleNamespace(mqes=value & 0xFFFF, cqr=value >> 16 & 1, to=value >> 24 & 0xFF,
                               dstrd=value >> 32 & 0xF, nssrs=value >> 36 & 1,
                               css=value >> 37 & 0xFF, mpsmin=value >> 48 & 0xF,
                               mpsmax=value >> 52 & 0xF)

    @property
    def csts(self):
        return self.read(CSTS)

    def poll(self, condition, what):
        """Until the condition holds; the messages of the device are served meanwhile."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, what
            self.idle([], 0.001)

    def wait_ready(self, ready):
        self.poll(lambda: self.csts & CSTS_RDY == ready, f"CSTS.RDY does not become {ready}")

    def doorbell(self, index, value):
        self.ring_doorbell(index, value)

    def doorbell_by_message(self, index, value):
        self.write(DOORBELLS + 4 * index, value)

    # Interrupts

    def find_capability(self, cap_id):
        at = self.client.read_int(CONFIG, 0x34, 1)
        while at:
            header = self.client.read_int(CONFIG, at, 2)
            if header & 0xFF == cap_id:
                return at
            at = header >> 8
        return None

    def enable_msix(self, count):
        """Eventfds for the first vectors, and the table as a driver sets it up (PCIe 7.7.2)."""
        at = self.find_capability(0x11)
        assert at, "no MSI-X capability"
        table = self.client.read_int(CONFIG, at + 4, 4)
        self.set_eventfds(MSIX, count)
        for vector in range(count):
            entry = struct.pack("<QII", 0xFEE00000, 0x20 + vector, 0)
            for part in range(0, 16, 4):
                self.client.region_write(table & 7, (table & ~7) + 16 * vector + part,
                                         entry[part:part + 4])
        self.client.write_int(CONFIG, at + 2, MSIX_ENABLE, 2)

    def enable_msi(self):
        at = self.find_capability(0x05)
        assert at, "no MSI capability"
        self.set_eventfds(MSI, 1)
        self.client.write_int(CONFIG, at + 2, 1, 2)

    def set_eventfds(self, index, count):
        self.close_events()
        self.events = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        self.client.set_irqs(index, DATA_EVENTFD | ACTION_TRIGGER, count=count, fds=self.events)

    def close_events(self):
        for event in self.events:
            os.close(event)
        self.events = []

    def interrupts(self, vector=0):
        """How many have come since the last call."""
        try:
            return os.eventfd_read(self.events[vector])
        except BlockingIOError:
            return 0

    # Waiting

    def sources(self):
        return [s for s in (self.client.channel, self.client.twin) if s]

    def idle(self, events, timeout):
        """Waits for an interrupt or a message of the device, which is served."""
        ready, _, _ = select.select(self.sources() + events, [], [], timeout)
        for event in set(ready) & set(events):
            os.eventfd_read(event)
        if set(ready) & set(self.sources()):
            self.client.pump()
        return ready

    def next(self, cq, doorbell=True):
        """The next completion in a queue."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            completion = cq.pop(doorbell)
            if completion:
                return completion
            interrupt = cq.vector is not None and cq.vector < len(self.events)
            ready = self.idle([self.events[cq.vector]] if interrupt else [],
                              TIMEOUT if interrupt else 0.001)
            assert ready or not interrupt, f"no interrupt of queue {cq.qid}"
            assert time.monotonic() < deadline, f"no completion in queue {cq.qid}"

    def wait(self, sq, cid):
        while (sq.qid, cid) not in self.done:
            completion = self.next(sq.cq)
            key = (completion.sqid, completion.cid)
            assert key not in self.done, f"{completion} twice"
            self.done[key] = completion
        return self.done.pop((sq.qid, cid))

    # Start and end

    def disable(self):
        self.write(CC, self.read(CC) & ~1)
        self.wait_ready(0)

    def set_admin_queue(self, entries=32):
        cq = CompletionQueue(self, 0, entries, 0 if self.events else None)
        self.admin = SubmissionQueue(self, 0, entries, cq)
        self.write(AQA, (entries - 1) << 16 | (entries - 1))
        self.write(ASQ, self.admin.addr, 8)
        self.write(ACQ, cq.addr, 8)

    def enable(self, cc=CC_ENABLE | CC_IO_ENTRIES):
        self.write(CC, cc)
        self.wait_ready(1)
        assert not self.csts & CSTS_CFS

    def start(self, vectors=0, entries=32, cc=CC_ENABLE | CC_IO_ENTRIES):
        """From any state to one in which admin commands work. vectors: of MSI-X; 0: polling."""
        self.disable()
        self.done.clear()
        self.queues.clear()
        if vectors:
            self.enable_msix(vectors)
        self.set_admin_queue(entries)
        self.enable(cc)
        return self

    def start_io(self, queues=1, entries=64, vectors=0):
        """The same with I/O queues, each with an interrupt vector of its own as far as they go."""
        self.start(vectors)
        self.set_queue_count(queues)
        for qid in range(1, queues + 1):
            self.create_pair(qid, entries, min(qid, vectors - 1) if vectors else None)
        return self.queues[1]

    def set_queue_count(self, count):
        result = self.admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_QUEUES,
                               cdw11=(count - 1) << 16 | (count - 1)).result
        return min(result & 0xFFFF, result >> 16) + 1

    def create_cq(self, qid, entries=64, vector=None):
        cq = CompletionQueue(self, qid, entries, vector)
        self.admin.ok(ADMIN_CREATE_CQ, prp1=cq.addr, cdw10=(entries - 1) << 16 | qid,
                      cdw11=1 if vector is None else vector << 16 | 3)
        return cq

    def create_sq(self, qid, cq, entries=64):
        sq = SubmissionQueue(self, qid, entries, cq)
        self.admin.ok(ADMIN_CREATE_SQ, prp1=sq.addr, cdw10=(entries - 1) << 16 | qid,
                      cdw11=cq.qid << 16 | 1)
        self.queues[qid] = sq
        return sq

    def create_pair(self, qid, entries=64, vector=None):
        return self.create_sq(qid, self.create_cq(qid, entries, vector), entries)

    # Data

    def alloc(self, size, align=PAGE):
        return self.memory.alloc(size, align)

    def put_data(self, data, align=PAGE):
        addr = self.alloc(len(data), align)
        self.memory.write(addr, data)
        return addr

    def prps(self, addr, length):
        """The PRP entries of a buffer (4.3), with lists where they are needed."""
        first = PAGE - addr % PAGE
        if length <= first:
            return {"prp1": addr, "prp2": 0}
        pages = list(range(addr + first, addr + length, PAGE))
        return {"prp1": addr, "prp2": pages[0] if len(pages) == 1 else self.prp_list(pages)}

    def prp_list(self, pages):
        """The last entry of a full page points to the next page of the list."""
        per_page = PAGE // 8
        here, rest = (pages, []) if len(pages) <= per_page else (
            pages[:per_page - 1], pages[per_page - 1:])
        entries = here + ([self.prp_list(rest)] if rest else [])
        return self.put_data(struct.pack(f"<{len(entries)}Q", *entries))

    def identify(self, cns, nsid=0, cntid=0):
        addr = self.alloc(PAGE)
        self.admin.ok(ADMIN_IDENTIFY, nsid=nsid, prp1=addr, cdw10=cntid << 16 | cns)
        return self.memory.read(addr, PAGE)

    def transfer(self, sq, opcode, lba, blocks, addr, length, nsid=1, **fields):
        """Submits a read, a write or what looks like one."""
        fields = {"cdw12": blocks - 1, **self.prps(addr, length), **fields}
        return sq.submit(opcode, nsid=nsid, cdw10=lba & 0xFFFFFFFF, cdw11=lba >> 32, **fields)


class Namespace:
    """Reads and writes in one go, for tests that are about something else."""

    def __init__(self, nvme, sq, nsid=1, block=512):
        self.nvme = nvme
        self.sq = sq
        self.nsid = nsid
        self.block = block

    def run(self, opcode, lba, addr, length, **fields):
        return self.sq.wait(self.nvme.transfer(self.sq, opcode, lba, length // self.block, addr,
                                               length, self.nsid, **fields))

    def write(self, lba, data, **fields):
        completion = self.run(IO_WRITE, lba, self.nvme.put_data(data), len(data), **fields)
        assert completion.status == SUCCESS, completion

    def read(self, lba, length, **fields):
        addr = self.nvme.alloc(length)
        completion = self.run(IO_READ, lba, addr, length, **fields)
        assert completion.status == SUCCESS, completion
        return self.nvme.memory.read(addr, length)


def pattern(length, seed=1):
    """Bytes that differ from block to block and from seed to seed."""
    return b"".join(struct.pack("<II", seed, i) for i in range(-(-length // 8)))[:length]
