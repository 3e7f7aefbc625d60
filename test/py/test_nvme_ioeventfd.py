# SPDX-License-Identifier: BSD-3-Clause
"""Doorbells rung by eventfds (--ioeventfd): the test is the hypervisor."""

import os
import subprocess

import pytest

from conftest import sample
from vfiouser.hypervisor import MAX_DOORBELLS, Hypervisor, get_io_fds
from vfiouser.nvme import Namespace, Nvme, pattern
from vfiouser.nvme_spec import (ADMIN_DELETE_CQ, ADMIN_DELETE_SQ, DOORBELLS, IO_FLUSH, IO_READ,
                                SUCCESS)

MEMORY = ("--namespace", "memory=64M", "--ioeventfd")
MAX_FDS = 8  # the usual max_msg_fds

pytestmark = pytest.mark.nvme_args(*MEMORY, "--threads", "2")


@pytest.fixture
def bells(nvme):
    """The controller with a hypervisor: no doorbell is a message."""
    hypervisor = Hypervisor(nvme.client)
    nvme.hypervisor = hypervisor
    nvme.ring_doorbell = hypervisor.ring
    yield nvme
    hypervisor.close()


def flush(sq, times=5):
    for _ in range(times):
        sq.ok(IO_FLUSH, nsid=1)


def run_two_disks(nvme, seed=0):
    disks = [Namespace(nvme, sq) for sq in nvme.queues.values()]
    for i in range(50):
        disk = disks[i % len(disks)]
        disk.write(i, pattern(4096, seed + i))
        assert disk.read(i, 4096) == pattern(4096, seed + i)


# What is offered

def test_every_doorbell_has_one(bells):
    records = bells.hypervisor.records
    assert set(records) == set(range(MAX_DOORBELLS))
    for record in records.values():
        assert (record.size, record.flags, record.type) == (4, 0, 2)
    # One for each worker, and the file.
    assert len(bells.hypervisor.fds) == 3


@pytest.mark.nvme_args(*MEMORY, "--threads", "16", "--queues", "16")
def test_descriptors_fit_into_a_message(nvme):
    records, fds = get_io_fds(nvme.client)
    for fd in fds:
        os.close(fd)
    assert len(records) == 34 and len(fds) == MAX_FDS


@pytest.mark.nvme_args("--namespace", "memory=64M")
def test_none_unless_asked_for(nvme):
    assert get_io_fds(nvme.client) == ([], [])


def test_not_together_with_poll():
    result = subprocess.run([sample("nvme"), "socket", *MEMORY, "--poll"], capture_output=True,
                            text=True, check=False)
    assert result.returncode == 2 and "--poll or --ioeventfd" in result.stderr


# I/O

def test_no_message(bells):
    bells.start_io(4, vectors=5)
    run_two_disks(bells)


@pytest.mark.nvme_args(*MEMORY, "--threads", "16", "--queues", "16")
def test_more_workers_than_bells(bells):
    bells.start_io(16)
    run_two_disks(bells)


def test_in_bursts(bells):
    sq = bells.start_io(entries=32)
    addr = bells.alloc(4096)
    for _ in range(50):
        cids = [bells.transfer(sq, IO_READ, i, 8, addr, 4096) for i in range(31)]
        for cid in cids:
            assert sq.wait(cid).status == SUCCESS


@pytest.mark.parametrize("messages", [2, 3])
def test_and_by_message(bells, messages):
    """A client may do either at any time."""
    sq = bells.start_io()
    rung = 0

    def ring(index, value):
        nonlocal rung
        rung += 1
        way = bells.hypervisor.ring if rung % messages else bells.doorbell_by_message
        way(index, value)

    bells.ring_doorbell = ring
    flush(sq, 50)


def test_messages_alone(nvme):
    Namespace(nvme, nvme.start_io()).write(0, pattern(4096))


def test_submission_queue_of_another_worker(bells):
    """It goes where its completion queue is, with the bell of the number that it has."""
    bells.start()
    bells.set_queue_count(4)
    cq = bells.create_cq(1)
    sq = bells.create_sq(2, cq)
    assert bells.hypervisor.bell(4) != bells.hypervisor.bell(2)
    flush(sq, 50)
    # And when it is made anew, where it belongs.
    bells.admin.ok(ADMIN_DELETE_SQ, cdw10=2)
    bells.admin.ok(ADMIN_DELETE_CQ, cdw10=1)
    flush(bells.create_pair(2), 50)


def test_a_full_completion_queue(bells):
    """Commands wait for the head doorbell alone."""
    bells.start()
    bells.set_queue_count(1)
    sq = bells.create_sq(1, bells.create_cq(1, entries=4), 32)
    cids = [sq.put(IO_FLUSH, nsid=1) for _ in range(20)]
    sq.ring()
    for cid in cids:
        assert sq.wait(cid).status == SUCCESS


# What a guest or a client may do

@pytest.mark.parametrize("value", [64, 0x10000, 0xFFFFFFFF])
def test_wrong_tail(bells, value):
    sq = bells.start_io()
    bells.hypervisor.ring(2, value)
    flush(sq)


@pytest.mark.parametrize("value", [1, 64, 0xFFFFFFFF])
def test_wrong_head(bells, value):
    """Of entries that were not posted: it is not believed."""
    sq = bells.start_io()
    bells.hypervisor.ring(3, value)
    flush(sq)


def test_nonsense_in_the_page(bells):
    """Any value in any word, all bells, and then a reset."""
    bells.start_io(2)
    for index in range(2, MAX_DOORBELLS):
        bells.hypervisor.ring(index, 0xFFFFFFFF - index)
    bells.disable()
    bells.start_io(2)
    run_two_disks(bells)


def test_bells_that_mean_nothing(bells):
    """Before the controller is enabled, and of queues that are not there."""
    for index in range(MAX_DOORBELLS):
        os.eventfd_write(bells.hypervisor.fds[bells.hypervisor.bell(index)], 1)
    flush(bells.start_io())
    bells.hypervisor.ring(2 * 64, 1)
    flush(bells.queues[1])


def test_emptied_and_blocking(bells):
    """The client has the eventfds as well: it may read them, and make them block."""
    sq = bells.start_io()
    for fd in {bells.hypervisor.fds[bells.hypervisor.bell(i)] for i in range(MAX_DOORBELLS)}:
        os.set_blocking(fd, False)
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            pass
        os.set_blocking(fd, True)
    flush(sq, 20)
    bells.disable()
    flush(bells.start_io(), 20)


# Resets

def test_values_of_before_a_reset(bells):
    for _ in range(5):
        flush(bells.start_io())
        bells.disable()
        assert not any(bells.hypervisor.words[0x1000 // 4:])


def test_reset_of_the_device(bells):
    for _ in range(3):
        flush(bells.start_io(2))
        bells.client.reset()
        bells.enable_bus_master()
    flush(bells.start_io())


def test_another_client(nvme_server, bells):
    """Each gets a page and eventfds of its own: what the one before still holds does nothing."""
    flush(bells.start_io())
    before = len(nvme_server.fds())
    nvme_server.close_clients()
    bells.hypervisor.ring(2, 7)
    nvme = Nvme(nvme_server.client())
    hypervisor = Hypervisor(nvme.client)
    nvme.ring_doorbell = hypervisor.ring
    sq = nvme.start_io()
    flush(sq)
    tail = hypervisor.words[DOORBELLS // 4 + 2]
    bells.hypervisor.ring(2, (tail + 1) % sq.entries)
    flush(sq)
    assert hypervisor.words[DOORBELLS // 4 + 2] == tail + 5
    for old in bells.hypervisor.fds:
        assert not any(os.path.sameopenfile(old, new) for new in hypervisor.fds
                       if os.fstat(new).st_size)
    assert len(nvme_server.fds()) == before
    hypervisor.close()
