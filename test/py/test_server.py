# SPDX-License-Identifier: BSD-3-Clause
"""The server as a process: it ends when it is told to, whatever its client is doing."""

import subprocess

import pytest

from conftest import sample
from vfiouser import edu as hw
from vfiouser import wire
from vfiouser.wire import INTX, Cmd


def test_ends_without_client(server):
    server.stop()


def test_ends_after_a_client(server):
    server.client().close()
    server.stop()


def test_ends_with_a_client(server, client):
    server.stop()
    assert client.disconnected()


def test_ends_with_a_silent_newcomer(server):
    server.connect()
    server.stop()


def test_ends_with_half_a_message(server, client):
    client.send_raw(wire.message(Cmd.DEVICE_GET_INFO, bytes(16))[:9])
    server.stop()


def test_ends_with_memory_mapped(server, client):
    for i in range(100):
        client.add_memory(i << 20, 0x1000, share=i % 2 == 0)
    client.set_irqs(INTX, wire.DATA_NONE | wire.ACTION_TRIGGER)
    server.stop()


@pytest.mark.parametrize("to_ram", [False, True])
def test_ends_with_a_transfer_pending(server, edu, to_ram):
    """The DMA message is never answered."""
    edu.client.add_memory(0, 0x1000, share=False)
    edu.client.hold()
    edu.start_dma(*((hw.BUFFER, 0) if to_ram else (0, hw.BUFFER)), 64,
                  hw.DMA_TO_RAM if to_ram else 0)
    edu.client.next_command()
    server.stop()


@pytest.mark.parametrize("cmd, payload", [
    (Cmd.DEVICE_RESET, b""),
    (Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, flags=wire.UNMAP_ALL))])
def test_ends_with_a_command_that_waits_for_a_transfer(server, edu, cmd, payload):
    edu.client.add_memory(0, 0x1000, share=False)
    edu.client.hold()
    edu.start_dma(0, hw.BUFFER, 64)
    edu.client.next_command()
    edu.client.send(cmd, payload)
    server.stop()


@pytest.mark.parametrize("args", [
    ["--no-such-option"], ["--socket"], [], ["--socket", "/nonexistent/directory/socket"],
    ["--socket", "/tmp/" + "x" * 200], ["--socket", "/tmp/x", "--dma-mask", "65"],
    ["--socket", "/tmp/x", "--dma-mask", "-1"], ["--socket", "/tmp/x", "--dma-mask", "abc"]])
def test_bad_command_line(args):
    """A message and a status that is not 0."""
    result = subprocess.run([sample("edu"), *args], capture_output=True, timeout=60, check=False)
    assert result.returncode not in (0, -6, -11)
    assert result.stderr


def test_socket_in_use(server, client):
    result = subprocess.run([sample("edu"), "--socket", server.path], capture_output=True,
                            timeout=60, check=False)
    assert result.returncode > 0
    assert result.stderr
    assert client.device_info().num_regions == 9
