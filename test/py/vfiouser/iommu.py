# SPDX-License-Identifier: BSD-3-Clause
"""
The IOMMU that a client plays for the vfio-user IOMMU extension: contexts for requester and PASIDs,
translation requests, page requests, invalidations, and a book of what the server may still use.
"""

import errno

from . import wire
from .pagetable import ALL, PAGE, Fault
from .script import Script
from .wire import Cmd

REQUESTER = None  # "no PASID" is a state of its own, not a number

CAPABILITIES = {"iommu": {"pasid": {"bits": 20, "exec": True, "priv": True},
                          "ats": {"queue_depth": 32, "page_shift": 12, "max_entries": 64},
                          "pri": {"max_requests": 512}}}


class Context:
    """
    One address space: a table to walk, and what is known of it but not yet in it (demand paging).
    """

    def __init__(self, table, ats=True, pri=True):
        self.table = table
        self.ats = ats
        self.pri = pri
        self.absent = {}  # page -> (target, perm)

    def add_absent(self, iova, target, size, perm=ALL):
        """Pages that come only with a page request."""
        for at in range(0, size, PAGE):
            self.absent[iova + at] = (target + at, perm)

    def page_in(self, iova, perm):
        """True if the page is there now with that permission."""
        leaf = self.table.walk(iova)
        if leaf.present:
            return leaf.perm & perm == perm
        if iova not in self.absent:
            return False
        target, have = self.absent[iova]
        if have & perm != perm:
            return False
        del self.absent[iova]
        self.table.map(iova, target, PAGE, have, largest=PAGE)
        return True


class Request:
    """A command of the server, without its PASID prefix."""

    def __init__(self, command):
        self.command = command
        self.pasid = REQUESTER
        self.attrs = 0
        self.payload = command.payload
        self.translated = bool(command.flags & wire.F_TRANSLATED)
        if command.flags & wire.F_PASID:
            prefix = wire.PASID_PREFIX.unpack(command.payload)
            assert not self.translated, f"prefix and translated: {command}"
            assert prefix.pasid >> 20 == 0 and prefix.attrs & ~3 == 0, command
            self.pasid = prefix.pasid
            self.attrs = prefix.attrs
            self.payload = command.payload[wire.PASID_PREFIX.size:]


class Translate(Request):
    def __init__(self, command):
        super().__init__(command)
        fields = wire.ATS_TRANSLATE.unpack(self.payload)
        assert len(self.payload) == wire.ATS_TRANSLATE.size, command
        self.argsz, self.flags = fields.argsz, fields.flags
        self.address, self.length = fields.address, fields.length


class PageGroup:
    """The requests of one group, complete when the last has come."""

    def __init__(self, pasid, index):
        self.pasid = pasid
        self.index = index
        self.pages = []  # (address, number, perm)
        self.last = None  # the request that is answered


class Grant:
    """A translation that the server was given."""

    def __init__(self, pasid, entry, serial):
        self.pasid = pasid
        self.entry = entry
        self.serial = serial

    def overlaps(self, address, length):
        return address < self.entry.address + self.entry.length and (
            self.entry.address < address + length)


class Invalidation:
    """The range is rounded outward to translation units."""

    def __init__(self, msg_id, pasid, flags, address, length, unit, serial):
        self.msg_id = msg_id
        self.pasid = pasid
        self.flags = flags
        self.address = address // unit * unit
        self.length = -(-(address + length) // unit) * unit - self.address
        self.serial = serial

    def concerns(self, grant):
        if not self.flags & wire.INV_GLOBAL:
            if self.pasid != grant.pasid or (
                    self.pasid is not REQUESTER and grant.entry.perm & wire.PERM_GLOBAL):
                return False
        return bool(self.flags & wire.INV_ALL) or grant.overlaps(self.address, self.length)


class SoftIommu:
    """
    Answers the server's commands on the client's behalf. The script decides when and how well.
    Grants that no completed invalidation has taken back are what the server may use; an access to
    the translated space that none of them covers goes to violations.
    """

    def __init__(self, client, script=None, page_shift=12, max_entries=64, queue_depth=32):
        self.client = client
        self.memory = client.memory
        self.contexts = {}
        self.script = script or Script()
        self.unit = 1 << page_shift
        self.max_entries = max_entries
        self.queue_depth = queue_depth
        self.translates = []  # every ATS_TRANSLATE, in order of arrival
        self.page_groups = []  # every complete group
        self.stop_markers = []
        self.partial = {}  # group index -> PageGroup
        self.untranslated = []  # every DMA message that had to be translated here
        self.grants = []
        self.outstanding = {}  # msg_id -> Invalidation
        self.violations = []
        self.serial = 0
        client.handlers.update({
            Cmd.DMA_READ: self._dma_read, Cmd.DMA_WRITE: self._dma_write,
            Cmd.ATS_TRANSLATE: self._translate, Cmd.PAGE_REQUEST: self._page_request})

    def share_memory(self, slot, fd=True):
        """Registers a part of guest memory in the translated space."""
        return self.client.request(Cmd.DMA_MAP, self.client.map_payload(slot),
                                   [slot.mem.fd] if fd else [], wire.F_TRANSLATED)

    def attach(self, context, pasid=REQUESTER):
        self.contexts[pasid] = context
        return context

    # Translation

    def lookup(self, request, address):
        """The leaf at the address as this requester sees it."""
        leaf = self.contexts[request.pasid].table.walk(address)
        privileged = bool(request.attrs & wire.PASID_PRIV)
        if leaf.perm & wire.PERM_PRIV and not privileged:
            leaf.perm = 0
            leaf.target = 0
        return leaf

    def entry_of(self, request, leaf):
        """The reply's entry: no more than was asked for."""
        perm = leaf.perm & (wire.PERM_READ | wire.PERM_WRITE)
        if perm:
            if request.attrs & wire.PASID_EXEC and perm & wire.PERM_READ:
                perm |= leaf.perm & wire.PERM_EXEC
            if request.attrs & wire.PASID_PRIV:
                perm |= wire.PERM_PRIV
            if request.pasid is not REQUESTER:
                perm |= leaf.perm & wire.PERM_GLOBAL
        size = max(leaf.size, self.unit)
        return {"address": leaf.address & ~(size - 1), "length": size, "perm": perm,
                "translated": leaf.target if perm else 0}

    def entries(self, request):
        """Ascending, without holes, from the one that holds the address."""
        room = (request.argsz - wire.ATS_REPLY.size) // wire.ATS_ENTRY.size
        entries, at = [], request.address
        while at < request.address + request.length and len(entries) < min(room,
                                                                           self.max_entries):
            entry = self.entry_of(request, self.lookup(request, at))
            if entries and entry["address"] < at:
                entry["length"] -= at - entry["address"]
                entry["translated"] += (at - entry["address"]) if entry["perm"] else 0
                entry["address"] = at
            entries.append(entry)
            at = entry["address"] + entry["length"]
        return entries

    def _translate(self, command):
        request = Translate(command)
        self.translates.append(request)
        self.script.translate(self, request)

    def answer(self, request):
        """The honest answer, from the tables as they are now."""
        context = self.contexts.get(request.pasid)
        if context is None or not context.ats:
            self.refuse(request, errno.EPERM)
        elif not self._well_formed(request):
            self.refuse(request, errno.EINVAL)
        else:
            try:
                self.reply_entries(request, self.entries(request))
            except Fault:
                self.refuse(request, errno.EIO)

    def _well_formed(self, request):
        return (request.flags & ~wire.ATS_NO_WRITE == 0 and request.length > 0 and
                (request.address | request.length) % self.unit == 0 and
                request.address + request.length <= 1 << 64 and
                request.argsz >= wire.ATS_REPLY.size + wire.ATS_ENTRY.size)

    def refuse(self, request, error):
        self.client.reply(request.command, error=error)

    def reply_entries(self, request, entries, grant=True, **header):
        """The reply, and its note in the book; header fields may lie."""
        body = b"".join(wire.ATS_ENTRY.pack(**entry) for entry in entries)
        fields = {"argsz": wire.ATS_REPLY.size + len(body), "nr_entries": len(entries), **header}
        if grant:
            for entry in entries:
                packed = wire.ATS_ENTRY.unpack(wire.ATS_ENTRY.pack(**entry))
                if packed.perm & (wire.PERM_READ | wire.PERM_WRITE):
                    self.grants.append(Grant(request.pasid, packed, self.serial))
        self.client.reply(request.command, wire.ATS_REPLY.pack(**fields) + body)

    # Accesses by message

    def _access(self, command):
        request = Request(command)
        access = wire.DMA_ACCESS.unpack(request.payload)
        return request, access.addr, access.count, request.payload[wire.DMA_ACCESS.size:]

    def _pieces(self, request, address, count, perm):
        """Where the access leads, piece by piece; raises PermissionError."""
        pieces = []
        while count > 0:
            if request.translated:
                size = self._granted(address, count, perm)
                pieces.append((address, size))
            else:
                context = self.contexts.get(request.pasid)
                leaf = self.lookup(request, address) if context else None
                if leaf is None or not leaf.perm & perm:
                    raise PermissionError(f"0x{address:x} in PASID {request.pasid}")
                size = min(count, leaf.address + leaf.size - address)
                pieces.append((leaf.at(address), size))
            address, count = address + size, count - size
        return pieces

    def _granted(self, address, count, perm):
        """How much of a translated access a grant covers; all of it, noted, when none does."""
        for grant in self.grants:
            start = grant.entry.translated
            end = start + grant.entry.length
            if start <= address < end and grant.entry.perm & perm and (
                    not grant.entry.perm & wire.PERM_UNTRANSLATED):
                return min(count, end - address)
        self.violations.append((address, count, perm))
        return count

    def _dma_read(self, command):
        request, address, count, _ = self._access(command)
        if not request.translated:
            self.untranslated.append(request)
        try:
            data = b"".join(self.memory.dma_read(at, size) for at, size in
                            self._pieces(request, address, count, wire.PERM_READ))
        except (PermissionError, Fault):
            self.client.reply(command, error=errno.EPERM)
            return
        self.client.reply(command, wire.DMA_ACCESS.pack(addr=address, count=count) + data)

    def _dma_write(self, command):
        request, address, count, data = self._access(command)
        assert len(data) == count, command
        if not request.translated:
            self.untranslated.append(request)
        try:
            done = 0
            for at, size in self._pieces(request, address, count, wire.PERM_WRITE):
                self.memory.dma_write(at, data[done:done + size])
                done += size
        except (PermissionError, Fault):
            self.client.reply(command, error=errno.EPERM)
            return
        self.client.reply(command, wire.DMA_ACCESS.pack(addr=address, count=count))

    # Page requests

    def _page_request(self, command):
        request = Request(command)
        fields = wire.PAGE_REQUEST.unpack(request.payload)
        body = request.payload[wire.PAGE_REQUEST.size:]
        assert len(body) == fields.nr_entries * wire.PAGE_REQUEST_ENTRY.size, command
        if fields.flags & wire.PRQ_STOP:
            assert request.pasid is not REQUESTER and not body, command
            assert command.flags & wire.NO_REPLY, command
            self.stop_markers.append(request.pasid)
            return
        last = bool(fields.flags & wire.PRQ_LAST)
        assert bool(command.flags & wire.NO_REPLY) != last, "only the last of a group is answered"
        assert fields.group < 512, command
        group = self.partial.setdefault(fields.group, PageGroup(request.pasid, fields.group))
        assert group.pasid == request.pasid, "a group of two PASIDs"
        group.pages += [(e.address, e.nr_pages, e.perm) for e in
                        wire.PAGE_REQUEST_ENTRY.unpack_array(body, fields.nr_entries)]
        if last:
            del self.partial[fields.group]
            group.last = request
            self.page_groups.append(group)
            self.script.page_group(self, group)

    def page_in(self, group):
        """Makes the pages of the group present; the code of the honest response."""
        context = self.contexts.get(group.pasid)
        if context is None or not context.pri:
            return wire.PRQ_INVALID
        mask = wire.PERM_READ | wire.PERM_WRITE | wire.PERM_EXEC
        present = [context.page_in(address + i * self.unit, perm & mask)
                   for address, number, perm in group.pages for i in range(number)]
        return wire.PRQ_SUCCESS if all(present) else wire.PRQ_INVALID

    def respond(self, group, code=None, index=None):
        """The response: honest unless code or index is given."""
        code = self.page_in(group) if code is None else code
        index = group.index if index is None else index
        self.client.reply(group.last.command, wire.PAGE_RESPONSE.pack(
            argsz=wire.PAGE_RESPONSE.size, group=index, code=code))

    # Invalidations

    def send_invalidate(self, address=0, length=0, pasid=REQUESTER, flags=0):
        """The tables are changed before; returns without waiting for the completion."""
        self.serial += 1
        prefix = b"" if pasid is REQUESTER else wire.PASID_PREFIX.pack(pasid=pasid)
        payload = wire.ATS_INVALIDATE.pack(argsz=wire.ATS_INVALIDATE.size, flags=flags,
                                           address=address, length=length)
        msg_id = self.client.send(Cmd.ATS_INVALIDATE, prefix + payload,
                                  flags=wire.F_PASID if prefix else 0)
        invalidation = Invalidation(msg_id, pasid, flags, address, length, self.unit,
                                    self.serial)
        self.outstanding[msg_id] = invalidation
        return invalidation

    def wait_completion(self, invalidation, check=True):
        """Serves the server's commands until the completion is there; returns the reply."""
        reply = self.client.wait(invalidation.msg_id, check)
        del self.outstanding[invalidation.msg_id]
        if not reply.error:
            assert reply.payload == b"", reply
            self.grants = [grant for grant in self.grants
                           if grant.serial >= invalidation.serial or
                           not invalidation.concerns(grant)]
        return reply

    def completed(self, invalidation):
        """Whether its completion was received, without looking at the socket."""
        return bool(self.client.replies[invalidation.msg_id])

    def invalidate(self, address=0, length=0, pasid=REQUESTER, flags=0):
        return self.wait_completion(self.send_invalidate(address, length, pasid, flags))

    def invalidate_everything(self):
        return self.invalidate(flags=wire.INV_GLOBAL | wire.INV_ALL)

    def fill_queue(self, number=None, **where):
        """As many invalidations at once as were agreed, or another number."""
        return [self.send_invalidate(**where) for _ in range(number or self.queue_depth)]
