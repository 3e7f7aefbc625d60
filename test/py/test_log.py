# SPDX-License-Identifier: BSD-3-Clause
"""What the library says, to whom, how often."""

import errno
import os
import re
import struct

import pytest

from vfiouser import wire
from vfiouser.api.fixtures import fails
from vfiouser.client import CAPABILITIES
from vfiouser.wire import BAR0, CONFIG, Cmd

LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG = 3, 4, 6, 7
BURST = 10

STOP, RUNNING, STOP_COPY, RESUMING = 1, 2, 3, 4


def lines_of(device):
    """What was logged, as (level, text)."""
    return [(level, text.decode()) for name, level, text in device.events if name == "log"]


def refused(client, index=77):
    return client.error_of(Cmd.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(argsz=16, index=index))


# VFU_LOG


@pytest.mark.parametrize("value,shown", [("err", {"err"}), ("warn", {"err"}),
                                         ("info", {"err", "info"}),
                                         ("debug", {"err", "info", "debug"})])
def test_the_environment_asks_for_a_log(workshop, monkeypatch, capfd, value, shown):
    monkeypatch.setenv("VFU_LOG", value)
    device = workshop.device()
    client = workshop.attach(device)
    client.device_info()
    assert refused(client) == errno.EINVAL
    lines = capfd.readouterr().err.splitlines()
    found = [re.fullmatch(rf".+\[{re.escape(device.path)}\]: (\w+): .+", line) for line in lines]
    assert all(found) and {match[1] for match in found} == shown, lines


@pytest.mark.parametrize("value", [None, "", "loud"])
def test_the_environment_asks_for_nothing(workshop, monkeypatch, capfd, value):
    if value is not None:
        monkeypatch.setenv("VFU_LOG", value)
    device = workshop.device()
    assert refused(workshop.attach(device)) == errno.EINVAL
    said = capfd.readouterr().err
    assert ("VFU_LOG=loud: not debug" in said) if value == "loud" else said == ""


def test_a_log_function_wins(workshop, monkeypatch, capfd):
    monkeypatch.setenv("VFU_LOG", "debug")
    device = workshop.device()
    device.setup_log(device.record("log"), LOG_ERR)
    refused(workshop.attach(device))
    assert capfd.readouterr().err == ""
    assert [level for level, _ in lines_of(device)] == [LOG_ERR]


# The rate limit


@pytest.fixture
def flooded(workshop, device):
    """A device and its client, who was refused the same 100 times, and something else once."""
    device.setup_log(device.record("log"), LOG_INFO)
    client = workshop.attach(device)
    device.take_events()
    for i in range(100):
        assert refused(client, 100 + i) == errno.EINVAL
    assert client.error_of(Cmd.DEVICE_GET_REGION_INFO,
                           wire.REGION_INFO.pack(argsz=32, index=99)) == errno.EINVAL
    return device


def test_a_flood_is_cut_and_other_lines_are_not(flooded):
    lines = [text for _, text in lines_of(flooded)]
    assert len(lines) == BURST + 1
    assert all(str(100 + i) in line for i, line in enumerate(lines[:-1]))
    assert "99" in lines[-1]
    assert flooded.lib.vfu_next_timeout(flooded.ctx) > 0, "the count is still to come"


def test_the_end_of_a_context_shows_what_was_left_out(flooded):
    flooded.take_events()
    flooded.destroy()
    assert any(re.match(rf"{100 - BURST} more lines left out in \d+ s, the first: .*110", text)
               for level, text in lines_of(flooded) if level == LOG_ERR), flooded.events


def test_the_last_line_of_a_context_names_its_socket(workshop, monkeypatch, capfd):
    monkeypatch.setenv("VFU_LOG", "err")
    device = workshop.device()
    client = workshop.attach(device)
    for _ in range(BURST + 1):
        refused(client)
    device.destroy()
    lines = capfd.readouterr().err.splitlines()
    assert "more lines left out" in lines[-1] and f"[{device.path}]" in lines[-1], lines


def test_debug_lines_are_not_limited(workshop, device):
    device.setup_log(device.record("log"), LOG_DEBUG)
    client = workshop.attach(device)
    device.take_events()
    for _ in range(3 * BURST):
        client.device_info()
    assert len(lines_of(device)) == 3 * BURST
    assert all(level == LOG_DEBUG for level, _ in lines_of(device))


def test_each_context_has_its_own_limit(workshop, flooded):
    other = workshop.device()
    other.setup_log(other.record("log"), LOG_ERR)
    refused(workshop.attach(other))
    assert len(lines_of(other)) == 1


def test_a_device_floods_no_more_than_the_library(device, lib):
    device.setup_log(device.record("log"), LOG_DEBUG)
    for i in range(100):
        lib.vfu_log(device.ctx, LOG_WARNING, b"%d", i)
    assert len(lines_of(device)) == BURST
    for i in range(100):
        lib.vfu_log(device.ctx, LOG_DEBUG, b"%d", i)
    assert len(lines_of(device)) == BURST + 100


# Each request and its outcome


@pytest.fixture
def debugged(workshop, device):
    """A device with everything, whose log is at LOG_DEBUG, and a client."""
    device.setup_log(device.record("log"), LOG_DEBUG)
    device.pci_init()
    device.setup_region(BAR0, access=lambda buf, count, *_: count)
    device.setup_region(CONFIG, 4096)
    device.setup_irqs(wire.INTX, 1)
    device.setup_irqs(wire.MSIX, 4)
    device.setup_dma()
    device.setup_reset(lambda *_: 0)
    device.setup_migration(lambda _state: 0, lambda _buf, size: size, lambda _buf, size: size)
    client = workshop.attach(device, {**CAPABILITIES, "write_multiple": True})
    device.take_events()
    return client


def set_irqs(flags, fds=(), index=wire.MSIX, start=0, count=1):
    return (Cmd.DEVICE_SET_IRQS,
            wire.IRQ_SET.pack(argsz=20, flags=flags, index=index, start=start, count=count), fds)


def access(region, offset, count, data=b""):
    return wire.REGION_ACCESS.pack(offset=offset, region=region, count=count) + data


def feature(flags, data=b""):
    return Cmd.DEVICE_FEATURE, wire.FEATURE.pack(argsz=64, flags=flags) + data


def mig_state(state):
    return feature(wire.FEATURE_SET | wire.FEAT_MIG_STATE, struct.pack("<II", state, 0))


def dma_map(addr, size, flags=3, offset=0):
    return Cmd.DMA_MAP, wire.DMA_MAP.pack(argsz=32, flags=flags, offset=offset, addr=addr, size=size)


def dma_unmap(addr, size, flags=0):
    return Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, flags=flags, addr=addr, size=size)


EVENTFD = object()

SERVED = [
    ([(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16))],
     "devinfo flags 0x3, num_regions 9, num_irqs 5"),
    ([(Cmd.DEVICE_GET_REGION_INFO, wire.REGION_INFO.pack(argsz=32, index=0))],
     "region_info[0] offset 0 flags 0x3 size 4096 argsz 32"),
    ([(Cmd.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(argsz=16, index=2))],
     "irq_info[2] flags 0x1 count 4 argsz 16"),
    ([(Cmd.DEVICE_GET_REGION_IO_FDS, struct.pack("<IIII", 16, 0, 0, 0))],
     "region_io_fds[0] count 0 argsz 16"),
    ([(Cmd.REGION_READ, access(CONFIG, 0, 256))], "region7: read 256 bytes at 0"),
    ([(Cmd.REGION_WRITE, access(CONFIG, 0x3C, 1, b"\x0b"))], "region7: wrote 0xb to (0x3c:1)"),
    ([(Cmd.REGION_WRITE, access(BAR0, 8, 8, b"\xff" * 8))],
     "region0: wrote 0xffffffffffffffff to (0x8:8)"),
    ([(Cmd.REGION_WRITE, access(BAR0, 8, 3, b"abc"))], "region0: wrote 3 bytes at 0x8"),
    ([set_irqs(wire.DATA_EVENTFD | wire.ACTION_TRIGGER, [EVENTFD] * 2, start=1, count=2)],
     "IRQ type MSI-X range [1, 3) set, an eventfd for each, flags 0x24"),
    ([set_irqs(wire.DATA_EVENTFD | wire.ACTION_TRIGGER, start=1, count=2)],
     "IRQ type MSI-X range [1, 3) disabled, flags 0x24"),
    ([set_irqs(wire.DATA_NONE | wire.ACTION_TRIGGER, count=0)],
     "IRQ type MSI-X range [0, 4) disabled, flags 0x21"),
    ([set_irqs(wire.DATA_NONE | wire.ACTION_MASK, index=wire.INTX)],
     "IRQ type INTx range [0, 1) masked, flags 0x9"),
    ([set_irqs(wire.DATA_NONE | wire.ACTION_UNMASK, index=wire.INTX)],
     "IRQ type INTx range [0, 1) unmasked, flags 0x11"),
    ([dma_map(0x10000, 0x2000, offset=0x1000)],
     "adding DMA region [0x10000, 0x12000) offset=0x1000 flags=0x3"),
    ([dma_map(0x10000, 0x2000), dma_unmap(0x10000, 0x2000)],
     "removing DMA region [0x10000, 0x12000) flags=0: 1 removed"),
    ([dma_unmap(0, 0, wire.UNMAP_ALL)], "removing DMA region [0, 0) flags=0x2: 0 removed"),
    ([(Cmd.DEVICE_RESET, b"")], "DEVICE_RESET id {id}: the device was reset"),
    ([feature(wire.FEATURE_GET | wire.FEAT_MIGRATION)], "device feature 1: get"),
    ([mig_state(STOP), mig_state(STOP_COPY),
      (Cmd.MIG_DATA_READ, struct.pack("<II", 16, 8))], "migration data: read 8 of 8 bytes"),
    ([mig_state(RESUMING),
      (Cmd.MIG_DATA_WRITE, struct.pack("<II", 16, 8) + bytes(8))], "migration data: wrote 8 bytes"),
]


@pytest.mark.parametrize("requests,line", SERVED, ids=[line for _, line in SERVED])
def test_each_request_leaves_a_line(debugged, requests, line):
    """The last of the requests leaves exactly this one."""
    for cmd, payload, *fds in requests:
        debugged.device.take_events()
        events = [os.eventfd(0) for _ in (fds[0] if fds else ())]
        reply = debugged.request(cmd, payload, events)
        for fd in events + reply.fds:
            os.close(fd)
    assert lines_of(debugged.device) == [(LOG_DEBUG, line.format(id=reply.id))]


def test_a_device_that_quiesces_leaves_two_lines(workshop, device):
    device.setup_log(device.record("log"), LOG_DEBUG)
    device.setup_quiesce(lambda: (_ for _ in ()).throw(OSError(errno.EBUSY, "")))
    client = workshop.attach(device)
    device.take_events()
    msg_id = client.send(Cmd.DEVICE_RESET)
    with fails(errno.EBUSY):
        device.run()
    device.quiesced()
    client.wait(msg_id)
    name = f"DEVICE_RESET id {msg_id}: "
    assert lines_of(device) == [(LOG_DEBUG, name + text) for text in (
        "the device begins to quiesce, other requests wait", "the device has quiesced",
        "the device was reset")]
