# SPDX-License-Identifier: BSD-3-Clause
"""
Queues whose memory the client takes away and brings back (DMA_UNMAP, DMA_MAP), as QEMU does with
the guest's RAM whenever a chipset register moves a window: nothing is lost but time.
"""

import itertools

import pytest

from test_nvme_doorbells import configure
from vfiouser import software_iommu as iommu
from vfiouser import wire
from vfiouser.client import CAPABILITIES
from vfiouser.nvme import IommuMemory, Namespace, Nvme, pattern
from vfiouser.nvme_spec import (ADMIN_ABORT, ADMIN_DELETE_SQ, CC, CC_SHN_NORMAL, CSTS_CFS,
                                CSTS_SHST_DONE, CSTS_SHST_MASK, IO_FLUSH, IO_READ, PAGE, SUCCESS)
from vfiouser.probe import Probe

MEMORY = 16 << 20
DISK = ("--namespace", "memory=16M", "--threads", "2")
ABORT_REQUESTED, ABORTED_BY_DELETION = 0x07, 0x08


class Host:
    """A driver whose memory is one slot, behind an IOMMU or not, with shadow doorbells or not."""

    def __init__(self, start_nvme, ats=False, shadows=False, options=()):
        self.server = start_nvme(*DISK, *(["--ats"] if ats else []), *options)
        if ats:
            client = self.server.client({**CAPABILITIES, "iommu": iommu.CAPS})
            self.iommu = iommu.SoftIommu(client, MEMORY)
            self.iommu.register_memory(True)
            Probe(client, self.iommu).enable_ats()
            self.nvme = Nvme(client, IommuMemory(self.iommu))
        else:
            self.iommu = None
            self.nvme = Nvme(self.server.client())
        self.nvme.start()
        self.nvme.set_queue_count(2)
        self.shadows = configure(self.nvme) if shadows else None
        self.disks = [Namespace(self.nvme, self.nvme.create_pair(qid)) for qid in (1, 2)]

    def unmap(self):
        if self.iommu:
            payload = wire.DMA_UNMAP.pack(argsz=24, addr=self.iommu.base, size=self.iommu.size)
            self.nvme.client.request(wire.Cmd.DMA_UNMAP, payload, flags=wire.F_TRANSLATED)
        else:
            slot = self.nvme.memory.slot
            self.nvme.client.dma_unmap(slot.addr, slot.size)

    def map(self):
        if self.iommu:
            self.iommu.register_memory(True)
        else:
            self.nvme.client.dma_map(self.nvme.memory.slot)

    def load(self, addr, count=20):
        """Reads that are not waited for, to a page for each queue."""
        return [(disk.sq, self.nvme.transfer(disk.sq, IO_READ, i * 8, 8, addr + at * PAGE, PAGE))
                for i in range(count) for at, disk in enumerate(self.disks)]


@pytest.fixture(params=itertools.product([False, True], repeat=2),
                ids=lambda p: "-".join(["ats"] * p[0] + ["shadows"] * p[1]) or "plain")
def host(request, start_nvme):
    return Host(start_nvme, *request.param)


def test_memory_moves_while_idle(host):
    for _ in range(5):
        host.unmap()
        # The answers come when the workers have seen it, and are asleep or at it again.
        for _ in range(3):
            assert not host.nvme.csts & CSTS_CFS
        host.map()
        for i, disk in enumerate(host.disks):
            disk.write(i, pattern(8192, 3))
            assert disk.read(i, 8192) == pattern(8192, 3)


def test_memory_moves_under_load(host):
    """No command fails, and none is lost."""
    addr = host.nvme.alloc(2 * PAGE)
    for _ in range(10):
        cids = host.load(addr)
        host.unmap()
        host.map()
        for sq, cid in cids:
            assert sq.wait(cid).status == SUCCESS
    assert not host.nvme.csts & CSTS_CFS


def test_work_while_the_memory_is_away(host):
    """A doorbell is rung for entries that cannot be read yet."""
    addr = host.nvme.alloc(2 * PAGE)
    host.disks[0].write(0, pattern(PAGE, 9))
    for _ in range(3):
        host.unmap()
        cids = host.load(addr, 1)
        assert not host.nvme.csts & CSTS_CFS
        host.map()
        for sq, cid in cids:
            assert sq.wait(cid).status == SUCCESS
        assert host.nvme.memory.read(addr, PAGE) == pattern(PAGE, 9)


@pytest.mark.parametrize("everything", [False, True])
def test_idle_queues_let_go_of_their_memory(nvme, everything):
    """The reply to an unmap waits for what uses the memory: idle queues do not hold it."""
    disk = Namespace(nvme, nvme.start_io(2))
    disk.write(0, pattern(8192, 3))
    slot = nvme.memory.slot
    for _ in range(3):
        if everything:
            nvme.client.dma_unmap(0, 0, flags=2)
        else:
            nvme.client.dma_unmap(slot.addr, slot.size)
        nvme.client.dma_map(slot)
        assert disk.read(0, 8192) == pattern(8192, 3)


@pytest.fixture
def away(nvme):
    """A data buffer in memory of its own, which has just been unmapped; commands wait for it."""
    disk = Namespace(nvme, nvme.start_io(2))
    slot = nvme.client.add_memory(0x40000000, PAGE)
    nvme.client.dma_unmap(slot.addr, slot.size)
    cid = nvme.transfer(disk.sq, IO_READ, 0, 8, slot.addr, PAGE)
    nvme.queues[2].ok(IO_FLUSH, nsid=1)
    return nvme, disk.sq, cid, slot


def test_data_that_comes_back(away):
    nvme, sq, cid, slot = away
    sq.ok(IO_FLUSH, nsid=1)
    assert (sq.qid, cid) not in nvme.done
    nvme.client.dma_map(slot)
    assert sq.wait(cid).status == SUCCESS


def test_abort_of_what_waits_for_memory(away):
    nvme, sq, cid, _ = away
    sq.ok(IO_FLUSH, nsid=1)
    assert nvme.admin.ok(ADMIN_ABORT, cdw10=cid << 16 | sq.qid).result & 1 == 0
    assert sq.wait(cid).status == ABORT_REQUESTED


def test_deletion_of_what_waits_for_memory(away):
    nvme, sq, cid, _ = away
    sq.ok(IO_FLUSH, nsid=1)
    nvme.admin.ok(ADMIN_DELETE_SQ, cdw10=sq.qid)
    assert sq.wait(cid).status == ABORTED_BY_DELETION


# The end of patience

@pytest.mark.parametrize("shadows", [False, True])
def test_memory_that_does_not_come_back(start_nvme, shadows):
    """Idle, it may be away for ever. With work, it is fatal when the grace period is over."""
    host = Host(start_nvme, shadows=shadows, options=("--memory-grace", "1"))
    nvme = host.nvme
    host.unmap()
    for _ in range(50):
        assert not nvme.csts & CSTS_CFS
    host.map()
    host.disks[0].write(0, pattern(PAGE))
    host.unmap()
    nvme.doorbell_by_message(2, host.disks[0].sq.tail + 1)
    nvme.poll(lambda: nvme.csts & CSTS_CFS, "nothing is fatal")
    host.map()
    nvme.ring_doorbell = nvme.doorbell_by_message
    nvme.start_io().ok(IO_FLUSH, nsid=1)


# Nothing is looked up while nothing may be accessed.

def silence_bus_master(nvme):
    nvme.client.write_int(wire.CONFIG, 4, 0x0002, 2)


def silence_shutdown(nvme):
    nvme.write(CC, nvme.read(CC) | CC_SHN_NORMAL)
    nvme.poll(lambda: nvme.csts & CSTS_SHST_MASK == CSTS_SHST_DONE, "the shutdown does not end")


@pytest.mark.parametrize("silence", [silence_bus_master, silence_shutdown])
@pytest.mark.parametrize("shadows", [False, True])
def test_no_translations_while_silent(start_nvme, shadows, silence):
    host = Host(start_nvme, ats=True, shadows=shadows)
    nvme = host.nvme
    for disk in host.disks:
        disk.write(0, pattern(PAGE))
    silence(nvme)
    asked = len(nvme.memory.iommu.translations)
    for disk in host.disks:
        assert nvme.memory.iommu.invalidate(None, disk.sq.addr, PAGE) == 0
        assert nvme.memory.iommu.invalidate(None, disk.sq.cq.addr, PAGE) == 0
    if shadows:
        assert nvme.memory.iommu.invalidate(None, host.shadows.shadow, PAGE) == 0
        assert nvme.memory.iommu.invalidate(None, host.shadows.events, PAGE) == 0
    for disk in host.disks:
        disk.sq.put(IO_FLUSH, nsid=1)
        nvme.doorbell_by_message(2 * disk.sq.qid, disk.sq.tail)
        nvme.doorbell_by_message(2 * disk.sq.qid + 1, disk.sq.cq.head)
    for _ in range(20):
        assert not nvme.csts & CSTS_CFS
    assert len(nvme.memory.iommu.translations) == asked
