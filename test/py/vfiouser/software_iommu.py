# SPDX-License-Identifier: BSD-3-Clause
"""A software IOMMU for the mock client: page tables, translations, page requests, invalidations."""

from types import SimpleNamespace

from . import wire
from .wire import Cmd

PAGE = 4096
CAPS = {"pasid": {"bits": 20, "exec": True, "priv": True},
        "ats": {"queue_depth": 32, "page_shift": 12, "max_entries": 64},
        "pri": {"max_requests": 512}}

# Extended capabilities
ATS, PRI, PASID = 0x0F, 0x13, 0x1B


class PageTable:
    """IOVA to (translated address, permission), in mappings of any page multiple."""

    def __init__(self):
        self.mappings = {}

    def map(self, iova, translated, size=PAGE, perm=wire.PERM_RW):
        self.mappings[iova] = SimpleNamespace(iova=iova, translated=translated, size=size,
                                              perm=perm)

    def unmap(self, iova):
        del self.mappings[iova]

    def find(self, iova):
        for mapping in self.mappings.values():
            if mapping.iova <= iova < mapping.iova + mapping.size:
                return mapping
        return None


class Nested:
    """Two stages: what the first gives is an address that the second translates."""

    def __init__(self, first, second):
        self.first = first
        self.second = second

    def find(self, iova):
        outer = self.first.find(iova)
        if outer is None:
            return None
        middle = outer.translated + (iova - outer.iova)
        inner = self.second.find(middle)
        if inner is None:
            return None
        page = iova & ~(PAGE - 1)
        return SimpleNamespace(iova=page, size=PAGE, perm=outer.perm & inner.perm,
                               translated=inner.translated + (middle & ~(PAGE - 1)) - inner.iova)


class SoftIommu:
    """
    Attached to a client it answers the server from its page tables. A table's key is the PASID,
    None for the requester, or (PASID, "priv"). on_fault(key, iova, perm) is asked to bring a page
    in and returns the response code.
    """

    def __init__(self, client, memory_size=0x100000, base=0x80000000):
        self.client = client
        self.tables = {None: PageTable()}
        self.on_fault = lambda key, iova, perm: wire.PAGE_INVALID
        self.translations = []
        self.groups = []
        self.markers = []
        self.base = base
        self.memory = client.memory.add_file(memory_size)
        self.size = memory_size
        client.handlers[Cmd.ATS_TRANSLATE] = self.translate
        client.handlers[Cmd.PAGE_REQUEST] = self.page_request
        client.handlers[Cmd.DMA_READ] = self.dma_read
        client.handlers[Cmd.DMA_WRITE] = self.dma_write

    def register_memory(self, share=True):
        """Guest memory, as the translated space."""
        payload = wire.DMA_MAP.pack(argsz=32, flags=wire.MAP_RW, addr=self.base, size=self.size)
        self.client.request(Cmd.DMA_MAP, payload, [self.memory.fd] if share else [],
                            flags=wire.F_TRANSLATED)

    def table(self, key):
        return self.tables.setdefault(key, PageTable())

    def frame(self, number):
        """The translated address of a page of guest memory."""
        return self.base + number * PAGE

    def fill(self, number, byte):
        self.memory.write(number * PAGE, bytes([byte]) * PAGE)

    # Messages

    @staticmethod
    def split(command):
        """(key, the payload behind the prefix)"""
        if not command.flags & wire.F_PASID:
            return None, command.payload
        prefix = wire.PASID_PREFIX.unpack(command.payload)
        key = prefix.pasid if not prefix.attrs & 2 else (prefix.pasid, "priv")
        return key, command.payload[wire.PASID_PREFIX.size:]

    @staticmethod
    def prefixed(pasid, payload, attrs=0):
        """(flags, payload) for a command about a PASID, or about the requester."""
        if pasid is None:
            return 0, payload
        return wire.F_PASID, wire.PASID_PREFIX.pack(pasid=pasid, attrs=attrs) + payload

    @staticmethod
    def translate_reply(entries):
        data = b"".join(wire.ATS_ENTRY.pack(**entry) for entry in entries)
        head = wire.ATS_REPLY.pack(argsz=wire.ATS_REPLY.size + len(data), nr_entries=len(entries))
        return head + data

    def entries(self, key, address, length):
        """What a good reply holds; large mappings are given whole."""
        entries = []
        at = address
        while at < address + length and len(entries) < 64:
            mapping = self.table(key).find(at)
            if mapping is None:
                entries.append({"address": at, "length": PAGE})
                at += PAGE
            else:
                entries.append({"address": mapping.iova, "translated": mapping.translated,
                                "length": mapping.size, "perm": mapping.perm})
                at = mapping.iova + mapping.size
        return entries

    def translate(self, command):
        key, payload = self.split(command)
        request = wire.ATS_TRANSLATE.unpack(payload)
        self.translations.append((key, request))
        self.client.reply(command, self.translate_reply(
            self.entries(key, request.address, request.length)))

    def page_request(self, command):
        key, payload = self.split(command)
        request = wire.PAGE_REQUEST.unpack(payload)
        entries = wire.PAGE_REQUEST_ENTRY.unpack_array(payload[wire.PAGE_REQUEST.size:],
                                                       request.nr_entries)
        if request.flags & wire.PAGE_STOP:
            self.markers.append((key, command))
            return
        self.groups.append((key, request, entries))
        code = wire.PAGE_SUCCESS
        for entry in entries:
            for page in range(entry.nr_pages):
                code = max(code, self.on_fault(key, entry.address + page * PAGE, entry.perm))
        self.respond(command, request.group, code)

    def respond(self, command, group, code):
        self.client.reply(command, wire.PAGE_RESPONSE.pack(argsz=8, group=group, code=code))

    def reach(self, command, key, addr, count, perm):
        """Offsets in guest memory of the bytes of an access, piece by piece; None: not allowed."""
        if command.flags & wire.F_TRANSLATED:
            offset = addr - self.base
            return [(offset, count)] if 0 <= offset <= self.size - count else None
        pieces = []
        while count:
            mapping = self.table(key).find(addr)
            if mapping is None or mapping.perm & perm != perm:
                return None
            within = addr - mapping.iova
            length = min(count, mapping.size - within)
            pieces.append((mapping.translated + within - self.base, length))
            addr += length
            count -= length
        return pieces

    def dma_read(self, command):
        key, payload = self.split(command)
        access = wire.DMA_ACCESS.unpack(payload)
        pieces = self.reach(command, key, access.addr, access.count, wire.PERM_READ)
        if pieces is None:
            self.client.reply(command, error=14)
            return
        data = b"".join(self.memory.read(offset, length) for offset, length in pieces)
        self.client.reply(command, payload[:wire.DMA_ACCESS.size] + data)

    def dma_write(self, command):
        key, payload = self.split(command)
        access = wire.DMA_ACCESS.unpack(payload)
        pieces = self.reach(command, key, access.addr, access.count, wire.PERM_WRITE)
        if pieces is None:
            self.client.reply(command, error=14)
            return
        data = payload[wire.DMA_ACCESS.size:]
        for offset, length in pieces:
            self.memory.write(offset, data[:length])
            data = data[length:]
        self.client.reply(command, payload[:wire.DMA_ACCESS.size])

    # Commands

    def send_invalidate(self, pasid, address=0, length=0, flags=0):
        payload = wire.ATS_INVALIDATE.pack(argsz=24, flags=flags, address=address, length=length)
        bits, payload = self.prefixed(pasid, payload)
        return self.client.send(Cmd.ATS_INVALIDATE, payload, flags=bits)

    def invalidate(self, pasid, address=0, length=0, flags=0):
        return self.client.wait(self.send_invalidate(pasid, address, length, flags),
                                check=False).error
