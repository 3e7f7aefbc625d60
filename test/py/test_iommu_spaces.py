# SPDX-License-Identifier: BSD-3-Clause
"""Address spaces and what may be done in them: rules MOD, PFX and DMA of docs/vfio-user-iommu.rst."""

import errno

import pytest

from conftest import built, end
from vfiouser import software_iommu as iommu
from vfiouser import wire
from vfiouser.client import CAPABILITIES
from vfiouser.probe import Probe
from vfiouser.server import Server
from vfiouser.software_iommu import PAGE
from vfiouser.wire import Cmd

IOVA = 0x100000
ATS = pytest.mark.probe_args("--pasid", "20", "--ats")


def map_region(probe, pasid, iova, size=PAGE, flags=wire.MAP_RW):
    """Maps memory into the space of a PASID; returns (memory, errno)."""
    slot = probe.client.memory.add(iova, size)
    bits, payload = probe.iommu.prefixed(pasid, probe.client.map_payload(slot, flags))
    return slot, probe.client.error_of(Cmd.DMA_MAP, payload, [slot.mem.fd], flags=bits)


def unmap(probe, pasid, iova, size):
    """Returns the errno."""
    payload = wire.DMA_UNMAP.pack(argsz=wire.DMA_UNMAP.size, addr=iova, size=size)
    bits, payload = probe.iommu.prefixed(pasid, payload)
    return probe.client.error_of(Cmd.DMA_UNMAP, payload, flags=bits)


# Permission at every step of the model


@ATS
def test_MOD_1_of_a_shadow_mapping(probe):
    probe.enable_pasid()
    memory, error = map_region(probe, 1, IOVA, flags=wire.MAP_READ)
    assert error == 0
    memory.write(0, b"readonly")
    assert probe.slots[0].read(IOVA, pasid=1) == b"readonly"
    assert probe.slots[0].write(IOVA, b"written!", pasid=1) == errno.EFAULT
    assert memory.read(0, 8) == b"readonly"


@ATS
def test_MOD_1_of_a_region_behind_a_translation(probe):
    """The client registers memory for reading, and translates to it for writing."""
    payload = wire.DMA_MAP.pack(argsz=32, flags=wire.MAP_READ, addr=probe.iommu.base,
                                size=probe.iommu.size)
    probe.client.request(Cmd.DMA_MAP, payload, [probe.iommu.memory.fd], flags=wire.F_TRANSLATED)
    probe.enable_pasid()
    probe.enable_ats()
    probe.iommu.fill(4, 4)
    probe.iommu.table(1).map(IOVA, probe.iommu.frame(4), perm=wire.PERM_RW)
    assert probe.slots[0].write(IOVA, b"written!", pasid=1) == errno.EIO
    assert probe.stats().entries == 0
    probe.iommu.table(1).map(IOVA, probe.iommu.frame(4), perm=wire.PERM_READ)
    assert probe.slots[0].read(IOVA, pasid=1) == bytes([4] * 8)
    assert probe.iommu.memory.read(4 * PAGE, 8) == bytes([4] * 8)


@ATS
def test_MOD_1_of_the_client(probe):
    """Untranslated messages: the client's IOMMU refuses, and its errno is that of the access."""
    probe.iommu.register_memory()
    probe.enable_pasid()
    probe.iommu.table(1).map(IOVA, probe.iommu.frame(4), perm=wire.PERM_READ)
    assert probe.slots[0].write(IOVA, b"written!", pasid=1) == errno.EFAULT
    assert not probe.iommu.translations


# Messages


def test_PFX_4_replies_carry_neither_bit(probe):
    payload = wire.ATS_INVALIDATE.pack(argsz=24, length=PAGE)
    for space, expected in ((None, 0), (1, 0), (1 << 20, errno.EINVAL)):
        bits, data = probe.iommu.prefixed(space, payload)
        reply = probe.client.wait(probe.client.send(Cmd.ATS_INVALIDATE, data, flags=bits),
                                  check=False)
        assert (reply.error, reply.flags & (wire.F_PASID | wire.F_TRANSLATED)) == (expected, 0)
    payload = wire.DMA_MAP.pack(argsz=32, flags=wire.MAP_RW, addr=IOVA, size=PAGE)
    reply = probe.client.wait(probe.client.send(Cmd.DMA_MAP, payload, flags=wire.F_TRANSLATED))
    assert reply.flags & (wire.F_PASID | wire.F_TRANSLATED) == 0


# DMA_MAP and DMA_UNMAP


@ATS
@pytest.mark.parametrize("pasid", [None, 1])
def test_DMA_3_unmap_of_whole_mappings_alone(probe, pasid):
    """Two mappings of two pages, with a hole between them, and one behind."""
    probe.enable_pasid()
    starts = [IOVA, IOVA + 3 * PAGE, IOVA + 16 * PAGE]
    for number, start in enumerate(starts):
        memory, error = map_region(probe, pasid, start, 2 * PAGE)
        assert error == 0
        memory.write(0, bytes([number + 1]) * 8)

    def there():
        return [probe.slots[0].read(start, pasid=pasid) == bytes([number + 1] * 8)
                for number, start in enumerate(starts)]

    for start, size in ((IOVA, PAGE), (IOVA + PAGE, PAGE), (IOVA, 4 * PAGE),
                        (IOVA + PAGE, 4 * PAGE), (IOVA + 2 * PAGE, PAGE),
                        (IOVA + 32 * PAGE, PAGE)):
        assert unmap(probe, pasid, start, size) == errno.ENOENT
        assert there() == [True, True, True]
    assert unmap(probe, pasid, IOVA, 8 * PAGE) == 0
    assert unmap(probe, pasid, starts[0], 2 * PAGE) == errno.ENOENT
    assert unmap(probe, pasid, starts[1], 2 * PAGE) == errno.ENOENT
    assert probe.slots[0].read(starts[2], pasid=pasid) == bytes([3] * 8)


def test_DMA_5_number_of_pasid_spaces(connected_fds, monkeypatch):
    monkeypatch.setenv("VFU_LIMITS", "pasid-spaces=2")
    server = Server(built("test/device", "iommu_probe"), "--pasid", "20", "--ats")
    probe = Probe(server.client({**CAPABILITIES, "iommu": iommu.CAPS}))
    probe.enable_pasid()
    assert [map_region(probe, pasid, IOVA)[1] for pasid in (7, 8, 9)] == [0, 0, errno.ENOSPC]
    assert "pasid-spaces=2" in server.stderr()
    assert map_region(probe, 8, IOVA + PAGE)[1] == 0, "a space that is there takes more"
    assert map_region(probe, None, IOVA)[1] == 0, "the requester space is no PASID's"
    end(server, connected_fds)
