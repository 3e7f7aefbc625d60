# SPDX-License-Identifier: BSD-3-Clause
"""
Accesses of many PASIDs against an IOMMU that changes its tables all the time, answers late and in
any order: each access must see a mapping that it could see, and nothing that was taken back.
"""

import errno
import random
import time

import pytest

from vfiouser import software_iommu, wire
from vfiouser.audit import AuditedIommu
from vfiouser.channel import TIMEOUT
from vfiouser.client import CAPABILITIES
from vfiouser.memory import Slot
from vfiouser.pagetable import PAGE, Frames, MemoryTable
from vfiouser.probe import DONE, FAILED, PENDING, READ, WRITE, Probe
from vfiouser.wire import Cmd

KEYS = (None, 0, 1, 0xFFFFF)
BASE = 0x7F0000000000
PAGES = 12
FRAMES = range(1, 64)  # of data; the tables are behind them
TABLE_FRAME, STAGE2_FRAME = 64, 128
TOKENS = 2048  # offset in a page, behind what is read
ACCESSES = 150


class Access:
    """One that runs: where it goes, and the frames (None: not mapped) that it may have found."""

    def __init__(self, key, page, possible, token):
        self.key = key
        self.page = page
        self.possible = possible
        self.token = token
        self.taken_away = False  # an invalidation may have met it


class Storm:
    def __init__(self, server, seed, share, nested):
        self.random = random.Random(seed)
        self.share = share
        client = server.client({**CAPABILITIES, "iommu": software_iommu.CAPS})
        self.iommu = AuditedIommu(client)
        self.probe = Probe(client, self.iommu)
        self.probe.enable(share)
        self.held = []
        client.handlers[Cmd.ATS_TRANSLATE] = self.hold_translate
        client.handlers[Cmd.PAGE_REQUEST] = self.hold_page_request
        self.iommu.on_fault = self.on_fault
        self.make_tables(client, nested)
        for frame in FRAMES:
            self.iommu.fill(frame, frame)
        self.mapped = {}  # (key, page) -> frame
        self.leaving = []  # ((key, page), frame) with the invalidation that is not complete
        self.running = {}  # slot -> Access
        self.finished = 0

    def make_tables(self, client, nested):
        iommu = self.iommu
        client.memory.add(iommu.base, iommu.size, iommu.memory)
        stage2 = None
        at = iommu.base
        if nested:
            # The second stage maps 0.. to guest memory; the first has its tables there.
            part = Slot(iommu.frame(STAGE2_FRAME), 64 * PAGE, iommu.memory, STAGE2_FRAME * PAGE)
            stage2 = MemoryTable(client.memory, Frames(part))
            stage2.map(0, iommu.base, iommu.size)
            at = 0
        part = Slot(at + TABLE_FRAME * PAGE, 64 * PAGE, iommu.memory, TABLE_FRAME * PAGE)
        frames = Frames(part)
        self.frame_base = at
        for key in KEYS:
            iommu.tables[key] = MemoryTable(client.memory, frames, stage2)

    def on_fault(self, key, iova, perm):
        del perm
        return wire.PAGE_SUCCESS if self.iommu.table(key).find(iova) else wire.PAGE_INVALID

    # Steps

    def start(self):
        idle = [slot for slot in self.probe.slots if slot not in self.running]
        if not idle:
            return
        slot = self.random.choice(idle)
        where = key, page = self.random.choice(KEYS), self.random.randrange(PAGES)
        possible = {self.mapped.get(where)}
        possible |= {frame for at, frame, _ in self.leaving if at == where}
        token = None
        iova = BASE + page * PAGE
        if self.random.random() < 0.5:
            token = self.random.randbytes(8)
            self.probe.client.region_write(wire.BAR0, slot.buffer, token)
            iova += TOKENS + 16 * self.probe.slots.index(slot)
        self.running[slot] = Access(key, page, possible, token)
        self.running[slot].taken_away = any(at == where for at, _, _ in self.leaving)
        slot.start(WRITE if token else READ, iova, 8, pasid=key, prot=2 if token else 1)

    def change(self):
        """Maps, unmaps, or leads elsewhere; what could be cached is invalidated."""
        where = key, page = self.random.choice(KEYS), self.random.randrange(PAGES)
        if len(self.iommu.outstanding) >= 32:
            return
        old = self.mapped.pop(where, None)
        table, iova = self.iommu.table(key), BASE + page * PAGE
        if old is not None:
            table.unmap(iova, PAGE)
        if old is None or self.random.random() < 0.5:
            new = self.random.choice(FRAMES)
            table.map(iova, self.frame_base + new * PAGE, PAGE, wire.PERM_RW)
            self.mapped[where] = new
        if old is not None:
            self.iommu.post_invalidate(key, iova, PAGE)
            self.leaving.append((where, old, self.iommu.outstanding[-1]))
        for access in self.running.values():
            if (access.key, access.page) == where:
                access.possible.add(self.mapped.get(where))
                access.taken_away |= old is not None

    def hold_translate(self, command):
        """Looked up now and sent late, when it may be overtaken, or looked up late."""
        key, payload = self.iommu.split(command)
        request = wire.ATS_TRANSLATE.unpack(payload)

        def look_up():
            return self.iommu.translate_reply(
                self.iommu.entries(key, request.address, request.length))

        early = look_up() if self.random.random() < 0.5 else None
        self.held.append(lambda: self.iommu.client.reply(command, early or look_up()))

    def hold_page_request(self, command):
        self.held.append(lambda: self.iommu.page_request(command))

    def answer(self):
        if self.held:
            self.held.pop(self.random.randrange(len(self.held)))()

    def collect(self):
        """Looks at one access, and at the completions."""
        if self.running:
            slot = self.random.choice(list(self.running))
            if slot.status != PENDING:
                self.check(slot, self.running.pop(slot))
        done = self.iommu.reap()
        self.leaving = [entry for entry in self.leaving if entry[2] not in done]

    def check(self, slot, access):
        result = slot.result()
        self.finished += 1
        if result.status == FAILED and result.error == errno.ECANCELED:
            assert access.taken_away and not self.share
            return
        if result.status == FAILED:
            assert result.error in (errno.EFAULT, errno.EAGAIN), errno.errorcode[result.error]
            assert None in access.possible, vars(access)
            return
        assert result.status == DONE, result
        if access.token is None:
            data = self.probe.client.region_read(wire.BAR0, slot.buffer, 8)
            assert data in {bytes([f]) * 8 for f in access.possible if f}, (data, vars(access))
            return
        at = TOKENS + 16 * self.probe.slots.index(slot)
        found = {f for f in FRAMES if self.iommu.memory.read(f * PAGE + at, 8) == access.token}
        assert len(found) == 1 and found <= access.possible, (found, vars(access))

    def run(self):
        steps = [self.start] * 4 + [self.change] * 2 + [self.answer] * 5 + [self.collect] * 5
        deadline = time.monotonic() + 3 * TIMEOUT
        while self.finished < ACCESSES:
            self.random.choice(steps)()
            assert time.monotonic() < deadline, f"{self.finished} of {ACCESSES} accesses ended"
        while self.running or self.iommu.outstanding:
            self.answer()
            self.collect()
            self.probe.client.device_info()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [True, False], ids=["memory", "messages"])
@pytest.mark.parametrize("nested", [False, True], ids=["one stage", "two stages"])
def test_storm(probe_server, seed, share, nested):
    storm = Storm(probe_server, seed, share, nested)
    storm.run()
    assert storm.iommu.violations == []
    stats = storm.probe.stats()
    assert (stats.protocol_errors, stats.invalidations_pending, stats.groups_pending) == (0, 0, 0)
    assert stats.hits > 0 and stats.translations > 0
