# SPDX-License-Identifier: BSD-3-Clause
"""Quiescing: what asks the device, its three answers, and what is allowed until it has finished."""

import ctypes
import errno
import os
import select
import struct

import pytest

from vfiouser import wire
from vfiouser.api import abi
from vfiouser.api.fixtures import fails
from vfiouser.client import CAPABILITIES
from vfiouser.memory import Slot
from vfiouser.wire import BAR0, CONFIG, INTX, Cmd

BUSY, QUIET = errno.EBUSY, 0
RESET_DONE = ("reset", abi.RESET_DEVICE)
LOST = ("reset", abi.RESET_LOST_CONN)


class Quiescing:
    """A device that answers what the test says, and notes everything."""

    def __init__(self, workshop, **kwargs):
        self.device = device = workshop.device(**kwargs)
        self.answer = QUIET
        device.setup_quiesce(device.record("quiesce", self._answer))
        device.setup_reset(device.record("reset"))
        device.setup_dma(64, lambda info: device.events.append(("map", info.iova.iov_base)),
                         lambda info: device.events.append(("unmap", info.iova.iov_base)))
        device.setup_migration(device.record("transition"), lambda *_: 0, lambda *_: 0)
        device.pci_init()
        device.add_capability(bytes([0x10, 0, 2, 0, 0, 0, 0, 0x10]) + bytes(52))
        device.memory_region(BAR0, 0x100)
        device.setup_irqs(INTX, 1)
        self.events = device.take_events
        self.quiesced = device.quiesced
        self.run = device.run

    def _answer(self):
        if self.answer:
            raise OSError(self.answer, "")

    def busy(self):
        self.answer = BUSY
        return self


@pytest.fixture
def dev(workshop):
    return Quiescing(workshop)


@pytest.fixture
def client(workshop, dev):
    """Memory is mapped at 0x10000."""
    client = workshop.attach(dev.device)
    client.add_memory(0x10000, 0x1000)
    dev.events()
    return client


def feature(flags, data=b""):
    return wire.FEATURE.pack(argsz=8 + len(data) + 64, flags=flags) + data


def config_write(offset, data):
    return wire.REGION_ACCESS.pack(offset=offset, region=CONFIG, count=len(data)) + data


MAP = wire.DMA_MAP.pack(argsz=32, flags=wire.MAP_RW, addr=0x20000, size=0x1000)
UNMAP = wire.DMA_UNMAP.pack(argsz=24, addr=0x10000, size=0x1000)
CONTROL = 0x48
STOP_STATE = feature(wire.FEATURE_SET | wire.FEAT_MIG_STATE, struct.pack("<II", 1, 0))
LOGGING = wire.LOGGING_CONTROL.pack(page_size=4096)

# What asks the device, and what it is told of afterwards
QUIESCING = {
    "map": (Cmd.DMA_MAP, MAP, [("map", 0x20000)]),
    "unmap": (Cmd.DMA_UNMAP, UNMAP, [("unmap", 0x10000)]),
    "reset": (Cmd.DEVICE_RESET, b"", [RESET_DONE]),
    "flr": (Cmd.REGION_WRITE, config_write(CONTROL, b"\0\x80"), [("reset", abi.RESET_FLR)]),
    "device control": (Cmd.REGION_WRITE, config_write(CONTROL, b"\x10\0"), []),
    "set state": (Cmd.DEVICE_FEATURE, STOP_STATE, [("transition", abi.STOP)]),
    "get state": (Cmd.DEVICE_FEATURE, feature(wire.FEATURE_GET | wire.FEAT_MIG_STATE), []),
    "logging start": (Cmd.DEVICE_FEATURE,
                      feature(wire.FEATURE_SET | wire.FEAT_LOGGING_START, LOGGING), []),
    "logging stop": (Cmd.DEVICE_FEATURE, feature(wire.FEATURE_SET | wire.FEAT_LOGGING_STOP), []),
}

NOT_QUIESCING = {
    "device info": (Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16)),
    "region info": (Cmd.DEVICE_GET_REGION_INFO, wire.REGION_INFO.pack(argsz=32)),
    "io fds": (Cmd.DEVICE_GET_REGION_IO_FDS, wire.REGION_IO_FDS.pack(argsz=16)),
    "irq info": (Cmd.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(argsz=16)),
    "set irqs": (Cmd.DEVICE_SET_IRQS, wire.IRQ_SET.pack(argsz=20, flags=0x21)),
    "read": (Cmd.REGION_READ, wire.REGION_ACCESS.pack(region=BAR0, count=4)),
    "write": (Cmd.REGION_WRITE, wire.REGION_ACCESS.pack(region=BAR0, count=4) + bytes(4)),
    "command register": (Cmd.REGION_WRITE, config_write(4, b"\2\0")),
    "link control": (Cmd.REGION_WRITE, config_write(0x50, b"\0\0")),
    "the end of device control": (Cmd.REGION_WRITE, config_write(0x48 - 1, b"\0")),
    "read device control": (Cmd.REGION_READ,
                            wire.REGION_ACCESS.pack(region=CONFIG, offset=CONTROL, count=2)),
    "get migration": (Cmd.DEVICE_FEATURE, feature(wire.FEATURE_GET | wire.FEAT_MIGRATION)),
    "probe state": (Cmd.DEVICE_FEATURE,
                    feature(wire.FEATURE_PROBE | wire.FEATURE_SET | wire.FEAT_MIG_STATE)),
    "report": (Cmd.DEVICE_FEATURE, feature(wire.FEATURE_GET | wire.FEAT_LOGGING_REPORT, bytes(24))),
    "migration data": (Cmd.MIG_DATA_READ, wire.MIG_DATA.pack(argsz=8)),
}


def quiescing(function):
    return pytest.mark.parametrize("cmd, payload, then", QUIESCING.values(),
                                   ids=QUIESCING)(function)


# What asks


@quiescing
def test_asks_first(dev, client, cmd, payload, then):
    client.request(cmd, payload)
    assert dev.events() == [("quiesce",)] + then


@pytest.mark.parametrize("result", [1, BUSY, 0x7FFFFFFF])
def test_positive_answer_is_done(dev, client, result):
    """As in libvfio-user 0.x: only a negative one refuses, whatever errno is."""
    def answer():
        ctypes.set_errno(BUSY)
        return result

    dev.device.setup_quiesce(dev.device.record("quiesce", answer))
    for cmd, payload, then in QUIESCING.values():
        client.request(cmd, payload)
        assert dev.events() == [("quiesce",)] + then
    client.close()
    with fails(errno.ENOTCONN):
        dev.run()
    assert dev.events()[0] == ("quiesce",)


@pytest.mark.parametrize("cmd, payload", NOT_QUIESCING.values(), ids=NOT_QUIESCING)
def test_does_not_ask(dev, client, cmd, payload):
    dev.busy()
    client.request(cmd, payload, check=False)
    assert ("quiesce",) not in dev.events()


def test_only_dma_asks_for_maps(workshop, device):
    device.setup_quiesce(device.record("quiesce"))
    client = workshop.attach(device)
    assert client.error_of(Cmd.DMA_MAP, MAP) == 0
    assert client.error_of(Cmd.DMA_UNMAP, UNMAP) == 0
    assert not device.events


def test_without_callback_nobody_is_asked(dev, client):
    dev.device.setup_quiesce(None)
    dev.busy()
    client.reset()
    assert dev.events() == [RESET_DONE]
    with fails(errno.EINVAL):
        dev.quiesced()


def test_malformed_requests_are_refused(dev, client):
    """Quiescing or not, the answer is an error and nothing happens."""
    assert client.error_of(Cmd.DMA_MAP, MAP[:-1]) == errno.EINVAL
    assert client.error_of(Cmd.DMA_UNMAP, UNMAP[:-1]) == errno.EINVAL
    assert {event[0] for event in dev.events()} <= {"quiesce"}


# Quiet at once, or refusing


@quiescing
@pytest.mark.parametrize("error", [errno.EIO, errno.EAGAIN, errno.ENOSPC])
def test_refuses(dev, client, cmd, payload, then, error):
    dev.answer = error
    msg_id = client.send(cmd, payload)
    assert dev.run() >= 0, "no failure of the call"
    assert client.wait(msg_id, check=False).error == error
    assert dev.events() == [("quiesce",)]
    with fails(errno.EINVAL):
        dev.quiesced()
    dev.answer = QUIET
    client.request(cmd, payload)
    assert dev.events() == [("quiesce",)] + then


# REGION_WRITE_MULTI: each write by the rules of REGION_WRITE, in its turn


FLR_WRITE = (CONFIG, CONTROL, b"\0\x80")
FLR_DONE = ("reset", abi.RESET_FLR)


def multi(*writes):
    entries = [wire.WRITE_MULTI_ENTRY.pack(offset=offset, region=region, count=len(data), data=data)
               for region, offset, data in writes]
    return wire.WRITE_MULTI.pack(wr_cnt=len(writes)) + b"".join(entries)


def written(offset):
    return ("region", BAR0, offset, 4, True)


@pytest.fixture
def batching(workshop, dev):
    capabilities = {**CAPABILITIES, "write_multiple": True, "migration": {"pgsize": 4096}}
    return workshop.attach(dev.device, capabilities)


def test_write_multi(dev, batching):
    batching.request(Cmd.REGION_WRITE_MULTI, multi(
        (BAR0, 0, bytes(4)), FLR_WRITE, (BAR0, 8, bytes(4)), (CONFIG, CONTROL + 1, b"\x80")))
    assert dev.events() == [written(0), ("quiesce",), FLR_DONE, written(8), ("quiesce",), FLR_DONE]


def test_write_multi_finishes_later(dev, batching):
    """It goes on where it was put off, as often as it is."""
    dev.busy()
    msg_id = batching.send(Cmd.REGION_WRITE_MULTI, multi(
        (BAR0, 0, bytes(4)), FLR_WRITE, (BAR0, 4, bytes(4)), FLR_WRITE, (BAR0, 8, bytes(4))))
    done = []
    for events in ([written(0), ("quiesce",)], [FLR_DONE, written(4), ("quiesce",)]):
        with fails(errno.EBUSY):
            dev.run()
        assert dev.events() == events
        assert not batching.ready()
        done.append(dev.quiesced())
    assert dev.events() == [FLR_DONE, written(8)]
    assert not batching.wait(msg_id).error


@pytest.mark.parametrize("later", [False, True])
def test_write_multi_refused(dev, batching, later):
    """What comes before the write that the device refuses has happened, what follows has not."""
    dev.answer = BUSY if later else errno.EIO
    msg_id = batching.send(Cmd.REGION_WRITE_MULTI, multi(
        (BAR0, 0, bytes(4)), FLR_WRITE, (BAR0, 4, bytes(4))))
    if later:
        with fails(errno.EBUSY):
            dev.run()
        dev.quiesced(errno.EIO)
    assert batching.wait(msg_id, check=False).error == errno.EIO
    assert dev.events() == [written(0), ("quiesce",)]


# Busy


@quiescing
def test_finishes_later(dev, client, cmd, payload, then):
    dev.busy()
    msg_id = client.send(cmd, payload)
    for _ in range(3):
        with fails(errno.EBUSY):
            dev.run()
    assert dev.events() == [("quiesce",)], "asked once, and nothing done"
    assert not client.ready()
    assert dev.quiesced() == 0
    assert client.ready(), "the reply is sent by the same call"
    assert not client.wait(msg_id).error
    assert dev.events() == then
    assert dev.run() == 0
    with fails(errno.EINVAL):
        dev.quiesced()


@quiescing
@pytest.mark.parametrize("error", [errno.EIO, errno.EBUSY])
def test_fails_later(dev, client, cmd, payload, then, error):
    """The client is told, and nothing happens."""
    dev.busy()
    msg_id = client.send(cmd, payload)
    with fails(errno.EBUSY):
        dev.run()
    assert dev.quiesced(error) == 0
    assert client.wait(msg_id, check=False).error == error
    assert dev.events() == [("quiesce",)]
    dev.answer = QUIET
    client.request(cmd, payload)
    assert dev.events() == [("quiesce",)] + then


def test_request_that_fails_after_quiescing(dev, client):
    dev.busy()
    msg_id = client.send(Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, addr=0x77000, size=0x1000))
    with fails(errno.EBUSY):
        dev.run()
    assert dev.quiesced() == 0
    assert client.wait(msg_id, check=False).error == errno.ENOENT


def test_descriptors_wait_with_their_request(dev, client):
    slot = client.memory.add(0x30000, 0x1000)
    slot.write(0, b"hello")
    dev.busy()
    msg_id = client.send(Cmd.DMA_MAP, client.map_payload(slot), [slot.mem.fd])
    with fails(errno.EBUSY):
        dev.run()
    dev.quiesced()
    client.wait(msg_id)
    assert dev.device.sgl_read(dev.device.sgl(0x30000, 5), abi.DIRECT) == b"hello"


def test_no_reply_wanted(dev, client):
    dev.busy()
    client.send(Cmd.DEVICE_RESET, flags=wire.NO_REPLY)
    with fails(errno.EBUSY):
        dev.run()
    dev.quiesced()
    assert dev.events() == [("quiesce",), RESET_DONE]
    assert client.silent()


def test_what_comes_meanwhile_waits(dev, client):
    """In its order, behind the request that waits."""
    dev.busy()
    first = client.send(Cmd.DEVICE_RESET)
    with fails(errno.EBUSY):
        dev.run()
    second = client.send_region_write(BAR0, 0, b"x")
    third = client.send(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16))
    with fails(errno.EBUSY):
        dev.run()
    assert dev.events() == [("quiesce",)] and not client.ready()
    dev.quiesced()
    dev.run()
    assert [client.channel.recv().id for _ in range(3)] == [first, second, third]
    assert dev.events() == [RESET_DONE, ("region", BAR0, 0, 1, True)]


@pytest.mark.parametrize("error", [0, errno.EIO])
def test_one_after_the_other(dev, client, error):
    """Each is asked about by itself."""
    dev.busy()
    ids = [client.send(Cmd.DEVICE_RESET) for _ in range(3)]
    with fails(errno.EBUSY):
        dev.run()
    done = [] if error else [RESET_DONE]
    assert dev.events() == [("quiesce",)]
    for number, msg_id in enumerate(ids):
        assert dev.quiesced(error) == 0
        assert client.channel.recv().id == msg_id
        # The next one that is here already is taken up by the same call.
        assert dev.events() == done + [("quiesce",)] * (number < 2)
    with fails(errno.EINVAL):
        dev.quiesced()


def test_poll_fd_says_nothing_while_busy(dev, client):
    """The loop around it stops polling; when it polls again nothing is lost."""
    dev.busy()
    msg_id = client.send(Cmd.DEVICE_RESET)
    with fails(errno.EBUSY):
        dev.run()
    assert not select.select([dev.device.poll_fd], [], [], 0)[0]
    dev.quiesced()
    client.wait(msg_id)
    assert not select.select([dev.device.poll_fd], [], [], 0)[0]


def test_quiesced_at_the_wrong_moment(dev, workshop, device):
    with fails(errno.EINVAL):
        device.quiesced()
    with fails(errno.EINVAL):
        dev.quiesced()
    client = workshop.attach(dev.device)
    for error in (0, errno.EIO):
        with fails(errno.EINVAL):
            dev.quiesced(error)
    client.reset()
    with fails(errno.EINVAL):
        dev.quiesced()


def test_quiesced_inside_the_callback(workshop, device):
    """Too early: nothing waits yet, and the request goes its way."""
    outcome = []

    def impatient():
        try:
            device.quiesced()
        except OSError as error:
            outcome.append(error.errno)

    device.setup_quiesce(impatient)
    client = workshop.attach(device)
    client.reset()
    assert outcome == [errno.EINVAL]


def test_forgotten_errno(workshop, device):
    """A callback that fails without saying why."""
    device.setup_quiesce(device.record("quiesce", lambda: (_ for _ in ()).throw(OSError(0, ""))))
    client = workshop.attach(device)
    assert client.error_of(Cmd.DEVICE_RESET) == errno.EIO


def test_callbacks_of_a_parked_request_may_reach_memory(workshop):
    """They run inside vfu_device_quiesced(), before the region is gone."""
    dev = Quiescing(workshop)
    seen = []

    def unregister(info):
        sgl = dev.device.sgl(info.iova.iov_base, 4)
        seen.append(dev.device.sgl_read(sgl, abi.DIRECT))

    dev.device.setup_dma(64, None, unregister)
    client = workshop.attach(dev.device)
    client.add_memory(0x10000, 0x1000).write(0, b"data")
    dev.busy()
    client.send(Cmd.DMA_UNMAP, UNMAP)
    with fails(errno.EBUSY):
        dev.run()
    dev.quiesced()
    assert seen == [b"data"]


# Connection loss


def test_loss_asks(dev, client):
    client.close()
    with fails(errno.ENOTCONN):
        dev.run()
    assert dev.events() == [("quiesce",), ("unmap", 0x10000), LOST]


def lose(dev, client):
    dev.busy()
    client.close()
    with fails(errno.EBUSY):
        dev.run()


def test_loss_while_busy(workshop, dev, client):
    lose(dev, client)
    with fails(errno.EBUSY):
        dev.run()
    assert dev.events() == [("quiesce",)], "asked once"
    with fails(errno.EINVAL):
        dev.device.attach()
    assert dev.quiesced() == 0
    assert dev.events() == [("unmap", 0x10000), LOST]
    with fails(errno.ENOTCONN):
        dev.run()
    dev.answer = QUIET
    dev.device.attached = False
    workshop.attach(dev.device).reset()


@pytest.mark.parametrize("error", [errno.EIO, errno.EBUSY])
def test_loss_quiesced_with_an_error(dev, client, error):
    """The client is gone all the same."""
    lose(dev, client)
    assert dev.quiesced(error) == 0
    assert LOST in dev.events()
    with fails(errno.ENOTCONN):
        dev.run()


@pytest.mark.parametrize("error", [errno.EIO, errno.EINTR])
def test_loss_refused(dev, client, error):
    """The callback's errno comes out, and the next call asks again."""
    dev.answer = error
    client.close()
    for _ in range(2):
        with fails(error):
            dev.run()
    assert dev.events() == [("quiesce",)] * 2
    dev.answer = QUIET
    with fails(errno.ENOTCONN):
        dev.run()
    assert dev.events()[0] == ("quiesce",)


def test_loss_while_a_request_waits(dev, client):
    """The map is carried out, its reply fails, and the device loses what it has just got."""
    dev.busy()
    slot = client.memory.add(0x20000, 0x1000)
    client.send(Cmd.DMA_MAP, client.map_payload(slot), [slot.mem.fd])
    with fails(errno.EBUSY):
        dev.run()
    client.close()
    assert dev.quiesced() == 0
    events = dev.events()
    assert events[:2] == [("quiesce",), ("map", 0x20000)]
    assert sorted(events[2:4]) == [("unmap", 0x10000), ("unmap", 0x20000)]
    assert events[4:] == [LOST]
    with fails(errno.ENOTCONN):
        dev.run()
    assert not dev.events(), "quiesce was asked for once"


def test_loss_noticed_while_a_request_waits(dev, client):
    """The end of the stream is found by the call that says EBUSY; the request has failed."""
    dev.busy()
    client.send(Cmd.DEVICE_RESET)
    with fails(errno.EBUSY):
        dev.run()
    client.close()
    with fails(errno.EBUSY):
        dev.run()
    dev.quiesced(errno.EIO)
    with fails(errno.ENOTCONN):
        dev.run()
    assert dev.events() == [("quiesce",), ("unmap", 0x10000), LOST]


def test_destroy_while_the_loss_waits(dev, client):
    lose(dev, client)
    dev.device.destroy()
    assert dev.events().count(LOST) == 1


def test_destroy_while_a_map_waits(dev, client):
    dev.busy()
    slot = client.memory.add(0x20000, 0x1000)
    client.send(Cmd.DMA_MAP, client.map_payload(slot), [slot.mem.fd])
    with fails(errno.EBUSY):
        dev.run()
    dev.device.destroy()
    assert ("map", 0x20000) not in dev.events()


# What is allowed while the device quiesces


def test_calls_while_busy(workshop):
    dev = Quiescing(workshop)
    client = workshop.attach(dev.device)
    event = os.eventfd(0)
    client.set_irqs(INTX, wire.DATA_EVENTFD | wire.ACTION_TRIGGER, fds=[event])
    client.add_memory(0x10000, 0x1000).write(0, b"still there")
    dev.busy()
    client.send(Cmd.DEVICE_RESET)
    with fails(errno.EBUSY):
        dev.run()
    assert dev.device.lib.vfu_irq_trigger(dev.device.ctx, 0) == 0
    assert os.eventfd_read(event) == 1
    os.close(event)
    assert dev.device.config[0] == 0
    # The device has not said yet that it is quiet: it finishes what it has begun.
    assert dev.device.sgl_read(dev.device.sgl(0x10000, 11), abi.DIRECT) == b"still there"
    dev.quiesced()


def test_messages_while_busy(workshop):
    """What the device has begun may need the client's memory by message."""
    dev = Quiescing(workshop)
    client = workshop.attach(dev.device, {**CAPABILITIES, "twin_socket": {"supported": True}})
    client.add_memory(0x10000, 0x1000, share=False).write(0, b"message")
    dev.busy()
    msg_id = client.send(Cmd.DEVICE_RESET)
    with fails(errno.EBUSY):
        dev.run()
    with client.answering():
        assert dev.device.sgl_read(dev.device.sgl(0x10000, 7)) == b"message"
    dev.quiesced()
    client.wait(msg_id)


def test_blocking_mode(workshop):
    """vfu_run_ctx() returns for the device to quiesce."""
    dev = Quiescing(workshop, flags=0)
    client = workshop.attach(dev.device)
    dev.busy()
    msg_id = client.send(Cmd.DEVICE_RESET)
    with fails(errno.EBUSY):
        dev.run()
    dev.quiesced()
    client.wait(msg_id)
    dev.answer = QUIET
    client.close()
    with fails(errno.ENOTCONN):
        dev.run()
    assert dev.events() == [("quiesce",), RESET_DONE, ("quiesce",), LOST]


def test_slots_are_not_lost(dev, client):
    """Many busy rounds leave no descriptor and no region behind."""
    dev.busy()
    slot = Slot(0x20000, 0x1000, client.memory.add_file(0x1000))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        for cmd, payload, fds in ((Cmd.DMA_MAP, client.map_payload(slot), [slot.mem.fd]),
                                  (Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(
                                      argsz=24, addr=slot.addr, size=slot.size), [])):
            msg_id = client.send(cmd, payload, fds)
            with fails(errno.EBUSY):
                dev.run()
            dev.quiesced()
            client.wait(msg_id)
    assert len(os.listdir("/proc/self/fd")) == before
