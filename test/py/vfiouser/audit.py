# SPDX-License-Identifier: BSD-3-Clause
"""A software IOMMU that keeps book of what the server may still use."""

from types import SimpleNamespace

from . import wire
from .software_iommu import SoftIommu


class AuditedIommu(SoftIommu):
    """
    A grant is a translation that was handed out. The completion of an invalidation takes back what
    it concerns and was handed out before it was sent. An access to the translated space that no
    grant covers goes to violations: register the memory without descriptors to see them all.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.grants = []
        self.outstanding = []
        self.violations = []
        self.sent = 0

    def entries(self, key, address, length):
        entries = super().entries(key, address, length)
        for entry in entries:
            if entry.get("perm", 0) & wire.PERM_RW:
                self.grants.append(SimpleNamespace(key=key, sent=self.sent, **entry))
        return entries

    def post_invalidate(self, pasid, address, length):
        """The tables have changed; the completion is looked for by reap()."""
        self.sent += 1
        msg_id = self.send_invalidate(pasid, address, length)
        self.outstanding.append(SimpleNamespace(msg_id=msg_id, key=pasid, sent=self.sent,
                                                address=address, end=address + length))

    def reap(self):
        """The invalidations whose completions have come since, whatever their order."""
        done = [inv for inv in self.outstanding if self.client.replies[inv.msg_id]]
        for inv in done:
            assert not self.client.wait(inv.msg_id).payload
            self.outstanding.remove(inv)
            self.grants = [g for g in self.grants
                           if g.key != inv.key or g.sent >= inv.sent or
                           g.address >= inv.end or g.address + g.length <= inv.address]
        return done

    def reach(self, command, key, addr, count, perm):
        if command.flags & wire.F_TRANSLATED:
            self.reap()
            if not any(g.translated <= addr and addr + count <= g.translated + g.length and
                       g.perm & perm for g in self.grants):
                self.violations.append(command)
        return super().reach(command, key, addr, count, perm)
