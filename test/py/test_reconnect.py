# SPDX-License-Identifier: BSD-3-Clause
"""Clients that go away, at any moment and in any way, and clients that come after them."""

import os
import pathlib
import subprocess
import sys

import pytest

from vfiouser import edu as hw
from vfiouser import wire
from vfiouser.client import version_payload
from vfiouser.edu import Edu
from vfiouser.victim import SCENARIOS
from vfiouser.wire import CONFIG, Cmd


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_killed(server, scenario, steps):
    """kill -9 after so many steps; what it does then is wherever it happens to be."""
    victim = subprocess.Popen([sys.executable, "-m", "vfiouser.victim", server.path, scenario],
                              cwd=pathlib.Path(__file__).parent, stdout=subprocess.PIPE)
    with victim:
        seen = 0
        while seen < steps:
            got = os.read(victim.stdout.fileno(), steps - seen)
            assert got, "the victim ended by itself"
            seen += len(got)
        victim.kill()
    client = server.client()
    client.write_int(CONFIG, 0x3C, 0x21, 1)
    assert client.read_int(CONFIG, 0x3C, 1) == 0x21
    assert Edu(client).read(hw.REG_ID) == hw.IDENTITY
    assert server.guest_maps(client) == 0


def session_bytes():
    """A whole session as one piece."""
    read = wire.REGION_ACCESS.pack(region=wire.BAR0, count=4)
    return b"".join([
        wire.message(Cmd.VERSION, version_payload({}), 1),
        wire.message(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16), 2),
        wire.message(Cmd.DMA_MAP, wire.DMA_MAP.pack(argsz=32, flags=3, size=0x1000), 3),
        wire.message(Cmd.REGION_WRITE, wire.REGION_ACCESS.pack(offset=4, region=0, count=4) +
                     b"abcd", 4),
        wire.message(Cmd.REGION_READ, read, 5),
    ])


def test_gone_after_any_number_of_bytes(server):
    data = session_bytes()
    for length in range(len(data) + 1):
        client = server.connect()
        client.send_raw(data[:length])
        client.close()
    client = server.client()
    assert client.dma_unmap(0, 0x1000, check=False).error


def test_a_hundred_clients_in_turn(server):
    for i in range(100):
        client = server.client()
        client.add_memory(0, 0x1000)
        client.write_int(wire.BAR0, hw.REG_LIVENESS, i)
        assert client.read_int(wire.BAR0, hw.REG_LIVENESS) == ~i & 0xFFFFFFFF
        client.close()


def test_second_client_waits_for_the_first(server, client):
    """It is served when the first has gone, and the first is not disturbed."""
    second = server.connect()
    msg_id = second.send(Cmd.VERSION, version_payload({}))
    assert client.device_info().num_regions == 9
    client.close()
    assert second.wait(msg_id).payload
    assert second.device_info().num_regions == 9


def test_gone_before_the_reply(server):
    for _ in range(20):
        client = server.client()
        for _ in range(10):
            client.send(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16))
        client.close()


@pytest.mark.parametrize("to_ram", [False, True])
def test_gone_with_a_transfer_pending(server, edu, to_ram):
    """The DMA message is never answered; the transfer ends, the device works for the next."""
    edu.client.add_memory(0, 0x1000, share=False)
    edu.client.hold()
    edu.start_dma(*((hw.BUFFER, 0) if to_ram else (0, hw.BUFFER)), 64,
                  hw.DMA_TO_RAM if to_ram else 0)
    edu.client.next_command()
    edu.client.close()
    edu = Edu(server.client())
    edu.enable_bus_master()
    edu.poll(hw.REG_DMA_CMD, hw.DMA_START)
    slot = edu.client.add_memory(0, 0x1000, share=False)
    slot.write(0, b"next")
    edu.copy(0, 0x100, 4)
    assert slot.read(0x100, 4) == b"next"
