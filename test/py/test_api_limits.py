# SPDX-License-Identifier: BSD-3-Clause
"""vfu_set_limit(), VFU_LIMITS, vfu_set_memory_files(), and what vfu_realize_ctx() warns about."""

import errno
import fcntl
import os
import pathlib
import re
import signal
import threading

import pytest

from test_api_dma import Memory, map_error
from vfiouser.api.abi import RW
from vfiouser.api.fixtures import fails
from vfiouser.wire import BAR0, MAP_FILE_IO, MAP_RW

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOG_WARNING = 4
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def names():
    """The limits, in the order of their numbers."""
    header = (ROOT / "include/libvfio-user-limits.h").read_text()
    return [name.lower().replace("_", "-") for name in re.findall(r"^    VFU_LIMIT_(\w+),", header,
                                                                  re.M)]


def documented():
    rows = re.findall(r"^\| `([a-z-]+)` \| [^|]+ \| (\d+)([KMGT]?) \| \w+ \|",
                      (ROOT / "docs/limits.md").read_text(), re.M)
    return {name: int(number) * UNITS[unit] for name, number, unit in rows}


def logged(device):
    return [text.decode() for name, _, text in device.events if name == "log"]


def test_every_limit_is_documented(device, lib):
    values = {name: lib.vfu_get_limit(device.ctx, i) for i, name in enumerate(names())}
    assert values == documented()


def test_set_and_get(device, lib):
    for i, _ in enumerate(names()):
        lib.vfu_set_limit(device.ctx, i, 1000 + i)
    for i, _ in enumerate(names()):
        assert lib.vfu_get_limit(device.ctx, i) == 1000 + i
    with fails(errno.EINVAL):
        lib.vfu_set_limit(device.ctx, len(names()), 1)


def test_limits_of_the_environment(monkeypatch, device, lib):
    """They win over those of the device."""
    monkeypatch.setenv("VFU_LIMITS", "io-files=3,address-space=2T")
    lib.vfu_set_limit(device.ctx, names().index("io-files"), 5)
    device.realize()
    assert lib.vfu_get_limit(device.ctx, names().index("io-files")) == 3
    assert lib.vfu_get_limit(device.ctx, names().index("address-space")) == 2 << 40


@pytest.mark.parametrize("text", ["io-files", "io-files=", "io-files=-1", "io-files=1X", "=1",
                                  "io-file=1", "io-files=99999999999999999999",
                                  "io-files=99999999T", "io-files=1 ,address-space=1"])
def test_limits_that_make_no_sense(monkeypatch, device, lib, text):
    monkeypatch.setenv("VFU_LIMITS", text)
    device.setup_log(device.record("log"), LOG_WARNING)
    with fails(errno.EINVAL):
        device.realize()
    assert any("VFU_LIMITS" in line for line in logged(device))
    assert lib.vfu_get_limit(device.ctx, names().index("io-files")) == 64


def test_refusal_names_the_limit(workshop, lib):
    memory = Memory(workshop)
    memory.device.setup_log(memory.device.record("log"), LOG_WARNING)
    lib.vfu_set_limit(memory.ctx, names().index("io-files"), 0)
    file = memory.client.memory.add_file(4096)
    assert map_error(memory.client, MAP_RW | MAP_FILE_IO, fds=[file.fd]) == errno.ENOSPC
    assert any("io-files=0" in line for line in logged(memory.device))
    lib.vfu_set_limit(memory.ctx, names().index("io-files"), 1)
    assert map_error(memory.client, MAP_RW | MAP_FILE_IO, fds=[file.fd]) == 0


def test_memory_files(workshop, lib):
    memory = Memory(workshop)
    zero = os.open("/dev/zero", os.O_RDWR)
    assert map_error(memory.client, fds=[zero]) == errno.EPERM
    lib.vfu_set_memory_files(memory.ctx, b"ext4,device")
    assert map_error(memory.client, fds=[zero]) == 0
    lib.vfu_set_memory_files(memory.ctx, None)
    assert map_error(memory.client, fds=[zero], addr=0) == errno.EPERM
    os.close(zero)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("where", ["region", "shadow"])
def test_files_that_can_shrink(workshop, where, sealed):
    device = workshop.device()
    device.setup_log(device.record("log"), LOG_WARNING)
    fd = os.memfd_create("region", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 0x1000)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    device.setup_region(BAR0, 0x1000, lambda *_: 0, RW, fd=fd if where == "region" else -1)
    if where == "shadow":
        device.add_ioeventfd(BAR0, -1, shadow_fd=fd)
    device.realize()
    assert sum("not sealed" in line for line in logged(device)) == (0 if sealed else 1)
    os.close(fd)


def test_realize_with_sigbus_blocked(workshop):
    """The thread can be protected afterwards, and the log says what was done."""
    masks = []

    def run():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGBUS})
        device = workshop.device()
        device.setup_log(device.record("log"), LOG_WARNING)
        device.setup_dma()
        device.realize()
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        assert sum("SIGBUS" in line for line in logged(device)) == 1

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert signal.SIGBUS not in masks[0]
