# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of the tests that load the library into this process."""

import contextlib
import os
import re

import pytest

from .device import Device
from .library import Library
from .peer import Peer


def missing_runtime(path):
    """The sanitizer runtime that the library needs and this process does not have, or None."""
    with open(path, "rb") as file:
        needed = re.search(rb"lib(asan|tsan)\.so\.\d+", file.read())
    if needed is None:
        return None
    with open("/proc/self/maps", "rb") as maps:
        return None if needed[1] in maps.read() else needed[0].decode()


def open_fds():
    """The descriptors of this process, each with what it is open for."""
    fds = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            fds.add((int(fd), os.readlink(f"/proc/self/fd/{fd}")))
    return fds


@pytest.fixture(scope="session")
def lib(library_path):
    runtime = missing_runtime(library_path)
    if runtime:
        pytest.skip(f"{runtime} must be preloaded; test_sanitized.py does so")
    return Library(library_path)


class Workshop:
    """Makes devices and clients, and clears up after the test."""

    def __init__(self, lib):
        self.lib = lib
        self.devices = []
        self.peers = []

    def device(self, *args, **kwargs):
        device = Device(self.lib, *args, **kwargs)
        self.devices.append(device)
        return device

    def peer(self, device):
        """A client that has connected and not said anything."""
        peer = Peer(device)
        self.peers.append(peer)
        return peer

    def attach(self, device, capabilities=None):
        """Realizes the device and attaches a client to it."""
        device.realize()
        peer = self.peer(device)
        peer.negotiate(capabilities)
        return peer

    def close(self):
        for device in self.devices:
            device.destroy()
        for peer in self.peers:
            for replies in peer.replies.values():
                for reply in replies:
                    for fd in reply.fds:
                        os.close(fd)
            peer.close()
        broken = [error for device in self.devices for error in device.broken]
        if broken:
            raise broken[0]


@pytest.fixture
def workshop(lib):
    """
    At the end of the test this process must have no descriptor that it had not before. One of an
    earlier test may be gone: Python closes a process's pipes when it frees the object.
    """
    before = open_fds()
    shop = Workshop(lib)
    yield shop
    shop.close()
    left = open_fds() - before
    assert not left, f"descriptors left open: {left}"


@pytest.fixture
def device(workshop):
    """One with nothing set up."""
    return workshop.device()


@contextlib.contextmanager
def fails(error):
    """The body must raise OSError with exactly this errno."""
    with pytest.raises(OSError) as info:
        yield info
    assert info.value.errno == error, info.value
