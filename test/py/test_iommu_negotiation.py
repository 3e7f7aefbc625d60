# SPDX-License-Identifier: BSD-3-Clause
"""The IOMMU extension's negotiation and prefix: rules NEG and PFX of docs/vfio-user-iommu.rst."""

import errno
import json

import pytest

from vfiouser import software_iommu as iommu
from vfiouser import wire
from vfiouser.client import CAPABILITIES, VfioUserError, version_payload
from vfiouser.probe import Probe
from vfiouser.wire import CONFIG, Cmd

PASID, ATS, PRI = (iommu.CAPS[name] for name in ("pasid", "ats", "pri"))


def propose(server, proposal):
    client = server.client({**CAPABILITIES, "iommu": proposal})
    return client.capabilities.get("iommu")


@pytest.mark.parametrize("proposal, agreed", [
    ({}, None),
    ({"pasid": PASID}, {"pasid": PASID}),
    ({"ats": ATS}, {"ats": ATS}),
    ({"pri": PRI}, None),
    ({"pasid": PASID, "ats": ATS}, {"pasid": PASID, "ats": ATS}),
    ({"pasid": PASID, "pri": PRI}, {"pasid": PASID}),
    ({"ats": ATS, "pri": PRI}, {"ats": ATS, "pri": PRI}),
    (iommu.CAPS, iommu.CAPS),
    ({**iommu.CAPS, "unknown": [1]}, iommu.CAPS),
])
def test_NEG_1_2_4_each_part(probe_server, proposal, agreed):
    assert propose(probe_server, proposal) == agreed


@pytest.mark.parametrize("part, member, proposed, agreed", [
    ("pasid", "bits", 8, 8),
    ("ats", "queue_depth", 4, 4),
    ("ats", "page_shift", 16, 16),
    ("ats", "max_entries", 8, 8),
    ("ats", "max_entries", 1 << 30, 64),
    ("pri", "max_requests", 7, 7),
    ("pri", "max_requests", 1 << 30, 512),
])
def test_NEG_2_what_both_have(probe_server, part, member, proposed, agreed):
    caps = {name: dict(value) for name, value in iommu.CAPS.items()}
    caps[part][member] = proposed
    assert propose(probe_server, caps)[part][member] == agreed


@pytest.mark.parametrize("args, agreed", [
    ((), None),
    (("--pasid", "10"), {"pasid": {**PASID, "bits": 10}}),
    (("--ats",), {"ats": ATS}),
])
def test_NEG_2_older_servers(connected_fds, args, agreed):
    from conftest import built
    from vfiouser.server import Server
    server = Server(built("test/device", "iommu_probe"), *args)
    assert propose(server, iommu.CAPS) == agreed
    server.check(connected_fds)
    server.stop()


@pytest.mark.parametrize("proposal", [
    1, [], "on", True, None,
    {"pasid": 1}, {"pasid": {"bits": 0}}, {"pasid": {"bits": 21}}, {"pasid": {"bits": "20"}},
    {"pasid": {"bits": -1}}, {"pasid": {"exec": 1}}, {"pasid": {"priv": "yes"}},
    {"ats": []}, {"ats": {"queue_depth": 0}}, {"ats": {"queue_depth": 33}},
    {"ats": {"page_shift": 11}}, {"ats": {"page_shift": 64}}, {"ats": {"max_entries": 0}},
    {"ats": {"max_entries": 1.5}}, {"ats": {"max_entries": 1 << 40}},
    {"ats": ATS, "pri": {"max_requests": 0}}, {"ats": ATS, "pri": False},
], ids=json.dumps)
def test_NEG_5_wrong_types_and_ranges(probe_server, proposal):
    client = probe_server.connect()
    with pytest.raises(VfioUserError) as error:
        client.negotiate({**CAPABILITIES, "iommu": proposal})
    assert error.value.errno == errno.EINVAL
    assert client.disconnected()


def test_NEG_6_no_longer_than_the_proposal(probe_server):
    client = probe_server.connect()
    caps = {**CAPABILITIES, "iommu": iommu.CAPS}
    reply = client.negotiate(caps)
    assert len(reply.payload) <= len(version_payload(caps))


def test_NEG_7_no_twin_socket(probe_server):
    client = probe_server.connect()
    client.negotiate({**CAPABILITIES, "twin_socket": {"supported": True}, "iommu": iommu.CAPS})
    assert "iommu" in client.capabilities and "twin_socket" not in client.capabilities


def invalidate(flags=0, prefix=b"", **fields):
    payload = wire.ATS_INVALIDATE.pack(**{"argsz": 24, "length": 4096, **fields})
    return Cmd.ATS_INVALIDATE, prefix + payload, (), flags


def prefix(pasid=0, attrs=0):
    return wire.PASID_PREFIX.pack(pasid=pasid, attrs=attrs)


def dma_map():
    return wire.DMA_MAP.pack(argsz=32, flags=3, size=4096)


@pytest.mark.parametrize("request_", [
    invalidate(),
    (Cmd.DMA_MAP, prefix() + dma_map(), (), wire.F_PASID),
    (Cmd.DMA_MAP, dma_map(), (), wire.F_TRANSLATED),
], ids=["command", "pasid", "translated"])
def test_PFX_1_not_negotiated(probe_server, request_):
    assert probe_server.client().error_of(*request_) == errno.ENOTSUP


BOTH = wire.F_PASID | wire.F_TRANSLATED


@pytest.mark.parametrize("request_", [
    (Cmd.DMA_MAP, prefix() + dma_map(), (), BOTH),
    invalidate(wire.F_TRANSLATED),
    (Cmd.DEVICE_GET_INFO, prefix() + wire.DEVICE_INFO.pack(argsz=16), (), wire.F_PASID),
    (Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16), (), wire.F_TRANSLATED),
    invalidate(wire.F_PASID, prefix(1 << 20)),
    invalidate(wire.F_PASID, prefix(1 << 31)),
    invalidate(wire.F_PASID, prefix(attrs=4)),
    invalidate(wire.F_PASID, prefix(attrs=1 << 31)),
    *[invalidate(wire.F_PASID, prefix()[:n])[:1] + (prefix()[:n], (), wire.F_PASID)
      for n in range(8)],
])
def test_PFX_2_3_malformed(probe, request_):
    assert probe.client.error_of(*request_) == errno.EINVAL


def test_PFX_3_pasid_of_the_agreed_width(probe_server):
    client = probe_server.client({**CAPABILITIES, "iommu": {"pasid": {**PASID, "bits": 4},
                                                            "ats": ATS}})
    assert client.error_of(*invalidate(wire.F_PASID, prefix(15))) == 0
    assert client.error_of(*invalidate(wire.F_PASID, prefix(16))) == errno.EINVAL


def stock_session(server):
    """What a client that never heard of the extension is sent, byte for byte."""
    client = server.connect()
    stream = [client.negotiate().payload]
    for region in range(9):
        stream.append(client.region_info(region)[1].payload)
    for irq in range(5):
        stream.append(client.request(Cmd.DEVICE_GET_IRQ_INFO,
                                     wire.IRQ_INFO.pack(argsz=16, index=irq)).payload)
    stream.append(client.request(Cmd.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(argsz=16)).payload)
    slot = client.add_memory(0, 0x1000)
    stream.append(client.dma_unmap(slot.addr, slot.size).payload)
    stream.append(client.region_read(CONFIG, 0, 0x100))
    stream.append(client.reset().payload)
    return stream


def test_NEG_3_stock_client_sees_no_difference(probe_server):
    from conftest import built
    from vfiouser.server import Server
    plain = Server(built("test/device", "iommu_probe"))
    assert stock_session(probe_server) == stock_session(plain)
    plain.stop()


def test_capabilities_in_configuration_space(probe):
    assert [probe.find(cap) is not None for cap in (iommu.ATS, iommu.PRI, iommu.PASID)] == \
        [True] * 3
    assert Probe(probe.client).pri_status() & 0x100, "Stopped at the start"
