# SPDX-License-Identifier: BSD-3-Clause
"""DMA_MAP, DMA_UNMAP, and DMA in both directions through the edu device's engine."""

import errno
import os
import tempfile

import pytest

from vfiouser import edu as hw
from vfiouser import wire
from vfiouser.memory import Slot
from vfiouser.wire import (MAP_FILE_IO, MAP_MMAP, MAP_READ, MAP_RW, MAP_WRITE, UNMAP_ALL,
                           UNMAP_GET_DIRTY, Cmd)

K4, M2 = 0x1000, 0x200000
TIB8 = 8 << 40
PATTERN = bytes(range(256)) * 4

# With a descriptor to map, with one to read and write, with none.
MODES = {"mmap": (True, MAP_RW), "mmap by flag": (True, MAP_RW | MAP_MMAP),
         "file": (True, MAP_RW | MAP_FILE_IO), "messages": (False, MAP_RW)}
by_mode = pytest.mark.parametrize("mode", MODES)


def add(client, addr, size, mode="mmap", **kwargs):
    share, flags = MODES[mode]
    slot = client.memory.add(addr, size, **kwargs)
    client.dma_map(slot, share, flags)
    return slot


def map_error(client, payload, fds=()):
    return client.error_of(Cmd.DMA_MAP, payload, fds)


def unmap_error(client, addr, size, flags=0):
    return client.dma_unmap(addr, size, flags, check=False).error


def mapping(addr=0, size=K4, flags=MAP_RW, offset=0, argsz=32):
    return wire.DMA_MAP.pack(argsz=argsz, flags=flags, offset=offset, addr=addr, size=size)


# Transfers

@by_mode
@pytest.mark.parametrize("count", [1, 3, 4, 64, 1000, 4096])
def test_both_directions(edu, mode, count):
    slot = add(edu.client, 0x10000, 2 * K4, mode)
    data = (PATTERN * 4)[:count]
    slot.write(0, data)
    edu.copy(0x10000, 0x10000 + K4, count)
    assert slot.read(K4, count) == data
    assert slot.read(K4 + count, K4 - count) == bytes(K4 - count)


@by_mode
def test_unaligned(edu, mode):
    slot = add(edu.client, 0x10000, 2 * K4, mode)
    slot.write(0x123, PATTERN)
    edu.copy(0x10123, 0x11001, len(PATTERN))
    assert slot.read(0x1001, len(PATTERN)) == PATTERN
    assert slot.read(0x1000, 1) == b"\0"


@by_mode
def test_offset_in_the_file(edu, mode):
    """Two ranges that are parts of one file, in another order."""
    mem = edu.client.memory.add_file(4 * K4)
    add(edu.client, 0x100000, K4, mode, mem=mem, offset=2 * K4)
    add(edu.client, 0x200000, K4, mode, mem=mem, offset=K4)
    mem.write(2 * K4, PATTERN)
    edu.copy(0x100000, 0x200000, len(PATTERN))
    assert mem.read(K4, len(PATTERN)) == PATTERN
    assert mem.read(0, K4) == bytes(K4)


@pytest.mark.parametrize("mode", ["mmap", "file"])
def test_offset_within_a_page_of_the_file(edu, mode):
    mem = edu.client.memory.add_file(4 * K4)
    add(edu.client, 0x10000, 2 * K4, mode, mem=mem, offset=0x800)
    mem.write(0x800 + K4, PATTERN)
    edu.copy(0x10000 + K4, 0x10000, len(PATTERN))
    assert mem.read(0x800, len(PATTERN)) == PATTERN


@by_mode
def test_across_two_adjacent_maps(edu, mode):
    """One transfer, two regions with files of their own."""
    first = add(edu.client, 0x10000, K4, mode)
    second = add(edu.client, 0x11000, K4, mode)
    first.write(K4 - 100, PATTERN[:100])
    second.write(0, PATTERN[100:200])
    edu.from_ram(0x10000 + K4 - 100, 200)
    edu.to_ram(0x11000 - 50, 200)
    assert first.read(K4 - 50, 50) + second.read(0, 150) == PATTERN[:200]


@pytest.mark.parametrize("bare", [True, False], ids=["bare header", "echo"])
def test_TXN_4_reply_to_dma_write(server, bare):
    """QEMU answers DMA_WRITE with a bare header, the protocol wants address and count."""
    client = server.client({"max_data_xfer_size": 16})
    edu = hw.Edu(client)
    edu.enable_bus_master()
    client.bare_write_replies = bare
    slot = add(client, 0, 2 * K4, "messages")
    slot.write(0, PATTERN)
    edu.copy(0, K4, len(PATTERN))
    assert slot.read(K4, len(PATTERN)) == PATTERN
    assert server.failed_transfers() == 0


@pytest.mark.parametrize("xfer", [1, 7, 100, 1024])
def test_messages_keep_the_clients_limit(server, xfer):
    client = server.client({"max_data_xfer_size": xfer})
    edu = hw.Edu(client)
    edu.enable_bus_master()
    slot = add(client, 0, 2 * K4, "messages")
    counts = []

    def serve(command):
        counts.append(wire.DMA_ACCESS.unpack(command.payload).count)
        client.serve(command)

    client.on_command = serve
    slot.write(0, PATTERN)
    edu.copy(0, K4, 1001)
    assert slot.read(K4, 1001) == PATTERN[:1001]
    assert max(counts) <= xfer and sum(counts) == 2 * 1001


FAILURES = [errno.EPERM, errno.EFAULT, errno.EINVAL, errno.EIO, 4095]


@pytest.mark.parametrize("error", FAILURES)
@pytest.mark.parametrize("to_ram", [False, True])
def test_client_fails_a_message(server, edu, error, to_ram):
    """The device gets over it, and the next transfer works."""
    client = edu.client
    slot = add(client, 0, 2 * K4, "messages")
    client.on_command = lambda command: client.reply(command, error=error)
    (edu.to_ram if to_ram else edu.from_ram)(0, 64)
    assert server.failed_transfers() == 1
    client.on_command = client.serve
    slot.write(0, PATTERN)
    edu.copy(0, K4, 64)
    assert slot.read(K4, 64) == PATTERN[:64]


@pytest.mark.parametrize("mode", ["mmap", "file", "messages"])
def test_read_only_memory_is_not_written(edu, mode):
    share, flags = MODES[mode]
    slot = edu.client.memory.add(0, K4, writable=False)
    edu.client.dma_map(slot, share, flags & ~MAP_WRITE)
    slot.write(0, PATTERN)
    edu.from_ram(0, 64)
    edu.to_ram(0x100, 64)
    assert slot.read(0, K4) == PATTERN + bytes(K4 - len(PATTERN))


@by_mode
def test_nothing_beyond_a_map_is_touched(edu, mode):
    """A transfer that runs out of the mapped memory fails whole."""
    slot = add(edu.client, 0x10000, K4, mode)
    edu.to_ram(0x10000 + K4 - 32, 64)
    assert slot.read(0, K4) == bytes(K4)


def test_transfer_without_any_memory(edu):
    edu.from_ram(0x1000, 64)
    edu.to_ram(0x1000, 64)
    assert edu.read(hw.REG_ID) == hw.IDENTITY


@by_mode
def test_transfer_after_unmap(edu, mode):
    slot = add(edu.client, 0x10000, K4, mode)
    edu.client.dma_unmap(0x10000, K4)
    edu.client.hold()
    edu.to_ram(0x10000, 64)
    assert not edu.client.held
    assert slot.read(0, K4) == bytes(K4)


def test_remapped_to_another_file(edu):
    """The device must not go on with the old one."""
    old = add(edu.client, 0x10000, K4)
    edu.to_ram(0x10000, 16)
    edu.client.dma_unmap(0x10000, K4)
    new = add(edu.client, 0x10000, K4)
    new.write(0, PATTERN)
    edu.from_ram(0x10000, 64)
    edu.to_ram(0x10800, 64)
    assert new.read(0x800, 64) == PATTERN[:64]
    assert old.read(0x800, 64) == bytes(64)


# Maps

def test_reply_has_no_payload(client):
    slot = client.memory.add(0, K4)
    assert client.dma_map(slot).payload == b""
    assert client.dma_unmap(0, K4).payload[:8] == wire.DMA_UNMAP.pack(argsz=24)[:8]


BAD_MAPS = {
    "argsz 0": (mapping(argsz=0), True, errno.EINVAL),
    "argsz 31": (mapping(argsz=31), True, errno.EINVAL),
    "MMAP without descriptor": (mapping(flags=MAP_RW | MAP_MMAP), False, errno.EINVAL),
    "FILE_IO without descriptor": (mapping(flags=MAP_RW | MAP_FILE_IO), False, errno.EINVAL),
    "MMAP and FILE_IO": (mapping(flags=MAP_RW | MAP_MMAP | MAP_FILE_IO), True, errno.EINVAL),
    "unknown flag 0x10": (mapping(flags=MAP_RW | 0x10), True, errno.EINVAL),
    "unknown flag 2^31": (mapping(flags=MAP_RW | 1 << 31), True, errno.EINVAL),
    "unknown flag, messages": (mapping(flags=MAP_RW | 0x10), False, errno.EINVAL),
    "size 0": (mapping(size=0), True, errno.EINVAL),
    "size 0, messages": (mapping(size=0), False, errno.EINVAL),
    "more than 8 TiB": (mapping(size=TIB8 + K4), False, errno.ENOSPC),
    "largest size": (mapping(size=(1 << 64) - 1), False, errno.ENOSPC),
    "largest size, wraps": (mapping(addr=K4, size=(1 << 64) - 1), False, errno.ENOSPC),
    "addr + size wraps": (mapping(addr=(1 << 64) - K4, size=2 * K4), False, errno.EINVAL),
    "addr + size wraps, mmap": (mapping(addr=(1 << 64) - K4, size=2 * K4), True, errno.EINVAL),
}


@pytest.mark.parametrize("name", BAD_MAPS)
def test_bad_map(client, name):
    payload, with_fd, error = BAD_MAPS[name]
    mem = client.memory.add_file(4 * K4)
    assert map_error(client, payload, [mem.fd] if with_fd else []) == error
    add(client, 0, K4)


@pytest.mark.parametrize("flags", [0, MAP_READ, MAP_WRITE, MAP_RW])
@pytest.mark.parametrize("share", [True, False])
def test_protection_flags(client, flags, share):
    slot = client.memory.add(0, K4)
    client.dma_map(slot, share, flags)
    client.dma_unmap(0, K4)


def test_last_page_of_the_address_space(client):
    slot = client.memory.add((1 << 64) - K4, K4)
    client.dma_map(slot)
    client.dma_unmap((1 << 64) - K4, K4)


def test_8_tib(client):
    assert map_error(client, mapping(size=TIB8)) == 0
    client.dma_unmap(0, TIB8)


def test_unaligned_map(client):
    """No alignment is asked for."""
    for share in (True, False):
        slot = Slot(0x10010, 0x123, client.memory.add_file(K4))
        client.dma_map(slot, share)
        client.dma_unmap(0x10010, 0x123)


@pytest.mark.parametrize("flags", [MAP_RW, MAP_RW | MAP_MMAP, MAP_RW | MAP_FILE_IO])
def test_descriptor_that_is_no_memory(client, flags):
    """A pipe that can be read and written: memory is of certain kinds of files only."""
    with tempfile.TemporaryDirectory() as directory:
        os.mkfifo(f"{directory}/pipe")
        pipe = os.open(f"{directory}/pipe", os.O_RDWR)
        assert map_error(client, mapping(flags=flags), [pipe]) == errno.ENODEV
        os.close(pipe)


def test_descriptor_that_is_read_only(client):
    """mmap refuses to write; the client learns it."""
    mem = client.memory.add_file(K4)
    fd = os.open(f"/proc/self/fd/{mem.fd}", os.O_RDONLY)
    assert map_error(client, mapping(), [fd]) == errno.EACCES
    assert map_error(client, mapping(flags=MAP_READ), [fd]) == 0
    os.close(fd)


@by_mode
def test_same_map_again(edu, mode):
    slot = add(edu.client, 0, K4, mode)
    share, flags = MODES[mode]
    edu.client.dma_map(slot, share, flags)
    slot.write(0, PATTERN)
    edu.copy(0, 0x800, 64)
    assert slot.read(0x800, 64) == PATTERN[:64]
    edu.client.dma_unmap(0, K4)
    assert unmap_error(edu.client, 0, K4) == errno.ENOENT


@pytest.mark.parametrize("what", ["file", "offset", "protection"])
def test_same_range_with_another(client, what):
    slot = client.memory.add(0, K4, client.memory.add_file(2 * K4))
    client.dma_map(slot)
    flags = MAP_READ if what == "protection" else MAP_RW
    mem = client.memory.add_file(2 * K4) if what == "file" else slot.mem
    payload = mapping(flags=flags, offset=K4 if what == "offset" else 0)
    assert map_error(client, payload, [mem.fd]) == errno.EEXIST


@pytest.mark.parametrize("addr, size", [
    (0x0F000, 2 * K4), (0x11000, K4), (0x12000, 2 * K4), (0x0F000, 8 * K4), (0x10000, K4),
    (0x10000, 4 * K4), (0x12FFF, 1), (0, 0x10001)])
@pytest.mark.parametrize("share", [True, False])
def test_overlap(client, addr, size, share):
    """The map is at 0x10000 and 0x3000 long."""
    slot = client.memory.add(0x10000, 3 * K4)
    client.dma_map(slot)
    mem = client.memory.add_file(17 * K4)
    assert map_error(client, mapping(addr, size), [mem.fd] if share else []) == errno.EEXIST


@pytest.mark.parametrize("addr, size", [(0x0F000, K4), (0x13000, K4), (0, 0x10000)])
def test_neighbours_do_not_overlap(client, addr, size):
    client.dma_map(client.memory.add(0x10000, 3 * K4))
    assert map_error(client, mapping(addr, size)) == 0


def test_surplus_descriptors(server, client):
    files = [client.memory.add_file(K4) for _ in range(4)]
    assert map_error(client, mapping(), [mem.fd for mem in files]) == 0
    assert server.guest_fds(client) <= 1


def test_many_maps_of_one_file(server, client):
    """As a guest with an IOMMU makes them: the same file with each map."""
    mem = client.memory.add_file(M2)
    for i in range(512):
        client.dma_map(Slot(i * 2 * K4, K4, mem, i * K4))
    client.dma_unmap(0, 0, UNMAP_ALL)
    assert server.guest_fds(client) == 0
    assert server.guest_maps(client) == 0


# Unmaps

@by_mode
def test_unmap_lets_go_of_the_file(server, client, mode):
    add(client, 0, K4, mode)
    client.dma_unmap(0, K4)
    assert server.guest_fds(client) == 0
    assert server.guest_maps(client) == 0


@pytest.mark.parametrize("addr, size", [(0, K4), (0x20000, K4), (0x10000 - K4, K4),
                                        (0x10000 + 3 * K4, K4), ((1 << 64) - K4, K4)])
def test_unmap_of_nothing(client, addr, size):
    add(client, 0x10000, 3 * K4)
    assert unmap_error(client, addr, size) == errno.ENOENT
    client.dma_unmap(0x10000, 3 * K4)


CUTS = [(0x10000, K4), (0x11000, K4), (0x12000, K4), (0x0F000, 2 * K4), (0x12000, 2 * K4),
        (0x0F000, 4 * K4 - 1), (0x10001, 4 * K4)]


@pytest.mark.parametrize("addr, size", CUTS)
def test_unmap_that_cuts_a_map(client, addr, size):
    """Nothing is removed."""
    add(client, 0x10000, 3 * K4)
    assert unmap_error(client, addr, size) == errno.ENOENT
    client.dma_unmap(0x10000, 3 * K4)


def test_unmap_that_holds_one_and_cuts_another(client):
    add(client, 0x10000, K4)
    add(client, 0x11000, 2 * K4)
    assert unmap_error(client, 0x10000, 2 * K4) == errno.ENOENT
    client.dma_unmap(0x10000, K4)
    client.dma_unmap(0x11000, 2 * K4)


def test_unmap_range_with_several_maps(server, client):
    """QEMU with a guest IOMMU unmaps 2 GiB over a handful of 4 KiB maps."""
    for addr in (0, 0x10000, 0x7FFFF000, 0x80000000):
        add(client, addr, K4)
    client.dma_unmap(0, 0x80000000)
    assert [unmap_error(client, addr, K4) for addr in (0, 0x10000, 0x7FFFF000)] == (
        [errno.ENOENT] * 3)
    assert server.guest_fds(client) <= 1
    client.dma_unmap(0x80000000, K4)


def test_unmap_all(server, client):
    for i in range(8):
        add(client, i * M2, K4, mode=list(MODES)[i % len(MODES)])
    client.dma_unmap(0, 0, UNMAP_ALL)
    assert [unmap_error(client, i * M2, K4) for i in range(8)] == [errno.ENOENT] * 8
    assert server.guest_maps(client) == 0


def test_unmap_all_of_nothing(client):
    client.dma_unmap(0, 0, UNMAP_ALL)


BAD_UNMAPS = {
    "all with address": (K4, 0, UNMAP_ALL),
    "all with size": (0, K4, UNMAP_ALL),
    "all with the largest size": (0, (1 << 64) - 1, UNMAP_ALL),
    "all and bitmap": (0, 0, UNMAP_ALL | UNMAP_GET_DIRTY),
    "unknown flag 4": (0, K4, 4),
    "unknown flag 2^31": (0, K4, 1 << 31),
    "bitmap that is not there": (0, K4, UNMAP_GET_DIRTY),
}


@pytest.mark.parametrize("name", BAD_UNMAPS)
def test_bad_unmap(client, name):
    add(client, 0, K4)
    assert unmap_error(client, *BAD_UNMAPS[name]) == errno.EINVAL
    client.dma_unmap(0, K4)


@pytest.mark.parametrize("argsz", [0, 23, (1 << 20) + 1, 0xFFFFFFFF])
def test_unmap_argsz(client, argsz):
    add(client, 0, K4)
    payload = wire.DMA_UNMAP.pack(argsz=argsz, addr=0, size=K4)
    assert client.error_of(Cmd.DMA_UNMAP, payload) == errno.EINVAL
    client.dma_unmap(0, K4)


@pytest.mark.parametrize("size", [0, 1, 8, 1 << 20, (1 << 64) - 1])
def test_unmap_with_bitmap_without_logging(client, size):
    add(client, 0, K4)
    payload = wire.DMA_UNMAP.pack(argsz=40 + 8, flags=UNMAP_GET_DIRTY, addr=0, size=K4)
    payload += wire.BITMAP.pack(pgsize=K4, size=size)
    assert client.error_of(Cmd.DMA_UNMAP, payload) == errno.EINVAL
    client.dma_unmap(0, K4)


def test_unmap_with_descriptor(server, client):
    """SPDK's client attaches the file to DMA_UNMAP too."""
    slot = add(client, 0, K4)
    client.dma_unmap(0, K4, fds=[slot.mem.fd])
    assert server.guest_fds(client) == 0


def test_maps_end_with_the_connection(server, client):
    for i in range(8):
        add(client, i * M2, K4)
    client.close()
    client = server.client()
    assert unmap_error(client, 0, K4) == errno.ENOENT
    assert server.guest_maps(client) == 0


def test_maps_survive_a_reset(edu):
    slot = add(edu.client, 0, K4)
    edu.client.reset()
    edu.enable_bus_master()
    slot.write(0, PATTERN)
    edu.copy(0, 0x800, 64)
    assert slot.read(0x800, 64) == PATTERN[:64]


# The DMA mask

@pytest.mark.server_args("--dma-mask", "40")
def test_memory_above_4_gib(edu):
    slot = add(edu.client, 1 << 36, 2 * K4)
    slot.write(0, PATTERN)
    edu.copy(1 << 36, (1 << 36) + K4, 64)
    assert slot.read(K4, 64) == PATTERN[:64]


@by_mode
def test_address_beyond_the_mask(edu, mode):
    """QEMU's device cuts the address to 28 bits: what is above is not reached."""
    high = add(edu.client, 1 << 28, K4, mode)
    edu.to_ram(1 << 28, 64)
    edu.from_ram(1 << 28, 64)
    assert high.read(0, K4) == bytes(K4)


@pytest.mark.parametrize("src, dst, count", [
    (hw.BUFFER - 1, 0, 16), (hw.BUFFER + 4095, 0, 2), (hw.BUFFER, 0, 4097),
    (hw.BUFFER, 0, (1 << 64) - 1), (0, 0, 16), ((1 << 64) - 1, 0, 2), (hw.BUFFER, 0, 0)])
def test_outside_the_devices_buffer(edu, src, dst, count):
    """The guest's driver is not trusted with the device's memory."""
    slot = add(edu.client, 0, 4 * K4)
    edu.dma(src, dst, count, hw.DMA_TO_RAM)
    edu.dma(dst, src, count)
    assert edu.read(hw.REG_ID) == hw.IDENTITY
    edu.to_ram(0, 16)
    assert slot.read(0, 16) == bytes(16)
