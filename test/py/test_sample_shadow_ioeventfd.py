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
        self.client = self.server.client()
        self.irq = os.eventfd(0, os.EFD_NONBLOCK)
        self.client.set_irqs(INTX, DATA_EVENTFD | ACTION_TRIGGER, fds=[self.irq])
        size = wire.REGION_IO_FDS.size + NR_DOORBELLS * wire.IOEVENTFD.size
        reply = self.client.request(Cmd.DEVICE_GET_REGION_IO_FDS, wire.REGION_IO_FDS.pack(
            argsz=size, flags=0, index=BAR0, count=0))
        self.fds = reply.fds
        records = [wire.IOEVENTFD.unpack(reply.payload[at:at + wire.IOEVENTFD.size])
                   for at in range(wire.REGION_IO_FDS.size, size, wire.IOEVENTFD.size)]
        self.records = {record.gpa_offset // 4: record for record in records}

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


def test_doorbells_outlive_the_client(doorbells):
    """The eventfds are the device's; who has them may ring when nobody is attached."""
    doorbells.client.close()
    doorbells.client = doorbells.server.client()
    doorbells.ring(0)
    while doorbells.read(RINGS, 0) != 1:
        pass
