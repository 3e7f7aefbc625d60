# SPDX-License-Identifier: BSD-3-Clause
"""
Every allocation of the library fails once: what it was for fails with ENOMEM, or does without, and
nothing is left behind. Needs preload.c to be preloaded.

Usage: python3 -m vfiouser.api.out_of_memory LIBRARY
"""

import contextlib
import ctypes
import errno
import os
import struct
import sys

from .. import wire
from ..wire import Cmd
from . import abi
from .fixtures import Workshop, open_fds
from .library import Library

ENOUGH = 200


class Shim:
    def __init__(self, library):
        self.functions = ctypes.CDLL(None)
        self.functions.preload_watch.argtypes = [ctypes.c_uint64] * 2
        with open("/proc/self/maps", encoding="utf-8") as maps:
            mine = [line.split()[0].split("-") for line in maps
                    if os.path.realpath(library) in line]
        self.functions.preload_watch(int(mine[0][0], 16), int(mine[-1][1], 16))
        self.failed = 0

    @contextlib.contextmanager
    def failing(self, number):
        """In the body, the allocation of this number fails; failed tells whether there was one."""
        self.functions.preload_fail(number)
        try:
            yield
        finally:
            self.failed = self.functions.preload_left() == 0


def errno_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except OSError as error:
        return error.errno
    return 0


class Scenarios:
    """Each method prepares something and returns what is to be done, which gives an errno."""

    def __init__(self, shop):
        self.shop = shop

    def create(self):
        return lambda: errno_of(self.shop.device)

    def pci_init(self):
        device = self.shop.device()
        return lambda: errno_of(device.pci_init)

    def realize(self):
        device = self.shop.device()
        device.setup_region(4, 0x1000, None, abi.RW | abi.MEM)
        device.pci_init()
        device.add_capability(struct.pack("<BBHII", 0x11, 0, 3, 4, 0x804))
        return lambda: errno_of(device.realize)

    def realize_without_pci(self):
        device = self.shop.device()

        def twice():
            error = errno_of(device.realize)
            assert error == 0 or errno_of(device.realize) == 0, "it can be tried again"
            return error

        return twice

    def region(self):
        device = self.shop.device()
        fd = device.keep(self.shop.descriptor())
        return lambda: errno_of(device.setup_region, 2, 0x1000, fd=fd)

    def ioeventfd(self):
        device = self.shop.device()
        device.setup_region(2, 0x1000)
        return lambda: errno_of(device.add_ioeventfd, 2, -1)

    def dma(self):
        device = self.shop.device()
        return lambda: errno_of(device.setup_dma)

    def dma_v0(self):
        device, null = self.shop.device(), abi.NULL[abi.DMA_REGISTER]
        return lambda: errno_of(device.lib.vfu_setup_device_dma_v0, device.ctx, null, null)

    def migration(self):
        device = self.shop.device()
        return lambda: errno_of(device.setup_migration, *[lambda *_: 0] * 3)

    def _guarded(self):
        device = self.shop.device()
        device.pci_init()
        device.setup_dma()
        config = abi.IommuConfig(size=ctypes.sizeof(abi.IommuConfig), pasid_bits=20, ats=True,
                                 pri=True, invalidate=abi.NULL[abi.INVALIDATE],
                                 state=abi.NULL[abi.IOMMU_STATE])
        return device, ctypes.byref(config)

    def iommu(self):
        device, config = self._guarded()
        return lambda: errno_of(device.lib.vfu_setup_device_iommu, device.ctx, config)

    def attach(self):
        device = self.shop.device()
        device.realize()
        peer = self.shop.peer(device)
        peer.send_version()
        return lambda: errno_of(device.attach)

    # Requests: the errno in the reply

    def _client(self, busy=False):
        device = self.shop.device()
        device.setup_dma()
        device.setup_migration(*[lambda *_: 0] * 3)
        client = self.shop.attach(device)
        slot = client.add_memory(0x100000, 0x10000)
        if busy:
            def quiesce():
                raise OSError(errno.EBUSY, "")
            device.setup_quiesce(quiesce)
        return client, slot

    def map(self):
        client, _ = self._client()
        slot = client.memory.add(0x200000, 0x10000)
        return lambda: client.error_of(Cmd.DMA_MAP, client.map_payload(slot), [slot.mem.fd])

    def unmap(self):
        client, slot = self._client()
        payload = wire.DMA_UNMAP.pack(argsz=24, addr=slot.addr, size=slot.size)
        return lambda: client.error_of(Cmd.DMA_UNMAP, payload)

    def map_while_logging(self):
        self_map = self.map()
        self.shop.peers[-1].feature(wire.FEATURE_SET | wire.FEAT_LOGGING_START,
                                    wire.LOGGING_CONTROL.pack(page_size=4096))
        return self_map

    def mark_dirty(self):
        """The first page that is marked makes the bitmap. Without one, all pages are dirty."""
        client, slot = self._client()
        client.feature(wire.FEATURE_SET | wire.FEAT_LOGGING_START,
                       wire.LOGGING_CONTROL.pack(page_size=4096))
        sgl = client.device.sgl(slot.addr, 8)

        def mark():
            client.device.sgl_write(sgl, bytes(8), abi.DIRECT)
            report = wire.LOGGING_REPORT.pack(iova=slot.addr, length=slot.size, page_size=4096)
            reply = client.feature(wire.FEATURE_GET | wire.FEAT_LOGGING_REPORT, report,
                                   argsz=4096)
            assert reply.payload[-8] & 1, "a page that was written is clean"
            return 0

        return mark

    def quiesce(self):
        client, _ = self._client(busy=True)
        device = client.device

        def reset():
            msg_id = client.send(Cmd.DEVICE_RESET)
            if errno_of(device.run) == errno.EBUSY:
                device.quiesced()
            return client.wait(msg_id, check=False).error

        return reset

    def _translating(self):
        from ..probe import Probe
        from ..software_iommu import CAPS
        device, config = self._guarded()
        device.lib.vfu_setup_device_iommu(device.ctx, config)
        client = self.shop.attach(device, {"iommu": CAPS})
        Probe(client).enable()
        return device, client

    def invalidate(self):
        _, client = self._translating()
        payload = wire.ATS_INVALIDATE.pack(argsz=24, address=0, length=4096)
        return lambda: client.error_of(Cmd.ATS_INVALIDATE, payload)

    def map_of_a_pasid(self):
        _, client = self._translating()
        payload = wire.PASID_PREFIX.pack(pasid=3) + wire.DMA_MAP.pack(
            argsz=32, flags=wire.MAP_RW, addr=0, size=4096)
        return lambda: client.error_of(Cmd.DMA_MAP, payload, flags=wire.F_PASID)

    def translate(self):
        device, _ = self._translating()
        callback = device.wrap(abi.TRANSLATED, lambda *_: None)
        return lambda: errno_of(device.lib.vfu_ats_translate, device.ctx, 3, 0, 0, False, callback,
                                None)

    def page_request(self):
        device, _ = self._translating()
        callback = device.wrap(abi.PAGES_CAME, lambda *_: None)
        pages = (abi.PageRange * 1)(abi.PageRange(0, 1, wire.PERM_READ))
        return lambda: errno_of(device.lib.vfu_page_request, device.ctx, 3, 0, pages, 1, callback,
                                None)

    def resolve(self):
        device, client = self._translating()
        outcome = []
        done = device.wrap(abi.DONE, lambda _req, error: outcome.append(error))
        sgl = device.keep((abi.Sg * 1)())
        req = device.keep(abi.DmaRequest(addr=0, len=8, pasid=3, prot=1, sgl=sgl, max_nr_sgs=1,
                                         done=done))

        def resolve():
            device.lib.vfu_dma_resolve(device.ctx, ctypes.byref(req))
            while not outcome:
                client.pump()
                device.run()
            assert outcome[0] in (errno.ENOMEM, errno.EFAULT), outcome
            return outcome[0] if outcome[0] == errno.ENOMEM else 0

        return resolve


class Shop(Workshop):
    def __init__(self, lib):
        super().__init__(lib)
        self.files = []

    def descriptor(self):
        self.files.append(os.memfd_create("region"))
        return self.files[-1]

    def close(self):
        super().close()
        for fd in self.files:
            os.close(fd)


def main():
    lib = Library(sys.argv[1])
    shim = Shim(sys.argv[1])
    for name in [name for name in vars(Scenarios) if not name.startswith("_")]:
        failures = 0
        for number in range(1, ENOUGH):
            before = open_fds()
            shop = Shop(lib)
            action = getattr(Scenarios(shop), name)()
            with shim.failing(number):
                error = action()
            shop.close()
            assert error in (0, errno.ENOMEM), f"{name}, allocation {number}: {error}"
            assert len(open_fds()) == len(before), f"{name}, allocation {number}: descriptors"
            if not shim.failed:
                assert error == 0, name
                break
            failures += error == errno.ENOMEM
        else:
            raise AssertionError(f"{name} does not end")
        assert number > 1, f"{name} allocates nothing"
        print(f"{name}: {number - 1} allocations, {failures} that it could not do without")


if __name__ == "__main__":
    main()
