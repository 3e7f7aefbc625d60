# SPDX-License-Identifier: BSD-3-Clause
"""
What hostile clients do, as one table: ATTACKS[name](target, rng). An attack connects as often as it
likes by the target's server and returns when it has done its harm; the caller closes what it has
opened. The server may end its connections at any time: see run().
"""

import contextlib
import errno
import functools
import itertools
import os
import random
import select
import socket
import struct

from . import software_iommu as iommu
from . import wire
from .channel import TIMEOUT, Disconnected
from .client import CAPABILITIES, VfioUserError, version_payload
from .memory import Slot
from .nvme import Nvme
from .nvme_chaos import Chaos
from .wire import ACTION_TRIGGER, BAR0, CONFIG, DATA_BOOL, DATA_EVENTFD, INTX, NO_REPLY, Cmd

ATTACKS = {}
PAGE = 4096
# More of them would be what the attacker's own process may have open.
MANY_FILES = 300
FULL = (1 << 64) - 2
INFO = wire.DEVICE_INFO.pack(argsz=16)
EXTENDED = {**CAPABILITIES, "iommu": iommu.CAPS}


def attack(function=None, *, devices=("edu", "gpio", "nvme")):
    """Enters a function into the table."""
    if function is None:
        return functools.partial(attack, devices=devices)
    function.devices = devices
    ATTACKS[function.__name__] = function
    return function


def run(name, target, rng):
    """One attack from beginning to end. An attacker may be refused, and thrown out."""
    with contextlib.suppress(Disconnected, BrokenPipeError, ConnectionResetError, VfioUserError):
        ATTACKS[name](target, rng)
    target.leave()


@contextlib.contextmanager
def memory_files(count, size=PAGE):
    files = []
    try:
        for _ in range(count):
            files.append(os.memfd_create("hostile"))
            os.ftruncate(files[-1], size)
        yield files
    finally:
        for fd in files:
            os.close(fd)


def fill(client, data, limit=64 << 20):
    """Sends without reading, until the server takes no more."""
    client.channel.sock.setblocking(False)
    view = memoryview(data)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < limit:
            sent += client.channel.sock.send(view[sent % len(view):])


def map_payload(addr, size, offset=0, flags=wire.MAP_RW):
    return wire.DMA_MAP.pack(argsz=wire.DMA_MAP.size, flags=flags, offset=offset, addr=addr,
                             size=size)


def odd(rng, bits):
    """A number of which something might be made wrongly."""
    return rng.choice([0, 1, 4, PAGE - 1, PAGE, 1 << (bits - 1), (1 << bits) - 1, (1 << bits) - PAGE,
                       rng.getrandbits(bits), rng.getrandbits(8)]) & ((1 << bits) - 1)


# Before the session

@attack
def connect_and_leave(target, _rng):
    for _ in range(200):
        target.server.connect().close()
    target.server.clients.clear()


@attack
def queue_of_clients(target, _rng):
    """Many wait at once, and leave when one of them has been attached."""
    clients = [target.server.connect() for _ in range(50)]
    clients[0].negotiate()


@attack
def silent(target, _rng):
    assert target.server.connect().channel.at_eof()


@attack
def silent_behind_a_byte(target, _rng):
    client = target.server.connect()
    client.send_raw(b"\1")
    assert client.channel.at_eof()


@attack
def version_bytewise(target, _rng):
    client = target.server.connect()
    for byte in wire.message(Cmd.VERSION, version_payload(CAPABILITIES)):
        client.send_raw(bytes([byte]))
    client.pump()


@attack
def versions(target, rng):
    deep = b'{"capabilities":' + b"[" * 5000
    for text in (b"", b"\0", b"{", b"null\0", b"{}", b"\xff\xfe\0", deep, deep + b"\0",
                 b'{"capabilities":{"max_msg_fds":-1}}\0', b'{"capabilities":{"max_msg_fds":1e999}}\0',
                 b'{"capabilities":{"migration":{"pgsize":0}}}\0', b"[" * 60000 + b"\0",
                 b'{"capabilities":{"iommu":{"pasid":{"bits":64}}}}\0',
                 b'{"a":"' + b"\\u0000" * 1000 + b'"}\0', rng.randbytes(2000) + b"\0"):
        client = target.server.connect()
        client.send(Cmd.VERSION, version_payload(text=text, major=0, minor=rng.choice([0, 1, 9])))
        client.send(Cmd.DEVICE_GET_INFO, INFO)
        with contextlib.suppress(Disconnected, ConnectionResetError):
            client.pump()
        client.close()


@attack
def half_versions(target, rng):
    data = wire.message(Cmd.VERSION, version_payload(CAPABILITIES))
    for _ in range(30):
        client = target.server.connect()
        client.send_raw(data[:rng.randrange(1, len(data))])
        client.close()


# Messages

@attack
def random_bytes(target, rng):
    for _ in range(5):
        client = target.server.client()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.send_raw(rng.randbytes(4096))
        client.close()


@attack
def bad_headers(target, rng):
    for size in (0, 1, 15, wire.MAX_MESSAGE + 1, 0xFFFFFFFF):
        client = target.server.client()
        client.send_raw(wire.message(Cmd.DEVICE_GET_INFO, INFO, msg_size=size))
        client.close()
    client = target.server.client()
    for _ in range(300):
        client.send_raw(wire.message(rng.getrandbits(16), rng.randbytes(rng.randrange(64)),
                                     rng.getrandbits(16),
                                     rng.choice([0, NO_REPLY, wire.REPLY, 0x21, 0x2F,
                                                 rng.getrandbits(32)]), rng.getrandbits(8)))


@attack
def bad_messages(target, rng):
    """Whole commands with any values, several of which are on their way at once."""
    client = target.server.client(EXTENDED)
    client.on_command = lambda message: None
    commands = list(wire.CLIENT_REQUESTS)
    ids = []
    for _ in range(600):
        cmd = rng.choice(commands)
        layout = wire.CLIENT_REQUESTS[cmd]
        payload = rng.randbytes(layout.size)
        if rng.random() < 0.7:
            payload = struct.pack(f"<{layout.size // 4}I",
                                  *(odd(rng, 32) for _ in range(layout.size // 4)))
            payload += bytes(layout.size - len(payload))
        ids.append(client.send(cmd, payload + bytes(rng.choice([0, 0, 4, 8, 100])),
                               flags=rng.choice([0, 0, 0, wire.F_PASID])))
        if len(ids) == 20:
            client.wait(ids.pop(0), check=False)


@attack
def half_messages(target, rng):
    data = wire.message(Cmd.REGION_WRITE, wire.REGION_ACCESS.pack(region=CONFIG, count=64) +
                        bytes(64))
    for _ in range(20):
        client = target.server.client()
        with memory_files(2) as files:
            client.send_raw(data[:rng.randrange(1, len(data))], files)
        client.close()


@attack
def bytewise(target, _rng):
    client = target.server.client()
    for byte in wire.message(Cmd.DEVICE_GET_INFO, INFO) * 20:
        client.send_raw(bytes([byte]))


@attack
def flood_and_leave(target, _rng):
    client = target.server.client()
    fill(client, wire.message(Cmd.DEVICE_GET_INFO, INFO) * 256, 1 << 20)


@attack
def never_reading(target, _rng):
    """Replies that nobody reads: the server gives the client up."""
    client = target.server.client()
    read = wire.message(Cmd.REGION_READ, wire.REGION_ACCESS.pack(region=CONFIG, count=256))
    fill(client, read * 256)
    poll = select.poll()
    poll.register(client.channel, select.POLLRDHUP)
    assert poll.poll(1000 * TIMEOUT), "the server waits for ever"


@attack
def end_of_sending(target, _rng):
    client = target.server.client()
    client.send(Cmd.DEVICE_GET_INFO, INFO)
    client.channel.sock.shutdown(socket.SHUT_WR)
    assert client.disconnected()


@attack
def resets(target, _rng):
    client = target.server.client()
    for _ in range(100):
        client.send(Cmd.DEVICE_RESET, flags=NO_REPLY)


@attack
def accesses_to_regions(target, rng):
    client = target.server.client()
    for _ in range(300):
        region, size = rng.choice([BAR0, CONFIG, rng.getrandbits(4)]), rng.choice([1, 2, 4, 8, 5, 64])
        offset = rng.choice([rng.getrandbits(12), odd(rng, 64)])
        access = wire.REGION_ACCESS.pack(offset=offset, region=region, count=size)
        if rng.random() < 0.5:
            client.request(Cmd.REGION_READ, access, check=False)
        else:
            client.request(Cmd.REGION_WRITE, access + rng.randbytes(size), check=False)


# Descriptors

@attack
def surplus_descriptors(target, rng):
    client = target.server.client()
    with memory_files(16) as files:
        for _ in range(100):
            count = rng.choice([1, 16, 253])
            client.send(rng.choice([Cmd.DEVICE_GET_INFO, Cmd.DMA_MAP, Cmd.DEVICE_SET_IRQS, 99]),
                        INFO, list(itertools.islice(itertools.cycle(files), count)),
                        flags=NO_REPLY)
    client.device_info()


@attack
def maps_of_many_files(target, _rng):
    client = target.server.client()
    for i in range(MANY_FILES):
        with memory_files(1) as files:
            client.send(Cmd.DMA_MAP, map_payload(i * PAGE, PAGE), files, flags=NO_REPLY)
    client.device_info()


@attack
def files_of_other_kinds(target, _rng):
    """What cannot be mapped, or would make the server wait."""
    client = target.server.client()
    read_end, write_end = os.pipe()
    pair = socket.socketpair()
    event = os.eventfd(0)
    regular = os.open("/proc/self/exe", os.O_RDONLY)
    for fd in (read_end, write_end, pair[0].fileno(), event, regular):
        client.request(Cmd.DMA_MAP, map_payload(0, PAGE), [fd], check=False)
        client.set_irqs(INTX, DATA_EVENTFD | ACTION_TRIGGER, fds=[fd], check=False)
    for fd in (read_end, write_end, event, regular):
        os.close(fd)
    for end in pair:
        end.close()


@attack
def eventfds(target, rng):
    """All that SET_IRQS can be asked for, with eventfds and without."""
    client = target.server.client()
    event = os.eventfd(0)
    for _ in range(300):
        flags = rng.getrandbits(6)
        count, fds = rng.choice([0, 1, 2, 32, 0xFFFFFFFF]), []
        if flags & DATA_EVENTFD:
            fds = [event] * min(count, rng.choice([0, 1, 2, 32]))
        data = rng.randbytes(min(count, 64)) if flags & DATA_BOOL else b""
        client.set_irqs(rng.randrange(6), flags, rng.choice([0, 0, 1, 0xFFFFFFFF]), count, data, fds,
                        check=False)
    os.close(event)


@attack
def full_eventfd(target, _rng):
    """It blocks whoever writes to it."""
    client = target.server.client()
    event = os.eventfd(0)
    os.eventfd_write(event, FULL)
    try:
        target.interrupt(client, event)
        client.device_info()
    finally:
        os.close(event)


# Memory

@attack
def maps_and_unmaps(target, rng):
    client = target.server.client()
    with memory_files(4, 1 << 20) as files:
        for _ in range(500):
            addr, size = PAGE * rng.randrange(64), PAGE * rng.choice([1, 1, 2, 16])
            if rng.random() < 0.6:
                client.send(Cmd.DMA_MAP, map_payload(addr, size), [rng.choice(files)],
                            flags=NO_REPLY)
            else:
                client.send(Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(
                    argsz=24, addr=addr, size=size, flags=rng.choice([0, 0, 0, wire.UNMAP_ALL])),
                    flags=NO_REPLY)
    client.device_info()


@attack
def maps_without_end(target, _rng):
    """As many as there can be, and more."""
    client = target.server.client()
    for i in range(3000):
        client.send(Cmd.DMA_MAP, map_payload(i << 20, PAGE), flags=NO_REPLY)
    client.device_info()


@attack
def maps_of_address_space(target, _rng):
    """8 TiB of a small file each."""
    client = target.server.client()
    with memory_files(1) as files:
        for i in range(40):
            client.request(Cmd.DMA_MAP, map_payload(i << 43, 1 << 43), files, check=False)
            client.request(Cmd.DMA_MAP, map_payload(i * PAGE, PAGE, offset=i << 43), files,
                           check=False)


@attack
def odd_maps(target, rng):
    client = target.server.client()
    with memory_files(1) as files:
        for _ in range(200):
            payload = map_payload(odd(rng, 64), odd(rng, 64), odd(rng, 64), rng.getrandbits(4))
            client.request(Cmd.DMA_MAP, payload, rng.choice([[], files, files * 2]), check=False)


@attack
def truncation(target, _rng):
    """Of memory that the device uses meanwhile."""
    for size in (0, PAGE):
        client = target.server.client()
        with memory_files(1, 16 * PAGE) as files:
            client.request(Cmd.DMA_MAP, map_payload(0x10000, 16 * PAGE), files)
            target.use_memory(client, 0x10000)
            os.ftruncate(files[0], size)
            target.use_memory(client, 0x10000 + 2 * PAGE)
            client.device_info()
        client.close()


@attack
def unanswered_accesses(target, _rng):
    """Memory by messages, which the client does not answer; it leaves in the middle."""
    client = target.server.client()
    client.hold()
    client.request(Cmd.DMA_MAP, map_payload(0x10000, 16 * PAGE))
    target.use_memory(client, 0x10000)
    client.device_info()


@attack
def dirty_bitmaps(target, rng):
    client = target.server.client()
    for i in range(20):
        client.request(Cmd.DMA_MAP, map_payload(i << 36, 1 << 35), check=False)
    for _ in range(40):
        feature = rng.choice([wire.FEAT_LOGGING_START, wire.FEAT_LOGGING_STOP,
                              wire.FEAT_LOGGING_REPORT])
        page = rng.choice([0, 1, PAGE, 1 << 20, 1 << 63])
        data = wire.LOGGING_CONTROL.pack(page_size=page, num_ranges=rng.choice([0, 0, 1, 1 << 31]))
        if feature == wire.FEAT_LOGGING_REPORT:
            data = wire.LOGGING_REPORT.pack(iova=rng.randrange(20) << 36, length=1 << 35,
                                            page_size=page)
        client.feature(feature | rng.choice([wire.FEATURE_SET, wire.FEATURE_GET]), data,
                       rng.choice([64, 1 << 20, 0xFFFFFFFF]), check=False)


@attack
def migrations(target, rng):
    client = target.server.client()
    for _ in range(100):
        state = wire.FEATURE_MIG_STATE.pack(device_state=rng.randrange(9))
        client.feature(wire.FEATURE_SET | wire.FEAT_MIG_STATE, state, check=False)
        data = wire.MIG_DATA.pack(argsz=8 + 256, size=256)
        client.request(Cmd.MIG_DATA_READ, data, check=False)
        client.request(Cmd.MIG_DATA_WRITE, data + rng.randbytes(256), check=False)


# The IOMMU extension

@attack
def pasids(target, rng):
    """Mappings in as many address spaces as there are PASIDs."""
    client = target.server.client(EXTENDED)
    client.on_command = lambda message: None
    for pasid in range(0, 1 << 20, 1 << 9):
        prefix = wire.PASID_PREFIX.pack(pasid=pasid, attrs=rng.choice([0, 0, 1, 2, 3, 1 << 31]))
        client.send(Cmd.DMA_MAP, prefix + map_payload(0, PAGE), flags=NO_REPLY | wire.F_PASID)
    client.device_info()


@attack
def invalidations(target, rng):
    client = target.server.client(EXTENDED)
    client.hold()
    for _ in range(300):
        payload = wire.ATS_INVALIDATE.pack(argsz=24, flags=rng.getrandbits(2), address=odd(rng, 64),
                                           length=odd(rng, 64))
        client.send(Cmd.ATS_INVALIDATE, wire.PASID_PREFIX.pack(pasid=rng.getrandbits(20)) + payload,
                    flags=NO_REPLY | wire.F_PASID)
    client.device_info()


@attack
def wrong_answers(target, rng):
    """To the server's own commands, if it has any: translations, page requests, accesses."""
    client = target.server.client(EXTENDED)

    def answer(command):
        for _ in range(rng.choice([1, 1, 2])):
            client.reply(command, rng.randbytes(rng.choice([0, 8, 16, 32, 64])),
                         rng.choice([0, 0, errno.EIO]), rng.choice([None, rng.getrandbits(16)]),
                         rng.choice([0, wire.F_PASID]))

    client.on_command = answer
    client.request(Cmd.DMA_MAP, map_payload(0x10000, 16 * PAGE))
    for _ in range(20):
        target.use_memory(client, 0x10000)
        client.device_info()


# NVMe

@attack(devices=("nvme",))
def nvme_commands(target, rng):
    nvme = Nvme(target.server.client())
    nvme.start_io(2, 64)
    Chaos(nvme, rng.getrandbits(32)).queues_come_and_go(5)


@attack(devices=("nvme",))
def nvme_commands_without_shared_memory(target, rng):
    nvme = Nvme(target.server.client())
    slot = nvme.memory.slot
    nvme.client.dma_unmap(slot.addr, slot.size)
    nvme.client.dma_map(slot, share=False)
    nvme.start_io(2, 64)
    Chaos(nvme, rng.getrandbits(32)).run([nvme.admin, *nvme.queues.values()], 5)


@attack(devices=("nvme",))
def nvme_queues_in_memory_that_goes(target, _rng):
    nvme = Nvme(target.server.client())
    nvme.start_io(2, 64)
    nvme.client.send(Cmd.DMA_UNMAP, wire.DMA_UNMAP.pack(argsz=24, flags=wire.UNMAP_ALL))
    for index in range(2, 6):
        nvme.write(0x1000 + 4 * index, 5)


@attack(devices=("nvme",))
def nvme_truncated_queues(target, _rng):
    nvme = Nvme(target.server.client())
    nvme.start_io(2, 64)
    os.ftruncate(nvme.memory.slot.mem.fd, PAGE)
    for index in range(2, 6):
        nvme.write(0x1000 + 4 * index, 5)
    nvme.client.device_info()


def all_for(device):
    return [name for name, function in ATTACKS.items() if device in function.devices]


def seeded(name, number):
    """The same attack again comes from the same numbers."""
    return random.Random(f"{name} {number}")
