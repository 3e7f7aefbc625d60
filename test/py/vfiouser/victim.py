# SPDX-License-Identifier: BSD-3-Clause
"""
A client process that is made to be killed: it keeps a server busy in one of several ways for ever
and writes one byte to its standard output after each step.

Usage: python3 -m vfiouser.victim SOCKET SCENARIO
"""

import itertools
import os
import sys

from . import wire
from .client import Client
from .edu import BUFFER, Edu
from .memory import Slot
from .wire import BAR0, INTX, Cmd

READ = wire.message(Cmd.REGION_READ, wire.REGION_ACCESS.pack(region=BAR0, count=4))


def connect(path):
    """Connects and negotiates again and again."""
    while True:
        client = Client(path)
        yield
        client.negotiate()
        yield
        client.close()
        yield


def regions(path):
    client = Client(path)
    client.negotiate()
    while True:
        client.region_read(BAR0, 0, 4)
        yield


def maps(path):
    """Maps and unmaps without waiting for a reply."""
    client = Client(path)
    client.negotiate()
    mem = client.memory.add_file(0x1000)
    for i in itertools.cycle(range(256)):
        slot = Slot(i * 0x1000, 0x1000, mem)
        client.send(Cmd.DMA_MAP, client.map_payload(slot), [mem.fd], flags=wire.NO_REPLY)
        yield
        client.send(Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, addr=slot.addr, size=slot.size),
                    flags=wire.NO_REPLY)


def halves(path):
    """Stops in the middle of messages."""
    client = Client(path)
    client.negotiate()
    for cut in itertools.cycle(range(1, len(READ))):
        client.send_raw(READ[:cut])
        yield
        client.send_raw(READ[cut:])
        client.pump()


def messages(path):
    """Transfers whose DMA messages it answers only after a step."""
    client = Client(path)
    client.negotiate({"max_data_xfer_size": 64})
    edu = Edu(client)
    edu.enable_bus_master()
    client.add_memory(0, 0x1000, share=False)
    client.hold()
    for i in itertools.count():
        msg_id = edu.start_dma(*((0, BUFFER) if i % 2 == 0 else (BUFFER, 0)), 1024,
                               (i % 2) * 2)
        yield
        command = client.next_command()
        yield
        client.on_command = client.serve
        client.serve(command)
        while client.held:
            client.serve(client.held.popleft())
        edu.finish_dma(msg_id)
        client.hold()


def interrupts(path):
    client = Client(path)
    client.negotiate()
    event = os.eventfd(0)
    while True:
        client.set_irqs(INTX, wire.DATA_EVENTFD | wire.ACTION_TRIGGER, fds=[event])
        yield
        client.set_irqs(INTX, wire.DATA_NONE | wire.ACTION_TRIGGER)
        yield


def resets(path):
    client = Client(path)
    client.negotiate()
    while True:
        client.send(Cmd.DEVICE_RESET)
        yield


SCENARIOS = {f.__name__: f for f in (connect, regions, maps, halves, messages, interrupts, resets)}


def main():
    for _ in SCENARIOS[sys.argv[2]](sys.argv[1]):
        os.write(1, b".")


if __name__ == "__main__":
    main()
