# SPDX-License-Identifier: BSD-3-Clause
"""The life of a context, and logging, through the C interface."""

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import threading

import pytest

from vfiouser import wire
from vfiouser.api import abi
from vfiouser.api.fixtures import fails
from vfiouser.api.peer import TWIN, Running
from vfiouser.channel import TIMEOUT, Channel
from vfiouser.client import CAPABILITIES, Client, version_payload
from vfiouser.wire import BAR0, CONFIG, Cmd

LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG = 3, 4, 6, 7


@contextlib.contextmanager
def ticking():
    """A signal comes again and again, so that one comes while a function waits."""
    old = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@contextlib.contextmanager
def descriptors_left(count):
    """No more descriptors than these can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = max(map(int, os.listdir("/proc/self/fd")))
    fillers = []
    while not fillers or fillers[-1] < last + 8:
        fillers.append(os.open("/dev/null", os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1, hard))
    for _ in range(count):
        os.close(fillers.pop())
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


def connected_socket(device):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(device.path)
    return sock


# vfu_create_ctx


@pytest.mark.parametrize("flags", [2, 3, 1 << 31 >> 1, -1])
def test_create_unknown_flag(workshop, flags):
    with fails(errno.EINVAL):
        workshop.device(flags=flags, trans=99)


@pytest.mark.parametrize("trans", [2, 99, -1])
def test_create_unknown_transport(workshop, trans):
    with fails(errno.ENOTSUP):
        workshop.device(trans=trans)


def test_create_unknown_device_type(workshop):
    with fails(errno.ENOTSUP):
        workshop.device(dev_type=1)


def test_create_longest_path(workshop, tmp_path):
    base = os.path.join(os.path.relpath(tmp_path), "")
    if len(base) > 100:
        pytest.skip("the directory's name leaves no room")
    with fails(errno.ENAMETOOLONG):
        workshop.device(path=base.ljust(108, "x"))
    longest = base.ljust(107, "x")
    workshop.device(path=longest)
    assert stat.S_ISSOCK(os.stat(longest).st_mode)


def test_create_existing_path_is_left_alone(workshop, tmp_path):
    path = tmp_path / "s"
    path.write_text("something")
    with fails(errno.EADDRINUSE):
        workshop.device(path=os.path.relpath(path))
    assert path.read_text() == "something"


def test_create_no_directory(workshop, tmp_path):
    with fails(errno.ENOENT):
        workshop.device(path=os.path.relpath(tmp_path / "none" / "s"))


@pytest.mark.parametrize("count", [0, 1])
def test_create_no_descriptor_left(workshop, count):
    with descriptors_left(count), fails(errno.EMFILE):
        workshop.device(path="/tmp/unused")


def test_path_is_copied(lib, tmp_path):
    path = os.path.relpath(tmp_path / "s")
    buf = ctypes.create_string_buffer(path.encode())
    ctx = lib.vfu_create_ctx(abi.TRANS_SOCK, buf, abi.NB, None, abi.DEV_PCI)
    ctypes.memset(buf, ord("x"), len(path))
    lib.vfu_destroy_ctx(ctx)
    assert not os.path.exists(path)


@pytest.mark.parametrize("pvt", [None, 0x1234, (1 << 64) - 1])
def test_private_pointer(workshop, lib, pvt):
    assert lib.vfu_get_private(workshop.device(pvt=pvt).ctx) == pvt


@pytest.mark.parametrize("flags", [0, abi.NB])
def test_listener_mode(workshop, flags):
    device = workshop.device(flags=flags)
    assert os.get_blocking(device.poll_fd) == (flags == 0)
    assert not os.get_inheritable(device.poll_fd)


# vfu_destroy_ctx


def test_destroy_null(lib):
    lib.vfu_destroy_ctx(None)


def test_destroy_never_attached(workshop, device):
    device.setup_reset(device.record("reset"))
    device.setup_quiesce(device.record("quiesce"))
    path = device.path
    device.destroy()
    assert device.events == [("reset", abi.RESET_LOST_CONN)]
    assert not os.path.exists(path)


def test_destroy_with_client(workshop, device):
    device.setup_reset(device.record("reset"))
    device.setup_quiesce(device.record("quiesce"))
    device.setup_dma(unregister=lambda info: device.events.append(("gone", info.iova.iov_base)))
    client = workshop.attach(device, TWIN)
    for addr in (0x10000, 0x20000):
        client.add_memory(addr, 0x1000)
    region, event = os.memfd_create("region"), os.eventfd(0)
    device.setup_region(2, 0x1000, fd=region)
    device.add_ioeventfd(2, event)
    device.take_events()
    device.destroy()
    assert sorted(device.events[:2]) == [("gone", 0x10000), ("gone", 0x20000)]
    assert device.events[2:] == [("reset", abi.RESET_LOST_CONN)]
    assert client.channel.at_eof() and client.twin.at_eof()
    for fd in (region, event):
        os.fstat(fd)
        os.close(fd)


def test_destroy_with_silent_newcomer(workshop, device):
    sock = connected_socket(device)
    with fails(errno.EAGAIN):
        device.attach()
    device.destroy()
    assert sock.recv(1) == b""
    sock.close()


def test_destroy_while_quiescing(workshop, device):
    device.setup_quiesce(device.record("quiesce", lambda: (_ for _ in ()).throw(
        OSError(errno.EBUSY, ""))))
    device.setup_reset(device.record("reset"))
    client = workshop.attach(device)
    with fails(errno.EBUSY):
        client.reset()
    device.destroy()
    assert device.events == [("quiesce",), ("reset", abi.RESET_LOST_CONN)]


# vfu_realize_ctx


def test_realize_twice(device):
    device.setup_irqs(wire.INTX, 1)
    assert device.realize() == 0
    device.config[0x3D] = 0
    assert device.realize() == 0
    assert device.config[0x3D] == 0, "the second call has done something"


def test_run_before_realize(workshop, device):
    with fails(errno.EINVAL):
        device.run()
    peer = workshop.peer(device)
    peer.send_version()
    device.attach()
    with fails(errno.EINVAL):
        device.run()
    device.realize()
    assert device.run() == 0


def test_no_config_space_before_realize(device, lib):
    assert lib.vfu_pci_get_config_space(device.ctx) is None
    device.realize()
    assert lib.vfu_pci_get_config_space(device.ctx)


def test_realize_makes_a_default_config_space(workshop, device):
    client = workshop.attach(device)
    info, _ = client.region_info(CONFIG)
    assert (info.size, info.flags) == (256, wire.REGION_READ | wire.REGION_WRITE)
    assert client.read_int(CONFIG, 0x3C, 2) == 0


def test_realize_config_callback_stays(workshop, device):
    device.memory_region(CONFIG, 0)
    client = workshop.attach(device)
    assert client.region_info(CONFIG)[0].size == 256
    client.region_read(CONFIG, 0x80, 4)
    assert device.events == [("region", CONFIG, 0x80, 4, False)]


def test_realize_default_config_space_of_another_size(workshop, device):
    """Without vfu_pci_init(), of the size that the device has set up."""
    device.memory_region(CONFIG, 0x400)
    client = workshop.attach(device)
    assert client.region_info(CONFIG)[0].size == 0x400
    assert client.region_read(CONFIG, 0x3F0, 16) == bytes(16)


# vfu_attach_ctx


def test_attach_nobody(device):
    device.realize()
    for _ in range(2):
        with fails(errno.EAGAIN):
            device.attach()


def test_attach_twice(workshop, device):
    client = workshop.attach(device)
    with fails(errno.EINVAL):
        device.attach()
    assert client.device_info().num_regions == 9


def refused(device, client, error, reply=None):
    with fails(error):
        device.attach()
    if reply is None:
        assert client.channel.at_eof()
    else:
        message = client.channel.recv()
        assert (message.cmd, message.error) == (Cmd.VERSION, reply)
        assert client.channel.at_eof()


def test_attach_refused_then_retried(workshop, device):
    device.realize()
    client = workshop.peer(device)
    client.send_version(major=1)
    refused(device, client, errno.EINVAL, errno.EINVAL)
    client = workshop.peer(device)
    client.negotiate()
    assert client.device_info().num_irqs == 5


def test_attach_another_command_first(workshop, device):
    client = workshop.peer(device)
    client.send(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16))
    with fails(errno.EINVAL):
        device.attach()
    assert client.channel.recv().error == errno.EINVAL


def test_attach_a_reply_first(workshop, device):
    client = workshop.peer(device)
    client.send_raw(wire.message(Cmd.VERSION, version_payload(), flags=wire.REPLY))
    refused(device, client, errno.EINVAL)


def test_attach_client_goes_at_once(workshop, device):
    client = workshop.peer(device)
    client.channel.close()
    with fails(errno.ENOMSG):
        device.attach()


@pytest.mark.parametrize("count", [1, 15, 16, 20])
def test_attach_client_goes_in_the_middle(workshop, device, count):
    client = workshop.peer(device)
    client.send_raw(wire.message(Cmd.VERSION, version_payload({}))[:count])
    client.channel.close()
    with fails(errno.ECONNRESET):
        device.attach()


def test_attach_descriptors_with_version(workshop, device):
    client = workshop.peer(device)
    client.send(Cmd.VERSION, version_payload({}), fds=[0])
    refused(device, client, errno.EFAULT)


def test_attach_no_descriptor_left(workshop, device):
    client = workshop.peer(device)
    client.send_version()
    with descriptors_left(0), fails(errno.EMFILE):
        device.attach()
    device.attach()
    assert client.channel.recv().cmd == Cmd.VERSION


def test_attach_silent_newcomer_keeps_its_place(workshop, device):
    device.realize()
    listener = device.poll_fd
    first, second = workshop.peer(device), workshop.peer(device)
    second.send_version()
    with fails(errno.EAGAIN):
        device.attach()
    assert device.poll_fd != listener
    assert not select.select([device.poll_fd], [], [], 0)[0]
    first.send_version()
    assert select.select([device.poll_fd], [], [], 0)[0]
    device.attach()
    assert first.channel.recv().cmd == Cmd.VERSION
    assert not second.ready()


def test_attach_interrupted(workshop):
    device = workshop.device(flags=0)
    with ticking(), fails(errno.EINTR):
        device.attach()


def test_attach_blocks(workshop):
    device = workshop.device(flags=0)
    device.realize()
    running = Running(device, attach=True)
    with Client(device.path) as client:
        client.negotiate()
        assert client.device_info().num_regions == 9
    assert running.result() == errno.ENOTCONN


def test_version_reply(workshop, device):
    client = workshop.attach(device)
    assert (client.version.major, client.version.minor) == (0, 0)
    assert client.capabilities["max_msg_fds"] == 8
    assert client.capabilities["max_data_xfer_size"] == 1048576
    assert "twin_socket" not in client.capabilities


# vfu_run_ctx, vfu_get_poll_fd


def test_run_never_attached(device):
    device.realize()
    with fails(errno.ENOTCONN):
        device.run()


def test_run_counts_requests(workshop, device):
    client = workshop.attach(device)
    assert device.run() == 0
    ids = [client.send(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16)) for _ in range(3)]
    done = 0
    while done < 3:
        handled = device.run()
        assert handled > 0
        done += handled
    assert done == 3
    for msg_id in ids:
        client.wait(msg_id)
    assert device.run() == 0


def test_run_failed_request_is_no_failure(workshop, device):
    client = workshop.attach(device)
    msg_id = client.send(Cmd.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(argsz=16, index=5))
    assert device.run() == 1
    assert client.wait(msg_id, check=False).error == errno.EINVAL
    # What is wrong with the message itself does not come as far as a handler.
    msg_id = client.send(Cmd.DEVICE_GET_IRQ_INFO, b"short")
    assert device.run() == 0
    assert client.wait(msg_id, check=False).error == errno.EINVAL


@pytest.mark.parametrize("size", [0, 15, wire.MAX_MESSAGE + 1])
def test_size_that_no_message_has(workshop, device, size):
    """The call that answers it succeeds; the next one tells of the end. The descriptor asks for
    it."""
    client = workshop.attach(device)
    client.send_raw(wire.message(Cmd.REGION_READ, b"", 9, msg_size=size))
    assert device.run() == 0
    assert client.wait(9, check=False).error == errno.EINVAL
    assert select.select([device.poll_fd], [], [], 0)[0]
    with fails(errno.ENOTCONN):
        device.run()
    assert client.channel.at_eof()


def test_reply_that_nothing_waits_for(workshop, device):
    client = workshop.attach(device)
    client.send_raw(wire.message(Cmd.REGION_READ, b"", 9, flags=wire.REPLY, msg_size=32))
    assert device.run() == 0
    assert client.channel.recv().error == errno.EINVAL


def test_one_call_takes_one_message(workshop, device):
    """However long it is."""
    memory = device.memory_region(BAR0, 1 << 17)
    client = workshop.attach(device)
    for count in (1, 4, 16, 100, 1 << 16):
        msg_id = client.send_region_write(BAR0, 0, b"\xab" * count)
        assert device.run() == 1
        client.wait(msg_id)
        assert memory[:count + 1] == b"\xab" * count + b"\0"


def test_poll_fd_follows_the_connection(workshop, device):
    device.realize()
    listener = device.poll_fd
    assert not select.select([listener], [], [], 0)[0]
    for _ in range(3):
        client = workshop.peer(device)
        assert select.select([listener], [], [], 0)[0], "somebody connects"
        client.negotiate()
        connection = device.poll_fd
        assert connection != listener
        assert not select.select([connection], [], [], 0)[0]
        client.send(Cmd.DEVICE_RESET)
        assert select.select([connection], [], [], 0)[0]
        assert device.run() == 1
        client.close()
        with fails(errno.ENOTCONN):
            device.run()
        assert device.poll_fd == listener
        with fails(errno.ENOTCONN):
            device.run()


def test_lost_connection(workshop, device):
    device.setup_reset(device.record("reset"))
    device.setup_quiesce(device.record("quiesce"))
    client = workshop.attach(device)
    client.close()
    with fails(errno.ENOTCONN):
        device.run()
    assert device.events == [("quiesce",), ("reset", abi.RESET_LOST_CONN)]
    # What was set up outlives the connection.
    client = workshop.attach(device)
    client.reset()
    assert device.events[2:] == [("quiesce",), ("reset", abi.RESET_DEVICE)]


def test_reply_that_fails(workshop, device):
    """The request has been handled; the next call tells that the client is gone."""
    device.setup_reset(device.record("reset"))
    client = workshop.attach(device)
    client.send(Cmd.DEVICE_RESET)
    client.close()
    assert device.run() == 1
    assert device.events[0] == ("reset", abi.RESET_DEVICE)
    with fails(errno.ENOTCONN):
        device.run()
    assert device.events[1:] == [("reset", abi.RESET_LOST_CONN)]


def test_run_blocks_until_the_client_goes(workshop):
    device = workshop.device(flags=0)
    memory = device.memory_region(BAR0, 0x100)
    client = workshop.attach(device)
    client.stepping = False
    running = Running(device)
    for value in range(3):
        client.region_write(BAR0, 4 * value, bytes([value] * 4))
    client.close()
    assert running.result() == errno.ENOTCONN
    assert memory[:12] == bytes([0] * 4 + [1] * 4 + [2] * 4)


def test_run_interrupted(workshop):
    device = workshop.device(flags=0)
    client = workshop.attach(device)
    with ticking(), fails(errno.EINTR):
        device.run()
    running = Running(device)
    client.stepping = False
    client.reset()
    client.close()
    assert running.result() == errno.ENOTCONN


def test_contexts_are_independent(workshop):
    """Two that block, each served by a thread."""
    devices = [workshop.device(flags=0) for _ in range(2)]
    runners, memories = [], []
    for device in devices:
        memories.append(device.memory_region(BAR0, 16))
        device.realize()
        runners.append(Running(device, attach=True))
    clients = [Client(device.path) for device in devices]
    for client in clients:
        client.negotiate()
    for number, client in enumerate(clients):
        client.write_int(BAR0, 0, number + 1)
    for client in clients:
        client.close()
    assert [runner.result() for runner in runners] == [errno.ENOTCONN] * 2
    assert [memory[0] for memory in memories] == [1, 2]


# Inside callbacks


def test_calls_inside_callbacks(workshop):
    """What would wait for the callback itself is refused, and the request goes its way."""
    device = workshop.device()
    outcome = []

    def reenter():
        for call in (device.attach, device.run, device.quiesced):
            try:
                call()
            except OSError as error:
                outcome.append(error.errno)
        device.lib.vfu_destroy_ctx(device.ctx)

    def access(_buf, count, _offset, _is_write):
        reenter()
        return count

    device.setup_region(BAR0, 16, access)
    device.setup_quiesce(reenter)
    device.setup_reset(lambda _type: reenter())
    device.setup_dma(4, lambda _info: reenter(), lambda _info: reenter())
    device.setup_irq_state(wire.INTX, lambda *_: reenter())
    device.setup_irqs(wire.INTX, 1)
    device.setup_migration(lambda _state: reenter(), lambda *_: 0, lambda *_: 0)
    client = workshop.attach(device)
    client.region_read(BAR0, 0, 4)
    client.add_memory(0x10000, 0x1000)
    client.set_irqs(wire.INTX, wire.DATA_NONE | wire.ACTION_MASK)
    client.feature(wire.FEATURE_SET | wire.FEAT_MIG_STATE, bytes([6]) + bytes(7))
    client.dma_unmap(0x10000, 0x1000)
    client.reset()
    client.close()
    with fails(errno.ENOTCONN):
        device.run()
    # 4 requests that quiesce, and the loss; a region access, a map, an unmap, an interrupt's mask,
    # a step of migration, two resets, and the step to RUNNING that the first of them brings
    assert outcome == [errno.EDEADLK, errno.EDEADLK, errno.EINVAL] * (5 + 8)
    device.setup_reset(None)


# The pipe transport


@contextlib.contextmanager
def pipe_device(library_path, flags):
    """Yields the channel to a process with a device."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "vfiouser.api.pipe_device", str(library_path), str(flags)],
            stdin=theirs, stdout=theirs, cwd=os.path.dirname(__file__))
    channel = Channel(ours)
    try:
        yield channel
    finally:
        channel.close()
        status = process.wait(TIMEOUT)
    assert status == 0


def ask(channel, cmd, payload):
    channel.send(wire.message(cmd, payload))
    reply = channel.recv()
    assert reply.is_reply and not reply.error and not reply.fds, reply
    return reply.payload


@pytest.mark.parametrize("flags", [0, abi.NB])
def test_pipe(lib, library_path, flags):
    with pipe_device(library_path, flags) as channel:
        ask(channel, Cmd.VERSION, version_payload(CAPABILITIES))
        access = wire.REGION_ACCESS.pack(offset=4, region=BAR0, count=8)
        assert ask(channel, Cmd.REGION_WRITE, access + b"by pipe!") == access
        assert ask(channel, Cmd.REGION_READ, access) == access + b"by pipe!"


def test_pipe_has_no_twin(lib, library_path):
    with pipe_device(library_path, 0) as channel:
        assert b"twin_socket" not in ask(channel, Cmd.VERSION, version_payload(TWIN))


# Logging


def test_log_level(device, lib):
    device.setup_log(device.record("log"), LOG_INFO)
    for level in range(8):
        lib.vfu_log(device.ctx, level, b"%s %d", b"line", level)
    assert device.events == [("log", level, b"line %d" % level) for level in range(7)]


def test_log_edges(device, lib):
    device.setup_log(device.record("log"), LOG_DEBUG)
    lib.vfu_log(device.ctx, LOG_ERR, None)
    assert not device.events
    lib.vfu_log(device.ctx, LOG_ERR, b"%s", b"x" * 10000)
    assert device.events == [("log", LOG_ERR, b"x" * 8191)]


def test_log_keeps_errno(device, lib):
    def disturb(*_):
        ctypes.set_errno(errno.EXDEV)

    device.setup_log(disturb, LOG_DEBUG)
    lib.vfu_log(device.ctx, LOG_ERR, b"")
    assert ctypes.get_errno() == 0
    with fails(errno.EINVAL):
        device.setup_region(99)


def test_log_default_is_silent(device, lib):
    lib.vfu_log(device.ctx, 0, b"nobody listens")


def test_log_null_silences(device, lib):
    device.setup_log(device.record("log"), LOG_DEBUG)
    device.setup_log(None, LOG_DEBUG)
    lib.vfu_log(device.ctx, LOG_ERR, b"nothing")
    assert not device.events


@pytest.mark.parametrize("level", [-1, 8, 1 << 30])
def test_log_bad_level(device, lib, level):
    device.setup_log(device.record("log"), LOG_WARNING)
    with fails(errno.EINVAL):
        device.setup_log(None, level)
    lib.vfu_log(device.ctx, LOG_WARNING, b"as before")
    lib.vfu_log(device.ctx, LOG_INFO, b"above the level")
    assert device.events == [("log", LOG_WARNING, b"as before")]


def test_log_lines_of_the_library(workshop, device):
    device.setup_log(device.record("log"), LOG_DEBUG)
    client = workshop.attach(device)
    assert client.error_of(Cmd.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(argsz=16, index=77)) \
        == errno.EINVAL
    lines = [(level, text.decode()) for name, level, text in device.events if name == "log"]
    assert any(level == LOG_ERR and "77" in text for level, text in lines)
    assert all(0 <= level <= 7 and "\n" not in text for level, text in lines)


def test_log_from_several_threads(device, lib):
    device.setup_log(device.record("log"), LOG_DEBUG)
    threads = [threading.Thread(target=lib.vfu_log, args=(device.ctx, 5, b"%d", number))
               for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(text for _, _, text in device.events) == [b"0", b"1", b"2", b"3"]


def test_version_json(workshop, device):
    """What the client gets is one JSON text with a NUL at its end."""
    device.setup_migration(*[lambda *_: 0] * 3)
    client = workshop.peer(device)
    msg_id = client.send_version()
    device.attach()
    payload = client.wait(msg_id).payload
    assert payload[-1:] == b"\0" and payload.count(b"\0", 4) == 1
    assert json.loads(payload[4:-1])["capabilities"]["migration"] == {
        "pgsize": resource.getpagesize()}


@pytest.mark.parametrize("flags", [0, abi.NB])
def test_without_a_path(workshop, flags):
    """For a device that is only realized: no client can come, and two do not get in each other's
    way."""
    devices = [workshop.device(path="", flags=flags) for _ in range(2)]
    for device in devices:
        device.realize()
        assert device.config_int(0, 2) == 0
        with fails(errno.EINVAL):
            assert device.poll_fd
        with fails(errno.EINVAL):
            device.attach()
        with fails(errno.ENOTCONN):
            device.run()


def test_socket_of_another_server_is_left_alone(workshop, tmp_path):
    path = os.path.relpath(tmp_path / "s")
    first = workshop.device(path=path)
    os.unlink(path)
    second = workshop.device(path=path)
    first.destroy()
    client = workshop.attach(second)
    assert client.device_info().num_regions == 9
    second.destroy()
    assert not os.path.exists(path)


def test_file_in_place_of_the_socket_is_left_alone(workshop, tmp_path):
    path = os.path.relpath(tmp_path / "s")
    device = workshop.device(path=path)
    os.unlink(path)
    (tmp_path / "s").write_text("something")
    device.destroy()
    assert (tmp_path / "s").read_text() == "something"
