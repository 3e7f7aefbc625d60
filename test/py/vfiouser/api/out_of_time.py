# SPDX-License-Identifier: BSD-3-Clause
"""
What waits for a client that says nothing, until its time is up. Needs preload.c to be preloaded, by
which time passes at once.

Usage: python3 -m vfiouser.api.out_of_time LIBRARY
"""

import ctypes
import errno
import sys

from .. import wire
from ..client import CAPABILITIES
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
    from ..software_iommu import CAPS
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
    assert device.lib.vfu_next_timeout(device.ctx) == 0
    device.run()
    assert lines[10].startswith(count(20)) and device.lib.vfu_next_timeout(device.ctx) == -1
    for _ in range(15):
        refused()
    assert len(lines) == 21
    CLOCK.preload_pass(6)
    refused()
    assert lines[21].startswith(count(5)) and len(lines) == 23


def main():
    lib = Library(sys.argv[1])
    for scenario in (attach, message, translation, flood):
        shop = Workshop(lib)
        scenario(shop)
        shop.close()


if __name__ == "__main__":
    main()
