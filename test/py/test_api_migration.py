# SPDX-License-Identifier: BSD-3-Clause
"""Migration through the C interface: the state machine, its data, and the log of dirty pages."""

import ctypes
import errno
import resource
import struct

import pytest

from vfiouser import wire
from vfiouser.api import abi
from vfiouser.api.fixtures import fails
from vfiouser.client import CAPABILITIES
from vfiouser.wire import (BAR0, FEAT_LOGGING_REPORT, FEAT_LOGGING_START, FEAT_LOGGING_STOP,
                           FEAT_MIG_STATE, FEAT_MIGRATION, FEATURE_GET, FEATURE_PROBE, FEATURE_SET,
                           Cmd)

PAGE = resource.getpagesize()

# States of the protocol
(ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P) = range(8)

TO_DEVICE = {STOP: abi.STOP, RUNNING: abi.RUNNING, STOP_COPY: abi.STOP_AND_COPY,
             RESUMING: abi.RESUME, PRE_COPY: abi.PRE_COPY}

# (from, to): the states on the way; None where there is no way
WAYS = {
    (STOP, STOP): [], (STOP, RUNNING): [RUNNING], (STOP, STOP_COPY): [STOP_COPY],
    (STOP, RESUMING): [RESUMING], (STOP, PRE_COPY): [RUNNING, PRE_COPY],
    (RUNNING, STOP): [STOP], (RUNNING, RUNNING): [], (RUNNING, STOP_COPY): [STOP, STOP_COPY],
    (RUNNING, RESUMING): [STOP, RESUMING], (RUNNING, PRE_COPY): [PRE_COPY],
    (STOP_COPY, STOP): [STOP], (STOP_COPY, RUNNING): [STOP, RUNNING], (STOP_COPY, STOP_COPY): [],
    (STOP_COPY, RESUMING): [STOP, RESUMING], (STOP_COPY, PRE_COPY): None,
    (RESUMING, STOP): [STOP], (RESUMING, RUNNING): [STOP, RUNNING],
    (RESUMING, STOP_COPY): [STOP, STOP_COPY], (RESUMING, RESUMING): [],
    (RESUMING, PRE_COPY): [STOP, RUNNING, PRE_COPY],
    (PRE_COPY, STOP): [RUNNING, STOP], (PRE_COPY, RUNNING): [RUNNING],
    (PRE_COPY, STOP_COPY): [STOP_COPY], (PRE_COPY, RESUMING): [RUNNING, STOP, RESUMING],
    (PRE_COPY, PRE_COPY): [],
}
REACH = {STOP: [STOP], RUNNING: [], STOP_COPY: [STOP_COPY], RESUMING: [RESUMING],
         PRE_COPY: [PRE_COPY]}


def set_state(client, state, check=True):
    data = wire.FEATURE_MIG_STATE.pack(device_state=state)
    return client.feature(FEATURE_SET | FEAT_MIG_STATE, data, check=check)


def get_state(client):
    reply = client.feature(FEATURE_GET | FEAT_MIG_STATE, argsz=16)
    state = wire.FEATURE_MIG_STATE.unpack(reply.payload, wire.FEATURE.size)
    assert state.data_fd == 0 and len(reply.payload) == 16
    return state.device_state


def error_of(client, flags, data=b"", argsz=None):
    return client.feature(flags, data, argsz, check=False).error


def mig_data(cmd, size, argsz=None, data=b""):
    return cmd, wire.MIG_DATA.pack(argsz=8 + size if argsz is None else argsz, size=size) + data


class Migratable:
    """The data of a device, given out and taken in pieces."""

    def __init__(self, device):
        self.device = device
        self.outgoing = b""
        self.incoming = b""
        device.setup_migration(device.record("to"), self.read, self.write)

    def read(self, buf, count):
        part, self.outgoing = self.outgoing[:count], self.outgoing[count:]
        ctypes.memmove(buf, part, len(part))
        return len(part)

    def write(self, buf, count):
        self.incoming += ctypes.string_at(buf, count)
        return count


@pytest.fixture
def migratable(device):
    device.setup_dma(64)
    device.memory_region(BAR0, 0x100)
    return Migratable(device)


@pytest.fixture
def client(workshop, device, migratable):
    assert migratable
    return workshop.attach(device)


# vfu_setup_device_migration_callbacks


def callbacks(missing=None):
    return {name: None if name == missing else (lambda *_: 0)
            for name in ("transition", "read_data", "write_data")}


@pytest.mark.parametrize("version", [0, 1, 3, -1])
def test_version_of_the_callbacks(device, version):
    with fails(errno.EINVAL):
        device.setup_migration(version=version, **callbacks())


@pytest.mark.parametrize("missing", ["transition", "read_data", "write_data"])
def test_all_callbacks_are_needed(workshop, device, missing):
    with fails(errno.EINVAL):
        device.setup_migration(**callbacks(missing))
    client = workshop.attach(device)
    assert error_of(client, FEATURE_PROBE | FEATURE_GET | FEAT_MIGRATION) == errno.EINVAL


def test_callbacks_at_any_time(workshop, device):
    """After realize and attach; and replaced, which keeps the state."""
    client = workshop.attach(device)
    assert error_of(client, FEATURE_GET | FEAT_MIG_STATE, argsz=16) == errno.EINVAL
    device.setup_migration(device.record("first"), lambda *_: 0, lambda *_: 0)
    assert get_state(client) == RUNNING
    set_state(client, STOP)
    device.setup_migration(device.record("second"), lambda *_: 0, lambda *_: 0)
    assert get_state(client) == STOP
    set_state(client, RUNNING)
    assert device.events == [("first", abi.STOP), ("second", abi.RUNNING)]


def test_callbacks_are_copied(workshop, device):
    transition = device.wrap(abi.TRANSITION, device.record("to"))
    data = device.wrap(abi.MIGRATION_DATA, lambda *_: 0)
    structure = abi.MigrationCallbacks(abi.MIGR_VERS, transition, data, data)
    device.lib.vfu_setup_device_migration_callbacks(device.ctx, ctypes.byref(structure))
    ctypes.memset(ctypes.byref(structure), 0, ctypes.sizeof(structure))
    set_state(workshop.attach(device), STOP)
    assert device.events == [("to", abi.STOP)]


# The state machine


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "%d to %d" % way)
def test_ways(device, client, way):
    start, target = way
    for state in REACH[start]:
        set_state(client, state)
    assert get_state(client) == start
    device.take_events()
    reply = set_state(client, target, check=False)
    if WAYS[way] is None:
        assert reply.error == errno.EINVAL and not device.events
        assert get_state(client) == start
        return
    assert reply.payload == wire.FEATURE.pack(argsz=16, flags=FEATURE_SET | FEAT_MIG_STATE) + \
        wire.FEATURE_MIG_STATE.pack(device_state=target)
    assert device.events == [("to", TO_DEVICE[state]) for state in WAYS[way]]
    assert get_state(client) == target


@pytest.mark.parametrize("start", REACH)
@pytest.mark.parametrize("target", [ERROR, RUNNING_P2P, PRE_COPY_P2P, 8, 9, 0xFFFFFFFF])
def test_states_that_are_not_supported(device, client, start, target):
    for state in REACH[start]:
        set_state(client, state)
    device.take_events()
    assert set_state(client, target, check=False).error == errno.EINVAL
    assert get_state(client) == start and not device.events


@pytest.mark.parametrize("hop", [0, 1, 2])
def test_a_hop_fails(workshop, device, hop):
    """The device stays where it got to; the rest of the way can be tried again."""
    way = [STOP, RUNNING, PRE_COPY]
    refuse = [False]

    def transition(state):
        device.events.append(state)
        if refuse[0] and state == TO_DEVICE[way[hop]]:
            raise OSError(errno.EXDEV, "")

    device.setup_migration(transition, lambda *_: 0, lambda *_: 0)
    client = workshop.attach(device)
    set_state(client, RESUMING)
    device.take_events()
    refuse[0] = True
    assert set_state(client, PRE_COPY, check=False).error == errno.EXDEV
    assert device.take_events() == [TO_DEVICE[state] for state in way[:hop + 1]]
    assert get_state(client) == ([RESUMING] + way)[hop]
    refuse[0] = False
    set_state(client, PRE_COPY)
    assert device.take_events() == [TO_DEVICE[state] for state in way[hop:]]


def test_a_hop_fails_without_errno(workshop, device):
    def forgetful(_state):
        ctypes.set_errno(0)
        return -1

    device.setup_migration(forgetful, lambda *_: 0, lambda *_: 0)
    client = workshop.attach(device)
    assert set_state(client, STOP, check=False).error == errno.EIO


# The end of a session, and resets


@pytest.mark.parametrize("state", REACH)
def test_a_new_client_finds_the_device_running(workshop, device, migratable, client, state):
    """Whatever the last one did: a finished migration, a killed VMM. The device is told."""
    device.setup_reset(device.record("reset"))
    migratable.outgoing = b"left behind"
    set_state(client, state)
    device.take_events()
    client.close()
    with fails(errno.ENOTCONN):
        device.run()
    expected = [("reset", abi.RESET_LOST_CONN)] + ([("to", abi.RUNNING)] if REACH[state] else [])
    assert device.take_events() == expected
    client = workshop.attach(device)
    assert get_state(client) == RUNNING
    for cmd, payload in {**ALWAYS, **COMMANDS}.values():
        assert client.error_of(cmd, payload) == 0, cmd


def test_a_device_that_will_not_resume_does_not_stop_the_next_client(workshop, device, client):
    def refuse(_state):
        raise OSError(errno.EIO, "")

    set_state(client, STOP)
    device.setup_migration(refuse, lambda *_: 0, lambda *_: 0)
    client.close()
    with fails(errno.ENOTCONN):
        device.run()
    assert get_state(workshop.attach(device)) == RUNNING


@pytest.mark.parametrize("state", REACH)
def test_a_reset_ends_a_stop(device, client, state):
    """<linux/vfio.h>: VFIO_DEVICE_RESET leads to RUNNING. In PRE_COPY the device runs already."""
    device.setup_reset(device.record("reset"))
    set_state(client, state)
    device.take_events()
    client.reset()
    resumed = state in (STOP, STOP_COPY, RESUMING)
    assert device.take_events() == \
        [("reset", abi.RESET_DEVICE)] + ([("to", abi.RUNNING)] if resumed else [])
    assert get_state(client) == (RUNNING if resumed else state)


def test_a_device_that_will_not_resume_after_a_reset(device, client):
    def refuse(_state):
        raise OSError(errno.EXDEV, "")

    set_state(client, STOP)
    device.setup_migration(refuse, lambda *_: 0, lambda *_: 0)
    assert client.error_of(Cmd.DEVICE_RESET) == errno.EXDEV
    assert get_state(client) == STOP


ALWAYS = {
    "read": (Cmd.REGION_READ, wire.REGION_ACCESS.pack(region=BAR0, count=4)),
    "write": (Cmd.REGION_WRITE, wire.REGION_ACCESS.pack(region=BAR0, count=4) + bytes(4)),
}
COMMANDS = {
    "device info": (Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16)),
    "region info": (Cmd.DEVICE_GET_REGION_INFO, wire.REGION_INFO.pack(argsz=32)),
    "io fds": (Cmd.DEVICE_GET_REGION_IO_FDS, wire.REGION_IO_FDS.pack(argsz=16)),
    "irq info": (Cmd.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(argsz=16)),
    "set irqs": (Cmd.DEVICE_SET_IRQS, wire.IRQ_SET.pack(argsz=20, flags=0x21)),
    "map": (Cmd.DMA_MAP, wire.DMA_MAP.pack(argsz=32, flags=3, addr=0x1000, size=0x1000)),
    "unmap": (Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, flags=wire.UNMAP_ALL)),
}


@pytest.mark.parametrize("state", REACH)
def test_what_each_state_allows(client, state):
    """Only the registers are out of reach in stop-and-copy: their state is being read."""
    for hop in REACH[state]:
        set_state(client, hop)
    for cmd, payload in COMMANDS.values():
        assert client.error_of(cmd, payload) == 0, cmd
    for cmd, payload in ALWAYS.values():
        assert client.error_of(cmd, payload) == (errno.EINVAL if state == STOP_COPY else 0), cmd
    assert get_state(client) == state


# Data


@pytest.mark.parametrize("state", [PRE_COPY, STOP_COPY])
def test_read_data(migratable, client, state):
    migratable.outgoing = bytes(range(100))
    set_state(client, state)
    received = b""
    for expected in (64, 36, 0):
        reply = client.request(*mig_data(Cmd.MIG_DATA_READ, 64))
        head = wire.MIG_DATA.unpack(reply.payload)
        assert (head.size, head.argsz) == (expected, 8 + expected)
        assert len(reply.payload) == 8 + 64
        received += reply.payload[8:8 + head.size]
        assert reply.payload[8 + head.size:] == bytes(64 - head.size)
    assert received == bytes(range(100))


def test_read_nothing(migratable, client):
    migratable.outgoing = b"waits"
    set_state(client, STOP_COPY)
    reply = client.request(*mig_data(Cmd.MIG_DATA_READ, 0))
    assert wire.MIG_DATA.unpack(reply.payload).size == 0
    assert migratable.outgoing == b"waits"


def test_write_data(migratable, client):
    set_state(client, RESUMING)
    for part in (b"one ", b"and ", b"", b"two"):
        reply = client.request(*mig_data(Cmd.MIG_DATA_WRITE, len(part), data=part))
        assert reply.payload == b""
    assert migratable.incoming == b"one and two"


@pytest.mark.parametrize("state", [STOP, RUNNING, RESUMING])
def test_read_data_in_the_wrong_state(client, state):
    set_state(client, state)
    assert client.error_of(*mig_data(Cmd.MIG_DATA_READ, 8)) == errno.EINVAL


@pytest.mark.parametrize("state", [STOP, RUNNING, PRE_COPY, STOP_COPY])
def test_write_data_in_the_wrong_state(client, state):
    set_state(client, state)
    assert client.error_of(*mig_data(Cmd.MIG_DATA_WRITE, 8, data=bytes(8))) == errno.EINVAL


@pytest.mark.parametrize("cmd, state", [(Cmd.MIG_DATA_READ, STOP_COPY),
                                        (Cmd.MIG_DATA_WRITE, RESUMING)])
def test_data_sizes(workshop, device, migratable, cmd, state):
    assert migratable
    client = workshop.attach(device, {**CAPABILITIES, "max_data_xfer_size": 4096})
    set_state(client, state)
    assert client.error_of(*mig_data(cmd, 4096, data=bytes(4096))) == 0
    for size, argsz in ((4097, None), (0xFFFFFFFF, 0xFFFFFFFF), (16, 23), (16, 8), (16, 0)):
        assert client.error_of(*mig_data(cmd, size, argsz, bytes(16))) == errno.EINVAL
    assert client.error_of(cmd, bytes(7)) == errno.EINVAL


def test_write_shorter_than_it_says(migratable, client):
    set_state(client, RESUMING)
    assert client.error_of(*mig_data(Cmd.MIG_DATA_WRITE, 16, data=bytes(15))) == errno.EINVAL
    assert migratable.incoming == b""


def test_data_without_migration(workshop, device):
    client = workshop.attach(device)
    assert client.error_of(*mig_data(Cmd.MIG_DATA_READ, 8)) == errno.EINVAL
    assert client.error_of(*mig_data(Cmd.MIG_DATA_WRITE, 8, data=bytes(8))) == errno.EINVAL


@pytest.mark.parametrize("result, error", [
    (errno.ENOMEM, errno.ENOMEM), (errno.EBUSY, errno.EBUSY), (0, errno.EIO)])
def test_data_callback_fails(workshop, device, result, error):
    def fail(*_):
        ctypes.set_errno(result)
        return -1

    device.setup_migration(lambda *_: 0, fail, fail)
    client = workshop.attach(device)
    set_state(client, STOP_COPY)
    assert client.error_of(*mig_data(Cmd.MIG_DATA_READ, 8)) == error
    set_state(client, RESUMING)
    assert client.error_of(*mig_data(Cmd.MIG_DATA_WRITE, 8, data=bytes(8))) == error


@pytest.mark.parametrize("read, write", [(9, 7), (1 << 40, 9), ((1 << 63) - 1, 0)])
def test_data_callback_counts_wrongly(workshop, device, read, write):
    device.setup_migration(lambda *_: 0, lambda *_: read, lambda *_: write)
    client = workshop.attach(device)
    set_state(client, STOP_COPY)
    assert client.error_of(*mig_data(Cmd.MIG_DATA_READ, 8)) == errno.EINVAL
    set_state(client, RESUMING)
    assert client.error_of(*mig_data(Cmd.MIG_DATA_WRITE, 8, data=bytes(8))) == errno.EINVAL


# DEVICE_FEATURE

G, S, P = FEATURE_GET, FEATURE_SET, FEATURE_PROBE
ALLOWED = {FEAT_MIGRATION: G | P, FEAT_MIG_STATE: G | S | P, FEAT_LOGGING_START: S | P,
           FEAT_LOGGING_STOP: S | P, FEAT_LOGGING_REPORT: G | P}


@pytest.mark.parametrize("feature", range(12))
def test_probe(client, feature):
    allowed = ALLOWED.get(feature, 0)
    for ops in (P, P | G, P | S, P | G | S, P | 1 << 19):
        expected = errno.EINVAL if ops & ~allowed else 0
        assert error_of(client, ops | feature) == expected, hex(ops)
        if not expected:
            assert client.feature(ops | feature, b"echo").payload[8:] == b"echo"
            assert error_of(client, ops | feature, b"echo", argsz=11) == errno.EINVAL


@pytest.mark.parametrize("feature", range(12))
def test_operations_that_a_feature_has_not(client, feature):
    for ops in (0, G | S, G | S | 1 << 20, G | 1 << 31, G, S):
        if ops in (G, S) and ops & ALLOWED.get(feature, 0):
            continue
        assert error_of(client, ops | feature, bytes(24), 4096) == errno.EINVAL, hex(ops)


def test_features_without_migration(workshop, device):
    client = workshop.attach(device)
    for feature, ops in ALLOWED.items():
        for op in (G, S, P):
            if ops & op:
                assert error_of(client, op | feature, bytes(24), 4096) == errno.EINVAL


def test_feature_too_short(client):
    assert client.error_of(Cmd.DEVICE_FEATURE, bytes(7)) == errno.EINVAL
    assert error_of(client, G | FEAT_MIGRATION, argsz=15) == errno.EINVAL
    assert error_of(client, G | FEAT_MIG_STATE, argsz=15) == errno.EINVAL
    assert error_of(client, S | FEAT_MIG_STATE, bytes(7)) == errno.EINVAL
    assert error_of(client, S | FEAT_MIG_STATE, bytes(8), argsz=15) == errno.EINVAL
    assert error_of(client, S | FEAT_LOGGING_START, bytes(15)) == errno.EINVAL
    assert error_of(client, G | FEAT_LOGGING_REPORT, bytes(23), 4096) == errno.EINVAL


def test_get_migration(client):
    reply = client.feature(G | FEAT_MIGRATION, argsz=16)
    assert reply.payload == wire.FEATURE.pack(argsz=16, flags=G | FEAT_MIGRATION) + \
        wire.FEATURE_MIGRATION.pack(flags=5)


# Dirty pages

BASE = 0x100000


def start(client, page_size=PAGE, check=True):
    return client.feature(S | FEAT_LOGGING_START, wire.LOGGING_CONTROL.pack(page_size=page_size),
                          check=check)


def stop(client):
    return client.feature(S | FEAT_LOGGING_STOP)


def report(client, iova, length, page_size=PAGE, argsz=4096, check=True):
    """The dirty page numbers, or with check unset the reply."""
    data = wire.LOGGING_REPORT.pack(iova=iova, length=length, page_size=page_size)
    reply = client.feature(G | FEAT_LOGGING_REPORT, data, argsz, check)
    if not check:
        return reply
    bits = reply.payload[8 + len(data):]
    head = wire.FEATURE.unpack(reply.payload)
    pages = -(-length // page_size)
    assert head.argsz == len(reply.payload) == 32 + -(-pages // 64) * 8
    assert reply.payload[8:32] == data
    return pages_of(bits)


def pages_of(bits):
    return [i for i in range(8 * len(bits)) if bits[i // 8] >> i % 8 & 1]


def touch(device, page, pages=1):
    """Direct access by the device, with logging pages of any size."""
    device.sgl_write(device.sgl(BASE + page * PAGE, pages * PAGE), bytes(pages * PAGE), abi.DIRECT)


@pytest.fixture
def logged(client):
    """128 pages at BASE, logged."""
    client.add_memory(BASE, 128 * PAGE)
    start(client)
    return client


def test_what_makes_pages_dirty(device, logged):
    lib = device.lib
    sgl = device.sgl(BASE, PAGE + 1)
    iov = device.sgl_get(sgl)
    assert not report(logged, BASE, 128 * PAGE), "not yet"
    lib.vfu_sgl_mark_dirty(device.ctx, sgl, 1)
    assert report(logged, BASE, 128 * PAGE) == [0, 1]
    device.sgl_put(sgl, iov)
    assert report(logged, BASE, 128 * PAGE) == [0, 1]
    sgl = device.sgl(BASE + 5 * PAGE + 17, 1)
    device.sgl_write(sgl, b"x", abi.DIRECT)
    assert report(logged, BASE, 128 * PAGE) == [5]
    assert report(logged, BASE, 128 * PAGE) == [], "a report clears"


def test_what_does_not(device, logged):
    sgl = device.sgl(BASE, PAGE, prot=abi.PROT_READ)
    device.sgl_put(sgl, device.sgl_get(sgl))
    device.lib.vfu_sgl_mark_dirty(device.ctx, sgl, 1)
    device.sgl_read(device.sgl(BASE, PAGE), abi.DIRECT)
    with logged.answering():
        device.sgl_write(device.sgl(BASE, 4), b"text")
    assert not report(logged, BASE, 128 * PAGE), "the client knows of what it wrote itself"


def test_report_of_a_part(device, logged):
    touch(device, 3)
    touch(device, 64)
    assert report(logged, BASE, 8 * PAGE) == [3]
    assert report(logged, BASE, 128 * PAGE) == [64]


@pytest.mark.parametrize("page_size, expected", [
    (512, [*range(24, 32), *range(1016, 1024)]), (PAGE // 2, [6, 7, 254, 255]), (PAGE, [3, 127]),
    (PAGE * 2, [1, 63]), (PAGE * 64, [0, 1]), (PAGE * 128, [0])])
def test_report_in_other_pages(device, logged, page_size, expected):
    touch(device, 3)
    touch(device, 127)
    assert report(logged, BASE, 128 * PAGE, page_size) == expected


def test_logging_in_larger_pages(device, client):
    client.add_memory(BASE, 128 * PAGE)
    start(client, 4 * PAGE)
    touch(device, 5)
    assert report(client, BASE, 128 * PAGE, 4 * PAGE) == [1]
    touch(device, 5)
    assert report(client, BASE, 128 * PAGE) == [5], "the log is finer than was asked for"


def test_region_mapped_while_logging(device, logged):
    logged.add_memory(BASE + 0x1000000, 4 * PAGE)
    device.sgl_write(device.sgl(BASE + 0x1000000 + PAGE, 1), b"x", abi.DIRECT)
    assert report(logged, BASE + 0x1000000, 4 * PAGE) == [1]


def test_start_again(device, logged):
    touch(device, 1)
    assert start(logged).payload[8:] == wire.LOGGING_CONTROL.pack(page_size=PAGE)
    assert report(logged, BASE, 128 * PAGE) == [1], "nothing is lost"
    assert start(logged, 2 * PAGE, check=False).error == errno.EINVAL
    assert report(logged, BASE, 128 * PAGE) == []


def test_stop(device, logged):
    touch(device, 1)
    stop(logged)
    stop(logged)
    assert report(logged, BASE, 128 * PAGE, check=False).error == errno.EINVAL
    start(logged, 2 * PAGE)
    assert report(logged, BASE, 128 * PAGE, 2 * PAGE) == [], "a new log"


@pytest.mark.parametrize("page_size", [0, 3 * PAGE, PAGE - 1, 1 << 63])
def test_start_errors(client, page_size):
    client.add_memory(BASE, 4 * PAGE)
    assert start(client, page_size, check=False).error == errno.EINVAL
    assert report(client, BASE, 4 * PAGE, check=False).error == errno.EINVAL, "logging is off"


def test_logging_without_dma(workshop, device):
    device.setup_migration(**callbacks())
    client = workshop.attach(device)
    assert start(client, check=False).error == errno.EINVAL
    assert report(client, 0, PAGE, check=False).error == errno.EINVAL
    stop(client)


def test_map_of_less_than_a_page(client):
    """A region smaller than the pages that are logged."""
    start(client, 4 * PAGE)
    slot = client.memory.add(BASE, 2 * PAGE)
    assert client.error_of(Cmd.DMA_MAP, client.map_payload(slot), [slot.mem.fd]) == errno.EINVAL
    assert client.error_of(Cmd.DMA_MAP, client.map_payload(slot)) == 0, "it is not logged"


@pytest.mark.parametrize("iova, length, page_size, error", [
    (BASE, 128 * PAGE, 0, errno.EINVAL), (BASE, PAGE - 1, PAGE, errno.EINVAL),
    (BASE, 128 * PAGE, 3 * PAGE, errno.EINVAL), (BASE, 0, PAGE, errno.EINVAL),
    ((1 << 64) - PAGE, 2 * PAGE, PAGE, errno.EINVAL)])
def test_report_errors(logged, iova, length, page_size, error):
    assert report(logged, iova, length, page_size, check=False).error == error


def test_report_needs_room(logged):
    assert report(logged, BASE, 128 * PAGE, argsz=32 + 15, check=False).error == errno.EINVAL
    report(logged, BASE, 128 * PAGE, argsz=32 + 16)
    assert report(logged, BASE, 1 << 62, 1, argsz=0xFFFFFFFF, check=False).error == errno.EINVAL


def test_report_of_any_range(device, logged):
    """Holes and memory that is reached by message are clean."""
    logged.add_memory(BASE + 130 * PAGE, 2 * PAGE, share=False)
    logged.add_memory(BASE + 132 * PAGE, 4 * PAGE)
    touch(device, 127)
    touch(device, 132)
    assert report(logged, BASE - PAGE, PAGE) == []
    assert report(logged, BASE + 130 * PAGE, 2 * PAGE) == []
    assert report(logged, BASE + 100 * PAGE, 36 * PAGE) == [27, 32]
    assert report(logged, BASE, 256 * PAGE) == []


def test_logging_ends_with_the_client(workshop, device, logged):
    """The next one has its own page size."""
    stop(logged)
    logged.dma_unmap(BASE, 128 * PAGE)
    start(logged, 1 << 40)
    logged.close()
    with fails(errno.ENOTCONN):
        device.run()
    client = workshop.attach(device)
    client.add_memory(BASE, 128 * PAGE)
    assert report(client, BASE, 128 * PAGE, check=False).error == errno.EINVAL, "logging is off"
    start(client)
    touch(device, 2)
    assert report(client, BASE, 128 * PAGE) == [2]


# Dirty pages with DMA_UNMAP


def unmap_dirty(client, addr, size, bitmap_size, page_size=PAGE, argsz=None):
    payload = wire.DMA_UNMAP.pack(argsz=40 + bitmap_size if argsz is None else argsz,
                                  flags=wire.UNMAP_GET_DIRTY, addr=addr, size=size)
    payload += wire.BITMAP.pack(pgsize=page_size, size=bitmap_size)
    return payload, client.request(Cmd.DMA_UNMAP, payload, check=False)


def test_unmap_with_bitmap(device, logged):
    touch(device, 0, 2)
    touch(device, 127)
    payload, reply = unmap_dirty(logged, BASE, 128 * PAGE, 16)
    assert reply.payload[:40] == payload
    assert pages_of(reply.payload[40:]) == [0, 1, 127] and len(reply.payload) == 56
    with fails(errno.ENOENT):
        device.sgl(BASE, 1)


def test_unmap_with_bitmap_of_what_is_put_in_the_callback(device, logged):
    """The device lets go of the memory when it hears of the unmap, and the client hears of that."""
    sgl = device.sgl(BASE + 3 * PAGE, PAGE)
    iov = device.sgl_get(sgl)
    device.setup_dma(unregister=lambda _: device.sgl_put(sgl, iov))
    touch(device, 1)
    _, reply = unmap_dirty(logged, BASE, 128 * PAGE, 16)
    assert pages_of(reply.payload[40:]) == [1, 3]


def test_unmap_with_bitmap_of_what_is_held(workshop, device):
    """Whoever still refers to the memory may write until the reply: all of it counts as dirty."""
    device.pci_init()
    device.setup_dma()
    device.setup_migration(**callbacks())
    config = abi.IommuConfig(size=ctypes.sizeof(abi.IommuConfig))
    device.lib.vfu_setup_device_iommu(device.ctx, ctypes.byref(config))
    client = workshop.attach(device)
    client.add_memory(BASE, 128 * PAGE)
    start(client)
    sgl = device.sgl(BASE, PAGE)
    iov = device.sgl_get(sgl)
    payload = wire.DMA_UNMAP.pack(argsz=56, flags=wire.UNMAP_GET_DIRTY, addr=BASE, size=128 * PAGE)
    msg_id = client.send(Cmd.DMA_UNMAP, payload + wire.BITMAP.pack(pgsize=PAGE, size=16))
    device.run()
    device.sgl_put(sgl, iov)
    assert pages_of(client.wait(msg_id).payload[40:]) == list(range(128))


@pytest.mark.parametrize("addr, size, bitmap_size, page_size, argsz, error", [
    (BASE, 128 * PAGE, 8, PAGE, None, errno.EINVAL),
    (BASE, 128 * PAGE, 24, PAGE, None, errno.EINVAL),
    (BASE, 128 * PAGE, 16, 0, None, errno.EINVAL), (BASE, 128 * PAGE, 16, PAGE, 55, errno.EINVAL),
    (BASE, 128 * PAGE, 1 << 40, PAGE, 4096, errno.EINVAL),
    (BASE, 64 * PAGE, 8, PAGE, None, errno.ENOENT),
    (BASE + PAGE, PAGE, 8, PAGE, None, errno.ENOENT),
    (BASE + 7 * PAGE, 200 * PAGE, 32, PAGE, None, errno.ENOENT),
    (0, PAGE, 8, PAGE, None, errno.ENOENT), (BASE, 0, 0, PAGE, None, errno.ENOENT)])
def test_unmap_with_bitmap_errors(device, logged, addr, size, bitmap_size, page_size, argsz, error):
    touch(device, 7)
    _, reply = unmap_dirty(logged, addr, size, bitmap_size, page_size, argsz)
    assert reply.error == error and not reply.payload
    assert device.sgl(BASE, 1)
    assert report(logged, BASE, 128 * PAGE) == [7], "what was dirty is not forgotten"


def test_unmap_with_bitmap_while_logging_is_off(device, client):
    client.add_memory(BASE, 128 * PAGE)
    _, reply = unmap_dirty(client, BASE, 128 * PAGE, 16)
    assert reply.error == errno.EINVAL
    assert device.sgl(BASE, 1)


def test_unmap_with_bitmap_too_short(logged):
    payload = wire.DMA_UNMAP.pack(argsz=56, flags=wire.UNMAP_GET_DIRTY, addr=BASE, size=128 * PAGE)
    assert logged.error_of(Cmd.DMA_UNMAP, payload + bytes(15)) == errno.EINVAL


def test_precopy_as_a_vmm_does_it(device, migratable, logged):
    """The whole way of a source, with memory that changes meanwhile."""
    migratable.outgoing = struct.pack("<Q", 0x1122334455667788)
    set_state(logged, PRE_COPY)
    touch(device, 9)
    assert report(logged, BASE, 128 * PAGE) == [9]
    data = logged.request(*mig_data(Cmd.MIG_DATA_READ, 4)).payload[8:]
    touch(device, 10)
    set_state(logged, STOP_COPY)
    data += logged.request(*mig_data(Cmd.MIG_DATA_READ, 4)).payload[8:]
    assert data == struct.pack("<Q", 0x1122334455667788)
    assert report(logged, BASE, 128 * PAGE) == [10]
    stop(logged)
    assert device.events == [("to", abi.PRE_COPY), ("to", abi.STOP_AND_COPY)]
