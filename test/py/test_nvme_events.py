# SPDX-License-Identifier: BSD-3-Clause
"""Asynchronous events, Abort, and interrupts of every kind (5.1, 5.2, 7.5)."""

import struct

import pytest

from vfiouser.nvme import pattern
from vfiouser.nvme_spec import (ABORT_REQUESTED, ADMIN_ABORT, ADMIN_AER, ADMIN_GET_FEATURES,
                                ADMIN_GET_LOG, ADMIN_IDENTIFY, ADMIN_SET_FEATURES, AER_LIMIT,
                                ALL_NAMESPACES, CNS_CONTROLLER, EVENT_BAD_DOORBELL, EVENT_ERROR,
                                EVENT_SMART, FEAT_ASYNC_EVENTS, FEAT_TEMPERATURE, INTMC, INTMS,
                                IO_FLUSH, IO_READ, LOG_ERROR, LOG_SMART, PAGE, SUCCESS)
from vfiouser.wire import (ACTION_MASK, ACTION_TRIGGER, ACTION_UNMASK, CONFIG, DATA_NONE, INTX,
                           MSIX)

NO_QUEUE = 2 * 5
TEMPERATURE_EVENT = 2


@pytest.fixture
def admin(nvme):
    nvme.start()
    nvme.set_queue_count(4)
    return nvme.admin


def event(completion):
    assert completion.status == SUCCESS, completion
    return completion.result & 7, completion.result >> 8 & 0xFF, completion.result >> 16 & 0xFF


def read_log(nvme, page, retain=0):
    nvme.admin.ok(ADMIN_GET_LOG, nsid=ALL_NAMESPACES, prp1=nvme.alloc(PAGE),
                  cdw10=127 << 16 | retain << 15 | page)


def limit(nvme, at):
    """AERL, ACL: zero-based."""
    return nvme.identify(CNS_CONTROLLER)[at] + 1


def too_hot(nvme):
    """Sets the threshold below what it has, and asks to hear of it."""
    nvme.admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_ASYNC_EVENTS, cdw11=TEMPERATURE_EVENT)
    nvme.admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_TEMPERATURE, cdw11=1)


# Asynchronous events

def test_event_before_the_request(nvme, admin):
    """It waits for a request to come."""
    nvme.doorbell(NO_QUEUE, 1)
    nvme.identify(CNS_CONTROLLER)
    assert event(admin.run(ADMIN_AER)) == (EVENT_ERROR, EVENT_BAD_DOORBELL, LOG_ERROR)


@pytest.mark.parametrize("value", [64, 0xFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("of_cq", [0, 1])
def test_bad_doorbell_values(nvme, admin, of_cq, value):
    """Any value, and the same one each time that it is written, or comes back (5.2)."""
    sq = nvme.create_pair(1)
    good = (sq.tail, sq.cq.head)[of_cq]
    for between in (False, True, False):
        nvme.doorbell(2 + of_cq, value)
        assert event(admin.run(ADMIN_AER)) == (EVENT_ERROR, 1, LOG_ERROR)
        if between:
            nvme.doorbell(2 + of_cq, good)
            nvme.identify(CNS_CONTROLLER)
        read_log(nvme, LOG_ERROR)


def test_events_of_a_type_wait_for_their_log_page(nvme, admin):
    """After an event its type is masked, until the log page is read (5.2)."""
    cids = [admin.submit(ADMIN_AER) for _ in range(2)]
    nvme.doorbell(NO_QUEUE, 1)
    assert event(admin.wait(cids[0]))[0] == EVENT_ERROR
    nvme.doorbell(NO_QUEUE, 1)
    nvme.identify(CNS_CONTROLLER)
    assert (0, cids[1]) not in nvme.done
    read_log(nvme, LOG_ERROR)
    nvme.doorbell(NO_QUEUE, 1)
    assert event(admin.wait(cids[1]))[0] == EVENT_ERROR


def test_retaining_an_event(nvme, admin):
    cids = [admin.submit(ADMIN_AER) for _ in range(2)]
    nvme.doorbell(NO_QUEUE, 1)
    admin.wait(cids[0])
    read_log(nvme, LOG_ERROR, retain=1)
    nvme.doorbell(NO_QUEUE, 1)
    nvme.identify(CNS_CONTROLLER)
    assert (0, cids[1]) not in nvme.done
    read_log(nvme, LOG_ERROR)


def test_temperature(nvme, admin):
    cid = admin.submit(ADMIN_AER)
    too_hot(nvme)
    assert event(admin.wait(cid)) == (EVENT_SMART, 1, LOG_SMART)
    addr = nvme.alloc(PAGE)
    admin.ok(ADMIN_GET_LOG, nsid=ALL_NAMESPACES, prp1=addr, cdw10=127 << 16 | LOG_SMART)
    assert nvme.memory.read(addr, 1)[0] & TEMPERATURE_EVENT


def test_temperature_that_nobody_wants_to_know(nvme, admin):
    cid = admin.submit(ADMIN_AER)
    admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_ASYNC_EVENTS, cdw11=0)
    admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_TEMPERATURE, cdw11=1)
    admin.ok(ADMIN_GET_FEATURES, cdw10=FEAT_TEMPERATURE)
    assert (0, cid) not in nvme.done


def test_events_of_several_types(nvme, admin):
    cids = {admin.submit(ADMIN_AER), admin.submit(ADMIN_AER)}
    nvme.doorbell(NO_QUEUE, 1)
    too_hot(nvme)
    assert {event(admin.wait(cid))[0] for cid in cids} == {EVENT_ERROR, EVENT_SMART}


def test_too_many_requests(nvme, admin):
    cids = [admin.submit(ADMIN_AER) for _ in range(limit(nvme, 259))]
    assert admin.run(ADMIN_AER).status == AER_LIMIT
    nvme.doorbell(NO_QUEUE, 1)
    assert event(admin.wait(cids[0]))[0] == EVENT_ERROR
    admin.submit(ADMIN_AER)


def test_reset_forgets_requests(nvme, admin):
    for _ in range(3):
        for _ in range(limit(nvme, 259)):
            admin.submit(ADMIN_AER)
        nvme.start()
        admin = nvme.admin
        nvme.identify(CNS_CONTROLLER)
        assert not nvme.done


# Abort

def test_abort_of_a_request_for_events(nvme, admin):
    cid = admin.submit(ADMIN_AER)
    result = admin.ok(ADMIN_ABORT, cdw10=cid << 16).result
    if not result & 1:
        assert admin.wait(cid).status == ABORT_REQUESTED
    nvme.doorbell(NO_QUEUE, 1)
    assert event(admin.run(ADMIN_AER))[0] == EVENT_ERROR


@pytest.mark.parametrize("sqid, cid", [(0, 0x4242), (1, 0x4242), (9, 1), (0xFFFF, 0xFFFF)])
def test_abort_of_nothing(nvme, admin, sqid, cid):
    nvme.create_pair(1)
    assert admin.ok(ADMIN_ABORT, cdw10=cid << 16 | sqid).result & 1


def test_abort_of_io(nvme, admin):
    """Whether it was too late or not, both commands are completed."""
    sq = nvme.create_pair(1, 64)
    cids = [nvme.transfer(sq, IO_READ, 0, 128, nvme.alloc(65536), 65536) for _ in range(16)]
    for cid in cids:
        result = admin.ok(ADMIN_ABORT, cdw10=cid << 16 | 1).result
        status = sq.wait(cid).status
        assert status in (SUCCESS, ABORT_REQUESTED)
        if result & 1:
            assert status == SUCCESS


# Interrupts

def test_a_vector_for_each_queue(nvme):
    nvme.start_io(3, vectors=4)
    for vector in range(4):
        nvme.interrupts(vector)
    for qid, sq in nvme.queues.items():
        cid = sq.submit(IO_FLUSH, nsid=1)
        nvme.idle([], 0)
        nvme.wait(sq, cid)
        assert [v for v in range(4) if nvme.interrupts(v)] in ([], [qid])


def test_every_completion_interrupts(nvme):
    """A driver that reacts to interrupts alone sees everything."""
    sq = nvme.start_io(vectors=2)
    for _ in range(200):
        sq.ok(IO_FLUSH, nsid=1)


def test_a_queue_without_interrupts(nvme):
    nvme.start(vectors=2)
    nvme.set_queue_count(1)
    sq = nvme.create_pair(1)
    for vector in range(2):
        nvme.interrupts(vector)
    sq.ok(IO_FLUSH, nsid=1)
    assert not nvme.interrupts(0) and not nvme.interrupts(1)


def pending_after(nvme, sq, mask, unmask):
    """A completion under a mask interrupts when the mask goes, and not before."""
    nvme.interrupts(sq.cq.vector)
    mask()
    cid = sq.submit(IO_FLUSH, nsid=1)
    vector, sq.cq.vector = sq.cq.vector, None
    nvme.poll(lambda: nvme.memory.read(sq.cq.addr + 16 * sq.cq.head + 14, 1)[0] & 1 == sq.cq.phase,
              "no completion")
    nvme.client.device_info()
    assert not nvme.interrupts(vector)
    unmask()
    sq.cq.vector = vector
    assert nvme.idle([nvme.events[vector]], 20), "no interrupt after the mask has gone"
    assert sq.wait(cid).status == SUCCESS


def test_msix_vector_mask(nvme):
    sq = nvme.start_io(vectors=2)
    table = nvme.client.read_int(CONFIG, nvme.find_capability(0x11) + 4, 4)
    control = (table & ~7) + 16 + 12

    def set_mask(value):
        nvme.client.write_int(table & 7, control, value)

    pending_after(nvme, sq, lambda: set_mask(1), lambda: set_mask(0))


def test_msix_function_mask(nvme):
    sq = nvme.start_io(vectors=2)
    control = nvme.find_capability(0x11) + 2
    pending_after(nvme, sq, lambda: nvme.client.write_int(CONFIG, control, 0xC000, 2),
                  lambda: nvme.client.write_int(CONFIG, control, 0x8000, 2))


def test_mask_by_set_irqs(nvme):
    sq = nvme.start_io(vectors=2)
    pending_after(nvme, sq,
                  lambda: nvme.client.set_irqs(MSIX, DATA_NONE | ACTION_MASK, start=1),
                  lambda: nvme.client.set_irqs(MSIX, DATA_NONE | ACTION_UNMASK, start=1))


def start_with(nvme, enable):
    """MSI or INTx: every queue uses vector 0."""
    enable()
    nvme.disable()
    nvme.set_admin_queue()
    nvme.enable()
    nvme.set_queue_count(1)
    return nvme.create_pair(1, vector=0)


def test_msi(nvme):
    sq = start_with(nvme, nvme.enable_msi)
    for _ in range(20):
        sq.ok(IO_FLUSH, nsid=1)


def enable_intx(nvme):
    nvme.set_eventfds(INTX, 1)
    nvme.client.set_irqs(INTX, DATA_NONE | ACTION_UNMASK)


def test_intx(nvme):
    sq = start_with(nvme, lambda: enable_intx(nvme))
    for _ in range(20):
        sq.ok(IO_FLUSH, nsid=1)
        nvme.client.set_irqs(INTX, DATA_NONE | ACTION_UNMASK)


@pytest.mark.parametrize("kind", [INTX, "msi"])
def test_interrupt_mask_registers(nvme, kind):
    """INTMS and INTMC, for what is not MSI-X (3.1.3)."""
    sq = start_with(nvme, nvme.enable_msi if kind == "msi" else lambda: enable_intx(nvme))

    def unmask():
        nvme.write(INTMC, 1)

    pending_after(nvme, sq, lambda: nvme.write(INTMS, 1), unmask)


def test_intx_stays_asserted_until_the_head_moves(nvme):
    """A level: unmasking with completions left brings the interrupt again (7.5.1)."""
    sq = start_with(nvme, lambda: enable_intx(nvme))
    nvme.interrupts()
    sq.submit(IO_FLUSH, nsid=1)
    assert nvme.idle([nvme.events[0]], 20)
    assert sq.cq.pop(doorbell=False)
    nvme.write(INTMS, 1)
    nvme.write(INTMC, 1)
    assert nvme.idle([nvme.events[0]], 20), "the line has gone although the head has not moved"
    assert nvme.client.read_int(CONFIG, 6, 2) & 8, "Interrupt Status"
    sq.cq.ring()
    nvme.poll(lambda: not nvme.client.read_int(CONFIG, 6, 2) & 8, "the line stays asserted")


def test_interrupt_disable(nvme):
    """Bit 10 of the command register is for INTx (PCI 6.2.2)."""
    sq = start_with(nvme, lambda: enable_intx(nvme))
    pending_after(nvme, sq, lambda: nvme.client.write_int(CONFIG, 4, 0x0406, 2),
                  lambda: nvme.client.write_int(CONFIG, 4, 0x0006, 2))


def test_no_interrupt_of_an_empty_queue(nvme):
    sq = nvme.start_io(vectors=2)
    sq.ok(IO_FLUSH, nsid=1)
    nvme.interrupts(1)
    nvme.client.set_irqs(MSIX, DATA_NONE | ACTION_MASK, start=1)
    nvme.client.set_irqs(MSIX, DATA_NONE | ACTION_UNMASK, start=1)
    nvme.client.device_info()
    assert not nvme.interrupts(1)


def test_interrupts_that_are_taken_away(nvme):
    sq = nvme.start_io(vectors=2)
    nvme.client.set_irqs(MSIX, DATA_NONE | ACTION_TRIGGER, count=0)
    nvme.interrupts(1)
    sq.cq.vector = None
    sq.ok(IO_FLUSH, nsid=1)
    assert not nvme.interrupts(1)


def test_identify_by_interrupt(nvme):
    nvme.start(vectors=1)
    addr = nvme.put_data(pattern(PAGE))
    nvme.admin.ok(ADMIN_IDENTIFY, prp1=addr, cdw10=CNS_CONTROLLER)
    assert struct.unpack_from("<H", nvme.memory.read(addr, 2))[0] == nvme.client.read_int(
        CONFIG, 0, 2)
