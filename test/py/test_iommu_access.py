# SPDX-License-Identifier: BSD-3-Clause
"""Accesses through translations, invalidations and page requests: rules DMA, ATS, INV, PRI, RST."""

import errno
import time

import pytest

from vfiouser import software_iommu as iommu
from vfiouser import wire
from vfiouser.channel import TIMEOUT
from vfiouser.client import CAPABILITIES
from vfiouser.software_iommu import PAGE
from vfiouser.probe import (CANCEL, DONE, FAILED, HELD, IDLE, KEEP, NO_FAULT, PAGE_REQUEST,
                            PASID_STOP, PENDING, READ, RESOLVE, REVOKED, TRANSLATE, Probe)
from vfiouser.wire import Cmd

IOVA = 0x100000


def backed(probe, key, number, iova=IOVA, byte=None, **kwargs):
    """Maps a page of guest memory and fills it with its number, or a byte."""
    probe.iommu.fill(number, number if byte is None else byte)
    probe.iommu.table(key).map(iova, probe.iommu.frame(number), **kwargs)


def hold_commands(probe, cmd):
    """Commands of this kind wait in the list that is returned."""
    held = []
    probe.client.handlers[cmd] = held.append
    return held


def until(probe, condition):
    """Serves the server until something has come."""
    while not condition():
        probe.client.pump()


def settle(probe):
    """Until no page request is outstanding: one that is just being sent ends when it has been."""
    deadline = time.monotonic() + TIMEOUT
    while probe.stats().groups_pending:
        assert time.monotonic() < deadline, "a page request stays outstanding"


def set_state(probe, state):
    probe.client.feature(wire.FEATURE_SET | wire.FEAT_MIG_STATE,
                         wire.FEATURE_MIG_STATE.pack(device_state=state))


MIGRATES = pytest.mark.probe_args("--pasid", "20", "--ats", "--pri", "--migration")
STOP, RUNNING, STOP_COPY, RESUMING = 1, 2, 3, 4


# Translations


def test_MOD_two_pasids_same_iova(iommu_on):
    for pasid in (0, 1):
        backed(iommu_on, pasid, pasid + 1)
    backed(iommu_on, None, 9)
    slot = iommu_on.slots[0]
    assert slot.read(IOVA, pasid=0) == bytes([1] * 8)
    assert slot.read(IOVA, pasid=1) == bytes([2] * 8)
    assert slot.read(IOVA) == bytes([9] * 8)
    assert slot.write(IOVA, b"pasid 1!", pasid=1) == 0
    assert iommu_on.iommu.memory.read(2 * PAGE, 8) == b"pasid 1!"
    assert iommu_on.iommu.memory.read(1 * PAGE, 8) == bytes([1] * 8)


def test_ATS_a_hit_asks_nothing(iommu_on):
    backed(iommu_on, 3, 1)
    slot = iommu_on.slots[0]
    for _ in range(5):
        assert slot.read(IOVA, pasid=3) == bytes([1] * 8)
    assert len(iommu_on.iommu.translations) == 1


def test_ATS_1_asks_only_while_enabled(probe):
    probe.iommu.register_memory()
    probe.enable_pasid()
    backed(probe, 3, 1)
    assert probe.slots[0].read(IOVA, pasid=3) == bytes([1] * 8), "by an untranslated message"
    assert not probe.iommu.translations
    probe.enable_ats()
    assert probe.slots[0].read(IOVA, pasid=3) == bytes([1] * 8)
    assert len(probe.iommu.translations) == 1
    probe.enable_ats(False)
    assert probe.stats().entries == 0


def test_ATS_7_no_write(iommu_on):
    backed(iommu_on, None, 1)
    slot = iommu_on.slots[0]
    slot.read(IOVA)
    assert iommu_on.iommu.translations[-1][1].flags == wire.ATS_NO_WRITE
    backed(iommu_on, None, 2, IOVA + PAGE)
    slot.write(IOVA + PAGE, b"x")
    assert iommu_on.iommu.translations[-1][1].flags == 0


def test_ATS_7_permission_is_asked_for_again(iommu_on):
    backed(iommu_on, None, 1, perm=wire.PERM_READ)
    slot = iommu_on.slots[0]
    assert slot.read(IOVA) == bytes([1] * 8)
    assert slot.write(IOVA, b"no") == errno.EFAULT
    iommu_on.iommu.table(None).find(IOVA).perm = wire.PERM_RW
    assert slot.write(IOVA, b"yes") == 0


def test_ATS_3_not_present_is_not_cached(iommu_on):
    slot = iommu_on.slots[0]
    assert slot.read(IOVA, flags=NO_FAULT) == errno.EFAULT
    assert slot.result().fault_addr == IOVA
    backed(iommu_on, None, 1)
    assert slot.read(IOVA, flags=NO_FAULT) == bytes([1] * 8)


def test_MOD_2_access_over_pages(iommu_on):
    for i, number in enumerate((5, 3, 8)):
        backed(iommu_on, 1, number, IOVA + i * PAGE)
    data = iommu_on.slots[0].read(IOVA + PAGE - 4, PAGE + 8, pasid=1)
    assert data == bytes([5] * 4 + [3] * PAGE + [8] * 4)
    iommu_on.iommu.invalidate(1, flags=wire.INV_ALL)
    iommu_on.iommu.table(1).unmap(IOVA + PAGE)
    assert iommu_on.slots[0].read(IOVA, 3 * PAGE - 8192, pasid=1) == bytes([5] * PAGE)
    assert iommu_on.slots[0].read(IOVA + PAGE - 4, 8, pasid=1) == errno.EFAULT
    assert iommu_on.slots[0].result().fault_addr == IOVA + PAGE


@pytest.mark.parametrize("size", [PAGE, 1 << 16, 1 << 18])
def test_ATS_2_large_translations(iommu_on, size):
    iommu_on.iommu.table(1).map(0x40000000, iommu_on.iommu.frame(64), size)
    iommu_on.iommu.memory.write(64 * PAGE, bytes(range(256)) * (size // 256))
    at = size - 16
    assert iommu_on.slots[0].read(0x40000000 + at, 16, pasid=1) == bytes(range(240, 256))
    assert iommu_on.slots[0].read(0x40000000, 16, pasid=1) == bytes(range(16))
    assert len(iommu_on.iommu.translations) == 1
    assert iommu_on.iommu.invalidate(1, 0x40000000, PAGE) == 0
    iommu_on.slots[0].read(0x40000000 + at, 16, pasid=1)
    assert len(iommu_on.iommu.translations) == 2, "an overlap by one page drops all of it"


def test_ATS_5_untranslated_only(iommu_on):
    backed(iommu_on, 1, 4, perm=wire.PERM_RW | wire.PERM_UNTRANSLATED)
    assert iommu_on.slots[0].read(IOVA, pasid=1) == bytes([4] * 8)
    assert iommu_on.stats().entries == 0


EXEC, PRIV = 1, 2


@pytest.mark.parametrize("pasid, asked, granted, honoured", [
    (1, EXEC, wire.PERM_RW | wire.PERM_EXEC, True),
    (1, 0, wire.PERM_RW | wire.PERM_EXEC, False),
    (1, EXEC, wire.PERM_WRITE | wire.PERM_EXEC, False),
    (1, PRIV, wire.PERM_RW | wire.PERM_PRIV, True),
    (1, 0, wire.PERM_RW | wire.PERM_PRIV, False),
    (1, 0, wire.PERM_RW | wire.PERM_GLOBAL, True),
    (None, 0, wire.PERM_RW | wire.PERM_GLOBAL, False),
])
def test_ATS_4_grants_what_was_requested(iommu_on, pasid, asked, granted, honoured):
    backed(iommu_on, (pasid, "priv") if asked & PRIV else pasid, 4, perm=granted)
    data = iommu_on.slots[0].read(IOVA, pasid=pasid, attrs=asked)
    assert data == (bytes([4] * 8) if honoured else errno.EIO)
    assert iommu_on.stats().protocol_errors == (not honoured)


def test_ATS_6_global(iommu_on):
    backed(iommu_on, 1, 4, perm=wire.PERM_RW | wire.PERM_GLOBAL)
    assert iommu_on.slots[0].read(IOVA, pasid=1) == bytes([4] * 8)
    assert iommu_on.slots[0].read(IOVA, pasid=2) == bytes([4] * 8)
    assert len(iommu_on.iommu.translations) == 1
    assert iommu_on.iommu.invalidate(None, IOVA, PAGE, wire.INV_GLOBAL) == 0
    iommu_on.iommu.table(1).unmap(IOVA)
    assert iommu_on.slots[0].read(IOVA, pasid=2) == errno.EFAULT
    assert iommu_on.slots[0].read(IOVA, pasid=1) == errno.EFAULT


def test_PFX_5_privileged_is_separate(iommu_on):
    backed(iommu_on, (1, "priv"), 4)
    iommu_on.iommu.table((1, "priv")).find(IOVA).perm |= wire.PERM_PRIV
    assert iommu_on.slots[0].read(IOVA, pasid=1, attrs=2) == bytes([4] * 8)
    assert iommu_on.slots[0].read(IOVA, pasid=1, flags=NO_FAULT) == errno.EFAULT


def test_nested_translation(iommu_on):
    first, second = iommu.PageTable(), iommu.PageTable()
    iommu_on.iommu.tables[7] = iommu.Nested(first, second)
    for number in (1, 2, 3):
        iommu_on.iommu.fill(number, number)
    first.map(IOVA, 0x5000)
    second.map(0x5000, iommu_on.iommu.frame(1))
    second.map(0x6000, iommu_on.iommu.frame(2))
    slot = iommu_on.slots[0]
    assert slot.read(IOVA, pasid=7) == bytes([1] * 8)
    first.map(IOVA, 0x6000)
    iommu_on.iommu.invalidate(7, IOVA, PAGE)
    assert slot.read(IOVA, pasid=7) == bytes([2] * 8), "the first stage has changed"
    second.map(0x6000, iommu_on.iommu.frame(3))
    iommu_on.iommu.invalidate(7, IOVA, PAGE)
    assert slot.read(IOVA, pasid=7) == bytes([3] * 8), "the second stage has changed"


def test_ATS_10_misses_are_joined(iommu_on):
    backed(iommu_on, 1, 4)
    held = hold_commands(iommu_on, Cmd.ATS_TRANSLATE)
    for slot in iommu_on.slots[:8]:
        slot.start(READ, IOVA, 8, pasid=1)
    until(iommu_on, lambda: held)
    while iommu_on.stats().joined < 7:
        continue
    assert len(held) == 1
    iommu_on.iommu.translate(held[0])
    assert all(slot.wait().status == DONE for slot in iommu_on.slots[:8])


def test_ATS_8_completer_abort_and_unsupported(iommu_on):
    backed(iommu_on, 1, 4)
    client, slot = iommu_on.client, iommu_on.slots[0]
    client.handlers[Cmd.ATS_TRANSLATE] = lambda command: client.reply(command, error=errno.EIO)
    assert slot.read(IOVA, pasid=1) == errno.EIO
    client.handlers[Cmd.ATS_TRANSLATE] = iommu_on.iommu.translate
    assert slot.read(IOVA, pasid=1) == bytes([4] * 8), "asking again is allowed"
    iommu_on.iommu.invalidate(1, flags=wire.INV_ALL)
    asked = []

    def refuse(command):
        asked.append(command)
        client.reply(command, error=errno.EPERM)

    client.handlers[Cmd.ATS_TRANSLATE] = refuse
    for _ in range(3):
        assert slot.read(IOVA, pasid=1) == bytes([4] * 8), "by untranslated messages"
    assert len(asked) == 1
    client.handlers[Cmd.ATS_TRANSLATE] = iommu_on.iommu.translate
    iommu_on.enable_ats(False)
    iommu_on.enable_ats()
    slot.read(IOVA, pasid=1)
    assert len(iommu_on.iommu.translations) == 2


GOOD = {"address": IOVA, "length": PAGE, "perm": wire.PERM_RW}
LIES = {
    "no entries": lambda g: [],
    "hole": lambda g: [g, {**g, "address": IOVA + 2 * PAGE}],
    "overlap": lambda g: [g, g],
    "descending": lambda g: [{**g, "address": IOVA + PAGE}, g],
    "other address": lambda g: [{**g, "address": IOVA + PAGE}],
    "before": lambda g: [{**g, "address": IOVA - PAGE}],
    "behind what was asked": lambda g: [g] + [
        {**g, "address": IOVA + (1 + i) * PAGE} for i in range(3)],
    "length 0": lambda g: [{**g, "length": 0}],
    "unaligned address": lambda g: [{**g, "address": IOVA - 8, "length": PAGE + 8}],
    "unaligned length": lambda g: [{**g, "length": PAGE + 1}],
    "unaligned translated": lambda g: [{**g, "translated": g["translated"] + 8}],
    "wraps": lambda g: [{**g, "length": (1 << 64) - PAGE}],
    "translated wraps": lambda g: [{**g, "translated": (1 << 64) - PAGE, "length": 2 * PAGE}],
    "outside guest memory": lambda g: [{**g, "translated": 0x1000}],
    "half outside": lambda g: [{**g, "translated": 0x80000000 + 0xFF000, "length": 2 * PAGE}],
    "reserved permission": lambda g: [{**g, "perm": wire.PERM_RW | 128}],
    "reserved field": lambda g: [{**g, "reserved": 1}],
    "execute not asked": lambda g: [{**g, "perm": wire.PERM_RW | wire.PERM_EXEC}],
    "privileged not asked": lambda g: [{**g, "perm": wire.PERM_RW | wire.PERM_PRIV}],
    "not present with address": lambda g: [{**g, "perm": 0}],
}


@pytest.mark.parametrize("lie", LIES)
def test_ATS_9_lies(iommu_on, lie):
    good = {**GOOD, "translated": iommu_on.iommu.frame(4)}
    reply = iommu_on.iommu.translate_reply(LIES[lie](good))
    iommu_on.client.handlers[Cmd.ATS_TRANSLATE] = lambda c: iommu_on.client.reply(c, reply)
    assert iommu_on.slots[0].read(IOVA, pasid=1) == errno.EIO
    stats = iommu_on.stats()
    assert (stats.entries, stats.protocol_errors) == (0, 1)


@pytest.mark.parametrize("change", [
    lambda reply: reply[:-1], lambda reply: reply[:16], lambda reply: reply[:8],
    lambda reply: b"", lambda reply: reply + b"\0",
    lambda reply: b"\xff" + reply[1:], lambda reply: reply[:4] + b"\x01" + reply[5:],
    lambda reply: reply[:8] + b"\x02" + reply[9:],
    lambda reply: reply[:8] + b"\xff\xff\xff\xff" + reply[12:],
    lambda reply: reply[:12] + b"\x01" + reply[13:],
])
def test_ATS_9_malformed_replies(iommu_on, change):
    good = {**GOOD, "translated": iommu_on.iommu.frame(4)}
    reply = change(iommu_on.iommu.translate_reply([good]))
    iommu_on.client.handlers[Cmd.ATS_TRANSLATE] = lambda c: iommu_on.client.reply(c, reply)
    assert iommu_on.slots[0].read(IOVA, pasid=1) == errno.EIO
    assert iommu_on.stats().entries == 0


def test_translate_call(iommu_on):
    backed(iommu_on, 1, 4, perm=wire.PERM_READ)
    slot = iommu_on.slots[0]
    slot.start(TRANSLATE, IOVA, pasid=1)
    result = slot.wait()
    assert (result.status, result.perm, result.translated) == \
        (DONE, wire.PERM_READ, iommu_on.iommu.frame(4))


@pytest.mark.probe_args("--pasid", "20", "--ats", "--atc", "8")
def test_the_cache_is_bounded(probe):
    probe.iommu.register_memory()
    probe.enable_pasid()
    probe.enable_ats()
    for i in range(32):
        backed(probe, 1, 1 + i, IOVA + i * PAGE)
    for i in range(32):
        assert probe.slots[0].read(IOVA + i * PAGE, pasid=1) == bytes([1 + i] * 8)
        assert probe.stats().entries <= 9
    assert probe.stats().evictions > 0


# Invalidations


def test_INV_1_only_the_pasid(iommu_on):
    for key in (None, 1, 2):
        backed(iommu_on, key, 4)
        iommu_on.slots[0].read(IOVA, pasid=key)
    assert iommu_on.stats().entries == 3
    assert iommu_on.iommu.invalidate(1, flags=wire.INV_ALL) == 0
    assert iommu_on.stats().entries == 2
    assert iommu_on.iommu.invalidate(None, flags=wire.INV_ALL) == 0
    assert iommu_on.stats().entries == 1
    assert iommu_on.iommu.invalidate(None, flags=wire.INV_ALL | wire.INV_GLOBAL) == 0
    assert iommu_on.stats().entries == 0


@pytest.mark.parametrize("fields, expected", [
    ({"length": 1}, 0), ({"address": 5, "length": 1}, 0), ({"length": 0}, errno.EINVAL),
    ({"flags": 2}, 0), ({"flags": 2, "address": 4096}, errno.EINVAL),
    ({"flags": 2, "length": 4096}, errno.EINVAL), ({"flags": 4, "length": 4096}, errno.EINVAL),
    ({"address": (1 << 64) - PAGE, "length": PAGE}, 0),
    ({"address": (1 << 64) - PAGE, "length": 2 * PAGE}, errno.EINVAL),
    ({"address": 1, "length": (1 << 64) - 1}, 0),
    ({"address": 2, "length": (1 << 64) - 1}, errno.EINVAL),
])
def test_INV_2_ranges(iommu_on, fields, expected):
    payload = wire.ATS_INVALIDATE.pack(argsz=24, **fields)
    assert iommu_on.client.error_of(Cmd.ATS_INVALIDATE, payload) == expected


@pytest.mark.parametrize("length", range(24))
def test_INV_truncated(iommu_on, length):
    payload = wire.ATS_INVALIDATE.pack(argsz=24, length=PAGE)
    assert iommu_on.client.error_of(Cmd.ATS_INVALIDATE, payload[:length]) == errno.EINVAL


def test_INV_3b_5_waits_for_its_own_range_alone(iommu_on):
    for i in range(2):
        backed(iommu_on, 1, 4 + i, IOVA + i * PAGE)
    backed(iommu_on, 2, 8)
    held = iommu_on.slots[0].hold(IOVA, pasid=1)
    waiting = iommu_on.iommu.send_invalidate(1, IOVA, PAGE)
    assert iommu_on.iommu.invalidate(1, IOVA + PAGE, PAGE) == 0
    assert iommu_on.iommu.invalidate(2, flags=wire.INV_ALL) == 0
    assert iommu_on.slots[1].read(IOVA, pasid=2) == bytes([8] * 8)
    assert not iommu_on.client.replies[waiting]
    assert iommu_on.stats().invalidations_pending == 1
    held.release()
    assert iommu_on.client.wait(waiting).error == 0


def test_INV_3c_a_translation_that_was_overtaken(iommu_on):
    backed(iommu_on, 1, 4)
    held = hold_commands(iommu_on, Cmd.ATS_TRANSLATE)
    iommu_on.slots[0].start(READ, IOVA, 8, pasid=1)
    until(iommu_on, lambda: held)
    stale = iommu_on.iommu.translate_reply(iommu_on.iommu.entries(1, IOVA, PAGE))
    backed(iommu_on, 1, 5)
    assert iommu_on.iommu.invalidate(1, IOVA, PAGE) == 0, "it need not wait for the translation"
    iommu_on.client.handlers[Cmd.ATS_TRANSLATE] = iommu_on.iommu.translate
    iommu_on.client.reply(held[0], stale)
    assert iommu_on.slots[0].wait().status == DONE
    assert iommu_on.client.region_read(0, iommu_on.slots[0].buffer, 8) == bytes([5] * 8)
    assert iommu_on.stats().discarded == 1


def test_INV_3c_only_the_extra_part_was_invalidated(iommu_on):
    iommu_on.iommu.table(1).map(0, iommu_on.iommu.frame(0), 64 * PAGE)
    held = hold_commands(iommu_on, Cmd.ATS_TRANSLATE)
    iommu_on.slots[0].start(READ, 0, 8, pasid=1)
    until(iommu_on, lambda: held)
    assert iommu_on.iommu.invalidate(1, 32 * PAGE, PAGE) == 0
    iommu_on.client.handlers[Cmd.ATS_TRANSLATE] = iommu_on.iommu.translate
    iommu_on.iommu.translate(held[0])
    iommu_on.slots[0].wait()
    assert iommu_on.stats().discarded == 1


def test_INV_4_with_everything_off(probe):
    assert probe.iommu.invalidate(None, flags=wire.INV_ALL) == 0
    assert probe.iommu.invalidate(77, IOVA, PAGE) == 0


def test_INV_6_the_33rd(iommu_on):
    backed(iommu_on, 1, 4)
    held = iommu_on.slots[0].hold(IOVA, pasid=1)
    ids = [iommu_on.iommu.send_invalidate(1, IOVA, PAGE) for _ in range(32)]
    assert iommu_on.iommu.invalidate(1, IOVA, PAGE) == errno.EBUSY
    held.release()
    assert [iommu_on.client.wait(msg_id).error for msg_id in ids] == [0] * 32
    assert iommu_on.iommu.invalidate(1, IOVA, PAGE) == 0


@pytest.mark.probe_args("--pasid", "20", "--ats", "--invalidate-later")
def test_INV_3d_the_device_takes_its_time(probe):
    probe.enable_pasid()
    probe.enable_ats()
    waiting = probe.iommu.send_invalidate(1, IOVA, PAGE)
    probe.client.device_info()
    assert not probe.client.replies[waiting]
    probe.slots[0].start(10)
    assert probe.client.wait(waiting).error == 0


def test_kept_mapping_is_revoked_and_resolved_again(iommu_on):
    backed(iommu_on, 1, 4)
    slot = iommu_on.slots[0].hold(IOVA, command=KEEP, pasid=1)
    waiting = iommu_on.iommu.send_invalidate(1, IOVA, PAGE)
    while slot.status != REVOKED:
        continue
    assert not iommu_on.client.replies[waiting]
    slot.release()
    assert iommu_on.client.wait(waiting).error == 0
    slot.hold(IOVA, command=KEEP, pasid=1).release()


def test_INV_7_dma_is_answered_while_one_waits(iommu_on):
    backed(iommu_on, 1, 4)
    held = iommu_on.slots[0].hold(IOVA, pasid=1)
    waiting = iommu_on.iommu.send_invalidate(1, IOVA, PAGE)
    backed(iommu_on, 2, 6)
    assert iommu_on.slots[1].read(IOVA, pasid=2) == bytes([6] * 8)
    held.release()
    iommu_on.client.wait(waiting)


# Transfers by messages, and a client that answers nothing while it waits


@pytest.fixture
def by_messages(probe):
    """Pages of PASIDs 1 and 2 at the same address, and one of PASID 1 behind."""
    probe.iommu.register_memory(share=False)
    probe.enable_pasid()
    probe.enable_ats()
    backed(probe, 1, 4)
    backed(probe, 2, 5)
    backed(probe, 1, 6, IOVA + 16 * PAGE)
    return probe


def reading(probe, *wanted):
    """Slots whose threads wait for the reply to a DMA_READ, and those commands."""
    slots = []
    held = hold_commands(probe, Cmd.DMA_READ)
    for pasid, iova in wanted:
        slots.append(probe.slots[len(slots)])
        slots[-1].start(READ, iova, 8, pasid=pasid)
        until(probe, lambda: len(held) == len(slots))
    return slots, held


def answer(probe, commands):
    probe.client.handlers[Cmd.DMA_READ] = probe.iommu.dma_read
    for command in commands:
        probe.iommu.dma_read(command)


def test_INV_3_ends_transfers_that_it_waits_for(by_messages):
    """The invalidation is completed with nothing answered; others go on."""
    (ended, other, behind), held = reading(by_messages, (1, IOVA), (2, IOVA), (1, IOVA + 16 * PAGE))
    assert by_messages.iommu.invalidate(1, IOVA, PAGE) == 0
    assert ended.wait().error == errno.ECANCELED
    assert (other.status, behind.status) == (PENDING, PENDING)
    answer(by_messages, held)
    assert (other.wait().status, behind.wait().status) == (DONE, DONE)
    assert by_messages.stats().late_replies == 1
    assert ended.read(IOVA, pasid=1) == bytes([4] * 8)


@pytest.mark.parametrize("flags, ended", [(wire.INV_ALL, [True, False]),
                                          (wire.INV_ALL | wire.INV_GLOBAL, [True, True])])
def test_INV_3_ends_transfers_of_a_space_or_of_all(by_messages, flags, ended):
    slots, held = reading(by_messages, (1, IOVA), (2, IOVA))
    assert by_messages.iommu.invalidate(1, flags=flags) == 0
    answer(by_messages, held)
    assert [slot.wait().error == errno.ECANCELED for slot in slots] == ended


def test_DMA_4_unmap_ends_transfers(by_messages):
    """Translations lead into what is unmapped; they go, and with them what uses them."""
    slots, held = reading(by_messages, (1, IOVA), (2, IOVA))
    payload = wire.DMA_UNMAP.pack(argsz=24, addr=by_messages.iommu.base,
                                  size=by_messages.iommu.size)
    assert by_messages.client.error_of(Cmd.DMA_UNMAP, payload, flags=wire.F_TRANSLATED) == 0
    assert [slot.wait().error for slot in slots] == [errno.ECANCELED] * 2
    answer(by_messages, held)


@pytest.mark.parametrize("how", ["reset", "pasids off", "pasid stop"])
def test_what_else_ends_transfers(by_messages, how):
    probe = by_messages
    slots, held = reading(probe, (1, IOVA), (2, IOVA))
    if how == "reset":
        probe.client.reset()
    elif how == "pasids off":
        probe.enable_ats(False)
        probe.register(iommu.PASID, 6, 0)
    else:
        probe.slots[9].start(PASID_STOP, pasid=1)
        assert slots[0].wait().error == errno.ECANCELED
        answer(probe, held)
        assert slots[1].wait().status == DONE
        return
    assert [slot.wait().error for slot in slots] == [errno.ECANCELED] * 2
    answer(probe, held)


@MIGRATES
def test_RST_3_a_stop_ends_transfers(by_messages):
    (slot,), held = reading(by_messages, (1, IOVA))
    set_state(by_messages, STOP)
    assert slot.wait().error == errno.ECANCELED
    answer(by_messages, held)
    set_state(by_messages, RUNNING)
    assert slot.read(IOVA, pasid=1) == bytes([4] * 8)


# Spaces


def test_DMA_1_shadow_mappings_of_pasids(probe):
    probe.enable_pasid()
    for pasid in (0, 1):
        slot = probe.client.memory.add(0x2000, PAGE)
        slot.write(0, bytes([pasid + 1]) * 8)
        bits, payload = probe.iommu.prefixed(pasid, probe.client.map_payload(slot))
        probe.client.request(Cmd.DMA_MAP, payload, [slot.mem.fd], flags=bits)
    assert probe.slots[0].read(0x2000, pasid=0) == bytes([1] * 8)
    assert probe.slots[0].read(0x2000, pasid=1) == bytes([2] * 8)
    unmap = wire.DMA_UNMAP.pack(argsz=24, flags=wire.UNMAP_ALL)
    bits, payload = probe.iommu.prefixed(0, unmap)
    assert probe.client.error_of(Cmd.DMA_UNMAP, payload, flags=bits) == 0
    assert probe.slots[0].read(0x2000, pasid=1) == bytes([2] * 8)
    assert probe.client.dma_unmap(0x2000, PAGE, check=False).error == errno.ENOENT


def test_DMA_4_unmap_waits(probe):
    probe.client.add_memory(0x2000, PAGE)
    held = probe.slots[0].hold(0x2000)
    waiting = probe.client.send(Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, addr=0x2000,
                                                                   size=PAGE))
    probe.client.device_info()
    assert not probe.client.replies[waiting]
    held.release()
    assert probe.client.wait(waiting).error == 0


def test_DMA_6_translated_memory_by_messages(probe):
    probe.iommu.register_memory(share=False)
    probe.enable_pasid()
    probe.enable_ats()
    backed(probe, 1, 4)
    assert probe.slots[0].read(IOVA, pasid=1) == bytes([4] * 8)
    assert probe.slots[0].write(IOVA, b"by messages", pasid=1) == 0
    assert probe.iommu.memory.read(4 * PAGE, 11) == b"by messages"
    assert probe.stats().entries == 1


def test_CFG_4_pasid_off(iommu_on):
    backed(iommu_on, 1, 4)
    iommu_on.slots[0].read(IOVA, pasid=1)
    iommu_on.enable_ats(False)
    iommu_on.register(iommu.PASID, 6, 0)
    assert iommu_on.slots[0].read(IOVA, pasid=1) == errno.EPERM
    assert iommu_on.stats().entries == 0


def test_CFG_3_frozen_while_ats_is_on(iommu_on):
    iommu_on.register(iommu.PASID, 6, 0)
    assert iommu_on.register(iommu.PASID, 6) == 7
    iommu_on.register(iommu.ATS, 6, 0x8005)
    assert iommu_on.register(iommu.ATS, 6) == 0x8000


# Page requests


def demand_page(probe, key, number=10):
    """Faults bring in pages one after the other."""
    frames = iter(range(number, 200))

    def fault(fault_key, iova, perm):
        assert fault_key == key
        backed(probe, key, next(frames), iova)
        return wire.PAGE_SUCCESS

    probe.iommu.on_fault = fault


def test_PRI_3_fault_and_retry(iommu_on):
    demand_page(iommu_on, 1)
    assert iommu_on.slots[0].read(IOVA, pasid=1) == bytes([10] * 8)
    assert iommu_on.slots[0].write(IOVA + PAGE, b"new", pasid=1) == 0
    assert [group[0] for group in iommu_on.iommu.groups] == [1, 1]
    assert iommu_on.iommu.groups[1][2][0].perm == wire.PERM_WRITE


def test_PRI_3_success_promises_nothing(iommu_on):
    iommu_on.iommu.on_fault = lambda *fault: wire.PAGE_SUCCESS
    assert iommu_on.slots[0].read(IOVA, pasid=1) == errno.EAGAIN


def test_PRI_11_success_for_pages_that_the_client_dropped(iommu_on):
    """The client's queue is full twice: the access asks again, and is done when the page is there."""
    faults = []

    def fault(key, iova, perm):
        faults.append(iova)
        if len(faults) == 3:
            backed(iommu_on, 1, 10)
        return wire.PAGE_SUCCESS

    iommu_on.iommu.on_fault = fault
    assert iommu_on.slots[0].read(IOVA, pasid=1) == bytes([10] * 8)
    assert faults == [IOVA] * 3


def test_PRI_4_invalid(iommu_on):
    assert iommu_on.slots[0].read(IOVA, pasid=1) == errno.EFAULT
    assert len(iommu_on.iommu.groups) == 1


@pytest.mark.parametrize("code", [2, 7, 14, 15, 16, 0xFFFF])
def test_PRI_5_failure_then_enabled_anew(iommu_on, code):
    iommu_on.iommu.on_fault = lambda *fault: code
    assert iommu_on.slots[0].read(IOVA, pasid=1) == errno.EIO
    assert iommu_on.pri_status() & 1, "RF"
    iommu_on.iommu.groups.clear()
    assert iommu_on.slots[0].read(IOVA, pasid=1) == errno.EFAULT or not iommu_on.iommu.groups
    assert not iommu_on.iommu.groups, "nothing is sent"
    iommu_on.register(iommu.PRI, 4, 2)
    assert iommu_on.pri_status() & 0x100, "Stopped"
    iommu_on.enable_pri()
    assert not iommu_on.pri_status() & 3
    demand_page(iommu_on, 1)
    assert iommu_on.slots[0].read(IOVA, pasid=1) == bytes([10] * 8)


def test_PRI_6_another_group(iommu_on):
    held = hold_commands(iommu_on, Cmd.PAGE_REQUEST)
    iommu_on.slots[0].start(READ, IOVA, 8, pasid=1)
    until(iommu_on, lambda: held)
    iommu_on.iommu.respond(held[0], 511, 0)
    assert iommu_on.slots[0].wait().error == errno.EIO
    assert iommu_on.pri_status() & 2, "UPRGI"


def test_PRI_1_2_groups_out_of_order(iommu_on):
    held = hold_commands(iommu_on, Cmd.PAGE_REQUEST)
    slots = iommu_on.slots[:8]
    for i, slot in enumerate(slots):
        slot.start(READ, IOVA + i * PAGE, 8, pasid=1)
    until(iommu_on, lambda: len(held) == 8)
    requests = [wire.PAGE_REQUEST.unpack(command.payload[8:]) for command in held]
    assert len({request.group for request in requests}) == 8
    for command, request in reversed(list(zip(held, requests))):
        page = wire.PAGE_REQUEST_ENTRY.unpack(command.payload[24:]).address
        backed(iommu_on, 1, 20 + (page - IOVA) // PAGE, page)
        iommu_on.iommu.respond(command, request.group, wire.PAGE_SUCCESS)
    for i, slot in enumerate(slots):
        assert slot.wait().status == DONE
        assert iommu_on.client.region_read(0, slot.buffer, 8) == bytes([20 + i] * 8)


def test_PRI_7_credits(iommu_on):
    iommu_on.register(iommu.PRI, 4, 0)
    iommu_on.enable_pri(allocation=2)
    held = hold_commands(iommu_on, Cmd.PAGE_REQUEST)
    for i, slot in enumerate(iommu_on.slots[:4]):
        slot.start(PAGE_REQUEST, IOVA + i * PAGE, PAGE, pasid=1)
    until(iommu_on, lambda: len(held) == 2)
    iommu_on.client.device_info()
    assert len(held) == 2
    for i in range(4):
        until(iommu_on, lambda: len(held) > i)
        iommu_on.iommu.respond(held[i], wire.PAGE_REQUEST.unpack(held[i].payload[8:]).group, 0)
    for i, slot in enumerate(iommu_on.slots[:4]):
        result = slot.wait()
        assert (result.status, result.code) == (DONE, 0)
    iommu_on.slots[0].start(PAGE_REQUEST, IOVA, 3 * PAGE, pasid=1)
    assert iommu_on.slots[0].wait().error == errno.E2BIG


def test_PRI_8_pages_are_asked_once(iommu_on):
    held = hold_commands(iommu_on, Cmd.PAGE_REQUEST)
    for slot in iommu_on.slots[:4]:
        slot.start(READ, IOVA, 8, pasid=1)
    until(iommu_on, lambda: held)
    while iommu_on.stats().pages_joined < 3:
        continue
    backed(iommu_on, 1, 30)
    iommu_on.iommu.respond(held[0], wire.PAGE_REQUEST.unpack(held[0].payload[8:]).group, 0)
    assert all(slot.wait().status == DONE for slot in iommu_on.slots[:4])
    assert len(held) == 1


def test_PRI_9_stop_marker(iommu_on):
    iommu_on.slots[0].start(PASID_STOP, pasid=5)
    until(iommu_on, lambda: iommu_on.iommu.markers)
    key, command = iommu_on.iommu.markers[0]
    assert key == 5 and command.flags & wire.NO_REPLY


def test_PRI_10_disabled_with_requests_outstanding(iommu_on):
    held = hold_commands(iommu_on, Cmd.PAGE_REQUEST)
    iommu_on.slots[0].start(READ, IOVA, 8, pasid=1)
    until(iommu_on, lambda: held)
    iommu_on.register(iommu.PRI, 4, 0)
    assert iommu_on.slots[0].wait().error == errno.ECANCELED
    assert not iommu_on.pri_status() & 0x100, "stopping"
    iommu_on.iommu.respond(held[0], wire.PAGE_REQUEST.unpack(held[0].payload[8:]).group, 0)
    iommu_on.client.device_info()
    assert iommu_on.pri_status() & 0x100, "stopped"


def test_64_page_requests_in_flight(iommu_on):
    held = hold_commands(iommu_on, Cmd.PAGE_REQUEST)
    for i, slot in enumerate(iommu_on.slots):
        slot.start(PAGE_REQUEST, IOVA + 4 * i * PAGE, 4 * PAGE, pasid=1)
    until(iommu_on, lambda: len(held) == 16)
    assert iommu_on.stats().groups_pending == 16
    assert iommu_on.stats().pages == 64
    for command in held:
        iommu_on.iommu.respond(command, wire.PAGE_REQUEST.unpack(command.payload[8:]).group, 0)
    assert all(slot.wait().status == DONE for slot in iommu_on.slots)


# Ends


def pending_everything(probe):
    """An access that waits for a translation, one for a page, one held, and an invalidation."""
    backed(probe, 1, 4)
    translations = hold_commands(probe, Cmd.ATS_TRANSLATE)
    probe.slots[0].start(RESOLVE, IOVA + PAGE, 8, pasid=2)
    until(probe, lambda: translations)
    probe.client.handlers[Cmd.ATS_TRANSLATE] = probe.iommu.translate
    pages = hold_commands(probe, Cmd.PAGE_REQUEST)
    probe.slots[1].start(RESOLVE, IOVA, 8, pasid=3)
    until(probe, lambda: pages)
    probe.slots[2].hold(IOVA, pasid=1)
    return translations[0], pages[0], probe.iommu.send_invalidate(1, IOVA, PAGE)


def test_RST_1_reset_with_everything_pending(iommu_on):
    translation, page, waiting = pending_everything(iommu_on)
    iommu_on.client.reset()
    assert iommu_on.slots[0].wait().error == errno.ECANCELED
    assert iommu_on.slots[1].wait().error == errno.ECANCELED
    assert iommu_on.register(iommu.ATS, 6) == 0
    assert iommu_on.register(iommu.PASID, 6) == 0
    assert iommu_on.register(iommu.PRI, 4) == 0
    assert iommu_on.register(iommu.PRI, 12, size=4) == 0
    assert iommu_on.pri_status() & 0x100
    iommu_on.iommu.translate(translation)
    iommu_on.iommu.respond(page, wire.PAGE_REQUEST.unpack(page.payload[8:]).group, 0)
    iommu_on.slots[2].release()
    assert iommu_on.client.wait(waiting).error == 0
    assert iommu_on.stats().entries == 0


def test_RST_2_client_gone_with_everything_pending(iommu_on, probe_server):
    pending_everything(iommu_on)
    iommu_on.client.close()
    probe = Probe(probe_server.client({**CAPABILITIES, "iommu": iommu.CAPS}))
    assert probe.slots[0].wait().error == errno.ENOTCONN
    assert probe.slots[1].wait().error == errno.ENOTCONN
    assert probe.slots[2].status == HELD
    probe.slots[2].release()
    assert probe.register(iommu.ATS, 6) == 0, "the next client meets the state after a reset"
    probe.enable()
    backed(probe, 1, 5)
    assert probe.slots[0].read(IOVA, pasid=1) == bytes([5] * 8)


def test_cancel(iommu_on):
    held = hold_commands(iommu_on, Cmd.ATS_TRANSLATE)
    iommu_on.slots[0].start(RESOLVE, IOVA, 8, pasid=1)
    until(iommu_on, lambda: held)
    iommu_on.slots[0].command(CANCEL)
    result = iommu_on.slots[0].result()
    assert (result.status, result.error) == (FAILED, errno.ECANCELED)
    iommu_on.iommu.translate(held[0])


def test_requests_that_make_no_sense(iommu_on):
    slot = iommu_on.slots[0]
    for kwargs in ({"length": 0}, {"addr": (1 << 64) - 4, "length": 8}, {"pasid": 1 << 20},
                   {"prot": 0}, {"prot": 8}, {"attrs": 2}, {"pasid": 1, "attrs": 4}):
        slot.start(RESOLVE, **{"addr": IOVA, "length": 8, **kwargs})
        assert slot.wait().error == errno.EINVAL, kwargs
    assert slot.status == FAILED and IDLE != PENDING


def test_MOD_3_a_region_wins(iommu_on):
    backed(iommu_on, 1, 4)
    slot = iommu_on.slots[0]
    assert slot.read(IOVA, pasid=1) == bytes([4] * 8)
    region = iommu_on.client.memory.add(IOVA, PAGE)
    region.write(0, b"a region")
    bits, payload = iommu_on.iommu.prefixed(1, iommu_on.client.map_payload(region))
    iommu_on.client.request(Cmd.DMA_MAP, payload, [region.mem.fd], flags=bits)
    assert slot.read(IOVA, pasid=1) == b"a region"
    assert iommu_on.stats().entries == 0


def test_CFG_5_enabled_while_stopping(iommu_on):
    held = hold_commands(iommu_on, Cmd.PAGE_REQUEST)
    iommu_on.slots[0].start(READ, IOVA, 8, pasid=1)
    until(iommu_on, lambda: held)
    iommu_on.register(iommu.PRI, 4, 0)
    iommu_on.enable_pri()
    settle(iommu_on)
    iommu_on.client.handlers[Cmd.PAGE_REQUEST] = iommu_on.iommu.page_request
    demand_page(iommu_on, 1)
    assert iommu_on.slots[1].read(IOVA, pasid=1) == bytes([10] * 8)


def test_CFG_6_reset_forgets_what_is_outstanding(iommu_on):
    held = hold_commands(iommu_on, Cmd.PAGE_REQUEST)
    iommu_on.slots[0].start(READ, IOVA, 8, pasid=1)
    until(iommu_on, lambda: held)
    iommu_on.register(iommu.PRI, 4, 3)
    assert iommu_on.stats().groups_pending == 1, "no reset while enabled"
    iommu_on.register(iommu.PRI, 4, 2)
    assert iommu_on.register(iommu.PRI, 4) == 0
    settle(iommu_on)
    assert iommu_on.pri_status() & 0x100
    assert iommu_on.slots[0].wait().error == errno.ECANCELED


@MIGRATES
@pytest.mark.parametrize("state", [STOP, STOP_COPY, RESUMING])
def test_INV_4_while_stopped(iommu_on, state):
    """What the guest takes back while the device is stopped is not used after it resumes."""
    backed(iommu_on, 1, 4)
    iommu_on.slots[0].read(IOVA, pasid=1)
    set_state(iommu_on, state)
    backed(iommu_on, 1, 7)
    assert iommu_on.client.wait(iommu_on.iommu.send_invalidate(1, IOVA, PAGE)).error == 0
    set_state(iommu_on, RUNNING)
    assert iommu_on.slots[0].write(IOVA, b"resumed", pasid=1) == 0
    assert iommu_on.iommu.memory.read(7 * PAGE, 7) == b"resumed"
    assert iommu_on.iommu.memory.read(4 * PAGE, 8) == bytes([4] * 8)


@MIGRATES
@pytest.mark.parametrize("state", [STOP, STOP_COPY, RESUMING])
def test_RST_3_the_cache_is_empty_on_resume(iommu_on, state):
    """Even what the device has looked up while it was stopped, which it should not."""
    backed(iommu_on, 1, 4)
    iommu_on.slots[0].read(IOVA, pasid=1)
    set_state(iommu_on, STOP)
    assert iommu_on.stats().entries == 0
    iommu_on.slots[0].read(IOVA, pasid=1)
    assert iommu_on.stats().entries == 1
    set_state(iommu_on, state)
    set_state(iommu_on, RUNNING)
    assert iommu_on.stats().entries == 0


@MIGRATES
def test_RST_3_nothing_is_pending_while_stopped(iommu_on):
    translations = hold_commands(iommu_on, Cmd.ATS_TRANSLATE)
    iommu_on.slots[0].start(RESOLVE, IOVA, 8, pasid=2)
    until(iommu_on, lambda: translations)
    iommu_on.client.handlers[Cmd.ATS_TRANSLATE] = iommu_on.iommu.translate
    pages = hold_commands(iommu_on, Cmd.PAGE_REQUEST)
    iommu_on.slots[1].start(RESOLVE, IOVA, 8, pasid=3)
    until(iommu_on, lambda: pages)
    set_state(iommu_on, STOP)
    assert iommu_on.slots[0].wait().error == errno.ECANCELED
    assert iommu_on.slots[1].wait().error == errno.ECANCELED


@pytest.mark.probe_args("--pasid", "20", "--ats", "--migration")
def test_RST_4_dirty_pages_are_those_of_guest_memory(probe):
    probe.iommu.register_memory()
    probe.enable_pasid()
    probe.enable_ats()
    backed(probe, 1, 9)
    start = wire.LOGGING_CONTROL.pack(page_size=PAGE)
    probe.client.feature(6 | 1 << 17, start)
    assert probe.slots[0].write(IOVA, b"dirty", pasid=1) == 0
    report = wire.LOGGING_REPORT.pack(iova=probe.iommu.base, length=64 * PAGE, page_size=PAGE)
    reply = probe.client.feature(8 | 1 << 16, report, argsz=8 + 24 + 8)
    assert int.from_bytes(reply.payload[-8:], "little") == 1 << 9
