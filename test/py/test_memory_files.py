# SPDX-License-Identifier: BSD-3-Clause
"""Which files may be guest memory, and what a file can do to the server by not answering."""

import errno
import os

import pytest

from test_dma import map_error, mapping
from vfiouser import wire
from vfiouser.fuse import SlowFile
from vfiouser.wire import MAP_FILE_IO, MAP_MMAP, MAP_RW, Cmd

M1 = 1 << 20


@pytest.mark.parametrize("allowed", ["", "ext4,xfs,dma-buf,device"])
@pytest.mark.parametrize("flags", [MAP_RW, MAP_RW | MAP_MMAP, MAP_RW | MAP_FILE_IO])
def test_memory_that_never_answers(monkeypatch, request, flags, allowed):
    """The FUSE server stops answering: a map is refused without asking the file."""
    monkeypatch.setenv("VFU_MEMORY_FILES", allowed)
    server = request.getfixturevalue("server")
    client = server.client()
    with SlowFile(M1) as slow:
        slow.mute()
        assert map_error(client, mapping(size=M1, flags=flags), [slow.fd]) == errno.EPERM
        client.device_info()
        assert "VFU_MEMORY_FILES=fuse" in server.stderr()


@pytest.mark.parametrize("how", ["superfluous", "many", "unknown command", "reply", "split"])
def test_descriptor_that_cannot_be_closed(server, how):
    """close() asks the FUSE server to flush: the control thread does not wait for that either."""
    client = server.client()
    with SlowFile(M1) as slow:
        slow.mute()
        if how == "superfluous":
            client.error_of(Cmd.DEVICE_GET_INFO, b"\x10" + bytes(15), [slow.fd])
        elif how == "many":
            map_error(client, mapping(), [slow.fd] * 8)
        elif how == "unknown command":
            client.error_of(99, b"", [slow.fd])
        elif how == "reply":
            client.send_raw(wire.message(Cmd.DMA_READ, b"", 7, wire.REPLY), [slow.fd])
        else:
            client.send_raw(b"\0", [slow.fd])
        client.close()
        server.client().device_info()


def test_kinds_that_the_operator_allows(monkeypatch, request, tmp_path):
    """A file that is no memory is, when its kind is in VFU_MEMORY_FILES; here, whatever it is."""
    path = tmp_path / "memory"
    path.write_bytes(bytes(M1))
    monkeypatch.setenv("VFU_MEMORY_FILES", "any")
    client = request.getfixturevalue("server").client()
    fd = os.open(path, os.O_RDWR)
    assert map_error(client, mapping(size=M1), [fd]) == 0
    client.dma_unmap(0, M1)
    os.close(fd)
