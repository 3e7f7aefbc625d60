# SPDX-License-Identifier: BSD-3-Clause
"""Resets of every kind and lost clients under load, and power cuts (7.3, 6.8)."""

import ctypes
import os
import random

import pytest

from test_nvme_admin import get_log
from vfiouser.nvme import Namespace, Nvme, pattern
from vfiouser.nvme_spec import (ACQ, ADMIN_AER, ADMIN_GET_FEATURES, ADMIN_SET_FEATURES, AQA, ASQ,
                                CC, CC_SHN_NORMAL, CNS_CONTROLLER, CSTS, CSTS_RDY, CSTS_SHST_DONE,
                                CSTS_SHST_MASK, FEAT_ASYNC_EVENTS, FEAT_WRITE_CACHE, FUA, INTMS,
                                IO_FLUSH, IO_READ, IO_WRITE, LOG_ERROR, LOG_SMART, SUCCESS)
from vfiouser.wire import CONFIG

SIZE = 32 << 10
BLOCKS = SIZE // 512


def flr(nvme):
    at = nvme.find_capability(0x10)
    assert nvme.client.read_int(CONFIG, at + 4, 4) & 1 << 28, "no function level reset"
    nvme.client.write_int(CONFIG, at + 8, 1 << 15, 2)


RESETS = {
    "controller": lambda nvme: nvme.write(CC, 0),
    "function": flr,
    "device": lambda nvme: nvme.client.reset(),
}


def load(nvme, opcode=IO_READ, count=60):
    """Commands that are not waited for. Returns the buffers, one for each queue."""
    buffers = []
    for sq in nvme.queues.values():
        buffers.append(nvme.alloc(SIZE))
        for i in range(count):
            nvme.transfer(sq, opcode, i * BLOCKS, BLOCKS, buffers[-1], SIZE)
    return buffers


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("opcode", [IO_READ, IO_WRITE])
@pytest.mark.nvme_args("--namespace", "memory=64M", "--threads", "2")
def test_reset_under_load(nvme, reset, opcode):
    """When the reset has ended, nothing of before reaches memory any more."""
    for _ in range(5):
        nvme.enable_bus_master()
        nvme.start_io(2)
        buffers = load(nvme, opcode)
        queues = list(nvme.queues.values())
        RESETS[reset](nvme)
        nvme.wait_ready(0)
        mark = pattern(SIZE, 0xFEED)
        for addr in buffers:
            nvme.memory.write(addr, mark)
        for sq in queues:
            nvme.memory.write(sq.cq.addr, bytes(64 * 16))
        nvme.enable_bus_master()
        disk = Namespace(nvme, nvme.start_io(2))
        disk.write(0, pattern(4096, 1))
        assert disk.read(0, 4096) == pattern(4096, 1)
        for addr in buffers:
            assert nvme.memory.read(addr, SIZE) == mark
        for sq in queues:
            assert not any(nvme.memory.read(sq.cq.addr, 64 * 16))


@pytest.mark.parametrize("reset", ["function", "device"])
def test_registers_after_reset(nvme, reset):
    nvme.start_io()
    RESETS[reset](nvme)
    assert nvme.csts & CSTS_RDY == 0
    assert nvme.read(0x24) == 0 and nvme.read(0x28, 8) == 0 and nvme.read(0x30, 8) == 0
    if reset == "function":
        assert nvme.client.read_int(CONFIG, 4, 2) & 0x0006 == 0


def smart(nvme):
    """Power cycles, unsafe shutdowns, error log entries (figure 194)."""
    data = get_log(nvme, LOG_SMART, 512)
    return [int.from_bytes(data[at:at + 16], "little") for at in (112, 144, 176)]


@pytest.mark.parametrize("shut_down", [False, True])
def test_next_client_meets_a_controller_after_a_reset(nvme_server, shut_down):
    """Nothing of the last host is left, but what its disk counts."""
    client = nvme_server.client()
    nvme = Nvme(client)
    nvme.start_io()
    before = smart(nvme)
    nvme.queues[1].run(0x7F, nsid=1)
    nvme.admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_ASYNC_EVENTS, cdw11=2)
    nvme.admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_WRITE_CACHE, cdw11=0)
    nvme.doorbell(2 * 40, 1)
    nvme.write(INTMS, 0xFF)
    if shut_down:
        nvme.write(CC, nvme.read(CC) | CC_SHN_NORMAL)
        nvme.poll(lambda: nvme.csts & CSTS_SHST_MASK == CSTS_SHST_DONE, "no end of the shutdown")
    client.close()
    nvme = Nvme(nvme_server.client())
    for register in (INTMS, CC, CSTS, AQA, ASQ, ASQ + 4, ACQ, ACQ + 4):
        assert nvme.read(register) == 0, hex(register)
    nvme.start()
    assert nvme.admin.ok(ADMIN_GET_FEATURES, cdw10=FEAT_ASYNC_EVENTS).result == 0
    assert nvme.admin.ok(ADMIN_GET_FEATURES, cdw10=FEAT_WRITE_CACHE).result == 1
    request = nvme.admin.submit(ADMIN_AER)
    assert not any(get_log(nvme, LOG_ERROR, 64))
    assert (0, request) not in nvme.done
    cycles, unsafe, errors = smart(nvme)
    assert cycles == before[0] + 1 and unsafe == before[1] + (not shut_down) and errors > before[2]


def test_namespace_keeps_its_bytes(nvme, disk):
    disk.write(5, pattern(4096, 3))
    for reset in RESETS.values():
        reset(nvme)
        nvme.enable_bus_master()
        assert Namespace(nvme, nvme.start_io()).read(5, 4096) == pattern(4096, 3)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.nvme_args("--namespace", "memory=64M", "--threads", "2")
def test_client_lost_under_load(nvme_server, share):
    """Also while DMA by messages is under way. The next client starts from nothing."""
    for rnd in range(5):
        client = nvme_server.client()
        nvme = Nvme(client)
        if not share:
            nvme.client.dma_unmap(nvme.memory.slot.addr, nvme.memory.slot.size)
            nvme.client.dma_map(nvme.memory.slot, share=False)
        nvme.start_io(2)
        load(nvme, count=60 if share else 5)
        client.close()
    nvme = Nvme(nvme_server.client())
    assert nvme.csts & CSTS_RDY == 0
    nvme.start_io().ok(IO_FLUSH, nsid=1)


@pytest.mark.nvme_args("--namespace", "memory=64M", "--threads", "2")
def test_memory_that_goes_away_under_load(nvme):
    """DMA_UNMAP while the device is at it; afterwards nothing reaches it."""
    for _ in range(10):
        nvme.start_io(2)
        slot = nvme.client.add_memory(0x40000000, 2 * SIZE)
        for at, sq in enumerate(nvme.queues.values()):
            for i in range(60):
                nvme.transfer(sq, IO_READ, i * BLOCKS, BLOCKS, slot.addr + at * SIZE, SIZE)
        nvme.client.dma_unmap(slot.addr, slot.size)
        slot.write(0, pattern(2 * SIZE, 4))
        nvme.identify(CNS_CONTROLLER)
        nvme.disable()
        assert slot.read(0, 2 * SIZE) == pattern(2 * SIZE, 4)
        nvme.client.memory.remove(slot)


# Power cuts: the process is killed. What was promised is there afterwards.

class Shadow:
    """What each page of the disk may hold: everything written since it was last made durable."""

    def __init__(self, pages):
        self.durable = [bytes(4096)] * pages
        self.volatile = [[] for _ in range(pages)]

    def written(self, page, data):
        self.volatile[page].append(data)

    def made_durable(self, page, data):
        self.durable[page] = data
        self.volatile[page].clear()

    def flushed(self):
        for page, versions in enumerate(self.volatile):
            if versions:
                self.made_durable(page, versions[-1])

    def allows(self, page, data):
        return data == self.durable[page] or data in self.volatile[page]


def power_cut_run(nvme, rng, shadow, run):
    """One thing after the other at the end of which some are under way."""
    disk = Namespace(nvme, nvme.start_io())
    pages = len(shadow.durable)
    for step in range(60):
        page = rng.randrange(pages)
        data = pattern(4096, run << 16 | step)
        if rng.random() < 0.3:
            disk.write(page * 8, data, cdw12=FUA | 7)
            shadow.made_durable(page, data)
        elif rng.random() < 0.2:
            disk.sq.ok(IO_FLUSH, nsid=1)
            shadow.flushed()
        else:
            disk.write(page * 8, data)
            shadow.written(page, data)
    for page in rng.sample(range(pages), 20):
        data = pattern(4096, run << 16 | 0x8000 | page)
        nvme.transfer(disk.sq, IO_WRITE, page * 8, 8, nvme.put_data(data), 4096)
        shadow.written(page, data)


@pytest.mark.parametrize("options", ["", ",direct"])
def test_power_cut(start_nvme, tmp_path, options):
    path = tmp_path / "disk"
    pages = 64
    path.write_bytes(bytes(pages * 4096))
    shadow = Shadow(pages)
    rng = random.Random(7)
    for run in range(3):
        server = start_nvme("--namespace", f"file={path}{options}")
        power_cut_run(Nvme(server.client()), rng, shadow, run)
        server.kill()
        server = start_nvme("--namespace", f"file={path}")
        nvme = Nvme(server.client())
        disk = Namespace(nvme, nvme.start_io())
        for page in range(pages):
            data = disk.read(page * 8, 4096)
            assert shadow.allows(page, data), (run, page)
            shadow.made_durable(page, data)
        server.kill()


def test_bytes_of_a_flushed_write_are_in_the_file(start_nvme, tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    nvme = Nvme(start_nvme("--namespace", f"file={path}").client())
    disk = Namespace(nvme, nvme.start_io())
    disk.write(1, pattern(8192, 5))
    completion = disk.sq.run(IO_FLUSH, nsid=1)
    assert completion.status == SUCCESS
    assert path.read_bytes()[512:512 + 8192] == pattern(8192, 5)


# Durable means on the disk: the kernel tells which pages of a file are not.

SYS_CACHESTAT = 451


def unwritten_pages(path):
    """Pages of the file that are dirty or being written (cachestat(2)); None: it cannot be told."""
    libc = ctypes.CDLL(None, use_errno=True)
    span, stat = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    with open(path, "rb") as file:
        if libc.syscall(SYS_CACHESTAT, file.fileno(), span, stat, 0) != 0:
            return None
    return stat[1] + stat[2]


@pytest.fixture
def cached_disk(start_nvme, tmp_path):
    """A namespace whose file tells what it has not written yet."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    if unwritten_pages(path) != 0:
        pytest.skip("neither kernel nor file system say what is written")
    nvme = Nvme(start_nvme("--namespace", f"file={path}").client())
    disk = Namespace(nvme, nvme.start_io())
    disk.path = path
    return disk


def test_fua_is_durable(cached_disk):
    cached_disk.write(8, pattern(8192, 6), cdw12=FUA | 15)
    assert unwritten_pages(cached_disk.path) == 0


def test_flush_makes_durable(cached_disk):
    for i in range(8):
        cached_disk.write(8 * i, pattern(4096, 7))
    cached_disk.sq.ok(IO_FLUSH, nsid=1)
    assert unwritten_pages(cached_disk.path) == 0


def test_without_write_cache_every_write_is_durable(cached_disk):
    cached_disk.nvme.admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_WRITE_CACHE, cdw11=0)
    cached_disk.write(8, pattern(8192, 8))
    assert unwritten_pages(cached_disk.path) == 0


def test_shutdown_makes_durable(cached_disk):
    nvme = cached_disk.nvme
    cached_disk.write(8, pattern(8192, 9))
    nvme.write(CC, nvme.read(CC) | CC_SHN_NORMAL)
    nvme.poll(lambda: nvme.csts & CSTS_SHST_MASK == CSTS_SHST_DONE, "the shutdown does not end")
    assert unwritten_pages(cached_disk.path) == 0
