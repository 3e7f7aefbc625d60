# SPDX-License-Identifier: BSD-3-Clause
"""REGION_READ and REGION_WRITE, and what the edu device does with them."""

import errno
import math

import pytest

from vfiouser import edu as hw
from vfiouser import wire
from vfiouser.wire import BAR0, CONFIG, Cmd

U32, U64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


def access(offset=0, region=BAR0, count=4):
    return wire.REGION_ACCESS.pack(offset=offset, region=region, count=count)


def test_identification(edu):
    assert edu.read(hw.REG_ID) == hw.IDENTITY


def test_identification_is_read_only(edu):
    edu.write(hw.REG_ID, 0x12345678)
    assert edu.read(hw.REG_ID) == hw.IDENTITY


@pytest.mark.parametrize("value", [0, 1, 0x55AA55AA, U32])
def test_liveness(edu, value):
    edu.write(hw.REG_LIVENESS, value)
    assert edu.read(hw.REG_LIVENESS) == ~value & U32


@pytest.mark.parametrize("n", [0, 1, 5, 12, 13, 20, 40])
def test_factorial(edu, n):
    edu.write(hw.REG_FACTORIAL, n)
    edu.poll(hw.REG_STATUS, hw.STATUS_COMPUTING)
    assert edu.read(hw.REG_FACTORIAL) == math.factorial(n) & U32


def test_computing_bit_is_read_only(edu):
    edu.write(hw.REG_STATUS, U32)
    assert edu.read(hw.REG_STATUS) & ~hw.STATUS_COMPUTING == hw.STATUS_RAISE_IRQ
    edu.write(hw.REG_STATUS, 0)
    assert edu.read(hw.REG_STATUS) & ~hw.STATUS_COMPUTING == 0


@pytest.mark.parametrize("size", [4, 8])
def test_dma_registers_take_4_and_8_bytes(edu, size):
    edu.write(hw.REG_DMA_COUNT, 0x123, size)
    assert edu.read(hw.REG_DMA_COUNT, size) == 0x123


BAD_ACCESS = {
    "just beyond": access(hw.BAR0_SIZE, count=1),
    "crossing the end": access(hw.BAR0_SIZE - 2),
    "offset + count wraps": access(U64 - 3, count=8),
    "offset + count is 2^64": access(U64 - 3, count=4),
    "largest offset": access(U64, count=1),
    "offset 2^32": access(1 << 32),
    "count beyond 1 MiB": access(0, count=(1 << 20) + 1),
    "largest count": access(0, count=U32),
    "region 9": access(region=9),
    "region 2^31": access(region=1 << 31),
    "largest region": access(region=U32),
    "region of size 0": access(region=wire.VGA),
    "unused BAR": access(region=1),
    "config just beyond": access(4096, CONFIG, 1),
    "config wraps": access(U64, CONFIG, 2),
}


@pytest.mark.parametrize("name", BAD_ACCESS)
def test_read_out_of_bounds(client, name):
    assert client.error_of(Cmd.REGION_READ, BAD_ACCESS[name]) == errno.EINVAL


@pytest.mark.parametrize("name", BAD_ACCESS)
def test_write_out_of_bounds(client, name):
    """The data are as long as count says, up to what one message can hold."""
    count = wire.REGION_ACCESS.unpack(BAD_ACCESS[name]).count
    payload = BAD_ACCESS[name] + bytes(min(count, wire.MAX_DATA_XFER))
    assert client.error_of(Cmd.REGION_WRITE, payload) == errno.EINVAL


@pytest.mark.parametrize("region", [BAR0, CONFIG])
@pytest.mark.parametrize("cmd", [Cmd.REGION_READ, Cmd.REGION_WRITE])
def test_count_0(client, cmd, region):
    """Within bounds it is a success with nothing behind the header."""
    assert client.request(cmd, access(0, region, 0)).payload == b""


@pytest.mark.parametrize("cmd", [Cmd.REGION_READ, Cmd.REGION_WRITE])
def test_count_0_at_the_end_and_beyond(client, cmd):
    assert client.request(cmd, access(hw.BAR0_SIZE, count=0)).payload == b""
    assert client.error_of(cmd, access(hw.BAR0_SIZE + 1, count=0)) == errno.EINVAL


@pytest.mark.parametrize("length", [0, 1, 3, 5, 8, 4096])
def test_write_data_of_another_length(edu, length):
    payload = access(hw.REG_LIVENESS, count=4) + b"\xff" * length
    before = edu.read(hw.REG_LIVENESS)
    assert edu.client.error_of(Cmd.REGION_WRITE, payload) == errno.EINVAL
    assert edu.read(hw.REG_LIVENESS) == before


def test_read_ignores_trailing_bytes(client):
    reply = client.request(Cmd.REGION_READ, access() + b"trailing")
    assert reply.payload == access() + hw.IDENTITY.to_bytes(4, "little")


def test_posted_write(edu):
    """No reply comes, not even for one that fails."""
    client = edu.client
    edu.write(hw.REG_LIVENESS, 0x1234, flags=wire.NO_REPLY)
    client.send(Cmd.REGION_WRITE, access(region=9) + bytes(4), flags=wire.NO_REPLY)
    client.send(Cmd.REGION_READ, access(region=9), flags=wire.NO_REPLY)
    assert edu.read(hw.REG_LIVENESS) == ~0x1234 & U32
    assert not any(client.replies.values())


@pytest.mark.parametrize("cmd", [Cmd.REGION_READ, Cmd.REGION_WRITE])
def test_1_mib(client, cmd):
    """The largest transfer is framed well, whatever the device says to its width."""
    payload = access(count=wire.MAX_DATA_XFER)
    if cmd == Cmd.REGION_WRITE:
        payload += bytes(wire.MAX_DATA_XFER)
    reply = client.request(cmd, payload, check=False)
    assert reply.error in (0, errno.EINVAL)


def test_config_of_4_kib_in_one_read(client):
    info, _ = client.region_info(CONFIG)
    whole = client.region_read(CONFIG, 0, info.size)
    assert whole == b"".join(client.region_read(CONFIG, i, 1) for i in range(info.size))
