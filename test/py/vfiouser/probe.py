# SPDX-License-Identifier: BSD-3-Clause
"""The registers of test/device/iommu_probe.c."""

import struct
import time
from types import SimpleNamespace

from . import software_iommu as iommu
from . import wire
from .channel import TIMEOUT
from .wire import BAR0, CONFIG

NO_PASID = 0xFFFFFFFF
RESOLVE, RELEASE, READ, WRITE, CANCEL, TRANSLATE, PAGE_REQUEST, KEEP, PASID_STOP, INV_DONE = \
    range(1, 11)
IDLE, PENDING, HELD, DONE, FAILED, REVOKED = range(6)
NO_FAULT, NO_TRANSLATE = 1, 2

STATS = ("hits misses entries evictions translations joined discarded invalidations "
         "invalidations_pending pages groups groups_pending pages_joined page_failures faults "
         "protocol_errors late_replies").split()


class Slot:
    def __init__(self, probe, index):
        self.probe = probe
        self.client = probe.client
        self.base = 0x100 * index
        self.buffer = 0x100000 + 0x2000 * index

    def command(self, command):
        self.client.write_int(BAR0, self.base + 0x20, command)

    def start(self, command, addr=0, length=8, pasid=None, prot=1, attrs=0, flags=0):
        data = struct.pack("=QQIIII", addr, length, NO_PASID if pasid is None else pasid, attrs,
                           prot, flags)
        self.client.region_write(BAR0, self.base, data)
        self.command(command)

    @property
    def status(self):
        return self.client.read_int(BAR0, self.base + 0x24)

    def wait(self):
        """Polls until the command has ended; reading the register serves the server's commands."""
        deadline = time.monotonic() + TIMEOUT
        while self.status == PENDING:
            assert time.monotonic() < deadline, "the access does not end"
        return self.result()

    def result(self):
        data = self.client.region_read(BAR0, self.base + 0x24, 0x24)
        fields = struct.unpack_from("=III", data)
        return SimpleNamespace(status=fields[0], error=fields[1], nr_sgs=fields[2],
                               fault_addr=int.from_bytes(data[0xC:0x14], "little"),
                               perm=int.from_bytes(data[0x14:0x18], "little"),
                               code=int.from_bytes(data[0x18:0x1C], "little"),
                               translated=int.from_bytes(data[0x1C:0x24], "little"))

    def read(self, addr, length=8, **kwargs):
        """The bytes, or the errno of the access."""
        self.start(READ, addr, length, **kwargs)
        result = self.wait()
        if result.status == FAILED:
            return result.error
        assert result.status == DONE, result
        return self.client.region_read(BAR0, self.buffer, length)

    def write(self, addr, data, **kwargs):
        self.client.region_write(BAR0, self.buffer, data)
        self.start(WRITE, addr, len(data), prot=2, **kwargs)
        result = self.wait()
        return result.error if result.status == FAILED else 0

    def hold(self, addr, length=8, command=RESOLVE, **kwargs):
        self.start(command, addr, length, **kwargs)
        result = self.wait()
        assert result.status == HELD, result
        return self

    def release(self):
        self.command(RELEASE)


class Probe:
    """The device, behind an IOMMU of the client's."""

    def __init__(self, client, soft_iommu=None):
        self.client = client
        self.iommu = soft_iommu or iommu.SoftIommu(client)
        self.slots = [Slot(self, i) for i in range(16)]

    def stats(self):
        data = self.client.region_read(BAR0, 0x8000, 8 * len(STATS))
        return SimpleNamespace(**dict(zip(STATS, struct.unpack(f"={len(STATS)}Q", data))))

    # Extended capabilities

    def find(self, cap_id):
        at = 0x100
        while at:
            header = self.client.read_int(CONFIG, at)
            if header & 0xFFFF == cap_id:
                return at
            at = header >> 20
        return None

    def register(self, cap_id, offset, value=None, size=2):
        at = self.find(cap_id)
        assert at, f"no capability {cap_id:#x}"
        if value is None:
            return self.client.read_int(CONFIG, at + offset, size)
        self.client.write_int(CONFIG, at + offset, value, size)
        return value

    def enable_pasid(self, bits=7):
        self.register(iommu.PASID, 6, bits)

    def enable_ats(self, on=True):
        self.register(iommu.ATS, 6, 0x8000 if on else 0)

    def enable_pri(self, allocation=512):
        self.register(iommu.PRI, 12, allocation, 4)
        self.register(iommu.PRI, 4, 1)

    def pri_status(self):
        return self.register(iommu.PRI, 6)

    def enable(self, share=True):
        """Everything, in the order in which a driver does it."""
        self.iommu.register_memory(share)
        self.enable_pasid()
        self.enable_ats()
        self.enable_pri()
