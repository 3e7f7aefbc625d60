# SPDX-License-Identifier: BSD-3-Clause
"""Interrupts through the C interface: counts, triggers, masks, SET_IRQS as the device sees it."""

import errno
import os
import socket
import struct
import threading

import pytest

from vfiouser import wire
from vfiouser.api import abi
from vfiouser.api.fixtures import fails
from vfiouser.wire import (ACTION_MASK, ACTION_TRIGGER, ACTION_UNMASK, CONFIG, DATA_BOOL,
                           DATA_EVENTFD, DATA_NONE, ERR, INTX, MSI, MSIX, REQ, Cmd)

SET_FDS = DATA_EVENTFD | ACTION_TRIGGER
MSIX_CAP = 0x11


@pytest.fixture
def events():
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    yield fds
    for fd in fds:
        os.close(fd)


def count(fd):
    """How many times it was signalled since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@pytest.fixture
def client(workshop, device):
    """Of a device with 1 INTx, 2 MSI and 4 MSI-X."""
    for irq_type, number in ((INTX, 1), (MSI, 2), (MSIX, 4)):
        device.setup_irqs(irq_type, number)
    return workshop.attach(device)


def trigger(device, index):
    return device.lib.vfu_irq_trigger(device.ctx, index)


# Set-up


@pytest.mark.parametrize("irq_type", [5, 99, -1])
def test_unknown_type(device, irq_type):
    with fails(errno.EINVAL):
        device.setup_irqs(irq_type, 1)
    with fails(errno.EINVAL):
        device.setup_irq_state(irq_type, lambda *_: None)


def test_counts(workshop, device):
    client = workshop.attach(device)
    assert [client.irq_info(i).count for i in range(5)] == [0, 0, 0, 1, 1]
    device = workshop.device()
    for irq_type in range(5):
        assert device.setup_irqs(irq_type, 10 * irq_type) == 0
    device.setup_irqs(MSI, 32)
    client = workshop.attach(device)
    for irq_type, number in enumerate((0, 32, 20, 30, 40)):
        info = client.irq_info(irq_type)
        assert (info.argsz, info.flags, info.index, info.count) == (16, 1, irq_type, number)


def test_counts_are_fixed_by_realize(device):
    device.realize()
    with fails(errno.EBUSY):
        device.setup_irqs(MSI, 1)
    with fails(errno.EINVAL):
        device.setup_irqs(5, 1)


@pytest.mark.parametrize("number, pin", [(0, 0), (1, 1), (2, 1)])
def test_interrupt_pin(device, number, pin):
    device.setup_irqs(INTX, number)
    device.realize()
    assert device.config[0x3D] == pin


# vfu_irq_trigger


def test_trigger_before_realize(device):
    device.setup_irqs(INTX, 1)
    with fails(errno.EINVAL):
        trigger(device, 0)
    with fails(errno.EINVAL):
        device.lib.vfu_irq_trigger_type(device.ctx, ERR, 0)


def test_trigger_errors(device, client):
    assert client
    with fails(errno.ENOENT):
        trigger(device, 0)
    with fails(errno.ENOENT):
        trigger(device, 3)
    for index in (4, 5, 0xFFFFFFFF):
        with fails(errno.EINVAL):
            trigger(device, index)


@pytest.mark.parametrize("irq_type, number", [(INTX, 1), (MSI, 2), (MSIX, 4)])
def test_trigger(device, client, events, irq_type, number):
    client.set_irqs(irq_type, SET_FDS, 0, number, fds=events[:number])
    for index in range(number):
        for _ in range(index + 1):
            assert trigger(device, index) == 0
    assert [count(fd) for fd in events[:number]] == list(range(1, number + 1))


def test_types_share_the_table(device, client, events):
    client.set_irqs(MSIX, SET_FDS, 0, 2, fds=events[:2])
    client.set_irqs(INTX, SET_FDS, fds=events[2:3])
    trigger(device, 0)
    trigger(device, 1)
    assert [count(fd) for fd in events[:3]] == [0, 1, 1]


def test_trigger_of_a_type(device, client, events):
    lib, ctx = device.lib, device.ctx
    for index, irq_type in enumerate((MSI, ERR, REQ)):
        client.set_irqs(irq_type, SET_FDS, fds=[events[index]])
    for times, irq_type in enumerate((MSI, ERR, REQ)):
        for _ in range(times + 1):
            assert lib.vfu_irq_trigger_type(ctx, irq_type, 0) == 0
    assert [count(fd) for fd in events[:3]] == [1, 2, 3]
    for irq_type, index in ((INTX, 1), (MSI, 2), (MSIX, 4), (ERR, 1), (REQ, 1), (5, 0), (-1, 0)):
        with fails(errno.EINVAL):
            lib.vfu_irq_trigger_type(ctx, irq_type, index)
    with fails(errno.ENOENT):
        lib.vfu_irq_trigger_type(ctx, MSI, 1)
    client.set_irqs(ERR, DATA_NONE | ACTION_TRIGGER, 0, 0)
    with fails(errno.ENOENT):
        lib.vfu_irq_trigger_type(ctx, ERR, 0)


def test_err_and_req_are_not_triggered(device, client, events):
    for index, irq_type in enumerate((ERR, REQ)):
        client.set_irqs(irq_type, SET_FDS, fds=[events[index]])
    with fails(errno.ENOENT):
        trigger(device, 0)
    assert [count(fd) for fd in events[:2]] == [0, 0]


@pytest.mark.parametrize("blocking", [False, True])
def test_trigger_a_full_eventfd(device, client, events, blocking):
    """Not even one whose writers wait is waited for."""
    os.set_blocking(events[0], blocking)
    os.eventfd_write(events[0], (1 << 64) - 2)
    client.set_irqs(MSI, SET_FDS, fds=events[:1])
    with fails(errno.EAGAIN):
        trigger(device, 0)


def test_trigger_from_threads(device, client, events):
    client.set_irqs(MSIX, SET_FDS, 0, 4, fds=events)
    threads = [threading.Thread(target=lambda: [trigger(device, i % 4) for i in range(100)])
               for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [count(fd) for fd in events] == [75] * 4


def test_lost_connection_takes_the_eventfds(workshop, device, client, events):
    client.set_irqs(INTX, SET_FDS, fds=events[:1])
    client.close()
    with fails(errno.ENOTCONN):
        device.run()
    with fails(errno.ENOENT):
        trigger(device, 0)
    workshop.attach(device)
    with fails(errno.ENOENT):
        trigger(device, 0)


# State callbacks and masks


@pytest.mark.parametrize("irq_type, start, number", [(INTX, 0, 1), (MSI, 1, 1), (MSIX, 1, 3)])
def test_state_callback(device, client, irq_type, start, number):
    for other in (INTX, MSI, MSIX, ERR, REQ):
        device.setup_irq_state(other, device.record(other))
    client.set_irqs(irq_type, DATA_NONE | ACTION_MASK, start, number)
    client.set_irqs(irq_type, DATA_NONE | ACTION_UNMASK, start, number)
    client.set_irqs(irq_type, DATA_BOOL | ACTION_MASK, start, number, bytes([1] * number))
    client.set_irqs(irq_type, DATA_NONE | ACTION_TRIGGER, start, number)
    assert device.events == [(irq_type, start, number, mask) for mask in (True, False, True)]


def test_state_callback_removed(device, client):
    device.setup_irq_state(MSI, device.record("state"))
    device.setup_irq_state(MSI, None)
    client.set_irqs(MSI, DATA_NONE | ACTION_MASK)
    assert not device.events


def test_mask_holds_back(device, client, events):
    client.set_irqs(MSI, SET_FDS, 0, 2, fds=events[:2])
    client.set_irqs(MSI, DATA_NONE | ACTION_MASK, 1)
    for _ in range(3):
        trigger(device, 0)
        trigger(device, 1)
    assert [count(fd) for fd in events[:2]] == [3, 0]
    client.set_irqs(MSI, DATA_NONE | ACTION_UNMASK, 1)
    assert count(events[1]) == 1, "one, however many were held back"
    trigger(device, 1)
    assert count(events[1]) == 1


def test_unmask_with_a_full_eventfd(device, client, events):
    """What was held back cannot go out: nobody but the log can be told."""
    device.setup_log(device.record("log"), 3)
    client.set_irqs(MSI, SET_FDS, fds=events[:1])
    client.set_irqs(MSI, DATA_NONE | ACTION_MASK)
    trigger(device, 0)
    os.eventfd_write(events[0], (1 << 64) - 2)
    client.set_irqs(MSI, DATA_NONE | ACTION_UNMASK)
    assert len(device.events) == 1


@pytest.fixture
def msix(workshop, device):
    """A device whose table of 4 vectors lies in BAR 4, and their pending bits at 0x800."""
    device.pci_init()
    device.add_capability(struct.pack("<BBHII", MSIX_CAP, 0, 3, 4, 0x800 | 4))
    device.setup_region(4, 0x1000, None, abi.RW | abi.MEM)
    device.setup_irqs(MSIX, 4)
    return workshop.attach(device)


def test_msix_table(device, msix, events):
    msix.set_irqs(MSIX, SET_FDS, 0, 4, fds=events)
    assert msix.read_int(4, 12) == 1, "masked after reset"
    msix.region_write(4, 16, struct.pack("<QII", 0xFEE00000, 0x4041, 1))
    assert msix.region_read(4, 16, 16) == struct.pack("<QII", 0xFEE00000, 0x4041, 1)
    trigger(device, 1)
    assert count(events[1]) == 0
    assert msix.read_int(4, 0x800, 8) == 2
    msix.write_int(4, 0x800, 0, 8)
    assert msix.read_int(4, 0x800, 8) == 2, "pending bits are read-only"
    msix.write_int(4, 28, 0)
    assert count(events[1]) == 1
    assert msix.read_int(4, 0x800, 8) == 0


def test_msix_function_mask(device, msix, events):
    msix.set_irqs(MSIX, SET_FDS, 0, 4, fds=events)
    msix.write_int(CONFIG, 0x42, 0xC000, 2)
    trigger(device, 2)
    assert count(events[2]) == 0
    msix.write_int(CONFIG, 0x42, 0x8000, 2)
    assert count(events[2]) == 1


@pytest.mark.parametrize("by", ["SET_IRQS", "table", "function"])
@pytest.mark.parametrize("disable", [{"count": 0, "flags": DATA_NONE | ACTION_TRIGGER},
                                     {"start": 2, "count": 1, "flags": SET_FDS}],
                         ids=["disable", "take away"])
def test_pending_without_an_eventfd(device, msix, events, by, disable):
    """
    The client masks a vector and takes its eventfd away, or has not given one yet. The interrupt is
    pending until both are there again.
    """
    def mask(masked):
        if by == "SET_IRQS":
            msix.set_irqs(MSIX, DATA_NONE | (ACTION_MASK if masked else ACTION_UNMASK), 2, 1)
        elif by == "table":
            msix.write_int(4, 2 * 16 + 12, masked)
        else:
            msix.write_int(CONFIG, 0x42, 0xC000 if masked else 0x8000, 2)

    def pending():
        return msix.read_int(4, 0x800, 8)

    mask(True)
    trigger(device, 2)
    assert pending() == 4
    msix.set_irqs(MSIX, SET_FDS, 2, 1, fds=events[:1])
    assert (signalled(events), pending()) == ([0] * 4, 4)
    msix.set_irqs(MSIX, **disable)
    assert pending() == 4
    mask(False)
    assert pending() == 4, "no eventfd"
    msix.set_irqs(MSIX, SET_FDS, 2, 1, fds=events[:1])
    assert (signalled(events), pending()) == ([1, 0, 0, 0], 0)


@pytest.mark.parametrize("offset, size", [(0x40, 4), (0x3C, 8), (0x7FC, 8), (0x808, 4), (0xFFC, 4)])
def test_msix_outside_the_table(msix, offset, size):
    access = wire.REGION_ACCESS.pack(region=4, offset=offset, count=size)
    assert msix.error_of(Cmd.REGION_READ, access) == errno.EINVAL
    assert msix.error_of(Cmd.REGION_WRITE, access + bytes(size)) == errno.EINVAL


def test_msix_of_a_device_that_does_it_itself(workshop, device):
    device.pci_init()
    device.add_capability(struct.pack("<BBHII", MSIX_CAP, 0, 3, 4, 0x800 | 4))
    table = device.memory_region(4, 0x1000, abi.RW | abi.MEM)
    device.setup_irqs(MSIX, 4)
    client = workshop.attach(device)
    client.write_int(4, 12, 0xABCD)
    assert table[12:14] == b"\xCD\xAB"


# SET_IRQS


def signalled(events):
    return [count(fd) for fd in events]


def test_client_triggers(client, events):
    client.set_irqs(MSIX, SET_FDS, 0, 3, fds=events[:3])
    client.set_irqs(MSIX, DATA_NONE | ACTION_TRIGGER, 0, 4)
    assert signalled(events) == [1, 1, 1, 0]
    client.set_irqs(MSIX, DATA_BOOL | ACTION_TRIGGER, 0, 4, bytes([1, 0, 1, 1]))
    assert signalled(events) == [1, 0, 1, 0]
    client.set_irqs(MSIX, DATA_NONE | ACTION_TRIGGER, 2, 1)
    assert signalled(events) == [0, 0, 1, 0]


@pytest.mark.parametrize("irq_type", [ERR, REQ])
def test_client_triggers_err_and_req(client, events, irq_type):
    client.set_irqs(irq_type, SET_FDS, fds=events[:1])
    client.set_irqs(irq_type, DATA_NONE | ACTION_TRIGGER)
    assert signalled(events) == [1, 0, 0, 0]
    client.set_irqs(irq_type, DATA_NONE | ACTION_TRIGGER, 0, 0)
    client.set_irqs(irq_type, DATA_NONE | ACTION_TRIGGER)
    assert signalled(events) == [0, 0, 0, 0]


def test_client_trigger_fails(client, events):
    """An eventfd that takes no more: its errno goes to the client."""
    os.eventfd_write(events[0], (1 << 64) - 2)
    client.set_irqs(MSI, SET_FDS, fds=events[:1])
    reply = client.set_irqs(MSI, DATA_NONE | ACTION_TRIGGER, check=False)
    assert reply.error == errno.EAGAIN


def test_disable_all(device, client, events):
    client.set_irqs(MSIX, SET_FDS, 0, 4, fds=events)
    client.set_irqs(MSIX, DATA_NONE | ACTION_TRIGGER, 0, 0)
    for index in range(4):
        with fails(errno.ENOENT):
            trigger(device, index)


def test_disable_a_range(device, client, events):
    client.set_irqs(MSIX, SET_FDS, 0, 4, fds=events)
    client.set_irqs(MSIX, SET_FDS, 1, 2)
    for index, there in enumerate((True, False, False, True)):
        if there:
            trigger(device, index)
        else:
            with fails(errno.ENOENT):
                trigger(device, index)
    assert signalled(events) == [1, 0, 0, 1]


def test_replace(device, client, events):
    client.set_irqs(MSIX, SET_FDS, 0, 2, fds=events[:2])
    client.set_irqs(MSIX, SET_FDS, 1, 1, fds=events[2:3])
    trigger(device, 0)
    trigger(device, 1)
    assert signalled(events) == [1, 0, 1, 0]


def one_of(fds):
    """Keeps the first."""
    first, *others = fds
    for fd in others:
        os.close(fd)
    return first


KINDS = {
    "device": lambda: os.open("/dev/null", os.O_RDWR),
    "memory": lambda: os.memfd_create("anon_inode:[eventfd]"),
    "regular file": lambda: os.open(__file__, os.O_RDONLY),
    "directory": lambda: os.open("/", os.O_PATH),
    "pipe": lambda: one_of(os.pipe()),
    "socket": lambda: one_of(end.detach() for end in socket.socketpair()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_eventfd(device, client, events, kind):
    """Writing to it could wait, raise SIGPIPE or SIGXFSZ. One line, and nothing changes."""
    device.setup_log(device.record("log"), 3)
    client.set_irqs(MSIX, SET_FDS, 0, 2, fds=events[:2])
    fd = KINDS[kind]()
    reply = client.set_irqs(MSIX, SET_FDS, 0, 2, fds=[events[2], fd], check=False)
    assert reply.error == errno.EINVAL
    assert len(device.events) == 1
    os.close(fd)
    trigger(device, 0)
    trigger(device, 1)
    assert signalled(events) == [1, 1, 0, 0]


@pytest.mark.parametrize("irq_type, flags, start, number, data, fds", [
    (5, DATA_NONE | ACTION_TRIGGER, 0, 1, b"", 0),
    (0xFFFFFFFF, DATA_NONE | ACTION_TRIGGER, 0, 1, b"", 0),
    (MSI, DATA_NONE, 0, 1, b"", 0),
    (MSI, ACTION_TRIGGER, 0, 1, b"", 0),
    (MSI, DATA_NONE | ACTION_TRIGGER | ACTION_MASK, 0, 1, b"", 0),
    (MSI, DATA_NONE | DATA_BOOL | ACTION_TRIGGER, 0, 1, b"\1", 0),
    (MSI, DATA_NONE | ACTION_TRIGGER | 0x40, 0, 1, b"", 0),
    (MSI, DATA_BOOL | ACTION_TRIGGER, 0, 2, b"\1", 0),
    (MSI, DATA_BOOL | ACTION_TRIGGER, 0, 2, b"\1\1\1", 0),
    (MSI, DATA_NONE | ACTION_TRIGGER, 2, 1, b"", 0),
    (MSI, DATA_NONE | ACTION_TRIGGER, 0, 3, b"", 0),
    (MSI, DATA_NONE | ACTION_TRIGGER, 1, 2, b"", 0),
    (MSI, DATA_NONE | ACTION_TRIGGER, 1, 0xFFFFFFFF, b"", 0),
    (MSI, DATA_NONE | ACTION_TRIGGER, 0xFFFFFFFF, 2, b"", 0),
    (MSI, DATA_NONE | ACTION_TRIGGER, 1, 0, b"", 0),
    (MSI, DATA_NONE | ACTION_MASK, 0, 0, b"", 0),
    (MSI, SET_FDS, 0, 0, b"", 0),
    (ERR, DATA_NONE | ACTION_MASK, 0, 1, b"", 0),
    (REQ, DATA_NONE | ACTION_UNMASK, 0, 1, b"", 0),
    (ERR, DATA_NONE | ACTION_TRIGGER, 0, 2, b"", 0),
    (MSI, DATA_NONE | ACTION_TRIGGER, 0, 1, b"", 1),
    (MSI, DATA_BOOL | ACTION_TRIGGER, 0, 1, b"\1", 1),
    (MSI, SET_FDS, 0, 2, b"", 1),
    (MSI, SET_FDS, 0, 1, b"", 2)])
def test_set_irqs_errors(device, client, events, irq_type, flags, start, number, data, fds):
    for other in range(5):
        device.setup_irq_state(other, device.record("state"))
    client.set_irqs(MSI, SET_FDS, 0, 2, fds=events[:2])
    reply = client.set_irqs(irq_type, flags, start, number, data, events[:fds], check=False)
    assert reply.error == errno.EINVAL
    assert signalled(events) == [0] * 4 and not device.events
    trigger(device, 0)
    trigger(device, 1)
    assert signalled(events) == [1, 1, 0, 0], "nothing has changed"


@pytest.mark.parametrize("argsz, length", [(19, 20), (20, 19), (0, 20)])
def test_set_irqs_too_short(client, argsz, length):
    payload = wire.IRQ_SET.pack(argsz=argsz, flags=DATA_NONE | ACTION_TRIGGER, index=MSI, count=1)
    assert client.error_of(Cmd.DEVICE_SET_IRQS, payload[:length]) == errno.EINVAL


@pytest.mark.parametrize("argsz, length, index", [(15, 16, 0), (16, 15, 0), (16, 16, 5)])
def test_irq_info_errors(client, argsz, length, index):
    payload = wire.IRQ_INFO.pack(argsz=argsz, index=index)
    assert client.error_of(Cmd.DEVICE_GET_IRQ_INFO, payload[:length]) == errno.EINVAL


def test_set_irqs_before_realize(workshop, device, events):
    """Attached before it was realized: nothing is run until then, and then it is served."""
    device.setup_irqs(MSI, 1)
    peer = workshop.peer(device)
    peer.negotiate()
    msg_id = peer.send(Cmd.DEVICE_SET_IRQS, wire.IRQ_SET.pack(
        argsz=20, flags=SET_FDS, index=MSI, count=1), events[:1])
    with fails(errno.EINVAL):
        device.run()
    device.realize()
    assert not peer.wait(msg_id).error
    trigger(device, 0)
    assert count(events[0]) == 1
