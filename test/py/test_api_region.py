# SPDX-License-Identifier: BSD-3-Clause
"""Regions and ioeventfds through the C interface: what is accepted, and what clients see of it."""

import ctypes
import errno
import os

import pytest

from vfiouser import wire
from vfiouser.api import abi
from vfiouser.api.abi import ALWAYS_CB, BITS_64, MEM, PREFETCH, READ, RW, WRITE
from vfiouser.api.fixtures import fails
from vfiouser.client import CAPABILITIES
from vfiouser.wire import BAR0, CONFIG, ROM, VGA, Cmd

BAR1, BAR2, BAR3 = 1, 2, 3
NO_FD = 0xFFFFFFFF


@pytest.fixture
def memfd():
    fd = os.memfd_create("region")
    os.ftruncate(fd, 0x10000)
    yield fd
    os.close(fd)


def zeros(_buf, count, _offset, _is_write):
    return count


def raising(error):
    def access(*_):
        raise OSError(error, "")
    return access


# vfu_setup_region


@pytest.mark.parametrize("flags", [0, MEM, ALWAYS_CB | MEM, 0x40 | RW, 1 << 30 | RW, -1])
def test_flags(device, flags):
    with fails(errno.EINVAL):
        device.setup_region(BAR0, 0x1000, zeros, flags)


@pytest.mark.parametrize("flags", [READ, WRITE, RW, RW | MEM, RW | ALWAYS_CB,
                                   RW | MEM | BITS_64 | PREFETCH])
def test_good_flags(device, flags):
    assert device.setup_region(BAR0, 0x1000, zeros, flags) == 0


def test_always_cb_without_callback(device):
    for index in (CONFIG, BAR0):
        with fails(errno.EINVAL):
            device.setup_region(index, 0x1000, None, RW | ALWAYS_CB)


def test_areas_and_their_number(device, memfd):
    with fails(errno.EINVAL):
        device.setup_region(BAR2, areas=[(0, 0x1000)], nr_areas=0, fd=memfd)
    with fails(errno.EINVAL):
        device.setup_region(BAR2, areas=None, nr_areas=1, fd=memfd)
    with fails(errno.EINVAL):
        device.setup_region(BAR2, areas=[(0, 0x1000)], fd=-1)
    assert device.setup_region(BAR2, areas=[(0, 0x1000)], fd=memfd) == 0


@pytest.mark.parametrize("index", [-1, 9, 1 << 20, -(1 << 31)])
def test_no_such_region(device, index):
    with fails(errno.EINVAL):
        device.setup_region(index)


@pytest.mark.parametrize("flags, size", [
    (RW | MEM, 8), (RW | MEM, 15), (RW | MEM, 17), (RW | MEM, 0x1800), (RW | MEM, 3 << 30),
    (RW, 1), (RW, 2), (RW, 3), (RW, 5), (RW, 0x1001), (RW | MEM, (1 << 64) - 1)])
def test_bar_sizes(device, flags, size):
    for index in range(6):
        with fails(errno.EINVAL):
            device.setup_region(index, size, None, flags)


@pytest.mark.parametrize("flags, size", [(RW | MEM, 16), (RW | MEM, 1 << 40), (RW, 4), (RW, 0),
                                         (RW | MEM, 0), (RW | MEM | BITS_64, 0)])
def test_good_bar_sizes(device, flags, size):
    assert device.setup_region(BAR2, size, None, flags) == 0


@pytest.mark.parametrize("index", [ROM, VGA])
def test_sizes_of_other_regions_are_free(device, index):
    assert device.setup_region(index, 12345) == 0


def test_64_bit_pairs(device):
    for odd in (1, 3, 5):
        with fails(errno.EINVAL):
            device.setup_region(odd, 0x1000, None, RW | MEM | BITS_64)
    device.setup_region(BAR0, 0x1000, None, RW | MEM | BITS_64)
    with fails(errno.EINVAL):
        device.setup_region(BAR1, 0x1000, None, RW | MEM)
    assert device.setup_region(BAR1, 0, None, RW) == 0, "size 0 takes nothing"
    device.setup_region(BAR3, 0x1000, None, RW | MEM)
    with fails(errno.EINVAL):
        device.setup_region(BAR2, 0x1000, None, RW | MEM | BITS_64)


@pytest.mark.parametrize("flags", [READ, WRITE, RW | MEM, READ | MEM])
def test_config_region_flags(device, flags):
    with fails(errno.EINVAL):
        device.setup_region(CONFIG, 256, zeros, flags)


@pytest.mark.parametrize("area", [(0, 0x2001), (0x1000, 0x1001), (0x2000, 1), (0x3000, 0),
                                  ((1 << 64) - 1, 2), ((1 << 64) - 0x1000, 0x2000)])
def test_area_beyond_the_region(device, memfd, area):
    with fails(errno.EINVAL):
        device.setup_region(VGA, 0x2000, areas=[(0, 0x1000), area], fd=memfd)


def test_too_many_areas(device, memfd):
    assert device.setup_region(BAR2, areas=[(0, 0x10)] * 4096, fd=memfd) == 0
    with fails(errno.EINVAL):
        device.setup_region(BAR2, areas=[(0, 0x10)] * 4097, fd=memfd)


def test_failure_leaves_the_region_alone(workshop, device):
    memory = device.memory_region(BAR2, 0x100)
    with fails(errno.EINVAL):
        device.setup_region(BAR2, 0x101)
    client = workshop.attach(device)
    assert client.region_info(BAR2)[0].size == 0x100
    client.region_write(BAR2, 0xFC, b"last")
    assert memory[0xFC:] == b"last"


# What clients see


def test_info_of_a_region_without_descriptor(workshop, device):
    device.setup_region(ROM, 0x3000, None, READ)
    device.setup_region(BAR2, 0x1000, None, WRITE)
    client = workshop.attach(device)
    info, reply = client.region_info(ROM, argsz=4096)
    assert (info.argsz, info.flags, info.size, info.offset) == (32, wire.REGION_READ, 0x3000, 0)
    assert not reply.fds
    assert client.region_info(BAR2)[0].flags == wire.REGION_WRITE
    info, _ = client.region_info(VGA)
    assert (info.flags, info.size) == (0, 0), "not set up"


def take_fd(reply, memfd):
    """The one descriptor of a reply must be the file."""
    fd, = reply.fds
    assert os.fstat(fd).st_ino == os.fstat(memfd).st_ino
    os.close(fd)


def sparse_areas(reply):
    data = reply.payload[wire.REGION_INFO.size:]
    cap = wire.SPARSE_MMAP.unpack(data)
    assert (cap.id, cap.version, cap.next, cap.reserved) == (wire.CAP_SPARSE_MMAP, 1, 0, 0)
    areas = wire.SPARSE_AREA.unpack_array(data[wire.SPARSE_MMAP.size:], cap.nr_areas)
    assert len(data) == wire.SPARSE_MMAP.size + cap.nr_areas * wire.SPARSE_AREA.size
    return [(area.offset, area.size) for area in areas]


def test_sparse_areas(workshop, device, memfd):
    areas = [(0, 0x1000), (0x2000, 0x800), (0x3800, 0x800)]
    device.setup_region(BAR2, 0x4000, None, RW | MEM, areas, fd=memfd, offset=0x8000)
    client = workshop.attach(device)
    full = 32 + 16 + 3 * 16
    # Too little room: the size that is needed, and neither capability nor descriptor.
    for argsz in (32, 40, full - 1):
        info, reply = client.region_info(BAR2, argsz)
        assert (info.argsz, info.cap_offset) == (full, 0)
        assert info.flags == wire.REGION_READ | wire.REGION_WRITE | wire.REGION_MMAP
        assert len(reply.payload) == argsz and not reply.fds
    info, reply = client.region_info(BAR2, full)
    assert info.flags & wire.REGION_CAPS and info.cap_offset == 32
    assert (info.size, info.offset) == (0x4000, 0x8000)
    assert sparse_areas(reply) == areas
    take_fd(reply, memfd)


def test_whole_region_is_one_area(workshop, device, memfd):
    device.setup_region(BAR2, 0x4000, fd=memfd)
    client = workshop.attach(device)
    _, reply = client.region_info(BAR2, 4096)
    assert sparse_areas(reply) == [(0, 0x4000)]
    take_fd(reply, memfd)


def test_areas_are_copied_and_replaced(workshop, device, memfd):
    areas = (abi.Iovec * 1)(abi.Iovec(0x1000, 0x1000))
    device.lib.vfu_setup_region(device.ctx, BAR2, 0x4000, abi.NULL[abi.REGION_ACCESS], RW, areas, 1,
                                memfd, 0)
    areas[0].iov_len = 7
    client = workshop.attach(device)
    _, reply = client.region_info(BAR2, 4096)
    assert sparse_areas(reply) == [(0x1000, 0x1000)]
    take_fd(reply, memfd)
    device.setup_region(BAR2, 0x4000)
    info, reply = client.region_info(BAR2, 4096)
    assert info.flags == wire.REGION_READ | wire.REGION_WRITE
    assert len(reply.payload) == 32 and not reply.fds, "the old areas are still there"


def test_empty_region_with_descriptor(workshop, device, memfd):
    device.setup_region(BAR2, 0, fd=memfd)
    info, reply = workshop.attach(device).region_info(BAR2, 4096)
    assert info.flags == wire.REGION_READ | wire.REGION_WRITE | wire.REGION_MMAP
    assert not reply.fds


# Access callbacks


@pytest.mark.parametrize("count", [1, 2, 3, 8, 0x1000, 0x10000])
def test_access_arrives_whole(workshop, device, count):
    memory = device.memory_region(BAR2, 0x20000)
    client = workshop.attach(device)
    data = os.urandom(count)
    client.region_write(BAR2, 0x1235, data)
    assert memory[0x1235:0x1235 + count] == data
    assert client.region_read(BAR2, 0x1235, count) == data
    assert device.events == [("region", BAR2, 0x1235, count, write) for write in (True, False)]


def test_flags_are_enforced(workshop, device):
    """The callback is not asked for what the region does not allow."""
    device.memory_region(BAR2, 0x100, flags=READ)
    device.memory_region(BAR3, 0x100, flags=WRITE)
    client = workshop.attach(device, {**CAPABILITIES, "write_multiple": True})
    access = wire.REGION_ACCESS.pack(region=BAR2, count=1)
    assert client.error_of(Cmd.REGION_WRITE, access + b"x") == errno.EINVAL
    entry = wire.WRITE_MULTI_ENTRY.pack(offset=0, region=BAR2, count=1, data=b"x")
    multi = wire.WRITE_MULTI.pack(wr_cnt=1) + entry
    assert client.error_of(Cmd.REGION_WRITE_MULTI, multi) == errno.EINVAL
    access = wire.REGION_ACCESS.pack(region=BAR3, count=1)
    assert client.error_of(Cmd.REGION_READ, access) == errno.EINVAL
    assert not device.events
    client.region_read(BAR2, 0, 1)
    client.region_write(BAR3, 0, b"x")
    assert len(device.events) == 2


@pytest.mark.parametrize("result, error", [
    (0, errno.EINVAL), (3, errno.EINVAL), (5, errno.EINVAL), (1 << 40, errno.EINVAL)])
def test_wrong_results(workshop, device, result, error):
    device.setup_region(BAR2, 0x100, lambda *_: result)
    client = workshop.attach(device)
    access = wire.REGION_ACCESS.pack(region=BAR2, count=4)
    assert client.error_of(Cmd.REGION_READ, access) == error
    assert client.error_of(Cmd.REGION_WRITE, access + bytes(4)) == error
    client.device_info()


@pytest.mark.parametrize("error", [errno.EPERM, errno.EIO, errno.ENOSPC, 4095])
def test_error_of_the_callback(workshop, device, error):
    device.setup_region(BAR2, 0x100, raising(error))
    client = workshop.attach(device)
    access = wire.REGION_ACCESS.pack(region=BAR2, count=4)
    assert client.error_of(Cmd.REGION_READ, access) == error
    assert client.error_of(Cmd.REGION_WRITE, access + bytes(4)) == error


def test_error_among_several_writes(workshop, device):
    """Those before the one that fails are done, those behind it are not."""
    def access(_buf, count, offset, _is_write):
        device.events.append(offset)
        if offset == 8:
            raise OSError(errno.EDOM, "")
        return count

    device.setup_region(BAR2, 0x100, access)
    client = workshop.attach(device, {**CAPABILITIES, "write_multiple": True})
    assert client.capabilities["write_multiple"]
    entries = [wire.WRITE_MULTI_ENTRY.pack(offset=offset, region=BAR2, count=4, data=b"data")
               for offset in (0, 8, 16)]
    payload = wire.WRITE_MULTI.pack(wr_cnt=3) + b"".join(entries)
    assert client.error_of(Cmd.REGION_WRITE_MULTI, payload) == errno.EDOM
    assert device.events == [0, 8]


def test_error_without_errno(workshop, device):
    def forgetful(*_):
        ctypes.set_errno(0)
        return -1

    device.setup_region(BAR2, 0x100, forgetful)
    client = workshop.attach(device)
    access = wire.REGION_ACCESS.pack(region=BAR2, count=4)
    assert client.error_of(Cmd.REGION_READ, access) == errno.EIO


def test_what_the_callback_leaves_out_reads_zero(workshop, device):
    device.memory_region(BAR2, 0x1000)[:] = b"\xAA" * 0x1000
    device.setup_region(BAR3, 0x1000, zeros)
    client = workshop.attach(device)
    client.region_read(BAR2, 0, 0x1000)
    assert client.region_read(BAR3, 0, 0x1000) == bytes(0x1000)


def test_no_callback(workshop, device):
    device.setup_region(BAR2, 0x1000)
    client = workshop.attach(device)
    access = wire.REGION_ACCESS.pack(region=BAR2, count=4)
    assert client.error_of(Cmd.REGION_READ, access) == errno.EINVAL
    assert client.error_of(Cmd.REGION_WRITE, access + bytes(4)) == errno.EINVAL


@pytest.mark.parametrize("region, offset, count", [
    (BAR2, 0x100, 1), (BAR2, 0xFD, 4), (BAR2, (1 << 64) - 1, 1), (BAR2, (1 << 64) - 4, 8),
    (9, 0, 4), (0xFFFFFFFF, 0, 4), (VGA, 0, 1), (BAR2, 0, (1 << 20) + 1), (BAR2, 0, 0xFFFFFFFF)])
def test_out_of_bounds(workshop, device, region, offset, count):
    device.memory_region(BAR2, 0x100)
    client = workshop.attach(device)
    access = wire.REGION_ACCESS.pack(region=region, offset=offset, count=count)
    assert client.error_of(Cmd.REGION_READ, access) == errno.EINVAL
    assert client.error_of(Cmd.REGION_WRITE, access + bytes(min(count, 8))) == errno.EINVAL
    assert not device.events


def test_empty_access(workshop, device):
    device.memory_region(BAR2, 0x100)
    client = workshop.attach(device)
    for offset in (0, 0x100):
        access = wire.REGION_ACCESS.pack(region=BAR2, offset=offset)
        assert client.request(Cmd.REGION_READ, access).payload == b""
        assert client.request(Cmd.REGION_WRITE, access).payload == b""
    assert client.error_of(Cmd.REGION_READ, wire.REGION_ACCESS.pack(region=BAR2, offset=0x101)) \
        == errno.EINVAL
    assert not device.events


def test_write_of_another_length(workshop, device):
    device.memory_region(BAR2, 0x100)
    client = workshop.attach(device)
    access = wire.REGION_ACCESS.pack(region=BAR2, count=4)
    for length in (0, 3, 5):
        assert client.error_of(Cmd.REGION_WRITE, access + bytes(length)) == errno.EINVAL
    assert not device.events


def test_mapped_region_can_be_accessed_by_message(workshop, device, memfd):
    device.memory_region(BAR2, 0x1000, fd=memfd)[4:8] = b"both"
    assert workshop.attach(device).region_read(BAR2, 4, 4) == b"both"


@pytest.mark.parametrize("offset, count", [(0, 4), (3, 2), (0x3C, 8), (0xFF, 1), (0, 256)])
def test_config_always_cb(workshop, device, offset, count):
    """Everything is the callback's, header and capabilities too, and whole."""
    device.pci_init(abi.CONVENTIONAL)
    device.add_capability(bytes([1]) + bytes(7))
    memory = device.memory_region(CONFIG, 256, RW | ALWAYS_CB)
    client = workshop.attach(device)
    data = os.urandom(count)
    client.region_write(CONFIG, offset, data)
    assert memory[offset:offset + count] == data
    assert client.region_read(CONFIG, offset, count) == data
    assert len(device.events) == 2


def test_callback_may_set_up_another_region(workshop, device):
    """A device that switches modes."""
    def switch(_buf, count, _offset, is_write):
        if is_write:
            device.memory_region(BAR3, 0x20)
        return count

    device.setup_region(BAR2, 0x10, switch)
    client = workshop.attach(device)
    assert client.region_info(BAR3)[0].size == 0
    client.region_write(BAR2, 0, b"go")
    assert client.region_info(BAR3)[0].size == 0x20


# vfu_create_ioeventfd, GET_REGION_IO_FDS


def io_fds(client, region, argsz=0x10000, **fields):
    payload = wire.REGION_IO_FDS.pack(argsz=argsz, index=region, **fields)
    reply = client.request(Cmd.DEVICE_GET_REGION_IO_FDS, payload)
    head = wire.REGION_IO_FDS.unpack(reply.payload)
    assert (head.flags, head.index) == (0, region)
    present = (len(reply.payload) - wire.REGION_IO_FDS.size) // wire.IOEVENTFD.size
    records = wire.IOEVENTFD.unpack_array(reply.payload[wire.REGION_IO_FDS.size:], present)
    return head, records, reply.fds


@pytest.fixture
def events():
    fds = [os.eventfd(0) for _ in range(4)]
    yield fds
    for fd in fds:
        os.close(fd)


def is_same(received, fd):
    """An eventfd has no identity that stat shows: signal one, and look at the other."""
    os.eventfd_write(fd, 1)
    return os.eventfd_read(received) == 1


def close_all(fds):
    for fd in fds:
        os.close(fd)


def test_ioeventfds_newest_first(workshop, device, events):
    device.setup_region(BAR2, 0x1000)
    device.add_ioeventfd(BAR2, events[0], 0x10, 4, 3, 0xABCDEF0123456789)
    client = workshop.attach(device)
    device.add_ioeventfd(BAR2, events[1], 0x20, 8)
    device.add_ioeventfd(BAR2, events[0], 0xFFC, 4)
    head, records, fds = io_fds(client, BAR2)
    assert (head.argsz, head.count) == (16 + 3 * 48, 3)
    assert [record.gpa_offset for record in records] == [0xFFC, 0x20, 0x10]
    assert [record.size for record in records] == [4, 8, 4]
    assert [record.fd_index for record in records] == [0, 1, 0], "each descriptor once"
    assert (records[2].flags, records[2].datamatch) == (3, 0xABCDEF0123456789)
    assert all(record.type == 0 and record.shadow_mem_fd_index == 0 for record in records)
    assert len(fds) == 2 and is_same(fds[0], events[0]) and is_same(fds[1], events[1])
    close_all(fds)


def test_ioeventfd_without_descriptor(workshop, device, events):
    device.setup_region(BAR2, 0x1000)
    device.add_ioeventfd(BAR2, events[0])
    device.add_ioeventfd(BAR2, -1)
    _, records, fds = io_fds(workshop.attach(device), BAR2)
    assert [record.fd_index for record in records] == [NO_FD, 0]
    assert len(fds) == 1
    close_all(fds)


def test_ioeventfd_shadow(workshop, device, events, memfd):
    device.setup_region(BAR2, 0x1000)
    device.add_ioeventfd(BAR2, events[0], shadow_fd=memfd, shadow_offset=0x40)
    device.add_ioeventfd(BAR2, events[1])
    device.add_ioeventfd(BAR2, events[2], shadow_fd=memfd, shadow_offset=0x80)
    _, records, fds = io_fds(workshop.attach(device), BAR2)
    assert [record.type for record in records] == [2, 0, 2]
    assert [(r.fd_index, r.shadow_mem_fd_index) for r in records] == [(0, 1), (2, 0), (3, 1)]
    assert [record.shadow_offset for record in records] == [0x80, 0, 0x40]
    assert os.fstat(fds[1]).st_ino == os.fstat(memfd).st_ino
    close_all(fds)


@pytest.mark.parametrize("region, offset, size", [
    (9, 0, 4), (0xFFFFFFFF, 0, 4), (BAR2, 0xFFD, 4), (BAR2, 0x1000, 1), (BAR2, (1 << 64) - 1, 4),
    (BAR2, 0, 0x1001), (VGA, 0, 1)])
def test_ioeventfd_errors(device, events, region, offset, size):
    device.setup_region(BAR2, 0x1000)
    with fails(errno.EINVAL):
        device.add_ioeventfd(region, events[0], offset, size)


def test_io_fds_of_a_region_without_any(workshop, device):
    device.setup_region(BAR2, 0x1000)
    head, records, fds = io_fds(workshop.attach(device), BAR2, argsz=16)
    assert (head.argsz, head.count, records, fds) == (16, 0, [], [])


def test_io_fds_need_room_for_all(workshop, device, events):
    device.setup_region(BAR2, 0x1000)
    for event in events[:2]:
        device.add_ioeventfd(BAR2, event)
    client = workshop.attach(device)
    for argsz in (16, 16 + 48, 16 + 2 * 48 - 1):
        head, records, fds = io_fds(client, BAR2, argsz)
        assert (head.argsz, head.count, records, fds) == (16 + 2 * 48, 2, [], [])
    _, records, fds = io_fds(client, BAR2, 16 + 2 * 48)
    assert len(records) == len(fds) == 2
    close_all(fds)


@pytest.mark.parametrize("request_fields", [
    {"argsz": 15}, {"argsz": (1 << 20) + 1}, {"flags": 1}, {"count": 1}, {"index": 9},
    {"index": 0xFFFFFFFF}, {"index": VGA}])
def test_io_fds_errors(workshop, device, request_fields):
    device.setup_region(BAR2, 0x1000)
    client = workshop.attach(device)
    payload = wire.REGION_IO_FDS.pack(**{"argsz": 16, "index": BAR2, **request_fields})
    assert client.error_of(Cmd.DEVICE_GET_REGION_IO_FDS, payload) == errno.EINVAL
    assert client.error_of(Cmd.DEVICE_GET_REGION_IO_FDS, payload[:15]) == errno.EINVAL


def test_more_descriptors_than_a_message_carries(workshop, device):
    device.setup_region(BAR2, 0x1000)
    fds = [os.eventfd(0) for _ in range(260)]
    for number, fd in enumerate(fds):
        device.add_ioeventfd(BAR2, fd, 4 * number)
    client = workshop.attach(device)
    payload = wire.REGION_IO_FDS.pack(argsz=0x10000, index=BAR2)
    assert client.error_of(Cmd.DEVICE_GET_REGION_IO_FDS, payload) == errno.EINVAL
    client.device_info()
    close_all(fds)
