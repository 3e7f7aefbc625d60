# SPDX-License-Identifier: BSD-3-Clause
"""The registers of ATS, PRI and PASID as a guest writes them: rules CFG of docs/vfio-user-iommu.rst."""

import errno

import pytest

from vfiouser import software_iommu as iommu
from vfiouser import wire
from vfiouser.probe import READ
from vfiouser.software_iommu import PAGE
from vfiouser.wire import Cmd

IOVA = 0x100000
ATS_CAP, ATS_CONTROL = 4, 6
PRI_CONTROL, PRI_STATUS, PRI_CAPACITY, PRI_ALLOCATION = 4, 6, 8, 12
PASID_CAP, PASID_CONTROL = 4, 6
STU, ATS_ENABLE = 0x1F, 0x8000
RESPONSE_FAILURE, STOPPED = 0x1, 0x100


@pytest.mark.parametrize("cap, offset, size, value, changed", [
    (iommu.ATS, 0, 4, 0xFFFFFFFF, 0),
    (iommu.ATS, ATS_CAP, 2, 0xFFFF, 0),
    (iommu.ATS, ATS_CAP, 4, 0x0003FFFF, 0x00030000),
    (iommu.ATS, ATS_CONTROL, 2, 0x7FFF, STU),
    (iommu.ATS, ATS_CONTROL, 1, 0xFF, STU),
    (iommu.ATS, ATS_CONTROL + 1, 1, 0x80, 0x80),
    (iommu.PASID, PASID_CAP, 2, 0xFFFF, 0),
    (iommu.PASID, PASID_CONTROL, 2, 0xFFFF, 7),
    (iommu.PRI, PRI_CAPACITY, 4, 0xFFFFFFFF, 0),
    (iommu.PRI, PRI_ALLOCATION, 4, 0x12345678, 0x12345678),
    (iommu.PRI, PRI_ALLOCATION + 1, 2, 0x1234, 0x1234),
    (iommu.PRI, PRI_CONTROL, 2, 0xFFFC, 0),
])
def test_CFG_1_only_what_is_writable_and_written(probe, cap, offset, size, value, changed):
    """A driver writes all ones over read-only bits; the write succeeds and they stay."""
    start = probe.find(cap)
    before = probe.client.region_read(wire.CONFIG, start, 16)
    written = probe.register(cap, offset, size=size) | changed
    probe.register(cap, offset, value, size)
    after = bytearray(before)
    after[offset:offset + size] = written.to_bytes(size, "little")
    assert probe.client.region_read(wire.CONFIG, start, 16) == bytes(after)


def test_CFG_1_write_1_to_clear(iommu_on):
    iommu_on.iommu.on_fault = lambda *fault: 15
    assert iommu_on.slots[0].read(IOVA, pasid=1) == errno.EIO
    assert iommu_on.pri_status() & RESPONSE_FAILURE
    for offset, size, value in ((PRI_STATUS, 2, 0xFFFE), (PRI_STATUS, 2, 0),
                                (PRI_STATUS + 1, 1, 0xFF), (PRI_CONTROL, 2, 1)):
        iommu_on.register(iommu.PRI, offset, value, size)
        assert iommu_on.pri_status() & RESPONSE_FAILURE, (offset, value)
    iommu_on.register(iommu.PRI, PRI_STATUS, RESPONSE_FAILURE, 1)
    assert not iommu_on.pri_status() & RESPONSE_FAILURE


@pytest.mark.probe_args("--pasid", "20", "--ats")
@pytest.mark.parametrize("stu, unit", [(0, PAGE), (1, 2 * PAGE), (4, 16 * PAGE)])
def test_CFG_2_enabling_sets_the_unit(probe, stu, unit):
    probe.iommu.register_memory()
    probe.enable_pasid()
    probe.iommu.fill(3, 3)
    probe.iommu.table(1).map(IOVA, probe.iommu.frame(0), 16 * PAGE)
    probe.register(iommu.ATS, ATS_CONTROL, ATS_ENABLE | stu)
    assert probe.stats().entries == 0
    assert probe.slots[0].read(IOVA + 3 * PAGE, pasid=1) == bytes([3] * 8)
    _, asked = probe.iommu.translations[-1]
    assert (asked.address, asked.length) == (IOVA + 3 * PAGE & ~(unit - 1), unit)


@pytest.mark.probe_args("--pasid", "20", "--ats")
def test_CFG_2_disabling_ends_what_is_pending(probe):
    probe.iommu.register_memory()
    probe.enable_pasid()
    probe.enable_ats()
    probe.iommu.fill(3, 3)
    probe.iommu.table(1).map(IOVA, probe.iommu.frame(3))
    assert probe.slots[0].read(IOVA, pasid=1) == bytes([3] * 8)
    assert probe.stats().entries == 1
    held = []
    probe.client.handlers[Cmd.ATS_TRANSLATE] = held.append
    probe.slots[1].start(READ, IOVA, 8, pasid=2)
    while not held:
        probe.client.pump()
    probe.enable_ats(False)
    assert probe.slots[1].wait().error == errno.ECANCELED
    assert probe.stats().entries == 0
    probe.iommu.translate(held[0])
    probe.enable_ats()
    assert probe.stats().entries == 0, "the late reply is dropped"
