# SPDX-License-Identifier: BSD-3-Clause
"""
The tests of the C interface as a whole: nothing is exported that none of them calls. Last of these
files, by its name.
"""

import pathlib
import re

import pytest

from vfiouser.api import abi

HERE = pathlib.Path(__file__).resolve().parent
MAP = HERE.parents[1] / "lib" / "libvfio-user.map"


def exported():
    text = re.sub("#.*", "", MAP.read_text(encoding="utf-8"))
    return set(re.findall(r"^\s*(\w+);", text.partition("local:")[0], re.MULTILINE))


def declared():
    names = set()
    for header in (HERE.parents[1] / "include").glob("libvfio-user*.h"):
        text = header.read_text(encoding="utf-8")
        text = re.sub(r"/\*.*?\*/|^ *#.*?[^\\]$", "", text, flags=re.DOTALL | re.MULTILINE)
        names |= set(re.findall(r"^[\w* ]+[ *(](vfu_\w+|dma_sg_size)\)?\(", text, re.MULTILINE))
    return {name for name in names if not name.endswith("_t")}


def test_everything_declared_is_exported():
    assert declared() == exported()


def test_everything_exported_has_a_prototype_here():
    assert set(abi.PROTOTYPES) == exported()


def test_everything_exported_is_called(lib, request):
    """By the tests that have run, if those were all of this interface."""
    ran = {item.path.name for item in request.session.items}
    if not {path.name for path in HERE.glob("test_api_*.py")} <= ran:
        pytest.skip("only a part of the tests has been chosen")
    assert exported() - lib.called == set()
