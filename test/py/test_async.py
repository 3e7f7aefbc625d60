# SPDX-License-Identifier: BSD-3-Clause
"""
Commands in both directions at once: a command that arrives while the server waits for a reply is
handled or queued, never lost; replies are matched by id, in any order.
"""

import errno

import pytest

from vfiouser import edu as hw
from vfiouser import wire
from vfiouser.channel import Disconnected
from vfiouser.edu import BUFFER, Edu
from vfiouser.memory import Slot
from vfiouser.wire import BAR0, CONFIG, Cmd

INFO = wire.DEVICE_INFO.pack(argsz=16)
READ_ID = wire.REGION_ACCESS.pack(offset=0, region=BAR0, count=4)
DATA = bytes(range(256)) * 4


class Pending:
    """A transfer whose first DMA message has come and is not yet answered."""

    def __init__(self, edu, count=64, to_ram=False):
        self.edu = edu
        self.client = edu.client
        self.slot = self.client.add_memory(0, 0x2000, share=False)
        self.slot.write(0, DATA)
        self.client.hold()
        src, dst = (BUFFER, 0x1000) if to_ram else (0, BUFFER)
        self.msg_id = edu.start_dma(src, dst, count, hw.DMA_TO_RAM if to_ram else 0)
        self.command = self.client.next_command()
        assert self.command.cmd == (Cmd.DMA_WRITE if to_ram else Cmd.DMA_READ)

    def answer(self):
        self.client.on_command = self.client.serve
        self.client.serve(self.command)
        while self.client.held:
            self.client.serve(self.client.held.popleft())

    def finish(self):
        self.answer()
        self.edu.finish_dma(self.msg_id)

    def check(self, count=64):
        """What came to the device is right."""
        self.edu.to_ram(0x1000, count)
        assert self.slot.read(0x1000, count) == DATA[:count]


@pytest.fixture
def pending(edu):
    return Pending(edu)


@pytest.mark.parametrize("number", [1, 2, 10, 200])
def test_region_reads_before_the_answer(pending, number):
    client = pending.client
    ids = [client.send(Cmd.REGION_READ, READ_ID) for _ in range(number)]
    pending.answer()
    for msg_id in ids:
        assert client.wait(msg_id).payload[16:] == hw.IDENTITY.to_bytes(4, "little")
    pending.edu.finish_dma(pending.msg_id)
    pending.check()


def test_commands_keep_their_order(pending):
    """Writes and reads of one register, sent while the server waits."""
    client = pending.client
    ids = []
    for i in range(50):
        client.send_region_write(BAR0, hw.REG_LIVENESS, i.to_bytes(4, "little"), wire.NO_REPLY)
        ids.append(client.send(Cmd.REGION_READ, wire.REGION_ACCESS.pack(
            offset=hw.REG_LIVENESS, region=BAR0, count=4)))
    pending.answer()
    values = [int.from_bytes(client.wait(msg_id).payload[16:], "little") for msg_id in ids]
    assert values == [~i & 0xFFFFFFFF for i in range(50)]
    pending.edu.finish_dma(pending.msg_id)
    pending.check()


@pytest.mark.parametrize("number", [300, 3000])
def test_many_posted_writes_before_the_answer(pending, number):
    """More than a server would keep at a time: the answer behind them still has to be found."""
    for i in range(number):
        pending.client.send_region_write(BAR0, hw.REG_LIVENESS, i.to_bytes(4, "little"),
                                         wire.NO_REPLY)
    pending.finish()
    assert pending.edu.read(hw.REG_LIVENESS) == ~(number - 1) & 0xFFFFFFFF
    pending.check()


def test_large_writes_before_the_answer(pending):
    """Megabytes of commands in front of it."""
    client = pending.client
    payload = wire.REGION_ACCESS.pack(offset=0, region=BAR0, count=1 << 20) + bytes(1 << 20)
    for _ in range(3):
        client.send(Cmd.REGION_WRITE, payload, flags=wire.NO_REPLY)
    pending.finish()
    pending.check()


def test_bad_commands_before_the_answer(pending):
    client = pending.client
    ids = [client.send(99, bytes(20)), client.send(Cmd.DMA_MAP, b"short"),
           client.send(Cmd.DEVICE_GET_INFO, INFO)]
    pending.answer()
    assert [client.wait(i, check=False).error for i in ids] == [errno.EINVAL, errno.EINVAL, 0]
    pending.edu.finish_dma(pending.msg_id)
    pending.check()


COMMANDS = {
    "info": (Cmd.DEVICE_GET_INFO, INFO),
    "config write": (Cmd.REGION_WRITE, wire.REGION_ACCESS.pack(offset=0x3C, region=CONFIG,
                                                               count=1) + b"\x0a"),
    "map": (Cmd.DMA_MAP, wire.DMA_MAP.pack(argsz=32, flags=3, addr=0x100000, size=0x1000)),
    "unmap of another": (Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, addr=0x100000,
                                                            size=0x1000)),
    "unmap of the same": (Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, addr=0, size=0x2000)),
    "unmap all": (Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, flags=wire.UNMAP_ALL)),
    "reset": (Cmd.DEVICE_RESET, b""),
    "interrupts": (Cmd.DEVICE_SET_IRQS, wire.IRQ_SET.pack(argsz=20, flags=0x21, count=1)),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("to_ram", [False, True])
def test_command_before_the_answer(edu, name, to_ram):
    """It gets its reply, whichever comes first."""
    pending = Pending(edu, to_ram=to_ram)
    msg_id = pending.client.send(*COMMANDS[name])
    pending.answer()
    reply = pending.client.wait(msg_id, check=False)
    assert reply.error == (errno.ENOENT if name == "unmap of another" else 0)
    edu.finish_dma(pending.msg_id)


@pytest.mark.parametrize("name", ["map", "unmap of the same", "unmap all", "reset"])
@pytest.mark.parametrize("number", [1, 10, 250])
@pytest.mark.parametrize("to_ram", [False, True])
def test_commands_behind_one_that_waits(edu, name, number, to_ram):
    """
    A map, unmap or reset waits until the device is quiet, and the device waits for the answer:
    the answer must be found behind whatever the client sent in between, and that keeps its order.
    """
    pending = Pending(edu, to_ram=to_ram)
    client = pending.client
    first = client.send(*COMMANDS[name])
    ids = []
    for i in range(number):
        client.send_region_write(BAR0, hw.REG_LIVENESS, i.to_bytes(4, "little"), wire.NO_REPLY)
        ids.append(client.send(Cmd.REGION_READ, wire.REGION_ACCESS.pack(
            offset=hw.REG_LIVENESS, region=BAR0, count=4)))
    pending.answer()
    assert client.wait(first, check=False).error == 0
    values = [int.from_bytes(client.wait(msg_id).payload[16:], "little") for msg_id in ids]
    assert values == [~i & 0xFFFFFFFF for i in range(number)]
    edu.finish_dma(pending.msg_id)


def test_command_half_sent_before_the_answer(pending):
    """Behind half a command nothing else can come on this socket; then the rest, the answer."""
    data = wire.message(Cmd.REGION_READ, READ_ID, 4321)
    pending.client.send_raw(data[:20])
    pending.client.send_raw(data[20:])
    pending.finish()
    pending.client.wait(4321)
    pending.check()


def test_answer_byte_by_byte(pending):
    payload = pending.command.payload + DATA[:64]
    reply = wire.message(Cmd.DMA_READ, payload, pending.command.id, wire.REPLY)
    pending.client.on_command = pending.client.serve
    for byte in reply:
        pending.client.send_raw(bytes([byte]))
    pending.edu.finish_dma(pending.msg_id)
    pending.check()


def test_answer_and_commands_in_one_send(pending):
    before = wire.message(Cmd.REGION_READ, READ_ID, 2001)
    reply = wire.message(Cmd.DMA_READ, pending.command.payload + DATA[:64], pending.command.id,
                         wire.REPLY)
    after = wire.message(Cmd.REGION_READ, READ_ID, 2002)
    pending.client.on_command = pending.client.serve
    pending.client.send_raw(before + reply + after)
    pending.client.wait(2002)
    pending.client.wait(2001)
    pending.edu.finish_dma(pending.msg_id)
    pending.check()


@pytest.fixture
def small(server):
    """A device whose transfers need many messages."""
    edu = Edu(server.client({"max_data_xfer_size": 64}))
    edu.enable_bus_master()
    return edu


@pytest.mark.parametrize("to_ram", [False, True])
def test_TXN_1_answers_out_of_order(small, to_ram):
    """A transfer in pieces has several messages in flight; they are answered backwards."""
    pending = Pending(small, 1024, to_ram)
    client = pending.client
    waiting, done = [pending.command], 0
    while done < 16:
        while len(waiting) < min(2, 16 - done):
            waiting.append(client.next_command())
        waiting += client.held
        client.held.clear()
        done += len(waiting)
        for command in reversed(waiting):
            client.serve(command)
        waiting = []
    small.finish_dma(pending.msg_id)
    client.on_command = client.serve
    if not to_ram:
        small.to_ram(0x1000, 1024)
    assert pending.slot.read(0x1000, 1024) == (bytes(1024) if to_ram else DATA)


def test_TXN_1_ids_in_flight_differ(small):
    pending = Pending(small, 1024)
    second = pending.client.next_command()
    assert second.id != pending.command.id
    pending.client.held.appendleft(second)
    pending.finish()
    pending.check(1024)


@pytest.mark.parametrize("name, command", [
    *((name, COMMANDS[name]) for name in ("unmap of the same", "unmap all", "reset")),
    ("bus mastering off", (Cmd.REGION_WRITE, wire.REGION_ACCESS.pack(
        offset=4, region=CONFIG, count=2) + bytes(2))),
])
@pytest.mark.parametrize("to_ram", [False, True])
def test_TXN_2_no_reply_waits_for_the_client(server, small, name, command, to_ram):
    """
    A client that waits for its reply before it answers, as QEMU does, gets it: the transfer ends,
    and the answers that come afterwards are dropped.
    """
    pending = Pending(small, 1024, to_ram)
    client = pending.client
    assert client.request(*command).error == 0
    small.poll(hw.REG_DMA_CMD, hw.DMA_START)
    assert server.failed_transfers() == 1
    pending.answer()
    small.enable_bus_master()
    if "unmap" in name:
        client.memory.slots.clear()
        client.add_memory(0, 0x2000, share=False).write(0, DATA)
    small.copy(0, 0x1000, 1024)
    assert client.memory.dma_read(0x1000, 1024) == DATA


@pytest.mark.parametrize("command", ["map", "unmap"])
def test_TXN_2_no_quiesce_waits_for_the_client(server, small, command):
    """Other memory: the device, which has to quiesce, gives the message up before the client does."""
    other = small.client.add_memory(0x100000, 0x1000, share=False)
    pending = Pending(small, 64)
    client = pending.client
    if command == "map":
        other = Slot(0x200000, 0x1000, client.memory.add_file(0x1000))
        assert client.request(Cmd.DMA_MAP, client.map_payload(other), [other.mem.fd]).error == 0
    else:
        client.dma_unmap(other.addr, other.size)
    small.poll(hw.REG_DMA_CMD, hw.DMA_START)
    assert server.failed_transfers() == 1
    pending.answer()
    small.copy(0, 0x1000, 64)


@pytest.mark.parametrize("piece", [0, 1, 7, 15])
def test_one_piece_fails(server, small, piece):
    """The transfer fails, the device goes on."""
    client = small.client
    slot = client.add_memory(0, 0x2000, share=False)
    slot.write(0, DATA)
    seen = []

    def serve(command):
        seen.append(command)
        if len(seen) == piece + 1:
            client.reply(command, error=errno.EFAULT)
        else:
            client.serve(command)

    client.on_command = serve
    small.from_ram(0, 1024)
    assert server.failed_transfers() == 1
    client.on_command = client.serve
    small.copy(0, 0x1000, 1024)
    assert slot.read(0x1000, 1024) == DATA


def lie(client, command, **change):
    access = wire.DMA_ACCESS.unpack(command.payload)
    fields = {"addr": access.addr, "count": access.count}
    fields.update({k: v for k, v in change.items() if k in fields})
    data = change.get("data", b"L" * access.count if command.cmd == Cmd.DMA_READ else b"")
    client.reply(command, wire.DMA_ACCESS.pack(**fields) + data,
                 **{k: v for k, v in change.items() if k in ("error", "msg_id", "flags", "cmd")})


# Name, and what is wrong with the answer. Those in MUST_FAIL may not pass for a transfer done.
LIES = {
    "another address": {"addr": 0x123456},
    "count 0": {"count": 0},
    "smaller count": {"count": 63},
    "larger count": {"count": 65},
    "largest count": {"count": (1 << 64) - 1},
    "no data": {"data": b""},
    "too few data": {"data": b"L" * 63},
    "too many data": {"data": b"L" * 65},
    "far too many data": {"data": b"L" * 100000},
    "error with errno 0": {"flags": wire.ERROR},
    "largest error": {"error": 0xFFFFFFFF},
    "error 4097": {"error": 4097},
    "error with data": {"error": errno.EIO, "data": b"L" * 64},
    "another command": {"cmd": Cmd.DMA_MAP},
    "command beyond the table": {"cmd": 0xFFFF},
    "unknown flags": {"flags": 0xFFFFFF00},
}


BOTH = {"another address", "count 0", "smaller count", "larger count", "largest count",
        "error with errno 0", "largest error", "error 4097", "error with data", "another command",
        "command beyond the table"}
MUST_FAIL = {False: BOTH | {"no data", "too few data", "too many data", "far too many data"},
             True: BOTH}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("to_ram", [False, True])
def test_lies(server, edu, name, to_ram):
    """The server may close the connection, or fail the transfer and go on. It never crashes."""
    pending = Pending(edu, to_ram=to_ram)
    client = pending.client
    lie(client, pending.command, **LIES[name])
    client.on_command = client.serve
    try:
        edu.finish_dma(pending.msg_id)
        if name in MUST_FAIL[to_ram]:
            assert server.failed_transfers() == 1
        edu.copy(0, 0x1000, 64)
    except (Disconnected, ConnectionError):
        return
    assert pending.slot.read(0x1000, 64) == DATA[:64]


@pytest.mark.parametrize("length", range(0, 16))
def test_answer_to_dma_read_cut_short(server, edu, length):
    """Nothing that the reply did not carry may be used."""
    pending = Pending(edu)
    client = pending.client
    client.reply(pending.command, pending.command.payload[:length])
    client.on_command = client.serve
    try:
        edu.finish_dma(pending.msg_id)
        assert server.failed_transfers() == 1
    except (Disconnected, ConnectionError):
        pass


def test_answer_with_another_id(pending):
    """It matches nothing; then comes the right one."""
    client = pending.client
    lie(client, pending.command, msg_id=pending.command.id + 1)
    try:
        pending.finish()
        pending.check()
    except (Disconnected, ConnectionError):
        pass


def test_answered_twice(pending):
    client = pending.client
    client.serve(pending.command)
    try:
        pending.finish()
        pending.check()
    except (Disconnected, ConnectionError):
        pass


def test_failed_command_of_the_client_does_not_answer(pending):
    """An error reply is one only with the reply type: a command with the error flag is not."""
    client = pending.client
    msg_id = client.send(Cmd.DEVICE_GET_INFO, INFO, flags=wire.ERROR, msg_id=pending.command.id)
    pending.answer()
    assert client.wait(msg_id).cmd == Cmd.DEVICE_GET_INFO
    pending.edu.finish_dma(pending.msg_id)
    pending.check()


@pytest.mark.parametrize("answered", [0, 1, 5])
def test_disconnect_in_the_middle(server, small, answered):
    """Some pieces answered, the others never."""
    pending = Pending(small, 1024)
    client = pending.client
    waiting = pending.command
    for _ in range(answered):
        client.serve(waiting)
        waiting = client.next_command()
    client.close()
    edu = Edu(server.client())
    assert edu.read(hw.REG_ID) == hw.IDENTITY


def test_disconnect_with_commands_queued(server, pending):
    for _ in range(100):
        pending.client.send(Cmd.REGION_READ, READ_ID)
    pending.client.close()
    assert Edu(server.client()).read(hw.REG_ID) == hw.IDENTITY


def test_disconnect_with_descriptors_queued(server, pending):
    client = pending.client
    mem = client.memory.add_file(0x1000)
    for i in range(50):
        payload = wire.DMA_MAP.pack(argsz=32, flags=3, addr=(i + 16) << 20, size=0x1000)
        client.send(Cmd.DMA_MAP, payload, [mem.fd])
    client.close()
    client = server.client()
    assert server.guest_fds(client) == 0
    assert server.guest_maps(client) == 0


def test_100_transfers_with_commands_between(edu):
    client = edu.client
    slot = client.add_memory(0, 0x2000, share=False)

    def serve(command):
        client.send_region_write(BAR0, hw.REG_LIVENESS, b"abcd", wire.NO_REPLY)
        client.serve(command)
        client.send(Cmd.REGION_READ, READ_ID)

    client.on_command = serve
    for i in range(100):
        slot.write(0, b"%3d" % i)
        edu.copy(0, 0x1000, 3)
        assert slot.read(0x1000, 3) == b"%3d" % i


@pytest.mark.server_args("--ats")
@pytest.mark.parametrize("to_ram", [False, True])
def test_several_regions_in_flight(server, to_ram):
    """A scatter list of messages does not wait for one region's before it asks for the next."""
    edu = Edu(server.client({"max_data_xfer_size": 4096}))
    edu.enable_bus_master()
    client = edu.client
    slots = [client.add_memory(addr, 0x100, share=False) for addr in range(0, 0x400, 0x100)]
    for slot in slots:
        slot.write(0, DATA[:0x100])
    client.hold()
    msg_id = edu.start_dma(*((BUFFER, 0) if to_ram else (0, BUFFER)), 0x400,
                           hw.DMA_TO_RAM if to_ram else 0)
    commands = [client.next_command() for _ in slots]
    client.on_command = client.serve
    for command in commands:
        client.serve(command)
    edu.finish_dma(msg_id)
    if not to_ram:
        edu.to_ram(0, 0x400)
    for slot in slots:
        assert slot.read(0, 0x100) == (bytes(0x100) if to_ram else DATA[:0x100])


@pytest.mark.server_args("--ats")
@pytest.mark.parametrize("failing", [0, 1, 3])
def test_fault_address_of_a_message(server, failing):
    edu = Edu(server.client())
    edu.enable_bus_master()
    client = edu.client
    for addr in range(0, 0x400, 0x100):
        client.add_memory(addr, 0x100, share=False)

    def serve(command):
        if int.from_bytes(command.payload[:8], "little") == failing * 0x100:
            client.reply(command, error=errno.EIO)
        else:
            client.serve(command)

    client.on_command = serve
    edu.finish_dma(edu.start_dma(0, BUFFER, 0x400))
    assert client.read_int(BAR0, 0xa8, 8) == errno.EIO
    assert client.read_int(BAR0, 0xb0, 8) == failing * 0x100
