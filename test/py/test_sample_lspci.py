# SPDX-License-Identifier: BSD-3-Clause
"""samples/lspci: configuration space with every capability, as lspci reads it."""

import re
import shutil
import subprocess

import pytest

from conftest import sample
from vfiouser.config_space import EXTENDED, STANDARD, u16, u32, walk_extended, walk_standard
from vfiouser.server import START_TIMEOUT

def run(*command, **kwargs):
    result = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT,
                            check=False, **kwargs)
    assert result.returncode == 0, result.stderr
    # lspci misses kernel modules where there are none.
    assert not re.sub(r"lspci: .*libkmod.*\n", "", result.stderr)
    return result.stdout


@pytest.fixture(scope="module")
def dump():
    return run(sample("lspci"))


@pytest.fixture(scope="module")
def config(dump):
    lines = dump.splitlines()
    assert re.match(r"00:00\.0 ", lines[0])
    data = bytearray()
    for line in lines[1:257]:
        offset, octets = line.split(":")
        assert int(offset, 16) == len(data)
        data += bytes.fromhex(octets)
    assert len(data) == 4096 and lines[257:] == [""]
    return bytes(data)


def test_header(config):
    assert u32(config, 0x00) == 0x11E91234
    assert u16(config, 0x06) & 0x10, "no capability bit"
    assert u32(config, 0x08) == 0x05800002
    assert [u32(config, pos) for pos in range(0x10, 0x28, 4)] == [0xC, 0, 0, 0, 0, 0]
    assert u32(config, 0x2C) == 0x00011234
    assert config[0x3D] == 1, "no interrupt pin"


def test_standard_capabilities(config):
    found = walk_standard(config)
    assert set(found) == set(STANDARD.values())
    assert u16(config, found[STANDARD["MSI"]] + 2) == 0x0186
    assert u16(config, found[STANDARD["MSIX"]] + 2) == 31
    assert u32(config, found[STANDARD["MSIX"]] + 4) == 2
    assert u32(config, found[STANDARD["MSIX"]] + 8) == 0x802
    assert u16(config, found[STANDARD["EXP"]] + 2) == 0x92
    assert config[found[STANDARD["VNDR"]] + 2:][:6] == b"\x08hello"


def test_extended_capabilities(config):
    found = walk_extended(config)
    assert set(found) == set(EXTENDED.values())
    serial = found[EXTENDED["DSN"]] + 4
    assert config[serial:serial + 8] == bytes.fromhex("7766554433221100")
    vendor = found[EXTENDED["VNDR"]] + 4
    assert u32(config, vendor) == 0x0101CAFE
    assert config[vendor + 4:vendor + 12] == b"extended"
    assert u16(config, found[EXTENDED["PASID"]] + 4) == 20 << 8 | 6


@pytest.mark.skipif(not shutil.which("lspci"), reason="pciutils is not installed")
def test_lspci_reads_it(dump, tmp_path):
    path = tmp_path / "dump"
    path.write_text(dump)
    text = run("lspci", "-vv", "-F", path)
    for line in ("Region 0: Memory at <unassigned> (64-bit, prefetchable)",
                 "Power Management version 3",
                 "MSI: Enable- Count=1/8 Maskable+ 64bit+",
                 "Express (v2) Root Complex Integrated Endpoint",
                 "MSI-X: Enable- Count=32 Masked-",
                 "Vendor Specific Information: Len=08",
                 "Device Serial Number 00-11-22-33-44-55-66-77",
                 "Vendor Specific Information: ID=cafe Rev=1 Len=010",
                 "Address Translation Service (ATS)",
                 "Page Request Interface (PRI)",
                 "Max PASID Width: 14"):
        assert line in text, text
    assert not re.search(r"Region [2-5]: I/O", text), text


def test_usage():
    result = subprocess.run([sample("lspci"), "--dump"], capture_output=True, text=True,
                            timeout=START_TIMEOUT, check=False)
    assert result.returncode == 2 and "--help" in result.stderr
    assert "lspci -vv -F" in run(sample("lspci"), "--help")


def test_full_disk():
    with open("/dev/full", "w", encoding="ascii") as full:
        result = subprocess.run([sample("lspci")], stdout=full, stderr=subprocess.PIPE, text=True,
                                timeout=START_TIMEOUT, check=False)
    assert result.returncode == 1 and "No space left" in result.stderr
