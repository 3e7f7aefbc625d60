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
from vfiouser.software_iommu import CAPS
from vfiouser.wire import Cmd

PROPOSALS = {
    "everything": CAPS,
    "nothing": {},
    "PASID": {"pasid": CAPS["pasid"]},
    "ATS": {"ats": CAPS["ats"]},
    "PRI": {"pri": CAPS["pri"]},
    "PASID and ATS": {"pasid": CAPS["pasid"], "ats": CAPS["ats"]},
    "ATS and PRI": {"ats": CAPS["ats"], "pri": CAPS["pri"]},
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


BAD = {
    "no object": True,
    "part that is no object": {"ats": []},
    "out of range": {"pasid": {"bits": 21}},
    "wrong type": {"pri": {"max_requests": "512"}},
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
