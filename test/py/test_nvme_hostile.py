# SPDX-License-Identifier: BSD-3-Clause
"""A guest that writes whatever into its queues, lists and doorbells: the controller survives it."""

import pytest

from test_nvme_iommu import attach, remap
from vfiouser.nvme import Namespace, pattern
from vfiouser.nvme_chaos import Chaos
from vfiouser.nvme_spec import PAGE
from vfiouser.wire import Cmd

DISKS = pytest.mark.nvme_args("--namespace", "memory=64M", "--namespace", "memory=1M,block=4096",
                              "--threads", "3")
NOWHERE = 0x7000000000
ENTRIES = 64


class ChaosBehindIommu(Chaos):
    """Some pages never come, and others move."""

    def address(self):
        if self.rng.random() < 0.3:
            return NOWHERE + PAGE * self.rng.randrange(40)
        return self.area + 8 * self.rng.randrange(60 * PAGE // 8)

    def disturb(self):
        if self.rng.random() < 0.3:
            remap(self.nvme, self.area + PAGE * self.rng.randrange(64))
        return super().disturb()


def check_second_namespace(nvme):
    for sq in nvme.queues.values():
        disk = Namespace(nvme, sq, 2, 4096)
        disk.write(sq.qid, pattern(4096, sq.qid))
        assert disk.read(sq.qid, 4096) == pattern(4096, sq.qid)


@DISKS
def test_queues_come_and_go(nvme):
    for seed in range(30):
        nvme.memory.next = nvme.memory.base
        nvme.start_io(2, ENTRIES)
        Chaos(nvme, seed).queues_come_and_go(15)
        if seed % 2:
            nvme.client.reset()
        nvme.enable_bus_master()
        nvme.memory.next = nvme.memory.base
        nvme.start_io(3)
        check_second_namespace(nvme)


@pytest.mark.nvme_args(*DISKS.args, "--ats", "--pri")
def test_queues_come_and_go_behind_an_iommu(nvme_server):
    nvme = attach(nvme_server, pri=True)
    nvme.client.handlers[Cmd.PAGE_REQUEST] = lambda message: None
    base = nvme.memory.next
    for seed in range(30):
        nvme.memory.next = base
        nvme.start_io(2, ENTRIES)
        ChaosBehindIommu(nvme, seed).queues_come_and_go(15)
        nvme.enable_bus_master()
        nvme.memory.next = base
        nvme.start_io(3)
        check_second_namespace(nvme)


@pytest.mark.parametrize("share", [True, False])
@DISKS
def test_chaos(nvme, share):
    for seed in range(40 if share else 4):
        if not share and nvme.memory.slot in nvme.client.memory.slots:
            nvme.client.dma_unmap(nvme.memory.slot.addr, nvme.memory.slot.size)
            nvme.client.dma_map(nvme.memory.slot, share=False)
        nvme.memory.next = nvme.memory.base
        nvme.start_io(2, ENTRIES)
        Chaos(nvme, seed).run([nvme.admin, *nvme.queues.values()], 60 if share else 30)
        assert nvme.client.device_info().num_regions == 9
    nvme.memory.next = nvme.memory.base
    nvme.client.reset()
    nvme.enable_bus_master()
    disk = Namespace(nvme, nvme.start_io())
    disk.write(0, pattern(4096))
    assert disk.read(0, 4096) == pattern(4096)
