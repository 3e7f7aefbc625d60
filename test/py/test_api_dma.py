# SPDX-License-Identifier: BSD-3-Clause
"""Guest memory through the C interface: what is mapped, scatter lists, the bytes behind them."""

import ctypes
import errno
import os
import resource
import socket
import threading

import pytest

from vfiouser import wire
from vfiouser.api import abi
from vfiouser.api.abi import DIRECT, PROT_READ, PROT_WRITE
from vfiouser.api.fixtures import fails
from vfiouser.api.peer import TWIN
from vfiouser.client import CAPABILITIES
from vfiouser.memory import Slot
from vfiouser.wire import (BAR0, CONFIG, MAP_FILE_IO, MAP_MMAP, MAP_READ, MAP_RW, MAP_WRITE,
                           Cmd)

PAGE = resource.getpagesize()
TIB = 1 << 40
BASE = 0x100000


class Memory:
    """A device that notes what the DMA callbacks were told; infos are copies."""

    def __init__(self, workshop, max_regions=64, capabilities=None):
        self.device = device = workshop.device()
        self.infos = []
        device.setup_dma(max_regions, self._register, self._unregister)
        device.setup_reset(device.record("reset"))
        self.client = workshop.attach(device, capabilities)
        self.lib, self.ctx = device.lib, device.ctx

    def _register(self, info):
        self.infos.append(info)
        self.device.events.append(("map", info.iova.iov_base, info.iova.iov_len))

    def _unregister(self, info):
        self.device.events.append(("unmap", info.iova.iov_base, info.iova.iov_len))


@pytest.fixture
def dma(workshop):
    return Memory(workshop)


def map_error(client, flags=MAP_RW, addr=BASE, size=PAGE, offset=0, fds=(), argsz=32):
    payload = wire.DMA_MAP.pack(argsz=argsz, flags=flags, addr=addr, size=size, offset=offset)
    return client.error_of(Cmd.DMA_MAP, payload, fds)


def unmap_error(client, addr=BASE, size=PAGE, flags=0, argsz=24):
    payload = wire.DMA_UNMAP.pack(argsz=argsz, flags=flags, addr=addr, size=size)
    return client.error_of(Cmd.DMA_UNMAP, payload)


# vfu_setup_device_dma


def test_without_dma(workshop, device, lib):
    client = workshop.attach(device)
    fd = os.memfd_create("unwanted")
    assert map_error(client, fds=[fd]) == 0
    assert unmap_error(client) == 0, "maps and unmaps have no effect"
    os.close(fd)
    sg, buf = (abi.Sg * 1)(), ctypes.create_string_buffer(8)
    with fails(errno.EINVAL):
        device.sgl(BASE, 1)
    with fails(errno.EINVAL):
        device.sgl_get(sg)
    device.sgl_put(sg)
    lib.vfu_sgl_mark_dirty(device.ctx, sg, 1)
    assert not lib.vfu_sg_is_mappable(device.ctx, sg)
    for call in (lib.vfu_sgl_read_v0, lib.vfu_sgl_write_v0):
        with fails(errno.EINVAL):
            call(device.ctx, sg, 1, buf)


@pytest.mark.parametrize("register, unregister", [(True, False), (False, True), (False, False)])
def test_callbacks_are_optional(workshop, device, register, unregister):
    device.setup_dma(4, device.record("map") if register else None,
                     device.record("unmap") if unregister else None)
    client = workshop.attach(device)
    client.add_memory(BASE, PAGE)
    assert device.sgl(BASE, 1)
    assert unmap_error(client) == 0
    assert [event[0] for event in device.events] == ["map"] * register + ["unmap"] * unregister


def test_setup_again_replaces_the_callbacks(workshop, device):
    device.setup_dma(4, device.record("first"))
    client = workshop.attach(device)
    client.add_memory(BASE, PAGE)
    device.setup_dma(4, None, device.record("second"))
    assert device.sgl(BASE, 1), "the regions stay"
    unmap_error(client)
    assert [event[0] for event in device.events] == ["first", "second"]


def test_older_form(workshop, device, lib):
    """Three arguments, and a limit that is far away."""
    events = []
    register = device.wrap(abi.DMA_REGISTER, lambda info: events.append(info[0].iova.iov_base))
    assert lib.vfu_setup_device_dma_v0(device.ctx, register, abi.NULL[abi.DMA_REGISTER]) == 0
    client = workshop.attach(device)
    for number in range(100):
        assert map_error(client, addr=BASE + number * PAGE) == 0
    assert len(events) == 100


@pytest.mark.parametrize("limit", [1, 2, 17])
def test_limit_of_regions(workshop, limit):
    client = Memory(workshop, limit).client
    for number in range(limit):
        assert map_error(client, addr=BASE + number * PAGE) == 0
    assert map_error(client, addr=0) == errno.EINVAL
    assert map_error(client) == 0, "the same again is no more"
    unmap_error(client)
    assert map_error(client, addr=0) == 0


# What the callbacks are told


def test_info_of_mapped_memory(dma):
    slot = dma.client.add_memory(BASE, 2 * PAGE)
    info, = dma.infos
    assert (info.iova.iov_base, info.iova.iov_len) == (BASE, 2 * PAGE)
    assert (info.mapping.iov_base, info.mapping.iov_len) == (info.vaddr, 2 * PAGE)
    assert info.page_size >= PAGE and info.prot == PROT_READ | PROT_WRITE
    slot.write(PAGE, b"through the mapping")
    assert ctypes.string_at(info.vaddr + PAGE, 19) == b"through the mapping"
    ctypes.memmove(info.vaddr, b"and back", 8)
    assert slot.read(0, 8) == b"and back"


@pytest.mark.parametrize("offset, size", [(0, 100), (PAGE, PAGE), (PAGE + 0x123, 0x1000),
                                          (0x10, 0x10)])
def test_info_of_an_odd_piece_of_a_file(dma, offset, size):
    """The mapping is of whole pages; the address is that of the first byte."""
    mem = dma.client.memory.add_file(4 * PAGE)
    mem.write(offset, b"start")
    dma.client.dma_map(dma.client.memory.add(BASE, size, mem, offset))
    info, = dma.infos
    assert ctypes.string_at(info.vaddr, 5) == b"start"
    assert info.mapping.iov_base % PAGE == info.mapping.iov_len % PAGE == 0
    assert info.mapping.iov_base <= info.vaddr
    assert info.vaddr + size <= info.mapping.iov_base + info.mapping.iov_len
    assert dma.device.sgl_read(dma.device.sgl(BASE, 5), DIRECT) == b"start"


@pytest.mark.parametrize("flags, share", [(MAP_RW | MAP_FILE_IO, True), (MAP_RW, False)])
def test_info_of_memory_that_is_not_mapped(dma, flags, share):
    slot = dma.client.memory.add(BASE, PAGE)
    dma.client.dma_map(slot, share, flags)
    info, = dma.infos
    assert (info.iova.iov_base, info.iova.iov_len) == (BASE, PAGE)
    assert info.vaddr is None
    assert (info.mapping.iov_base, info.mapping.iov_len) == (None, 0)
    assert info.page_size >= PAGE and info.prot == PROT_READ | PROT_WRITE


@pytest.mark.parametrize("flags, prot", [(0, 0), (MAP_READ, PROT_READ), (MAP_WRITE, PROT_WRITE),
                                         (MAP_RW, PROT_READ | PROT_WRITE)])
def test_protection(dma, flags, prot):
    slot = dma.client.memory.add(BASE, PAGE)
    for share in (True, False):
        dma.client.dma_map(slot, share, flags)
        assert dma.infos.pop().prot == prot
        unmap_error(dma.client)


def test_info_stays_where_it_is(workshop, device, lib):
    seen = []
    note = device.wrap(abi.DMA_REGISTER, lambda info: seen.append(ctypes.addressof(info[0])))
    lib.vfu_setup_device_dma(device.ctx, 8, note, note)
    client = workshop.attach(device)
    client.add_memory(BASE, PAGE)
    info = abi.DmaInfo.from_address(seen[0])
    client.add_memory(BASE + PAGE, PAGE)
    assert info.iova.iov_base == BASE and info.prot == PROT_READ | PROT_WRITE
    unmap_error(client)
    assert seen[2] == seen[0]


def test_unregister_is_called_before_the_memory_goes(workshop, device):
    seen = []
    device.setup_dma(8, None, lambda info: seen.append(ctypes.string_at(info.vaddr, 4)))
    client = workshop.attach(device)
    client.add_memory(BASE, PAGE).write(0, b"last")
    unmap_error(client)
    assert seen == [b"last"]


def test_lost_connection_unregisters_everything(dma):
    for number in range(5):
        dma.client.add_memory(BASE + 2 * number * PAGE, PAGE)
    dma.device.take_events()
    dma.client.close()
    with fails(errno.ENOTCONN):
        dma.device.run()
    assert sorted(dma.device.events[:5]) == [("unmap", BASE + 2 * number * PAGE, PAGE)
                                             for number in range(5)]
    assert dma.device.events[5:] == [("reset", abi.RESET_LOST_CONN)]
    with fails(errno.ENOENT):
        dma.device.sgl(BASE, 1)


# DMA_MAP


@pytest.mark.parametrize("flags, share", [
    (MAP_RW | MAP_MMAP, False), (MAP_RW | MAP_FILE_IO, False),
    (MAP_RW | MAP_MMAP | MAP_FILE_IO, True),
    (MAP_RW | 0x10, True), (MAP_RW | 0x10, False), (MAP_RW | MAP_MMAP | 1 << 31, True)])
def test_map_flags(dma, flags, share):
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE)
    assert map_error(dma.client, flags, fds=[fd] if share else []) == errno.EINVAL
    os.close(fd)
    assert not dma.infos


def map_message(index, msg_id):
    payload = wire.DMA_MAP.pack(argsz=32, flags=MAP_RW, addr=BASE + index * PAGE, size=PAGE)
    return wire.message(Cmd.DMA_MAP, payload, msg_id)


INFO = wire.message(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16), 100)
RESET = wire.message(Cmd.DEVICE_RESET, b"", 100)

# Sends, each of which begins with the descriptor if it is marked, and which of the maps have it.
SENDS = {
    "two maps, one send": ([(True, [0, 1])], [True, False]),
    "three maps, one send": ([(True, [0, 1, 2])], [True, False, False]),
    "two maps, two sends": ([(False, [0]), (True, [1])], [False, True]),
    "map, map and map": ([(False, [0]), (True, [1, 2])], [False, True, False]),
    "map and map, map": ([(True, [0, 1]), (False, [2])], [True, False, False]),
    "map and map, map with another": ([(True, [0, 1]), (True, [2])], [True, False, True]),
    "map and another command": ([(True, [0, INFO])], [True]),
    "another command and map": ([(True, [INFO, 0])], [False]),
    "another command, map": ([(False, [INFO]), (True, [0])], [True]),
    "reset, map": ([(False, [RESET]), (True, [0])], [True]),
    "read, map and read": ([(False, [INFO]), (True, [0, INFO])], [True]),
}


@pytest.mark.parametrize("sends, mapped", SENDS.values(), ids=SENDS)
def test_descriptors_belong_to_the_first_message_of_their_send(dma, sends, mapped):
    """unix(7): ancillary data comes with the first byte of the data that it was sent with. All is
    in the socket before the device reads it."""
    fd = dma.client.memory.add_file(PAGE).fd
    for share, parts in sends:
        data = b"".join(part if isinstance(part, bytes) else map_message(part, 200 + part)
                        for part in parts)
        dma.client.send_raw(data, [fd] if share else [])
    for index in range(len(mapped)):
        dma.client.wait(200 + index)
    while dma.device.run():
        pass
    assert [info.vaddr is not None for info in dma.infos] == mapped


@pytest.mark.parametrize("argsz, length", [(31, 32), (32, 31), (0, 32)])
def test_map_too_short(dma, argsz, length):
    payload = wire.DMA_MAP.pack(argsz=argsz, flags=MAP_RW, addr=BASE, size=PAGE)[:length]
    assert dma.client.error_of(Cmd.DMA_MAP, payload) == errno.EINVAL


@pytest.mark.parametrize("addr, size, error", [
    (0, 8 * TIB, 0), (BASE, 8 * TIB + 1, errno.ENOSPC), (BASE, 8 * TIB + PAGE, errno.ENOSPC),
    (BASE, (1 << 64) - 1, errno.ENOSPC), (BASE, 0, errno.EINVAL),
    ((1 << 64) - PAGE, PAGE + 1, errno.EINVAL), ((1 << 64) - PAGE, PAGE, 0), (0x123, 1, 0)])
def test_map_sizes(dma, addr, size, error):
    assert map_error(dma.client, addr=addr, size=size) == error
    assert len(dma.infos) == (error == 0)


def test_map_the_same_again(dma):
    """No change, but the device hears of it again."""
    slot = dma.client.add_memory(BASE, PAGE)
    vaddr = dma.infos[0].vaddr
    again = os.dup(slot.mem.fd)
    assert map_error(dma.client, fds=[again]) == 0
    os.close(again)
    assert [info.vaddr for info in dma.infos] == [vaddr] * 2
    assert unmap_error(dma.client) == 0
    assert unmap_error(dma.client) == errno.ENOENT


def test_map_the_same_by_message_again(dma):
    for _ in range(2):
        assert map_error(dma.client) == 0
    assert len(dma.infos) == 2


def test_map_the_same_otherwise(dma):
    mem, other = (dma.client.memory.add_file(2 * PAGE) for _ in range(2))
    assert map_error(dma.client, fds=[mem.fd]) == 0
    assert map_error(dma.client, MAP_READ, fds=[mem.fd]) == errno.EEXIST
    assert map_error(dma.client, offset=PAGE, fds=[mem.fd]) == errno.EEXIST
    assert map_error(dma.client, fds=[other.fd]) == errno.EEXIST
    assert map_error(dma.client) == errno.EEXIST, "without a file"
    assert len(dma.infos) == 1


@pytest.mark.parametrize("addr, size", [
    (BASE - PAGE, 2 * PAGE), (BASE + PAGE, PAGE), (BASE, 3 * PAGE), (BASE + 3 * PAGE, 2 * PAGE),
    (BASE - PAGE, 8 * PAGE), (BASE + 4 * PAGE - 1, 1)])
def test_overlap(dma, addr, size):
    assert map_error(dma.client, size=4 * PAGE) == 0
    assert map_error(dma.client, addr=addr, size=size) == errno.EEXIST
    assert len(dma.infos) == 1


def test_neighbours(dma):
    for addr in (BASE, BASE + PAGE, BASE - PAGE):
        assert map_error(dma.client, addr=addr) == 0
    assert len(dma.infos) == 3


@pytest.mark.parametrize("kinds", [None, b"", b"ext4,dma-buf", b"any"])
def test_kinds_of_memory_files(workshop, lib, kinds):
    """A memfd is always allowed."""
    device = workshop.device()
    assert lib.vfu_set_memory_files(device.ctx, kinds) == 0
    device.setup_dma()
    workshop.attach(device).add_memory(BASE, PAGE)


def test_what_cannot_be_mapped(dma):
    """The errno of mmap(2) goes to the client."""
    event = os.eventfd(0)
    assert map_error(dma.client, fds=[event]) == errno.ENODEV
    os.close(event)
    mem = dma.client.memory.add_file(PAGE)
    readonly = os.open(f"/proc/self/fd/{mem.fd}", os.O_RDONLY)
    assert map_error(dma.client, fds=[readonly]) == errno.EACCES
    assert map_error(dma.client, MAP_READ, fds=[readonly]) == 0
    os.close(readonly)
    assert len(dma.infos) == 1


def test_further_descriptors_are_closed(dma):
    """The fixture looks for descriptors that are left."""
    files = [dma.client.memory.add_file(PAGE) for _ in range(4)]
    assert map_error(dma.client, fds=[mem.fd for mem in files]) == 0
    files[0].write(0, b"the first")
    assert dma.device.sgl_read(dma.device.sgl(BASE, 9), DIRECT) == b"the first"


# DMA_UNMAP


@pytest.mark.parametrize("addr, size", [
    (BASE + PAGE, PAGE), (BASE, PAGE), (BASE + PAGE, 4 * PAGE), (0, PAGE), (BASE, 0),
    ((1 << 64) - PAGE, 2 * PAGE)])
def test_unmap_of_what_is_not_there(dma, addr, size):
    assert map_error(dma.client, size=3 * PAGE) == 0
    assert unmap_error(dma.client, addr, size) == errno.ENOENT
    assert dma.device.sgl(BASE, 3 * PAGE)


@pytest.mark.parametrize("flags, addr, size, argsz", [
    (4, BASE, PAGE, 24), (3, BASE, PAGE, 64), (2, BASE, 0, 24), (2, 0, PAGE, 24),
    (2, BASE, PAGE, 24),
    (0, BASE, PAGE, 23), (0, BASE, PAGE, (1 << 20) + 1), (1, BASE, PAGE, 24)])
def test_unmap_errors(dma, flags, addr, size, argsz):
    map_error(dma.client)
    assert unmap_error(dma.client, addr, size, flags, argsz) == errno.EINVAL
    assert dma.device.sgl(BASE, PAGE)


def test_unmap_all(dma):
    for number in range(5):
        map_error(dma.client, addr=BASE + 2 * number * PAGE)
    dma.device.take_events()
    dma.client.dma_unmap(0, 0, wire.UNMAP_ALL)
    assert sorted(dma.device.events) == [("unmap", BASE + 2 * number * PAGE, PAGE)
                                         for number in range(5)]
    dma.client.dma_unmap(0, 0, wire.UNMAP_ALL)


def test_unmap_reply_echoes(dma):
    map_error(dma.client)
    payload = wire.DMA_UNMAP.pack(argsz=100, addr=BASE, size=PAGE)
    assert dma.client.request(Cmd.DMA_UNMAP, payload + bytes(76)).payload == payload


# vfu_addr_to_sgl


def test_size_of_an_entry(lib):
    assert lib.dma_sg_size() == ctypes.sizeof(abi.Sg) == 40


@pytest.fixture
def pieces(dma):
    """Three neighbours of 2, 1 and 4 pages, the last one readable only; a hole; one more page."""
    at = BASE
    for pages, writable in ((2, True), (1, True), (4, False), (0, True), (1, True)):
        if pages:
            dma.client.add_memory(at, pages * PAGE, writable=writable)
        at += max(pages, 1) * PAGE
    return dma


def fields(sgl):
    return [(sg.dma_addr, sg.offset, sg.length, sg.writeable) for sg in sgl]


def test_entries(pieces):
    sgl = pieces.device.sgl(BASE + PAGE + 5, 2 * PAGE, prot=PROT_READ)
    assert fields(sgl) == [(BASE, PAGE + 5, PAGE - 5, False), (BASE + 2 * PAGE, 0, PAGE, False),
                           (BASE + 3 * PAGE, 0, 5, False)]
    assert all(sg.region & 0xFFFFFFFF for sg in sgl)
    assert sgl[0].region != sgl[1].region
    assert fields(pieces.device.sgl(BASE, 1)) == [(BASE, 0, 1, True)]
    assert fields(pieces.device.sgl(BASE + 8 * PAGE, PAGE)) == [(BASE + 8 * PAGE, 0, PAGE, True)]


@pytest.mark.parametrize("addr, length", [
    (BASE - 1, 1), (BASE - 1, 2), (BASE + 7 * PAGE, 1), (BASE + 6 * PAGE, PAGE + 1), (0, PAGE),
    (BASE + 9 * PAGE, 1), (BASE, 9 * PAGE), ((1 << 64) - 1, 1), ((1 << 64) - 1, 2),
    (BASE, (1 << 64) - 1)])
def test_unmapped_addresses(pieces, addr, length):
    with fails(errno.ENOENT):
        pieces.device.sgl(addr, length, prot=PROT_READ)


@pytest.mark.parametrize("addr", [BASE, 0, (1 << 64) - 1])
def test_no_bytes(pieces, addr):
    assert len(pieces.device.sgl(addr, 0)) == 0


@pytest.mark.parametrize("prot", [PROT_WRITE, PROT_READ | PROT_WRITE])
def test_write_to_readable_memory(pieces, prot):
    for addr, length in ((BASE + 3 * PAGE, 1), (BASE, 4 * PAGE)):
        with fails(errno.EACCES):
            pieces.device.sgl(addr, length, prot=prot)


def test_read_is_not_checked(dma):
    map_error(dma.client, MAP_WRITE)
    assert dma.device.sgl(BASE, PAGE, prot=PROT_READ)
    assert dma.device.sgl(BASE, PAGE, prot=0)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_too_little_room(pieces, lib, room):
    """How many are needed, and those that fit."""
    sgl = (abi.Sg * 3)()
    result = lib.vfu_addr_to_sgl(pieces.ctx, BASE, 4 * PAGE, sgl, room, PROT_READ)
    assert result == -3 - 1 and ctypes.get_errno() == 0
    assert [bool(sg.region) for sg in sgl] == [number < room for number in range(3)]
    assert [sg.length for sg in sgl][:room] == [2 * PAGE, PAGE, PAGE][:room]


# vfu_sgl_get, vfu_sgl_put, vfu_sg_is_mappable


def test_get_gives_addresses(pieces):
    sgl = pieces.device.sgl(BASE + 10, 2 * PAGE, prot=PROT_READ)
    iov = pieces.device.sgl_get(sgl)
    vaddrs = [info.vaddr for info in pieces.infos]
    assert [(v.iov_base, v.iov_len) for v in iov] == [(vaddrs[0] + 10, 2 * PAGE - 10),
                                                      (vaddrs[1], 10)]
    pieces.device.sgl_put(sgl, iov)


def test_get_errors(dma, lib):
    dma.client.add_memory(BASE, PAGE)
    dma.client.add_memory(BASE + PAGE, PAGE, share=False)
    file_io = dma.client.memory.add(BASE + 2 * PAGE, PAGE)
    dma.client.dma_map(file_io, flags=MAP_RW | MAP_FILE_IO)
    with fails(errno.EINVAL):
        dma.device.sgl_get((abi.Sg * 1)())
    for flags in (1, -1):
        with fails(errno.EINVAL):
            dma.device.sgl_get(dma.device.sgl(BASE, 1), flags)
    for addr in (BASE + PAGE, BASE + 2 * PAGE, BASE + PAGE - 1):
        with fails(errno.EFAULT):
            dma.device.sgl_get(dma.device.sgl(addr, 2))
    mixed = (abi.Sg * 2)()
    mixed[0] = dma.device.sgl(BASE, 1)[0]
    with fails(errno.EINVAL):
        dma.device.sgl_get(mixed)
    mappable = [lib.vfu_sg_is_mappable(dma.ctx, dma.device.sgl(BASE + number * PAGE, 1))
                for number in range(3)]
    assert mappable == [True, False, False]
    assert not lib.vfu_sg_is_mappable(dma.ctx, (abi.Sg * 1)())


def test_entries_of_memory_that_is_gone(dma, lib):
    dma.client.add_memory(BASE, PAGE)
    sgl = dma.device.sgl(BASE, PAGE)
    assert unmap_error(dma.client) == 0
    with fails(errno.ESTALE):
        dma.device.sgl_get(sgl)
    with fails(errno.ESTALE):
        dma.device.sgl_read(sgl, DIRECT)
    with fails(errno.ESTALE):
        dma.device.sgl_write(sgl, bytes(PAGE))
    assert not lib.vfu_sg_is_mappable(dma.ctx, sgl)
    lib.vfu_sgl_mark_dirty(dma.ctx, sgl, 1)
    dma.client.add_memory(BASE, PAGE)
    with fails(errno.ESTALE):
        dma.device.sgl_get(sgl)


def test_entries_are_plain_data(dma):
    """Copied and kept at will, used several times, by several threads."""
    dma.client.add_memory(BASE, PAGE).write(0, b"data")
    kept = (abi.Sg * 1).from_buffer_copy(dma.device.sgl(BASE, 4))
    results = []

    def use():
        for _ in range(50):
            iov = dma.device.sgl_get(kept)
            results.append(ctypes.string_at(iov[0].iov_base, 4))
            dma.device.sgl_put(kept, iov)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [b"data"] * 150


# vfu_sgl_read, vfu_sgl_write

MODES = {"mmap": (True, None), "explicit mmap": (True, MAP_RW | MAP_MMAP),
         "file": (True, MAP_RW | MAP_FILE_IO), "message": (False, None)}


def modes(function):
    return pytest.mark.parametrize("share, flags", MODES.values(), ids=MODES)(function)


@modes
@pytest.mark.parametrize("access", [DIRECT, 0])
def test_read_and_write(dma, share, flags, access):
    """However the memory is reached, directly or by messages to the client."""
    mem = dma.client.memory.add_file(4 * PAGE)
    slot = dma.client.memory.add(BASE, 2 * PAGE, mem, PAGE)
    dma.client.dma_map(slot, share, flags)
    seen = []
    serve = dma.client.on_command
    dma.client.on_command = lambda command: (seen.append(command.cmd), serve(command))
    data = os.urandom(PAGE)
    slot.write(100, data)
    with dma.client.answering():
        assert dma.device.sgl_read(dma.device.sgl(BASE + 100, PAGE), access) == data
        dma.device.sgl_write(dma.device.sgl(BASE + 200, PAGE), data[::-1], access)
    assert slot.read(200, PAGE) == data[::-1]
    assert slot.read(100, 100) == data[:100] and slot.read(200 + PAGE, 10) == bytes(10)
    by_message = not share or access == 0
    assert seen == ([Cmd.DMA_READ, Cmd.DMA_WRITE] if by_message else [])


def test_older_forms(dma, lib):
    """Four arguments: by message."""
    slot = dma.client.add_memory(BASE, PAGE)
    slot.write(0, b"older")
    sgl, buf = dma.device.sgl(BASE, 5), ctypes.create_string_buffer(5)
    with dma.client.answering():
        assert lib.vfu_sgl_read_v0(dma.ctx, sgl, 1, buf) == 0
        assert buf.raw == b"older"
        assert lib.vfu_sgl_write_v0(dma.ctx, sgl, 1, b"newer") == 0
    assert slot.read(0, 5) == b"newer"


@pytest.mark.parametrize("access", [DIRECT, 0])
def test_several_entries(dma, access):
    """Of different kinds, in one call."""
    slots = [dma.client.add_memory(BASE, PAGE), dma.client.add_memory(BASE + PAGE, PAGE, False)]
    slots.append(dma.client.memory.add(BASE + 2 * PAGE, PAGE))
    dma.client.dma_map(slots[2], flags=MAP_RW | MAP_FILE_IO)
    data = os.urandom(2 * PAGE)
    sgl = dma.device.sgl(BASE + 100, 2 * PAGE)
    assert len(sgl) == 3
    with dma.client.answering():
        dma.device.sgl_write(sgl, data, access)
        assert dma.device.sgl_read(sgl, access) == data
    assert slots[0].read(100, PAGE - 100) + slots[1].read(0, PAGE) + slots[2].read(0, 100) == data


def test_nothing_to_move(dma):
    assert dma.device.sgl_read((abi.Sg * 0)()) == b""


@pytest.mark.parametrize("flags", [2, 3, -1])
def test_flags_of_an_access(dma, flags):
    dma.client.add_memory(BASE, PAGE)
    sgl = dma.device.sgl(BASE, 4)
    with fails(errno.EINVAL):
        dma.device.sgl_read(sgl, flags)
    with fails(errno.EINVAL):
        dma.device.sgl_write(sgl, bytes(4), flags)


@modes
def test_write_to_entries_for_reading(dma, share, flags):
    slot = dma.client.memory.add(BASE, PAGE)
    dma.client.dma_map(slot, share, flags)
    for access in (DIRECT, 0):
        with fails(errno.EPERM):
            dma.device.sgl_write(dma.device.sgl(BASE, 4, prot=PROT_READ), b"text", access)
    assert slot.read(0, 4) == bytes(4)


def test_invalid_entry(dma):
    for access in (DIRECT, 0):
        with fails(errno.EINVAL):
            dma.device.sgl_read((abi.Sg * 1)(), access)


def test_file_that_ends_early(dma):
    mem = dma.client.memory.add_file(PAGE)
    dma.client.dma_map(Slot(BASE, 4 * PAGE, mem), flags=MAP_RW | MAP_FILE_IO)
    assert dma.device.sgl_read(dma.device.sgl(BASE + PAGE - 4, 4), DIRECT) == bytes(4)
    for addr in (BASE + PAGE - 4, BASE + PAGE):
        with fails(errno.EIO):
            dma.device.sgl_read(dma.device.sgl(addr, 8), DIRECT)


def test_file_that_is_truncated(dma):
    """Memory that the client takes away is an error, not a signal."""
    slot = dma.client.add_memory(BASE, 4 * PAGE)
    sgl = dma.device.sgl(BASE + 2 * PAGE, 4)
    os.ftruncate(slot.mem.fd, PAGE)
    with fails(errno.EFAULT):
        dma.device.sgl_read(sgl, DIRECT)
    os.ftruncate(slot.mem.fd, 4 * PAGE)


@pytest.mark.parametrize("limit", [1, 100, 4096])
def test_messages_are_as_large_as_agreed(workshop, limit):
    dma = Memory(workshop, capabilities={**CAPABILITIES, "max_data_xfer_size": limit})
    slot = dma.client.add_memory(BASE, PAGE, share=False)
    length = min(3 * limit + limit // 2, PAGE)
    data = os.urandom(length)
    counts = []
    serve = dma.client.on_command

    def note(command):
        counts.append(wire.DMA_ACCESS.unpack(command.payload).count)
        serve(command)

    dma.client.on_command = note
    with dma.client.answering():
        dma.device.sgl_write(dma.device.sgl(BASE, length), data)
        assert dma.device.sgl_read(dma.device.sgl(BASE, length)) == data
    assert slot.read(0, length) == data
    expected = [limit] * (length // limit) + [length % limit] * (length % limit > 0)
    assert counts == expected * 2


def by_message(workshop, capabilities=None):
    dma = Memory(workshop, capabilities=capabilities)
    dma.client.add_memory(BASE, PAGE, share=False)
    return dma, dma.device.sgl(BASE, 8)


@pytest.mark.parametrize("error", [errno.EPERM, errno.EFAULT, errno.ENODEV, 4095])
def test_error_of_the_client(workshop, error):
    dma, sgl = by_message(workshop)
    dma.client.on_command = lambda command: dma.client.reply(command, error=error)
    with dma.client.answering():
        with fails(error):
            dma.device.sgl_read(sgl)
        with fails(error):
            dma.device.sgl_write(sgl, bytes(8))
    assert dma.client.device_info(), "the connection goes on"


@pytest.mark.parametrize("addr, count, length", [
    (BASE + 1, 8, 8), (BASE, 7, 8), (BASE, 7, 7), (BASE, 8, 7), (BASE, 9, 8)])
def test_reply_that_does_not_fit(workshop, addr, count, length):
    dma, sgl = by_message(workshop)

    def answer(command):
        head = wire.DMA_ACCESS.pack(addr=addr, count=count)
        dma.client.reply(command, head + bytes(length) * (command.cmd == Cmd.DMA_READ))

    dma.client.on_command = answer
    with dma.client.answering(), fails(errno.EINVAL):
        dma.device.sgl_read(sgl)
    if (addr, count) != (BASE, 8):
        with dma.client.answering(), fails(errno.EINVAL):
            dma.device.sgl_write(sgl, bytes(8))


@pytest.mark.parametrize("capabilities", [None, TWIN], ids=["one socket", "twin"])
def test_client_goes_while_a_message_waits(workshop, capabilities):
    dma, sgl = by_message(workshop, capabilities)

    def leave(command):
        for channel in (dma.client.channel, command.channel):
            channel.sock.shutdown(socket.SHUT_RDWR)

    dma.client.on_command = leave
    with dma.client.answering(), fails(errno.ENOTCONN):
        dma.device.sgl_read(sgl)
    with fails(errno.ENOTCONN):
        dma.device.run()
    assert dma.device.events[-2:] == [("unmap", BASE, PAGE), ("reset", abi.RESET_LOST_CONN)]


def test_no_client(workshop):
    dma, sgl = by_message(workshop)
    dma.client.close()
    with fails(errno.ENOTCONN):
        dma.device.sgl_read(sgl)
    with fails(errno.ENOTCONN):
        dma.device.run()
    with fails(errno.ESTALE):
        dma.device.sgl_read(sgl)


@pytest.mark.parametrize("capabilities", [None, TWIN], ids=["one socket", "twin"])
def test_messages_from_a_callback(workshop, capabilities):
    """What a doorbell does: the client's write is answered when the device has read memory."""
    dma = Memory(workshop, capabilities=capabilities)
    dma.client.add_memory(BASE, PAGE, share=False).write(0, b"command!")
    seen = []

    def doorbell(_buf, count, _offset, _is_write):
        seen.append(dma.device.sgl_read(dma.device.sgl(BASE, 8)))
        dma.device.sgl_write(dma.device.sgl(BASE + 8, 4), b"done")
        return count

    dma.device.setup_region(BAR0, 16, doorbell)
    with dma.client.answering():
        msg_id = dma.client.send_region_write(BAR0, 0, b"ring")
        assert dma.device.run() == 1
    assert not dma.client.wait(msg_id).error
    assert seen == [b"command!"]
    assert dma.client.memory.slots[0].read(8, 4) == b"done"


# What a client sends that waits for the reply before it answers
ENDS = {
    "reset": (Cmd.DEVICE_RESET, b""),
    "flr": (Cmd.REGION_WRITE, wire.REGION_ACCESS.pack(offset=0x48, region=CONFIG, count=2) +
            b"\x00\x80"),
    "bus mastering off": (Cmd.REGION_WRITE, wire.REGION_ACCESS.pack(
        offset=4, region=CONFIG, count=2) + bytes(2)),
    "stop": (Cmd.DEVICE_FEATURE, wire.FEATURE.pack(
        argsz=16, flags=wire.FEATURE_SET | wire.FEAT_MIG_STATE) +
        wire.FEATURE_MIG_STATE.pack(device_state=1)),
    "unmap": (Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, addr=BASE, size=PAGE)),
    "unmap all": (Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, flags=wire.UNMAP_ALL)),
}
# And what leaves the transfer alone
LEAVES = {
    "unmap of another": (Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, addr=BASE + 16 * PAGE,
                                                            size=PAGE)),
    "bus mastering on": (Cmd.REGION_WRITE, wire.REGION_ACCESS.pack(
        offset=4, region=CONFIG, count=2) + b"\x06\x00"),
    "device control": (Cmd.REGION_WRITE, wire.REGION_ACCESS.pack(
        offset=0x48, region=CONFIG, count=2) + b"\x10\x00"),
    "pre-copy": (Cmd.DEVICE_FEATURE, wire.FEATURE.pack(
        argsz=16, flags=wire.FEATURE_SET | wire.FEAT_MIG_STATE) +
        wire.FEATURE_MIG_STATE.pack(device_state=6)),
}


MULTI = {**CAPABILITIES, "write_multiple": True}


def unmap(size=PAGE, addr=BASE, flags=0, argsz=24, data=b""):
    return Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=argsz, flags=flags, addr=addr, size=size) + data


def write_multi(*entries):
    """Of two bytes of zeros each."""
    return Cmd.REGION_WRITE_MULTI, wire.WRITE_MULTI.pack(wr_cnt=len(entries)) + b"".join(
        wire.WRITE_MULTI_ENTRY.pack(offset=offset, region=region, count=count, data=bytes(8))
        for region, offset, count in entries)


# What would end the transfer if it were not refused
REFUSED = {
    "unmap of a part": unmap(PAGE // 2),
    "unmap of nothing": unmap(addr=BASE + 8 * PAGE),
    "unmap that wraps": unmap((1 << 64) - PAGE),
    "unmap with unknown flags": unmap(flags=8),
    "unmap of all at an address": unmap(flags=wire.UNMAP_ALL),
    "unmap with an argsz too large": unmap(argsz=0xFFFFFFFF),
    "unmap with no room for pages": unmap(flags=wire.UNMAP_GET_DIRTY),
    "unmap with pages that are not logged": unmap(
        flags=wire.UNMAP_GET_DIRTY, argsz=48, data=wire.BITMAP.pack(pgsize=PAGE, size=8)),
    "write beyond the end": (Cmd.REGION_WRITE, wire.REGION_ACCESS.pack(
        offset=4, region=CONFIG, count=8192) + bytes(8192)),
    "write of another length": (Cmd.REGION_WRITE, wire.REGION_ACCESS.pack(
        offset=4, region=CONFIG, count=4) + bytes(2)),
    "writes, one beyond the end": write_multi((CONFIG, 4, 2), (CONFIG, 0x1000, 2)),
    "writes, one too long": write_multi((CONFIG, 4, 2), (CONFIG, 4, 9)),
    "fewer writes than announced": (Cmd.REGION_WRITE_MULTI, wire.WRITE_MULTI.pack(wr_cnt=2) +
                                    write_multi((CONFIG, 4, 2))[1][8:]),
    "stop with an argsz too small": (Cmd.DEVICE_FEATURE, wire.FEATURE.pack(
        argsz=8, flags=wire.FEATURE_SET | wire.FEAT_MIG_STATE) +
        wire.FEATURE_MIG_STATE.pack(device_state=1)),
}


def ringing(workshop, device, capabilities):
    """A client, and the results of a doorbell that reads memory by a message, several times."""
    device.pci_init()
    device.add_capability(bytes([0x10, 0, 2, 0]) + (1 << 28).to_bytes(4, "little") + bytes(52))
    device.setup_dma(8)
    device.setup_reset(device.record("reset"))
    device.setup_migration(*[lambda *_: 0] * 3)
    results = []

    def doorbell(_buf, count, _offset, _is_write):
        for _ in range(3):
            try:
                results.append(device.sgl_read(device.sgl(BASE, 8)))
            except OSError as error:
                results.append(error.errno)
        return count

    device.setup_region(BAR0, 16, doorbell)
    client = workshop.attach(device, capabilities)
    client.add_memory(BASE, PAGE, share=False).write(0, b"command!")
    client.add_memory(BASE + 16 * PAGE, PAGE, share=False)
    client.write_int(CONFIG, 4, 6, 2)
    return client, results


@pytest.mark.parametrize("capabilities", [None, TWIN], ids=["one socket", "twin"])
@pytest.mark.parametrize("name", ENDS)
def test_command_behind_a_callback_that_waits(workshop, device, capabilities, name):
    """The control thread itself waits for a client that waits for the reply to its command."""
    client, results = ringing(workshop, device, capabilities)
    client.hold()
    client.send_region_write(BAR0, 0, b"ring", wire.NO_REPLY)
    msg_id = client.send(*ENDS[name])
    assert client.wait(msg_id).error == 0
    assert results == [errno.ECANCELED] * 3


@pytest.mark.parametrize("name", LEAVES)
def test_command_that_leaves_transfers_alone(workshop, device, name):
    client, results = ringing(workshop, device, None)
    client.send_region_write(BAR0, 0, b"ring", wire.NO_REPLY)
    msg_id = client.send(*LEAVES[name])
    with client.answering():
        while not client.replies[msg_id]:
            device.run()
    assert client.wait(msg_id).error == 0
    assert results == [b"command!"] * 3


def refused_beside_a_transfer(client, device, results, command):
    """The errno; the transfer, in the callback before, is answered after the command was sent."""
    results.clear()
    client.send_region_write(BAR0, 0, b"ring", wire.NO_REPLY)
    msg_id = client.send(*command)
    with client.answering():
        while not client.replies[msg_id]:
            device.run()
    assert results == [b"command!"] * 3
    return client.wait(msg_id, check=False).error


@pytest.mark.parametrize("name", REFUSED)
def test_refused_command_leaves_transfers_alone(workshop, device, name):
    client, results = ringing(workshop, device, MULTI)
    assert refused_beside_a_transfer(client, device, results, REFUSED[name])


def test_command_not_negotiated_leaves_transfers_alone(workshop, device):
    client, results = ringing(workshop, device, None)
    command = write_multi((CONFIG, 4, 2))
    assert refused_beside_a_transfer(client, device, results, command) == errno.EINVAL


def test_reset_that_nobody_does_leaves_transfers_alone(workshop, device):
    client, results = ringing(workshop, device, None)
    device.setup_reset(None)
    assert refused_beside_a_transfer(client, device, results, ENDS["flr"]) == errno.EINVAL


def test_transfers_begun_while_a_reset_waits(workshop, device):
    """A device that needs time to be quiet begins no transfer that would make it wait."""
    client, _ = ringing(workshop, device, None)
    quiet = [False]

    def quiesce():
        if not quiet[0]:
            raise OSError(errno.EBUSY, "")

    device.setup_quiesce(quiesce)
    client.hold()
    msg_id = client.send(Cmd.DEVICE_RESET)
    with fails(errno.EBUSY):
        device.run()
    results = []

    def read():
        try:
            device.sgl_read(device.sgl(BASE, 8))
        except OSError as error:
            results.append(error.errno)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert results == [errno.ECANCELED]
    assert not client.held, "nothing was sent"
    quiet[0] = True
    device.lib.vfu_device_quiesced(device.ctx, 0)
    assert client.wait(msg_id).error == 0
    client.on_command = client.serve
    with client.answering():
        assert device.sgl_read(device.sgl(BASE, 8)) == b"command!"


def test_messages_from_threads(workshop):
    """Each gets its own answers, whatever the order in which they come."""
    dma = Memory(workshop, capabilities=TWIN)
    slot = dma.client.add_memory(BASE, PAGE, share=False)
    slot.write(0, bytes(range(64)))
    results = {}

    def read(number):
        sgl = dma.device.sgl(BASE + number, 1)
        results[number] = [dma.device.sgl_read(sgl)[0] for _ in range(20)]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    with dma.client.answering():
        for thread in threads:
            thread.start()
        dma.client.device_info()
        for thread in threads:
            thread.join()
    assert results == {number: [number] * 20 for number in range(4)}
