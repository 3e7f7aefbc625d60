# SPDX-License-Identifier: BSD-3-Clause
"""One refusal, one line, with its reason, at one level."""

import ctypes
import errno
import os
import struct

import pytest

from vfiouser import wire
from vfiouser.api import abi
from vfiouser.api.fixtures import fails
from vfiouser.client import CAPABILITIES
from vfiouser.software_iommu import CAPS
from vfiouser.wire import (ACTION_MASK, ACTION_TRIGGER, BAR0, CONFIG, DATA_BOOL, DATA_EVENTFD,
                           DATA_NONE, MSIX, REQ, Cmd)

LOG_ERR, LOG_INFO = 3, 6
PAGE = 0x1000


def irqs(flags, index=MSIX, start=0, count=1, data=b"", fds=()):
    payload = wire.IRQ_SET.pack(argsz=20 + len(data), flags=flags, index=index, start=start,
                                count=count) + data
    return Cmd.DEVICE_SET_IRQS, payload, fds


def read(region, offset, count):
    return Cmd.REGION_READ, wire.REGION_ACCESS.pack(offset=offset, region=region, count=count)


def write(region, offset, data, count=None):
    head = wire.REGION_ACCESS.pack(offset=offset, region=region,
                                   count=len(data) if count is None else count)
    return Cmd.REGION_WRITE, head + data


def multi(*writes, count=None):
    entries = b"".join(struct.pack("<QII8s", offset, region, count, b"") for region, offset, count
                       in writes)
    return Cmd.REGION_WRITE_MULTI, struct.pack("<Q", count or len(writes)) + entries


def dma_map(addr, size, flags=3, offset=0, fds=()):
    return (Cmd.DMA_MAP, wire.DMA_MAP.pack(argsz=32, flags=flags, offset=offset, addr=addr,
                                           size=size), fds)


def unmap(addr, size, flags=0, argsz=24, bitmap=b""):
    return (Cmd.DMA_UNMAP,
            wire.DMA_UNMAP.pack(argsz=argsz, flags=flags, addr=addr, size=size) + bitmap)


def feature(flags, data=b"", argsz=64):
    return Cmd.DEVICE_FEATURE, wire.FEATURE.pack(argsz=argsz, flags=flags) + data


def mig_state(state):
    return feature(wire.FEATURE_SET | wire.FEAT_MIG_STATE, struct.pack("<II", state, 0))


def logging(page):
    return feature(wire.FEATURE_SET | wire.FEAT_LOGGING_START, struct.pack("<QII", page, 0, 0))


def report(page, length=PAGE, argsz=1 << 16):
    return feature(wire.FEATURE_GET | wire.FEAT_LOGGING_REPORT,
                   wire.LOGGING_REPORT.pack(iova=0x10000, length=length, page_size=page), argsz)


def invalidate(flags, address, length):
    return Cmd.ATS_INVALIDATE, wire.ATS_INVALIDATE.pack(argsz=24, flags=flags, address=address,
                                                        length=length)


# Files that go with a message: a memory file of two pages, one that is read-only, an eventfd, a
# pipe that is full.
MEMORY, READ_ONLY, EVENTFD, PIPE = "memory", "read-only", "eventfd", "pipe"

PREPARED = [
    dma_map(0x10000, 2 * PAGE, fds=[MEMORY]),
    irqs(DATA_EVENTFD | ACTION_TRIGGER, fds=[EVENTFD]),
]

# What is refused, with a word of the reason.
REFUSED = {
    "an unknown command": ((99, b""), "not one a client sends"),
    "a command of the server": ((Cmd.DMA_READ, bytes(16)), "not one a client sends"),
    "a second VERSION": ((Cmd.VERSION, bytes(4)), "not possible"),
    "neither command nor reply": ((Cmd.DEVICE_GET_INFO, bytes(16), (), 2), "neither"),
    "a payload cut short": ((Cmd.DEVICE_GET_INFO, bytes(8)), "payload of 8 bytes"),
    "argsz": ((Cmd.DEVICE_GET_INFO, bytes(16)), "argsz 0"),
    "a PASID prefix where none goes": (
        (Cmd.DEVICE_RESET, bytes(8), (), wire.F_PASID), "not allowed with this command"),
    "a PASID prefix cut short": ((Cmd.DMA_MAP, bytes(4), (), wire.F_PASID), "too short"),
    "a PASID out of range": (
        (Cmd.DMA_MAP, struct.pack("<II", 1 << 20, 0) + dma_map(0, PAGE)[1], (), wire.F_PASID),
        "out of range"),
    "no such region": ((Cmd.DEVICE_GET_REGION_INFO, wire.REGION_INFO.pack(argsz=32, index=9)),
                       "region 9"),
    "ioeventfds of no region": ((Cmd.DEVICE_GET_REGION_IO_FDS, struct.pack("<4I", 16, 0, 9, 0)),
                                "index 9"),
    "ioeventfds of a region not set up": (
        (Cmd.DEVICE_GET_REGION_IO_FDS, struct.pack("<4I", 16, 0, 5, 0)), "never set up"),
    "no such interrupt type": ((Cmd.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(argsz=16, index=5)),
                               "type 5"),
    "interrupts: type": (irqs(DATA_NONE | ACTION_MASK, index=5), "no such type"),
    "interrupts: flags": (irqs(DATA_NONE), "one action"),
    "interrupts: range": (irqs(DATA_NONE | ACTION_MASK, start=4), "beyond"),
    "interrupts: bytes": (irqs(DATA_BOOL | ACTION_MASK, count=2, data=b"\1"), "one byte per"),
    "interrupts: REQ masked": (irqs(DATA_NONE | ACTION_MASK, index=REQ), "triggered"),
    "interrupts: no eventfd": (irqs(DATA_EVENTFD | ACTION_TRIGGER, fds=[PIPE]), "no eventfd"),
    "interrupts: descriptors": (irqs(DATA_EVENTFD | ACTION_TRIGGER, count=2, fds=[EVENTFD]),
                                "number of file descriptors"),
    "interrupts: descriptors without need": (irqs(DATA_NONE | ACTION_MASK, fds=[EVENTFD]),
                                             "without data type EVENTFD"),
    "read of no region": (read(9, 0, 4), "region 9"),
    "read beyond the end": (read(BAR0, PAGE, 4), "out of bounds"),
    "write of another size": (write(BAR0, 0, b"abcd", 5), "count of 5"),
    "read that the device refuses": (read(BAR0, 0x10, 4), "Operation not supported"),
    "write of which the device takes less": (write(BAR0, 0x20, bytes(4)), "returned 3"),
    "region without a callback": (read(2, 0, 4), "no callback"),
    "many writes: size": (multi((BAR0, 0, 4), count=2), "2 writes"),
    "many writes: one too large": (multi((BAR0, 0, 9)), "9 bytes"),
    "many writes: one out of bounds": (multi((BAR0, 0, 4), (BAR0, PAGE, 4)), "out of bounds"),
    "many writes: one that the device refuses": (multi((BAR0, 0x10, 4)), "not supported"),
    "map: flags": (dma_map(0x20000, PAGE, 0x13), "unknown or contradictory"),
    "map: no descriptor": (dma_map(0x20000, PAGE, 7), "without a file descriptor"),
    "map: size": (dma_map(0, 1 << 60), "above"),
    "map: wraps": (dma_map((1 << 64) - PAGE, 2 * PAGE), "wraps"),
    "map: overlaps": (dma_map(0x11000, 2 * PAGE), "overlaps the mapping"),
    "map: no memory": (dma_map(0x20000, PAGE, fds=[EVENTFD]), ""),
    "map: beyond the file": (dma_map(0x20000, PAGE, offset=2 * PAGE, fds=[MEMORY]), "beyond"),
    "map: read-only file": (dma_map(0x20000, PAGE, fds=[READ_ONLY]), "does not allow"),
    "unmap: nothing there": (unmap(0x40000, PAGE), "nothing is mapped"),
    "unmap: cuts": (unmap(0x10000, PAGE), "cuts the mapping"),
    "unmap: wraps": (unmap((1 << 64) - PAGE, 2 * PAGE), "wraps"),
    "unmap: flags": (unmap(0, 0, 3), "contradictory"),
    "unmap: all of a range": (unmap(0, PAGE, wire.UNMAP_ALL), "must be 0"),
    "unmap: no bitmap": (unmap(0x10000, 2 * PAGE, wire.UNMAP_GET_DIRTY), "no room"),
    "unmap: bitmap without logging": (
        unmap(0x10000, 2 * PAGE, wire.UNMAP_GET_DIRTY, 64, struct.pack("<QQ", PAGE, 8)),
        "not logged"),
    "unmap: PASID": ((Cmd.DMA_UNMAP, struct.pack("<II", 7, 0) + unmap(0, PAGE)[1], (),
                      wire.F_PASID), "PASID 0x7"),
    "feature: unknown": (feature(wire.FEATURE_GET | 77), "feature 77"),
    "feature: operation": (feature(wire.FEATURE_SET | wire.FEAT_MIGRATION), "does not do"),
    "feature: room": (feature(wire.FEATURE_GET | wire.FEAT_MIGRATION, argsz=8), "too small"),
    "migration state": (mig_state(77), "no way"),
    "migration data in this state": ((Cmd.MIG_DATA_READ, struct.pack("<II", 16, 8)), "state"),
    "dirty logging: page": (logging(3000), "power of two"),
    "dirty logging: large page": (logging(1 << 40), "larger than some region"),
    "dirty report without logging": (report(PAGE), "not logged"),
    "dirty report: range": (report(PAGE, 0), "no report"),
    "dirty report: room": (report(PAGE, argsz=32), "too small"),
    "invalidation": (invalidate(0, 0x1000, 0), "no range"),
    "invalidation: flags": (invalidate(0x80, 0x1000, PAGE), "no range"),
}


@pytest.fixture
def files():
    memory, pipe = os.memfd_create("memory"), os.pipe()
    os.ftruncate(memory, 2 * PAGE)
    fds = {MEMORY: memory, EVENTFD: os.eventfd(0), PIPE: pipe[1],
           READ_ONLY: os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)}
    yield fds
    for fd in (*fds.values(), pipe[0]):
        os.close(fd)


def bar0(buf, count, offset, _is_write):
    if offset == 0x10:
        raise OSError(errno.EOPNOTSUPP, "")
    return count - 1 if offset == 0x20 else count


@pytest.fixture
def victim(workshop, device, files):
    """A device with everything, a client that knows the extension, and what PREPARED says."""
    device.pci_init()
    device.setup_region(BAR0, PAGE, bar0)
    device.setup_region(2, PAGE)
    device.setup_region(CONFIG, PAGE)
    device.setup_irqs(MSIX, 4)
    device.setup_dma()
    device.setup_migration(lambda _state: 0, lambda _buf, size: size, lambda _buf, size: size)
    config = abi.IommuConfig(size=ctypes.sizeof(abi.IommuConfig), pasid_bits=16, ats=True,
                             invalidate=abi.NULL[abi.INVALIDATE], state=abi.NULL[abi.IOMMU_STATE])
    device.lib.vfu_setup_device_iommu(device.ctx, ctypes.byref(config))
    client = workshop.attach(device, {**CAPABILITIES, "iommu": CAPS, "write_multiple": True})
    for cmd, payload, fds in PREPARED:
        client.request(cmd, payload, [files[fd] for fd in fds])
    device.setup_log(device.record("log"), LOG_INFO)
    return client


def lines_of(device):
    return [(level, text.decode()) for name, level, text in device.events if name == "log"]


def assert_one_line(device, reason):
    lines = lines_of(device)
    assert len(lines) == 1 and lines[0][0] == LOG_ERR and reason in lines[0][1], lines


@pytest.mark.parametrize("name", REFUSED)
def test_one_line(victim, files, name):
    request, reason = REFUSED[name]
    cmd, payload, fds, flags = (*request, (), 0) if len(request) == 2 else (*request, 0)[:4]
    assert victim.error_of(cmd, payload, [files[fd] for fd in fds], flags) != 0
    assert_one_line(victim.device, reason)


# What the device refuses


def raises(error):
    def call(*_):
        raise OSError(error, "")
    return call


def short(_buf, size):
    return size + 1


MIGRATING = {
    "transition": ((raises(errno.EXDEV), None, None), [mig_state(1)], "Invalid cross-device"),
    "reading": ((lambda _: 0, raises(errno.EXDEV), None),
                [mig_state(3), (Cmd.MIG_DATA_READ, struct.pack("<II", 16, 8))], "Invalid cross"),
    "reading too much": ((lambda _: 0, short, None),
                         [mig_state(3), (Cmd.MIG_DATA_READ, struct.pack("<II", 16, 8))],
                         "returned 9 for 8"),
    "writing": ((lambda _: 0, None, raises(errno.EXDEV)),
                [mig_state(4), (Cmd.MIG_DATA_WRITE, struct.pack("<II", 16, 8) + bytes(8))],
                "Invalid cross"),
    "writing too much": ((lambda _: 0, None, short),
                         [mig_state(4), (Cmd.MIG_DATA_WRITE, struct.pack("<II", 16, 8) + bytes(8))],
                         "returned 9 for 8"),
}


@pytest.mark.parametrize("name", MIGRATING)
def test_one_line_when_migration_fails(workshop, device, name):
    callbacks, requests, reason = MIGRATING[name]
    device.setup_migration(*(callback or (lambda _buf, size: size) for callback in callbacks))
    client = workshop.attach(device)
    device.setup_log(device.record("log"), LOG_INFO)
    for request in requests:
        error = client.error_of(*request)
    assert error != 0
    assert_one_line(device, reason)


@pytest.mark.parametrize("later", [False, True])
def test_one_line_when_the_device_does_not_quiesce(workshop, device, later):
    device.setup_quiesce(raises(errno.EBUSY if later else errno.EXDEV))
    client = workshop.attach(device)
    device.setup_log(device.record("log"), LOG_INFO)
    msg_id = client.send(Cmd.DEVICE_RESET)
    if later:
        with fails(errno.EBUSY):
            device.run()
        device.quiesced(errno.EXDEV)
    assert client.wait(msg_id, check=False).error == errno.EXDEV
    assert_one_line(device, "did not quiesce: Invalid cross-device")


def test_one_line_when_the_device_does_not_reset(workshop, device):
    device.setup_reset(raises(errno.EXDEV))
    client = workshop.attach(device)
    device.setup_log(device.record("log"), LOG_INFO)
    assert client.error_of(Cmd.DEVICE_RESET) == errno.EXDEV
    assert_one_line(device, "reset callback failed: Invalid cross-device")


# Messages that end the connection, and the first one


@pytest.mark.parametrize("size", [8, wire.MAX_MESSAGE + 4096])
def test_one_line_for_a_bad_frame(victim, size):
    victim.send_raw(wire.message(Cmd.DEVICE_GET_INFO, b"", 1, wire.COMMAND, 0, size))
    with fails(errno.ENOTCONN):
        while True:
            victim.device.run()
    assert_one_line(victim.device, f"message size {size}")


VERSIONS = {
    "another command": ((Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16)), "not VERSION"),
    "short": ((Cmd.VERSION, bytes(3)), "payload of 3 bytes"),
    "major": ((Cmd.VERSION, struct.pack("<HH", 1, 0)), "major version 1"),
    "no end": ((Cmd.VERSION, bytes(4) + b"{}"), "NUL"),
    "no object": ((Cmd.VERSION, bytes(4) + b"[]\0"), "refused"),
    "value": ((Cmd.VERSION, bytes(4) + b'{"capabilities": {"max_msg_fds": -1}}\0'), "max_msg_fds"),
    "descriptors": ((Cmd.VERSION, bytes(4) + b"{}\0", [EVENTFD]), "file descriptors"),
}


@pytest.mark.parametrize("name", VERSIONS)
def test_one_line_for_a_bad_version(workshop, device, files, name):
    (cmd, payload, *fds), reason = VERSIONS[name]
    device.realize()
    device.setup_log(device.record("log"), LOG_INFO)
    workshop.peer(device).send(cmd, payload, [files[fd] for fd in (fds[0] if fds else ())])
    with pytest.raises(OSError):
        device.attach()
    assert_one_line(device, reason)


# Replies to the device's own DMA


def answer(**kwargs):
    return lambda client, command: client.reply(command, **kwargs)


def other(client, command):
    client.reply(command, payload=wire.DMA_ACCESS.pack(addr=0x10000, count=8) + bytes(8),
                 cmd=Cmd.DMA_WRITE)


REPLIES = {
    "an error": (answer(error=errno.EXDEV), "failed: Invalid cross-device"),
    "no error number": (lambda client, command: client.reply(command, error=0, flags=wire.ERROR),
                        "number is 0"),
    "too short": (answer(payload=b""), "not between"),
    "another address": (answer(payload=wire.DMA_ACCESS.pack(addr=1, count=8) + bytes(8)),
                        "address 0x1"),
    "another command": (other, "the command was DMA_READ"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_one_line_for_a_bad_reply(workshop, device, name):
    reply, reason = REPLIES[name]
    device.setup_dma()
    client = workshop.attach(device)
    client.add_memory(0x10000, PAGE, share=False)
    device.setup_log(device.record("log"), LOG_INFO)
    client.on_command = lambda command: reply(client, command)
    with client.answering(), pytest.raises(OSError):
        device.sgl_read(device.sgl(0x10000, 8))
    assert_one_line(device, reason)
