# SPDX-License-Identifier: BSD-3-Clause
"""vfu-ls, run against devices: what it says of them, and what it says when it cannot."""

import os
import re
import socket
import stat
import subprocess

import pytest

from conftest import built, sample
from vfiouser.channel import TIMEOUT
from vfiouser.server import Server


def vfu_ls(*args, status=0):
    """Its standard output, or its standard error stream when it is to fail."""
    result = subprocess.run([built("tools", "vfu-ls"), *map(str, args)], text=True,
                            capture_output=True, timeout=TIMEOUT, check=False)
    assert result.returncode == status, result.stdout + result.stderr
    if status == 0:
        assert result.stderr == ""
        return result.stdout
    assert result.stdout == ""
    return result.stderr


def section(text, title):
    """The lines that are indented under a title."""
    found = re.search(rf"^{re.escape(title)}.*:\n((?: .*\n)*)", text, re.MULTILINE)
    assert found, f"no {title} in\n{text}"
    return [line.strip() for line in found[1].splitlines()]


def test_edu(server):
    text = vfu_ls(server.path)
    assert text.startswith("1234:11e8 device without a class (class 00ff), revision 10, "
                           "subsystem 1af4:1100\n")
    assert section(text, "Regions") == ["0 BAR0: 1 MiB, memory, 32-bit, read/write, by messages",
                                        "7 CONFIG: 256 bytes, read/write, by messages"]
    assert section(text, "Interrupts") == ["INTx: 1", "MSI: 1", "ERR: 1", "REQ: 1"]
    assert section(text, "Negotiated")[:3] == [
        "transfers of up to 1 MiB, 8 file descriptors a message",
        "several writes in one message: yes", "migration: no"]
    assert section(text, "Capabilities") == [
        "[040] MSI: enabled no, 1 of 1 vectors, 64-bit address yes, maskable no"]
    assert "\nReset: yes\n" in text
    assert "error" not in server.stderr()


@pytest.mark.probe_args("--pasid", "20", "--ats", "--pri", "--migration")
def test_iommu(probe_server):
    text = vfu_ls(probe_server.path)
    capabilities = "\n".join(section(text, "Capabilities"))
    assert "Address Translation Service: enabled no, smallest translation unit 4 KiB, " \
           "32 invalidations in flight" in capabilities
    assert "Process Address Space ID: enabled no, 20 bits, execute yes (enabled no)" in capabilities
    assert "Page Request Interface: enabled no, stopped yes, 0 of 512 page requests" in capabilities
    negotiated = section(text, "Negotiated")
    assert "IOMMU extension: agreed" in negotiated
    assert "PASID: 20 bits, execute yes, privileged yes" in negotiated
    assert "PRI: 512 page requests" in negotiated
    assert "migration: yes, while running yes, peer to peer no, dirty pages of 4096 bytes" in \
        negotiated
    assert "IOMMU extension: no" in section(vfu_ls("--plain", probe_server.path), "Negotiated")


def test_registers(server):
    assert vfu_ls(server.path, "read", "BAR0", 0, 4) == "0x010000ed\n"
    assert vfu_ls(server.path, "read", "CONFIG", 0, 2) == "0x1234\n"
    assert vfu_ls(server.path, "read", "config", 0, 20) == (
        "000000: 34 12 e8 11 00 00 10 00 10 00 ff 00 00 00 00 00\n000010: 00 00 00 00\n")


def test_write():
    """What the device drives tells: its registers are reset when vfu-ls has gone."""
    gpio = Server(sample("gpio"))
    assert vfu_ls(gpio.path, "write", "bar0", 0, 4, "0x80") == ""
    assert gpio.read_line() == "7=0"
    assert gpio.read_line() == "7=z"
    gpio.stop()


def test_refused_access(server):
    text = vfu_ls(server.path, "read", "BAR0", "0x100000", 4, status=1)
    assert "read of 4 bytes at BAR0+0x100000: Invalid argument" in text
    assert "is it in the region" in text


@pytest.mark.parametrize("args, complaint", [
    ((), "usage:"),
    (("read",), "usage:"),
    (("peek", "BAR0", 0, 4), "usage:"),
    (("read", "BAR0", 0), "usage:"),
    (("read", "BAR9", 0, 4), 'no region "BAR9"'),
    (("read", "BAR0", "zero", 4), 'OFFSET "zero" is not a number'),
    (("read", "BAR0", "-1", 4), 'OFFSET "-1" is not a number'),
    (("read", "BAR0", 0, 5000), 'SIZE "5000" is not a number from 0 to 4096'),
    (("write", "BAR0", 0, 3, 1), "SIZE 3 is not one to write"),
    (("write", "BAR0", 0, 1, 256), "VALUE 256 has more than 1 bytes"),
])
def test_wrong_arguments(args, complaint):
    text = vfu_ls(*(("/nowhere", *args) if args else ()), status=2)
    assert complaint in text
    assert "usage: vfu-ls" in text


def test_help():
    assert vfu_ls("--help").startswith("usage: vfu-ls")


def test_no_socket(tmp_path):
    text = vfu_ls(tmp_path / "none", status=1)
    assert f"{tmp_path}/none: cannot attach: No such file or directory" in text
    assert "start the server, or give the path" in text


def test_dead_socket(tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    text = vfu_ls(path, status=1)
    assert "Connection refused" in text
    assert "remove the socket and start the server again" in text


@pytest.mark.parametrize("name", ["file", "directory"])
def test_not_a_socket(tmp_path, name):
    """Nobody is told to remove a file that is no socket: connect(2) says the same of both."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "directory").mkdir()
    text = vfu_ls(tmp_path / name, status=1)
    assert "this is no socket" in text
    assert "remove" not in text


def test_busy_server(server):
    server.client()
    text = vfu_ls("--timeout", 100, server.path, status=1)
    assert "Connection timed out" in text
    assert "one client at a time" in text


def test_something_else_answers(tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with subprocess.Popen([built("tools", "vfu-ls"), path], stderr=subprocess.PIPE,
                              text=True) as tool:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"220 mail.example.org ESMTP ready\r\n")
                text = tool.communicate(timeout=TIMEOUT)[1]
    assert tool.returncode == 1
    assert "does not speak vfio-user" in text
