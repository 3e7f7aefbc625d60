# SPDX-License-Identifier: BSD-3-Clause
"""Migration as a client does it, and the blocks of a stream with the library's state."""

import struct

from . import wire
from .wire import FEAT_MIG_STATE, FEATURE_SET, Cmd

# States of the protocol
(ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P) = range(8)

# The header of a block: magic, version, type, length. Its types.
BLOCK = struct.Struct("<8sHHI")
MAGIC, VERSION = b"vfu-mig\n", 1
DEVICE, LIBRARY, END = 1, 2, 3


def set_state(client, state, check=True):
    data = wire.FEATURE_MIG_STATE.pack(device_state=state)
    return client.feature(FEATURE_SET | FEAT_MIG_STATE, data, check=check)


def save(client, size=4096):
    """Reads the stream in pieces of this size until there is no more for now."""
    stream = b""
    while True:
        payload = wire.MIG_DATA.pack(argsz=wire.MIG_DATA.size + size, size=size)
        reply = client.request(Cmd.MIG_DATA_READ, payload).payload
        count = wire.MIG_DATA.unpack(reply).size
        if not count:
            return stream
        stream += reply[wire.MIG_DATA.size:][:count]


def load_error(client, piece):
    """Writes one piece of a stream; the errno, or 0."""
    payload = wire.MIG_DATA.pack(argsz=wire.MIG_DATA.size + len(piece), size=len(piece)) + piece
    return client.error_of(Cmd.MIG_DATA_WRITE, payload)


def load(client, stream, size=4000):
    for at in range(0, len(stream), size):
        piece = stream[at:at + size]
        client.request(Cmd.MIG_DATA_WRITE, wire.MIG_DATA.pack(
            argsz=wire.MIG_DATA.size + len(piece), size=len(piece)) + piece)


def block(kind, data=b"", version=VERSION, length=None, magic=MAGIC):
    return BLOCK.pack(magic, version, kind, len(data) if length is None else length) + data


def blocks(stream):
    """(type, bytes) of each block, all of them whole."""
    found, at = [], 0
    while at < len(stream):
        magic, version, kind, length = BLOCK.unpack_from(stream, at)
        assert (magic, version) == (MAGIC, VERSION)
        at += BLOCK.size + length
        assert at <= len(stream)
        found.append((kind, stream[at - length:at]))
    return found


def of_device(stream):
    """The device's own bytes in a stream of blocks."""
    return b"".join(data for kind, data in blocks(stream) if kind == DEVICE)


def with_device(stream, data):
    """The same stream with other bytes of the device."""
    return b"".join(block(kind, body) for kind, body in blocks(stream) if kind == LIBRARY) + \
        (block(DEVICE, data) if data else b"") + block(END)
