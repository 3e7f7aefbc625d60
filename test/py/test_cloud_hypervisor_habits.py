# SPDX-License-Identifier: BSD-3-Clause
"""
What cloud-hypervisor's vfio-user client sends: one command at a time, guest memory by descriptors
alone, MSI-X vectors sixteen at a time, and no answer to any command of the server.
"""

import ctypes
import errno
import json
import mmap
import os

import pytest

from vfiouser import wire
from vfiouser.api import abi
from vfiouser.api.fixtures import fails
from vfiouser.client import CAPABILITIES
from vfiouser.memory import Slot
from vfiouser.wire import (ACTION_MASK, ACTION_TRIGGER, ACTION_UNMASK, BAR0, CONFIG, DATA_EVENTFD,
                           DATA_NONE, INTX, MAP_READ, MAP_RW, MSIX, Cmd)

BAR2, BAR4 = 2, 4
VECTORS = 40
BATCH = 16  # descriptors in one message
BAR2_SIZE = 0x8000
AREAS = [(0x1000, 0x1000), (0x4000, 0x2000)]
LOW, HIGH, HOLE = 3 << 20, 1 << 32, 0xC0000000
SET_FDS = DATA_EVENTFD | ACTION_TRIGGER


class CloudHypervisor:
    """Each method is what the VMM does at one occasion."""

    def __init__(self, peer):
        self.peer = peer
        self.ram = peer.memory.add_file(8 << 20)
        self.events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(VECTORS)]
        peer.on_command = self.refuse
        self.commands = []

    def refuse(self, command):
        """It has no code for commands of the server."""
        self.commands.append(command)
        self.peer.reply(command, error=errno.ENOTSUP)

    def version(self):
        payload = wire.VERSION.pack(major=0, minor=1) + json.dumps({"capabilities": {
            "max_msg_fds": 16, "max_data_xfer_size": 1048576,
            "migration": {"pgsize": 4096}}}).encode() + b"\0"
        reply = self.peer.request(Cmd.VERSION, payload)
        capabilities = json.loads(reply.payload[4:-1])["capabilities"]
        assert capabilities["max_msg_fds"] > 0
        assert len(reply.fds) == 0

    def regions(self):
        """Asks twice where there is more than fits: {index: (info, areas, descriptor)}."""
        found = {}
        info = self.peer.device_info()
        for index in range(info.num_regions):
            region, reply = self.peer.region_info(index)
            if region.argsz > wire.REGION_INFO.size:
                for fd in reply.fds:
                    os.close(fd)
                region, reply = self.peer.region_info(index, argsz=region.argsz)
            areas = []
            if region.flags & wire.REGION_CAPS and region.cap_offset:
                cap = wire.SPARSE_MMAP.unpack(reply.payload, region.cap_offset)
                assert cap.id == wire.CAP_SPARSE_MMAP
                at = region.cap_offset + wire.SPARSE_MMAP.size
                areas = [(a.offset, a.size) for a in
                         wire.SPARSE_AREA.unpack_array(reply.payload[at:], cap.nr_areas)]
            found[index] = (region, areas, reply.fds[0] if reply.fds else None)
        return found

    def irqs(self):
        number = self.peer.device_info().num_irqs
        return [self.peer.irq_info(index).count for index in range(number)]

    def memory(self):
        """Below the hole, and above 4 GiB: one file with offsets, a ROM by READ alone."""
        self.map(0, LOW, 0)
        self.map(HIGH, 4 << 20, LOW)
        self.map(HOLE, 4096, 7 << 20, MAP_READ)

    def map(self, addr, size, offset, flags=MAP_RW):
        self.peer.dma_map(Slot(addr, size, self.ram, offset), flags=flags)

    def set_vectors(self, first, last, events=None):
        """Sixteen in each message at most, by start and count."""
        events = self.events if events is None else events
        for start in range(first, last, BATCH):
            count = min(BATCH, last - start)
            self.peer.set_irqs(MSIX, SET_FDS, start=start, count=count,
                               fds=events[start:start + count])

    def disable(self, index):
        self.peer.set_irqs(index, DATA_NONE | ACTION_TRIGGER, count=0)

    def signalled(self):
        """The vectors that were raised since the last look."""
        found = []
        for vector, fd in enumerate(self.events):
            try:
                found += [vector] * os.eventfd_read(fd)
            except BlockingIOError:
                pass
        return found

    def detach(self):
        self.disable(MSIX)
        self.disable(INTX)
        for addr, size in ((0, LOW), (HIGH, 4 << 20), (HOLE, 4096)):
            self.peer.dma_unmap(addr, size)
        self.peer.close()

    def close(self):
        for fd in self.events:
            os.close(fd)


@pytest.fixture
def file():
    fd = os.memfd_create("bar2")
    os.ftruncate(fd, BAR2_SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def device(workshop, file):
    """With MSI-X, registers, and a region of which two areas can be mapped."""
    dev = workshop.device()
    dev.pci_init()
    for index, number in ((INTX, 1), (MSIX, VECTORS)):
        dev.setup_irqs(index, number)
    dev.memory_region(BAR0, 0x1000, flags=abi.RW | abi.MEM)
    dev.memory_region(BAR2, BAR2_SIZE, flags=abi.RW | abi.MEM, areas=AREAS, fd=file)
    dev.setup_dma(register=dev.record("register"), unregister=dev.record("unregister"))
    dev.setup_reset(dev.record("reset"))
    dev.setup_irq_state(MSIX, dev.record("mask"))
    dev.add_capability(bytes([0x11, 0, VECTORS - 1, 0, 0, 0, 0, 0, 0, 8, 0, 0]))
    dev.realize()
    return dev


@pytest.fixture
def vmm(workshop, device):
    machine = CloudHypervisor(workshop.peer(device))
    machine.version()
    yield machine
    assert not machine.commands, "it was asked something"
    machine.close()


def trigger(device, *vectors):
    for vector in vectors:
        device.lib.vfu_irq_trigger(device.ctx, vector)


def test_regions(vmm, file):
    regions = vmm.regions()
    assert set(regions) == set(range(9))
    assert regions[BAR0][0].size == 0x1000 and regions[BAR0][2] is None
    assert regions[CONFIG][0].size == 4096
    info, areas, fd = regions[BAR2]
    assert (info.size, areas) == (BAR2_SIZE, AREAS)
    assert info.flags & wire.REGION_MMAP
    assert os.fstat(fd).st_ino == os.fstat(file).st_ino
    for _, _, other in regions.values():
        if other is not None:
            os.close(other)


def test_sparse_areas_are_mapped_and_the_rest_is_messages(vmm, device):
    _, areas, fd = vmm.regions()[BAR2]
    for number, (offset, size) in enumerate(areas):
        with mmap.mmap(fd, size, offset=offset) as area:
            area[0:4] = b"area"
            area[size - 1] = number
    vmm.peer.region_write(BAR2, 0, b"message")
    assert vmm.peer.region_read(BAR2, 0, 7) == b"message"
    assert ("region", BAR2, 0, 7, True) in device.take_events()
    os.close(fd)


def test_irq_counts(vmm):
    assert vmm.irqs() == [1, 0, VECTORS, 1, 1]


def test_memory_by_descriptors_alone(vmm, device):
    """The device reaches all of it without a message."""
    vmm.memory()
    end = 4 << 20
    for addr, offset in ((0, 0), (LOW - 8, LOW - 8), (HIGH, LOW), (HIGH + end - 8, LOW + end - 8)):
        vmm.ram.write(offset, b"from ram")
        sgl = device.sgl(addr, 8)
        iov = device.sgl_get(sgl)
        assert ctypes.string_at(iov[0].iov_base, 8) == b"from ram"
        ctypes.memmove(iov[0].iov_base, b"from dev", 8)
        device.sgl_put(sgl, iov)
        assert vmm.ram.read(offset, 8) == b"from dev"
        assert device.sgl_read(sgl, abi.DIRECT) == b"from dev"
    assert not device.sgl(HOLE, 8, prot=abi.PROT_READ)[0].writeable
    with fails(errno.EACCES):
        device.sgl(HOLE, 8)


def test_memory_is_replaced(vmm, device):
    """A file of another size at the same place, as memory that is plugged in and out."""
    vmm.map(0, 1 << 20, 0)
    vmm.peer.dma_unmap(0, 1 << 20)
    vmm.map(0, 2 << 20, 1 << 20)
    vmm.ram.write(1 << 20, b"new")
    assert device.sgl_read(device.sgl(0, 3), abi.DIRECT) == b"new"


@pytest.mark.parametrize("count", [1, 15, 16, 17, 32, 40])
def test_vectors_in_batches(vmm, device, count):
    vmm.set_vectors(0, count)
    trigger(device, *range(count))
    assert vmm.signalled() == list(range(count))
    for vector in range(count, VECTORS):
        with fails(errno.ENOENT):
            trigger(device, vector)


def test_vectors_partly_enabled(vmm, device):
    """A guest driver enables vectors as its queues come up, in any order."""
    vmm.set_vectors(20, 23)
    vmm.set_vectors(0, 1)
    vmm.set_vectors(39, 40)
    trigger(device, 0, 21, 39)
    assert vmm.signalled() == [0, 21, 39]
    for vector in (1, 19, 23, 38):
        with fails(errno.ENOENT):
            trigger(device, vector)
    vmm.set_vectors(1, 20)
    trigger(device, *range(23))
    assert vmm.signalled() == list(range(23))


def test_vectors_are_replaced(vmm, device):
    """The same vectors again, with other events: the batch in the middle alone changes."""
    vmm.set_vectors(0, VECTORS)
    moved = vmm.events[:16] + vmm.events[17:32] + [vmm.events[16]] + vmm.events[32:]
    vmm.set_vectors(16, 32, moved)
    trigger(device, 15, 16, 31, 32)
    assert vmm.signalled() == [15, 16, 17, 32]


def test_vectors_disabled_and_enabled(vmm, device):
    for _ in range(3):
        vmm.set_vectors(0, VECTORS)
        trigger(device, 0, 39)
        assert vmm.signalled() == [0, 39]
        vmm.disable(MSIX)
        for vector in (0, 16, 39):
            with fails(errno.ENOENT):
                trigger(device, vector)
        assert vmm.signalled() == []


@pytest.mark.parametrize("start, count", [(VECTORS, 1), (24, 17), (30, 16), (0xFFFFFFFF, 1)])
def test_batch_beyond_the_vectors(vmm, device, start, count):
    reply = vmm.peer.set_irqs(MSIX, SET_FDS, start=start, count=count, fds=vmm.events[:count],
                              check=False)
    assert reply.error == errno.EINVAL
    for vector in range(VECTORS):
        with fails(errno.ENOENT):
            trigger(device, vector)


def test_mask_and_unmask(vmm, device):
    vmm.set_vectors(0, VECTORS)
    device.take_events()
    vmm.peer.set_irqs(MSIX, DATA_NONE | ACTION_MASK, start=16, count=16)
    vmm.peer.set_irqs(MSIX, DATA_NONE | ACTION_UNMASK, start=16, count=16)
    assert device.take_events() == [("mask", 16, 16, True), ("mask", 16, 16, False)]
    trigger(device, 16)
    assert 16 in vmm.signalled()


def test_from_intx_to_msix(vmm, device):
    vmm.peer.set_irqs(INTX, SET_FDS, fds=vmm.events[:1])
    vmm.peer.set_irqs(INTX, DATA_NONE | ACTION_UNMASK)
    trigger(device, 0)
    assert vmm.signalled() == [0]
    vmm.disable(INTX)
    vmm.set_vectors(0, VECTORS)
    trigger(device, 0, 1)
    assert vmm.signalled() == [0, 1]


def test_reset(vmm, device):
    """What was mapped and set stays: the guest reboots, the VMM does not."""
    vmm.memory()
    vmm.set_vectors(0, VECTORS)
    device.take_events()
    vmm.peer.reset()
    assert device.take_events() == [("reset", 0)]
    trigger(device, 39)
    assert vmm.signalled() == [39]
    vmm.ram.write(0, b"kept")
    assert device.sgl_read(device.sgl(0, 4), abi.DIRECT) == b"kept"


def test_detach_and_attach(workshop, device, vmm):
    """The next VMM begins from nothing."""
    vmm.memory()
    vmm.set_vectors(0, VECTORS)
    vmm.detach()
    with fails(errno.ENOTCONN):
        while True:
            device.run()
    kinds = [event[0] for event in device.take_events()]
    assert kinds.count("register") == kinds.count("unregister") == 3
    assert kinds[-1] == "reset"
    again = CloudHypervisor(workshop.peer(device))
    again.version()
    with fails(errno.ENOENT):
        device.sgl(0, 4)
    with fails(errno.ENOENT):
        trigger(device, 0)
    again.memory()
    again.set_vectors(0, VECTORS)
    trigger(device, 20)
    assert again.signalled() == [20] and vmm.signalled() == []
    again.close()


def test_killed(workshop, device, vmm):
    """Gone without a word: its memory and its events are let go of."""
    vmm.memory()
    vmm.set_vectors(0, VECTORS)
    vmm.peer.close()
    with fails(errno.ENOTCONN):
        while True:
            device.run()
    kinds = [event[0] for event in device.take_events()]
    assert kinds.count("unregister") == 3
    with fails(errno.ENOENT):
        trigger(device, 0)
    workshop.peer(device).negotiate(CAPABILITIES)
