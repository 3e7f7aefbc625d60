# SPDX-License-Identifier: BSD-3-Clause
"""I/O commands of the NVM command set, and how their data is described (4.3, 4.4, 6)."""

import random
import struct

import pytest

from vfiouser.nvme import Memory, Namespace, Nvme, pattern
from vfiouser.nvme_spec import (ALL_NAMESPACES, CNS_CONTROLLER, CNS_NAMESPACE, COMPARE_FAILURE,
                                DATA_SGL_LENGTH, DATA_TRANSFER_ERROR, FUA, INVALID_FIELD,
                                INVALID_NAMESPACE, INVALID_OPCODE, INVALID_SGL_COUNT,
                                INVALID_SGL_SEGMENT, IO_COMPARE, IO_DSM, IO_FLUSH, IO_READ,
                                IO_VERIFY, IO_WRITE, IO_WRITE_ZEROES, LBA_OUT_OF_RANGE, PAGE,
                                PRP_OFFSET, SGL_TYPE, SUCCESS)
from vfiouser.wire import CONFIG

BLOCKS = (64 << 20) // 512
NOWHERE = 0x7FFF0000000
ONCS_COMPARE, ONCS_DSM, ONCS_ZEROES, ONCS_VERIFY = 1, 4, 8, 0x80


@pytest.fixture
def oncs(nvme, sq):
    """The optional commands that there are."""
    return int.from_bytes(nvme.identify(CNS_CONTROLLER)[520:522], "little")


# Commands

@pytest.mark.parametrize("length", [512, 1024, 4096, 4608, 8192, 65536, 128 << 10])
def test_reads_what_was_written(disk, length):
    disk.write(7, pattern(length, length))
    assert disk.read(7, length) == pattern(length, length)


def test_starts_as_zeros(disk):
    assert not any(disk.read(BLOCKS - 8, 4096))


def test_first_and_last_block(disk):
    disk.write(0, pattern(512, 1))
    disk.write(BLOCKS - 1, pattern(512, 2))
    assert disk.read(0, 512) == pattern(512, 1)
    assert disk.read(BLOCKS - 1, 512) == pattern(512, 2)


def test_neighbours_are_left_alone(disk):
    disk.write(0, pattern(16384, 1))
    disk.write(5, pattern(512, 2))
    whole = pattern(16384, 1)
    assert disk.read(0, 16384) == whole[:5 * 512] + pattern(512, 2) + whole[6 * 512:]


@pytest.mark.parametrize("lba, blocks", [
    (BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS - 8, 16), (1 << 55, 1), ((1 << 64) - 1, 1),
    ((1 << 64) - 1, 2), ((1 << 64) - 8, 16),
])
@pytest.mark.parametrize("opcode", [IO_READ, IO_WRITE, IO_COMPARE, IO_WRITE_ZEROES, IO_VERIFY])
def test_blocks_that_do_not_exist(nvme, sq, oncs, opcode, lba, blocks):
    needs = {IO_COMPARE: ONCS_COMPARE, IO_WRITE_ZEROES: ONCS_ZEROES, IO_VERIFY: ONCS_VERIFY}
    if needs.get(opcode, 0) & ~oncs:
        pytest.skip("no such command")
    cid = nvme.transfer(sq, opcode, lba, blocks, nvme.alloc(8192), blocks * 512)
    assert sq.wait(cid).status == LBA_OUT_OF_RANGE


@pytest.mark.parametrize("nsid", [0, 2, 0x80000000, ALL_NAMESPACES])
@pytest.mark.parametrize("opcode", [IO_READ, IO_WRITE])
def test_namespaces_that_do_not_exist(nvme, sq, opcode, nsid):
    cid = nvme.transfer(sq, opcode, 0, 1, nvme.alloc(512), 512, nsid)
    assert sq.wait(cid).status == INVALID_NAMESPACE


@pytest.mark.parametrize("opcode", [0x0D, 0x11, 0x7F, 0x90, 0xFF])
def test_unknown_commands(sq, opcode):
    assert sq.run(opcode, nsid=1).status == INVALID_OPCODE
    sq.ok(IO_FLUSH, nsid=1)


def test_fused_commands(nvme, sq):
    for flags in (1, 2, 3):
        cid = nvme.transfer(sq, IO_READ, 0, 1, nvme.alloc(512), 512, flags=flags)
        assert sq.wait(cid).status == INVALID_FIELD


def test_more_than_mdts(nvme, sq):
    mdts = nvme.identify(CNS_CONTROLLER)[77]
    if not mdts:
        pytest.skip("no limit")
    largest = PAGE << mdts
    addr = nvme.alloc(largest + 512)
    cid = nvme.transfer(sq, IO_READ, 0, largest // 512, addr, largest)
    assert sq.wait(cid).status == SUCCESS
    cid = nvme.transfer(sq, IO_READ, 0, largest // 512 + 1, addr, largest + 512)
    assert sq.wait(cid).status == INVALID_FIELD


@pytest.mark.parametrize("nsid", [1, ALL_NAMESPACES])
def test_flush(sq, nsid):
    assert sq.run(IO_FLUSH, nsid=nsid).status == SUCCESS


def test_flush_of_no_namespace(sq):
    assert sq.run(IO_FLUSH, nsid=7).status == INVALID_NAMESPACE


def test_fua(disk):
    disk.write(3, pattern(8192, 3), cdw12=FUA | 15)
    assert disk.read(3, 8192, cdw12=FUA | 15) == pattern(8192, 3)


def test_compare(nvme, disk, oncs):
    if not oncs & ONCS_COMPARE:
        pytest.skip("no Compare")
    data = pattern(16384, 4)
    disk.write(10, data)
    assert disk.run(IO_COMPARE, 10, nvme.put_data(data), len(data)).status == SUCCESS
    wrong = data[:-1] + bytes([data[-1] ^ 1])
    assert disk.run(IO_COMPARE, 10, nvme.put_data(wrong), len(wrong)).status == COMPARE_FAILURE
    assert disk.read(10, len(data)) == data


def test_write_zeroes(sq, disk, oncs):
    if not oncs & ONCS_ZEROES:
        pytest.skip("no Write Zeroes")
    disk.write(0, pattern(65536, 5))
    sq.ok(IO_WRITE_ZEROES, nsid=1, cdw10=3, cdw12=99)
    expected = pattern(65536, 5)
    assert disk.read(0, 65536) == expected[:3 * 512] + bytes(100 * 512) + expected[103 * 512:]


def test_write_zeroes_of_as_much_as_one_can(sq, disk, oncs):
    """It has no data: MDTS is no limit (6.16)."""
    if not oncs & ONCS_ZEROES:
        pytest.skip("no Write Zeroes")
    disk.write(65535, pattern(1024, 5))
    sq.ok(IO_WRITE_ZEROES, nsid=1, cdw12=0xFFFF)
    assert disk.read(65535, 1024) == bytes(512) + pattern(1024, 5)[512:]


def test_verify(sq, oncs):
    if not oncs & ONCS_VERIFY:
        pytest.skip("no Verify")
    sq.ok(IO_VERIFY, nsid=1, cdw10=5, cdw12=100)


def test_verify_is_not_bounded_by_mdts(sq):
    """No data is transferred (6.14): as many blocks as the command can name."""
    sq.ok(IO_VERIFY, nsid=1, cdw12=65535)
    completion = sq.run(IO_VERIFY, nsid=1, cdw10=(64 << 20) // 512 - 65535, cdw12=65535)
    assert completion.status == LBA_OUT_OF_RANGE


def dsm(nvme, sq, ranges, attributes=4):
    data = b"".join(struct.pack("<IIQ", 0, blocks, lba) for lba, blocks in ranges)
    return sq.run(IO_DSM, nsid=1, prp1=nvme.put_data(data), cdw10=len(ranges) - 1,
                  cdw11=attributes).status


def test_deallocate(nvme, disk, oncs):
    """Deallocated blocks read as zeros, ones, or as they were, according to DLFEAT (6.7.1.1)."""
    if not oncs & ONCS_DSM:
        pytest.skip("no Dataset Management")
    data = pattern(128 << 10, 6)
    disk.write(0, data)
    assert dsm(nvme, disk.sq, [(0, 8), (16, 128), (250, 1), (300, 0)]) == SUCCESS
    back = disk.read(0, len(data))
    dlfeat = nvme.identify(CNS_NAMESPACE, nsid=1)[33] & 7
    for block in range(256):
        at = slice(block * 512, block * 512 + 512)
        gone = block < 8 or 16 <= block < 144 or block == 250
        allowed = [data[at]] + ([bytes(512)] if gone and dlfeat in (0, 1) else [])
        assert back[at] in allowed, block


def test_deallocate_256_ranges(nvme, disk, oncs):
    if not oncs & ONCS_DSM:
        pytest.skip("no Dataset Management")
    disk.write(1, pattern(512, 7))
    assert dsm(nvme, disk.sq, [(2 * i, 1) for i in range(256)]) == SUCCESS
    assert disk.read(1, 512) == pattern(512, 7)


def test_hints_that_change_nothing(nvme, disk, oncs):
    if not oncs & ONCS_DSM:
        pytest.skip("no Dataset Management")
    disk.write(0, pattern(4096, 8))
    assert dsm(nvme, disk.sq, [(0, 8)], attributes=3) == SUCCESS
    assert disk.read(0, 4096) == pattern(4096, 8)


@pytest.mark.parametrize("lba, blocks", [(BLOCKS, 1), (BLOCKS - 1, 2), ((1 << 64) - 1, 2)])
def test_deallocate_blocks_that_do_not_exist(nvme, sq, oncs, lba, blocks):
    if not oncs & ONCS_DSM:
        pytest.skip("no Dataset Management")
    assert dsm(nvme, sq, [(0, 1), (lba, blocks)]) == LBA_OUT_OF_RANGE


# Kinds of namespaces and of memory

@pytest.mark.parametrize("block", [512, 4096])
def test_file(start_nvme, tmp_path, block):
    path = tmp_path / "disk"
    path.write_bytes(pattern(1 << 20, 9))
    nvme = Nvme(start_nvme("--namespace", f"file={path},block={block}").client())
    disk = Namespace(nvme, nvme.start_io(), block=block)
    data = nvme.identify(CNS_NAMESPACE, nsid=1)
    assert struct.unpack_from("<Q", data)[0] == (1 << 20) // block
    assert 1 << data[130 + 4 * (data[26] & 0xF)] == block
    assert disk.read(0, 32768) == pattern(1 << 20, 9)[:32768]
    disk.write(3, pattern(16384, 10))
    disk.sq.ok(IO_WRITE_ZEROES, nsid=1, cdw10=5, cdw12=0)
    disk.sq.ok(IO_FLUSH, nsid=1)
    expected = bytearray(pattern(1 << 20, 9))
    expected[3 * block:3 * block + 16384] = pattern(16384, 10)
    expected[5 * block:6 * block] = bytes(block)
    assert path.read_bytes() == expected
    cid = nvme.transfer(disk.sq, IO_READ, (1 << 20) // block, 1, nvme.alloc(block), block)
    assert disk.sq.wait(cid).status == LBA_OUT_OF_RANGE


@pytest.mark.nvme_args("--namespace", "memory=4M", "--namespace", "memory=4M")
def test_namespaces_are_apart(nvme):
    sq = nvme.start_io()
    disks = [Namespace(nvme, sq, nsid) for nsid in (1, 2)]
    for disk in disks:
        disk.write(0, pattern(4096, disk.nsid))
    for disk in disks:
        assert disk.read(0, 4096) == pattern(4096, disk.nsid)


def test_memory_by_messages(nvme_server):
    """Nothing can be mapped: queues and data by DMA_READ and DMA_WRITE."""
    client = nvme_server.client()
    nvme = Nvme(client, Memory(client, share=False))
    disk = Namespace(nvme, nvme.start_io())
    for length in (512, 4096, 65536):
        disk.write(1, pattern(length, length))
        assert disk.read(1, length) == pattern(length, length)
    cids = [nvme.transfer(disk.sq, IO_READ, i, 8, nvme.alloc(4096), 4096) for i in range(30)]
    for cid in cids:
        assert disk.sq.wait(cid).status == SUCCESS


# PRPs

def test_prps_of_every_shape(nvme, disk):
    """Buffers that start anywhere in a page and have any length."""
    rng = random.Random(2)
    data = pattern(64 << 10, 11)
    disk.write(0, data)
    area = nvme.alloc(80 << 10)
    for _ in range(100):
        offset = rng.randrange(0, PAGE, 4)
        length = 512 * rng.randint(1, 128)
        nvme.memory.write(area, b"\xee" * (80 << 10))
        completion = disk.run(IO_READ, 0, area + offset, length)
        assert completion.status == SUCCESS, (offset, length, completion)
        assert nvme.memory.read(area + offset, length) == data[:length]
        assert set(nvme.memory.read(area, offset + 1)[:offset]) <= {0xEE}
        assert set(nvme.memory.read(area + offset + length, 512)) == {0xEE}


def test_scattered_pages(nvme, disk):
    data = pattern(64 << 10, 12)
    disk.write(0, data)
    pages = [nvme.alloc(PAGE) for _ in range(16)]
    random.Random(3).shuffle(pages)
    cid = nvme.transfer(disk.sq, IO_READ, 0, 128, 0, 0, prp1=pages[0],
                        prp2=nvme.prp_list(pages[1:]))
    assert disk.sq.wait(cid).status == SUCCESS
    assert b"".join(nvme.memory.read(page, PAGE) for page in pages) == data


def test_same_page_again_and_again(nvme, disk):
    page = nvme.put_data(pattern(PAGE, 13))
    cid = nvme.transfer(disk.sq, IO_WRITE, 0, 128, 0, 0, prp1=page, prp2=nvme.prp_list([page] * 15))
    assert disk.sq.wait(cid).status == SUCCESS
    assert disk.read(0, 64 << 10) == pattern(PAGE, 13) * 16


def test_list_that_starts_near_the_end_of_a_page(nvme, disk):
    """A list may begin anywhere; the last entry of its page points to the next part (4.3)."""
    data = pattern(16 << 10, 14)
    disk.write(0, data)
    pages = [nvme.alloc(PAGE) for _ in range(4)]
    rest = nvme.put_data(struct.pack("<2Q", pages[2], pages[3]))
    here = nvme.alloc(PAGE) + PAGE - 16
    nvme.memory.write(here, struct.pack("<2Q", pages[1], rest))
    cid = nvme.transfer(disk.sq, IO_READ, 0, 32, 0, 0, prp1=pages[0], prp2=here)
    assert disk.sq.wait(cid).status == SUCCESS
    assert b"".join(nvme.memory.read(page, PAGE) for page in pages) == data


def test_last_entry_of_a_page_that_is_enough(nvme, disk):
    """When it is the last of all, it is a page and not a pointer."""
    data = pattern(12 << 10, 15)
    disk.write(0, data)
    pages = [nvme.alloc(PAGE) for _ in range(3)]
    here = nvme.alloc(PAGE) + PAGE - 16
    nvme.memory.write(here, struct.pack("<2Q", pages[1], pages[2]))
    cid = nvme.transfer(disk.sq, IO_READ, 0, 24, 0, 0, prp1=pages[0], prp2=here)
    assert disk.sq.wait(cid).status == SUCCESS
    assert b"".join(nvme.memory.read(page, PAGE) for page in pages) == data


def wrong_prps(nvme):
    """What is wrong: PRP1, PRP2, blocks, the status."""
    a = nvme.alloc(8 * PAGE)
    entry = nvme.prp_list([a + PAGE, a + 2 * PAGE + 8])
    hole = nvme.prp_list([a + PAGE, NOWHERE])
    looped = nvme.alloc(PAGE)
    return {
        "second page with an offset": (a, a + PAGE + 512, 16, PRP_OFFSET),
        "list entry with an offset": (a, entry, 24, PRP_OFFSET),
        "no memory": (NOWHERE, 0, 8, DATA_TRANSFER_ERROR),
        "end of memory": (nvme.memory.slot.addr + nvme.memory.slot.size - PAGE,
                          nvme.memory.slot.addr + nvme.memory.slot.size, 16, DATA_TRANSFER_ERROR),
        "no second page": (a, NOWHERE, 16, DATA_TRANSFER_ERROR),
        "no list": (a, NOWHERE, 24, DATA_TRANSFER_ERROR),
        "hole in the list": (a, hole, 24, DATA_TRANSFER_ERROR),
        "at the end of addresses": ((1 << 64) - PAGE, 0, 8, DATA_TRANSFER_ERROR),
        "list of zeros": (a, looped, 24, DATA_TRANSFER_ERROR),
    }


@pytest.mark.parametrize("opcode", [IO_READ, IO_WRITE])
def test_wrong_prps(nvme, disk, opcode):
    for what, (prp1, prp2, blocks, status) in wrong_prps(nvme).items():
        cid = nvme.transfer(disk.sq, opcode, 0, blocks, 0, 0, prp1=prp1, prp2=prp2)
        completion = disk.sq.wait(cid)
        assert completion.status == status, (what, completion)
    disk.write(0, pattern(4096))
    assert disk.read(0, 4096) == pattern(4096)


def test_list_that_points_to_itself(nvme, sq):
    """It ends with the transfer, whatever that makes of it."""
    here = nvme.alloc(PAGE)
    page = nvme.alloc(PAGE)
    nvme.memory.write(here, struct.pack("<512Q", *[page] * 511, here))
    cid = nvme.transfer(sq, IO_READ, 0, 128, 0, 0, prp1=page, prp2=here + PAGE - 8)
    sq.wait(cid)
    sq.ok(IO_FLUSH, nsid=1)


def test_read_only_memory(nvme, disk):
    slot = nvme.client.add_memory(0x40000000, PAGE, writable=False)
    slot.write(0, pattern(PAGE, 16))
    assert disk.run(IO_WRITE, 0, slot.addr, PAGE).status == SUCCESS
    assert disk.run(IO_READ, 0, slot.addr, PAGE).status == DATA_TRANSFER_ERROR
    assert disk.read(0, PAGE) == pattern(PAGE, 16)


def test_bus_mastering_off(nvme, disk):
    """Without it the device must not reach memory; afterwards a reset makes it good."""
    nvme.client.write_int(CONFIG, 4, 0x0002, 2)
    disk.sq.submit(IO_FLUSH, nsid=1)
    nvme.enable_bus_master()
    Namespace(nvme, nvme.start_io()).read(0, 512)


# SGLs

DATA, BIT_BUCKET, SEGMENT, LAST_SEGMENT = 0, 1, 2, 3


def descriptor(kind, addr, length, subtype=0):
    return struct.pack("<QI3xB", addr, length, kind << 4 | subtype)


def run_sgl(nvme, sq, opcode, blocks, first, psdt=1, lba=0):
    prp1, prp2 = struct.unpack("<QQ", first)
    cid = nvme.transfer(sq, opcode, lba, blocks, 0, 0, prp1=prp1, prp2=prp2, flags=psdt << 6)
    return sq.wait(cid).status


@pytest.fixture
def sgls(nvme, sq):
    support = int.from_bytes(nvme.identify(CNS_CONTROLLER)[536:540], "little")
    if not support & 3:
        pytest.skip("no SGLs")
    return support


def test_sgl_of_one_block(nvme, disk, sgls):
    """Of any alignment if the controller says so (SGLS 01b)."""
    at = nvme.alloc(8192) + (7 if sgls & 3 == 1 else 4)
    nvme.memory.write(at, pattern(4096, 20))
    assert run_sgl(nvme, disk.sq, IO_WRITE, 8, descriptor(DATA, at, 4096)) == SUCCESS
    assert disk.read(0, 4096) == pattern(4096, 20)


@pytest.mark.parametrize("psdt", [1, 2])
@pytest.mark.parametrize("pieces", [[8192], [4096, 4096], [512, 4, 7676], [16] * 512])
def test_sgl_segments(nvme, disk, sgls, pieces, psdt):
    data = pattern(8192, len(pieces))
    disk.write(0, data)
    pieces = [(nvme.alloc(length, 64), length) for length in pieces]
    half = len(pieces) // 2
    last = b"".join(descriptor(DATA, *piece) for piece in pieces[half:])
    first = b"".join(descriptor(DATA, *piece) for piece in pieces[:half])
    first += descriptor(LAST_SEGMENT, nvme.put_data(last, 16), len(last))
    start = descriptor(SEGMENT, nvme.put_data(first, 16), len(first))
    if half == 0:
        start = first
    assert run_sgl(nvme, disk.sq, IO_READ, 16, start, psdt) == SUCCESS
    assert b"".join(nvme.memory.read(*piece) for piece in pieces) == data


def test_bit_bucket(nvme, disk, sgls):
    if not sgls & 1 << 16:
        pytest.skip("no bit bucket")
    disk.write(0, pattern(1536, 21))
    a, b = nvme.alloc(512), nvme.alloc(512)
    segment = descriptor(DATA, a, 512) + descriptor(BIT_BUCKET, 0, 512) + descriptor(DATA, b, 512)
    start = descriptor(LAST_SEGMENT, nvme.put_data(segment, 16), len(segment))
    assert run_sgl(nvme, disk.sq, IO_READ, 3, start) == SUCCESS
    data = pattern(1536, 21)
    assert (nvme.memory.read(a, 512), nvme.memory.read(b, 512)) == (data[:512], data[1024:])


def wrong_sgls(nvme, sgls):
    """What is wrong: the first descriptor, the statuses."""
    a = nvme.alloc(8192)
    data = descriptor(DATA, a, 4096)

    def last(*descriptors):
        segment = b"".join(descriptors)
        return descriptor(LAST_SEGMENT, nvme.put_data(segment, 16), len(segment))

    wrong = {
        "unknown type": (descriptor(7, a, 4096), {SGL_TYPE}),
        "unknown subtype": (descriptor(DATA, a, 4096, subtype=9), {SGL_TYPE}),
        "no memory": (descriptor(DATA, NOWHERE, 4096), {DATA_TRANSFER_ERROR}),
        "too short": (descriptor(DATA, a, 2048), {DATA_SGL_LENGTH}),
        "segment at no memory": (descriptor(LAST_SEGMENT, NOWHERE, 32), {DATA_TRANSFER_ERROR}),
        "segment of no length": (descriptor(LAST_SEGMENT, a, 0), {INVALID_SGL_SEGMENT}),
        "segment of odd length": (descriptor(LAST_SEGMENT, a, 24), {INVALID_SGL_SEGMENT}),
        "segment within the last": (last(data, last(data)), {INVALID_SGL_SEGMENT,
                                                             INVALID_SGL_COUNT, SGL_TYPE}),
        "segment that is not last": (last(descriptor(SEGMENT, a, 32), data),
                                     {INVALID_SGL_SEGMENT, INVALID_SGL_COUNT, SGL_TYPE}),
        "lengths that overflow": (last(descriptor(DATA, a, 0xFFFFFFFF), data), {DATA_SGL_LENGTH}),
    }
    if sgls & 1 << 18:
        wrong["lengths that overflow"] = (wrong["lengths that overflow"][0],
                                          {SUCCESS, DATA_TRANSFER_ERROR})
    return wrong


def test_wrong_sgls(nvme, disk, sgls):
    for what, (first, statuses) in wrong_sgls(nvme, sgls).items():
        status = run_sgl(nvme, disk.sq, IO_READ, 8, first)
        assert status in statuses, (what, hex(status))
    disk.read(0, 512)


def test_sgl_that_goes_in_circles(nvme, disk, sgls):
    here = nvme.alloc(PAGE)
    nvme.memory.write(here, descriptor(SEGMENT, here, 16))
    assert run_sgl(nvme, disk.sq, IO_READ, 8, descriptor(SEGMENT, here, 16)) != SUCCESS
    disk.read(0, 512)


def test_reserved_psdt(nvme, sq):
    cid = nvme.transfer(sq, IO_READ, 0, 1, nvme.alloc(512), 512, flags=3 << 6)
    assert sq.wait(cid).status == INVALID_FIELD
