# SPDX-License-Identifier: BSD-3-Clause
"""
The IOMMU extension proposed to a device that does not have it: the session is a plain one. The
rules' names are those of docs/vfio-user-iommu.rst.
"""

import errno

import pytest

from vfiouser import edu as hw
from vfiouser import wire
from vfiouser.client import version_payload
from vfiouser.edu import Edu
from vfiouser.iommu import CAPABILITIES
from vfiouser.wire import Cmd

ALL_PARTS = CAPABILITIES["iommu"]

PROPOSALS = {
    "everything": ALL_PARTS,
    "nothing": {},
    "PASID": {"pasid": ALL_PARTS["pasid"]},
    "ATS": {"ats": ALL_PARTS["ats"]},
    "PRI": {"pri": ALL_PARTS["pri"]},
    "PASID and ATS": {"pasid": ALL_PARTS["pasid"], "ats": ALL_PARTS["ats"]},
    "ATS and PRI": {"ats": ALL_PARTS["ats"], "pri": ALL_PARTS["pri"]},
    "defaults": {"pasid": {}, "ats": {}, "pri": {}},
    "unknown members": {"pasid": {"colour": "red"}, "smell": [], "ats": {"x": {}}},
    "smallest": {"pasid": {"bits": 1}, "ats": {"queue_depth": 1, "page_shift": 12,
                                               "max_entries": 1}, "pri": {"max_requests": 1}},
    "largest": {"pasid": {"bits": 20}, "ats": {"queue_depth": 32, "page_shift": 63,
                                               "max_entries": 2147483647},
                "pri": {"max_requests": 2147483647}},
}


@pytest.mark.parametrize("name", PROPOSALS)
def test_plain_session_with_a_device_without_it(server, name):
    """NEG-2, NEG-3, NEG-4."""
    client = server.client({"iommu": PROPOSALS[name]})
    assert "iommu" not in client.capabilities
    edu = Edu(client)
    edu.enable_bus_master()
    slot = client.add_memory(0, 0x1000, share=False)
    slot.write(0, b"plain")
    edu.copy(0, 0x800, 5)
    assert slot.read(0x800, 5) == b"plain"
    payload = wire.ATS_INVALIDATE.pack(argsz=24, flags=wire.INV_ALL | wire.INV_GLOBAL)
    assert client.error_of(Cmd.ATS_INVALIDATE, payload) == errno.ENOTSUP


def part(name, **members):
    return {name: {**ALL_PARTS[name], **members}}


BAD = {
    "iommu number": 1,
    "iommu array": [],
    "iommu string": "yes",
    "iommu bool": True,
    "pasid bool": {"pasid": True},
    "ats array": {"ats": []},
    "pri number": {"pri": 512},
    "bits 0": part("pasid", bits=0),
    "bits 21": part("pasid", bits=21),
    "bits -1": part("pasid", bits=-1),
    "bits string": part("pasid", bits="20"),
    "bits float": part("pasid", bits=20.0),
    "bits 2^32 + 1": part("pasid", bits=(1 << 32) + 1),
    "exec number": part("pasid", exec=1),
    "priv string": part("pasid", priv="true"),
    "queue_depth 0": part("ats", queue_depth=0),
    "queue_depth 33": part("ats", queue_depth=33),
    "page_shift 11": part("ats", page_shift=11),
    "page_shift 64": part("ats", page_shift=64),
    "max_entries 0": part("ats", max_entries=0),
    "max_entries -1": part("ats", max_entries=-1),
    "max_requests 0": part("pri", max_requests=0),
    "max_requests 2^31": part("pri", max_requests=1 << 31),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_proposal(server, name):
    """NEG-5, also for a device that would not use it."""
    client = server.connect()
    payload = version_payload({"iommu": BAD[name]})
    assert client.error_of(Cmd.VERSION, payload) == errno.EINVAL
    assert client.disconnected()


@pytest.mark.parametrize("cmd", [Cmd.DEVICE_GET_INFO, Cmd.REGION_READ, Cmd.DEVICE_RESET])
@pytest.mark.parametrize("flags", [wire.F_PASID, wire.F_TRANSLATED])
def test_bits_on_other_commands(client, cmd, flags):
    """PFX-1: a part that was not negotiated comes before what the command allows."""
    assert client.error_of(cmd, bytes(40), flags=flags) == errno.ENOTSUP
    assert client.read_int(wire.BAR0, hw.REG_ID) == hw.IDENTITY
