# SPDX-License-Identifier: BSD-3-Clause
"""A client that does not speak, speaks slowly, or does not read keeps no sample from the next."""

import resource
import threading

import pytest

from conftest import built, sample
from vfiouser import wire
from vfiouser.channel import Disconnected
from vfiouser.client import version_payload
from vfiouser.server import Server
from vfiouser.wire import CONFIG, Cmd

SAMPLES = {
    "edu": ["edu"],
    "gpio": ["gpio"],
    "migration": ["migration", "--device"],
    "shadow-ioeventfd": ["shadow-ioeventfd", "--device"],
    "nvme": ["nvme", "--namespace", "memory=1M"],
    "probe": ["iommu_probe"],
    "null": ["null"],
}
# It serves one client.
LASTING = [name for name in SAMPLES if name != "null"]


@pytest.fixture(params=SAMPLES)
def server(request, monkeypatch):
    """One whose patience is short."""
    monkeypatch.setenv("VFU_LIMITS", "version-time=50,output-time=50")
    name, *args = SAMPLES[request.param]
    binary = built("test/device", name) if name == "iommu_probe" else sample(name)
    first = [] if "--device" not in args else [args.pop(0)]
    server = Server(binary, *first, *args, socket_option=None if name == "nvme" else "--socket")
    yield server
    if not server.stopped:
        server.close_clients()
        server.stop()


def is_served(server):
    with server.connect() as client:
        client.negotiate()
        assert client.device_info().num_regions == 9


def test_silent(server):
    silent = server.connect()
    is_served(server)
    assert silent.channel.at_eof()


def test_slow(server):
    """A byte of the version message whenever the server may have read the one before."""
    slow = server.connect()
    stop = threading.Event()

    def drip():
        try:
            for byte in wire.message(Cmd.VERSION, version_payload({"max_msg_fds": 1}, text=b"")):
                slow.send_raw(bytes([byte]))
                if stop.wait(0.05):
                    return
        except (Disconnected, ConnectionError):
            pass

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        is_served(server)
    finally:
        stop.set()
        dripping.join()
    assert slow.channel.at_eof()


@pytest.mark.parametrize("server", LASTING, indirect=True)
def test_never_reads(server):
    """It asks and asks until it can send no more, and keeps the connection open."""
    greedy = server.client()
    data = wire.message(Cmd.REGION_READ, wire.REGION_ACCESS.pack(region=CONFIG, count=256))
    greedy.channel.sock.settimeout(1)
    try:
        while True:
            greedy.channel.sock.send(data * 64)
    except (TimeoutError, ConnectionError):
        pass
    is_served(server)


@pytest.mark.parametrize("server", LASTING, indirect=True)
def test_descriptors_used_up(server):
    """The client is served when there are some again, and the server has not spun."""
    fds = len(server.fds())
    pid = server.process.pid
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (fds, limit[1]))
    waiting = server.connect()
    try:
        waiting.send(Cmd.VERSION, version_payload({}), msg_id=1)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        waiting.wait(1)
    except (Disconnected, ConnectionError):
        pass  # a loop that polls the socket turns the client away
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    waiting.close()
    is_served(server)
