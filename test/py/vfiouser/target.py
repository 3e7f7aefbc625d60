# SPDX-License-Identifier: BSD-3-Clause
"""
Servers that are attacked. A target knows its device well enough to make it use guest memory and
interrupts for an attacker, and to tell whether it works for a good client.
"""

import contextlib
import os
import random
import select
import subprocess
import threading
import time

from . import edu as edu_hw
from .channel import TIMEOUT
from .edu import Edu
from .nvme import Namespace, Nvme, pattern
from .nvme_spec import (ACQ, ADMIN_GET_FEATURES, AQA, ASQ, CC, CC_ENABLE, CC_IO_ENTRIES,
                        DOORBELLS, FEAT_QUEUES)
from .server import Server
from .wire import ACTION_TRIGGER, BAR0, CONFIG, DATA_EVENTFD, INTX, MSIX, NO_REPLY

# Short, because attacks wait for them; a good client is never that late.
LIMITS = "version-time=300,output-time=300"


class Target:
    args = ()
    socket_option = "--socket"

    def __init__(self, binary, *args, **options):
        self.server = Server(binary, *self.args, *args, socket_option=self.socket_option,
                             env={"VFU_LIMITS": LIMITS}, **options)

    # For attackers. Nothing waits for a reply of the server.

    def use_memory(self, client, addr):
        """Makes the device access guest memory at an address, if it does DMA."""

    def interrupt(self, client, event):
        """Makes the device signal an eventfd, several times."""
        raise NotImplementedError

    # For everybody

    def work(self, client, seed):
        """Drives the device as a good client does, and checks what it does."""
        raise NotImplementedError

    def check(self, seed=0):
        """A good client attaches and finds a device that works."""
        assert self.server.process.poll() is None, f"the server has ended\n{self.server.stderr()}"
        client = self.server.client()
        self.work(client, seed)
        self.leave()

    def leave(self):
        self.server.close_clients()

    def state(self):
        """
        What the server holds while a client is attached that has asked for nothing: descriptors,
        threads, and resident memory in KiB. Whatever belonged to the clients before is gone, as the
        library has let go of them before it has accepted this one.
        """
        client = self.server.client()
        client.device_info()
        state = len(self.server.fds()), self.server.threads(), self.server.resident()
        self.leave()
        return state

    def settled_state(self, descriptors, threads):
        """The state, as soon as it has so many descriptors and threads: some end after a while."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            state = self.state()
            if state[:2] == (descriptors, threads) or time.monotonic() > deadline:
                return state

    def stop(self):
        self.leave()
        self.server.stop()

    def abandon(self):
        """After a failure, or when it has been killed."""
        self.server.kill()


class Interrupt:
    """An eventfd of a good client."""

    def __init__(self, client, index):
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        client.set_irqs(index, DATA_EVENTFD | ACTION_TRIGGER, fds=[self.fd])

    def __enter__(self):
        return self

    def wait(self):
        ready, _, _ = select.select([self.fd], [], [], TIMEOUT)
        assert ready, "no interrupt"
        return os.eventfd_read(self.fd)

    def __exit__(self, *_):
        os.close(self.fd)


class EduTarget(Target):
    name = "edu"
    args = ("--pasid", "20", "--ats", "--pri")

    def use_memory(self, client, addr):
        edu = Edu(client)
        client.write_int(CONFIG, 4, 6, 2, flags=NO_REPLY)
        for reg, value in ((edu_hw.REG_DMA_SRC, addr), (edu_hw.REG_DMA_DST, edu_hw.BUFFER),
                           (edu_hw.REG_DMA_COUNT, 4096), (edu_hw.REG_DMA_CMD, 1)):
            edu.write(reg, value, 8, flags=NO_REPLY)

    def interrupt(self, client, event):
        client.set_irqs(INTX, DATA_EVENTFD | ACTION_TRIGGER, fds=[event])
        for _ in range(8):
            client.write_int(BAR0, edu_hw.REG_IRQ_RAISE, 1, flags=NO_REPLY)

    def work(self, client, seed):
        edu = Edu(client)
        edu.enable_bus_master()
        slot = client.add_memory(0x10000, 0x4000)
        slot.write(0, pattern(4096, seed))
        with Interrupt(client, INTX) as interrupt:
            edu.copy(0x10000, 0x12000, 4096)
            assert slot.read(0x2000, 4096) == pattern(4096, seed), "the device copies wrongly"
            edu.write(edu_hw.REG_IRQ_RAISE, 1)
            interrupt.wait()


class GpioTarget(Target):
    name = "gpio"
    DIRECTION, OUTPUT, INPUT, IRQ_ENABLE, IRQ_STATUS = 0x00, 0x04, 0x08, 0x0C, 0x10

    def __init__(self, binary):
        super().__init__(binary, stdin=subprocess.PIPE)
        # The lines that an attacker drives fill a pipe that nobody reads.
        self.reader = threading.Thread(target=self._drain, daemon=True)
        self.reader.start()

    def _drain(self):
        fd = os.dup(self.server.process.stdout.fileno())
        while os.read(fd, 4096):
            pass
        os.close(fd)

    def drive(self, *commands):
        self.server.process.stdin.write("".join(f"{c}\n" for c in commands).encode())
        self.server.process.stdin.flush()

    def interrupt(self, client, event):
        client.set_irqs(INTX, DATA_EVENTFD | ACTION_TRIGGER, fds=[event])
        client.write_int(BAR0, self.IRQ_ENABLE, 1 << 5, flags=NO_REPLY)
        self.drive("5=1", "5=0", "5=1", "5=0")

    def work(self, client, seed):
        line = seed % 32
        assert client.read_int(BAR0, self.DIRECTION) == 0, "lines are outputs after a reset"
        with Interrupt(client, INTX) as interrupt:
            client.write_int(BAR0, self.IRQ_ENABLE, 1 << line)
            self.drive(f"{line}=1")
            interrupt.wait()
            assert client.read_int(BAR0, self.INPUT) >> line & 1
            client.write_int(BAR0, self.IRQ_STATUS, 0xFFFFFFFF)
            self.drive(f"{line}=0")
            interrupt.wait()
            assert not client.read_int(BAR0, self.INPUT) >> line & 1

    def stop(self):
        super().stop()
        self._end_input()

    def abandon(self):
        super().abandon()
        self._end_input()

    def _end_input(self):
        with contextlib.suppress(BrokenPipeError):
            self.server.process.stdin.close()
        self.reader.join()


class NvmeTarget(Target):
    name = "nvme"
    args = ("--namespace", "memory=1M", "--ioeventfd", "--ats", "--pri")
    socket_option = None
    SIZE, CHUNK = 1 << 20, 1 << 18

    def use_memory(self, client, addr):
        client.write_int(CONFIG, 4, 6, 2, flags=NO_REPLY)
        for reg, value, size in ((AQA, 0x1F001F, 4), (ASQ, addr, 8), (ACQ, addr + 4096, 8),
                                 (CC, CC_ENABLE | CC_IO_ENTRIES, 4), (DOORBELLS, 9, 4)):
            client.write_int(BAR0, reg, value, size, flags=NO_REPLY)

    def interrupt(self, client, event):
        nvme = Nvme(client)
        nvme.start(vectors=1)
        nvme.close_events()
        nvme.admin.cq.vector = None
        client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, fds=[event])
        for _ in range(8):
            nvme.admin.ok(ADMIN_GET_FEATURES, cdw10=FEAT_QUEUES)

    def work(self, client, seed):
        """All of the disk: what is resident of it does not depend on the seed."""
        nvme = Nvme(client)
        disk = Namespace(nvme, nvme.start_io(2, vectors=3))
        data = random.Random(seed).randbytes(self.SIZE)
        pieces = range(0, self.SIZE, self.CHUNK)
        for at in pieces:
            disk.write(at // disk.block, data[at:at + self.CHUNK])
        for at in pieces:
            assert disk.read(at // disk.block, self.CHUNK) == data[at:at + self.CHUNK], \
                "the disk returns other data"
        nvme.close_events()


TARGETS = {target.name: target for target in (EduTarget, GpioTarget, NvmeTarget)}
