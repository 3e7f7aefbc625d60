# SPDX-License-Identifier: BSD-3-Clause
"""What QEMU's vfio-user client (10.1 and later) sends, in the order in which it sends it."""

import errno
import json
import os
import random

import pytest

from vfiouser import edu as hw
from vfiouser import wire
from vfiouser.edu import Edu
from vfiouser.memory import Slot
from vfiouser.wire import (ACTION_MASK, ACTION_TRIGGER, ACTION_UNMASK, BAR0, CONFIG, DATA_EVENTFD,
                           DATA_NONE, ERR, INTX, MAP_READ, MAP_RW, MSI, UNMAP_ALL, Cmd)

VERSION_TEXT = (b'{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, '
                b'"max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, '
                b'"pgsize": 4096}, "write_multiple": true}}\0')

LOW, ROM1, ROM2, HIGH, RAM = 0xC0000, 0xC0000, 0xE0000, 0x100000, 128 << 20

# Regions as QEMU asks for them: the BARs and the configuration space; no VGA.
REGIONS = [0, 1, 2, 3, 4, 5, 7]


class Qemu:
    def __init__(self, server):
        self.client = server.connect()
        self.client.bare_write_replies = True
        self.ram = self.client.memory.add_file(1 << 32)  # sparse; offsets are addresses
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self.capabilities = None

    def version(self):
        payload = wire.VERSION.pack(major=0, minor=0) + VERSION_TEXT
        reply = self.client.request(Cmd.VERSION, payload, msg_id=1)
        assert len(reply.payload) <= len(payload), "QEMU has no room for the reply"
        version = wire.VERSION.unpack(reply.payload)
        assert (version.major, version.minor) == (0, 0)
        self.capabilities = json.loads(reply.payload[4:-1])["capabilities"]

    def map(self, *ranges):
        """Sent one after the other, the replies collected at the end of the transaction."""
        ids = []
        for addr, size, flags in ranges:
            slot = Slot(addr, size, self.ram, addr)
            ids.append(self.client.send(Cmd.DMA_MAP, self.client.map_payload(slot, flags),
                                        [self.ram.fd]))
        for msg_id in ids:
            self.client.wait(msg_id)

    def device(self):
        info = self.client.device_info()
        assert info.flags & 2 and info.num_regions >= 8 and info.num_irqs >= 4
        sizes = {}
        for index in REGIONS:
            region, _ = self.client.region_info(index)
            if region.argsz > 32:
                region, reply = self.client.region_info(index, argsz=region.argsz)
                assert len(reply.fds) <= 1, "QEMU takes one descriptor"
            sizes[index] = region.size
        return sizes

    def irq_info(self):
        for index in (ERR, INTX, MSI):
            assert self.client.irq_info(index).count == 1

    def irqs(self):
        trigger = DATA_EVENTFD | ACTION_TRIGGER
        self.client.set_irqs(INTX, trigger, fds=[self.event])
        self.client.set_irqs(INTX, DATA_NONE | ACTION_UNMASK)
        error = os.eventfd(0)
        self.client.set_irqs(ERR, trigger, fds=[error])
        os.close(error)

    def reset(self):
        self.client.set_irqs(INTX, DATA_NONE | ACTION_TRIGGER, count=0)
        self.client.write_int(CONFIG, 4, 0, 2)
        self.client.reset()
        for offset in range(0x10, 0x28, 4):
            self.client.write_int(CONFIG, offset, 0)

    def connect(self):
        self.version()
        self.map((0, RAM, MAP_RW), (0xFFFC0000, 0x40000, MAP_READ))
        sizes = self.device()
        self.irq_info()
        whole = self.client.region_read(CONFIG, 0, sizes[CONFIG])
        assert int.from_bytes(whole[:4], "little") == hw.DEVICE << 16 | hw.VENDOR
        for value in (0xFFFFF800, 0):
            self.client.write_int(CONFIG, 0x30, value)
            self.client.read_int(CONFIG, 0x30)
        self.irqs()
        self.reset()

    def firmware(self):
        """The chipset opens and closes the ROM areas: the same file in other pieces."""
        self.client.dma_unmap(0, RAM)
        self.map((0, LOW, MAP_RW), (ROM1, ROM2 - ROM1, MAP_READ), (ROM2, HIGH - ROM2, MAP_READ),
                 (HIGH, RAM - HIGH, MAP_RW))


@pytest.fixture
def qemu(server):
    machine = Qemu(server)
    yield machine
    os.close(machine.event)


def test_version_text_is_what_qemu_sends():
    assert len(VERSION_TEXT) == 194


def test_connect(qemu):
    qemu.connect()
    assert qemu.client.device_info().num_regions == 9


def test_firmware(qemu):
    qemu.connect()
    qemu.firmware()
    edu = Edu(qemu.client)
    edu.enable_bus_master()
    qemu.ram.write(0xBFFF0, b"0123456789abcdef")
    edu.copy(0xBFFF0, HIGH, 16)
    assert qemu.ram.read(HIGH, 16) == b"0123456789abcdef"
    edu.from_ram(0xBFFF0, 16)
    edu.to_ram(ROM1, 16)
    assert qemu.ram.read(ROM1, 16) == bytes(16), "a ROM was written"


def test_posted_writes(qemu):
    qemu.connect()
    edu = Edu(qemu.client)
    for i in range(500):
        edu.write(hw.REG_LIVENESS, i, flags=wire.NO_REPLY)
        if i % 7 == 0:
            assert edu.read(hw.REG_LIVENESS) == ~i & 0xFFFFFFFF
    assert edu.read(hw.REG_LIVENESS) == ~499 & 0xFFFFFFFF


def multi(*writes, count=None):
    entries = b"".join(wire.WRITE_MULTI_ENTRY.pack(
        offset=offset, region=region, count=len(data), data=data)
        for region, offset, data in writes)
    return wire.WRITE_MULTI.pack(wr_cnt=len(writes) if count is None else count) + entries


@pytest.fixture
def multi_qemu(qemu):
    """REGION_WRITE_MULTI is there when the server says so, and refused when not."""
    qemu.connect()
    if not qemu.capabilities.get("write_multiple"):
        payload = multi((BAR0, hw.REG_LIVENESS, bytes(4)))
        assert qemu.client.error_of(Cmd.REGION_WRITE_MULTI, payload) == errno.EINVAL
        return None
    return qemu


@pytest.mark.parametrize("number", [1, 2, 200])
def test_write_multi(multi_qemu, number):
    if multi_qemu is None:
        return
    edu = Edu(multi_qemu.client)
    payload = multi(*((BAR0, hw.REG_LIVENESS, i.to_bytes(4, "little")) for i in range(number)))
    multi_qemu.client.send(Cmd.REGION_WRITE_MULTI, payload, flags=wire.NO_REPLY)
    assert edu.read(hw.REG_LIVENESS) == ~(number - 1) & 0xFFFFFFFF


BAD_MULTI = {
    "more than there are": multi((BAR0, 4, bytes(4)), count=2),
    "201": multi(*[(BAR0, 4, bytes(4))] * 201),
    "largest count": multi((BAR0, 4, bytes(4)), count=(1 << 64) - 1),
    "count that wraps": multi((BAR0, 4, bytes(4)), count=0xAAAAAAAAAAAAAAAB),
    "cut entry": multi((BAR0, 4, bytes(4)))[:-1],
    "beyond the region": multi((BAR0, hw.BAR0_SIZE, bytes(4))),
    "no such region": multi((9, 0, bytes(4))),
    "9 bytes": wire.WRITE_MULTI.pack(wr_cnt=1) + wire.WRITE_MULTI_ENTRY.pack(
        offset=4, region=BAR0, count=9, data=bytes(8)),
    "largest write": wire.WRITE_MULTI.pack(wr_cnt=1) + wire.WRITE_MULTI_ENTRY.pack(
        offset=4, region=BAR0, count=0xFFFFFFFF, data=bytes(8)),
}


@pytest.mark.parametrize("name", BAD_MULTI)
def test_bad_write_multi(multi_qemu, name):
    if multi_qemu is None:
        return
    client = multi_qemu.client
    assert client.error_of(Cmd.REGION_WRITE_MULTI, BAD_MULTI[name]) == errno.EINVAL
    assert client.device_info().num_regions == 9


def test_write_multi_not_negotiated(client):
    payload = multi((BAR0, hw.REG_LIVENESS, bytes(4)))
    assert client.error_of(Cmd.REGION_WRITE_MULTI, payload) == errno.EINVAL


def test_intx_mask_and_unmask(qemu):
    qemu.connect()
    qemu.irqs()
    edu = Edu(qemu.client)
    for _ in range(3):
        edu.write(hw.REG_IRQ_RAISE, 1)
        assert os.eventfd_read(qemu.event) >= 1
        qemu.client.set_irqs(INTX, DATA_NONE | ACTION_MASK)
        edu.write(hw.REG_IRQ_ACK, 1)
        qemu.client.set_irqs(INTX, DATA_NONE | ACTION_UNMASK)


def test_msi_run_of_no_descriptors(qemu):
    """A run of vectors that are not in use comes as events without descriptors."""
    qemu.connect()
    qemu.client.set_irqs(INTX, DATA_NONE | ACTION_TRIGGER, count=0)
    qemu.client.set_irqs(MSI, DATA_EVENTFD | ACTION_TRIGGER, fds=[qemu.event])
    qemu.client.set_irqs(MSI, DATA_EVENTFD | ACTION_TRIGGER)
    qemu.client.set_irqs(MSI, DATA_NONE | ACTION_TRIGGER)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(qemu.event)


def test_guest_iommu(server, qemu):
    """All unmapped, then a map and an unmap for each mapping of the guest, with the same file."""
    qemu.connect()
    client = qemu.client
    client.dma_unmap(0, 0, UNMAP_ALL)
    edu = Edu(client)
    edu.enable_bus_master()
    order = random.Random(1)
    live = {}
    for _ in range(400):
        if live and order.random() < 0.4:
            iova = order.choice(list(live))
            client.dma_unmap(iova, 4096)
            del live[iova]
            continue
        iova = order.randrange(4096) * 4096
        page = order.randrange(RAM // 4096) * 4096
        if iova not in live:
            client.dma_map(Slot(iova, 4096, qemu.ram, page))
            live[iova] = page
    for iova, page in list(live.items())[:20]:
        qemu.ram.write(page, iova.to_bytes(8, "little"))
        edu.copy(iova, iova + 2048, 8)
        assert qemu.ram.read(page + 2048, 8) == iova.to_bytes(8, "little")
    client.dma_unmap(0, 1 << 31)
    assert server.guest_maps(client) == 0
    client.dma_map(Slot(0, 4096, qemu.ram, 0))


def test_memory_of_a_device_without_file(qemu):
    """A BAR of another device: no descriptor, offset 0; its access comes as a message."""
    qemu.connect()
    edu = Edu(qemu.client)
    edu.enable_bus_master()
    slot = qemu.client.add_memory(0xC000000, 0x1000, share=False)
    qemu.ram.write(0x200000, b"peer to peer")
    edu.copy(0x200000, 0xC000000, 12)
    assert slot.read(0, 12) == b"peer to peer"


def test_unplugged_and_plugged_again(server, qemu):
    qemu.connect()
    qemu.firmware()
    qemu.client.close()
    again = Qemu(server)
    again.connect()
    again.firmware()
    os.close(again.event)
