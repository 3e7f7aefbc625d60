# SPDX-License-Identifier: BSD-3-Clause
"""DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO, DEVICE_GET_REGION_IO_FDS."""

import errno

import pytest

from vfiouser import wire
from vfiouser.edu import BAR0_SIZE
from vfiouser.wire import Cmd

FLAG_RESET, FLAG_PCI = 1, 2


def test_device_info(client):
    info = client.device_info()
    assert (info.argsz, info.flags, info.num_regions, info.num_irqs) == (
        16, FLAG_RESET | FLAG_PCI, 9, 5)


@pytest.mark.parametrize("argsz, error", [(0, errno.EINVAL), (15, errno.EINVAL), (16, 0),
                                          (17, 0), (0xFFFFFFFF, 0)])
def test_device_info_argsz(client, argsz, error):
    assert client.error_of(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=argsz)) == error


def test_device_info_longer_request(client):
    reply = client.request(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=4096) + bytes(4080))
    assert len(reply.payload) == 16
    assert wire.DEVICE_INFO.unpack(reply.payload).argsz == 16


def test_bar0_info(client):
    info, reply = client.region_info(wire.BAR0)
    assert info.size == BAR0_SIZE
    assert info.index == wire.BAR0
    assert info.flags & (wire.REGION_READ | wire.REGION_WRITE) == 3
    assert len(reply.payload) == 32


def test_config_info(client):
    info, _ = client.region_info(wire.CONFIG)
    assert info.size in (256, 4096)
    assert info.flags == wire.REGION_READ | wire.REGION_WRITE


@pytest.mark.parametrize("index", [1, 2, 3, 4, 5, wire.ROM, wire.VGA])
def test_absent_region(client, index):
    info, reply = client.region_info(index)
    assert (info.index, info.size, info.flags, info.argsz) == (index, 0, 0, 32)
    assert reply.fds == []


@pytest.mark.parametrize("index", [9, 10, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_no_such_region(client, index):
    payload = wire.REGION_INFO.pack(argsz=32, index=index)
    assert client.error_of(Cmd.DEVICE_GET_REGION_INFO, payload) == errno.EINVAL


@pytest.mark.parametrize("argsz, error", [(0, errno.EINVAL), (31, errno.EINVAL), (32, 0),
                                          (33, 0), (4096, 0), (0xFFFFFFFF, 0)])
@pytest.mark.parametrize("index", range(9))
def test_region_info_argsz(client, argsz, error, index):
    payload = wire.REGION_INFO.pack(argsz=argsz, index=index)
    assert client.error_of(Cmd.DEVICE_GET_REGION_INFO, payload) == error


def test_region_info_never_longer_than_argsz(client):
    """The capabilities come only when argsz covers them; the reply names the size needed."""
    for index in range(wire.NUM_REGIONS):
        info, reply = client.region_info(index)
        assert len(reply.payload) == 32
        full, reply = client.region_info(index, argsz=info.argsz)
        assert len(reply.payload) == info.argsz == full.argsz
        assert bool(full.flags & wire.REGION_CAPS) == (info.argsz > 32)
        assert len(reply.fds) == (1 if full.flags & wire.REGION_CAPS else 0)


@pytest.mark.parametrize("index, count", [(wire.INTX, 1), (wire.MSI, 1), (wire.MSIX, 0),
                                          (wire.ERR, 1), (wire.REQ, 1)])
def test_irq_info(client, index, count):
    info = client.irq_info(index)
    assert (info.argsz, info.index, info.count) == (16, index, count)
    assert info.flags & 1


@pytest.mark.parametrize("index", [5, 6, 0x80000000, 0xFFFFFFFF])
def test_no_such_irq(client, index):
    payload = wire.IRQ_INFO.pack(argsz=16, index=index)
    assert client.error_of(Cmd.DEVICE_GET_IRQ_INFO, payload) == errno.EINVAL


@pytest.mark.parametrize("argsz, error", [(0, errno.EINVAL), (15, errno.EINVAL), (16, 0),
                                          (4096, 0)])
def test_irq_info_argsz(client, argsz, error):
    payload = wire.IRQ_INFO.pack(argsz=argsz, index=0)
    assert client.error_of(Cmd.DEVICE_GET_IRQ_INFO, payload) == error


def io_fds(argsz=16, flags=0, index=wire.BAR0, count=0):
    return wire.REGION_IO_FDS.pack(argsz=argsz, flags=flags, index=index, count=count)


def test_region_io_fds_none(client):
    reply = client.request(Cmd.DEVICE_GET_REGION_IO_FDS, io_fds())
    assert reply.payload == io_fds()
    assert reply.fds == []


BAD_IO_FDS = {
    "flags": io_fds(flags=1),
    "count": io_fds(count=1),
    "index 9": io_fds(index=9),
    "index max": io_fds(index=0xFFFFFFFF),
    "region never set up": io_fds(index=wire.VGA),
    "argsz 15": io_fds(argsz=15),
    "argsz 0": io_fds(argsz=0),
    "argsz over 1 MiB": io_fds(argsz=(1 << 20) + 1),
}


@pytest.mark.parametrize("name", BAD_IO_FDS)
def test_region_io_fds_bad(client, name):
    assert client.error_of(Cmd.DEVICE_GET_REGION_IO_FDS, BAD_IO_FDS[name]) == errno.EINVAL
