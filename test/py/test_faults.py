# SPDX-License-Identifier: BSD-3-Clause
"""
Calls of servers fail, at each place in the code that a session passes: a sample of what
test/faults/run does in full, one failure at each place.
"""

import shutil

import pytest

from conftest import BUILD, sample
from vfiouser.fault_campaign import Campaign
from vfiouser.fault_sessions import SESSIONS
from vfiouser.faults import compile_shim

STRIDE = 7  # which failure a place has: neighbouring places have different ones


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("no compiler for test/faults/shim.c")
    program = sample("edu").read_bytes()
    if any(name in program for name in (b"__asan_init", b"__tsan_init")):
        pytest.skip("a sanitizer has its own allocator, and must come first")
    return compile_shim(tmp_path_factory.mktemp("faults"))


def choose(sites):
    for number, faults in enumerate(sites):
        yield faults[STRIDE * number % len(faults)]


@pytest.mark.parametrize("name", SESSIONS)
def test_every_place(shim, name):
    with Campaign(SESSIONS[name], BUILD, shim) as campaign:
        sites = list(campaign.faults())
        assert len(sites) >= 10, "the shim does not see the server's calls"
        problems = [f"{fault}: {problem}" for fault in choose(sites)
                    if (problem := campaign.inject(fault))]
        problems += [f"{fault}: {problem}" for fault in choose(campaign.faults_of_start())
                     if (problem := campaign.start_with(fault))]
    assert not problems, "\n".join(problems)
