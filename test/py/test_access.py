# SPDX-License-Identifier: BSD-3-Clause
"""Who may connect to a sample: the mode of its socket, and the credentials of the client."""

import errno
import os
import stat
import subprocess

import pytest

from conftest import sample
from vfiouser.channel import Disconnected
from vfiouser.client import Client
from vfiouser.server import Server

SAMPLES = {"edu": (), "gpio": (), "nvme": ("--namespace", "memory=1M")}
NOBODY = 65534
UID, GID = os.getuid(), os.getgid()


@pytest.fixture(params=SAMPLES)
def start(request):
    servers = []

    def start(*args):
        name = request.param
        server = Server(sample(name), *SAMPLES[name], *args,
                        socket_option=None if name == "nvme" else "--socket")
        os.chmod(server.directory.name, 0o755)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close_clients()
        server.stop()


def outcome(server):
    """0 for a client that is served, else the errno that it meets."""
    try:
        with Client(server.path) as client:
            client.negotiate()
            assert client.device_info().num_regions == 9
    except (Disconnected, BrokenPipeError, ConnectionResetError):
        return errno.ECONNRESET
    except OSError as error:
        return error.errno
    return 0


def outcome_as(server, uid, gid):
    """The same, of another user."""
    pid = os.fork()
    if pid == 0:
        result = 255
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            result = outcome(server)
        finally:
            os._exit(result)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o777])
def test_mode(start, mode):
    server = start("--socket-mode", f"{mode:o}")
    assert stat.S_IMODE(os.stat(server.path).st_mode) == mode
    assert outcome(server) == 0
    if UID == 0:
        other = errno.EACCES if mode != 0o777 else 0
        assert outcome_as(server, NOBODY, NOBODY) == other
        assert outcome_as(server, NOBODY, GID) == (0 if mode & 0o060 else errno.EACCES)


@pytest.mark.parametrize("rules, served", [
    ((), True),
    (("--allow-uid", str(UID)), True),
    (("--allow-uid", "root", "--allow-uid", str(UID)), True),
    (("--allow-uid", str(UID + 1)), False),
    (("--allow-gid", str(GID)), True),
    (("--allow-gid", str(GID + 1)), False),
    (("--allow-uid", str(UID + 1), "--allow-gid", str(GID)), True)])
def test_credentials(start, rules, served):
    """A client that is refused costs nothing; the next may be another."""
    server = start(*rules)
    for _ in range(3):
        assert outcome(server) == (0 if served else errno.ECONNRESET)
    assert ("the device refuses it: Permission denied" in server.stderr()) == (not served)
    if not served:
        assert f"of user {UID}, group {GID}" in server.stderr()


@pytest.mark.skipif(UID != 0, reason="only root can be somebody else")
def test_another_user(start):
    server = start("--socket-mode", "0666", "--allow-uid", "nobody", "--allow-gid", "12345")
    assert outcome(server) == errno.ECONNRESET
    assert outcome_as(server, NOBODY, NOBODY) == 0
    assert outcome_as(server, 1, 12345) == 0
    assert outcome_as(server, 1, 1) == errno.ECONNRESET
    assert outcome_as(server, NOBODY, NOBODY) == 0


@pytest.mark.parametrize("args, message", [
    (("--socket-mode", "8"), "an octal number up to 0777, not '8'"),
    (("--socket-mode", "1777"), "not '1777'"),
    (("--socket-mode", "-1"), "not '-1'"),
    (("--socket-mode", ""), "not ''"),
    (("--allow-uid", "no such user"), "'no such user' is neither"),
    (("--allow-uid", "4294967295"), "'4294967295' is neither"),
    (("--allow-gid", "-1"), "'-1' is neither"),
    (("--allow-gid", ""), "'' is neither"),
    (("--allow-uid", "1") * 17, "at most 16")])
@pytest.mark.parametrize("name", SAMPLES)
def test_usage(name, args, message):
    result = subprocess.run([sample(name), *args], capture_output=True, text=True,
                            check=False)
    assert result.returncode == 2
    assert message in result.stderr and "--help" in result.stderr
