# SPDX-License-Identifier: BSD-3-Clause
"""Event loops: the descriptor that never changes, deadlines, clients that do not speak or read."""

import errno
import os
import re
import select
import signal
import threading

import pytest

from test_api_context import descriptors_left
from vfiouser import wire
from vfiouser.api import abi
from vfiouser.api.fixtures import fails
from vfiouser.channel import TIMEOUT, Disconnected
from vfiouser.client import version_payload
from vfiouser.wire import BAR0, Cmd

INFO = wire.DEVICE_INFO.pack(argsz=16)
LARGE = 1 << 20


def due(device):
    """Does the event loop call now?"""
    return bool(select.select([device.event_fd], [], [], 0)[0])


def turn(device):
    """One turn of an event loop by the book, which has been told that something is due."""
    attached = device.attached
    try:
        return device.step()
    except OSError as error:
        if attached and error.errno not in (errno.EAGAIN, errno.EBUSY, errno.ENOTCONN):
            raise
        return -error.errno


def loop(device):
    """Turns as long as something is due, of which there must be an end. Returns how many."""
    turns = 0
    while due(device):
        turn(device)
        turns += 1
        assert turns < 50, "the loop spins"
    return turns


def wait_due(device):
    assert select.select([device.event_fd], [], [], TIMEOUT)[0], "nothing is due"


def alarm(device):
    """Is a timer of the event descriptor set? What it has in it is known to /proc only."""
    with open(f"/proc/self/fdinfo/{device.event_fd}", encoding="ascii") as info:
        watched = re.findall(r"tfd: +(\d+)", info.read())
    for fd in watched:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
            value = re.search(r"it_value: \((\d+), (\d+)\)", info.read())
        if value:
            return value.groups() != ("0", "0")
    raise AssertionError("the event descriptor has no timer")


@pytest.fixture
def device(workshop):
    device = workshop.device()
    device.memory_region(BAR0, LARGE)
    device.realize()
    return device


# The descriptor


def test_made_by_the_first_call_only(device):
    before = os.listdir("/proc/self/fd")
    fd = device.event_fd
    assert device.event_fd == fd
    assert len(os.listdir("/proc/self/fd")) == len(before) + 2
    assert not os.get_inheritable(fd)


def test_blocking_mode_has_none(workshop):
    device = workshop.device(flags=0)
    with fails(errno.EINVAL):
        assert device.event_fd


def test_without_a_path(workshop):
    device = workshop.device(path="")
    assert not due(device)


@pytest.mark.parametrize("count", [0, 1])
def test_no_descriptor_left(workshop, device, count):
    with descriptors_left(count), fails(errno.EMFILE):
        assert device.event_fd
    assert device.event_fd >= 0
    client = workshop.attach(device)
    client.reset()


def test_follows_clients(workshop, device):
    fd = device.event_fd
    for _ in range(3):
        assert not due(device)
        client = workshop.peer(device)
        assert due(device), "somebody connects"
        loop(device)
        assert not due(device)
        client.send_version()
        assert due(device), "and speaks"
        loop(device)
        assert client.channel.recv().cmd == Cmd.VERSION
        client.send(Cmd.DEVICE_GET_INFO, INFO)
        assert due(device)
        loop(device)
        assert client.channel.recv().cmd == Cmd.DEVICE_GET_INFO
        client.close()
        assert due(device), "and goes"
        loop(device)
        assert not device.attached and device.event_fd == fd


def test_made_with_a_client(workshop, device):
    client = workshop.attach(device)
    assert not due(device)
    client.send(Cmd.DEVICE_RESET)
    assert loop(device) == 1


def test_second_client_waits(workshop, device):
    assert not due(device)
    first, second = workshop.peer(device), workshop.peer(device)
    first.send_version()
    second.send_version()
    loop(device)
    assert device.attached and not due(device)
    first.close()
    loop(device)
    assert device.attached
    assert second.channel.recv().cmd == Cmd.VERSION


@pytest.mark.parametrize("size", [15, wire.MAX_MESSAGE + 1])
def test_client_that_is_refused(workshop, device, size):
    client = workshop.attach(device)
    client.send_raw(wire.message(Cmd.REGION_READ, b"", 9, msg_size=size))
    loop(device)
    assert not device.attached and client.channel.recv().error == errno.EINVAL


def quiescing(workshop):
    device = workshop.device()

    def busy():
        raise OSError(errno.EBUSY, "")

    device.setup_quiesce(device.record("quiesce", busy))
    return device, workshop.attach(device)


def test_quiesce(workshop):
    device, client = quiescing(workshop)
    client.send(Cmd.DEVICE_RESET, msg_id=1)
    client.send(Cmd.DEVICE_GET_INFO, INFO, msg_id=2)
    loop(device)
    assert not client.ready()
    device.quiesced()
    loop(device)
    assert [client.channel.recv().id for _ in range(2)] == [1, 2]


def test_quiesce_and_a_flood(workshop):
    """When no more can be taken, the loop rests until the device is quiet."""
    device, client = quiescing(workshop)
    client.send(Cmd.DEVICE_RESET)
    turn(device)
    payload = wire.REGION_ACCESS.pack(region=BAR0, count=1 << 17) + bytes(1 << 17)
    left = memoryview(wire.message(Cmd.REGION_WRITE, payload, 2) * 100)
    client.channel.sock.setblocking(False)
    stuck = False
    while not stuck:
        try:
            left = left[client.channel.sock.send(left):]
        except BlockingIOError:
            stuck = not loop(device)
    assert not due(device)
    device.quiesced()
    assert due(device)


def test_client_that_goes_while_the_device_quiesces(workshop):
    device, client = quiescing(workshop)
    client.send(Cmd.DEVICE_RESET)
    turn(device)
    client.close()
    loop(device)
    device.setup_quiesce(lambda: None)
    device.quiesced()
    assert not due(device)
    with fails(errno.ENOTCONN):
        device.run()


# Descriptors that are used up


def test_accept_without_a_descriptor(workshop, device):
    """The client waits, and so does the loop."""
    assert not due(device)
    client = workshop.peer(device)
    client.send_version()
    with descriptors_left(0):
        with fails(errno.EMFILE):
            device.attach()
        assert not due(device)
        assert 0 < device.lib.vfu_next_timeout(device.ctx) <= 100
    wait_due(device)
    loop(device)
    assert client.channel.recv().cmd == Cmd.VERSION


def test_accept_without_a_descriptor_polling_the_socket(workshop, device):
    """A loop of libvfio-user 0.x tries again at once: then the client goes."""
    client, next_one = workshop.peer(device), workshop.peer(device)
    with descriptors_left(0):
        turns = 0
        while select.select([device.poll_fd], [], [], 0)[0]:
            with fails(errno.EMFILE):
                device.attach()
            turns += 1
            assert turns < 10, "the loop spins"
    assert client.channel.at_eof() and next_one.channel.at_eof()
    workshop.peer(device).negotiate()


# Clients that do not speak


def test_deadline_of_a_silent_client(workshop, device):
    assert not due(device)
    assert device.lib.vfu_next_timeout(device.ctx) == -1
    silent, second = workshop.peer(device), workshop.peer(device)
    second.send_version()
    loop(device)
    assert alarm(device)
    assert 0 < device.lib.vfu_next_timeout(device.ctx) <= 10000
    silent.send_raw(b"\0")
    loop(device)
    assert alarm(device)
    silent.close()
    loop(device)
    assert second.channel.recv().cmd == Cmd.VERSION
    assert device.lib.vfu_next_timeout(device.ctx) == -1 and not alarm(device)


@pytest.mark.parametrize("said", [b"", wire.message(Cmd.VERSION, version_payload({}))[:30]])
def test_silent_client_gives_way(workshop, device, said):
    assert device.lib.vfu_get_limit(device.ctx, abi.LIMIT_VERSION_TIME) == 10000
    device.lib.vfu_set_limit(device.ctx, abi.LIMIT_VERSION_TIME, 1)
    silent, second = workshop.peer(device), workshop.peer(device)
    silent.send_raw(said)
    second.send_version()
    while not device.attached:
        wait_due(device)
        turn(device)
    assert silent.channel.at_eof()
    assert second.channel.recv().cmd == Cmd.VERSION


def test_silent_client_gives_way_in_blocking_mode(workshop):
    device = workshop.device(flags=0)
    device.realize()
    device.lib.vfu_set_limit(device.ctx, abi.LIMIT_VERSION_TIME, 1)
    silent, second = workshop.peer(device), workshop.peer(device)
    second.send_version()
    device.attach()
    assert silent.channel.at_eof()
    assert second.channel.recv().cmd == Cmd.VERSION


# Clients that do not read


def send_reads(client, count, size=LARGE):
    payload = wire.REGION_ACCESS.pack(region=BAR0, count=size)
    for msg_id in range(count):
        client.send(Cmd.REGION_READ, payload, msg_id=msg_id)


def test_replies_that_nobody_reads_wait(workshop, device):
    """The device serves others meanwhile, and nothing is lost."""
    neighbour = workshop.device()
    neighbour.memory_region(BAR0, 16)
    other = workshop.attach(neighbour)
    client = workshop.attach(device)
    send_reads(client, 4)
    for _ in range(20):
        assert device.run() >= 0
        assert other.region_read(BAR0, 0, 4) == bytes(4)
    client.stepping = False
    replies = []
    reader = threading.Thread(target=lambda: replies.extend(client.channel.recv()
                                                            for _ in range(4)))
    reader.start()
    while reader.is_alive():
        device.run()
    assert [(reply.id, reply.error, len(reply.payload)) for reply in replies] == [
        (i, 0, LARGE + 16) for i in range(4)]


def test_loop_rests_while_nobody_reads(workshop, device):
    """Commands that wait in the socket are no reason to call; room for output is."""
    client = workshop.attach(device)
    assert not due(device)
    send_reads(client, 4)
    loop(device)
    client.stepping = False
    for msg_id in range(4):
        replies = []
        reader = threading.Thread(target=lambda: replies.append(client.channel.recv()))  # pylint: disable=W0640
        reader.start()
        while reader.is_alive():
            if select.select([device.event_fd], [], [], 0.01)[0]:
                turn(device)
        assert replies[0].id == msg_id
    loop(device)


def test_descriptors_of_queued_replies(workshop, device):
    region = os.memfd_create("region")
    os.ftruncate(region, 4096)
    device.setup_region(2, 4096, None, fd=region)
    client = workshop.attach(device)
    send_reads(client, 1)
    info = wire.REGION_INFO.pack(argsz=4096, index=2)
    client.send(Cmd.DEVICE_GET_REGION_INFO, info, msg_id=7)
    while device.run() > 0:
        pass
    os.close(region)
    assert len(client.channel.recv().payload) == LARGE + 16
    reply = client.channel.recv()
    assert (reply.id, len(reply.fds)) == (7, 1)
    assert os.fstat(reply.fds[0]).st_size == 4096
    os.close(reply.fds[0])


def test_more_than_may_be_queued(workshop, device):
    device.lib.vfu_set_limit(device.ctx, abi.LIMIT_QUEUED_OUTPUT, 1 << 16)
    client = workshop.attach(device)
    send_reads(client, 1)
    turn(device)
    with fails(errno.ENOTCONN):
        device.run()
    with pytest.raises((Disconnected, ConnectionError)):
        client.channel.recv()
    workshop.attach(device).device_info()


def test_client_that_does_not_read_for_too_long(workshop, device):
    device.lib.vfu_set_limit(device.ctx, abi.LIMIT_OUTPUT_TIME, 1)
    client = workshop.attach(device)
    assert due(device) is False
    send_reads(client, 1)
    while device.attached:
        wait_due(device)
        turn(device)
    workshop.attach(device).device_info()


def test_destroy_with_output_queued(workshop, device):
    client = workshop.attach(device)
    send_reads(client, 2)
    while device.run() > 0:
        pass
    device.destroy()
    with pytest.raises((Disconnected, ConnectionError)):
        client.channel.recv()


def test_the_writer_takes_no_signals(workshop, device):
    """Those are for the threads of the program."""
    client = workshop.attach(device)
    before = set(os.listdir("/proc/self/task"))
    send_reads(client, 1)
    device.run()
    writer, = set(os.listdir("/proc/self/task")) - before
    with open(f"/proc/self/task/{writer}/status", encoding="ascii") as status:
        blocked = int(re.search(r"SigBlk:\s*(\w+)", status.read())[1], 16)
    assert blocked >> (signal.SIGTERM - 1) & 1 and blocked >> (signal.SIGALRM - 1) & 1
    assert len(client.channel.recv().payload) == LARGE + 16
