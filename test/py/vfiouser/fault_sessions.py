# SPDX-License-Identifier: BSD-3-Clause
"""
What clients do while calls of the server fail. Each session attaches, has everything done that the
server offers, and detaches. It raises an error if something fails, and Corrupt if something
succeeds with wrong data, which no failure excuses.
"""

import contextlib
import os
import select
import time

from . import edu as hw
from . import software_iommu as iommu
from . import wire
from .channel import TIMEOUT
from .client import CAPABILITIES, Client
from .hypervisor import Hypervisor, get_io_fds
from .nvme import IommuMemory, Memory, Namespace, Nvme, pattern
from .nvme_spec import CSTS, CSTS_CFS, IO_FLUSH
from .probe import Probe
from .wire import (ACTION_TRIGGER, ACTION_UNMASK, BAR0, DATA_EVENTFD, DATA_NONE, INTX, MSI,
                   FEAT_LOGGING_REPORT, FEAT_LOGGING_START, FEAT_LOGGING_STOP, FEAT_MIG_STATE,
                   FEATURE_GET, FEATURE_SET, Cmd)

ASSIGN = DATA_EVENTFD | ACTION_TRIGGER
PAGE = 4096
DISK = 8 << 20
RUNNING, STOP_COPY, PRE_COPY = 2, 3, 6
TWIN = {**CAPABILITIES, "twin_socket": {"supported": True}}
WITH_IOMMU = {**CAPABILITIES, "iommu": iommu.CAPS}


class Corrupt(Exception):
    """Data that is wrong, though the transfer has succeeded."""


def expect(data, expected, what):
    if data != expected:
        raise Corrupt(what)


@contextlib.contextmanager
def eventfds(count):
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def wait_event(fd):
    ready, _, _ = select.select([fd], [], [], TIMEOUT)
    assert ready, "no interrupt"
    return os.eventfd_read(fd)


def log_dirty_pages(client, slot, write):
    """Starts to log, has the device write, and ends with a report."""
    one_range = wire.LOGGING_CONTROL.pack(page_size=PAGE, num_ranges=0)
    client.feature(FEATURE_SET | FEAT_LOGGING_START, one_range)
    write()
    report = wire.LOGGING_REPORT.pack(iova=slot.addr, length=slot.size, page_size=PAGE)
    client.feature(FEATURE_GET | FEAT_LOGGING_REPORT, report,
                   argsz=wire.FEATURE.size + len(report) + slot.size // PAGE // 8)
    client.feature(FEATURE_SET | FEAT_LOGGING_STOP)


class EduSession:
    """Memory of every kind, transfers, interrupts."""

    server = ("samples/edu", "--dma-mask", "64")

    def run(self, path):
        with Client(path) as client, eventfds(1) as events:
            client.negotiate(TWIN)
            edu = hw.Edu(client)
            edu.enable_bus_master()
            client.set_irqs(INTX, ASSIGN, fds=events)
            for at, share in ((0x100000, True), (0x200000, False)):
                slot = client.add_memory(at, 0x4000, share)
                slot.write(0, pattern(PAGE, at))
                edu.from_ram(at, PAGE)
                edu.to_ram(at + PAGE, PAGE)
                assert slot.read(PAGE, PAGE) == pattern(PAGE, at), "DMA has failed"
                client.set_irqs(INTX, DATA_NONE | ACTION_TRIGGER)
                wait_event(events[0])
                client.dma_unmap(at, 0x4000)
            edu.write(hw.REG_FACTORIAL, 5)
            edu.poll(hw.REG_STATUS, hw.STATUS_COMPUTING)
            client.set_irqs(INTX, DATA_NONE | ACTION_TRIGGER, count=0)
            client.reset()


class GpioSession:
    """Level-triggered interrupts."""

    server = ("samples/gpio",)

    def run(self, path):
        with Client(path) as client, eventfds(1) as events:
            client.negotiate()
            client.set_irqs(INTX, ASSIGN, fds=events)
            client.set_irqs(INTX, DATA_NONE | ACTION_UNMASK)
            client.set_irqs(INTX, DATA_NONE | ACTION_TRIGGER)
            wait_event(events[0])
            client.set_irqs(MSI, ASSIGN, fds=events)
            client.read_int(BAR0, 0)


class IommuSession:
    """PASIDs, translations, page requests, invalidations, DMA by messages."""

    server = ("test/device/iommu_probe", "--pasid", "20", "--ats", "--pri")

    def run(self, path):
        with Client(path) as client:
            client.negotiate(WITH_IOMMU)
            probe = Probe(client)
            soft = probe.iommu
            probe.enable()
            soft.on_fault = self.page_in(soft)
            first, second = probe.slots[:2]
            soft.table(3).map(0x10000, soft.frame(1))
            soft.fill(1, 0x5A)
            self.check(first.read(0x10000, PAGE, pasid=3), b"\x5A" * PAGE)
            self.check(first.read(0x20000, 16, pasid=3), bytes(16))  # by a page request
            assert second.write(0x10000, b"data", pasid=3) == 0
            expect(soft.memory.read(PAGE, 4), b"data", "a write through the IOMMU")
            second.hold(0x20000, pasid=3)
            waiting = soft.send_invalidate(3, 0x20000, PAGE)
            second.release()
            assert client.wait(waiting).error == 0
            soft.table(3).unmap(0x10000)
            assert soft.invalidate(3, 0x10000, PAGE) == 0
            payload = wire.PASID_PREFIX.pack(pasid=4) + wire.DMA_MAP.pack(
                argsz=32, flags=wire.MAP_RW, addr=0x30000, size=PAGE)
            client.request(Cmd.DMA_MAP, payload, flags=wire.F_PASID)
            soft.table(4).map(0x30000, soft.frame(2))
            first.read(0x30000, 16, pasid=4)
            client.reset()

    @staticmethod
    def page_in(soft):
        def bring(key, iova, perm):
            soft.table(key).map(iova, soft.frame(5))
            return wire.PAGE_SUCCESS
        return bring

    @staticmethod
    def check(data, expected):
        """data: what Slot.read() returns."""
        assert not isinstance(data, int), f"a read fails with {data}"
        expect(data, expected, "a read through the IOMMU")


class Controller(Nvme):
    """The host looks for a fatal status while it waits, as drivers do when a command times out."""

    def idle(self, events, timeout):
        ready = super().idle(events, min(timeout, 0.1))
        assert ready or not events or not self.csts & CSTS_CFS, "the controller has failed"
        return ready

    def next(self, cq, doorbell=True):
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            completion = cq.pop(doorbell)
            if completion:
                return completion
            self.idle([self.events[cq.vector]] if cq.vector is not None else [], TIMEOUT)
        raise AssertionError(f"no completion in queue {cq.qid}")


class NvmeSession:
    """Two disks under load, doorbells by eventfds, dirty pages, saving of the state."""

    server = ("samples/nvme", "--namespace", f"memory={DISK}", "--namespace", "file=DISK",
              "--threads", "2", "--ioeventfd")

    def run(self, path):
        with Client(path) as client, contextlib.ExitStack() as stack:
            client.negotiate(TWIN)
            nvme = Controller(client, Memory(client, size=2 << 20))
            stack.callback(nvme.close_events)
            nvme.start_io(2, vectors=2)
            exercise(nvme)
            records, fds = get_io_fds(client)
            for fd in fds:
                os.close(fd)
            if records:  # else they could not be made: this client rings by messages
                hypervisor = Hypervisor(client)
                stack.callback(hypervisor.close)
                nvme.ring_doorbell = hypervisor.ring
            log_dirty_pages(client, nvme.memory.slot, lambda: exercise(nvme))
            self.save(client)
            client.add_memory(0x40000000, 0x4000, share=False)
            client.dma_unmap(0x40000000, 0x4000)
            client.reset()

    @staticmethod
    def save(client):
        for state in (PRE_COPY, STOP_COPY):
            client.feature(FEATURE_SET | FEAT_MIG_STATE,
                           wire.FEATURE_MIG_STATE.pack(device_state=state, data_fd=0))
            payload = wire.MIG_DATA.pack(argsz=wire.MIG_DATA.size + PAGE, size=PAGE)
            while wire.MIG_DATA.unpack(client.request(Cmd.MIG_DATA_READ, payload).payload).size:
                continue
        client.feature(FEATURE_SET | FEAT_MIG_STATE,
                       wire.FEATURE_MIG_STATE.pack(device_state=RUNNING, data_fd=0))


class NvmeIommuSession:
    """The same disks behind an IOMMU, with memory by messages."""

    server = ("samples/nvme", "--namespace", f"memory={DISK}", "--namespace", "file=DISK",
              "--threads", "2", "--ats", "--pri")

    def __init__(self, share=True):
        self.share = share

    def run(self, path):
        with Client(path) as client, contextlib.ExitStack() as stack:
            client.negotiate(WITH_IOMMU)
            soft = iommu.SoftIommu(client, 2 << 20)
            soft.register_memory(self.share)
            config = Probe(client, soft)
            config.enable_ats()
            config.enable_pri()
            nvme = Controller(client, IommuMemory(soft))
            stack.callback(nvme.close_events)
            nvme.start_io(2, vectors=2)
            exercise(nvme)


def exercise(nvme):
    """I/O of all kinds on all queues and disks, several commands at a time."""
    for nsid in (1, 2):
        for at, sq in enumerate(nvme.queues.values()):
            disk = Namespace(nvme, sq, nsid)
            for length in (512, PAGE, 4 * PAGE):
                data = pattern(length, nsid + length)
                disk.write(64 * at, data)
                expect(disk.read(64 * at, length), data, f"namespace {nsid}, {length} bytes")
            sq.ok(IO_FLUSH, nsid=nsid)


SESSIONS = {
    "edu": EduSession(),
    "gpio": GpioSession(),
    "iommu": IommuSession(),
    "nvme": NvmeSession(),
    "nvme-iommu": NvmeIommuSession(),
    "nvme-messages": NvmeIommuSession(share=False),
}
