# SPDX-License-Identifier: BSD-3-Clause
"""vfu_realize_ctx() looks at the whole device: a line for each thing that does not fit together."""

import ctypes
import errno
import fcntl
import os
import struct

import pytest

from vfiouser.api import abi
from vfiouser.api.abi import BITS_64, CAP_EXTENDED, MEM, RW
from vfiouser.api.fixtures import fails
from vfiouser.wire import CONFIG, INTX, MSI, MSIX

PREFIX = "vfu_realize_ctx: "


def msix_cap(vectors, table=(4, 0), pba=(4, 0x800)):
    return struct.pack("<BBHII", 0x11, 0, vectors - 1, table[0] | table[1], pba[0] | pba[1])


def msi_cap(log2_messages):
    return struct.pack("<BBHIIHHII", 0x05, 0, log2_messages << 1 | 0x80, 0, 0, 0, 0, 0, 0)


def access(_buf, count, _offset, _is_write):
    return count


@pytest.fixture
def memfd():
    fd = os.memfd_create("bar", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 0x2000)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    yield fd
    os.close(fd)


def file_region(device, memfd, size=0x2000, areas=None, offset=0):
    device.setup_region(0, size, access, RW | MEM, areas=areas, fd=memfd, offset=offset)


def with_msix(device, cap, count=8, bar5=0, callback=None):
    device.add_capability(cap)
    device.setup_irqs(MSIX, count)
    device.setup_region(4, 0x1000, callback, RW | MEM)
    device.setup_region(5, bar5, callback, RW | MEM)


def overlap(device):
    device.setup_region(1, 0x1000, access, RW | MEM)
    device.setup_region(0, 0, access, RW | MEM | BITS_64)


def extended_alone(device):
    device.add_capability(struct.pack("<IQ", 0x10003, 0), flags=CAP_EXTENDED)


# What is set up, and what a line says of it; None: nothing
FINDINGS = {
    "unserved": (lambda d, _: d.setup_region(0, 0x1000, None), "BAR 0 has neither"),
    "served": (lambda d, _: d.setup_region(0, 0x1000, access), None),
    "a file alone": (lambda d, fd: d.setup_region(0, 0x2000, None, RW | MEM, fd=fd), None),
    "whole file": (file_region, None),
    "short file": (lambda d, fd: file_region(d, fd, 0x4000), "ends beyond the file"),
    "file offset": (lambda d, fd: file_region(d, fd, 0x2000, offset=0x1000), "beyond the file"),
    "far offset": (lambda d, fd: file_region(d, fd, offset=(1 << 64) - 0x1000), "beyond the file"),
    "second area": (lambda d, fd: file_region(d, fd, 0x4000, [(0, 0x1000), (0x3000, 0x1000)]),
                    "the mmap area at 0x3000"),
    "areas": (lambda d, fd: file_region(d, fd, 0x4000, [(0, 0x1000), (0x1000, 0x1000)]), None),
    "length": (lambda d, fd: file_region(d, fd, 0x2000, [(0, 0x800)]), "not of whole pages"),
    "start": (lambda d, fd: file_region(d, fd, 0x2000, [(0x800, 0x1000)]), "not of whole pages"),
    "page offset": (lambda d, fd: file_region(d, fd, 0x1000, offset=0x10), "not of whole pages"),
    "no file": (lambda d, _: file_region(d, 999), "file descriptor 999"),
    "MSI-X": (lambda d, _: with_msix(d, msix_cap(8)), None),
    "two BARs": (lambda d, _: with_msix(d, msix_cap(8, pba=(5, 0)), bar5=0x1000), None),
    "no table": (lambda d, _: with_msix(d, msix_cap(8, table=(3, 0)), callback=access),
                 "its table is in BAR 3"),
    "no such BAR": (lambda d, _: with_msix(d, msix_cap(8, table=(7, 0)), callback=access),
                    "its table is in BAR 7"),
    "no PBA": (lambda d, _: with_msix(d, msix_cap(8, pba=(5, 0))), "array is in BAR 5"),
    "small BAR": (lambda d, _: with_msix(d, msix_cap(2048), 2048), "its table at 0x0, 0x8000"),
    "PBA behind": (lambda d, _: with_msix(d, msix_cap(8, pba=(4, 0x1000))), "array at 0x1000"),
    "vectors": (lambda d, _: with_msix(d, msix_cap(8), 7), "8 vectors, and 7 interrupts"),
    "interrupts": (lambda d, _: with_msix(d, msix_cap(8), 2049), "2049 MSI-X interrupts"),
    "messages": (lambda d, _: (d.add_capability(msi_cap(3)), d.setup_irqs(MSI, 4)),
                 "8 messages, and 4 interrupts"),
    "all messages": (lambda d, _: (d.add_capability(msi_cap(5)), d.setup_irqs(MSI, 32)), None),
    "MSI interrupts": (lambda d, _: (d.add_capability(msi_cap(5)), d.setup_irqs(MSI, 33)),
                       "33 MSI and"),
    "extended": (lambda d, _: extended_alone(d), "no PCI Express capability"),
}


@pytest.mark.parametrize("what", FINDINGS)
def test_finding(device, memfd, what):
    """A device of 0.x must not fail for it."""
    set_up, expected = FINDINGS[what]
    device.pci_init()
    device.setup_log(device.record("log"), 4)
    set_up(device, memfd)
    device.realize()
    lines = [text.decode() for _, level, text in device.events if level <= 4]
    assert len(lines) == (1 if expected else 0), lines
    assert not expected or lines[0].startswith(PREFIX) and expected in lines[0]


def test_several_findings(device):
    device.pci_init()
    device.setup_log(device.record("log"), 4)
    with_msix(device, msix_cap(8, table=(2, 0), pba=(3, 0)), 4)
    extended_alone(device)
    device.realize()
    assert len(device.events) == 5, device.events


def test_overlapping_pair_is_refused(device):
    """It is the upper half of an address and a BAR of its own."""
    device.pci_init()
    device.setup_log(device.record("log"), 3)
    overlap(device)
    for _ in range(2):
        with fails(errno.EINVAL):
            device.realize()
    assert all(b"takes BAR 1" in text for *_, text in device.events)
    device.setup_region(1, 0)
    device.realize()


def test_spdk_set_up(workshop, device, memfd):
    """As SPDK sets up an NVMe controller: nothing to say."""
    device.setup_log(device.record("log"), 4)
    device.pci_init()
    device.add_capability(struct.pack("<BBHHBB", 1, 0, 3, 8, 0, 0))
    device.add_capability(bytes([0x10, 0, 2, 0]) + struct.pack("<I", 1 << 28 | 1 << 15) + bytes(52))
    device.setup_region(CONFIG, 4096, access, RW)
    device.setup_region(0, 0x2000, access, RW | MEM, areas=[(0x1000, 0x1000)], fd=memfd)
    with_msix(device, msix_cap(256, pba=(5, 0)), 256, bar5=0x1000)
    device.setup_irqs(INTX, 1)
    workshop.attach(device)
    assert not device.events


def test_qemu_server_set_up(workshop, device):
    """QEMU's own server: everything by callbacks, BARs without MEM, a ROM; nothing to say."""
    device.setup_log(device.record("log"), 4)
    device.pci_init(abi.CONVENTIONAL)
    device.setup_region(CONFIG, 256, access, RW | abi.ALWAYS_CB)
    for bar in (0, 2, 4):
        device.setup_region(bar, 0x1000, access, RW)
    device.setup_region(6, 0x1000, access, abi.READ)
    device.setup_irqs(INTX, 1)
    device.setup_irqs(MSIX, 2048)
    workshop.attach(device)
    assert not device.events


@pytest.mark.parametrize("reset", [False, True])
def test_iommu_without_express(workshop, device, reset):
    """A guest finds the extended capabilities only beside an Express capability: it gets one."""
    device.pci_init()
    device.setup_log(device.record("log"), 4)
    device.setup_dma(8)
    config = abi.IommuConfig(size=ctypes.sizeof(abi.IommuConfig), ats=True, pasid_bits=8)
    device.lib.vfu_setup_device_iommu(device.ctx, config)
    if reset:
        device.setup_reset(lambda _type: None)
    client = workshop.attach(device)
    at = device.lib.vfu_pci_find_capability(device.ctx, False, 0x10)
    assert client.read_int(CONFIG, 0x34, 1) == at and client.read_int(CONFIG, 6, 2) & 0x10
    assert client.read_int(CONFIG, at + 2, 2) == 0x92, "an integrated endpoint, version 2"
    assert client.read_int(CONFIG, at + 4) >> 28 & 1 == reset
    assert len(device.events) == 1 and b"added one" in device.events[0][2]
