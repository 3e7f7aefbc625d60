# SPDX-License-Identifier: BSD-3-Clause
"""Commands that wait for a page which nobody brings in: what ends their waiting, and what does not."""

import struct

import pytest

from test_nvme_iommu import PRI, attach
from test_nvme_migration import RUNNING, STOP, set_state
from vfiouser import wire
from vfiouser.nvme import CompletionQueue, Namespace, pattern
from vfiouser.nvme_spec import (ADMIN_ABORT, ADMIN_CREATE_CQ, ADMIN_DELETE_SQ,
                                ADMIN_DOORBELL_BUFFER, CNS_CONTROLLER, IO_FLUSH, IO_READ, IO_WRITE,
                                PAGE, SUCCESS)

ABORT_REQUESTED, ABORTED_BY_DELETION, SEQUENCE_ERROR = 0x07, 0x08, 0x0C
NOWHERE = 0x7000000000


class Waiting:
    """A queue whose command waits; the page requests are kept."""

    def __init__(self, server):
        self.nvme = attach(server, pri=True)
        self.disk = Namespace(self.nvme, self.nvme.start_io(2))
        self.held = []
        self.nvme.client.handlers[wire.Cmd.PAGE_REQUEST] = self.held.append
        self.sq = self.disk.sq

    def submit(self, opcode=IO_READ):
        cid = self.nvme.transfer(self.sq, opcode, 0, 8, NOWHERE, PAGE)
        self.nvme.poll(lambda: self.nvme.csts is not None and self.held, "no page request")
        return cid

    def bring_in(self):
        soft_iommu = self.nvme.memory.iommu
        if self.nvme.memory.table.find(NOWHERE) is None:
            self.nvme.memory.table.map(NOWHERE, soft_iommu.frame(next(self.nvme.memory.frames)))
        soft_iommu.on_fault = lambda key, iova, perm: wire.PAGE_SUCCESS
        self.nvme.client.handlers[wire.Cmd.PAGE_REQUEST] = soft_iommu.page_request
        for request in self.held:
            soft_iommu.page_request(request)


@pytest.fixture
def waiting(nvme_server):
    return Waiting(nvme_server)


@PRI
def test_others_go_on(waiting):
    cid = waiting.submit()
    waiting.nvme.queues[2].ok(IO_FLUSH, nsid=1)
    waiting.sq.ok(IO_FLUSH, nsid=1)
    waiting.disk.write(0, pattern(PAGE, 9))
    waiting.bring_in()
    assert waiting.sq.wait(cid).status == SUCCESS
    assert waiting.nvme.memory.read(NOWHERE, 8) in (pattern(8, 9), bytes(8))


@PRI
@pytest.mark.parametrize("opcode", [IO_READ, IO_WRITE])
def test_abort(waiting, opcode):
    cid = waiting.submit(opcode)
    assert waiting.nvme.admin.ok(ADMIN_ABORT, cdw10=cid << 16 | waiting.sq.qid).result & 1 == 0
    assert waiting.sq.wait(cid).status == ABORT_REQUESTED
    assert waiting.nvme.admin.ok(ADMIN_ABORT, cdw10=cid << 16 | waiting.sq.qid).result & 1 == 1
    waiting.bring_in()
    waiting.sq.ok(IO_FLUSH, nsid=1)


@PRI
def test_deletion_of_the_queue(waiting):
    cid = waiting.submit()
    waiting.nvme.admin.ok(ADMIN_DELETE_SQ, cdw10=waiting.sq.qid)
    assert waiting.sq.wait(cid).status == ABORTED_BY_DELETION
    waiting.bring_in()
    waiting.nvme.queues[2].ok(IO_FLUSH, nsid=1)


@PRI
def test_stopped_for_migration(waiting):
    """It is put off, and begins again."""
    waiting.disk.write(0, pattern(PAGE, 5))
    cid = waiting.submit()
    for _ in range(3):
        set_state(waiting.nvme.client, STOP)
        set_state(waiting.nvme.client, RUNNING)
        waiting.nvme.queues[2].ok(IO_FLUSH, nsid=1)
    waiting.bring_in()
    assert waiting.sq.wait(cid).status == SUCCESS
    assert waiting.nvme.memory.read(NOWHERE, PAGE) == pattern(PAGE, 5)


@PRI
@pytest.mark.parametrize("end", ["reset", "stop"])
@pytest.mark.parametrize("qid", [1, 2])
def test_deletion_while_the_completion_queue_waits(nvme_server, qid, end):
    """The completion cannot be posted; the deletion must not keep the controller from its end."""
    nvme = attach(nvme_server, pri=True).start()
    held = []
    nvme.client.handlers[wire.Cmd.PAGE_REQUEST] = held.append
    nvme.admin.ok(ADMIN_CREATE_CQ, prp1=NOWHERE, cdw10=63 << 16 | qid, cdw11=1)
    sq = nvme.create_sq(qid, CompletionQueue(nvme, qid, 64))
    sq.submit(IO_FLUSH, nsid=1)
    nvme.poll(lambda: nvme.csts is not None and held, "no page request")
    nvme.admin.submit(ADMIN_DELETE_SQ, cdw10=qid)
    nvme.identify(CNS_CONTROLLER)
    if end == "stop":
        set_state(nvme.client, STOP)
        set_state(nvme.client, RUNNING)
    nvme.disable()


@pytest.mark.nvme_args("--namespace", "memory=1M", "--threads", "16", "--ats", "--pri")
def test_doorbell_buffers_set_up_twice(waiting):
    """Both wait for the same page; one of them is too many, unless the other is done already."""
    nvme = waiting.nvme
    wanted = nvme.alloc(PAGE)
    cids = [nvme.admin.put(ADMIN_DOORBELL_BUFFER, prp1=NOWHERE, prp2=wanted) for _ in range(2)]
    nvme.admin.ring()
    nvme.poll(lambda: nvme.csts is not None and waiting.held, "no page request")
    nvme.identify(CNS_CONTROLLER)
    waiting.bring_in()
    first, second = sorted(nvme.admin.wait(cid).status for cid in cids)
    assert first == SUCCESS and second in (SUCCESS, SEQUENCE_ERROR)
    nvme.disable()


@PRI
def test_shadow_doorbell_of_a_new_queue(waiting):
    """Both buffers are there when the command ends; what the host writes there then stays."""
    nvme = waiting.nvme.start()
    values, entry = nvme.alloc(PAGE), 4 * 2 * 2
    config = nvme.admin.submit(ADMIN_DOORBELL_BUFFER, prp1=values, prp2=NOWHERE)
    nvme.poll(lambda: nvme.csts is not None and waiting.held, "no page request")
    assert nvme.admin.cq.pop() is None
    waiting.bring_in()
    nvme.memory.write(NOWHERE, b"\xff" * PAGE)
    assert nvme.admin.wait(config).status == SUCCESS
    sq = nvme.create_pair(2)
    cid = sq.put(IO_FLUSH, nsid=1)
    nvme.memory.write(values + entry, struct.pack("<I", sq.tail))
    nvme.poll(lambda: nvme.memory.read(NOWHERE + entry, 4) != b"\xff" * 4, "no use of the shadows")
    sq.ring()
    assert sq.wait(cid).status == SUCCESS
