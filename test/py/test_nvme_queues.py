# SPDX-License-Identifier: BSD-3-Clause
"""I/O queues: making and deleting them, wrapping, sharing, and doorbells (4.1, 5.3 to 5.6)."""

import random

import pytest

from vfiouser.nvme import CompletionQueue, Namespace, SubmissionQueue, pattern
from vfiouser.nvme_spec import (ABORT_REQUESTED, ADMIN_AER, ADMIN_CREATE_CQ, ADMIN_CREATE_SQ,
                                ADMIN_DELETE_CQ, ADMIN_DELETE_SQ, ADMIN_IDENTIFY, CNS_CONTROLLER,
                                CQ_INVALID, EVENT_BAD_DOORBELL, EVENT_BAD_DOORBELL_VALUE,
                                EVENT_ERROR, INVALID_FIELD, INVALID_QID, INVALID_QUEUE_DELETION,
                                INVALID_QUEUE_SIZE, INVALID_VECTOR, IO_FLUSH, IO_READ, IO_WRITE,
                                PAGE, PRP_OFFSET, SQ_DELETED, SUCCESS)

QUEUES = 4


@pytest.fixture
def admin(nvme):
    nvme.start()
    assert nvme.set_queue_count(QUEUES) >= QUEUES
    return nvme.admin


def create_cq(nvme, qid, entries=16, flags=1, vector=0, addr=None):
    addr = nvme.alloc(PAGE) if addr is None else addr
    return nvme.admin.run(ADMIN_CREATE_CQ, prp1=addr, cdw10=(entries - 1) << 16 | qid,
                          cdw11=vector << 16 | flags).status


def create_sq(nvme, qid, cqid, entries=16, flags=1, addr=None):
    addr = nvme.alloc(PAGE) if addr is None else addr
    return nvme.admin.run(ADMIN_CREATE_SQ, prp1=addr, cdw10=(entries - 1) << 16 | qid,
                          cdw11=cqid << 16 | flags).status


@pytest.mark.parametrize("arguments, status", [
    ({"qid": 0}, INVALID_QID),
    ({"qid": 0xFFFF}, INVALID_QID),
    ({"qid": 1}, INVALID_QID),  # it is there already
    ({"qid": 2, "entries": 1}, INVALID_QUEUE_SIZE),
    ({"qid": 2, "flags": 0}, INVALID_FIELD),  # not contiguous
    ({"qid": 2, "flags": 3, "vector": 0x7FF}, INVALID_VECTOR),
    ({"qid": 2, "flags": 3, "vector": 0xFFFF}, INVALID_VECTOR),
    ({"qid": 2, "addr": 0x100800}, PRP_OFFSET),
])
def test_wrong_completion_queues(nvme, admin, arguments, status):
    assert create_cq(nvme, 1) == SUCCESS
    assert create_cq(nvme, **arguments) == status
    assert create_cq(nvme, 2) == SUCCESS, "a refused queue leaves nothing behind"


@pytest.mark.parametrize("arguments, status", [
    ({"qid": 0, "cqid": 1}, {INVALID_QID}),
    ({"qid": 0xFFFF, "cqid": 1}, {INVALID_QID}),
    ({"qid": 1, "cqid": 1}, {INVALID_QID}),
    ({"qid": 2, "cqid": 0}, {INVALID_QID, CQ_INVALID}),
    ({"qid": 2, "cqid": 3}, {CQ_INVALID}),
    ({"qid": 2, "cqid": 0xFFFF}, {INVALID_QID, CQ_INVALID}),
    ({"qid": 2, "cqid": 1, "entries": 1}, {INVALID_QUEUE_SIZE}),
    ({"qid": 2, "cqid": 1, "flags": 0}, {INVALID_FIELD}),
    ({"qid": 2, "cqid": 1, "addr": 0x100010}, {PRP_OFFSET}),
])
def test_wrong_submission_queues(nvme, admin, arguments, status):
    assert create_cq(nvme, 1) == SUCCESS
    assert create_sq(nvme, 1, 1) == SUCCESS
    assert create_sq(nvme, **arguments) in status
    assert create_sq(nvme, 2, 1) == SUCCESS


def test_more_entries_than_there_may_be(nvme, admin):
    mqes = nvme.cap.mqes + 1
    if mqes == 0x10000:
        pytest.skip("no more can be asked for")
    assert create_cq(nvme, 1, mqes + 1) == INVALID_QUEUE_SIZE
    assert create_cq(nvme, 1) == SUCCESS
    assert create_sq(nvme, 1, 1, mqes + 1) == INVALID_QUEUE_SIZE


def test_more_queues_than_agreed(nvme):
    nvme.start()
    agreed = nvme.set_queue_count(1)
    assert create_cq(nvme, agreed + 1) == INVALID_QID


def test_largest_queues(nvme, admin):
    entries = nvme.cap.mqes + 1
    cq = CompletionQueue(nvme, 1, entries)
    assert create_cq(nvme, 1, entries, addr=cq.addr) == SUCCESS
    sq = nvme.create_sq(1, cq, entries)
    for _ in range(5):
        sq.ok(IO_FLUSH, nsid=1)


def test_order_of_deletion(nvme, admin):
    nvme.create_pair(1)
    assert admin.run(ADMIN_DELETE_CQ, cdw10=1).status == INVALID_QUEUE_DELETION
    admin.ok(ADMIN_DELETE_SQ, cdw10=1)
    assert admin.run(ADMIN_DELETE_SQ, cdw10=1).status == INVALID_QID
    admin.ok(ADMIN_DELETE_CQ, cdw10=1)
    assert admin.run(ADMIN_DELETE_CQ, cdw10=1).status == INVALID_QID


@pytest.mark.parametrize("qid", [0, 3, 0xFFFF])
@pytest.mark.parametrize("opcode", [ADMIN_DELETE_SQ, ADMIN_DELETE_CQ])
def test_deleting_no_queue(admin, opcode, qid):
    assert admin.run(opcode, cdw10=qid).status == INVALID_QID


def test_a_completion_queue_with_two_users(nvme, admin):
    cq = nvme.create_cq(1, 64)
    queues = [nvme.create_sq(qid, cq) for qid in (1, 2)]
    cids = [(sq, sq.submit(IO_FLUSH, nsid=1)) for _ in range(20) for sq in queues]
    for sq, cid in cids:
        assert sq.wait(cid).status == SUCCESS
    admin.ok(ADMIN_DELETE_SQ, cdw10=2)
    assert admin.run(ADMIN_DELETE_CQ, cdw10=1).status == INVALID_QUEUE_DELETION
    queues[0].ok(IO_FLUSH, nsid=1)


def test_deleting_a_busy_queue(nvme, admin):
    """Every command is completed before the deletion is, one way or the other (5.6)."""
    sq = nvme.create_pair(1, 128)
    for _ in range(20):
        addr = nvme.alloc(64 << 10)
        cids = [sq.put(IO_READ, nsid=1, cdw12=127, **nvme.prps(addr, 64 << 10))
                for _ in range(100)]
        sq.ring()
        admin.ok(ADMIN_DELETE_SQ, cdw10=1)
        for cid in cids:
            completion = sq.cq.pop()
            assert completion is not None, f"command {cid} is left"
            assert completion.status in (SUCCESS, ABORT_REQUESTED, SQ_DELETED)
        assert sq.cq.pop() is None
        sq = nvme.create_sq(1, sq.cq, 128)
        nvme.memory.next = addr


def test_deleted_and_made_again(nvme, admin):
    for entries in (2, 3, 17, 64, 1024):
        sq = nvme.create_pair(2, entries)
        for _ in range(3 * min(entries, 64)):
            sq.ok(IO_FLUSH, nsid=1)
        admin.ok(ADMIN_DELETE_SQ, cdw10=2)
        admin.ok(ADMIN_DELETE_CQ, cdw10=2)


def test_heads_that_are_reported(nvme, admin):
    sq = nvme.create_pair(1, 4)
    for i in range(1, 10):
        completion = sq.ok(IO_FLUSH, nsid=1)
        assert completion.sqhd == i % 4 and completion.sqid == 1 and completion.reserved == 0


def test_a_full_completion_queue_waits(nvme, admin):
    """More commands than completions have room: the controller must not overwrite (4.1.1)."""
    sq = nvme.create_sq(1, nvme.create_cq(1, 4), 64)
    cids = {sq.put(IO_FLUSH, nsid=1) for _ in range(63)}
    sq.ring()
    while cids:
        batch = [nvme.next(sq.cq, doorbell=False) for _ in range(min(3, len(cids)))]
        for completion in batch:
            assert completion.status == SUCCESS
            cids.remove(completion.cid)
        nvme.admin.ok(ADMIN_IDENTIFY, prp1=nvme.alloc(PAGE), cdw10=CNS_CONTROLLER)
        sq.cq.ring()


def test_bursts_that_wrap(nvme, admin):
    """Queues of odd sizes, filled to the brim again and again."""
    rng = random.Random(1)
    sq = nvme.create_pair(1, 13)
    for _ in range(100):
        cids = [sq.put(IO_FLUSH, nsid=1) for _ in range(rng.randint(1, 12))]
        sq.ring()
        for cid in cids:
            assert sq.wait(cid).status == SUCCESS


@pytest.mark.nvme_args("--namespace", "memory=64M", "--threads", "2")
def test_queues_side_by_side(nvme):
    nvme.start_io(QUEUES, entries=32)
    disks = [Namespace(nvme, sq) for sq in nvme.queues.values()]
    for rnd in range(5):
        writes = []
        for i, disk in enumerate(disks):
            data = pattern(32768, 100 * rnd + i)
            addr = nvme.put_data(data)
            cid = nvme.transfer(disk.sq, IO_WRITE, i * 1000, 64, addr, len(data))
            writes.append((disk, cid, data, i * 1000))
        for disk, cid, data, lba in writes:
            assert disk.sq.wait(cid).status == SUCCESS
            assert disk.read(lba, len(data)) == data


# Doorbells (3.1.24, 5.2)

def event(nvme, cid):
    result = nvme.admin.wait(cid).result
    return result & 7, result >> 8 & 0xFF


@pytest.mark.parametrize("index, value, info", [
    (2 * 3, 1, EVENT_BAD_DOORBELL),  # no such submission queue
    (2 * 3 + 1, 1, EVENT_BAD_DOORBELL),
    (2, 16, EVENT_BAD_DOORBELL_VALUE),  # tail behind the end
    (2, 0xFFFF, EVENT_BAD_DOORBELL_VALUE),
    (3, 16, EVENT_BAD_DOORBELL_VALUE),  # head behind the end
    (3, 1, EVENT_BAD_DOORBELL_VALUE),  # head beyond what was completed
])
def test_wrong_doorbells(nvme, admin, index, value, info):
    cid = admin.submit(ADMIN_AER)
    sq = nvme.create_pair(1, 16)
    nvme.doorbell(index, value)
    assert event(nvme, cid) == (EVENT_ERROR, info)
    nvme.identify(CNS_CONTROLLER)
    if index not in (2, 3):
        sq.ok(IO_FLUSH, nsid=1)


def test_wrong_admin_doorbell_value(nvme, admin):
    nvme.doorbell(0, 32)
    nvme.start()
    nvme.identify(CNS_CONTROLLER)


def test_doorbell_of_a_deleted_queue(nvme, admin):
    sq = nvme.create_pair(1)
    admin.ok(ADMIN_DELETE_SQ, cdw10=1)
    cid = admin.submit(ADMIN_AER)
    sq.ring()
    assert event(nvme, cid) == (EVENT_ERROR, EVENT_BAD_DOORBELL)


def test_ringing_twice_for_the_same(nvme, admin):
    sq = nvme.create_pair(1)
    cid = sq.submit(IO_FLUSH, nsid=1)
    sq.ring()
    assert sq.wait(cid).status == SUCCESS
    sq.ring()
    assert sq.ok(IO_FLUSH, nsid=1).sqhd == 2


def test_queue_in_memory_that_goes_away(nvme, admin):
    """A submission queue that cannot be read any more: reset, and go on."""
    slot = nvme.client.add_memory(0x40000000, PAGE)
    cq = nvme.create_cq(1)
    sq = SubmissionQueue(nvme, 1, 64, cq, addr=nvme.alloc(PAGE))
    admin.ok(ADMIN_CREATE_SQ, prp1=slot.addr, cdw10=63 << 16 | 1, cdw11=1 << 16 | 1)
    nvme.client.dma_unmap(slot.addr, slot.size)
    sq.submit(IO_FLUSH, nsid=1)
    nvme.start_io()
    nvme.queues[1].ok(IO_FLUSH, nsid=1)
