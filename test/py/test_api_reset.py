# SPDX-License-Identifier: BSD-3-Clause
"""The reset callback: its three occasions, its errors, and what a reset leaves alone."""

import ctypes
import errno
import os
import struct

import pytest

from vfiouser import wire
from vfiouser.api import abi
from vfiouser.api.fixtures import fails
from vfiouser.wire import CONFIG, INTX, Cmd

EXP_AT = 0x40
CONTROL = EXP_AT + 8
FLR = b"\x00\x80"


def express(flr=True):
    return bytes([0x10, 0, 2, 0]) + struct.pack("<I", 1 << 28 if flr else 0) + bytes(52)


def failing(error):
    def reset(*_):
        raise OSError(error, "")
    return reset


@pytest.fixture
def client(workshop, device):
    device.pci_init()
    device.add_capability(express())
    device.setup_irqs(INTX, 1)
    device.setup_dma(8, None, device.record("unmap"))
    device.setup_reset(device.record("reset"))
    return workshop.attach(device)


def write_control(client, data):
    payload = wire.REGION_ACCESS.pack(offset=CONTROL, region=CONFIG, count=len(data)) + data
    return client.error_of(Cmd.REGION_WRITE, payload)


def test_device_reset(device, client):
    for payload in (b"", b"whatever"):
        assert client.request(Cmd.DEVICE_RESET, payload).payload == b""
    assert device.events == [("reset", abi.RESET_DEVICE)] * 2


def test_flr(device, client):
    assert write_control(client, b"\x10\x80") == 0
    assert device.events == [("reset", abi.RESET_FLR)]
    assert client.read_int(CONFIG, CONTROL, 2) == 0, "the register is reset, too"
    assert write_control(client, b"\x20\x00") == 0
    assert device.events == [("reset", abi.RESET_FLR)], "no reset without the bit"


def test_flr_without_capability(workshop, device):
    """The bit is reserved, and the guest is not told an error."""
    device.pci_init()
    device.add_capability(express(flr=False))
    device.setup_reset(device.record("reset"))
    client = workshop.attach(device)
    assert write_control(client, FLR) == 0
    assert client.read_int(CONFIG, CONTROL, 2) == 0
    assert not device.events


@pytest.mark.parametrize("error", [errno.EIO, errno.EBUSY, errno.ENOTCONN, errno.EAGAIN])
def test_callback_fails(device, client, error):
    device.setup_reset(failing(error))
    assert client.error_of(Cmd.DEVICE_RESET) == error
    assert write_control(client, FLR) == error
    device.setup_reset(None)
    client.reset()


def test_callback_fails_without_errno(device, client):
    def forgetful(_type):
        ctypes.set_errno(0)
        return -1

    device.setup_reset(forgetful)
    assert client.error_of(Cmd.DEVICE_RESET) == errno.EIO


@pytest.mark.parametrize("result", [1, errno.EBUSY, 0x7FFFFFFF])
def test_positive_result_is_success(device, client, result):
    """As in libvfio-user 0.x: only a negative one fails."""
    device.setup_reset(device.record("reset", lambda _type: result))
    client.reset()
    assert write_control(client, FLR) == 0
    assert device.take_events() == [("reset", abi.RESET_DEVICE), ("reset", abi.RESET_FLR)]


def test_failure_on_lost_connection_is_ignored(workshop, device, client):
    device.setup_reset(failing(errno.EIO))
    client.close()
    with fails(errno.ENOTCONN):
        device.run()
    workshop.attach(device).device_info()


def test_no_callback(workshop, device):
    """A function level reset that nobody does is refused, as in 0.x since the middle of 2026."""
    device.pci_init()
    device.add_capability(express())
    client = workshop.attach(device)
    client.write_int(CONFIG, 0x3C, 0x0B, 1)
    assert write_control(client, FLR) == errno.EINVAL
    assert client.read_int(CONFIG, 0x3C, 1) == 0x0B
    client.reset()
    assert client.read_int(CONFIG, 0x3C, 1) == 0


def test_callback_replaced(device, client):
    """At any time; the function itself says 0."""
    assert device.setup_reset(device.record("another")) == 0
    client.reset()
    assert device.setup_reset(None) == 0
    client.reset()
    assert device.events == [("another", abi.RESET_DEVICE)]


def test_what_a_reset_leaves_alone(device, client):
    """Memory and interrupts are the client's, and migration state the device's business."""
    device.setup_migration(*[lambda *_: 0] * 3)
    client.add_memory(0x10000, 0x1000).write(0, b"kept")
    event = os.eventfd(0)
    client.set_irqs(INTX, wire.DATA_EVENTFD | wire.ACTION_TRIGGER, fds=[event])
    state = wire.FEATURE_MIG_STATE.pack(device_state=6)
    client.feature(wire.FEATURE_SET | wire.FEAT_MIG_STATE, state)
    client.reset()
    assert write_control(client, FLR) == 0
    assert device.events == [("reset", abi.RESET_DEVICE), ("reset", abi.RESET_FLR)]
    assert device.sgl_read(device.sgl(0x10000, 4), abi.DIRECT) == b"kept"
    device.lib.vfu_irq_trigger(device.ctx, 0)
    assert os.eventfd_read(event) == 1
    os.close(event)
    reply = client.feature(wire.FEATURE_GET | wire.FEAT_MIG_STATE, bytes(8))
    assert wire.FEATURE_MIG_STATE.unpack(reply.payload, 8).device_state == 6


def lose(device, client):
    client.close()
    with fails(errno.ENOTCONN):
        device.run()


ENDS = {
    abi.RESET_DEVICE: lambda device, client: client.reset(),
    abi.RESET_FLR: lambda device, client: write_control(client, FLR),
    abi.RESET_LOST_CONN: lose,
}


@pytest.mark.parametrize("kind", ENDS)
def test_callback_meets_the_reset_state(workshop, device, client, kind):
    """What it writes into configuration space stays, also what a guest could have written."""
    seen = []

    def reset(_type):
        seen.append((device.config_int(4, 2), device.config_int(0x3C, 1)))
        device.config[0x3C] = 0x77
        device.config[0x50] = 0x99

    device.config[8] = 3
    device.setup_reset(reset)
    client.write_int(CONFIG, 4, 6, 2)
    client.write_int(CONFIG, 0x3C, 0x0B, 1)
    ENDS[kind](device, client)
    device.setup_reset(None)
    assert seen == [(0, 0)]
    if kind == abi.RESET_LOST_CONN:
        client = workshop.attach(device)
    assert client.read_int(CONFIG, 0x3C, 1) == 0x77
    assert (device.config_int(0x50, 1), device.config_int(8, 1)) == (0x99, 3)


@pytest.mark.parametrize("keep", [False, True])
def test_next_client(workshop, device, client, keep):
    device.lib.vfu_setup_device_keep_state(device.ctx, keep)
    client.write_int(CONFIG, 4, 6, 2)
    lose(device, client)
    client = workshop.attach(device)
    assert client.read_int(CONFIG, 4, 2) == (6 if keep else 0)
    client.reset()
    assert client.read_int(CONFIG, 4, 2) == 0, "a reset is one in any case"


@pytest.mark.parametrize("kind", ENDS)
def test_config_space_that_the_device_serves(workshop, device, kind):
    """With ALWAYS_CB it is the device's to reset, whatever the library's copy says."""
    device.pci_init()
    device.add_capability(express())
    device.memory_region(CONFIG, 4096, abi.RW | abi.ALWAYS_CB)
    device.config[4] = 6
    client = workshop.attach(device)
    device.config[0x0C] = 0x10
    ENDS[kind](device, client)
    assert device.config_int(4, 2) == 6 and device.config_int(0x0C, 1) == 0x10


def test_order_when_the_connection_is_lost(device, client):
    """First the memory goes, then the device is told; interrupts may still be raised meanwhile."""
    client.add_memory(0x10000, 0x1000)
    event = os.eventfd(0)
    client.set_irqs(INTX, wire.DATA_EVENTFD | wire.ACTION_TRIGGER, fds=[event])
    device.setup_dma(8, None, lambda info: device.events.append("unmap"))

    def reset(_type):
        device.lib.vfu_irq_trigger(device.ctx, 0)
        with fails(errno.ENOENT):
            device.sgl(0x10000, 4)
        device.events.append("reset")

    device.setup_reset(reset)
    client.close()
    with fails(errno.ENOTCONN):
        device.run()
    assert device.events == ["unmap", "reset"]
    assert os.eventfd_read(event) == 1
    os.close(event)
    device.setup_reset(None)
