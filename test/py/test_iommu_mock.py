# SPDX-License-Identifier: BSD-3-Clause
"""
The software IOMMU of the mock client itself: what the tests of the IOMMU extension stand on. The
server's side of the socket is played here.
"""

import errno
import os
import socket
import tempfile

import pytest

from vfiouser import wire
from vfiouser.channel import Channel
from vfiouser.client import Client
from vfiouser.iommu import Context, SoftIommu
from vfiouser.memory import GuestMemory, Slot
from vfiouser.pagetable import ALL, G1, M2, PAGE, Fault, Frames, Identity, PageTable
from vfiouser.script import (Die, LieInEntries, LieInResponses, RefuseTranslations, Reorder,
                             Script, Slow)
from vfiouser.wire import (INV_ALL, INV_GLOBAL, PERM_EXEC, PERM_GLOBAL, PERM_PRIV, PERM_READ,
                           PERM_WRITE, Cmd)

RW = PERM_READ | PERM_WRITE
TABLES, RAM = 0x10000000, 0


class Peer:
    """The server's end: sends commands, receives replies."""

    def __init__(self, script=None, **limits):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "socket")
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen()
                self.client = Client(path)
                self.channel = Channel(listener.accept()[0])
        self.memory = self.client.memory
        self.frames = Frames(self.memory.add(TABLES, 1 << 20))
        self.ram = self.memory.add(RAM, 1 << 20)
        self.iommu = SoftIommu(self.client, script, **limits)
        self.table = PageTable(self.memory, self.frames)
        self.next_id = 0

    def close(self):
        self.client.close()
        self.channel.close()

    def context(self, pasid=None, **kwargs):
        table = PageTable(self.memory, self.frames)
        return self.iommu.attach(Context(table, **kwargs), pasid)

    def send(self, cmd, payload, pasid=None, attrs=0, flags=0):
        self.next_id += 1
        if pasid is not None:
            payload = wire.PASID_PREFIX.pack(pasid=pasid, attrs=attrs) + payload
            flags |= wire.F_PASID
        self.channel.send(wire.message(cmd, payload, self.next_id, flags))
        self.client.pump()
        return self.next_id

    def translate(self, address, length=PAGE, flags=0, argsz=4096, **who):
        payload = wire.ATS_TRANSLATE.pack(argsz=argsz, flags=flags, address=address,
                                          length=length)
        return self.send(Cmd.ATS_TRANSLATE, payload, **who)

    def entries(self):
        """Of the next reply."""
        reply = self.channel.recv()
        assert not reply.error, reply
        fields = wire.ATS_REPLY.unpack(reply.payload)
        return wire.ATS_ENTRY.unpack_array(reply.payload[wire.ATS_REPLY.size:],
                                           fields.nr_entries)

    def ask(self, address, length=PAGE, **kwargs):
        self.translate(address, length, **kwargs)
        return [(e.address, e.translated, e.length, e.perm) for e in self.entries()]

    def page_request(self, pages, group=0, last=True, pasid=None, flags=0):
        flags |= wire.PRQ_LAST if last else 0
        body = b"".join(wire.PAGE_REQUEST_ENTRY.pack(address=a, nr_pages=n, perm=p)
                        for a, n, p in pages)
        payload = wire.PAGE_REQUEST.pack(argsz=16 + len(body), flags=flags, group=group,
                                         nr_entries=len(pages)) + body
        return self.send(Cmd.PAGE_REQUEST, payload, pasid,
                         flags=0 if flags & wire.PRQ_LAST else wire.NO_REPLY)

    def response(self):
        reply = self.channel.recv()
        fields = wire.PAGE_RESPONSE.unpack(reply.payload)
        return reply.id, fields.group, fields.code

    def dma(self, cmd, address, count, data=b"", flags=0, **who):
        self.send(cmd, wire.DMA_ACCESS.pack(addr=address, count=count) + data, flags=flags, **who)
        return self.channel.recv()


@pytest.fixture
def peer():
    made = Peer()
    yield made
    made.close()


# Page tables

def table(size=1 << 20):
    memory = GuestMemory()
    return PageTable(memory, Frames(memory.add(TABLES, size)))


@pytest.mark.parametrize("size, largest, leaf", [
    (PAGE, G1, PAGE), (M2, G1, M2), (M2, PAGE, PAGE), (G1, G1, G1), (G1, M2, M2)])
def test_largest_page_that_fits(size, largest, leaf):
    tables = table(8 << 20)
    tables.map(4 * G1, 8 * G1, size, RW, largest)
    found = tables.walk(4 * G1 + size - 1)
    assert found.size == leaf and found.perm == RW
    assert found.at(4 * G1 + size - 1) == 8 * G1 + size - 1
    assert not tables.walk(4 * G1 + size).present
    assert not tables.walk(4 * G1 - 1).present


def test_unaligned_target_takes_small_pages():
    tables = table()
    tables.map(0, PAGE, M2)
    assert tables.walk(0).size == PAGE


def test_sizes_mix():
    tables = table()
    tables.map(M2 - PAGE, 2 * M2 - PAGE, M2 + 2 * PAGE)
    assert [tables.walk(a).size for a in (M2 - PAGE, M2, 2 * M2)] == [PAGE, M2, PAGE]


def test_unmap_and_map_again():
    tables = table()
    tables.map(0, 0, M2, largest=PAGE)
    tables.unmap(PAGE, PAGE)
    assert not tables.walk(PAGE).present and tables.walk(0).present
    tables.map(PAGE, 16 * PAGE, PAGE, PERM_READ)
    assert (tables.walk(PAGE).target, tables.walk(PAGE).perm) == (16 * PAGE, PERM_READ)


def test_hole_has_the_size_of_what_is_missing():
    tables = table()
    tables.map(0, 0, PAGE)
    assert [tables.walk(a).size for a in (PAGE, M2, G1, 512 * G1)] == [
        PAGE, M2, G1, 512 * G1]


def nested(memory, stage2_frames):
    """A guest's guest: its memory, 0 to 4 MiB, is at 1 GiB of the guest; its tables are in it."""
    ram = memory.add(G1, 4 << 20)
    stage2 = PageTable(memory, stage2_frames)
    stage2.map(0, G1, 4 << 20)
    stage1 = PageTable(memory, Frames(Slot(2 << 20, 1 << 20, ram.mem, 2 << 20)), stage2)
    return stage1, stage2, ram


def test_two_stages():
    memory = GuestMemory()
    stage1, _, _ = nested(memory, Frames(memory.add(TABLES, 1 << 20)))
    stage1.map(0x7000, 0x3000, PAGE, RW)
    found = stage1.walk(0x7123)
    assert (found.address, found.target, found.size, found.perm) == (0x7000, G1 + 0x3000, PAGE, RW)


def test_two_stages_take_the_smaller_size_and_rights():
    memory = GuestMemory()
    stage1, stage2, _ = nested(memory, Frames(memory.add(TABLES, 1 << 20)))
    stage2.unmap(0, M2)
    stage2.map(0, G1, M2, PERM_READ, largest=PAGE)
    stage1.map(G1, 0, M2, ALL)
    found = stage1.walk(G1 + 5 * PAGE)
    assert (found.address, found.target, found.size, found.perm) == (
        G1 + 5 * PAGE, G1 + 5 * PAGE, PAGE, PERM_READ)


def test_hole_in_the_second_stage():
    memory = GuestMemory()
    stage1, _, _ = nested(memory, Frames(memory.add(TABLES, 1 << 20)))
    stage1.map(0x7000, 16 << 20, PAGE)
    assert not stage1.walk(0x7000).present


def test_table_that_the_second_stage_does_not_map():
    memory = GuestMemory()
    stage1, stage2, _ = nested(memory, Frames(memory.add(TABLES, 1 << 20)))
    stage1.map(0x7000, 0, PAGE)
    stage2.unmap(2 << 20, M2)
    with pytest.raises(Fault):
        stage1.walk(0x7000)


def test_identity():
    assert Identity().walk(5 * G1 + 7).at(5 * G1 + 7) == 5 * G1 + 7


# Translation requests

def test_translate(peer):
    peer.context().table.map(0x5000, 0x9000, PAGE, RW)
    assert peer.ask(0x5000) == [(0x5000, 0x9000, PAGE, RW)]


def test_not_present_is_an_entry(peer):
    peer.context()
    assert [(t, p) for _, t, _, p in peer.ask(0x5000)] == [(0, 0)]
    assert peer.iommu.grants == []


def test_spaces_are_apart(peer):
    for pasid, target in ((None, 0x1000), (0, 0x2000), (1, 0x3000)):
        peer.context(pasid).table.map(0x5000, target, PAGE, RW)
    assert [peer.ask(0x5000, pasid=p)[0][1] for p in (None, 0, 1)] == [0x1000, 0x2000, 0x3000]


def test_large_page_is_handed_out_whole(peer):
    peer.context().table.map(0, 4 * G1, G1, RW)
    assert peer.ask(0x5000) == [(0, 4 * G1, G1, RW)]


def test_several_entries_without_holes(peer):
    context = peer.context()
    context.table.map(0x1000, 0x10000, PAGE, RW)
    context.table.map(0x3000, 0x20000, PAGE, PERM_READ)
    assert peer.ask(0x1000, 3 * PAGE) == [
        (0x1000, 0x10000, PAGE, RW), (0x2000, 0, PAGE, 0), (0x3000, 0x20000, PAGE, PERM_READ)]


@pytest.mark.parametrize("argsz, max_entries, number", [(16 + 32, 64, 1), (16 + 95, 64, 2),
                                                        (4096, 3, 3)])
def test_reply_is_limited(argsz, max_entries, number):
    peer = Peer(max_entries=max_entries)
    peer.context().table.map(0, 0x10000, 8 * PAGE, largest=PAGE)
    assert len(peer.ask(0, 8 * PAGE, argsz=argsz)) == number
    peer.close()


@pytest.mark.parametrize("attrs, perm", [
    (0, RW), (wire.PASID_EXEC, RW | PERM_EXEC), (wire.PASID_PRIV, RW | PERM_PRIV)])
def test_no_more_than_was_asked_for(peer, attrs, perm):
    peer.context(3).table.map(0, 0, PAGE, ALL)
    assert peer.ask(0, pasid=3, attrs=attrs)[0][3] == perm


def test_privileged_page(peer):
    peer.context(3).table.map(0, 0, PAGE, ALL | PERM_PRIV)
    assert peer.ask(0, pasid=3)[0][3] == 0
    assert peer.ask(0, pasid=3, attrs=wire.PASID_PRIV)[0][3] == RW | PERM_PRIV


def test_global_needs_a_pasid(peer):
    for pasid in (None, 3):
        peer.context(pasid).table.map(0, 0, PAGE, RW | PERM_GLOBAL)
    assert peer.ask(0)[0][3] == RW
    assert peer.ask(0, pasid=3)[0][3] == RW | PERM_GLOBAL


def test_ats_off(peer):
    peer.context(3, ats=False)
    for pasid in (3, 4):
        peer.translate(0, pasid=pasid)
        assert peer.channel.recv().error == errno.EPERM


@pytest.mark.parametrize("address, length, flags", [
    (1, PAGE, 0), (0, PAGE + 1, 0), (0, 0, 0), ((1 << 64) - PAGE, 2 * PAGE, 0), (0, PAGE, 2)])
def test_malformed(peer, address, length, flags):
    peer.context()
    peer.translate(address, length, flags)
    assert peer.channel.recv().error == errno.EINVAL


# Messages

def test_untranslated_read_and_write(peer):
    peer.context(7).table.map(0x1000, 0x40000, 2 * PAGE, RW)
    peer.ram.write(0x40FF0, bytes(range(32)))
    reply = peer.dma(Cmd.DMA_READ, 0x1FF0, 32, pasid=7)
    assert reply.payload[16:] == bytes(range(32))
    assert not peer.dma(Cmd.DMA_WRITE, 0x1FFE, 4, b"abcd", pasid=7).error
    assert peer.ram.read(0x40FFE, 4) == b"abcd"
    assert [r.pasid for r in peer.iommu.untranslated] == [7, 7]


@pytest.mark.parametrize("pasid", [None, 8])
def test_access_in_another_space(peer, pasid):
    peer.context(7).table.map(0x1000, 0x40000, PAGE, RW)
    assert peer.dma(Cmd.DMA_READ, 0x1000, 4, pasid=pasid).error == errno.EPERM


def test_write_to_read_only(peer):
    peer.context().table.map(0, 0, PAGE, PERM_READ)
    assert peer.dma(Cmd.DMA_WRITE, 0, 4, b"abcd").error == errno.EPERM
    assert peer.ram.read(0, 4) == bytes(4)


def test_translated_access_without_a_grant_is_noted(peer):
    assert not peer.dma(Cmd.DMA_READ, 0x3000, 8, flags=wire.F_TRANSLATED).error
    assert peer.iommu.violations == [(0x3000, 8, PERM_READ)]


def test_translated_access_with_a_grant(peer):
    peer.context().table.map(0, 0x3000, PAGE, PERM_READ)
    peer.ask(0)
    peer.dma(Cmd.DMA_READ, 0x3000, 8, flags=wire.F_TRANSLATED)
    assert peer.iommu.violations == []
    peer.dma(Cmd.DMA_WRITE, 0x3000, 1, b"x", flags=wire.F_TRANSLATED)
    peer.dma(Cmd.DMA_READ, 0x3FFF, 2, flags=wire.F_TRANSLATED)
    assert peer.iommu.violations == [(0x3000, 1, PERM_WRITE), (0x4000, 1, PERM_READ)]


# Invalidations

def complete(peer):
    """Plays the server: receives one invalidation, and completes it."""
    command = peer.channel.recv()
    assert command.cmd == Cmd.ATS_INVALIDATE
    peer.channel.send(wire.message(command.cmd, b"", command.id, wire.REPLY))
    return command


@pytest.mark.parametrize("where, left", [
    ({"address": 0x1000, "length": PAGE}, {0, 1}),
    ({"address": 0x1FFF, "length": 1}, {0, 1}),
    ({"address": 0x2000, "length": PAGE}, {None, 0, 1}),
    ({"address": 0, "length": 1 << 40}, {0, 1}),
    ({"flags": INV_ALL}, {0, 1}),
    ({"flags": INV_ALL, "pasid": 0}, {None, 1}),
    ({"address": 0x1000, "length": PAGE, "pasid": 1}, {None, 0}),
    ({"flags": INV_ALL | INV_GLOBAL}, set()),
    ({"address": 0x1000, "length": PAGE, "flags": INV_GLOBAL, "pasid": 0}, set())])
def test_what_a_completed_invalidation_takes_back(peer, where, left):
    for pasid in (None, 0, 1):
        peer.context(pasid).table.map(0x1000, 0x1000, PAGE, RW)
        peer.ask(0x1000, pasid=pasid)
    invalidation = peer.iommu.send_invalidate(**where)
    command = complete(peer)
    assert len(command.payload) == 24 + (8 if where.get("pasid") is not None else 0)
    peer.iommu.wait_completion(invalidation)
    assert {g.pasid for g in peer.iommu.grants} == left
    assert peer.iommu.outstanding == {}


def test_global_grant_survives_the_invalidation_of_its_pasid(peer):
    peer.context(1).table.map(0, 0, PAGE, RW | PERM_GLOBAL)
    peer.ask(0, pasid=1)
    invalidation = peer.iommu.send_invalidate(pasid=1, flags=INV_ALL)
    complete(peer)
    peer.iommu.wait_completion(invalidation)
    assert len(peer.iommu.grants) == 1


def test_grant_after_the_invalidation_stays(peer):
    peer.context().table.map(0, 0, PAGE, RW)
    peer.ask(0)
    invalidation = peer.iommu.send_invalidate(0, PAGE)
    peer.translate(0)
    command = peer.channel.recv()
    peer.entries()
    peer.channel.send(wire.message(command.cmd, b"", command.id, wire.REPLY))
    peer.iommu.wait_completion(invalidation)
    assert [g.serial for g in peer.iommu.grants] == [1]


def test_many_outstanding_complete_in_any_order(peer):
    queue = peer.iommu.fill_queue(address=0, length=PAGE)
    assert len(queue) == len(peer.iommu.outstanding) == 32
    commands = [peer.channel.recv() for _ in queue]
    for command in reversed(commands):
        peer.channel.send(wire.message(command.cmd, b"", command.id, wire.REPLY))
    for invalidation in queue:
        peer.iommu.wait_completion(invalidation)
    assert peer.iommu.outstanding == {}


# Page requests

def test_demand_paging(peer):
    context = peer.context(5)
    context.add_absent(0x1000, 0x8000, 2 * PAGE, RW)
    assert peer.ask(0x1000, pasid=5)[0][3] == 0
    sent = peer.page_request([(0x1000, 2, PERM_READ)], group=9, pasid=5)
    assert peer.response() == (sent, 9, wire.PRQ_SUCCESS)
    assert peer.ask(0x1000, 2 * PAGE, pasid=5) == [(0x1000, 0x8000, PAGE, RW),
                                                   (0x2000, 0x9000, PAGE, RW)]


@pytest.mark.parametrize("pages", [
    [(0x9000, 1, PERM_READ)], [(0x1000, 2, PERM_READ)], [(0x1000, 1, PERM_WRITE)]])
def test_page_that_will_never_be_there(peer, pages):
    peer.context(5).add_absent(0x1000, 0x8000, PAGE, PERM_READ)
    peer.page_request(pages, pasid=5)
    assert peer.response()[2] == wire.PRQ_INVALID


def test_group_of_several_messages(peer):
    peer.context(5).add_absent(0, 0x8000, 8 * PAGE, RW)
    peer.page_request([(0, 1, PERM_READ)], group=4, last=False, pasid=5)
    peer.page_request([(0x3000, 1, PERM_READ)], group=6, pasid=5)
    assert peer.response()[1] == 6
    last = peer.page_request([(0x2000, 2, PERM_WRITE)], group=4, pasid=5)
    assert peer.response() == (last, 4, wire.PRQ_SUCCESS)
    assert peer.iommu.page_groups[1].pages == [(0, 1, PERM_READ), (0x2000, 2, PERM_WRITE)]


def test_stop_marker(peer):
    peer.page_request([], last=False, pasid=5, flags=wire.PRQ_STOP)
    assert peer.iommu.stop_markers == [5]


# Scripts

@pytest.fixture
def scripted():
    made = []

    def make(script):
        made.append(Peer(script))
        made[-1].context().table.map(0, 0x10000, 16 * PAGE, RW, largest=PAGE)
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_slow(scripted):
    script = Slow()
    peer = scripted(script)
    ids = [peer.translate(i * PAGE) for i in range(3)]
    script.wait_translates(peer.iommu, 3)
    script.release(peer.iommu, lambda held: held[::-1])
    assert [peer.channel.recv().id for _ in ids] == ids[::-1]


def test_slow_answers_from_the_tables_of_the_time_of_release(scripted):
    script = Slow()
    peer = scripted(script)
    peer.translate(0)
    peer.iommu.contexts[None].table.unmap(0, PAGE)
    script.release(peer.iommu)
    assert peer.entries()[0].perm == 0


def test_reorder(scripted):
    peer = scripted(Reorder(2))
    first, second = peer.translate(0), peer.translate(PAGE)
    assert [peer.channel.recv().id for _ in range(2)] == [second, first]


def test_lie_in_entries(scripted):
    def shift(entries):
        return [{**entry, "translated": entry["translated"] + 1} for entry in entries]

    peer = scripted(LieInEntries(shift, flags=0xFF))
    peer.translate(0)
    reply = peer.channel.recv()
    assert wire.ATS_REPLY.unpack(reply.payload).flags == 0xFF
    assert wire.ATS_ENTRY.unpack(reply.payload, 16).translated == 0x10001
    assert peer.iommu.grants == []


def test_refuse(scripted):
    peer = scripted(RefuseTranslations(errno.EIO))
    peer.translate(0)
    assert peer.channel.recv().error == errno.EIO


def test_lie_in_responses(scripted):
    peer = scripted(LieInResponses(7, 300))
    peer.page_request([(0, 1, PERM_READ)], group=1)
    assert peer.response()[1:] == (300, 7)


def test_die(scripted):
    peer = scripted(Die(1))
    peer.ask(0)
    peer.translate(PAGE)
    assert peer.channel.at_eof()


def test_the_honest_script_is_the_default(scripted):
    assert type(scripted(None).iommu.script) is Script
