# SPDX-License-Identifier: BSD-3-Clause
"""Identify, features and log pages of the NVMe controller (5.14, 5.15, 5.21)."""

import struct

import pytest

from vfiouser.nvme import pattern
from vfiouser.nvme_spec import (ADMIN_GET_FEATURES, ADMIN_GET_LOG, ADMIN_IDENTIFY,
                                ADMIN_SET_FEATURES, ALL_NAMESPACES, CNS_ACTIVE, CNS_CONTROLLER,
                                CNS_DESCRIPTORS, CNS_NAMESPACE, FEAT_ARBITRATION,
                                FEAT_ASYNC_EVENTS, FEAT_ATOMICITY, FEAT_COALESCING,
                                FEAT_ERROR_RECOVERY, FEAT_POWER, FEAT_QUEUES, FEAT_TEMPERATURE,
                                FEAT_VECTOR, FEAT_WRITE_CACHE, FEATURE_NOT_CHANGEABLE,
                                FEATURE_NOT_SAVEABLE, INVALID_FIELD, INVALID_LOG_PAGE,
                                INVALID_NAMESPACE, INVALID_OPCODE, IO_COMPARE, IO_READ, LBA_OUT_OF_RANGE,
                                LOG_ERROR, LOG_FIRMWARE, LOG_SMART, PAGE, PRP_OFFSET, SUCCESS)
from vfiouser.wire import CONFIG

SEQUENCE_ERROR = 0x00C


@pytest.fixture
def admin(nvme):
    return nvme.start().admin


@pytest.fixture
def controller(nvme, admin):
    return nvme.identify(CNS_CONTROLLER)


def text(data):
    """ASCII, left justified, filled up with spaces (1.5)."""
    assert all(0x20 <= byte < 0x7F for byte in data), data
    return data.decode().rstrip(" ")


# Identify

def test_identify_controller(nvme, controller):
    assert int.from_bytes(controller[0:2], "little") == nvme.client.read_int(CONFIG, 0, 2)
    assert int.from_bytes(controller[2:4], "little") == nvme.client.read_int(CONFIG, 0x2C, 2)
    assert text(controller[4:24]) and text(controller[24:64]) and text(controller[64:72])
    assert int.from_bytes(controller[80:84], "little") == 0x00010400
    assert controller[111] == 1, "an I/O controller"
    assert controller[512] == 0x66 and controller[513] == 0x44, "entry sizes"
    assert int.from_bytes(controller[516:520], "little") == 1, "namespaces"
    name = controller[768:1024]
    assert name.startswith(b"nqn.") and name.endswith(b"\0")


def test_identify_namespace(nvme, admin):
    data = nvme.identify(CNS_NAMESPACE, nsid=1)
    size, capacity, used = struct.unpack_from("<QQQ", data)
    lbaf = data[128 + 4 * (data[26] & 0xF):][:4]
    assert lbaf == struct.pack("<HBB", 0, 9, lbaf[3])
    assert data[26] & 0xF <= data[25], "a format that it has"
    assert size == (64 << 20) // 512 and used <= capacity <= size


@pytest.mark.nvme_args("--namespace", "memory=1M", "--namespace", "memory=2M", "--namespace",
                       "memory=3M")
def test_several_namespaces(nvme, admin):
    assert int.from_bytes(nvme.identify(CNS_CONTROLLER)[516:520], "little") >= 3
    assert struct.unpack_from("<4I", nvme.identify(CNS_ACTIVE)) == (1, 2, 3, 0)
    assert struct.unpack_from("<3I", nvme.identify(CNS_ACTIVE, nsid=1)) == (2, 3, 0)
    assert not any(nvme.identify(CNS_ACTIVE, nsid=3))
    names = set()
    for nsid in (1, 2, 3):
        size, = struct.unpack_from("<Q", nvme.identify(CNS_NAMESPACE, nsid=nsid))
        assert size == (nsid << 20) // 512
        names.add(nvme.identify(CNS_DESCRIPTORS, nsid=nsid)[:20])
    assert len(names) == 3, "each has an identity of its own"


def test_identification_descriptors(nvme, admin):
    """At least one, with the length of its type (figure 249)."""
    data = nvme.identify(CNS_DESCRIPTORS, nsid=1)
    lengths = {1: 8, 2: 16, 3: 16, 4: 1}
    at = 0
    while data[at]:
        assert data[at + 1] == lengths[data[at]]
        assert any(data[at + 4:at + 4 + data[at + 1]])
        at += 4 + data[at + 1]
    assert at


@pytest.mark.parametrize("cns, nsid, status", [
    (CNS_NAMESPACE, 0, INVALID_NAMESPACE),
    (CNS_NAMESPACE, 2, INVALID_NAMESPACE),
    (CNS_NAMESPACE, 0xFFFFFFFE, INVALID_NAMESPACE),
    (CNS_ACTIVE, 0xFFFFFFFE, INVALID_NAMESPACE),
    (CNS_ACTIVE, ALL_NAMESPACES, INVALID_NAMESPACE),
    (CNS_DESCRIPTORS, 2, INVALID_NAMESPACE),
    (CNS_DESCRIPTORS, ALL_NAMESPACES, INVALID_NAMESPACE),
    (0x42, 0, INVALID_FIELD),
    (0xFF, 1, INVALID_FIELD),
])
def test_identify_of_nothing(nvme, admin, cns, nsid, status):
    assert admin.run(ADMIN_IDENTIFY, nsid=nsid, prp1=nvme.alloc(PAGE), cdw10=cns).status == status


def test_identify_into_two_pages(nvme, admin, controller):
    """PRP1 may point anywhere in a page, and PRP2 is then the next page."""
    first, second = nvme.alloc(PAGE), nvme.alloc(PAGE)
    admin.ok(ADMIN_IDENTIFY, prp1=first + 0xC00, prp2=second, cdw10=CNS_CONTROLLER)
    assert nvme.memory.read(first + 0xC00, 0x400) + nvme.memory.read(second, 0xC00) == controller
    assert not any(nvme.memory.read(first, 0xC00))
    assert not any(nvme.memory.read(second + 0xC00, 0x400))


def test_identify_with_a_wrong_second_page(nvme, admin):
    addr = nvme.alloc(2 * PAGE)
    completion = admin.run(ADMIN_IDENTIFY, prp1=addr + 0xC00, prp2=addr + PAGE + 4,
                           cdw10=CNS_CONTROLLER)
    assert completion.status == PRP_OFFSET


def test_no_sgl_in_admin_commands(nvme, admin):
    completion = admin.run(ADMIN_IDENTIFY, flags=1 << 6, prp1=nvme.alloc(PAGE), prp2=PAGE,
                           cdw10=CNS_CONTROLLER)
    assert completion.status == INVALID_FIELD


@pytest.mark.parametrize("opcode", [0x03, 0x07, 0x0B, 0x15, 0x7F, 0xC0, 0xFF])
def test_unknown_admin_commands(admin, opcode):
    completion = admin.run(opcode)
    assert completion.status == INVALID_OPCODE and completion.dnr


def test_fused_admin_command(admin):
    assert admin.run(ADMIN_GET_FEATURES, flags=1, cdw10=FEAT_POWER).status == INVALID_FIELD


# Features

def get_feature(admin, feature, select=0, **fields):
    return admin.ok(ADMIN_GET_FEATURES, cdw10=select << 8 | feature, **fields).result


@pytest.mark.parametrize("feature, cdw11", [
    (FEAT_ARBITRATION, 0x01020303),
    (FEAT_TEMPERATURE, 0x0170),
    (FEAT_ERROR_RECOVERY, 0x0010),
    (FEAT_COALESCING, 0x0207),
    (FEAT_VECTOR, 0x10001),
    (FEAT_ATOMICITY, 1),
    (FEAT_ASYNC_EVENTS, 0x1),
])
def test_features_read_back(admin, feature, cdw11):
    """Some fields need not be implemented: what is not accepted has to be refused or unchanged."""
    before = get_feature(admin, feature, cdw11=cdw11)
    completion = admin.run(ADMIN_SET_FEATURES, cdw10=feature, cdw11=cdw11)
    assert completion.status in (SUCCESS, FEATURE_NOT_CHANGEABLE, INVALID_FIELD)
    wanted = cdw11 if completion.status == SUCCESS else before
    assert get_feature(admin, feature, cdw11=cdw11) == wanted


def test_power_state(admin):
    admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_POWER, cdw11=0)
    assert get_feature(admin, FEAT_POWER) == 0
    assert admin.run(ADMIN_SET_FEATURES, cdw10=FEAT_POWER, cdw11=31).status == INVALID_FIELD


def test_write_cache(admin, controller):
    if controller[525] & 1:
        for value in (0, 1):
            admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_WRITE_CACHE, cdw11=value)
            assert get_feature(admin, FEAT_WRITE_CACHE) == value


@pytest.mark.parametrize("feature", [0, 0x0D, 0x70, 0xBF, 0xC0, 0xFF])
@pytest.mark.parametrize("opcode", [ADMIN_GET_FEATURES, ADMIN_SET_FEATURES])
def test_unknown_features(admin, opcode, feature):
    assert admin.run(opcode, cdw10=feature).status == INVALID_FIELD


def test_selecting(admin, controller):
    """Default, saved, and what it supports (5.13.1), if the controller has it."""
    if not controller[520] & 1 << 4:
        pytest.skip("no Select field")
    default = get_feature(admin, FEAT_TEMPERATURE, select=1)
    admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_TEMPERATURE, cdw11=default - 1)
    assert get_feature(admin, FEAT_TEMPERATURE) == default - 1
    assert get_feature(admin, FEAT_TEMPERATURE, select=1) == default
    supported = get_feature(admin, FEAT_TEMPERATURE, select=3)
    assert supported & 4 and not supported & ~7
    if not supported & 1:
        assert get_feature(admin, FEAT_TEMPERATURE, select=2) == default
    assert admin.run(ADMIN_GET_FEATURES, cdw10=4 << 8 | FEAT_POWER).status == INVALID_FIELD


def test_saving_what_cannot_be_saved(admin):
    completion = admin.run(ADMIN_SET_FEATURES, cdw10=1 << 31 | FEAT_ARBITRATION)
    assert completion.status == FEATURE_NOT_SAVEABLE


def test_features_are_reset(nvme, admin):
    default = get_feature(admin, FEAT_TEMPERATURE)
    admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_TEMPERATURE, cdw11=default - 3)
    nvme.start()
    assert get_feature(nvme.admin, FEAT_TEMPERATURE) == default


def test_number_of_queues(nvme, admin):
    result = admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_QUEUES, cdw11=0x00010001).result
    assert result & 0xFFFF >= 1 and result >> 16 >= 1
    assert get_feature(admin, FEAT_QUEUES) == result


@pytest.mark.parametrize("cdw11", [0xFFFF, 0xFFFF0000, 0xFFFFFFFF])
def test_too_many_queues(admin, cdw11):
    """65 536 of a kind cannot be asked for (5.21.1.7)."""
    assert admin.run(ADMIN_SET_FEATURES, cdw10=FEAT_QUEUES, cdw11=cdw11).status == INVALID_FIELD


def test_more_queues_than_there_are(nvme, admin):
    result = admin.ok(ADMIN_SET_FEATURES, cdw10=FEAT_QUEUES, cdw11=0xFFFEFFFE).result
    assert result & 0xFFFF <= 0xFFFE and result >> 16 <= 0xFFFE


def test_number_of_queues_comes_first(nvme):
    nvme.start_io()
    completion = nvme.admin.run(ADMIN_SET_FEATURES, cdw10=FEAT_QUEUES, cdw11=0x00010001)
    assert completion.status == SEQUENCE_ERROR


# Log pages

def get_log(nvme, page, length, offset=0, nsid=ALL_NAMESPACES):
    addr = nvme.put_data(pattern(length, 0xBAD))
    dwords = length // 4 - 1
    nvme.admin.ok(ADMIN_GET_LOG, nsid=nsid, **nvme.prps(addr, length),
                  cdw10=(dwords & 0xFFFF) << 16 | page, cdw11=dwords >> 16,
                  cdw12=offset & 0xFFFFFFFF, cdw13=offset >> 32)
    return nvme.memory.read(addr, length)


def test_error_log(nvme, sq):
    assert not any(get_log(nvme, LOG_ERROR, 64))
    cid = sq.submit(IO_READ, nsid=1, prp1=nvme.alloc(PAGE), cdw10=0xFFFFFFFF, cdw11=5)
    completion = sq.wait(cid)
    assert completion.status == LBA_OUT_OF_RANGE
    if not completion.more:
        return
    count, sqid, entry_cid, status = struct.unpack_from("<QHHH", get_log(nvme, LOG_ERROR, 64))
    assert (count, sqid, entry_cid, status >> 1 & 0x7FF) == (1, sq.qid, cid, LBA_OUT_OF_RANGE)


def test_smart_log(nvme, disk):
    before = get_log(nvme, LOG_SMART, 512)
    temperature = int.from_bytes(before[1:3], "little")
    assert before[0] == 0 and 273 < temperature < 373
    disk.write(0, pattern(4096))
    disk.read(0, 4096)
    disk.read(0, 4096)
    after = get_log(nvme, LOG_SMART, 512)

    def field(data, at):
        return int.from_bytes(data[at:at + 16], "little")

    assert field(after, 64) - field(before, 64) == 2, "reads"
    assert field(after, 80) - field(before, 80) == 1, "writes"


def test_smart_counts_compare(nvme, disk):
    """As a read, and what it reads as data read (figure 194)."""
    data = nvme.put_data(pattern(4096))
    before = get_log(nvme, LOG_SMART, 512)
    for i in range(200):
        disk.run(IO_COMPARE, i, data, 4096)
    after = get_log(nvme, LOG_SMART, 512)
    for field, change in ((32, 2), (64, 200)):
        old, new = (int.from_bytes(log[field:field + 16], "little") for log in (before, after))
        assert new - old == change, field


def test_smart_counts_units_of_1000_blocks(nvme, disk):
    addr = nvme.alloc(128 << 10)
    for _ in range(16):  # 2 MiB are 4096 blocks of 512 bytes: five units, rounded up
        disk.run(IO_READ, 0, addr, 128 << 10)
    read = int.from_bytes(get_log(nvme, LOG_SMART, 512)[32:48], "little")
    assert read == 5


def test_firmware_log(nvme, controller):
    data = get_log(nvme, LOG_FIRMWARE, 512)
    slot = data[0] & 7
    assert 1 <= slot <= 7
    assert data[8 * slot:8 * slot + 8] == controller[64:72]


@pytest.mark.parametrize("page", [0x06, 0x42, 0x7F, 0x81, 0xC0])
def test_unknown_log_pages(nvme, admin, page):
    completion = admin.run(ADMIN_GET_LOG, nsid=ALL_NAMESPACES, prp1=nvme.alloc(PAGE),
                           cdw10=15 << 16 | page)
    assert completion.status == INVALID_LOG_PAGE


def test_part_of_a_log_page(nvme, controller):
    if not controller[261] & 4:
        pytest.skip("no extended data")
    whole = get_log(nvme, LOG_FIRMWARE, 512)
    assert get_log(nvme, LOG_FIRMWARE, 64, offset=8) == whole[8:72]
    completion = nvme.admin.run(ADMIN_GET_LOG, nsid=ALL_NAMESPACES, prp1=nvme.alloc(PAGE),
                                cdw10=15 << 16 | LOG_FIRMWARE, cdw12=513)
    assert completion.status == INVALID_FIELD


def test_log_page_longer_than_it_is(nvme, controller):
    """What is behind the page is undefined, but nothing may be written behind the buffer."""
    addr = nvme.put_data(pattern(2 * PAGE))
    nvme.admin.run(ADMIN_GET_LOG, nsid=ALL_NAMESPACES, prp1=addr,
                   cdw10=(PAGE // 4 - 1) << 16 | LOG_SMART)
    assert nvme.memory.read(addr + PAGE, PAGE) == pattern(2 * PAGE)[PAGE:]
