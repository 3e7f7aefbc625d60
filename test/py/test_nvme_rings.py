# SPDX-License-Identifier: BSD-3-Clause
"""Queues whose memory the client takes away and brings back (DMA_UNMAP, DMA_MAP)."""

import pytest

from vfiouser.nvme import Namespace, pattern
from vfiouser.nvme_spec import CSTS_CFS, IO_READ


@pytest.mark.parametrize("everything", [False, True])
def test_idle_queues_let_go_of_their_memory(nvme, everything):
    """The reply to an unmap waits for what uses the memory: idle queues do not hold it."""
    disk = Namespace(nvme, nvme.start_io(2))
    disk.write(0, pattern(8192, 3))
    slot = nvme.memory.slot
    for _ in range(3):
        if everything:
            nvme.client.dma_unmap(0, 0, flags=2)
        else:
            nvme.client.dma_unmap(slot.addr, slot.size)
        nvme.client.dma_map(slot)
        assert disk.read(0, 8192) == pattern(8192, 3)


def test_busy_queues_let_go_of_their_memory(nvme):
    """Commands under way meet memory that has gone; the next reset brings everything back."""
    slot = nvme.memory.slot
    for _ in range(10):
        nvme.start_io(2)
        addr = nvme.alloc(32 << 10)
        for sq in nvme.queues.values():
            for i in range(60):
                nvme.transfer(sq, IO_READ, i * 64, 64, addr, 32 << 10)
        nvme.client.dma_unmap(slot.addr, slot.size)
        nvme.client.dma_map(slot)
        nvme.memory.next = nvme.memory.base
    nvme.start_io()
    assert not nvme.csts & CSTS_CFS
