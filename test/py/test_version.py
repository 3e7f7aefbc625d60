# SPDX-License-Identifier: BSD-3-Clause
"""Version negotiation: vfio-user protocol, VFIO_USER_VERSION."""

import errno
import json
import os

import pytest

from vfiouser import wire
from vfiouser.client import VfioUserError, version_payload
from vfiouser.edu import BUFFER, Edu
from vfiouser.wire import Cmd

QEMU_CAPABILITIES = {
    "pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576,
    "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": True}


def caps(**values):
    return version_payload(values)


def text(raw):
    return version_payload(text=raw)


GOOD = {
    "no JSON": version_payload(),
    "empty object": text(b"{}\0"),
    "empty capabilities": caps(),
    "unknown member": text(b'{"vendor": [1, {"a": null}], "capabilities": {"zzz": 1.5}}\0'),
    "spaces": text(b' {\n\t"capabilities" : { "max_msg_fds" : 1 } }\n\0'),
    "max_msg_fds 0": caps(max_msg_fds=0),
    "max_msg_fds 1": caps(max_msg_fds=1),
    "max_msg_fds 1024": caps(max_msg_fds=1024),
    "max_data_xfer_size 1": caps(max_data_xfer_size=1),
    "max_data_xfer_size 1 GiB": caps(max_data_xfer_size=1 << 30),
    "max_data_xfer_size 4 GiB": caps(max_data_xfer_size=1 << 32),
    "QEMU": caps(**QEMU_CAPABILITIES),
    "twin socket not supported": caps(twin_socket={"supported": False}),
    "twin socket without descriptors": caps(max_msg_fds=0, twin_socket={"supported": True}),
    "ignored member of any type": caps(pgsizes="4096", max_dma_maps=[]),
    "minor 1": version_payload({}, minor=1),
    "minor 65535": version_payload({}, minor=65535),
}


@pytest.mark.parametrize("name", GOOD)
def test_accepted(server, name):
    client = server.connect()
    reply = client.request(Cmd.VERSION, GOOD[name])
    assert reply.payload.endswith(b"\0")
    capabilities = json.loads(reply.payload[4:-1])["capabilities"]
    assert capabilities["max_msg_fds"] == 8
    assert capabilities["max_data_xfer_size"] == 1 << 20
    assert reply.fds == []
    assert client.device_info().num_regions == 9


BAD = {
    "major 1": version_payload({}, major=1),
    "major 65535": version_payload({}, major=65535),
    "not terminated": text(b'{"capabilities":{}}'),
    "only NUL": text(b"\0"),
    "not JSON": text(b"hello\0"),
    "cut JSON": text(b'{"capabilities":{"max_msg_fds":8\0'),
    "trailing garbage": text(b'{"capabilities":{}} x\0'),
    "not UTF-8": text(b'{"capabilities":{"\xff\xfe":}}\0'),
    "deep nesting": text(b'{"capabilities":' + b"[" * 10000 + b"]" * 10000 + b"}\0"),
    "array": text(b"[]\0"),
    "number": text(b"1\0"),
    "null": text(b"null\0"),
    "capabilities is an array": text(b'{"capabilities":[]}\0'),
    "capabilities is a string": text(b'{"capabilities":"x"}\0'),
    "max_msg_fds -1": caps(max_msg_fds=-1),
    "max_msg_fds 1025": caps(max_msg_fds=1025),
    "max_msg_fds 2^32": caps(max_msg_fds=1 << 32),
    "max_msg_fds 2^63": caps(max_msg_fds=1 << 63),
    "max_msg_fds string": caps(max_msg_fds="8"),
    "max_msg_fds float": caps(max_msg_fds=1.5),
    "max_msg_fds object": caps(max_msg_fds={}),
    "max_msg_fds bool": caps(max_msg_fds=True),
    "max_data_xfer_size 0": caps(max_data_xfer_size=0),
    "max_data_xfer_size -1": caps(max_data_xfer_size=-1),
    "max_data_xfer_size string": caps(max_data_xfer_size="big"),
    "twin_socket bool": caps(twin_socket=True),
    "twin_socket.supported int": caps(twin_socket={"supported": 1}),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(server, name):
    client = server.connect()
    assert client.error_of(Cmd.VERSION, BAD[name]) == errno.EINVAL
    assert client.disconnected()


@pytest.mark.parametrize("length", range(4))
def test_truncated(server, length):
    client = server.connect()
    assert client.error_of(Cmd.VERSION, version_payload({})[:length]) == errno.EINVAL
    assert client.disconnected()


@pytest.mark.parametrize("cmd", [0, Cmd.DMA_MAP, Cmd.DEVICE_GET_INFO, Cmd.DEVICE_RESET, 19, 65535])
def test_another_command_first(server, cmd):
    client = server.connect()
    assert client.error_of(cmd, bytes(32)) == errno.EINVAL
    assert client.disconnected()


NO_VERSION = {
    "a reply": wire.message(Cmd.VERSION, version_payload({}), flags=wire.REPLY),
    "size 0": wire.message(Cmd.VERSION, version_payload({}), msg_size=0),
    "size 15": wire.message(Cmd.VERSION, version_payload({}), msg_size=15),
    "size 4 GiB": wire.message(Cmd.VERSION, version_payload({}), msg_size=0xFFFFFFFF),
}


@pytest.mark.parametrize("name", NO_VERSION)
def test_first_message_is_nonsense(server, name):
    client = server.connect()
    client.send_raw(NO_VERSION[name])
    if name != "a reply":
        assert client.channel.recv().error == errno.EINVAL
    assert client.disconnected()


def test_nothing_sent(server):
    server.connect().close()


def test_half_a_header_then_gone(server):
    client = server.connect()
    client.send_raw(wire.message(Cmd.VERSION, version_payload({}))[:9])
    client.close()


def test_half_a_body_then_gone(server):
    client = server.connect()
    client.send_raw(wire.message(Cmd.VERSION, version_payload({}))[:-3])
    client.close()


def test_byte_by_byte(server):
    client = server.connect()
    for byte in wire.message(Cmd.VERSION, version_payload({}), msg_id=77):
        client.send_raw(bytes([byte]))
    assert client.wait(77).payload.endswith(b"\0")


def test_commands_right_behind_version(server):
    """They are in the server's buffer when the negotiation ends."""
    client = server.connect()
    info = wire.DEVICE_INFO.pack(argsz=16)
    client.send_raw(wire.message(Cmd.VERSION, version_payload({}), 1) +
                    wire.message(Cmd.DEVICE_GET_INFO, info, 2) +
                    wire.message(Cmd.DEVICE_GET_INFO, info, 3))
    assert [client.wait(i).id for i in (3, 2, 1)] == [3, 2, 1]


@pytest.mark.parametrize("minor, answer", [(0, 0), (1, 1), (2, 2), (3, 2), (65535, 2)])
def test_minor(server, minor, answer):
    client = server.connect()
    client.negotiate({}, minor=minor)
    assert (client.version.major, client.version.minor) == (0, answer)


def test_reply_not_longer_than_the_request(server):
    """QEMU reads the reply into a buffer as large as its request and gives up on a longer one."""
    client = server.connect()
    request = caps(**QEMU_CAPABILITIES)
    assert len(client.request(Cmd.VERSION, request).payload) <= len(request)


def test_second_version(client):
    assert client.error_of(Cmd.VERSION, version_payload({})) == errno.EINVAL
    assert client.device_info().num_regions == 9


@pytest.mark.parametrize("count", [1, 2, 8])
def test_descriptors_with_version(server, count):
    client = server.connect()
    fds = [os.memfd_create("surplus") for _ in range(count)]
    client.send(Cmd.VERSION, version_payload({}), fds)
    for fd in fds:
        os.close(fd)
    assert client.disconnected()


def test_msg_id_is_echoed(server):
    client = server.connect()
    assert client.request(Cmd.VERSION, version_payload({}), msg_id=0xABCD).id == 0xABCD


def test_next_client_after_a_refused_one(server):
    with pytest.raises(VfioUserError):
        server.connect().negotiate({"max_msg_fds": -1})
    assert server.client().device_info().num_regions == 9


def test_extension_not_offered_unasked(client):
    assert "iommu" not in client.capabilities
    assert "twin_socket" not in client.capabilities


def test_twin_socket(server):
    """The server's commands come on the second socket, the client's stay on the first."""
    client = server.connect()
    client.negotiate({"max_msg_fds": 8, "twin_socket": {"supported": True}})
    assert client.capabilities["twin_socket"] == {"supported": True, "fd_index": 0}
    edu = Edu(client)
    edu.enable_bus_master()
    slot = client.add_memory(0x10000, 0x2000, share=False)
    slot.write(0, b"over the other socket")
    client.hold()
    msg_id = edu.start_dma(0x10000, BUFFER, 21)
    command = client.next_command()
    assert command.cmd == Cmd.DMA_READ and command.channel is client.twin
    client.on_command = client.serve
    client.serve(command)
    edu.finish_dma(msg_id)
    edu.to_ram(0x11000, 21)
    assert slot.read(0x1000, 21) == b"over the other socket"
