# SPDX-License-Identifier: BSD-3-Clause
"""Walks the capability lists in the bytes of a configuration space."""

STANDARD = {"PM": 0x01, "MSI": 0x05, "VNDR": 0x09, "EXP": 0x10, "MSIX": 0x11}
EXTENDED = {"DSN": 0x03, "VNDR": 0x0B, "ATS": 0x0F, "PRI": 0x13, "PASID": 0x1B}


def u16(config, pos):
    return int.from_bytes(config[pos:pos + 2], "little")


def u32(config, pos):
    return int.from_bytes(config[pos:pos + 4], "little")


def walk_standard(config):
    """The offset of each standard capability by its ID."""
    found, pos = {}, config[0x34]
    while pos:
        assert 0x40 <= pos < 0x100 and pos % 4 == 0
        assert config[pos] not in found
        found[config[pos]] = pos
        pos = config[pos + 1]
    return found


def walk_extended(config):
    """The offset of each extended capability by its ID."""
    found, pos = {}, 0x100
    while pos:
        assert 0x100 <= pos < 0x1000 and pos % 4 == 0
        head = u32(config, pos)
        assert head & 0xFFFF not in found and head >> 16 & 0xF == 1
        found[head & 0xFFFF] = pos
        pos = head >> 20
    return found
