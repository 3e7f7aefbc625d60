# SPDX-License-Identifier: BSD-3-Clause
"""Every call of a server fails, one after the other, and the next client finds all as it was."""

import contextlib
import os
import pathlib
import signal
import subprocess
import tempfile
import time

from .channel import TIMEOUT
from .client import Client
from .fault_sessions import DISK, Corrupt
from .faults import ERRORS, FOREVER, Fault, Names, Shim, passes
from .server import REPORTS, Server

START_TIMEOUT = 60
MODULES = ("libvfio-user", "edu", "nvme", "gpio")
WARM_UP = 3  # sessions after which nothing grows any more
LATER_CALLS = (0, 1, 2, 5, 12, 30, 80)


@contextlib.contextmanager
def environment(variables):
    """Processes that are started in the body get these."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Campaign:
    """One kind of session with one kind of server."""

    def __init__(self, session, build, library):
        self.session = session
        self.build = pathlib.Path(build)
        self.directory = tempfile.TemporaryDirectory(prefix="vfu-faults-")
        self.shim = Shim(library, self.directory.name, MODULES)
        self.names = Names(self.shim, build)
        disk = pathlib.Path(self.directory.name) / "disk"
        disk.write_bytes(bytes(DISK))
        program, *args = session.server
        self.command = [str(self.build / program),
                        *[arg.replace("DISK", str(disk)) for arg in args]]
        self.server = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        if self.server:
            self.server.kill()
        self.directory.cleanup()

    # The server

    def start(self):
        """A server, and how much it holds while a client is connected."""
        program, *args = self.command
        self.shim.disarm()
        with environment(self.shim.environment):
            option = None if program.endswith("nvme") else "--socket"
            self.server = Server(program, *args, socket_option=option)
        self.session.run(self.server.path)
        first = self.shim.calls()
        self.session.run(self.server.path)
        second = self.shim.calls()
        self.early = [site for site, calls in enumerate(first) if calls == second[site] != 0]
        self.per_session = [calls - (first[site:site + 1] or [0])[0]
                            for site, calls in enumerate(second)]
        self.baseline = self.usage()
        for _ in range(WARM_UP):
            self.session.run(self.server.path)
            self.raise_baseline()

    def raise_baseline(self):
        for name, count in self.usage().items():
            self.baseline[name] = max(count, self.baseline[name])

    def usage(self):
        """Of the server, with a client that does nothing."""
        with Client(self.server.path) as probe:
            probe.negotiate()
            probe.device_info()
            proc = pathlib.Path(f"/proc/{self.server.process.pid}")
            return {"descriptors": len(list((proc / "fd").iterdir())),
                    "threads": len(list((proc / "task").iterdir())),
                    "mappings": len((proc / "maps").read_text().splitlines()),
                    "allocations": self.shim.control.live}

    # Faults

    def sites(self):
        """What every session passes."""
        return [site for site, calls in enumerate(self.per_session) if calls > 0]

    def faults(self):
        """Lists for each site: each error, at the first call and at later ones, once and for ever."""
        for site in self.sites():
            yield list(self._faults_at(site))

    def _faults_at(self, site):
        function = self.shim.function(site)
        for error in ERRORS[function]:
            for skip in LATER_CALLS:
                if skip == 0 or skip < self.per_session[site]:
                    yield Fault(self.names, site, error, skip)
            if not passes(function, error):
                yield Fault(self.names, site, error, left=FOREVER)

    def inject(self, fault):
        """Returns what is wrong with the server afterwards, or None."""
        problem = self.attack(fault) or self.check()
        if problem and problem.startswith("leaks"):
            # What is made once and kept, a thread for instance, is no leak.
            self.raise_baseline()
            problem = self.attack(fault) or self.check()
        if problem:
            problem += "".join(f"\n    {line}" for line in self.server.stderr().splitlines()[-6:])
            self.server.kill()
            self.start()
        return problem

    def attack(self, fault):
        start = time.monotonic()
        self.shim.arm(fault)
        try:
            self.session.run(self.server.path)
        except Corrupt as error:
            return f"wrong data: {error}"
        except Exception as error:
            if time.monotonic() - start >= TIMEOUT:
                return f"hangs: {error}"
        finally:
            self.happened = self.shim.failed > 0
            self.shim.disarm()
        return None

    def check(self):
        """The next client finds a device that works, and a server that holds what it held."""
        deadline = time.monotonic() + TIMEOUT
        try:
            self.session.run(self.server.path)
            while True:
                more = {name: count - self.baseline[name] for name, count in self.usage().items()
                        if count > self.baseline[name]}
                if not more:
                    return None
                if time.monotonic() >= deadline:
                    return f"leaks {more}"
        except Exception as error:
            try:
                return f"ends with status {self.server.process.wait(1)}"
            except subprocess.TimeoutExpired:
                return f"the next client fails: {type(error).__name__}: {error}"

    # Faults at the start of a server

    def faults_of_start(self):
        """Lists for each site that a server passes once only: each error."""
        for site in self.early:
            yield [Fault(self.names, site, error) for error in ERRORS[self.shim.function(site)]]

    def start_with(self, fault):
        """
        A server in which the fault happens serves, or says why it ends. Returns what is wrong,
        or None.
        """
        path = os.path.join(self.directory.name, "socket")
        option = [] if self.command[0].endswith("nvme") else ["--socket"]
        with tempfile.TemporaryFile() as log:
            self.shim.arm(fault)
            process = subprocess.Popen([self.command[0], *option, path, *self.command[1:]],
                                       env={**os.environ, **self.shim.environment},
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=log)
            try:
                with process.stdout:
                    problem = None
                    if process.stdout.readline():
                        problem = self.serve(path)
                        process.send_signal(signal.SIGTERM)
                    status = process.wait(START_TIMEOUT)
            finally:
                self.shim.disarm()
                process.kill()
                process.wait()
            log.seek(0)
            text = log.read()
        if status < 0 or REPORTS.search(text) or (status > 0 and not text):
            problem = f"ends with status {status}: {text.decode()}"
        if os.path.exists(path):
            os.unlink(path)
            problem = problem or "leaves its socket behind"
        return problem

    def serve(self, path):
        """A session that may fail, and one that may not."""
        with contextlib.suppress(Exception):
            self.session.run(path)
        self.shim.disarm()
        try:
            self.session.run(path)
        except Exception as error:
            return f"the second client fails: {type(error).__name__}: {error}"
        return None
