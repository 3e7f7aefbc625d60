# SPDX-License-Identifier: BSD-3-Clause
"""Servers under the system call filter of docs/vfio-user-nvme@.service."""

import ctypes.util
import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT, built, end
from vfiouser import edu as hw
from vfiouser.api.fixtures import missing_runtime
from vfiouser.edu import Edu
from vfiouser.nvme import Namespace, Nvme, pattern
from vfiouser.nvme_spec import IO_FLUSH
from vfiouser.server import Server
from vfiouser.wire import ACTION_TRIGGER, BAR0, DATA_EVENTFD, INTX

UNIT = ROOT / "docs/vfio-user-nvme@.service"


@pytest.fixture(autouse=True)
def confined(monkeypatch, library_path):
    if ctypes.util.find_library("seccomp") is None or shutil.which("systemd-analyze") is None:
        pytest.skip("libseccomp.so.2 and systemd-analyze make the filter")
    if missing_runtime(library_path) is not None:
        pytest.skip("sanitizers need system calls of their own")
    monkeypatch.setenv("VFU_WRAPPER", f"{ROOT / 'test/confine'} {UNIT}")


def filtered(server):
    """Whether the process has a filter: the mode of seccomp is 2."""
    with open(f"/proc/{server.process.pid}/status", encoding="ascii") as status:
        return "Seccomp:\t2\n" in status.readlines()


def test_edu(connected_fds):
    """Registers, an interrupt, DMA in shared memory, and a client after the first."""
    server = Server(built("samples", "edu"))
    assert filtered(server)
    for _ in range(2):
        client = server.client()
        edu = Edu(client)
        edu.enable_bus_master()
        slot = client.add_memory(0, 0x2000)
        slot.write(0, b"confined")
        edu.copy(0, 0x1000, 8)
        assert slot.read(0x1000, 8) == b"confined"
        event = os.eventfd(0, os.EFD_NONBLOCK)
        client.set_irqs(INTX, DATA_EVENTFD | ACTION_TRIGGER, fds=[event])
        client.write_int(BAR0, hw.REG_IRQ_RAISE, 1)
        assert os.eventfd_read(event) == 1
        os.close(event)
        client.close()
    end(server, connected_fds)


def test_nvme(start_nvme, tmp_path):
    """I/O and a flush on a file, with interrupts."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    server = start_nvme("--namespace", f"file={tmp_path / 'disk'}")
    assert filtered(server)
    nvme = Nvme(server.client())
    disk = Namespace(nvme, nvme.start_io(vectors=2))
    disk.write(8, pattern(4096, 7))
    disk.sq.ok(IO_FLUSH, nsid=1)
    assert disk.read(8, 4096) == pattern(4096, 7)
    nvme.close_events()


def test_other_calls_fail():
    """sched_setaffinity(2) stands for them: an unconfined process may call it."""
    script = "import os; os.sched_setaffinity(0, os.sched_getaffinity(0))"
    for wrapper, expected in (([], 0), ([ROOT / "test/confine", UNIT], 1)):
        run = subprocess.run([*wrapper, sys.executable, "-c", script], capture_output=True,
                             text=True, check=False)
        assert run.returncode == expected, run.stderr
        assert ("PermissionError" in run.stderr) == bool(expected)
