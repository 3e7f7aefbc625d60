# SPDX-License-Identifier: BSD-3-Clause
"""What a device shares with a client ends with the client's session (libvfio-user-session.h)."""

import errno
import os

import pytest

from test_api_region import close_all, io_fds, is_same
from vfiouser.api import abi
from vfiouser.api.fixtures import fails
from vfiouser.wire import BAR0

MMAP = 4
SIZE = 0x4000


class Shared:
    """A device whose files and eventfds are one client's."""

    def __init__(self, device):
        self.device = device
        self.outcomes = []
        self.mem = self.event = -1
        self.make()
        device.memory_region(BAR0, SIZE, areas=[(0x1000, 0x1000)], fd=self.mem)
        device.add_ioeventfd(BAR0, self.event, shadow_fd=self.mem)
        device.setup_reset(self.reset)

    def make(self):
        close_all(fd for fd in (self.mem, self.event) if fd >= 0)
        self.mem = os.memfd_create("shared")
        os.ftruncate(self.mem, SIZE)
        self.event = os.eventfd(0, os.EFD_NONBLOCK)

    def reset(self, kind):
        try:
            self.device.remove_ioeventfds(BAR0)
            self.device.set_region_file(BAR0, -1)
            self.make()
            self.device.set_region_file(BAR0, self.mem)
            self.device.add_ioeventfd(BAR0, self.event, shadow_fd=self.mem)
            self.outcomes.append((kind, 0))
        except OSError as error:
            self.outcomes.append((kind, error.errno))

    def close(self):
        close_all([self.mem, self.event])


@pytest.fixture
def shared(device):
    shared = Shared(device)
    yield shared
    shared.close()


def lose(device, client):
    client.close()
    with fails(errno.ENOTCONN):
        device.run()


def received(client):
    """Descriptors that the client gets: the region's file, the eventfd, its shadow file."""
    info, reply = client.region_info(BAR0, argsz=0x1000)
    assert info.flags & MMAP
    _, records, fds = io_fds(client, BAR0)
    record, = records
    return [*reply.fds, fds[record.fd_index], fds[record.shadow_mem_fd_index]]


def test_an_old_client_reaches_nothing_of_the_next(workshop, device, shared):
    client = workshop.attach(device)
    old = received(client)
    lose(device, client)
    assert shared.outcomes == [(abi.RESET_LOST_CONN, 0)]

    new = received(workshop.attach(device))
    for fd in (old[0], old[2]):
        os.pwrite(fd, b"old client", 0x1000)
    os.eventfd_write(old[1], 1)
    for fd in (new[0], new[2], shared.mem):
        assert os.pread(fd, 10, 0x1000) == bytes(10)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(shared.event)
    # What the next client got is the device's.
    os.pwrite(new[0], b"new client", 0x1000)
    assert os.pread(shared.mem, 10, 0x1000) == os.pread(new[2], 10, 0x1000) == b"new client"
    assert is_same(shared.event, new[1])
    close_all(old + new)


def test_nothing_to_share(workshop, device, shared):
    """A device that could make no new ones offers none, and may do so again later."""
    device.setup_reset(None)
    device.set_region_file(BAR0, -1)
    device.remove_ioeventfds(BAR0)
    client = workshop.attach(device)
    info, reply = client.region_info(BAR0, argsz=0x1000)
    assert (info.flags & MMAP, info.size, reply.fds) == (0, SIZE, [])
    assert io_fds(client, BAR0)[1:] == ([], [])
    client.region_write(BAR0, 0, b"messages")
    lose(device, client)
    device.set_region_file(BAR0, shared.mem, 0x1000)
    info, reply = workshop.attach(device).region_info(BAR0, argsz=0x1000)
    assert info.offset == 0x1000 and os.path.sameopenfile(reply.fds[0], shared.mem)
    close_all(reply.fds)


def test_not_under_a_client(workshop, device, shared):
    """A client's own reset is no end of its session."""
    client = workshop.attach(device)
    with fails(errno.EBUSY):
        device.set_region_file(BAR0, -1)
    with fails(errno.EBUSY):
        device.remove_ioeventfds(BAR0)
    client.reset()
    assert shared.outcomes == [(abi.RESET_DEVICE, errno.EBUSY)]
    close_all(received(client))


def test_the_end_of_the_context(workshop, device, shared):
    """It is the end of a session as well."""
    workshop.attach(device)
    device.destroy()
    assert shared.outcomes == [(abi.RESET_LOST_CONN, 0)]


@pytest.mark.parametrize("region", [-1, 9, 1 << 20, -(1 << 31), 1])
def test_regions_without_a_file(device, shared, region):
    with fails(errno.EINVAL):
        device.set_region_file(region, shared.mem)


@pytest.mark.parametrize("region", [9, 1 << 20, 0xFFFFFFFF])
def test_no_such_region(device, shared, region):
    with fails(errno.EINVAL):
        device.remove_ioeventfds(region)


# vfu_setup_client_cb

def refusing(error):
    def check(_client, _arg):
        raise OSError(error, "")
    return check


def test_credentials_of_the_client(workshop, device):
    seen = []
    device.setup_client(lambda client, arg: seen.append((client, arg)), 0x1234)
    workshop.attach(device).device_info()
    assert seen == [((os.getpid(), os.geteuid(), os.getegid()), 0x1234)]


@pytest.mark.parametrize("error, told", [
    (errno.EPERM, errno.EPERM), (errno.EACCES, errno.EACCES), (0, errno.EACCES),
    (errno.EAGAIN, errno.EACCES)])
def test_refused(workshop, device, error, told):
    """Before anything that it has sent is read; the next may be accepted."""
    device.setup_client(refusing(error))
    device.realize()
    peer = workshop.peer(device)
    with fails(told):
        device.attach()
    assert peer.channel.at_eof()
    device.setup_client(None)
    workshop.attach(device).device_info()


def test_asked_once_for_each_client(workshop, device):
    """However often the program tries to attach a silent one."""
    calls = []
    device.setup_client(lambda *_: calls.append(1))
    device.realize()
    peer = workshop.peer(device)
    for _ in range(3):
        with fails(errno.EAGAIN):
            device.attach()
    peer.negotiate()
    assert len(calls) == 1


def test_calls_in_the_callback(workshop, device):
    def check(_client, _arg):
        for call in (device.attach, device.run):
            with fails(errno.EDEADLK):
                call()

    device.setup_client(check)
    workshop.attach(device).device_info()


def test_no_credentials(workshop):
    device = workshop.device(trans=abi.TRANS_PIPE)
    with fails(errno.ENOTSUP):
        device.setup_client(lambda *_: 0)
