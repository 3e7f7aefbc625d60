# SPDX-License-Identifier: BSD-3-Clause
"""Configuration space through the C interface: set-up, capabilities, and what a guest writes."""

import ctypes
import errno
import struct

import pytest

from vfiouser import wire
from vfiouser.api import abi
from vfiouser.api.abi import (BITS_64, CAP_CALLBACK, CAP_EXTENDED, CAP_READONLY, CONVENTIONAL,
                              EXPRESS, MEM, PCI_X_1, PCI_X_2, PREFETCH, RW)
from vfiouser.api.fixtures import fails
from vfiouser.wire import CONFIG, Cmd

PM, MSI, VNDR, EXP, MSIX = 0x01, 0x05, 0x09, 0x10, 0x11
DSN, VSEC = 0x0003, 0x000B
STATUS, CAP_POINTER = 0x06, 0x34


def cap(cap_id, size):
    """A standard capability, its next pointer garbage and its bytes counting up."""
    return bytes([cap_id, 0xEE]) + bytes(range(2, size))


def vendor(size, fill=0):
    return bytes([VNDR, 0xEE, size]) + bytes([fill] * (size - 3))


def extended(cap_id, size, version=1):
    return struct.pack("<I", cap_id | version << 16 | 0xEEE << 20) + bytes(range(4, size))


def vsec(size, vsec_id=0x123):
    return struct.pack("<II", VSEC | 1 << 16, vsec_id | 1 << 16 | size << 20) + bytes(size - 8)


def find(device, cap_id, is_extended=False, after=None):
    if after is None:
        return device.lib.vfu_pci_find_capability(device.ctx, is_extended, cap_id)
    return device.lib.vfu_pci_find_next_capability(device.ctx, is_extended, after, cap_id)


def write_error(client, offset, data):
    """The errno of a write, or 0."""
    payload = wire.REGION_ACCESS.pack(offset=offset, region=CONFIG, count=len(data)) + data
    return client.error_of(Cmd.REGION_WRITE, payload)


# vfu_pci_init


@pytest.mark.parametrize("kind, size", [(CONVENTIONAL, 256), (PCI_X_1, 256), (PCI_X_2, 4096),
                                        (EXPRESS, 4096)])
def test_init(workshop, device, kind, size):
    assert device.pci_init(kind, revision=7) == 0
    client = workshop.attach(device)
    info, _ = client.region_info(CONFIG)
    assert (info.size, info.flags) == (size, wire.REGION_READ | wire.REGION_WRITE)
    data = client.region_read(CONFIG, 0, size)
    assert data[8] == 0, "the revision is not used"
    assert data[:0x10] == bytes(0x10) and data[0x28:] == bytes(size - 0x28)


@pytest.mark.parametrize("kind, hdr_type", [(4, 0), (-1, 0), (99, 0), (EXPRESS, 1), (EXPRESS, 2),
                                            (EXPRESS, 0x80)])
def test_init_errors(device, kind, hdr_type):
    with fails(errno.EINVAL):
        device.pci_init(kind, hdr_type)
    device.pci_init()
    with fails(errno.EINVAL):
        device.pci_init(kind, hdr_type)


def test_init_twice(device):
    device.pci_init(CONVENTIONAL)
    with fails(errno.EEXIST):
        device.pci_init(CONVENTIONAL)


def test_init_after_realize(device):
    device.realize()
    with fails(errno.EEXIST):
        device.pci_init()


def test_init_overwrites_the_config_region(workshop, device):
    """Size and flags, not the callback."""
    device.memory_region(CONFIG, 0x400, RW | abi.ALWAYS_CB)
    device.pci_init()
    client = workshop.attach(device)
    assert client.region_info(CONFIG)[0].size == 4096
    client.region_read(CONFIG, 0, 4)
    assert not device.events
    client.region_read(CONFIG, 0x80, 4)
    assert device.events


def test_config_region_after_init(workshop, device):
    device.pci_init()
    device.setup_region(CONFIG, 256, None, RW)
    assert workshop.attach(device).region_info(CONFIG)[0].size == 256


# Identity


def test_set_id_and_class(workshop, device, lib):
    device.pci_init()
    lib.vfu_pci_set_id(device.ctx, 0x1B36, 0x0010, 0x1AF4, 0x1100)
    lib.vfu_pci_set_class(device.ctx, 1, 8, 2)
    client = workshop.attach(device)
    assert client.region_read(CONFIG, 0, 4) == struct.pack("<HH", 0x1B36, 0x0010)
    assert client.region_read(CONFIG, 9, 3) == bytes([2, 8, 1])
    assert client.region_read(CONFIG, 0x2C, 4) == struct.pack("<HH", 0x1AF4, 0x1100)


def test_set_id_before_init(device, lib):
    device.setup_log(device.record("log"), 3)
    lib.vfu_pci_set_id(device.ctx, 1, 2, 3, 4)
    lib.vfu_pci_set_class(device.ctx, 1, 2, 3)
    assert len(device.events) == 2, "it says so"
    device.realize()
    assert device.config_int(0, 4) == 0


def test_set_id_after_realize(device, lib):
    device.realize()
    lib.vfu_pci_set_id(device.ctx, 1, 2, 3, 4)
    assert device.config_int(0, 4) == 0x00020001


def test_device_edits_config_space(workshop, device, lib):
    device.pci_init()
    before = lib.vfu_pci_get_config_space(device.ctx)
    device.config[8] = 0x42
    client = workshop.attach(device)
    assert client.read_int(CONFIG, 8, 1) == 0x42
    device.config[0x50] = 0x17
    assert client.read_int(CONFIG, 0x50, 1) == 0x17
    client.close()
    with fails(errno.ENOTCONN):
        device.run()
    assert lib.vfu_pci_get_config_space(device.ctx) == before
    assert device.config[0x50] == 0x17


# BARs


def test_bar_type_bits(device):
    device.pci_init()
    device.setup_region(0, 0x1000, None, RW | MEM | BITS_64 | PREFETCH)
    device.setup_region(2, 0x1000, None, RW | MEM | PREFETCH)
    device.setup_region(3, 0x100, None, RW)
    device.setup_region(4, 0x1000, None, RW | MEM)
    device.setup_log(device.record("log"), 4)
    device.realize()
    bars = [device.config_int(0x10 + 4 * i, 4) for i in range(6)]
    assert bars == [0xC, 0, 8, 1, 0, 1]
    assert any(b"prefetch" in text for _, level, text in device.events if level == 4)


@pytest.mark.parametrize("size, flags, expected", [
    (0x1000, RW | MEM, 0xFFFFF000), (16, RW | MEM, 0xFFFFFFF0), (1 << 31, RW | MEM, 0x80000000),
    (4, RW, 0xFFFFFFFD), (0x100, RW, 0xFFFFFF01), (0x1000, RW | MEM | PREFETCH, 0xFFFFF008)])
def test_bar_sizing(workshop, device, size, flags, expected):
    device.pci_init()
    device.setup_region(2, size, None, flags)
    client = workshop.attach(device)
    kind = client.read_int(CONFIG, 0x18)
    client.write_int(CONFIG, 0x18, 0xFFFFFFFF)
    assert client.read_int(CONFIG, 0x18) == expected
    client.write_int(CONFIG, 0x18, 0xFE00_0000 if size < 1 << 25 else 0x8000_0000)
    assert client.read_int(CONFIG, 0x18) & ~0xF == (0xFE00_0000 if size < 1 << 25 else 0x8000_0000)
    client.write_int(CONFIG, 0x18, 0)
    assert client.read_int(CONFIG, 0x18) == kind


@pytest.mark.parametrize("size, low, high", [(1 << 33, 0xC, 0xFFFFFFFE),
                                             (1 << 32, 0xC, 0xFFFFFFFF),
                                             (0x1000, 0xFFFFF00C, 0xFFFFFFFF)])
def test_64_bit_bar_sizing(workshop, device, size, low, high):
    device.pci_init()
    device.setup_region(0, size, None, RW | MEM | BITS_64 | PREFETCH)
    client = workshop.attach(device)
    client.region_write(CONFIG, 0x10, b"\xFF" * 8)
    assert struct.unpack("<II", client.region_read(CONFIG, 0x10, 8)) == (low, high)


def test_bar_without_region(workshop, device):
    device.pci_init()
    client = workshop.attach(device)
    client.write_int(CONFIG, 0x24, 0xFFFFFFFF)
    assert client.read_int(CONFIG, 0x24) & ~3 == 0


def test_bar_written_in_bytes(workshop, device):
    device.pci_init()
    device.setup_region(0, 0x1000, None, RW | MEM)
    client = workshop.attach(device)
    client.write_int(CONFIG, 0x10, 0x12345000)
    client.write_int(CONFIG, 0x10, 0xFFFF, 2)
    assert client.read_int(CONFIG, 0x10) == 0x1234F000


# The header


@pytest.mark.parametrize("offset, size, mask", [
    (0x00, 4, 0), (0x06, 2, 0), (0x08, 1, 0), (0x09, 3, 0), (0x0C, 1, 0xFF), (0x0D, 1, 0xFF),
    (0x0E, 1, 0), (0x0F, 1, 0), (0x28, 4, 0), (0x2C, 4, 0), (0x30, 4, 0), (0x34, 1, 0),
    (0x3C, 1, 0xFF), (0x3D, 1, 0), (0x3E, 1, 0), (0x3F, 1, 0),
    # the middle of a register, across registers, and what is reserved
    (0x01, 1, 0), (0x05, 1, 0x05), (0x0A, 1, 0), (0x12, 2, 0), (0x35, 1, 0), (0x38, 4, 0),
    (0x0B, 3, 0xFFFF00), (0x3A, 4, 0xFF0000), (0x04, 4, 0x557), (0x00, 8, 0x557 << 32)])
def test_header_registers(workshop, device, offset, size, mask):
    device.pci_init()
    client = workshop.attach(device)
    before = client.read_int(CONFIG, offset, size)
    value = int.from_bytes(b"\xA5" * size, "little")
    assert write_error(client, offset, value.to_bytes(size, "little")) == 0
    assert client.read_int(CONFIG, offset, size) == before & ~mask | value & mask


def test_command_register(workshop, device):
    device.pci_init()
    client = workshop.attach(device)
    for value in (0x0001, 0x0002, 0x0004, 0x0010, 0x0040, 0x0100, 0x0400, 0x0557, 0):
        client.write_int(CONFIG, 4, value, 2)
        assert client.read_int(CONFIG, 4, 2) == value
    client.write_int(CONFIG, 4, 0x0020, 2)
    assert client.read_int(CONFIG, 4, 2) == 0, "VGA palette snooping is dropped"
    for bit in (0x0008, 0x0080, 0x0200, 0x0800, 0x8000):
        assert write_error(client, 4, struct.pack("<H", bit | 2)) == 0
        assert client.read_int(CONFIG, 4, 2) == 2


def test_command_register_written_in_bytes(workshop, device):
    device.pci_init()
    client = workshop.attach(device)
    client.write_int(CONFIG, 4, 0x0506, 2)
    client.write_int(CONFIG, 4, 0x02, 1)
    assert client.read_int(CONFIG, 4, 2) == 0x0502


@pytest.mark.parametrize("size, expected", [(0, 0), (0x800, 0xFFFFF801), (0x1800, 0xFFFFE001)])
def test_rom_register(workshop, device, size, expected):
    """It can be sized and placed as a BAR, if the device has a ROM."""
    device.pci_init()
    device.setup_region(6, size, None, abi.READ)
    client = workshop.attach(device)
    for value in (0xFFFFF800, 0xFFFFFFFE, 0xFFFFFFFF):
        client.write_int(CONFIG, 0x30, value)
        assert client.read_int(CONFIG, 0x30) == expected & value
    client.write_int(CONFIG, 0x30, 0)
    assert client.read_int(CONFIG, 0x30) == 0


def test_write_over_several_registers(workshop, device):
    device.pci_init()
    client = workshop.attach(device)
    client.region_write(CONFIG, 4, struct.pack("<HH", 0x0006, 0xFFFF))
    assert client.region_read(CONFIG, 4, 4) == struct.pack("<HH", 0x0006, 0)
    client.region_write(CONFIG, 0x0C, bytes([0x10, 0x20, 0x30, 0x40]))
    assert client.region_read(CONFIG, 0x0C, 4) == bytes([0x10, 0x20, 0, 0])


# vfu_pci_add_capability: placement


def test_standard_list(workshop, device):
    device.pci_init(CONVENTIONAL)
    assert device.add_capability(cap(PM, 8)) == 0x40
    assert device.add_capability(vendor(5)) == 0x48
    assert device.add_capability(cap(MSI, 24)) == 0x50, "the next double word"
    assert device.add_capability(cap(MSIX, 12)) == 0x68
    assert device.add_capability(cap(EXP, 60)) == 0x74
    client = workshop.attach(device)
    assert client.read_int(CONFIG, STATUS, 2) & 0x10
    at, ids = client.read_int(CONFIG, CAP_POINTER, 1), []
    while at:
        cap_id, following = client.region_read(CONFIG, at, 2)
        ids.append((at, cap_id))
        at = following
    assert ids == [(0x40, PM), (0x48, VNDR), (0x50, MSI), (0x68, MSIX), (0x74, EXP)]
    assert client.region_read(CONFIG, 0x52, 22) == bytes(range(2, 24))


def test_no_capabilities(workshop, device):
    device.pci_init()
    client = workshop.attach(device)
    assert client.read_int(CONFIG, STATUS, 2) == 0
    assert client.read_int(CONFIG, CAP_POINTER, 1) == 0


def test_extended_list(workshop, device):
    device.pci_init()
    assert device.add_capability(extended(DSN, 12, 3), flags=CAP_EXTENDED) == 0x100
    assert device.add_capability(vsec(0x11), flags=CAP_EXTENDED) == 0x10C
    assert device.add_capability(vsec(8), 0x400, CAP_EXTENDED) == 0x400
    client = workshop.attach(device)
    assert client.read_int(CONFIG, 0x100) == DSN | 3 << 16 | 0x10C << 20
    assert client.read_int(CONFIG, 0x10C) == VSEC | 1 << 16 | 0x400 << 20
    assert client.read_int(CONFIG, 0x400) == VSEC | 1 << 16
    assert client.read_int(CONFIG, STATUS, 2) == 0, "of standard ones there are none"


def test_chosen_positions(device):
    device.pci_init()
    assert device.add_capability(cap(PM, 8), 0x80) == 0x80
    assert device.add_capability(vendor(8)) == 0x88, "behind the last of the list"
    assert device.add_capability(vendor(8), 0x40) == 0x40
    assert [find(device, VNDR), find(device, VNDR, after=0x88)] == [0x88, 0x40]


@pytest.mark.parametrize("pos", [1, 0x3F, 0x39])
def test_position_in_the_header(device, pos):
    device.pci_init()
    with fails(errno.EINVAL):
        device.add_capability(cap(PM, 8), pos)


@pytest.mark.parametrize("pos", [0x78, 0x79, 0x80, 0x84, 0x87, 0x88])
def test_position_taken(device, pos):
    """What only touches counts as taken."""
    device.pci_init()
    device.add_capability(cap(PM, 8), 0x80)
    with fails(errno.EINVAL):
        device.add_capability(vendor(8), pos)
    assert device.add_capability(vendor(8), 0x77 - 8) == 0x6F


@pytest.mark.parametrize("pos", [0x40, 0xFF, 0x104, 0x200])
def test_first_extended_capability_elsewhere(device, pos):
    device.pci_init()
    with fails(errno.EINVAL):
        device.add_capability(vsec(16), pos, CAP_EXTENDED)


@pytest.mark.parametrize("kind, pos", [(CONVENTIONAL, 0xF8), (CONVENTIONAL, 0xFF),
                                       (CONVENTIONAL, 0x100), (EXPRESS, 0xF9), (EXPRESS, 0x200),
                                       (EXPRESS, 0x1000), (EXPRESS, (1 << 64) - 4)])
def test_position_beyond_the_end(device, kind, pos):
    device.pci_init(kind)
    with fails(errno.EINVAL):
        device.add_capability(cap(PM, 8), pos)
    assert device.add_capability(cap(PM, 8), 0xF7) == 0xF7


def test_extended_position_beyond_the_end(device):
    device.pci_init()
    device.add_capability(vsec(16), 0, CAP_EXTENDED)
    for pos in (0xFF0, 0xFFC, 0x1000, 0x80):
        with fails(errno.EINVAL):
            device.add_capability(vsec(16), pos, CAP_EXTENDED)
    assert device.add_capability(vsec(16), 0xFEF, CAP_EXTENDED) == 0xFEF


def test_no_room(device):
    device.pci_init(CONVENTIONAL)
    device.add_capability(vendor(0x80))
    device.add_capability(vendor(0x38))
    with fails(errno.ENOSPC):
        device.add_capability(cap(MSIX, 12))
    assert device.add_capability(vendor(7)) == 0xF8


def test_no_room_for_extended(device):
    device.pci_init()
    device.add_capability(vsec(0xE00), flags=CAP_EXTENDED)
    with fails(errno.ENOSPC):
        device.add_capability(vsec(0x104), flags=CAP_EXTENDED)


def test_too_many(device):
    device.pci_init()
    for _ in range(128):
        device.add_capability(vsec(8), flags=CAP_EXTENDED)
    with fails(errno.ENOSPC):
        device.add_capability(vsec(8), flags=CAP_EXTENDED)
    assert device.add_capability(cap(PM, 8)) == 0x40


# vfu_pci_add_capability: errors


@pytest.mark.parametrize("flags", [8, 0x100, -1])
def test_unknown_capability_flags(device, flags):
    device.pci_init()
    with fails(errno.EINVAL):
        device.add_capability(cap(PM, 8), flags=flags)


def test_callback_capability_without_callback(device):
    device.pci_init()
    with fails(errno.EINVAL):
        device.add_capability(cap(PM, 8), flags=CAP_CALLBACK)


@pytest.mark.parametrize("kind", [CONVENTIONAL, PCI_X_1])
def test_no_extended_space(device, kind):
    device.pci_init(kind)
    with fails(errno.EINVAL):
        device.add_capability(vsec(8), flags=CAP_EXTENDED)
    with fails(errno.EINVAL):
        find(device, VSEC, True)


def test_capability_before_init(device):
    with fails(errno.EINVAL):
        device.add_capability(cap(PM, 8))
    with fails(errno.EINVAL):
        find(device, PM)


@pytest.mark.parametrize("cap_id", [0x00, 0x02, 0x03, 0x0D, 0x12, 0x14, 0xFF])
def test_unsupported_capability(device, cap_id):
    device.pci_init()
    with fails(errno.ENOTSUP):
        device.add_capability(cap(cap_id, 64))


@pytest.mark.parametrize("cap_id", [0x0000, 0x0001, 0x0010, 0xFFFF])
def test_unsupported_extended_capability(device, cap_id):
    device.pci_init()
    with fails(errno.ENOTSUP):
        device.add_capability(extended(cap_id, 64), flags=CAP_EXTENDED)


@pytest.mark.parametrize("size", [0, 2])
def test_vendor_capability_shorter_than_its_header(device, size):
    device.pci_init()
    with fails(errno.EINVAL):
        device.add_capability(bytes([VNDR, 0, size, 0]))
    with fails(errno.EINVAL):
        device.add_capability(struct.pack("<II", VSEC, size + 5 << 20), flags=CAP_EXTENDED)


def test_capability_after_realize(workshop, device):
    device.pci_init()
    client = workshop.attach(device)
    assert device.add_capability(vendor(8, 0x11)) == 0x40
    assert client.read_int(CONFIG, CAP_POINTER, 1) == 0x40
    client.write_int(CONFIG, 0x44, 0xCAFE, 2)
    assert client.read_int(CONFIG, 0x44, 2) == 0xCAFE


def test_capability_data_is_copied(device, lib):
    device.pci_init()
    buf = ctypes.create_string_buffer(vendor(8, 0x22), 8)
    lib.vfu_pci_add_capability(device.ctx, 0, 0, buf)
    ctypes.memset(buf, 0xFF, 8)
    assert bytes(device.config[0x43:0x48]) == bytes([0x22] * 5)


# vfu_pci_find_capability, vfu_pci_find_next_capability


def test_find(device):
    device.pci_init()
    for data in (cap(PM, 8), vendor(8), cap(MSI, 24), vendor(12)):
        device.add_capability(data)
    for data in (extended(DSN, 12), vsec(16), vsec(8)):
        device.add_capability(data, flags=CAP_EXTENDED)
    assert find(device, PM) == find(device, PM, after=0) == 0x40
    assert find(device, VNDR) == 0x48
    assert find(device, VNDR, after=0x48) == 0x68
    assert find(device, DSN, True) == find(device, DSN, True, 0) == 0x100
    assert find(device, VSEC, True) == 0x10C
    assert find(device, VSEC, True, 0x10C) == 0x11C
    for cap_id, is_extended, after in ((EXP, False, None), (PM, False, 0x40), (VNDR, False, 0x68),
                                       (0x10, True, None), (DSN, True, 0x100), (VSEC, True, 0x11C)):
        with fails(errno.ENOENT):
            find(device, cap_id, is_extended, after)


def test_find_in_empty_lists(device):
    device.pci_init()
    with fails(errno.ENOENT):
        find(device, PM)
    with fails(errno.ENOENT):
        find(device, DSN, True)


@pytest.mark.parametrize("is_extended, after, error", [
    (False, 0x90, errno.ENOENT), (False, 254, errno.ENOENT), (False, 255, errno.EINVAL),
    (False, 256, errno.EINVAL), (False, 1 << 40, errno.EINVAL), (True, 0x200, errno.ENOENT),
    (True, 4092, errno.ENOENT), (True, 4093, errno.EINVAL), (True, 4095, errno.EINVAL),
    (True, 4096, errno.EINVAL), (True, 8192, errno.EINVAL)])
def test_find_next_from_elsewhere(device, is_extended, after, error):
    device.pci_init()
    device.add_capability(cap(PM, 8))
    with fails(error):
        find(device, PM, is_extended, after)


def test_find_in_a_list_that_the_device_broke(device):
    device.pci_init()
    device.add_capability(cap(PM, 8))
    device.config[0x41] = 0xFF
    with fails(errno.EINVAL):
        find(device, MSI)
    device.config[0x41] = 0x40
    with fails(errno.ENOENT):
        find(device, MSI)


# What a guest writes to capabilities


@pytest.fixture
def capable(workshop, device):
    """At 0x40 PM, 0x48 MSI (mmc 3), 0x60 MSI-X, 0x6C EXP without FLR, 0xA8 VNDR, and extended."""
    device.pci_init()
    device.add_capability(struct.pack("<BBHHBB", PM, 0, 3, 0, 0, 0))
    device.add_capability(struct.pack("<BBHIIHHII", MSI, 0, 0x0186, 0, 0, 0, 0, 0, 0))
    device.add_capability(struct.pack("<BBHII", MSIX, 0, 7, 0, 0x800))
    device.add_capability(bytes([EXP, 0, 2, 0]) + bytes(56))
    device.add_capability(vendor(16))
    device.add_capability(extended(DSN, 12), flags=CAP_EXTENDED)
    device.add_capability(vsec(16), flags=CAP_EXTENDED)
    return workshop.attach(device)


@pytest.mark.parametrize("offset, size, mask", [
    (4, 2, 0x1F03), (4, 1, 0x03), (5, 1, 0x1F), (4, 4, 0x1F03), (2, 4, 0x1F030000), (3, 3, 0x1F0300),
    (2, 2, 0), (6, 1, 0), (7, 1, 0), (3, 1, 0), (0, 1, 0), (1, 1, 0), (0, 4, 0)])
def test_pm(capable, offset, size, mask):
    before = capable.read_int(CONFIG, 0x40 + offset, size)
    value = int.from_bytes(b"\x5A" * size, "little")
    assert write_error(capable, 0x40 + offset, b"\x5A" * size) == 0
    assert capable.read_int(CONFIG, 0x40 + offset, size) == before & ~mask | value & mask


def test_msi(capable):
    capable.write_int(CONFIG, 0x4A, 0x0031, 2)
    assert capable.read_int(CONFIG, 0x4A, 2) == 0x0186 & ~0x70 | 0x31
    capable.region_write(CONFIG, 0x4C, b"\xFF" * 20)
    assert capable.region_read(CONFIG, 0x4C, 20) == (
        b"\xFC" + b"\xFF" * 9 + bytes(2) + b"\xFF" * 4 + bytes(4))
    capable.write_int(CONFIG, 0x4A, 0x0040, 2)
    assert capable.read_int(CONFIG, 0x4A, 2) & 0x71 == 0x30, "not more messages than there are"


def test_msix(capable):
    capable.write_int(CONFIG, 0x62, 0xFFFF, 2)
    assert capable.read_int(CONFIG, 0x62, 2) == 0xC007
    capable.write_int(CONFIG, 0x63, 0x40, 1)
    assert capable.read_int(CONFIG, 0x62, 2) == 0x4007
    capable.region_write(CONFIG, 0x64, b"\xFF" * 8)
    assert capable.region_read(CONFIG, 0x64, 8) == struct.pack("<II", 0, 0x800)


@pytest.mark.parametrize("offset, size, stored", [
    (0x08, 2, 0x5A5A), (0x28, 2, 0x5A5A), (0x30, 2, 0x5A5A), (0x10, 2, 0), (0x18, 2, 0),
    (0x1C, 2, 0), (0x38, 2, 0), (0x0A, 2, 0), (0x08, 4, 0x5A5A), (0x08, 1, 0x5A), (0x04, 4, 0),
    (0x3A, 2, 0)])
def test_express(capable, offset, size, stored):
    assert write_error(capable, 0x6C + offset, b"\x5A" * size) == 0
    assert capable.read_int(CONFIG, 0x6C + offset, 2) == stored


def test_flr_that_the_device_has_not(capable, device):
    """The bit is reserved then."""
    device.setup_reset(device.record("reset"))
    assert write_error(capable, 0x74, b"\x00\x80") == 0
    assert capable.read_int(CONFIG, 0x74, 2) == 0
    assert not device.events


def test_vendor(capable):
    capable.region_write(CONFIG, 0xA8, b"v" * 16)
    assert capable.region_read(CONFIG, 0xA8, 16) == bytes([VNDR, 0, 16]) + b"v" * 13


def test_extended_writes(capable):
    """A serial number is read-only, of vendor-specific registers only the header is."""
    before = capable.region_read(CONFIG, 0x100, 0x14)
    capable.region_write(CONFIG, 0x100, b"v" * 0x1C)
    assert capable.region_read(CONFIG, 0x100, 0x1C) == before + b"v" * 8


def test_readonly(workshop, device):
    device.pci_init()
    device.add_capability(vendor(8), flags=CAP_READONLY)
    client = workshop.attach(device)
    client.region_write(CONFIG, 0x40, b"v" * 8)
    assert client.region_read(CONFIG, 0x40, 8) == bytes([VNDR, 0, 8]) + bytes(5)


def test_callback(workshop, device):
    """Of a capability that the device serves itself: reads and writes, and what comes next."""
    device.pci_init()
    memory = device.memory_region(CONFIG, 4096)
    device.add_capability(vendor(8), flags=CAP_CALLBACK)
    device.add_capability(vendor(8, 0x33))
    client = workshop.attach(device)
    client.region_write(CONFIG, 0x40, b"\1\2\3\4")
    assert memory[0x40:0x44] == b"\1\2\3\4"
    assert client.region_read(CONFIG, 0x40, 16) == b"\1\2\3\4" + bytes(4) + vendor(8, 0x33).replace(
        b"\xEE", b"\0")
    assert device.events == [("region", CONFIG, 0x40, 4, True), ("region", CONFIG, 0x40, 8, False)]


@pytest.mark.parametrize("flags", [CAP_CALLBACK, 0])
def test_callback_errors(workshop, device, flags):
    """Of a capability, and of what lies between."""
    def refuse(*_):
        raise OSError(errno.ENODEV, "")

    device.pci_init()
    device.setup_region(CONFIG, 4096, refuse)
    device.add_capability(vendor(8), flags=flags)
    client = workshop.attach(device)
    at = 0x44 if flags else 0x80
    assert write_error(client, at, b"x") == errno.ENODEV
    if not flags:
        assert write_error(client, 0x44, b"x" * 8) == errno.ENODEV
        assert client.read_int(CONFIG, 0x44, 1) == 0, "never half applied"
    access = wire.REGION_ACCESS.pack(offset=at, region=CONFIG, count=1)
    assert client.error_of(Cmd.REGION_READ, access) == errno.ENODEV


def test_gaps(capable):
    assert capable.region_read(CONFIG, 0xB8, 16) == bytes(16)
    capable.region_write(CONFIG, 0xB8, b"x" * 16)
    assert capable.region_read(CONFIG, 0xB8, 16) == bytes(16)


def test_gaps_with_callback(workshop, device):
    device.pci_init()
    memory = device.memory_region(CONFIG, 4096)
    device.add_capability(vendor(8), 0x50)
    client = workshop.attach(device)
    client.region_write(CONFIG, 0x40, bytes(range(8)))
    assert memory[0x40:0x48] == bytes(range(8))
    device.take_events()
    data = client.region_read(CONFIG, 0x3E, 0x20)
    assert data == bytes(2) + bytes(range(8)) + bytes(8) + bytes([VNDR, 0, 8]) + bytes(5) + bytes(6)
    assert device.events == [("region", CONFIG, 0x40, 16, False),
                             ("region", CONFIG, 0x58, 6, False)]


def test_config_region_larger_than_the_space(workshop, device):
    device.pci_init(CONVENTIONAL)
    device.setup_region(CONFIG, 0x400, None, RW)
    client = workshop.attach(device)
    assert client.region_read(CONFIG, 0xF0, 0x20) == bytes(0x20)
    client.region_write(CONFIG, 0xF0, b"x" * 0x20)
    assert client.region_read(CONFIG, 0xF0, 0x20) == bytes(0x20)
