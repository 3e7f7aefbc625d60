# SPDX-License-Identifier: BSD-3-Clause
"""
Nothing that a client does outlives its session: after each attack of vfiouser/attacks.py a good
client finds a device that works, and the server has the descriptors, threads and memory of before.
"""

import os

import pytest

from conftest import sample
from vfiouser import attacks
from vfiouser.target import TARGETS

# KiB. The allocator keeps what an attack has made it take, up to the limits of the context, and uses
# that for the next one. So an attack is repeated until it adds nothing any more; a leak always does.
MEMORY_MARGIN = 256
ROUNDS = range(2, 9)
INSTRUMENTED = (b"libasan", b"libtsan")

CASES = [(device, name) for device in TARGETS for name in attacks.all_for(device)]


@pytest.fixture(scope="module")
def memory_counts(library_path):
    """Sanitizers and valgrind keep memory that is free."""
    return not os.environ.get("VFU_WRAPPER") and not any(
        name in library_path.read_bytes() for name in INSTRUMENTED)


@pytest.fixture(scope="module")
def targets():
    """One server of each kind takes all attacks, one after the other."""
    running = {}

    def get(name):
        if name not in running:
            target = TARGETS[name](sample(name))
            running[name] = target
            target.check()
            target.baseline = target.state()
        return running[name]

    yield get
    for target in running.values():
        if not target.server.stopped:
            target.stop()


def attack(target, name, number):
    """The memory that the server has when a good client has found it in order."""
    attacks.run(name, target, attacks.seeded(name, number))
    target.check(seed=number)
    *counts, memory = target.settled_state(*target.baseline[:2])
    assert tuple(counts) == target.baseline[:2], f"descriptors, threads: {target.server.fds()}"
    return memory


@pytest.fixture
def threads_count(library_path, device):
    """The thread sanitizer starts a thread of its own with a program's first, in gpio an attack's."""
    if device == "gpio" and b"libtsan" in library_path.read_bytes():
        pytest.skip("the thread sanitizer has a thread of its own")


@pytest.mark.parametrize("device, name", CASES)
@pytest.mark.usefixtures("threads_count")
def test_attack(targets, memory_counts, device, name):
    target = targets(device)
    try:
        memory = [attack(target, name, 0), attack(target, name, 1)]
        for number in ROUNDS:
            if not memory_counts or memory[-1] - memory[-2] <= MEMORY_MARGIN:
                return
            memory.append(attack(target, name, number))
    except BaseException:
        print(target.server.stderr()[-4000:])
        raise
    pytest.fail(f"KiB after each round: {memory}")
