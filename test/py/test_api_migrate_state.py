# SPDX-License-Identifier: BSD-3-Clause
"""vfu_setup_device_migrate_state(): what the library keeps for the device goes with its data."""

import ctypes
import errno
import os
import struct

import pytest

from test_api_iommu import CAPS, EVERYTHING, setup_iommu
from test_api_irq import count, events
from test_api_migration import Migratable
from vfiouser import migration, wire
from vfiouser.api import abi
from vfiouser.api.fixtures import fails
from vfiouser.config_space import EXTENDED, walk_extended, walk_standard
from vfiouser.migration import (DEVICE, END, LIBRARY, PRE_COPY, RESUMING, RUNNING, STOP, STOP_COPY,
                                block, blocks, load, load_error, of_device, save, set_state)
from vfiouser.wire import (ACTION_MASK, ACTION_TRIGGER, BAR0, CONFIG, DATA_EVENTFD, DATA_NONE, INTX,
                           MSI, MSIX)

PM, MSI_CAP, EXP, MSIX_CAP = 0x01, 0x05, 0x10, 0x11
BAR4, PBA, VECTORS = 4, 0x800, 4
LOG_ERR, LOG_WARNING = 3, 4
SECRET = bytes(range(1, 200))


class Movable(Migratable):
    """A device with all that the library keeps, and data of its own."""

    def __init__(self, workshop, caps=None, opt_in=True, kind=abi.EXPRESS, vectors=VECTORS,
                 bar_size=0x1000, vendor=0x1234, iommu=EVERYTHING, config_access=None):
        self.device = device = workshop.device()
        self.workshop, self.caps = workshop, caps or CAPS
        super().__init__(device)
        self.outgoing = SECRET
        self.lines, self.iommu_states = [], []
        self.commands_seen = set()  # the command register whenever the device takes data
        device.setup_log(lambda level, text: self.lines.append((level, text.decode())), LOG_WARNING)
        device.pci_init(kind)
        device.lib.vfu_pci_set_id(device.ctx, vendor, 0x5678, 0, 0)
        device.add_capability(bytes([PM, 0, 3, 0, 0, 0, 0, 0]))
        device.add_capability(struct.pack("<BBHIIHHII", MSI_CAP, 0, 0x0084, 0, 0, 0, 0, 0, 0))
        device.add_capability(struct.pack("<BBHII", MSIX_CAP, 0, vectors - 1, BAR4, PBA | BAR4))
        device.memory_region(BAR0, bar_size, abi.RW | abi.MEM)
        device.setup_region(BAR4, 0x1000, None, abi.RW | abi.MEM)
        for irq_type, number in ((INTX, 1), (MSI, 4), (MSIX, vectors)):
            device.setup_irqs(irq_type, number)
        device.setup_dma(64)
        if config_access:
            device.setup_region(CONFIG, 256, config_access, abi.RW | abi.ALWAYS_CB)
        if kind == abi.EXPRESS:
            device.add_capability(bytes([EXP, 0, 2, 0]) + bytes(56))
            setup_iommu(device, state=self._iommu_state, **iommu)
        device.lib.vfu_setup_device_migrate_state(device.ctx, opt_in)
        self.client = workshop.attach(device, self.caps)
        self.caps_at = walk_standard(self.config()) if not config_access else {}

    def _iommu_state(self, state):
        self.iommu_states.append((state[0].ats, state[0].pasid, state[0].pri, state[0].page_shift))

    def write(self, buf, count):
        self.commands_seen.add(self.device.config_int(4, 2))
        return super().write(buf, count)

    def refuse(self, error):
        """What the device says to every transition; 0 for yes."""
        def transition(_state):
            if error:
                raise OSError(error, "")
        self.device.setup_migration(transition, self.read, self.write)

    def config(self):
        return self.client.region_read(CONFIG, 0, self.client.region_info(CONFIG)[0].size)

    def kept(self):
        """All that can be seen of what the library keeps."""
        return (self.config(), self.client.region_read(BAR4, 0, 16 * VECTORS),
                self.client.region_read(BAR4, PBA, 8))

    def iommu(self):
        state = abi.IommuState()
        self.device.lib.vfu_iommu_get_state(self.device.ctx, ctypes.byref(state))
        return {name: getattr(state, name) for name, _ in state._fields_}

    def put(self, offset, value, size=2):
        self.client.write_int(CONFIG, offset, value, size)

    def set_entry(self, vector, masked):
        self.client.region_write(BAR4, 16 * vector,
                                 struct.pack("<QII", 0xFEE00000, 0x4041 + vector, masked))

    def trigger(self, vector):
        return self.device.lib.vfu_irq_trigger(self.device.ctx, vector)

    def used(self):
        """As a guest has set it up, with an interrupt of vector 3 pending."""
        self.put(4, 0x406)
        self.put(0x10, 0xFE000000, 4)
        self.put(0x3C, 11, 1)
        self.put(self.caps_at[MSI_CAP] + 2, 0x20)
        self.put(self.caps_at[MSI_CAP] + 4, 0xFEE0100C, 4)
        self.put(self.caps_at[MSIX_CAP] + 2, 0x8000)
        self.set_entry(1, masked=0)
        self.set_entry(3, masked=1)
        self.trigger(3)
        return self

    def with_iommu(self):
        at = walk_extended(self.config())
        self.put(at[EXTENDED["PASID"]] + 6, 0x7)
        self.put(at[EXTENDED["ATS"]] + 6, 0x8002)
        self.put(at[EXTENDED["PRI"]] + 0xC, 77, 4)
        self.put(at[EXTENDED["PRI"]] + 4, 1)
        return self

    def saved(self, size=4096):
        set_state(self.client, STOP_COPY)
        return save(self.client, size)

    def errors(self):
        lines = [text for level, text in self.lines if level == LOG_ERR]
        self.lines.clear()
        return lines

    def reconnect(self):
        self.client.close()
        with fails(errno.ENOTCONN):
            self.device.run()
        self.client = self.workshop.attach(self.device, self.caps)


@pytest.fixture
def make(workshop):
    return lambda **kwargs: Movable(workshop, **kwargs)


def give(client, vector, fd):
    client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, vector, fds=[fd])


# What goes with it


def test_by_default_the_stream_is_the_device_s(make):
    source, target = make(opt_in=False), make(opt_in=False)
    stream = source.used().saved()
    assert stream == SECRET
    before = target.kept()
    set_state(target.client, RESUMING)
    load(target.client, stream)
    set_state(target.client, RUNNING)
    assert target.incoming == SECRET and target.kept() == before


def test_all_of_it_arrives(make):
    source, target = make().used().with_iommu(), make()
    expected, iommu = source.kept(), source.iommu()
    stream = source.saved()
    target.iommu_states.clear()
    set_state(target.client, RESUMING)
    load(target.client, stream)
    assert target.incoming == SECRET
    assert target.kept() == expected
    assert target.iommu() == iommu == {"pasid": True, "exec": True, "priv": True, "ats": True,
                                       "pri": True, "page_shift": 14}
    assert target.iommu_states[-1] == (True, True, True, 14)
    set_state(target.client, RUNNING)
    assert target.kept() == expected and not target.errors()


def test_what_was_there_before_is_gone(make, events):
    """The state of a device that nobody has used, for one that somebody has."""
    source, target = make(), make().used().with_iommu()
    target.client.set_irqs(INTX, DATA_NONE | ACTION_MASK)
    target.put(target.caps_at[MSIX_CAP] + 2, 0xC000)
    give(target.client, 0, events[0])
    target.trigger(0)
    expected = source.kept()
    stream = source.saved()
    set_state(target.client, RESUMING)
    load(target.client, stream)
    set_state(target.client, RUNNING)
    assert target.kept() == expected and count(events[0]) == 0
    assert not any(on for name, on in target.iommu().items() if name != "page_shift")


def test_the_device_finds_its_registers(make):
    """Before its own first byte of STOP_COPY."""
    source, target = make().used(), make()
    stream = source.saved()
    set_state(target.client, RESUMING)
    load(target.client, stream, 100)
    assert target.commands_seen == {0x406}


@pytest.mark.parametrize("early", [True, False], ids=["eventfd first", "state first"])
@pytest.mark.parametrize("function", [True, False], ids=["function mask", "vector mask"])
def test_a_pending_interrupt_is_delivered_once_unmasked(make, events, early, function):
    source, target = make().used(), make()
    control = source.caps_at[MSIX_CAP] + 2
    if function:
        source.put(control, 0xC000)
        source.set_entry(3, masked=0)
    stream = source.saved()
    if early:
        give(target.client, 3, events[0])
    set_state(target.client, RESUMING)
    load(target.client, stream)
    if not early:
        give(target.client, 3, events[0])
    set_state(target.client, RUNNING)
    assert target.client.read_int(BAR4, PBA, 8) == 8 and count(events[0]) == 0
    if function:
        target.put(control, 0x8000)
    else:
        target.set_entry(3, masked=0)
    assert target.client.read_int(BAR4, PBA, 8) == 0 and count(events[0]) == 1


def test_a_pending_interrupt_without_a_mask_waits_for_the_device_to_run(make, events):
    """Unmasked while it had no eventfd."""
    source, target = make().used(), make()
    source.set_entry(3, masked=0)
    stream = source.saved()
    give(target.client, 3, events[0])
    set_state(target.client, RESUMING)
    load(target.client, stream)
    set_state(target.client, STOP)
    assert count(events[0]) == 0
    set_state(target.client, RUNNING)
    assert count(events[0]) == 1


def test_function_mask_holds_back_what_comes_later(make, events):
    source, target = make().used(), make()
    source.put(source.caps_at[MSIX_CAP] + 2, 0xC000)
    stream = source.saved()
    set_state(target.client, RESUMING)
    load(target.client, stream)
    set_state(target.client, RUNNING)
    give(target.client, 1, events[0])
    target.trigger(1)
    assert count(events[0]) == 0 and target.client.read_int(BAR4, PBA, 8) == 0b1010


def test_what_the_device_changes_in_read_only_bits_is_its_own(make):
    """An interrupt level or a status of one side does not make it another device."""
    source, target = make(), make()
    source.device.config[6] |= 0x08
    target.device.config[0x7] |= 0x06
    stream = source.saved()
    set_state(target.client, RESUMING)
    load(target.client, stream)
    assert target.client.read_int(CONFIG, 6, 2) & 0x0608 == 0x0600


@pytest.mark.parametrize("status", [0, 1], ids=["no failure", "response failure"])
def test_page_requests_stay_stopped_after_a_response_failure(make, status):
    source, target = make().with_iommu(), make()
    pri = walk_extended(source.config())[EXTENDED["PRI"]]
    extended = (ctypes.c_uint8 * 4096).from_address(ctypes.addressof(source.device.config))
    extended[pri + 6] |= status
    stream = source.saved()
    set_state(target.client, RESUMING)
    load(target.client, stream)
    assert target.iommu()["pri"] == (not status)
    target.put(pri + 4, 0)
    assert target.client.read_int(CONFIG, pri + 6, 2) & 0x101 == 0x100 | status
    target.put(pri + 4, 1)
    assert target.iommu()["pri"] and target.client.read_int(CONFIG, pri + 6, 2) & 0x101 == 0


def test_a_device_that_serves_its_configuration_space(make):
    def access(_buf, count, _offset, _is_write):
        return count

    source, target = make(config_access=access), make(config_access=access)
    source.set_entry(1, masked=0)
    stream = source.saved()
    set_state(target.client, RESUMING)
    load(target.client, stream)
    set_state(target.client, RUNNING)
    assert target.client.region_read(BAR4, 16, 16) == struct.pack("<QII", 0xFEE00000, 0x4042, 0)
    other = make()
    set_state(other.client, RESUMING)
    assert load_error(other.client, stream) == errno.EINVAL


# The stream


LARGE = 70000
SIZES = [1, 15, 16, 17, 60000]


@pytest.mark.parametrize("read_size", SIZES)
@pytest.mark.parametrize("write_size", SIZES)
def test_pieces_of_any_size(make, read_size, write_size):
    source, target = make(kind=abi.CONVENTIONAL).used(), make(kind=abi.CONVENTIONAL)
    source.outgoing = b"before"
    set_state(source.client, PRE_COPY)
    stream = save(source.client, read_size)
    source.outgoing = b"after"
    set_state(source.client, STOP_COPY)
    stream += save(source.client, read_size)
    assert [kind for kind, _ in blocks(stream)] == [DEVICE, LIBRARY, DEVICE, END]
    set_state(target.client, RESUMING)
    load(target.client, stream, write_size)
    set_state(target.client, RUNNING)
    assert target.incoming == b"beforeafter"
    assert target.client.read_int(CONFIG, 4, 2) == 0x406


def test_much_data_of_the_device(make):
    """More than fits one block, and messages that are filled."""
    source, target = make(), make()
    source.outgoing = data = os.urandom(300000)
    set_state(source.client, STOP_COPY)
    reply = source.client.request(wire.Cmd.MIG_DATA_READ,
                                  wire.MIG_DATA.pack(argsz=8 + LARGE, size=LARGE))
    assert wire.MIG_DATA.unpack(reply.payload).size == LARGE
    stream = reply.payload[8:] + save(source.client, LARGE)
    assert of_device(stream) == data
    set_state(target.client, RESUMING)
    load(target.client, stream, LARGE)
    set_state(target.client, RUNNING)
    assert target.incoming == data


@pytest.mark.parametrize("read", [0, 3, 16, 20])
def test_the_state_is_that_of_stop_copy(make, read):
    """However much was read before, also of a block that is not whole yet."""
    source, target = make(), make()
    set_state(source.client, PRE_COPY)
    stream = b""
    if read:
        reply = source.client.request(wire.Cmd.MIG_DATA_READ,
                                      wire.MIG_DATA.pack(argsz=8 + read, size=read))
        stream = reply.payload[8:]
    source.used()
    expected = source.kept()
    stream += source.saved()
    set_state(target.client, RESUMING)
    load(target.client, stream)
    assert target.incoming == SECRET and target.kept() == expected


def test_masks_that_are_dropped_after_the_stop_are_saved(make, events):
    """A client takes its eventfds away before it reads the data."""
    source, target = make(), make()
    give(source.client, 3, events[0])
    source.client.set_irqs(MSIX, DATA_NONE | ACTION_MASK, 3)
    source.trigger(3)
    set_state(source.client, STOP_COPY)
    source.client.set_irqs(MSIX, DATA_NONE | ACTION_TRIGGER, count=0)
    stream = save(source.client)
    set_state(target.client, RESUMING)
    load(target.client, stream)
    assert target.client.read_int(BAR4, PBA, 8) == 8


def test_saved_again_it_is_whole_again(make):
    source = make().used()
    set_state(source.client, STOP_COPY)
    save(source.client)
    set_state(source.client, STOP)
    source.outgoing = SECRET
    set_state(source.client, STOP_COPY)
    stream = save(source.client, 7)
    assert [kind for kind, _ in blocks(stream)] == [LIBRARY, DEVICE, END]


@pytest.mark.parametrize("data", [b"", SECRET, migration.MAGIC[:7] + b"!", b"v", b"vfu-mig"[:3] + b"x"])
@pytest.mark.parametrize("size", [1, 1000])
def test_a_stream_without_the_state(make, data, size):
    """From a server without the call: all of it is the device's, the rest the client's."""
    target = make().used()
    before = target.kept()
    set_state(target.client, RESUMING)
    load(target.client, data, size)
    if data == b"v":
        assert set_state(target.client, STOP, check=False).error == errno.EINVAL
        load(target.client, b"-")
        data += b"-"
    set_state(target.client, RUNNING)
    assert target.incoming == data and target.kept() == before
    assert len(target.lines) == bool(data) + (data == b"v-")


def test_a_device_that_refuses_the_data_gets_another_stream(make):
    source, target = make().used(), make()
    stream = source.saved()
    set_state(target.client, RESUMING)
    for data in (stream, SECRET):
        load(target.client, data)
        target.refuse(errno.EXDEV)
        assert set_state(target.client, STOP, check=False).error == errno.EXDEV
        target.refuse(0)
    target.incoming = b""
    load(target.client, stream)
    set_state(target.client, RUNNING)
    assert target.incoming == SECRET


@pytest.mark.parametrize("end", ["reset", "lost"])
@pytest.mark.parametrize("state", [PRE_COPY, STOP_COPY, RESUMING])
def test_the_end_in_the_middle(make, state, end):
    """Nothing of it is left behind; the device migrates as if it had not been."""
    source, target = make().used(), make()
    stream = source.saved()
    client = target.client
    set_state(client, state)
    if state == RESUMING:
        load(client, stream[:1000])
    else:
        client.request(wire.Cmd.MIG_DATA_READ, wire.MIG_DATA.pack(argsz=20, size=12))
    if end == "reset":
        client.reset()
        set_state(client, RUNNING)
    else:
        target.reconnect()
        client = target.client
    clean = target.kept()
    target.outgoing = SECRET
    again = target.saved()
    assert [kind for kind, _ in blocks(again)] == [LIBRARY, DEVICE, END]
    assert target.client.error_of(wire.Cmd.DEVICE_RESET) == 0 and target.kept() == clean
    target.incoming = b""
    set_state(client, RESUMING)
    load(client, stream)
    set_state(client, RUNNING)
    assert target.incoming == SECRET


# Hostile streams


@pytest.fixture
def small(make):
    """A stream of less than a thousand bytes, and a device to take it."""
    source, target = make(kind=abi.CONVENTIONAL).used(), make(kind=abi.CONVENTIONAL)
    return source.saved(), target


def refused(target, stream, before=None):
    """In one piece, with one line, and nothing changed; until the device is reset."""
    before = before or target.kept()
    set_state(target.client, RESUMING)
    target.lines.clear()
    assert load_error(target.client, stream) == errno.EINVAL
    lines = target.errors()
    assert len(lines) == 1 and "EINVAL" in lines[0], lines
    assert load_error(target.client, block(END)) == errno.EINVAL
    for state in (STOP, RUNNING, STOP_COPY):
        assert set_state(target.client, state, check=False).error == errno.EINVAL
    assert target.kept() == before
    target.client.reset()
    assert target.kept() == before
    return lines[0]


def test_cut_at_every_byte(small):
    stream, target = small
    before = target.kept()
    whole = migration.BLOCK.size + len(blocks(stream)[0][1])
    for cut in range(1, len(stream)):
        set_state(target.client, RESUMING)
        load(target.client, stream[:cut])
        assert set_state(target.client, RUNNING, check=False).error == errno.EINVAL, cut
        assert (target.kept() == before) == (cut < whole)
        if cut % 50 == 0:  # it is not at its end: the rest can still come
            load(target.client, stream[cut:])
            set_state(target.client, RUNNING)
        target.client.reset()
    assert target.kept() == before


def headers(library):
    head, body = block(LIBRARY, library), block(DEVICE, b"x")
    return {
        "version 0": block(LIBRARY, library, version=0),
        "version 2": block(LIBRARY, library, version=2),
        "version of another block": head + block(DEVICE, b"x", version=2),
        "type 0": block(0, library),
        "type 4": block(4, library),
        "type 65535": block(65535, library),
        "too short": block(LIBRARY, library[:-1]),
        "too long": block(LIBRARY, library + b"\0"),
        "length 0": block(LIBRARY),
        "length 2^32-1": block(LIBRARY, length=0xFFFFFFFF),
        "length 2^31": block(LIBRARY, length=0x80000000),
        "twice": head + head,
        "the end first": block(END),
        "no state of the library": body + block(END),
        "an end with bytes": head + block(END, b"x"),
        "no bytes of the device": head + block(DEVICE),
        "more behind the end": head + block(END) + b"x",
        "another stream behind the end": head + block(END) + head + block(END),
        "no header": head + b"x",
        "nearly a header": head + migration.MAGIC[:-1] + b"x",
    }


@pytest.mark.parametrize("name", headers(b"12345678"))
def test_headers(small, name):
    stream, target = small
    library = blocks(stream)[0][1]
    bad = headers(library)[name]
    set_state(target.client, RESUMING)
    target.lines.clear()
    before = target.kept()
    assert load_error(target.client, bad) == errno.EINVAL
    assert len(target.errors()) == 1
    # What came whole before it has been restored.
    assert (target.kept() != before) == bad.startswith(block(LIBRARY, library))
    assert set_state(target.client, RUNNING, check=False).error == errno.EINVAL
    target.client.reset()
    set_state(target.client, RESUMING)
    load(target.client, stream)
    set_state(target.client, RUNNING)


# In the library's block: two sizes, the sizes of six BARs and the ROM, configuration space; the
# number of vectors and the size of the table, masks and pending bits of each vector, the table.
SIZES_AT, BARS_AT, IMAGE_AT = 0, 8, 8 + 7 * 8
IRQS_AT = IMAGE_AT + 256
MASKS_AT = IRQS_AT + 8
TABLE_AT = MASKS_AT + 2 * VECTORS


@pytest.mark.parametrize("at, value, reason", [
    (SIZES_AT, 0, "bytes of state there"),
    (SIZES_AT + 4, 0, "bytes of state there"),
    (BARS_AT, 0x2000, "BAR 0 has 0x2000 bytes there and 0x1000 here"),
    (BARS_AT + 4 * 8, 1 << 31, "BAR 4 has"),
    (BARS_AT + 6 * 8, 1, "the ROM has 0x1 bytes"),
    (IMAGE_AT, 0x56781235, "read-only bits 0x01 at 0x0 (the header) are 0x01 there and 0x00 here"),
    (IMAGE_AT + 0x10, 0x1001, "at 0x10 (the header)"),
    (IMAGE_AT + 0x40, 0x00035001, "at 0x41 (PM)"),
    (IMAGE_AT + 0xFC, 1, "at 0xfc (no capability)"),
    (IMAGE_AT + 0x48, 0x00B46005, "MSI at 0x48 has a value that a guest cannot write"),
    (IRQS_AT, VECTORS + 1, "are not the state of 4 vectors"),
    (IRQS_AT + 4, 0, "are not the state of 4 vectors"),
    (MASKS_AT, 0x00000800, "a mask or pending bit"),
    (MASKS_AT, 0x00200000, "a mask or pending bit"),
])
def test_bodies(small, at, value, reason):
    stream, target = small
    library = bytearray(blocks(stream)[0][1])
    struct.pack_into("<I", library, at, value)
    assert reason in refused(target, block(LIBRARY, bytes(library)))


def test_every_byte(small):
    """Other bits are refused, or such that a guest can change: the rest is never touched."""
    stream, target = small
    library = blocks(stream)[0][1]
    target.client.reset()
    before = target.kept()
    taken = []
    for at in range(len(library)):
        bad = bytearray(library)
        bad[at] ^= 0xFF
        set_state(target.client, RESUMING)
        if load_error(target.client, block(LIBRARY, bytes(bad))) == 0:
            taken.append(at)
            assert target.config()[:4] == before[0][:4]
        else:
            assert target.kept() == before, at
        target.client.reset()
        assert target.kept() == before, at
    image = [at - IMAGE_AT for at in taken if IMAGE_AT <= at < IRQS_AT]
    assert image == [0x0C, 0x0D, 0x12, 0x13, 0x22, 0x23, 0x3C, *range(0x4D, 0x56),
                     *range(0x58, 0x5C)], "registers that a guest can write whole"
    assert taken[-len(range(TABLE_AT, len(library))) + 1:] == \
        [at for at in range(TABLE_AT, len(library)) if at != TABLE_AT + 16 * 3 + 12]


@pytest.mark.parametrize("other, reason", [
    ({"vendor": 0x4321}, "at 0x0 (the header)"),
    ({"bar_size": 0x2000}, "BAR 0 has 0x1000 bytes there and 0x2000 here"),
    ({"vectors": 8}, "the library's state has another size here"),
    ({"kind": abi.CONVENTIONAL}, "the library's state has another size here"),
    ({"iommu": {**EVERYTHING, "pasid_exec": False}}, "(PASID)"),
    ({"iommu": {**EVERYTHING, "pri": False}}, "at 0x108 (PASID)"),
    ({"caps": {**CAPS, "iommu": {**CAPS["iommu"], "pasid": {"bits": 16, "exec": True,
                                                            "priv": True}}}}, "(PASID)"),
    ({"caps": {**CAPS, "iommu": {**CAPS["iommu"], "pri": {"max_requests": 8}}}}, "(PRI)"),
])
def test_another_device(make, other, reason):
    """Also the same device, when its client has agreed on less: the guest knows more."""
    stream = make().used().with_iommu().saved()
    assert reason in refused(make(**other), stream)
