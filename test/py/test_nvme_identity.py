# SPDX-License-Identifier: BSD-3-Clause
"""The names by which a host tells controllers and namespaces apart, and files that are in use."""

import itertools
import subprocess
import tempfile
import uuid

import pytest

from conftest import sample
from vfiouser.nvme import Nvme
from vfiouser.nvme_spec import CNS_CONTROLLER, CNS_DESCRIPTORS, CNS_NAMESPACE

EUI64, NGUID, UUID = 1, 2, 3


def descriptors(nvme, nsid):
    """The identifiers of a namespace (figure 249)."""
    data, found = nvme.identify(CNS_DESCRIPTORS, nsid=nsid), {}
    while data[1]:
        found[data[0]] = data[4:4 + data[1]]
        data = data[4 + data[1]:]
    return found


def names(server, namespaces=1):
    """Everything that has to be unique, by its field; the client goes away again."""
    client = server.client()
    nvme = Nvme(client)
    nvme.start()
    controller = nvme.identify(CNS_CONTROLLER)
    found = {"serial": controller[4:24].rstrip(b" "), "cntlid": controller[78:80],
             "subnqn": controller[768:1024].rstrip(b"\0")}
    for nsid in range(1, namespaces + 1):
        data = nvme.identify(CNS_NAMESPACE, nsid=nsid)
        ids = descriptors(nvme, nsid)
        assert ids[EUI64] == data[120:128] and ids[NGUID] == data[104:120]
        found.update({("uuid", nsid): ids[UUID], ("nguid", nsid): ids[NGUID],
                      ("eui64", nsid): ids[EUI64]})
    client.close()
    assert all(any(value) for value in found.values()), found
    return found


def assert_different(*all_names):
    """No value twice, neither among servers nor among namespaces."""
    values = [(key[0] if isinstance(key, tuple) else key, value)
              for found in all_names for key, value in found.items()]
    assert len(set(values)) == len(values), all_names


def disk(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(bytes(1 << 20))
    return path


def test_unique_by_default(start_nvme, tmp_path):
    """Linux refuses a second controller with the same SUBNQN and CNTLID."""
    memory = [names(start_nvme("--namespace", "memory=1M")) for _ in range(2)]
    files = [names(start_nvme("--namespace", f"file={disk(tmp_path, name)}")) for name in "ab"]
    assert_different(*memory, *files)


def test_unique_within_a_server(start_nvme, tmp_path):
    path = disk(tmp_path, "disk")
    both = itertools.chain.from_iterable(("--namespace", f"file={path},shared") for _ in range(2))
    assert_different(names(start_nvme("--namespace", "memory=1M", "--namespace", "memory=1M",
                                      *both), 4))


def test_shared_files_are_different_controllers(start_nvme, tmp_path):
    path = disk(tmp_path, "disk")
    assert_different(*(names(start_nvme("--namespace", f"file={path},shared")) for _ in range(2)))


def test_stable(start_nvme, tmp_path, monkeypatch):
    """The same file, however it is named; and memory as long as the server runs."""
    path = disk(tmp_path, "disk")
    monkeypatch.chdir(tmp_path)
    found = []
    for name in (path, "disk"):
        server = start_nvme("--namespace", f"file={name}")
        found.append(names(server))
        server.kill()
    assert found[0] == found[1]
    memory = start_nvme("--namespace", "memory=1M")
    assert names(memory) == names(memory)


def test_options(start_nvme):
    ids = uuid.uuid4()
    found = names(start_nvme(
        "--namespace", f"memory=1M,uuid={ids},nguid={ids.hex[::-1]},eui64=525400ABCDEF0123",
        "--serial", "S1", "--subnqn", "nqn.2014-08.org.example:disk", "--cntlid", "7"))
    assert found == {"serial": b"S1", "cntlid": b"\x07\0",
                     "subnqn": b"nqn.2014-08.org.example:disk", ("uuid", 1): ids.bytes,
                     ("nguid", 1): bytes.fromhex(ids.hex[::-1]),
                     ("eui64", 1): bytes.fromhex("525400abcdef0123")}


def refusal(*args):
    """The error message of a server that does not start."""
    with tempfile.TemporaryDirectory() as directory:
        run = subprocess.run([sample("nvme"), f"{directory}/socket", *args], text=True,
                             stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert run.returncode != 0, run
    return run.stderr


@pytest.mark.parametrize("word, args", [
    ("uuid", ("--namespace", "memory=1M,uuid=1234")),
    ("eui64", ("--namespace", "memory=1M,eui64=0000000000000000")),
    ("shared", ("--namespace", "memory=1M,shared")),
    ("--cntlid", ("--namespace", "memory=1M", "--cntlid", "0")),
    ("--cntlid", ("--namespace", "memory=1M", "--cntlid", "65520")),
    ("--subnqn", ("--namespace", "memory=1M", "--subnqn", "n" * 224))])
def test_options_that_make_no_sense(word, args):
    assert word in refusal(*args)


# Files that are in use

@pytest.mark.parametrize("first", ["", ",shared"])
@pytest.mark.parametrize("second", ["", ",direct"])
def test_file_in_use_by_another_server(start_nvme, tmp_path, first, second):
    path = disk(tmp_path, "disk")
    server = start_nvme("--namespace", f"file={path}{first}")
    message = refusal("--namespace", f"file={path}{second}")
    assert str(path) in message and "shared" in message
    server.kill()
    start_nvme("--namespace", f"file={path}{second}")


def test_file_twice_in_one_server(tmp_path):
    path = disk(tmp_path, "disk")
    message = refusal("--namespace", f"file={path}", "--namespace", f"file={path}")
    assert "namespace 2" in message and str(path) in message and "shared" in message
