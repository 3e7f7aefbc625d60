# SPDX-License-Identifier: BSD-3-Clause
"""DEVICE_SET_IRQS: every data type and action, and event descriptors that fire."""

import errno
import os
import select

import pytest

from vfiouser import edu as hw
from vfiouser import wire
from vfiouser.channel import TIMEOUT
from vfiouser.wire import (ACTION_MASK, ACTION_TRIGGER, ACTION_UNMASK, DATA_BOOL, DATA_EVENTFD,
                           DATA_NONE, ERR, INTX, MSI, MSIX, REQ)

ASSIGN = DATA_EVENTFD | ACTION_TRIGGER
FIRE = DATA_NONE | ACTION_TRIGGER
FIRE_BOOL = DATA_BOOL | ACTION_TRIGGER


@pytest.fixture
def event():
    """Makes event descriptors."""
    fds = []

    def make():
        fds.append(os.eventfd(0, os.EFD_NONBLOCK))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


def wait_event(fd):
    ready, _, _ = select.select([fd], [], [], TIMEOUT)
    assert ready, "the event descriptor was not signalled"
    return os.eventfd_read(fd)


def count_of(fd):
    """How often it was signalled since the last look; the server has answered meanwhile."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


INDEXES = pytest.mark.parametrize("index", [INTX, MSI, ERR, REQ])


@INDEXES
def test_assigned_event_fires(client, event, index):
    fd = event()
    client.set_irqs(index, ASSIGN, fds=[fd])
    assert count_of(fd) == 0
    client.set_irqs(index, FIRE)
    assert count_of(fd) == 1


@INDEXES
@pytest.mark.parametrize("value, count", [(0, 0), (1, 1)])
def test_bool(client, event, index, value, count):
    fd = event()
    client.set_irqs(index, ASSIGN, fds=[fd])
    client.set_irqs(index, FIRE_BOOL, data=bytes([value]))
    assert count_of(fd) == count


@INDEXES
def test_fire_without_event(client, index):
    client.set_irqs(index, FIRE)
    client.set_irqs(index, FIRE_BOOL, data=b"\1")


@INDEXES
def test_event_is_replaced(client, event, index):
    old, new = event(), event()
    client.set_irqs(index, ASSIGN, fds=[old])
    client.set_irqs(index, ASSIGN, fds=[new])
    client.set_irqs(index, FIRE)
    assert (count_of(old), count_of(new)) == (0, 1)


@INDEXES
@pytest.mark.parametrize("flags, count", [(FIRE, 0), (ASSIGN, 1)],
                         ids=["all off", "no descriptor"])
def test_event_is_taken_away(client, event, index, flags, count):
    """Count 0, or descriptors announced and none sent (QEMU's -1)."""
    fd = event()
    client.set_irqs(index, ASSIGN, fds=[fd])
    client.set_irqs(index, flags, count=count)
    client.set_irqs(index, FIRE)
    assert count_of(fd) == 0


def test_assigning_again_and_again_keeps_one(server, client, event):
    client.set_irqs(INTX, ASSIGN, fds=[event()])
    before = server.settled_fds(client)
    for _ in range(20):
        client.set_irqs(INTX, ASSIGN, fds=[event()])
    assert server.settled_fds(client) == before


def test_reply_has_no_payload(client, event):
    assert client.set_irqs(INTX, ASSIGN, fds=[event()]).payload == b""


@pytest.mark.parametrize("index", [INTX, MSI])
@pytest.mark.parametrize("action", [ACTION_MASK, ACTION_UNMASK])
@pytest.mark.parametrize("data_type, data", [(DATA_NONE, b""), (DATA_BOOL, b"\1")])
def test_mask_and_unmask(client, index, action, data_type, data):
    """QEMU sends them for INTx whether or not the information says maskable."""
    client.set_irqs(index, data_type | action, data=data)


BAD = {
    "no data type": (INTX, ACTION_TRIGGER, 0, 1, b""),
    "two data types": (INTX, FIRE | DATA_BOOL, 0, 1, b"\1"),
    "all data types": (INTX, 7 | ACTION_TRIGGER, 0, 1, b""),
    "no action": (INTX, DATA_NONE, 0, 1, b""),
    "two actions": (INTX, DATA_NONE | ACTION_MASK | ACTION_UNMASK, 0, 1, b""),
    "all actions": (INTX, DATA_NONE | 0x38, 0, 1, b""),
    "flags 0": (INTX, 0, 0, 1, b""),
    "index 5": (5, FIRE, 0, 1, b""),
    "largest index": (0xFFFFFFFF, FIRE, 0, 1, b""),
    "count 2": (INTX, FIRE, 0, 2, b""),
    "largest count": (INTX, FIRE, 0, 0xFFFFFFFF, b""),
    "start 1": (INTX, FIRE, 1, 1, b""),
    "start + count wraps": (INTX, FIRE, 1, 0xFFFFFFFF, b""),
    "largest start": (INTX, FIRE, 0xFFFFFFFF, 1, b""),
    "start 1, count 0": (INTX, FIRE, 1, 0, b""),
    "count 0 with mask": (INTX, DATA_NONE | ACTION_MASK, 0, 0, b""),
    "count 0 with bool": (INTX, FIRE_BOOL, 0, 0, b""),
    "count 0 with events": (INTX, ASSIGN, 0, 0, b""),
    "bool without data": (INTX, FIRE_BOOL, 0, 1, b""),
    "bool with too much data": (INTX, FIRE_BOOL, 0, 1, b"\1\1"),
    "index without interrupts": (MSIX, FIRE, 0, 1, b""),
    "index without interrupts, events": (MSIX, ASSIGN, 0, 1, b""),
    "mask ERR": (ERR, DATA_NONE | ACTION_MASK, 0, 1, b""),
    "unmask ERR": (ERR, DATA_NONE | ACTION_UNMASK, 0, 1, b""),
    "mask REQ": (REQ, DATA_NONE | ACTION_MASK, 0, 1, b""),
    "two ERR": (ERR, FIRE, 0, 2, b""),
    "two REQ": (REQ, ASSIGN, 0, 2, b""),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_fields(client, event, name):
    index, flags, start, count, data = BAD[name]
    fd = event()
    client.set_irqs(INTX, ASSIGN, fds=[fd])
    reply = client.set_irqs(index, flags, start, count, data, check=False)
    assert reply.error == errno.EINVAL
    assert count_of(fd) == 0
    client.set_irqs(INTX, FIRE)
    assert count_of(fd) == 1


@pytest.mark.parametrize("argsz", [0, 19])
def test_bad_argsz(client, argsz):
    payload = wire.IRQ_SET.pack(argsz=argsz, flags=FIRE, count=1)
    assert client.error_of(wire.Cmd.DEVICE_SET_IRQS, payload) == errno.EINVAL


@pytest.mark.parametrize("flags, data", [(FIRE, b""), (FIRE_BOOL, b"\1"),
                                         (DATA_NONE | ACTION_MASK, b"")])
def test_descriptors_with_another_data_type(client, event, flags, data):
    fd = event()
    reply = client.set_irqs(INTX, flags, data=data, fds=[fd], check=False)
    assert reply.error == errno.EINVAL


@pytest.mark.parametrize("number", [2, 3, 100])
def test_more_descriptors_than_count(client, event, number):
    reply = client.set_irqs(INTX, ASSIGN, fds=[event() for _ in range(number)], check=False)
    assert reply.error == errno.EINVAL


def test_events_end_with_the_connection(server, client, event):
    client.set_irqs(INTX, ASSIGN, fds=[event()])
    client.set_irqs(ERR, ASSIGN, fds=[event()])
    client.close()
    fd = event()
    client = server.client()
    client.set_irqs(MSI, FIRE)
    client.set_irqs(INTX, ASSIGN, fds=[fd])
    client.set_irqs(INTX, FIRE)
    assert count_of(fd) == 1


def test_events_survive_a_reset(client, event):
    fd = event()
    client.set_irqs(INTX, ASSIGN, fds=[fd])
    client.reset()
    client.set_irqs(INTX, FIRE)
    assert count_of(fd) == 1


@pytest.mark.parametrize("index", [INTX, MSI])
def test_device_raises(edu, event, index):
    fd = event()
    edu.client.set_irqs(index, ASSIGN, fds=[fd])
    edu.write(hw.REG_IRQ_RAISE, 0x5)
    assert wait_event(fd) >= 1
    assert edu.read(hw.REG_IRQ_STATUS) == 0x5
    edu.write(hw.REG_IRQ_ACK, 0x4)
    assert edu.read(hw.REG_IRQ_STATUS) == 0x1
    edu.write(hw.REG_IRQ_ACK, 0x1)
    assert edu.read(hw.REG_IRQ_STATUS) == 0


def test_device_raises_without_event(edu):
    edu.write(hw.REG_IRQ_RAISE, 0x10)
    assert edu.read(hw.REG_IRQ_STATUS) == 0x10
    edu.write(hw.REG_IRQ_ACK, 0x10)


def test_factorial_raises(edu, event):
    fd = event()
    edu.client.set_irqs(INTX, ASSIGN, fds=[fd])
    edu.write(hw.REG_STATUS, hw.STATUS_RAISE_IRQ)
    edu.write(hw.REG_FACTORIAL, 5)
    wait_event(fd)
    assert edu.read(hw.REG_IRQ_STATUS) == hw.FACTORIAL_IRQ
    assert edu.read(hw.REG_FACTORIAL) == 120


def test_dma_raises(edu, event):
    fd = event()
    edu.client.set_irqs(INTX, ASSIGN, fds=[fd])
    edu.client.add_memory(0, 0x1000)
    edu.client.wait(edu.start_dma(0, hw.BUFFER, 64, hw.DMA_RAISE_IRQ))
    wait_event(fd)
    assert edu.read(hw.REG_IRQ_STATUS) == hw.DMA_IRQ
    assert not edu.read(hw.REG_DMA_CMD) & hw.DMA_START


@pytest.mark.parametrize("index", [INTX, MSI])
def test_raised_while_masked(edu, event, index):
    """It comes when the mask goes, once, and not before."""
    fd = event()
    edu.client.set_irqs(index, ASSIGN, fds=[fd])
    edu.client.set_irqs(index, DATA_NONE | ACTION_MASK)
    edu.write(hw.REG_IRQ_RAISE, 2)
    assert edu.read(hw.REG_IRQ_STATUS) == 2
    assert count_of(fd) == 0
    edu.client.set_irqs(index, DATA_NONE | ACTION_UNMASK)
    assert wait_event(fd) >= 1
    edu.write(hw.REG_IRQ_ACK, 2)
    edu.client.set_irqs(index, DATA_NONE | ACTION_MASK)
    edu.client.set_irqs(index, DATA_NONE | ACTION_UNMASK)
    assert count_of(fd) == 0


def test_interrupt_disable_is_for_intx_alone(edu, event):
    """The command register's bit 10; with MSI enabled it has no effect."""
    fd = event()
    edu.client.set_irqs(INTX, ASSIGN, fds=[fd])
    edu.client.write_int(wire.CONFIG, 4, 0x0406, 2)
    edu.write(hw.REG_IRQ_RAISE, 1)
    assert edu.read(hw.REG_IRQ_STATUS) == 1
    assert count_of(fd) == 0
    edu.client.write_int(wire.CONFIG, 4, 0x0006, 2)
    edu.write(hw.REG_IRQ_RAISE, 2)
    wait_event(fd)



def test_interrupt_status(edu):
    """A handler that shares INTx asks this bit of the PCI status register (PCIe 7.5.1.1.4)."""
    client = edu.client

    def status():
        return client.read_int(wire.CONFIG, 0x06, 2) & 0x8

    assert not status()
    client.write_int(wire.BAR0, hw.REG_IRQ_RAISE, 0x3)
    assert status()
    client.write_int(wire.BAR0, hw.REG_IRQ_ACK, 0x1)
    assert status()
    client.write_int(wire.BAR0, hw.REG_IRQ_ACK, 0x2)
    assert not status()
    client.write_int(wire.BAR0, hw.REG_IRQ_RAISE, 0x1)
    client.reset()
    assert not status()
