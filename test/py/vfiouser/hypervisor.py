# SPDX-License-Identifier: BSD-3-Clause
"""A hypervisor that rings an NVMe controller's doorbells by eventfds (DEVICE_GET_REGION_IO_FDS)."""

import mmap
import os

from . import wire
from .nvme_spec import DOORBELLS
from .wire import BAR0, Cmd

MAX_DOORBELLS = 2 * 65


def get_io_fds(client):
    size = wire.REGION_IO_FDS.size + MAX_DOORBELLS * wire.IOEVENTFD.size
    reply = client.request(Cmd.DEVICE_GET_REGION_IO_FDS, wire.REGION_IO_FDS.pack(
        argsz=size, flags=0, index=BAR0, count=0))
    head = wire.REGION_IO_FDS.unpack(reply.payload[:wire.REGION_IO_FDS.size])
    records = wire.IOEVENTFD.unpack_array(reply.payload[wire.REGION_IO_FDS.size:], head.count)
    return records, reply.fds


class Hypervisor:
    """Does with the guest's doorbells what the device wants."""

    def __init__(self, client):
        records, self.fds = get_io_fds(client)
        self.records = {(r.gpa_offset - DOORBELLS) // 4: r for r in records}
        shadow, = {r.shadow_mem_fd_index for r in records}
        self.map = mmap.mmap(self.fds[shadow], os.fstat(self.fds[shadow]).st_size)
        self.words = memoryview(self.map).cast("I")

    def bell(self, index):
        return self.records[index].fd_index

    def store(self, index, value):
        self.words[self.records[index].shadow_offset // 4] = value

    def ring(self, index, value):
        self.store(index, value)
        os.eventfd_write(self.fds[self.bell(index)], 1)

    def close(self):
        self.words.release()
        self.map.close()
        for fd in self.fds:
            os.close(fd)
