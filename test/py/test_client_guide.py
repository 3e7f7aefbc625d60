# SPDX-License-Identifier: BSD-3-Clause
"""The client guide: its program is the sample, runs, and is as short as it says."""

import re
import subprocess

from conftest import ROOT, sample
from vfiouser.channel import TIMEOUT

GUIDE = ROOT / "docs" / "client-guide.md"
SAMPLE = ROOT / "samples" / "client-60.c"
HEADERS = ROOT / "client" / "include"


def test_program_is_the_sample():
    blocks = re.findall(r"^```c\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks == [SAMPLE.read_text()]


def test_program_is_short():
    assert len(SAMPLE.read_text().splitlines()) <= 60


def test_program_runs(server):
    for _ in range(2):
        result = subprocess.run([sample("client-60"), server.path], text=True, capture_output=True,
                                timeout=TIMEOUT, check=True)
        assert (result.stdout, result.stderr) == ("there and back again\n", "")


def test_program_without_a_device(tmp_path):
    result = subprocess.run([sample("client-60"), tmp_path / "none"], text=True,
                            capture_output=True, timeout=TIMEOUT, check=False)
    assert result.returncode == 1
    assert result.stderr == f"client-60: {tmp_path}/none: No such file or directory\n"


def test_functions_exist():
    """Every function that the guide names is one of the interface."""
    declared = set(re.findall(r"\b(vfuc_\w+)\(", "".join(
        header.read_text() for header in HEADERS.glob("*.h"))))
    named = set(re.findall(r"\b(vfuc_\w+)\(\)", GUIDE.read_text()))
    assert named and named <= declared, named - declared


def test_files_exist():
    for path in re.findall(r"`((?:client|samples)/[\w/.-]+)`", GUIDE.read_text()):
        assert (ROOT / path).exists(), path
