# SPDX-License-Identifier: BSD-3-Clause
"""
Eventfds under attack. The client holds the file description of the eventfd that it has sent. It
clears O_NONBLOCK and fills the counter between a poll() and a write() of the server, so that the
write would wait for ever. The servers go on, and end on SIGTERM.
"""

import os
import pathlib
import shutil
import subprocess

import pytest

from vfiouser import edu as hw
from vfiouser.nvme_spec import ADMIN_GET_FEATURES, FEAT_QUEUES
from vfiouser.wire import (ACTION_TRIGGER, ACTION_UNMASK, BAR0, DATA_EVENTFD, DATA_NONE, INTX, MSIX)

from test_sample_gpio import IRQ_ENABLE, Gpio

ASSIGN = DATA_EVENTFD | ACTION_TRIGGER
HERE = pathlib.Path(__file__).parent
FULL = (1 << 64) - 2


@pytest.fixture(scope="module", autouse=True)
def attacked_servers(tmp_path_factory):
    """Servers start with preload_attack.c, which does the client's part in their own process."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no compiler for preload_attack.c")
    library = tmp_path_factory.mktemp("preload") / "attack.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, HERE / "preload_attack.c"],
                   check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        options = os.environ.get("ASAN_OPTIONS", "")
        patch.setenv("ASAN_OPTIONS", f"{options}:verify_asan_link_order=0")
        yield


@pytest.fixture
def eventfd():
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def attack(fd, raise_interrupt):
    """The first interrupt meets an empty counter, the others a full one."""
    for _ in range(3):
        raise_interrupt()
    assert os.eventfd_read(fd) >= FULL, "the server was not attacked"
    raise_interrupt()


def test_edu(server, client, eventfd):
    client.set_irqs(INTX, ASSIGN, fds=[eventfd])
    attack(eventfd, lambda: client.write_int(BAR0, hw.REG_IRQ_RAISE, 1))
    server.stop()


def test_gpio(eventfd):
    """Unmasking INTx raises what was not acknowledged."""
    gpio = Gpio()
    gpio.enable(INTX)
    gpio.write(IRQ_ENABLE, 1)
    gpio.drive("0=1")
    gpio.interrupts()
    gpio.client.set_irqs(INTX, ASSIGN, fds=[eventfd])
    attack(eventfd, lambda: gpio.client.set_irqs(INTX, DATA_NONE | ACTION_UNMASK))
    gpio.server.stop()
    gpio.close()


@pytest.mark.nvme_args("--namespace", "memory=1M")
def test_nvme(nvme_server, nvme, eventfd):
    """Its workers signal, not the thread that serves messages."""
    nvme.start(vectors=1)
    nvme.admin.cq.vector = None
    nvme.client.set_irqs(MSIX, ASSIGN, fds=[eventfd])
    attack(eventfd, lambda: nvme.admin.ok(ADMIN_GET_FEATURES, cdw10=FEAT_QUEUES))
    nvme_server.stop()
