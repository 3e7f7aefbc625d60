# SPDX-License-Identifier: BSD-3-Clause
"""The server under test as a process."""

import contextlib
import os
import pathlib
import re
import select
import shlex
import signal
import subprocess
import tempfile
import time

from .channel import TIMEOUT
from .client import Client

# A valgrind or sanitizer server takes its time to start and to end.
START_TIMEOUT = 60

REPORTS = re.compile(rb"(ERROR|WARNING|SUMMARY): \w+Sanitizer|runtime error:|"
                     rb"==\d+== ERROR SUMMARY: [1-9]|Assertion .* failed")


class Server:
    """
    Started with VFU_WRAPPER (for instance "valgrind --error-exitcode=9") in front of it when that
    is set. The standard error stream is kept, for reports of sanitizers and for failing tests.
    env is added to the environment.
    """

    def __init__(self, binary, *args, stdin=None, socket_option="--socket", env=None):
        self.directory = tempfile.TemporaryDirectory(prefix="vfu-test-")
        self.path = os.path.join(self.directory.name, "socket")
        self.log = tempfile.TemporaryFile()
        self.clients = []
        command = [*shlex.split(os.environ.get("VFU_WRAPPER", "")), str(binary),
                   *([socket_option] if socket_option else []), self.path, *args]
        self.process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE,
                                        stderr=self.log, env={**os.environ, **(env or {})})
        try:
            self._wait_ready()
        except BaseException:
            self.kill()
            raise
        self.idle_fds = self.fds()

    def _wait_ready(self):
        line = self.read_line()
        assert line.endswith(f"listening on {self.path}"), line

    def read_line(self):
        """The next line of its standard output."""
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], START_TIMEOUT)
            part = os.read(self.process.stdout.fileno(), 1) if ready else b""
            assert part, f"no line comes from the server: {line!r}\n{self.stderr()}"
            line += part
        return line.decode().rstrip()

    def stderr(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def failed_transfers(self):
        """How many times the edu device has warned that a DMA transfer failed."""
        return len(re.findall(r"DMA of .* failed", self.stderr()))

    def fds(self):
        """What the server has open, as the targets of the links in /proc."""
        directory = f"/proc/{self.process.pid}/fd"
        targets = []
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                targets.append(os.readlink(f"{directory}/{name}"))
        return sorted(targets)

    def threads(self):
        """How many threads it has, but for the kernel's that work for an io_uring."""
        names = []
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                names.append((task / "comm").read_text(encoding="utf-8"))
        return sum(not name.startswith("iou-") for name in names)

    def resident(self):
        """Resident memory in KiB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"VmRSS:\s*(\d+) kB", status)[1])

    def settled_fds(self, client):
        """
        The same, when all that the client sent is done with: a server may let go of descriptors
        after its reply, but not after that to the next command.
        """
        client.device_info()
        return self.fds()

    def guest_fds(self, client):
        """How many descriptors of guest memory the server holds."""
        return sum("memfd:guest" in target for target in self.settled_fds(client))

    def guest_maps(self, client):
        """How many mappings of guest memory the server holds."""
        client.device_info()
        with open(f"/proc/{self.process.pid}/maps", encoding="utf-8") as maps:
            return sum("memfd:guest" in line for line in maps)

    def connect(self, **kwargs):
        """A client without negotiation; it is closed at the end of the test at the latest."""
        client = Client(self.path, **kwargs)
        self.clients.append(client)
        return client

    def client(self, capabilities=None, **kwargs):
        """A client after a plain negotiation."""
        client = self.connect(**kwargs)
        client.negotiate(capabilities)
        return client

    def close_clients(self):
        for client in self.clients:
            client.close()
        self.clients.clear()

    def check(self, connected_fds):
        """
        The server still serves, and with one client connected it has connected_fds descriptors
        more than with none. The library lets go of the last client before it accepts the next.
        """
        self.close_clients()
        assert self.process.poll() is None, f"the server has ended\n{self.stderr()}"
        with Client(self.path) as probe:
            probe.negotiate()
            deadline = time.monotonic() + TIMEOUT
            while True:
                info = probe.device_info()
                assert info.num_regions == 9, info
                fds = self.fds()
                if len(fds) == len(self.idle_fds) + connected_fds:
                    return
                assert time.monotonic() < deadline, (
                    f"{len(fds)} descriptors instead of {len(self.idle_fds)} + {connected_fds}: "
                    f"{fds}, idle {self.idle_fds}")

    @property
    def stopped(self):
        return self.process.stdout.closed

    def stop(self):
        """SIGTERM must end it with status 0 and without any report, with a client or without."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process.stdout.close()
            log = self.stderr()
            self.log.close()
        left = os.path.exists(self.path)
        self.directory.cleanup()
        assert not REPORTS.search(log.encode()), log
        assert status == 0, f"exit status {status}\n{log}"
        assert not left, "the socket is still there"

    def kill(self):
        self.close_clients()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()
        self.directory.cleanup()
