# SPDX-License-Identifier: BSD-3-Clause
"""samples/shadow-ioeventfd: as a whole, and its device with the test as the hypervisor."""

import mmap
import os
import re
import select
import signal
import subprocess

import pytest

from conftest import sample
from vfiouser import wire
from vfiouser.channel import TIMEOUT
from vfiouser.client import VfioUserError
from vfiouser.server import REPORTS, START_TIMEOUT, Server
from vfiouser.wire import ACTION_TRIGGER, BAR0, DATA_EVENTFD, INTX, Cmd

VALUE, RINGS, MESSAGES = 0x100, 0x200, 0x300
NR_DOORBELLS = 4


def start(tmp_path, *args):
    return subprocess.Popen([sample("shadow-ioeventfd"), *args], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "TMPDIR": str(tmp_path)})


def finish(process):
    out, err = process.communicate(timeout=START_TIMEOUT)
    assert not REPORTS.search(err.encode()), err
    return out, err


@pytest.mark.parametrize("args,last", [
    ([], r"last with {}, no message"),
    (["--no-shadow"], "with what it cannot know, no message"),
])
def test_whole(tmp_path, args, last):
    process = start(tmp_path, "--rings", "1002", *args)
    out, err = finish(process)
    assert process.returncode == 0 and not err, out + err
    for index, value in enumerate([1000, 1001, 1002, 999]):
        rung = 2 * (250 + (index in (1, 2)))
        assert re.search(rf"^doorbell {index}: rung {rung} times, {last.format(value)}$", out,
                         re.MULTILINE), out
    assert out.endswith("all ok\n")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_of_it(tmp_path, number):
    process = start(tmp_path, "--rings", "100000000")
    assert "4 doorbells" in process.stdout.readline()
    process.send_signal(number)
    out, err = finish(process)
    assert process.returncode == 1 and out == "FAILED\n" and "ended by a signal" in err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("args,message", [
    (["--rings", "3"], "from 4 to"),
    (["--device"], "--device and --socket PATH belong together"),
    (["x"], "'x' is too much"),
])
def test_usage(args, message):
    result = subprocess.run([sample("shadow-ioeventfd"), *args], capture_output=True, text=True,
                            timeout=START_TIMEOUT, check=False)
    assert result.returncode == 2
    assert message in result.stderr and "--help" in result.stderr


class Doorbells:
    """The device, and what it gives to a hypervisor."""

    def __init__(self, *args):
        self.server = Server(sample("shadow-ioeventfd"), "--device", *args)
        self.irq = os.eventfd(0, os.EFD_NONBLOCK)
        self.fds = []
        self.attach()

    def attach(self):
        """The descriptors of an earlier client stay open."""
        self.client = self.server.client()
        self.client.set_irqs(INTX, DATA_EVENTFD | ACTION_TRIGGER, fds=[self.irq])
        size = wire.REGION_IO_FDS.size + NR_DOORBELLS * wire.IOEVENTFD.size
        reply = self.client.request(Cmd.DEVICE_GET_REGION_IO_FDS, wire.REGION_IO_FDS.pack(
            argsz=size, flags=0, index=BAR0, count=0))
        old, self.fds = self.fds, reply.fds
        records = [wire.IOEVENTFD.unpack(reply.payload[at:at + wire.IOEVENTFD.size])
                   for at in range(wire.REGION_IO_FDS.size, size, wire.IOEVENTFD.size)]
        self.records = {record.gpa_offset // 4: record for record in records}
        return old

    def close(self):
        for fd in [*self.fds, self.irq]:
            os.close(fd)
        self.server.close_clients()
        self.server.stop()

    def ring(self, index, times=1):
        os.eventfd_write(self.fds[self.records[index].fd_index], times)

    def wait_irq(self):
        ready, _, _ = select.select([self.irq], [], [], TIMEOUT)
        assert ready, "no interrupt"
        return os.eventfd_read(self.irq)

    def read(self, reg, index):
        return self.client.read_int(BAR0, reg + 4 * index)


@pytest.fixture
def doorbells(request):
    marker = request.node.get_closest_marker("server_args")
    device = Doorbells(*(marker.args if marker else ()))
    yield device
    device.close()


def test_the_value_is_in_shared_memory(doorbells):
    assert set(doorbells.records) == set(range(NR_DOORBELLS))
    record = doorbells.records[2]
    assert (record.size, record.type, record.flags) == (4, 2, 0)
    with mmap.mmap(doorbells.fds[record.shadow_mem_fd_index], 4096) as shadow:
        at = record.shadow_offset
        shadow[at:at + 4] = (0x12345678).to_bytes(4, "little")
        doorbells.ring(2)
        assert doorbells.wait_irq() == 1
    assert doorbells.read(VALUE, 2) == 0x12345678
    assert [doorbells.read(RINGS, i) for i in range(4)] == [0, 0, 1, 0]
    assert doorbells.read(MESSAGES, 2) == 0


@pytest.mark.server_args("--no-shadow")
def test_without_a_shadow_only_the_signal_comes(doorbells):
    assert all(record.type == 0 for record in doorbells.records.values())
    assert len(doorbells.fds) == NR_DOORBELLS
    doorbells.ring(1, times=5)
    assert doorbells.wait_irq() == 1
    assert (doorbells.read(VALUE, 1), doorbells.read(RINGS, 1)) == (0, 5)


def test_a_client_without_ioeventfds_rings_by_messages(doorbells):
    doorbells.client.write_int(BAR0, 3 * 4, 77)
    assert doorbells.wait_irq() == 1
    assert [doorbells.read(reg, 3) for reg in (VALUE, RINGS, MESSAGES)] == [77, 1, 1]


@pytest.mark.parametrize("offset,size", [(0x10, 4), (0x400, 4), (0, 8), (0x102, 2), (0x101, 4)])
def test_accesses_that_no_register_takes(doorbells, offset, size):
    with pytest.raises(VfioUserError):
        doorbells.client.region_read(BAR0, offset, size)
    with pytest.raises(VfioUserError):
        doorbells.client.region_write(BAR0, offset, bytes(size))


@pytest.mark.parametrize("number", range(NR_DOORBELLS))
def test_doorbells_end_with_the_client(doorbells, number):
    """Who rings and writes what an earlier client got reaches nothing of the next one."""
    before = len(doorbells.server.fds())
    doorbells.client.write_int(BAR0, 0, 5)
    doorbells.wait_irq()
    record = doorbells.records[number]
    doorbells.client.close()
    old = doorbells.attach()
    assert [doorbells.read(reg, 0) for reg in (VALUE, RINGS, MESSAGES)] == [0, 0, 0]
    os.pwrite(old[record.shadow_mem_fd_index], b"\xff" * 4, record.shadow_offset)
    os.eventfd_write(old[record.fd_index], 1)
    new = doorbells.records[number]
    os.pwrite(doorbells.fds[new.shadow_mem_fd_index], b"\7\0\0\0", new.shadow_offset)
    doorbells.ring(number)
    doorbells.wait_irq()
    assert (doorbells.read(VALUE, number), doorbells.read(RINGS, number)) == (7, 1)
    # A device that listened to the old bells would have seen them by now.
    doorbells.ring((number + 1) % NR_DOORBELLS)
    doorbells.wait_irq()
    assert (doorbells.read(VALUE, number), doorbells.read(RINGS, number)) == (7, 1)
    assert len(doorbells.server.fds()) == before
    for fd in old:
        os.close(fd)


def test_shadow_file_is_sealed(doorbells):
    """A client that truncates it would end the device."""
    fd = doorbells.fds[doorbells.records[0].shadow_mem_fd_index]
    for size in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)


def test_without_a_client_nothing_rings(doorbells):
    """A client that has gone holds a descriptor of the session, no more."""
    doorbells.client.close()
    doorbells.ring(0)
    old = doorbells.attach()
    assert doorbells.read(RINGS, 0) == 0
    for fd in old:
        os.close(fd)
