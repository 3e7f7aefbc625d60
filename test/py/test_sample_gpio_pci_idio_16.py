# SPDX-License-Identifier: BSD-3-Clause
"""
samples/gpio-pci-idio-16: what Linux's driver of the card needs, and what QEMU's functional test of
its client (tests/functional/x86_64/test_vfio_user_client.py) reads in the log of such a server.
"""

import contextlib
import os
import select
import socket
import threading

import pytest

from conftest import sample
from vfiouser import wire
from vfiouser.channel import TIMEOUT
from vfiouser.client import Client
from vfiouser.memory import Slot
from vfiouser.qemu_expects import QEMU_EXPECTS
from vfiouser.server import Server
from vfiouser.wire import (ACTION_TRIGGER, ACTION_UNMASK, CONFIG, DATA_EVENTFD, DATA_NONE, INTX,
                           MAP_RW, Cmd)

BAR2 = 2
OUT0_7, IN0_7, IRQ_CTL, FILTERS, OUT8_15, IN8_15, IRQ_STATUS = range(7)


class Relay:
    """Bytes between two sockets, as socat carries them to a serial port: descriptors are lost."""

    def __init__(self, server):
        self.path = server.path + ".relay"
        self.near = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.near.bind(self.path)
        self.near.listen(1)
        self.far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.far.connect(server.path)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        with contextlib.closing(self.near.accept()[0]) as near, contextlib.closing(self.far) as far:
            others = {near: far, far: near}
            while True:
                for sock in select.select(list(others), [], [])[0]:
                    data = sock.recv(8192)
                    if not data:
                        return
                    others[sock].sendall(data)

    def close(self):
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive()
        self.near.close()
        os.unlink(self.path)


@pytest.fixture
def start():
    servers = []

    def start_with(*args):
        servers.append(Server(sample("gpio-pci-idio-16"), *args, socket_option=None))
        return servers[-1]

    yield start_with
    for server in servers:
        server.close_clients()
        server.stop()


def qemu_starts(client):
    """What QEMU does until its guest's driver has found the card; its memory is not shared."""
    client.negotiate()
    client.request(Cmd.DMA_MAP, client.map_payload(Slot(0, 0xC0000, None, 0), MAP_RW))
    client.device_info()
    for index in (0, 1, 2, 3, 4, 5, 7):
        client.region_info(index)
    client.irq_info(INTX)
    client.region_read(CONFIG, 0, 256)
    client.read_int(CONFIG, 0x30)
    client.write_int(CONFIG, 0x30, 0)
    event = os.eventfd(0)
    client.set_irqs(INTX, DATA_EVENTFD | ACTION_TRIGGER, fds=[event])
    client.set_irqs(INTX, DATA_NONE | ACTION_UNMASK)
    os.close(event)
    client.reset()
    client.write_int(CONFIG, 0x18, 0xC001)
    client.write_int(CONFIG, 4, 0x103, 2)
    for register in (FILTERS, IRQ_CTL, IN0_7):
        client.write_int(BAR2, register, 0, 1)


def test_the_log_that_qemu_reads(start):
    server = start("-v")
    relay = Relay(server)
    with Client(relay.path) as client:
        qemu_starts(client)
        lines = server.stderr().splitlines()
    relay.close()
    assert all(line.startswith("gpio: ") for line in lines), lines
    missing = [line for line in QEMU_EXPECTS if f"gpio: {line}" not in lines]
    assert not missing, lines


def test_silent_without_v(start):
    server = start()
    with Client(server.path) as client:
        qemu_starts(client)
    assert server.stderr() == ""


def test_a_guest_reads_back_what_it_drives(start):
    client = start().client()
    event = os.eventfd(0)
    client.set_irqs(INTX, DATA_EVENTFD | ACTION_TRIGGER, fds=[event])
    client.write_int(BAR2, OUT0_7, 0x5A, 1)
    assert client.read_int(BAR2, IN0_7, 1) == 0x5A
    client.write_int(BAR2, IN0_7, 0, 1)
    client.read_int(BAR2, IRQ_CTL, 1)
    client.write_int(BAR2, OUT8_15, 0x81, 1)
    assert os.eventfd_read(event) == 1, "only the change after interrupts were enabled"
    assert client.read_int(BAR2, IN8_15, 1) == 0x81
    assert client.read_int(BAR2, IRQ_STATUS, 1) == 0x6
    client.write_int(BAR2, IN0_7, 0, 1)
    assert client.read_int(BAR2, IRQ_STATUS, 1) == 0
    os.close(event)
