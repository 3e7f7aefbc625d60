# SPDX-License-Identifier: BSD-3-Clause
"""The NVMe controller behind an IOMMU that remaps: ATS, invalidations during I/O, page requests."""

import random

import pytest

from vfiouser import software_iommu as iommu
from vfiouser import wire
from vfiouser.audit import AuditedIommu
from vfiouser.client import CAPABILITIES
from vfiouser.nvme import IommuMemory, Namespace, Nvme, pattern
from vfiouser.nvme_spec import DATA_TRANSFER_ERROR, IO_FLUSH, IO_READ, IO_WRITE, PAGE, SUCCESS
from vfiouser.probe import Probe

ATS = pytest.mark.nvme_args("--namespace", "memory=16M", "--threads", "2", "--ats")
PRI = pytest.mark.nvme_args("--namespace", "memory=16M", "--threads", "2", "--ats", "--pri")
MEMORY = 16 << 20


def attach(server, share=True, pri=False, kind=iommu.SoftIommu):
    client = server.client({**CAPABILITIES, "iommu": iommu.CAPS})
    soft_iommu = kind(client, MEMORY)
    soft_iommu.register_memory(share)
    config = Probe(client, soft_iommu)
    config.enable_ats()
    if pri:
        config.enable_pri()
    return Nvme(client, IommuMemory(soft_iommu))


def remap(nvme, iova):
    """Moves a page to another frame. Returns the old frame's number."""
    table = nvme.memory.table
    old = table.find(iova)
    table.map(iova, nvme.memory.iommu.frame(next(nvme.memory.frames)))
    assert nvme.memory.iommu.invalidate(None, iova, PAGE) == 0
    return (old.translated - nvme.memory.iommu.base) // PAGE


@ATS
@pytest.mark.parametrize("share", [True, False])
def test_io_through_an_iommu(nvme_server, share):
    nvme = attach(nvme_server, share)
    disk = Namespace(nvme, nvme.start_io(2))
    for length in (512, 4096, 32768):
        disk.write(1, pattern(length, length))
        assert disk.read(1, length) == pattern(length, length)
    assert nvme.memory.iommu.translations


@ATS
def test_unmapped_addresses(nvme_server):
    nvme = attach(nvme_server)
    disk = Namespace(nvme, nvme.start_io())
    for opcode in (IO_READ, IO_WRITE):
        completion = disk.run(opcode, 0, 0x7000000000, PAGE)
        assert completion.status == DATA_TRANSFER_ERROR
    disk.read(0, PAGE)


@ATS
def test_read_only_pages(nvme_server):
    nvme = attach(nvme_server)
    disk = Namespace(nvme, nvme.start_io())
    addr = nvme.put_data(pattern(PAGE))
    nvme.memory.table.find(addr).perm = wire.PERM_READ
    assert disk.run(IO_WRITE, 0, addr, PAGE).status == SUCCESS
    assert disk.run(IO_READ, 0, addr, PAGE).status == DATA_TRANSFER_ERROR


@ATS
def test_pages_that_move(nvme_server):
    """After the completion of the invalidation the old frame is left alone."""
    nvme = attach(nvme_server)
    disk = Namespace(nvme, nvme.start_io())
    disk.write(0, pattern(4 * PAGE, 1))
    addr = nvme.alloc(4 * PAGE)
    rng = random.Random(5)
    for rnd in range(60):
        cids = [nvme.transfer(disk.sq, IO_READ, 0, 32, addr, 4 * PAGE) for _ in range(8)]
        moved = addr + PAGE * rng.randrange(4)
        old = remap(nvme, moved)
        nvme.memory.iommu.fill(old, rnd)
        late = nvme.transfer(disk.sq, IO_READ, 0, 32, addr, 4 * PAGE)
        for cid in cids:
            assert disk.sq.wait(cid).status == SUCCESS
        assert disk.sq.wait(late).status == SUCCESS
        assert nvme.memory.read(addr, 4 * PAGE) == pattern(4 * PAGE, 1)
        assert nvme.memory.iommu.memory.read(old * PAGE, PAGE) == bytes([rnd]) * PAGE


@ATS
def test_queues_that_move(nvme_server):
    """Rings, their doorbell-driven reads and completions, in pages that are moved about."""
    nvme = attach(nvme_server)
    sq = nvme.start_io()
    for _ in range(40):
        cids = [sq.submit(IO_FLUSH, nsid=1) for _ in range(5)]
        for cid in cids:
            assert sq.wait(cid).status == SUCCESS
        for addr in (sq.addr, sq.cq.addr):
            data = nvme.memory.read(addr, PAGE)
            table = nvme.memory.table
            table.map(addr, nvme.memory.iommu.frame(next(nvme.memory.frames)))
            nvme.memory.write(addr, data)
            assert nvme.memory.iommu.invalidate(None, addr, PAGE) == 0


@ATS
def test_no_use_after_invalidation(nvme_server):
    """Every access is a message here, and the IOMMU keeps book of what was taken back."""
    nvme = attach(nvme_server, share=False, kind=AuditedIommu)
    disk = Namespace(nvme, nvme.start_io())
    addr = nvme.alloc(2 * PAGE)
    for _ in range(20):
        cids = [nvme.transfer(disk.sq, IO_READ, 0, 16, addr, 2 * PAGE) for _ in range(4)]
        nvme.memory.table.map(addr, nvme.memory.iommu.frame(next(nvme.memory.frames)))
        nvme.memory.iommu.post_invalidate(None, addr, PAGE)
        for cid in cids:
            assert disk.sq.wait(cid).status == SUCCESS
    assert not nvme.memory.iommu.violations


@PRI
def test_page_requests(nvme_server):
    """Pages that come when the device asks for them."""
    nvme = attach(nvme_server, pri=True)
    disk = Namespace(nvme, nvme.start_io())
    soft_iommu = nvme.memory.iommu

    def bring_in(key, iova, perm):
        if not 0x7000000000 <= iova < 0x7000100000:
            return wire.PAGE_INVALID
        if nvme.memory.table.find(iova) is None:
            nvme.memory.table.map(iova, soft_iommu.frame(next(nvme.memory.frames)))
        return wire.PAGE_SUCCESS

    soft_iommu.on_fault = bring_in
    disk.write(0, pattern(8 * PAGE, 2))
    cids = [nvme.transfer(disk.sq, IO_READ, 0, 32, 0x7000000000 + i * 4 * PAGE, 4 * PAGE)
            for i in range(8)]
    for cid in cids:
        assert disk.sq.wait(cid).status == SUCCESS
    for i in range(8):
        assert nvme.memory.read(0x7000000000 + i * 4 * PAGE, 4 * PAGE) == pattern(
            8 * PAGE, 2)[:4 * PAGE]
    assert soft_iommu.groups
    assert disk.run(IO_READ, 0, 0x7100000000, PAGE).status == DATA_TRANSFER_ERROR


@PRI
def test_reset_with_a_page_request_under_way(nvme_server):
    """Nobody answers: the reset must not wait for it."""
    nvme = attach(nvme_server, pri=True)
    disk = Namespace(nvme, nvme.start_io())
    held = []
    nvme.client.handlers[wire.Cmd.PAGE_REQUEST] = held.append
    nvme.transfer(disk.sq, IO_READ, 0, 8, 0x7000000000, PAGE)
    nvme.poll(lambda: nvme.csts is not None and held, "no page request")
    nvme.disable()
    nvme.start_io().ok(IO_FLUSH, nsid=1)
    for request in held:
        nvme.memory.iommu.page_request(request)
    nvme.queues[1].ok(IO_FLUSH, nsid=1)


@ATS
def test_without_ats_enabled(nvme_server):
    """A client that has no IOMMU: memory as it is."""
    nvme = Nvme(nvme_server.client())
    disk = Namespace(nvme, nvme.start_io())
    disk.write(0, pattern(4096))
    assert disk.read(0, 4096) == pattern(4096)
