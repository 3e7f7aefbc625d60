# SPDX-License-Identifier: BSD-3-Clause
"""Messages cut, split, joined, and with lies in their header."""

import errno
import os

import pytest

from vfiouser import edu as hw
from vfiouser import wire
from vfiouser.channel import Disconnected
from vfiouser.memory import Slot
from vfiouser.wire import BAR0, INTX, Cmd

INFO = wire.DEVICE_INFO.pack(argsz=16)
READ_ID = wire.REGION_ACCESS.pack(offset=0, region=BAR0, count=4)

# Requests that are whole and, where the device knows the command, right.
WHOLE = {
    Cmd.DMA_MAP: wire.DMA_MAP.pack(argsz=32, flags=3, addr=0x10000, size=0x1000),
    Cmd.DMA_UNMAP: wire.DMA_UNMAP.pack(argsz=24, flags=wire.UNMAP_ALL),
    Cmd.DEVICE_GET_INFO: INFO,
    Cmd.DEVICE_GET_REGION_INFO: wire.REGION_INFO.pack(argsz=32),
    Cmd.DEVICE_GET_REGION_IO_FDS: wire.REGION_IO_FDS.pack(argsz=16),
    Cmd.DEVICE_GET_IRQ_INFO: wire.IRQ_INFO.pack(argsz=16),
    Cmd.DEVICE_SET_IRQS: wire.IRQ_SET.pack(argsz=20, flags=wire.DATA_NONE | wire.ACTION_TRIGGER,
                                           count=1),
    Cmd.REGION_READ: READ_ID,
    Cmd.REGION_WRITE: wire.REGION_ACCESS.pack(offset=4, region=BAR0, count=0),
    Cmd.REGION_WRITE_MULTI: wire.WRITE_MULTI.pack(wr_cnt=0),
    Cmd.DEVICE_FEATURE: wire.FEATURE.pack(argsz=8, flags=wire.FEATURE_PROBE | wire.FEAT_MIG_STATE),
    Cmd.MIG_DATA_READ: wire.MIG_DATA.pack(argsz=8, size=0),
    Cmd.MIG_DATA_WRITE: wire.MIG_DATA.pack(argsz=8, size=0),
}
KNOWN = [cmd for cmd in WHOLE if cmd not in (Cmd.REGION_WRITE_MULTI, Cmd.DEVICE_FEATURE,
                                             Cmd.MIG_DATA_READ, Cmd.MIG_DATA_WRITE)]


def still_serves(client):
    """False when the server has closed the connection instead; both are allowed to some lies."""
    try:
        return client.request(Cmd.REGION_READ, READ_ID).payload[16:] == (
            hw.IDENTITY.to_bytes(4, "little"))
    except (Disconnected, ConnectionError):
        return False


def test_the_table_is_complete():
    assert set(WHOLE) == set(wire.CLIENT_REQUESTS)
    assert all(len(WHOLE[cmd]) == wire.CLIENT_REQUESTS[cmd].size for cmd in WHOLE)


@pytest.mark.parametrize("cmd", KNOWN)
def test_whole(client, cmd):
    assert client.error_of(cmd, WHOLE[cmd]) == 0


@pytest.mark.parametrize("cmd", WHOLE)
def test_every_truncation(client, cmd):
    for length in range(len(WHOLE[cmd])):
        assert client.error_of(cmd, WHOLE[cmd][:length]) == errno.EINVAL, length
        assert still_serves(client), length


@pytest.mark.parametrize("cmd", WHOLE)
def test_every_truncation_without_reply(client, cmd):
    for length in range(len(WHOLE[cmd])):
        client.send(cmd, WHOLE[cmd][:length], flags=wire.NO_REPLY)
    assert still_serves(client)
    assert not any(client.replies.values())


@pytest.mark.parametrize("cmd", WHOLE)
def test_zeros_and_ones(client, cmd):
    """Every length up to twice the fixed part: an answer to each."""
    for length in range(2 * len(WHOLE[cmd])):
        for byte in (b"\0", b"\xff"):
            client.error_of(cmd, byte * length)
    assert still_serves(client)


@pytest.mark.parametrize("cmd", [0, 14, 19, 20, 63, 64, 67, 255, 256, 0x8000, 0xFFFF,
                                 Cmd.DMA_READ, Cmd.DMA_WRITE, Cmd.PAGE_REQUEST])
def test_command_that_a_client_does_not_send(client, cmd):
    assert client.error_of(cmd, bytes(32)) == errno.EINVAL
    assert still_serves(client)


@pytest.mark.parametrize("flags", [wire.F_PASID, wire.F_TRANSLATED,
                                   wire.F_PASID | wire.F_TRANSLATED])
@pytest.mark.parametrize("cmd", [Cmd.DMA_MAP, Cmd.DMA_UNMAP])
def test_extension_not_negotiated(client, cmd, flags):
    assert client.error_of(cmd, bytes(8) + WHOLE[cmd], flags=flags) == errno.ENOTSUP
    assert still_serves(client)


def test_invalidate_not_negotiated(client):
    payload = wire.ATS_INVALIDATE.pack(argsz=24, flags=wire.INV_ALL)
    assert client.error_of(Cmd.ATS_INVALIDATE, payload) == errno.ENOTSUP


@pytest.mark.parametrize("kind", [2, 3, 7, 15])
def test_neither_command_nor_reply(client, kind):
    msg_id = client.send(Cmd.DEVICE_GET_INFO, INFO, flags=kind)
    assert client.wait(msg_id, check=False).error == errno.EINVAL
    assert still_serves(client)


def test_reply_to_nothing(client):
    for cmd in (Cmd.DMA_READ, Cmd.DMA_WRITE, Cmd.VERSION, 77):
        client.send_raw(wire.message(cmd, bytes(16), 3, flags=wire.REPLY))
        assert client.wait(3, check=False).error == errno.EINVAL
    assert still_serves(client)


def test_reply_to_nothing_is_answered_at_its_header(client):
    """Once, and what is behind the header is not taken for a message."""
    message = wire.message(Cmd.REGION_READ, bytes(100), 3, flags=wire.REPLY)
    client.send_raw(message[:16])
    assert client.wait(3, check=False).error == errno.EINVAL
    client.send_raw(message[16:50])
    client.send_raw(message[50:])
    assert still_serves(client)
    assert not client.replies[3]


def test_reply_to_nothing_that_wants_no_answer(client):
    client.send_raw(wire.message(Cmd.DMA_READ, bytes(16), 3, flags=wire.REPLY | wire.NO_REPLY))
    assert still_serves(client)
    assert not client.replies[3]


@pytest.mark.parametrize("flags", [wire.ERROR, 0x40, 0x80, 1 << 31])
def test_other_flags_and_errno_of_a_request_are_ignored(client, flags):
    reply = client.request(Cmd.DEVICE_GET_INFO, INFO, flags=flags, error_no=77)
    assert reply.error == 0


@pytest.mark.parametrize("size", [0, 1, 8, 15])
def test_size_below_the_header(client, size):
    client.send_raw(wire.message(Cmd.DEVICE_GET_INFO, b"", 900, msg_size=size))
    assert client.wait(900, check=False).error == errno.EINVAL
    assert client.disconnected()


@pytest.mark.parametrize("size", [wire.MAX_MESSAGE + 1, wire.MAX_MESSAGE + 4096, 1 << 31,
                                  0xFFFFFFFF])
def test_size_beyond_the_largest(client, size):
    """The header is enough; the server does not wait for the rest."""
    client.send_raw(wire.message(Cmd.DEVICE_GET_INFO, b"", 900, msg_size=size))
    assert client.wait(900, check=False).error == errno.EINVAL
    assert client.disconnected()


def test_largest_message(client):
    """A payload of 1 MiB and 16 bytes is taken."""
    payload = wire.DEVICE_INFO.pack(argsz=16) + bytes(wire.MAX_DATA_XFER)
    assert client.error_of(Cmd.DEVICE_GET_INFO, payload) == 0


def test_empty_payload(client):
    for cmd in WHOLE:
        assert client.error_of(cmd) == errno.EINVAL


@pytest.mark.parametrize("payload", [b"", b"x", bytes(16), bytes(4096)])
def test_reset_takes_any_payload(client, payload):
    assert client.request(Cmd.DEVICE_RESET, payload).payload == b""


@pytest.mark.parametrize("cmd", KNOWN)
def test_byte_by_byte(client, cmd):
    for byte in wire.message(cmd, WHOLE[cmd], 500):
        client.send_raw(bytes([byte]))
    assert client.wait(500).cmd == cmd


@pytest.mark.parametrize("at", list(range(1, 17)) + [20, 31])
def test_split_in_two(client, at):
    data = wire.message(Cmd.DEVICE_GET_INFO, INFO, 501)
    client.send_raw(data[:at])
    client.send_raw(data[at:])
    assert wire.DEVICE_INFO.unpack(client.wait(501).payload).num_regions == 9


def test_descriptor_with_a_split_message(edu):
    """It goes with the first byte; the others come one by one."""
    client = edu.client
    slot = client.memory.add(0, 0x1000)
    data = wire.message(Cmd.DMA_MAP, client.map_payload(slot, wire.MAP_RW | wire.MAP_MMAP), 502)
    client.send_raw(data[:1], [slot.mem.fd])
    for byte in data[1:]:
        client.send_raw(bytes([byte]))
    client.wait(502)
    slot.write(0, b"abc")
    edu.copy(0, 0x800, 3)
    assert slot.read(0x800, 3) == b"abc"


@pytest.mark.parametrize("count", [2, 3, 10, 200])
def test_several_in_one_send(client, count):
    client.send_raw(b"".join(wire.message(Cmd.REGION_READ, READ_ID, 1000 + i)
                             for i in range(count)))
    for i in reversed(range(count)):
        assert client.wait(1000 + i).payload[16:] == hw.IDENTITY.to_bytes(4, "little")


def test_one_and_a_half_in_one_send(client):
    first = wire.message(Cmd.REGION_READ, READ_ID, 1)
    second = wire.message(Cmd.DEVICE_GET_INFO, INFO, 2)
    client.send_raw(first + second[:10])
    client.wait(1)
    client.send_raw(second[10:])
    client.wait(2)


def test_good_behind_bad_in_one_send(client):
    client.send_raw(wire.message(Cmd.DEVICE_GET_INFO, b"", 1) +
                    wire.message(99, bytes(100), 2) +
                    wire.message(Cmd.DEVICE_GET_INFO, INFO, 3))
    assert [client.wait(i, check=False).error for i in (1, 2, 3)] == [
        errno.EINVAL, errno.EINVAL, 0]


@pytest.mark.parametrize("reverse", [False, True])
def test_replies_come_in_order_of_commands(client, reverse):
    ids = list(range(600, 700))
    if reverse:
        ids.reverse()
    client.send_raw(b"".join(wire.message(Cmd.DEVICE_GET_INFO, INFO, i) for i in ids))
    order = []
    while len(order) < len(ids):
        order.append(client.pump().id)
    assert order == ids


def test_equal_ids(client):
    """Ids carry no meaning for the receiver and may repeat."""
    client.send_raw(wire.message(Cmd.DEVICE_GET_INFO, INFO, 7) * 3 +
                    wire.message(Cmd.REGION_READ, READ_ID, 7))
    assert [client.wait(7).cmd for _ in range(4)] == [Cmd.DEVICE_GET_INFO] * 3 + [Cmd.REGION_READ]


def test_100_maps_without_reply(server, edu):
    client = edu.client
    mem = client.memory.add_file(100 * 0x1000)
    slots = [client.memory.add(i * 0x2000, 0x1000, mem, i * 0x1000) for i in range(100)]
    for slot in slots:
        client.send(Cmd.DMA_MAP, client.map_payload(slot), [mem.fd], flags=wire.NO_REPLY)
    slots[0].write(0, b"first")
    edu.copy(0, 99 * 0x2000, 5)
    assert slots[99].read(0, 5) == b"first"
    for slot in slots:
        payload = wire.DMA_UNMAP.pack(argsz=24, addr=slot.addr, size=slot.size)
        client.send(Cmd.DMA_UNMAP, payload, flags=wire.NO_REPLY)
    assert server.guest_fds(client) == 0
    assert not any(client.replies.values())


@pytest.mark.parametrize("count", [1, 8, 253])
@pytest.mark.parametrize("cmd", [*WHOLE, Cmd.DEVICE_RESET, Cmd.DMA_READ, 99])
def test_surplus_descriptors_are_closed(server, client, cmd, count):
    """With good messages and with bad ones; a map keeps the first."""
    mem = client.memory.add_file(0x1000)
    before = server.settled_fds(client)
    for payload in (WHOLE.get(cmd, b""), WHOLE.get(cmd, b"")[:5], b"\xff" * 64):
        client.error_of(cmd, payload, [mem.fd] * count)
    client.dma_unmap(0, 0, wire.UNMAP_ALL)
    assert server.settled_fds(client) == before


def test_descriptors_without_reply_are_closed(server, client):
    mem = client.memory.add_file(0x1000)
    before = server.settled_fds(client)
    for cmd in WHOLE:
        client.send(cmd, b"\xff" * 64, [mem.fd] * 8, flags=wire.NO_REPLY)
    assert server.settled_fds(client) == before


def test_descriptors_of_a_message_that_never_ends(server, client):
    mem = client.memory.add_file(0x1000)
    client.send_raw(wire.message(Cmd.DMA_MAP, WHOLE[Cmd.DMA_MAP])[:20], [mem.fd] * 8)
    client.close()
    assert server.guest_fds(server.client()) == 0


def test_descriptors_of_different_messages_stay_apart(server, client):
    """Posted together, each map gets its own file, and the events go to SET_IRQS."""
    files = [client.memory.add_file(0x1000) for _ in range(3)]
    event = os.eventfd(0, os.EFD_NONBLOCK)
    slots = [client.memory.add(i << 20, 0x1000, mem) for i, mem in enumerate(files)]
    for slot in slots:
        client.send(Cmd.DMA_MAP, client.map_payload(slot), [slot.mem.fd])
    payload = wire.IRQ_SET.pack(argsz=20, flags=wire.DATA_EVENTFD | wire.ACTION_TRIGGER,
                                index=INTX, count=1)
    client.wait(client.send(Cmd.DEVICE_SET_IRQS, payload, [event]))
    for i, mem in enumerate(files):
        mem.write(0, b"%d" % i)
    edu = hw.Edu(client)
    edu.enable_bus_master()
    for i in range(3):
        edu.copy(i << 20, (i + 1) % 3 << 20, 1)
        assert files[(i + 1) % 3].read(0, 1) == b"0"
    client.set_irqs(INTX, wire.DATA_NONE | wire.ACTION_TRIGGER)
    assert os.eventfd_read(event) == 1
    os.close(event)


def test_writer_that_does_not_read(server, client):
    """Replies fill the socket; the server waits or gives the client up, and serves the next."""
    data = wire.message(Cmd.REGION_READ, wire.REGION_ACCESS.pack(region=wire.CONFIG, count=256))
    client.channel.sock.setblocking(False)
    try:
        while True:
            client.channel.sock.send(data * 64)
    except BlockingIOError:
        pass
    client.close()
    assert server.client().device_info().num_regions == 9


def test_end_of_sending_only(client):
    """A client that shuts its sending side down still gets the reply."""
    client.send_raw(wire.message(Cmd.REGION_READ, READ_ID, 5))
    client.channel.sock.shutdown(1)
    client.wait(5)
    assert client.disconnected()


def test_map_and_unmap_a_thousand_times(server, client):
    mem = client.memory.add_file(0x1000)
    slot = Slot(0x1000, 0x1000, mem)
    for _ in range(1000):
        client.send(Cmd.DMA_MAP, client.map_payload(slot), [mem.fd], flags=wire.NO_REPLY)
        client.send(Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, addr=0x1000, size=0x1000),
                    flags=wire.NO_REPLY)
    assert server.guest_fds(client) == 0
    assert server.guest_maps(client) == 0
