# SPDX-License-Identifier: BSD-3-Clause
"""A device on two pipes: VFU_TRANS_PIPE, standard input and output."""

import errno
import json
import os
import select
import subprocess

import pytest

from conftest import built
from vfiouser import wire
from vfiouser.channel import TIMEOUT, Disconnected, Message
from vfiouser.client import CAPABILITIES, version_payload
from vfiouser.server import REPORTS
from vfiouser.wire import BAR0, CONFIG, Cmd

# Registers of test/device/pipe_device.c
ADDR, LENGTH, COMMAND, ERROR, BUFFER = 0, 8, 0xC, 0x10, 0x100
READ, WRITE = 1, 2
RAM = 0x100000


class PipeDevice:
    def __init__(self, *args):
        self.process = subprocess.Popen([built("test/device", "pipe_device"), *args],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, bufsize=0)
        self.next_id = 0

    # Messages

    def send(self, data):
        self.process.stdin.write(data)

    def recv_exact(self, count):
        data = b""
        while len(data) < count:
            ready, _, _ = select.select([self.process.stdout], [], [], TIMEOUT)
            assert ready, "the device is silent"
            part = self.process.stdout.read(count - len(data))
            if not part:
                raise Disconnected(f"end of stream after {len(data)} bytes")
            data += part
        return data

    def recv(self):
        header = wire.HEADER.unpack(self.recv_exact(wire.HEADER.size))
        return Message(header, self.recv_exact(header.msg_size - wire.HEADER.size), [])

    def start(self, cmd, payload=b"", flags=0):
        self.next_id += 1
        self.send(wire.message(cmd, payload, self.next_id, flags))
        return self.next_id

    def request(self, cmd, payload=b""):
        msg_id = self.start(cmd, payload)
        reply = self.recv()
        assert reply.is_reply and reply.id == msg_id and reply.cmd == cmd, reply
        return reply

    # Commands

    def negotiate(self, capabilities=None):
        reply = self.request(Cmd.VERSION, version_payload(capabilities or CAPABILITIES))
        assert not reply.error, reply
        return json.loads(reply.payload[wire.VERSION.size:-1])["capabilities"]

    def read(self, offset, count, region=BAR0):
        payload = wire.REGION_ACCESS.pack(offset=offset, region=region, count=count)
        reply = self.request(Cmd.REGION_READ, payload)
        assert not reply.error and reply.payload[:16] == payload, reply
        return reply.payload[16:]

    def read_int(self, offset):
        return int.from_bytes(self.read(offset, 4), "little")

    def start_write(self, offset, data, region=BAR0, flags=0):
        payload = wire.REGION_ACCESS.pack(offset=offset, region=region, count=len(data)) + data
        return self.start(Cmd.REGION_WRITE, payload, flags)

    def write(self, offset, data, region=BAR0):
        msg_id = self.start_write(offset, data, region)
        reply = self.recv()
        assert reply.id == msg_id and not reply.error, reply

    def command(self, number, addr, length):
        """Begins a transfer; the reply to the write comes when it has ended."""
        self.write(ADDR, addr.to_bytes(8, "little"))
        self.write(LENGTH, length.to_bytes(4, "little"))
        return self.start_write(COMMAND, number.to_bytes(4, "little"))

    def map(self, addr=RAM, size=0x10000, flags=wire.MAP_RW):
        payload = wire.DMA_MAP.pack(argsz=wire.DMA_MAP.size, flags=flags, addr=addr, size=size)
        return self.request(Cmd.DMA_MAP, payload).error

    def reply(self, command, payload=b"", error=0):
        flags = wire.REPLY | (wire.ERROR if error else 0)
        self.send(wire.message(command.cmd, payload, command.id, flags, error))

    # End

    def end(self):
        """Closes both pipes, whichever are open still; the device must end, and end well."""
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        status = self.process.wait(TIMEOUT)
        log = self.process.stderr.read()
        self.process.stderr.close()
        assert not REPORTS.search(log), log
        assert status == 0, (status, log)


@pytest.fixture(params=[(), ("--nonblocking",)], ids=["blocking", "nonblocking"])
def silent(request):
    """A device that nobody has talked to."""
    pipes = PipeDevice(*request.param)
    yield pipes
    pipes.end()


@pytest.fixture
def device(silent):
    silent.negotiate()
    return silent


def test_version(silent):
    capabilities = silent.negotiate()
    assert capabilities["max_msg_fds"] >= 1
    assert silent.read(0, 16) == bytes(16)


def test_no_twin_socket(silent):
    """Its descriptor could not come along."""
    capabilities = silent.negotiate({**CAPABILITIES, "twin_socket": {"supported": True}})
    assert "twin_socket" not in capabilities


def test_version_in_pieces(silent):
    message = wire.message(Cmd.VERSION, version_payload(CAPABILITIES))
    for i in range(0, len(message), 5):
        silent.send(message[i:i + 5])
    assert not silent.recv().error
    assert silent.read(0, 4) == bytes(4)


def test_version_together_with_a_command(silent):
    """What follows VERSION in the pipe is not lost."""
    access = wire.REGION_ACCESS.pack(offset=0, region=CONFIG, count=4)
    silent.send(wire.message(Cmd.VERSION, version_payload(CAPABILITIES), 1) +
                wire.message(Cmd.REGION_READ, access, 2))
    assert [silent.recv().id, silent.recv().id] == [1, 2]


@pytest.mark.parametrize("message", [
    wire.message(Cmd.VERSION, wire.VERSION.pack(major=7)),
    wire.message(Cmd.VERSION, b"\0"),
    wire.message(Cmd.DEVICE_RESET),
], ids=["major", "short", "no version"])
def test_turned_away(silent, message):
    silent.send(message)
    assert silent.recv().error == errno.EINVAL
    with pytest.raises(Disconnected):
        silent.recv()


def test_region_access(device):
    device.write(BUFFER, bytes(range(200)))
    assert device.read(BUFFER, 200) == bytes(range(200))
    device.start_write(BUFFER, b"posted", flags=wire.NO_REPLY)
    assert device.read(BUFFER, 6) == b"posted"


def test_pipelined(device):
    ids = [device.start(Cmd.REGION_READ, wire.REGION_ACCESS.pack(offset=BUFFER, count=64))
           for _ in range(100)]
    assert [device.recv().id for _ in ids] == ids


def test_largest_message(device):
    """More than a pipe holds, both ways."""
    payload = wire.REGION_ACCESS.pack(offset=0, region=BAR0, count=1 << 20)
    reply = device.request(Cmd.REGION_WRITE, payload + bytes(1 << 20))
    assert reply.error == errno.EINVAL
    device.write(BUFFER, bytes(range(256)) * 15)
    assert device.read(BUFFER, 256 * 15) == bytes(range(256)) * 15


def test_broken_frame(device):
    device.send(wire.message(Cmd.DEVICE_RESET, msg_size=3))
    assert device.recv().error == errno.EINVAL
    with pytest.raises(Disconnected):
        device.recv()


def test_dma_read_by_message(device):
    assert device.map() == 0
    msg_id = device.command(READ, RAM + 5, 1000)
    command = device.recv()
    assert command.cmd == Cmd.DMA_READ and not command.is_reply
    access = wire.DMA_ACCESS.unpack(command.payload)
    assert (access.addr, access.count) == (RAM + 5, 1000)
    device.reply(command, command.payload + bytes(i % 251 for i in range(1000)))
    assert device.recv().id == msg_id
    assert device.read_int(ERROR) == 0
    assert device.read(BUFFER, 1000) == bytes(i % 251 for i in range(1000))


def test_dma_write_by_message(device):
    device.map()
    device.write(BUFFER, b"to the guest")
    msg_id = device.command(WRITE, RAM, 12)
    command = device.recv()
    assert command.cmd == Cmd.DMA_WRITE
    assert command.payload == wire.DMA_ACCESS.pack(addr=RAM, count=12) + b"to the guest"
    device.reply(command, command.payload[:wire.DMA_ACCESS.size])
    assert device.recv().id == msg_id
    assert device.read_int(ERROR) == 0


def test_command_while_the_device_waits(device):
    """It is served behind the reply, and neither is lost."""
    device.map()
    first = device.command(READ, RAM, 4)
    command = device.recv()
    second = device.start(Cmd.REGION_READ, wire.REGION_ACCESS.pack(offset=BUFFER, count=4))
    device.reply(command, command.payload + b"late")
    assert device.recv().id == first
    reply = device.recv()
    assert reply.id == second and reply.payload[16:] == b"late"


def test_dma_refused(device):
    device.map()
    device.command(READ, RAM, 4)
    device.reply(device.recv(), error=errno.EPERM)
    assert not device.recv().error
    assert device.read_int(ERROR) == errno.EPERM


def test_dma_elsewhere(device):
    device.map()
    device.command(READ, RAM + 0x10000, 4)
    assert not device.recv().error
    assert device.read_int(ERROR) == errno.ENOENT


@pytest.mark.parametrize("flags", [wire.MAP_RW | wire.MAP_MMAP, wire.MAP_RW | wire.MAP_FILE_IO])
def test_memory_without_a_file(device, flags):
    """No descriptor can come by a pipe."""
    assert device.map(flags=flags) == errno.EINVAL


# The end. The fixture sees to it that the device ends, with status 0.


def test_end_of_input(device):
    device.process.stdin.close()
    with pytest.raises(Disconnected):
        device.recv()


def test_end_before_version(silent):
    silent.process.stdin.close()
    with pytest.raises(Disconnected):
        silent.recv()


@pytest.mark.parametrize("length", [1, 15, 16, 20, 31])
def test_end_within_a_message(device, length):
    message = wire.message(Cmd.REGION_READ, wire.REGION_ACCESS.pack(offset=0, count=4))
    device.send(message[:length])
    device.process.stdin.close()
    with pytest.raises(Disconnected):
        device.recv()


def test_end_behind_a_command(device):
    """Its reply comes all the same."""
    msg_id = device.start(Cmd.REGION_READ, wire.REGION_ACCESS.pack(offset=0, count=4))
    device.process.stdin.close()
    assert device.recv().id == msg_id
    with pytest.raises(Disconnected):
        device.recv()


def test_nobody_reads_replies(device):
    """A closed pipe ends the session, and not the process by a signal."""
    device.process.stdout.close()
    device.start(Cmd.DEVICE_RESET)


def test_end_while_the_device_waits(device):
    device.map()
    device.command(READ, RAM, 4)
    assert device.recv().cmd == Cmd.DMA_READ
    device.process.stdin.close()
    with pytest.raises(Disconnected):
        while True:
            device.recv()


def test_nobody_reads_the_device(device):
    device.map()
    device.write(ADDR, RAM.to_bytes(8, "little"))
    device.write(LENGTH, (4).to_bytes(4, "little"))
    device.process.stdout.close()
    device.start_write(COMMAND, READ.to_bytes(4, "little"))
