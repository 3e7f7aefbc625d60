# SPDX-License-Identifier: BSD-3-Clause
"""Devices behind an IOMMU through the C interface: every function of libvfio-user-iommu.h."""

import ctypes
import errno
import select
import struct

import pytest

from vfiouser import software_iommu as soft
from vfiouser import wire
from vfiouser.api import abi
from vfiouser.api.abi import (NO_FAULT, NO_PASID, NO_TRANSLATE, PASID_EXEC, PASID_PRIV, PROT_READ,
                              PROT_WRITE)
from vfiouser.api.fixtures import fails
from vfiouser.client import CAPABILITIES, Client
from vfiouser.probe import Probe
from vfiouser.software_iommu import PAGE
from vfiouser.wire import BAR0, CONFIG, Cmd

IOVA = 0x100000
RW = PROT_READ | PROT_WRITE
CAPS = {**CAPABILITIES, "iommu": soft.CAPS}
EVERYTHING = {"pasid_bits": 20, "pasid_exec": True, "pasid_priv": True, "ats": True, "pri": True}


def setup_iommu(device, invalidate=None, state=None, size=None, **config):
    """The device's configuration; what is not named is 0."""
    structure = abi.IommuConfig(
        size=ctypes.sizeof(abi.IommuConfig) if size is None else size,
        invalidate=device.wrap(abi.INVALIDATE, invalidate),
        state=device.wrap(abi.IOMMU_STATE, state), **config)
    return device.lib.vfu_setup_device_iommu(device.ctx, ctypes.byref(structure))


class Access:
    """A vfu_dma_request_t with what it refers to; error is None until done was called."""

    def __init__(self, dev, addr=IOVA, length=8, pasid=NO_PASID, prot=PROT_READ, attrs=0, flags=0,
                 room=8, revoked=None):
        self.dev = dev
        self.error = None
        self.calls = 0
        self.sgl = (abi.Sg * max(room, 1))()
        self.iov = (abi.Iovec * max(room, 1))()
        self.req = abi.DmaRequest(
            addr=addr, len=length, pasid=pasid, attrs=attrs, prot=prot, flags=flags, sgl=self.sgl,
            iov=self.iov, max_nr_sgs=room, pvt=0x77, done=dev.device.wrap(abi.DONE, self._done),
            revoked=dev.device.wrap(abi.REVOKED, revoked and (lambda _req: revoked(self))))
        self.ref = ctypes.byref(self.req)

    def _done(self, req, error):
        assert ctypes.addressof(req[0]) == ctypes.addressof(self.req) and req[0].pvt == 0x77
        self.error = error
        self.calls += 1

    def start(self):
        self.error = None
        self.dev.lib.vfu_dma_resolve(self.dev.ctx, self.ref)
        return self

    def resolve(self):
        """Until it is done; the errno."""
        self.start()
        return self.dev.settle(self)

    def release(self):
        self.dev.lib.vfu_dma_release(self.dev.ctx, self.ref)

    def data(self):
        """What lies at the addresses that were resolved."""
        return b"".join(ctypes.string_at(v.iov_base, v.iov_len)
                        for v in self.iov[:self.req.nr_sgs])

    def move(self, offset, data, to_guest=False):
        self.dev.lib.vfu_dma_move(self.dev.ctx, self.ref, offset, data, len(data), to_guest)


class Guarded:
    """A device behind an IOMMU, with the client that has the page tables."""

    def __init__(self, workshop, invalidate=None, state=None, **config):
        self.device = device = workshop.device()
        self.lib, self.ctx = device.lib, device.ctx
        self.workshop = workshop
        device.pci_init()
        device.setup_dma(64)
        setup_iommu(device, invalidate, state, **{**EVERYTHING, **config})
        self.client = self.probe = self.iommu = None

    def attach(self, caps=None):
        self.client = self.workshop.attach(self.device, caps or CAPS)
        self.probe = Probe(self.client)
        self.iommu = self.probe.iommu
        return self

    def on(self, share=True):
        """Attached, and everything switched on."""
        self.attach()
        self.probe.enable(share)
        return self

    def backed(self, key, number, iova=IOVA, **kwargs):
        """A page of guest memory, full of its number."""
        self.iommu.fill(number, number)
        self.iommu.table(key).map(iova, self.iommu.frame(number), **kwargs)

    def turn(self):
        """Client and device each do what lies before them."""
        if self.client.ready():
            Client.pump(self.client)
        else:
            self.device.run()

    def settle(self, access):
        for _ in range(1000):
            if access.error is not None:
                return access.error
            self.turn()
        raise AssertionError("the access does not end")

    def quiet(self):
        """Until nobody has anything to say."""
        for _ in range(100):
            self.turn()
            if not self.client.ready() and self.device.run() == 0 and not self.client.ready():
                return

    def held(self, cmd):
        """Commands of this kind wait in the list that is returned."""
        commands = []
        self.client.handlers[cmd] = commands.append
        return commands

    def until(self, condition):
        for _ in range(1000):
            if condition():
                return
            self.turn()
        raise AssertionError("it does not happen")

    def state(self):
        state = abi.IommuState()
        self.lib.vfu_iommu_get_state(self.ctx, ctypes.byref(state))
        return state

    def stats(self):
        stats = abi.IommuStats()
        self.lib.vfu_iommu_get_stats(self.ctx, ctypes.byref(stats))
        return stats

    def read(self, addr=IOVA, length=8, **kwargs):
        """vfu_dma_read() while the client answers."""
        buf = ctypes.create_string_buffer(length)
        with self.client.answering():
            self.lib.vfu_dma_read(self.ctx, Access(self, addr, length, **kwargs).ref, buf)
        return buf.raw

    def write(self, data, addr=IOVA, **kwargs):
        with self.client.answering():
            self.lib.vfu_dma_write(self.ctx, Access(self, addr, len(data), **kwargs).ref, data)

    def translate(self, addr=IOVA, pasid=NO_PASID, attrs=0, write=False, callback=True):
        """A list that the result of vfu_ats_translate() will be in."""
        results = []

        def translated(pvt, error, translation):
            assert pvt == 0x55
            copy = abi.Translation.from_buffer_copy(translation[0]) if translation else None
            results.append((error, copy))

        self.lib.vfu_ats_translate(self.ctx, pasid, attrs, addr, write, self.device.wrap(
            abi.TRANSLATED, translated if callback else None), 0x55)
        return results

    def request_pages(self, ranges=((IOVA, 1, wire.PERM_READ),), pasid=NO_PASID, attrs=0,
                      callback=True):
        results = []

        def came(pvt, error, code):
            assert pvt == 0x66
            results.append((error, code))

        array = (abi.PageRange * max(len(ranges), 1))(*(abi.PageRange(*r) for r in ranges))
        self.lib.vfu_page_request(self.ctx, pasid, attrs, array, len(ranges), self.device.wrap(
            abi.PAGES_CAME, came if callback else None), 0x66)
        return results


@pytest.fixture
def dev(workshop):
    return Guarded(workshop).on()


@pytest.fixture
def plain(workshop):
    """A device that has memory, and no IOMMU."""
    device = workshop.device()
    device.setup_dma(8)
    dev = Guarded.__new__(Guarded)
    dev.device, dev.lib, dev.ctx = device, device.lib, device.ctx
    dev.client = workshop.attach(device)
    return dev


# vfu_setup_device_iommu


@pytest.mark.parametrize("config", [
    {"size": 0}, {"size": ctypes.sizeof(abi.IommuConfig) - 1}, {"pasid_bits": 21},
    {"pasid_bits": 0xFFFFFFFF}, {"ats_queue_depth": 33}, {"ats_page_shift": 11},
    {"ats_page_shift": 44}, {"ats_max_entries": 513}, {"ats": False}])
def test_setup_values(device, config):
    device.pci_init()
    device.setup_dma(8)
    with fails(errno.EINVAL):
        setup_iommu(device, **{**EVERYTHING, **config})
    assert setup_iommu(device, **EVERYTHING) == 0


@pytest.mark.parametrize("kind", [abi.CONVENTIONAL, abi.PCI_X_1])
@pytest.mark.parametrize("config", [{"pasid_bits": 1}, {"ats": True}, {"ats": True, "pri": True}])
def test_setup_without_extended_space(device, kind, config):
    device.pci_init(kind)
    device.setup_dma(8)
    with fails(errno.EINVAL):
        setup_iommu(device, **config)
    assert setup_iommu(device) == 0, "without capabilities it needs none"


def test_setup_before_pci_init(device):
    device.setup_dma(8)
    with fails(errno.EINVAL):
        setup_iommu(device, ats=True)


def test_setup_twice(device):
    device.pci_init()
    device.setup_dma(8)
    setup_iommu(device, **EVERYTHING)
    with fails(errno.EEXIST):
        setup_iommu(device, **EVERYTHING)


def test_setup_before_dma(device):
    device.pci_init()
    with fails(errno.ENOTCONN):
        setup_iommu(device, **EVERYTHING)


@pytest.mark.parametrize("left", [0, 8, 16])
def test_setup_without_room(device, left):
    """All of the capabilities or none."""
    device.pci_init()
    device.setup_dma(8)
    size = 0xF00 - 8 - left
    device.add_capability(struct.pack("<II", 0x1000B, size << 20) + bytes(size - 8),
                          flags=abi.CAP_EXTENDED)
    with fails(errno.ENOSPC):
        setup_iommu(device, **EVERYTHING)
    for cap_id in (soft.ATS, soft.PRI, soft.PASID):
        with fails(errno.ENOENT):
            device.lib.vfu_pci_find_capability(device.ctx, True, cap_id)
    setup_iommu(device)


@pytest.mark.parametrize("config, ids", [
    ({}, []), ({"pasid_bits": 4}, [soft.PASID]), ({"ats": True}, [soft.ATS]),
    ({"ats": True, "pri": True}, [soft.ATS, soft.PRI]),
    (EVERYTHING, [soft.ATS, soft.PRI, soft.PASID])])
def test_setup_adds_capabilities(device, config, ids):
    device.pci_init()
    device.setup_dma(8)
    setup_iommu(device, **config)
    found = []
    for cap_id in (soft.ATS, soft.PRI, soft.PASID):
        try:
            device.lib.vfu_pci_find_capability(device.ctx, True, cap_id)
            found.append(cap_id)
        except OSError as error:
            assert error.errno == errno.ENOENT
    assert found == ids


def test_capability_registers(workshop):
    dev = Guarded(workshop, pasid_bits=9, pasid_priv=False, ats_queue_depth=5,
                  pri_max_requests=77).attach()
    assert dev.probe.register(soft.ATS, 4) & 0x1F == 5
    assert dev.probe.register(soft.PRI, 8, size=4) == 77
    assert dev.probe.register(soft.PASID, 4) == 9 << 8 | 2
    dev = Guarded(workshop).attach()
    assert dev.probe.register(soft.ATS, 4) & 0x1F == 0, "32"
    assert dev.probe.register(soft.PRI, 8, size=4) == 512


ATS = {"page_shift": 12, "max_entries": 64}
AGREED = {
    "less": ({"pasid": {"bits": 8, "exec": False, "priv": True},
              "ats": {**ATS, "queue_depth": 4}, "pri": {"max_requests": 7}}, 4, 8 << 8 | 4, 7),
    "more": ({"pasid": {"bits": 20, "exec": True, "priv": True},
              "ats": {**ATS, "queue_depth": 32}, "pri": {"max_requests": 1000}}, 5, 9 << 8 | 6, 77),
    "ATS alone": ({"ats": {**ATS, "queue_depth": 2}}, 2, 0, 0),
    "PASID alone": ({"pasid": {"bits": 3, "exec": False, "priv": False}}, 1, 3 << 8, 0),
}


@pytest.mark.parametrize("what", AGREED)
def test_CFG_7_registers_show_what_was_agreed(workshop, what):
    """And what the device has, to the next client, which does not know the extension."""
    offer, depth, pasid, requests = AGREED[what]
    dev = Guarded(workshop, pasid_bits=9, ats_queue_depth=5, pri_max_requests=77)
    dev.attach({**CAPABILITIES, "iommu": offer})

    def shown():
        return (dev.probe.register(soft.ATS, 4) & 0x1F, dev.probe.register(soft.PASID, 4),
                dev.probe.register(soft.PRI, 8, size=4))

    assert shown() == (depth, pasid, requests)
    dev.probe.enable_pasid(7)
    assert dev.probe.register(soft.PASID, 6) == 1 | pasid & 6, "nothing else can be enabled"
    dev.client.close()
    with fails(errno.ENOTCONN):
        dev.device.run()
    dev.attach(CAPABILITIES)
    assert shown() == (5, 9 << 8 | 6, 77)


# vfu_iommu_get_state and the state callback


def flags(state):
    return [name for name in ("pasid", "exec", "priv", "ats", "pri") if getattr(state, name)]


def test_state(workshop):
    seen = []
    dev = Guarded(workshop, state=lambda state: seen.append(flags(state[0])))
    assert flags(dev.state()) == []
    dev.attach()
    assert flags(dev.state()) == [] and seen == [[]], "told when a client attaches"
    dev.probe.enable_pasid(1)
    assert flags(dev.state()) == seen[-1] == ["pasid"]
    dev.probe.enable_pasid()
    dev.probe.enable_ats()
    dev.probe.enable_pri()
    assert flags(dev.state()) == seen[-1] == ["pasid", "exec", "priv", "ats", "pri"]
    assert dev.state().page_shift == 12
    dev.client.reset()
    assert flags(dev.state()) == seen[-1] == []
    dev.probe.enable_pasid(1)
    dev.client.close()
    with fails(errno.ENOTCONN):
        dev.device.run()
    assert flags(dev.state()) == seen[-1] == [], "and when it leaves"


def test_state_needs_the_client_too(workshop):
    dev = Guarded(workshop).attach(CAPABILITIES)
    dev.probe.enable_pasid()
    dev.probe.enable_ats()
    dev.probe.enable_pri()
    assert flags(dev.state()) == []


def test_state_without_iommu(plain):
    assert flags(plain.state()) == [] and plain.state().page_shift == 0


# What needs vfu_setup_device_iommu()


def test_functions_without_iommu(plain):
    sgl, buf = (abi.Sg * 1)(), ctypes.create_string_buffer(8)
    access = Access(plain)
    with fails(errno.EINVAL):
        plain.lib.vfu_addr_to_sgl_pasid(plain.ctx, IOVA, NO_PASID, 8, sgl, 1, PROT_READ)
    for call in (plain.lib.vfu_dma_resolve, plain.lib.vfu_dma_resolve_wait):
        with fails(errno.EINVAL):
            call(plain.ctx, access.ref)
    for call in (plain.lib.vfu_dma_read, plain.lib.vfu_dma_write):
        with fails(errno.EINVAL):
            call(plain.ctx, access.ref, buf)
    with fails(errno.EINVAL):
        access.move(0, buf)
    access.release()
    with fails(errno.ENOENT):
        plain.lib.vfu_dma_cancel(plain.ctx, access.ref)
    with fails(errno.EINVAL):
        plain.translate()
    with fails(errno.EINVAL):
        plain.request_pages()
    with fails(errno.EINVAL):
        plain.lib.vfu_pasid_stop(plain.ctx, 1)
    assert not any(getattr(plain.stats(), name) for name, _ in abi.IommuStats._fields_)
    assert plain.lib.vfu_next_timeout(plain.ctx) == -1


# vfu_addr_to_sgl_pasid


def sgl_pasid(dev, addr=IOVA, length=8, pasid=3, room=4, prot=PROT_READ):
    sgl = (abi.Sg * max(room, 1))()
    return dev.lib.vfu_addr_to_sgl_pasid(dev.ctx, addr, pasid, length, sgl, room, prot), sgl


def test_sgl_of_what_is_cached(dev):
    for number in range(3):
        dev.backed(3, number + 1, IOVA + number * PAGE)
    with fails(errno.ENOENT):
        sgl_pasid(dev)
    dev.read(length=2 * PAGE, pasid=3)
    count, sgl = sgl_pasid(dev, IOVA + 100, PAGE)
    assert count == 2
    assert [(sg.dma_addr, sg.offset, sg.length) for sg in sgl[:2]] == [
        (IOVA, 100, PAGE - 100), (IOVA + PAGE, 0, 100)]
    iov = dev.device.sgl_get((abi.Sg * 2)(*sgl[:2]))
    assert ctypes.string_at(iov[1].iov_base, 4) == bytes([2] * 4)
    dev.device.sgl_put((abi.Sg * 2)(*sgl[:2]))
    count, _ = sgl_pasid(dev, length=2 * PAGE, room=1)
    assert count == -3 and ctypes.get_errno() == 0
    with fails(errno.ENOENT):
        sgl_pasid(dev, IOVA + PAGE, 2 * PAGE)
    with fails(errno.ENOENT):
        sgl_pasid(dev, pasid=4)
    assert len(dev.iommu.translations) == 1, "it asks nobody"


def test_sgl_permission(dev):
    dev.backed(3, 1, perm=wire.PERM_READ)
    dev.read(pasid=3)
    assert sgl_pasid(dev)[0] == 1
    with fails(errno.EACCES):
        sgl_pasid(dev, prot=PROT_WRITE)


def test_sgl_without_pasid(dev):
    dev.client.add_memory(IOVA, PAGE)
    assert sgl_pasid(dev, pasid=NO_PASID)[0] == 1


@pytest.mark.parametrize("pasid", [1 << 20, NO_PASID - 1])
def test_sgl_pasid_out_of_range(dev, pasid):
    with fails(errno.EINVAL):
        sgl_pasid(dev, pasid=pasid)


def test_sgl_pasids_off(workshop):
    dev = Guarded(workshop).attach()
    with fails(errno.EPERM):
        sgl_pasid(dev)
    no_pasids = Guarded(workshop, pasid_bits=0).attach()
    with fails(errno.EINVAL):
        sgl_pasid(no_pasids)


# vfu_dma_resolve


@pytest.mark.parametrize("change", [
    {"length": 0}, {"addr": (1 << 64) - 4, "length": 8}, {"pasid": 1 << 20}, {"attrs": PASID_EXEC},
    {"pasid": 1, "attrs": 4}, {"prot": 0}, {"prot": 4}, {"room": 0}])
def test_resolve_values(dev, change):
    access = Access(dev, **change)
    for call in (dev.lib.vfu_dma_resolve, dev.lib.vfu_dma_resolve_wait):
        with fails(errno.EINVAL):
            call(dev.ctx, access.ref)
        assert access.calls == 0


@pytest.mark.parametrize("field, value", [("sgl", None), ("done", abi.NULL[abi.DONE])])
def test_resolve_null_fields(dev, field, value):
    access = Access(dev)
    setattr(access.req, field, value)
    with fails(errno.EINVAL):
        access.start()


def test_resolve_mapped_memory(dev):
    """At once: done runs before the call returns."""
    dev.client.add_memory(IOVA, PAGE).write(0, b"by DMA_MAP")
    access = Access(dev, length=10).start()
    assert (access.error, access.calls, access.req.nr_sgs) == (0, 1, 1)
    assert access.data() == b"by DMA_MAP"
    access.release()
    assert not dev.iommu.translations


@pytest.mark.parametrize("pasid", [NO_PASID, 0, 3, (1 << 20) - 1])
def test_resolve_by_translation(dev, pasid):
    key = None if pasid == NO_PASID else pasid
    for number in range(3):
        dev.backed(key, number + 1, IOVA + number * PAGE)
    access = Access(dev, IOVA + 4, 2 * PAGE, pasid)
    assert access.start().error is None
    assert dev.settle(access) == 0
    assert access.req.nr_sgs == 3
    assert access.data() == bytes([1] * (PAGE - 4) + [2] * PAGE + [3] * 4)
    access.release()
    again = Access(dev, IOVA + 4, 8, pasid).start()
    assert again.error == 0, "cached"
    again.release()


def test_resolve_without_iov(dev):
    dev.backed(None, 1)
    access = Access(dev)
    access.req.iov = None
    assert access.resolve() == 0
    assert access.sgl[0].length == 8
    access.release()


def test_resolve_memory_by_message(workshop):
    dev = Guarded(workshop).on(share=False)
    dev.backed(3, 5)
    access = Access(dev, pasid=3, prot=RW)
    assert access.resolve() == 0
    assert (access.iov[0].iov_base, access.iov[0].iov_len) == (None, 8)
    buf = ctypes.create_string_buffer(8)
    with dev.client.answering():
        access.move(0, buf)
        access.move(2, ctypes.create_string_buffer(b"text", 4), True)
    assert buf.raw == bytes([5] * 8)
    assert dev.iommu.memory.read(5 * PAGE, 8) == b"\5\5text\5\5"
    access.release()


def test_resolve_untranslated(workshop):
    """With ATS off the client translates each access itself."""
    dev = Guarded(workshop).attach()
    dev.iommu.register_memory()
    dev.probe.enable_pasid()
    dev.backed(3, 6)
    access = Access(dev, pasid=3)
    assert access.start().error == 0
    assert access.iov[0].iov_base is None
    access.release()
    assert dev.read(pasid=3) == bytes([6] * 8)
    assert not dev.iommu.translations


def test_EFAULT(dev):
    dev.backed(None, 1)
    assert Access(dev, IOVA + PAGE - 4).resolve() == errno.EFAULT
    access = Access(dev, IOVA - 4)
    assert access.resolve() == errno.EFAULT
    assert access.req.nr_sgs == 0 and access.req.fault_addr == IOVA - 4
    dev.backed(None, 2, IOVA + PAGE, perm=wire.PERM_READ)
    assert Access(dev, IOVA + PAGE, prot=PROT_WRITE, flags=NO_FAULT).resolve() == errno.EFAULT
    dev.client.add_memory(0x800000, PAGE, writable=False)
    assert Access(dev, 0x800000, prot=PROT_WRITE).start().error == errno.EFAULT
    assert dev.stats().faults == 4


def test_EFAULT_says_where(dev):
    dev.backed(None, 1)
    access = Access(dev, IOVA + 8, PAGE, flags=NO_FAULT)
    assert access.resolve() == errno.EFAULT
    assert access.req.fault_addr == IOVA + PAGE


def test_EFAULT_only_what_is_cached(dev):
    dev.backed(None, 1)
    assert Access(dev, flags=NO_TRANSLATE).start().error == errno.EFAULT
    dev.read()
    access = Access(dev, flags=NO_TRANSLATE).start()
    assert access.error == 0
    access.release()


def test_EFAULT_of_a_page_request(dev):
    assert Access(dev, pasid=3).resolve() == errno.EFAULT
    assert len(dev.iommu.groups) == 1
    assert Access(dev, pasid=3, flags=NO_FAULT).resolve() == errno.EFAULT
    assert len(dev.iommu.groups) == 1


def test_page_is_brought_in(dev):
    def fault(key, iova, perm):
        assert (key, iova, perm) == (3, IOVA, wire.PERM_RW)
        dev.backed(3, 7)
        return wire.PAGE_SUCCESS

    dev.iommu.on_fault = fault
    access = Access(dev, pasid=3, prot=RW)
    assert access.resolve() == 0
    assert access.data() == bytes([7] * 8)
    access.release()


def test_EPERM(workshop):
    dev = Guarded(workshop).attach()
    assert Access(dev, pasid=3).start().error == errno.EPERM
    dev.probe.enable_pasid(1)
    for attrs in (PASID_EXEC, PASID_PRIV, PASID_EXEC | PASID_PRIV):
        assert Access(dev, pasid=3, attrs=attrs).start().error == errno.EPERM


def test_attributes(dev):
    dev.backed(3, 1, perm=wire.PERM_READ | wire.PERM_EXEC)
    dev.backed((3, "priv"), 2)
    assert dev.read(pasid=3, attrs=PASID_EXEC) == bytes([1] * 8)
    assert dev.read(pasid=3, attrs=PASID_PRIV) == bytes([2] * 8)


def test_ENOSPC(dev):
    for number in range(3):
        dev.backed(None, number + 1, IOVA + number * PAGE)
    assert Access(dev, length=3 * PAGE, room=2).resolve() == errno.ENOSPC
    assert Access(dev, length=3 * PAGE, room=2).start().error == errno.ENOSPC


def answer_all(dev, cmd, **reply):
    dev.client.handlers[cmd] = lambda command: dev.client.reply(command, **reply)


@pytest.mark.parametrize("reply", [
    {"error": errno.EINVAL}, {"error": errno.ENOMEM}, {"payload": bytes(16)},
    {"payload": soft.SoftIommu.translate_reply([{"address": 0, "length": PAGE}])}])
def test_EIO_of_a_translation(dev, reply):
    answer_all(dev, Cmd.ATS_TRANSLATE, **reply)
    assert Access(dev).resolve() == errno.EIO
    assert dev.stats().protocol_errors == ("error" not in reply)
    assert "ats" in flags(dev.state())


def test_client_refuses_to_translate(dev):
    """EPERM is PCIe's unsupported request: ATS is off, until the guest switches it on anew."""
    answer_all(dev, Cmd.ATS_TRANSLATE, error=errno.EPERM)
    access = Access(dev)
    assert access.resolve() == 0 and access.iov[0].iov_base is None, "untranslated"
    access.release()
    assert "ats" not in flags(dev.state())


def test_EIO_of_a_page_request(dev):
    dev.iommu.on_fault = lambda *_: wire.PAGE_FAILURE
    assert Access(dev, pasid=3).resolve() == errno.EIO
    assert "pri" not in flags(dev.state())
    assert dev.stats().page_failures == 1


@pytest.mark.parametrize("cmd", [Cmd.ATS_TRANSLATE, Cmd.PAGE_REQUEST])
def test_ENOTCONN(dev, cmd):
    commands = dev.held(cmd)
    access = Access(dev, pasid=3).start()
    dev.until(lambda: commands)
    dev.client.close()
    with fails(errno.ENOTCONN):
        dev.device.run()
    assert (access.error, access.calls) == (errno.ENOTCONN, 1)
    assert Access(dev, pasid=3).start().error == errno.EPERM


@pytest.mark.parametrize("cmd, end", [
    *((Cmd.ATS_TRANSLATE, end) for end in ("reset", "pasid", "ats", "cancel", "stop")),
    *((Cmd.PAGE_REQUEST, end) for end in ("reset", "pasid", "pri", "cancel", "stop"))])
def test_ECANCELED(dev, cmd, end):
    commands = dev.held(cmd)
    access = Access(dev, pasid=3).start()
    dev.until(lambda: commands)
    if end == "cancel":
        assert dev.lib.vfu_dma_cancel(dev.ctx, access.ref) == 0
    elif end == "stop":
        assert dev.lib.vfu_pasid_stop(dev.ctx, 3) == 0
    elif end == "pasid":
        dev.probe.enable_ats(False)
        dev.probe.enable_pasid(0)
    elif end == "ats":
        dev.probe.enable_ats(False)
    elif end == "pri":
        dev.probe.register(soft.PRI, 4, 0)
    else:
        dev.client.reset()
    assert (access.error, access.calls) == (errno.ECANCELED, 1)


def test_EAGAIN(workshop):
    """The client says each time that the page is there now, and it never is."""
    dev = Guarded(workshop, retries=3).on()
    dev.iommu.on_fault = lambda *_: wire.PAGE_SUCCESS
    assert Access(dev).resolve() == errno.EAGAIN
    assert 1 <= len(dev.iommu.groups) <= 3


def expire(dev, results):
    """An event loop, until the deadline has passed."""
    while not results():
        timeout = dev.lib.vfu_next_timeout(dev.ctx)
        assert timeout >= 0, "there is a deadline"
        select.select([dev.device.poll_fd], [], [], timeout / 1000)
        dev.device.run()


def test_TXN_3_ETIMEDOUT(workshop):
    dev = Guarded(workshop, pri_timeout_ms=5).on()
    assert dev.lib.vfu_next_timeout(dev.ctx) == -1
    commands = dev.held(Cmd.PAGE_REQUEST)
    access = Access(dev, pasid=3).start()
    dev.until(lambda: commands)
    expire(dev, lambda: access.error is not None)
    assert access.error == errno.ETIMEDOUT
    results = dev.request_pages()
    expire(dev, lambda: results)
    assert results == [(errno.ETIMEDOUT, 0)]
    assert dev.lib.vfu_next_timeout(dev.ctx) == -1
    for command in commands:
        dev.iommu.page_request(command)
    dev.quiet()
    assert dev.stats().late_replies == 1


def test_next_timeout_of_a_translation(dev):
    commands = dev.held(Cmd.ATS_TRANSLATE)
    access = Access(dev).start()
    assert dev.lib.vfu_next_timeout(dev.ctx) > 0
    dev.until(lambda: commands)
    dev.iommu.translate(commands[0])
    assert dev.settle(access) == errno.EFAULT
    assert dev.lib.vfu_next_timeout(dev.ctx) == -1, "nothing is asked any more"


# vfu_dma_resolve_wait, vfu_dma_move, vfu_dma_release, vfu_dma_cancel


def test_resolve_wait(dev):
    dev.backed(3, 1)
    access = Access(dev, pasid=3)
    with dev.client.answering():
        assert dev.lib.vfu_dma_resolve_wait(dev.ctx, access.ref) == 0
    assert access.calls == 0, "done is not used"
    assert access.req.pvt == 0x77
    assert access.data() == bytes([1] * 8)
    access.release()
    with dev.client.answering(), fails(errno.EFAULT):
        dev.lib.vfu_dma_resolve_wait(dev.ctx, Access(dev, pasid=4).ref)


def test_move(dev):
    for number in range(2):
        dev.backed(None, number + 1, IOVA + number * PAGE)
    access = Access(dev, IOVA + PAGE - 4, 8, prot=RW)
    assert access.resolve() == 0
    buf = ctypes.create_string_buffer(8)
    access.move(0, buf)
    assert buf.raw == bytes([1] * 4 + [2] * 4)
    part = ctypes.create_string_buffer(2)
    access.move(5, part)
    assert part.raw == b"\2\2"
    access.move(3, ctypes.create_string_buffer(b"ab", 2), True)
    access.move(8, ctypes.create_string_buffer(0))
    assert dev.iommu.memory.read(2 * PAGE - 1, 1) == b"a"
    assert dev.iommu.memory.read(2 * PAGE, 2) == b"b\2"
    for offset, length in ((0, 9), (8, 1), (9, 0), ((1 << 64) - 1, 2)):
        with fails(errno.EINVAL):
            access.move(offset, ctypes.create_string_buffer(length))
    access.release()


def test_move_without_permission(dev):
    dev.backed(None, 1)
    access = Access(dev)
    assert access.resolve() == 0
    with fails(errno.EINVAL):
        access.move(0, ctypes.create_string_buffer(4), True)
    access.release()
    failed = Access(dev, IOVA + PAGE)
    assert failed.resolve() == errno.EFAULT
    with fails(errno.EINVAL):
        failed.move(0, ctypes.create_string_buffer(4))


def test_move_that_the_client_refuses(workshop):
    dev = Guarded(workshop).on(share=False)
    dev.backed(None, 1)
    access = Access(dev)
    assert access.resolve() == 0
    for error in (errno.EFAULT, errno.EIO):
        answer_all(dev, Cmd.DMA_READ, error=error)
        with dev.client.answering(), fails(error):
            access.move(0, ctypes.create_string_buffer(8))
    access.release()


def test_release_of_nothing(dev):
    dev.device.setup_log(dev.device.record("log"), 3)
    Access(dev).release()
    assert len(dev.device.events) == 1


def test_cancel_too_late(dev):
    access = Access(dev)
    with fails(errno.ENOENT):
        dev.lib.vfu_dma_cancel(dev.ctx, access.ref)
    dev.backed(None, 1)
    assert access.resolve() == 0
    with fails(errno.ENOENT):
        dev.lib.vfu_dma_cancel(dev.ctx, access.ref)
    access.release()
    with fails(errno.ENOENT):
        dev.lib.vfu_dma_cancel(dev.ctx, access.ref)


def test_request_can_be_used_again(dev):
    dev.backed(None, 1)
    access = Access(dev)
    for _ in range(5):
        assert access.resolve() == 0
        access.release()
    assert access.calls == 5


# vfu_dma_read, vfu_dma_write


@pytest.mark.parametrize("share", [True, False])
def test_read_and_write(workshop, share):
    dev = Guarded(workshop).on(share)
    pages = 100
    for number in range(pages):
        dev.backed(3, number + 1, IOVA + number * PAGE)
    data = dev.read(IOVA + 100, (pages - 1) * PAGE, pasid=3)
    assert data == b"".join(bytes([n + 1]) * PAGE for n in range(pages))[100:100 + len(data)]
    dev.write(b"across" * 1000, IOVA + PAGE - 3, pasid=3)
    assert dev.iommu.memory.read(2 * PAGE - 3, 6000) == b"across" * 1000


@pytest.mark.parametrize("addr, length", [(IOVA, 0), ((1 << 64) - 4, 8)])
def test_read_and_write_values(dev, addr, length):
    buf = ctypes.create_string_buffer(8)
    for call in (dev.lib.vfu_dma_read, dev.lib.vfu_dma_write):
        with fails(errno.EINVAL):
            call(dev.ctx, Access(dev, addr, length).ref, buf)


def test_read_that_fails(dev):
    dev.backed(None, 1)
    access = Access(dev, IOVA + PAGE - 4, 8, flags=NO_FAULT)
    with dev.client.answering(), fails(errno.EFAULT):
        dev.lib.vfu_dma_read(dev.ctx, access.ref, ctypes.create_string_buffer(8))
    assert access.req.fault_addr == IOVA + PAGE
    with fails(errno.EINVAL):
        dev.read(pasid=1 << 20)
    dev.probe.enable_ats(False)
    dev.probe.enable_pasid(1)
    with fails(errno.EPERM):
        dev.read(pasid=3, attrs=PASID_PRIV)


def test_dma_marks_pages_dirty(dev):
    """In the translated space, which is what is migrated."""
    dev.device.setup_migration(*[lambda *_: 0] * 3)
    dev.client.feature(wire.FEATURE_SET | wire.FEAT_LOGGING_START,
                       wire.LOGGING_CONTROL.pack(page_size=PAGE))
    dev.backed(3, 5)
    dev.backed(3, 9, IOVA + PAGE)
    dev.write(b"dirty", pasid=3)
    dev.read(IOVA + PAGE, pasid=3)
    data = wire.LOGGING_REPORT.pack(iova=dev.iommu.base, length=64 * PAGE, page_size=PAGE)
    reply = dev.client.feature(wire.FEATURE_GET | wire.FEAT_LOGGING_REPORT, data, 4096)
    assert struct.unpack("<Q", reply.payload[32:]) == (1 << 5,)


# vfu_ats_translate


def test_translate(dev):
    dev.backed(3, 7, perm=wire.PERM_READ)
    results = dev.translate(IOVA + 5, 3)
    dev.until(lambda: results)
    (error, translation), = results
    assert error == 0
    assert (translation.first, translation.last) == (IOVA, IOVA + PAGE - 1)
    assert translation.translated == dev.iommu.frame(7) and translation.perm == wire.PERM_READ
    request = dev.iommu.translations[0][1]
    assert (request.address, request.length, request.flags) == (IOVA, PAGE, wire.ATS_NO_WRITE)
    assert sgl_pasid(dev)[0] == 1, "and it is cached"


def test_translate_what_is_not_present(dev):
    results = dev.translate(write=True)
    dev.until(lambda: results)
    (error, translation), = results
    assert (error, translation.translated, translation.perm) == (0, 0, 0)
    assert dev.iommu.translations[0][1].flags == 0
    assert not dev.iommu.groups, "no page is requested"


def test_translate_EINVAL(dev):
    for arguments in ({"callback": False}, {"pasid": 1 << 20}, {"attrs": PASID_EXEC},
                      {"pasid": 1, "attrs": 4}):
        with fails(errno.EINVAL):
            dev.translate(**arguments)


def test_translate_EPERM(workshop):
    dev = Guarded(workshop).attach()
    with fails(errno.EPERM):
        dev.translate()
    dev.probe.enable_ats()
    with fails(errno.EPERM):
        dev.translate(pasid=3)


@pytest.mark.parametrize("reply, expected", [
    ({"error": errno.EINVAL}, errno.EIO), ({"payload": bytes(16)}, errno.EIO)])
def test_translate_fails(dev, reply, expected):
    answer_all(dev, Cmd.ATS_TRANSLATE, **reply)
    results = dev.translate()
    dev.until(lambda: results)
    assert results == [(expected, None)]


@pytest.mark.parametrize("end, expected", [("leave", errno.ENOTCONN), ("reset", errno.ECANCELED)])
def test_translate_ends(dev, end, expected):
    commands = dev.held(Cmd.ATS_TRANSLATE)
    results = dev.translate()
    dev.until(lambda: commands)
    if end == "leave":
        dev.client.close()
        with fails(errno.ENOTCONN):
            dev.device.run()
    else:
        dev.client.reset()
        dev.iommu.translate(commands[0])
        dev.until(lambda: results)
    assert [error for error, _ in results] in ([expected], [errno.ECANCELED])


# vfu_page_request


def test_page_request(dev):
    dev.iommu.on_fault = lambda *_: wire.PAGE_SUCCESS
    results = dev.request_pages([(IOVA + 5, 2, wire.PERM_READ), (0x900000, 1, wire.PERM_RW)], 3)
    assert not results
    dev.until(lambda: results)
    assert results == [(0, wire.PAGE_SUCCESS)]
    (key, _, entries), = dev.iommu.groups
    assert key == 3
    assert [(e.address, e.nr_pages, e.perm) for e in entries] == [
        (IOVA, 2, wire.PERM_READ), (0x900000, 1, wire.PERM_RW)]
    stats = dev.stats()
    assert (stats.page_groups, stats.page_requests, stats.page_groups_pending) == (1, 3, 0)


def test_page_request_invalid(dev):
    results = dev.request_pages()
    dev.until(lambda: results)
    assert results == [(0, wire.PAGE_INVALID)]
    assert "pri" in flags(dev.state())


def test_page_request_failure(dev):
    dev.iommu.on_fault = lambda *_: wire.PAGE_FAILURE
    results = dev.request_pages()
    dev.until(lambda: results)
    assert [error for error, _ in results] == [errno.EIO]
    with fails(errno.EPERM):
        dev.request_pages()
    assert dev.probe.pri_status() & 1, "the guest sees a response failure"


@pytest.mark.parametrize("arguments, error", [
    ({"ranges": ()}, errno.EINVAL), ({"ranges": ((IOVA, 0, 1),)}, errno.EINVAL),
    ({"ranges": ((IOVA, 1, 1),) * 513}, errno.EINVAL), ({"callback": False}, errno.EINVAL),
    ({"pasid": 1 << 20}, errno.EINVAL), ({"attrs": PASID_PRIV}, errno.EINVAL),
    ({"ranges": ((IOVA, 513, 1),)}, errno.E2BIG),
    ({"ranges": ((IOVA, 512, 1), (0, 1, 1))}, errno.E2BIG),
    ({"ranges": ((IOVA, 0xFFFFFFFF, 1),) * 2}, errno.E2BIG)])
def test_page_request_errors(dev, arguments, error):
    with fails(error):
        dev.request_pages(**arguments)


def test_page_request_EPERM(workshop):
    dev = Guarded(workshop).attach()
    with fails(errno.EPERM):
        dev.request_pages()
    dev.probe.enable()
    dev.probe.register(soft.PRI, 4, 0)
    with fails(errno.EPERM):
        dev.request_pages()


def test_page_requests_wait_for_credits(dev):
    """What exceeds the allocation is queued, in order."""
    commands = dev.held(Cmd.PAGE_REQUEST)
    results = [dev.request_pages(((IOVA + i * PAGE, 300, 1),)) for i in range(3)]
    dev.quiet()
    assert len(commands) == 1
    for done in range(3):
        dev.until(lambda: len(commands) > done)
        assert [len(r) for r in results] == [1] * done + [0] * (3 - done)
        dev.iommu.page_request(commands[done])
    dev.until(lambda: results[2])
    assert all(r == [(0, wire.PAGE_INVALID)] for r in results)


@pytest.mark.parametrize("end, expected", [
    ("leave", errno.ENOTCONN), ("reset", errno.ECANCELED)])
def test_page_request_ends(dev, end, expected):
    commands = dev.held(Cmd.PAGE_REQUEST)
    results = dev.request_pages()
    dev.until(lambda: commands)
    if end == "leave":
        dev.client.close()
        with fails(errno.ENOTCONN):
            dev.device.run()
    else:
        dev.client.reset()
    assert [error for error, _ in results] == [expected]


def test_page_request_queued_when_pri_goes_off(dev):
    commands = dev.held(Cmd.PAGE_REQUEST)
    first, queued = [dev.request_pages(((IOVA, 512, 1),)) for _ in range(2)]
    dev.until(lambda: commands)
    dev.probe.register(soft.PRI, 4, 0)
    assert queued == [(errno.ECANCELED, 0)] and not first
    dev.iommu.page_request(commands[0])
    dev.until(lambda: first)
    assert first == [(0, wire.PAGE_INVALID)]


# vfu_pasid_stop


def test_pasid_stop(dev):
    for pasid in (3, 4):
        dev.backed(pasid, pasid)
        dev.read(pasid=pasid)
    assert dev.lib.vfu_pasid_stop(dev.ctx, 3) == 0
    dev.quiet()
    assert [key for key, _ in dev.iommu.markers] == [3]
    with fails(errno.ENOENT):
        sgl_pasid(dev, pasid=3)
    assert sgl_pasid(dev, pasid=4)[0] == 1


@pytest.mark.parametrize("pasid", [NO_PASID, 1 << 20])
def test_pasid_stop_errors(dev, pasid):
    with fails(errno.EINVAL):
        dev.lib.vfu_pasid_stop(dev.ctx, pasid)


def test_pasid_stop_while_pasids_are_off(workshop):
    dev = Guarded(workshop).attach()
    assert dev.lib.vfu_pasid_stop(dev.ctx, 3) == 0
    assert dev.client.silent()


# Invalidations, vfu_invalidate_done, revoked


def test_invalidate_callback(workshop):
    calls = []
    dev = Guarded(workshop, invalidate=lambda *args: calls.append(args[:4])).on()
    assert dev.iommu.invalidate(3, IOVA, PAGE) == 0
    assert dev.iommu.invalidate(None, IOVA + 5, 1) == 0
    assert dev.iommu.invalidate(3, flags=wire.INV_ALL) == 0
    assert dev.iommu.invalidate(3, IOVA, PAGE, wire.INV_GLOBAL) == 0
    assert calls[:3] == [(3, False, IOVA, IOVA + PAGE - 1),
                         (NO_PASID, False, IOVA, IOVA + PAGE - 1),
                         (3, False, 0, (1 << 64) - 1)]
    assert calls[3][1:] == (True, IOVA, IOVA + PAGE - 1)
    assert dev.stats().invalidations == 4


def test_invalidate_later(workshop):
    tokens = []

    def busy(_pasid, _global, _first, _last, token):
        tokens.append(token)
        raise OSError(errno.EBUSY, "")

    dev = Guarded(workshop, invalidate=busy).on()
    ids = [dev.iommu.send_invalidate(3, IOVA + i * PAGE, PAGE) for i in range(2)]
    dev.quiet()
    assert len(tokens) == 2 and not any(dev.client.replies[i] for i in ids)
    assert dev.stats().invalidations_pending == 2
    dev.lib.vfu_invalidate_done(dev.ctx, tokens[1])
    assert not dev.client.wait(ids[1]).error
    assert not dev.client.replies[ids[0]]
    dev.lib.vfu_invalidate_done(dev.ctx, tokens[0])
    assert not dev.client.wait(ids[0]).error
    assert dev.stats().invalidations_pending == 0


def test_invalidation_waits_for_references(dev):
    dev.backed(3, 1)
    access = Access(dev, pasid=3, prot=RW)
    assert access.resolve() == 0
    msg_id = dev.iommu.send_invalidate(3, IOVA, PAGE)
    dev.quiet()
    assert not dev.client.replies[msg_id]
    ctypes.memmove(access.iov[0].iov_base, b"in time", 7)
    access.release()
    assert not dev.client.wait(msg_id).error
    with fails(errno.ENOENT):
        sgl_pasid(dev)


@pytest.mark.parametrize("inside", [True, False])
def test_invalidation_behind_a_callback_that_waits(workshop, inside):
    """The control thread waits for a client that waits for the completion."""
    dev = Guarded(workshop)
    results = []

    def doorbell(_buf, count, _offset, _is_write):
        access = Access(dev, pasid=1)
        try:
            dev.lib.vfu_dma_read(dev.ctx, access.ref, ctypes.create_string_buffer(8))
            results.append(0)
        except OSError as error:
            results.append(error.errno)
        return count

    dev.device.setup_region(BAR0, 16, doorbell)
    dev.on(share=False)
    dev.backed(1, 4)
    with dev.client.answering():
        assert doorbell(None, 4, 0, True) == 4 and results.pop() == 0
    dev.client.hold()
    dev.client.send_region_write(BAR0, 0, b"ring", wire.NO_REPLY)
    waiting = dev.iommu.send_invalidate(1, IOVA if inside else IOVA + PAGE, PAGE)
    if not inside:
        dev.client.on_command = dev.client.serve
        with dev.client.answering():
            while not dev.client.replies[waiting]:
                dev.device.run()
    assert dev.client.wait(waiting).error == 0
    assert results == [errno.ECANCELED if inside else 0]


def test_invalidations_outstanding(workshop):
    """More than the queue depth are refused."""
    dev = Guarded(workshop, ats_queue_depth=2, invalidate=lambda *_: (_ for _ in ()).throw(
        OSError(errno.EBUSY, ""))).on()
    for _ in range(2):
        dev.iommu.send_invalidate(3, IOVA, PAGE)
    assert dev.iommu.invalidate(3, IOVA, PAGE) == errno.EBUSY


@pytest.mark.parametrize("fields", [{"flags": 4}, {"length": 0}, {"address": 1 << 63 | 0x7FFF << 48,
                                                                  "length": 1 << 60},
                                    {"flags": 2, "address": PAGE}, {"flags": 2, "length": PAGE}])
def test_malformed_invalidation(dev, fields):
    assert dev.iommu.invalidate(3, **fields) == errno.EINVAL


@pytest.mark.parametrize("at_once", [True, False])
def test_revoked(dev, at_once):
    """A mapping that is kept is taken back; the client waits for its release."""
    dev.backed(3, 1)
    revoked = []

    def revoke(access):
        revoked.append(access)
        if at_once:
            access.release()

    access = Access(dev, pasid=3, revoked=revoke)
    assert access.resolve() == 0
    dev.iommu.invalidate(4, IOVA, PAGE)
    dev.iommu.invalidate(3, IOVA + PAGE, PAGE)
    assert not revoked, "others"
    msg_id = dev.iommu.send_invalidate(3, IOVA, PAGE)
    dev.until(lambda: revoked)
    if not at_once:
        dev.quiet()
        assert not dev.client.replies[msg_id]
        access.release()
    assert not dev.client.wait(msg_id).error
    assert revoked == [access]
    assert access.resolve() == 0, "it may be resolved again"
    access.release()


def test_revoked_by_unmap(dev):
    """DMA_UNMAP waits, too, for what was resolved."""
    dev.client.add_memory(IOVA, PAGE)
    access = Access(dev).start()
    assert access.error == 0
    payload = wire.DMA_UNMAP.pack(argsz=24, addr=IOVA, size=PAGE)
    msg_id = dev.client.send(Cmd.DMA_UNMAP, payload)
    dev.quiet()
    assert not dev.client.replies[msg_id]
    access.release()
    assert not dev.client.wait(msg_id).error


def test_unmap_of_a_pasid_without_memory(dev):
    for flags_, size, error in ((0, PAGE, errno.ENOENT), (wire.UNMAP_ALL, 0, 0)):
        bits, payload = soft.SoftIommu.prefixed(
            77, wire.DMA_UNMAP.pack(argsz=24, flags=flags_, size=size))
        assert dev.client.error_of(Cmd.DMA_UNMAP, payload, flags=bits) == error


def test_memory_of_a_pasid(dev):
    """A client that translates beforehand maps into the address space of a PASID."""
    mem = dev.client.memory.add_file(PAGE)
    mem.write(0, b"mapped")
    bits, payload = soft.SoftIommu.prefixed(
        7, wire.DMA_MAP.pack(argsz=32, flags=wire.MAP_RW, addr=IOVA, size=PAGE))
    dev.client.request(Cmd.DMA_MAP, payload, [mem.fd], flags=bits)
    access = Access(dev, length=6, pasid=7).start()
    assert access.error == 0 and access.data() == b"mapped"
    access.release()
    assert not dev.iommu.translations


# vfu_iommu_get_stats


def test_stats(dev):
    dev.backed(3, 1)
    dev.read(pasid=3)
    for _ in range(4):
        dev.read(pasid=3)
    stats = dev.stats()
    assert (stats.atc_misses, stats.atc_hits, stats.translations, stats.atc_entries) == (1, 4, 1, 1)
    dev.iommu.invalidate(3, flags=wire.INV_ALL)
    assert dev.stats().atc_entries == 0


def test_stats_of_evictions(workshop):
    dev = Guarded(workshop, atc_entries=4, ats_max_entries=1).on()
    for number in range(8):
        dev.backed(None, number, IOVA + number * PAGE)
        dev.read(IOVA + number * PAGE)
    stats = dev.stats()
    assert stats.atc_entries <= 4 and stats.atc_evictions >= 4


def test_joined(dev):
    """Several that miss the same ask once."""
    commands = dev.held(Cmd.ATS_TRANSLATE)
    dev.backed(3, 1)
    accesses = [Access(dev, IOVA + 8 * i, pasid=3).start() for i in range(4)]
    dev.until(lambda: commands)
    dev.quiet()
    assert len(commands) == 1 and dev.stats().translations_joined == 3
    dev.iommu.translate(commands[0])
    for access in accesses:
        assert dev.settle(access) == 0
        access.release()


def test_overtaken(dev):
    """A translation that an invalidation overtook is asked for again."""
    commands = dev.held(Cmd.ATS_TRANSLATE)
    dev.backed(3, 1)
    access = Access(dev, pasid=3).start()
    dev.until(lambda: commands)
    dev.iommu.invalidate(3, IOVA, PAGE)
    dev.client.handlers[Cmd.ATS_TRANSLATE] = dev.iommu.translate
    dev.iommu.translate(commands[0])
    dev.backed(3, 2)
    assert dev.settle(access) == 0
    assert access.data() == bytes([2] * 8)
    access.release()
    assert dev.stats().translations_discarded == 1


def test_config_space_shows_what_the_guest_set(dev):
    at = dev.probe.find(soft.ATS)
    assert dev.client.read_int(CONFIG, at + 6, 2) == 0x8000
    dev.client.reset()
    assert dev.client.read_int(CONFIG, at + 6, 2) == 0
