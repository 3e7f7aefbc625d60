# SPDX-License-Identifier: BSD-3-Clause
"""Doorbells without messages: the page mapped (--poll), and the Doorbell Buffer Config command."""

import mmap
import os
import struct
from types import SimpleNamespace

import pytest

from test_nvme_iommu import ATS, attach
from vfiouser import wire
from vfiouser.nvme import Namespace, Nvme, pattern
from vfiouser.nvme_spec import (ADMIN_DOORBELL_BUFFER, CNS_CONTROLLER, CSTS_CFS,
                                DATA_TRANSFER_ERROR, DOORBELLS, INTMC, INTMS, INVALID_FIELD,
                                IO_FLUSH, IO_READ, PAGE, PRP_OFFSET, SUCCESS)
from vfiouser.wire import BAR0, CONFIG, INTX, MSI

INTERRUPT_STATUS = 8
POLL = pytest.mark.nvme_args("--namespace", "memory=64M", "--threads", "2", "--poll")


def sparse_areas(client):
    info, _ = client.region_info(BAR0)
    assert info.flags & wire.REGION_MMAP, "BAR 0 cannot be mapped"
    info, reply = client.region_info(BAR0, argsz=info.argsz)
    cap = wire.SPARSE_MMAP.unpack(reply.payload, info.cap_offset)
    assert cap.id == wire.CAP_SPARSE_MMAP
    at = info.cap_offset + wire.SPARSE_MMAP.size
    return info, reply.fds[0], wire.SPARSE_AREA.unpack_array(reply.payload[at:], cap.nr_areas)


class MappedDoorbells:
    def __init__(self, client):
        info, fd, areas = sparse_areas(client)
        try:
            self.area, = (a for a in areas if a.offset <= DOORBELLS < a.offset + a.size)
            self.map = mmap.mmap(fd, self.area.size, offset=info.offset + self.area.offset)
        finally:
            os.close(fd)
        self.words = memoryview(self.map).cast("I")

    def ring(self, index, value):
        self.words[(DOORBELLS - self.area.offset) // 4 + index] = value

    def close(self):
        self.words.release()
        self.map.close()


@pytest.fixture
def mapped(nvme):
    doorbells = MappedDoorbells(nvme.client)
    nvme.ring_doorbell = doorbells.ring
    yield nvme
    doorbells.close()


@POLL
def test_only_doorbells_are_mapped(nvme):
    """Registers have effects: they must stay messages."""
    _, fd, areas = sparse_areas(nvme.client)
    os.close(fd)
    assert all(area.offset >= DOORBELLS for area in areas)


@POLL
def test_mapping_of_a_client_that_has_gone(nvme_server, mapped):
    """The next client has a page of its own: the old one cannot ring there, nor look into it."""
    disk = Namespace(mapped, mapped.start_io())
    disk.write(0, pattern(4096))
    nvme_server.close_clients()
    nvme = Nvme(nvme_server.client())
    doorbells = MappedDoorbells(nvme.client)
    nvme.ring_doorbell = doorbells.ring
    sq = nvme.start_io()
    for i in range(5):
        mapped.ring_doorbell(2, sq.entries - 1)
        assert doorbells.words[(DOORBELLS - doorbells.area.offset) // 4 + 2] == i
        sq.ok(IO_FLUSH, nsid=1)
    assert not nvme.csts & CSTS_CFS
    doorbells.close()


@POLL
def test_mapped_doorbells(mapped):
    mapped.start_io(2, vectors=3)
    disks = [Namespace(mapped, sq) for sq in mapped.queues.values()]
    for i in range(50):
        disk = disks[i % 2]
        disk.write(i, pattern(4096, i))
        assert disk.read(i, 4096) == pattern(4096, i)


@POLL
def test_mapped_and_by_message(mapped):
    """A client may do either at any time."""
    ring = mapped.ring_doorbell
    sq = mapped.start_io()
    for i in range(40):
        mapped.ring_doorbell = ring if i % 3 else mapped.doorbell_by_message
        sq.ok(IO_FLUSH, nsid=1)


@POLL
def test_mapped_doorbells_after_reset(mapped):
    """What the page holds from before a reset rings nothing."""
    for _ in range(5):
        sq = mapped.start_io()
        for _ in range(5):
            sq.ok(IO_FLUSH, nsid=1)
        mapped.disable()


@POLL
def test_nonsense_in_the_page(mapped):
    """Any value in any word, and then a reset."""
    mapped.start_io()
    for index in range(64):
        mapped.ring_doorbell(index, 0xFFFFFFFF - index)
    mapped.poll(lambda: mapped.csts is not None, "")
    for index in range(64):
        mapped.ring_doorbell(index, 0)
    Namespace(mapped, mapped.start_io()).write(0, pattern(4096))


@POLL
def test_messages_alone_with_poll(nvme):
    Namespace(nvme, nvme.start_io()).write(0, pattern(4096))


# Doorbell Buffer Config (5.7, B.5)

class ShadowDoorbells:
    """A driver with shadow doorbells: it rings only if EventIdx asks for it."""

    def __init__(self, nvme):
        self.nvme = nvme
        self.shadow, self.events = nvme.alloc(PAGE), nvme.alloc(PAGE)
        for page in (self.shadow, self.events):
            nvme.memory.write(page, bytes(PAGE))
        self.values = {}
        self.rung = 0

    def ring(self, index, value):
        if index < 2:
            self.nvme.doorbell_by_message(index, value)
            return
        old = self.values.get(index, 0)
        self.values[index] = value
        self.nvme.memory.write(self.shadow + 4 * index, struct.pack("<I", value))
        event, = struct.unpack("<I", self.nvme.memory.read(self.events + 4 * index, 4))
        if (value - event - 1) & 0xFFFF < (value - old) & 0xFFFF:
            self.rung += 1
            self.nvme.doorbell_by_message(index, value)


@pytest.fixture
def config(nvme):
    nvme.start()
    if not int.from_bytes(nvme.identify(CNS_CONTROLLER)[256:258], "little") & 1 << 8:
        pytest.skip("no Doorbell Buffer Config")
    return nvme


def configure(nvme):
    doorbells = ShadowDoorbells(nvme)
    nvme.admin.ok(ADMIN_DOORBELL_BUFFER, prp1=doorbells.shadow, prp2=doorbells.events)
    nvme.ring_doorbell = doorbells.ring
    return doorbells


@pytest.mark.parametrize("before", [True, False])
def test_shadow_doorbells(config, before):
    """Configured before the queues are made, or when they are in use already."""
    nvme = config
    nvme.set_queue_count(2)
    queues = []
    if not before:
        queues = [nvme.create_pair(qid) for qid in (1, 2)]
        for sq in queues:
            sq.ok(IO_FLUSH, nsid=1)
    doorbells = configure(nvme)
    for sq in queues:
        doorbells.values.update({2 * sq.qid: sq.tail, 2 * sq.qid + 1: sq.cq.head})
        nvme.memory.write(doorbells.shadow + 8 * sq.qid, struct.pack("<II", sq.tail, sq.cq.head))
    if before:
        queues = [nvme.create_pair(qid) for qid in (1, 2)]
    disks = [Namespace(nvme, sq) for sq in queues]
    for i in range(100):
        disks[i % 2].write(i, pattern(4096, i))
        assert disks[i % 2].read(i, 4096) == pattern(4096, i)


def test_shadow_doorbells_in_bursts(config):
    nvme = config
    nvme.set_queue_count(1)
    configure(nvme)
    sq = nvme.create_pair(1, 32)
    addr = nvme.alloc(4096)
    for _ in range(50):
        cids = [nvme.transfer(sq, IO_READ, i, 8, addr, 4096) for i in range(31)]
        for cid in cids:
            assert sq.wait(cid).status == SUCCESS


def test_shadow_doorbells_and_a_full_completion_queue(config):
    """The head is asked for when commands wait for it. With INTx it always is."""
    nvme = config.start(vectors=2)
    nvme.set_queue_count(1)
    configure(nvme)
    sq = nvme.create_sq(1, nvme.create_cq(1, 4, vector=1), 32)
    for _ in range(10):
        cids = [sq.put(IO_FLUSH, nsid=1) for _ in range(20)]
        sq.ring()
        for cid in cids:
            assert sq.wait(cid).status == SUCCESS


def test_reset_ends_shadow_doorbells(config):
    nvme = config
    doorbells = configure(nvme)
    nvme.ring_doorbell = nvme.doorbell_by_message
    sq = nvme.start_io()
    nvme.memory.write(doorbells.shadow, b"\x37" * PAGE)
    for _ in range(5):
        sq.ok(IO_FLUSH, nsid=1)


@pytest.mark.parametrize("offset1, offset2", [(0x100, 0), (0, 0x100)])
def test_buffers_that_are_not_pages(config, offset1, offset2):
    pages = config.alloc(4 * PAGE)
    completion = config.admin.run(ADMIN_DOORBELL_BUFFER, prp1=pages + offset1,
                                  prp2=pages + 2 * PAGE + offset2)
    assert completion.status in (PRP_OFFSET, INVALID_FIELD)


@pytest.mark.parametrize("which", ["prp1", "prp2"])
def test_buffers_that_are_not_there(config, which):
    """Both are looked at before the command completes; the doorbells stay what they were."""
    nvme = config
    sq = nvme.create_pair(1)
    buffers = {"prp1": nvme.alloc(PAGE), "prp2": nvme.alloc(PAGE), which: 0x7000000000}
    assert nvme.admin.run(ADMIN_DOORBELL_BUFFER, **buffers).status == DATA_TRANSFER_ERROR
    for _ in range(5):
        sq.ok(IO_FLUSH, nsid=1)
    assert not nvme.csts & CSTS_CFS


def moved_shadows(nvme, doorbells, sq, values):
    """Configures new buffers while a queue is in use. Returns what the new one holds for it."""
    doorbells.shadow, doorbells.events = nvme.alloc(PAGE), nvme.alloc(PAGE)
    nvme.memory.write(doorbells.shadow, bytes(PAGE))
    nvme.memory.write(doorbells.events, bytes(PAGE))
    nvme.memory.write(doorbells.shadow + 8 * sq.qid, struct.pack("<II", *values))
    nvme.admin.ok(ADMIN_DOORBELL_BUFFER, prp1=doorbells.shadow, prp2=doorbells.events)
    return struct.unpack("<II", nvme.memory.read(doorbells.shadow + 8 * sq.qid, 8))


def test_shadows_move(config):
    """Old ring entries do not run again: empty buffers are given the positions of the queues."""
    nvme = config
    doorbells = configure(nvme)
    sq = nvme.create_pair(1, 16)
    disk = Namespace(nvme, sq)
    for turn in range(6):
        for i in range(19):
            disk.write(i, pattern(512, 100 * turn + i))
        before = sq.tail, sq.cq.head
        assert moved_shadows(nvme, doorbells, sq, (0, 0)) == before
        nvme.identify(CNS_CONTROLLER)
        sq.ok(IO_FLUSH, nsid=1)
        assert sq.cq.pop() is None
        for i in range(19):
            assert disk.read(i, 512) == pattern(512, 100 * turn + i)


def test_shadows_that_the_host_has_written_before(config):
    """A tail that is in the new buffer already is newer than what the controller knows."""
    nvme = config
    doorbells = configure(nvme)
    sq = nvme.create_pair(1, 16)
    for _ in range(3):
        sq.ok(IO_FLUSH, nsid=1)
    cid = sq.put(IO_FLUSH, nsid=1)
    values = sq.tail, sq.cq.head
    assert moved_shadows(nvme, doorbells, sq, values) == values
    assert sq.wait(cid).status == SUCCESS


# The level of an interrupt is that of the queue as it is, with shadows too.

@pytest.fixture(params=[INTX, MSI])
def masked(request, config):
    """A queue with shadow doorbells and a completion that nobody has read, interrupts masked."""
    nvme = config
    if request.param == MSI:
        nvme.enable_msi()
    else:
        nvme.set_eventfds(INTX, 1)
    nvme.set_queue_count(1)
    nvme.doorbells = configure(nvme)
    sq = nvme.create_sq(1, nvme.create_cq(1, vector=0))
    sq.cq.vector = None
    sq.ok(IO_FLUSH, nsid=1)
    nvme.write(INTMS, 1)
    nvme.interrupts()
    cid = sq.submit(IO_FLUSH, nsid=1)
    nvme.poll(lambda: nvme.memory.read(sq.cq.addr + 16 * sq.cq.head + 14, 1)[0] & 1,
              "no completion")
    return nvme, sq, cid


def test_unmasked_with_entries_left(masked):
    nvme, sq, cid = masked
    nvme.write(INTMC, 1)
    assert nvme.interrupts() == 1
    assert sq.wait(cid).status == SUCCESS


def test_unmasked_without_entries_left(masked):
    """The host has read them, and told only the shadow."""
    nvme, sq, cid = masked
    nvme.doorbells.nvme = SimpleNamespace(memory=nvme.memory, doorbell_by_message=lambda *_: None)
    assert sq.wait(cid).status == SUCCESS
    nvme.write(INTMC, 1)
    assert nvme.interrupts() == 0
    assert not nvme.client.read_int(CONFIG, 6, 2) & INTERRUPT_STATUS


@ATS
def test_shadows_move_behind_an_iommu(nvme_server):
    """The memory has to be translated first: the controller writes nothing later than it says."""
    nvme = attach(nvme_server)
    sq = nvme.start_io()
    doorbells = configure(nvme)
    doorbells.values = {2: sq.tail, 3: sq.cq.head}
    for _ in range(20):
        moved_shadows(nvme, doorbells, sq, (0, 0))
        for _ in range(3):
            sq.ok(IO_FLUSH, nsid=1)
            nvme.identify(CNS_CONTROLLER)
            assert struct.unpack("<II", nvme.memory.read(doorbells.shadow + 8, 8)) == (
                sq.tail, sq.cq.head)
