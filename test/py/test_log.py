# SPDX-License-Identifier: BSD-3-Clause
"""What the library says, to whom, how often."""

import errno
import re

import pytest

from vfiouser import wire
from vfiouser.wire import Cmd

LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG = 3, 4, 6, 7
BURST = 10


def lines_of(device):
    """What was logged, as (level, text)."""
    return [(level, text.decode()) for name, level, text in device.events if name == "log"]


def refused(client, index=77):
    return client.error_of(Cmd.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(argsz=16, index=index))


# VFU_LOG


@pytest.mark.parametrize("value,shown", [("err", {"err"}), ("warn", {"err"}),
                                         ("info", {"err", "info"}),
                                         ("debug", {"err", "info", "debug"})])
def test_the_environment_asks_for_a_log(workshop, monkeypatch, capfd, value, shown):
    monkeypatch.setenv("VFU_LOG", value)
    device = workshop.device()
    client = workshop.attach(device)
    client.device_info()
    assert refused(client) == errno.EINVAL
    lines = capfd.readouterr().err.splitlines()
    found = [re.fullmatch(rf".+\[{re.escape(device.path)}\]: (\w+): .+", line) for line in lines]
    assert all(found) and {match[1] for match in found} == shown, lines


@pytest.mark.parametrize("value", [None, "", "loud"])
def test_the_environment_asks_for_nothing(workshop, monkeypatch, capfd, value):
    if value is not None:
        monkeypatch.setenv("VFU_LOG", value)
    device = workshop.device()
    assert refused(workshop.attach(device)) == errno.EINVAL
    said = capfd.readouterr().err
    assert ("VFU_LOG=loud: not debug" in said) if value == "loud" else said == ""


def test_a_log_function_wins(workshop, monkeypatch, capfd):
    monkeypatch.setenv("VFU_LOG", "debug")
    device = workshop.device()
    device.setup_log(device.record("log"), LOG_ERR)
    refused(workshop.attach(device))
    assert capfd.readouterr().err == ""
    assert [level for level, _ in lines_of(device)] == [LOG_ERR]


# The rate limit


@pytest.fixture
def flooded(workshop, device):
    """A device and its client, who was refused the same 100 times, and something else once."""
    device.setup_log(device.record("log"), LOG_INFO)
    client = workshop.attach(device)
    device.take_events()
    for i in range(100):
        assert refused(client, 100 + i) == errno.EINVAL
    assert client.error_of(Cmd.DEVICE_GET_REGION_INFO,
                           wire.REGION_INFO.pack(argsz=32, index=99)) == errno.EINVAL
    return device


def test_a_flood_is_cut_and_other_lines_are_not(flooded):
    lines = [text for _, text in lines_of(flooded)]
    assert len(lines) == BURST + 1
    assert all(str(100 + i) in line for i, line in enumerate(lines[:-1]))
    assert "99" in lines[-1]
    assert flooded.lib.vfu_next_timeout(flooded.ctx) > 0, "the count is still to come"


def test_the_end_of_a_context_shows_what_was_left_out(flooded):
    flooded.take_events()
    flooded.destroy()
    assert any(re.match(rf"{100 - BURST} more lines left out in \d+ s, the first: .*110", text)
               for level, text in lines_of(flooded) if level == LOG_ERR), flooded.events


def test_debug_lines_are_not_limited(workshop, device):
    device.setup_log(device.record("log"), LOG_DEBUG)
    client = workshop.attach(device)
    device.take_events()
    for _ in range(3 * BURST):
        client.device_info()
    assert len(lines_of(device)) == 3 * BURST
    assert all(level == LOG_DEBUG for level, _ in lines_of(device))


def test_each_context_has_its_own_limit(workshop, flooded):
    other = workshop.device()
    other.setup_log(other.record("log"), LOG_ERR)
    refused(workshop.attach(other))
    assert len(lines_of(other)) == 1


def test_a_device_floods_no_more_than_the_library(device, lib):
    device.setup_log(device.record("log"), LOG_DEBUG)
    for i in range(100):
        lib.vfu_log(device.ctx, LOG_WARNING, b"%d", i)
    assert len(lines_of(device)) == BURST
    for i in range(100):
        lib.vfu_log(device.ctx, LOG_DEBUG, b"%d", i)
    assert len(lines_of(device)) == BURST + 100
