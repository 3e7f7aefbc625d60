# SPDX-License-Identifier: BSD-3-Clause
"""What SPDK's vfio-user client (lib/vfio_user/host) sends."""

import json

import pytest

from vfiouser import edu as hw
from vfiouser import wire
from vfiouser.memory import Slot
from vfiouser.wire import BAR0, CONFIG, MAP_RW, NUM_REGIONS, Cmd

# Its buffer for the reply to DEVICE_GET_REGION_INFO: a page without the header and a pointer.
INFO_SIZE = 4064


@pytest.fixture
def spdk(server):
    """VERSION without JSON; after that, and with it, each message has the id 0."""
    client = server.connect()
    reply = client.request(Cmd.VERSION, wire.VERSION.pack(major=0, minor=0), msg_id=0)
    assert len(reply.payload) > wire.VERSION.size
    return client


def test_version_reply(server):
    client = server.connect()
    reply = client.request(Cmd.VERSION, wire.VERSION.pack(major=0, minor=0), msg_id=0)
    assert json.loads(reply.payload[4:-1])["capabilities"]["max_msg_fds"] >= 1
    assert reply.size <= 4096
    assert reply.id == 0


def test_device_info(spdk):
    payload = wire.DEVICE_INFO.pack(argsz=16)
    reply = spdk.request(Cmd.DEVICE_GET_INFO, payload, msg_id=0)
    assert wire.DEVICE_INFO.unpack(reply.payload).num_regions == NUM_REGIONS


def test_region_info_in_one_piece(spdk):
    """The request is as long as the buffer, and asks for all of it."""
    for index in range(NUM_REGIONS):
        payload = wire.REGION_INFO.pack(argsz=INFO_SIZE, index=index).ljust(INFO_SIZE, b"\0")
        reply = spdk.request(Cmd.DEVICE_GET_REGION_INFO, payload, msg_id=0)
        info = wire.REGION_INFO.unpack(reply.payload)
        assert info.index == index
        assert info.argsz == len(reply.payload) <= INFO_SIZE
        assert len(reply.fds) <= 1


def test_registers(spdk):
    def access(cmd, offset, count, data=b"", region=BAR0):
        payload = wire.REGION_ACCESS.pack(offset=offset, region=region, count=count) + data
        return spdk.request(cmd, payload, msg_id=0).payload[wire.REGION_ACCESS.size:]

    access(Cmd.REGION_WRITE, 4, 2, b"\x06\x00", CONFIG)
    assert access(Cmd.REGION_READ, 4, 2, region=CONFIG) == b"\x06\x00"
    access(Cmd.REGION_WRITE, hw.REG_LIVENESS, 4, b"\x00\xff\x00\xff")
    assert access(Cmd.REGION_READ, hw.REG_LIVENESS, 4) == b"\xff\x00\xff\x00"


def test_maps(server, spdk):
    """16 regions, IOVA equal to the virtual address; the file comes with DMA_UNMAP too."""
    mem = spdk.memory.add_file(16 << 21)
    slots = [Slot(0x200000000000 + (i << 21), 1 << 21, mem, i << 21) for i in range(16)]
    for slot in slots:
        payload = wire.DMA_MAP.pack(argsz=32, flags=MAP_RW, offset=slot.offset, addr=slot.addr,
                                    size=slot.size)
        assert spdk.request(Cmd.DMA_MAP, payload, [mem.fd], msg_id=0).payload == b""
    assert server.guest_maps(spdk) >= 1
    for slot in slots:
        payload = wire.DMA_UNMAP.pack(argsz=24, addr=slot.addr, size=slot.size)
        assert spdk.request(Cmd.DMA_UNMAP, payload, [mem.fd], msg_id=0).payload == payload
    assert server.guest_fds(spdk) == 0
    assert server.guest_maps(spdk) == 0


def test_reset(spdk):
    spdk.request(Cmd.DEVICE_RESET, msg_id=0)


def test_detach_and_attach(server, spdk):
    spdk.close()
    client = server.connect()
    client.request(Cmd.VERSION, wire.VERSION.pack(major=0, minor=0), msg_id=0)
    assert client.read_int(CONFIG, 0, 2) == hw.VENDOR
