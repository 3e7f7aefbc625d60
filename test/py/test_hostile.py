# SPDX-License-Identifier: BSD-3-Clause
"""Clients that do harm, and a server that runs out of something meanwhile."""

import contextlib
import errno
import os
import resource

import pytest

from vfiouser import software_iommu as iommu
from vfiouser import wire
from vfiouser.client import CAPABILITIES
from vfiouser.probe import RESOLVE, Probe
from vfiouser.wire import ACTION_TRIGGER, DATA_EVENTFD, DATA_NONE, INTX, Cmd


@contextlib.contextmanager
def no_more_descriptors(server, client):
    """The server cannot open or receive another one."""
    client.device_info()
    pid = server.process.pid
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = min(set(range(len(used) + 1)) - used)
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, limit[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)


def test_lost_descriptors_refuse_their_command(server, client):
    """
    A map without its file is no map by messages, and an interrupt without its eventfd is not
    switched off. What needs none is served, before and behind.
    """
    slot = client.memory.add(0x10000, 0x1000)
    with os.fdopen(os.eventfd(0, os.EFD_NONBLOCK)) as event:
        client.set_irqs(INTX, DATA_EVENTFD | ACTION_TRIGGER, fds=[event.fileno()])
        with no_more_descriptors(server, client):
            before = client.send(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16))
            mapped = client.send(Cmd.DMA_MAP, client.map_payload(slot), [slot.mem.fd])
            irq = client.send(Cmd.DEVICE_SET_IRQS, wire.IRQ_SET.pack(
                argsz=wire.IRQ_SET.size, flags=DATA_EVENTFD | ACTION_TRIGGER, index=INTX,
                count=1), [event.fileno()])
            surplus = client.send(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16),
                                  [slot.mem.fd])
            assert client.wait(before).error == 0
            assert client.wait(mapped, check=False).error == errno.EMFILE
            assert client.wait(irq, check=False).error == errno.EMFILE
            assert client.wait(surplus).error == 0
        client.set_irqs(INTX, DATA_NONE | ACTION_TRIGGER)
        assert os.eventfd_read(event.fileno()) == 1
    client.dma_map(slot)


@pytest.mark.parametrize("shift", [57, 58, 63])
def test_translation_units_of_half_the_address_space(probe_server, shift):
    """What is asked for is never empty, and never wraps."""
    caps = {**iommu.CAPS, "ats": {**iommu.CAPS["ats"], "page_shift": shift}}
    client = probe_server.client({**CAPABILITIES, "iommu": caps})
    probe = Probe(client)
    probe.enable_ats()
    client.hold()
    probe.slots[0].start(RESOLVE, (1 << 63) - 8, 16)
    asked = wire.ATS_TRANSLATE.unpack(client.next_command().payload)
    assert 0 < asked.length <= (1 << 64) - asked.address
    assert asked.address <= (1 << 63) - 8 < asked.address + asked.length
