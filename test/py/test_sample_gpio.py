# SPDX-License-Identifier: BSD-3-Clause
"""samples/gpio: lines that the test drives on one side and the client on the other."""

import errno
import os
import re
import select
import subprocess

import pytest

from conftest import sample
from vfiouser import wire
from vfiouser.channel import TIMEOUT
from vfiouser.client import VfioUserError
from vfiouser.server import START_TIMEOUT, Server
from vfiouser.wire import (ACTION_TRIGGER, ACTION_UNMASK, BAR0, CONFIG, DATA_EVENTFD, DATA_NONE,
                           INTX, MSI, Cmd)

DIRECTION, OUTPUT, INPUT, IRQ_ENABLE, IRQ_STATUS = 0x00, 0x04, 0x08, 0x0C, 0x10


class Gpio:
    """A server, the world behind its lines, and the interrupt as an eventfd."""

    def __init__(self, *args):
        self.server = Server(sample("gpio"), *args, stdin=subprocess.PIPE)
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        self.client = self.server.client()

    def close(self):
        os.close(self.eventfd)
        self.server.process.stdin.close()
        if not self.server.stopped:
            self.server.kill()

    def read(self, reg):
        return self.client.read_int(BAR0, reg)

    def write(self, reg, value):
        self.client.write_int(BAR0, reg, value)

    def drive(self, *commands):
        self.server.process.stdin.write("".join(f"{c}\n" for c in commands).encode())
        self.server.process.stdin.flush()

    def enable(self, index):
        self.client.set_irqs(index, DATA_EVENTFD | ACTION_TRIGGER,
                             fds=[self.eventfd])
        if index == MSI:
            self.client.write_int(CONFIG, self.client.read_int(CONFIG, 0x34, 1) + 2, 1, 2)

    def interrupts(self):
        """Waits until there is one at least, and returns how many there were."""
        ready, _, _ = select.select([self.eventfd], [], [], TIMEOUT)
        assert ready, "no interrupt"
        return os.eventfd_read(self.eventfd)

    def no_interrupt(self):
        """None has come up to here: the server has dealt with all that came before the reply."""
        self.client.device_info()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(self.eventfd)


@pytest.fixture
def gpio(request):
    marker = request.node.get_closest_marker("server_args")
    card = Gpio(*(marker.args if marker else ()))
    yield card
    card.close()


@pytest.mark.parametrize("index", [INTX, MSI])
def test_an_edge_of_an_enabled_input_interrupts(gpio, index):
    gpio.enable(index)
    gpio.write(IRQ_ENABLE, 1 << 3)
    gpio.drive("3=1")
    assert gpio.interrupts() == 1
    assert gpio.read(INPUT) == 1 << 3
    assert gpio.read(IRQ_STATUS) == 1 << 3
    gpio.write(IRQ_STATUS, 1 << 3)
    assert gpio.read(IRQ_STATUS) == 0
    gpio.drive("3=0")
    assert gpio.interrupts() == 1
    assert gpio.read(INPUT) == 0


def test_no_edge_no_interrupt(gpio):
    """The last command is one that interrupts, so those before it have been dealt with."""
    gpio.enable(MSI)
    gpio.write(DIRECTION, 1 << 9)
    gpio.write(IRQ_ENABLE, 1 << 3 | 1 << 9)
    assert gpio.server.read_line() == "9=0"
    gpio.drive("3=0", "4=1", "9=1", "3=1")
    assert gpio.interrupts() == 1
    assert gpio.read(IRQ_STATUS) == 1 << 3
    assert gpio.read(INPUT) == 1 << 3 | 1 << 4
    gpio.no_interrupt()


def test_unmasking_intx_repeats_what_was_not_acknowledged(gpio):
    gpio.enable(INTX)
    gpio.write(IRQ_ENABLE, 1)
    gpio.drive("0=1")
    assert gpio.interrupts() == 1
    unmask = DATA_NONE | ACTION_UNMASK
    gpio.client.set_irqs(INTX, unmask)
    assert gpio.interrupts() == 1
    gpio.write(IRQ_STATUS, 1)
    gpio.client.set_irqs(INTX, unmask)
    gpio.no_interrupt()


def test_outputs_reach_the_world(gpio):
    gpio.write(OUTPUT, 1 << 31 | 1)
    gpio.write(DIRECTION, 1 << 31 | 2)
    assert [gpio.server.read_line() for _ in range(2)] == ["1=0", "31=1"]
    assert gpio.read(INPUT) == 1 << 31, "line 0 is an input, and low"
    gpio.write(OUTPUT, 2)
    assert [gpio.server.read_line() for _ in range(2)] == ["1=1", "31=0"]
    gpio.client.reset()
    assert [gpio.server.read_line() for _ in range(2)] == ["1=z", "31=z"]
    assert gpio.read(DIRECTION) == gpio.read(OUTPUT) == 0


@pytest.mark.parametrize("command", ["32=1", "3=2", "3", "=1", "3=1x", "", "x" * 1000])
def test_what_is_no_command_is_said_and_ignored(gpio, command):
    gpio.enable(MSI)
    gpio.write(IRQ_ENABLE, 0xFFFFFFFF)
    gpio.drive(command, "5=1")
    assert gpio.interrupts() == 1
    assert gpio.read(INPUT) == 1 << 5
    assert "is not LINE=LEVEL, such as 3=1" in gpio.server.stderr()


@pytest.mark.parametrize("offset,size", [(0x14, 4), (0, 1), (2, 2), (1, 4), (0, 8)])
def test_accesses_that_no_register_takes(gpio, offset, size):
    for access in (lambda: gpio.client.region_read(BAR0, offset, size),
                   lambda: gpio.client.region_write(BAR0, offset, bytes(size))):
        with pytest.raises(VfioUserError) as error:
            access()
        assert error.value.errno == errno.EINVAL
    assert gpio.read(DIRECTION) == 0


@pytest.mark.server_args("--pulse", "1")
def test_pulses(gpio):
    gpio.enable(MSI)
    gpio.write(IRQ_ENABLE, 1)
    assert sum(gpio.interrupts() for _ in range(4)) >= 4


@pytest.mark.server_args("--pulse", "100", "--verbose")
def test_a_reset_waits_for_the_end_of_the_pulse(gpio):
    """
    The read is sent together with the reset, so that it is served right behind it: whether the
    pulse had ended already or not, it must find it ended.
    """
    gpio.enable(MSI)
    gpio.write(IRQ_ENABLE, 1)
    gpio.interrupts()
    while not gpio.read(INPUT) & 1:
        gpio.interrupts()
    read = wire.REGION_ACCESS.pack(offset=INPUT, region=BAR0, count=4)
    gpio.client.send_raw(wire.message(Cmd.DEVICE_RESET, msg_id=0x1000) +
                         wire.message(Cmd.REGION_READ, read, msg_id=0x1001))
    gpio.client.wait(0x1000)
    level = gpio.client.wait(0x1001).payload[wire.REGION_ACCESS.size:]
    assert level == bytes(4), "the reset came while the pulse was on"
    assert "reset: all lines are inputs" in gpio.server.stderr()


@pytest.mark.server_args("--pulse", "3600000", "--verbose")
def test_a_client_that_leaves_is_followed_by_the_next(gpio):
    gpio.write(DIRECTION, 0x80)
    assert gpio.server.read_line() == "7=0"
    gpio.write(IRQ_ENABLE, 0x40)
    gpio.client.close()
    assert gpio.server.read_line() == "7=z", "nobody drives the line any more"
    gpio.client = gpio.server.client()
    assert [gpio.read(reg) for reg in (DIRECTION, IRQ_ENABLE)] == [0, 0]
    assert "the client is gone" in gpio.server.stderr()


def test_a_client_that_says_nothing_holds_nothing_up(gpio):
    gpio.client.close()
    gpio.server.connect()
    gpio.drive("7=1", "nonsense")
    while "nonsense" not in gpio.server.stderr():
        pass


def test_a_client_that_talks_nonsense_is_turned_away(gpio):
    gpio.client.close()
    other = gpio.server.connect()
    other.send_raw(b"\xff" * 64)
    assert other.disconnected()
    assert gpio.server.client().read_int(BAR0, INPUT) == 0
    assert "a client could not attach" in gpio.server.stderr()


def test_the_end_of_standard_input_is_not_its_end(gpio):
    gpio.drive("2=1")
    gpio.server.process.stdin.close()
    while gpio.read(INPUT) != 1 << 2:
        pass


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.server_args("--pulse", "1")
def test_ends_on_a_signal(gpio, attached):
    if not attached:
        gpio.client.close()
    gpio.server.stop()


@pytest.mark.parametrize("args,message", [
    ([], "--socket PATH is missing"),
    (["--socket", "x", "y"], "'y' is too much"),
    (["--socket", "x", "--pulse", "0"], "from 1 to 3600000"),
    (["--socket", "x", "--pulse", "1s"], "from 1 to 3600000"),
    (["--what"], "unrecognized option"),
])
def test_usage(args, message):
    result = subprocess.run([sample("gpio"), *args], capture_output=True, text=True,
                            timeout=START_TIMEOUT, check=False)
    assert result.returncode == 2
    assert message in result.stderr and "--help" in result.stderr


def test_socket_in_use(gpio):
    result = subprocess.run([sample("gpio"), "--socket", gpio.server.path], capture_output=True,
                            text=True, timeout=START_TIMEOUT, check=False)
    assert result.returncode == 1
    assert re.search("another server lives there: stop it", result.stderr)
