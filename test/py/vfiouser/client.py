# SPDX-License-Identifier: BSD-3-Clause
"""The client: commands out, replies matched by id, and the server's commands answered."""

import errno
import json
import os
import select
from collections import defaultdict, deque

from . import wire
from .channel import TIMEOUT, Channel, Disconnected
from .memory import GuestMemory
from .wire import Cmd

CAPABILITIES = {"max_msg_fds": 16, "max_data_xfer_size": wire.MAX_DATA_XFER}


class VfioUserError(OSError):
    """An error reply."""

    def __init__(self, message):
        super().__init__(message.error, os.strerror(message.error))
        self.message = message


def version_payload(capabilities=None, major=0, minor=0, text=None):
    """capabilities becomes JSON unless text is given, which is sent as it is; neither: no JSON."""
    if text is None and capabilities is not None:
        body = {"capabilities": capabilities}
        text = json.dumps(body, separators=(",", ":")).encode() + b"\0"
    return wire.VERSION.pack(major=major, minor=minor) + (text or b"")


class Client:
    """
    A command of the server goes to on_command(message), which by default answers DMA_READ and
    DMA_WRITE from the memory. A test that wants to answer late, wrongly or not at all calls
    hold(), and then gets the commands from next_command().
    """

    def __init__(self, path, memory=None):
        self.channel = Channel.connect(path)
        self.twin = None
        self.memory = memory or GuestMemory()
        self.on_command = self.serve
        self.held = deque()
        self.replies = defaultdict(deque)
        self.next_id = 0
        self.bare_write_replies = False
        self.handlers = {Cmd.DMA_READ: self._dma_read, Cmd.DMA_WRITE: self._dma_write}
        self.version = None
        self.capabilities = None

    # Connection

    def negotiate(self, capabilities=None, **version):
        """A good VERSION exchange; the other kinds are made with request()."""
        caps = CAPABILITIES if capabilities is None else capabilities
        reply = self.request(Cmd.VERSION, version_payload(caps, **version))
        self.version = wire.VERSION.unpack(reply.payload)
        text = reply.payload[wire.VERSION.size:]
        assert text.endswith(b"\0"), text
        self.capabilities = json.loads(text[:-1])["capabilities"]
        twin = self.capabilities.get("twin_socket")
        if twin:
            self.twin = Channel.from_fd(reply.fds.pop(twin["fd_index"]))
        return reply

    def close(self):
        self.channel.close()
        if self.twin:
            self.twin.close()
        self.memory.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    # Messages

    def send_raw(self, data, fds=()):
        self.channel.send(data, fds)

    def send(self, cmd, payload=b"", fds=(), flags=0, msg_id=None, error_no=0):
        """Sends a command and returns its id."""
        if msg_id is None:
            self.next_id = (self.next_id + 1) & 0xFFFF
            msg_id = self.next_id
        self.send_raw(wire.message(cmd, payload, msg_id, wire.COMMAND | flags, error_no), fds)
        return msg_id

    def wait(self, msg_id, check=True):
        """The reply to a command sent before; meanwhile the server's commands are served."""
        while not self.replies[msg_id]:
            self.pump()
        reply = self.replies[msg_id].popleft()
        if check and reply.error:
            raise VfioUserError(reply)
        return reply

    def request(self, cmd, payload=b"", fds=(), flags=0, check=True, msg_id=None, error_no=0):
        msg_id = self.send(cmd, payload, fds, flags, msg_id, error_no)
        reply = self.wait(msg_id, check)
        assert reply.cmd == cmd, reply
        assert reply.flags & ~(wire.REPLY | wire.ERROR) == 0, reply
        return reply

    def error_of(self, cmd, payload=b"", fds=(), flags=0):
        """The errno with which the server refuses the command; 0 when it does not."""
        reply = self.request(cmd, payload, fds, flags, check=False)
        for fd in reply.fds:
            os.close(fd)
        return reply.error

    def pump(self):
        """Receives one message and puts it where it belongs."""
        channel = self.channel
        if self.twin:
            ready, _, _ = select.select([self.channel, self.twin], [], [], TIMEOUT)
            assert ready, "neither socket has a message"
            channel = ready[0]
        message = channel.recv()
        message.channel = channel
        if message.is_reply:
            self.replies[message.id].append(message)
        else:
            self.on_command(message)
        return message

    # Commands of the server

    def hold(self):
        """From now on the server's commands wait for next_command()."""
        self.on_command = self.held.append

    def next_command(self):
        while not self.held:
            self.pump()
        return self.held.popleft()

    def reply(self, command, payload=b"", error=0, msg_id=None, flags=0, cmd=None):
        flags |= wire.REPLY | (wire.ERROR if error else 0)
        command.channel.send(wire.message(command.cmd if cmd is None else cmd, payload,
                                          command.id if msg_id is None else msg_id,
                                          flags, error))

    def serve(self, command):
        handler = self.handlers.get(command.cmd)
        assert handler, f"the server sent {command}"
        assert not command.fds, f"descriptors with {command}"
        handler(command)

    def _dma_read(self, command):
        access = wire.DMA_ACCESS.unpack(command.payload)
        assert len(command.payload) == wire.DMA_ACCESS.size, command
        try:
            data = self.memory.dma_read(access.addr, access.count)
        except PermissionError:
            self.reply(command, error=errno.EPERM)
            return
        self.reply(command, command.payload + data)

    def _dma_write(self, command):
        access = wire.DMA_ACCESS.unpack(command.payload)
        data = command.payload[wire.DMA_ACCESS.size:]
        assert len(data) == access.count, command
        try:
            self.memory.dma_write(access.addr, data)
        except PermissionError:
            self.reply(command, error=errno.EPERM)
            return
        echo = b"" if self.bare_write_replies else command.payload[:wire.DMA_ACCESS.size]
        self.reply(command, echo)

    # The commands of the protocol

    def device_info(self):
        payload = wire.DEVICE_INFO.pack(argsz=wire.DEVICE_INFO.size)
        return wire.DEVICE_INFO.unpack(self.request(Cmd.DEVICE_GET_INFO, payload).payload)

    def region_info(self, index, argsz=None):
        """The information and the reply it came in."""
        argsz = wire.REGION_INFO.size if argsz is None else argsz
        payload = wire.REGION_INFO.pack(argsz=argsz, index=index)
        reply = self.request(Cmd.DEVICE_GET_REGION_INFO, payload)
        return wire.REGION_INFO.unpack(reply.payload), reply

    def irq_info(self, index):
        payload = wire.IRQ_INFO.pack(argsz=wire.IRQ_INFO.size, index=index)
        return wire.IRQ_INFO.unpack(self.request(Cmd.DEVICE_GET_IRQ_INFO, payload).payload)

    def region_read(self, region, offset, count):
        payload = wire.REGION_ACCESS.pack(offset=offset, region=region, count=count)
        reply = self.request(Cmd.REGION_READ, payload)
        assert reply.payload[:wire.REGION_ACCESS.size] == payload, reply
        data = reply.payload[wire.REGION_ACCESS.size:]
        assert len(data) == count, reply
        return data

    def send_region_write(self, region, offset, data, flags=0):
        """Only sends it; returns its id."""
        payload = wire.REGION_ACCESS.pack(offset=offset, region=region, count=len(data))
        return self.send(Cmd.REGION_WRITE, payload + data, flags=flags)

    def region_write(self, region, offset, data, flags=0):
        msg_id = self.send_region_write(region, offset, data, flags)
        if not flags & wire.NO_REPLY:
            reply = self.wait(msg_id)
            assert reply.payload == wire.REGION_ACCESS.pack(offset=offset, region=region,
                                                            count=len(data)), reply

    def read_int(self, region, offset, size=4):
        return int.from_bytes(self.region_read(region, offset, size), "little")

    def write_int(self, region, offset, value, size=4, flags=0):
        self.region_write(region, offset, value.to_bytes(size, "little"), flags)

    @staticmethod
    def map_payload(slot, flags=None, argsz=wire.DMA_MAP.size):
        if flags is None:
            flags = (wire.MAP_READ if slot.readable else 0) | (
                wire.MAP_WRITE if slot.writable else 0)
        return wire.DMA_MAP.pack(argsz=argsz, flags=flags, offset=slot.offset, addr=slot.addr,
                                 size=slot.size)

    def dma_map(self, slot, share=True, flags=None):
        """Tells the server of a slot; without share it has to use DMA_READ and DMA_WRITE."""
        payload = self.map_payload(slot, flags)
        return self.request(Cmd.DMA_MAP, payload, [slot.mem.fd] if share else [])

    def add_memory(self, addr, size, share=True, **rights):
        slot = self.memory.add(addr, size, **rights)
        self.dma_map(slot, share)
        return slot

    def dma_unmap(self, addr, size, flags=0, fds=(), check=True):
        payload = wire.DMA_UNMAP.pack(argsz=wire.DMA_UNMAP.size, flags=flags, addr=addr,
                                      size=size)
        reply = self.request(Cmd.DMA_UNMAP, payload, fds, check=check)
        if not reply.error:
            assert reply.payload == payload, reply
        return reply

    def set_irqs(self, index, flags, start=0, count=1, data=b"", fds=(), check=True):
        payload = wire.IRQ_SET.pack(argsz=wire.IRQ_SET.size + len(data), flags=flags, index=index,
                                    start=start, count=count) + data
        return self.request(Cmd.DEVICE_SET_IRQS, payload, fds, check=check)

    def reset(self):
        return self.request(Cmd.DEVICE_RESET)

    def feature(self, flags, data=b"", argsz=None, check=True):
        argsz = wire.FEATURE.size + len(data) if argsz is None else argsz
        payload = wire.FEATURE.pack(argsz=argsz, flags=flags) + data
        return self.request(Cmd.DEVICE_FEATURE, payload, check=check)

    def disconnected(self):
        """Waits until the server closes the connection; replies that come before are dropped."""
        try:
            while True:
                self.channel.recv()
        except (Disconnected, ConnectionResetError):
            return True
