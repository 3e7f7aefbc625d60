# SPDX-License-Identifier: BSD-3-Clause
"""The mock client's page tables: what tests of translations stand on. No server is needed."""

import pytest

from vfiouser.memory import GuestMemory, Slot
from vfiouser.pagetable import G1, M2, PAGE, Fault, Frames, MemoryTable
from vfiouser.wire import PERM_EXEC, PERM_READ, PERM_RW

TABLES = 0x10000000


@pytest.fixture
def memory():
    made = GuestMemory()
    yield made
    made.close()


@pytest.fixture
def tables(memory):
    return MemoryTable(memory, Frames(memory.add(TABLES, 8 << 20)))


@pytest.mark.parametrize("size, largest, leaf", [
    (PAGE, G1, PAGE), (M2, G1, M2), (M2, PAGE, PAGE), (G1, G1, G1), (G1, M2, M2)])
def test_largest_page_that_fits(tables, size, largest, leaf):
    tables.map(4 * G1, 8 * G1, size, PERM_RW, largest)
    found = tables.walk(4 * G1 + size - 1)
    assert found.size == leaf and found.perm == PERM_RW
    assert found.at(4 * G1 + size - 1) == 8 * G1 + size - 1
    assert not tables.walk(4 * G1 + size).present
    assert not tables.walk(4 * G1 - 1).present


def test_unaligned_target_takes_small_pages(tables):
    tables.map(0, PAGE, M2)
    assert tables.walk(0).size == PAGE


def test_sizes_mix(tables):
    tables.map(M2 - PAGE, 2 * M2 - PAGE, M2 + 2 * PAGE)
    assert [tables.walk(a).size for a in (M2 - PAGE, M2, 2 * M2)] == [PAGE, M2, PAGE]


def test_unmap_and_map_again(tables):
    tables.map(0, 0, M2, largest=PAGE)
    tables.unmap(PAGE, PAGE)
    assert not tables.walk(PAGE).present and tables.walk(0).present
    tables.map(PAGE, 16 * PAGE, PAGE, PERM_READ)
    assert (tables.walk(PAGE).translated, tables.walk(PAGE).perm) == (16 * PAGE, PERM_READ)


def test_hole_has_the_size_of_what_is_missing(tables):
    tables.map(0, 0, PAGE)
    assert [tables.walk(a).size for a in (PAGE, M2, G1, 512 * G1)] == [PAGE, M2, G1, 512 * G1]


def test_find(tables):
    tables.map(0, M2, PAGE, PERM_RW | PERM_EXEC)
    assert tables.find(PAGE) is None
    found = tables.find(5)
    assert (found.iova, found.translated, found.size, found.perm) == (0, M2, PAGE, PERM_RW)


@pytest.fixture
def nested(memory):
    """A guest's guest: its memory, 0 to 4 MiB, is at 1 GiB of the guest; its tables are in it."""
    ram = memory.add(G1, 4 << 20)
    second = MemoryTable(memory, Frames(memory.add(TABLES, 1 << 20)))
    second.map(0, G1, 4 << 20)
    first = MemoryTable(memory, Frames(Slot(M2, 1 << 20, ram.mem, M2)), second)
    return first, second


def test_two_stages(nested):
    first, _ = nested
    first.map(0x7000, 0x3000, PAGE, PERM_RW)
    found = first.walk(0x7123)
    assert (found.iova, found.translated, found.size, found.perm) == (
        0x7000, G1 + 0x3000, PAGE, PERM_RW)


def test_two_stages_take_the_smaller_size_and_rights(nested):
    first, second = nested
    second.unmap(0, M2)
    second.map(0, G1, M2, PERM_READ, largest=PAGE)
    first.map(G1, 0, M2)
    found = first.walk(G1 + 5 * PAGE)
    assert (found.iova, found.translated, found.size, found.perm) == (
        G1 + 5 * PAGE, G1 + 5 * PAGE, PAGE, PERM_READ)


def test_hole_in_the_second_stage(nested):
    first, _ = nested
    first.map(0x7000, 16 << 20, PAGE)
    assert not first.walk(0x7000).present


def test_table_that_the_second_stage_does_not_map(nested):
    first, second = nested
    first.map(0x7000, 0, PAGE)
    second.unmap(M2, M2)
    with pytest.raises(Fault):
        first.walk(0x7000)
