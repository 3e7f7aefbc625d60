# SPDX-License-Identifier: BSD-3-Clause
"""samples/null: the smallest device, for one client."""

import subprocess

import pytest

from conftest import sample
from vfiouser.server import START_TIMEOUT, Server
from vfiouser.wire import CONFIG


@pytest.fixture
def null():
    server = Server(sample("null"))
    yield server
    server.close_clients()
    if not server.stopped:
        server.kill()


def wait_end(server):
    assert server.process.wait(START_TIMEOUT) == 0
    log = server.stderr()
    server.stop()
    return log


def test_identity_and_nothing_else(null):
    client = null.client()
    assert client.read_int(CONFIG, 0) == 0x00001234
    assert client.read_int(CONFIG, 8) >> 24 == 0xFF
    assert [client.region_info(i)[0].size for i in range(7)] == [0] * 7
    assert [client.irq_info(i).count for i in range(3)] == [0] * 3


def test_says_what_the_client_does_and_ends_with_it(null):
    client = null.client()
    client.add_memory(0x10000, 0x2000)
    client.add_memory(0x20000, 0x1000, share=False)
    client.dma_unmap(0x10000, 0x2000)
    client.reset()
    client.close()
    lines = [line for line in wait_end(null).splitlines() if line.startswith("null: info: ")]
    seen = [line.removeprefix("null: info: ") for line in lines]
    expected = ["client attached", "memory at 0x10000, 0x2000 bytes, shared",
                "memory at 0x20000, 0x1000 bytes, to be reached by messages",
                "memory at 0x10000, 0x2000 bytes, is gone", "reset: the client asked for it",
                "memory at 0x20000, 0x1000 bytes, is gone", "reset: the client has gone"]
    rest = iter(seen)
    assert all(any(line.startswith(wanted) for line in rest) for wanted in expected), seen


@pytest.mark.parametrize("attached", [False, True])
def test_ends_on_a_signal(null, attached):
    """Server.stop() wants status 0 and no socket left."""
    if attached:
        null.client()
    null.stop()


def test_path_in_use(null):
    result = subprocess.run([sample("null"), "--socket", null.path], capture_output=True,
                            text=True, timeout=START_TIMEOUT, check=False)
    assert result.returncode == 1
    assert "Address already in use" in result.stderr
    assert "remove that file" in result.stderr


@pytest.mark.parametrize("args", [[], ["--socket"], ["path"], ["--socket", "a", "b"]])
def test_usage(args):
    result = subprocess.run([sample("null"), *args], capture_output=True, text=True,
                            timeout=START_TIMEOUT, check=False)
    assert result.returncode == 2
    assert "--help" in result.stderr


def test_help():
    result = subprocess.run([sample("null"), "--help"], capture_output=True, text=True,
                            timeout=START_TIMEOUT, check=True)
    assert result.stdout.startswith("Usage: null")
