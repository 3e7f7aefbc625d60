# SPDX-License-Identifier: BSD-3-Clause
"""A FUSE file system with one file, which stops to answer when it is told to."""

import contextlib
import ctypes
import os
import select
import stat
import struct
import tempfile
import threading

import pytest

LIBC = ctypes.CDLL(None, use_errno=True)
MS_NOSUID, MS_NODEV, MNT_DETACH = 2, 4, 2

# linux/fuse.h
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
LOOKUP, FORGET, GETATTR, OPEN, INIT, INTERRUPT, BATCH_FORGET = 1, 2, 3, 14, 26, 36, 42
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
ENTRY = struct.Struct("<QQQQII")
ATTR_OUT = struct.Struct("<QII")
OPEN_OUT = struct.Struct("<QII")
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
ROOT, FILE = 1, 2


def attributes(node, size):
    mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o600
    return ATTR.pack(node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)


class SlowFile:
    """
    The file, opened as .fd. Nothing that the kernel knows of it is valid for any time. After
    mute(), each request waits until the end of the with block.
    """

    def __init__(self, size):
        self.size = size
        self.muted = False
        self.directory = tempfile.mkdtemp(prefix="vfu-fuse-")
        try:
            self.device = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK)
        except OSError as e:
            os.rmdir(self.directory)
            pytest.skip(f"/dev/fuse: {e.strerror}")
        options = f"fd={self.device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        if LIBC.mount(b"vfu-test", self.directory.encode(), b"fuse", MS_NOSUID | MS_NODEV,
                      options.encode()) != 0:
            os.close(self.device)
            os.rmdir(self.directory)
            pytest.skip(f"cannot mount FUSE: {os.strerror(ctypes.get_errno())}")
        self.wake = os.eventfd(0)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        self.fd = os.open(f"{self.directory}/memory", os.O_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        LIBC.umount2(self.directory.encode(), MNT_DETACH)
        os.eventfd_write(self.wake, 1)
        self.thread.join()
        # The end of the connection is the end of all its requests.
        os.close(self.device)
        os.close(self.wake)
        with contextlib.suppress(OSError):
            os.close(self.fd)
        os.rmdir(self.directory)

    def mute(self):
        self.muted = True

    def _serve(self):
        while self.wake not in select.select([self.device, self.wake], [], [])[0]:
            try:
                request = os.read(self.device, 1 << 20)
            except BlockingIOError:
                continue
            _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
            if self.muted or opcode in (FORGET, INTERRUPT, BATCH_FORGET):
                continue
            error, answer = self._answer(opcode, node)
            with contextlib.suppress(OSError):
                os.write(self.device, OUT_HEADER.pack(OUT_HEADER.size + len(answer), error, unique)
                         + answer)

    def _answer(self, opcode, node):
        if opcode == INIT:
            return 0, INIT_OUT.pack(7, 31, 0, 0, 0, 0, 1 << 17, 0, 0, 0, 0)
        if opcode == LOOKUP:
            return 0, ENTRY.pack(FILE, 0, 0, 0, 0, 0) + attributes(FILE, self.size)
        if opcode == GETATTR:
            return 0, ATTR_OUT.pack(0, 0, 0) + attributes(node, self.size)
        if opcode == OPEN:
            return 0, OPEN_OUT.pack(0, 0, 0)
        return -38, b""
