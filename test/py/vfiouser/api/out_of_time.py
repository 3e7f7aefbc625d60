# SPDX-License-Identifier: BSD-3-Clause
"""
What waits for a client that says nothing, until its time is up. Needs preload.c to be preloaded, by
which time passes at once.

Usage: python3 -m vfiouser.api.out_of_time LIBRARY
"""

import ctypes
import errno
import sys
import threading

from .. import wire
from ..client import CAPABILITIES
from ..software_iommu import CAPS
from ..wire import Cmd
from . import abi
from .fixtures import Workshop, fails
from .library import Library

CLOCK = ctypes.CDLL(None)


def attach(shop):
    """A client that connects and does not speak, and does not keep others out for ever."""
    device = shop.device()
    device.realize()
    listener = device.poll_fd
    silent = shop.peer(device)
    with fails(errno.EAGAIN):
        device.attach()
    assert device.poll_fd != listener, "it is waited for"
    CLOCK.preload_pass(11)
    with fails(errno.EAGAIN):
        device.attach()
    assert silent.channel.at_eof() and device.poll_fd == listener
    shop.peer(device).negotiate()


def message(shop):
    """DMA_READ without a reply; another message shows the reader what time it is."""
    device = shop.device()
    device.setup_dma()
    client = shop.attach(device)
    client.add_memory(0x10000, 0x1000, share=False)
    held = []

    def late(command):
        held.append(command)
        CLOCK.preload_pass(31)
        client.send(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16))

    client.on_command = late
    with client.answering(), fails(errno.ETIMEDOUT):
        device.sgl_read(device.sgl(0x10000, 8))
    assert len(held) == 1


def translation(shop):
    """What the device itself does not wait for ends in vfu_run_ctx()."""
    from ..probe import Probe
    device = shop.device()
    device.pci_init()
    device.setup_dma()
    config = abi.IommuConfig(size=ctypes.sizeof(abi.IommuConfig), ats=True,
                             invalidate=abi.NULL[abi.INVALIDATE], state=abi.NULL[abi.IOMMU_STATE])
    device.lib.vfu_setup_device_iommu(device.ctx, ctypes.byref(config))
    client = shop.attach(device, {**CAPABILITIES, "iommu": CAPS})
    Probe(client).enable_ats()
    results = []
    device.lib.vfu_ats_translate(
        device.ctx, abi.NO_PASID, 0, 0, False,
        device.wrap(abi.TRANSLATED, lambda _pvt, error, _translation: results.append(error)), None)
    assert device.run() == 0 and not results
    assert device.lib.vfu_next_timeout(device.ctx) > 0
    CLOCK.preload_pass(31)
    assert device.lib.vfu_next_timeout(device.ctx) == 0
    device.run()
    assert results == [errno.ETIMEDOUT]


def flood(shop):
    """The lines that the rate limit left out are counted when its window is over."""
    device = shop.device()
    lines = []
    device.setup_log(lambda _level, text: lines.append(text.decode()), 3)
    client = shop.attach(device)

    def refused():
        client.error_of(Cmd.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(argsz=16, index=77))

    def count(nr):
        return f"{nr} more lines left out in "

    for _ in range(30):
        refused()
    assert len(lines) == 10 and device.lib.vfu_next_timeout(device.ctx) > 0
    CLOCK.preload_pass(6)
    assert device.lib.vfu_next_timeout(device.ctx) == -1, "the count is printed here"
    assert lines[10].startswith(count(20))
    for _ in range(15):
        refused()
    assert len(lines) == 21
    CLOCK.preload_pass(6)
    refused()
    assert lines[21].startswith(count(5)) and len(lines) == 23


class Waiting:
    """A device with everything that waits, its client, and a log that shows who waits."""

    def __init__(self, shop, **callbacks):
        self.device = shop.device()
        self.device.pci_init()
        self.device.setup_dma()
        config = abi.IommuConfig(
            size=ctypes.sizeof(abi.IommuConfig), ats=True, state=abi.NULL[abi.IOMMU_STATE],
            invalidate=self.device.wrap(abi.INVALIDATE, callbacks.get("invalidate")))
        self.device.lib.vfu_setup_device_iommu(self.device.ctx, ctypes.byref(config))
        self.device.setup_quiesce(callbacks.get("quiesce"))
        self.client = shop.attach(self.device, {**CAPABILITIES, "iommu": CAPS})
        self.lines = []
        self.told = threading.Event()
        self.device.setup_log(self.log, 4)

    def log(self, _level, text):
        self.lines.append(text.decode())
        self.told.set()

    def logged(self, seconds):
        """Lets time pass and returns the lines that this brings."""
        CLOCK.preload_pass(seconds)
        before = len(self.lines)
        assert self.device.lib.vfu_next_timeout(self.device.ctx) != 0
        return self.lines[before:]

    def check(self, msg_id, name, reason, end):
        """One line after a second, then rarely, and one when end() has ended the wait."""
        assert not self.lines and not self.logged(0)
        for seconds, after in ((1, 1), (1, 2), (1, None), (1, 4), (3, None), (1, 8)):
            lines = self.logged(seconds)
            assert len(lines) == (after is not None), lines
            assert not lines or lines[0].startswith(
                f"{name} id {msg_id}: waits for {after}.") and reason in lines[0], lines
        del self.lines[:]
        end()
        assert self.lines[0].startswith(f"{name} id {msg_id}: goes on, after it waited for 8.")
        assert len(self.lines) == 1, self.lines
        self.client.wait(msg_id)
        assert not self.logged(9)


def busy(*_):
    raise OSError(errno.EBUSY, "")


def held_unmap(shop):
    waiting = Waiting(shop)
    device, client = waiting.device, waiting.client
    client.add_memory(0x10000, 0x1000)
    sgl = device.sgl(0x10000, 8)
    device.sgl_get(sgl)
    msg_id = client.send(Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, addr=0x10000, size=0x1000))
    device.run()
    waiting.check(msg_id, "DMA_UNMAP", "references", lambda: device.sgl_put(sgl))


def held_reset(shop):
    waiting = Waiting(shop, quiesce=busy)
    msg_id = waiting.client.send(Cmd.DEVICE_RESET)
    with fails(errno.EBUSY):
        waiting.device.run()
    waiting.check(msg_id, "DEVICE_RESET", "vfu_device_quiesced", waiting.device.quiesced)


def held_invalidation(shop):
    kept = []

    def invalidate(_pasid, _everything, _first, _last, invalidation):
        kept.append(invalidation)
        busy()

    waiting = Waiting(shop, invalidate=invalidate)
    device = waiting.device
    msg_id = waiting.client.send(Cmd.ATS_INVALIDATE, wire.ATS_INVALIDATE.pack(
        argsz=24, flags=0, address=0x1000, length=0x1000))
    device.run()
    waiting.check(msg_id, "ATS_INVALIDATE", "vfu_invalidate_done",
                  lambda: device.lib.vfu_invalidate_done(device.ctx, kept[0]))


def held_thread(shop):
    """A thread that waits for a reply says so itself."""
    waiting = Waiting(shop)
    device, client = waiting.device, waiting.client
    client.add_memory(0x10000, 0x1000, share=False)

    def late(command):
        """The thread may have sent its message and not begun to wait: time passes until it has."""
        while not waiting.told.is_set():
            CLOCK.preload_pass(2)
            client.send(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16))
            waiting.told.wait(1)
        client.serve(command)

    client.on_command = late
    with client.answering():
        device.sgl_read(device.sgl(0x10000, 8))
    assert len(waiting.lines) in (1, 2), waiting.lines
    assert waiting.lines[-1].startswith("DMA_READ id 1: "), waiting.lines


def main():
    lib = Library(sys.argv[1])
    for scenario in (attach, message, translation, flood, held_unmap, held_reset,
                     held_invalidation, held_thread):
        shop = Workshop(lib)
        scenario(shop)
        shop.close()


if __name__ == "__main__":
    main()
