# SPDX-License-Identifier: BSD-3-Clause
"""A running NVMe controller goes from one process to another (vfio-user migration)."""

import errno
import random
import struct

import pytest

from vfiouser.client import VfioUserError
from vfiouser.hypervisor import Hypervisor
from vfiouser.migration import (PRE_COPY, RESUMING, RUNNING, STOP, STOP_COPY, load, of_device, save,
                                set_state, with_device)
from vfiouser.nvme import Namespace, Nvme, pattern
from vfiouser.nvme_spec import (ADMIN_AER, ADMIN_GET_FEATURES, ADMIN_SET_FEATURES, CC, CC_ENABLE,
                                CC_IO_ENTRIES, CSTS_RDY, IO_FLUSH, IO_READ, IO_WRITE, SUCCESS)
from vfiouser.wire import ACTION_TRIGGER, BAR0, CONFIG, DATA_EVENTFD, MSIX

TEMPERATURE = 0x04
SIZE = 32 << 10
BLOCKS = SIZE // 512


def start_again(server):
    """The migration state outlives clients; the controller is in reset."""
    client = server.client()
    set_state(client, RUNNING)
    client.close()


class Pair:
    """Two servers of the same disk, of which the first has the guest."""

    def __init__(self, start_nvme, path, threads=("2", "2"), options=()):
        path.write_bytes(bytes(64 << 20))
        self.servers = [start_nvme("--namespace", f"file={path},shared", "--threads", n, *options)
                        for n in threads]
        self.nvme = Nvme(self.servers[0].client())

    def move(self, before=lambda: None, pre_copy=False):
        """The guest's memory stays where it is, and its driver notices nothing."""
        nvme, source = self.nvme, self.nvme.client
        self.servers.reverse()
        target = self.servers[0].client()
        set_state(target, RESUMING)
        if pre_copy:
            set_state(source, PRE_COPY)
            assert not save(source)
        before()
        set_state(source, STOP_COPY)
        state = save(source)
        load(target, state)
        target.memory, source.memory = source.memory, target.memory
        target.dma_map(nvme.memory.slot)
        nvme.client = target
        if nvme.events:
            target.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, count=len(nvme.events),
                            fds=nvme.events)
        set_state(target, RUNNING)
        source.close()
        start_again(self.servers[1])
        return state


@pytest.fixture
def pair(start_nvme, tmp_path):
    return Pair(start_nvme, tmp_path / "disk")


@pytest.mark.parametrize("pre_copy", [False, True])
def test_there_and_back_under_load(pair, pre_copy):
    nvme = pair.nvme
    nvme.start_io(4)
    addr = nvme.alloc(SIZE)
    for turn in range(6):
        data = [pattern(SIZE, 100 * turn + i) for i in range(40)]
        pages = [nvme.put_data(part) for part in data]
        cids = []

        def submit():
            for i, page in enumerate(pages):
                sq = nvme.queues[1 + i % 4]
                cids.append((sq, nvme.transfer(sq, IO_WRITE, i * BLOCKS, BLOCKS, page, SIZE)))

        pair.move(submit, pre_copy)
        for sq, cid in cids:
            assert sq.wait(cid).status == SUCCESS
        for i, part in enumerate(data):
            sq = nvme.queues[1 + (i + turn) % 4]
            cid = nvme.transfer(sq, IO_READ, i * BLOCKS, BLOCKS, addr, SIZE)
            assert sq.wait(cid).status == SUCCESS
            assert nvme.memory.read(addr, SIZE) == part
        nvme.memory.next = pages[0]


def test_interrupts_go_with_it(pair):
    """Vector 2 fires as vector 2; one that is pending is delivered once its mask has gone."""
    nvme = pair.nvme
    sq = nvme.start_io(2, vectors=3)
    at = nvme.find_capability(0x11)
    table = nvme.client.read_int(CONFIG, at + 4, 4)
    control = (table & ~7) + 16 * 2 + 12
    nvme.client.write_int(table & 7, control, 1)
    sq = nvme.queues[2]
    cid = sq.submit(IO_FLUSH, nsid=1)
    nvme.poll(lambda: nvme.client.read_int(table & 7, 0x1000) == 1 << 2, "nothing is pending")
    for _ in range(2):
        pair.move()
    assert nvme.client.read_int(CONFIG, at + 2, 2) & 0x8000
    nvme.client.write_int(table & 7, control, 0)
    assert nvme.idle([nvme.events[2]], 20), "the interrupt is lost"
    assert sq.wait(cid).status == SUCCESS
    pair.move()
    for vector in range(3):
        nvme.interrupts(vector)
    cid = sq.submit(IO_FLUSH, nsid=1)
    assert nvme.idle([nvme.events[2]], 20), "another vector"
    assert sq.wait(cid).status == SUCCESS
    assert not nvme.interrupts(0) and not nvme.interrupts(1)


def test_what_the_driver_has_set_stays(pair):
    nvme = pair.nvme
    nvme.start_io()
    nvme.admin.ok(ADMIN_SET_FEATURES, cdw10=TEMPERATURE, cdw11=350)
    nvme.admin.ok(ADMIN_SET_FEATURES, cdw10=0x0B, cdw11=2)
    event = nvme.admin.submit(ADMIN_AER)
    pair.move()
    assert nvme.csts & CSTS_RDY and nvme.read(CC) & 1
    assert nvme.admin.ok(ADMIN_GET_FEATURES, cdw10=TEMPERATURE).result == 350
    nvme.admin.ok(ADMIN_SET_FEATURES, cdw10=TEMPERATURE, cdw11=300)
    assert nvme.admin.wait(event).result & 7 == 1, "the event of the temperature"
    Namespace(nvme, nvme.queues[1]).write(0, pattern(4096))


def test_fewer_threads_on_the_other_side(start_nvme, tmp_path):
    pair = Pair(start_nvme, tmp_path / "disk", ("4", "1"))
    pair.nvme.start_io(8)
    for _ in range(3):
        pair.move()
        for sq in pair.nvme.queues.values():
            disk = Namespace(pair.nvme, sq)
            disk.write(8 * sq.qid, pattern(4096, sq.qid))
            assert disk.read(8 * sq.qid, 4096) == pattern(4096, sq.qid)


def test_a_controller_that_is_off(pair):
    pair.move()
    assert not pair.nvme.csts
    Namespace(pair.nvme, pair.nvme.start_io()).write(0, pattern(4096))


def test_stopped_and_on_again(nvme):
    nvme.start_io(2)
    addr = nvme.alloc(SIZE)
    for _ in range(5):
        cids = [(sq, nvme.transfer(sq, IO_READ, i * BLOCKS, BLOCKS, addr, SIZE))
                for sq in nvme.queues.values() for i in range(50)]
        set_state(nvme.client, STOP)
        mark = pattern(SIZE, 0xFEED)
        nvme.memory.write(addr, mark)
        nvme.read(CC)
        assert nvme.memory.read(addr, SIZE) == mark, "it moves while it is stopped"
        set_state(nvme.client, RUNNING)
        for sq, cid in cids:
            assert sq.wait(cid).status == SUCCESS


def test_client_lost_while_stopped(nvme_server, nvme):
    nvme.start_io(2)
    set_state(nvme.client, STOP_COPY)
    nvme.client.close()
    start_again(nvme_server)
    again = Nvme(nvme_server.client())
    Namespace(again, again.start_io()).write(0, pattern(4096))


def test_states_that_are_none(start_nvme, tmp_path):
    """Whatever is wrong in it is refused, or harmless: the device goes on."""
    rng = random.Random(7)
    pair = Pair(start_nvme, tmp_path / "disk")
    pair.nvme.start_io(4)
    pair.nvme.admin.submit(ADMIN_AER)
    set_state(pair.nvme.client, STOP_COPY)
    stream = save(pair.nvme.client)
    state = of_device(stream)
    target = pair.servers[1].client()
    for turn in range(300):
        bad = bytearray(state)
        for _ in range(rng.choice([1, 1, 4, 64])):
            at = rng.randrange(0, len(bad) // 4 * 4, 4)
            bad[at:at + 4] = struct.pack("<I", rng.choice(
                [0, 1, 2, 0xFF, 0xFFFF, 0xFFFFFFFF, rng.getrandbits(32)]))
        if turn % 10 == 0:
            bad = bad[:rng.randrange(len(bad))]
        set_state(target, RESUMING)
        load(target, with_device(stream, bytes(bad)), 65536)
        try:
            set_state(target, RUNNING)
        except VfioUserError as error:
            assert error.errno == errno.EINVAL
        target.read_int(BAR0, CC)
    set_state(target, RESUMING)
    with pytest.raises(VfioUserError):
        for _ in range(100):
            load(target, bytes(65536), 65536)
    target.close()
    pair.nvme.client.close()
    for server in pair.servers:
        start_again(server)


class Received:
    """A server that is to take a state, and the state of a controller with queues."""

    # Of the state: where CC is, and the size of a queue; there are 65 of each kind at the end.
    CC_AT, QUEUE, QUEUES = 536, 32, 65

    def __init__(self, pair):
        pair.nvme.start_io(4)
        set_state(pair.nvme.client, STOP_COPY)
        self.stream = save(pair.nvme.client)
        self.state = bytearray(of_device(self.stream))
        self.pair = pair
        self.target = pair.servers[1].client()

    def without_admin_queue(self):
        struct.pack_into("<II", self.state, self.CC_AT, 0, 0)
        for kinds in (1, 2):
            at = len(self.state) - kinds * self.QUEUES * self.QUEUE
            self.state[at:at + self.QUEUE] = bytes(self.QUEUE)

    def take(self, before=lambda: None):
        set_state(self.target, RESUMING)
        before()
        load(self.target, with_device(self.stream, bytes(self.state)), 65536)
        set_state(self.target, RUNNING)

    def close(self):
        """The device goes on, whatever came."""
        self.target.close()
        self.pair.nvme.client.close()
        for server in self.pair.servers:
            start_again(server)
        nvme = Nvme(self.pair.servers[1].client())
        Namespace(nvme, nvme.start_io(4)).write(0, pattern(4096))


def test_queues_of_a_controller_that_is_off(pair):
    received = Received(pair)
    received.without_admin_queue()
    for _ in range(3):
        with pytest.raises(VfioUserError):
            received.take()
    received.close()


def test_enabled_before_its_state_comes(pair):
    received = Received(pair)

    def enable():
        nvme = Nvme(received.target)
        nvme.set_admin_queue()
        nvme.write(CC, CC_ENABLE | CC_IO_ENTRIES)

    received.take(enable)
    received.close()


def test_doorbells_by_eventfds(start_nvme, tmp_path):
    """Rung when the device has stopped already, and at the other side."""
    pair = Pair(start_nvme, tmp_path / "disk", threads=("2", "1"), options=("--ioeventfd",))
    nvme = pair.nvme
    hypervisor = Hypervisor(nvme.client)
    nvme.ring_doorbell = hypervisor.ring
    nvme.start_io(2)
    for _ in range(3):
        cids = []

        def stop_and_ring():
            set_state(nvme.client, STOP)
            cids.extend((sq, sq.submit(IO_FLUSH, nsid=1)) for sq in nvme.queues.values())

        pair.move(stop_and_ring)
        hypervisor.close()
        hypervisor = Hypervisor(nvme.client)
        nvme.ring_doorbell = hypervisor.ring
        for sq, cid in cids:
            assert sq.wait(cid).status == SUCCESS
        for sq in nvme.queues.values():
            sq.ok(IO_FLUSH, nsid=1)
    hypervisor.close()
