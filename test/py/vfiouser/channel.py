# SPDX-License-Identifier: BSD-3-Clause
"""One socket: whole messages with their file descriptors in and out."""

import array
import os
import socket
import struct

from . import wire

# Only guards against a hung server; no test depends on it.
TIMEOUT = 20
MAX_FDS = 253


class Disconnected(Exception):
    """The peer closed the connection."""


class Message:
    def __init__(self, header, payload, fds):
        self.id = header.msg_id
        self.cmd = header.cmd
        self.size = header.msg_size
        self.flags = header.flags
        self.error = header.error_no if header.flags & wire.ERROR else 0
        self.payload = payload
        self.fds = fds

    @property
    def is_reply(self):
        return self.flags & wire.TYPE_MASK == wire.REPLY

    def __repr__(self):
        name = wire.Cmd(self.cmd).name if self.cmd in list(wire.Cmd) else self.cmd
        return (f"<{'reply' if self.is_reply else 'command'} {name} id {self.id} "
                f"flags 0x{self.flags:x} error {self.error} payload {self.payload[:64].hex()} "
                f"of {len(self.payload)}, fds {len(self.fds)}>")


class Channel:
    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(TIMEOUT)

    @classmethod
    def connect(cls, path):
        """Waits while the server is busy with another client and its backlog is full."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", TIMEOUT, 0))
        sock.connect(str(path))
        return cls(sock)

    @classmethod
    def from_fd(cls, fd):
        return cls(socket.socket(fileno=fd))

    def fileno(self):
        return self.sock.fileno()

    def send(self, data, fds=()):
        """The descriptors go with the first byte."""
        ancillary = []
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        view = memoryview(data)
        sent = self.sock.sendmsg([view], ancillary)
        if sent < len(view):
            self.sock.sendall(view[sent:])

    def recv(self):
        fds = []
        header = wire.HEADER.unpack(self._recv_exact(wire.HEADER.size, fds))
        if header.msg_size < wire.HEADER.size or header.msg_size > wire.MAX_MESSAGE + 64:
            raise AssertionError(f"the server sent a message of {header.msg_size} bytes")
        payload = self._recv_exact(header.msg_size - wire.HEADER.size, fds)
        return Message(header, payload, fds)

    def _recv_exact(self, count, fds):
        data = bytearray()
        while len(data) < count:
            part, ancillary, flags, _ = self.sock.recvmsg(
                count - len(data), socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize))
            fds += self._rights(ancillary)
            if flags & socket.MSG_CTRUNC:
                raise AssertionError("truncated ancillary data")
            if not part:
                raise Disconnected(f"end of stream after {len(data)} of {count} bytes")
            data += part
        return bytes(data)

    @staticmethod
    def _rights(ancillary):
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[:len(data) - len(data) % fds.itemsize])
        for fd in fds:
            os.set_inheritable(fd, False)
        return list(fds)

    def at_eof(self):
        """Waits for the next byte; true when there is none because the server closed."""
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except ConnectionResetError:
            return True

    def close(self):
        self.sock.close()
