# SPDX-License-Identifier: BSD-3-Clause
"""PCI configuration space: the header, and the capabilities of the edu device."""

import pytest

from vfiouser import edu as hw
from vfiouser.wire import CONFIG

CAP_MSI = 0x05
CMD_IO, CMD_MEM, CMD_MASTER, CMD_VGA, CMD_INVALIDATE, CMD_SERR, CMD_INTX_OFF = (
    0x001, 0x002, 0x004, 0x020, 0x010, 0x100, 0x400)


class Config:
    def __init__(self, client):
        self.client = client

    def read(self, offset, size=4):
        return self.client.read_int(CONFIG, offset, size)

    def write(self, offset, value, size=4):
        self.client.write_int(CONFIG, offset, value, size)

    def capabilities(self):
        found, at = {}, self.read(0x34, 1)
        while at:
            assert at >= 0x40 and at % 4 == 0, hex(at)
            assert at not in found.values(), "the list has a loop"
            found[self.read(at, 1)] = at
            at = self.read(at + 1, 1)
        return found


@pytest.fixture
def config(client):
    return Config(client)


@pytest.fixture
def msi(config):
    return config.capabilities()[CAP_MSI]


@pytest.mark.parametrize("offset, size, value", [
    (0x00, 2, hw.VENDOR), (0x02, 2, hw.DEVICE), (0x0A, 2, hw.CLASS), (0x0E, 1, 0), (0x3D, 1, 1),
    (0x14, 4, 0), (0x30, 4, 0)])
def test_header(config, offset, size, value):
    if 0x14 <= offset <= 0x24:
        assert config.read(offset, size) & ~1 == value
    else:
        assert config.read(offset, size) == value


def test_header_by_bytes_is_the_same(config):
    whole = config.client.region_read(CONFIG, 0, 64)
    assert whole == bytes(config.read(i, 1) for i in range(64))


def test_bar0_is_32_bit_memory(config):
    assert config.read(0x10) & 0xF == 0


def test_bar0_sizing(config):
    config.write(0x10, 0xFFFFFFFF)
    assert config.read(0x10) == 0x100000000 - hw.BAR0_SIZE
    config.write(0x10, 0xFEA00000)
    assert config.read(0x10) == 0xFEA00000


@pytest.mark.parametrize("offset", [0x14, 0x18, 0x1C, 0x20, 0x24])
def test_absent_bar(config, offset):
    config.write(offset, 0xFFFFFFFF)
    assert config.read(offset) & ~1 == 0


def test_rom_sizing(config):
    """As QEMU does it; there is no ROM."""
    for value in (0xFFFFF800, 0xFFFFFFFE, 0xFFFFFFFF):
        config.write(0x30, value)
        assert config.read(0x30) == 0
    config.write(0x30, 0)


@pytest.mark.parametrize("bit", [CMD_IO, CMD_MEM, CMD_MASTER, CMD_INVALIDATE, CMD_SERR,
                                 CMD_INTX_OFF])
def test_command_bits_are_stored(config, bit):
    config.write(0x04, bit, 2)
    assert config.read(0x04, 2) == bit
    config.write(0x04, 0, 2)
    assert config.read(0x04, 2) == 0


def test_command_vga_is_dropped(config):
    config.write(0x04, CMD_VGA | CMD_MEM, 2)
    assert config.read(0x04, 2) == CMD_MEM


@pytest.mark.parametrize("bit", [0x008, 0x080, 0x200, 0x800, 0x8000])
def test_command_other_bits_read_0(config, bit):
    config.write(0x04, bit | CMD_MEM, 2)
    assert config.read(0x04, 2) == CMD_MEM


def test_command_one_byte(config):
    config.write(0x04, CMD_SERR | CMD_MEM, 2)
    config.write(0x04, CMD_MEM | CMD_MASTER, 1)
    assert config.read(0x04, 2) == CMD_SERR | CMD_MEM | CMD_MASTER


@pytest.mark.parametrize("offset, size", [
    (0x06, 2), (0x08, 1), (0x09, 1), (0x09, 3), (0x3D, 1), (0x3E, 1), (0x3F, 1)])
def test_writes_that_are_ignored(config, offset, size):
    before = config.read(offset, size)
    config.write(offset, (1 << 8 * size) - 1, size)
    assert config.read(offset, size) == before


@pytest.mark.parametrize("offset", [0x0C, 0x0D, 0x3C])
def test_stored_bytes(config, offset):
    config.write(offset, 0x5A, 1)
    assert config.read(offset, 1) == 0x5A


@pytest.mark.parametrize("offset, size", [
    (0x00, 4), (0x00, 2), (0x0E, 1), (0x0F, 1), (0x28, 4), (0x2C, 4), (0x34, 1), (0x35, 1),
    (0x34, 4), (0x38, 4)])
@pytest.mark.parametrize("value", [0, 0xFFFFFFFF])
def test_writes_that_are_discarded(config, offset, size, value):
    """PCI 6.1: writes to read-only and reserved registers complete normally."""
    before = config.read(offset, size)
    config.write(offset, value & (1 << 8 * size) - 1, size)
    assert config.read(offset, size) == before


def test_restored_as_linux_does_it(config):
    """pci_restore_state() writes the header by double words, the last one first."""
    config.write(0x04, CMD_MEM | CMD_MASTER, 2)
    config.write(0x3C, 0x0B, 1)
    config.write(0x10, 0xFEA00000)
    saved = [config.read(at) for at in range(0, 0x40, 4)]
    config.client.reset()
    for at in range(0x3C, -4, -4):
        config.write(at, saved[at // 4])
    assert [config.read(at) for at in range(0, 0x40, 4)] == saved


def test_dword_over_command_and_status(config):
    """A guest may write both in one store; the status half is ignored."""
    status = config.read(0x06, 2)
    config.write(0x04, 0xFFFF0000 | CMD_MEM)
    assert config.read(0x04) == status << 16 | CMD_MEM


def test_capability_list(config):
    assert config.read(0x06, 2) & 0x10
    assert CAP_MSI in config.capabilities()


def test_msi_has_one_vector(config, msi):
    assert config.read(msi + 2, 2) >> 1 & 7 == 0


def test_msi_enable_address_data(config, msi):
    config.write(msi + 4, 0xFEE01000)
    config.write(msi + 2, config.read(msi + 2, 2) | 1, 2)
    assert config.read(msi + 4) == 0xFEE01000
    assert config.read(msi + 2, 2) & 1
    config.write(msi + 2, config.read(msi + 2, 2) & ~1, 2)
    assert not config.read(msi + 2, 2) & 1


def test_msi_address_low_bits_read_0(config, msi):
    config.write(msi + 4, 0xFFFFFFFF)
    assert config.read(msi + 4) == 0xFFFFFFFC


def test_msi_more_vectors_than_there_are(config, msi):
    config.write(msi + 2, 3 << 4, 2)
    assert config.read(msi + 2, 2) >> 4 & 7 == 0


def test_msi_read_only_control_bits(config, msi):
    before = config.read(msi + 2, 2)
    config.write(msi + 2, (before ^ 0x018E) & ~0x70 | 1, 2)
    assert config.read(msi + 2, 2) == before | 1


@pytest.mark.parametrize("offset", [0, 1])
def test_capability_header_is_protected(config, msi, offset):
    before = config.read(msi, 2)
    config.write(msi + offset, 0xFF, 1)
    assert config.read(msi, 2) == before


def test_write_at_the_end_of_a_capability(config):
    """What runs out of it is another piece; nothing outside may change unnoticed."""
    info, _ = config.client.region_info(CONFIG)
    for offset in range(0x40, info.size - 4, 4):
        config.write(offset + 2, 0, 4)
    assert config.read(0, 4) == hw.DEVICE << 16 | hw.VENDOR
    assert CAP_MSI in config.capabilities()


def test_reset_and_disconnect(server, client, config, msi):
    """Nothing that a guest wrote is left; what the device set up stays."""
    whole = client.region_info(CONFIG)[0].size
    before = client.region_read(CONFIG, 0, whole)
    for leave in (client.reset, client.close):
        client.region_write(CONFIG, 0, bytes([0x57]) * 0x40)
        config.write(msi + 4, 0xFEE01000)
        config.write(msi + 2, 1, 2)
        assert client.region_read(CONFIG, 0, whole) != before
        leave()
        if leave == client.close:
            client = server.client()
        assert client.region_read(CONFIG, 0, whole) == before


def test_every_byte_of_config_can_be_written(server):
    config = Config(server.client())
    info, _ = config.client.region_info(CONFIG)
    for offset in range(info.size):
        for value in (0x00, 0xFF):
            config.write(offset, value, 1)
