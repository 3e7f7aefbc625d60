# SPDX-License-Identifier: BSD-3-Clause
"""samples/migration: as a whole, and its device against a client that migrates badly."""

import errno
import os
import re
import signal
import struct
import subprocess

import pytest

from conftest import sample
from vfiouser import migration
from vfiouser.client import VfioUserError
from vfiouser.migration import PRE_COPY, RESUMING, RUNNING, STOP, STOP_COPY, of_device
from vfiouser.server import REPORTS, START_TIMEOUT, Server
from vfiouser.wire import BAR0, CONFIG

RING, LENGTH, CONTROL, ERROR, WRITTEN, CONSUMED, MIX, DIGEST = range(0, 0x40, 8)
PAGE, REGISTERS = 1, 2
PAGE_SIZE, NR_PAGES = 4096, 256
RECORD_SIZE = 64


@pytest.fixture
def program(tmp_path):
    """Starts the whole of it, with its sockets in tmp_path."""
    def start(*args):
        return subprocess.Popen([sample("migration"), *args], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True,
                                env={**os.environ, "TMPDIR": str(tmp_path)})
    return start


def finish(process):
    out, err = process.communicate(timeout=START_TIMEOUT)
    assert not REPORTS.search(err.encode()), err
    return out, err


@pytest.mark.parametrize("memory", [["--memory", "64"], ["--memory", "16", "--messages"]])
def test_nothing_is_lost_under_load(program, tmp_path, memory):
    process = program("--records", "2000", *memory)
    out, err = finish(process)
    assert process.returncode == 0, out + err
    assert not err
    pages = int(memory[1]) * 256
    lines = out.splitlines()
    assert lines[-1] == "all ok"
    assert len([line for line in lines if line.startswith("pre-copy")]) >= 4
    assert f"pre-copy 1  {pages} of {pages} pages" in out
    assert re.search(rf"compared    {pages} pages and the device's state .* are the same", out)
    before, after = (int(n) for n in re.findall(r"load +(\d+) records checked", out))
    assert before >= 2000 and after >= before + 2000
    assert "none lost, none repeated" in out
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("line", ["source", "destination", "load", "pre-copy 2"])
def test_a_signal_ends_all_of_it(program, tmp_path, number, line):
    process = program("--records", "1000")
    while not process.stdout.readline().startswith(line):
        assert process.poll() is None
    process.send_signal(number)
    out, err = finish(process)
    # It may have come to its end before the signal came.
    if process.returncode != 0:
        assert process.returncode == 1, out + err
        assert out.endswith("FAILED\n") and "ended by a signal" in err
    assert not os.listdir(tmp_path)


def test_no_place_for_the_sockets():
    result = subprocess.run([sample("migration")], capture_output=True, text=True, check=False,
                            timeout=START_TIMEOUT, env={**os.environ, "TMPDIR": "/nowhere"})
    assert result.returncode == 1 and "set TMPDIR" in result.stderr


@pytest.mark.parametrize("args,message", [
    (["--records", "0"], "from 1 to"),
    (["--memory", "15"], "from 16 to 1024"),
    (["--device"], "--device and --socket PATH belong together"),
    (["--socket", "x"], "--device and --socket PATH belong together"),
    (["x"], "'x' is too much"),
])
def test_usage(args, message):
    result = subprocess.run([sample("migration"), *args], capture_output=True, text=True,
                            timeout=START_TIMEOUT, check=False)
    assert result.returncode == 2
    assert message in result.stderr and "--help" in result.stderr


class Recorder:
    """The device alone, with a ring of records in shared memory."""

    def __init__(self):
        self.server = Server(sample("migration"), "--device")
        self.client = self.server.client()
        self.ram = self.client.add_memory(0, 0x10000)

    def read(self, reg):
        return self.client.read_int(BAR0, reg, 8)

    def write(self, reg, value):
        self.client.write_int(BAR0, reg, value, 8)

    def run(self, records):
        self.write(LENGTH, records)
        self.write(CONTROL, 1)
        while self.read(WRITTEN) < records:
            pass

    def set_state(self, state):
        migration.set_state(self.client, state)

    def save(self, size):
        return migration.save(self.client, size)

    def load(self, state, size=4096):
        migration.load(self.client, state, size)


@pytest.fixture
def recorder():
    device = Recorder()
    yield device
    device.server.close_clients()
    device.server.stop()


def registers(length=1, control=0, consumed=0, number=0):
    return struct.pack("<II8Q", REGISTERS, 0, 0, length, control, 0, consumed, 1, number, 0)


@pytest.mark.parametrize("save_size,load_size", [(1, 7), (4104, 4104), (100000, 3), (3, 50000)])
def test_state_in_pieces_of_any_size(recorder, save_size, load_size):
    recorder.run(600)
    recorder.write(MIX, 5)
    recorder.set_state(PRE_COPY)
    state = recorder.save(65536)
    assert len(of_device(state)) == NR_PAGES * (8 + PAGE_SIZE), "all pages, not the registers"
    recorder.client.write_int(CONFIG, 0x3C, 11, 1)
    recorder.write(CONSUMED, 100)
    while recorder.read(WRITTEN) < 700:
        pass
    recorder.set_state(STOP_COPY)
    rest = recorder.save(save_size)
    assert len(of_device(rest)) == 8 + PAGE_SIZE + len(registers()), \
        "the page that has changed, the registers"
    recorder.set_state(STOP)
    digest = recorder.read(DIGEST)
    recorder.client.close()
    recorder.client = recorder.server.client()
    assert recorder.read(WRITTEN) == 0, "a new client finds a new device"
    recorder.set_state(RESUMING)
    recorder.load(state, 65536)
    recorder.load(rest, load_size)
    recorder.set_state(STOP)
    assert recorder.read(DIGEST) == digest
    assert recorder.client.read_int(CONFIG, 0x3C, 1) == 11
    assert [recorder.read(reg) for reg in (LENGTH, CONTROL, WRITTEN, CONSUMED, MIX)] == [
        600, 1, 700, 100, 1]


def test_nothing_is_written_while_stopped(recorder):
    recorder.run(4)
    recorder.set_state(STOP)
    recorder.write(CONSUMED, 4)
    assert recorder.read(WRITTEN) == 4
    recorder.set_state(RUNNING)
    while recorder.read(WRITTEN) < 8:
        pass


def test_a_record_that_a_stop_cancels_is_written_again(recorder):
    """Over memory that is not shared: the message is not answered any more, and comes again."""
    client = recorder.client
    client.dma_unmap(0, 0x10000)
    client.dma_map(recorder.ram, share=False)
    recorder.write(LENGTH, 1)
    client.hold()
    recorder.write(CONTROL, 1)
    first = client.next_command().payload
    recorder.set_state(STOP)
    recorder.set_state(RUNNING)
    again = client.next_command()
    assert again.payload == first
    client.serve(again)
    while recorder.read(WRITTEN) < 1:
        pass
    assert recorder.read(ERROR) == 0 and recorder.read(CONTROL) == 1


def test_saved_twice_is_the_same(recorder):
    """What a save that was given up has taken is taken again by the next."""
    recorder.run(10)
    recorder.set_state(STOP_COPY)
    first = recorder.save(5000)
    recorder.set_state(STOP)
    recorder.set_state(STOP_COPY)
    assert recorder.save(100000) == first


@pytest.mark.parametrize("state", [
    struct.pack("<II", 0, 0),
    struct.pack("<II", 3, 0),
    struct.pack("<II", PAGE, NR_PAGES),
    struct.pack("<II", PAGE, 0xFFFFFFFF),
    registers(length=0),
    registers(length=65537),
    registers(control=2),
    registers(consumed=1),
    registers() + b"\0",
])
def test_what_is_no_state_is_refused(recorder, state):
    recorder.set_state(RESUMING)
    with pytest.raises(VfioUserError) as error:
        recorder.load(state)
    assert error.value.errno == errno.EINVAL
    # Nothing of it is left behind: a good one is taken.
    recorder.set_state(RESUMING)
    if state != registers() + b"\0":
        recorder.load(struct.pack("<II", PAGE, 255) + bytes(PAGE_SIZE) + registers(length=9))
        recorder.set_state(STOP)
        assert recorder.read(LENGTH) == 9


@pytest.mark.parametrize("state", [b"", struct.pack("<II", PAGE, 0), registers()[:-1]])
def test_a_state_that_ends_too_early(recorder, state):
    recorder.set_state(RESUMING)
    recorder.load(state)
    with pytest.raises(VfioUserError) as error:
        recorder.set_state(RUNNING)
    assert error.value.errno == errno.EINVAL
    recorder.client.reset()


def test_a_ring_that_is_not_there(recorder):
    recorder.write(RING, 0x10000 - RECORD_SIZE)
    recorder.write(LENGTH, 2)
    recorder.write(CONTROL, 1)
    while recorder.read(CONTROL):
        pass
    assert recorder.read(ERROR) == errno.ENOENT
    assert recorder.read(WRITTEN) == 1


@pytest.mark.parametrize("reg,size", [(0x40, 8), (0, 4), (4, 8), (0, 16)])
def test_accesses_that_no_register_takes(recorder, reg, size):
    with pytest.raises(VfioUserError):
        recorder.client.region_read(BAR0, reg, size)
    with pytest.raises(VfioUserError):
        recorder.client.region_write(BAR0, reg, bytes(size))


@pytest.mark.parametrize("share", [True, False])
def test_a_client_that_leaves_in_full_swing(recorder, share):
    recorder.client.dma_unmap(0, 0x10000)
    recorder.client.dma_map(recorder.ram, share)
    recorder.write(LENGTH, 1000)
    if not share:
        recorder.client.hold()
    recorder.write(CONTROL, 1)
    if not share:
        recorder.client.next_command()
    recorder.client.close()
    assert recorder.server.client().read_int(BAR0, WRITTEN, 8) == 0
